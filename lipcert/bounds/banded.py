"""A proven upper bound on the norm of a zero-padded convolution as it is: block-banded Cholesky, checked row by row.

Let A be the matrix of one group. Its unknowns (inputs, or outputs where that is cheaper: A^T has the norm of A) are
ordered pixel by pixel, so the entries of A^T A lie in a band, as pixels farther apart than two kernels share no output.
Cut the unknowns into blocks; A^T A has blocks (i, j) with |i - j| <= m only. For c2 >= 0 a float and *any* stored
blocks R_ij, i <= j <= i + m, compute for each row i of blocks and each such j
    G_ij  = fl((A^T A)_ij),  one product of at most t terms an entry;      S = fl(c2 I - G);
    S'_ij = fl(S_ij - P_ij),  P_ij = fl(sum_{k<i} R_ki^T R_kj), one product of at most K terms an entry;
    E_ij  = fl(S'_ij - Q_ij), Q_ij = fl(R_ii^T R_ij), one product of at most K terms an entry.
S' is at once what the factorisation needs next and what it is checked by, so the check costs little more.

Theorem. In an arithmetic with the error model of `rounding.Arithmetic` (u, w, gamma_k),
    ||A||^2 <= c2 + (1 + u)^2 ||E||_F + gamma_{K+1} ||R||_1 ||R||_inf + u max|S_ii| + gamma_t ||A||_1 ||A||_inf
               + 4 w N (t + 2K + 4),
N the number of unknowns, ||E||_F^2 = sum_i ||E_ii||_F^2 + 2 sum_{i<j} ||E_ij||_F^2, u (K + 1) <= 1. Where m = 0 nothing
is subtracted, S' = S, and 1 + u, K and t + K + 2 will do in place of (1 + u)^2, K + 1 and t + 2K + 4.

Proof. Let F = c2 I - A^T A - R^T R, a symmetric matrix within the band. As R^T R is positive semidefinite whatever R
is, x^T A^T A x <= (c2 + ||F||) x^T x. For i <= j, entry by entry, with D_ij = sum_{k<i} |R_ki|^T |R_kj|:
    F_ij = E_ij + (F_ij - E_ij),   |F_ij - E_ij| <= |dG_ij| + |dS_ij| + |dP_ij| + |dS'_ij| + |dQ_ij| + |dE_ij|,
    |dG| <= gamma_t |A|^T|A| + 4tw,   |dS| <= u|S| + 4w on the diagonal, else 0 (a change of sign is exact),
    |dP_ij| <= gamma_K D_ij + 4Kw,   |dQ_ij| <= gamma_K |R_ii|^T |R_ij| + 4Kw,
    |dS'| <= u|S'| + 4w,   |dE| <= u|E| + 4w.
S' = Q + E - dE gives |S'_ij| <= (1 + gamma_K) |R_ii|^T |R_ij| + 4Kw + (1 + u) |E_ij| + 4w. So the terms in R are at
most (gamma_K + u (1 + gamma_K)) (|R|^T |R|)_ij <= gamma_{K+1} (|R|^T |R|)_ij, those in E at most (u + u (1 + u)) |E_ij|
and those in w at most 4w (t + 2K + 3 + u (K + 1)). By symmetry this holds for i > j. Now ||F|| <= || |F| ||, which is
at most the sum of the norms of these non-negative matrices: ||.|| <= ||.||_F for E; || |R|^T |R| || = || |R| ||^2 <=
||R||_1 ||R||_inf, likewise for A; the largest entry for a diagonal matrix; N e for entries below e. QED

Nothing is assumed of the factorisation. Sums are raised by the gamma of their own length before use and combined as
rationals. Rows are streamed: block columns i..i+m of R are all that is kept. Groups share one c2.

Shape suffixes: K L kernel sizes along the outer and the inner axis, D channels of a partner pixel (one that pixels of
the ordering share), C channels of a pixel, X unknowns of a block, W unknowns of a row of blocks, m blocks in a column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product as pairs_of
from typing import NamedTuple

import torch
from torch import Tensor

from lipcert.bounds.operators import Axis, Operator
from lipcert.bounds.rounding import Arithmetic, exact, largest, root_up
from lipcert.bounds.verified import absolute_norm_squared

_MARGIN = 2.0**-30  # c2 starts this much above the guess: 4.7e-10 of the norm
ATTEMPTS = 8  # the margin grows eightfold each time
_BLOCKS_IN_BAND = 8  # more are less to check, but smaller products
_BLOCK_SIZES = (48, 320)  # unknowns of a block, where the channels allow

Shared = dict[tuple[int, int], tuple[tuple[int, int], ...]]
Witness = Callable[[Tensor], Tensor | None]


def shared_taps(axis: Axis, of_inputs: bool) -> Shared:
    """For each pair of inputs (or outputs) that some output (input) connects: the taps that lead to both."""
    readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for output, tap in pairs_of(range(axis.outputs), range(axis.taps)):
        place = output * axis.stride + tap * axis.dilation - axis.front
        if 0 <= place < axis.size:
            cell, partner = (place, output) if of_inputs else (output, place)
            readers[partner].append((cell, tap))
    shared: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for cells in readers.values():
        for (first, first_tap), (second, second_tap) in pairs_of(cells, cells):
            shared[first, second].append((first_tap, second_tap))
    return {pair: tuple(taps) for pair, taps in shared.items()}


class _Layout:
    """One way to order the unknowns: those of inputs or of outputs, row by row or column by column."""

    def __init__(self, weights_OIKL: Tensor, axes: tuple[Axis, Axis], of_inputs: bool, turned: bool) -> None:
        outer, inner = reversed(axes) if turned else axes
        taps_DCKL = weights_OIKL if of_inputs else weights_OIKL.transpose(0, 1)
        self.taps_KLDC = taps_DCKL.permute((3, 2, 0, 1) if turned else (2, 3, 0, 1))
        self.shared = shared_taps(outer, of_inputs), shared_taps(inner, of_inputs)
        self.width = inner.size if of_inputs else inner.outputs
        self.cells = self.width * (outer.size if of_inputs else outer.outputs)
        rows, columns = (max((j - i for i, j in way), default=0) for way in self.shared)
        self.reach = rows * self.width + columns  # no two cells farther apart share a partner
        self.cost = self.cells * taps_DCKL.shape[1] ** 3 * (self.reach + 1) ** 2


class BandedGram:
    """The Gram matrix of one group of a zero-padded convolution by rows of blocks, and bounds on its norm."""

    def __init__(self, weights_OIKL: Tensor, axes: tuple[Axis, Axis], arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.weights_OIKL = weights_OIKL
        layouts = [_Layout(weights_OIKL, axes, *choice) for choice in pairs_of((True, False), (False, True))]
        layout = min(layouts, key=lambda layout: layout.cost)
        self.taps_KLDC, self.shared, self.reach = layout.taps_KLDC.contiguous(), layout.shared, layout.reach
        self.cells, self.width, self.channels = layout.cells, layout.width, layout.taps_KLDC.shape[3]
        wanted = min(max(self.reach * self.channels / _BLOCKS_IN_BAND, _BLOCK_SIZES[0]), _BLOCK_SIZES[1])
        self.block = min(self.cells, max(1, round(wanted / self.channels)))  # in cells
        self.blocks = -(-self.cells // self.block)
        self.ahead = min((self.block - 1 + self.reach) // self.block, self.blocks - 1)  # m
        self.neighbours = self._neighbours()
        self.products: dict = {}

    @property
    def unknowns(self) -> int:
        return self.cells * self.channels

    @property
    def terms(self) -> int:
        """t: terms of the longest inner product behind an entry of the Gram matrix."""
        taps = [max(map(len, way.values()), default=1) for way in self.shared]
        return taps[0] * taps[1] * self.taps_KLDC.shape[2]

    def _neighbours(self) -> list[list]:
        """For each cell, the later cells it shares a partner with, and through which taps."""
        neighbours: list[list] = [[] for _ in range(self.cells)]
        outer, inner = self.shared
        for ((y1, y2), rows), ((x1, x2), columns) in pairs_of(outer.items(), inner.items()):
            first, second = y1 * self.width + x1, y2 * self.width + x2
            if first <= second:
                neighbours[first].append((second, (rows, columns)))
        return neighbours

    def stacks(self, taps: tuple) -> tuple[Tensor, Tensor]:
        """The two stacks of kernel taps whose product is the Gram block of two cells, (terms, C) each."""
        chosen = list(pairs_of(*taps))
        left = torch.stack([self.taps_KLDC[rows[0], columns[0]] for rows, columns in chosen])
        right = torch.stack([self.taps_KLDC[rows[1], columns[1]] for rows, columns in chosen])
        return left.flatten(0, 1), right.flatten(0, 1)

    def _gram_block(self, taps: tuple) -> Tensor:
        if taps not in self.products:
            left, right = self.stacks(taps)
            self.products[taps] = self.arithmetic.product(left.mT, right)
        return self.products[taps]

    def span(self, index: int) -> range:
        """The cells of block `index`."""
        return range(index * self.block, min((index + 1) * self.block, self.cells))

    def parts(self, index: int) -> list[tuple[int, slice]]:
        """Blocks j = i..i+m and where each lies in a row of blocks that begins with block i."""
        start, parts = self.span(index).start, []
        for j in range(index, min(index + self.ahead, self.blocks - 1) + 1):
            cells = self.span(j)
            parts.append((j, slice((cells.start - start) * self.channels, (cells.stop - start) * self.channels)))
        return parts

    def gram_row(self, index: int) -> Tensor:
        """G_ij for j = i..i+m, side by side: shape (X, W)."""
        own, last = self.span(index), self.span(min(index + self.ahead, self.blocks - 1))
        row = self.taps_KLDC.new_zeros(len(own), self.channels, last.stop - own.start, self.channels)
        for first in own:
            for second, taps in self.neighbours[first]:
                block_CC = self._gram_block(taps)
                row[first - own.start, :, second - own.start] = block_CC
                if first < second < own.stop:
                    row[second - own.start, :, first - own.start] = block_CC.mT
        return row.flatten(2).flatten(0, 1)

    def bound(self, square: float, witness: Witness | None = None) -> Fraction | None:
        """Proven upper bound on ||A||^2 with c2 = square; None where the witness gave up."""
        terms = self.error_terms(square, witness)
        return None if terms is None else exact(square) + sum(terms.values())

    def error_terms(self, square: float, witness: Witness | None = None) -> dict[str, Fraction] | None:
        """The terms of the theorem beside c2. witness: S'_i,i.. -> R_i,i.. (each (X, W)), by default Cholesky's."""
        arithmetic = self.arithmetic
        factor = Factor(self, square, witness or cholesky_row)
        energy = row_sum = column_sum = peak = Fraction(0)
        for index in range(self.blocks):
            step = factor.advance(index)
            if step is None:
                return None
            factor_XW = step.factor_XW
            size, wide = factor_XW.shape
            corner, rest = step.residual_XW[:, :size], step.residual_XW[:, size:]
            energy += arithmetic.sum_at_most(largest(arithmetic.squares(corner[None])), size * size)
            if wide > size:
                energy += 2 * arithmetic.sum_at_most(largest(arithmetic.squares(rest[None])), size * (wide - size))
            row_sum = max(row_sum, arithmetic.sum_at_most(largest(arithmetic.total(factor_XW.abs(), dim=1)), wide))
            column_ZX = torch.cat((step.above_ZX, factor_XW[:, :size])).abs()
            column_sum = max(
                column_sum, arithmetic.sum_at_most(largest(arithmetic.total(column_ZX, dim=0)), len(column_ZX))
            )
            peak = max(peak, largest(step.diagonal_X.abs()))
        longest = self.block * self.channels * max(self.ahead, 1)
        chained = 1 if self.ahead else 0  # one more rounding, that of S'
        absolute = absolute_norm_squared(self.weights_OIKL.flatten(2)[None], arithmetic)
        residual = root_up(energy)
        return {
            "E": residual,
            "dE": ((1 + arithmetic.unit) ** (1 + chained) - 1) * residual,
            "dP": arithmetic.gamma(longest + chained) * row_sum * column_sum,
            "dS": arithmetic.unit * peak,
            "dG": arithmetic.gamma(self.terms) * absolute,
            "underflow": self.unknowns * arithmetic.flushed(self.terms + (1 + chained) * (longest + 2)),
        }


class Row(NamedTuple):
    """A row of blocks: E_i,i.., R_i,i.., the blocks R_ki above R_ii, and the diagonal of S_ii."""

    residual_XW: Tensor
    factor_XW: Tensor
    above_ZX: Tensor
    diagonal_X: Tensor


class Factor:
    """R, row after row; kept are the blocks above the rows to come: columns[j] stacks R_kj for k = j-m .. j-1."""

    def __init__(self, gram: BandedGram, square: float, witness: Witness) -> None:
        self.gram, self.square, self.witness = gram, square, witness
        self.columns: dict[int, Tensor] = {}

    def advance(self, index: int) -> Row | None:
        """The next row (`index` counts up from 0); None where the witness gave up."""
        gram, arithmetic, columns = self.gram, self.gram.arithmetic, self.columns
        gram_XW, parts = gram.gram_row(index), gram.parts(index)
        updated_XW = -gram_XW
        diagonal_X = arithmetic.subtract(self.square, gram_XW.diagonal())
        updated_XW.diagonal().copy_(diagonal_X)
        for j, part in parts:
            if j not in columns:
                columns[j] = gram_XW.new_zeros(gram.ahead, gram.block * gram.channels, part.stop - part.start)
            left, right = self._above(index, j), self._above(j, index)
            if len(left):
                updated_XW[:, part] = arithmetic.subtract(updated_XW[:, part], arithmetic.product(left.mT, right))
        factor_XW = self.witness(updated_XW)
        if factor_XW is None:
            return None
        corner_XX = factor_XW[:, : len(factor_XW)]
        residual_XW = arithmetic.subtract(updated_XW, arithmetic.product(corner_XX.mT, factor_XW))
        above_ZX = self._above(index, index)
        for j, part in parts[1:]:
            columns[j][index - j + gram.ahead] = factor_XW[:, part]
        del columns[index]
        return Row(residual_XW, factor_XW, above_ZX, diagonal_X)

    def _above(self, j: int, other: int) -> Tensor:
        """The blocks R_kj that meet blocks R_k,other: k from the later one's first to the row before the earlier."""
        ahead = self.gram.ahead
        first, last = max(0, max(j, other) - ahead), min(j, other)
        return self.columns[j][first - j + ahead : last - j + ahead].flatten(0, 1)


def cholesky_row(updated_XW: Tensor) -> Tensor | None:
    """LAPACK's factor of the first block and the solution for the others; None where that block is not definite."""
    size, wide = updated_XW.shape
    corner_XX, failed = torch.linalg.cholesky_ex(updated_XW[:, :size], upper=True)
    if bool(failed):
        return None
    if wide == size:
        return corner_XX
    rest = torch.linalg.solve_triangular(corner_XX.mT, updated_XW[:, size:], upper=False)
    return torch.cat((corner_XX, rest), dim=1)


def banded_norm_squared(operator: Operator, guess: float, arithmetic: Arithmetic) -> Fraction:
    """Smallest proven bound on ||A||^2 found from a guess of it; the operator's padding must be zeros.

    Excess over the truth, as of the norm: 5e-10 plus half the error of a guess from below. Time: that of about
    N b^2 multiplications for N unknowns and a band of b = (reach + 1) C, as often as the guess proves too low.
    """
    grams = grams_of(operator, arithmetic)
    squares = (raised(guess, attempt) for attempt in range(ATTEMPTS))
    bounds = (_largest_bound(gram.bound(square) for gram in grams) for square in squares)
    bound = next((bound for bound in bounds if bound is not None), None)
    if bound is not None:
        return bound
    # A guess this wrong says nothing: start from a bound that needs no factor.
    square = 1.01 * float(absolute_norm_squared(operator.weights_GOIKL.flatten(3), arithmetic))
    return max(gram.bound(square) or gram.bound(square, torch.zeros_like) for gram in grams)


def grams_of(operator: Operator, arithmetic: Arithmetic) -> list[BandedGram]:
    """One for each group."""
    return [BandedGram(weights_OIKL, operator.axes, arithmetic) for weights_OIKL in operator.weights_GOIKL]


def raised(guess: float, attempt: int) -> float:
    """c2 for an attempt: the margin above the guess grows eightfold each time."""
    return guess * (1 + _MARGIN * 8.0**attempt)


def _largest_bound(bounds: Iterable[Fraction | None]) -> Fraction | None:
    """The maximum; None, and nothing more is computed, as soon as one of them is."""
    found = []
    for bound in bounds:
        if bound is None:
            return None
        found.append(bound)
    return max(found)
