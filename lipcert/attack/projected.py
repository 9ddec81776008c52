"""Gradient ascent inside a ball: PGD, and APGD with its step sizes from the run itself.

Shape letters: B images, K classes, C H W image.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lipcert.attack.polish import Polished
from lipcert.attack.target import DTYPES, Found, Target, column, gradient_of, lengths, margin_of, nothing, put, verify
from lipcert.settings import Settings

_GRADIENT_LENGTH = 2.5  # total length of PGD's steps in radii
_MOMENTUM = 0.75
_INCREASES = 0.75

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_BK: Tensor, classes_B: Tensor) -> Tensor:
    """Cross-entropy of the prediction, (B,): grows as it loses."""
    return F.cross_entropy(logits_BK, classes_B, reduction="none")


def dlr(logits_BK: Tensor, classes_B: Tensor) -> Tensor:
    """Difference of logits ratio (arXiv 2003.01690, equation 6), (B,): the margin over z_(1) - z_(3), sorted downwards.

    It ignores scale and shift of the logits. With two classes there is no third logit, so it is the margin.
    """
    margin_B = margin_of(logits_BK, classes_B)
    if logits_BK.shape[1] < 3:
        return margin_B
    top_B3 = logits_BK.topk(3, dim=1).values
    return margin_B / (top_B3[:, 0] - top_B3[:, 2]).clamp(min=1e-12)


LOSSES: dict[str, Loss] = {"margin": margin_of, "cross_entropy": cross_entropy, "dlr": dlr}


class Inside(Settings):
    """PGD once in the certified ball itself: cheap enough for a whole test set. Finds violations, no distances."""

    name: Literal["inside"] = "inside"
    steps: int = Field(10, ge=1, description="gradient steps")
    arithmetic: Literal["float32", "float64"] = Field("float32", description="of the search")
    batch: int = Field(250, ge=1, description="images at once")
    near: float = Field(
        0.05,
        ge=0,
        description="where at most this share of the image's margin is left, the search is repeated in float64",
    )

    def find(self, target: Target) -> Found:
        """Changed points in the certified balls, verified; every distance found is at most the certified radius."""
        dtype = DTYPES[self.arithmetic]
        points_BCHW = _pgd(target, target.radius_B, margin_of, self.steps, None, dtype)[0]
        with torch.no_grad():
            logits_BK = target.logits(points_BCHW)
        margin_B = margin_of(logits_BK, target.classes_B)
        # What float32 cannot tell from a success: little of the margin is left, or little beside the logits.
        left_B = self.near * target.margins(target.images_BCHW.to(dtype)).abs() + 1e-4 * logits_BK.abs().amax(1)
        near_B = ~(margin_B < -left_B)
        found, near = nothing(target), near_B.nonzero()[:, 0]
        if len(near):
            part = target.part(near)
            exact_BCHW = _pgd(part, part.radius_B, margin_of, self.steps, None, torch.float64)[0]
            # A hair inside the ball, so that rounding pixels and distance leaves the point there.
            pixel_rounding = 2.0**-52 * exact_BCHW[0].numel() ** 0.5
            inward_B = (part.radius_B * (1 - 2.0**-40) - pixel_rounding).clamp(min=0)
            inward_BCHW = part.into_ball(exact_BCHW, inward_B)
            put(found, near, verify(part, inward_BCHW, push=False))
        return found


class Pgd(Polished):
    """Projected gradient ascent (arXiv 1706.06083, l2 ball) in growing balls, until the answer changes."""

    name: Literal["pgd"] = "pgd"
    steps: int = Field(40, ge=1, description="gradient steps per ball and restart")
    restarts: int = Field(2, ge=1, description="the first starts at the image, the others at random")
    losses: tuple[Literal["margin", "cross_entropy"], ...] = Field(
        ("margin", "cross_entropy"), min_length=1, description="taken in turn by the restarts"
    )
    scales: tuple[float, ...] = Field(
        (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), min_length=1, description="radii of the balls in certified radii"
    )
    arithmetic: Literal["float32", "float64"] = Field("float32", description="of the search")
    batch: int = Field(100, ge=1, description="images at once")

    def search(self, target: Target) -> Tensor:
        """The closest changed point per image in the smallest ball that has one, else the image, float64."""

        def attempt(part: Target, radius_B: Tensor, start: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            loss = LOSSES[self.losses[start % len(self.losses)]]
            return _pgd(part, radius_B, loss, self.steps, generator if start else None, DTYPES[self.arithmetic])

        return _growing(target, self.scales, self.restarts, attempt)


class Apgd(Polished):
    """Auto-PGD (arXiv 2003.01690, algorithm 1) in growing balls, until the answer changes."""

    name: Literal["apgd"] = "apgd"
    steps: int = Field(50, ge=2, description="gradient steps per ball and restart")
    restarts: int = Field(2, ge=1, description="all start at random")
    losses: tuple[Literal["dlr", "cross_entropy", "margin"], ...] = Field(
        ("dlr", "cross_entropy"), min_length=1, description="taken in turn by the restarts"
    )
    scales: tuple[float, ...] = Field(
        (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), min_length=1, description="radii of the balls in certified radii"
    )
    arithmetic: Literal["float32", "float64"] = Field("float32", description="of the search")
    batch: int = Field(100, ge=1, description="images at once")

    def search(self, target: Target) -> Tensor:
        """The closest changed point per image in the smallest ball that has one, else the image, float64."""

        def attempt(part: Target, radius_B: Tensor, start: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            loss = LOSSES[self.losses[start % len(self.losses)]]
            return _apgd(part, radius_B, loss, self.steps, generator, DTYPES[self.arithmetic])

        return _growing(target, self.scales, self.restarts, attempt)


def _growing(target: Target, scales: tuple[float, ...], restarts: int, attempt) -> Tensor:
    """The attempt's closest changed points over all restarts, in the first ball in which there is one."""
    generator = target.generator()
    best_BCHW, left = target.images_BCHW.clone(), torch.arange(len(target), device=target.images_BCHW.device)
    for scale in sorted(scales):
        if not len(left):
            break
        part = target.part(left)
        distance_B = torch.full_like(part.radius_B, math.inf)
        for start in range(restarts):
            point_BCHW, margin_B = attempt(part, scale * part.radius_B, start, generator)
            point_BCHW = point_BCHW.double()
            away_B = lengths(point_BCHW - part.images_BCHW)
            better_B = (margin_B > 0) & (away_B < distance_B)
            distance_B = torch.where(better_B, away_B, distance_B)
            best_BCHW[left[better_B]] = point_BCHW[better_B]
        left = left[distance_B.isinf()]
    return best_BCHW


class _Best:
    """Of all points seen: the closest changed one, else the one of the largest margin."""

    def __init__(self, target: Target, points_BCHW: Tensor):
        self.images_BCHW = target.images_BCHW.to(points_BCHW.dtype)
        self.points_BCHW = points_BCHW.clone()
        self.margin_B = points_BCHW.new_full((len(points_BCHW),), -math.inf)
        self.distance_B = torch.full_like(self.margin_B, math.inf)

    def see(self, points_BCHW: Tensor, margin_B: Tensor) -> None:
        distance_B = torch.where(margin_B > 0, lengths(points_BCHW - self.images_BCHW), math.inf)
        better_B = (distance_B < self.distance_B) | (self.distance_B.isinf() & (margin_B > self.margin_B))
        self.points_BCHW = torch.where(column(better_B), points_BCHW, self.points_BCHW)
        self.margin_B = torch.where(better_B, margin_B, self.margin_B)
        self.distance_B = torch.where(better_B, distance_B, self.distance_B)


def _loss_gradient(target: Target, points_BCHW: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its unit gradient and the margin."""
    margins = []

    def value(x_BCHW: Tensor) -> Tensor:
        logits_BK = target.logits(x_BCHW)
        margins.append(margin_of(logits_BK.detach(), target.classes_B))
        return loss(logits_BK, target.classes_B)

    loss_B, gradient_BCHW = gradient_of(value, points_BCHW)
    # Divided by the largest entry first: the square of a saturated loss's gradient underflows.
    gradient_BCHW = gradient_BCHW / column(gradient_BCHW.flatten(1).abs().amax(1).clamp(min=1e-37))
    return loss_B, gradient_BCHW / column(lengths(gradient_BCHW)), margins[0]


def _start(target: Target, radius_B: Tensor, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """The images, or points drawn in their balls: a random direction, length radius x U^(1/2)."""
    images_BCHW = target.images_BCHW.to(dtype)
    if generator is None:
        return images_BCHW.clone()
    noise_BCHW = torch.randn(images_BCHW.shape, generator=generator, dtype=torch.float64).to(images_BCHW)
    share_B = torch.rand(len(target), generator=generator, dtype=torch.float64).sqrt().to(images_BCHW)
    drawn_BCHW = noise_BCHW * column(share_B * radius_B.to(dtype) / lengths(noise_BCHW))
    return target.into_ball(images_BCHW + drawn_BCHW, radius_B)


def _pgd(
    target: Target,
    radius_B: Tensor,
    loss: Loss,
    steps: int,
    generator: torch.Generator | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Closest changed point in the ball, else the largest margin's, and its margin."""
    points_BCHW = _start(target, radius_B, generator, dtype)
    best, size_B = _Best(target, points_BCHW), _GRADIENT_LENGTH / steps * radius_B.to(dtype)
    for _ in range(steps):
        _, unit_BCHW, margin_B = _loss_gradient(target, points_BCHW, loss)
        best.see(points_BCHW, margin_B)
        points_BCHW = target.into_ball(points_BCHW + column(size_B) * unit_BCHW, radius_B)
    best.see(points_BCHW, target.margins(points_BCHW))
    return best.points_BCHW, best.margin_B


def _apgd(
    target: Target, radius_B: Tensor, loss: Loss, steps: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `_pgd`, by arXiv 2003.01690, algorithm 1: momentum, and steps halved where a checkpoint shows no progress."""
    previous_BCHW = points_BCHW = _start(target, radius_B, generator, dtype)
    best, checkpoints = _Best(target, points_BCHW), _checkpoints(steps)
    loss_B, unit_BCHW, margin_B = _loss_gradient(target, points_BCHW, loss)
    best.see(points_BCHW, margin_B)
    size_B = 2 * radius_B.to(dtype)
    top_B, top_BCHW, top_unit_BCHW = loss_B, points_BCHW, unit_BCHW
    top_before_B, halved_before_B = torch.full_like(top_B, -math.inf), torch.ones_like(top_B, dtype=torch.bool)
    increases_B, since = torch.zeros_like(top_B), 0
    for step in range(1, steps + 1):
        ahead_BCHW = target.into_ball(points_BCHW + column(size_B) * unit_BCHW, radius_B)
        if step > 1:
            ahead_BCHW = target.into_ball(
                points_BCHW + _MOMENTUM * (ahead_BCHW - points_BCHW) + (1 - _MOMENTUM) * (points_BCHW - previous_BCHW),
                radius_B,
            )
        previous_BCHW, points_BCHW, before_B = points_BCHW, ahead_BCHW, loss_B
        loss_B, unit_BCHW, margin_B = _loss_gradient(target, points_BCHW, loss)
        best.see(points_BCHW, margin_B)
        increases_B += loss_B > before_B
        higher_B = loss_B > top_B
        top_B = torch.where(higher_B, loss_B, top_B)
        top_BCHW = torch.where(column(higher_B), points_BCHW, top_BCHW)
        top_unit_BCHW = torch.where(column(higher_B), unit_BCHW, top_unit_BCHW)
        if step in checkpoints:
            stuck_B = increases_B < _INCREASES * (step - since)
            stuck_B |= ~halved_before_B & (top_before_B >= top_B)
            size_B = torch.where(stuck_B, size_B / 2, size_B)
            points_BCHW = torch.where(column(stuck_B), top_BCHW, points_BCHW)
            unit_BCHW = torch.where(column(stuck_B), top_unit_BCHW, unit_BCHW)
            loss_B = torch.where(stuck_B, top_B, loss_B)
            top_before_B, halved_before_B = top_B, stuck_B
            increases_B, since = torch.zeros_like(top_B), step
    return best.points_BCHW, best.margin_B


def _checkpoints(steps: int) -> set[int]:
    """Steps at which APGD looks back: the gaps shrink from 22 % of the run by 3 % each, to 6 % (section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(share * steps) for share in shares[1:] if share <= 1}
