"""How VRA grows with images, parameters and operations, and whether a ceiling shows: what this study's runs can tell.

The unit is a *cell*: one network trained with one recipe on one number of images, all its seeds together. Only ends of
runs count. A snapshot is no shorter run: its learning rate and its radius are those of the middle of a longer one.
Cells of one recipe are fitted together, those of others only drawn, since a better recipe would pass for scale.

Two models, both on the means of the cells, least squares:

- *line*: logit(VRA) is linear in the logarithms of its predictors;
- *ceiling*: VRA = T - A C^(-alpha) over the operations C of training (or its images), A at least 0, T at most 1
  and at least the highest VRA that was reached.

Intervals are 95 %: of a line by Student's t, of the ceiling by profile likelihood, that is all values for which some
fit leaves at most RSS_min (1 + F / (n - 3)) of squares, F the quantile of Fisher's F(1, n - 3).

Shape letters: N cells, S exponents, T ceilings, X places.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lipcert.config import MEASURED, TrainConfig, steps_of
from lipcert.data.registry import DATASETS
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.figures import read_curve
from lipcert.report.names import LOSSES, network_name
from lipcert.report.operations import forward_operations
from lipcert.report.published import Row, load_published, presets, results_only

FAMILY = "liresnet"
SETS = ("mnist", "cifar10", "cifar100")  # whose images the network takes at 32 pixels, as the count of operations does
GUARANTEES = ("executed", "real", "nominal")
# What two runs of one recipe may differ in: size, length, what is drawn by a seed, strength of crops (which goes with
# the length), and how steps are computed or looked at.
NOT_RECIPE = {
    "depth", "width", "neck_width", "steps", "epochs", "minutes", "seed", "crop", "flip", "device", "snapshots",
    "threats", "report_radii", "published", *MEASURED,
}  # fmt: skip
LEVEL = 0.95
EXPONENTS_S = np.geomspace(0.01, 2.0, 160)
CEILINGS = 181  # values of the ceiling that are tried, from the highest VRA that was reached to 1
ROUNDS, MARGIN = 4, 8  # of the search on a grid: looks closer and closer at what is inside, with a margin of values
LAST = 0.05  # share of a run at its end over which training accuracy is averaged


# --------------------------------------------------------------------------------------------------------------- cells
@dataclass(frozen=True)
class Cell:
    """A network trained with a recipe on so many images.

    operations: of training, 3 x forward, counted as in `operations`. shares: VRA of every seed, per cent. gap: clean
    accuracy on the last batches of training, augmented as they are, less that on the test set, points; NaN: no curves.
    """

    network: str
    recipe: str
    parameters: int
    images: int
    operations: float
    runs: tuple[Record, ...]
    shares: tuple[float, ...]
    gap: float

    @property
    def vra(self) -> float:
        """Mean over the seeds, per cent."""
        return statistics.fmean(self.shares)


@dataclass(frozen=True)
class Found:
    """What the records and the list of published numbers hold on one data set, l2 radius and guarantee.

    fitted: the cells of the recipe that has most of them, by operations. others: those of all other recipes.
    """

    dataset: str
    radius: Radius
    guarantee: str
    fitted: tuple[Cell, ...]
    others: tuple[Cell, ...]
    published: tuple["Published", ...]


def gather(dataset: str, radius: str, guarantee: str) -> Found:
    """All that a page on these three needs.

    Raises:
        ValueError: a data set or guarantee that no network here has.
    """
    if dataset not in SETS:
        raise ValueError(f"dataset={dataset!r}: must be one of {', '.join(SETS)}")
    if guarantee not in GUARANTEES:
        raise ValueError(f"guarantee={guarantee!r}: must be one of {', '.join(GUARANTEES)}")
    exact = Radius(radius)
    first, *rest = recipes(dataset, exact, guarantee) or [[]]
    others = tuple(cell for cells in rest for cell in cells)
    return Found(dataset, exact, guarantee, tuple(first), others, tuple(published(dataset, exact)))


def recipes(dataset: str, radius: Radius, guarantee: str) -> list[list[Cell]]:
    """All cells, by recipe; the recipe with most cells first, which is the one that is fitted."""
    groups: dict[str, dict[tuple, list[Record]]] = {}
    for record in results_only(load_records()):
        config = record.config
        alike = (config.family, record.data.name, config.classes, config.generated) == (FAMILY, dataset, None, None)
        if alike and Radius(config.radius) == radius and record.result(radius, guarantee) is not None:
            size = (config.depth, config.width, config.neck_width, record.training.images)
            groups.setdefault(recipe(config), {}).setdefault(size, []).append(record)
    found = [[_cell(runs, radius, guarantee) for runs in cells.values()] for cells in groups.values()]
    ordered = [sorted(cells, key=lambda cell: (cell.operations, cell.network)) for cells in found]
    return sorted(ordered, key=lambda cells: (-len(cells), -max(cell.images for cell in cells), cells[0].recipe))


def recipe(config: TrainConfig) -> str:
    """Two runs are of one recipe where this text is the same."""
    return config.model_dump_json(exclude=NOT_RECIPE)


def _cell(runs: list[Record], radius: Radius, guarantee: str) -> Cell:
    first = runs[0]
    config = first.config
    how = f"{LOSSES[config.loss]}, {config.optimizer} at {config.lr:g}, batches of {config.batch}"
    gaps = [gap for run in runs if not math.isnan(gap := _gap(run))]
    return Cell(
        network_name(config), how, first.model.parameters, first.training.images,
        3 * forward_operations(config) * first.training.images, tuple(runs),
        tuple(100 * run.vra(radius, guarantee) for run in runs),
        statistics.fmean(gaps) if gaps else math.nan,
    )  # fmt: skip


def _gap(run: Record) -> float:
    try:
        rows = read_curve(run) if run.training.curve else []
    except FileNotFoundError:
        rows = []
    if not rows:
        return math.nan
    last = [row["train_accuracy"] for row in rows if row["images"] >= (1 - LAST) * rows[-1]["images"]]
    return 100 * (statistics.fmean(last) - run.clean_accuracy())


# ----------------------------------------------------------------------------------------------------------- published
@dataclass(frozen=True)
class Published:
    """A published number of the family. Images and operations are those of our preset of it, length and all."""

    row: Row
    images: int
    operations: float
    generated: bool


def published(dataset: str, radius: Radius) -> list[Published]:
    """Published VRA of the family at this radius, by operations."""
    rows, found = {row.id: row for row in load_published()}, []
    for preset in presets():
        config = preset.config
        if (config.family, config.dataset, config.classes) != (FAMILY, dataset, None):
            continue
        batch = config.batch + (round(config.generated_ratio * config.batch) if config.generated else 0)
        images = steps_of(config, DATASETS[config.dataset].train) * batch
        for row in map(rows.__getitem__, config.published):
            if (row.metric, row.norm) == ("vra", "l2") and Radius(row.radius) == radius:
                operations = 3 * forward_operations(config) * images
                found.append(Published(row, images, operations, config.generated is not None))
    return sorted(found, key=lambda each: (each.operations, float(each.row.value)))


# ---------------------------------------------------------------------------------------------------------------- line
@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """The line's gains: points of VRA at the cells' middle for each doubling of a predictor.

    left: root mean square of what it misses when each cell in turn is left out of the fit, points; infinite where one
    cell alone holds the line.
    """

    gains: dict[str, Interval]
    left: float


def line(cells: Sequence[Cell], predictors: Sequence[str]) -> Line | None:
    """logit(VRA) over the logarithms of some of images, parameters, operations; None where cells cannot tell.

    That is with too few of them, or predictors that go together.
    """
    count = len(predictors) + 1
    if len(cells) <= count + 1:
        return None
    logs_NK = np.log2([[getattr(cell, name) for name in predictors] for cell in cells])
    x_NK = np.column_stack([np.ones(len(cells)), logs_NK - logs_NK.mean(0)])
    if np.linalg.matrix_rank(x_NK, tol=1e-6) < count:
        return None
    share_N = np.clip([cell.vra / 100 for cell in cells], 1e-4, 1 - 1e-4)  # one image of 10,000: a logit has no end
    logit_N = np.log(share_N / (1 - share_N))
    inverse = np.linalg.inv(x_NK.T @ x_NK)
    slopes = inverse @ x_NK.T @ logit_N
    missed_N = logit_N - x_NK @ slopes
    deviation = math.sqrt(missed_N @ missed_N / (len(cells) - count))
    reach = _student(len(cells) - count) * deviation * np.sqrt(np.diag(inverse))
    middle = 1 / (1 + math.exp(-slopes[0]))
    unit = 100 * middle * (1 - middle)
    gains = {
        name: Interval(*(float(unit * (slopes[k] + side * reach[k])) for side in (0, -1, 1)))
        for k, name in enumerate(predictors, 1)
    }
    hat_N = np.einsum("nk,kl,nl->n", x_NK, inverse, x_NK)
    if (hat_N > 1 - 1e-9).any():
        return Line(gains, math.inf)
    predicted_N = 1 / (1 + np.exp(-(logit_N - missed_N / (1 - hat_N))))
    return Line(gains, 100 * float(np.sqrt(np.mean((share_N - predicted_N) ** 2))))


def _student(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


def _fisher(freedom: int) -> float:
    from scipy import stats

    return float(stats.f.ppf(LEVEL, 1, freedom))


# ------------------------------------------------------------------------------------------------------------- ceiling
@dataclass(frozen=True)
class Ceiling:
    """The fit of T - A (C / reference)^(-alpha), on a grid of alpha and T; A is solved for. C: operations, or images.

    inside_ST: the (alpha, T) within the interval; low_ST, high_ST: the ends of A there. top: T in per cent. best:
    alpha, T, A of the least squares, T and A as shares.
    """

    reference: float
    exponents_S: np.ndarray
    tops_T: np.ndarray
    inside_ST: np.ndarray
    low_ST: np.ndarray
    high_ST: np.ndarray
    best: tuple[float, float, float]

    @property
    def top(self) -> Interval:
        """The ceiling, per cent."""
        tops = self.tops_T[self.inside_ST.any(0)]
        return _percent(self.best[1], tops[0], tops[-1])

    @property
    def exponent(self) -> Interval:
        exponents = self.exponents_S[self.inside_ST.any(1)]
        return Interval(self.best[0], float(exponents[0]), float(exponents[-1]))

    @property
    def flattens(self) -> bool:
        """Whether every ceiling that fits lies below 100 %."""
        return self.top.high < 100

    def at(self, spent: float) -> Interval:
        """VRA in per cent after so many operations."""
        factor_S = (spent / self.reference) ** -self.exponents_S
        alpha, top, size = self.best
        low_ST, high_ST = (self.tops_T - ends_ST * factor_S[:, None] for ends_ST in (self.high_ST, self.low_ST))
        value = top - size * (spent / self.reference) ** -alpha
        return _percent(value, low_ST[self.inside_ST].min(), high_ST[self.inside_ST].max())

    def gain(self, spent: float) -> Interval:
        """Points of VRA that the doubling of operations centred there brings."""
        steps = [(spent * 2**half / self.reference) for half in (-0.5, 0.5)]
        alpha, _, size = self.best
        fall_S = steps[0] ** -self.exponents_S - steps[1] ** -self.exponents_S
        ends = [(part_ST * fall_S[:, None])[self.inside_ST] for part_ST in (self.low_ST, self.high_ST)]
        return _percent(size * (steps[0] ** -alpha - steps[1] ** -alpha), ends[0].min(), ends[1].max())


def _percent(*shares: float) -> Interval:
    return Interval(*(100 * float(share) for share in shares))


def ceiling(cells: Sequence[Cell], by: str = "operations") -> Ceiling | None:
    """VRA with a ceiling over `operations` or `images`; None with fewer than five cells or three amounts of it."""
    spent_N = np.array([float(getattr(cell, by)) for cell in cells])
    if len(cells) < 5 or len(set(spent_N)) < 3:
        return None
    share_N = np.array([cell.vra for cell in cells]) / 100
    exponents_S, tops_T = EXPONENTS_S, np.linspace(share_N.max(), 1.0, CEILINGS)
    for _ in range(ROUNDS):
        fit = _on_grid(share_N, spent_N, exponents_S, tops_T)
        exponents_S = _closer(exponents_S, fit.inside_ST.any(1), np.geomspace)
        tops_T = _closer(tops_T, fit.inside_ST.any(0), np.linspace)
    return fit


def _closer(grid: np.ndarray, inside: np.ndarray, spread: Callable[..., np.ndarray]) -> np.ndarray:
    """As many values over the part of the grid that is inside and a margin."""
    places = np.flatnonzero(inside)
    low, high = max(places[0] - MARGIN, 0), min(places[-1] + MARGIN, len(grid) - 1)
    return spread(grid[low], grid[high], len(grid))


def _on_grid(share_N: np.ndarray, spent_N: np.ndarray, exponents_S: np.ndarray, tops_T: np.ndarray) -> Ceiling:
    reference = float(np.exp(np.log(spent_N).mean()))
    factor_SN = (spent_N / reference) ** -exponents_S[:, None]
    # For given alpha and T the best A is a projection, cut at 0; what it leaves is a parabola in A.
    short_TN = tops_T[:, None] - share_N
    norm_S = (factor_SN**2).sum(1)
    middle_ST = factor_SN @ short_TN.T / norm_S[:, None]
    size_ST = np.maximum(middle_ST, 0)
    least_ST = (short_TN**2).sum(1) - middle_ST**2 * norm_S[:, None]
    rest_ST = least_ST + (size_ST - middle_ST) ** 2 * norm_S[:, None]
    s, t = np.unravel_index(rest_ST.argmin(), rest_ST.shape)
    allowed = rest_ST[s, t] * (1 + _fisher(len(share_N) - 3) / (len(share_N) - 3))
    reach_ST = np.sqrt(np.maximum(allowed - least_ST, 0) / norm_S[:, None])
    low_ST, high_ST = np.maximum(middle_ST - reach_ST, 0), middle_ST + reach_ST
    best = (float(exponents_S[s]), float(tops_T[t]), float(size_ST[s, t]))
    return Ceiling(reference, exponents_S, tops_T, rest_ST <= allowed, low_ST, high_ST, best)


def left_out(cells: Sequence[Cell], by: str = "operations") -> float:
    """Root mean square of what the ceiling's fit misses when each cell in turn is left out, points; NaN without one."""
    missed = []
    for n, cell in enumerate(cells):
        rest = ceiling([*cells[:n], *cells[n + 1 :]], by)
        if rest is None:
            return math.nan
        missed.append(cell.vra - rest.at(getattr(cell, by)).value)
    return math.sqrt(statistics.fmean(m * m for m in missed))
