"""EMMA and GloRo against formulas written out by hand, and their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

from lipcert.losses import bottom_logit, emma_loss, gloro_loss, training_loss

FLOOR = 0.01


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


def gloro_by_hand(z, y, k, radius) -> float:
    total = 0.0
    for b, label in enumerate(y):
        j = int(np.argmax(z[b]))
        bottom = max(z[b, i] + radius * k[j, i] for i in range(z.shape[1]) if i != j)
        total += cross_entropy([*z[b], bottom], label)
    return total / len(y)


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


def differences(function, x, step=1e-6):
    """Central differences of a scalar function of an array."""
    slope = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope


@pytest.mark.parametrize("name", ["emma", "emma_fixed", "gloro"])
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_equal_finite_differences(name, classes):
    z, y, k = problem(11, classes)
    radius = 0.4
    shares = shares_by_hand(z, y, k, radius) if name == "emma" else np.ones_like(z)  # held fixed, as in the gradient

    def by_hand(z, k):
        return gloro_by_hand(z, y, k, radius) if name == "gloro" else emma_by_hand(z, y, k, radius, shares)

    logits, labels, margin = as_tensors(z, y, k)
    logits.requires_grad_(), margin.requires_grad_()
    training_loss(name)(logits, labels, margin, radius).backward()
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
    for name in ("emma", "emma_fixed", "gloro"):
        training_loss(name)(z, y, k, 0.2)
    assert torch.equal(z, copies[0]) and torch.equal(k, copies[1])
