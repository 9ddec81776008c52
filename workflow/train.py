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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

from lipcert.paths import ROOT, local_dir
from workflow.cells import Cell, Finished, cell_of

_STOPPED = 130  # exit status, as of a program that Ctrl-C ended
# For the kernel to stop: the step it is in, the checkpoint, the record. First if it was told to, then after we tell it.
# Together less than the 30 seconds that SLURM waits.
_SECONDS_ALONE, _SECONDS_TOLD = 4, 20


def main(stamp: str, file: str, *picks: str) -> int:
    """Make the run unless it is there; 0 with a record, 1 after a run that could not go on, 130 after a stopped one."""
    cell = cell_of(Path(file), picks)
    notebook = Path(stamp).absolute().with_suffix(".ipynb")
    with _alone(cell.id):
        if Finished.read().path_of(cell) is None and (status := _train(cell, notebook)):
            return status
    path = Finished.read().path_of(cell)
    print(path)
    Path(stamp).write_text(f"{path}\n")
    return 0


def _train(cell: Cell, notebook: Path) -> int:
    import papermill
    from nbclient.exceptions import DeadKernelError

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
        )
    except papermill.PapermillExecutionError as error:
        if error.ename != "KeyboardInterrupt":
            print(f"{cell.id}: {error.ename}: {error.evalue}\nThe whole story is in {notebook}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        pass
    except DeadKernelError:
        print(f"{cell.id}: its kernel died: killed, perhaps for its memory", file=sys.stderr)
        return 1
    else:
        return 0
    print(f"{cell.id}: stopped; the workflow goes on from the run's checkpoint", file=sys.stderr)
    return _STOPPED


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
    """A batch system sends SIGTERM to the kernel, too. A second signal, ours, would end it before its checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(_SECONDS_ALONE)


def _stop(*_: object) -> None:
    """The run's own way to stop: papermill's would close the kernel's sockets while the checkpoint is written."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_SECONDS_TOLD)
    kernels = psutil.Process().children()
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    if not kernels:
        _give_up()


def _give_up(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop_soon)
    signal.signal(signal.SIGINT, _stop)
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(_STOPPED)
