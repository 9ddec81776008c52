"""Published numbers, the presets that re-measure them, and how our runs compare.

A number counts as re-measured only when a published run names its id and used the preset's network, loss and data, and
its result carries a proven guarantee at the same norm and radius. Where the paper trained on generated images, so must
the run, and nowhere else; which generator made them cannot be told from a file of images. Differences in schedule are
listed, not hidden; of runs of different lengths the longest count. A published number belongs to one preset, so that no
run of another recipe is averaged into it.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lipcert.config import Architecture, ModelConfig, TrainConfig, load_config, steps_of
from lipcert.paths import RESULTS, ROOT, results_dir
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.report.names import DATASETS

TOLERANCE = 0.5  # percentage points: authors of a later paper report seed-to-seed spreads up to about 0.4
EVIDENCE = {
    "authors_statement": "stated by the authors",
    "official_repository": "in the authors' repository",
    "third_party_quote": "quoted by a third party",
    "unverified_recollection": "unverified",
}
# What makes a network, its task and its training images; all other settings are schedule.
NETWORK_FIELDS = ("dataset", "classes", "train_images", *Architecture.model_fields, "loss", "generated")
_NOT_SCHEDULE = {
    *NETWORK_FIELDS, "device", "published", "report_radii", "seed", "class_seed", "validation", "steps", "epochs",
    "minutes",
}  # fmt: skip
# Beginning of a preset's file name -> its work: title for readers, and `paper` of the rows it answers.
WORKS = {
    "gloro": ("GloRo Nets (2021)", "Leino et al. (GloRo Nets)"),
    "liresnet-v1": ("LiResNet, first generation (arXiv v1, 2023)", "Hu et al. (LiResNet, arXiv v1)"),
    "liresnet-neurips": ("LiResNet, second generation (NeurIPS 2023)", "Hu et al. (LiResNet, NeurIPS 2023)"),
    "liresnet-iclr": ("LiResNet, third generation (ICLR 2024)", "Hu et al. (Recipe / CHORD LiResNet, ICLR 2024)"),
    "linf-v1": ("l_inf-distance nets, first version (2021)", "Zhang et al. (l_inf-distance nets)"),
    "linf-v2": ("l_inf-distance nets, second version (2022)", "Zhang et al. (l_inf-distance nets v2)"),
    "sortnet": ("SortNet (2022)", "Zhang et al. (SortNet)"),
}


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
    """A file of settings of a published network and recipe; `config.published` are the rows it re-measures, if any."""

    path: Path
    config: TrainConfig

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    @property
    def work(self) -> str:
        """Title of the work it belongs to, from its file name.

        Raises:
            ValueError: the name begins with no known work.
        """
        for name, (title, _) in WORKS.items():
            if self.path.stem.startswith(f"{name}-"):
                return title
        raise ValueError(f"{self.name}: must begin with {', '.join(WORKS)}; name a new work in WORKS of {__name__}")


@dataclass(frozen=True)
class Comparison:
    """A published number beside `ours`, per cent and one value per seed.

    `shorter` measure it too, after fewer images than `runs`; `others` name the row but are not comparable.
    """

    row: Row
    preset: Preset
    runs: tuple[Record, ...]
    ours: tuple[float, ...]
    shorter: tuple[Record, ...]
    others: tuple[Record, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.ours) / len(self.ours) if self.ours else math.nan

    @property
    def difference(self) -> float:
        """Ours minus the paper's, in percentage points; NaN where nothing was measured."""
        return self.mean - float(self.row.value)

    @property
    def share_seen(self) -> float:
        """Images the runs saw, as a share of those their preset asks for."""
        return share_seen(self.runs[0], self.preset.config)

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
    """Every preset of `notebooks/params/published`, by work, data set and file name."""
    folder = folder or ROOT / "notebooks" / "params" / "published"
    found = [Preset(path, load_config(path)) for path in sorted(folder.glob("*.yaml"))]
    works, datasets = [title for title, _ in WORKS.values()], list(DATASETS)
    return sorted(found, key=lambda p: (works.index(p.work), datasets.index(p.config.dataset), p.path.stem))


def is_smoke(record: Record) -> bool:
    """A run too short to be a result: it has not seen every training image once, generated ones not counted."""
    return record.training.steps * min(record.config.batch, record.data.train) < record.data.train


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
            shares = {r.id: _share(r, rows[name]) for r in named if not network_differences(r.config, preset.config)}
            measured = [r for r in named if shares.get(r.id) is not None]
            longest = max((r.training.images for r in measured), default=0)
            counted = [r for r in measured if r.training.images == longest]
            found.append(
                Comparison(
                    rows[name], preset, tuple(counted), tuple(100 * shares[r.id] for r in counted),
                    shorter=tuple(r for r in measured if r.training.images < longest),
                    others=tuple(r for r in named if shares.get(r.id) is None),
                )
            )  # fmt: skip
    return sorted(found, key=lambda c: -abs(c.difference) if c.ours else math.inf)


def _share(record: Record, row: Row) -> float | None:
    """Our fraction for a published row; None where the record does not hold it."""
    if (record.data.name, record.data.classes) != (row.dataset, row.classes) or not same_images(record.config, row):
        return None
    if row.metric == "clean":
        return record.clean_accuracy()
    result = record.result(row.radius) if row.metric == "vra" else None
    return result.certified_correct / record.test.images if result and result.norm == row.norm else None


def same_images(config: TrainConfig, row: Row) -> bool:
    """Whether a run trains on images of a row's kind: generated ones as well, or the training set alone.

    False where the source does not say what it used (`extra_data` is unknown).
    """
    return row.extra_data != "unknown" and (config.generated is not None) == (row.extra_data != "none")


def network_differences(ours: TrainConfig, preset: TrainConfig) -> list[str]:
    """Names of the settings of network, loss and data that differ; where generated images lie does not matter."""
    return [name for name in NETWORK_FIELDS if _identity(ours, name) != _identity(preset, name)]


def _identity(config: TrainConfig, name: str) -> object:
    value = getattr(config, name)
    return value is not None if name == "generated" else value


def schedule_differences(record: Record, preset: TrainConfig) -> list[str]:
    """Settings of training that differ from the preset's, each as `name ours (preset: theirs)`."""
    ours = record.config
    names = [n for n in TrainConfig.model_fields if n not in _NOT_SCHEDULE and getattr(ours, n) != getattr(preset, n)]
    found = [f"`{name}` {getattr(ours, name)} (preset: {getattr(preset, name)})" for name in names]
    planned = planned_images(record, preset)
    if record.training.images != planned:
        found.append(f"images seen {record.training.images:,} (preset: {planned:,})")
    return found


def planned_images(record: Record, preset: TrainConfig) -> int:
    """How many images, generated ones included, a run of the preset sees on a run's training images."""
    generated = 0 if preset.generated is None else round(preset.generated_ratio * preset.batch)
    return steps_of(preset, record.data.train) * (preset.batch + generated)


def share_seen(record: Record, preset: TrainConfig) -> float:
    """Images a run saw, as a share of those its preset asks for."""
    return record.training.images / planned_images(record, preset)


def preset_parameters(preset: Preset) -> int:
    """Trained parameters of a preset's network, counted without allocating it (imports torch)."""
    import torch

    from lipcert.models import build_model

    with torch.device("meta"):
        return build_model(preset_model(preset.config)).parameter_count()


def preset_model(config: TrainConfig) -> ModelConfig:
    """The network that a run of these settings trains, without its data (imports torch)."""
    from lipcert.data import registry

    facts = registry.DATASETS[config.dataset]
    channels, size, _ = facts.shape
    return config.model(channels, size, config.classes or facts.classes)


def published_millions(preset: Preset, rows: dict[str, Row]) -> float | None:
    """Parameters in millions as published: of its own rows, or of others of that paper for the same network and data.

    Args:
        rows: all published numbers by id.
    """
    own = [rows[name] for name in preset.config.published]
    networks = {_network(row) for row in own}
    return next(
        (r.parameters_millions for r in (*own, *rows.values()) if _network(r) in networks and r.parameters_millions),
        None,
    )


def _network(row: Row) -> tuple[str, str, str]:
    """What a row names, remarks in brackets left out."""
    return row.paper, row.model.partition(" (")[0], row.dataset
