"""Training: `fit(config)` trains, certifies and writes the run record; it can be stopped and resumed at any moment."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipcert.checkpoint import held, load_checkpoint, remove_checkpoint, save_checkpoint
from lipcert.config import TrainConfig
from lipcert.data import Dataset, load_dataset
from lipcert.device import Diverged, own_threads
from lipcert.evaluate import add_snapshot, write_results
from lipcert.machine import choose
from lipcert.paths import local_dir
from lipcert.progress import Progress
from lipcert.records import has_finished_record
from lipcert.run import Run, TrainingError
from lipcert.timings import Candidate

_REPORTS = 200  # rows of the curve in a full run


def fit(
    config: TrainConfig,
    resume: bool = False,
    fresh: bool = False,
    progress: bool = True,
    download: bool = False,
    checkpoint_seconds: float = 60.0,
) -> Path:
    """Train a network, certify its test images, write record, curve, per-image radii and network to `results/local`.

    Args:
        config: the whole run. What it leaves open is measured here and becomes literals: first every "auto" of
            precision, layout, kernels and compilation (`lipcert.machine.choose`), then `minutes`, which become steps.
        resume: continue from the checkpoint of the same settings, or of what was measured for them, if there is one.
        fresh: discard that checkpoint. With neither, an unfinished run is an error rather than lost work.
        progress: draw a progress bar on standard error.
        download: let torchvision download a missing data set.
        checkpoint_seconds: least wall time between two checkpoints.

    Returns:
        Path of the run record.

    Raises:
        lipcert.settings.ConfigError, FileNotFoundError, ValueError: unusable settings or data; nothing written.
        TrainingError: an unfinished run is in the way, or another process that trains it, or the machine cannot
            compute as the settings say; or the loss is not finite: the last good checkpoint stays, and a record with
            status "diverged".
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after writing a checkpoint and a record with status "stopped".
    """
    if resume and fresh:
        raise TrainingError("resume and fresh: continue the unfinished run or discard it, not both")
    note = _checkpoint(config).with_suffix(".json")
    path = _checkpoint(_noted(note, config))
    with contextlib.ExitStack() as holding:
        holding.enter_context(_alone(path))
        state = _unfinished(path, resume, fresh)
        data = load_dataset(
            config.dataset, config.classes, config.class_seed, config.validation, download,
            train_images=config.train_images,
        )  # fmt: skip
        holding.enter_context(own_threads(config, data))
        if state is None:
            run = _begin(config, data, progress)
            if run.config != config:
                if path != (path := _checkpoint(run.config)):
                    holding.enter_context(_alone(path))
                state = _unfinished(path, resume, fresh)
                _write_note(note, run.config)
        else:
            trains = state["step"] < state["steps"]
            run = Run(TrainConfig(**state["config"] | {"device": config.device}), data, trains)
        if state is not None:
            run.restore(state)
        record = _fit(run, path, progress, checkpoint_seconds)
    note.unlink(missing_ok=True)
    return record


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process trains the run of this checkpoint meanwhile."""
    with held(path) as ours:
        if not ours:
            raise TrainingError(
                f"run {path.stem} is being trained by another process: wait for it, stop it, or change a setting"
            )
        yield


def _begin(config: TrainConfig, data: Dataset, progress: bool) -> Run:
    """A new run, its open settings and then its length measured."""
    choice = choose(config, data, progress)
    run = Run(choice.config, data)
    run.measured = choice.measured
    if run.config.minutes is not None:
        run.pin_minutes()
    return run


def _checkpoint(config: TrainConfig) -> Path:
    return local_dir() / "checkpoints" / f"{config.run_id()}.safetensors"


def _unfinished(path: Path, resume: bool, fresh: bool) -> dict[str, Any] | None:
    """The state to go on from, None to start at the first step."""
    if fresh:
        remove_checkpoint(path)
    state = load_checkpoint(path)
    if state is not None and not resume:
        raise TrainingError(
            f"run {path.stem} was stopped at step {state['step']} of {state['steps']}: continue it with "
            "resume=True (--resume) or discard it with fresh=True (--fresh)"
        )
    return state


def _noted(note: Path, config: TrainConfig) -> TrainConfig:
    """What was measured for these settings when an unfinished run of them began; else the settings themselves.

    A run's checkpoint lies under the id of its record, which measuring again would change.
    """
    try:
        return TrainConfig(**json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):
        return config


def _write_note(note: Path, config: TrainConfig) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(".note")
    partial.write_text(config.model_dump_json())
    os.replace(partial, note)


def _fit(run: Run, path: Path, progress: bool, checkpoint_seconds: float) -> Path:
    say = _say if progress else lambda *_: None
    say(f"run {run.config.run_id()}: {run.steps} steps of {run.batch} images on {run.device}{_choices(run)}")
    try:
        finished = _train(run, path, progress, checkpoint_seconds)
    except Diverged:
        if not has_finished_record(run.config.run_id()):
            write_results(run, status="diverged")
        raise
    # Before certifying too: whatever happens there, the training is kept.
    save_checkpoint(path, run.state())
    if not finished:
        _say(f"stopped at step {run.step} of {run.steps}; the work is kept in {path}, --resume goes on")
        if not has_finished_record(run.config.run_id()):
            write_results(run, status="stopped")
        raise KeyboardInterrupt
    say("certifying ...")
    run.calibrate()
    record = write_results(run, status="finished", progress=progress)
    remove_checkpoint(path)
    return record


def _train(run: Run, path: Path, shown: bool, checkpoint_seconds: float) -> bool:
    """Steps until the end (True) or until a signal asks to stop (False)."""
    interval = max(1, run.steps // _REPORTS)
    run.forget_peak()
    saved = start = time.monotonic()
    with _stop_signals() as stop, Progress(run.steps, "step", shown, initial=run.step) as progress:
        while run.step < run.steps:
            run.train_step()
            snapshot, threats = run.snapshot_due(), run.threats_due()
            stopped = stop.is_set() and run.step < run.steps
            closes = snapshot or threats or run.step % interval == 0
            if stopped and not closes:
                run.seconds += time.monotonic() - start
                run.check_finite()
                return False
            if not closes and run.step < run.steps:
                continue
            now = time.monotonic()
            row = run.report(now - start)
            progress.update(
                run.step,
                f"loss {row['loss']:.3f}, accuracy {row['train_accuracy']:.1%}, certified (estimated) "
                f"{row['train_vra_estimated']:.1%}, {row['images'] / max(row['seconds'], 1e-9):,.0f} images/s",
            )
            if threats:
                run.threats.note(run.network, run.step * run.batch)
            if snapshot:
                run.calibrate()
                add_snapshot(run)
            if stopped:
                return False
            if run.step < run.steps and now - saved >= checkpoint_seconds:
                save_checkpoint(path, run.state())
                saved = time.monotonic()
            run.forget_peak()
            start = time.monotonic()  # neither snapshots nor checkpoints are training
    return True


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a run stops between two steps, never inside one.

    A second signal interrupts at once. Outside the main thread signals are not ours, and nothing sets the event.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choices(run: Run) -> str:
    return f", {Candidate.of(run.config).label}" if run.measured else ""


def _say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
