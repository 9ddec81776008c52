"""Maps: forward against independent arithmetic, and the plain form against the map."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from lipcert import layers
from lipcert.blocks import ConvStack, LinearResidualStack, ResidualStack
from lipcert.layers import Conv, Dense, Flatten, Head, MinMax, NormalizedHead, ReLU, Shift, ZeroPad
from lipcert.orthogonal import OrthogonalDense, OrthogonalPatchConv, OrthogonalResidualStack, cholesky_orthogonalise

MAPS = {
    "MinMax": (lambda: MinMax(), (3, 4, 5, 5)),
    "Shift": (lambda: Shift(0.5), (3, 4, 5, 5)),
    "ZeroPad": (lambda: ZeroPad(2), (3, 4, 5, 5)),
    "Flatten": (lambda: Flatten(), (3, 4, 5, 5)),
    "Conv": (lambda: Conv(3, 4, 5, 2, 2, 8), (2, 3, 8, 8)),
    "Dense": (lambda: Dense(6, 4), (3, 6)),
    "LinearResidualStack": (lambda: LinearResidualStack(3, 4, 6), (2, 4, 6, 6)),
    "ReLU": (lambda: ReLU(), (3, 4, 5, 5)),
    "LinearResidualStack, centred": (lambda: LinearResidualStack(3, 4, 6, "relu", centering=True).eval(), (2, 4, 6, 6)),
    "ConvStack": (lambda: ConvStack(3, 4, 6), (2, 4, 6, 6)),
    "ResidualStack": (lambda: ResidualStack(3, 4, 6), (2, 4, 6, 6)),
    "Head": (lambda: Head(6, 3), (4, 6)),
    "NormalizedHead": (lambda: NormalizedHead(6, 3), (4, 6)),
    "OrthogonalPatchConv": (lambda: OrthogonalPatchConv(2, 4, 4), (2, 2, 8, 8)),
    "OrthogonalDense": (lambda: OrthogonalDense(8, 4), (3, 8)),
    "OrthogonalResidualStack": (lambda: OrthogonalResidualStack(2, 6), (3, 6)),
}


def made(name):
    torch.manual_seed(sorted(MAPS).index(name))
    layer = MAPS[name][0]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer, torch.randn(*MAPS[name][1])


def test_every_map_is_tested():
    subclasses, todo = set(), [layers.Map]
    while todo:
        found = todo.pop().__subclasses__()
        todo += found
        subclasses |= {cls.__name__ for cls in found if re.match(r"lipcert\.(?!bench)", cls.__module__)}
    assert subclasses == {name.split(",")[0] for name in MAPS}


@pytest.mark.parametrize("name", MAPS)
def test_plain_form_is_the_same_map(name):
    layer, x = made(name)
    chain = nn.Sequential(*layer.plain())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in chain.parameters())
    with torch.no_grad():
        torch.testing.assert_close(chain(x), layer(x), rtol=1e-5, atol=1e-5)
        # Against the map in double, which has the weights before they were rounded to float32.
        torch.testing.assert_close(chain.double()(x.double()), layer.double()(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_plain_form_does_not_share_memory_with_the_map(name):
    layer, x = made(name)
    chain = nn.Sequential(*layer.plain())
    with torch.no_grad():
        before = chain(x).clone()
        for parameter in layer.parameters():
            parameter.mul_(3)
        assert torch.equal(chain(x), before)


@pytest.mark.parametrize("name", [n for n in MAPS if "Head" not in n])
def test_estimate_covers_random_pairs(name):
    layer, x = made(name)
    with torch.no_grad():
        estimate = float(layer.norm_estimate(300))
        y = x + 0.1 * torch.randn_like(x)
        moved = (layer(x) - layer(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert moved.max().item() <= estimate * (1 + 1e-3)


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


def test_minmax_gradient():
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MinMax(), (x,))


def test_minmax_gradient_keeps_its_norm_even_at_ties():
    x = torch.randint(0, 3, (50, 8)).double().requires_grad_()
    grad = torch.randn(50, 8, dtype=torch.float64)
    MinMax()(x).backward(grad)
    torch.testing.assert_close(x.grad.norm(dim=1), grad.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_minmax_refuses_odd_channels(channels):
    with pytest.raises(ValueError, match="even"):
        MinMax()(torch.randn(2, channels, 4, 4))


# --- head -------------------------------------------------------------------------------------------------------------


def test_head_rows_and_distances_against_numpy():
    head, _ = made("NormalizedHead")
    weight = head.linear.weight.detach().double().numpy()
    rows = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(head.rows().detach().numpy(), rows, rtol=1e-6)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.testing.assert_allclose(head.distances().detach().numpy(), expected, atol=1e-6)
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


# --- residual stack ---------------------------------------------------------------------------------------------------


def test_folded_kernel_is_the_residual_block():
    stack, x = made("LinearResidualStack")
    with torch.no_grad():
        y = x
        for block in range(3):
            branch = nn.functional.conv2d(y, stack.branch_LOIhw[block], padding=1)
            scaled = stack.gamma_LO[block][:, None, None] * branch / 3**0.5
            y = MinMax()(y + scaled + stack.bias_LO[block][:, None, None])
        torch.testing.assert_close(stack(x), y, rtol=1e-5, atol=1e-5)


def test_stack_starts_near_the_identity():
    torch.manual_seed(0)
    stack = LinearResidualStack(12, 16, 8)
    assert 1 <= stack.norm_estimate(200).item() < 1.6
    assert stack.branch_LOIhw.std().item() == pytest.approx(1 / (9 * 16), rel=0.05)


# --- orthogonal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 5)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_cholesky_singular_values_follow_the_formula(shape, scale):
    torch.manual_seed(0)
    matrix = scale * torch.randn(*shape, dtype=torch.float64)
    short = matrix.numpy() if shape[0] <= shape[1] else matrix.numpy().T
    gram = short @ short.T
    eigenvalues = np.linalg.eigvalsh(gram)
    expected = np.sqrt(eigenvalues / (eigenvalues + 1e-3 * np.diag(gram).mean()))
    singular = np.linalg.svd(cholesky_orthogonalise(matrix).numpy(), compute_uv=False)
    np.testing.assert_allclose(np.sort(singular), expected, rtol=1e-9)
    assert (singular > 0).all() and (singular <= 1).all()


def test_cholesky_gradient():
    raw = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, dtype=torch.float64)
    (slope,) = torch.autograd.grad((cholesky_orthogonalise(raw) * weights).sum(), raw)
    ridge = 1e-3 * (raw @ raw.T).diagonal().mean().item()  # held constant, as in the gradient

    def fixed_ridge(raw):
        gram = raw @ raw.T + ridge * np.eye(3)
        return (np.linalg.solve(np.linalg.cholesky(gram), raw) * weights.numpy()).sum()

    base = raw.detach().numpy()
    for index in np.ndindex(3, 5):
        up, down = base.copy(), base.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        assert slope[index].item() == pytest.approx((fixed_ridge(up) - fixed_ridge(down)) / 2e-6, abs=1e-7)


def test_half_precision_training_does_not_bend_orthogonal_weights():
    torch.manual_seed(0)
    layer = OrthogonalDense(128, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = layer.weight()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, layer.weight().detach(), rtol=1e-5, atol=1e-6)
