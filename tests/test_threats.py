"""Notes of what threatens training images: right counts, no trace in the training."""

import pytest
import torch

from lipcert.config import TrainConfig
from lipcert.data import load_dataset, to_unit
from lipcert.radius import Radius
from lipcert.record import Threat
from lipcert.records import find_record
from lipcert.run import Run, TrainingError
from lipcert.settings import ConfigError, parse
from lipcert.threats import limiting
from lipcert.train import fit

SETTINGS = {"dataset": "digits", "depth": 1, "width": 8, "neck_width": 16, "steps": 9, "batch": 64, "radius": "0.1"}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path))


@torch.no_grad()
def by_hand(run: Run, data) -> list[tuple[int, int, float]]:
    """(highest wrong class, class of the nearest boundary, distance) of every training image, one at a time."""
    run.network.eval()
    logits_NK = run.network(to_unit(data.train.images_NCHW, data.scale)).tolist()
    weight_KF = run.network.head.plain()[-1].weight
    constant = run.network.lipschitz_estimate(0)
    K = [[float(constant * torch.linalg.vector_norm(a - b)) for b in weight_KF] for a in weight_KF]
    found = []
    for logits_K, label in zip(logits_NK, data.train.labels_N.tolist(), strict=True):
        others = [k for k in range(10) if k != label]
        distances = {k: (logits_K[label] - logits_K[k]) / K[label][k] for k in others}
        nearest = min(others, key=distances.__getitem__)
        found.append((max(others, key=logits_K.__getitem__), nearest, distances[nearest]))
    return found


def test_counts_are_those_of_a_loop_over_images():
    config, data = TrainConfig(**SETTINGS, threats=3), load_dataset("digits")
    fit(config, progress=False)
    notes = find_record(config.run_id())[0].training.threats
    assert [note.images for note in notes] == [3 * 64, 6 * 64, 9 * 64]
    run, before = Run(TrainConfig(**SETTINGS), data), None
    for note in notes:
        run.network.train()
        while run.step * run.batch < note.images:
            run.train_step()
        found = by_hand(run, data)
        assert note.sample == len(found) == 1437  # digits has fewer than the sample
        assert note.right == sum(distance > 0 for *_, distance in found)
        assert note.certified_estimated == sum(distance > float(Radius("0.1")) for *_, distance in found)
        if before is None:
            assert note.changed is None and note.changed_nearest is None
        else:
            assert note.changed == sum(a[0] != b[0] for a, b in zip(found, before, strict=True)) > 0
            assert note.changed_nearest == sum(a[1] != b[1] for a, b in zip(found, before, strict=True)) > 0
        before = found


@pytest.mark.parametrize("more", [{}, {"norm_method": "lanczos", "centering": True}, {"kernels": "native"}])
def test_training_goes_on_as_without(more):
    plain, watched = TrainConfig(**SETTINGS, **more), TrainConfig(**SETTINGS, **more, threats=5)
    for config in (plain, watched):
        fit(config, progress=False)
    one, two = (find_record(config.run_id())[0] for config in (plain, watched))
    assert one.model.weights_sha256 == two.model.weights_sha256
    assert len(two.training.threats) == 5 and one.training.threats == ()


def test_resumed_runs_keep_theirs(monkeypatch):
    config = TrainConfig(**SETTINGS, threats=3)
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
    resumed = find_record(config.run_id())[0].training.threats
    fit(config, fresh=True, progress=False)
    assert resumed == find_record(config.run_id())[0].training.threats


def test_nearest_is_not_always_highest():
    margin_KK = torch.tensor([[0.0, 4.0, 1.0], [4.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    highest_B, nearest_B, distance_B = limiting(torch.tensor([[3.0, 2.0, 1.9]] * 2), torch.tensor([0, 1]), margin_KK)
    assert highest_B.tolist() == [1, 0] and nearest_B.tolist() == [1, 0]
    assert distance_B.tolist() == pytest.approx([1 / 4, -1 / 4])
    _, nearest_B, distance_B = limiting(torch.tensor([[3.0, 2.0, 2.9]]), torch.tensor([0]), margin_KK)
    assert nearest_B.tolist() == [2] and distance_B.tolist() == pytest.approx([0.1])
    highest_B, nearest_B, _ = limiting(torch.tensor([[3.0, 2.0, 1.5]]), torch.tensor([0]), margin_KK / 4 + margin_KK.T)
    assert highest_B.tolist() == [1] and nearest_B.tolist() == [1]


def test_refusals():
    with pytest.raises(ConfigError, match=r"threats=2 with loss 'ibp': must be 0"):
        parse(TrainConfig, {"epochs": 1, "threats": 2, "loss": "ibp", "family": "gloro", "depth": 2, "width": 16})
    fine = {"images": 64, "sample": 10, "changed": None, "changed_nearest": None, "right": 5, "certified_estimated": 5}
    Threat(**fine)
    for wrong in ({"right": 11}, {"certified_estimated": 6}, {"changed": 11}):
        with pytest.raises(ValueError, match="sample=10"):
            Threat(**fine | wrong)


def test_curve_has_the_gradient_norm_before_clipping():
    small, large = (TrainConfig(**SETTINGS, clip=clip) for clip in (1e-3, 1e3))
    rows = []
    for config in (small, large):
        run = Run(config, load_dataset("digits"))
        run.train_step()
        rows.append(run.report(1.0))
    assert rows[0]["gradient_norm"] == rows[1]["gradient_norm"] > 1e-3
