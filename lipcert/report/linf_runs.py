"""The runs behind the chapter on l_inf-distance nets: which study files, which cells are one arm, how arms are drawn.

A study file or a record that is missing leaves its arm empty, and every table shows it as "not run".
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.record import Record
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

# Parts of the loss and ways of training, in the order of the story: name for readers, and how the ids of the published
# rows begin that are their like.
PARTS = {
    "hinge": ("hinge", "linf-v2_ablation-hinge-loss"),
    "clipped": ("clipped hinge alone", "linf-v2_ablation-clipped-hinge-alone"),
    "fixed": ("clipped hinge, cross-entropy of fixed weight", "linf-v2_ablation-fixed-weight-0-02"),
    "fading": ("clipped hinge, cross-entropy that fades", "linf-v2_ablation-weight-from-0-1-to-5e-4"),
}
WAYS = {
    "linf_hinge": ("ℓ∞-distance net, hinge", "linf-v1_l-inf-dist-net"),
    "linf_mixture": ("ℓ∞-distance net, mixture", "linf-v2_radius-8-255"),
    "ibp": ("convolutions, IBP", None),
}
# Its clean accuracy stands in another row.
_CLEAN = {"linf-v2_ablation-weight-from-0-1-to-5e-4": "linf-v2_radius-8-255"}
MEASURES = {"clean": "clean", "margin": "certified, margins", "interval": "certified, intervals"}
_MARKS = {"clean": (GREEN, "D"), "margin": (BLUE, "o"), "interval": (VERMILLION, "s")}


@dataclass(frozen=True)
class Arm:
    """The cells of one setting, one a seed, and the records of those that were run."""

    cells: tuple[TrainConfig, ...] = ()
    runs: tuple[Record, ...] = ()

    def measured(self, measure: str) -> list[tuple[Record, float]]:
        """Runs and their share of the test images, per cent: "clean", or certified by "margin" or "interval".

        At the run's own radius; runs that were not certified that way are left out.
        """
        if measure == "clean":
            return [(run, 100 * run.clean_accuracy()) for run in self.runs]
        found = [(run, run.result(run.config.radius, method=measure)) for run in self.runs]
        return [(run, 100 * result.certified_correct / run.test.images) for run, result in found if result]

    def shares(self, measure: str) -> list[float]:
        """One number a run."""
        return [share for _, share in self.measured(measure)]

    def mean(self, measure: str = "interval") -> float:
        """Of those; the arm must have runs."""
        return statistics.fmean(self.shares(measure))

    def gains(self) -> list[int]:
        """Images that intervals certify and margins do not, run by run."""
        both = [[run.result(run.config.radius, method=m) for m in ("interval", "margin")] for run in self.runs]
        return [more.certified_correct - less.certified_correct for more, less in both if more and less]

    @property
    def millions(self) -> str:
        """Parameters once it was run: `1.02 M`."""
        return f"{self.runs[0].model.parameters / 1e6:.2f} M"

    @property
    def seeds(self) -> str:
        """`one run`, `3 seeds`."""
        return "one run" if len(self.runs) == 1 else f"{len(self.runs)} seeds"


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


def progress() -> list[tuple[str, int, int]]:
    """Study files by name, with the runs published and planned."""
    paths = [
        path for pattern in (*MNIST, *MNIST_IBP, *LOSSES, *CIFAR) for path in sorted(STUDIES.glob(f"{pattern}.yaml"))
    ]
    found = [(path.stem, _study(path).records().values()) for path in paths]
    return [(name, sum(record is not None for record in runs), len(runs)) for name, runs in found]


def records() -> list[Record]:
    """All runs of the chapter, each once."""
    every = [
        run for arm in arms((*MNIST, *MNIST_IBP, *LOSSES, *CIFAR), TrainConfig.run_id).values() for run in arm.runs
    ]
    return list({run.id: run for run in every}.values())


def mnist() -> dict[tuple[str, str], Arm]:
    """MNIST by radius and loss: distance nets at 0.1 and 0.3, interval-trained convolutions where a study has them."""
    found = {("0.1", "linf_mixture"): Arm(), ("0.3", "linf_mixture"): Arm()}
    found |= arms((*MNIST, *MNIST_IBP), lambda cell: (cell.radius, cell.loss))
    return dict(sorted(found.items(), key=lambda item: (Radius(item[0][0]).exact, item[0][1] == "ibp")))


def losses() -> dict[str, Arm]:
    """MNIST by the part of the loss, all of `PARTS`."""
    return {part: Arm() for part in PARTS} | arms(LOSSES, _part)


def _part(cell: TrainConfig) -> str:
    if cell.loss == "linf_hinge":
        return "hinge"
    if cell.plain_weight.startswith("["):
        return "fading"
    return "fixed" if float(cell.plain_weight) else "clipped"


def cifar() -> dict[str, Arm]:
    """CIFAR-10 by the way of training, all of `WAYS`."""
    return {way: Arm() for way in WAYS} | arms(CIFAR, lambda cell: cell.loss)


def cell(arm: Arm, measure: str) -> str:
    """Mean, and the range over seeds: `93.31 % (93.20 to 93.40)`."""
    if not arm.runs:
        return "not run"
    if not (values := arm.shares(measure)):
        return "no such rule"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f} %{spread}"


def row_of(name: str) -> Row | None:
    """A published number by its id."""
    return next((row for row in load_published() if row.id == name), None)


def published(beginning: str | None, dataset: str, radius: str) -> tuple[Row | None, Row | None]:
    """Published clean accuracy and VRA of the network whose rows' ids begin so."""
    slug = radius.replace(".", "-").replace("/", "-")
    names = (f"{_CLEAN.get(beginning, beginning)}_{dataset}_clean", f"{beginning}_{dataset}_linf_{slug}_vra")
    return row_of(names[0]), row_of(names[1])


def number(row: Row | None) -> str:
    """`33.30 %`."""
    return "not published" if row is None else f"{row.value} %"


def both(rows: tuple[Row | None, Row | None]) -> str:
    """Clean and certified, and how they are known: `54.30 %, 40.06 %, stated by the authors`."""
    known = [row for row in rows if row]
    evidence = dict.fromkeys(EVIDENCE[row.evidence] for row in known)
    return ", ".join([*map(number, known), *evidence]) if rows[1] else "none"


def span(values: Sequence[int]) -> str:
    """`120`, or `7 to 1,203`."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def dots(name: str, lines: Sequence[tuple[str, Arm, Row | None]], what: str, words: str) -> "Figure | Markdown":
    """One line an arm, a row of dots for each measure, the published share hollow; nothing where nothing was run."""
    if not lines:
        return Markdown("")
    figure, axes = canvas(WIDTH, 1.2 + 0.62 * len(lines))
    rows = []
    for height, (label, arm, row) in enumerate(lines):
        plain = label.replace("\n", " ")
        for place, (measure, (colour, marker)) in enumerate(_MARKS.items()):
            for run, share in arm.measured(measure):
                axes.plot(
                    share, 0.2 * (1 - place) - height, marker, color=colour, markersize=6.5, label=MEASURES[measure]
                )
                rows.append((plain, measure, run.config.seed, f"{share:.4f}"))
        if row is not None:
            hollow = {"markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none", "markersize": 7}
            axes.plot(float(row.value), -height - 0.2, "^", **hollow, label="published, certified")
            rows.append((plain, "published", "", row.value))
    axes.set_yticks([-n for n in range(len(lines))], [label for label, _, _ in lines])
    axes.set(ylim=(0.5 - len(lines), 0.5), xlabel=what)
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5,
        frameon=False,
    )  # fmt: skip
    alt = f"Clean and certified accuracy, one dot a run. {words}".replace("*", "").replace("\n\n", " ")
    return finish(name, figure, alt, ("line", "measure", "seed", "percent"), rows)
