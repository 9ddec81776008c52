"""What was measured about the certifier itself: one small JSON a goal, and the table the book shows.

`python -m benchmarks.soundness` measures and writes to `results/local/checks`; `--publish` copies to `results/checks`.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lipcert.paths import local_dir, results_dir
from lipcert.report.tables import Markdown, table

Verdict = Literal["met", "fell short", "in part"]
_NOT_RUN = "Not run."


class Check(BaseModel):
    """One measurement of one goal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    goal: str = Field(description="short id, such as S1")
    title: str = Field(description="what is asked, in a few words")
    target: str = Field(description="the figure aimed at")
    measured: str = Field(description="what came out, in words and numbers")
    verdict: Verdict = Field(description="met, fell short, or in part")
    numbers: dict[str, float | int | str] = Field({}, description="the numbers behind the words")
    rows: tuple[tuple[str, ...], ...] = Field((), description="a table to show, its head first")
    seconds: float = Field(ge=0, description="wall time of the measurement")
    command: str = Field(description="what was run")
    commit: str | None = Field(description="git commit")
    dirty: bool | None = Field(description="whether the code differed from it")
    hardware: dict[str, str | int] = Field(description="device, processor, cores, threads")
    versions: dict[str, str] = Field(description="Python and the packages that can change a number")
    finished: str = Field(description="UTC time, ISO 8601")


@contextmanager
def measuring(goal: str, title: str, target: str) -> Iterator[dict]:
    """`with measuring(goal, title, target) as found`: fill in measured, verdict, numbers, rows; written at the end."""
    import torch

    from lipcert import provenance

    found: dict = {}
    start = time.monotonic()
    commit, dirty = provenance.git_state("benchmarks")
    yield found
    check = Check(
        goal=goal, title=title, target=target, seconds=round(time.monotonic() - start, 1),
        command=provenance.command(), commit=commit, dirty=dirty, hardware=provenance.hardware(torch.device("cpu")),
        versions=provenance.versions(), finished=provenance.now(),
        **found,
    )  # fmt: skip
    write_check(check, local_dir())
    print(f"{goal}: {check.verdict}. {check.measured} ({check.seconds:.0f} s)", flush=True)


def write_check(check: Check, folder: Path) -> Path:
    """Write `folder/checks/<goal>.json` atomically."""
    path = folder / "checks" / f"{check.goal}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(check.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    return path


def publish_checks() -> list[Path]:
    """Copy your own checks to `results/checks`, where the book reads them.

    Raises:
        ValueError: one whose code was not committed: its numbers could not be regenerated.
    """
    checks = load_checks(local_dir())
    for check in checks:
        if check.dirty is not False:
            raise ValueError(
                f"check {check.goal} has dirty={check.dirty}: commit the code, measure again, then publish"
            )
    return [write_check(check, results_dir()) for check in checks]


def load_checks(folder: Path | None = None) -> list[Check]:
    """All published checks (or those in a folder), by goal.

    Raises:
        ValueError: a damaged file, by name.
    """
    checks = []
    for path in (folder or results_dir()).glob("checks/*.json"):
        try:
            checks.append(Check(**json.loads(path.read_text())))
        except (ValidationError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}: not a check: {error}") from error
    return sorted(
        checks, key=lambda check: (check.goal[0], int("".join(filter(str.isdigit, check.goal)) or 0), check.goal)
    )


def find_check(goal: str) -> Check | None:
    """The published check of a goal, None where it was not run."""
    return next((check for check in load_checks() if check.goal == goal), None)


def rows_of(goal: str) -> tuple[tuple[str, ...], ...]:
    """The table of a goal's published check, its head first; empty where it was not run."""
    check = find_check(goal)
    return check.rows if check else ()


def check_rows(goal: str) -> Markdown:
    """The table that came with one check; a plain sentence where it was not run."""
    if not (rows := rows_of(goal)):
        return Markdown(_NOT_RUN)
    return table(rows[0], rows[1:])


def check_words(goal: str) -> Markdown:
    """One check in a sentence, with where it was measured."""
    if (check := find_check(goal)) is None:
        return Markdown(_NOT_RUN)
    where = f"{check.hardware.get('processor')}, {check.hardware.get('cores')} cores"
    commit = (check.commit or "unknown")[:7]
    return Markdown(f"{check.measured} (`{check.command}`, {check.seconds:,.0f} s, {where}, commit {commit})")
