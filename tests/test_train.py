"""Training: repeatable, resumable bit for bit, and ending cleanly whatever happens."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import lipcert.train
from lipcert.checkpoint import load_checkpoint
from lipcert.config import TrainConfig, parse
from lipcert.data import load_dataset
from lipcert.losses import training_loss
from lipcert.models import load
from lipcert.paths import local_dir
from lipcert.records import read_record
from lipcert.run import Run, TrainingError, pick_device
from lipcert.stream import stream_seed
from lipcert.train import fit

TINY = {"dataset": "digits", "depth": 2, "width": 8, "neck_width": 16, "batch": 64, "steps": 40, "device": "cpu"}
KINDS = {
    "adamw": {},
    "nadam and lookahead": {"optimizer": "nadam", "lookahead": True},
    "gloro, adam, decay": {"loss": "gloro", "optimizer": "adam", "weight_decay": 1e-3},
    "augmented": {"crop": 1, "flip": True, "neck": "conv_dense"},
}


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


# --- repeatable -------------------------------------------------------------------------------------------------------


def test_same_seed_same_record(monkeypatch, tmp_path):
    records, files = [], []
    for name in ("a", "b"):
        monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / name))
        torch.manual_seed(len(records))  # the caller's generator is not the run's
        record = run(tiny())
        records.append((timeless(record), curve(record)))
        files.append([(local_dir() / f).read_bytes() for f in (record.test.radii, record.model.file)])
    assert records[0] == records[1]
    assert files[0] == files[1]


def test_another_seed_another_network():
    assert run(tiny(steps=3)).model.weights_sha256 != run(tiny(steps=3, seed=1)).model.weights_sha256


def test_training_leaves_the_callers_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(tiny(steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_training_learns_and_the_record_adds_up():
    record = run(tiny(steps=150, lr=0.01))
    assert record.training.status == "finished" and record.training.images == 150 * 64
    assert record.test.images == record.data.test == 360
    assert record.clean_accuracy() > 0.6 and record.vra("36/255") > 0.1
    assert record.vra("36/255") <= record.vra("36/255", "estimated") <= record.clean_accuracy()
    assert record.bounds.lower <= record.bounds.upper and record.bounds.estimate <= record.bounds.upper * (1 + 1e-6)
    rows = table(record.test.radii)
    robust = sum(r["label"] == r["prediction"] and float(r["radius"]) > 36 / 255 for r in rows)
    assert robust == record.result("36/255").certified_correct
    assert load(record.id).card["run"] == record.id
    assert not checkpoint_of(tiny(steps=150, lr=0.01)).exists()


def test_bfloat16_runs():
    record = run(tiny(steps=5, precision="bfloat16"))
    assert record.training.choices.precision == "bfloat16"


def test_validation_runs_leave_the_test_set_alone():
    record = run(tiny(steps=2, validation=True))
    assert record.test.split == "validation" and record.test.images == record.data.validation == 360
    assert record.data.train == 1077


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind, monkeypatch, tmp_path):
    config = tiny(**KINDS[kind])
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "whole"))
    whole = run(config)
    whole_curve = curve(whole)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "parts"))
    for step in (7, 23, 24):
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            with pytest.raises(KeyboardInterrupt):
                fit(config, resume=True, progress=False)
    parts = run(config, resume=True)
    assert parts.model.weights_sha256 == whole.model.weights_sha256
    assert timeless(parts) == timeless(whole)
    assert curve(parts) == whole_curve


@pytest.mark.parametrize("where", ["train_step", "_count", "report"])
def test_ctrl_c_anywhere_in_a_step_loses_nothing(where, monkeypatch, tmp_path):
    config = tiny(optimizer="nadam")
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "whole"))
    whole = run(config)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        interrupt(patch, 15, where)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    parts = run(config, resume=True)
    assert parts.model.weights_sha256 == whole.model.weights_sha256


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from lipcert.config import TrainConfig
from lipcert.train import fit
fit(TrainConfig(**eval(sys.argv[1])), resume=True, progress=False, checkpoint_seconds=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nadam and lookahead"])
def test_killed_three_times_and_resumed_equals_uninterrupted(kind, monkeypatch, tmp_path):
    config = tiny(steps=200, **KINDS[kind])
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "whole"))
    whole = run(config)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "parts"))
    rng, steps = random.Random(kind), []
    command = [sys.executable, "-c", SCRIPT, repr(config.model_dump())]
    for _ in range(3):
        before = checkpoint_of(config).stat().st_mtime_ns if checkpoint_of(config).exists() else 0
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 300
        while not checkpoint_of(config).exists() or checkpoint_of(config).stat().st_mtime_ns == before:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.25))
        assert process.poll() is None, "the run must be killed before it ends"
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(load_checkpoint(checkpoint_of(config))["step"])
    assert 0 < steps[0] <= steps[1] <= steps[2] < 200
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    parts = read_record(local_dir() / "runs" / f"{config.run_id()}.json")
    assert parts.model.weights_sha256 == whole.model.weights_sha256


def test_stopped_run_is_recorded_and_not_tested(monkeypatch, capsys):
    config = tiny()
    interrupt(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False)
    record = read_record(local_dir() / "runs" / f"{config.run_id()}.json")
    assert record.training.status == "stopped" and record.training.steps in (12, 13)
    assert record.test is None and record.bounds is None
    assert "--resume" in capsys.readouterr().err
    assert load_checkpoint(checkpoint_of(config))["step"] == record.training.steps


def test_sigterm_keeps_the_work_too(monkeypatch):
    config = tiny()
    interrupt(monkeypatch, 5, number=signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False)
    assert checkpoint_of(config).exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def stopped(config, monkeypatch, step=12):
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)


def test_an_unfinished_run_is_not_lost_by_mistake(monkeypatch):
    config = tiny()
    stopped(config, monkeypatch)
    before = checkpoint_of(config).read_bytes()
    with pytest.raises(TrainingError, match=r"resume=True .* fresh=True"):
        fit(config, progress=False)
    assert checkpoint_of(config).read_bytes() == before


def test_fresh_discards_the_checkpoint_at_once(monkeypatch):
    config = tiny()
    stopped(config, monkeypatch)
    monkeypatch.setattr(Run, "train_step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(config, fresh=True, progress=False)
    # Otherwise a later --resume would go on with the run that was to be discarded.
    assert load_checkpoint(checkpoint_of(config)) is None


def test_a_finished_record_survives_a_stopped_rerun(monkeypatch):
    config = tiny()
    finished = run(config)
    stopped(config, monkeypatch)
    kept = read_record(local_dir() / "runs" / f"{config.run_id()}.json")
    assert kept.training.status == "finished" and kept.model.weights_sha256 == finished.model.weights_sha256


def test_ctrl_c_while_certifying_keeps_the_training(monkeypatch):
    config = tiny()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lipcert.evaluate.certify_split", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    state = load_checkpoint(checkpoint_of(config))
    assert state is not None and state["step"] == state["steps"]


def test_damaged_checkpoint_goes_back_to_the_one_before(monkeypatch, tmp_path):
    config = tiny()
    whole = run(config)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", _fail_at(20))
        with pytest.raises(OSError, match="power cut"):
            fit(config, progress=False, checkpoint_seconds=0)
    path = checkpoint_of(config)
    newest = load_checkpoint(path)["step"]
    path.write_bytes(path.read_bytes()[:-5])
    assert load_checkpoint(path)["step"] < newest
    assert run(config, resume=True).model.weights_sha256 == whole.model.weights_sha256
    assert not list(path.parent.iterdir())


def _fail_at(step):
    original = Run.train_step

    def failing(self):
        if self.step == step:
            raise OSError("power cut")
        original(self)

    return failing


def test_a_checkpoint_of_other_data_is_refused(monkeypatch):
    config = tiny()
    stopped(config, monkeypatch)
    original = lipcert.train.load_dataset
    monkeypatch.setattr("lipcert.train.load_dataset", lambda *a: replace(original(*a), sha256="0" * 64))
    with pytest.raises(TrainingError, match="other data"):
        fit(config, resume=True, progress=False)


def test_resuming_outside_a_repository_does_not_make_a_run_clean(monkeypatch):
    monkeypatch.setattr("lipcert.run.git_state", lambda: (None, None))
    config = tiny()
    stopped(config, monkeypatch)
    assert run(config, resume=True).provenance.dirty is not False


# --- length -----------------------------------------------------------------------------------------------------------


def test_minutes_become_steps_and_a_rerun_repeats_them(monkeypatch, tmp_path):
    first = run(tiny(steps=None, minutes=0.01))
    assert first.config.minutes is None and first.config.steps == first.training.steps >= 1
    settings = json.loads(first.model_dump_json())["config"]
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path))
    again = run(parse(TrainConfig, settings))
    assert again.id == first.id and again.model.weights_sha256 == first.model.weights_sha256


def test_minutes_are_measured_on_the_loss_not_on_the_plain_start():
    config = tiny(steps=None, minutes=0.01, plain_share=0.9)
    made = Run(config, load_dataset("digits"))
    plain, robust, loss = [], [], made.loss
    made.plain_loss = lambda *arguments: plain.append(1) or loss(*arguments)
    made.loss = lambda *arguments: robust.append(1) or loss(*arguments)
    made.pin_minutes()
    assert not plain and len(robust) == 13
    assert made.config == config.with_steps(made.steps) and made.step == 0


def test_seeds_of_the_streams_stay_and_differ():
    # As numpy makes them of the parts: a change here would change every published run.
    for parts in ((0, 1, 0), (0, 1, 5), (7, 2, 123), (2**31 - 1, 4, 10**6)):
        assert stream_seed(*parts) == int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    seeds = {stream_seed(seed, stream, number) for seed in range(5) for stream in range(1, 5) for number in range(50)}
    assert len(seeds) == 5 * 4 * 50
    with pytest.raises(TypeError):
        stream_seed(0, 3)


# --- divergence -------------------------------------------------------------------------------------------------------


def spoilt_loss(after, spoil):
    loss, calls = training_loss("emma"), []

    def spoilt(logits, *rest):
        calls.append(1)
        value = loss(logits, *rest)
        return spoil(value, logits) if len(calls) > after else value

    return lambda name: spoilt


def nan_gradient(value, logits):
    return value + 0 * (logits - logits.detach()).abs().sum().sqrt()  # the slope of the root at 0 is infinite: 0 * inf


@pytest.mark.parametrize("spoil", [lambda v, z: v * float("nan"), lambda v, z: v * float("inf"), nan_gradient])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_a_good_checkpoint(spoil, monkeypatch):
    config = tiny()
    monkeypatch.setattr("lipcert.run.training_loss", spoilt_loss(25, spoil))
    with pytest.raises(TrainingError, match="lower lr"):
        fit(config, progress=False, checkpoint_seconds=0)
    state = load_checkpoint(checkpoint_of(config))
    assert 0 < state["step"] <= 26
    assert all(tensor.isfinite().all() for tensor in state["network"].values())
    assert not (local_dir() / "runs").exists()


def test_absurd_learning_rate_ends_in_a_clear_error_or_a_valid_record():
    config = tiny(lr=10.0, clip=1e9, beta1=0.0, beta2=0.0, warmup=0.0)
    try:
        record = run(config)
    except (TrainingError, ValueError) as error:
        assert len(str(error)) > 20
    else:
        assert record.vra("36/255") <= record.clean_accuracy()


# --- device -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA")
def test_absent_accelerator_is_a_clear_error():
    with pytest.raises(TrainingError, match=r"device='cuda': not available on this machine; it has .*cpu"):
        fit(tiny(device="cuda"), progress=False)
    assert not local_dir().exists()


def test_auto_finds_something():
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
