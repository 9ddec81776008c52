"""The matrices of runs behind experiments 1 to 4: what each asks, how many runs it is, what they were planned to cost.

A matrix is a study file whose head begins `# Experiment N, title. Question?`; the rest of its head says what was cut.
Two prices stand on every one: counted operations, which hold on any machine, and processor-hours predicted from times
of the study's own machine, which the records then confirm or not.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig, steps_of
from lipcert.data.registry import DATASETS
from lipcert.families import GLORO_NETS
from lipcert.paths import ROOT
from lipcert.records import load_records
from lipcert.report.operations import forward_operations as trunk_operations
from lipcert.report.tables import Markdown, table
from lipcert.study import Study, load_study, record_of, records_by_id

FOLDER = ROOT / "notebooks" / "params" / "study"
# The order in which they are run, and in which they are cut from the end: by experiment.
PRIORITY = (3, 2, 4, 1)
BUDGET_HOURS = 8.0  # of one processor core, two of which share four hours

# One thread of an AMD EPYC beside another busy one, float32, native kernels, in milliseconds of a step on 128 images:
# a convolution of 3x3 on maps of 16x16, forward and backward, and all the rest of the step, by the network's width.
LAYER_MS = {16: 3.8, 32: 7.0, 64: 18.0}
REST_MS = {16: 22.0, 32: 26.0, 64: 63.0}
CLASS_MS = 0.08  # each class beyond 10: head, pair distances, loss
# Networks of other families, images a second, by family, depth and width.
OTHER_RATES = {("gloro", 2, 16): 5700.0, ("gloro", 6, 16): 1450.0, ("linf_net", 4, 512): 950.0}
# To certify 10,000 images in float64: of every convolution by width; of a network of another family.
CERTIFY_SECONDS = {16: 0.6, 32: 1.0, 64: 2.7}
OTHER_CERTIFY_SECONDS = {"gloro": 8.0, "linf_net": 75.0}
BUSY = 1.15  # a run of a million images against single steps: reading, reporting, caches shared with the other run
START_SECONDS = 8.0  # of every run: reading and checking the images, the network's first norms


@dataclass(frozen=True)
class Matrix:
    """One study file of the plan.

    experiment: its number. shared: cells that a matrix before it in the order of `matrices` has too.
    """

    experiment: int
    title: str
    question: str
    study: Study
    shared: frozenset[TrainConfig]

    @property
    def own(self) -> tuple[TrainConfig, ...]:
        """The runs that this matrix adds."""
        return tuple(cell for cell in self.study.cells if cell not in self.shared)

    def images(self) -> int:
        """Seen in training by the runs it adds."""
        return sum(seen(cell) for cell in self.own)

    def operations(self) -> float:
        """Counted floating-point operations of training of the runs it adds: gradients cost twice the forward pass."""
        return sum(3 * forward_operations(cell) * seen(cell) for cell in self.own)

    def hours(self) -> float:
        """Predicted, of one core, for the runs it adds: training, snapshots and certification."""
        return sum(map(run_seconds, self.own)) / 3600


def matrices(folder: Path = FOLDER) -> list[Matrix]:
    """Every matrix of the plan, those to be run first in front.

    Raises:
        ValueError: a head that begins like a matrix's and goes on otherwise.
    """
    heads = []
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        if not text.startswith("# Experiment "):
            continue
        head = re.match(r"# Experiment (\d), (.+?)\. (.+\?)\n", text)
        if head is None or int(head[1]) not in PRIORITY:
            raise ValueError(f"{path}: must begin with '# Experiment N, title. Question?', N of {sorted(PRIORITY)}")
        heads.append((PRIORITY.index(int(head[1])), path.stem, path, head))
    found, known = [], set()
    for _, _, path, head in sorted(heads, key=lambda each: each[:2]):
        study = load_study(path)
        found.append(Matrix(int(head[1]), head[2], head[3], study, frozenset(known & set(study.cells))))
        known |= set(study.cells)
    return found


# --------------------------------------------------------------------------------------------------------------- counts
def classes(config: TrainConfig) -> int:
    """How many the network tells apart."""
    return config.classes or DATASETS[config.dataset].classes


def training_images(config: TrainConfig) -> int:
    """In the training set of a run: those it keeps, or all of its classes."""
    facts = DATASETS[config.dataset]
    return config.train_images or facts.train * classes(config) // facts.classes


def seen(config: TrainConfig) -> int:
    """Images seen in training: steps x batch."""
    return steps_of(config, training_images(config)) * config.batch


def forward_operations(config: TrainConfig) -> float:
    """Floating-point operations of one image, forward: convolutions and products, two for a multiplication and its
    addition; of l_inf-distance nets two a weight.

    Raises:
        ValueError: a network that nobody counted.
    """
    channels, size, _ = DATASETS[config.dataset].shape
    if config.family == "gloro":
        return _gloro_operations(config, channels, size)
    if config.family == "linf_net":
        widths = [channels * size**2, *[config.width] * (config.depth - 1), classes(config)]
        return 2.0 * sum(rows * columns for rows, columns in itertools.pairwise(widths))
    if size not in (28, 32) or config.neck != "orthogonal":  # 28 pixels are padded to 32
        raise ValueError(f"neck={config.neck!r} on {size} pixels: counted are orthogonal necks on 28 and 32 pixels")
    second = 2.0 * 16**2 * 9 * config.width**2 * config.depth  # a conventional block's other convolution
    return trunk_operations(config) + (second if config.family == "resnet" else 0.0)


def _gloro_operations(config: TrainConfig, channels: int, size: int) -> float:
    layout, hidden, _ = GLORO_NETS[config.depth]
    total = 0.0
    for text in layout.split():
        filters, kernel, stride = map(int, re.findall(r"\d+", text))
        size //= stride
        total += 2.0 * size**2 * kernel**2 * channels * filters * config.width
        channels = filters * config.width
    features = channels * size**2
    for _ in range(hidden):
        total += 2.0 * features * config.neck_width
        features = config.neck_width
    return total + 2.0 * features * classes(config)


# ---------------------------------------------------------------------------------------------------------- predictions
def run_seconds(config: TrainConfig) -> float:
    """Predicted seconds of a whole run on one core."""
    return START_SECONDS + training_seconds(config) + max(config.snapshots, 1) * certification_seconds(config)


def training_seconds(config: TrainConfig) -> float:
    """Predicted: steps of so many layers, or images at the rate of a family that was timed as a whole.

    Raises:
        ValueError: a network that nobody timed.
    """
    if (rate := OTHER_RATES.get((config.family, config.depth, config.width))) is not None:
        return BUSY * seen(config) / rate
    if config.width not in LAYER_MS or config.family not in ("liresnet", "resnet", "convnet"):
        raise ValueError(f"{config.family} of width {config.width}: not timed; timed widths are {sorted(LAYER_MS)}")
    step = REST_MS[config.width] + CLASS_MS * (classes(config) - 10) + LAYER_MS[config.width] * _convolutions(config)
    return BUSY * step / 1000 * seen(config) / 128


def certification_seconds(config: TrainConfig) -> float:
    """Predicted, of the test images of the run's classes, once."""
    facts = DATASETS[config.dataset]
    whole = OTHER_CERTIFY_SECONDS.get(config.family)
    if whole is None:
        whole = 1 + CERTIFY_SECONDS[config.width] * _convolutions(config)
    return BUSY * whole * facts.test * classes(config) / facts.classes / 10_000


def _convolutions(config: TrainConfig) -> int:
    return config.depth * (2 if config.family == "resnet" else 1)


# --------------------------------------------------------------------------------------------------------------- tables
def plan_table() -> Markdown:
    """Every matrix: question, runs, images, operations, predicted hours and what the records have."""
    head = ("matrix", "question", "runs", "images, 10⁶", "operations, 10¹²", "core-hours", "made")
    plan, rows = matrices(), []
    for matrix in plan:
        ran = list(_ran(matrix))
        spent = f", {sum(seconds for _, seconds in ran) / 3600:.2f} h" if ran else ""
        rows.append(
            (
                f"{matrix.experiment}, {matrix.title}<br>`{matrix.study.name}`", matrix.question,
                f"{len(matrix.own)}" + (f" + {len(matrix.shared)} shared" if matrix.shared else ""), *_sizes([matrix]),
                f"{len(ran)} of {len(matrix.own)}{spent}",
            )
        )  # fmt: skip
    rows.append(("all", "", sum(len(matrix.own) for matrix in plan), *_sizes(plan), ""))
    return table(head, rows, right=(2, 3, 4, 5))


def _sizes(plan: Sequence[Matrix]) -> tuple[str, str, str]:
    images, operations = sum(matrix.images() for matrix in plan), sum(matrix.operations() for matrix in plan)
    return f"{images / 1e6:.1f}", f"{operations / 1e12:,.0f}", f"{sum(matrix.hours() for matrix in plan):.2f}"


def plan_words() -> Markdown:
    """The size of the plan in a sentence or two, and how the prediction stands against what was run."""
    plan = matrices()
    images, operations, hours = _sizes(plan)
    text = (
        f"The plan has {sum(len(matrix.own) for matrix in plan)} runs in {len(plan)} matrices: {images} million "
        f"images, {operations}·10¹² counted operations, by prediction {hours} hours of one processor core, where "
        f"{BUDGET_HOURS:g} were to be had. What did not fit was cut: first width, then points, then families. Where "
        "seeds were cut, nothing is called better."
    )
    ran = [run for matrix in plan for run in _ran(matrix)]
    if not ran:
        return Markdown(f"{text} None of them has been run yet.")
    predicted, spent = (math.fsum(column) / 3600 for column in zip(*ran, strict=True))
    return Markdown(f"{text} {len(ran)} were run: {predicted:.2f} hours by prediction, {spent:.2f} by their records.")


def cost_words() -> Markdown:
    """How the hours are predicted."""
    widths = ", ".join(f"{milliseconds:g} ms at width {width}" for width, milliseconds in LAYER_MS.items())
    rests = ", ".join(f"{milliseconds:g}" for milliseconds in REST_MS.values())
    return Markdown(
        "A step is predicted as so many convolutions and a rest, timed on one thread of the study's machine while its "
        f"neighbour was busy. A convolution of 3x3 on 128 maps of 16x16, forward and backward: {widths}. All the rest "
        f"of such a step (stem, neck, norms, loss, optimiser): {rests} ms, and {CLASS_MS:g} ms for each class beyond "
        f"10. {100 * (BUSY - 1):.0f} % are added, which a long run took beyond its steps, and {START_SECONDS:g} s to "
        "start. Time grows more slowly than operations do: at these widths a layer is bound by memory, so that halving "
        "the width saves less than half."
    )


def _ran(matrix: Matrix) -> Iterator[tuple[float, float]]:
    """Predicted and measured seconds of every run there is a record of; a record counts neither snapshots nor start."""
    published = records_by_id(load_records())
    for cell in matrix.own:
        if (record := record_of(cell, published)) is not None:
            yield run_seconds(cell), record.training.seconds + record.test.seconds
