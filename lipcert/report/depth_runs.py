"""The runs behind the page on depth: which study files, what a budget is, and how sure a difference of means is.

A budget is a recipe with so many passes over the training images; an arm is one family at one depth in it, one run a
seed. A study file or a record that is missing leaves its arm empty, and every part of the page says "not run" of it.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.paths import ROOT, results_dir
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import read_record
from lipcert.report.matrices import seen
from lipcert.report.svg import BLUE, GREEN, PURPLE, VERMILLION
from lipcert.settings import ConfigError
from lipcert.study import Study, load_study

STUDIES = ROOT / "notebooks" / "params" / "study"
# The matrices of the experiment, and the runs there were before them: names of files.
MATRICES = ("depth-liresnet", "depth-liresnet-24", "depth-resnet", "depth-resnet-24", "depth-convnet")
EARLIER = ("depth-cifar10", "open-branches-depth")
SHALLOW, DEEP = 3, 12  # blocks between which a gain from depth is measured
SHUT = "resnet, shut"  # conventional blocks whose branches begin at scale 0
NAMES = {"liresnet": "LiResNet", "resnet": "ResNet", SHUT: "ResNet, branches shut at the start", "convnet": "ConvNet"}
MARKERS = {"liresnet": ("o", "-"), "resnet": ("s", "--"), SHUT: ("^", "-."), "convnet": ("D", ":")}
COLOURS = {"liresnet": BLUE, "resnet": VERMILLION, SHUT: PURPLE, "convnet": GREEN}
NOT_RUN = "not run"
OPEN = 0.01  # what a branch must add to its block's constant to count as open
_CHANCE = 1.05  # times one in so many classes: a network that says the same of every image has exactly that
_GUARANTEES = ("executed", "real", "nominal")


@dataclass(frozen=True)
class Budget:
    """One recipe and length. `images` are those seen in training by each of its runs."""

    epochs: float
    width: int
    optimizer: str
    images: int

    @property
    def title(self) -> str:
        """`6 epochs`."""
        return f"{self.epochs:g} epochs"

    def extends(self, other: "Budget") -> bool:
        """Whether the two differ in length alone."""
        return (self.width, self.optimizer) == (other.width, other.optimizer)


@dataclass(frozen=True)
class Arm:
    """One family at one depth and budget: the runs asked for, one a seed, and the records there are."""

    cells: tuple[TrainConfig, ...] = ()
    runs: tuple[Record, ...] = ()
    stopped: tuple[Record, ...] = ()  # records of runs that did not reach their end

    @property
    def ids(self) -> list[str]:
        """Of all runs asked for."""
        return [_id(cell) for cell in self.cells]

    @property
    def seeds(self) -> str:
        """`one run`, `3 seeds`."""
        return "one run" if len(self.runs) == 1 else f"{len(self.runs)} seeds"


@dataclass(frozen=True)
class View:
    """What the page reads from a record.

    Raises:
        ConfigError: a data set, radius or guarantee that the runs do not have.
    """

    dataset: str = "cifar10"
    radius: str = "36/255"
    guarantee: str = "executed"

    def __post_init__(self) -> None:
        cells = [cell for study in studies() for cell in study.cells]
        sets, radii = dict.fromkeys(c.dataset for c in cells), dict.fromkeys(r for c in cells for r in c.report_radii)
        known = (
            ("dataset", self.dataset in sets, sets),
            ("radius", Radius(self.radius) in map(Radius, radii), radii),
            ("guarantee", self.guarantee in _GUARANTEES, _GUARANTEES),
        )
        for name, right, values in known:
            if not right:
                raise ConfigError(f"{name}={getattr(self, name)!r}: the runs on depth have {', '.join(values)}")

    def count(self, run: Record, guarantee: str | None = None) -> int | None:
        """Test images that are right and certified, or claimed with guarantee "estimated"; None if not measured."""
        result = run.result(self.radius, guarantee or self.guarantee)
        return None if result is None else result.certified_correct

    def shares(self, arm: Arm) -> list[float]:
        """VRA of every run that was so certified, per cent of the test images."""
        counts = [(self.count(run), run.test.images) for run in arm.runs]
        return [100 * count / images for count, images in counts if count is not None]


# --- runs ------------------------------------------------------------------------------------------------------------


def studies() -> list[Study]:
    """The study files there are, the matrices of the experiment first."""
    paths = [STUDIES / f"{name}.yaml" for name in (*MATRICES, *EARLIER)]
    return [_study(path) for path in paths if path.exists()]


@functools.cache
def _study(path: Path) -> Study:
    return load_study(path)


def family_of(cell: TrainConfig) -> str:
    """The key of `NAMES` it belongs to: a resnet whose branches begin at scale 0 is another arm."""
    return SHUT if cell.family == "resnet" and not cell.branch_scale else cell.family


def budgets(dataset: str = "cifar10") -> dict[Budget, dict[tuple[str, int], Arm]]:
    """Every arm by family and depth, in budgets from the shortest to the longest."""
    found: dict[Budget, dict[tuple[str, int], Arm]] = {}
    for cell in (cell for study in studies() for cell in study.cells if cell.dataset == dataset):
        arms = found.setdefault(Budget(cell.epochs, cell.width, cell.optimizer, seen(cell)), {})
        key = (family_of(cell), cell.depth)
        arm, record = arms.get(key, Arm()), _record(cell)
        kept = (record,) if record else ()
        finished = kept if record and record.test is not None else ()
        stopped = kept if not finished else ()
        arms[key] = Arm((*arm.cells, cell), (*arm.runs, *finished), (*arm.stopped, *stopped))
    order = list(NAMES)
    return {
        budget: dict(sorted(found[budget].items(), key=lambda item: (order.index(item[0][0]), item[0][1])))
        for budget in sorted(found, key=lambda budget: (budget.images, budget.width))
    }


def _record(cell: TrainConfig) -> Record | None:
    """The published record of a cell, a stopped one too. Its settings are literals, so that its id is known."""
    path = results_dir() / "runs" / f"{_id(cell)}.json"
    return _read(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.cache
def _id(cell: TrainConfig) -> str:
    return cell.run_id()


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Record:
    return read_record(path)


def counted(arms: Iterable[Arm]) -> tuple[int, int]:
    """Runs published and planned."""
    arms = list(arms)
    return sum(len(arm.runs) for arm in arms), sum(len(arm.cells) for arm in arms)


def families(arms: dict[tuple[str, int], Arm]) -> dict[str, dict[int, Arm]]:
    """Arms of a budget by family, then by depth."""
    found: dict[str, dict[int, Arm]] = {}
    for (family, depth), arm in arms.items():
        found.setdefault(family, {})[depth] = arm
    return found


def branch_additions(run: Record) -> list[float]:
    """What the branch of every conventional block adds to its constant of 1, proven upper ends."""
    return [layer.upper - 1 for layer in run.bounds.layers if layer.kind == "Residual"]


def untrained(run: Record) -> bool:
    """Whether its clean accuracy is that of one guess for all images."""
    return run.clean_accuracy() <= _CHANCE / run.data.classes


def records(dataset: str = "cifar10") -> list[Record]:
    """All finished runs of the page."""
    return [run for arms in budgets(dataset).values() for arm in arms.values() for run in arm.runs]


def progress() -> list[tuple[str, int, int]]:
    """Study files, with the runs published and planned."""
    counted = [(s.name, [r for c in s.cells if (r := _record(c)) and r.test is not None], s.cells) for s in studies()]
    return [(name, len(done), len(cells)) for name, done, cells in counted]


def recipe(budget: Budget, arms: dict[tuple[str, int], Arm]) -> str:
    """What the runs of a budget share, in words; a setting that differs between families with each one's value."""
    cells = [cell for arm in arms.values() for cell in arm.cells]
    said = [
        f"{_value(cells, 'optimizer').replace('muon', 'Muon').replace('adamw', 'AdamW')} at a learning rate of "
        f"{_value(cells, 'lr')}",
        f"batches of {_value(cells, 'batch')}",
        f"width {_value(cells, 'width')}",
        f"training radius up to {_value(cells, 'radius_end')} times {_value(cells, 'radius')}",
        _value(cells, "precision"),
    ]
    return f"{budget.title}, {budget.images:,} images: {', '.join(said)}"


def varied(arms: dict[tuple[str, int], Arm]) -> set[str]:
    """Names of the settings that are not the same in all runs of a budget."""
    dumps = [cell.model_dump() for arm in arms.values() for cell in arm.cells]
    return {name for name in dumps[0] if any(dump[name] != dumps[0][name] for dump in dumps)}


def _value(cells: Sequence[TrainConfig], name: str) -> str:
    by_family: dict[str, dict[str, None]] = {}
    for cell in cells:
        value = getattr(cell, name)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        by_family.setdefault(NAMES[family_of(cell)], {})[text] = None
    texts = {family: " or ".join(values) for family, values in by_family.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return " / ".join(f"{text} ({family})" for family, text in texts.items())
