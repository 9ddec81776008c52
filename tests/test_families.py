"""The network families against numpy: forward pass, Lipschitz product and size as `by_hand` has them."""

import math

import numpy as np
import pytest
import torch
from by_hand import network_by_hand, parameters_by_hand, product_by_hand, run_by_hand

from lipcert import families
from lipcert.certify import certify
from lipcert.chain import chain_bounds
from lipcert.config import ModelConfig
from lipcert.models import FAMILIES, Network, build_model
from lipcert.settings import ConfigError, parse

TRUNK = {"depth": 2, "width": 4, "neck_width": 6, "classes": 3}
GLORO = {"family": "gloro", "width": 2, "neck_width": 4, "classes": 3}
CASES = {
    "liresnet, first generation": TRUNK | {"neck": "conv_dense"},
    "liresnet, second generation": TRUNK | {"neck": "dense", "depth": 3},
    "liresnet, third generation": TRUNK | {"tail_depth": 2, "centering": True},
    "liresnet, relu": TRUNK | {"activation": "relu", "tail_depth": 1},
    "liresnet, 28 pixels": TRUNK | {"input_size": 28, "width": 2, "depth": 1},
    "liresnet, patches": TRUNK | {"input_size": 16, "channels": 1, "stem": "patch"},
    "liresnet, colours, 7x7/4": TRUNK | {"input_size": 16, "channels": 3, "stem": "7x7/4", "neck": "conv_dense"},
    "resnet": TRUNK | {"family": "resnet", "neck": "dense"},
    "resnet, relu": TRUNK | {"family": "resnet", "activation": "relu", "tail_depth": 1},
    "convnet": TRUNK | {"family": "convnet", "depth": 3},
    "convnet, relu": TRUNK | {"family": "convnet", "activation": "relu", "neck": "conv_dense"},
    "gloro 2C2F": GLORO | {"depth": 2},
    "gloro 2C2F, relu": GLORO | {"depth": 2, "activation": "relu", "init": "glorot", "input_size": 12},
    "gloro 4C3F": GLORO | {"depth": 4, "channels": 3},
    "gloro 6C2F": GLORO | {"depth": 6},
    "gloro 6C2F, relu": GLORO | {"depth": 6, "activation": "relu"},
    "gloro 7C1F": GLORO | {"depth": 7},
    "gloro 8C2F": GLORO | {"depth": 8},
    "gloro 8C2F, relu": GLORO | {"depth": 8, "activation": "relu", "channels": 2},
}


def made(name: str) -> tuple[ModelConfig, Network]:
    """The network in evaluation mode, every parameter and running mean away from where it starts."""
    config = parse(ModelConfig, CASES[name])
    torch.manual_seed(list(CASES).index(name))
    network = build_model(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for key, buffer in network.named_buffers():
            if "mean" in key:
                buffer.normal_()
    return config, network.eval()


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_forward_pass_bound_and_size_are_the_written_formulas(name):
    config, network = made(name)
    assert network.parameter_count() == parameters_by_hand(config)
    shape, plain = network.input_shape, network.plain()
    assert shape == (config.channels, config.input_size, config.input_size)
    network.double()
    steps, rows, bias = network_by_hand(config, {key: value.numpy() for key, value in network.state_dict().items()})

    image = np.random.default_rng(0).random(shape)
    logits = rows @ run_by_hand(steps, image, config.activation) + bias
    x = torch.tensor(image)[None]
    with torch.no_grad():
        np.testing.assert_allclose(network(x)[0], logits, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(plain.double()(x)[0], logits, rtol=1e-5, atol=1e-5)
    plain.float()

    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    truth, trained = product_by_hand(steps, shape)
    with torch.no_grad():
        estimate = network.lipschitz_estimate(200)
        np.testing.assert_allclose(network.margin_lipschitz(estimate), float(estimate) * apart, rtol=1e-9, atol=1e-12)
    assert trained * (1 - 0.01) <= float(estimate) <= trained * (1 + 1e-9)
    bounds = chain_bounds(plain, shape)
    assert bounds.upper == pytest.approx(truth, rel=1e-5) and truth <= trained
    np.testing.assert_allclose(bounds.margin_lipschitz_KK, truth * apart, rtol=1e-5, atol=1e-12)


MILLIONS = {  # of the code of 2023 at sizes that no preset has; the others are in test_presets.py
    "CIFAR-10 L12W256": (13.4, {"input_size": 32, "width": 256, "neck_width": 512}),
    "CIFAR-10 L12W512": (45.1, {"input_size": 32, "width": 512, "neck_width": 512}),
    "Tiny L12W512": (45.3, {"input_size": 64, "width": 512, "neck_width": 512, "classes": 200, "stem": "7x7/4"}),
    "ImageNet L12W588": (89.4, {"input_size": 224, "width": 588, "neck_width": 2048, "classes": 1000}),
}


@pytest.mark.parametrize("name", MILLIONS)
def test_large_sizes_are_the_published_ones(name):
    millions, sizes = MILLIONS[name]
    config = ModelConfig(channels=3, depth=12, neck="conv_dense", **sizes)
    with torch.device("meta"):
        count = build_model(config).parameter_count()
    assert count == parameters_by_hand(config) and abs(count / 1e6 - millions) < 0.05


# --- certificates -----------------------------------------------------------------------------------------------------


def descend(chain, image, label, radius, starts=4, rounds=25) -> float:
    """The smallest margin that projected gradient descent finds within the radius; float64."""
    way = torch.randn(starts, *image.shape, dtype=torch.float64)
    step = radius * way / way.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    best = math.inf
    for _ in range(rounds):
        step.requires_grad_()
        logits = chain(image + step)
        others = logits.clone()
        others[:, label] = -math.inf
        margin = logits[:, label] - others.amax(1)
        best = min(best, margin.min().item())
        (slope,) = torch.autograd.grad(margin.sum(), step)
        slope = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            step = step - 0.4 * radius * slope
            step = step * (radius / step.flatten(1).norm(dim=1).clamp(min=radius)).reshape(-1, 1, 1, 1)
    return best


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name or "third" in name])
def test_attacks_find_nothing_within_a_certified_radius(name):
    _, network = made(name)
    chain, images = network.plain(), torch.rand(3, *network.input_shape, dtype=torch.float64)
    found = certify(chain, images)
    of_network = certify(network, images)
    assert torch.equal(found.radius_B, of_network.radius_B) and torch.equal(found.prediction_B, of_network.prediction_B)
    assert (found.radius_B > 0).all() and found.guarantee == "executed"
    chain.double()
    for image, label, radius in zip(images, found.prediction_B.tolist(), found.radius_B.tolist(), strict=True):
        assert descend(chain, image, label, radius) > 0
        assert descend(chain, image, label, 300 * radius) < 0, "the attack is no use: it never finds anything"


# --- one way to name a model ------------------------------------------------------------------------------------------


STUDY = {"liresnet", "resnet", "convnet", "gloro"}  # written out in by_hand.py


def test_every_family_of_the_study_is_written_out_by_hand():
    assert {config.get("family", "liresnet") for config in CASES.values()} == STUDY <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_certified_as_it_runs(family):
    network = build_model(ModelConfig(family=family, depth=2, width=4, neck_width=4, classes=3)).eval()
    assert FAMILIES[family].__module__ == f"lipcert.models.{family}"
    assert isinstance(network, Network) and network.input_shape == (1, 8, 8)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.plain()(images), network(images), rtol=1e-4, atol=1e-5)
        certificates = certify(network, images.double(), norm=families.FAMILIES[family].norm)
        # An orthogonal layer counts as 1 and is a little less.
        assert certificates.bounds.upper >= float(network.lipschitz_estimate(50)) * 0.99
    assert certificates.guarantee == "executed"


def test_the_global_seed_decides_the_weights():
    def weights(name, seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build_model(parse(ModelConfig, CASES[name])).parameters()])

    for name in ("liresnet, third generation", "resnet", "convnet", "gloro 4C3F"):
        assert torch.equal(weights(name, 1), weights(name, 1)) and not torch.equal(weights(name, 1), weights(name, 2))


REFUSED = {
    "depth of no net": (GLORO | {"depth": 12}, ["depth=12", "family 'gloro'", "2, 4, 6, 7, 8"]),
    "gloro, odd input": (GLORO | {"depth": 2, "input_size": 9}, ["input_size=9", "gloro", "depth=2", "divide by 4"]),
    "gloro, 8C2F on 28": (GLORO | {"depth": 8, "input_size": 28}, ["input_size=28", "depth=8", "divide by 8"]),
    "centred resnet": (TRUNK | {"family": "resnet", "centering": True}, ["centering=True", "'resnet'", "of liresnet"]),
    "centred gloro": (GLORO | {"depth": 2, "centering": True}, ["centering=True", "'gloro'", "liresnet only"]),
    "tail of gloro": (GLORO | {"depth": 2, "tail_depth": 2}, ["tail_depth=2", "'gloro'", "liresnet, resnet, convnet"]),
    "init of liresnet": (TRUNK | {"init": "glorot"}, ["init='glorot'", "'liresnet'", "gloro only"]),
    "odd trunk input": (TRUNK | {"input_size": 9}, ["input_size=9", "8, 28, 32, 64, 224"]),
    "unknown family": (TRUNK | {"family": "vit"}, ["family='vit'", "liresnet", "gloro"]),
    "odd neck": (TRUNK | {"neck_width": 5}, ["neck_width=5", "multiple of 2"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_value_rule_and_fix(name):
    settings, expected = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        build_model(parse(ModelConfig, settings))
    for text in expected:
        assert text in str(refusal.value), text
