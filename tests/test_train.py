"""Training: repeatable, of the length asked for, and ending cleanly when it diverges; test_resume.py stops it."""

import json
import re

import numpy as np
import pytest
import torch
from runs import checkpoint_of, curve, run, table, timeless, tiny

from lipcert.checkpoint import load_checkpoint
from lipcert.config import TrainConfig
from lipcert.data import load_dataset
from lipcert.device import pick_device
from lipcert.evaluate import certify_again
from lipcert.losses import training_loss
from lipcert.models import load
from lipcert.paths import local_dir
from lipcert.records import find_record, publish, read_record
from lipcert.report.tables import run_sentence
from lipcert.run import Run, TrainingError
from lipcert.settings import parse
from lipcert.stream import stream_seed
from lipcert.train import fit

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


@pytest.mark.parametrize("family", ["liresnet", "linf_net"])
def test_certifying_shows_how_far_it_is(family, capsys):
    """Counted to the end, in as many rounds over the 360 images as its method takes."""
    linf = {"loss": "linf_hinge", "depth": 2, "radius": "0.03", "power_steps": 1} if family == "linf_net" else {}
    record = read_record(fit(tiny(steps=2, family=family, **linf)))
    ((done, total),) = re.findall(r"image (\d+)/(\d+), certifying, 0:00 left", capsys.readouterr().err)
    assert done == total == str(360 * (1 if family == "liresnet" else 1 + 3))
    capsys.readouterr()
    certify_again(record.id, progress=True)
    ((done, total),) = re.findall(r"image (\d+)/(\d+), certifying, 0:00 left", capsys.readouterr().err)
    assert done == total == str(360 * (3 if family == "liresnet" else 2 + 5))


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
    assert not plain and len(robust) >= 13
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
    record, folder = find_record(config.run_id())
    assert (record.training.status, record.training.steps, record.test) == ("diverged", 26, None)
    assert record.model.file is None and (folder / record.training.curve).exists()
    assert not (local_dir() / "models").exists()
    published = read_record(publish(record.id)) if record.provenance.dirty is False else record
    assert "diverged after 26 steps" in run_sentence(published)


def test_the_steps_of_a_run_that_diverged_took_time(monkeypatch):
    monkeypatch.setattr("lipcert.run.training_loss", spoilt_loss(0, nan_gradient))
    with pytest.raises(TrainingError, match="lower lr"):
        fit(config := tiny(), progress=False)
    training = find_record(config.run_id())[0].training
    assert training.steps >= 1 and training.seconds > 0 and training.images_per_second < 1e7


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
    assert not [path for path in local_dir().rglob("*") if path.is_file()]


def test_auto_finds_something():
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
