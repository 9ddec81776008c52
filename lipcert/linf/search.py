"""The largest radius that a pass certifies, image by image.

Every radius that is reported has itself passed, so nothing rests on the search, nor on larger balls being harder.

Shape letters: B images, N the images still looked at.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipcert.linf.interval import Worst

FINEST, RELATIVE = 2.0**-16, 2.0**-10
"""A search ends when a radius fails that is larger than the best by less than these: pixels, or a share of itself."""
_ROUNDS = 60
_FIRST = 2.0**-8

Examine = Callable[[Tensor, Tensor], Worst]
"""`(index_N, radius_N)`: what the pass proves about these images, at these radii."""


class Search:
    """The state of all images: the best radius that passed, the smallest that failed, and the gap at both.

    gap_B: gap at radius 0; images where it is not positive are left out and keep radius 0.
    """

    def __init__(self, examine: Examine, gap_B: Tensor):
        self.examine = examine
        self.best_B, self.best_gap_B = torch.zeros_like(gap_B), gap_B.clone()
        self.failed_B, self.failed_gap_B = torch.full_like(gap_B, math.inf), torch.full_like(gap_B, -math.inf)
        self.before_B, self.before_gap_B = torch.zeros_like(gap_B), gap_B.clone()
        self.rival_B = torch.full_like(gap_B, -1, dtype=torch.int64)
        self.passed_B = torch.zeros_like(gap_B, dtype=torch.bool)
        self.hopeful_B = gap_B > 0

    def run(self, start_B: Tensor, radii: Sequence[float]) -> None:
        """Try the given radii, then `start_B`, then between and beyond; images with no radius at all at radius 0."""
        for radius in sorted(set(radii)):
            self._try(self.hopeful_B & (radius > self.best_B) & (radius < self.failed_B), self._all(radius))
        start_B = start_B.clamp(0, 1)
        self._try(self.hopeful_B & (start_B > self.best_B) & (start_B < self.failed_B), start_B)
        for round_number in range(_ROUNDS):
            open_B = self.hopeful_B & (self.best_B < 1) & (self.failed_B - self.best_B > self._tolerance())
            if not open_B.any():
                break
            self._try(open_B, self._candidate(round_number))
        self._try(self.hopeful_B & ~self.passed_B, self._all(0.0))

    def _try(self, wanted_B: Tensor, radius_B: Tensor) -> None:
        index_N = wanted_B.nonzero()[:, 0]
        if not len(index_N):
            return
        radius_N = radius_B[index_N]
        worst = self.examine(index_N, radius_N)
        won, lost = index_N[worst.holds_B], index_N[~worst.holds_B]
        self.before_B[won], self.before_gap_B[won] = self.best_B[won], self.best_gap_B[won]
        self.best_B[won], self.best_gap_B[won] = radius_N[worst.holds_B], worst.gap_B[worst.holds_B]
        self.rival_B[won] = worst.rival_B[worst.holds_B]
        self.passed_B[won] = True
        self.failed_B[lost], self.failed_gap_B[lost] = radius_N[~worst.holds_B], worst.gap_B[~worst.holds_B]

    def _tolerance(self) -> Tensor:
        return (self.best_B * RELATIVE).clamp_min(FINEST)

    def _candidate(self, round_number: int) -> Tensor:
        """Between a success and a failure by interpolation, every third time the middle; beyond, by extrapolation."""
        width_B, tolerance_B = self.failed_B - self.best_B, self._tolerance()
        share_B = self.best_gap_B / (self.best_gap_B - self.failed_gap_B)
        share_B = torch.where(share_B > 0, share_B, 0.5) if round_number % 3 != 2 else torch.full_like(share_B, 0.5)
        # A quarter of the tolerance from either end: then a good guess ends the search on both sides.
        step_B = torch.maximum(share_B * width_B, tolerance_B / 4)
        between_B = self.best_B + torch.minimum(step_B, width_B - tolerance_B / 4)
        slope_B = (self.before_gap_B - self.best_gap_B) / (self.best_B - self.before_B)
        step_B = self.best_gap_B / slope_B + tolerance_B / 2
        step_B = torch.where((slope_B > 0) & (step_B > 0), step_B, math.inf)
        beyond_B = (self.best_B + torch.minimum(step_B, 3 * self.best_B + _FIRST)).clamp_max(1.0)
        return torch.where(self.failed_B.isinf(), beyond_B, between_B)

    def _all(self, radius: float) -> Tensor:
        return torch.full_like(self.best_B, radius)
