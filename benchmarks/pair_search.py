"""A patient search for the pair of points that a map moves apart most: a lower bound on its Lipschitz constant.

Between two points some Jacobian on the segment stretches at least as much as the pair does, so a pair far apart is a
guide to regions that no single point near the data shows, and a near pair at the right place is the best there is. The
search therefore goes from far to near: pairs at shrinking distances, each improved by ascent, then the segment between
them looked at for the place to go on from. How much of a known constant it finds: `benchmarks.exact_constants`.

Shape letters: B points, F features; the suffix X stands for the shape of one input.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
SCALES = (10.0, 3.0, 1.0, 0.3, 0.1)  # distances of a pair, in units of the median distance of two starts
NEAREST = 1e-3  # of the last pairs, and of all pairs at least; rounding then touches the last digits only
_PLACES = (0.0, 0.33, 0.67, 1.0)  # on a segment, where to go on from
_LOOKS = 3  # power steps at each of them
_FINAL = 4  # pairs that are looked at in float64


class PairSearch(NamedTuple):
    """What was found, |f(x) - f(y)| / |x - y| in float64.

    near: from the Jacobians at the starts alone. far: between pairs of starts, moved by ascent. best: of all.
    first_X, second_X: the pair behind `best`.
    """

    near: float
    far: float
    best: float
    first_X: Tensor
    second_X: Tensor


def pair_search(
    function: nn.Module,
    starts_BX: Tensor,
    rounds: int = 1,
    kept: int = 12,
    power_steps: int = 6,
    ascent_steps: int = 15,
    seed: int = 0,
) -> PairSearch:
    """The largest rate of change found from these starts; nothing is held to the range of pixels.

    Args:
        function: any differentiable module on (B, *X); it is copied and run in float32, the result in float64.
        rounds: how often to go through all distances. kept: so many starts, those with the steepest Jacobians, and as
            many scattered points take part in that. power_steps, ascent_steps: at each distance.
    """
    single, double = (
        copy.deepcopy(function).to(t).eval().requires_grad_(False) for t in (torch.float32, torch.float64)
    )
    f32, f64 = (lambda x, net=net: net(x).flatten(1) for net in (single, double))
    device = next((p.device for p in function.parameters()), starts_BX.device)
    generator = torch.Generator().manual_seed(seed)
    x_BX = starts_BX.to(device, torch.float32)
    unit = float(lengths(x_BX - x_BX.roll(1, 0)).median())
    direction_BX = torch.randn(x_BX.shape, generator=generator).to(device)
    near = (x_BX, _power(f32, x_BX, direction_BX, 0.01 * unit, 2 * power_steps))
    with torch.no_grad():
        order = rates(f32, *near).topk(min(kept, len(x_BX))).indices
    best = near[0][order], near[1][order]
    far = _ascend(f32, best[0], x_BX.roll(1, 0)[order], 2 * ascent_steps, 0.01 * unit)
    # The map's steepest region need not be where the data are: as many starts again, scattered far beyond.
    away_BX = direction_BX[order] / wide(lengths(direction_BX[order]), x_BX)
    wild_BX = best[0] + wide(unit * 10 ** (2 * torch.rand(len(order), generator=generator)).to(device), x_BX) * away_BX
    best = torch.cat([best[0], wild_BX]), torch.cat([best[1], wild_BX + best[1] - best[0]])
    found = [near, far]
    for _ in range(rounds):
        for scale in SCALES:
            second_BX = _power(f32, best[0], best[1] - best[0], scale * unit, power_steps)
            pair = _ascend(f32, best[0], second_BX, ascent_steps, min(scale, 0.01) * unit)
            best = _better(f32, best, _better(f32, pair, _best_place(f32, *pair, 0.01 * unit)))
            found += [pair, best]
    values = [_finished(f64, *pair, power_steps) for pair in found]
    value, first_X, second_X = max(values, key=lambda v: v[0])
    return PairSearch(values[0][0], values[1][0], value, first_X.cpu(), second_X.cpu())


def lengths(x_BX: Tensor) -> Tensor:
    """l2 norm of each, (B,), never 0."""
    return x_BX.flatten(1).norm(dim=1).clamp(min=1e-30)


def wide(x_B: Tensor, like_BX: Tensor) -> Tensor:
    """(B,) as (B, 1, ...)."""
    return x_B.reshape(-1, *[1] * (like_BX.dim() - 1))


def rates(function: Function, first_BX: Tensor, second_BX: Tensor) -> Tensor:
    """|f(x) - f(y)| / |x - y|, (B,)."""
    return (function(first_BX) - function(second_BX)).norm(dim=1) / lengths(first_BX - second_BX)


def _gradient(value: Function, x_BX: Tensor) -> Tensor:
    x_BX = x_BX.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(value(x_BX).sum(), x_BX)[0].nan_to_num(0.0, 0.0, 0.0)


def _power(function: Function, x_BX: Tensor, direction_BX: Tensor, distance: float, steps: int) -> Tensor:
    """Points at that distance from x, in the direction that the power method says is stretched most."""
    for _ in range(steps):
        second_BX = x_BX + distance * direction_BX / wide(lengths(direction_BX), x_BX)
        with torch.no_grad():
            moved_BF = function(second_BX) - function(x_BX)
        pulled_BX = _gradient(lambda x, u=moved_BF: (function(x) * u).sum(1), second_BX)
        flat_B = pulled_BX.flatten(1).abs().amax(1) == 0
        # Where the map is locally constant there is nothing to follow: look the other way.
        direction_BX = torch.where(wide(flat_B, x_BX), -direction_BX, pulled_BX)
    return x_BX + distance * direction_BX / wide(lengths(direction_BX), x_BX)


def _ascend(function: Function, x_BX: Tensor, y_BX: Tensor, steps: int, least: float) -> tuple[Tensor, Tensor]:
    """Both points moved up the logarithm of their rate, steps doubled on success and halved else; never nearer."""
    step_B = 0.5 * lengths(x_BX - y_BX)
    with torch.no_grad():
        rate_B = rates(function, x_BX, y_BX)
    for _ in range(steps):
        both = torch.stack([x_BX, y_BX], dim=1)
        gradient = _gradient(lambda z: rates(function, z[:, 0], z[:, 1]).clamp(min=1e-30).log(), both)
        moved = both + wide(step_B / lengths(gradient), both) * gradient
        away_BX = moved[:, 1] - moved[:, 0]
        first_BX = moved[:, 0]
        second_BX = first_BX + wide((least / lengths(away_BX)).clamp(min=1), away_BX) * away_BX
        with torch.no_grad():
            trial_B = rates(function, first_BX, second_BX)
        better_B = trial_B > rate_B
        x_BX = torch.where(wide(better_B, x_BX), first_BX, x_BX)
        y_BX = torch.where(wide(better_B, y_BX), second_BX, y_BX)
        rate_B = torch.where(better_B, trial_B, rate_B)
        step_B = torch.where(better_B, 2 * step_B, step_B / 2)
    return x_BX, y_BX


def _better(function: Function, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two pairs a start the one with the larger rate."""
    with torch.no_grad():
        better_B = rates(function, *other) > rates(function, *one)
    return tuple(torch.where(wide(better_B, a), b, a) for a, b in zip(one, other, strict=True))


def _best_place(function: Function, x_BX: Tensor, y_BX: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """The near pair on each segment that is stretched most."""
    best = (x_BX, _power(function, x_BX, y_BX - x_BX, distance, _LOOKS))
    for share in _PLACES[1:]:
        place_BX = x_BX + share * (y_BX - x_BX)
        best = _better(function, best, (place_BX, _power(function, place_BX, y_BX - x_BX, distance, _LOOKS)))
    return best


def _finished(function: Function, x_BX: Tensor, y_BX: Tensor, steps: int) -> tuple[float, Tensor, Tensor]:
    """The best of these pairs in float64, after the power method at `NEAREST` from the most promising."""
    x_BX, y_BX = x_BX.double(), y_BX.double()
    with torch.no_grad():
        rate_B = torch.where(lengths(x_BX - y_BX) < NEAREST / 2, 0.0, rates(function, x_BX, y_BX)).nan_to_num(0.0)
        chosen = rate_B.topk(min(_FINAL, len(rate_B))).indices
    near_BX = _power(function, x_BX[chosen], (y_BX - x_BX)[chosen], NEAREST, 2 * steps)
    with torch.no_grad():
        near_B = rates(function, x_BX[chosen], near_BX).nan_to_num(0.0)
    if float(near_B.max()) > float(rate_B.max()):
        top = int(near_B.argmax())
        return float(near_B[top]), x_BX[chosen][top], near_BX[top]
    top = int(rate_B.argmax())
    return float(rate_B[top]), x_BX[top], y_BX[top]
