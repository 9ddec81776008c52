"""How much of their proven bounds trained networks use, by family and depth: the record `tightness`, and the authors'.

`python -m benchmarks.tightness_by_depth RUN ...` makes the record. Without it everything here says so.
"""

import csv
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from lipcert.paths import RESULTS, results_dir
from lipcert.report.checks import rows_of
from lipcert.report.names import DATASETS, FAMILIES
from lipcert.report.published import EVIDENCE
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table, up

COLUMNS = (
    "run", "data", "family", "depth", "width", "loss", "seed", "near", "far", "found", "estimate", "bound", "ratio",
    "branches", "seconds",
)  # fmt: skip
_SHUT = 1.01  # a factor of the bound below which branches do nothing
ABSENT = Markdown("Tightness of trained networks by depth: **not run**.")
# A ResNet's branches begin at scale 0, as in the reference, or open.
_NAMES = FAMILIES | {"resnet, open": "ResNet, branches open at the start"}
_LINES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "D", "-."), (PURPLE, "P", ":"))


class Published(NamedTuple):
    """One network of a paper: lower bound found, upper bound computed, their ratio as printed."""

    id: str
    paper: str
    network: str
    family: str
    dataset: str
    lower: str
    upper: str
    ratio: str
    evidence: str
    note: str


@dataclass(frozen=True)
class Cell:
    """All measured networks of one data set, family and depth; values one a network."""

    data: str
    family: str
    depth: int
    found: tuple[float, ...]
    bounds: tuple[float, ...]
    ratios: tuple[float, ...]
    branches: tuple[float, ...]  # product of the residual blocks' own bounds; 1 without such blocks


def published_tightness() -> list[Published]:
    """The authors' figures, in the order of `results/tightness_published.csv`.

    Raises:
        ValueError: a row that is no lower and upper bound with their ratio, or of unknown evidence.
    """
    path = results_dir() / "tightness_published.csv"
    with open(path if path.exists() else RESULTS / path.name, newline="") as file:
        rows = [Published(**line) for line in csv.DictReader(file)]
    for p in rows:
        if abs(float(p.lower) / float(p.upper) - float(p.ratio)) > 0.006 or p.evidence not in EVIDENCE:
            raise ValueError(f"{path.name}, {p.id}: lower, upper, ratio or evidence cannot be right")
    return rows


def measured() -> list[Cell]:
    """What the record holds, by data set, family and depth; empty without it."""
    rows = rows_of("tightness")
    nets = [dict(zip(rows[0], line, strict=True)) for line in rows[1:]]
    groups: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    for net in nets:
        groups.setdefault((net["data"], net["family"], int(net["depth"])), []).append(net)
    return [
        Cell(*key, *(tuple(float(net[name]) for net in group) for name in ("found", "bound", "ratio", "branches")))
        for key, group in sorted(groups.items())
    ]


def family_name(family: str) -> str:
    return _NAMES.get(family, family)


def tightness_table() -> Markdown:
    """Ours by data set, family and depth, then the authors'."""
    rows = [
        (
            DATASETS.get(c.data, c.data), family_name(c.family), c.depth, len(c.ratios), f"{mean(c.found):.2f}",
            up(mean(c.bounds), 2), _spread(c.ratios),
        )
        for c in measured()
    ]  # fmt: skip
    if not rows:
        rows = [("CIFAR-10", "this study", "", "", *["not run"] * 3)]
    rows += [
        (DATASETS.get(p.dataset, p.dataset), f"{p.network}, *authors*", "", "1", p.lower, p.upper, p.ratio)
        for p in published_tightness()
    ]
    head = ("data", "network", "depth", "seeds", "found, at least", "proven, at most", "ratio")
    return table(head, rows, right=(2, 3, 4, 5, 6))


def _spread(values: tuple[float, ...]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def tightness_figure() -> Figure | Markdown:
    """Ratio against depth, one line a family, with the authors' figures as dashed levels."""
    cells = measured()
    if not cells:
        return ABSENT
    data = "cifar10" if any(c.data == "cifar10" for c in cells) else cells[0].data
    cells = [c for c in cells if c.data == data]
    figure, axes = canvas(WIDTH, 3.6)
    authors = [p for p in published_tightness() if p.dataset == data]
    for p in authors:
        axes.axhline(float(p.ratio), color=FAINT, linestyle=(0, (1, 2)), linewidth=1.4)
        axes.annotate(
            f"authors: {p.network}", (1, float(p.ratio)), (-2, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", color=INK, fontsize=9.5,
        )  # fmt: skip
    for family, (colour, marker, dash) in zip(dict.fromkeys(c.family for c in cells), _LINES, strict=False):
        own = [c for c in cells if c.family == family]
        axes.plot(
            [c.depth for c in own], [mean(c.ratios) for c in own], dash, marker=marker, color=colour, linewidth=1.6,
            label=family_name(family),
        )  # fmt: skip
        for c in own:
            axes.plot([c.depth] * len(c.ratios), c.ratios, "_", color=colour, markersize=9)
    depths = sorted({c.depth for c in cells})
    axes.set(ylim=(0, 1.02), xlabel="depth, blocks", ylabel="found / proven")
    axes.set_xticks(depths, list(map(str, depths)))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, fontsize=9.5, labelcolor=INK, frameon=False)
    rows = [(c.data, c.family, c.depth, f"{r:.6g}") for c in cells for r in c.ratios]
    rows += [(p.dataset, f"{p.family}, authors", "", p.ratio) for p in authors]
    alt = f"Empirical over proven Lipschitz constant against depth. {tightness_words()}"
    return finish("tightness-by-depth", figure, alt, ("data", "family", "depth", "ratio"), rows)


def tightness_words() -> Markdown:
    """The table in words."""
    cells = measured()
    said = ", ".join(f"{p.ratio} for their {p.network}" for p in published_tightness() if p.dataset == "cifar10")
    if not cells:
        return Markdown(f"The authors give {said} on CIFAR-10.")
    lines = []
    for data, family in dict.fromkeys((c.data, c.family) for c in cells):
        own = [c for c in cells if (c.data, c.family) == (data, family)]
        at = ", ".join(f"{mean(c.ratios):.2f} at depth {c.depth}" for c in own)
        lines.append(f"{DATASETS.get(data, data)}, {family_name(family)}: {at}.{_branches(own)}")
    return Markdown(" ".join(lines) + f" The authors give {said} on CIFAR-10.")


def _branches(cells: list[Cell]) -> str:
    """What the conventional branches of one family add to the bound, as a factor; nothing for the other families."""
    if not cells[0].family.startswith("resnet"):
        return ""
    factors = ", ".join(f"{mean(c.branches):.3g}" for c in cells)
    shut = all(factor < _SHUT for c in cells for factor in c.branches)
    end = " They are shut, so the ratio is that of stem and neck." if shut else ""
    return f" Its branches multiply the bound by {factors}.{end}"
