"""The power method: below the truth, convergent, with the right gradient. It never certifies."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lipcert.blocks import LinearResidualStack
from lipcert.layers import Conv, Dense, conv_estimate
from lipcert.power import norm_estimate, power_iterate, start_vector


def matrix_of(layer, shape) -> np.ndarray:
    """The operator as a dense float64 matrix, column by column."""
    size = int(np.prod(shape))
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            return layer.weight.double().numpy()
        out = nn.functional.conv2d(
            basis, layer.weight.double(), None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    return out.flatten(1).T.numpy()


CASES = {
    "dense": lambda: (nn.Linear(9, 5), (9,)),
    "dense tall": lambda: (nn.Linear(4, 11), (4,)),
    "one row": lambda: (nn.Linear(7, 1), (7,)),
    "conv 3x3": lambda: (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    "conv 5x5/2": lambda: (nn.Conv2d(1, 4, 5, stride=2, padding=2), (1, 8, 8)),
    "conv 5x5/2 odd": lambda: (nn.Conv2d(1, 4, 5, stride=2, padding=2), (1, 7, 9)),
    "patches": lambda: (nn.Conv2d(2, 4, 4, stride=4), (2, 8, 8)),
    "patches with a rest": lambda: (nn.Conv2d(2, 3, 4, stride=4), (2, 10, 9)),
    "grouped": lambda: (nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 5, 5)),
    "dilated": lambda: (nn.Conv2d(1, 2, 3, padding=2, dilation=2), (1, 7, 7)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 10, 800])
def test_estimate_is_below_the_truth_and_converges(name, steps):
    torch.manual_seed(1)
    layer, shape = CASES[name]()
    truth = np.linalg.norm(matrix_of(layer, shape), 2)
    for dtype in (torch.float32, torch.float64):
        estimate = norm_estimate(layer.to(dtype), shape, steps=steps).item()
        assert estimate <= truth * (1 + 1e-6)
        if steps == 800:
            assert estimate >= truth * (1 - 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("name", ["dense", "conv 3x3"])
def test_tiny_and_huge_weights_scale_the_estimate(name, scale):
    torch.manual_seed(2)
    layer, shape = CASES[name]()
    before = norm_estimate(layer, shape, steps=200).item()
    with torch.no_grad():
        layer.weight *= scale
    after = norm_estimate(layer, shape, steps=200).item()
    assert after == pytest.approx(before * scale, rel=1e-4, abs=0)


def test_tiny_weights_in_double():
    layer = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(1e-30 * torch.eye(4, dtype=torch.float64))
    assert norm_estimate(layer, (4,)).item() == pytest.approx(1e-30, rel=1e-12, abs=0)


def test_starts_that_defeat_the_all_ones_vector():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[10.0, -10.0], [0.1, 0.1]]))
    assert norm_estimate(layer, (2,), steps=50).item() == pytest.approx(200**0.5, rel=1e-5)
    difference = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        difference.weight.copy_(torch.tensor([5.0, -5.0]).reshape(1, 2, 1, 1))
    assert norm_estimate(difference, (2, 4, 4), steps=50).item() == pytest.approx(50**0.5, rel=1e-5)


def test_zero_weights_have_norm_zero_and_do_not_poison_the_warm_start():
    layer = Dense(5, 4)
    weight = layer.linear.weight.detach().clone()
    with torch.no_grad():
        layer.linear.weight.zero_()
        assert layer.norm_estimate(3).item() == 0.0
        layer.linear.weight.copy_(weight)
        truth = torch.linalg.matrix_norm(weight, 2).item()
        assert layer.norm_estimate(200).item() == pytest.approx(truth, rel=1e-4)


def test_gradient_at_convergence_is_that_of_the_norm():
    torch.manual_seed(3)
    for layer, shape in (CASES["dense"](), CASES["conv 5x5/2"]()):
        layer = layer.double()
        (gradient,) = torch.autograd.grad(norm_estimate(layer, shape, steps=3000), layer.weight)
        weight = layer.weight.detach().clone()
        for index in np.ndindex(*weight.shape):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    layer.weight[index] += sign * 1e-6
                values.append(np.linalg.norm(matrix_of(layer, shape), 2))
            assert gradient[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)
        with torch.no_grad():
            layer.weight.copy_(weight)


def test_all_blocks_at_once_equal_one_after_the_other():
    torch.manual_seed(4)
    stack = LinearResidualStack(depth=3, width=4, input_size=6)
    with torch.no_grad():
        stack.branch_LOIhw += 0.2 * torch.randn_like(stack.branch_LOIhw)
        starts = stack.iterate.clone().chunk(3, dim=1)
        together = conv_estimate(stack.kernels().flatten(0, 1), stack.iterate, 5, 1, 1, groups=3)
        converged = conv_estimate(stack.kernels().flatten(0, 1), stack.iterate, 4000, 1, 1, groups=3)
        for block, (kernel, start) in enumerate(zip(stack.kernels(), starts, strict=True)):
            alone = conv_estimate(kernel, start.clone(), 5, 1, 1)
            assert together[block].item() == pytest.approx(alone.item(), rel=1e-5)
            plain = nn.Conv2d(4, 4, 3, padding=1)
            plain.weight.copy_(kernel)
            truth = np.linalg.norm(matrix_of(plain, (4, 6, 6)), 2)
            assert truth * (1 - 1e-4) <= converged[block].item() <= truth * (1 + 1e-6)
        assert stack.norm_estimate(1).item() == pytest.approx(converged.prod().item(), rel=1e-5)


def test_warm_start_improves_from_call_to_call():
    torch.manual_seed(5)
    layer = Conv(2, 4, 3, 1, 1, 8)
    with torch.no_grad():
        estimates = [layer.norm_estimate(1).item() for _ in range(60)]
    assert all(b >= a * (1 - 1e-6) for a, b in itertools.pairwise(estimates))
    assert estimates[-1] > estimates[0]


def test_the_graph_does_not_reach_into_the_rounds():
    weight = torch.randn(3, 3, requires_grad=True)
    v = power_iterate(lambda v: v @ weight.T, lambda u: u @ weight, start_vector(1, 3), 3)
    assert not v.requires_grad


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.ReLU()])
def test_other_layers_are_refused(layer):
    with pytest.raises(TypeError, match="no power method"):
        norm_estimate(layer, (1, 4, 4))
