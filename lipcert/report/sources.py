"""Which file of settings a run comes from, and so which command makes it again."""

import functools

from lipcert.config import TrainConfig, load_config, read_yaml
from lipcert.paths import ROOT
from lipcert.records import Record
from lipcert.study import load_study

_STUDY = "lipcert study "


def command_of(record: Record) -> str:
    """`lipcert train FILE` or `lipcert study FILE` where a file has these settings, else a rerun from the record."""
    seed = record.config.seed
    command, seeds = _commands().get(_seedless(record.config), (f"lipcert train results/runs/{record.id}.json", {seed}))
    return command if seed in seeds else f"{command} seed={seed}"


def is_cell(record: Record) -> bool:
    """Whether the run is one of many of a study file, which has a table of its own."""
    return command_of(record).startswith(_STUDY)


@functools.cache
def _commands() -> dict[str, tuple[str, set[int]]]:
    """Settings without their seed -> command, and the seeds it makes. A file of its own goes before a study's."""
    found: dict[str, tuple[str, set[int]]] = {}
    for path in sorted((ROOT / "notebooks" / "params").glob("*/*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        if "matrix" in read_yaml(path.read_text()):
            for cell in load_study(path).cells:
                found.setdefault(_seedless(cell), (f"{_STUDY}{name}", set()))[1].add(cell.seed)
        else:
            config = load_config(path)
            found[_seedless(config)] = (f"lipcert train {name}", {config.seed})
    return found


def _seedless(config: TrainConfig) -> str:
    return config.model_copy(update={"seed": 0}).digest()
