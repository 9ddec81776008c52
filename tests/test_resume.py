"""Runs that end early: resumed bit for bit, recorded as stopped, never lost by mistake."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from runs import checkpoint_of, curve, interrupt, run, stopped, timeless, tiny

import lipcert.train
from lipcert.checkpoint import load_checkpoint
from lipcert.paths import local_dir
from lipcert.records import read_record
from lipcert.run import Run, TrainingError
from lipcert.train import fit

KINDS = {
    "adamw": {},
    "nadam and lookahead": {"optimizer": "nadam", "lookahead": True},
    "muon": {"optimizer": "muon"},
    "gloro, adam, decay": {"loss": "gloro", "optimizer": "adam", "weight_decay": 1e-3},
    "augmented": {"crop": 1, "flip": True, "neck": "conv_dense"},
}


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

    def stop(*_, **__):
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
    monkeypatch.setattr("lipcert.train.load_dataset", lambda *a, **k: replace(original(*a, **k), sha256="0" * 64))
    with pytest.raises(TrainingError, match="other data"):
        fit(config, resume=True, progress=False)


def test_resuming_outside_a_repository_does_not_make_a_run_clean(monkeypatch):
    monkeypatch.setattr("lipcert.run.git_state", lambda: (None, None))
    config = tiny()
    stopped(config, monkeypatch)
    assert run(config, resume=True).provenance.dirty is not False


def test_certified_elsewhere_the_record_keeps_what_trained(monkeypatch):
    """Trained on one machine, certified on another that could not have trained it."""
    config = tiny()
    trained = {"device": "cuda", "processor": "abacus", "cores": 2, "threads": 1, "accelerator": "H1"}
    with monkeypatch.context() as patch:
        patch.setattr("lipcert.run.hardware", lambda device: trained)
        patch.setattr("lipcert.evaluate.certify_split", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(config, progress=False)
    monkeypatch.setattr("lipcert.run.check_machine", lambda *_: 1 / 0)
    record = run(config, resume=True)
    assert record.provenance.hardware == trained
    assert record.test.certified.hardware["device"] == "cpu" != record.test.certified.hardware["processor"]


def test_trained_on_elsewhere_the_record_says_where(monkeypatch):
    config = tiny()
    with monkeypatch.context() as patch:
        patch.setattr("lipcert.run.hardware", lambda device: {"device": "cuda"})
        stopped(config, patch)
    record = run(config, resume=True)
    assert record.provenance.hardware["device"] == "cpu" and record.test.certified is None


def test_a_run_that_another_process_trains_is_left_alone(monkeypatch, capsys):
    config = tiny()
    path = checkpoint_of(config)
    holder = "import sys; from pathlib import Path; from lipcert.checkpoint import held\n"
    holder += "with held(Path(sys.argv[1])) as ours: print(ours, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(TrainingError, match="trained by another process"):
            fit(config, progress=False)
        other.kill()
    assert run(config).training.status == "finished", "whoever was killed holds nothing"
    assert not list(path.parent.iterdir())
