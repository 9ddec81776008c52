"""Snapshots: the network certified on the way, without a trace in the training itself."""

import itertools

import pytest
import torch

from lipcert.certify import certify
from lipcert.config import TrainConfig
from lipcert.data import load_dataset, to_unit
from lipcert.radius import Radius
from lipcert.records import find_record
from lipcert.run import Run, TrainingError
from lipcert.train import fit

SETTINGS = {"dataset": "digits", "depth": 1, "width": 8, "neck_width": 16, "steps": 9, "batch": 64, "radius": "0.1"}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path))


def test_counts_are_those_of_the_network_at_that_step():
    config = TrainConfig(**SETTINGS, snapshots=3)
    fit(config, progress=False)
    record, _ = find_record(config.run_id())
    assert [found.images for found in record.training.snapshots] == [3 * 64, 6 * 64]  # the third is the end itself
    data = load_dataset("digits")
    run, images_BCHW = Run(TrainConfig(**SETTINGS), data), to_unit(data.test.images_NCHW, data.scale, torch.float64)
    for found in record.training.snapshots:
        while run.step * run.batch < found.images:
            run.train_step()
        certificates = certify(run.network.plain(), images_BCHW)
        right_B = certificates.prediction_B == data.test.labels_N
        assert found.clean == int(right_B.sum())
        robust_B = right_B & (certificates.radius_B >= float(Radius("0.1")))
        assert found.certified_correct == int(robust_B.sum())
        assert found.upper == certificates.bounds.upper


def test_training_goes_on_as_without():
    plain, watched = TrainConfig(**SETTINGS), TrainConfig(**SETTINGS, snapshots=9)
    for config in (plain, watched):
        fit(config, progress=False)
    one, two = (find_record(config.run_id())[0] for config in (plain, watched))
    assert one.model.weights_sha256 == two.model.weights_sha256
    assert len(two.training.snapshots) == 8 and one.training.snapshots == ()
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(two.training.snapshots))


def test_resumed_runs_keep_theirs(monkeypatch):
    config = TrainConfig(**SETTINGS, snapshots=3)
    step = Run.train_step

    def breaks(self):
        if self.step == 4:
            raise TrainingError("pulled the plug")
        step(self)

    monkeypatch.setattr(Run, "train_step", breaks)
    with pytest.raises(TrainingError, match="plug"):
        fit(config, progress=False, checkpoint_seconds=0)
    monkeypatch.setattr(Run, "train_step", step)
    fit(config, resume=True, progress=False)
    resumed = find_record(config.run_id())[0].training.snapshots
    fit(config, fresh=True, progress=False)
    whole = find_record(config.run_id())[0].training.snapshots
    assert [(f.images, f.clean, f.certified_correct) for f in resumed] == [
        (f.images, f.clean, f.certified_correct) for f in whole
    ]
