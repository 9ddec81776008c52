"""The figures of the page on limits: VRA over operations with its band, the bound from distances over the radius."""

import math
from typing import TYPE_CHECKING

import numpy as np

from lipcert.report.limits import Ceiling, Cell, Found, Interval, Published, ceiling
from lipcert.report.limits_distances import Bound, best_here, best_published, bound_words, bounds
from lipcert.report.limits_words import BEYOND, fit_words, not_run, published_words
from lipcert.report.names import DATASETS
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = ("what", "name", "parameters", "images", "operations", "vra", "low", "high")
_CURVE = 48  # places at which the fit is drawn
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5)


# -------------------------------------------------------------------------------------------------------------- scaling
def scaling_figure(found: Found) -> "Figure | Markdown":
    """VRA over operations of training: networks, fit with its band, and the published numbers farther out."""
    if not found.fitted:
        return not_run(found)
    figure, axes = canvas(WIDTH, 4.0)
    rows: list[tuple] = []
    if (fit := ceiling(found.fitted)) is not None:
        rows += _draw_fit(axes, fit, found.fitted)
    hollow = {"markerfacecolor": "none", "linestyle": "none", "markersize": 7}
    filled = {"color": BLUE, "marker": "o", "markersize": 7}
    _draw_cells(axes, found.fitted, filled | {"label": "this study, fitted recipe"})
    _draw_cells(axes, found.others, hollow | {"color": GREEN, "marker": "s", "label": "this study, other recipes"})
    rows += [_cell_row("fitted", cell) for cell in found.fitted] + [_cell_row("other", cell) for cell in found.others]
    for generated, marker, label in ((False, "D", "published"), (True, "^", "published, generated images")):
        points = [each for each in found.published if each.generated == generated]
        style = hollow | {"color": VERMILLION, "marker": marker}
        if points:
            axes.plot(*zip(*map(_place, points), strict=True), **style, label=label)
    rows += [_published_row(each) for each in found.published]
    _decades(axes, [float(row[4]) for row in rows])
    axes.set(xlabel="operations of training, counted", ylabel=f"VRA at {found.radius}, % of test images")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = (
        f"VRA on {DATASETS[found.dataset]} at {found.radius} over the operations of training. "
        f"{fit_words(found)} {published_words(found)}"
    )
    return finish(f"limits-{found.dataset}", figure, alt, _HEAD, rows)


def _decades(axes: "Axes", values: list[float]) -> None:
    """A logarithmic axis with a tick every decade, as plain text."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    powers = range(first, last + 1)
    axes.set_xscale("log")
    axes.set_xticks([10.0**k for k in powers], ["10" + str(k).translate(_RAISED) for k in powers])
    axes.set_xticks([], minor=True)


def _draw_fit(axes: "Axes", fit: Ceiling, cells: tuple[Cell, ...]) -> list[tuple]:
    """Curve and band: solid over the runs, dashed and paler up to BEYOND times the largest."""
    ends = [end(cell.operations for cell in cells) for end in (min, max)]
    parts = ((ends[0], ends[1], "-", 0.22, "fit, 95 % band"), (ends[1], BEYOND * ends[1], "--", 0.10, None))
    rows = []
    for low, high, dash, alpha, label in parts:
        x = np.geomspace(low, high, _CURVE)
        y: list[Interval] = [fit.at(value) for value in x]
        axes.plot(x, [each.value for each in y], dash, color=BLUE, linewidth=1.8, label=label)
        axes.fill_between(x, [e.low for e in y], [e.high for e in y], color=BLUE, alpha=alpha, linewidth=0)
        kind = "fit" if label else "fit, beyond the runs"
        rows += [
            (kind, "", "", "", f"{place:.4g}", f"{e.value:.3f}", f"{e.low:.3f}", f"{e.high:.3f}")
            for place, e in zip(x, y, strict=True)
        ]
    return rows


def _draw_cells(axes: "Axes", cells: tuple[Cell, ...], style: dict) -> None:
    """A marker at the mean, a line over the seeds."""
    if not cells:
        return
    axes.plot([c.operations for c in cells], [c.vra for c in cells], **{"linestyle": "none"} | style)
    for cell in cells:
        if len(cell.shares) > 1:
            axes.plot([cell.operations] * 2, [min(cell.shares), max(cell.shares)], color=style["color"], linewidth=1.4)


def _cell_row(kind: str, cell: Cell) -> tuple:
    size = (cell.parameters, cell.images, f"{cell.operations:.4g}")
    shares = (cell.vra, min(cell.shares), max(cell.shares))
    return (f"this study, {kind}", cell.network, *size, *(f"{share:.3f}" for share in shares))


def _published_row(each: Published) -> tuple:
    kind = "published, generated images" if each.generated else "published"
    return (kind, each.row.model, "", each.images, f"{each.operations:.4g}", each.row.value, "", "")


def _place(each: Published) -> tuple[float, float]:
    return each.operations, float(each.row.value)


# ------------------------------------------------------------------------------------------------------------ distances
def bound_figure(found: Found) -> "Figure | Markdown":
    """The bound from distances over the radius, with what networks reach."""
    everywhere = bounds(found.dataset, "l2")
    if not everywhere:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.6)
    shown: list[Bound] = [bound for bound in everywhere if bound.radius.exact > 0]
    x = [float(bound.radius) for bound in shown]
    axes.plot(x, [bound.above for bound in shown], "-", color=BLUE, linewidth=1.8, label="no classifier above")
    style = {"color": FAINT, "linewidth": 1.4}
    axes.plot(x, [bound.reached for bound in shown], "--", **style, label="one that knows the test set")
    rows = [("bound", bound.radius, f"{bound.above:.4f}", f"{bound.reached:.4f}") for bound in shown]
    marks = (
        ("best of this study", "o", BLUE, best_here(found)),
        ("best published", "D", VERMILLION, best_published(found.dataset)),
    )
    for label, marker, colour, best in marks:
        points = [(bound.radius, best[bound.radius]) for bound in shown if bound.radius in best]
        if points:
            look = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
            look |= {"markerfacecolor": "none"} if marker == "D" else {}
            axes.plot([float(r) for r, _ in points], [v for _, v in points], **look, label=label)
        rows += [(label, radius, f"{value:.4f}", "") for radius, value in points]
    axes.set_xscale("log")
    axes.set_xticks(ticks := [t for t in _TICKS if x[0] <= t <= x[-1]], [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set(ylim=(0, 104), xlabel="ℓ₂ radius, pixels in [0, 1]", ylabel="VRA, % of test images")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    words = bound_words(found).replace("*", "")
    alt = f"What distances between test images of {DATASETS[found.dataset]} allow. {words}"
    return finish(f"limits-distances-{found.dataset}", figure, alt, ("what", "radius", "vra", "reached"), rows)
