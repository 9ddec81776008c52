"""Minimal perturbations from the network's linearisation: DeepFool and FAB.

Shape letters: B images, K classes, R rivals, C H W image.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lipcert.attack.polish import Polished, to_hyperplane
from lipcert.attack.target import DTYPES, Target, column, lengths, nearest_plane, rival_gradients


class DeepFool(Polished):
    """Steps to the nearest boundary of the linearised network until the answer changes (arXiv 1511.04599, l2)."""

    name: Literal["deepfool"] = "deepfool"
    steps: int = Field(50, ge=1, description="linearisations at most")
    rivals: int = Field(9, ge=1, description="classes considered, those of the largest logits")
    overshoot: float = Field(0.02, ge=0, description="share added to every step")
    arithmetic: Literal["float32", "float64"] = Field("float32", description="of the search")
    batch: int = Field(100, ge=1, description="images at once")

    def search(self, target: Target) -> Tensor:
        """The first changed point per image, else the last one reached, float64."""
        images_BCHW = target.images_BCHW.to(DTYPES[self.arithmetic])
        points_BCHW, left = images_BCHW.clone(), torch.arange(len(target), device=images_BCHW.device)
        for _ in range(self.steps):
            part = target.part(left)
            margin_BR, gradient_BRCHW = rival_gradients(part, points_BCHW[left], self.rivals)
            unchanged_B = ~(margin_BR > 0).any(1)
            left, margin_BR, gradient_BRCHW = left[unchanged_B], margin_BR[unchanged_B], gradient_BRCHW[unchanged_B]
            if not len(left):
                break
            margin_B, normal_BCHW = nearest_plane(margin_BR, gradient_BRCHW)
            # Over the boundary by a little, or a step that lands on it exactly changes nothing.
            need_B = (-margin_B + 1e-7 * (1 + margin_B.abs())) * (1 + self.overshoot)
            part = target.part(left)
            step_BCHW = to_hyperplane(points_BCHW[left], normal_BCHW, need_B, target.box)
            points_BCHW[left] = part.boxed(points_BCHW[left] + step_BCHW)
        return points_BCHW.double()


class Fab(Polished):
    """Fast adaptive boundary attack (arXiv 1907.02044, algorithm 1, l2): both the point and the image are projected."""

    name: Literal["fab"] = "fab"
    steps: int = Field(25, ge=1, description="linearisations per restart")
    restarts: int = Field(2, ge=1, description="the first starts at the image, the others at random")
    rivals: int = Field(5, ge=1, description="classes considered, those of the largest logits")
    largest_share: float = Field(0.1, ge=0, le=1, description="alpha_max: most that the image's projection counts")
    overshoot: float = Field(1.05, ge=1, description="eta: extrapolation of both projections")
    backward: float = Field(0.9, gt=0, lt=1, description="beta: where to go on after a success, from the image")
    arithmetic: Literal["float32", "float64"] = Field("float32", description="of the search")
    batch: int = Field(100, ge=1, description="images at once")

    def search(self, target: Target) -> Tensor:
        """The closest changed point per image, else the image, float64."""
        images_BCHW = target.images_BCHW.to(DTYPES[self.arithmetic])
        generator = target.generator()
        best_BCHW = images_BCHW.clone()
        distance_B = images_BCHW.new_full((len(target),), math.inf)
        for start in range(self.restarts):
            points_BCHW = images_BCHW
            if start:
                reach_B = torch.where(distance_B.isfinite(), distance_B, 10 * target.radius_B.to(distance_B)) / 2
                noise_BCHW = torch.randn(images_BCHW.shape, generator=generator, dtype=torch.float64).to(images_BCHW)
                points_BCHW = target.boxed(images_BCHW + noise_BCHW * column(reach_B / lengths(noise_BCHW)))
            for _ in range(self.steps):
                points_BCHW = self._step(target, images_BCHW, points_BCHW)
                changed_B = target.margins(points_BCHW) > 0
                away_B = lengths(points_BCHW - images_BCHW)
                closer_B = changed_B & (away_B < distance_B)
                distance_B = torch.where(closer_B, away_B, distance_B)
                best_BCHW = torch.where(column(closer_B), points_BCHW, best_BCHW)
                back_BCHW = images_BCHW + self.backward * (points_BCHW - images_BCHW)
                points_BCHW = torch.where(column(changed_B), back_BCHW, points_BCHW)
        return best_BCHW.double()

    def _step(self, target: Target, images_BCHW: Tensor, points_BCHW: Tensor) -> Tensor:
        """Equation (9): a mean of the extrapolated projections of the point and of the image, in the box."""
        margin_B, normal_BCHW = nearest_plane(*rival_gradients(target, points_BCHW, self.rivals))
        away_BCHW = points_BCHW - images_BCHW
        from_image_B = (normal_BCHW * away_BCHW).flatten(1).sum(1) - margin_B
        own_BCHW = to_hyperplane(points_BCHW, normal_BCHW, -margin_B, target.box)
        image_BCHW = to_hyperplane(images_BCHW, normal_BCHW, from_image_B, target.box)
        own_B, image_B = lengths(own_BCHW), lengths(image_BCHW)
        share = column((own_B / (own_B + image_B)).clamp(max=self.largest_share))
        moved_BCHW = points_BCHW + self.overshoot * own_BCHW
        return target.boxed((1 - share) * moved_BCHW + share * (images_BCHW + self.overshoot * image_BCHW))
