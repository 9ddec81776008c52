"""The runs behind the chapter on speed: the speed run and the papers' recipe, seed by seed, as curves of proven VRA.

A study file or a record that is missing leaves its recipe empty, and every part of the page says "not run" of it.
"""

import functools
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import ConfigError, TrainConfig, load_config
from lipcert.paths import ROOT
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.checks import find_check
from lipcert.report.operations import counts
from lipcert.report.published import Row, load_published
from lipcert.study import Study, load_study, record_of, records_by_id

STUDIES = ROOT / "notebooks" / "params" / "study"
OURS, PAPERS, LONG = "speedrun-cpu", "speedrun-cpu-papers", "speedrun-cpu-long"  # names of files
# The published number that times are counted to: the best known of a network of this size trained on a laptop.
_TARGET = "liresnet-fork_cifar10-small-30-epoch-run_cifar10_l2_36-255_vra"
_BASELINE = "papers' way, neck"  # rows of the check `training-step`, their neck's features behind
_ARITHMETIC = ("native", "compiled", "eager")  # how its rows say that a step was computed


@dataclass(frozen=True)
class Point:
    """A network on its way, in per cent of the test images; seconds of training."""

    images: int
    seconds: float
    clean: float
    vra: float


@dataclass(frozen=True)
class Recipe:
    """The runs of one study file, one a seed: what was asked for, and the records there are."""

    title: str
    cells: tuple[TrainConfig, ...] = ()
    runs: tuple[Record, ...] = ()

    def shares(self) -> list[float]:
        """VRA of every run at its own radius, per cent."""
        return [100 * run.vra(run.config.radius) for run in self.runs]

    def mean(self) -> float:
        """Of those; the recipe must have runs."""
        return statistics.fmean(self.shares())

    def curves(self) -> list[list[Point]]:
        """Every run's snapshots and its end."""
        return [curve(run) for run in self.runs]

    def mean_curve(self) -> list[Point]:
        """The mean over the runs, where all of them were looked at."""
        by_images = [{point.images: point for point in points} for points in self.curves()]
        shared = sorted(set.intersection(*map(set, by_images))) if by_images else []
        return [_mean([points[images] for points in by_images]) for images in shared]

    @property
    def seeds(self) -> str:
        """`one run`, `3 seeds`."""
        return "one run" if len(self.runs) == 1 else f"{len(self.runs)} seeds"

    def operations(self) -> float:
        """Counted floating-point operations of training, for each image seen; the recipe must have cells."""
        return operations(self.cells[0])

    def images_per_second(self) -> float:
        """Over all runs, by their records; the recipe must have runs."""
        return sum(run.training.images for run in self.runs) / sum(run.training.seconds for run in self.runs)


@dataclass(frozen=True)
class Reached:
    """When the mean curve passes a VRA. `images` is a lower limit where it never does."""

    images: float
    passed: bool


def curve(run: Record) -> list[Point]:
    """Snapshots of a run in order, and its end last."""
    points = [
        Point(s.images, s.seconds, 100 * s.clean / run.test.images, 100 * s.certified_correct / run.test.images)
        for s in run.training.snapshots
    ]
    end = Point(run.training.images, run.training.seconds, 100 * run.clean_accuracy(), 100 * run.vra(run.config.radius))
    return [*points, end]


def _mean(points: Sequence[Point]) -> Point:
    seconds, clean, vra = (statistics.fmean(getattr(p, key) for p in points) for key in ("seconds", "clean", "vra"))
    return Point(points[0].images, seconds, clean, vra)


def reached(points: Sequence[Point], vra: float) -> Reached | None:
    """Images until the curve first passes `vra`, on straight lines between its points; None without points.

    Nothing is known before the first point: a curve that begins above counts from there.
    """
    if not points:
        return None
    if points[0].vra >= vra:
        return Reached(points[0].images, True)
    for before, after in itertools.pairwise(points):
        if before.vra < vra <= after.vra:
            share = (vra - before.vra) / (after.vra - before.vra)
            return Reached(before.images + share * (after.images - before.images), True)
    return Reached(points[-1].images, False)


def operations(config: TrainConfig) -> float:
    """Counted floating-point operations for each image seen: convolutions and products as plain ones, forward and
    backward, with the part of a step that does not depend on the batch (orthogonalisation, norms, optimiser)."""
    step = counts(config)
    return (step.convolutions + step.orthogonalisation + step.optimizer + step.estimates) / config.batch


def fixed_share(config: TrainConfig) -> float:
    """How much of these operations a step takes whatever its batch."""
    return 1 - counts(config).convolutions / config.batch / operations(config)


@functools.cache
def _study(path: Path) -> Study | None:
    return load_study(path) if path.exists() else None


def recipe(name: str, title: str) -> Recipe:
    """The runs of a study file."""
    if (study := _study(STUDIES / f"{name}.yaml")) is None:
        return Recipe(title)
    found = study.records()
    return Recipe(title, tuple(found), tuple(run for run in found.values() if run is not None))


def ours() -> Recipe:
    return recipe(OURS, "speed run")


def papers() -> Recipe:
    return recipe(PAPERS, "papers' recipe")


def long_run() -> Record | None:
    """The run of a wider network on more images."""
    path = STUDIES / f"{LONG}.yaml"
    try:
        config = load_config(path) if path.exists() else None
    except ConfigError:  # a study of several seeds
        return next(iter(recipe(LONG, "").runs), None)
    return record_of(config, records_by_id(load_records())) if config else None


def records() -> list[Record]:
    """All runs of the chapter."""
    return [*ours().runs, *papers().runs, *([run] if (run := long_run()) else [])]


def progress() -> list[tuple[str, int, int]]:
    """File names, with the runs published and planned."""
    both = ((OURS, ours()), (PAPERS, papers()))
    found = [(name, len(recipe.runs), len(recipe.cells)) for name, recipe in both]
    return [*found, (LONG, int(long_run() is not None), 1)]


def target_row() -> Row:
    """The published number that times are counted to."""
    return next(row for row in load_published() if row.id == _TARGET)


def target() -> float:
    """Its VRA in per cent."""
    return float(target_row().value)


def images_ratio() -> tuple[float, bool] | None:
    """How many times as many images the papers' recipe needs to the target, and whether that is known or a lower limit.

    None where the speed run itself does not reach it, or either was not run.
    """
    mine, theirs = (reached(r.mean_curve(), target()) for r in (ours(), papers()))
    if mine is None or theirs is None or not mine.passed:
        return None
    return theirs.images / mine.images, theirs.passed


def operations_ratio() -> tuple[float, bool] | None:
    """The same in counted operations."""
    if (ratio := images_ratio()) is None:
        return None
    return ratio[0] * papers().operations() / ours().operations(), ratio[1]


def step_ratio() -> tuple[float, str] | None:
    """How many times as long the papers' code takes for an image on the network of the speed run, and the row it is of.

    From the check `training-step`, the row nearest to how the speed run computes; None where there is none, or where
    the check claims no ratio.
    """
    check, mine = find_check("training-step"), ours()
    if check is None or not mine.cells:
        return None
    config = mine.cells[0]
    net, neck = f"L{config.depth} W{config.width}", config.neck_width
    first = "native" if config.kernels == "native" else "compiled" if config.compiled else "eager"
    ways = [(kind, how) for how in dict.fromkeys((first, *_ARITHMETIC)) for kind in ("speed run", "changed")]
    for kind, how in ways:
        row = f"{kind}, neck {neck}; {config.precision}, {how}"
        if (key := f"{net}; {row}; ratio to {_BASELINE} {neck}") in check.numbers:
            return float(check.numbers[key]), row
    return None


def time_ratio() -> tuple[float, bool] | None:
    """How many times as long the papers' recipe on the papers' code takes to the target: images times step."""
    images, step = images_ratio(), step_ratio()
    return None if images is None or step is None else (images[0] * step[0], images[1])
