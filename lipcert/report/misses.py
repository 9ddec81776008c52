"""Layers on which the power method fails, by accident or by design, for the chapter on bounds. Suffix N: features."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.power import norm_estimate
from lipcert.report.estimates import ROUNDS, public_estimates, random_start
from lipcert.report.tables import Markdown, down, table, up


@dataclass(frozen=True)
class Miss:
    """A layer, its start in public codes, and what it is."""

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    start: Tensor


def _linear(rows: Sequence[Sequence[float]] | Tensor) -> nn.Linear:
    weight = torch.as_tensor(rows, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


def _convolution(weight: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2, bias=False)
    layer.weight.data = weight
    return layer


@functools.cache
def misses() -> tuple[Miss, ...]:
    """Layers that show where the power method fails, by accident or by design."""
    channels, features = 32, 32
    near = 0.35 * random_start((channels, channels, 3, 3))[0] / (9 * channels) ** 0.5
    near[:, :, 1, 1] += torch.eye(channels)
    difference = torch.zeros(2, 2, 3, 3)
    difference[0, :, 1, 1], difference[1, :, 1, 1] = torch.tensor([5.0, -5.0]), 0.25
    start_N = random_start((features,))[0].double()
    hidden_N = random_start((features,), seed=1)[0].double()
    hidden_N -= (hidden_N @ start_N) / (start_N @ start_N) * start_N
    hidden_N /= hidden_N.norm()
    hidden = torch.eye(features, dtype=torch.float64) + 0.01 * torch.outer(hidden_N, hidden_N)
    plain, ones = torch.ones(1, 2), torch.ones(1, channels, 8, 8)
    return (
        Miss("no trick: identity plus noise, 3×3", _convolution(near), (channels, 8, 8), ones),
        Miss("rows (10, −10) and (0.1, 0.1)", _linear([[10.0, -10.0], [0.1, 0.1]]), (2,), plain),
        Miss("difference of two channels, 3×3", _convolution(difference), (2, 8, 8), torch.ones(1, 2, 8, 8)),
        Miss("10⁻⁷ times the identity", _linear(1e-7 * torch.eye(features)), (features,), torch.ones(1, features)),
        Miss("stored start vector set to 0", _linear(hidden), (features,), torch.zeros(1, features)),
        Miss("made against a known random start", _linear(hidden), (features,), random_start((features,))),
    )


def misses_table() -> Markdown:
    """Proven ends beside 500 rounds as in public codes (their start) and by `lipcert.power` (random start)."""
    rows = []
    for miss in misses():
        proven = norm_bound(miss.layer, miss.shape, effort="tight")
        public = public_estimates(miss.layer, miss.start)[-1]
        own = norm_estimate(miss.layer, miss.shape, steps=ROUNDS).item()
        rows.append((miss.name, *_ends_text(proven), *(_miss_text(value, proven) for value in (public, own))))
    head = ("layer", "at least", "at most", "public style", "`lipcert.power`")
    return table(head, rows, right=(1, 2, 3, 4))


def _ends_text(proven: Enclosure) -> tuple[str, str]:
    """Both ends outwards with seven significant digits."""
    digits = 6 - math.floor(math.log10(proven.upper))
    if digits <= 8:
        return down(proven.lower, digits), up(proven.upper, digits)
    power = digits - 6
    return tuple(
        f"{text} · 10⁻{'⁰¹²³⁴⁵⁶⁷⁸⁹'[power]}"
        for text in (down(proven.lower * 10**power, 6), up(proven.upper * 10**power, 6))
    )


def _miss_text(estimate: float, proven: Enclosure) -> str:
    """The estimate, and by how much it is too low; float32 itself cannot say better than a part in a million."""
    low = 100 * (1 - estimate / proven.upper)
    verdict = "right" if low < 1e-4 else f"{low:.0f} % low" if low > 10 else f"{low:.2g} % low"
    return f"{estimate:.6g} ({verdict})"
