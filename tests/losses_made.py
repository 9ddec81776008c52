"""Made-up runs of the page on losses, with counts that a test knows, and the page's cells."""

import csv
import io
import json
from collections.abc import Callable

import numpy as np
from made import make_record

from lipcert.config import TrainConfig
from lipcert.paths import ROOT, results_dir
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import loss_study, matrices
from lipcert.report.names import LOSSES

NOTEBOOK = ROOT / "notebooks" / "losses.ipynb"
SEEN = 249_856
FIXED, FOCAL, ANNEALING = (LOSSES[name] for name in ("emma_fixed", "focal", "annealing"))
MARGIN = f"{LOSSES['margin']} (weight 1 to 0.01)"
LOOKS = (0.25, 0.5, 0.75)
Share = Callable[[TrainConfig], float | None]


def made(cell: TrainConfig, share: float, climb: tuple[float, ...] = (0.5, 0.8, 0.9), turning: float = 0.2) -> Record:
    """A record of a cell: VRA of so many per cent, clean 20 more; at the looks the shares `climb` of the end; `turning`
    of the sample change their threat at every note of the second half, twice as many before; half as many the nearest.
    """
    classes = matrices.classes(cell)
    images = 100 * classes
    count = round(share * images / 100)
    facts = make_record(cell, (count, 0, 0), count + images // 5, images=images, train=500 * classes).model_dump(
        by_alias=True, mode="json"
    )
    for result in facts["test"]["results"]:
        result["guarantee"] = "executed" if result["guarantee"] == "nominal" else result["guarantee"]
    facts["data"]["classes"] = classes
    snapshots = [
        {"images": round(at * SEEN), "seconds": 60 * at, "clean": count, "upper": 5.0,
         "certified_correct": round(part * count)} for at, part in zip(LOOKS, climb, strict=True)
    ]  # fmt: skip
    path = np.interp(np.arange(1, 21) / 20, (0, *LOOKS, 1), (0, *climb, 1))
    notes = [
        {"images": round(n * SEEN / 20), "sample": 2000, "right": 2000,
         "certified_estimated": round(20 * min(2 * share, 100) * part),
         "changed": None if n == 1 else round(2000 * turning * (2 if n <= 10 else 1)),
         "changed_nearest": None if n == 1 else round(1000 * turning)}
        for n, part in enumerate(path, 1)
    ]  # fmt: skip
    facts["training"] |= {"steps": SEEN // 128, "images": SEEN, "snapshots": snapshots, "threats": notes}
    return Record(**facts)


def publish(share: Share, **more: object) -> None:
    """Records of the cells that `share` gives a VRA in per cent; more: `climb`, `turning`, as functions of a cell."""
    for study in loss_study.studies("cifar100"):
        for cell in study.cells:
            if (value := share(cell)) is not None:
                write_record(made(cell, value, **{name: of(cell) for name, of in more.items()}), results_dir())


def pair(cell: TrainConfig) -> int:
    """0, 1, 2: its draw or its seed."""
    return cell.class_seed if few(cell) else cell.seed


def few(cell: TrainConfig) -> bool:
    return cell.classes == 10


LEVEL = {"emma": 0.0, "emma_fixed": 0.1, "gloro": -2.0, "margin": -3.0, "focal": 1.5, "annealing": 0.0}


def whole(cell: TrainConfig) -> float:
    """Every run: 40 % at 10 classes, 15 % at 100, a point more from pair to pair, which is no spread of differences;
    beside EMMA as in `LEVEL`, +- 0.1; annealing +-1, so not told apart; margin loses most of what it lacks at 10.
    """
    level = LEVEL.get(cell.loss, -2.3)
    if cell.loss == "margin" and few(cell):
        level = -12.0
    if cell.loss == "annealing":
        wobble = (1.0, -1.0, 0.5)[pair(cell)]
    else:
        wobble = (0.1, -0.1, 0.0)[pair(cell)] if cell.loss != "emma" else 0.0
    return (40 if few(cell) else 15) + pair(cell) + level + wobble


def cells_of(table: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table that begins so."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first} |"))
    return [text.strip().replace("\N{NO-BREAK SPACE}", " ") for text in line.split("|")[1:-1]]


def drawn(figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


def run_page(**parameters: str) -> list[object]:
    """Execute the notebook's cells; returns what they display."""
    shown: list[object] = []
    space = {"display": lambda *parts: shown.extend(parts)}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
            if "parameters" in cell["metadata"]["tags"]:
                space |= parameters
    return shown


def turning(cell: TrainConfig) -> float:
    base = 0.1 if few(cell) else 0.3
    return base + (0.1 if cell.loss in ("gloro", "trades_kl", "margin") else 0) + 0.001 * pair(cell)
