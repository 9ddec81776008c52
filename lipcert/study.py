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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lipcert.config import TrainConfig
from lipcert.record import Record
from lipcert.records import find_record, has_finished_record, load_records
from lipcert.settings import ConfigError, parse, read_yaml


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
        published = records_by_id(load_records())
        return {cell: record_of(cell, published) for cell in self.cells}


def records_by_id(records: Iterable[Record]) -> dict[str, Record]:
    """The finished ones of them."""
    return {record.id: record for record in records if record.training.status == "finished"}


def record_of(cell: TrainConfig, records: Mapping[str, Record]) -> Record | None:
    """The record of a cell's settings; where the cell says "auto", the first one, whatever was measured for it."""
    if not cell.left_open():
        return records.get(cell.run_id())
    return next((record for record in records.values() if record.config.answers(cell)), None)


def _own_record(cell: TrainConfig) -> Record | None:
    if cell.left_open():
        return record_of(cell, records_by_id(load_records("local")))
    return find_record(cell.run_id())[0] if has_finished_record(cell.run_id()) else None


def load_study(path: str | Path, /, **overrides: Any) -> Study:
    """The study in a YAML file; overrides hold for every cell, and one of a varied setting picks that value alone.

    Raises:
        ConfigError: not a study, or a cell that cannot be run; names file and cell.
    """
    try:
        settings = read_yaml(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    matrix = settings.pop("matrix", None) if isinstance(settings, dict) else None
    if not _is_matrix(matrix) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(
            f"{path}: a study has a key 'matrix', a mapping of names to lists of values (here: {matrix}); without it, "
            "it is a run for `lipcert train`"
        )
    if both := set(matrix) & set(settings):
        raise ConfigError(f"{path}: {', '.join(sorted(both))} both fixed and in the matrix: keep one")
    for key, values in matrix.items():
        if any(value in values[:place] for place, value in enumerate(values)):
            raise ConfigError(f"{path}: matrix of {key} has a value twice in {values}: keep one")
        if key in overrides and overrides[key] not in values:
            raise ConfigError(f"{key}={overrides[key]!r}: the matrix of {path} has {values}")
    matrix = {key: [overrides[key]] if key in overrides else values for key, values in matrix.items()}
    cells = []
    for values in itertools.product(*matrix.values()):
        cell = dict(zip(matrix, values, strict=True))
        try:
            cells.append(parse(TrainConfig, settings | overrides | cell))
        except ConfigError as error:
            raise ConfigError(f"{path}, cell {cell}: {error}") from None
        if (minutes := cells[-1].minutes) is not None:
            # Measuring turns them into steps and so the run's id into one that the study does not look for.
            raise ConfigError(f"{path}: minutes={minutes} in a study: give epochs or steps")
    return Study(Path(path).stem, {key: tuple(values) for key, values in matrix.items()}, tuple(cells))


def _is_matrix(matrix: Any) -> bool:
    return (
        isinstance(matrix, dict)
        and bool(matrix)
        and all(isinstance(key, str) and isinstance(values, list) and values for key, values in matrix.items())
    )


def check_networks(study: Study) -> None:
    """Build every cell's network without memory for its weights (imports torch), and count out its training images.

    Raises:
        ConfigError: sizes that do not fit together; before hours of other cells have run.
    """
    import torch

    from lipcert.data import DATASETS
    from lipcert.data.splits import images_of_each
    from lipcert.models import build_model

    for cell in study.cells:
        facts = DATASETS[cell.dataset]
        channels, size, _ = facts.shape
        classes = cell.classes or facts.classes
        try:
            if cell.train_images is not None:
                images_of_each(cell.train_images, classes)
            with torch.device("meta"):
                build_model(cell.model(channels, size, classes))
        except ValueError as error:  # ConfigError is one
            varied = {key: getattr(cell, key) for key in study.axes}
            raise ConfigError(f"{study.name}.yaml, cell {varied}: {error}") from None


def run_study(study: Study, progress: bool = True, download: bool = False) -> Iterator[Path]:
    """Make every run that is neither published nor finished in `results/local`; yields the paths of new records.

    An unfinished run goes on from its checkpoint. A run that cannot go on (it diverged, or nothing can be certified of
    it) is named and left out; so are your finished runs of code that was not committed, which cannot be published.

    Raises:
        FileNotFoundError, KeyboardInterrupt: as `lipcert.train.fit`.
    """
    from lipcert.run import TrainingError
    from lipcert.train import fit

    published, todo = records_by_id(load_records()), []
    for cell in study.cells:
        if record_of(cell, published) is not None:
            continue
        if (record := _own_record(cell)) is None:
            todo.append(cell)
        elif not_committed := record.not_committed():
            print(f"{record.id}: not made again, but {not_committed}", file=sys.stderr, flush=True)
    for number, cell in enumerate(todo, 1):
        print(f"{study.name}: run {number} of {len(todo)}", file=sys.stderr, flush=True)
        try:
            yield fit(cell, resume=True, progress=progress, download=download)
        except (TrainingError, ValueError) as error:  # NotCertifiable is a ValueError
            print(f"{cell.run_id()}: {error}", file=sys.stderr, flush=True)
