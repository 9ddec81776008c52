"""The page on losses: how each gets there, in images seen; proven at the snapshots, and by estimate at the notes.

A note (`lipcert.threats`) looks at training images with the power method's constants: finer, and no certificate.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from lipcert.record import Record
from lipcert.report.loss_study import (
    EMMA,
    EVEN,
    FEW,
    GLORO,
    NOT_RUN,
    Arm,
    LossStudy,
    listed,
    remark,
    runs_word,
    verdict,
)
from lipcert.report.loss_study_vra import legend
from lipcert.report.speed_runs import Point, Reached, curve, reached
from lipcert.report.svg import BLUE, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

SHARE = 0.9  # of the lower of the ends of EMMA and GloRo: what images are counted to
FASTER, SLOWER = "faster", "slower"
ORANGE, SKY = "#E69F00", "#56B4E9"
# Colour, marker and dash of a loss, in the order of the study files.
LINES = (
    (BLUE, "o", "-"), (SKY, "s", "--"), (VERMILLION, "D", "-"), (ORANGE, "^", "--"), (GREEN, "v", "-."),
    (PURPLE, "P", ":"), (INK, "X", (0, (4, 1, 1, 1, 1, 1))),
)  # fmt: skip


def noted(run: Record) -> list[Point]:
    """What every note says of its sample of training images, per cent: right, and certified by estimate."""
    return [
        Point(note.images, math.nan, 100 * note.right / note.sample, 100 * note.certified_estimated / note.sample)
        for note in run.training.threats
    ]


# Kinds of curve: how they come from a run, and what their VRA is worth.
KINDS: dict[str, tuple[Callable[[Record], list[Point]], str]] = {
    "proven": (curve, "proven VRA, % of test images"),
    "estimated": (noted, "estimated VRA, % of training images"),
}


def line_of(study: LossStudy, title: str) -> tuple:
    """Colour, marker and dash of a loss."""
    return LINES[study.titles.index(title) % len(LINES)]


def mean_curve(arm: Arm, kind: str) -> list[Point]:
    """The mean over all runs of an arm, at the images where all were looked at; empty where a run is missing."""
    if not arm.complete:
        return []
    curves = [{point.images: point for point in KINDS[kind][0](run)} for run in arm.runs.values()]
    shared = sorted(set.intersection(*map(set, curves)))
    return [
        Point(
            images, math.nan, *(statistics.fmean(getattr(c[images], key) for c in curves) for key in ("clean", "vra"))
        )
        for images in shared
    ]


# ------------------------------------------------------------------------------------------------------ images to a VRA
def goal(study: LossStudy, classes: int, kind: str) -> float | None:
    """`SHARE` of the lower of the ends of EMMA and GloRo, per cent; None where one of them is not there."""
    ends = [points[-1].vra for title in (EMMA, GLORO) if (points := mean_curve(study.arm(classes, title), kind))]
    return round(SHARE * min(ends), 1) if len(ends) == 2 and min(ends) > 0 else None


def arrivals(study: LossStudy, classes: int, kind: str) -> dict[str, Reached]:
    """When the mean curve of every loss passes the goal."""
    if (aim := goal(study, classes, kind)) is None:
        return {}
    curves = {arm.title: mean_curve(arm, kind) for arm in study.at(classes)}
    return {title: reached(points, aim) for title, points in curves.items() if points}


def image_ratios(study: LossStudy, classes: int, title: str, kind: str = "estimated") -> list[float]:
    """Images that a loss needs over those of EMMA, every pair, to `SHARE` of the lower of the pair's two ends."""
    mine, base = (study.arm(classes, name).runs for name in (title, EMMA))
    found = []
    for pair in sorted(mine.keys() & base.keys()):
        curves = [KINDS[kind][0](runs[pair]) for runs in (mine, base)]
        if all(curves) and (aim := SHARE * min(points[-1].vra for points in curves)) > 0:
            own, emma = (reached(points, aim).images for points in curves)
            found.append(own / emma)
    return found


def speed(study: LossStudy, classes: int, title: str) -> str:
    """Whether a loss gets there faster than EMMA, by the pairs' ratios."""
    return verdict([math.log(ratio) for ratio in image_ratios(study, classes, title)], SLOWER, FASTER)


def images_table(study: LossStudy) -> Markdown:
    """Images seen until a given VRA, proven and by estimate, beside EMMA's."""
    columns = [(classes, kind) for classes in study.counts for kind in KINDS]
    found = {column: arrivals(study, *column) for column in columns}
    if not any(found.values()):
        return Markdown("")
    rows = [(title, *(_images(study, title, column, found[column]) for column in columns)) for title in study.titles]
    heads = []
    for classes, kind in columns:
        aim = goal(study, classes, kind)
        heads.append(f"{classes} classes, {kind}" + ("" if aim is None else f", to {aim:g} %"))
    return table(("loss", *heads), rows, right=range(1, 1 + len(heads)))


def _images(study: LossStudy, title: str, column: tuple[int, str], found: dict[str, Reached]) -> str:
    arm, arrival = study.arm(column[0], title), found.get(title)
    if arrival is None:
        return "in part" if arm.runs and not arm.complete else NOT_RUN
    if not arrival.passed:
        return f"not within {arrival.images:,.0f}"
    emma = found[EMMA]
    return f"{arrival.images:,.0f}" + (
        "" if title == EMMA else f" ({arrival.images / emma.images:.2f}\N{NO-BREAK SPACE}×)"
    )


def images_words(study: LossStudy) -> Markdown:
    """How the goals were set, and what the pairs tell apart."""
    lines = []
    for classes in study.counts:
        sides: dict[str, list[str]] = {FASTER: [], SLOWER: [], EVEN: [], FEW: [], NOT_RUN: []}
        for title in study.rivals:
            ratios = image_ratios(study, classes, title)
            sides[speed(study, classes, title)].append(
                remark(title, f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f} ×") if ratios else title
            )
        if any(sides[word] for word in (FASTER, SLOWER, EVEN)):
            lines.append(
                f"At {classes} classes, pair by pair, faster than EMMA: {listed(sides[FASTER])}; slower: "
                f"{listed(sides[SLOWER])}; not told apart: {listed(sides[EVEN])}."
            )
    if not lines:
        return Markdown("Images to a given VRA need all runs of EMMA and of GloRo: **not run**.")
    return Markdown(
        f"Images are counted to {100 * SHARE:g} % of the lower of the two ends of EMMA and GloRo, on straight lines "
        "between looks; × is beside EMMA. *Proven* has few looks, so it is coarse; *estimated* is of training images, "
        "by the power method's constants: finer, and no certificate. A verdict takes the estimated curves of every "
        f"pair, each with a goal of its own. {' '.join(lines)}"
    )


# ---------------------------------------------------------------------------------------------------------- the figures
def curve_figure(study: LossStudy, classes: int, kind: str = "proven") -> "Figure | Markdown":
    """VRA over images seen, a line a loss of which all runs were made: the mean over its runs."""
    curves = {arm.title: points for arm in study.at(classes) if (points := mean_curve(arm, kind))}
    if not curves:
        return Markdown("")
    figure, axes = canvas(WIDTH, 4.0)
    for title, points in curves.items():
        draw_line(study, axes, title, [point.images for point in points], [point.vra for point in points])
    axes.set(xlabel="images seen, thousands", ylabel=KINDS[kind][1], title=f"{classes} classes")
    axes.title.set(fontsize=11, color=INK)
    axes.set_xlim(left=0)
    axes.grid()
    legend(figure, axes, 2)
    rows = [
        (arm.title, *pair, point.images, f"{point.clean:.4f}", f"{point.vra:.4f}")
        for arm in study.at(classes)
        for pair, run in arm.runs.items()
        for point in KINDS[kind][0](run)
    ]
    alt = f"{KINDS[kind][1].replace('%', 'per cent')}, over the images seen, {classes} classes. " + _climbs(curves)
    return finish(f"losses-{kind}-{classes}", figure, alt, ("loss", "draw", "seed", "images", "clean", "vra"), rows)


def draw_line(study: LossStudy, axes, title: str, images: Sequence[float], values: Sequence[float]) -> None:
    """One loss over thousands of images."""
    colour, marker, dash = line_of(study, title)
    style = {"marker": marker, "markersize": 4.5, "color": colour, "linewidth": 1.5, "label": title}
    axes.plot([count / 1e3 for count in images], values, linestyle=dash, **style)


def _climbs(curves: dict[str, list[Point]]) -> str:
    said = [
        f"{title} from {points[0].vra:.1f} to {points[-1].vra:.1f}"
        for title, points in sorted(curves.items(), key=lambda item: -item[1][-1].vra)
    ]
    return f"From {next(iter(curves.values()))[0].images:,} images to the end: {', '.join(said)}."


def curve_words(study: LossStudy, kind: str = "proven") -> Markdown:
    """The curves in words: who leads at the first look and who at the last."""
    said = []
    for classes in study.counts:
        curves = {arm.title: points for arm in study.at(classes) if (points := mean_curve(arm, kind))}
        if len(curves) < 2:
            continue
        leaders = [max(curves, key=lambda title, place=place: curves[title][place].vra) for place in (0, -1)]
        first, last = (curves[title][place] for title, place in zip(leaders, (0, -1), strict=True))
        units = runs_word(study.arm(classes, leaders[0]))
        begin = f"{leaders[0]} leads after {first.images:,} images ({first.vra:.1f} %)"
        end = "and" if leaders[0] == leaders[1] else f", {leaders[1]}"
        said.append(
            f"At {classes} classes, means of {units}, {begin} {end} at the end ({last.vra:.1f} %).".replace(" ,", ",")
        )
    if not said:
        return Markdown("The curves need all runs of two losses or more: **not run**.")
    radius = study.arm(study.counts[0], EMMA).config.radius
    what = f"proven at {radius} on the test images" if kind == "proven" else f"estimated at {radius} on training images"
    return Markdown(f"VRA {what}. {' '.join(said)}")
