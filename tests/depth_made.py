"""Records of the runs on depth made by hand, with counts, looks, branches and curves that a test knows."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from made import make_record

from lipcert.config import TrainConfig
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import depth_runs, depth_tightness
from lipcert.report.checks import Check, write_check
from lipcert.report.depth_runs import View
from lipcert.report.svg import Figure
from lipcert.report.tightness import COLUMNS

VIEW = View()
CELLS = [cell for study in depth_runs.studies() for cell in study.cells]
LOOKS = ((1 / 3, 0.5), (2 / 3, 0.75))  # share of the run, of the end's count


def made(cell: TrainConfig, count: int, clean: int = 8000, branches: tuple[float, ...] = (), **training) -> Record:
    """A record of a cell with that many images certified at its radius, looks as in LOOKS unless given."""
    record = make_record(cell, (count, 100, 10), clean, epochs=int(cell.epochs))
    facts = record.model_dump(by_alias=True, mode="json")
    for result in facts["test"]["results"]:
        result["guarantee"] = "executed" if result["guarantee"] == "nominal" else result["guarantee"]
    images = facts["training"]["images"]
    shares = training.pop("looks", [(share, round(part * count)) for share, part in LOOKS] if cell.snapshots else [])
    facts["training"]["snapshots"] = [
        {"images": round(share * images), "seconds": 1.0, "clean": clean, "certified_correct": found, "upper": 5.0}
        for share, found in shares
    ]
    facts["training"] |= training
    facts["bounds"]["layers"] += [
        {"name": f"stack{2 * n}", "kind": "Residual", "lower": 1 - value, "upper": 1 + value, "estimate": 1 + value,
         "method": "triangle inequality"}
        for n, value in enumerate(branches)
    ]  # fmt: skip
    return Record(**facts)


def publish(folder: Path, count: Callable[[TrainConfig], int | None], **more) -> None:
    """A record of every cell that `count` gives a number."""
    for cell in CELLS:
        if (found := count(cell)) is not None:
            write_record(made(cell, found, **more), folder)


def steady(cell: TrainConfig) -> int:
    """Equal everywhere, ten images from seed to seed."""
    return 4000 + 10 * cell.seed


def gaining(**by_family: int) -> Callable[[TrainConfig], int]:
    """The same, with so many images more at depths beyond the shallow one."""
    return lambda cell: steady(cell) + (by_family.get(cell.family, 0) if cell.depth > depth_runs.SHALLOW else 0)


def curve_file(folder: Path, cell: TrainConfig, rows: list[dict[str, float]]) -> str:
    """A training curve of these rows; returns its name for the record."""
    name = f"curves/{cell.run_id()}.csv"
    (folder / "curves").mkdir(exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return name


def lines(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


def row(table: str, *first: str) -> list[str]:
    """The cells of the only line of a Markdown table that begins with these cells."""
    rows = [
        [c.strip().replace("\N{NO-BREAK SPACE}", " ") for c in line.split("|")[1:-1]] for line in table.splitlines()
    ]
    (found,) = (cells for cells in rows if tuple(cells[: len(first)]) == first)
    return found


def cell(family: str, blocks: int, epochs: float, seed: int = 0) -> TrainConfig:
    (found,) = {
        c for c in CELLS if (depth_runs.family_of(c), c.depth, c.epochs, c.seed) == (family, blocks, epochs, seed)
    }
    return found


def tightness(folder: Path, ratio: Callable[[TrainConfig], float | None], goal: str = depth_tightness.GOAL) -> None:
    rows = []
    for c in CELLS:
        if (value := ratio(c)) is not None:
            line = dict.fromkeys(COLUMNS, "1") | {"run": c.run_id(), "ratio": f"{value}", "found": f"{4 * value}"}
            rows.append(tuple((line | {"bound": "4"})[name] for name in COLUMNS))
    where = {"hardware": {}, "versions": {}, "finished": "2030-01-02T03:04", "commit": None, "dirty": None}
    facts = {"title": "t", "target": "t", "measured": "m", "verdict": "met", "seconds": 1, "command": "c"}
    write_check(Check(goal=goal, rows=(COLUMNS, *rows), **facts, **where), folder)
