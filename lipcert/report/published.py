"""Published numbers, the presets that re-measure them, and how our runs compare.

A number counts as re-measured only when a published run names its id and used the preset's network, loss and data, and
its result carries a proven guarantee at the same norm and radius. Differences in schedule are listed, not hidden.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import TrainConfig, load_config, steps_of
from lipcert.paths import RESULTS, ROOT, results_dir
from lipcert.radius import Radius
from lipcert.records import Record

TOLERANCE = 0.5  # percentage points: authors of a later paper report seed-to-seed spreads up to about 0.4
EVIDENCE = {
    "authors_statement": "stated by the authors",
    "official_repository": "in the authors' repository",
    "third_party_quote": "quoted by a third party",
    "unverified_recollection": "unverified",
}
# What makes a network and its task; all other settings are schedule.
NETWORK_FIELDS = ("dataset", "classes", "family", "depth", "width", "neck", "neck_width", "stem", "loss")
_NOT_SCHEDULE = {
    *NETWORK_FIELDS, "device", "published", "report_radii", "seed", "class_seed", "validation", "steps", "epochs",
    "minutes",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published number. `value` is the printed text in per cent; clean accuracy has no norm and radius 0."""

    id: str
    paper: str
    year: int
    model: str
    parameters_millions: float | None
    dataset: str
    classes: int
    extra_data: str
    norm: str
    radius: str
    metric: str
    value: str
    evidence: str
    note: str


@dataclass(frozen=True)
class Preset:
    """A file of settings that re-measures published rows."""

    path: Path
    config: TrainConfig

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name


@dataclass(frozen=True)
class Comparison:
    """A published number beside `ours`, per cent and one value per seed; `others` name the row but do not count."""

    row: Row
    preset: Preset
    runs: tuple[Record, ...]
    ours: tuple[float, ...]
    others: tuple[Record, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.ours) / len(self.ours) if self.ours else math.nan

    @property
    def difference(self) -> float:
        """Ours minus the paper's, in percentage points; NaN where nothing was measured."""
        return self.mean - float(self.row.value)

    @property
    def at_or_above(self) -> bool:
        """Whether ours, rounded to the decimals the paper prints, reaches the paper's value."""
        return round(self.mean, len(self.row.value.partition(".")[2])) >= float(self.row.value)

    @property
    def status(self) -> str:
        """`reproduced` within TOLERANCE, else `above` or `below`; `not run`; `not comparable`."""
        if not self.ours:
            return "not comparable" if self.others else "not run"
        if abs(self.difference) <= TOLERANCE:
            return "reproduced"
        return "above" if self.difference > 0 else "below"


def published_path() -> Path:
    """Where published.csv lies: beside the published runs, else in the project."""
    here = results_dir() / "published.csv"
    return here if here.exists() else RESULTS / "published.csv"


def load_published(path: Path | None = None) -> list[Row]:
    """All published numbers, in the order of the file.

    Raises:
        ValueError: a row whose value, radius or evidence cannot be read, by line.
    """
    rows = []
    with open(path or published_path(), newline="") as file:
        for line, fields in enumerate(csv.DictReader(file), start=2):
            try:
                value = fields.pop("value_percent")
                if not 0 <= float(value) <= 100:
                    raise ValueError(f"value_percent={value}: must be in [0, 100]")
                Radius(fields["radius"])
                if fields["evidence"] not in EVIDENCE:
                    raise ValueError(f"evidence={fields['evidence']!r}: must be one of {', '.join(EVIDENCE)}")
                size = fields.pop("parameters_millions")
                year, classes = int(fields.pop("year")), int(fields.pop("classes"))
                size = float(size) if size else None
                rows.append(Row(**fields, value=value, year=year, classes=classes, parameters_millions=size))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"published.csv, line {line}: {error}") from error
    return rows


def presets(folder: Path | None = None) -> list[Preset]:
    """Every preset of `notebooks/params/published`, sorted by file name."""
    folder = folder or ROOT / "notebooks" / "params" / "published"
    return [Preset(path, load_config(path)) for path in sorted(folder.glob("*.yaml"))]


def is_smoke(record: Record) -> bool:
    """A run too short to be a result: it has not seen every training image once."""
    return record.training.images < record.data.train


def results_only(records: Iterable[Record]) -> list[Record]:
    """Records that may stand in a result table: finished, on the test set, not of smoke size."""
    return [r for r in records if r.test is not None and r.test.split == "test" and not is_smoke(r)]


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Every published number that has a preset, with the runs that re-measure it; largest absolute gap first."""
    rows = {row.id: row for row in load_published()}
    usable = results_only(records)
    found = []
    for preset in presets():
        for name in preset.config.published:
            named = [r for r in usable if name in r.published]
            runs = [r for r in named if not network_differences(r.config, preset.config)]
            measured = [(r, share) for r in runs if (share := _share(r, rows[name])) is not None]
            found.append(
                Comparison(
                    rows[name], preset, tuple(r for r, _ in measured), tuple(100 * share for _, share in measured),
                    tuple(r for r in named if r not in [m for m, _ in measured]),
                )
            )  # fmt: skip
    return sorted(found, key=lambda c: -abs(c.difference) if c.ours else math.inf)


def _share(record: Record, row: Row) -> float | None:
    """Our fraction for a published row; None where the record does not hold it."""
    if (record.data.name, record.data.classes, row.extra_data) != (row.dataset, row.classes, "none"):
        return None
    if row.metric == "clean":
        return record.clean_accuracy()
    result = record.result(row.radius) if row.metric == "vra" else None
    return result.certified_correct / record.test.images if result and result.norm == row.norm else None


def network_differences(ours: TrainConfig, preset: TrainConfig) -> list[str]:
    """Names of the settings of network, loss and data that differ."""
    return [name for name in NETWORK_FIELDS if getattr(ours, name) != getattr(preset, name)]


def schedule_differences(record: Record, preset: TrainConfig) -> list[str]:
    """Settings of training that differ from the preset's, each as `name ours (preset: theirs)`."""
    ours = record.config
    names = [n for n in TrainConfig.model_fields if n not in _NOT_SCHEDULE and getattr(ours, n) != getattr(preset, n)]
    found = [f"`{name}` {getattr(ours, name)} (preset: {getattr(preset, name)})" for name in names]
    planned = steps_of(preset, record.data.train) * preset.batch
    if record.training.images != planned:
        found.append(f"images seen {record.training.images:,} (preset: {planned:,})")
    return found


def preset_parameters(preset: Preset) -> int:
    """Trained parameters of a preset's network, counted without allocating it (imports torch)."""
    import torch

    from lipcert.config import ModelConfig
    from lipcert.data import DATASETS
    from lipcert.models import build_model

    config = preset.config
    facts = DATASETS[config.dataset]
    shared = {name: getattr(config, name) for name in ("family", "depth", "width", "neck", "neck_width", "stem")}
    channels, size, _ = facts.shape
    with torch.device("meta"):
        network = build_model(
            ModelConfig(**shared, channels=channels, input_size=size, classes=config.classes or facts.classes)
        )
    return network.parameter_count()
