"""The presets of l_inf-distance nets against their recipes, written out here a second time."""

import math

import pytest

from lipcert.data.registry import DATASETS
from lipcert.radius import Radius
from lipcert.report.published import preset_parameters, presets
from lipcert.schedules import exponent, learning_rate, loss_weight, training_radius

PRESETS = {preset.path.stem: preset for preset in presets() if preset.config.family == "linf_net"}
# Epochs at which p begins to grow, is infinite, and the run ends; weight of cross-entropy at both; training radius in
# radii; share of inputs kept (logs and scripts of arXiv 2110.06850 and 2210.01787).
RECIPES = {
    "linf-v2-mnist-0.1": ((25, 400, 450), (0.05, 0.0002), 3.0, 1.0),
    "linf-v2-mnist-0.3": ((25, 400, 450), (0.05, 0.0002), 1.5, 1.0),
    "linf-v2-cifar10-2": ((100, 1250, 1300), (0.05, 0.002), 5.0, 1.0),
    "linf-v2-cifar10-8": ((100, 1250, 1300), (0.1, 0.0005), 3.0, 1.0),
    "linf-v2-cifar10-16": ((100, 1250, 1300), (0.1, 0.0002), 2.5, 1.0),
    "sortnet-mnist-0.1": ((100, 1450, 1500), (0.1, 0.001), 3.0, 0.7),
    "sortnet-mnist-0.3": ((100, 1450, 1500), (0.02, 0.0002), 1.5, 0.75),
    "sortnet-cifar10-2": ((200, 2950, 3000), (1.0, 0.01), 4.0, 0.75),
    "sortnet-cifar10-8": ((200, 2950, 3000), (0.2, 0.002), 3.0, 0.85),
    "linf-v1-mnist-0.3": ((50, 350, 400), None, 1.5, 1.0),
    "linf-v1-cifar10-8": ((100, 750, 800), None, 5.0, 1.0),
}
PARAMETERS = {"mnist": 82_708_491, "cifar10": 120_637_451}


def test_no_preset_is_without_its_recipe():
    assert set(PRESETS) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_p_weight_and_rate_follow_the_recipe_at_every_epoch(name: str):
    config, ((begin, end, total), weights, factor, keep) = PRESETS[name].config, RECIPES[name]
    first = name.startswith("linf-v1")
    assert (config.epochs, config.keep, config.loss) == (total, keep, "linf_hinge" if first else "linf_mixture")
    peak = 0.03 if name.startswith("linf-v2") else 0.02
    for epoch in range(0, total, 7):
        progress = epoch / total
        grown = min(max((epoch - begin) / (end - begin), 0), 1)
        p = math.inf if epoch >= end else 8 * 125**grown
        assert exponent(config, progress) == pytest.approx(p, rel=1e-9)
        assert learning_rate(config, progress) == pytest.approx(peak * (1 + math.cos(math.pi * progress)) / 2)
        assert training_radius(config, progress) == pytest.approx(factor * float(Radius(config.radius)))
        if weights is not None:
            lam = weights[0] * (weights[1] / weights[0]) ** grown
            assert loss_weight(config, progress) == pytest.approx(lam, rel=1e-9)


@pytest.mark.parametrize("name", RECIPES)
def test_the_rest_of_the_recipe(name: str):
    c = PRESETS[name].config
    assert (c.optimizer, c.beta1, c.beta2, c.adam_eps, c.weight_decay) == ("adam", 0.9, 0.99, 1e-10, 0.0)
    assert c.batch == 512 and c.clip >= 1e9 and c.warmup == 0 and c.lr_end == 0
    assert (c.augmentation, c.crop, c.flip) == (("crop_edge", 3, True) if "cifar" in name else ("crop_edge", 1, False))
    assert c.lp_decay == (0.005 if name.startswith("linf-v1") else 0.0)
    assert c.scale_lr == (1.0 if name.startswith("sortnet") else 0.2), "6e-3 beside 3e-2 in the second version"
    if not name.startswith("linf-v1"):
        assert preset_parameters(PRESETS[name]) == PARAMETERS[c.dataset]
    assert Radius(c.radius) == Radius(name.rpartition("-")[2] + ("/255" if c.dataset == "cifar10" else ""))
    assert DATASETS[c.dataset].classes == 10
