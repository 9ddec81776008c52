"""What a certified network costs to train: images, operations and seconds of each system to a VRA that all reach.

A system is one study file: a network with its recipe. What a step of it costs in time and memory beside a plain network
stands in the checks `cost` and `training-step`; each part says "not run" without its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lipcert.record import Record
from lipcert.report.checks import Check, find_check
from lipcert.report.matrices import forward_operations
from lipcert.report.names import DATASETS, network_name
from lipcert.report.speed_runs import Recipe, reached, recipe
from lipcert.report.speed_step import FLOAT32, nets
from lipcert.report.tables import Markdown, duration, machine, table

# Data set -> systems: name for readers, study file. The first of a data set is its oldest.
SYSTEMS = {
    "mnist": (
        ("GloRo net", "vra-gloro-mnist"),
        ("LiResNet, our recipe", "vra-liresnet-mnist"),
        ("ℓ∞-distance net", "linf-mnist-0.3"),
    ),
    "cifar10": (
        ("GloRo net", "vra-gloro-cifar10"),
        ("LiResNet, the papers' recipe", "speedrun-cpu-papers"),
        ("LiResNet, our recipe", "speedrun-cpu"),
        ("LiResNet, our recipe, half the width", "vra-liresnet-cifar10"),
        ("ℓ∞-distance net", "linf-cifar10"),
    ),
    "cifar100": (
        ("GloRo net", "vra-gloro-cifar100"),
        ("LiResNet, our recipe", "class-count-100"),
        ("ℓ∞-distance net", "vra-linf-cifar100"),
    ),
}
_NONE = "not run"
_LENGTHS = (
    "A look on the way is not a shorter run: its learning rate is still high. So an end and a point on the way do not "
    "rank two systems of different length."
)
PAPERS = "the papers' way"
AN_IMAGE = ", an image"


@dataclass(frozen=True)
class Arrival:
    """What a system needed to a VRA: images seen and seconds of training, from its mean curve.

    passed: whether it got there; if not, both are what it had at its end. at_most: it was above at its first look
    already, so both are upper limits.
    """

    images: float
    seconds: float
    passed: bool
    at_most: bool


def systems(dataset: str) -> list[Recipe]:
    """All systems of a data set, those not run without runs.

    Raises:
        ValueError: a data set without systems.
    """
    if dataset not in SYSTEMS:
        raise ValueError(f"dataset={dataset!r}: must be one of {', '.join(SYSTEMS)}")
    return [recipe(name, title) for title, name in SYSTEMS[dataset]]


def is_l2(system: Recipe) -> bool:
    """Whether its radius is one in l2; those of other norms stand beside, not against."""
    return bool(system.cells) and system.cells[0].norm == "l2"


def top(system: Recipe) -> float:
    """The highest mean VRA that it was seen at, per cent; it must have runs."""
    return max(point.vra for point in system.mean_curve())


def levels(dataset: str) -> list[int]:
    """VRA in whole per cent to compare at: what all l2 systems reach, and what all but one do; fewer with fewer."""
    tops = sorted(top(system) for system in systems(dataset) if is_l2(system) and system.runs)
    return sorted({math.floor(value) for value in tops[:2]}) if len(tops) > 1 else []


def arrival(system: Recipe, vra: float) -> Arrival:
    """When the mean over its seeds first passes a VRA; it must have runs."""
    points = system.mean_curve()
    images = reached(points, vra)
    seconds = reached([replace(point, images=point.seconds) for point in points], vra)
    return Arrival(images.images, seconds.images, images.passed, points[0].vra >= vra)


def training_operations(system: Recipe) -> float | None:
    """Counted operations of an image seen in training, gradients at twice the forward pass; None where not counted.

    Convolutions and products only: what a step takes whatever its batch is left out.
    """
    try:
        return 3 * forward_operations(system.cells[0])
    except ValueError:
        return None


def records(dataset: str) -> list[Record]:
    """All runs behind the comparison."""
    return [run for system in systems(dataset) for run in system.runs]


# ------------------------------------------------------------------------------------------------------------ equal VRA
def equal_table(dataset: str) -> Markdown:
    """Images, operations and seconds of every system to the VRAs of `levels`."""
    marks = levels(dataset)
    rows = []
    for system in systems(dataset):
        if not system.runs:
            rows.append((system.title, _NONE, _NONE, *[_NONE] * max(len(marks), 1)))
            continue
        run = system.runs[0]
        network = f"{network_name(run)}, {run.model.parameters / 1e6:.2f} M"
        end = f"{system.mean():.2f} % at {run.config.radius} ({system.seeds}), {run.training.images:,} images"
        rows.append((system.title, network, end, *(_cell(system, mark) for mark in marks or (math.inf,))))
    names = [f"to {mark} %: images, 10¹⁵ operations, time" for mark in marks] or ["to a VRA that all reach"]
    return table(("system", "network", "VRA at the end", *names), rows)


def _cell(system: Recipe, vra: float) -> str:
    """`≤ 496,640; 0.15; 6.2 min`."""
    if not is_l2(system):
        return "another norm"
    if vra == math.inf:
        return "not comparable yet"
    found = arrival(system, vra)
    if not found.passed:
        return f"**never**, in {found.images:,.0f}"
    each = training_operations(system)
    counted = "not counted" if each is None else f"{found.images * each / 1e15:.2f}"
    return f"{'≤ ' if found.at_most else ''}{found.images:,.0f}; {counted}; {duration(found.seconds)}"


def equal_words(dataset: str) -> Markdown:
    """The table in words: what each system needs to the common VRA, who never reaches the next one."""
    done = [system for system in systems(dataset) if is_l2(system) and system.runs]
    missing = [system.title for system in systems(dataset) if not system.runs]
    said = []
    if marks := levels(dataset):
        said += [_arrivals(done, marks[0]), *_never(done, marks)]
        said.append(
            "Read off the mean of the seeds on straight lines between looks; ≤ where a run was above at its first look "
            "or not looked at before its end. Operations hold on any machine. The seconds are those of the records "
            f"({' and '.join(sorted({machine(run) for system in done for run in system.runs}))}, beside other "
            "programs): for orientation, and no ratio is made of them."
        )
    else:
        said.append(f"Fewer than two systems with an ℓ₂ radius have been run on {DATASETS[dataset]}: **not run**.")
    if len({system.cells[0].radius for system in done}) > 1:
        raise ValueError(f"systems of {dataset} at radii {[s.cells[0].radius for s in done]}: must share one")
    said += [f"Not run: {'; '.join(missing)}."] if missing else []
    return Markdown(" ".join(said))


def _arrivals(done: Sequence[Recipe], mark: int) -> str:
    """Images of each system to a VRA that all reach; only those trained for as long stand in one sentence."""
    by_length: dict[int, list[Recipe]] = {}
    for system in done:
        by_length.setdefault(system.runs[0].training.images, []).append(system)
    said = [f"All {len(done)} systems with an ℓ₂ radius reach {mark} %."]
    for length, group in sorted(by_length.items()):
        found = sorted(((arrival(system, mark), system.title) for system in group), key=lambda item: item[0].images)
        parts = [f"*{title}* after {'at most ' if each.at_most else ''}{each.images:,.0f}" for each, title in found]
        said.append(f"In runs of {length:,} images: {', '.join(parts)}.")
    return " ".join([*said, _LENGTHS] if len(by_length) > 1 else said)


def _never(done: Sequence[Recipe], marks: Sequence[int]) -> list[str]:
    """A sentence for every system and level it does not reach."""
    late = [(system, mark) for mark in marks for system in done if not arrival(system, mark).passed]
    return [
        f"*{system.title}* never reaches {mark} %: it stands at {top(system):.2f} % at best, within "
        f"{system.runs[0].training.images:,} images."
        for system, mark in late
    ]


# ------------------------------------------------------------------------------------------------------- cost of a step
def step_table() -> Markdown:
    """Time and memory of a training step beside a plain network's: every family under the loss of its paper."""
    check = find_check("cost")
    rows = []
    for row in check.rows[1:] if check else ():
        network, loss, _, time, held, memory = row
        if (network, loss) in _PAIRS or "no bound" in loss:
            rows.append((f"{network}, {loss}", f"{time} × a plain step", f"{held} MB", f"{memory} ×", "`cost`"))
    rows += _step_rows(find_check("training-step"))
    if not rows:
        return Markdown("Not run: `python -m benchmarks.cost` and `python -m benchmarks.training_step` measure it.")
    return table(("training step", "time", "memory", "of a plain network's", "check"), rows, right=(2, 3))


_PAIRS = {
    ("ConvNet", "EMMA"), ("LiResNet", "EMMA"), ("ResNet, conventional", "EMMA"), ("LiResNet, third generation", "EMMA"),
    ("GloRo 6C2F", "GloRo"),
}  # fmt: skip
_STEP_ROWS = {
    "papers": ("the papers' way, neck of 2048", "papers' way"),
    "float32, eager": ("lipcert, neck of 2048", "changed; float32, eager"),
    "neck 256; float32, eager": ("lipcert, neck of 256", "changed, neck 256; float32, eager"),
}  # memory's name in the check `training-step` -> name for readers, and the row with its time


def _step_rows(check: Check | None) -> list[tuple[str, ...]]:
    """The networks of `training-step`: time beside the papers' way, memory beside a plain network."""
    rows = []
    for net in nets(check) if check else ():
        base = check.numbers.get(f"{net}; {_STEP_ROWS['papers'][1]}; ms")
        for key, (name, row) in _STEP_ROWS.items():
            held = check.numbers.get(f"{net}; memory {key}; MB")
            beside = check.numbers.get(f"{net}; memory {key}; ratio of MB")
            if held is not None and beside is not None:
                ms = check.numbers.get(f"{net}; {row}; ms")
                time = f"{ms / base:.2f} × the papers' step" if ms and base else _NONE
                rows.append((f"LiResNet {net}, {name}", time, f"{held:,.0f} MB", f"{beside:.2f} ×", "`training-step`"))
    return rows


def memory_ratios() -> dict[str, list[float]]:
    """Peak memory of training over a plain network's, by network: all losses of `cost`, all nets of `training-step`.

    What `training-step` counts an image stands under `AN_IMAGE`: the difference of the peaks at two batch sizes.
    """
    found: dict[str, list[float]] = {}
    for network, ratios in cost_memory().items():
        found[network] = [*ratios]
    for name, rows in (("LiResNet", FLOAT32), (PAPERS, ("papers",))):
        for unit, end in (("MB", ""), ("KB an image", AN_IMAGE)):
            if values := [value for each in step_memory(rows, unit).values() for value in each]:
                found.setdefault(f"{name}{end}", []).extend(values)
    return found


def cost_memory() -> dict[str, list[float]]:
    """Those of the check `cost`, by network, one a loss."""
    found: dict[str, list[float]] = {}
    if (check := find_check("cost")) is not None:
        for network, _, *_, memory in check.rows[2:]:
            found.setdefault(network, []).append(float(memory))
    return found


def step_memory(rows: Sequence[str] = FLOAT32, unit: str = "MB") -> dict[int, list[float]]:
    """Those of the check `training-step`, by width.

    Args:
        rows: memory's names in the check. unit: "MB" in all or "KB an image".
    """
    found: dict[int, list[float]] = {}
    if (check := find_check("training-step")) is not None:
        for net in nets(check):
            keys = [key for row in rows if (key := f"{net}; memory {row}; ratio of {unit}") in check.numbers]
            if keys:
                found.setdefault(width_of(net), []).extend(float(check.numbers[key]) for key in keys)
    return dict(sorted(found.items()))


def width_of(net: str) -> int:
    """64 of `L6 W64`."""
    return int(net.rpartition("W")[2])


def step_words() -> Markdown:
    """What was measured where."""
    said = []
    if check := find_check("cost"):
        said.append(
            "`cost`: networks of equal depth and width (GloRo's has its own), batches of 256, medians of interleaved "
            f"rounds on one thread ({check.hardware.get('processor')}); each memory is the peak of a process of its own"
        )
    if check := find_check("training-step"):
        threads = check.numbers.get("threads", 1)
        said.append(
            "`training-step`: batches of 256, beside the step as the papers' codes do it; a smaller neck beside the "
            f"same plain network ({check.hardware.get('processor')}, {threads:g} thread{'' if threads == 1 else 's'})"
        )
    return Markdown(f"{'; '.join(said)}." if said else "")
