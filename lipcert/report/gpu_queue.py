"""The queue of runs that wait for a GPU: what each is, its command, and what a count of operations predicts for it.

A prediction is made before the run and stays as it was made. It rests on two things, both written out here: rates of
one H200, of which only the matrix product was ever measured (`RATES`), and a rule of thumb for VRA (`predicted_vra`).

Shape letters: R rows, C columns of a matrix, R <= C.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig, load_config
from lipcert.data.registry import DATASETS
from lipcert.families import FAMILIES
from lipcert.paths import ROOT
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.checks import find_check
from lipcert.report.tables import Markdown, percent, table

FOLDER = ROOT / "notebooks" / "params" / "gpu"
# Operations or bytes a second of an H200. "convolutions": a bfloat16 matrix product of 8192, measured elsewhere; what a
# training step reaches of it is `UTILISATION`. The others are guesses until `benchmarks.gpu_step` has measured them.
RATES = {"convolutions": 790e12, "products": 25e12, "estimates": 15e12, "memory": 3.4e12}
UTILISATION = (0.35, 0.40)  # of the convolutions' rate; 0.5 is what good code reaches on large products
HOST_SECONDS = 0.02  # to launch the some 800 kernels of an eager step
_PASSES = 13  # over a block's output, beside its convolutions: MinMax and bias, forward and backward
_BYTES = 2  # of a number in bfloat16
_MAP = 16  # side of the blocks' maps for images of 32 pixels
# VRA at 36/255, in per cent: the best 1-Lipschitz layer after 2 hours of an A100 on CIFAR-10, after 24 hours, and after
# 24 hours on CIFAR-100, none with generated data (B. Prach et al., "1-Lipschitz layers compared", CVPR 2024).
AIMS = {2: 61.6, 3: 66.3, 4: 34.9}
# A CPU's run of the plain recipe: VRA in per cent, images, width. Gains per doubling of either, from and to.
_KNOWN = {"cifar10": (55.03, 898_560, 80), "cifar100": (25.37, 449_280, 80)}
GAINS = (1.0, 1.5)
_SEEDS = (1, 2)


@dataclass(frozen=True)
class Entry:
    """One run of the queue.

    order: its place; what lies on the same place runs in the order of the names. path: None where it has no file.
    """

    order: int
    title: str
    command: str
    path: Path | None = None

    @property
    def config(self) -> TrainConfig | None:
        return None if self.path is None else load_config(self.path)


@dataclass(frozen=True)
class Counts:
    """Operations of one step of a LiResNet, by what they run as, and bytes of element-wise work. All for the batch."""

    convolutions: float
    orthogonalisation: float
    optimizer: float
    estimates: float
    traffic: float


@dataclass(frozen=True)
class Predicted:
    """Images a second and passes over the training images, from the least to the most."""

    rate: tuple[float, float]
    epochs: tuple[float, float]


def entries() -> list[Entry]:
    """The queue in order: the measurement, every file, and the seeds of entry 2.

    Raises:
        ValueError: a file whose head does not say which entry it is.
    """
    found = [Entry(1, "Speed of the training step", "python -m benchmarks.gpu_step")]
    for path in sorted(FOLDER.glob("*.yaml")):
        head = re.match(r"# GPU queue, entry (\d+): (.+?)(?:\. |, by|\n)", path.read_text())
        if not head or not path.name.startswith(f"{head[1]}-"):
            raise ValueError(f"{path}: must begin with '# GPU queue, entry N: ', N as in its name")
        command = f"lipcert train {path.relative_to(ROOT).as_posix()}"
        found.append(Entry(int(head[1]), head[2], command, path))
    seeds = " ".join(map(str, _SEEDS))
    again = f"for s in {seeds}; do lipcert train results/local/runs/ID.json seed=$s; done"
    found.append(Entry(5, f"Seeds {' and '.join(map(str, _SEEDS))} of entry 2, from its record", again))
    return sorted(found, key=lambda entry: entry.order)


# --------------------------------------------------------------------------------------------------------------- counts
def forward_operations(config: TrainConfig) -> float:
    """Floating-point operations of one image of 32 pixels, forward, through a LiResNet with orthogonal neck."""
    width, features, classes = config.width, config.neck_width, config.classes or DATASETS[config.dataset].classes
    cells = (_MAP // 4) ** 2
    trunk = 2.0 * _MAP**2 * width * (25 * DATASETS[config.dataset].shape[0] + 9 * width * config.depth)
    neck = 2.0 * cells * 16 * width**2 + 2.0 * cells * width * features
    return trunk + neck + 2.0 * features * (config.tail_depth * features + classes)


def counts(config: TrainConfig) -> Counts:
    """Of one step, as lipcert computes it: eager, orthogonalisation and optimiser once a step, whatever the batch.

    Raises:
        ValueError: another network than a LiResNet with orthogonal neck on images of 32 pixels.
    """
    channels, size, _ = DATASETS[config.dataset].shape
    if (config.family, config.neck, size) != ("liresnet", "orthogonal", 32):
        raise ValueError(f"family={config.family!r}, neck={config.neck!r}, {size} pixels: counted are LiResNets on 32")
    width, depth, features = config.width, config.depth, config.neck_width
    necks = [(width, 16 * width), (features, (_MAP // 4) ** 2 * width), *[(features, features)] * config.tail_depth]
    matrices = [(width, 25 * channels), *[(width, 9 * width)] * depth, *necks]
    product = 2.0 * _MAP**2 * 9 * width**2 * depth  # of all blocks with one vector each
    return Counts(
        convolutions=3 * config.batch * forward_operations(config),
        orthogonalisation=sum(map(_orthogonalise, necks)),
        optimizer=sum(map(_polar, matrices)) if config.optimizer == "muon" else 0.0,
        estimates=(2 * config.power_steps + 2) * product,
        traffic=_PASSES * _BYTES * config.batch * (depth + 4) * _MAP**2 * width,  # the stem's map is four blocks' worth
    )


def _orthogonalise(shape: tuple[int, int]) -> float:
    """Gram matrix (a triangle), factor and solve; one triangle of a product, a product and a solve backward."""
    r, c = map(float, sorted(shape))
    return 6 * r**2 * c + r**3 / 3


def _polar(shape: tuple[int, int]) -> float:
    """Of `lipcert.optimizers.polar_factor`: two products with the wide matrix, 19 of small ones in five rounds."""
    r, c = map(float, sorted(shape))
    return 4 * r**2 * c + 38 * r**3


def parameters(config: TrainConfig) -> int:
    """Of a LiResNet with orthogonal neck on images of 32 pixels, without a tail."""
    width, features, classes = config.width, config.neck_width, config.classes or DATASETS[config.dataset].classes
    trunk = width * (25 * DATASETS[config.dataset].shape[0] + 1) + config.depth * width * (9 * width + 2)
    return trunk + 16 * width**2 + features * (16 * width + 1) + classes * (features + 1)


# ---------------------------------------------------------------------------------------------------------- predictions
def step_seconds(config: TrainConfig, utilisation: float, rates: Mapping[str, float] = RATES) -> float:
    """Seconds of a step: parts one after the other, or launching them, if that takes longer."""
    step = counts(config)
    device = step.convolutions / (utilisation * rates["convolutions"]) + step.traffic / rates["memory"]
    device += (step.orthogonalisation + step.optimizer) / rates["products"] + step.estimates / rates["estimates"]
    return max(device, HOST_SECONDS)


def predicted(config: TrainConfig) -> Predicted:
    """What `minutes` are worth.

    Raises:
        ValueError: a length that is not in minutes; as `counts`.
    """
    if config.minutes is None:
        raise ValueError("a prediction needs a length in minutes")
    low, high = (config.batch / step_seconds(config, share) for share in UTILISATION)
    images = DATASETS[config.dataset].train
    return Predicted((low, high), (60 * config.minutes * low / images, 60 * config.minutes * high / images))


def predicted_vra(config: TrainConfig) -> tuple[float, float]:
    """Per cent at 36/255 after the images of `predicted`, by `extrapolated`."""
    train = DATASETS[config.dataset].train
    (low, _), (_, high) = (
        extrapolated(config.dataset, train * epochs, config.width) for epochs in predicted(config).epochs
    )
    return low, high


def extrapolated(dataset: str, images: float, width: int) -> tuple[float, float]:
    """Per cent at 36/255: a CPU's run, plus 1 to 1.5 points for every doubling of its images and of its width.

    A rule of thumb, fitted to nothing but the published LiResNets without generated data, which lie inside of its
    ranges: L18W256 65.1 % and L12W512 66.9 % on CIFAR-10, 36.3 and 37.5 % on CIFAR-100. It knows nothing of optimisers,
    whose gain at this size is unknown, and of overfitting.
    """
    known, seen, wide = _KNOWN[dataset]
    doublings = math.log2(images / seen) + math.log2(width / wide)
    return known + GAINS[0] * doublings, known + GAINS[1] * doublings


# --------------------------------------------------------------------------------------------------------------- tables
def queue_table() -> Markdown:
    """Every entry with its command, what it aims at, what is predicted and what came out."""
    records = list(load_records())
    rows = [(e.order, e.title, f"`{e.command}`", _aim(e), _prediction(e), status(e, records)) for e in entries()]
    return table(("entry", "run", "command", "aim", "predicted", "status"), rows, right=(0,))


def counts_table() -> Markdown:
    """Entries 2 to 4 in numbers, all of them counted before anything ran."""
    head = ("entry", "network", "weights, MB", "batch", "GFLOP an image", "of the step", "images/s", "epochs", "steps")
    rows = [_counted(entry) for entry in entries() if _is_liresnet(entry)]
    return table(head, rows, right=(0, 2, 3, 4, 6, 7, 8))


def status(entry: Entry, records: list[Record]) -> str:
    """What the records say of an entry; "not run" where there are none."""
    if entry.path is None:
        check = find_check("gpu-step") if entry.order == 1 else None
        return f"{check.verdict}: {check.measured}" if check else "not run"
    found = [record for record in records if _same_run(record.config, entry.config) and record.test is not None]
    if not found:
        return "not run"
    results = [(record, record.result(record.config.radius)) for record in found]
    return "; ".join(
        f"{percent(result.certified_correct / record.test.images)} (seed {record.config.seed})"
        for record, result in results
        if result is not None
    )


def _same_run(config: TrainConfig, asked: TrainConfig) -> bool:
    """Minutes became steps, and arithmetic may have been chosen otherwise on the day."""
    free = {"steps", "epochs", "minutes", "seed", "device", "precision", "layout", "compiled", "kernels"}
    return config.model_dump(exclude=free) == asked.model_dump(exclude=free) and config.steps is not None


def _aim(entry: Entry) -> str:
    if entry.order in AIMS:
        return f"VRA at 36/255 of {AIMS[entry.order]} % or more"
    return {1: "sizes for the runs below", 5: "spread"}.get(entry.order, "see the file")


def _prediction(entry: Entry) -> str:
    if not _is_liresnet(entry):
        return ""
    low, high = predicted_vra(entry.config)
    return f"{low:.0f} to {high:.0f} %"


def _is_liresnet(entry: Entry) -> bool:
    config = entry.config
    return config is not None and config.minutes is not None and FAMILIES[config.family].norm == "l2"


def _counted(entry: Entry) -> tuple[object, ...]:
    config, step = entry.config, counts(entry.config)
    found, seconds = predicted(config), step_seconds(config, UTILISATION[1])
    shares = {
        "convolutions": step.convolutions / (UTILISATION[1] * RATES["convolutions"]),
        "element-wise": step.traffic / RATES["memory"],
        "norms": step.estimates / RATES["estimates"],
        "orthogonalisation": step.orthogonalisation / RATES["products"],
        "optimiser": step.optimizer / RATES["products"],
    }
    steps = [60 * config.minutes * rate / config.batch for rate in found.rate]
    return (
        entry.order, f"L{config.depth} W{config.width}, neck {config.neck_width}",
        f"{4e-6 * parameters(config):.0f}", config.batch,
        f"{step.convolutions / config.batch / 1e9:.1f}",
        ", ".join(f"{name} {part / seconds:.0%}" for name, part in shares.items()),
        _range(found.rate), _range(found.epochs), _range(steps),
    )  # fmt: skip


def _range(values: "list[float] | tuple[float, float]") -> str:
    low, high = (round(value, 2 - len(str(int(value)))) for value in values)
    return f"{low:,.0f} to {high:,.0f}"
