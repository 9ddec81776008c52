"""Small training runs: their settings, how to stop them, and what of their records does not depend on the clock."""

import csv
import json
import os
import signal

import pytest

from lipcert.config import TrainConfig
from lipcert.paths import local_dir
from lipcert.records import read_record
from lipcert.run import Run
from lipcert.train import fit

TINY = {"dataset": "digits", "depth": 2, "width": 8, "neck_width": 16, "batch": 64, "steps": 40, "device": "cpu"}


def tiny(**changes):
    return TrainConfig(**(TINY | changes))


def run(config, **options):
    return read_record(fit(config, progress=False, **options))


def checkpoint_of(config):
    return local_dir() / "checkpoints" / f"{config.run_id()}.safetensors"


def timeless(record):
    facts = json.loads(record.model_dump_json(by_alias=True))
    timed = {"training": ("seconds", "images_per_second"), "test": ("seconds",), "provenance": ("finished",)}
    for part, keys in timed.items():
        for key in keys:
            del facts[part][key]
    return facts


def table(name):
    with open(local_dir() / name, newline="") as file:
        return list(csv.DictReader(file))


def curve(record):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(record.training.curve)]


def interrupt(monkeypatch, step, where="train_step", number=signal.SIGINT):
    """Ctrl-C (or another signal) when `where` of step `step` is entered, once."""
    original, fired = getattr(Run, where), []

    def wrapped(self, *arguments):
        if self.step == step and not fired:
            fired.append(True)
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(Run, where, wrapped)


def stopped(config, monkeypatch, step=12):
    """A run that was interrupted there."""
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
