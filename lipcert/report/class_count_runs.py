"""The runs behind the page on class count, as points: what networks get right and certify on some classes of a set.

Three arms go over the number of classes. *restricted*: networks trained on all classes, asked about some of them
without training (the check `class-restriction`). *images*: trained on those classes, with all their images, so that a
class has as many at every count. *total*: trained on those classes, with as many images in all. A file, run or check
that is missing leaves a place empty, and every part of the page says "not run" of it.
"""

import functools
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report import matrices
from lipcert.report.checks import find_check
from lipcert.study import load_study, record_of, records_by_id

WHOLE, SUBSETS, FEWER = "class-count-100", "class-count-images", "class-count-total"  # names of study files
CHECK = "class-restriction"
RESTRICTED, IMAGES, TOTAL = "restricted", "images", "total"
ARMS = {
    RESTRICTED: "restricted, not trained again",
    IMAGES: "trained, images of a class fixed",
    TOTAL: "trained, images in total fixed",
}
LEAST_DRAWS = 3  # fewer say nothing about a difference


@dataclass(frozen=True)
class Point:
    """One network on one draw of classes: counts of test images.

    draw: its class seed; None where all classes were used and every image of them. net: run id of a network that was
    restricted; None for one trained on these classes. record: of the run; None for a restricted network.
    """

    classes: int
    images: int
    right: int
    certified: int
    draw: int | None = None
    net: str | None = None
    record: Record | None = None

    @property
    def clean(self) -> float:
        """Per cent."""
        return 100 * self.right / self.images

    @property
    def vra(self) -> float:
        """Per cent."""
        return 100 * self.certified / self.images

    @property
    def gap(self) -> float:
        """Images that are right and not certified, per cent of all."""
        return self.clean - self.vra

    @property
    def ratio(self) -> float:
        """VRA / clean: the certified share of the images that are right; 0 where none is."""
        return self.certified / self.right if self.right else 0.0


Measure = Callable[[Point], float]
clean, vra, gap, ratio = (Point.clean.fget, Point.vra.fget, Point.gap.fget, Point.ratio.fget)


@dataclass(frozen=True)
class Difference:
    """One group's points minus another's, over all pairs of one draw and one network where both have one.

    pairs: (draw, difference).
    """

    pairs: tuple[tuple[int | None, float], ...]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.pairs]

    @property
    def mean(self) -> float:
        """Of all pairs; there must be some."""
        return statistics.fmean(self.values)

    def by_draw(self) -> dict[int | None, float]:
        """Mean of each draw."""
        draws = dict.fromkeys(draw for draw, _ in self.pairs)
        return {draw: statistics.fmean(v for d, v in self.pairs if d == draw) for draw in draws}

    @property
    def sign(self) -> int:
        """1 or -1 where every pair of several draws has it, else 0: what could be told apart."""
        if len(self.by_draw()) < LEAST_DRAWS:
            return 0
        return (min(self.values) > 0) - (max(self.values) < 0)


def difference(ours: Iterable[Point], others: Iterable[Point], measure: Measure) -> Difference:
    """Paired by draw and by network."""
    others = tuple(others)
    return Difference(
        tuple(
            (one.draw if one.draw is not None else other.draw, measure(one) - measure(other))
            for one in ours
            for other in others
            if _fit(one.draw, other.draw) and _fit(one.net, other.net)
        )
    )


def _fit(one: object, other: object) -> bool:
    return one is None or other is None or one == other


@dataclass(frozen=True)
class Broad:
    """All draws of a count of classes, restricted: means over draws and networks, per cent; quartiles of VRA."""

    classes: int
    clean: float
    vra: float
    low: float
    high: float
    median: float


@dataclass(frozen=True)
class Evidence:
    """Everything the page is computed from.

    planned, points: by arm and count of classes. broad: by count, every one that the check has. draws: of the check.
    """

    radius: str
    guarantee: str
    planned: dict[str, dict[int, tuple[TrainConfig, ...]]]
    points: dict[str, dict[int, tuple[Point, ...]]]
    broad: dict[int, Broad]
    draws: int

    def at(self, arm: str, classes: int) -> tuple[Point, ...]:
        return self.points[arm].get(classes, ())

    @property
    def counts(self) -> list[int]:
        """Of classes, in order."""
        return sorted(self.planned[IMAGES])

    @property
    def few(self) -> int:
        return self.counts[0]

    @property
    def many(self) -> int:
        return self.counts[-1]

    def fall(self, arm: str, measure: Measure) -> Difference:
        """From the fewest classes to all of them."""
        return difference(self.at(arm, self.few), self.at(arm, self.many), measure)

    def cells(self) -> list[tuple[int, str]]:
        """(classes, arm) of every kind of network, those that two arms share once."""
        found = []
        for classes in self.counts:
            found += [(classes, RESTRICTED)] if classes < self.many else []
            found += [(classes, IMAGES)]
            other = self.planned[TOTAL].get(classes, ())
            found += [(classes, TOTAL)] if other and other != self.planned[IMAGES][classes] else []
        return found

    def name(self, classes: int, arm: str) -> str:
        """`trained, 250 of a class`."""
        if arm == RESTRICTED:
            return arm
        return f"trained, {matrices.training_images(self.planned[arm][classes][0]) // classes} of a class"

    def records(self) -> list[Record]:
        """Of all trained networks, each once."""
        trained = (p.record for arm in (IMAGES, TOTAL) for each in self.points[arm].values() for p in each)
        return list({record.id: record for record in trained}.values())

    def missing(self) -> list[tuple[str, int, int]]:
        """Commands of what was not run or in part: command, what there is, what was planned."""
        known, found = {record.id for record in self.records()}, []
        for name in (WHOLE, SUBSETS, FEWER):
            cells = _cells(matrices.FOLDER / f"{name}.yaml")
            done = sum(cell.run_id() in known for cell in cells)
            found.append((f"lipcert study notebooks/params/study/{name}.yaml", done, len(cells)))
        runs = [cell.run_id() for cell in self.planned[IMAGES][self.many]]
        restricted = {point.net for point in self.at(RESTRICTED, self.few)}
        found.append((f"python -m benchmarks.class_restriction {' '.join(runs)}", len(restricted), len(runs)))
        return [each for each in found if each[1] < each[2] or not each[2]]


def load(radius: "Radius | str" = "36/255", guarantee: str = "executed") -> Evidence:
    """What was published, at one radius and with one guarantee."""
    records = records_by_id(load_records())
    whole, subsets, fewer = (_cells(matrices.FOLDER / f"{name}.yaml") for name in (WHOLE, SUBSETS, FEWER))
    # Where the fixed total is all the images there are, the two series are one.
    size = fewer[0].train_images if fewer else None
    shared = tuple(cell for cell in subsets if matrices.training_images(cell) == size)
    planned = {IMAGES: _by_classes(subsets + whole), TOTAL: _by_classes(shared + fewer)}
    points: dict[str, dict[int, tuple[Point, ...]]] = {}
    for arm, cells in planned.items():
        found = {n: [_trained(record_of(cell, records), radius, guarantee) for cell in cells[n]] for n in cells}
        points[arm] = {n: tuple(filter(None, each)) for n, each in found.items()}
    comparable = guarantee == "executed" and all(Radius(radius) == Radius(cell.radius) for cell in whole)
    nets = {p.record.id: p for each in points[IMAGES].values() for p in each if p.draw is None} if comparable else {}
    points[RESTRICTED] = _restricted(nets)
    check = find_check(CHECK)
    draws = int(check.numbers.get("draws", 0)) if check else 0
    return Evidence(str(radius), guarantee, planned, points, _broad(nets), draws)


@functools.cache
def _cells(path: Path) -> tuple[TrainConfig, ...]:
    return load_study(path).cells if path.exists() else ()


def _by_classes(cells: Sequence[TrainConfig]) -> dict[int, tuple[TrainConfig, ...]]:
    counts = sorted({matrices.classes(cell) for cell in cells})
    return {count: tuple(cell for cell in cells if matrices.classes(cell) == count) for count in counts}


def _trained(record: Record | None, radius: "Radius | str", guarantee: str) -> Point | None:
    result = record.result(radius, guarantee) if record else None
    if result is None:
        return None
    draw = None if record.config.classes is None else record.config.class_seed
    test = record.test
    return Point(record.data.classes, test.images, test.clean, result.certified_correct, draw, None, record)


def _restricted(nets: dict[str, Point]) -> dict[int, tuple[Point, ...]]:
    """The draws that networks are trained on, of every network in the check; with all classes its own record."""
    counts: dict[tuple[int, str, int], dict[str, int]] = {}
    for key, value in _numbers().items():
        match = re.fullmatch(r"(.+); (\d+) classes; seed (\d+); (images|right|certified)", key)
        if match and match[1] in nets:
            counts.setdefault((int(match[2]), match[1], int(match[3])), {})[match[4]] = int(value)
    found: dict[int, list[Point]] = {}
    for (classes, net, draw), one in sorted(counts.items()):
        found.setdefault(classes, []).append(Point(classes, draw=draw, net=net, **one))
    for net in dict.fromkeys(net for _, net, _ in counts):
        own = nets[net]
        found.setdefault(own.classes, []).append(Point(own.classes, own.images, own.right, own.certified, net=net))
    return {classes: tuple(each) for classes, each in found.items()}


def _broad(nets: dict[str, Point]) -> dict[int, Broad]:
    found: dict[int, dict[str, list[float]]] = {}
    for key, value in _numbers().items():
        match = re.fullmatch(r"(.+); (\d+) classes; (clean|vra|vra, low|vra, high|median distance)", key)
        if match and match[1] in nets:
            found.setdefault(int(match[2]), {}).setdefault(match[3], []).append(float(value))
    broad = {}
    for classes, each in sorted(found.items()):
        means = {what: statistics.fmean(values) for what, values in each.items()}
        shares = (100 * means[what] for what in ("clean", "vra", "vra, low", "vra, high"))
        broad[classes] = Broad(classes, *shares, means["median distance"])
    return broad


def _numbers() -> dict[str, float | int | str]:
    check = find_check(CHECK)
    return check.numbers if check else {}


def looks(points: Iterable[Point], images: int) -> tuple[Point, ...]:
    """Trained networks as they were after so many images seen, by the run's own radius, executed in float64."""
    found = []
    for point in points:
        for look in point.record.training.snapshots if point.record else ():
            if look.images == images:
                counts = (point.images, look.clean, look.certified_correct)
                found.append(Point(point.classes, *counts, point.draw, None, point.record))
    return tuple(found)
