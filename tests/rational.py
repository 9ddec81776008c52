"""Independent truth for boxes: interval propagation and forward passes of tiny l_inf chains in exact fractions.

Nothing of lipcert is used but the classes of layers and their numbers. Arrays hold `Fraction`s, shaped without a batch.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from torch import nn
from truth import layer_matrix

from lipcert.layers import MinMax, Residual, Shift
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance

_exact = np.vectorize(Fraction, otypes=[object])


def exact(numbers) -> np.ndarray:
    """The rationals behind floats."""
    return _exact(np.asarray(numbers, dtype=np.float64))


def box(chain: nn.Sequential, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of every logit by layer-wise propagation without rounding."""
    for layer in chain:
        lower, upper = _through(layer, lower, upper)
    return lower, upper


def logits(chain: nn.Sequential, point: np.ndarray) -> np.ndarray:
    """The chain at a point, without rounding."""
    return box(chain, point, point)[0]


def _through(layer: nn.Module, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(layer, nn.Flatten):
        return lower.reshape(-1), upper.reshape(-1)
    if isinstance(layer, nn.Identity):
        return lower, upper
    if isinstance(layer, nn.ReLU):
        return np.maximum(lower, 0), np.maximum(upper, 0)
    if isinstance(layer, MinMax):
        return tuple(
            np.concatenate([np.maximum(*halves), np.minimum(*halves)])
            for halves in (np.split(end, 2) for end in (lower, upper))
        )
    if isinstance(layer, Shift):
        return lower - Fraction(layer.amount), upper - Fraction(layer.amount)
    if isinstance(layer, Negate):
        return -upper, -lower
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        return tuple(_padded(end, (top, bottom), (left, right)) for end in (lower, upper))
    if isinstance(layer, Residual):
        low, high = box(layer.branch, lower, upper)
        return lower + low, upper + high
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        return _affine(layer, lower, upper)
    if isinstance(layer, DistanceConv):
        return _windowed(layer, lower, upper)
    assert isinstance(layer, (Distance, SortedDistance)), layer
    return _distances(layer, exact(layer.weight), lower, upper)


def _affine(layer, lower, upper):
    matrix = exact(layer_matrix(layer, lower.shape))
    bias = exact(layer.bias.detach())
    shape = (len(bias),) if lower.ndim == 1 else (len(bias), *_side(layer, lower.shape))
    offset = np.repeat(bias, len(matrix) // len(bias))
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
    low, high = lower.reshape(-1), upper.reshape(-1)
    ends = positive @ low + negative @ high + offset, positive @ high + negative @ low + offset
    return tuple(end.reshape(shape) for end in ends)


def _side(layer: nn.Conv2d, shape: tuple[int, ...]) -> list[int]:
    numbers = zip(shape[1:], layer.padding, layer.kernel_size, layer.stride, strict=True)
    return [(n + 2 * p - k) // s + 1 for n, p, k, s in numbers]


def _distances(layer, weight_OI, lower, upper):
    """Ends of |x - w|, then their maximum or weighted sum, and the shift."""
    low, high = [], []
    for row, shift in zip(weight_OI.reshape(len(weight_OI), -1), exact(layer.shift), strict=True):
        nearest = np.maximum(np.maximum(lower - row, row - upper), 0)
        farthest = np.maximum(upper - row, row - lower)
        low.append(_reduced(layer, nearest) + shift)
        high.append(_reduced(layer, farthest) + shift)
    return np.array(low, dtype=object), np.array(high, dtype=object)


def _reduced(layer, distances):
    if not isinstance(layer, SortedDistance):
        return max(distances)
    ordered = sorted(distances, reverse=True)
    coefficients = exact(layer.coefficients())
    return sum((c * v for c, v in zip(coefficients, ordered, strict=False)), start=Fraction(0))


def _windowed(layer: DistanceConv, lower, upper):
    size, step, margin = layer.kernel_size, layer.stride, (layer.padding, layer.padding)
    lower, upper = (_padded(end, margin, margin) for end in (lower, upper))
    rows = range(0, lower.shape[1] - size + 1, step)
    columns = range(0, lower.shape[2] - size + 1, step)
    ends = [
        [_distances(layer, exact(layer.weight), *(e[:, y : y + size, x : x + size].reshape(-1) for e in (lower, upper)))
         for x in columns]
        for y in rows
    ]  # fmt: skip
    # rows, columns, end, outputs
    stacked = np.array(ends, dtype=object).transpose(2, 3, 0, 1)
    return stacked[0], stacked[1]


def _padded(end, rows, columns):
    return np.pad(end, ((0, 0), rows, columns), constant_values=Fraction(0))
