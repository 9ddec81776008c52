"""Single maps against formulas written out by hand; what all of them promise is in test_contract.py."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lipcert.blocks import ConvStack, LinearResidualStack, ResidualStack
from lipcert.layers import Map, MinMax, NormalizedHead
from lipcert.orthogonal import OrthogonalDense, OrthogonalPatchConv, cholesky_orthogonalise


def perturbed(layer):
    """In float64, away from the initial weights."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def test_a_map_without_estimate_or_plain_form_is_named():
    class Nothing(Map):
        __module__ = "elsewhere"

    for ask in (lambda: Nothing().norm_estimate(1), Nothing().plain):
        with pytest.raises(NotImplementedError, match="Nothing"):
            ask()


# --- MinMax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2), (3, 8), (2, 6, 4, 5)])
def test_minmax_against_numpy(shape):
    x = torch.randn(*shape)
    half = shape[1] // 2
    pairs = np.stack([x.numpy()[:, :half], x.numpy()[:, half:]])
    expected = np.concatenate([np.sort(pairs, axis=0)[1], np.sort(pairs, axis=0)[0]], axis=1)
    assert np.array_equal(MinMax()(x).numpy(), expected)
    permuted = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    assert np.array_equal(MinMax()(permuted).numpy(), expected)


def test_minmax_gradient_keeps_its_norm_even_at_ties():
    x = torch.randint(0, 3, (50, 8)).double().requires_grad_()
    grad = torch.randn(50, 8, dtype=torch.float64)
    MinMax()(x).backward(grad)
    torch.testing.assert_close(x.grad.norm(dim=1), grad.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_minmax_refuses_odd_channels(channels):
    with pytest.raises(ValueError, match=f"MinMax on {channels} channels: the number must be even"):
        MinMax()(torch.randn(2, channels, 4, 4))


# --- head -------------------------------------------------------------------------------------------------------------


def test_normalised_rows_against_numpy():
    head = perturbed(NormalizedHead(6, 3))
    weight = head.linear.weight.detach().numpy()
    rows = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(head.rows().detach().numpy(), rows, rtol=1e-14)
    assert (head.distances().diagonal() == 0).all()


def test_head_with_identical_rows_has_a_finite_gradient():
    head = NormalizedHead(5, 4)
    with torch.no_grad():
        head.linear.weight[1] = head.linear.weight[0]
        head.linear.weight[2] = -head.linear.weight[0]
    distances = head.distances()
    assert distances[0, 1].item() == pytest.approx(0, abs=1e-3) and distances[0, 2].item() == pytest.approx(2)
    distances.sum().backward()
    assert head.linear.weight.grad.isfinite().all()


def test_head_distances_gradient():
    head = NormalizedHead(4, 3).double()
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def apart(weight):
        rows = weight / weight.norm(dim=1, keepdim=True)
        return torch.stack([(rows[i] - rows[j]).norm() for i, j in ((0, 1), (0, 2), (1, 2))])

    with torch.no_grad():
        head.linear.weight.copy_(weight)
    mine = head.distances()[torch.triu(torch.ones(3, 3), 1).bool()]
    (slope,) = torch.autograd.grad(mine.sum(), head.linear.weight)
    (expected,) = torch.autograd.grad(apart(weight).sum(), weight)
    torch.testing.assert_close(slope, expected)


# --- stacks -----------------------------------------------------------------------------------------------------------


def by_hand(stack, x, centre):
    """x <- act(x + o - centre(o) + b) with o = gamma (V * x) / sqrt(depth); and what was subtracted, (L, O)."""
    gone = []
    for branch, gamma, bias in zip(stack.branch_LOIhw, stack.gamma_LO, stack.bias_LO, strict=True):
        out = gamma[:, None, None] * F.conv2d(x, branch, padding=1) / math.sqrt(len(stack.bias_LO))
        gone.append(centre(len(gone), out))
        first, second = (x + out - gone[-1][:, None, None] + bias[:, None, None]).chunk(2, dim=1)
        x = torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
    return x, torch.stack(gone)


def centred_stack():
    torch.manual_seed(0)
    stack = perturbed(LinearResidualStack(3, 4, 6, centering=True))
    stack.mean_LO.normal_()
    return stack, torch.randn(5, 4, 6, 6, dtype=torch.float64)


def test_folded_kernel_is_the_residual_block():
    torch.manual_seed(1)
    stack, x = perturbed(LinearResidualStack(3, 4, 6)), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(stack(x), by_hand(stack, x, lambda *_: torch.zeros(4))[0], rtol=1e-12, atol=1e-12)


def test_centring_subtracts_the_mean_of_the_batch_and_remembers_it():
    stack, x = centred_stack()
    before = stack.mean_LO.clone()
    expected, means_LO = by_hand(stack, x, lambda _, out: out.mean((0, 2, 3)))
    torch.testing.assert_close(stack.train()(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stack.mean_LO, 0.9 * before + 0.1 * means_LO, rtol=1e-12, atol=1e-12)
    assert not stack.mean_LO.requires_grad


def test_centring_uses_the_running_mean_in_evaluation():
    stack, x = centred_stack()
    before = stack.mean_LO.clone()
    expected, _ = by_hand(stack, x, lambda block, _: before[block])
    torch.testing.assert_close(stack.eval()(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stack(x[:1]), expected[:1], rtol=1e-12, atol=1e-12)
    assert torch.equal(stack.mean_LO, before)


def test_the_gradient_flows_through_the_batch_mean():
    stack, x = centred_stack()
    inputs, weights = [x.requires_grad_(), *stack.parameters()], torch.randn_like(x)

    def slopes(y):
        return torch.autograd.grad((y * weights).sum(), inputs)

    mine = slopes(stack.train()(x))
    through = slopes(by_hand(stack, x, lambda _, out: out.mean((0, 2, 3)))[0])
    around = slopes(by_hand(stack, x, lambda _, out: out.mean((0, 2, 3)).detach())[0])
    for slope, expected, other in zip(mine, through, around, strict=True):
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(slope, other, rtol=1e-3)


def test_centring_does_not_move_the_norm():
    stack, _ = centred_stack()
    before = stack.eval().norm_estimate(0).item()
    stack.mean_LO.mul_(100)
    assert stack.norm_estimate(0).item() == before == stack.train().norm_estimate(0).item()


def test_stack_starts_near_the_identity():
    torch.manual_seed(0)
    stack = LinearResidualStack(12, 16, 8)
    assert 1 <= stack.norm_estimate(200).item() < 1.6
    assert stack.branch_LOIhw.std().item() == pytest.approx(1 / (9 * 16), rel=0.05)


def test_conventional_blocks_start_as_their_activation():
    torch.manual_seed(0)
    stack, x = ResidualStack(3, 4, 6), torch.randn(2, 4, 6, 6)
    assert torch.equal(stack(x), MinMax()(MinMax()(MinMax()(x))))
    assert stack.norm_estimate(5).item() == 1.0


@pytest.mark.parametrize("kernels", [ConvStack(2, 4, 6).weight_LOIhw, ResidualStack(2, 4, 6).second_LOIhw])
def test_kernels_start_with_orthonormal_rows(kernels):
    rows = kernels.detach().flatten(2)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(4).expand(2, 4, 4))


# --- orthogonal (factorisation and stack: test_orthogonal.py) ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "patches"])
def test_orthogonal_maps_use_and_train_the_orthogonalised_weight(kind):
    torch.manual_seed(0)
    layer, x = {
        "dense": (OrthogonalDense(6, 4), torch.randn(3, 6, dtype=torch.float64)),
        "patches": (OrthogonalPatchConv(2, 4, 2), torch.randn(3, 2, 4, 4, dtype=torch.float64)),
    }[kind]
    perturbed(layer)
    if kind == "dense":
        expected = x @ cholesky_orthogonalise(layer.raw_OI).T + layer.bias
    else:
        # Patches do not overlap: the convolution is one matrix times every patch.
        weight = cholesky_orthogonalise(layer.raw_OIhw.flatten(1))
        expected = (weight @ F.unfold(x, 2, stride=2)).reshape(3, 4, 2, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    slopes = [torch.autograd.grad((y * weights).sum(), list(layer.parameters())) for y in (layer(x), expected)]
    for mine, other in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
