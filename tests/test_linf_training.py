"""l_inf-distance nets as they are trained: layers, losses, schedules, networks. Truth is written out in numpy here."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lipcert.config import ModelConfig, TrainConfig, load_config
from lipcert.linf.ibp import worst_logits
from lipcert.linf.layers import SortedDistance
from lipcert.linf.maps import DistanceConvMap, DistanceDense, DistanceHead, DistanceMap, calibrate, lp_decay
from lipcert.losses import ibp_loss, linf_hinge_loss, linf_mixture_loss
from lipcert.models import build_model, load_network, save_network
from lipcert.paths import ROOT
from lipcert.schedules import exponent, loss_weight, schedule_end
from lipcert.settings import ConfigError, parse

CARD = dict.fromkeys(("dataset", "classes", "class_seed", "class_names", "input_shape", "radius"), None)
PRESETS = ROOT / "notebooks" / "params" / "published"


def small(**settings) -> ModelConfig:
    usual = {"family": "linf_net", "depth": 3, "width": 16, "channels": 1, "input_size": 4, "classes": 5}
    return ModelConfig(**usual | settings)


def distances(x_BI: torch.Tensor, w_OI: torch.Tensor, p: float) -> np.ndarray:
    apart_BOI = np.abs(x_BI.detach().double().numpy()[:, None] - w_OI.detach().double().numpy()[None])
    return np.linalg.norm(apart_BOI, ord=p, axis=2)


@pytest.mark.parametrize(
    ("preset", "channels", "size", "parameters"),
    [("linf-v2-cifar10-8", 3, 32, 120_637_451), ("linf-v2-mnist-0.3", 1, 28, 82_708_491)],
)
def test_the_published_networks_have_their_published_sizes(preset, channels, size, parameters):
    with torch.device("meta"):
        network = build_model(load_config(PRESETS / f"{preset}.yaml").model(channels, size, 10))
    assert network.parameter_count() == parameters


@pytest.mark.parametrize("p", [2.0, 8.0, 100.0, math.inf])
def test_a_dense_layer_is_the_distance_from_its_weights_in_pixels(p):
    torch.manual_seed(0)
    layer = DistanceDense(12, 7, unit=0.3, origin_I=torch.rand(12)).eval()
    layer.exponent = p
    layer.mean.uniform_()
    x_BI = torch.rand(5, 12)
    expected = distances(x_BI, 0.3 * layer.weight + layer.origin, p) - layer.mean.numpy()
    assert np.allclose(layer(x_BI).detach(), expected, rtol=1e-5, atol=1e-6)


def test_identity_initialisation_passes_its_input_on():
    torch.manual_seed(0)
    layer = DistanceDense(20, 30, unit=1.0)
    layer.exponent = math.inf
    x_BI = torch.randn(64, 20)
    y_BO = layer.train()(x_BI)
    assert torch.allclose(y_BO[:, :20], x_BI - x_BI.mean(0), atol=1e-5)
    assert torch.allclose(y_BO[:, 20:], (x_BI - x_BI.mean(0))[:, :10], atol=1e-5)


def test_more_inputs_than_outputs_have_no_identity():
    assert (DistanceDense(20, 10, unit=1.0).weight > -9).all()


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_a_network_in_evaluation_is_its_plain_chain(keep):
    torch.manual_seed(1)
    network = build_model(small(keep=keep, pixel_mean=(0.3,), pixel_std=0.2))
    images_BCHW = torch.rand(32, 1, 4, 4)
    with torch.no_grad():
        calibrate(network, [images_BCHW])
        network.eval()
        network.set_exponent(math.inf)
        assert torch.allclose(network.plain()(images_BCHW), network(images_BCHW), atol=1e-6)


def test_calibration_averages_batches_at_infinite_p_and_leaves_no_trace_of_training():
    torch.manual_seed(2)
    network = build_model(small())
    layer = network.backbone.distance1
    layer.mean.fill_(9.0)
    batches = [torch.rand(8, 1, 4, 4) for _ in range(3)]
    with torch.no_grad():
        calibrate(network, batches)
    expected = np.mean([distances(b.flatten(1), layer.used_weight(), math.inf).mean(0) for b in batches], axis=0)
    assert np.allclose(layer.mean, expected, atol=1e-6)
    before = layer.mean.clone()
    network.backbone(batches[0])
    assert not torch.equal(layer.mean, before), "training moves the running mean again"


def test_a_convolution_measures_zero_padded_windows():
    torch.manual_seed(3)
    layer = DistanceConvMap(2, 3, kernel=3, stride=2, padding=1, unit=0.5).eval()
    x_BCHW = torch.rand(2, 2, 5, 5)
    y = layer(x_BCHW)
    assert y.shape == (2, 3, 3, 3)
    padded = np.pad(x_BCHW.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight = 0.5 * layer.weight.detach().numpy()
    for b, o, i, j in np.ndindex(2, 3, 3, 3):
        window = padded[b, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        assert y[b, o, i, j].item() == pytest.approx(np.abs(window - weight[o]).max(), rel=1e-6)
    assert torch.equal(layer.plain()[0](x_BCHW), y)


def test_a_masked_maximum_is_on_average_the_sorted_sum():
    torch.manual_seed(4)
    layer = DistanceDense(9, 4, unit=1.0, keep=0.5)
    x_BI = torch.rand(1, 9).expand(32 * 4000, 9)
    with torch.no_grad():
        drawn = layer._masked(x_BI).view(-1, 32, 4)[:, 0].mean(0)
    exact = SortedDistance(9, 4, 0.5, terms=9)
    exact.weight.copy_(layer.weight.detach())
    # An empty draw keeps one input, with probability 2^-9.
    assert torch.allclose(drawn, exact(x_BI[:1])[0], rtol=0.02)


def test_the_coefficients_of_a_sorted_sum_add_up_to_at_most_one():
    for keep in (0.01, 0.3, 0.85, 1.0):
        layer = SortedDistance(50, 1, keep)
        c = layer.coefficients().double()
        assert 1 - 1e-5 < c.sum() <= 1
        assert all(a >= b for a, b in pairwise(c.tolist()))
        assert keep < 1 or c[0] > 0.999


@pytest.mark.parametrize("p", [8.0, math.inf])
def test_weight_decay_shrinks_the_entries_that_carry_the_norm(p):
    head = DistanceHead(6, 3, unit=1.0)
    before = head.weight.detach().double().numpy().copy()
    lp_decay(head, 0.1, p)
    norms = np.linalg.norm(before, ord=p, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        share = (np.abs(before) / norms) ** (p - 2) if p < math.inf else np.abs(before) == norms
    assert np.allclose(head.weight.detach(), before * (1 - 0.1 * share), rtol=1e-5)


MAPS = {
    "DistanceDense": (lambda: DistanceDense(12, 9, 0.3, torch.rand(12)), (12,)),
    "DistanceDense with identity": (lambda: DistanceDense(6, 9, 1.0), (6,)),
    "DistanceDense of SortNet": (lambda: DistanceDense(12, 9, 0.3, keep=0.7), (12,)),
    "DistanceConvMap": (lambda: DistanceConvMap(2, 3, 3, 2, 1, 0.3), (2, 5, 5)),
    "DistanceHead": (lambda: DistanceHead(12, 4, 0.3), (12,)),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_contract_of_a_distance_map(name, tmp_path):
    torch.manual_seed(6)
    maker, shape = MAPS[name]
    layer = maker().double().eval()
    if hasattr(layer, "mean"):
        layer.mean.uniform_()
    layer.exponent = math.inf
    assert name == "DistanceHead" or layer.norm_estimate(3) == 1.0
    x, step = torch.rand(400, *shape).double(), 0.1 * torch.randn(400, *shape).double().sign()
    with torch.no_grad():
        moved = (layer(x + step) - layer(x)).flatten(1).abs().amax(1)
        assert (moved <= 0.1 + 1e-12).all() and moved.max() > 0.09, "1-Lipschitz, and not much less"
        plain = torch.nn.Sequential(*layer.plain()).double()
        assert torch.allclose(plain(x), layer(x), atol=1e-5)
    chain = torch.nn.Sequential(*layer.plain()).eval()
    save_network(chain, tmp_path / "net.safetensors", CARD)
    again = load_network(tmp_path / "net.safetensors")
    assert torch.equal(again(x.float()), chain(x.float()))


def test_at_finite_p_a_neuron_is_faster_by_the_root_of_its_inputs():
    layer = DistanceDense(100, 5, 1.0).double().eval()
    layer.weight.data.zero_()
    for p in (2.0, 8.0, 1000.0):
        layer.exponent = p
        speed = (layer(torch.full((1, 100), 1.1).double()) - layer(torch.ones(1, 100).double())) / 0.1
        assert torch.allclose(speed, torch.full_like(speed, 100 ** (1 / p)))


def test_every_distance_map_is_under_contract():
    covered = {type(maker()) for maker, _ in MAPS.values()}
    assert covered == {*DistanceMap.__subclasses__(), DistanceHead}


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BK = torch.randn(6, 4, generator=generator, dtype=torch.float64) / 3
    return logits_BK, torch.tensor([0, 1, 2, 3, 0, 1]), 2 * (1 - torch.eye(4, dtype=torch.float64))


def test_the_mixture_is_the_papers_formula():
    logits_BK, labels_B, two_KK = batch()
    eps, weight, scale = 0.2, 0.05, 3.0
    total = 0.0
    for z, y in zip(logits_BK.tolist(), labels_B.tolist(), strict=True):
        ramp = [min(max((z[j] - z[y] + 2 * eps) / (2 * eps), 0), 1) for j in range(4) if j != y]
        total += max(ramp) + weight * (math.log(sum(math.exp(scale * v) for v in z)) - scale * z[y])
    assert float(linf_mixture_loss(logits_BK, labels_B, two_KK, eps, weight, scale)) == pytest.approx(total / 6)


def test_the_clipped_hinge_leaves_wrong_and_certified_images_alone():
    logits_BK = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.1, 0.0]], requires_grad=True)
    linf_mixture_loss(logits_BK, torch.tensor([0, 0, 0]), 2 * (1 - torch.eye(2)), 0.2, 0.0).backward()
    assert (logits_BK.grad[:2] == 0).all() and (logits_BK.grad[2] != 0).all()


def test_the_first_version_mixes_worst_and_mean_hinge():
    logits_BK, labels_B, two_KK = batch(1)
    eps, total = 0.3, 0.0
    for z, y in zip(logits_BK.tolist(), labels_B.tolist(), strict=True):
        hinges = [max(z[j] - z[y] + 2 * eps, 0) / (2 * eps) for j in range(4) if j != y]
        total += 0.75 * max(hinges) + 0.25 * sum(hinges) / 3
    assert float(linf_hinge_loss(logits_BK, labels_B, two_KK, eps)) == pytest.approx(total / 6)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(family="gloro", depth=2, width=4, neck_width=8, input_size=8, classes=5, activation="relu"),
        small(mlp_width=6),
    ],
    ids=["convolution", "dense head"],
)
def test_worst_logits_hold_at_every_point_of_the_box_and_are_reached_somewhere_near(config):
    torch.manual_seed(5)
    network = build_model(config).eval()
    network.set_exponent(math.inf)
    images_BCHW, labels_B, radius = torch.rand(3, 1, *[config.input_size] * 2), torch.tensor([0, 3, 1]), 0.05
    with torch.no_grad():
        worst_BK = worst_logits(network, images_BCHW, labels_B, radius)
        assert (worst_BK.gather(1, labels_B[:, None]) == 0).all()
        found_BK = torch.full_like(worst_BK, -math.inf)
        for _ in range(300):
            moved = (images_BCHW + radius * torch.randn_like(images_BCHW).sign()).clamp(0, 1)
            logits_BK = network(moved)
            found_BK = torch.maximum(found_BK, logits_BK - logits_BK.gather(1, labels_B[:, None]))
        assert (found_BK <= worst_BK + 1e-5).all()
        at_image = network(images_BCHW)
        gap_BK = at_image - at_image.gather(1, labels_B[:, None])
        assert (worst_BK >= gap_BK - 1e-6).all()
        assert torch.allclose(worst_logits(network, images_BCHW, labels_B, 0.0), gap_BK, atol=1e-5)


def test_the_interval_loss_mixes_two_cross_entropies():
    logits_BK, labels_B, _ = batch()
    worst_BK = logits_BK + 1 - torch.eye(4, dtype=torch.float64)[labels_B]
    plain, worst = (torch.nn.functional.cross_entropy(z, labels_B) for z in (logits_BK, worst_BK))
    assert torch.allclose(ibp_loss(logits_BK, worst_BK, labels_B, 0.25), 0.25 * plain + 0.75 * worst)


def test_p_grows_geometrically_and_is_infinite_after_its_schedule():
    config = load_config(PRESETS / "linf-v2-cifar10-8.yaml")
    assert schedule_end(config.exponent, config.epochs) == 1250 / 1300
    at = {epoch: exponent(config, epoch / 1300) for epoch in (0, 100, 675, 1249, 1250, 1299)}
    assert at[0] == 8 and at[100] == pytest.approx(8)
    assert at[675] == pytest.approx(8 * 125**0.5), "half way, geometrically"
    assert 990 < at[1249] < 1000 and at[1250] == at[1299] == math.inf
    assert loss_weight(config, 675 / 1300) == pytest.approx(math.sqrt(0.1 * 0.0005))
    assert loss_weight(config, 0.99) == 0.0005


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "liresnet", "loss": "linf_mixture"},
        {"family": "linf_net", "loss": "ibp"},
        {"family": "linf_net", "mlp_width": 8, "loss": "linf_mixture"},
        {"family": "liresnet", "loss": "ibp"},
        {"family": "linf_net", "loss": "linf_mixture", "exponent": "[8]-exp-[0]"},
        {"family": "liresnet", "keep": 0.5},
    ],
)
def test_losses_and_networks_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"loss=|exponent|keep="):
        parse(TrainConfig, {"epochs": 1} | wrong)
