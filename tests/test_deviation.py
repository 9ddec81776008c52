"""Error bounds of forward passes against exact rational networks and against passes that round as badly as allowed."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from executed import TOY, Maps
from nets import linear, signed_permutation
from torch import nn

from lipcert.bounds.magnitude import magnitude_norm
from lipcert.bounds.operators import read_operator
from lipcert.certify import ABSTAIN, certify, certify_each, margin_radius
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.deviation import Linear, deviation
from lipcert.forward import FORMATS, FloatFormat, run_chain
from lipcert.layers import MinMax, Shift


def random_chain(seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    """A small chain of every kind of layer, and one image of 8-bit pixels."""
    torch.manual_seed(seed)
    channels = 2 * (seed % 2 + 1)
    layers: list[nn.Module] = [
        Shift([0.5, 0.3, -2.0][seed % 3]),
        nn.Conv2d(1, channels, 3, padding=1, stride=1 + seed % 2),
        MinMax(),
        nn.Conv2d(channels, channels, (1, 2), bias=seed % 3 > 0),
        nn.ReLU() if seed % 2 else MinMax(),
        nn.Flatten(),
    ]
    size = nn.Sequential(*layers)(torch.zeros(1, 1, 4, 4)).shape[1]
    chain = nn.Sequential(*layers, nn.Linear(size, 6), MinMax(), nn.Linear(6, 3)).eval().requires_grad_(False)
    with torch.no_grad():
        for layer in chain:
            if hasattr(layer, "weight"):
                layer.weight *= [1.0, 4.0, 0.25][seed % 3]
    image = torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.float64) / 255
    return chain, image


def pixels(image: torch.Tensor) -> list[Fraction]:
    """The pixels meant: multiples of 1/255, which float64 only approximates."""
    return [Fraction(round(v * 255), 255) for v in image.flatten().tolist()]


def analysed(chain, image, computed="float64", deployed=FORMATS["float64"], magnitudes=False):
    bounds = chain_bounds(chain, tuple(image.shape[1:]))
    passed = run_chain(chain, image, computed, magnitudes)
    return passed, bounds, deviation(bounds.plan, passed, chain[-1], FORMATS[computed], deployed)


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_computed_logits_are_within_the_bound_of_the_exact_ones(arithmetic, magnitudes):
    for seed in range(12):
        chain, image = random_chain(seed)
        passed, _, errors = analysed(chain, image, arithmetic, FORMATS[arithmetic], magnitudes)
        exact = Maps.of(chain, tuple(image.shape[1:])).exactly(pixels(image))
        rows = torch.linalg.vector_norm(chain[-1].weight.double(), dim=1)
        allowed = rows * errors.centre_B + errors.centre_BK[0]
        for logit, truth, bound in zip(passed.logits_BK[0].tolist(), exact, allowed.tolist(), strict=True):
            assert abs(Fraction(logit) - truth) <= Fraction(bound)
            assert bound < {"float64": 1e-11, "float32": 5e-3}[arithmetic] * (1 + abs(logit))


def deployed_error(maps, image, seed, radius, worst, form=TOY) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a toy arithmetic at a random point of the sphere, and the exact ones there."""
    generator = np.random.default_rng(seed)
    away = generator.standard_normal(image.numel())
    moved = image.flatten().numpy() + radius * away / np.linalg.norm(away) * (1 - 1e-12)
    rough = maps.rounded(moved, form, generator, worst)
    return rough, np.array([float(v) for v in maps.exactly([Fraction(float(v)) for v in moved])])


@pytest.mark.parametrize("worst", [True, False])
def test_a_rough_arithmetic_stays_within_the_bound_over_the_ball(worst):
    count = 0
    for seed in range(16):
        chain, image = random_chain(seed)
        _, _, errors = analysed(chain, image, deployed=TOY, magnitudes=True)
        maps, rows = Maps.of(chain, tuple(image.shape[1:])), torch.linalg.vector_norm(chain[-1].weight.double(), dim=1)
        for radius in (0.0, 0.5, 30.0):
            state = errors.ball.at + errors.ball.slope * radius
            allowed = rows * state + errors.ball_K.at + errors.ball_K.slope * radius
            rough, exact = deployed_error(maps, image, seed, radius, worst)
            count += int((np.abs(rough - exact) > allowed[0].numpy()).sum())
    assert count == 0


def worst_case_chain() -> tuple[nn.Sequential, torch.Tensor]:
    """Every product and partial sum positive, so that errors in one direction add up to nearly all that is allowed."""
    dense = [linear(torch.full((2, 16), 0.25)), linear(torch.full((2, 2), 4.0))]
    chain = nn.Sequential(nn.Flatten(), *dense, linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))).eval()
    return chain, torch.full((1, 1, 4, 4), 0.75, dtype=torch.float64)


def test_the_bound_is_not_far_above_what_a_bad_run_reaches():
    chain, image = worst_case_chain()
    _, _, errors = analysed(chain, image, deployed=TOY, magnitudes=True)
    maps = Maps.of(chain, (1, 4, 4))
    reached = 0.0
    for seed in range(40):
        rough, exact = deployed_error(maps, image, seed, 0.0, worst=True)
        reached = max(reached, abs(rough[0] - exact[0]))
    allowed = float(2**0.5 * errors.ball.at + errors.ball_K.at[0, 0])
    assert 0.2 * allowed < reached <= allowed


# name -> (function of lipcert.deviation, what a careless author would have written, format that shows it)
FLUSHING = FloatFormat("flushing", torch.float64, Fraction(1, 2**50), Fraction(1, 2**3), Fraction(2**100))
CARELESS = {
    "no rounding": ("_gamma", lambda step, form: 0.0, TOY),
    "sums of one term": ("_gamma", lambda step, form: float(form.unit), TOY),
    "half the unit roundoff": ("_gamma", lambda step, form: (step.terms + 2) * float(form.unit) / 2, TOY),
    "no underflow": ("_copied", lambda entries, form: 0.0, FLUSHING),
    "errors do not grow through layers": ("plan", lambda step: dataclasses.replace(step, norm=2.0**-20), TOY),
}


def reached_over(monkeypatch, name: str | None, form: FloatFormat) -> bool:
    """Whether a bad run leaves the bound, of a careless author if one is named, on the chain where errors add up."""
    chain, image = worst_case_chain()
    plan = chain_bounds(chain, (1, 4, 4)).plan
    if name is not None:
        place, careless, _ = CARELESS[name]
        if place == "plan":
            plan = tuple(careless(step) for step in plan)
        else:
            monkeypatch.setattr(f"lipcert.deviation.{place}", careless)
    errors = deviation(plan, run_chain(chain, image, magnitudes=True), chain[-1], FORMATS["float64"], form)
    maps, found = Maps.of(chain, (1, 4, 4)), False
    for seed in range(20):
        for radius in (0.0, 0.6, 100.0):
            rough, exact = deployed_error(maps, image, seed, radius, True, form)
            allowed = 2**0.5 * (errors.ball.at + errors.ball.slope * radius) + errors.ball_K.at[:, 0]
            found |= bool(abs(rough[0] - exact[0]) > (allowed + errors.ball_K.slope[:, 0] * radius).item())
    return found


@pytest.mark.parametrize("form", [TOY, FLUSHING], ids=lambda form: form.name)
def test_the_honest_bound_holds_where_careless_ones_fail(form, monkeypatch):
    assert not reached_over(monkeypatch, None, form)


@pytest.mark.parametrize("name", CARELESS)
def test_a_careless_bound_is_caught(name, monkeypatch):
    assert reached_over(monkeypatch, name, CARELESS[name][2])


def test_forgetting_the_ball_is_caught():
    # Errors grow with the activations, and those grow with the distance from the image.
    forget = dataclasses.replace
    chain, image = worst_case_chain()
    bounds = chain_bounds(chain, (1, 4, 4))
    passed = run_chain(chain, image, magnitudes=True)
    still = deviation(bounds.plan, passed, chain[-1], FORMATS["float64"], TOY)
    zero = Linear(still.ball.at, 0 * still.ball.at), Linear(still.ball_K.at, 0 * still.ball_K.at)
    still = forget(still, ball=zero[0], ball_K=zero[1])
    maps, radius = Maps.of(chain, (1, 4, 4)), 200.0
    moved = image.flatten().numpy() + radius / 4 * np.ones(16)
    rough = maps.rounded(moved, TOY, np.random.default_rng(1), worst=True)
    exact = [float(v) for v in maps.exactly([Fraction(float(v)) for v in moved])]
    assert abs(rough[0] - exact[0]) > float(2**0.5 * still.ball.at + still.ball_K.at[0, 0])


# --- certificates -----------------------------------------------------------------------------------------------------


def test_guarantees_are_ordered_and_close_in_float64():
    chain, image = random_chain(3)
    images = torch.cat([image, image.flip(2), image.mT, 1 - image])
    nominal, real, executed, rough = certify_each(
        chain, images, [("nominal", "float64"), ("real", "float64"), ("executed", "float64"), ("executed", "float32")]
    )
    assert (nominal.radius_B > real.radius_B).all() and (real.radius_B > executed.radius_B).all()
    assert (executed.radius_B > nominal.radius_B * (1 - 1e-8)).all()
    assert (executed.radius_B > rough.radius_B).all()


def test_huge_biases_leave_nothing_to_promise_in_float32():
    """Biases that cancel in exact arithmetic (arXiv 2603.13334): in float32 the margin is rounding noise."""
    huge = 2.0**30
    chain = nn.Sequential(
        nn.Flatten(),
        linear(torch.eye(4), [huge, huge, 0.0, 0.0]),
        linear([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], [0.25, 0.0]),
    ).eval()
    image = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    results = {
        (g, a): certify(chain, image, guarantee=g, arithmetic=a)
        for g, a in [("nominal", "float64"), ("executed", "float64"), ("executed", "float32"), ("real", "float32")]
    }
    assert results["nominal", "float64"].radius_B.item() > 0.1
    assert results["executed", "float64"].radius_B.item() > 0.1
    for arithmetic in (("executed", "float32"), ("real", "float32")):
        assert results[arithmetic].prediction_B.tolist() == [ABSTAIN]


def test_a_margin_of_rounding_noise_abstains():
    """0.1 + 0.2 - 0.3 is positive in float64 and zero on paper: nominal falls for it, real does not."""
    weights = [[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]]
    chain = nn.Sequential(nn.Flatten(), linear(torch.eye(3)), linear(weights)).eval()
    image = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).reshape(1, 1, 1, 3)
    assert 0.1 + 0.2 > 0.3
    assert certify(chain, image, guarantee="nominal").prediction_B.tolist() == [0]
    assert certify(chain, image, guarantee="real").prediction_B.tolist() == [ABSTAIN]
    assert certify(chain, image, guarantee="executed").prediction_B.tolist() == [ABSTAIN]


@pytest.mark.parametrize("guarantee", ["nominal", "real", "executed"])
def test_overflow_that_an_activation_hides_abstains(guarantee):
    chain = nn.Sequential(
        nn.Flatten(),
        linear([[-1.2e308, -0.7e308], [1.0, 0.0]], dtype=torch.float64),
        nn.ReLU(),
        linear(torch.eye(2), [1.0, 0.0]),
    ).eval()
    result = certify(chain.double(), torch.ones(1, 1, 1, 2, dtype=torch.float64), guarantee=guarantee)
    assert result.prediction_B.tolist() == [ABSTAIN]


def test_overflow_in_the_deployed_arithmetic_only():
    chain = nn.Sequential(
        nn.Flatten(), linear(torch.eye(2), [3e38, 0.0]), linear([[2.0, 0.0], [0.0, 1.0]]), linear(torch.eye(2))
    ).eval()
    image = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    assert certify(chain, image).prediction_B.tolist() == [0]
    assert certify(chain, image, arithmetic="float32").prediction_B.tolist() == [ABSTAIN]


def test_a_constant_that_the_deployed_arithmetic_cannot_hold():
    """float32 subtracts infinity; the weights behind it are so small that float64 sees nothing odd."""
    chain = nn.Sequential(
        Shift(-1e39), nn.Flatten(), linear(torch.eye(2) * 1e-38), nn.ReLU(), linear(torch.eye(2) * 1e30, [1e33, 0.0])
    ).eval()
    image = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    assert certify(chain, image).prediction_B.tolist() == [0]
    assert certify(chain, image, arithmetic="float32").prediction_B.tolist() == [ABSTAIN]


def test_norms_beyond_float64_are_refused():
    dense = linear(torch.full((2, 2), 1.5e308, dtype=torch.float64), dtype=torch.float64)
    with pytest.raises(NotCertifiable, match="'1'"):
        certify(nn.Sequential(nn.Flatten(), dense, linear(torch.eye(2))).eval(), torch.ones(1, 1, 1, 2))


def test_sums_too_long_for_the_arithmetic_are_refused():
    chain = nn.Sequential(nn.Flatten(), linear(torch.ones(2, 3)), linear(torch.eye(2), [1.0, 0.0])).eval()
    bounds = chain_bounds(chain, (1, 1, 3))
    plan = tuple(dataclasses.replace(step, terms=2**23) if step.affine else step for step in bounds.plan)
    passed = run_chain(chain, torch.ones(1, 1, 1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="too many for float32"):
        deviation(plan, passed, chain[-1], FORMATS["float64"], FORMATS["float32"])


def test_margins_are_reduced_by_both_classes_errors():
    """The inequality itself, in rationals: each of its terms counts."""
    logits = torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.float64)
    distances = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    centre_K = torch.tensor([[0.01, 0.02, 0.03]], dtype=torch.float64)
    ball_K = torch.tensor([[0.001, 0.002, 0.004]], dtype=torch.float64)
    errors = type("Errors", (), {})()
    errors.centre_B, errors.centre_BK = 0.005 * one, centre_K
    errors.ball, errors.ball_K = Linear(0.0005 * one, 0.25 * one), Linear(ball_K, 10 * ball_K)
    for guarantee, expected in (
        ("nominal", [0.5 / 2, 0.75 / 1]),
        ("real", [(0.5 - 0.03 - 0.01) / 2, (0.75 - 0.04 - 0.005) / 1]),
        (
            "executed",
            [
                (0.5 - 0.03 - 0.01 - 0.003 - 0.001) / (2 + 0.5 + 0.03),
                (0.75 - 0.04 - 0.005 - 0.005 - 0.0005) / (1 + 0.25 + 0.05),
            ],
        ),
    ):
        prediction, radius, runner_up = margin_radius(logits, distances, distances, errors, guarantee)
        assert prediction.item() == 0 and runner_up.item() == 1
        assert expected[0] * (1 - 1e-12) < radius.item() < expected[0]


# --- the norm of |A| --------------------------------------------------------------------------------------------------


def test_magnitude_norm_is_above_the_norm_of_magnitudes_and_close():
    from truth import layer_matrix

    cases = [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), (4, 7, 6)),
        (nn.Conv2d(2, 3, (3, 2), stride=(2, 3), dilation=2, padding=2), (2, 9, 8)),
        (nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
        (nn.Conv2d(2, 5, 4, stride=4), (2, 8, 8)),
        (nn.Linear(30, 20), (30,)),
        (nn.Linear(7, 40), (7,)),
    ]
    for scale in (1.0, 1e-38, 1e30):
        for layer, shape in cases:
            with torch.no_grad():
                layer.weight *= scale
            truth = np.linalg.norm(np.abs(layer_matrix(layer, shape)), 2)
            bound = magnitude_norm(layer, shape)
            assert truth <= bound <= 1.3 * truth
            if isinstance(layer, nn.Linear):
                assert bound <= truth * (1 + 1e-3)
            with torch.no_grad():
                layer.weight /= scale


def test_magnitude_norm_of_columns_without_weights():
    layer = linear([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert 5**0.5 <= magnitude_norm(layer, (3,)) <= 5**0.5 * (1 + 1e-3)
    assert magnitude_norm(linear(torch.zeros(2, 3)), (3,)) < 1e-130
    assert read_operator(layer, (3,), None).inputs == 3


def test_razor_edge_stays_sharp_when_executed():
    generator = torch.Generator().manual_seed(5)
    layers = [nn.Flatten()]
    for _ in range(24):
        layers += [linear(signed_permutation(8, generator)), MinMax()]
    head = linear(torch.tensor([[3.0, 1.0, 0, 0, 0, 0, 0, 0], [0.0] * 8]), [0.0, 0.0])
    net = nn.Sequential(*layers, head).eval()
    image = (torch.arange(8, dtype=torch.float64) + 4).reshape(1, 1, 1, 8) / 64
    with torch.no_grad():
        z = net.double()(image)[0]
        net.float()
        head.bias[0] = -(z[0] - z[1]) + 2.0**-13
    nominal, executed = certify_each(net, image, [("nominal", "float64"), ("executed", "float64")])
    assert nominal.radius_B.item() * (1 - 1e-7) < executed.radius_B.item() < nominal.radius_B.item()
