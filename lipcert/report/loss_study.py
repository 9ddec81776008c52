"""The runs behind the page on losses: one arm a loss and count of classes, paired with EMMA's, and the rule of reading.

A pair is two runs that share everything but the loss: data, order of images, first weights. Its key is (draw of
classes, seed). What separates the runs of a pair is the loss, and what chance makes of it; how much the latter is, the
pairs tell among themselves.
"""

import functools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.report import matrices
from lipcert.report.names import DATASETS, LOSSES
from lipcert.report.tables import Markdown
from lipcert.study import Study, load_study

STUDIES = ROOT / "notebooks" / "params" / "study"
PATTERN = "losses-*.yaml"
EMMA, GLORO = LOSSES["emma"], LOSSES["gloro"]  # titles of arms; all others are compared with the first
PAIRS = 3  # fewer are shown and not read
# How often three pairs of equal losses pass `told_apart` by chance, if differences are normal: the mean over an angle
# t in [0, 30] degrees of 1 - c / sqrt(1 + c^2), c = sqrt(6) cos t.
CHANCE = 0.0808
AHEAD, BEHIND, EVEN, FEW, NOT_RUN = "ahead", "behind", "cannot be told apart", "too few pairs", "not run"
_GUARANTEES = ("executed", "nominal", "estimated")
# The setting that weighs a loss, where it has one.
WEIGHTS = {"trades_kl": "robust_weight", "trades_ce": "robust_weight", "margin": "plain_weight"}

Pair = tuple[int, int]


@dataclass(frozen=True)
class Arm:
    """A loss at one count of classes.

    way: what tells its runs apart, "draw" (of classes) or "seed". vra, clean: per cent of the test images by pair.
    """

    title: str
    classes: int
    way: str
    cells: dict[Pair, TrainConfig]
    runs: dict[Pair, Record]
    vra: dict[Pair, float]
    clean: dict[Pair, float]

    @property
    def complete(self) -> bool:
        """Whether every run was made."""
        return bool(self.cells) and len(self.runs) == len(self.cells)

    @property
    def config(self) -> TrainConfig:
        """Of its first cell."""
        return next(iter(self.cells.values()))


@dataclass(frozen=True)
class LossStudy:
    """All arms, by count of classes and title, in the order of the study files; radius and guarantee of their VRA."""

    dataset: str
    radius: str
    guarantee: str
    arms: dict[tuple[int, str], Arm]

    @property
    def counts(self) -> tuple[int, ...]:
        """Counts of classes, ascending."""
        return tuple(sorted({classes for classes, _ in self.arms}))

    @property
    def titles(self) -> tuple[str, ...]:
        """Every loss once."""
        return tuple(dict.fromkeys(title for _, title in self.arms))

    @property
    def rivals(self) -> tuple[str, ...]:
        """Every loss but EMMA."""
        return tuple(title for title in self.titles if title != EMMA)

    def arm(self, classes: int, title: str) -> Arm:
        """An empty one where no file asks for it."""
        return self.arms.get((classes, title)) or Arm(title, classes, "seed", {}, {}, {}, {})

    def at(self, classes: int) -> list[Arm]:
        """The arms of a count, in order."""
        return [arm for (count, _), arm in self.arms.items() if count == classes]

    def gaps(self, classes: int, title: str, measure: str = "vra") -> list[float]:
        """A loss minus EMMA, points, for every pair that both have. measure: "vra" or "clean"."""
        return differences(*(getattr(self.arm(classes, name), measure) for name in (title, EMMA)))

    def records(self) -> list[Record]:
        """All runs."""
        return [run for arm in self.arms.values() for run in arm.runs.values()]

    @property
    def seen(self) -> int:
        """Images that every run sees.

        Raises:
            ValueError: not all runs see as many; they could not be compared.
        """
        found = {matrices.seen(cell) for arm in self.arms.values() for cell in arm.cells.values()}
        if len(found) > 1:
            raise ValueError(f"images seen {sorted(found)}: must be the same in all runs of {PATTERN}")
        return found.pop() if found else 0

    @property
    def name(self) -> str:
        """`10 and 100 classes of CIFAR-100`."""
        return f"{' and '.join(map(str, self.counts))} classes of {DATASETS[self.dataset]}"


@functools.cache
def _study(path: Path) -> Study:
    return load_study(path)


def studies(dataset: str) -> list[Study]:
    """The study files of the page, those of few classes first.

    Raises:
        ValueError: no file has runs on that data set.
    """
    found = [_study(path) for path in STUDIES.glob(PATTERN)]
    if found and dataset not in (known := {study.cells[0].dataset for study in found}):
        raise ValueError(f"dataset={dataset!r}: must be one of {', '.join(sorted(known))}, which {PATTERN} have")
    mine = [study for study in found if study.cells[0].dataset == dataset]
    return sorted(mine, key=lambda study: (matrices.classes(study.cells[0]), study.name))


def load(dataset: str = "cifar100", radius: "str | Radius" = "36/255", guarantee: str = "executed") -> LossStudy:
    """What the page shows, from the published records.

    Args:
        radius, guarantee: of the certificates that count.

    Raises:
        ValueError: a data set, radius or guarantee that the runs do not have; says which they have.
    """
    if guarantee not in _GUARANTEES:
        raise ValueError(f"guarantee={guarantee!r}: must be one of {', '.join(_GUARANTEES)}")
    radius, cells = str(Radius(str(radius))), {}
    for study in studies(dataset):
        for cell, record in study.records().items():
            arm = cells.setdefault((matrices.classes(cell), title_of(cell)), {})
            arm[cell.class_seed, cell.seed] = cell, record
    arms = {key: _arm(*key, found, radius, guarantee) for key, found in cells.items()}
    return LossStudy(dataset, radius, guarantee, arms)


def _arm(
    classes: int, title: str, found: Mapping[Pair, tuple[TrainConfig, Record | None]], radius: str, guarantee: str
) -> Arm:
    runs = {pair: record for pair, (_, record) in found.items() if record is not None}
    for run in runs.values():
        if run.result(radius, guarantee) is None:
            known = dict.fromkeys(f"{r.radius} {r.guarantee}" for r in run.test.results)
            raise ValueError(f"radius={radius}, guarantee={guarantee!r}: {run.id} has {', '.join(known)}")
    way = "draw" if len({draw for draw, _ in found}) > 1 else "seed"
    return Arm(
        title, classes, way, {pair: cell for pair, (cell, _) in found.items()}, runs,
        {pair: 100 * run.vra(radius, guarantee) for pair, run in runs.items()},
        {pair: 100 * run.clean_accuracy() for pair, run in runs.items()},
    )  # fmt: skip


def title_of(cell: TrainConfig) -> str:
    """`EMMA`; with its weight where that is not the usual one: `TRADES-KL (weight 2)`, `... (weight 1 to 0.01)`."""
    key = WEIGHTS.get(cell.loss)
    if key is None or (weight := getattr(cell, key)) == TrainConfig.model_fields[key].default:
        return LOSSES[cell.loss]
    values = " to ".join(re.findall(r"\[(.+?)\]", weight)) or weight
    return f"{LOSSES[cell.loss]} (weight {values})"


# -------------------------------------------------------------------------------------------------- reading differences
def differences(mine: Mapping[Pair, float], base: Mapping[Pair, float]) -> list[float]:
    """Mine minus base for every pair that both have, in order."""
    return [mine[pair] - base[pair] for pair in sorted(mine.keys() & base.keys())]


def told_apart(gaps: Sequence[float]) -> bool | None:
    """Whether the mean difference is larger than the range of the differences; None with fewer than `PAIRS`."""
    return None if len(gaps) < PAIRS else abs(statistics.fmean(gaps)) > max(gaps) - min(gaps)


def verdict(gaps: Sequence[float], above: str = AHEAD, below: str = BEHIND) -> str:
    """The rule in a word or two: `above` or `below` where the pairs tell apart."""
    if (apart := told_apart(gaps)) is None:
        return FEW if gaps else NOT_RUN
    return (above if statistics.fmean(gaps) > 0 else below) if apart else EVEN


def rule_words(comparisons: int) -> Markdown:
    """The rule, and what chance makes of it in so many comparisons."""
    text = (
        f"A difference counts where its mean over {PAIRS} pairs or more is larger than the range of the pairs. Chance "
        f"alone passes that rule in {in_100(CHANCE)} comparisons of {PAIRS} pairs"
    )
    if comparisons:
        text += (
            f": of {plural(comparisons, 'comparison')}, {comparisons * CHANCE:.1f} would pass if all losses were equal"
        )
    return Markdown(f"{text}.")


# -------------------------------------------------------------------------------------------------------------- numbers
def spread(values: Iterable[float], digits: int = 2, unit: str = " %") -> str:
    """Mean and range: `19.52 % (19.30 to 19.80)`; `19.52 %, one run`; `not run`."""
    if not (values := list(values)):
        return NOT_RUN
    mean = f"{statistics.fmean(values):.{digits}f}{unit}"
    return f"{mean}, one run" if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def signed(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Mean and every pair: `-1.20 points (-1.50, -1.10, -1.00)`, `-1.50 points, one pair`."""
    if not values:
        return NOT_RUN
    each = f" ({', '.join(f'{value:+.{digits}f}' for value in values)})" if len(values) > 1 else ", one pair"
    return f"{statistics.fmean(values):+.{digits}f}{unit}{each}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; `none`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words) or "none"


def remark(title: str, text: str) -> str:
    """`GloRo (+0.90)`, `TRADES-KL (weight 2; +0.93)`: one pair of brackets."""
    return f"{title[:-1]}; {text})" if title.endswith(")") else f"{title} ({text})"


def plural(number: int, what: str) -> str:
    """`1 comparison`, `6 comparisons`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def in_100(share: float) -> str:
    """`8 of 100`; `fewer than 1 of 100`."""
    return f"{100 * share:.0f} of 100" if share >= 0.01 else "fewer than 1 of 100"


def runs_word(arm: Arm) -> str:
    """`3 draws`, `2 of 3 seeds`, `one run`."""
    if len(arm.cells) == 1:
        return "one run"
    return f"{len(arm.runs)} {'' if arm.complete else f'of {len(arm.cells)} '}{arm.way}s"


def missing(study: LossStudy) -> str:
    """`12 of 42 runs are missing`; nothing where none is."""
    planned = sum(len(arm.cells) for arm in study.arms.values())
    gone = planned - len(study.records())
    return f"{gone} of {planned} runs are missing" if gone else ""


def study_list(study: LossStudy) -> Markdown:
    """The study files of which runs are missing, with their commands."""
    lines = []
    for file in studies(study.dataset):
        done = [record is not None for record in file.records().values()]
        if not all(done):
            command = f"lipcert study notebooks/params/study/{file.name}.yaml"
            lines.append(f"- `{command} --download`: {sum(done)} of {len(done)} runs published")
    return Markdown("\n".join(["Not run, or in part:", "", *lines]) if lines else "")


def differing(study: LossStudy) -> set[str]:
    """Settings that are not the same in all runs of the page."""
    cells = [cell for arm in study.arms.values() for cell in arm.cells.values()]
    return {name for name in TrainConfig.model_fields if len({str(getattr(cell, name)) for cell in cells}) > 1}
