"""Lanczos' estimate: below the truth, above the power method's for as many products, exact once the span is whole."""

import numpy as np
import pytest
import torch
from torch import nn

from lipcert.blocks import LinearResidualStack
from lipcert.layers import conv_estimate
from lipcert.power import lanczos, lanczos_iterate, norm_estimate, power_iterate, start_vector
from tests.test_power import CASES, matrix_of


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
def test_between_the_power_method_and_the_truth(name, steps):
    torch.manual_seed(3)
    layer, shape = CASES[name]()
    truth = np.linalg.norm(matrix_of(layer, shape), 2)
    powers = norm_estimate(layer, shape, steps=steps).item()
    with lanczos(True):
        best = norm_estimate(layer, shape, steps=steps).item()
    assert powers * (1 - 1e-6) <= best <= truth * (1 + 1e-6)
    if steps == 12:
        assert best >= truth * (1 - 2e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_span_of_the_whole_space_gives_the_norm(size):
    torch.manual_seed(size)
    matrix = torch.randn(7, size)
    v = start_vector(1, size)
    lanczos_iterate(lambda v: v @ matrix.T, lambda u: u @ matrix, v, steps=size + 3)  # beyond: nothing left to add
    assert v.norm().item() == pytest.approx(1, abs=1e-6)
    assert (v @ matrix.T).norm().item() == pytest.approx(np.linalg.norm(matrix.numpy(), 2), rel=1e-5)


def test_best_of_the_span_that_the_products_make():
    """Against Rayleigh-Ritz in float64 numpy on the Krylov space written out."""
    torch.manual_seed(0)
    matrix = torch.randn(40, 30, dtype=torch.float64)
    v = start_vector(1, 30).double()
    gram = (matrix.T @ matrix).numpy()
    krylov = [v[0].numpy()]
    for _ in range(4):
        krylov.append(gram @ krylov[-1])
    basis = np.linalg.qr(np.stack(krylov, 1))[0]
    best = np.linalg.eigvalsh(basis.T @ gram @ basis)[-1] ** 0.5
    lanczos_iterate(lambda v: v @ matrix.T, lambda u: u @ matrix, v, steps=4)
    assert (v @ matrix.T).norm().item() == pytest.approx(best, rel=1e-7)


def test_groups_do_not_meet():
    torch.manual_seed(4)
    stack = LinearResidualStack(3, 4, 6)
    kernels = torch.randn(12, 4, 3, 3)
    starts = stack.iterate.clone()
    with lanczos(True):
        together = conv_estimate(kernels, stack.iterate, 3, 1, 1, groups=3)
        alone = [
            conv_estimate(part, start.clone(), 3, 1, 1)
            for part, start in zip(kernels.chunk(3), starts.chunk(3, dim=1), strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e18])
def test_nothing_tiny_and_huge(scale):
    torch.manual_seed(5)
    matrix = scale * torch.randn(6, 8)
    v = start_vector(1, 8)
    before = v.clone()
    lanczos_iterate(lambda v: v @ matrix.T, lambda u: u @ matrix, v, steps=4)
    assert v.isfinite().all() and v.norm().item() == pytest.approx(1, abs=1e-6)
    if scale == 0:
        assert torch.equal(v, before)
    else:
        truth = np.linalg.norm(matrix.double().numpy(), 2)
        assert (v.double() @ matrix.double().T).norm().item() == pytest.approx(truth, rel=1e-2)


def test_a_converged_vector_stays():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5]))
    v = torch.tensor([[1.0, 0.0, 0.0]])
    lanczos_iterate(lambda v: v @ matrix.T, lambda u: u @ matrix, v, steps=5)
    torch.testing.assert_close(v.abs(), torch.tensor([[1.0, 0.0, 0.0]]))


def test_a_number_that_is_none_is_not_hidden():
    matrix = torch.full((3, 3), torch.nan)
    v = start_vector(1, 3)
    lanczos_iterate(lambda v: v @ matrix.T, lambda u: u @ matrix, v, steps=2)
    assert not (v @ matrix.T).norm().isfinite()


def test_warm_it_overtakes_ten_powers():
    """A map that changes a little from step to step, as in training."""
    torch.manual_seed(6)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    drift = torch.randn_like(conv.weight)
    starts = {name: start_vector(1, 8, 8, 8) for name in ("powers", "best")}
    worst = dict.fromkeys(starts, 1.0)
    for step in range(30):
        weight = conv.weight.detach() + 0.02 * step * drift

        def forward(v, weight=weight):
            return nn.functional.conv2d(v, weight, padding=1)

        def adjoint(u, weight=weight):
            return nn.functional.conv_transpose2d(u, weight, padding=1)

        truth = np.linalg.norm(matrix_of(_with(conv, weight), (8, 8, 8)), 2) if step % 10 == 9 else None
        for name, way, count in (("powers", power_iterate, 10), ("best", lanczos_iterate, 5)):
            way(forward, adjoint, starts[name], count)
            if truth is not None:
                worst[name] = min(worst[name], forward(starts[name]).norm().item() / truth)
    assert worst["best"] > worst["powers"] and worst["best"] > 0.98


def _with(conv, weight):
    conv.weight.data = weight
    return conv
