"""Which file of settings a run comes from, and so which command makes it again."""

import functools
import itertools
from collections.abc import Iterator

from lipcert.config import MEASURED, TrainConfig, load_config
from lipcert.paths import ROOT
from lipcert.record import Record
from lipcert.settings import read_yaml
from lipcert.study import load_study

_STUDY = "lipcert study "


def command_of(record: Record) -> str:
    """`lipcert train FILE` or `lipcert study FILE` where a file has these settings, else a rerun from the record."""
    seed, (of_seed, of_any) = record.config.seed, _commands()
    asked = [_seedless(config) for config in _wishes(record.config)]
    for settings in asked:
        if (settings, seed) in of_seed:
            return of_seed[settings, seed]
    for settings in asked:
        if settings in of_any:
            return f"{of_any[settings]} seed={seed}"
    return f"lipcert train results/runs/{record.id}.json"


def is_cell(record: Record) -> bool:
    """Whether the run is one of many of a study file, which has a table of its own."""
    return command_of(record).startswith(_STUDY)


@functools.cache
def _commands() -> tuple[dict[tuple[str, int], str], dict[str, str]]:
    """(settings without their seed, seed) -> the command that makes it, and settings -> one that takes any `seed=`.

    A file of its own goes before a study's.
    """
    of_seed: dict[tuple[str, int], str] = {}
    of_any: dict[str, str] = {}
    for path in sorted((ROOT / "notebooks" / "params").glob("*/*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        if "matrix" in read_yaml(path.read_text()):
            study = load_study(path)
            for cell in study.cells:
                of_seed.setdefault((_seedless(cell), cell.seed), f"{_STUDY}{name}")
                if "seed" not in study.axes:  # such a study refuses the seeds it does not list
                    of_any.setdefault(_seedless(cell), f"{_STUDY}{name}")
        else:
            config = load_config(path)
            of_seed[_seedless(config), config.seed] = of_any[_seedless(config)] = f"lipcert train {name}"
    return of_seed, of_any


def _wishes(config: TrainConfig) -> Iterator[TrainConfig]:
    """What a file may have asked for to get this run: its settings, or "auto" for some that were then measured."""
    for count in range(len(MEASURED) + 1):
        for keys in itertools.combinations(MEASURED, count):
            yield config.model_copy(update=dict.fromkeys(keys, "auto"))


def _seedless(config: TrainConfig) -> str:
    return config.model_copy(update={"seed": 0}).digest()
