"""Networks on some of their classes: against the network with the other rows of its head cut off, and plain loops."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import class_restriction as measured
from benchmarks.class_restriction import Counts, Pairs, Restricted, pairs, restrict, told
from lipcert.certify import Evidence, certified_correct, certify, certify_each
from lipcert.config import TrainConfig
from lipcert.data import Split, load_dataset, to_unit
from lipcert.data.splits import choose_classes
from lipcert.margin_statistics import boundary_distances
from lipcert.models import load_network
from lipcert.paths import local_dir
from lipcert.radius import Radius
from lipcert.records import read_record
from lipcert.report.checks import Check
from lipcert.train import fit

CLASSES, RADII = 6, ("0.03", "0.1", "0.15")
SUBSETS = ((0, 1), (2, 5), (0, 3, 4), (1, 2, 4, 5), tuple(range(CLASSES)))
TINY = {"dataset": "digits", "depth": 2, "width": 8, "neck_width": 16, "batch": 64, "steps": 60, "device": "cpu"}


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES)
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(chain):
    """Random images; most of them have the label that the network gives, so that subsets have something to certify."""
    generator = torch.Generator().manual_seed(1)
    images_NCHW = torch.randint(0, 256, (300, 1, 6, 6), dtype=torch.uint8, generator=generator)
    logits_NK = chain(to_unit(images_NCHW, 255))
    labels_N = (logits_NK - logits_NK.mean(0)).argmax(1)
    labels_N[::7] = torch.arange(300)[::7] % CLASSES
    return SimpleNamespace(shape=(1, 6, 6), scale=255, test=Split(images_NCHW, labels_N, torch.arange(300)))


def without_other_rows(chain: nn.Sequential, kept: tuple[int, ...]) -> nn.Sequential:
    head = nn.Linear(chain[-1].in_features, len(kept))
    head.weight.data, head.bias.data = chain[-1].weight[list(kept)], chain[-1].bias[list(kept)]
    return nn.Sequential(*list(chain)[:-1], head).eval().requires_grad_(False)


@pytest.mark.parametrize("kept", SUBSETS, ids=str)
def test_counts_are_the_certificates_of_the_smaller_network(chain, data, kept):
    inside_N = torch.isin(data.test.labels_N, torch.tensor(kept))
    images_BCHW = to_unit(data.test.images_NCHW[inside_N], 255, torch.float64)
    labels_B = torch.tensor([kept.index(label) for label in data.test.labels_N[inside_N].tolist()])
    smaller = without_other_rows(chain, kept)
    claims = [("nominal", "float64"), ("executed", "float64")]
    nominal, executed = certify_each(smaller, images_BCHW, claims)
    distance_BK = boundary_distances(nominal.logits_BK, labels_B, nominal.bounds.margin_lipschitz_KK)
    certified = []
    for radius in RADII:
        found = pairs(chain, data, Radius(radius)).counts(kept)
        assert found.images == len(labels_B) and found.right == int((nominal.prediction_B == labels_B).sum())
        certified.append(certified_correct(executed.prediction_B, executed.radius_B, labels_B, radius))
        assert found.certified == certified[-1]
        assert found.median == pytest.approx(distance_BK.amin(1).median().item(), rel=1e-9)
    assert found.right >= certified[0] > certified[-1], "radii that tell images apart"


def test_many_small_networks_have_the_counts_that_one_pass_gives(chain, data):
    """Every pair of classes."""
    found = pairs(chain, data, Radius("0.03"))
    for kept in itertools.combinations(range(CLASSES), 2):
        inside_N = torch.isin(data.test.labels_N, torch.tensor(kept))
        images_BCHW = to_unit(data.test.images_NCHW[inside_N], 255, torch.float64)
        labels_B = (data.test.labels_N[inside_N] == kept[1]).long()
        alone = certify(without_other_rows(chain, kept), images_BCHW)
        count = certified_correct(alone.prediction_B, alone.radius_B, labels_B, "0.03")
        assert found.counts(kept).certified == count


def test_subsets_are_counted_as_plain_loops_count():
    generator = torch.Generator().manual_seed(2)
    labels_N = torch.randint(0, 5, (80,), generator=generator)
    own_NK = nn.functional.one_hot(labels_N, 5).bool()
    right_NK = own_NK | (torch.rand(80, 5, generator=generator) < 0.8)
    certified_NK = own_NK | (torch.rand(80, 5, generator=generator) < 0.7)
    distance_NK = torch.randn(80, 5, generator=generator, dtype=torch.float64).masked_fill(own_NK, math.inf)
    found = Pairs(labels_N, right_NK, certified_NK, distance_NK)
    for kept in itertools.combinations(range(5), 3):
        images = right = certified = 0
        distances = []
        for image, label in enumerate(labels_N.tolist()):
            if label in kept:
                images += 1
                is_right = all(right_NK[image, j] for j in kept)
                right += is_right
                certified += is_right and all(certified_NK[image, j] for j in kept)
                distances.append(min(distance_NK[image, j].item() for j in kept))
        median = sorted(distances)[(images - 1) // 2]
        assert found.counts(kept) == Counts(images, right, certified, median)
        assert found.counts(kept[::-1]) == found.counts(kept)


def test_an_image_out_of_range_is_not_certified(chain, data, monkeypatch):
    monkeypatch.setattr(Evidence, "in_range", lambda self, radius_B: torch.arange(len(radius_B)) % 2 > 0)
    found = pairs(chain, data, Radius("0.01"))
    assert not found.certified_NK[::2].any() and found.certified_NK[1::2].any()


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_run_is_restricted_and_agrees_with_its_record():
    path = fit(TrainConfig(**TINY, radius="0.1"), progress=False)
    record = read_record(path)
    measured.main([record.id, "--draws", "3"])
    check = Check(**json.loads((local_dir() / "checks" / "class-restriction.json").read_text()))
    assert check.verdict == "met" and "1 of 1 records have the same counts" in check.measured
    assert check.command == f"python -m benchmarks.class_restriction {record.id} --draws 3"
    assert [row[:3] for row in check.rows[1:]] == [
        (record.id, "2", "3"), (record.id, "5", "3"), (record.id, "10", "1"),
    ]  # fmt: skip
    assert check.numbers[f"{record.id}; 10 classes; vra"] == pytest.approx(record.vra("0.1"), abs=1e-6)
    data, chain = load_dataset("digits"), load_network(local_dir() / record.model.file)
    one = pairs(chain, data, Radius("0.1")).counts(choose_classes("digits", 10, 5, 2))
    assert check.numbers[f"{record.id}; 5 classes; seed 2; certified"] == one.certified
    # Another effort has other constants: nothing to compare with, and a record of other counts is noticed.
    assert measured.agreement(record.id, "0.1", "tight", Counts(1, 1, 1, 0.0)) is None
    assert measured.agreement(record.id, "0.1", "fast", Counts(record.test.images, 1, 1, 0.0)) is False
    assert measured.agreement("no-such-run", "0.1", "fast", one) is None


@pytest.mark.parametrize("card", [{"classes": 9}, {"classes": None, "norm": "linf"}])
def test_networks_of_some_classes_or_of_another_norm_are_refused(card, monkeypatch):
    monkeypatch.setattr(measured, "open_network", lambda name: SimpleNamespace(card=card | {"dataset": "digits"}))
    with pytest.raises(ValueError, match="must be an l2 network trained on all classes"):
        restrict("some", 2, "fast")


def made(run: str, agrees: bool | None, share: int = 1) -> Restricted:
    draws = {2: [Counts(10, 8, 6 + share, 0.2), Counts(10, 6, 4 + share, 0.4)]}
    return Restricted(run, "36/255", 4, draws, Counts(20, 8, 4, 0.1), agrees)


def test_words_are_means_over_draws_and_networks():
    found = told([made("a", True), made("b", True, share=0)], 2)
    assert found["verdict"] == "met"
    assert "2 classes 70.0% clean, 55.0% certified; 4 classes 40.0% clean, 20.0% certified" in found["measured"]
    assert found["measured"].startswith("2 networks of 4 classes, radius 36/255")
    assert found["numbers"]["a; 2 classes; vra"] == 0.6 and found["numbers"]["b; 2 classes; vra"] == 0.5
    assert found["numbers"]["a; 2 classes; seed 1; certified"] == 5
    assert found["numbers"]["a; 2 classes; median distance"] == pytest.approx(0.3)
    assert found["rows"][1] == ("a", "2", "2", "70.0%", "65.0% to 75.0%", "60.0%", "55.0% to 65.0%", "0.300")
    assert found["rows"][2][1:] == ("4", "1", "40.0%", "", "20.0%", "", "0.100")


@pytest.mark.parametrize(
    ("agreed", "verdict"), [((True, True), "met"), ((True, None), "in part"), ((None, False), "fell short")]
)
def test_verdict_is_about_the_records(agreed, verdict):
    assert told([made("a", agreed[0]), made("b", agreed[1])], 2)["verdict"] == verdict
