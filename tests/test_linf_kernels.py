"""CPU kernels of l_inf-distance layers against float64 truths written out here, and the backends against each other.

Shape letters: B batch, I inputs, O outputs, T terms.
"""

import math

import pytest
import torch

from lipcert.linf import kernels
from lipcert.linf.kernels import native, reference

SHAPES = [(1, 1, 1), (1, 1, 7), (3, 5, 7), (6, 32, 64), (7, 33, 65), (5, 1, 300), (64, 10, 129), (19, 70, 1100)]
POWERS = [1.0, 1.5, 2.0, 8.0, 9.7, 10.0, 16.0, 30.0, 64.0, 100.0, 1000.0, math.inf]
DTYPES = [torch.float32, torch.float64]
BACKENDS = ["native", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param == "native" and (problem := native.problem()):
        pytest.skip(problem)
    monkeypatch.setenv("LIPCERT_KERNELS", request.param)
    return request.param


@pytest.fixture
def compiled():
    if problem := native.problem():
        pytest.skip(problem)


def draw(shape, dtype=torch.float32, seed=0):
    """x, w and a gradient of y; an eighth of the weights far away, as in nets that start near the identity."""
    batch, outputs, inputs = shape
    g = torch.Generator().manual_seed(seed)
    x_BI = torch.randn(batch, inputs, generator=g, dtype=torch.float64)
    w_OI = torch.randn(outputs, inputs, generator=g, dtype=torch.float64)
    w_OI[: outputs // 8, 0] = -10
    grad_BO = torch.randn(batch, outputs, generator=g, dtype=torch.float64)
    return x_BI.to(dtype), w_OI.to(dtype), grad_BO.to(dtype)


def true_distance(x_BI, w_OI, p):
    """By logarithms in float64, unlike any of the kernels."""
    t_BOI = (x_BI.double()[:, None] - w_OI.double()).abs()
    if p == math.inf:
        return t_BOI.amax(-1)
    return (torch.logsumexp(p * t_BOI.log(), -1) / p).exp()


def true_terms(x_BI, w_OI, p):
    """dy/dx, (B, O, I)."""
    d_BOI = x_BI.double()[:, None] - w_OI.double()
    if p == math.inf:
        return d_BOI.sign() * (d_BOI.abs() == d_BOI.abs().amax(-1, keepdim=True))
    return d_BOI.sign() * ((p - 1) * (d_BOI.abs().log() - true_distance(x_BI, w_OI, p).log()[..., None])).exp()


def gradients(x_BI, w_OI, grad_BO, p):
    x_BI, w_OI = x_BI.clone().requires_grad_(), w_OI.clone().requires_grad_()
    y_BO = kernels.distance(x_BI, w_OI, p)
    y_BO.backward(grad_BO)
    return y_BO.detach(), x_BI.grad, w_OI.grad


def assert_gradients(dx_BI, dw_OI, x_BI, w_OI, grad_BO, p, unit):
    """Each within a few roundings of a sum of its terms; a float power p of a ratio rounds p times."""
    part_BOI = grad_BO.double()[..., None] * true_terms(x_BI, w_OI, p)
    allowed = unit * (100 + 4 * (p if p < math.inf else 1))
    floor_BO = 2.0**-39 * grad_BO.double().abs()
    for found, terms, axis, floor in (
        (dx_BI, part_BOI, 1, floor_BO.sum(1)[:, None]),
        (dw_OI, -part_BOI, 0, floor_BO.sum(0)[:, None]),
    ):
        assert found.isfinite().all()
        error = (found.double() - terms.sum(axis)).abs()
        assert (error <= allowed * terms.abs().sum(axis) + floor).all()


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_distance_and_gradients(backend, dtype, p):
    unit = torch.finfo(dtype).eps / 2
    for shape in SHAPES:
        x_BI, w_OI, grad_BO = draw(shape, dtype)
        y_BO, dx_BI, dw_OI = gradients(x_BI, w_OI, grad_BO, p)
        y_true = true_distance(x_BI, w_OI, p)
        assert ((y_BO.double() - y_true).abs() <= (1e-5 if dtype == torch.float32 else 1e-12) * y_true).all()
        assert_gradients(dx_BI, dw_OI, x_BI, w_OI, grad_BO, p, unit)


@pytest.mark.parametrize("p", [2.0, 8.0, 9.7, 30.0, 64.5, 100.0, 1000.0])
@pytest.mark.parametrize("way", native.WAYS)
def test_every_way_of_a_power_sum(compiled, way, p):
    """Also where it is not the fast one; rows far apart in size make a sum that starts directly start again."""
    for shape in [(7, 33, 65), (13, 40, 700)]:
        x_BI, w_OI, grad_BO = draw(shape)
        for scale in (1, 1e-30, 1e15, 10.0 ** torch.arange(-3, len(x_BI) - 3)[:, None]):
            xs_BI, ws_OI = (x_BI * scale).float(), w_OI * (scale if isinstance(scale, float) else 1)
            y_BO, y_true = native.distance_forward(xs_BI, ws_OI, p, way), true_distance(xs_BI, ws_OI, p)
            assert ((y_BO.double() - y_true).abs() <= 1e-5 * y_true).all()
        if way != "direct":
            y_BO = native.distance_forward(x_BI, w_OI, p)
            assert_gradients(
                *native.distance_backward(grad_BO, x_BI, w_OI, y_BO, p, way), x_BI, w_OI, grad_BO, p, 2.0**-24
            )


@pytest.mark.parametrize("p", [2.0, 3.0, 7.3, 8.0, math.inf])
def test_gradcheck(backend, p):
    x_BI, w_OI, _ = draw((4, 3, 5), torch.float64)
    inputs = (x_BI.requires_grad_(), w_OI.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: kernels.distance(x, w, p), inputs)


def hard(shape, dtype, seed):
    """Ties, duplicates, zeros of both signs, subnormal and huge numbers."""
    g = torch.Generator().manual_seed(seed)
    big, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 8
    values = torch.tensor([0.0, -0.0, 1, -1, 0.5, tiny, -tiny, 3 * tiny, big, -big / 2], dtype=dtype)
    batch, outputs, inputs = shape
    pick = [torch.randint(len(values) - 2 * (seed % 2), (n, inputs), generator=g) for n in (batch, batch, outputs)]
    a, b, w_OI = (values[i] for i in pick)
    return torch.minimum(a, b), torch.maximum(a, b), w_OI


def ranked(shape):
    return min(shape[-1], 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_backends_agree_bit_for_bit_at_infinity(compiled, dtype):
    for seed, shape in enumerate([*SHAPES, *SHAPES]):
        x_BI, w_OI, _ = draw(shape, dtype, seed)
        for lower, upper, w in ((x_BI - 0.1, x_BI + 0.1, w_OI), (x_BI, x_BI, w_OI), hard(shape, dtype, seed)):
            pairs = [
                (native.distance_forward(upper, w, math.inf), reference.distance_forward(upper, w, math.inf)),
                (native.farthest(upper, w)[0], reference.distance_forward(upper, w, math.inf)),
                (native.top_distances(lower, w, ranked(shape)), reference.top_distances(lower, w, ranked(shape))),
                *zip(
                    native.interval_forward(lower, upper, w, math.inf),
                    reference.interval_forward(lower, upper, w, math.inf), strict=True,
                ),
                *zip(
                    native.top_interval(lower, upper, w, ranked(shape)),
                    reference.top_interval(lower, upper, w, ranked(shape)), strict=True,
                ),
            ]  # fmt: skip
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_interval_is_exact_and_holds_every_point(backend, dtype):
    for seed, shape in enumerate(SHAPES[1:]):
        lower, w_OI, _ = draw(shape, dtype, seed)
        upper = lower + draw(shape, dtype, 99)[0].abs()
        if seed % 3 == 2:
            lower, upper, w_OI = hard(shape, dtype, 1)
        low_BO, high_BO = kernels.interval(lower, upper, w_OI)
        a, c = upper[:, None] - w_OI, w_OI - lower[:, None]
        assert torch.equal(high_BO, torch.maximum(a, c).amax(-1))
        assert torch.equal(low_BO, torch.maximum(-a, -c).amax(-1).clamp(min=0))
        low_BOT, high_BOT = kernels.top_interval(lower, upper, w_OI, ranked(shape))
        for k in range(8):
            mix = torch.rand(lower.shape, dtype=dtype, generator=torch.Generator().manual_seed(k))
            inside = torch.where(mix < 0.5, lower, upper) if k < 4 else lower + mix * (upper - lower)
            inside = torch.minimum(torch.maximum(inside, lower), upper)
            y_BO = kernels.distance(inside, w_OI, math.inf)
            assert ((low_BO <= y_BO) & (y_BO <= high_BO)).all()
            top_BOT = kernels.top_distances(inside, w_OI, ranked(shape))
            assert ((low_BOT <= top_BOT) & (top_BOT <= high_BOT)).all()


def test_interval_at_finite_p(backend):
    x_BI, w_OI, _ = draw((4, 6, 9), torch.float64)
    low_BO, high_BO = kernels.interval(x_BI - 0.2, x_BI + 0.2, w_OI, 8.0)
    d_BOI = (x_BI[:, None] - w_OI).abs()
    assert torch.allclose(high_BO, (d_BOI + 0.2).pow(8).sum(-1).pow(1 / 8))
    assert torch.allclose(low_BO, (d_BOI - 0.2).clamp(min=0).pow(8).sum(-1).pow(1 / 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("p", [2.0, 8.0, 9.7, 100.0, 1000.0, math.inf])
def test_nan_and_infinity_reach_the_output(backend, dtype, p):
    x_BI, w_OI, _ = draw((7, 35, 20), dtype)
    x_BI[1, 3], w_OI[33, 19], x_BI[2, 19], x_BI[4, 0], w_OI[5, 0] = math.nan, -math.nan, -math.inf, math.inf, math.inf
    y_true = true_distance(x_BI, w_OI, math.inf)
    odd = ~y_true.isfinite()
    assert y_true.isnan().sum() == 35 + 6 + 1
    y_BO = kernels.distance(x_BI, w_OI, p)
    assert torch.equal(y_BO[odd].double().nan_to_num(nan=7), y_true[odd].nan_to_num(nan=7))
    assert y_BO[~odd].isfinite().all()
    if p == math.inf:
        for low, high in (kernels.interval(x_BI, x_BI, w_OI), kernels.top_interval(x_BI, x_BI, w_OI, 3)):
            nan_BO = y_true.isnan()
            assert torch.equal(low.reshape(7, 35, -1)[..., 0].isnan(), nan_BO)
            assert torch.equal(high.reshape(7, 35, -1)[..., 0].isnan(), nan_BO)
        assert torch.equal(kernels.top_distances(x_BI, w_OI, 3)[..., 0].isnan(), y_true.isnan())


@pytest.mark.parametrize("p", [8.0, 1000.0, math.inf])
def test_gradient_of_nan_is_nan(backend, p):
    x_BI, w_OI, grad_BO = draw((3, 5, 7))
    x_BI[1, 2] = math.nan
    _, dx_BI, dw_OI = gradients(x_BI, w_OI, grad_BO, p)
    assert dx_BI[1].isnan().any() and dx_BI[[0, 2]].isfinite().all() and dw_OI.isnan().any(1).all()


def test_ties_and_zero_distance(backend):
    w_OI = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4]])
    x_BI = torch.tensor([[1.0, -1, 1, 0.5], [1, 2, 3, 4]])
    for p in (2.0, 8.0, 9.7, 1000.0, math.inf):
        y_BO, dx_BI, dw_OI = gradients(x_BI, w_OI, torch.tensor([[1.0, 0], [0, 1]]), p)
        assert y_BO[1, 1] == 0 and not dx_BI[1].any() and not dw_OI[1].any()
        assert torch.equal(dx_BI[0], -dw_OI[0])
        if p == math.inf:
            assert dx_BI[0].abs().sum() == 1 and dx_BI[0].nonzero().numel() == 1 and dx_BI[0, 1] <= 0
        else:
            assert torch.allclose(dx_BI[0, :3], torch.tensor([1.0, -1, 1]) * dx_BI[0, 0], rtol=1e-5)


def test_strides_and_empty_batches(backend):
    x_BI, w_OI, grad_BO = draw((9, 6, 14))
    for p in (8.0, math.inf):
        wanted = gradients(x_BI, w_OI, grad_BO, p)
        strided = torch.stack([x_BI, x_BI], -1)[..., 0], w_OI.T.contiguous().T, grad_BO.T.contiguous().T
        assert all(map(torch.equal, gradients(*strided, p), wanted))
        y_BO, dx_BI, dw_OI = gradients(x_BI[:0], w_OI, grad_BO[:0], p)
        assert y_BO.shape == (0, 6) and dx_BI.shape == (0, 14) and not dw_OI.any()
    assert kernels.interval(x_BI[:0], x_BI[:0], w_OI)[0].shape == (0, 6)
    assert kernels.top_distances(x_BI[:0], w_OI, 3).shape == (0, 6, 3)


def test_same_bits_for_any_number_of_threads(compiled):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = []
            for shape in [(67, 130, 130), (300, 9, 500)]:
                assert math.prod(shape) > native.SMALL
                x_BI, w_OI, grad_BO = draw(shape)
                for p in (8.0, 300.0, math.inf):
                    found += gradients(x_BI, w_OI, grad_BO, p)
                found += [*kernels.interval(x_BI - 0.1, x_BI, w_OI), kernels.top_distances(x_BI, w_OI, 4)]
            results.append(found)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*same) for other in results[1:] for same in zip(results[0], other, strict=True))


def test_a_batch_of_several_parts(compiled):
    """More rows than are packed at once."""
    x_BI, w_OI, grad_BO = draw((1100, 3, 6000))
    y_BO, dx_BI, dw_OI = gradients(x_BI, w_OI, grad_BO, math.inf)
    assert torch.equal(y_BO, reference.distance_forward(x_BI, w_OI, math.inf))
    dx_true, dw_true = reference.distance_backward(grad_BO, x_BI, w_OI, y_BO, math.inf)
    assert torch.equal(dx_BI, dx_true) and torch.allclose(dw_OI, dw_true, atol=1e-4)
    for p in (8.0, 300.0):
        x_BI, w_OI, grad_BO = draw((1100, 35, 30))
        _, dx_BI, dw_OI = gradients(x_BI, w_OI, grad_BO, p)
        assert_gradients(dx_BI, dw_OI, x_BI, w_OI, grad_BO, p, 2.0**-24)


def test_the_torch_path_stays_within_its_budget(monkeypatch):
    monkeypatch.setattr(reference, "BUDGET_BYTES", 5000)
    for shape in [(9, 40, 30), (3, 200, 7), (2, 3, 5000)]:
        x_BI, w_OI, _ = draw(shape)
        seen = torch.zeros(shape[:2])
        for b, o in reference.pieces(x_BI, w_OI):
            pairs = seen[b, o].numel()
            assert pairs == 1 or pairs * shape[2] * 4 <= 5000
            seen[b, o] += 1
        assert (seen == 1).all()
        assert torch.equal(reference.distance_forward(x_BI, w_OI, math.inf), (x_BI[:, None] - w_OI).abs().amax(-1))


def test_what_is_refused(backend, monkeypatch):
    x_BI, w_OI, _ = draw((3, 5, 7))
    for wrong, message in [
        (lambda: kernels.distance(x_BI[0], w_OI, 2.0), r"must be \(B, I\) and \(O, I\)"),
        (lambda: kernels.distance(x_BI[:, :6], w_OI, 2.0), "with the same I"),
        (lambda: kernels.distance(x_BI.double(), w_OI, 2.0), "both be float32 or both float64"),
        (lambda: kernels.distance(x_BI.half(), w_OI.half(), 2.0), "torch.float16"),
        (lambda: kernels.distance(x_BI, w_OI.to("meta"), 2.0), "move one"),
        (lambda: kernels.distance(x_BI, w_OI[:0], 2.0), "at least one output"),
        (lambda: kernels.distance(x_BI, w_OI, 0.5), "p=0.5: must be from 1"),
        (lambda: kernels.distance(x_BI, w_OI, math.nan), "p=nan"),
        (lambda: kernels.interval(x_BI, x_BI[:2], w_OI), "must have one shape"),
        (lambda: kernels.top_distances(x_BI, w_OI, 8), "count=8: must be from 1 to the number of inputs, 7"),
        (lambda: kernels.top_interval(x_BI, x_BI, w_OI, 0), "count=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    monkeypatch.setenv("LIPCERT_KERNELS", "fast")
    with pytest.raises(ValueError, match="LIPCERT_KERNELS='fast': must be one of auto, native, torch, triton"):
        kernels.backend()
    monkeypatch.setenv("LIPCERT_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="LIPCERT_KERNELS=triton on cpu"):
        kernels.backend("cpu")


def test_which_backend_runs(compiled, monkeypatch):
    monkeypatch.delenv("LIPCERT_KERNELS", raising=False)
    assert kernels.backend() == kernels.backend("cpu") == "native"
    assert kernels.backend("meta") == "torch"
    monkeypatch.setenv("LIPCERT_KERNELS", "torch")
    assert kernels.backend() == "torch"
