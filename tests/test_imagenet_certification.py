"""The benchmark behind the cost of an ImageNet certificate, on small networks of the same layers."""

import math

import pytest
import torch
from torch import nn

from benchmarks import imagenet_certification as measured
from lipcert.bounds import norm_bound
from lipcert.certify import certify
from lipcert.chain import chain_bounds
from lipcert.config import load_config
from lipcert.report.published import preset_model

NAMES = tuple(measured.PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_the_presets_are_the_published_ones_at_224_pixels(name: str):
    shape = measured.shape_of(name, quick=False)
    assert shape == preset_model(load_config(measured.FOLDER / f"{measured.PRESETS[name]}.yaml"))
    assert (shape.depth, shape.width, shape.input_size, shape.classes) == (18, 588, 224, 1000)
    assert measured.image_shape(name, quick=False) == (3, 224, 224)
    millions = {"first generation": 108.0, "third generation": 116.8}[name]
    assert measured.build_parameters(name, quick=False) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_share_a_kernel_and_one_proof_stands_for_them(name: str):
    chain, shape = measured.network(name, quick=True), measured.image_shape(name, quick=True)
    blocks = [layer for layer in chain if measured.is_block(layer)]
    assert len(blocks) == 3 and all(torch.equal(layer.weight, blocks[0].weight) for layer in blocks)
    with measured.proving() as prover:
        bounds = chain_bounds(chain, shape)
    titles = [what for what, _, _ in prover.found]
    seconds = [seconds for what, _, seconds in prover.found if what == measured.title(blocks[0])]
    assert titles.count("convolution 3x3, 16 to 16") == 3 and len(set(seconds)) == 1
    assert len(titles) == sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in chain) - 1  # all but the head
    plainly = chain_bounds(chain, shape)  # the stopwatch changes no bound
    assert (bounds.upper, bounds.lower, bounds.proven_for) == (plainly.upper, plainly.lower, plainly.proven_for)
    assert measured.block_seconds(prover.found) == seconds[0]


def test_the_proofs_are_those_that_certify():
    chain, shape = measured.network(NAMES[0], quick=True), measured.image_shape(NAMES[0], quick=True)
    with measured.proving():
        bounds = chain_bounds(chain, shape)
    images_BCHW = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given, own = certify(chain, images_BCHW, bounds=bounds), certify(chain, images_BCHW)
    assert torch.equal(given.radius_B, own.radius_B) and torch.equal(given.prediction_B, own.prediction_B)


def test_operations_by_hand():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    assert measured.operations(chain.eval(), (3, 8, 8)) == 2 * (4 * 16 * 27 + 64 * 5)


def test_a_block_as_trained_is_farther_from_the_identity():
    chain = measured.network(NAMES[0], quick=True)
    block = next(layer for layer in chain if measured.is_block(layer))
    fresh, trained = (norm_bound(layer, (16, 16, 16)).upper for layer in (block, measured.trained_like(block)))
    assert fresh < 1.15 < 1.3 < trained
    assert torch.equal(block.weight[:, :, 1, 1].round(), torch.eye(16))  # the block itself is left alone


def test_what_is_told():
    facts = {
        "parameters": 10**8, "operations": 2e10, "bytes": 4e8, "trained block": 9.0, "memory of proofs": 3e9,
        "memory of certifying": 2e9,
        "proofs": [["convolution 3x3, 4 to 4", "torus", 6.0]] * 3 + [["dense, 4 to 4", "matrix", 1.0]],
        "seconds": {"plain, float64": 1.0, "plain, float32": 0.2, "executed, float64": 0.5, "executed, float32": 1.0},
    }  # fmt: skip
    other = {key: value for key, value in facts.items() if key != "trained block"}
    found = measured.told({NAMES[0]: facts, NAMES[1]: other | {"memory of proofs": 25e9}})
    n = found["numbers"]
    assert n["first generation; proofs; seconds"] == 19 and n["first generation; block; seconds"] == 6
    assert n["first generation; executed, float32; ratio"] == 5 and n["first generation; GFLOP an image"] == 20
    assert "second generation" not in str(n) and "third generation; trained block; seconds" not in n
    assert found["verdict"] == "fell short"  # 25 GB
    assert measured.told({NAMES[0]: facts})["verdict"] == "met"
    assert ("first generation", "proof of 3 x convolution 3x3, 4 to 4 (torus)", "18.0 s", "") in found["rows"]
    assert "360 times less" in found["measured"] and all(math.isfinite(v) for v in n.values() if not isinstance(v, str))


def test_a_preset_is_measured():
    facts = measured.measure(NAMES[1], quick=True, rounds=1)
    assert set(facts["seconds"]) == {"plain, float64", "plain, float32", "executed, float64", "executed, float32"}
    assert all(seconds > 0 for seconds in facts["seconds"].values()) and facts["memory of certifying"] > 1e7
    assert [what for what, _, _ in facts["proofs"]].count("dense, 32 to 32") == 2 and "trained block" not in facts
