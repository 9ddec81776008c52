"""The proofs of `verified` and `banded` in integers: nothing is trusted but Python's and FLINT's whole numbers.

Weights are read off their bits onto a grid of 2**-b (towards zero, the loss in norm counted unless there is none); a
factor R, found in floating point by whatever means, is rounded to the same grid. With c2 a whole number,
    A^T A = c2 I - R^T R - E    exactly,    hence ||A||^2 <= c2 + ||E|| <= c2 + ||E||_F,
as R^T R is positive semidefinite whatever R is (see `verified`); E, the sum of its squares and the root are exact or
rounded up. The lower end, the stretch of one vector of whole numbers, is exact in the same way, then rounded down.

On the way in, a float times a power of two is taken to be exact (`operators`), and nothing else of floating point is.

Shape suffixes: G groups, M rows, N columns, O outputs, K inputs of an output, P positions, X W block and row of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.bounds.banded import ATTEMPTS, BandedGram, Factor, cholesky_row, raised
from lipcert.bounds.rounding import root_down

_BITS = 52  # of the grid below the size of the norm: products of two such numbers fit FLINT's fastest path
_LIMB = 16  # bits of a limb: sums of 2**22 products with numbers up to 2**24 stay below 2**63


@contextmanager
def whole_numbers() -> Iterator[Any]:
    """The module `flint` on as many threads as torch uses; ImportError with the way out where it is missing."""
    try:
        import flint
    except ImportError as error:
        raise ImportError("effort='exact' needs python-flint: pip install 'lipcert[exact]'") from error
    threads = flint.ctx.threads
    flint.ctx.threads = max(1, torch.get_num_threads())
    try:
        yield flint
    finally:
        flint.ctx.threads = threads


def grid_bits(norm: float) -> int:
    """b for matrices of about this norm, which also bounds the entries of a factor."""
    return _BITS - max(0, math.frexp(norm)[1])


def on_grid(weights: Tensor, bits: int) -> tuple[np.ndarray, bool]:
    """(numbers, True if nothing was lost): int64 with numbers <= 2**bits |weights| < numbers + 1 in size; bits only.

    weights: float64, |weights| < 2; 0 <= bits <= 60.
    """
    raw = np.ascontiguousarray(weights.detach().cpu().numpy()).view(np.int64)
    exponents = (raw >> 52) & 0x7FF
    if not 0 <= bits <= 60 or int(exponents.max(initial=0)) > 1023:
        raise ValueError(f"numbers of 2 and more, or a grid of {bits} bits: scale them into (-2, 2), take 0..60 bits")
    mantissas = (raw & (2**52 - 1)) | ((exponents > 0).astype(np.int64) << 52)
    down = np.clip(1075 - np.maximum(exponents, 1) - bits, -60, 63)  # |weight| = mantissa / 2**(1075 - exponent)
    right, left = np.maximum(down, 0), np.maximum(-down, 0)
    numbers = (mantissas >> right) << left
    lossless = bool(((numbers >> left) << right == mantissas).all())
    return np.where(raw < 0, -numbers, numbers), lossless


def grid_loss(weights_GOIKL: Tensor, bits: int, lossless: bool) -> Fraction:
    """Upper bound on the norm of what the grid left out, below 2**-b in each weight: K L sqrt(O I) times that.

    A row of the operator holds at most I K L weights, a column O K L (`verified.absolute_norm_squared`).
    """
    _, outs, ins, high, wide = weights_GOIKL.shape
    return Fraction(0) if lossless else Fraction(high * wide * (math.isqrt(outs * ins) + 1), 2**bits)


def rounded_witness(factor: Tensor, bits: int) -> np.ndarray:
    """A factor as whole numbers of 2**-bits; any whole numbers are as good as any for the proof."""
    numbers = torch.nan_to_num(factor.detach().cpu() * 2.0**bits, nan=0.0, posinf=0.0, neginf=0.0)
    return numbers.clamp(-(2.0**61), 2.0**61).round().to(torch.int64).numpy()


def _matrix(flint: Any, numbers: np.ndarray) -> Any:
    return flint.fmpz_mat(*numbers.shape, numbers.ravel().tolist())


def _ceiling_root(value: int) -> int:
    return math.isqrt(value - 1) + 1 if value else 0


def _square_on_grid(square: float, bits: int) -> int:
    return math.ceil(Fraction(square) * 4**bits)


def matrix_squared_exactly(numbers_MN: np.ndarray, factor_NN: Tensor | None, square: float, bits: int) -> Fraction:
    """Proven upper bound on ||A||^2 for A = numbers / 2**bits (M >= N for the smaller work), c2 = square, any R."""
    with whole_numbers() as flint:
        matrix = _matrix(flint, numbers_MN)
        residual = matrix.transpose() * matrix
        if factor_NN is not None:
            factor = _matrix(flint, rounded_witness(factor_NN, bits))
            residual += factor.transpose() * factor
        columns, center = numbers_MN.shape[1], _square_on_grid(square, bits)
        entries = residual.entries()
        for index in range(columns):
            entries[index * (columns + 1)] -= center
        energy = sum(entry * entry for entry in map(int, entries))
    return Fraction(center + _ceiling_root(energy), 4**bits)


def banded_squares_exactly(grams: list[BandedGram], guess: float, bits: int) -> list[Fraction]:
    """A proven bound for each group, with the first c2 above the guess for which every group has a factor."""
    for attempt in range(ATTEMPTS):
        squares = []
        for gram in grams:
            if (square := banded_squared_exactly(gram, raised(guess, attempt), bits)) is None:
                break
            squares.append(square)
        else:
            return squares
    last = raised(guess, ATTEMPTS - 1)
    raise ArithmeticError(f"no Cholesky factor up to c2={last!r}: the search for the norm failed; use effort='tight'")


def banded_squared_exactly(gram: BandedGram, square: float, bits: int) -> Fraction | None:
    """Proven upper bound on ||A||^2 for a group of a convolution with its weights cut to the grid; None where c2 is too
    small for a Cholesky factor. `gram` gives structure and, in floating point, the factor."""
    center, energy = _square_on_grid(square, bits), 0
    factor = Factor(gram, square, cholesky_row)
    columns: dict[int, dict[int, Any]] = {}
    products: dict[tuple, np.ndarray] = {}
    with whole_numbers() as flint:
        for index in range(gram.blocks):
            step = factor.advance(index)
            if step is None:
                return None
            factor_XW = rounded_witness(step.factor_XW, bits)
            for j, part in gram.parts(index):
                columns.setdefault(j, {})[index] = _matrix(flint, factor_XW[:, part])
                total = columns[index][index].transpose() * columns[j][index]
                for k, left in columns[index].items():
                    if k != index and k in columns[j]:
                        total += left.transpose() * columns[j][k]
                residual_XX = np.array([int(entry) for entry in total.entries()], dtype=object)
                residual_XX = residual_XX.reshape(total.nrows(), total.ncols())
                _add_gram(flint, gram, index, j, bits, residual_XX, products)
                if j == index:
                    np.einsum("ii->i", residual_XX)[...] -= center
                energy += (1 if j == index else 2) * int((residual_XX * residual_XX).sum())
            del columns[index]
    return Fraction(center + _ceiling_root(energy), 4**bits)


def _add_gram(
    flint: Any, gram: BandedGram, index: int, j: int, bits: int, residual_XX: np.ndarray, products: dict
) -> None:
    """Add block (index, j) of A^T A, in units of 4**-bits."""
    own, other, channels = gram.span(index), gram.span(j), gram.channels
    for first in own:
        for second, taps in gram.neighbours[first]:
            if second not in other:
                continue
            if taps not in products:
                left, right = (_matrix(flint, on_grid(stack, bits)[0]) for stack in gram.stacks(taps))
                entries = [int(entry) for entry in (left.transpose() * right).entries()]
                products[taps] = np.array(entries, dtype=object).reshape(channels, channels)
            row, column = (first - own.start) * channels, (second - other.start) * channels
            residual_XX[row : row + channels, column : column + channels] += products[taps]
            if index == j and first < second:
                residual_XX[column : column + channels, row : row + channels] += products[taps].T


def stretch_exactly(numbers_GOK: np.ndarray, bits: int, patches_GKP: np.ndarray, image: np.ndarray) -> Fraction:
    """||A v|| / ||v|| rounded down, for weights numbers / 2**bits and v of whole numbers of at most 2**24.

    patches_GKP: the entries of v that each output reads (int64, like image).
    """
    if patches_GKP.shape[1] >= 2**22:
        raise ValueError(f"{patches_GKP.shape[1]} inputs an output: sums are exact below {2**22}; use effort='tight'")
    outputs: Any = 0
    for limb in range(4):
        part = numbers_GOK >> (_LIMB * limb)
        part = part if limb == 3 else part & (2**_LIMB - 1)
        outputs = outputs + (np.matmul(part, patches_GKP).astype(object) << (_LIMB * limb))
    energy = int((outputs * outputs).sum())
    length = sum(int(number) ** 2 for number in image.ravel().tolist())
    return root_down(Fraction(energy, 4**bits * length)) if length else Fraction(0)
