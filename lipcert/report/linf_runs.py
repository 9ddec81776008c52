"""The runs behind the chapter on l_inf-distance nets: which study files, which setting is which arm, how arms are drawn.

A study file or a record that is missing leaves its arm empty, which every table shows as "not run".
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.records import Record
from lipcert.report.names import network_name
from lipcert.report.published import EVIDENCE, Row, load_published
from lipcert.report.svg import BLUE, GREEN, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown
from lipcert.study import Study, load_study

STUDIES = ROOT / "notebooks" / "params" / "study"
# Names of study files, * for anything.
MNIST, MNIST_IBP = ("linf-mnist*",), ("ibp-mnist*",)
LOSSES = ("linf-hinge-mnist", "linf-losses-mnist")
CIFAR = ("linf-cifar10*", "linf-hinge-cifar10*", "ibp-cifar10*")
NOT_RUN = Markdown("No run of this part has been published yet: **not run**.")

# The parts of the loss in the order of the story: name for readers, and the published row that is its like.
PARTS = {
    "hinge": ("hinge", "linf-v2_ablation-hinge-loss"),
    "clipped": ("clipped hinge alone", "linf-v2_ablation-clipped-hinge-alone"),
    "fixed": ("clipped hinge, cross-entropy of fixed weight", "linf-v2_ablation-fixed-weight-0-02"),
    "fading": ("clipped hinge, cross-entropy that fades", "linf-v2_ablation-weight-from-0-1-to-5e-4"),
}
WAYS = {
    "linf_hinge": ("l_inf-distance net, hinge", "linf-v1_l-inf-dist-net"),
    "linf_mixture": ("l_inf-distance net, mixture", "linf-v2_radius-8-255"),
    "ibp": ("convolutions, IBP", None),
}
# Clean accuracy is published under another id than its ablation's.
_CLEAN_IDS = {"linf-v2_ablation-weight-from-0-1-to-5e-4": "linf-v2_radius-8-255"}
_MARKS = {
    "clean": (GREEN, "D"), "margin": (BLUE, "o"), "interval": (VERMILLION, "s"), "published": (INK, "^"),
}  # fmt: skip
_SERIES = {"clean": "clean", "margin": "certified, margins", "interval": "certified, intervals"}


@dataclass(frozen=True)
class Arm:
    """The cells of one setting, one a seed, and the records of those that were run."""

    cells: tuple[TrainConfig, ...] = ()
    runs: tuple[Record, ...] = ()

    def shares(self, what: str) -> list[float]:
        """Per cent of the test images, one number a run: "clean", or certified by "margin" or "interval" at its radius.

        Runs that were not certified that way are left out.
        """
        if what == "clean":
            return [100 * run.clean_accuracy() for run in self.runs]
        found = [(run, run.result(run.config.radius, method=what)) for run in self.runs]
        return [100 * result.certified_correct / run.test.images for run, result in found if result]

    def mean(self, what: str) -> float:
        return statistics.fmean(self.shares(what))

    @property
    def network(self) -> str:
        """`l_inf-distance net L4W512, 1.0 M`: the parameters once it was run."""
        return f"{network_name(self.runs[0])}, {self.runs[0].model.parameters / 1e6:.2f} M" if self.runs else ""


@functools.cache
def _study(path: Path) -> Study:
    return load_study(path)


def arms(patterns: Sequence[str], key: Callable[[TrainConfig], object]) -> dict[object, Arm]:
    """The cells of the study files of these names by a setting of theirs, in the order of the files."""
    found: dict[object, Arm] = {}
    for path in (path for pattern in patterns for path in sorted(STUDIES.glob(f"{pattern}.yaml"))):
        for cell, record in _study(path).records().items():
            arm = found.get(key(cell), Arm())
            found[key(cell)] = Arm((*arm.cells, cell), (*arm.runs, *([record] if record else [])))
    return found


def records() -> list[Record]:
    """All runs of the chapter, each once."""
    every = [arm for patterns in (MNIST, MNIST_IBP, LOSSES, CIFAR) for arm in arms(patterns, lambda c: "all").values()]
    return list({run.id: run for arm in every for run in arm.runs}.values())


def mnist() -> dict[tuple[str, str], Arm]:
    """MNIST by radius and loss: distance nets at 0.1 and 0.3, interval-trained convolutions where a study has them."""
    found = {("0.1", "linf_mixture"): Arm(), ("0.3", "linf_mixture"): Arm()}
    found |= arms((*MNIST, *MNIST_IBP), lambda cell: (str(Radius(cell.radius)), cell.loss))
    return dict(sorted(found.items(), key=lambda item: (Radius(item[0][0]).exact, item[0][1] == "ibp")))


def losses() -> dict[str, Arm]:
    """MNIST by the part of the loss, all of `PARTS`."""
    return {part: Arm() for part in PARTS} | arms(LOSSES, _part)


def _part(cell: TrainConfig) -> str:
    if cell.loss == "linf_hinge":
        return "hinge"
    weight = cell.plain_weight
    if weight.startswith("["):
        return "fading"
    return "fixed" if float(weight) else "clipped"


def cifar() -> dict[str, Arm]:
    """CIFAR-10 by the way of training, all of `WAYS`."""
    return {way: Arm() for way in WAYS} | arms(CIFAR, lambda cell: cell.loss)


def _cell(arm: Arm, what: str) -> str:
    """Mean, and the range over seeds: `93.31 % (93.20 to 93.40)`."""
    if not arm.runs:
        return "not run"
    values = arm.shares(what)
    if not values:
        return "no such rule"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f} %{spread}"


def _row(name: str | None) -> Row | None:
    return next((row for row in load_published() if row.id == name), None)


def _number(row: Row | None, mark: bool = True) -> str:
    """A published number, and how it is known."""
    if row is None:
        return "not published"
    return f"{row.value} %" + (f", {EVIDENCE[row.evidence]}" if mark else "")


def _both(prefix: str | None, dataset: str, radius: str) -> str:
    """Published clean and certified accuracy of a network: `56.80 %, 33.30 %, stated by the authors`."""
    clean, certified = _published(prefix, dataset, radius)
    if certified is None:
        return "not published"
    return f"{_number(clean, mark=False)}, {_number(certified)}" if clean else _number(certified)


def _published(prefix: str | None, dataset: str, radius: str) -> tuple[Row | None, Row | None]:
    """Rows of clean accuracy and of VRA whose ids begin so."""
    slug = radius.replace(".", "-").replace("/", "-")
    clean = _row(f"{_CLEAN_IDS.get(prefix, prefix)}_{dataset}_clean")
    return clean, _row(f"{prefix}_{dataset}_linf_{slug}_vra")


def _seeds(arm: Arm) -> str:
    return "one run" if len(arm.runs) == 1 else f"{len(arm.runs)} seeds"


def _dots(name: str, lines: Sequence[tuple[str, Arm, Row | None]], what: str, words: str) -> "Figure | Markdown":
    """One line an arm, a row of dots for each measure, the published share hollow."""
    if not lines:
        return NOT_RUN
    figure, axes = canvas(WIDTH, 1.1 + 0.62 * len(lines))
    rows = []
    for number, (label, arm, row) in enumerate(lines):
        plain = label.replace("\n", " ")
        for place, series in enumerate(_SERIES):
            colour, marker = _MARKS[series]
            values = arm.shares(series)
            heights = [-number + 0.2 * (1 - place)] * len(values)
            axes.plot(values, heights, marker, color=colour, markersize=6.5, label=_SERIES[series])
            rows += [(plain, series, run.config.seed, f"{v:.4f}") for run, v in zip(arm.runs, values, strict=False)]
        if row is not None:
            hollow = {"markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none", "markersize": 7}
            axes.plot(float(row.value), -number - 0.2, _MARKS["published"][1], **hollow, label="published, certified")
            rows.append((plain, "published", "", row.value))
    axes.set_yticks([-n for n in range(len(lines))], [label for label, _, _ in lines])
    axes.set(ylim=(0.5 - len(lines), 0.5), xlabel=what)
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5,
        frameon=False,
    )  # fmt: skip
    head = ("line", "measure", "seed", "percent")
    return finish(name, figure, f"Clean and certified accuracy. {words}".replace("*", ""), head, rows)
