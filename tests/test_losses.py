"""Losses against formulas written out by hand, their gradients against finite differences, extremes against mpmath."""

import itertools
import math
from typing import get_args

import mpmath
import numpy as np
import pytest
import torch

from lipcert.config import TrainConfig
from lipcert.losses import bottom_logit, emma_loss, focal_loss, gloro_loss, trades_loss, training_loss

FLOOR = 0.01
FOCAL = {"focal": (2.0, 0.0, 1.0), "annealing": (5.0, 2.0, 0.75)}  # exponent, offset, temperature


def problem(seed: int, classes: int, batch: int = 7):
    """Logits, labels (some misclassified) and a symmetric margin matrix with zero diagonal, float64."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, classes)) * 2
    y = rng.integers(0, classes, batch)
    k = rng.uniform(0.2, 3, (classes, classes))
    k = (k + k.T) / 2
    np.fill_diagonal(k, 0)
    return z, y, k


def cross_entropy(row, label) -> float:
    top = max(row)
    return math.log(sum(math.exp(v - top) for v in row)) + top - row[label]


def shares_by_hand(z, y, k, radius):
    out = np.zeros_like(z)
    for b, label in enumerate(y):
        for j in range(z.shape[1]):
            push = radius * k[label, j]
            out[b, j] = min(max((z[b, label] - z[b, j]) / max(push, 1e-8), FLOOR), 1.0)
    return out


def emma_by_hand(z, y, k, radius, shares) -> float:
    total = 0.0
    for b, label in enumerate(y):
        row = [z[b, j] - z[b, label] + shares[b, j] * radius * k[label, j] for j in range(z.shape[1])]
        total += cross_entropy(row, label)
    return total / len(y)


def focal_by_hand(z, y, k, radius, shares, focus, offset, temperature) -> float:
    total = 0.0
    for b, label in enumerate(y):
        row = [z[b, j] - z[b, label] + shares[b, j] * radius * k[label, j] for j in range(z.shape[1])]
        row[label] = -offset
        p = softmax([value / temperature for value in row])[label]
        total -= temperature * (1 - p) ** focus * math.log(p)
    return total / len(y)


def margin_by_hand(z, y, k, radius, weight) -> float:
    """What the least certified share of the radius lacks to 1, plus weighted cross-entropy."""
    total = 0.0
    for row, label in zip(z, y, strict=True):
        shares = [(row[label] - row[j]) / (radius * k[label, j]) for j in range(len(row)) if j != label]
        total += 1 - min(max(min(shares), 0.0), 1.0) + weight * cross_entropy(row, label)
    return total / len(y)


def extended(row, k, radius) -> list:
    """The logits and the bottom logit."""
    j = int(np.argmax(row))
    return [*row, max(row[i] + radius * k[j, i] for i in range(len(row)) if i != j)]


def gloro_by_hand(z, y, k, radius) -> float:
    return sum(cross_entropy(extended(row, k, radius), label) for row, label in zip(z, y, strict=True)) / len(y)


def trades_by_hand(z, y, k, radius, weight, divergence) -> float:
    """Cross-entropy plus the whole sum of the divergence of two distributions over the classes and the bottom one."""
    total = 0.0
    for row, label in zip(z, y, strict=True):
        p, q = [*softmax(row), 0.0], softmax(extended(row, k, radius))
        inside = {"kl": lambda a, b: a * math.log(a / b), "ce": lambda a, b: -a * math.log(b)}[divergence]
        distance = sum(inside(a, b) for a, b in zip(p, q, strict=True) if a > 0)
        total += cross_entropy(row, label) + weight * distance
    return total / len(y)


def softmax(row) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def as_tensors(z, y, k):
    return torch.tensor(z), torch.tensor(y), torch.tensor(k)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(4))
def test_losses_equal_the_written_formulas(seed, classes):
    z, y, k = problem(seed, classes)
    for radius in (1e-3, 36 / 255, 5.0):
        given = (*as_tensors(z, y, k), radius)
        shares = shares_by_hand(z, y, k, radius)
        assert math.isclose(emma_loss(*given).item(), emma_by_hand(z, y, k, radius, shares), rel_tol=1e-12)
        ones = np.ones_like(z)
        assert math.isclose(emma_loss(*given, dynamic=False).item(), emma_by_hand(z, y, k, radius, ones), rel_tol=1e-12)
        assert math.isclose(gloro_loss(*given).item(), gloro_by_hand(z, y, k, radius), rel_tol=1e-12)
        for robust in itertools.product((0.0, 0.5, 20.0), ("kl", "ce")):
            expected = trades_by_hand(z, y, k, radius, *robust)
            assert math.isclose(trades_loss(*given, *robust).item(), expected, rel_tol=1e-11), robust
        for name, how in FOCAL.items():
            expected = focal_by_hand(z, y, k, radius, shares, *how)
            assert math.isclose(training_loss(name)(*given).item(), expected, rel_tol=1e-11), name
        for weight in (0.0, 0.1, 2.0):
            expected = margin_by_hand(z, y, k, radius, weight)
            assert math.isclose(training_loss("margin")(*given, weight).item(), expected, rel_tol=1e-12), weight


def test_a_focal_loss_without_focus_is_emma():
    given = (*as_tensors(*problem(4, 6)), 0.3)
    assert focal_loss(*given, focus=0.0).item() == pytest.approx(emma_loss(*given).item(), rel=1e-14)


def test_an_image_certified_beyond_the_radius_counts_less_the_more_a_loss_is_focused():
    k, shares = torch.ones(3, 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64), {}
    for name in ("emma", "focal", "annealing"):
        z = torch.tensor([[6.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)  # safe, wrong
        training_loss(name)(z, torch.tensor([0, 0]), k, 0.5).backward()
        safe, wrong = z.grad.norm(dim=1).tolist()
        shares[name] = safe / wrong
    assert shares["annealing"] < shares["focal"] / 10 < shares["emma"] / 100 and shares["annealing"] > 0


def test_the_margin_loss_moves_only_what_is_right_and_not_yet_certified():
    k = torch.ones(3, 3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64)
    z = torch.tensor([[6.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    training_loss("margin")(z, torch.tensor([0, 0, 0]), k, 0.5, 0.0).backward()
    certified, between, wrong = z.grad.norm(dim=1).tolist()
    assert certified == wrong == 0 and between > 0


@pytest.mark.parametrize("name", ["emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", "margin", *FOCAL])
def test_a_radius_may_be_a_tensor(name):
    given = as_tensors(*problem(3, 4))
    loss = training_loss(name)
    assert torch.equal(loss(*given, torch.tensor(0.25)), loss(*given, 0.25))


@pytest.mark.parametrize("name", sorted({*get_args(TrainConfig.model_fields["loss"].annotation)} - {"ibp"}))
def test_every_loss_of_margins_is_there_and_only_sums_have_a_weight(name):
    z, y, k = problem(9, 5)
    given, radius = as_tensors(z, y, k), 0.3
    plain, light, heavy = (training_loss(name)(*given, radius, weight).item() for weight in (0.0, 1.0, 3.0))
    assert training_loss(name)(*given, radius).item() == light
    if name.startswith("trades"):
        assert plain == pytest.approx(sum(map(cross_entropy, z, y)) / len(y))
        assert heavy - plain == pytest.approx(3 * (light - plain)) and light > plain
    elif name in ("linf_mixture", "margin"):
        assert light - plain == pytest.approx(sum(map(cross_entropy, z, y)) / len(y))
        assert heavy - plain == pytest.approx(3 * (light - plain))
    else:
        assert plain == light == heavy
    if name == "cross_entropy":
        assert light == training_loss(name)(given[0], given[1], 7 * given[2], 2.0).item()


def test_unknown_divergences_are_refused():
    with pytest.raises(ValueError, match="divergence='js': must be 'kl' or 'ce'"):
        trades_loss(*as_tensors(*problem(1, 3)), 0.1, 1.0, "js")


def differences(function, x, step=1e-6):
    """Central differences of a scalar function of an array."""
    slope = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope


@pytest.mark.parametrize("name", ["emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", "margin", *FOCAL])
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_equal_finite_differences(name, classes):
    z, y, k = problem(11, classes)
    radius = 0.4
    shares = np.ones_like(z) if name == "emma_fixed" else shares_by_hand(z, y, k, radius)  # held fixed in the gradient

    def by_hand(z, k):
        if name in FOCAL:
            return focal_by_hand(z, y, k, radius, shares, *FOCAL[name])
        if name == "margin":
            return margin_by_hand(z, y, k, radius, 1.75)
        if name.startswith("trades"):
            return trades_by_hand(z, y, k, radius, 1.75, name[-2:])
        return gloro_by_hand(z, y, k, radius) if name == "gloro" else emma_by_hand(z, y, k, radius, shares)

    logits, labels, margin = as_tensors(z, y, k)
    logits.requires_grad_(), margin.requires_grad_()
    training_loss(name)(logits, labels, margin, radius, 1.75).backward()
    np.testing.assert_allclose(logits.grad.numpy(), differences(lambda v: by_hand(v, k), z), atol=1e-8)
    np.testing.assert_allclose(margin.grad.numpy(), differences(lambda v: by_hand(z, v), k), atol=1e-8)
    assert margin.grad.abs().max() > 1e-4, "the loss must train the Lipschitz constant too"


def effective_logits(z, y, k, radius):
    """What EMMA's cross-entropy sees, read off its gradient: softmax(row) - onehot."""
    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    emma_loss(logits, torch.tensor([y]), torch.tensor(k, dtype=torch.float64), radius).backward()
    probability = logits.grad[0] + torch.nn.functional.one_hot(torch.tensor(y), len(z))
    return (probability / probability[y]).log()


def test_emma_pushes_as_stated():
    k = [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]]
    robust, close, wrong = effective_logits([2.0, 0.5, 1.75, 3.0], 0, k, radius=1.0)[1:].tolist()
    assert robust == pytest.approx(-1.5 + 1.0), "already robust: the full push"
    assert close == pytest.approx(0.0, abs=1e-12), "right but not robust: exactly a tie"
    assert wrong == pytest.approx(1.0 + FLOOR), "already misclassified: the floor"


def test_tied_logits_get_the_floor_and_no_nan():
    z = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    margin = torch.ones(4, 4, dtype=torch.float64) - torch.eye(4)
    loss = emma_loss(z, torch.tensor([0, 1, 2]), margin, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(0.005)))
    loss.backward()
    assert z.grad.isfinite().all()


def test_zero_constants_and_zero_radius_give_cross_entropy():
    z, y, k = as_tensors(*problem(3, 4))
    plain = torch.nn.functional.cross_entropy(z, y).item()
    assert emma_loss(z, y, torch.zeros_like(k), 0.3).item() == pytest.approx(plain)
    assert emma_loss(z, y, k, 0.0).item() == pytest.approx(plain)


def test_bottom_logit_is_below_the_top_exactly_when_certified():
    rng = np.random.default_rng(5)
    for _ in range(200):
        z, _, k = problem(int(rng.integers(1 << 30)), 4, batch=1)
        radius = float(rng.uniform(0.01, 1))
        j = int(np.argmax(z[0]))
        certified = min((z[0, j] - z[0, i]) / k[j, i] for i in range(4) if i != j) > radius
        bottom = bottom_logit(torch.tensor(z), torch.tensor(k), radius).item()
        assert (z[0, j] > bottom) == certified


def test_losses_do_not_write_into_their_arguments():
    z, y, k = as_tensors(*problem(7, 4))
    copies = z.clone(), k.clone()
    for name in ("emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", "margin", *FOCAL):
        training_loss(name)(z, y, k, 0.2)
    assert torch.equal(z, copies[0]) and torch.equal(k, copies[1])


# --- extremes ---------------------------------------------------------------------------------------------------------

EXTREMES = {
    "far apart": [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]],
    "all high": [[1e4, 1e4 - 1, 1e4 - 2], [1e4, 1e4 + 1, 1e4]],
    "all low": [[-1e4, -1e4 - 1, -1e4 + 2], [-1e4, -1e4, -1e4 + 1]],
    "ties": [[0.0, 0.0, 0.0], [5.0, 5.0, -3.0]],
    "ties far out": [[1e4, 1e4, 1e4], [-1e4, -1e4, 1e4]],
    "tiny": [[1e-30, 0.0, -1e-30], [0.0, 1e-38, 0.0]],
}


def exactly(name, z, y, k, radius, weight):
    """The loss in fifty digits, by its definition."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for row, label in zip([[mpmath.mpf(v) for v in row] for row in z], y, strict=True):
            powers = [mpmath.exp(v) for v in row]
            bottom = extended(row, np.vectorize(mpmath.mpf)(k), mpmath.mpf(radius))[-1]
            whole = sum(powers) + mpmath.exp(bottom)
            if name.startswith("emma") or name in FOCAL:
                pushes = [mpmath.mpf(radius) * mpmath.mpf(k[label, j]) for j in range(len(row))]
                shares = [min(max((row[label] - v) / max(p, 1e-8), FLOOR), 1) for v, p in zip(row, pushes, strict=True)]
                rhos = [1] * len(row) if name == "emma_fixed" else shares
                moved = [v + r * p for v, r, p in zip(row, rhos, pushes, strict=True)]
                if name in FOCAL:
                    focus, offset, temperature = FOCAL[name]
                    moved[label] -= offset
                    lowered = [mpmath.exp((v - row[label]) / temperature) for v in moved]
                    p = lowered[label] / sum(lowered)
                    total -= temperature * (1 - p) ** focus * mpmath.log(p)
                    continue
                total += mpmath.log(sum(map(mpmath.exp, moved))) - row[label]
                continue
            total += mpmath.log(whole if name == "gloro" else sum(powers)) - row[label]
            if name.startswith("trades"):
                p, q = [v / sum(powers) for v in powers], [v / whole for v in powers]
                upper = p if name == "trades_kl" else [1] * len(p)
                total += weight * sum(a * mpmath.log(b / c) for a, b, c in zip(p, upper, q, strict=True))
        return float(total / len(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", *FOCAL])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extreme_logits_lose_no_more_than_rounding(name, kind, dtype):
    z, labels = np.array(EXTREMES[kind]), [0, 0]
    k = np.array([[0, 1.5, 1e3], [1.5, 0, 0.5], [1e3, 0.5, 0]])
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    margin = torch.tensor(k, dtype=dtype, requires_grad=True)
    loss = training_loss(name)(logits, torch.tensor(labels), margin, 0.25, 2.0)
    loss.backward()
    expected = exactly(name, z, labels, k, 0.25, 2.0)
    scale = 1 + np.abs(z).max() + abs(expected)
    assert loss.item() == pytest.approx(expected, rel=0, abs=30 * torch.finfo(dtype).eps * scale)
    assert logits.grad.isfinite().all() and margin.grad.isfinite().all()


def test_a_tie_for_the_first_place_is_never_counted_as_certified():
    z = torch.tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    for constant in (1.0, 1e-6, 0.0):  # 0: two classes with the same weights
        k = constant * (torch.ones(3, 3) - torch.eye(3))
        assert (bottom_logit(z, k, 0.5) >= z.amax(1)).all()


def test_the_distance_of_trades_vanishes_only_where_everything_is_certified():
    labels, k = torch.tensor([0]), torch.ones(3, 3, dtype=torch.float64) - torch.eye(3)
    distances = []
    for gap in (0.0, 1.0, 10.0, 30.0):
        z = torch.tensor([[gap, 0.0, 0.0]], dtype=torch.float64)
        loss = trades_loss(z, labels, k, 1.0)
        distances.append(loss.item() - trades_loss(z, labels, k, 1.0, weight=0.0).item())
    assert distances == sorted(distances, reverse=True) and 0 <= distances[-1] < 1e-12 and distances[0] > 0.6
