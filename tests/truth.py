"""Independent truth for norm bounds: operators written out by plain loops, norms decided in exact integers.

Nothing here imports lipcert. Matrices are numpy arrays of shape (rows, columns).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def conv_matrix(weight, shape, stride, padding, dilation, groups, circular=False) -> np.ndarray:
    """The matrix of a convolution, by definition: padding is ((top, bottom), (left, right))."""
    outs, ins_of_group, taps_y, taps_x = weight.shape
    channels, height, width = shape
    high = (height + sum(padding[0]) - dilation[0] * (taps_y - 1) - 1) // stride[0] + 1
    wide = (width + sum(padding[1]) - dilation[1] * (taps_x - 1) - 1) // stride[1] + 1
    matrix = np.zeros((outs, high, wide, channels, height, width))
    for out in range(outs):
        first = (out // (outs // groups)) * ins_of_group
        for oy, ox, c, ky, kx in np.ndindex(high, wide, ins_of_group, taps_y, taps_x):
            y = oy * stride[0] + ky * dilation[0] - padding[0][0]
            x = ox * stride[1] + kx * dilation[1] - padding[1][0]
            if circular:
                y, x = y % height, x % width
            if 0 <= y < height and 0 <= x < width:
                matrix[out, oy, ox, first + c, y, x] += weight[out, c, ky, kx]
    return matrix.reshape(outs * high * wide, channels * height * width)


def layer_matrix(layer, shape) -> np.ndarray:
    """The matrix of a plain torch Linear or Conv2d on inputs of this shape."""
    weight = layer.weight.detach().double().numpy()
    if weight.ndim == 2:
        return weight
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, weight.shape[2:], strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    elif layer.padding == "valid":
        padding = ((0, 0), (0, 0))
    else:
        padding = tuple((p, p) for p in layer.padding)
    circular = layer.padding_mode == "circular"
    return conv_matrix(weight, shape, layer.stride, padding, layer.dilation, layer.groups, circular)


def as_integers(matrix: np.ndarray) -> tuple[list[list[int]], int]:
    """Rows of integers and t with matrix = integers / 2**t, exactly: every float is such a fraction."""
    fractions = [[Fraction(float(entry)) for entry in row] for row in matrix]
    power = max(entry.denominator for row in fractions for entry in row)
    return [[int(entry * power) for entry in row] for row in fractions], power.bit_length() - 1


def norm_is_below(matrix: np.ndarray, bound: float | Fraction) -> bool:
    """True iff the spectral norm is strictly below `bound`: all leading minors of bound^2 I - A^T A are positive.

    Exact: fraction-free (Bareiss) elimination in integers, on the smaller Gram matrix.
    """
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    rows, power = as_integers(matrix)
    size = len(rows[0])
    square = Fraction(bound) ** 2
    # Multiply bound^2 I - A^T A by 4**power and by the denominator of what is left: a positive factor changes nothing.
    scaled = square * 4**power
    work = [[0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            product = sum(row[i] * row[j] for row in rows if row[i] and row[j]) * scaled.denominator
            work[i][j] = work[j][i] = (scaled.numerator if i == j else 0) - product
    previous = 1
    for k in range(size):
        pivot = work[k][k]
        if pivot <= 0:
            return False
        for i in range(k + 1, size):
            left = work[i][k]
            for j in range(k + 1, i + 1):
                value = (work[i][j] * pivot - left * work[j][k]) // previous
                work[i][j] = work[j][i] = value
        previous = pivot
    return True


def assert_encloses(matrix: np.ndarray, lower: float, upper: float) -> None:
    """lower <= norm <= upper without any tolerance: exactly for small matrices, else up to LAPACK's own rounding."""
    if not matrix.any():
        assert lower == 0 <= upper
        return
    smallest = min(matrix.shape)
    if smallest <= 24:
        assert norm_is_below(matrix, upper), f"upper={upper!r} is below the true norm"
        assert lower == 0 or not norm_is_below(matrix, lower), f"lower={lower!r} is above the true norm"
    else:
        truth = float(np.linalg.norm(matrix, 2))
        assert upper >= truth, f"upper={upper!r} is below the true norm {truth!r}"
        assert lower <= truth, f"lower={lower!r} is above the true norm {truth!r}"
