"""The runs that files of settings ask for: what each is called, how it is made by hand, and where its record lies.

Importing this module imports neither torch nor snakemake.
"""

import itertools
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lipcert.config import TrainConfig, load_config
from lipcert.paths import ROOT, local_dir, results_dir
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.tables import local_records
from lipcert.settings import ConfigError, read_yaml
from lipcert.study import load_study, record_of, records_by_id


@dataclass(frozen=True)
class Cell:
    """One run of a file.

    config: as the file asks for it, so perhaps with "auto" or minutes, which the record will not say.
    picks: NAME=VALUE for every list of the file, as the command line reads them.
    """

    config: TrainConfig
    file: Path
    picks: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Of the settings as asked for: the record's own id unless the file leaves something open."""
        return self.config.run_id()

    def command(self) -> str:
        """What makes this run by hand; a file outside of the project is named without its folder, as in records."""
        file = str(self.file.relative_to(ROOT)) if self.file.is_relative_to(ROOT) else self.file.name
        if _is_study(self.file):
            return shlex.join(["lipcert", "study", file, *self.picks])
        return shlex.join(["lipcert", "train", file, *self.picks, "--resume"])


def cells_of(file: Path, **overrides: Any) -> list[Cell]:
    """The runs of a file, in the order of its lists; overrides hold for every run.

    Raises:
        ConfigError: as `lipcert.config.load_config` and `lipcert.study.load_study`.
    """
    if not _is_study(file):
        return [Cell(load_config(file, **overrides), file, tuple(_pick(item) for item in overrides.items()))]
    study = load_study(file, **overrides)
    fixed = [_pick(item) for item in overrides.items() if item[0] not in study.axes]
    picked = itertools.product(*([_pick((name, value)) for value in values] for name, values in study.axes.items()))
    return [Cell(config, file, (*picks, *fixed)) for config, picks in zip(study.cells, picked, strict=True)]


def cell_of(file: Path, picks: Sequence[str]) -> Cell:
    """The one run of a file that the picks of a `Cell` leave.

    Raises:
        ConfigError: as `cells_of`; also where they leave several.
    """
    cells = cells_of(file, **{name: read_yaml(text) for name, _, text in (pick.partition("=") for pick in picks)})
    if len(cells) != 1:
        raise ConfigError(f"{file} with {', '.join(picks) or 'nothing picked'}: {len(cells)} runs, must be 1")
    return cells[0]


def queued(folder: Path) -> list[Path]:
    """The files of the GPU queue in its order: by the number that begins each name, then by name."""
    return sorted(folder.glob("*.yaml"), key=lambda file: (int(file.name.partition("-")[0]), file.name))


def _pick(setting: tuple[str, Any]) -> str:
    """JSON is YAML, and quotes are left out only where YAML reads the same text without."""
    name, value = setting
    plain = isinstance(value, str) and value.isidentifier() and read_yaml(value) == value
    return f"{name}={value if plain else json.dumps(value)}"


def _is_study(file: Path) -> bool:
    """Whether the file has lists of settings. What cannot be read is left to the loader, which names the file."""
    try:
        settings = read_yaml(file.read_text())
    except yaml.YAMLError:
        return False
    return isinstance(settings, dict) and "matrix" in settings


@dataclass(frozen=True)
class Finished:
    """Records by id: the study's published ones, also of runs that diverged and will again, and your finished ones."""

    published: dict[str, Record]
    own: dict[str, Record]

    @classmethod
    def read(cls) -> "Finished":
        """As they are now. One of yours that cannot be read counts as missing; a published one that cannot is an error.

        Raises:
            lipcert.records.RecordError: names the published record.
        """
        return cls({record.id: record for record in load_records()}, records_by_id(local_records()[0]))

    def path_of(self, cell: Cell) -> Path | None:
        """Where the record of a cell lies, the published one first; None while it is missing."""
        for folder, records in ((results_dir(), self.published), (local_dir(), self.own)):
            if (record := _answer(cell.config, records)) is not None:
                return folder / "runs" / f"{record.id}.json"
        return None

    def tally(self, cells: Iterable[Cell]) -> str:
        """How many of the cells are there, and how many are missing."""
        paths = [self.path_of(cell) for cell in {cell.id: cell for cell in cells}.values()]
        own = sum(path is not None and path.is_relative_to(local_dir()) for path in paths)
        missing = paths.count(None)
        return f"{len(paths)} runs: {len(paths) - own - missing} published, {own} yours, {missing} missing"


def _answer(asked: TrainConfig, records: dict[str, Record]) -> Record | None:
    """`lipcert.study.record_of`, where minutes may have become any number of steps."""
    if asked.minutes is None:
        return record_of(asked, records)
    for record in records.values():
        steps = record.config.steps
        if steps is not None and record.config.answers(asked.with_steps(steps)):
            return record
    return None
