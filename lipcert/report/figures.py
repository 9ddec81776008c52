"""The study's figures: published numbers beside ours, VRA over the radius, training curves.

Each function that draws has one that says the same in words.
"""

import csv
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lipcert.paths import local_dir, results_dir
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.labels import place_labels
from lipcert.report.names import data_name, labelled, network_name
from lipcert.report.published import Comparison, compare, load_published
from lipcert.report.scoreboard import cut, row_name
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import NOTHING, Markdown, by_radii, study_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"l2": "o", "linf": "s", "": "D"}
# Colour and marker of a curve, and the marker as text for its label.
_LINES = ((BLUE, "o", "●"), (VERMILLION, "s", "■"), (GREEN, "D", "◆"), (PURPLE, "P", "✚"))
_PEERS = {
    "cifar10": {
        "liresnet-fork_cifar10-small-shipped-checkpoint_cifar10": ("^", "△ public 0.8 M net"),
        "liresnet-fork_cifar10-small-stride-1_cifar10": ("v", "▽ stride-1 variant"),
    }
}  # data set -> beginnings of published ids with marker and label


def key_figure() -> "Figure | Markdown":
    """One row per published number that was measured again: hollow is the paper's, filled is ours."""
    comparisons = [c for c in compare(load_records()) if c.ours]
    if not comparisons:
        return Markdown("No published number has been measured again yet, so there is nothing to draw.")
    figure, axes = canvas(WIDTH, 0.9 + 0.5 * len(comparisons))
    values = [float(c.row.value) for c in comparisons] + [v for c in comparisons for v in c.ours]
    low, high = max(min(values) - 6, 0), min(max(values) + 6, 100)
    for y, c in enumerate(comparisons):
        _comparison_row(axes, -y, c, (low + high) / 2)
    axes.set(ylim=(0.75 - len(comparisons), 0.75), yticks=[], xlabel="share of test images, %")
    axes.set_xlim(low, high)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    rows = [
        (c.row.id, c.row.model, c.row.dataset, c.row.radius, c.row.value, f"{c.mean:.2f}", c.status)
        for c in comparisons
    ]
    alt = "Published numbers (hollow) and ours (filled), in per cent of test images. " + "; ".join(
        f"{_row_name(c)}: paper {c.row.value}, ours {c.mean:.2f}" for c in comparisons
    )
    head = ("id", "model", "dataset", "radius", "paper_percent", "ours_percent", "status")
    return finish("key-figure", figure, alt + ".", head, rows)


def _row_name(c: Comparison) -> str:
    what = "clean accuracy" if c.row.metric == "clean" else f"VRA at {c.row.radius}"
    return f"{row_name(c.row)}, {what}{cut(c, ', ')}"


def _comparison_row(axes: "Axes", y: float, c: Comparison, middle: float) -> None:
    paper, marker = float(c.row.value), _MARKERS[c.row.norm]
    axes.text(0.0, y + 0.2, _row_name(c), transform=axes.get_yaxis_transform(), va="bottom", color=INK)
    axes.plot([paper, c.mean], [y, y], color=FAINT, linewidth=1.2, zorder=1)
    axes.plot([min(c.ours), max(c.ours)], [y, y], color=BLUE, linewidth=3, zorder=2)
    axes.plot(c.mean, y, marker, color=BLUE, markersize=9, zorder=3)
    hollow = {"markerfacecolor": "none", "markeredgecolor": VERMILLION, "markeredgewidth": 1.8}
    axes.plot(paper, y, marker, **hollow, markersize=9, zorder=4)
    note = f"paper {c.row.value}, ours {c.mean:.2f}"
    ends = sorted([paper, *c.ours])
    # Towards the middle, so that no label leaves the figure.
    x, shift, side = (ends[-1], 11, "left") if ends[-1] < middle else (ends[0], -11, "right")
    axes.annotate(note, (x, y), (shift, 0), textcoords="offset points", va="center", ha=side, color=INK, fontsize=10)


def key_figure_words() -> Markdown:
    """How to read the key figure, and what is not in it."""
    comparisons = compare(load_records())
    rest = f"{sum(not c.ours for c in comparisons)} published numbers have a preset that was not run."
    shapes = {c.row.norm: None for c in comparisons if c.ours}
    if not shapes:
        return Markdown(rest)
    names = {"l2": "circles are ℓ₂ radii", "linf": "squares are ℓ∞ radii", "": "diamonds are clean accuracy"}
    return Markdown(f"Hollow is the paper, filled is ours; {', '.join(names[s] for s in shapes)}. {rest}")


def read_radii(record: Record, folder: Path | None = None) -> tuple[list[float], list[float]]:
    """Proven and estimated radius of every image, 0 where the prediction is wrong or withheld.

    Raises:
        FileNotFoundError: the per-image radii of the run are missing.
    """
    proven, estimated = [], []
    with open((folder or results_dir()) / record.test.radii, newline="") as file:
        for row in csv.DictReader(file):
            right = row["prediction"] == row["label"]
            proven.append(float(row["radius"]) if right else 0.0)
            estimated.append(float(row["radius_estimated"]) if right else 0.0)
    return proven, estimated


def vra_curve(radii: Sequence[float], clean: int, steps: Sequence[Radius]) -> list[float]:
    """VRA in per cent at each radius; at radius 0 that is clean accuracy."""
    asked = [float(s) for s in steps]  # exact fractions: turned into floats once, not once an image
    return [100 * (clean if s == 0 else sum(r >= s for r in radii)) / len(radii) for s in asked]


def vra_groups() -> list[list[Record]]:
    """Runs that share a figure: same radii, the first seed of each network; where they are too many for one figure, of
    each data set the one with the highest VRA at its own radius.
    """
    groups = []
    for records in by_radii(study_records()).values():
        chosen: dict[str, Record] = {}
        for r in (r for r in records if r.test.radii):
            chosen.setdefault(f"{data_name(r)} {network_name(r)} {r.config.loss}", r)
        if len(chosen) > len(_LINES):
            ranked = sorted(chosen.values(), key=lambda r: r.vra(r.config.radius))
            best = {data_name(r): r.id for r in ranked}
            chosen = {name: r for name, r in chosen.items() if r.id in best.values()}
        groups += [list(chosen.values())[: len(_LINES)]] if chosen else []
    return groups


def vra_figures() -> "list[Figure | Markdown]":
    """VRA over the radius for this study's runs, one figure per set of radii."""
    drawn = [_draw_vra(group, 3.8, f"vra-over-radius-{n}") for n, group in enumerate(vra_groups())]
    return drawn or [Markdown(NOTHING)]


def vra_figure(height: float = 3.8) -> "Figure | Markdown":
    """VRA over the radius for the first of those groups, so high in inches: the README's and the landing page's."""
    groups = vra_groups()
    return _draw_vra(groups[0], height) if groups else Markdown(NOTHING)


def _draw_vra(records: list[Record], height: float, name: str = "vra-over-radius") -> Figure:
    figure, axes = canvas(WIDTH, height)
    tabled = _tabled(records[0])
    steps = _grid(tabled)
    x = [float(s.exact) for s in steps]
    rows, alt, series = [], [], []
    for (label, r), (colour, marker, glyph) in zip(labelled(records), _LINES, strict=False):
        proven, estimated = read_radii(r)
        y, claim = vra_curve(proven, r.test.clean, steps), vra_curve(estimated, r.test.clean, steps)
        axes.plot(x, claim, ":", color=colour, linewidth=2.2)
        at = [steps.index(radius) for radius in tabled]
        axes.plot(x, y, marker=marker, markevery=at, markersize=5, color=colour, linewidth=1.6, label=label)
        series.append((f"{glyph} {label}", list(zip(x, y, strict=True))))
        rows += [(r.id, s, f"{a:.4f}", f"{b:.4f}") for s, a, b in zip(steps, y, claim, strict=True)]
        alt.append(f"{label}: " + ", ".join(f"{y[n]:.2f} % at {steps[n]}" for n in (0, *at)))
    alt += _draw_peers(axes, {r.data.name for r in records}, rows, series)
    axes.set(xlim=(0, x[-1]), ylim=(0, 100), xlabel="ℓ₂ radius, pixels in [0, 1]", ylabel="VRA, % of test images")
    axes.set_xticks([0, *(float(r.exact) for r in tabled)], ["0", *map(str, tabled)])
    axes.grid()
    if not place_labels(axes, series, INK, fontsize=10):
        figure.set_figheight(height + 0.22 * len(series) / 2)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    words = "Verified-robust accuracy against the radius. Solid: certified. Dotted: what the power method claims. "
    head = ("run", "radius", "certified_percent", "estimated_percent")
    return finish(name, figure, words + "; ".join(alt) + ".", head, rows)


def _tabled(record: Record) -> list[Radius]:
    return sorted({Radius(r.radius) for r in record.test.results})


def _grid(tabled: list[Radius]) -> list[Radius]:
    """Radii to draw a curve at: 0 to a third beyond the largest of the tables', those of the tables among them."""
    if all((255 * r.exact).denominator == 1 for r in tabled) and tabled[-1].exact < 1:
        last = int(4 * 255 * tabled[-1].exact / 3)
        even = [Radius(f"{n}/255") for n in range(0, last + 1, max(last // 72, 1))]
    else:
        even = [Radius(f"{4 * float(tabled[-1].exact) / 3 * n / 72:.3f}") for n in range(73)]
    # Of two equal radii a set keeps the first: the tables' own text stays.
    return sorted({*tabled, *even})


def _draw_peers(axes: "Axes", datasets: set[str], rows: list, series: list) -> list[str]:
    """Closest public results as hollow markers; they are not comparable: other size and schedule, estimated only."""
    alt = []
    for dataset in sorted(datasets & set(_PEERS)):
        for prefix, (marker, words) in _PEERS[dataset].items():
            found = [p for p in load_published() if p.id.startswith(prefix) and p.metric in ("vra", "clean")]
            x = [float(Radius(p.radius).exact) for p in found]
            y = [float(p.value) for p in found]
            hollow = {"markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none", "clip_on": False}
            axes.plot(x, y, marker, **hollow, markersize=7, label=words[2:])
            series.append((words, list(zip(x, y, strict=True))))
            rows += [(p.id, p.radius, "", p.value) for p in found]
            alt.append(f"{words} (not comparable): " + ", ".join(f"{p.value} % at {p.radius}" for p in found))
    return alt


def vra_legend() -> Markdown:
    """What the lines and markers of the curves are."""
    text = "Solid lines are certified, dotted ones are the power method's claim."
    if {r.data.name for group in vra_groups() for r in group} & set(_PEERS):
        text += " Hollow triangles are public results of other size and schedule, estimated: **not comparable**."
    return Markdown(text)


def vra_figure_words() -> Markdown:
    """The curves in words: how far half of the images are certified, and how far the claim is from the proof."""
    lines = []
    for label, r in labelled([r for group in vra_groups() for r in group]):
        proven, estimated = read_radii(r)
        ordered = sorted(proven)
        gap = max((e / p - 1 for p, e in zip(proven, estimated, strict=True) if p > 0), default=0.0)
        half, best = ordered[len(ordered) // 2], ordered[-1]
        reach = f"half of the images are right and certified beyond radius {_down(half)}" if half else "fewer than half"
        reach += "" if half else " of the images are right and certified at any radius"
        lines.append(
            f"- {label}: {reach}, the best one beyond {_down(best)}; the power method's "
            f"radii are up to {100 * gap:.2g} % longer than the proven ones."
        )
    return Markdown("\n".join([vra_legend(), "", *lines]) if lines else "")


def _down(radius: float) -> str:
    """Cut and not rounded, in units of 1/255 below 1: a printed radius is never above the proven one."""
    if radius < 1:
        return f"{math.floor(2550 * Fraction(radius)) / 10:.1f}/255"
    return f"{math.floor(1000 * Fraction(radius)) / 1000:.3f}"


def training_curve(record: Record) -> Figure:
    """Accuracy, estimated VRA and loss of the training batches against the images seen."""
    rows = read_curve(record)
    figure, axes = canvas(WIDTH, 3.4)
    unit, word = (1e6, "millions") if rows[-1]["images"] >= 1e6 else (1e3, "thousands")
    x = [row["images"] / unit for row in rows]
    series = (("train_accuracy", "accuracy", "-", BLUE), ("train_vra_estimated", "VRA, estimated", "--", VERMILLION))
    for key, label, dash, colour in series:
        y = [100 * row[key] for row in rows]
        axes.plot(x, y, dash, color=colour, linewidth=1.6)
        axes.annotate(label, (x[-1], y[-1]), (5, 0), textcoords="offset points", va="center", color=INK, fontsize=10)
    axes.set(xlabel=f"images seen, {word}", ylabel="training batches, %", ylim=(0, 100), xlim=(0, x[-1]))
    axes.grid()
    last = rows[-1]
    alt = (
        f"Training curve of {record.id}: after {last['images']:,.0f} images the training batches are "
        f"{100 * last['train_accuracy']:.1f} % right and {100 * last['train_vra_estimated']:.1f} % right and certified "
        "by the power method's estimate at the training radius."
    )
    return finish(f"curve-{record.id}", figure, alt, list(last), [list(row.values()) for row in rows])


def read_curve(record: Record) -> list[dict[str, float]]:
    """Rows of a run's training curve, your own run first, else the published one."""
    folder = next((f for f in (local_dir(), results_dir()) if (f / record.training.curve).exists()), results_dir())
    with open(folder / record.training.curve, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def training_curve_words(record: Record) -> Markdown:
    """The training curve in words."""
    rows = read_curve(record)
    top = max(rows, key=lambda row: row["train_vra_estimated"])
    last = rows[-1]
    share = 100 * top["images"] / last["images"]
    begin, end = (f"{row['radius_train']:.3f}" for row in (rows[0], last))
    radius = f"is {end} throughout" if begin == end else f"goes from {begin} to {end}"
    return Markdown(
        f"The training radius {radius}. The estimated VRA at that radius peaks after {share:.0f} % of the run at "
        f"{100 * top['train_vra_estimated']:.1f} % and ends at {100 * last['train_vra_estimated']:.1f} %, accuracy "
        f"ends at {100 * last['train_accuracy']:.1f} %. The estimated constant of the backbone goes from "
        f"{rows[0]['lipschitz_estimate']:.3g} to {last['lipschitz_estimate']:.3g}."
    )
