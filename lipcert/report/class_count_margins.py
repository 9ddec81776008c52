"""The page on class count, behind the counts: distances from boundaries, rivals, constants, training images, the way.

Distances and rivals are those of `lipcert.margin_statistics`: by proven constants, but to nearest and no certificates.
"""

import statistics
from collections.abc import Iterable, Sequence

from lipcert.radius import Radius
from lipcert.record import Margins
from lipcert.report.class_count_runs import (
    IMAGES,
    RESTRICTED,
    TOTAL,
    Difference,
    Evidence,
    Measure,
    Point,
    clean,
    difference,
    looks,
    ratio,
    vra,
)
from lipcert.report.class_count_tables import NONE, mean, passes, short, spread, verdict
from lipcert.report.tables import Markdown, table

PARTS = 20  # between two of a record's quantiles lies one of so many parts of the images
_TRENDS = {1: "rises", -1: "falls", 0: "no sure sign"}


# ------------------------------------------------------------------------------------------------------------- measures
def margins(point: Point) -> Margins | None:
    """What a run's record holds of them."""
    return point.record.test.margins if point.record else None


def known(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points whose record holds margins."""
    return tuple(point for point in points if margins(point))


def quantile(percent: int) -> Measure:
    """Distance of the image at so many per cent from the nearest boundary of its label, in pixels; multiples of 5."""
    return lambda point: margins(point).quantiles[percent * PARTS // 100]


def threatened(point: Point) -> float:
    """Of the right images, per cent with a class whose boundary is nearer than the run's radius."""
    return _share(point.right - margins(point).threatening[0], point.right)


def several_threats(point: Point) -> float:
    """Of those, per cent with two or more such classes."""
    none, one = margins(point).threatening[:2]
    return _share(point.right - none - one, point.right - none)


def rivals(point: Point) -> float:
    """How many classes are the nearest to images of one label, in effect."""
    return margins(point).spread


def constant(point: Point) -> float:
    """Median of the proven margin constants K_ij over all pairs of classes."""
    return margins(point).lipschitz[2]


def _share(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def trend(evidence: Evidence, arm: str, measure: Measure) -> Difference:
    """Change of a measure from the fewest classes to all."""
    many, few = (known(evidence.at(arm, n)) for n in (evidence.many, evidence.few))
    return difference(many, few, measure)


def _trends(evidence: Evidence, what: Sequence[tuple[str, Measure, int, str]]) -> list[str]:
    """A line a series: every measure (name, itself, decimals, unit) at both ends, and whether it has a sure sign."""
    said = []
    for arm in (IMAGES, TOTAL):
        ends = [known(evidence.at(arm, n)) for n in (evidence.few, evidence.many)]
        if not all(ends):
            said.append(f"- With {short(arm)}: **{NONE}**.")
            continue
        parts = []
        for name, measure, digits, unit in what:
            few, many = (f"{mean(points, measure):.{digits}f}{unit}" for points in ends)
            parts.append(f"{name} {few} and {many} ({_TRENDS[trend(evidence, arm, measure).sign]})")
        said.append(f"- With {short(arm)}, at {evidence.few} and at {evidence.many} classes: {'; '.join(parts)}.")
    return said


def _rows(evidence: Evidence, measures: Sequence[tuple[Measure, int, str]]) -> list[tuple[object, ...]]:
    """Every kind of trained network: classes, name, measures (itself, decimals, unit) by mean and range."""
    rows = []
    for classes, arm in evidence.cells():
        if arm != RESTRICTED:
            points = known(evidence.at(arm, classes))
            cells = (spread([measure(p) for p in points], digits, unit) for measure, digits, unit in measures)
            rows.append((classes, evidence.name(classes, arm), *cells))
    return rows


# ------------------------------------------------------------------------------------------------------------ distances
def distance_table(evidence: Evidence) -> Markdown:
    """Quantiles of the distance from the nearest boundary of the label; of restricted networks the median alone."""
    rows = _rows(evidence, [(quantile(percent), 3, "") for percent in (25, 50, 75, 90)])
    for classes, broad in evidence.broad.items():
        if classes < evidence.many:
            rows.append((classes, f"restricted, {evidence.draws} draws", "", f"{broad.median:.3f}", "", ""))
    rows.sort(key=lambda row: row[0])
    return table(("classes", "network", "25 %", "median", "75 %", "90 %"), rows, right=(0, 2, 3, 4, 5))


def distance_words(evidence: Evidence) -> Markdown:
    """The median distance and that of the farthest tenth, at both ends."""
    what = [
        ("median distance", quantile(50), 3, ""),
        ("nine in ten images are nearer than", quantile(90), 3, ""),
    ]
    return Markdown("\n".join(_trends(evidence, what)))


# --------------------------------------------------------------------------------------------------------------- rivals
def rivals_table(evidence: Evidence) -> Markdown:
    """Who threatens: right images with a class nearer than the radius, how many such classes, margin constants."""
    rows = _rows(evidence, [(threatened, 1, " %"), (several_threats, 1, " %"), (rivals, 1, ""), (constant, 2, "")])
    head = ("classes", "network", "threatened", "by two or more", "rivals of a label", "median K")
    return table(head, rows, right=(0, 2, 3, 4, 5))


def rivals_words(evidence: Evidence) -> Markdown:
    """The table's ends."""
    what = [
        ("threatened of the right images", threatened, 1, " %"),
        ("by two classes or more, of those", several_threats, 1, " %"),
        ("rivals of a label", rivals, 1, ""),
        ("median constant", constant, 2, ""),
    ]
    return Markdown("\n".join(_trends(evidence, what)))


def constants_table(evidence: Evidence) -> Markdown:
    """Proven margin constants K_ij over the pairs of classes: quantiles, means over the draws."""
    rows = []
    for classes, arm in evidence.cells():
        if arm != RESTRICTED:
            found = [margins(p).lipschitz for p in known(evidence.at(arm, classes))]
            cells = [f"{statistics.fmean(column):.3f}" for column in zip(*found, strict=True)][1:] or [NONE] * 4
            rows.append((classes, evidence.name(classes, arm), *cells))
    head = ("classes", "network", "K at 25 %", "median", "75 %", "largest")
    return table(head, rows, right=(0, 2, 3, 4, 5))


# ------------------------------------------------------------------------------------------------------ training images
def on_training(points: Iterable[Point]) -> tuple[Point, ...]:
    """The same networks on a sample of their training images at the end; what they certify there is an estimate."""
    found = []
    for point in points:
        if point.record and point.record.training.threats:
            note = point.record.training.threats[-1]
            counts = (note.sample, note.right, note.certified_estimated)
            found.append(Point(point.classes, *counts, point.draw, None, point.record))
    return tuple(found)


def fit_table(evidence: Evidence) -> Markdown:
    """Passes over the training images, and what is right and certified of them."""
    rows = []
    for classes, arm in evidence.cells():
        if arm != RESTRICTED:
            points = on_training(evidence.at(arm, classes))
            cells = (spread([m(p) for p in points], 1, " %") for m in (clean, vra))
            often = f"{passes(evidence, arm, classes):g}"
            rows.append((classes, evidence.name(classes, arm), often, *cells, spread([p.ratio for p in points], 3)))
    head = ("classes", "network", "passes", "right", "VRA, estimated", "VRA / clean")
    return table(head, rows, right=(0, 2, 3, 4, 5))


def fit_words(evidence: Evidence) -> Markdown:
    """Whether the certified share falls on training images too."""
    said = []
    for arm in (IMAGES, TOTAL):
        few, many = (on_training(evidence.at(arm, n)) for n in (evidence.few, evidence.many))
        there, here = difference(few, many, ratio), evidence.fall(arm, ratio)
        if not (there.pairs and here.pairs):
            said.append(f"- With {short(arm)}: **{NONE}**.")
            continue
        word = {1: "falls", -1: "rises", 0: "has no sure sign"}[there.sign]
        said.append(
            f"- With {short(arm)} the certified share of the right training images {word}: {mean(few, ratio):.3f} at "
            f"{evidence.few} classes, {mean(many, ratio):.3f} at {evidence.many}, a change of {-there.mean:+.3f} "
            f"against {-here.mean:+.3f} on test images."
        )
    return Markdown("\n".join(said))


# -------------------------------------------------------------------------------------------------------------- the way
def looks_at(evidence: Evidence) -> list[int]:
    """Images seen at the looks that some network of every count has, the end left out; none at another radius."""
    points = [p for arm in (IMAGES, TOTAL) for each in evidence.points[arm].values() for p in each]
    own = all(Radius(p.record.config.radius) == Radius(evidence.radius) for p in points)
    if evidence.guarantee != "executed" or not own:
        return []
    return sorted({look.images for p in points for look in p.record.training.snapshots if look.images < _end(p)})


def _end(point: Point) -> int:
    return point.record.training.images


def looks_table(evidence: Evidence) -> Markdown:
    """The falls as they were after fewer images: whether the answer depends on the length of the runs."""
    rows = []
    for arm in (IMAGES, TOTAL):
        few, many = (evidence.at(arm, n) for n in (evidence.few, evidence.many))
        stages = [(images, looks(few, images), looks(many, images)) for images in looks_at(evidence)]
        stages += [(_end(few[0]), few, many)] if few and many else []
        for images, before, after in stages:
            falls = [difference(before, after, measure) for measure in (clean, vra, ratio)]
            if falls[0].pairs:
                cells = (spread(f.values, digits) for f, digits in zip(falls, (1, 1, 3), strict=True))
                rows.append((f"{images:,}", short(arm), *cells, verdict(falls[2])))
    if not rows:
        return Markdown(f"Looks on the way: **{NONE}**.")
    head = ("images seen", "series", "clean falls", "VRA falls", "VRA / clean falls", "in proportion")
    return table(head, rows, right=(0, 2, 3, 4))
