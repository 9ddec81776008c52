"""Make a run again from its record and compare everything that does not depend on the clock: `lipcert runs repeat ID`.

On the machine and the versions of a record made on a CPU every line is "the same": weights, training curve, counts and
per-image radii, bit for bit. Elsewhere, and on CUDA, another order of summation moves the weights, and the counts with
them.
"""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipcert.paths import local_dir
from lipcert.record import Record, Result
from lipcert.records import RecordError, find_record, read_record

SAME, DIFFERENT, UNKNOWN = "the same", "different", "not kept"
_TIMED = "seconds"  # the column of a curve that the clock writes


@dataclass(frozen=True)
class Repeated:
    """A record and the one that its settings made again.

    parts: what was compared, its verdict (`SAME`, `DIFFERENT`, `UNKNOWN` where one of the two does not have it), and
    how much of it.
    circumstances: what differs around the runs: versions, hardware, commit; then and now.
    """

    then: Record
    now: Record
    path: Path
    parts: tuple[tuple[str, str, str], ...]
    circumstances: tuple[tuple[str, str, str], ...]

    @property
    def same(self) -> bool:
        """Whether nothing that both records have differs."""
        return all(verdict != DIFFERENT for _, verdict, _ in self.parts)


def repeat(run: str, progress: bool = True, download: bool = False) -> Repeated:
    """Train and certify the run again, in `results/local/repeat`; neither the record nor your own runs are touched.

    A stopped repetition goes on from its checkpoint; one that is there is not made again.

    Args:
        run: id of a finished run, or its unique beginning; yours before the published one.
        progress, download: as `lipcert.train.fit`.

    Raises:
        RecordError: unknown, or not finished. The rest as `lipcert.train.fit`.
    """
    from lipcert.train import fit

    then, folder = find_record(run)
    if then.training.status != "finished":
        raise RecordError(f"run {then.id} is {then.training.status}: only finished runs are repeated")
    with _results_in(local_dir() / "repeat"), _threads_of(then):
        path = local_dir() / "runs" / f"{then.id}.json"
        if not path.exists() or read_record(path).training.status != "finished":
            path = fit(then.config, resume=True, progress=progress, download=download)
        now, there = read_record(path), local_dir()
    return Repeated(then, now, path, tuple(_parts(then, folder, now, there)), tuple(_circumstances(then, now)))


@contextmanager
def _threads_of(record: Record) -> Iterator[None]:
    """As many as the run had: sums over several threads depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(int(record.provenance.hardware.get("threads", before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _results_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("LIPCERT_RESULTS")
    os.environ["LIPCERT_RESULTS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LIPCERT_RESULTS"]
        else:
            os.environ["LIPCERT_RESULTS"] = before


def _parts(then: Record, folder: Path, now: Record, there: Path) -> Iterator[tuple[str, str, str]]:
    yield "images", _verdict(then.data.sha256 == now.data.sha256), f"{then.data.name}, sha256"
    same = then.model.weights_sha256 == now.model.weights_sha256
    yield "weights", _verdict(same), f"{then.model.parameters:,} parameters, sha256"
    yield _lines("training curve", folder, then.training.curve, there, now.training.curve)
    yield "correct", _verdict(then.test.clean == now.test.clean), f"{then.test.clean:,} and {now.test.clean:,} images"
    counts, others = ({_claim(r): r.certified_correct for r in record.test.results} for record in (then, now))
    both = counts.keys() & others.keys()
    alike = sum(counts[claim] == others[claim] for claim in both)
    verdict = _verdict(alike == len(both)) if both else UNKNOWN
    yield "certified and correct", verdict, f"{alike} of {len(both)} counts at equal radius, guarantee and effort"
    yield _lines("radius of every image", folder, then.test.radii, there, now.test.radii)


def _claim(result: Result) -> tuple[str | None, ...]:
    return result.norm, result.radius, result.method, result.effort, result.guarantee, result.arithmetic


def _lines(name: str, folder: Path, then: str | None, there: Path, now: str | None) -> tuple[str, str, str]:
    """Two CSV files of a record, line by line, in the columns that both have but the clock's."""
    if then is None or now is None:
        return name, UNKNOWN, ""
    tables = []
    for path in (folder / then, there / now):
        with open(path, newline="") as file:
            tables.append(list(csv.DictReader(file)))
    columns = {*tables[0][0]} & {*tables[1][0]} - {_TIMED} if all(tables) else set()
    alike = sum(all(a[c] == b[c] for c in columns) for a, b in zip(*tables, strict=False))
    longest = max(map(len, tables))
    if not columns:
        return name, UNKNOWN, ""
    return name, _verdict(alike == longest), f"{alike:,} of {longest:,} lines in {len(columns)} columns"


def _verdict(same: bool) -> str:
    return SAME if same else DIFFERENT


def _circumstances(then: Record, now: Record) -> Iterator[tuple[str, str, str]]:
    before, after = then.provenance, now.provenance
    for mine, theirs in ((before.hardware, after.hardware), (before.versions, after.versions)):
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                yield name, str(mine.get(name, "unknown")), str(theirs.get(name, "unknown"))
    if before.commit != after.commit:
        yield "commit", (before.commit or "unknown")[:10], (after.commit or "unknown")[:10]
