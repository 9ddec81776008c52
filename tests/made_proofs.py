"""Records with a proven and an estimated count, checks, and rows of tables, for the pages on the cost of proofs."""

from made import make_record

from lipcert.config import TrainConfig
from lipcert.paths import results_dir
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report.checks import Check, write_check

CELL = {"dataset": "cifar10", "depth": 6, "width": 32, "radius": "36/255", "epochs": 20, "batch": 128}


def made(
    config: TrainConfig | None = None,
    proven: tuple[int, ...] = (6000, 4000, 2000),
    claimed: tuple[int, ...] = (6010, 4005, 2000),
    upper: float = 2.02,
    estimate: float = 2.0,
    **more: object,
) -> Record:
    """An executed record with these counts at 36, 72 and 108/255; its one layer's estimate is 0.95 of its lower end."""
    config = config or TrainConfig(**CELL | more)
    facts = make_record(config, proven, 8000, epochs=20).model_dump(by_alias=True, mode="json")
    extra = []
    for n, result in enumerate(facts["test"]["results"]):
        if result["guarantee"] == "estimated":
            result["certified_correct"] = claimed[n // 2]
        else:
            extra.append({**result, "guarantee": "executed"})
    facts["test"]["results"] += extra
    facts["model"]["family"] = config.family
    facts["bounds"] |= {"upper": upper, "estimate": estimate}
    return Record(**facts)


def published(*args: object, **more: object) -> Record:
    record = made(*args, **more)
    write_record(record, results_dir())
    return record


def linf(**more: object) -> Record:
    """A record certified in l_inf, without an estimate."""
    config = TrainConfig(**{**CELL, "radius": "8/255", "family": "linf_net", "loss": "linf_mixture", **more})
    facts = make_record(config, (4000, 3000, 10), 8000, epochs=20).model_dump(by_alias=True, mode="json")
    kept = [r for r in facts["test"]["results"] if r["guarantee"] != "estimated"]
    facts["test"]["results"] = [r | {"norm": "linf", "guarantee": "executed"} for r in kept]
    facts["test"]["results"][0]["radius"] = "8/255"
    return Record(**facts)


def check(goal: str, numbers: dict, rows: tuple = ()) -> None:
    found = Check(
        goal=goal, title="t", target="t", measured="what came out", verdict="met", seconds=1, command="c",
        commit="a" * 40, dirty=False, hardware={"processor": "abacus", "cores": 2}, versions={},
        finished="2030-01-02T03:04", numbers=numbers, rows=rows,
    )  # fmt: skip
    write_check(found, results_dir())


def cells_of(table: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table that begins so."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [text.strip().replace("\N{NO-BREAK SPACE}", " ") for text in line.split("|")[1:-1]]


# What the check `cost` shows, in small.
COST_ROWS = (
    ("network", "loss", "step, ms", "time", "memory, MB", "memory, ratio"),
    ("plain ConvNet", "cross-entropy, no bound", "200", "1.00", "100", "1.00"),
    ("LiResNet", "GloRo", "240", "1.20", "90", "0.90"),
    ("LiResNet", "EMMA", "260", "1.30", "120", "1.20"),
    ("GloRo 6C2F", "GloRo", "600", "3.00", "200", "2.00"),
)
