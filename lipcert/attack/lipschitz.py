"""How much of a proven Lipschitz constant a network really uses: pairs of points that move its output apart.

Shape letters: B images, C H W image, F features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.attack.target import column, gradient_of, lengths
from lipcert.chain import ChainBounds


@dataclass(frozen=True)
class LipschitzLower:
    """A pair of points and how fast the output moves between them, per unit of l2 distance.

    Evaluated in float64: the points are at least `_NEAREST` apart, so that rounding touches only the last digits, which
    are not proven. A lower bound on the constant of the map all the same, to compare a proven upper bound with.

    Attributes:
        value: |f(first) - f(second)| / |first - second|.
        first_CHW, second_CHW: the witnesses, float64.
        pair: the two classes whose margin was searched; None for the backbone.
        proven: the upper bound it is compared with; None without bounds.
    """

    value: float
    first_CHW: Tensor
    second_CHW: Tensor
    pair: tuple[int, int] | None
    proven: float | None

    def share(self) -> float:
        """Empirical over proven: 1 means that the bound is attained."""
        if self.proven is None:
            raise ValueError("no proven bound to compare with: pass bounds to lipschitz_lower")
        return self.value / self.proven


_NEAREST = 1e-3  # distance of a pair


def lipschitz_lower(
    chain: nn.Sequential,
    images_BCHW: Tensor,
    pair: tuple[int, int] | None = None,
    bounds: ChainBounds | None = None,
    power_steps: int = 30,
    ascent_steps: int = 60,
    batch: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> LipschitzLower:
    """The largest rate of change found for the backbone (all layers but the last) or for one margin z_i - z_j.

    From every image: the power method on the Jacobian there (differences for J v, backpropagation for J^T u: where the
    network is linear they agree), then gradient ascent on log |f(x) - f(y)| - log |x - y| in both points. No point is
    held to [0, 1]: the bounds hold everywhere.

    Args:
        chain: a plain chain that ends with nn.Linear. images_BCHW: where to start; more images, closer to the truth.
        pair: classes (i, j), or None for the backbone.
        bounds: from `chain_bounds`, for `proven` and `share`.

    Raises:
        TypeError: the chain does not end with nn.Linear. ValueError: a pair of classes that the chain does not have.
    """
    function = _function(chain, pair)
    device = next(chain.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    best, witness = -1.0, None
    for part_BCHW in images_BCHW.split(batch):
        first_BCHW = part_BCHW.to(device, torch.float64)
        direction_BCHW = torch.randn(first_BCHW.shape, generator=generator, dtype=torch.float64).to(device)
        second_BCHW = _power(function, first_BCHW, direction_BCHW, power_steps)
        for candidates in _ascend(function, first_BCHW, second_BCHW, ascent_steps):
            rate_B = _rates(function, *candidates)
            top = int(rate_B.nan_to_num(-1.0).argmax())
            if rate_B[top] > best:
                best, witness = float(rate_B[top]), (candidates[0][top].cpu(), candidates[1][top].cpu())
        if progress is not None:
            progress(len(part_BCHW))
    if witness is None:
        raise ValueError("no pair with a finite output: check the weights and images")
    proven = None
    if bounds is not None:
        proven = bounds.upper if pair is None else float(bounds.margin_lipschitz_KK[pair])
    return LipschitzLower(best, *witness, pair, proven)


def _function(chain: nn.Sequential, pair: tuple[int, int] | None) -> Callable[[Tensor], Tensor]:
    """Images to features (B, F), or to one margin (B, 1), in float64."""
    *backbone, head = copy.deepcopy(chain).double().eval().requires_grad_(False)
    if type(head) is not nn.Linear:
        raise TypeError(f"last layer is {type(head).__name__}: margins need an nn.Linear")
    features = nn.Sequential(*backbone)
    if pair is None:
        return lambda x_BCHW: features(x_BCHW).flatten(1)
    i, j = pair
    if i == j or not (0 <= i < head.out_features and 0 <= j < head.out_features):
        raise ValueError(f"pair={pair}: must be two different classes of 0..{head.out_features - 1}")
    normal_F1 = (head.weight[i] - head.weight[j])[:, None]
    return lambda x_BCHW: features(x_BCHW).flatten(1) @ normal_F1


def _power(function, first_BCHW: Tensor, direction_BCHW: Tensor, steps: int) -> Tensor:
    """Second points at `_NEAREST` from the first, in the direction that the local map stretches most."""
    for _ in range(steps):
        second_BCHW = first_BCHW + _NEAREST * direction_BCHW / column(lengths(direction_BCHW))
        with torch.no_grad():
            output_BF = function(second_BCHW) - function(first_BCHW)
        _, pulled_BCHW = gradient_of(lambda x, u=output_BF: (function(x) * u).sum(1), second_BCHW)
        # Where the map is locally constant there is nothing to follow: look the other way.
        flat_B = pulled_BCHW.flatten(1).abs().amax(1) == 0
        direction_BCHW = torch.where(column(flat_B), -direction_BCHW, pulled_BCHW)
    return first_BCHW + _NEAREST * direction_BCHW / column(lengths(direction_BCHW))


def _ascend(function, first_BCHW: Tensor, second_BCHW: Tensor, steps: int):
    """The pair at the start and after ascent on the logarithm of its rate; never closer than `_NEAREST`."""
    step = 0.5 * lengths(first_BCHW - second_BCHW)
    yield first_BCHW, second_BCHW
    rate_B = _rates(function, first_BCHW, second_BCHW)
    for _ in range(steps):
        both = torch.stack([first_BCHW, second_BCHW], dim=1)
        _, gradient = gradient_of(lambda x: _rates(function, x[:, 0], x[:, 1]).clamp(min=1e-300).log(), both)
        moved = both + (step / lengths(gradient))[:, None, None, None, None] * gradient
        away_BCHW = moved[:, 1] - moved[:, 0]
        stretch_B = (_NEAREST / lengths(away_BCHW)).clamp(min=1)
        trial_first, trial_second = moved[:, 0], moved[:, 0] + column(stretch_B) * away_BCHW
        with torch.no_grad():
            trial_B = _rates(function, trial_first, trial_second)
        better_B = trial_B > rate_B
        first_BCHW = torch.where(column(better_B), trial_first, first_BCHW)
        second_BCHW = torch.where(column(better_B), trial_second, second_BCHW)
        rate_B = torch.where(better_B, trial_B, rate_B)
        step = torch.where(better_B, 2 * step, step / 2)
    yield first_BCHW, second_BCHW


def _rates(function, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """|f(x) - f(y)| / |x - y|, (B,)."""
    return (function(first_BCHW) - function(second_BCHW)).norm(dim=1) / lengths(first_BCHW - second_BCHW)
