"""Cholesky-orthogonal weights: values and gradients against the formula, norms against LAPACK, the stack of layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lipcert import orthogonal
from lipcert.bounds import norm_bound
from lipcert.layers import MinMax, plain_linear
from lipcert.orthogonal import OrthogonalResidualStack, cholesky_orthogonalise

SHAPES = [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7), (7, 3), (2, 5, 5), (2, 3, 4, 6), (2, 8, 3)]


@pytest.fixture
def blocks_of_two(monkeypatch):
    """So that small matrices, too, are cut into blocks."""
    monkeypatch.setattr(orthogonal, "_BLOCK", 2)


def formula(matrix, ridge=1e-3):
    """chol(M M^T + d I)^-1 M with d held constant, by torch and autograd."""
    if matrix.shape[-2] > matrix.shape[-1]:
        return formula(matrix.mT, ridge).mT
    gram = matrix @ matrix.mT
    held = ridge * gram.detach().diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    factor = torch.linalg.cholesky(gram + held * torch.eye(gram.shape[-1], dtype=gram.dtype))
    return torch.linalg.solve_triangular(factor, matrix, upper=False)


def slope(function, matrix, weights):
    matrix = matrix.detach().clone().requires_grad_()
    return torch.autograd.grad((function(matrix) * weights).sum(), matrix)[0]


def made(depth=3, features=8, scale=1.0):
    torch.manual_seed(depth * features)
    stack = OrthogonalResidualStack(depth, features)
    with torch.no_grad():
        stack.branch_LFF.mul_(scale)
        stack.gamma_LF.add_(0.1 * torch.randn_like(stack.gamma_LF))
        stack.bias_LF.add_(torch.randn_like(stack.bias_LF))
    return stack, torch.randn(5, features)


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1, 2, 3, 256])
def test_value_and_gradient_of_the_formula(shape, block, monkeypatch):
    monkeypatch.setattr(orthogonal, "_BLOCK", block)
    torch.manual_seed(0)
    matrix, weights = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(cholesky_orthogonalise(matrix), formula(matrix), rtol=1e-10, atol=1e-10)
    mine, truth = slope(cholesky_orthogonalise, matrix, weights), slope(formula, matrix, weights)
    torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(-3, 3), st.integers(0, 2**31))
def test_gradient_of_ill_conditioned_matrices(rows, columns, block, exponent, seed):
    """Singular values spread over up to six decades, rank-deficient ones among them."""
    generator = torch.Generator().manual_seed(seed)
    matrix, weights = torch.randn(2, rows, columns, dtype=torch.float64, generator=generator)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = 10.0**exponent * 10.0 ** torch.linspace(0, -6, len(values), dtype=torch.float64)
    if seed % 3 == 0:
        values[2:] = 0
    matrix = left @ torch.diag(values) @ right
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orthogonal, "_BLOCK", block)
        mine = slope(cholesky_orthogonalise, matrix, weights)
    truth = slope(formula, matrix, weights)
    assert (mine - truth).norm() <= 1e-8 * truth.norm()


@pytest.mark.parametrize("shape", [(1, 4), (4, 4), (3, 5), (5, 3), (2, 3, 4)])
def test_gradient_against_differences(shape, monkeypatch, blocks_of_two):
    """Without a ridge nothing is held constant, and the gradient is the slope of the value."""
    monkeypatch.setattr(orthogonal, "_RIDGE", 0.0)
    torch.manual_seed(1)
    matrix = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cholesky_orthogonalise, matrix)


def test_float32_is_as_accurate_as_the_formula():
    torch.manual_seed(0)
    matrix = torch.eye(300) + torch.randn(300, 300) * 64 / 300
    weights = torch.randn(300, 300)
    exact = slope(formula, matrix.double(), weights.double())
    mine, other = (slope(f, matrix, weights) - exact for f in (cholesky_orthogonalise, formula))
    assert mine.norm() <= 2 * other.norm() + 1e-6 * exact.norm()


def test_double_backward_is_refused():
    matrix = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(cholesky_orthogonalise(matrix).square().sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 4, 4)])
def test_only_the_result_and_its_factor_are_kept(shape):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    matrix = torch.randn(*shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cholesky_orthogonalise(matrix)
    small = min(shape[-2:])
    assert sorted(kept.values()) == sorted([matrix.numel(), matrix.numel() // max(shape[-2:]) * small])


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), 1e30])
def test_failed_factorisation_is_not_finite(bad, blocks_of_two):
    matrices = torch.randn(3, 4, 4)
    matrices[1] = bad
    weights = cholesky_orthogonalise(matrices)
    assert weights[1].isnan().any()
    assert weights[[0, 2]].isfinite().all()


def test_indefinite_gram_matrix_is_not_finite(monkeypatch):
    """LAPACK leaves finite numbers behind; they must not pass for a factor."""
    monkeypatch.setattr(orthogonal, "_RIDGE", -2.0)
    leftover, failed = torch.linalg.cholesky_ex(-torch.eye(3))
    assert failed and leftover.isfinite().all()
    assert cholesky_orthogonalise(torch.eye(3)).isnan().any()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_autocast_does_not_reach_weights_or_gradients(shape):
    torch.manual_seed(0)
    matrix, weights = torch.randn(2, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        inside, inside_slope = cholesky_orthogonalise(matrix), slope(cholesky_orthogonalise, matrix, weights)
    assert inside.dtype == inside_slope.dtype == torch.float32
    assert torch.equal(inside, cholesky_orthogonalise(matrix))
    assert torch.equal(inside_slope, slope(cholesky_orthogonalise, matrix, weights))


# --- the stack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 64.0])
def test_norms_of_the_stack(scale):
    """Singular values sqrt(l / (l + d)), below 1; the proven bound lies between the true norm and 1 + 1e-5."""
    stack, _ = made(2, 64, scale)
    step = stack.gamma_LF.detach()[..., None] / 2**0.5 * stack.branch_LFF.detach()
    for matrix, layer in zip(torch.eye(64) + step, stack.plain()[::2], strict=True):
        squares = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
        expected = np.sqrt(squares / (squares + 1e-3 * squares.mean()))
        singular = np.linalg.svd(layer.weight.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(singular, expected, atol=2e-4)
        assert expected[0] < 1 and singular[0] <= 1 + 1e-5
        proven = norm_bound(layer, (64,))
        assert proven.lower * (1 - 1e-12) <= singular[0] <= proven.upper <= 1 + 1e-5


@pytest.mark.parametrize("shape", [(2, 2), (64, 64), (300, 300), (64, 200), (200, 64)])
@pytest.mark.parametrize("rest", [0.0, 1e-3, 1.0])
def test_norm_where_one_direction_outweighs_all_others(shape, rest):
    """The norm comes as near to 1 as it gets, the Gram matrix as near to singular; rounding must not carry it past."""
    torch.manual_seed(0)
    rows, columns = torch.randn(shape[0], 1), torch.randn(1, shape[1])
    weight = cholesky_orthogonalise(rows @ columns + rest * torch.eye(*shape))
    proven = norm_bound(plain_linear(weight, torch.zeros(shape[0])), (shape[1],))
    assert np.linalg.norm(weight.double().numpy(), 2) <= proven.upper <= 1 + 1e-5


def test_stack_against_a_loop():
    stack, x = made()
    y = x.double()
    for branch, gamma, bias in zip(stack.branch_LFF, stack.gamma_LF, stack.bias_LF, strict=True):
        matrix = torch.eye(8, dtype=torch.float64) + torch.diag(gamma.double()) @ branch.double() / 3**0.5
        y = MinMax()(y @ formula(matrix).T + bias.double())
    torch.testing.assert_close(stack(x).double(), y, rtol=1e-5, atol=1e-5)


def test_stack_starts_as_sorting():
    """Near the identity, each layer only sorts what the layer before it sorted."""
    torch.manual_seed(0)
    stack, x = OrthogonalResidualStack(8, 256), torch.randn(5, 256)
    assert stack.branch_LFF.std().item() == pytest.approx(1 / 256, rel=0.02)
    with torch.no_grad():
        apart = (stack(x) - MinMax()(x)).norm() / x.norm()
    assert 0.01 < apart < 0.5


def test_plain_form_is_the_stack():
    stack, x = made(4, 10, 5.0)
    parts = stack.plain()
    assert [type(part) for part in parts] == [nn.Linear, MinMax] * 4
    assert all(p.dtype == torch.float32 and not p.requires_grad for part in parts for p in part.parameters())
    with torch.no_grad():
        torch.testing.assert_close(nn.Sequential(*parts)(x), stack(x), rtol=1e-5, atol=1e-5)
    assert stack.norm_estimate(10) == 1.0


def test_evaluation_is_training_and_never_stale():
    stack, x = made()
    before = stack(x)
    stack.eval()
    with torch.no_grad():
        assert torch.equal(stack(x), before)
        stack.gamma_LF.mul_(3)
        after = stack(x)
    assert not torch.equal(after, before)
    assert torch.equal(stack.train()(x), after)


def test_weights_are_computed_once_a_pass(monkeypatch):
    stack, x = made()
    calls = []
    monkeypatch.setattr(orthogonal, "cholesky_orthogonalise", lambda m: calls.append(m.shape) or formula(m))
    stack(x)
    assert calls == [(3, 8, 8)]


def test_state_dict_round_trip():
    stack, x = made()
    state = stack.state_dict()
    assert set(state) == {"branch_LFF", "gamma_LF", "bias_LF"}
    other = OrthogonalResidualStack(3, 8)
    other.load_state_dict(state)
    assert torch.equal(other(x), stack(x))


def test_gradients_of_the_stack(blocks_of_two, monkeypatch):
    stack, x = made(2, 6, 20.0)
    stack, x = stack.double(), x.double()
    outcomes = []
    for patch in (False, True):
        if patch:
            monkeypatch.setattr(orthogonal, "cholesky_orthogonalise", formula)
        stack.zero_grad()
        stack(x).square().sum().backward()
        outcomes.append([p.grad.clone() for p in stack.parameters()])
    for mine, truth in zip(*outcomes, strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-10)


def test_training_in_bfloat16_keeps_the_weights_in_float32():
    stack, x = made()
    with torch.autocast("cpu", torch.bfloat16):
        weights, y = stack.weights(), stack(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and weights.dtype == torch.float32
    assert torch.equal(weights, stack.weights())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in stack.parameters())


def test_published_tail_without_its_numbers():
    """8 layers of 2048 on the meta device: 33.59 million parameters, and operations can be counted."""
    with torch.device("meta"):
        stack, x = OrthogonalResidualStack(8, 2048), torch.empty(4, 2048)
    assert sum(p.numel() for p in stack.parameters()) == 8 * (2048**2 + 2 * 2048)
    with FlopCounterMode(display=False) as counter:
        y = stack(x)
        y.sum().backward()
    assert y.shape == (4, 2048) and stack.branch_LFF.grad.is_meta
    # In cubes of 2048 per layer: 1 + 1 for half a Gram matrix and half a solve, 1 + 2 + 1 backward, and the blocks.
    assert 6 < counter.get_total_flops() / (8 * 2048**3) < 7


@pytest.mark.parametrize(("depth", "features"), [(2, 5), (0, 4), (-1, 4), (1, 0)])
def test_impossible_sizes_are_refused(depth, features):
    with pytest.raises(ValueError, match=f"depth={depth}, features={features}"):
        OrthogonalResidualStack(depth, features)
