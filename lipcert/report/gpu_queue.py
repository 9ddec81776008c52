"""The queue of runs that wait for a GPU: what each is, its command, what is predicted for it and what came out."""

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig, load_config, steps_of
from lipcert.data.registry import DATASETS
from lipcert.families import FAMILIES
from lipcert.paths import ROOT
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report import published
from lipcert.report.checks import find_check
from lipcert.report.gpu_predictions import (
    KNOWN,
    UTILISATION,
    extrapolated,
    part_seconds,
    predicted,
    predicted_vra,
    step_seconds,
    training_seconds,
)
from lipcert.report.names import DATASETS as DATA_NAMES
from lipcert.report.operations import counts, parameters
from lipcert.report.tables import Markdown, percent, table
from lipcert.settings import read_yaml
from lipcert.study import Study, load_study

FOLDER = ROOT / "notebooks" / "params" / "gpu"
# VRA at 36/255, in per cent: the best 1-Lipschitz layer after 2 hours of an A100 on CIFAR-10, after 24 hours, and after
# 24 hours on CIFAR-100, none with generated data (B. Prach et al., "1-Lipschitz layers compared", CVPR 2024).
AIMS = {2: 61.6, 3: 66.3, 4: 34.9}
_SEEDS = (1, 2)
_PRESETS, _TINY = 10, 11  # places of the published presets and of Tiny-ImageNet
_HOURS = (_PRESETS, _TINY)  # places of what takes hours: their commands go on where they were stopped
_TINY_AIM = "liresnet-arxiv-v1_liresnet-l18w256_tinyimagenet_l2_36-255_vra"  # the row of published.csv


@dataclass(frozen=True)
class Entry:
    """One command of the queue: a run, or the runs of a study file.

    order: its place; what lies on the same place runs in the order of the names. path: None where it has no file.
    """

    order: int
    title: str
    command: str
    path: Path | None = None

    @functools.cached_property
    def _study(self) -> Study | None:
        """Its file, read once; a file of one run as a study that varies nothing."""
        if self.path is None:
            return None
        return load_study(self.path) if _is_study(self.path) else Study("", {}, (load_config(self.path),))

    @property
    def axes(self) -> tuple[str, ...]:
        """What varies between its runs; nothing in a file of one run."""
        return tuple(self._study.axes) if self._study else ()

    @property
    def configs(self) -> tuple[TrainConfig, ...]:
        """Its runs, as its file asks for them."""
        return self._study.cells if self._study else ()

    @property
    def config(self) -> TrainConfig | None:
        """The run of a file of one run."""
        return self.configs[0] if self.configs and not self.axes else None


def _is_study(path: Path) -> bool:
    return "matrix" in read_yaml(path.read_text())


def entries() -> list[Entry]:
    """The queue in order: the measurement, every file, the seeds of entry 2, and the presets that need no images but
    CIFAR's and Tiny-ImageNet's.

    Raises:
        ValueError: a file whose head does not say which entry it is.
    """
    found = [Entry(1, "Speed of the training step", "python -m benchmarks.gpu_step")]
    for path in sorted(FOLDER.glob("*.yaml")):
        head = re.match(r"# GPU queue, entry (\d+): (.+?)(?:\. |, by|\n)", path.read_text())
        if not head or not path.name.startswith(f"{head[1]}-"):
            raise ValueError(f"{path}: must begin with '# GPU queue, entry N: ', N as in its name")
        found.append(Entry(int(head[1]), head[2], _command(path, int(head[1])), path))
    seeds = " ".join(map(str, _SEEDS))
    again = f"for s in {seeds}; do lipcert train results/local/runs/ID.json seed=$s; done"
    found.append(Entry(5, f"Seeds {' and '.join(map(str, _SEEDS))} of entry 2, from its record", again))
    for preset in queued_presets():
        network = f"L{preset.config.depth} W{preset.config.width}"
        steady = ", training radius not scheduled" if preset.config.radius_schedule else ""
        title = f"{preset.work}, {network}{steady}, {DATA_NAMES[preset.config.dataset]}"
        found.append(Entry(_PRESETS, title, _command(preset.path, _PRESETS), preset.path))
    return sorted(found, key=lambda entry: entry.order)


def _command(path: Path, order: int) -> str:
    file = path.relative_to(ROOT).as_posix()
    if _is_study(path):
        return f"lipcert study {file}"
    return f"lipcert train {file}{' --resume' if order in _HOURS else ''}"


def queued_presets() -> list[published.Preset]:
    """The published LiResNets on CIFAR and Tiny-ImageNet that train without generated images."""
    return [
        preset
        for preset in published.presets()
        if preset.config.family == "liresnet" and preset.config.dataset != "imagenet" and not preset.config.generated
    ]


# --------------------------------------------------------------------------------------------------------------- tables
def queue_table() -> Markdown:
    """Every entry with what it aims at, what is predicted and what came out; `commands` has the rest."""
    records = list(load_records())
    rows = [(e.order, e.title, _aim(e), _time(e), _prediction(e), status(e, records)) for e in entries()]
    return table(("entry", "run", "aim", "training", "VRA predicted", "status"), rows, right=(0,))


def commands() -> Markdown:
    """The one command of every entry, in the order of the queue, to be copied."""
    found = entries()
    longest = max(len(entry.command) for entry in found)
    lines = [f"{entry.command:<{longest}}  # {entry.order}" for entry in found]
    return Markdown("\n".join(["```bash", *lines, "```", ""]))


def presets_words() -> Markdown:
    """Which of the published presets the queue leaves out."""
    every, queued = published.presets(), queued_presets()
    return Markdown(
        f"Entry {_PRESETS} lists {len(queued)} of the {len(every)} presets in `notebooks/params/published`: the "
        "LiResNets on CIFAR-10, CIFAR-100 and Tiny-ImageNet that train without generated images. The others need "
        "ImageNet or a file of generated images, or are networks of other families; each is started by the same "
        "command with its own file."
    )


def rule_words() -> Markdown:
    """Which published LiResNets on CIFAR, trained without generated images, the rule covers, by generation."""
    rows, found = {row.id: row for row in published.load_published()}, {}
    for preset in queued_presets():
        config, train = preset.config, DATASETS[preset.config.dataset].train
        for row in (rows[name] for name in config.published if config.dataset in KNOWN):
            if (row.metric, row.norm, row.radius) == ("vra", "l2", "36/255"):
                low, high = extrapolated(config.dataset, steps_of(config, train) * config.batch, config.width)
                value = float(row.value)
                side = "above" if value > high else "below" if value < low else "inside of"
                told = f"{row.value} % on {DATA_NAMES[config.dataset]} ({low:.1f} to {high:.1f} % by the rule)"
                found.setdefault((preset.work, side), []).append(told)
    lines = [f"- {work}: {side} the rule's range with {', '.join(told)}" for (work, side), told in found.items()]
    return Markdown("\n".join(lines).replace(" %", "\N{NO-BREAK SPACE}%") + "\n")


def counts_table() -> Markdown:
    """Entries 2 to 4 in numbers, all of them counted before anything ran."""
    head = ("entry", "network", "weights, MB", "batch", "GFLOP an image", "of the step", "images/s", "epochs", "steps")
    rows = [_counted(entry) for entry in entries() if _is_liresnet(entry)]
    return table(head, rows, right=(0, 2, 3, 4, 6, 7, 8))


def status(entry: Entry, records: list[Record]) -> str:
    """What the records say of an entry; "not run" where there are none."""
    if entry.order == 1:
        check = find_check("gpu-step")
        return f"{check.verdict}: {check.measured}" if check else "not run"
    if entry.order == 5:
        return status(_second(), [record for record in records if record.config.seed in _SEEDS])
    seeds = not entry.axes
    found = [(record, asked) for asked in entry.configs for record in records if _answers(record, asked, seeds)]
    names = entry.axes or ("seed",)
    told = [
        f"{_outcome(record)} ({', '.join(f'{name} {getattr(record.config, name)}' for name in names)})"
        for record, asked in found
    ]
    if not told:
        return "not run"
    return f"{len(told)} of {len(entry.configs)} runs: {'; '.join(told)}" if entry.axes else "; ".join(told)


def _second() -> Entry:
    """Entry 2, whose seeds are entry 5."""
    return next(entry for entry in entries() if entry.order == 2)


def _outcome(record: Record) -> str:
    if record.test is None:
        return record.training.status
    result = record.result(record.config.radius)
    return percent(result.certified_correct / record.test.images) if result else "nothing certified"


def _answers(record: Record, asked: TrainConfig, any_seed: bool) -> bool:
    """Whether a run is what a file asks for: minutes may have become any number of steps, and arithmetic may have been
    chosen otherwise on the day. A run that diverged answers, too; one that was stopped, or is too short, does not."""
    if record.training.status == "stopped" or (record.test is not None and not published.results_only([record])):
        return False
    length = {"steps", "epochs", "minutes"}
    free = {*length, "device", "precision", "layout", "compiled", "kernels", *(["seed"] if any_seed else [])}
    if record.config.model_dump(exclude=free) != asked.model_dump(exclude=free):
        return False
    if asked.minutes is not None:
        return record.config.steps is not None
    return steps_of(record.config, record.data.train) == steps_of(asked, record.data.train)


def _aim(entry: Entry) -> str:
    if entry.order in AIMS:
        return f"VRA at 36/255 of {AIMS[entry.order]} % or more"
    if entry.order == 6:
        return _beside(_paper(entry.config))
    if entry.order == _PRESETS:
        return _beside(entry.config)
    if entry.order == _TINY:
        row = next(row for row in published.load_published() if row.id == _TINY_AIM)
        return f"VRA at {row.radius} of {row.value} % or more"
    aims = {
        1: "sizes for the runs below", 5: "spread", 7: "VRA over depth", 8: "VRA over the number of classes",
        9: "VRA by loss",
    }  # fmt: skip
    return aims[entry.order]


def _paper(config: TrainConfig) -> TrainConfig:
    """The preset of the paper whose recipe a l_inf entry shortens."""
    task = (config.dataset, config.radius, config.loss)
    presets = (preset.config for preset in published.presets() if preset.path.stem.startswith("linf-v2-"))
    return next(preset for preset in presets if (preset.dataset, preset.radius, preset.loss) == task)


def _beside(preset: TrainConfig) -> str:
    """The published number that a preset re-measures at its own radius, the first of them."""
    rows = {row.id: row for row in published.load_published()}
    asked = [rows[name] for name in preset.published]
    value = next(row.value for row in asked if (row.metric, row.radius) == ("vra", preset.radius))
    return f"VRA at {preset.radius} beside the published {value} %"


def _time(entry: Entry) -> str:
    """Of training alone."""
    if entry.order == 1:
        return "about 5 min"
    if entry.order == 5:
        return _duration(*(len(_SEEDS) * seconds for seconds in training_seconds(_second().config)))
    if entry.order == 6:  # distances are not counted here
        return f"about {counted_time(entry.path).replace('minutes', 'min')}"
    parts = [training_seconds(config) for config in entry.configs]
    time = _duration(*map(math.fsum, zip(*parts, strict=True)))
    return f"{time}, {len(parts)} runs" if len(parts) > 1 else time


def counted_time(path: Path) -> str:
    """What the head of a file says that its training takes: `12 minutes`, `2.2 to 2.5 hours`."""
    head = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return re.search(r"[Aa]bout ([^,]+) on one H200, by a count of operations; not measured", head)[1]


def _duration(low: float, high: float) -> str:
    """From seconds: `2.5 min`, `12 to 14 min`, `2.1 to 2.4 h`, `15 h`."""
    if high < 5400:
        ends, unit = [f"{seconds / 60:.2g}" for seconds in (low, high)], "min"
    else:
        ends, unit = [f"{s / 3600:.0f}" if high >= 36_000 else f"{s / 3600:.1f}" for s in (low, high)], "h"
    return f"{' to '.join(dict.fromkeys(ends))} {unit}"


def _prediction(entry: Entry) -> str:
    if not _is_liresnet(entry):
        return ""
    low, high = predicted_vra(entry.config)
    return f"{low:.0f} to {high:.0f} %"


def _is_liresnet(entry: Entry) -> bool:
    config = entry.config
    return config is not None and config.minutes is not None and FAMILIES[config.family].norm == "l2"


def _counted(entry: Entry) -> tuple[object, ...]:
    config, fast = entry.config, UTILISATION[1]
    found, seconds = predicted(config), step_seconds(config, fast)
    steps = [60 * config.minutes * rate / config.batch for rate in found.rate]
    return (
        entry.order, f"L{config.depth} W{config.width}, neck {config.neck_width}",
        f"{4e-6 * parameters(config):.0f}", config.batch,
        f"{counts(config).convolutions / config.batch / 1e9:.1f}",
        ", ".join(f"{name} {part / seconds:.0%}" for name, part in part_seconds(config, fast).items()),
        _range(found.rate), _range(found.epochs), _range(steps),
    )  # fmt: skip


def _range(values: "list[float] | tuple[float, float]") -> str:
    low, high = (round(value, 2 - len(str(int(value)))) for value in values)
    return f"{low:,.0f} to {high:,.0f}"
