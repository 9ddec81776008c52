"""How far two classes provably keep their order: the arithmetic that every margin certificate rests on.

Shape letters: B images, K classes.
"""

import math

import torch
from torch import Tensor

from lipcert.chain import NotCertifiable
from lipcert.deviation import Deviation

ABSTAIN = -1
_UP = 1 + 2.0**-45  # above the exact value after fewer than 100 operations on non-negative numbers


def pair_radii(
    logits_BK: Tensor,
    class_B: Tensor,
    margin_lipschitz_KK: Tensor,
    distances_KK: Tensor | None = None,
    errors: Deviation | None = None,
    guarantee: str = "nominal",
) -> Tensor:
    """Radius up to which one class of each row provably stays above each other one, rounded down, (B, K).

    With margin m, constant K and rounding a + b r it is strictly below (m - a) / (K + b), so at every point of the
    closed ball the margin stays positive. 0 where nothing is proven: a logit that is not smaller, a margin not above
    its error, a non-finite logit anywhere in the row, a constant that is not finite and positive. inf at the class
    itself.

    class_B: (B,) int64. distances_KK, errors: what `guarantee` other than "nominal" takes a and b from.
    """
    if logits_BK.dtype != torch.float64:
        raise NotCertifiable(f"logits of {logits_BK.dtype}: must be float64, as the constants are")
    class_B1 = class_B[:, None]
    margin_BK = _step_down(logits_BK.gather(1, class_B1) - logits_BK)
    lipschitz_BK = margin_lipschitz_KK.to(logits_BK)[class_B]
    if guarantee != "nominal":
        at_BK, slope_BK = _margin_errors(errors, distances_KK[class_B], class_B1, guarantee)
        # One step down for the subtraction too; a margin of 0 or less is nothing.
        margin_BK, lipschitz_BK = _step_down(margin_BK - at_BK), (lipschitz_BK + slope_BK) * _UP
    quotient_BK = _step_down(margin_BK / lipschitz_BK)
    sound_BK = (margin_BK > 0) & lipschitz_BK.isfinite() & (lipschitz_BK > 0) & (quotient_BK > 0)
    is_own_BK = torch.zeros_like(sound_BK).scatter(1, class_B1, True)
    radius_BK = torch.where(sound_BK, quotient_BK, 0.0).masked_fill(is_own_BK, math.inf)
    return torch.where(logits_BK.isfinite().all(1, keepdim=True), radius_BK, 0.0)


def margin_radius(
    logits_BK: Tensor,
    margin_lipschitz_KK: Tensor,
    distances_KK: Tensor | None = None,
    errors: Deviation | None = None,
    guarantee: str = "nominal",
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, radius (rounded down) and limiting class of each row of logits, (B,) each.

    A tie for the largest logit, a margin not above its error, a non-finite logit or constant: ABSTAIN, 0, -1.
    """
    predicted_B = logits_BK.argmax(1)
    radius_BK = pair_radii(logits_BK, predicted_B, margin_lipschitz_KK, distances_KK, errors, guarantee)
    radius_B, runner_up_B = radius_BK.min(1)
    sound_B = radius_B > 0
    return (
        torch.where(sound_B, predicted_B, ABSTAIN),
        torch.where(sound_B, radius_B, 0.0),
        torch.where(sound_B, runner_up_B, ABSTAIN),
    )


def _step_down(x: Tensor) -> Tensor:
    """Rounded to nearest, hence one step down is below the exact result."""
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _margin_errors(errors: Deviation, distances_BK: Tensor, class_B1: Tensor, guarantee: str) -> tuple[Tensor, Tensor]:
    """a and b of the error a + b r on the margin between the row's class and every other, rounded up."""
    own_BK = errors.centre_BK + errors.centre_BK.gather(1, class_B1)
    at_BK = distances_BK * errors.centre_B[:, None] + own_BK
    slope_BK = torch.zeros_like(at_BK)
    if guarantee == "executed":
        ball = errors.ball_K
        at_BK += distances_BK * errors.ball.at[:, None] + ball.at + ball.at.gather(1, class_B1)
        slope_BK += distances_BK * errors.ball.slope[:, None] + ball.slope + ball.slope.gather(1, class_B1)
    return at_BK * _UP, slope_BK * _UP
