"""The page on class count in figures: accuracies, their ratio, and distances from the boundary, over classes."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lipcert.radius import Radius
from lipcert.report.class_count_margins import PARTS, known, margins, quantile
from lipcert.report.class_count_runs import (
    ARMS,
    IMAGES,
    RESTRICTED,
    TOTAL,
    Broad,
    Evidence,
    Measure,
    clean,
    ratio,
    vra,
)
from lipcert.report.class_count_tables import difficulty_words, mean, short
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {RESTRICTED: (GREEN, "D", ":"), IMAGES: (BLUE, "o", "-"), TOTAL: (VERMILLION, "s", "--")}
_SHIFT = {RESTRICTED: 0.97, IMAGES: 1.0, TOTAL: 1.03}  # so that ranges at one count do not lie on each other
_COUNTS = ((BLUE, "o", "-"), (GREEN, "D", "-."), (PURPLE, "^", "--"), (VERMILLION, "s", ":"))  # few classes first
_HEAD = ("networks", "classes", "draw", "network", "images", "right", "certified")


def accuracy_figure(evidence: Evidence) -> "Figure | Markdown":
    """Clean accuracy (hollow) and VRA (filled) over the number of classes, one colour an arm; bars are ranges."""
    alt = "Clean accuracy, hollow, and VRA, filled, over the number of classes."
    return _draw(evidence, "class-count", (clean, vra), "share of test images, %", alt)


def ratio_figure(evidence: Evidence) -> "Figure | Markdown":
    """VRA / clean over the number of classes."""
    return _draw(
        evidence, "class-count-ratio", (ratio,), "VRA / clean", "VRA over clean accuracy by number of classes."
    )


def _draw(evidence: Evidence, name: str, measures: Sequence[Measure], label: str, alt: str) -> "Figure | Markdown":
    arms = [arm for arm in ARMS if any(evidence.points[arm].values())]
    if not arms:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.6 if len(measures) > 1 else 2.9)
    for arm in arms:
        for measure in measures:
            _line(axes, evidence, arm, measure)
    ticks = sorted({*evidence.counts, *(evidence.broad if RESTRICTED in arms else ())})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set(xlabel="classes", ylabel=label)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=1, labelcolor=INK, fontsize=9.5, frameon=False)
    rows = [
        (ARMS[arm], n, "" if p.draw is None else p.draw, p.net or p.record.id, p.images, p.right, p.certified)
        for arm in arms for n, points in sorted(evidence.points[arm].items()) for p in points
    ]  # fmt: skip
    return finish(name, figure, f"{alt} {_said(evidence, arms, measures)}", _HEAD, rows)


def _line(axes: "Axes", evidence: Evidence, arm: str, measure: Measure) -> None:
    colour, marker, dash = _STYLES[arm]
    points = {n: [measure(p) for p in each] for n, each in sorted(evidence.points[arm].items()) if each}
    curve = _curve(evidence, arm, measure)
    style = {"color": colour, "marker": marker, "linestyle": dash, "linewidth": 1.6, "markersize": 5.5}
    style |= {"markerfacecolor": "none"} if measure is clean else {"label": ARMS[arm]}
    axes.plot([n * _SHIFT[arm] for n in curve], list(curve.values()), **style)
    for n, values in points.items():
        axes.plot([n * _SHIFT[arm]] * 2, [min(values), max(values)], color=colour, linewidth=3.5, alpha=0.35)


def _curve(evidence: Evidence, arm: str, measure: Measure) -> dict[int, float]:
    """The mean at every count, ascending."""
    found = {n: mean(points, measure) for n, points in evidence.points[arm].items() if points}
    if arm == RESTRICTED:  # all draws of the check, and counts that nothing was trained at
        found |= {n: _broad(each, measure) for n, each in evidence.broad.items() if n < evidence.many}
    return dict(sorted(found.items()))


def _broad(each: Broad, measure: Measure) -> float:
    return {clean: each.clean, vra: each.vra}.get(measure, each.vra / each.clean if each.clean else 0.0)


def _said(evidence: Evidence, arms: Sequence[str], measures: Sequence[Measure]) -> str:
    names = {clean: ("clean", 1), vra: ("VRA", 1), ratio: ("", 3)}
    parts = []
    for arm in arms:
        curves = {measure: _curve(evidence, arm, measure) for measure in measures}
        places = ", ".join(
            f"{n} classes {' and '.join(f'{names[m][0]} {curves[m][n]:.{names[m][1]}f}'.strip() for m in measures)}"
            for n in curves[measures[0]]
        )
        parts.append(f"{ARMS[arm].capitalize()}: {places}.")
    return " ".join(parts)


def difficulty_figure(evidence: Evidence) -> "Figure | Markdown":
    """VRA / clean over clean accuracy, one marker a network, colour and shape by the number of classes."""
    cells = [(n, arm, evidence.at(arm, n)) for n, arm in evidence.cells() if evidence.at(arm, n)]
    if not cells:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.3)
    styles = dict(zip(evidence.counts, _COUNTS, strict=False))
    for n, arm, points in cells:
        colour, marker, _ = styles[n]
        look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
        look |= {IMAGES: {"label": f"{n} classes"}, TOTAL: {"markerfacecolor": "none"}}.get(arm, {"markersize": 2})
        axes.plot([p.clean for p in points], [p.ratio for p in points], **look)
    axes.set(xlabel="clean accuracy, %", ylabel="VRA / clean")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = (
        f"VRA over clean accuracy against clean accuracy, one marker a network: filled with {short(IMAGES)}, hollow "
        f"with {short(TOTAL)}, small where restricted. {difficulty_words(evidence)}"
    )
    rows = [
        (ARMS[arm], n, "" if p.draw is None else p.draw, p.net or p.record.id, f"{p.clean:.4f}", f"{p.ratio:.6f}")
        for n, arm, points in cells for p in points
    ]  # fmt: skip
    head = ("networks", "classes", "draw", "network", "clean_percent", "vra_over_clean")
    return finish("class-count-difficulty", figure, alt.replace("*", ""), head, rows)


def distance_figure(evidence: Evidence, arm: str = IMAGES) -> "Figure | Markdown":
    """Share of the test images farther from every boundary of their label than a distance, one line a count."""
    found = {n: known(evidence.at(arm, n)) for n in evidence.counts}
    found = {n: points for n, points in found.items() if points}
    if not found:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.3)
    share = [100 - 100 * part / PARTS for part in range(PARTS + 1)]
    rows = []
    for (n, points), (colour, marker, dash) in zip(found.items(), _COUNTS, strict=False):
        x = [statistics.fmean(column) for column in zip(*(margins(p).quantiles for p in points), strict=True)]
        style = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 3.5, "linewidth": 1.6}
        axes.plot(x, share, **style, label=f"{n} classes")
        rows += [
            (n, p.record.id, f"{100 - y:g}", value)
            for p in points for y, value in zip(share, margins(p).quantiles, strict=True)
        ]  # fmt: skip
    radius = float(Radius(evidence.radius))
    for place, label in ((0.0, "right"), (radius, evidence.radius)):
        axes.axvline(place, color=FAINT, linestyle=":", linewidth=1.2)
        axes.annotate(label, (place, 100), (3, -9), textcoords="offset points", color=INK, fontsize=9.5)
    ends = [margins(p).quantiles for points in found.values() for p in points]
    axes.set_xlim(statistics.median(q[1] for q in ends), max(q[-2] for q in ends))
    axes.set(
        xlabel="distance from the nearest boundary of the label, pixels", ylabel="test images farther, %", ylim=(0, 100)
    )
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    medians = "; ".join(f"{n} classes {mean(points, quantile(50)):.3f}" for n, points in found.items())
    alt = f"Share of the test images farther from the boundary than a distance, {short(arm)}. Median: {medians}."
    return finish("class-count-distances", figure, alt, ("classes", "run", "percent", "distance"), rows)
