"""A study: one file of settings and lists, every combination a run. `lipcert study FILE` makes those that are missing.

The file is a run's YAML with one more key, `matrix`, a mapping of settings to lists of values:

    dataset: mnist
    depth: 3
    matrix:
      family: [liresnet, resnet]
      loss: [emma, gloro]
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcert.config import ConfigError, TrainConfig, parse, read_yaml
from lipcert.records import Record, has_finished_record, load_records


@dataclass(frozen=True)
class Study:
    """The runs of a study file, in the order of its lists, the last list fastest.

    axes: the settings that vary, each with its values in order.
    """

    name: str
    axes: dict[str, tuple[Any, ...]]
    cells: tuple[TrainConfig, ...]

    def records(self) -> dict[TrainConfig, Record | None]:
        """The published record of every cell, None where it was not run."""
        published = {record.id: record for record in load_records()}
        return {cell: published.get(cell.run_id()) for cell in self.cells}


def load_study(path: str | Path, **overrides: Any) -> Study:
    """The study in a YAML file; overrides hold for every cell, and one of a varied setting picks that value alone.

    Raises:
        ConfigError: not a study, or a cell that cannot be run; names file and cell.
    """
    settings = read_yaml(Path(path).read_text())
    matrix = settings.pop("matrix", None) if isinstance(settings, dict) else None
    if not isinstance(matrix, dict) or not all(isinstance(values, list) and values for values in matrix.values()):
        raise ConfigError(f"{path}: a study has a key 'matrix' with lists of values; `lipcert train` takes single runs")
    if both := set(matrix) & set(settings):
        raise ConfigError(f"{path}: {', '.join(sorted(both))} both fixed and in the matrix: keep one")
    for key in set(matrix) & set(overrides):
        if overrides[key] not in matrix[key]:
            raise ConfigError(f"{key}={overrides[key]!r}: the matrix of {path} has {matrix[key]}")
        matrix[key] = [overrides[key]]
    cells = []
    for values in itertools.product(*matrix.values()):
        cell = dict(zip(matrix, values, strict=True))
        try:
            cells.append(parse(TrainConfig, settings | overrides | cell))
        except ConfigError as error:
            raise ConfigError(f"{path}, cell {cell}: {error}") from None
    return Study(Path(path).stem, {key: tuple(values) for key, values in matrix.items()}, tuple(cells))


def run_study(study: Study, progress: bool = True, download: bool = False) -> Iterator[Path]:
    """Make every run that is neither published nor finished in `results/local`; yields the paths of new records.

    An unfinished run goes on from its checkpoint; a run that cannot go on (it diverged) is named and left out.

    Raises:
        KeyboardInterrupt: as `lipcert.train.fit`.
    """
    from lipcert.run import TrainingError
    from lipcert.train import fit

    done = {record.id for record in load_records()}
    todo = [cell for cell in study.cells if cell.run_id() not in done and not has_finished_record(cell.run_id())]
    for number, cell in enumerate(todo, 1):
        print(f"{study.name}: run {number} of {len(todo)}", file=sys.stderr, flush=True)
        try:
            yield fit(cell, resume=True, progress=progress, download=download)
        except TrainingError as error:
            print(f"{cell.run_id()}: {error}", file=sys.stderr, flush=True)
