"""Made-up records of the class-count matrices and of the check on restricted networks; a test knows their shares."""

import functools
import math

from made import make_record

from benchmarks.class_restriction import Counts, Restricted, told
from lipcert.config import TrainConfig
from lipcert.paths import results_dir
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import matrices
from lipcert.report.checks import Check, write_check
from lipcert.report.class_count_runs import CHECK, FEWER, SUBSETS, WHOLE
from lipcert.study import load_study

# Clean accuracy and VRA in per cent by images of a class and classes: points fall alike, shares do not.
TRAINED = {10: (80, 64), 20: (70, 52), 50: (60, 40), 100: (50, 30)}
FEW_IMAGES = {20: (65, 45), 50: (50, 30), 100: (35, 17)}
ASKED = {10: (72, 52), 20: (66, 45), 50: (58, 38)}  # restricted


@functools.cache
def cells(name: str) -> tuple[TrainConfig, ...]:
    return load_study(matrices.FOLDER / f"{name}.yaml").cells


def made(cell: TrainConfig, right: float, sure: float, **changes: object) -> Record:
    """A run with these shares of its test images; two looks, margins, and training images of which all are right."""
    classes = matrices.classes(cell)
    images = 100 * classes
    counts = round(images * right / 100), round(images * sure / 100)
    record = make_record(cell, (counts[1], 0, 0), counts[0], train=matrices.training_images(cell), images=images)
    facts = record.model_dump(by_alias=True, mode="json")
    nominal = [result for result in facts["test"]["results"] if result["guarantee"] == "nominal"]
    facts["test"]["results"] += [result | {"guarantee": "executed"} for result in nominal]
    seen = matrices.seen(cell)
    looks = [
        {"images": seen * share // 4, "seconds": 1.0, "clean": counts[0] * share // 4,
         "certified_correct": counts[1] * share // 4, "upper": 5.0}
        for share in (1, 2)
    ]  # fmt: skip
    threat = {"images": seen, "sample": 2000, "changed": 0, "changed_nearest": 0, "right": 2000}
    threat["certified_estimated"] = 2000 - 10 * classes
    facts["data"]["classes"] = classes
    facts["training"] |= {"steps": 1952, "images": seen, "snapshots": looks, "threats": [threat]}
    one = (counts[0] - counts[1]) // 2
    facts["test"]["margins"] = {
        "quantiles": [(part / 20 - 0.3) * 10 / classes for part in range(21)],
        "threatening": [counts[1], one, counts[0] - counts[1] - one, *[0] * 8],
        "spread": math.sqrt(classes), "lipschitz": [0.1, 0.5, classes / 10, 100.0, 200.0],
    }  # fmt: skip
    facts["test"] |= changes
    return Record(**facts)


def publish(name: str, shares: dict[int, tuple[float, float]], keep=lambda cell: True, shift: float = 1.0) -> None:
    """Records of a study's cells; a draw or seed more adds `shift` points to clean accuracy and to VRA."""
    for cell in filter(keep, cells(name)):
        more = shift * ((cell.class_seed if cell.classes else cell.seed) - (2 if cell.classes else 1))
        right, sure = shares[matrices.classes(cell)]
        write_record(made(cell, right + more, sure + more), results_dir())


def restrict(shares: dict[int, tuple[float, float]] = ASKED, shift: float = 1.0, nets: int = 3) -> None:
    """The check, written as `benchmarks.class_restriction` writes it."""
    found = []
    for net, cell in enumerate(cells(WHOLE)[:nets]):
        draws = {
            n: [
                Counts(100 * n, *(round(n * (share + shift * (draw - 2) + net - 1)) for share in pair), 0.2)
                for draw in range(5)
            ]
            for n, pair in shares.items()
        }
        found.append(Restricted(cell.run_id(), "36/255", 100, draws, Counts(10_000, 5000, 3000, 0.1), True))
    check = Check(
        goal=CHECK, title="t", target="t", seconds=1, command="c", commit="a" * 40, dirty=False,
        hardware={"processor": "abacus", "cores": 2}, versions={}, finished="2030-01-02T03:04", **told(found, 5),
    )  # fmt: skip
    write_check(check, results_dir())


def everything() -> None:
    publish(WHOLE, TRAINED)
    publish(SUBSETS, TRAINED)
    publish(FEWER, FEW_IMAGES)
    restrict()


def line(table: str, *beginning: str) -> list[str]:
    """The cells of the one line of a Markdown table that begins so."""
    plain = table.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    (found,) = (text for text in plain if text.startswith(f"| {' | '.join(beginning)}"))
    return [text.strip() for text in found.split("|")[1:-1]]
