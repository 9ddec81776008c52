"""One run of the workflow: notebooks/train.ipynb on one cell of a file of settings, through papermill.

    python -m workflow.train STAMP FILE [NAME=VALUE ...]

Beside what papermill does by itself: a run that is there is not made again, one that another process is still making is
waited for, and one that is told to stop keeps its work. The executed notebook lies beside STAMP, to which the path of
the record goes at the very end.
"""

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lipcert.paths import ROOT, local_dir
from workflow.cells import Cell, Finished, cell_of

_STOPPED = 130  # exit status, as of a program that Ctrl-C ended
# For a kernel to stop: the step it is in, the checkpoint, the record. First if it was told to, then after we tell it.
# Together less than the 30 seconds that SLURM waits.
_SECONDS_ALONE, _SECONDS_TOLD = 4, 20.0


def main(stamp: str, file: str, *picks: str) -> int:
    """Make the run unless it is there; 0 with a record, 1 after a run that could not go on, 130 after a stopped one."""
    cell = cell_of(Path(file), picks)
    with _alone(cell.id):
        if Finished.read().path_of(cell) is None and (
            status := _train(cell, Path(stamp).absolute().with_suffix(".ipynb"))
        ):
            return status
    path = Finished.read().path_of(cell)
    print(path)
    Path(stamp).write_text(f"{path}\n")
    return 0


def _train(cell: Cell, notebook: Path) -> int:
    import papermill
    from traitlets.config import Config

    os.environ["LIPCERT_COMMAND"] = cell.command()
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every setting that the notebook does not list
    print(f"{cell.id}: {cell.command()}", flush=True)
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / "train.ipynb",
            notebook,
            parameters=cell.config.model_dump(mode="json") | {"resume": True, "download": False},
            cwd=ROOT,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            config=Config({"KernelManager": {"shutdown_wait_time": _SECONDS_TOLD}}),
        )
    except papermill.PapermillExecutionError as error:
        print(f"{cell.id}: {error.ename}: {error.evalue}\nThe whole story is in {notebook}", file=sys.stderr)
        return _STOPPED if error.ename == "KeyboardInterrupt" else 1
    except KeyboardInterrupt:
        print(f"{cell.id}: stopped; the workflow goes on from the run's checkpoint", file=sys.stderr)
        return _STOPPED
    return 0


@contextmanager
def _alone(run: str) -> Iterator[None]:
    """Held by one process at a time for each run: a killed workflow may have left a job behind that still trains."""
    path = local_dir() / "workflow" / "locks" / run
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{run}: another process is making it; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some clusters' file systems have no locks
            print(f"{run}: not locked ({error}): no second workflow beside this one", file=sys.stderr, flush=True)
        yield


def _stop_soon(*_: object) -> None:
    """A batch system sends SIGTERM to the kernel, too. A second one, ours, would end it before its checkpoint."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(_SECONDS_ALONE)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop_soon)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(_STOPPED)
