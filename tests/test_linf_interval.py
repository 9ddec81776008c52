"""Boxes hold what they promise: against exact fractions, every float of a box, random points, and planted mistakes."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from executed import TOY, Maps, rounding
from linf_nets import KINDS, LIPSCHITZ, filled, frozen, nearest, pixel, tiny
from rational import box, exact, logits
from torch import nn

from benchmarks.linf_soundness import Tally, families, probe
from lipcert.chain import NotCertifiable
from lipcert.forward import FORMATS
from lipcert.linf import interval as interval_module
from lipcert.linf import margin as margin_module
from lipcert.linf import rounding as rounding_module
from lipcert.linf.interval import Propagation
from lipcert.linf.layers import Distance, SortedDistance
from lipcert.linf.margin import Run, Sizes, margin_deviation
from lipcert.linf.rounding import Rounding, ball, check_gradual

ARITHMETICS = ("float32", "float64")


def random_case(kind: str, seed: int) -> tuple[nn.Sequential, np.ndarray, Fraction]:
    """A chain, pixels k/255 as fractions, a radius."""
    rng = np.random.default_rng(seed)
    pixels = np.vectorize(lambda k: Fraction(int(k), 255), otypes=[object])(rng.integers(0, 256, (1, 3, 3)))
    return tiny(kind, seed), pixels, Fraction(int(rng.integers(0, 40)), 255)


def real_ends(chain, pixels, radius, arithmetic):
    """The box of a *real* pass, and the one that fractions say, as exact numbers."""
    rounding = Rounding("real", FORMATS[arithmetic])
    image = torch.tensor(pixels.astype(float))[None]
    radius_B = torch.tensor([float(radius)], dtype=torch.float64)
    if Fraction(float(radius)) < radius:
        radius_B = rounding_module.up(radius_B)
    ends = ball(image, radius_B, rounding)
    found = [exact(end[0]) for end in Propagation(chain, rounding).ends(*ends)]
    truth = box(chain, np.maximum(pixels - radius, 0), np.minimum(pixels + radius, 1))
    return found, truth, ends


def real_violations(kinds=KINDS, seeds=4) -> int:
    wrong = 0
    for kind, seed, arithmetic in itertools.product(kinds, range(seeds), ARITHMETICS):
        (low, high), (true_low, true_high), _ = real_ends(*random_case(kind, seed), arithmetic)
        wrong += int((low > true_low).any() or (high < true_high).any())
    return wrong


def test_real_boxes_hold_the_exact_ones():
    assert real_violations() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_real_boxes_are_tight(kind):
    for arithmetic, slack in (("float64", 1e-12), ("float32", 2e-5)):
        (low, high), (true_low, true_high), _ = real_ends(*random_case(kind, 3), arithmetic)
        assert (true_low - low < slack).all() and (high - true_high < slack).all()


def test_a_linear_head_bounds_differences_of_logits():
    for seed, arithmetic in itertools.product(range(8), ARITHMETICS):
        chain, pixels, radius = random_case("convolution", seed)
        _, _, ends = real_ends(chain, pixels, radius, arithmetic)
        *trunk, head = chain
        low, high = box(frozen(*trunk), np.maximum(pixels - radius, 0), np.minimum(pixels + radius, 1))
        rows, bias = exact(head.weight), exact(head.bias)
        worst = Propagation(chain, Rounding("real", FORMATS[arithmetic])).worst(*ends, torch.tensor([1]))
        truth = []
        for other in (0, 2):
            apart = rows[1] - rows[other]
            least = np.maximum(apart, 0) @ low + np.minimum(apart, 0) @ high
            truth.append(least + bias[1] - bias[other])
        assert min(truth) - Fraction(1, 10**5) < Fraction(float(worst.gap_B)) <= min(truth)
        assert bool(worst.holds_B) <= (min(truth) > 0)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_distance_layer_attains_its_box_in_floats(arithmetic):
    form = FORMATS[arithmetic]
    for seed in range(20):
        torch.manual_seed(seed)
        chain = frozen(nn.Flatten(), filled(Distance(4, 6), 0.1)).to(form.dtype)
        low = torch.rand(1, 1, 1, 4, dtype=form.dtype)
        steps = [low]
        for _ in range(3):
            steps.append(torch.nextafter(steps[-1], torch.ones_like(low)))
        every = torch.stack([
            torch.stack([steps[s][0, 0, 0, i] for i, s in enumerate(choice)])
            for choice in itertools.product(range(4), repeat=4)
        ])  # fmt: skip
        outputs = chain(every[:, None, None])
        lower, upper = Propagation(chain, Rounding("executed", form)).ends(low, steps[-1])
        assert torch.equal(outputs.amin(0), lower[0]) and torch.equal(outputs.amax(0), upper[0])


@pytest.mark.parametrize("kind", LIPSCHITZ)
def test_every_float_of_a_box_stays_inside(kind):
    for seed, arithmetic in itertools.product(range(3), ARITHMETICS):
        form, chain = FORMATS[arithmetic], tiny(kind, seed)
        low = torch.rand(1, 1, 3, 3, dtype=form.dtype)
        high = torch.nextafter(low, torch.ones_like(low))
        choices = torch.tensor(list(itertools.product([False, True], repeat=9))).view(-1, 1, 3, 3)
        outputs = chain.to(form.dtype)(torch.where(choices, low, high))
        lower, upper = Propagation(chain, Rounding("executed", form)).ends(low, high)
        assert ((lower <= outputs) & (outputs <= upper)).all()


def tally(name: str, points: int) -> Tally:
    torch.manual_seed(1)
    chain, found = families()[name], Tally()
    for radius, arithmetic in itertools.product((2.0**-20, 8 / 255), ARITHMETICS):
        found += probe(chain, torch.rand(1, 8, 8, dtype=torch.float64), radius, arithmetic, points // 4)
    return found


@pytest.mark.parametrize(
    "name", ["distances", "distance convolution", "sorted distances", "distances with MLP", "convolutions (IBP)"]
)
def test_random_points_and_corners_stay_inside(name):
    found = tally(name, 100_000)
    assert found.points == 100_000 and found.outside == found.changed == 0
    assert found.certified


def test_the_rule_without_rounding_is_broken_where_boxes_are_not():
    assert tally("distances", 4000).slack > 100


# Planted mistakes: each must be noticed by one of the tests above.


def test_rounding_inward_is_noticed(monkeypatch):
    up, down = rounding_module.up, rounding_module.down
    for module in (rounding_module, interval_module):
        monkeypatch.setattr(module, "up", down)
        monkeypatch.setattr(module, "down", up)
    assert real_violations() > 15


@pytest.mark.parametrize("name", ["up", "down"])
def test_rounding_to_nearest_is_noticed(monkeypatch, name):
    monkeypatch.setattr(rounding_module, name, lambda x: x)
    assert real_violations(LIPSCHITZ) > 5


def toy_violations(kind: str) -> int:
    """Runs in nine bits that leave the box of an *executed* pass; inputs are numbers of that format."""
    wrong, rng = 0, np.random.default_rng(0)
    for seed in range(8):
        torch.manual_seed(seed)
        layers = [nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3)] if kind == "dense" else [SortedDistance(24, 3, 0.3)]
        chain = frozen(nn.Flatten(), *layers)
        if kind == "sorted":
            chain[1].weight.data = torch.randint(-64, 64, (3, 24)) / 256
        lower = torch.tensor(rng.integers(0, 200, (1, 1, 1, 24)) / 256)
        low, high = Propagation(chain, Rounding("executed", TOY)).ends(lower, lower)
        for _ in range(20):
            point = lower.numpy().ravel()
            if kind == "dense":
                logits_K = Maps.of(chain, (1, 1, 24)).rounded(point, TOY, rng, False)
            else:
                logits_K = toy_sorted(chain[1], point, rng)
            wrong += int(not ((low[0].numpy() <= logits_K) & (logits_K <= high[0].numpy())).all())
    return wrong


def toy_sorted(layer, point, rng):
    distances = np.sort(np.abs(point - layer.weight.double().numpy()))[:, ::-1][:, : layer.terms]
    terms = rounding(distances * layer.coefficients().double().numpy(), TOY, rng, False)
    total = np.zeros(len(terms))
    for t in rng.permutation(layer.terms):
        total = rounding(total + terms[:, t], TOY, rng, False)
    return total


@pytest.mark.parametrize("kind", ["dense", "sorted"])
def test_sums_that_round_coarsely_stay_inside(kind, monkeypatch):
    assert toy_violations(kind) == 0
    monkeypatch.setattr(Rounding, "sum_error", lambda self, terms, name: 0.0)
    assert toy_violations(kind) > 20


def test_an_inaccurate_tanh_stays_inside(monkeypatch):
    def violations() -> int:
        x = torch.linspace(-4, 4, 4001)[:, None, None, None].double()
        wrong = 0
        for arithmetic in ARITHMETICS:
            form = FORMATS[arithmetic]
            low, high = Propagation(frozen(nn.Flatten(), nn.Tanh()), Rounding("executed", form)).ends(
                *[x.to(form.dtype)] * 2
            )
            true = x.to(form.dtype).double().tanh().flatten(1)
            for units in (-8, 8):
                off = (true * (1 + units * float(form.unit))).to(form.dtype)
                wrong += int(((off < low) | (off > high)).sum())
        return wrong

    assert violations() == 0
    monkeypatch.setattr(interval_module, "TANH_UNITS", 1)
    assert violations() > 1000


def test_what_a_processor_may_flush_is_taken_in():
    tiny_number = torch.finfo(torch.float32).tiny
    chain = nearest([tiny_number, -1.0])
    x = torch.full((1, 1, 1, 1), 1.5 * tiny_number)
    low, high = Propagation(chain, Rounding("executed", FORMATS["float32"])).ends(x, x)
    assert high[0, 0] == 0 and low[0, 0] == -0.5 * tiny_number


def test_a_pass_that_flushes_is_refused():
    check_gradual(torch.device("cpu"))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        with pytest.raises(NotCertifiable, match="set_flush_denormal"):
            check_gradual(torch.device("cpu"))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("guarantee", ["real", "executed"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_the_ball_holds_every_fraction_in_it(guarantee, arithmetic):
    rounding = Rounding(guarantee, FORMATS[arithmetic])
    images = torch.tensor([k / 255 for k in range(256)], dtype=torch.float64).view(-1, 1, 1, 1)
    for numerator in (0, 1, 8, 77):
        radius = Fraction(numerator, 255)
        above = torch.tensor([math.nextafter(float(radius), 2)] * 256, dtype=torch.float64)
        low, high = (end.flatten().tolist() for end in ball(images, above, rounding))
        for k in range(256):
            assert Fraction(low[k]) <= max(Fraction(k - numerator, 255), 0) <= min(Fraction(k + numerator, 255), 1)
            assert min(Fraction(k + numerator, 255), 1) <= Fraction(high[k])


# The margin rule's rounding terms.


def deviation_of(chain, image, arithmetic_of_pass: str, deployed):
    sizes = Sizes(*Run(chain, FORMATS[arithmetic_of_pass])(image))
    return sizes, margin_deviation(chain, sizes, FORMATS[arithmetic_of_pass], deployed)


@pytest.mark.parametrize("kind", LIPSCHITZ)
def test_margin_errors_are_above_the_true_ones(kind):
    for seed in range(4):
        chain, pixels, radius = random_case(kind, seed)
        image = torch.tensor(pixels.astype(float))[None]
        for arithmetic in ARITHMETICS:
            form = FORMATS[arithmetic]
            sizes, errors = deviation_of(chain, image, arithmetic, form)
            off = max(abs(exact(sizes.logits_BK[0]) - logits(chain, pixels)))
            assert off <= Fraction(float(errors.centre_B)) < 200 * form.unit
            point = pixels + radius
            deployed = exact(chain.to(form.dtype)(torch.tensor(point.astype(float))[None].to(form.dtype))[0])
            bound = Fraction(float(errors.ball.at)) + radius * Fraction(float(errors.ball.slope))
            assert max(abs(deployed - logits(chain, point))) <= bound < 400 * form.unit
            chain.float()


def hostile(chain: nn.Sequential, point: np.ndarray, rng) -> np.ndarray:
    """Logits of distance layers where every operation errs by the whole unit of `TOY`, in a direction per neuron."""
    x = rounding(point.ravel(), TOY, rng, True, rng.choice([-1, 1]))
    for layer in chain[1:-1]:
        push = rng.choice([-1.0, 1.0], size=len(layer.weight))
        size = np.abs(x - layer.weight.double().numpy()).max(1)
        x = rounding(rounding(size, TOY, rng, True, push) + layer.shift.double().numpy(), TOY, rng, True, push)
    return -x


def hostile_violations() -> int:
    wrong, rng = 0, np.random.default_rng(0)
    for seed in range(10):
        chain, pixels, radius = random_case("distances", seed)
        _, errors = deviation_of(chain, torch.tensor(pixels.astype(float))[None], "float64", TOY)
        bound = Fraction(float(errors.ball.at)) + radius * Fraction(float(errors.ball.slope))
        for _ in range(10):
            point = pixels + radius * rng.choice([-1, 0, 1], size=pixels.shape)
            truth = logits(chain, point)
            wrong += int(max(abs(exact(hostile(chain, point.astype(float), rng)) - truth)) > bound)
    return wrong


def test_margin_errors_hold_in_the_worst_arithmetic(monkeypatch):
    assert hostile_violations() == 0
    honest = margin_module._factors
    quarter = lambda *arguments: (f := honest(*arguments)) and tuple(v / 4 for v in f)  # noqa: E731
    monkeypatch.setattr(margin_module, "_factors", quarter)
    assert hostile_violations() > 5


def test_pixels_outside_of_the_range_are_not_met():
    low, high = ball(
        pixel(0.0, 0.5, 1.0), torch.full((3,), 0.6, dtype=torch.float64), Rounding("real", FORMATS["float32"])
    )
    assert low.min() == 0 and high.max() == 1
