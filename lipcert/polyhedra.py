"""Polyhedra with interior points, cut by hyperplanes: linear programs suggest, integers decide.

A side of a cut is kept when it may hold interior points and dropped only when its inequalities are refuted: by
Motzkin's theorem, a x + b > 0 for every row (a, b) has no solution if the rows have a combination with weights l >= 0,
not all 0, with sum l a = 0 and sum l b <= 0. HiGHS suggests the point or the combination; both are checked exactly.

Shape letters: N inputs, R rows (inequalities), P points; the suffix 1 in N1 stands for the constant term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

_POINTS = 4096  # random points that decide most cuts without a linear program
_CLEAR = 1e-9  # a point nearer to a hyperplane, or a program with less room, decides nothing
_TRIED = 4  # points that are checked exactly before a polyhedron counts as open
_DUALS = (1e-7, 1e-10, 0.0)  # weights of a combination below this share of the largest are taken for 0

Row = tuple[int, ...]


@dataclass(frozen=True)
class Polyhedron:
    """All x with exact_RN1 (x, 1) > 0; the same rows as floats, each of length 1; points inside, as far as floats tell.

    No points means that neither a point nor a contradiction was found.
    """

    exact_RN1: tuple[Row, ...]
    rows_RN1: np.ndarray
    points_PN: np.ndarray

    def side(self, row: Row) -> Polyhedron | None:
        """The part where row (x, 1) > 0; None where it is proven to be empty. row: integers, not only the last."""
        side = self._with(row)
        if len(side.points_PN):
            return side
        room, point_N, duals_R = _program(side.rows_RN1)
        if room > _CLEAR:
            return replace(side, points_PN=point_N[None])
        return None if _refuted(side.exact_RN1, duals_R) else side

    def interior_point(self) -> np.ndarray | None:
        """A float64 point that satisfies every inequality strictly, checked in integers."""
        points_PN = self.points_PN[:_TRIED]
        if not len(points_PN):
            points_PN = _program(self.rows_RN1)[1][None]
        for point_N in points_PN:
            numbers, scale = integers(point_N)
            whole = [*numbers.tolist(), 1 << scale]
            if all(sum(a * x for a, x in zip(row, whole, strict=True)) > 0 for row in self.exact_RN1):
                return point_N
        return None

    def _with(self, row: Row) -> Polyhedron:
        largest = max(map(abs, row[:-1]))
        row_N1 = np.array([n / largest for n in row])
        row_N1 /= np.linalg.norm(row_N1[:-1])
        value_P = self.points_PN @ row_N1[:-1] + row_N1[-1]
        clear_P = value_P > _CLEAR * (1 + np.abs(self.points_PN).sum(1) + abs(row_N1[-1]))
        return Polyhedron((*self.exact_RN1, row), np.vstack([self.rows_RN1, row_N1]), self.points_PN[clear_P])


def whole_space(inputs: int, seed: int = 0) -> Polyhedron:
    """R^N, with random points at scales from 0.03 to 30."""
    rng = np.random.default_rng(seed)
    scale_P1 = 10.0 ** rng.uniform(-1.5, 1.5, (_POINTS, 1))
    return Polyhedron((), np.empty((0, inputs + 1)), scale_P1 * rng.standard_normal((_POINTS, inputs)))


def cube(inputs: int, low: float, high: float, seed: int = 0) -> Polyhedron:
    """The interior of [low, high]^N.

    Raises:
        ValueError: ends that leave no interior.
    """
    if not low < high:
        raise ValueError(f"box=({low}, {high}): must be (low, high) with low < high")
    points_PN = np.random.default_rng(seed).uniform(low, high, (_POINTS, inputs))
    part = Polyhedron((), np.empty((0, inputs + 1)), points_PN)
    unit = math.lcm(Fraction(low).denominator, Fraction(high).denominator)
    for i in range(inputs):
        for sign, end in ((1, low), (-1, high)):
            row = [sign * unit * int(j == i) for j in range(inputs)]
            part = part._with((*row, int(-sign * unit * Fraction(end))))
    return part


def integers(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Finite floats as (numbers, scale): values = 2**-scale * numbers exactly, numbers an array of Python integers."""
    ratios = [v.as_integer_ratio() for v in np.asarray(values, dtype=np.float64).ravel().tolist()]
    common = max(d for _, d in ratios)
    numbers = np.empty(len(ratios), dtype=object)
    numbers[:] = [n * (common // d) for n, d in ratios]
    return numbers.reshape(np.shape(values)), common.bit_length() - 1


def _program(rows_RN1: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The point with most room (at most 1) on all hyperplanes' inner sides, that room, and the dual weights."""
    rows, inputs = len(rows_RN1), rows_RN1.shape[1] - 1
    found = linprog(
        np.append(np.zeros(inputs), -1.0),
        A_ub=np.column_stack([-rows_RN1[:, :-1], np.ones(rows)]),
        b_ub=rows_RN1[:, -1],
        bounds=[*[(None, None)] * inputs, (None, 1.0)],
        method="highs-ds",
    )
    if found.status != 0:
        return 0.0, np.zeros(inputs), np.zeros(rows)
    return float(found.x[-1]), found.x[:-1], -found.ineqlin.marginals


def _refuted(exact_RN1: tuple[tuple[int, ...], ...], duals_R: np.ndarray) -> bool:
    """Whether the dual weights point at rows with an exact combination that proves them contradictory."""
    for least in _DUALS:
        rows = [row for row, dual in zip(exact_RN1, duals_R, strict=True) if dual > least * duals_R.max()]
        weights = _dependence([row[:-1] for row in rows])
        if weights is None:
            continue
        if sum(weights) < 0:
            weights = [-w for w in weights]
        if min(weights) >= 0 and sum(w * row[-1] for w, row in zip(weights, rows, strict=True)) <= 0:
            return True
    return False


def _dependence(rows: list[tuple[int, ...]]) -> list[int] | None:
    """Integers w, not all 0, with sum w_i rows_i = 0; None unless they are unique up to a factor (Bareiss)."""
    columns = len(rows)
    matrix = [list(line) for line in zip(*rows, strict=True)]
    pivots: list[int] = []
    before = 1
    for column in range(columns):
        rank = len(pivots)
        chosen = next((i for i in range(rank, len(matrix)) if matrix[i][column]), None)
        if chosen is None:
            continue
        matrix[rank], matrix[chosen] = matrix[chosen], matrix[rank]
        pivot = matrix[rank][column]
        for i, line in enumerate(matrix):
            if i != rank:
                factor = line[column]
                matrix[i] = [(pivot * a - factor * b) // before for a, b in zip(line, matrix[rank], strict=True)]
        before = pivot
        pivots.append(column)
    if columns != len(pivots) + 1:
        return None
    (free,) = set(range(columns)) - set(pivots)
    weights = [0] * columns
    weights[free] = before
    for line, column in zip(matrix, pivots, strict=False):
        weights[column] = -line[free]
    return weights
