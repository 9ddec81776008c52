"""Points near the boundary at which rounding alone changes the answer: what a certificate must have counted.

Shape letters: B images, S samples, C H W image, F features of an image.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lipcert.attack.linearised import DeepFool
from lipcert.attack.polish import polish
from lipcert.attack.target import DTYPES, Found, Target, changed, column, lengths, nothing, put, verify
from lipcert.certify import Certificates
from lipcert.settings import Settings

_HALVINGS = {torch.float32: 26, torch.float64: 55}
_FINEST = {torch.float32: 26.0, torch.float64: 55.0}  # samples move inward by 2^-1 ... 2^-this of the distance


class Rounding(Settings):
    """Search for executed violations around the boundary (arXiv 2603.13334, 2205.10159).

    DeepFool and polishing lead to the boundary of the real network; bisection in the executed arithmetic to where the
    executed answer changes; then every round tries points somewhat closer to the image whose pixels are moved to
    neighbouring floating-point numbers, a few of them or all, and keeps the closest that changes the executed answer.
    """

    name: Literal["rounding"] = "rounding"
    arithmetic: Literal["float32", "float64"] = Field("float64", description="in which the network is executed")
    rounds: int = Field(10, ge=0, description="rounds of samples")
    samples: int = Field(64, ge=1, description="points tried per image and round")
    batch: int = Field(32, ge=1, description="images at once")

    def find(self, target: Target) -> Found:
        """The closest changed points in the arithmetic of the settings, verified in it."""
        dtype = DTYPES[self.arithmetic]
        found = nothing(target)
        everything = torch.arange(len(target), device=target.images_BCHW.device)
        start_BCHW = polish(target, DeepFool(arithmetic="float64").search(target))
        # The image itself may be enough: its pixels, or the network's weights, are rounded on the way.
        for points_BCHW, push in ((start_BCHW, True), (target.images_BCHW, False)):
            put(found, everything, verify(target, points_BCHW, push, dtype))
        left = (found.distance_B.isfinite() & (found.distance_B > 0)).nonzero()[:, 0]
        if not len(left):
            return found
        part = target.part(left)
        put(found, left, verify(part, _bisect(part, found.points_BCHW[left], dtype), False, dtype))
        generator = target.generator()
        best_BCHW = found.points_BCHW[left]
        for _ in range(self.rounds):
            best_BCHW = _closer(part, best_BCHW, self.samples, dtype, generator)
        put(found, left, verify(part, best_BCHW, False, dtype))
        return found


def rounding_search(
    chain: nn.Module,
    images_BCHW: Tensor,
    certificates: Certificates,
    arithmetic: Literal["float32", "float64"] = "float64",
    rounds: int = 10,
    samples: int = 64,
    seed: int = 0,
    box: bool = True,
) -> Found:
    """The closest points at which the network, executed in `arithmetic`, does not give the certified answer.

    Compare `distance_B` with `certificates.radius_B`. A certificate of the guarantee *executed* holds for its own
    arithmetic only: a float32 run of the network may change its answer inside a radius proven for float64.
    Images at which the certificate abstains are left out (distance inf).
    """
    settings = Rounding(arithmetic=arithmetic, rounds=rounds, samples=samples)
    target = Target.of(chain, images_BCHW, certificates.prediction_B, certificates.radius_B, box, seed)
    found = nothing(target)
    for index in (certificates.prediction_B >= 0).nonzero()[:, 0].to(target.images_BCHW.device).split(settings.batch):
        put(found, index, settings.find(target.part(index)))
    return found


def _bisect(target: Target, points_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """The changed end of the bracket after halving the segment from image to point in the executed arithmetic."""
    away_BCHW = points_BCHW - target.images_BCHW
    low_B, high_B = torch.zeros_like(target.radius_B), torch.ones_like(target.radius_B)
    for _ in range(_HALVINGS[dtype]):
        middle_B = (low_B + high_B) / 2
        over_B, _ = changed(target, target.boxed(target.images_BCHW + column(middle_B) * away_BCHW).to(dtype))
        low_B, high_B = torch.where(over_B, low_B, middle_B), torch.where(over_B, middle_B, high_B)
    return target.boxed(target.images_BCHW + column(high_B) * away_BCHW)


def _closer(
    target: Target, points_BCHW: Tensor, samples: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """One round: of the samples around every point, the closest changed one if it is closer than the point."""
    shape, device = (len(target), samples), points_BCHW.device

    def draw(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, dtype=torch.float64).to(device)

    image_B1F = target.images_BCHW.flatten(1)[:, None]
    away_B1F = points_BCHW.flatten(1)[:, None] - image_B1F
    # Closer by all powers of two, so that coarse and fine rounding are both met.
    inward_BS1 = torch.exp2(-1 - draw(*shape, 1) * (_FINEST[dtype] - 1))
    sample_BSF = target.boxed(image_B1F + (1 - inward_BS1) * away_B1F).to(dtype)
    features = sample_BSF.shape[2]
    # One pixel to all of them, at equal odds per power of two, each to the neighbour above or below.
    share_BS1 = torch.exp2(-draw(*shape, 1) * torch.tensor(float(features), device=device).log2())
    moved_BSF = draw(*shape, features) < share_BS1
    ends_BSF = torch.where(draw(*shape, features) < 0.5, -torch.inf, torch.inf).to(dtype)
    sample_BSF = target.boxed(torch.where(moved_BSF, torch.nextafter(sample_BSF, ends_BSF), sample_BSF))
    repeated = target.part(torch.arange(len(target), device=device).repeat_interleave(samples))
    changed_N, _ = changed(repeated, sample_BSF.reshape(-1, *points_BCHW.shape[1:]))
    distance_BS = (sample_BSF.double() - image_B1F).norm(dim=2)
    distance_BS = distance_BS.masked_fill(~changed_N.reshape(shape), torch.inf)
    least_B, which_B = distance_BS.min(1)
    chosen_BCHW = sample_BSF[torch.arange(len(target), device=device), which_B].double().reshape(points_BCHW.shape)
    closer_B = least_B < lengths(points_BCHW - target.images_BCHW)
    return torch.where(column(closer_B), chosen_BCHW, points_BCHW)
