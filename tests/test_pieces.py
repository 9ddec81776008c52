"""Certifying a split piece by piece: the bytes of one piece, for tensors and for image files."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lipcert.evaluate as evaluate
from lipcert import load
from lipcert.certify import certify_each
from lipcert.chain import NotCertifiable
from lipcert.config import TrainConfig
from lipcert.data import Split, load_dataset, to_unit
from lipcert.data.lazy import LazyImages

COLUMNS = ("prediction_B", "radius_B", "runner_up_B", "logits_BK", "estimated_radius_B")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def network():
    return load("digits-liresnet-L6W32")


def assert_same(pieces, whole):
    for piece, one in zip(pieces, whole, strict=True):
        assert (piece.guarantee, piece.arithmetic) == (one.guarantee, one.arithmetic) and len(piece) == len(one)
        for name in COLUMNS:
            assert getattr(piece, name).numpy().tobytes() == getattr(one, name).numpy().tobytes(), name


def first(digits, count):
    test = Split(*(getattr(digits.test, part)[:count] for part in ("images_NCHW", "labels_N", "index_N")))
    return replace(digits, test=test)


def test_pieces_give_the_bytes_of_the_whole(digits, network, monkeypatch):
    data = first(digits, 140)
    monkeypatch.setattr(evaluate, "_PIECE_BYTES", 64 * 8 * 8 * 8)
    seen, done = [], []
    original = evaluate.certify_each
    monkeypatch.setattr(evaluate, "certify_each", lambda c, x, *a, **k: seen.append(len(x)) or original(c, x, *a, **k))
    claims = evaluate.ALL_CLAIMS
    pieces = evaluate.certify_split(network, data, "test", CPU, claims=claims, progress=done.append)
    assert seen == [64, 64, 12] and sum(done) == 140 * evaluate.rounds_of(claims, "l2", "margin")
    whole = certify_each(network, to_unit(data.test.images_NCHW, digits.scale, torch.float64), claims)
    assert_same(pieces, whole)


def test_files_are_certified_as_their_pixels_are(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from pictures import picture, save

    names = [f"{i}.JPEG" for i in range(70)]
    for i, name in enumerate(names):
        save(tmp_path / name, picture(i, 12, 10))
    images = LazyImages(tmp_path, names, [1] * 70, side=8, shorter=9)
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    labels = torch.zeros(70, dtype=torch.int64)
    data = SimpleNamespace(shape=(3, 8, 8), scale=255, test=Split(images, labels, torch.arange(70)))
    monkeypatch.setattr(evaluate, "_PIECE_BYTES", 1)
    pieces = evaluate.certify_split(chain, data, "test", CPU)
    assert_same(pieces, certify_each(chain, to_unit(images[:], 255, torch.float64), evaluate.CLAIMS))


def test_an_empty_split_is_refused(digits, network):
    with pytest.raises(NotCertifiable, match="at least one image"):
        evaluate.certify_split(network, digits, "validation", CPU)


@pytest.mark.parametrize("name", ["digits", "another"])
def test_only_sets_that_the_checker_knows_get_a_bundle(digits, name, results):
    data = replace(first(digits, 9), name=name)
    chain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    test, _ = evaluate.certified_parts("run", TrainConfig(epochs=1), chain, data, "test", CPU)
    expected = "certificates/run" if name == "digits" else None
    assert test.bundle == expected and (results / "local/certificates/run").exists() == (expected is not None)
    with open(results / "local" / test.radii) as file:
        assert len(list(csv.reader(file))) == 10
