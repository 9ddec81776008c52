"""The network families against numpy: forward pass, Lipschitz product and size from the raw parameters alone.

`network_by_hand` turns a state_dict into steps by the papers' formulas; what interprets the steps knows only
convolutions, matrices and sorting.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import signal
from truth import conv_matrix

from lipcert.certify import certify
from lipcert.chain import chain_bounds
from lipcert.config import ConfigError, ModelConfig, parse
from lipcert.models import FAMILIES, Network, build_model

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
LAYOUTS = {  # filters in units of the width, kernel, stride; hidden dense layers (code of arXiv 2102.08452)
    2: ([(1, 4, 2), (2, 4, 2)], 1),
    4: ([(1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2)], 2),
    6: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 3, 1), (2, 4, 2)], 1),
    7: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2), (4, 3, 1), (4, 4, 2)], 0),
    8: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 3, 1), (2, 4, 2), (4, 3, 1), (4, 4, 2)], 1),
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


# --- by hand ----------------------------------------------------------------------------------------------------------


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """chol(M M^T + d I)^-1 M with d = mean(diag(M M^T)) / 1000, on the smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    gram = matrix @ matrix.T
    return np.linalg.inv(np.linalg.cholesky(gram + np.trace(gram) / len(gram) / 1000 * np.eye(len(gram)))) @ matrix


def network_by_hand(config: ModelConfig, p: dict[str, np.ndarray]) -> tuple[list[tuple], np.ndarray, np.ndarray]:
    """Steps of the backbone, rows and bias of the head."""
    rows = p["head.linear.weight"]
    if config.family == "gloro":
        layout, hidden = LAYOUTS[config.depth]
        steps = []
        for i, (_, kernel, stride) in enumerate(layout, 1):
            # "same": a stride of 2 halves the map, a stride of 1 keeps it
            steps += [conv(p, f"backbone.conv{i}", stride, {3: 1, 4: 1}[kernel]), ("act",)]
        steps.append(("flatten",))
        for i in range(1, hidden + 1):
            steps += [linear(p, f"backbone.dense{i}"), ("act",)]
        return steps, rows, p["head.linear.bias"]
    kernel = p["backbone.stem.conv.weight"].shape[-1]
    stride, padding = (kernel, 0) if config.stem == "patch" else ({3: 1, 5: 2, 7: 4}[kernel], kernel // 2)
    steps = [("pad", 2)] if config.input_size == 28 else []
    steps += [("minus", 0.5), conv(p, "backbone.stem", stride, padding), ("act",)]
    stack = {key.removeprefix("backbone.stack."): value for key, value in p.items() if "backbone.stack." in key}
    for block in range(config.depth):
        steps += block_by_hand(config, stack, block)
    steps += neck_by_hand(config, p)
    for layer in range(config.tail_depth):
        branch, gamma, bias = (p[f"backbone.tail.{key}"][layer] for key in ("branch_LFF", "gamma_LF", "bias_LF"))
        matrix = np.eye(len(bias)) + gamma[:, None] * branch / math.sqrt(config.tail_depth)
        steps += [("dense, orthogonal", orthogonalised(matrix), bias), ("minmax",)]
    return steps, rows / np.linalg.norm(rows, axis=1, keepdims=True), p["head.linear.bias"]


def block_by_hand(config: ModelConfig, stack: dict[str, np.ndarray], block: int) -> list[tuple]:
    if config.family == "convnet":
        return [("conv", stack["weight_LOIhw"][block], stack["bias_LO"][block], 1, 1), ("act",)]
    if config.family == "resnet":
        first, second = stack["first_LOIhw"][block], stack["second_LOIhw"][block]
        before, after = stack["bias_2LO"][:, block]
        return [("residual", first, before, second, after, stack["scale_L"][block]), ("act",)]
    kernel = stack["gamma_LO"][block][:, None, None, None] * stack["branch_LOIhw"][block] / math.sqrt(config.depth)
    kernel[:, :, 1, 1] += np.eye(config.width)
    bias = stack["bias_LO"][block] - (stack["mean_LO"][block] if config.centering else 0)
    return [("conv", kernel, bias, 1, 1), ("act",)]


def neck_by_hand(config: ModelConfig, p: dict[str, np.ndarray]) -> list[tuple]:
    if config.neck == "orthogonal":
        raw = p["backbone.neck_conv.raw_OIhw"]
        kernel = orthogonalised(raw.reshape(len(raw), -1)).reshape(raw.shape)
        matrix, bias = orthogonalised(p["backbone.neck_dense.raw_OI"]), p["backbone.neck_dense.bias"]
        convolution = ("conv, orthogonal", kernel, np.zeros(len(raw)), 4, 0)
        return [convolution, ("flatten",), ("dense, orthogonal", matrix, bias), ("act",)]
    between = [("act",)] if config.neck == "conv_dense" else []
    return [conv(p, "backbone.neck_conv", 4, 0), *between, ("flatten",), linear(p, "backbone.neck_dense"), ("act",)]


def conv(p: dict[str, np.ndarray], place: str, stride: int, padding: int) -> tuple:
    return "conv", p[f"{place}.conv.weight"], p[f"{place}.conv.bias"], stride, padding


def linear(p: dict[str, np.ndarray], place: str) -> tuple:
    return "dense", p[f"{place}.linear.weight"], p[f"{place}.linear.bias"]


def correlate(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding)])
    planes = [signal.correlate(padded, part, mode="valid", method="direct")[0] for part in kernel]
    return np.stack(planes)[:, ::stride, ::stride] + bias[:, None, None]


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return np.where(x > 0, x, 0)
    low, high = np.sort(np.stack(np.split(x, 2)), axis=0)
    return np.concatenate([high, low])


def run_by_hand(steps: list[tuple], x: np.ndarray, activation: str) -> np.ndarray:
    for kind, *of in steps:
        if kind.startswith("conv"):
            x = correlate(x, *of)
        elif kind.startswith("dense"):
            x = of[0] @ x + of[1]
        elif kind == "residual":
            first, before, second, after, scale = of
            branch = activate(correlate(x, first, before, 1, 1), activation)
            x = x + scale * correlate(branch, second, after, 1, 1)
        elif kind == "minus":
            x = x - of[0]
        elif kind == "pad":
            x = np.pad(x, [(0, 0), (of[0], of[0]), (of[0], of[0])])
        else:
            x = x.reshape(-1) if kind == "flatten" else activate(x, activation if kind == "act" else kind)
    return x


def product_by_hand(steps: list[tuple], shape: tuple[int, ...]) -> tuple[float, float]:
    """The product of the dense norms, a residual block counting 1 + |s| |K1| |K2|; and the same as training counts it,
    with 1 for orthogonal maps."""

    def norm(kernel, stride, padding):
        return np.linalg.norm(conv_matrix(kernel, shape, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1), 2)

    product, trained = 1.0, 1.0
    for kind, *of in steps:
        factor = 1.0
        if kind.startswith("conv"):
            kernel, _, stride, padding = of
            factor = norm(kernel, stride, padding)
            shape = (len(kernel), *((side + 2 * padding - kernel.shape[-1]) // stride + 1 for side in shape[1:]))
        elif kind.startswith("dense"):
            factor = np.linalg.norm(of[0], 2)
        elif kind == "residual":
            factor = 1 + abs(of[4]) * norm(of[0], 1, 1) * norm(of[2], 1, 1)
        elif kind == "pad":
            shape = (shape[0], *(side + 2 * of[0] for side in shape[1:]))
        product *= factor
        trained *= 1 if "orthogonal" in kind else factor
    return product, trained


def parameters_by_hand(c: ModelConfig) -> int:
    """Weights, biases and scales, counted on paper."""
    W, D, K = c.width, c.neck_width, c.classes
    if c.family == "gloro":
        layout, hidden = LAYOUTS[c.depth]
        filters = [c.channels, *(f * W for f, _, _ in layout)]
        pairs = list(itertools.pairwise(filters))
        convs = sum(a * b * k * k + b for (a, b), (_, k, _) in zip(pairs, layout, strict=True))
        features = [filters[-1] * (c.input_size // math.prod(s for *_, s in layout)) ** 2, *[D] * hidden, K]
        return convs + sum(a * b + b for a, b in itertools.pairwise(features))
    stems = {8: (3, 8), 28: (5, 16), 32: (5, 16), 64: (5, 32), 224: (14, 16)}
    if c.stem == "auto":
        kernel, side = stems[c.input_size]
    else:
        kernel, side = {"7x7/4": (7, c.input_size // 4), "patch": (2, c.input_size // 2)}[c.stem]
    stem = c.channels * kernel**2 * W + W
    block = {"liresnet": 9 * W**2 + 2 * W, "convnet": 9 * W**2 + W, "resnet": 2 * (9 * W**2 + W) + 1}[c.family]
    wide, bias = (2 * W, 2 * W) if c.neck == "conv_dense" else (W, 0 if c.neck == "orthogonal" else W)
    neck = 16 * W * wide + bias + wide * (side // 4) ** 2 * D + D
    return stem + c.depth * block + neck + c.tail_depth * (D**2 + 2 * D) + D * K + K


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


STUDY = {"liresnet", "resnet", "convnet", "gloro"}  # written out by hand above


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
        # An orthogonal layer counts as 1 and is a little less.
        assert chain_bounds(network.plain(), (1, 8, 8)).upper >= float(network.lipschitz_estimate(50)) * 0.99
    assert certify(network, images.double()).guarantee == "executed"


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
