"""Figures as SVG that lives in the page: text takes the page's colour and font, so light and dark both work offline.

Every figure comes with alternative text and with the numbers it was drawn from as CSV. matplotlib is imported when a
figure is drawn. Colours are Okabe-Ito's, each also told apart by marker or dash.
"""

import base64
import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lipcert.labels import place_labels
from lipcert.paths import local_dir, results_dir
from lipcert.published import Comparison, compare, load_published
from lipcert.radius import Radius
from lipcert.records import Record, load_records
from lipcert.report import DATASETS, Markdown, data_name, network_name, study_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK = "#010101"  # stands for the page's text colour and is replaced by `currentColor`
FAINT = "#808080"
_WIDTH = 5.2  # inches: text stays readable when a phone shrinks the figure
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_MARKERS = {"l2": "o", "linf": "s", "": "D"}
_RC = {
    "svg.fonttype": "none", "svg.hashsalt": "lipcert", "font.family": "sans-serif", "font.size": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """An SVG with a name, alternative text and the numbers behind it (CSV text)."""

    name: str
    svg: str
    alt: str
    csv: str

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.csv.encode()).decode()
        alt = html.escape(self.alt, quote=True)
        svg = self.svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" class="lipcert" ', 1)
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{data}">the numbers in this figure (CSV)</a>'
        return f'<figure class="lipcert" id="figure-{self.name}">{svg}<figcaption>{link}</figcaption></figure>'

    def __repr__(self) -> str:
        return f"<figure {self.name}: {self.alt}>"

    def save(self, path: str | Path) -> Path:
        """Write a file that follows the reader's colour scheme on its own, for a README."""
        style = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
        title = f"<title>{html.escape(self.alt)}</title>"
        Path(path).write_text(re.sub(r"(<svg [^>]*>)", lambda m: m[1] + title + style, self.svg, count=1))
        return Path(path)


def canvas(width: float, height: float) -> "tuple[Canvas, Axes]":
    """A figure of that many inches and its axes, in the style of the book."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        figure = Canvas(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def finish(name: str, figure: "Canvas", alt: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Figure:
    """The drawn figure as text: no size in points, no fonts, no colour of its own for text, ids of its own."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    # A style element would reach the whole page the figure stands in.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin:round" ', 1)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"font: ([^'\"]*?)'[^']*'[^;\"]*", r"font: \1sans-serif", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{name}-", svg)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return Figure(name, svg, alt, out.getvalue())


def key_figure() -> Figure:
    """One row per published number with a preset: hollow is the paper's, filled is ours."""
    comparisons = compare(load_records())
    figure, axes = canvas(_WIDTH, 0.9 + 0.56 * len(comparisons))
    values = [float(c.row.value) for c in comparisons] + [v for c in comparisons for v in c.ours]
    low, high = max(min(values) - 6, 0), min(max(values) + 6, 100)
    for y, c in enumerate(comparisons):
        _comparison_row(axes, -y, c, (low + high) / 2)
    axes.set(ylim=(0.75 - len(comparisons), 0.75), yticks=[], xlabel="share of test images, %")
    axes.set_xlim(low, high)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    rows = [
        (c.row.id, c.row.model, c.row.dataset, c.row.radius, c.row.value, f"{c.mean:.2f}" if c.ours else "", c.status)
        for c in comparisons
    ]
    alt = "Published numbers (hollow) and ours (filled), in per cent of test images. " + "; ".join(
        f"{_row_name(c)}: paper {c.row.value}, ours {f'{c.mean:.2f}' if c.ours else 'not run'}" for c in comparisons
    )
    head = ("id", "model", "dataset", "radius", "paper_percent", "ours_percent", "status")
    return finish("key-figure", figure, alt + ".", head, rows)


def _row_name(c: Comparison) -> str:
    what = "clean accuracy" if c.row.metric == "clean" else f"VRA at {c.row.radius}"
    return f"{c.row.model}, {DATASETS[c.row.dataset]}, {what}"


def _comparison_row(axes: "Axes", y: float, c: Comparison, middle: float) -> None:
    paper, marker = float(c.row.value), _MARKERS[c.row.norm]
    axes.text(0.0, y + 0.2, _row_name(c), transform=axes.get_yaxis_transform(), va="bottom", color=INK)
    if c.ours:
        axes.plot([paper, c.mean], [y, y], color=FAINT, linewidth=1.2, zorder=1)
        axes.plot([min(c.ours), max(c.ours)], [y, y], color=BLUE, linewidth=3, zorder=2)
        axes.plot(c.mean, y, marker, color=BLUE, markersize=9, zorder=3)
    hollow = {"markerfacecolor": "none", "markeredgecolor": VERMILLION, "markeredgewidth": 1.8}
    axes.plot(paper, y, marker, **hollow, markersize=9, zorder=4)
    note = f"paper {c.row.value}" + (f", ours {c.mean:.2f}" if c.ours else f", ours {c.status}")
    ends = sorted([paper, *c.ours])
    # Towards the middle, so that no label leaves the figure.
    x, shift, side = (ends[-1], 11, "left") if ends[-1] < middle else (ends[0], -11, "right")
    axes.annotate(note, (x, y), (shift, 0), textcoords="offset points", va="center", ha=side, color=INK, fontsize=10)


def key_figure_words() -> Markdown:
    """How to read the key figure."""
    shapes = {c.row.norm: None for c in compare(load_records())}
    names = {"l2": "circles are ℓ₂ radii", "linf": "squares are ℓ∞ radii", "": "diamonds are clean accuracy"}
    return Markdown(f"Hollow is the paper, filled is ours; {', '.join(names[s] for s in shapes)}.")


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
    return [100 * (clean if s.exact == 0 else sum(r >= float(s) for r in radii)) / len(radii) for s in steps]


_PEERS = {
    "cifar10": {
        "liresnet-fork_cifar10-small-shipped-checkpoint_cifar10": "△ public 0.8 M net",
        "liresnet-fork_cifar10-small-stride-1_cifar10": "▽ stride-1 variant",
    }
}  # data set -> beginnings of published ids with the words for the legend


def _curve_records(one_per_dataset: bool) -> list[Record]:
    """At most four runs with per-image radii: the first seed of each network, or of each data set's largest run."""
    chosen: dict[str, Record] = {}
    for r in study_records():
        if r.test.radii:
            chosen.setdefault(
                data_name(r) if one_per_dataset else f"{data_name(r)} {network_name(r)} {r.config.loss}", r
            )
    return list(chosen.values())[: len(_COLOURS)]


def vra_figure(one_per_dataset: bool = False) -> "Figure | Markdown":
    """VRA as a function of the radius for the runs of this study, from their per-image radii."""
    records = _curve_records(one_per_dataset)
    if not records:
        return Markdown("No run of this study has been published yet, so there is no curve to draw.")
    figure, axes = canvas(_WIDTH, 3.1 if one_per_dataset else 3.8)
    steps = [Radius(f"{k}/255") for k in range(0, 145, 2)]
    x = [2 * k for k in range(len(steps))]
    rows, alt, labels = [], [], []
    for r, colour in zip(records, _COLOURS, strict=False):
        proven, estimated = read_radii(r)
        y, claim = vra_curve(proven, r.test.clean, steps), vra_curve(estimated, r.test.clean, steps)
        axes.plot(x, claim, ":", color=colour, linewidth=2.2)
        axes.plot(x, y, "-", color=colour, linewidth=1.6)
        label = f"{data_name(r)}, {network_name(r)}"
        labels.append((label, list(zip(x, y, strict=True))))
        rows += [(r.id, s, f"{a:.4f}", f"{b:.4f}") for s, a, b in zip(steps, y, claim, strict=True)]
        shown = ", ".join(f"{y[x.index(k)]:.2f} % at {k}/255" for k in (0, 36, 72, 108))
        alt.append(f"{label}: {shown}")
    alt += _draw_peers(axes, {r.data.name for r in records}, rows, labels)
    axes.set(xlim=(0, 144), ylim=(0, 100), xlabel="ℓ₂ radius, pixels in [0, 1]", ylabel="VRA, % of test images")
    axes.set_xticks([0, 36, 72, 108, 144], ["0", "36/255", "72/255", "108/255", "144/255"])
    axes.grid()
    place_labels(axes, labels, INK, fontsize=10)
    words = "Verified-robust accuracy against the radius. Solid: certified. Dotted: what the power method claims. "
    head = ("run", "radius", "certified_percent", "estimated_percent")
    return finish("vra-over-radius", figure, words + "; ".join(alt) + ".", head, rows)


def _draw_peers(axes: "Axes", datasets: set[str], rows: list, labels: list) -> list[str]:
    """Closest public results as hollow markers; they are not comparable: other size and schedule, estimated only."""
    alt = []
    for dataset in sorted(datasets & set(_PEERS)):
        for (prefix, words), marker in zip(_PEERS[dataset].items(), "^v", strict=True):
            found = [p for p in load_published() if p.id.startswith(prefix) and p.metric in ("vra", "clean")]
            x = [float(Radius(p.radius).exact) * 255 for p in found]
            y = [float(p.value) for p in found]
            hollow = {"markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none", "clip_on": False}
            axes.plot(x, y, marker, **hollow, markersize=7)
            labels.append((words, list(zip(x, y, strict=True))))
            rows += [(p.id, p.radius, "", p.value) for p in found]
            alt.append(f"{words} (not comparable): " + ", ".join(f"{p.value} % at {p.radius}" for p in found))
    return alt


def _down(radius: float) -> str:
    """In units of 1/255, cut and not rounded: a printed radius is never above the proven one."""
    return f"{math.floor(2550 * Fraction(radius)) / 10:.1f}"


def vra_figure_words(one_per_dataset: bool = False) -> Markdown:
    """The curves in words: where they end and how far the claim is from the proof."""
    records = _curve_records(one_per_dataset)
    lines = []
    for r in records:
        proven, estimated = read_radii(r)
        ordered = sorted(proven)
        gap = max((e - p for p, e in zip(proven, estimated, strict=True)), default=0.0)
        lines.append(
            f"- {data_name(r)}, {network_name(r)}: half of the images are right and certified beyond radius "
            f"{_down(ordered[len(ordered) // 2])}/255, the best one beyond {_down(ordered[-1])}/255; the power "
            f"method's claim exceeds the proof by at most {255 * gap:.2g}/255."
        )
    opening = "Solid lines are certified, dotted ones are the power method's claim."
    if {r.data.name for r in records} & set(_PEERS):
        opening += " Hollow triangles are public results of other size and schedule, estimated: not comparable."
    return Markdown("\n".join([opening, "", *lines]) if lines else "")


def training_curve(record: Record) -> Figure:
    """Accuracy, estimated VRA and loss of the training batches against the images seen."""
    rows = read_curve(record)
    figure, axes = canvas(_WIDTH, 3.4)
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
    return Markdown(
        f"The training radius grows from {rows[0]['radius_train']:.3f} to {last['radius_train']:.3f}. The estimated "
        f"VRA at that radius peaks after {share:.0f} % of the run at {100 * top['train_vra_estimated']:.1f} % and ends "
        f"at {100 * last['train_vra_estimated']:.1f} %, accuracy ends at {100 * last['train_accuracy']:.1f} %. "
        f"The estimated constant of the backbone goes from {rows[0]['lipschitz_estimate']:.3g} to "
        f"{last['lipschitz_estimate']:.3g}."
    )
