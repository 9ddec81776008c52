"""Truth that owes nothing to the certifier under test: operators entry by entry, norms and networks in exact fractions.

Every float is a fraction, so a bound on a stored matrix, the distance of two stored images and a network of stored
weights all have exact answers. Shape letters: C channels, H height, W width, F features, K classes, M N rows, columns.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.layers import MinMax, Residual

EXACT_UP_TO = 24  # smaller side of a matrix whose norm is compared in fractions
_LAPACK = 1e-12  # the SVD of a matrix of up to a few hundred rows is this good by far: n * 1.1e-16


def operator_matrix(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 matrix of a plain nn.Linear or nn.Conv2d (zeros or circular) on inputs of this shape, by definition.

    Raises TypeError for anything else.
    """
    if type(layer) is nn.Linear:
        return layer.weight.detach().double().numpy()
    if type(layer) is not nn.Conv2d or layer.padding_mode not in ("zeros", "circular"):
        raise TypeError(f"no matrix for {layer}: plain nn.Linear or nn.Conv2d, zeros or circular padding")
    weight = layer.weight.detach().double().numpy()
    outs, ins, taps_y, taps_x = weight.shape
    channels, height, width = shape
    (step_y, step_x), (front_y, front_x), (gap_y, gap_x) = layer.stride, layer.padding, layer.dilation
    high = (height + 2 * front_y - gap_y * (taps_y - 1) - 1) // step_y + 1
    wide = (width + 2 * front_x - gap_x * (taps_x - 1) - 1) // step_x + 1
    circular = layer.padding_mode == "circular"
    matrix = np.zeros((outs, high, wide, channels, height, width))
    first_O = np.arange(outs) // (outs // layer.groups) * ins
    for oy, ox, c, ky, kx in np.ndindex(high, wide, ins, taps_y, taps_x):
        y, x = oy * step_y + ky * gap_y - front_y, ox * step_x + kx * gap_x - front_x
        if circular:
            y, x = y % height, x % width
        if 0 <= y < height and 0 <= x < width:
            matrix[np.arange(outs), oy, ox, first_O + c, y, x] += weight[:, c, ky, kx]
    return matrix.reshape(outs * high * wide, -1)


def svd_norm(matrix_MN: np.ndarray) -> float:
    """The spectral norm by LAPACK, of a matrix scaled so that nothing under- or overflows."""
    _, exponent = math.frexp(float(np.abs(matrix_MN).max(initial=0.0)))
    return math.ldexp(float(np.linalg.norm(np.ldexp(matrix_MN, -exponent), 2)), exponent)


def falls_below(claim: float, matrix_MN: np.ndarray, norm: float) -> bool:
    """True iff `claim` is no upper bound on the matrix's spectral norm. NaN is none.

    Decided by the SVD (`norm`) where that is clear, in exact fractions where it is not and the matrix is small; a claim
    within 1e-12 of the norm of a large matrix gets the benefit of the doubt.
    """
    if not claim >= norm * (1 - _LAPACK):
        return True
    if claim >= norm * (1 + _LAPACK) or min(matrix_MN.shape) > EXACT_UP_TO:
        return False
    return exceeds(matrix_MN, claim)


def exceeds(matrix_MN: np.ndarray, claim: float) -> bool:
    """True iff the spectral norm is strictly above `claim`: claim^2 I - A^T A is not positive semidefinite. Exact.

    Symmetric elimination without fractions (Bareiss); a pivot of zero needs a row of zeros.
    """
    if matrix_MN.shape[0] < matrix_MN.shape[1]:
        matrix_MN = matrix_MN.T
    fractions = [[Fraction(entry) for entry in row] for row in matrix_MN.tolist()]
    unit = max(entry.denominator for row in fractions for entry in row)
    rows = [[int(entry * unit) for entry in row] for row in fractions]
    square = (Fraction(claim) * unit) ** 2
    # Times the denominator of what is left: a positive factor changes nothing.
    work = [
        [
            (square.numerator if i == j else 0) - square.denominator * sum(row[i] * row[j] for row in rows)
            for j in range(len(rows[0]))
        ]
        for i in range(len(rows[0]))
    ]
    previous = 1
    while work:
        pivot, *tail = work[0]
        if pivot < 0 or (pivot == 0 and any(tail)):
            return True
        if pivot == 0:
            work = [row[1:] for row in work[1:]]
            continue
        work = [[(row[j] * pivot - row[0] * work[0][j]) // previous for j in range(1, len(work))] for row in work[1:]]
        previous = pivot
    return False


def distance_squared(first: Tensor, second: Tensor) -> Fraction:
    """|first - second|^2 of two stored tensors, exactly."""
    pairs = zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)
    return sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs if a != b), start=Fraction(0))


def real_logits(model: nn.Sequential, image: Tensor) -> list[Fraction]:
    """Logits in real arithmetic, exactly: chains of nn.Linear, nn.ReLU, MinMax, nn.Flatten, nn.Identity, Residual."""
    return _real(model, [Fraction(v) for v in image.flatten().tolist()])


def _real(layers: nn.Sequential, values: list[Fraction]) -> list[Fraction]:
    for layer in layers:
        if type(layer) is nn.Linear:
            biases = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
            rows = zip(layer.weight.tolist(), biases, strict=True)
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True) if w), start=Fraction(b))
                for row, b in rows
            ]
        elif type(layer) is nn.ReLU:
            values = [max(v, Fraction(0)) for v in values]
        elif type(layer) is MinMax:
            half = len(values) // 2
            pairs = list(zip(values[:half], values[half:], strict=True))
            values = [max(pair) for pair in pairs] + [min(pair) for pair in pairs]
        elif type(layer) is Residual:
            values = [v + w for v, w in zip(values, _real(layer.branch, values), strict=True)]
        elif type(layer) not in (nn.Flatten, nn.Identity):
            raise TypeError(f"{type(layer).__name__}: not evaluated in fractions")
    return values


def real_class(model: nn.Sequential, image: Tensor) -> int:
    """The predicted class in real arithmetic (the first of those tied)."""
    logits = real_logits(model, image)
    return logits.index(max(logits))


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself if its numbers are of this type, else a copy of which they are."""
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    return model if all(t.dtype == dtype for t in floating) else copy.deepcopy(model).to(dtype)


@torch.no_grad()
def executed_class(model: nn.Module, image: Tensor, dtype: torch.dtype) -> int:
    """The class that the model computes for one image in this arithmetic; -2 where a logit is not finite."""
    logits_K = in_dtype(model, dtype)(image[None].to(dtype))[0]
    return int(logits_K.argmax()) if bool(logits_K.isfinite().all()) else -2
