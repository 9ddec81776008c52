"""What `test_linf_triton` runs in Triton's interpreter, in a process of its own.

B batch, I inputs, O outputs.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lipcert.linf import kernels
from lipcert.linf.kernels import triton_kernels as device
from lipcert.linf.kernels.triton_kernels import Strip, Tile

POWERS = (2, 8, 10, 16, 30, 64, 100, 1000, math.inf)
SHAPES = ((1, 1, 1), (3, 5, 7), (17, 13, 35), (2, 131, 5))
SMALL, LARGE = Tile(1, 2, 4, 8), Tile(2, 4, 8, 8)
STRIP = Strip(8, 64)


@pytest.fixture(autouse=True)
def quiet():
    """NumPy warns of log2(0) and of NaN, which are meant."""
    with np.errstate(all="ignore"):
        yield


def some(batch: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * batch + 10 * inputs + outputs)
    return (
        torch.randn(batch, inputs, dtype=dtype, generator=generator),
        2 * torch.randn(outputs, inputs, dtype=dtype, generator=generator),
    )


def differences(x_BI: Tensor, w_OI: Tensor) -> Tensor:
    return x_BI[:, None] - w_OI


def norm(d_BOI: Tensor, p: float) -> Tensor:
    """In float64, as the definition says but for the unit."""
    d_BOI = d_BOI.double().abs()
    unit_BO = d_BOI.amax(-1)
    if p == math.inf:
        return unit_BO
    return unit_BO * (d_BOI / unit_BO[..., None]).pow(p).sum(-1).pow(1 / p)


def true_gradients(grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, p: float) -> tuple[Tensor, Tensor]:
    x_BI, w_OI = x_BI.double().requires_grad_(), w_OI.double().requires_grad_()
    dx_BI, dw_OI = torch.autograd.grad(norm(differences(x_BI, w_OI), p), (x_BI, w_OI), grad_BO.double())
    return dx_BI, dw_OI


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


def each_shape_and_power() -> list:
    """All of them; those that take long, and show little more, marked slow."""
    short = {(SHAPES[1], p) for p in POWERS} | {(SHAPES[2], p) for p in (8, 10, math.inf)}
    pairs = [(shape, p) for shape in SHAPES for p in POWERS]
    return [pytest.param(*pair, marks=[] if pair in short else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("shape", "p"), each_shape_and_power())
def test_distances_and_gradients_match_float64(shape, p):
    x_BI, w_OI = some(*shape)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    truth_BO = norm(differences(x_BI, w_OI), p)
    assert ((y_BO - truth_BO) / truth_BO).abs().max() <= 1e-6
    grad_BO = torch.randn(y_BO.shape, generator=torch.Generator().manual_seed(0))
    found = device.distance_backward(grad_BO, x_BI, w_OI, y_BO, p, strip=STRIP)
    allowed = 1e-6 if p == math.inf else 1e-6 + p * 2**-22
    for part, truth in zip(found, true_gradients(grad_BO, x_BI, w_OI, p), strict=True):
        assert part.dtype == torch.float32
        assert error(part, truth) <= allowed


@pytest.mark.parametrize("p", (1, 1.25, 31.7, 1024))
def test_other_powers(p):
    x_BI, w_OI = some(5, 11, 6)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    assert error(y_BO, norm(differences(x_BI, w_OI), p)) <= 1e-6
    grad_BO = torch.ones_like(y_BO)
    for part, truth in zip(
        device.distance_backward(grad_BO, x_BI, w_OI, y_BO, p, strip=STRIP),
        true_gradients(grad_BO, x_BI, w_OI, p),
        strict=True,
    ):
        assert error(part, truth) <= 1e-6 + p * 2**-22


@pytest.mark.parametrize("p", (8, 10.1, math.inf))
def test_float64(p):
    x_BI, w_OI = some(5, 10, 6, torch.float64)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    assert y_BO.dtype == torch.float64
    assert error(y_BO, norm(differences(x_BI, w_OI), p)) <= 1e-13
    found = device.distance_backward(y_BO, x_BI, w_OI, y_BO, p, strip=STRIP)
    for part, truth in zip(found, true_gradients(y_BO, x_BI, w_OI, p), strict=True):
        assert error(part, truth) <= 1e-12


@pytest.mark.parametrize(("shape", "tile"), ((SHAPES[0], LARGE), (SHAPES[2], LARGE), (SHAPES[1], SMALL)))
def test_the_maximum_is_torchs_bit_for_bit(shape, tile):
    x_BI, w_OI = some(*shape)
    largest_BO = differences(x_BI, w_OI).abs().amax(-1)
    assert torch.equal(device.distance_forward(x_BI, w_OI, math.inf, tile=tile), largest_BO)
    y_BO, where_BO = device.farthest(x_BI, w_OI, tile=tile)
    assert torch.equal(y_BO, largest_BO)
    first_BO = differences(x_BI, w_OI).abs().argmax(-1)
    assert torch.equal(where_BO, (first_BO - first_BO % device.STEP).int())


def test_the_maximum_of_subnormal_and_of_huge_numbers_is_torchs():
    x_BI, w_OI = some(4, 9, 5)
    for scale in (1e-44, 1e38):
        x, w = x_BI * scale, w_OI * scale
        assert torch.equal(device.distance_forward(x, w, math.inf, tile=LARGE), differences(x, w).abs().amax(-1))


@pytest.mark.parametrize("p", (8, 1000))
@pytest.mark.parametrize("scale", (1e-36, 1e36))
def test_no_scale_overflows_or_vanishes(p, scale):
    x_BI, w_OI = (scale * t for t in some(4, 9, 5))
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    assert error(y_BO, norm(differences(x_BI, w_OI), p)) <= 1e-6
    for part, truth in zip(
        device.distance_backward(torch.ones_like(y_BO), x_BI, w_OI, y_BO, p, strip=STRIP),
        true_gradients(torch.ones_like(y_BO), x_BI, w_OI, p),
        strict=True,
    ):
        assert error(part, truth) <= 1e-6 + p * 2**-22


@pytest.mark.parametrize("p", (8, 10, math.inf))
def test_nan_stays_nan_and_infinite_stays_infinite(p):
    x_BI, w_OI = some(6, 10, 7)
    x_BI[1, 9], x_BI[2, 3], x_BI[3, 0], w_OI[4, 5], w_OI[5, 3] = math.nan, math.inf, -math.inf, math.nan, math.inf
    largest_BO = differences(x_BI, w_OI).abs().amax(-1)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    assert largest_BO.isnan().sum() == 7 + 6 - 1 + 1  # row 1, column 4, inf - inf
    assert torch.equal(y_BO.isnan(), largest_BO.isnan())
    assert torch.equal(y_BO.isinf(), largest_BO.isinf())
    if p == math.inf:
        assert torch.equal(y_BO.nan_to_num(nan=-1), largest_BO.nan_to_num(nan=-1))
        dx_BI, dw_OI = device.distance_backward(torch.ones_like(y_BO), x_BI, w_OI, y_BO, p)
        assert dx_BI[1].isnan().any() and dw_OI[4].isnan().any()
        assert dx_BI[2].isnan().any() and not dx_BI[3, 1:].isinf().any()


def test_gradients_of_ties_reach_one_of_them():
    x_BI, w_OI = torch.tensor([[1.0, -1.0, 1.0, 0.0, 1.0]]), torch.zeros(1, 5)
    y_BO = torch.ones(1, 1)
    dx_BI, dw_OI = device.distance_backward(torch.tensor([[3.0]]), x_BI, w_OI, y_BO, math.inf)
    assert torch.equal(dx_BI, torch.tensor([[3.0, 0, 0, 0, 0]]))
    assert torch.equal(dw_OI, -dx_BI)


@pytest.mark.parametrize("p", (1, 1.5, 8, 10, math.inf))
def test_gradient_is_zero_where_the_distance_is(p):
    x_BI, w_OI = torch.full((3, 6), 0.7), torch.full((2, 6), 0.7)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=SMALL)
    assert torch.equal(y_BO, torch.zeros(3, 2))
    for part in device.distance_backward(torch.ones_like(y_BO), x_BI, w_OI, y_BO, p, strip=STRIP):
        assert torch.equal(part, torch.zeros_like(part))


def test_scattered_sums_do_not_depend_on_the_order():
    """Many images share few largest distances, with gradients from 1e-8 to 1e4: float sums would differ."""
    x_BI, w_OI = some(100, 6, 4)
    grad_BO = torch.randn(100, 4) * 10 ** torch.empty(100, 4).uniform_(-8, 4)
    order_B = torch.randperm(100)
    y_BO, where_BO = device.farthest(x_BI, w_OI, tile=LARGE)
    dx_BI, dw_OI = device.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
    shuffled = (t[order_B] for t in (grad_BO, x_BI))
    dx_shuffled, dw_shuffled = device.farthest_backward(*shuffled, w_OI, y_BO[order_B], where_BO[order_B])
    assert torch.equal(dx_BI[order_B], dx_shuffled)
    assert torch.equal(dw_OI, dw_shuffled)
    truth = true_gradients(grad_BO, x_BI, w_OI, math.inf)
    assert error(dx_BI, truth[0]) <= 1e-7 and error(dw_OI, truth[1]) <= 1e-7
    float_sums = [torch.zeros(4, 6).index_put_(tuple(_cells(x, w_OI)), g.flatten(), accumulate=True)
                  for x, g in ((x_BI, grad_BO), (x_BI[order_B], grad_BO[order_B]))]  # fmt: skip
    assert not torch.equal(*float_sums)


def _cells(x_BI: Tensor, w_OI: Tensor) -> tuple[Tensor, Tensor]:
    i_BO = differences(x_BI, w_OI).abs().argmax(-1)
    return torch.arange(len(w_OI)).expand_as(i_BO).flatten(), i_BO.flatten()


@pytest.mark.parametrize("value", (math.inf, -math.inf, math.nan))
def test_gradients_that_are_not_finite_arrive_alone(value):
    x_BI, w_OI = some(3, 6, 4)
    grad_BO = torch.ones(3, 4)
    y_BO, where_BO = device.farthest(x_BI, w_OI, tile=LARGE)
    before = device.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
    grad_BO[1, 2] = value
    after = device.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
    i = differences(x_BI, w_OI)[1, 2].abs().argmax()
    for old, new, place in zip(before, after, ((1, i), (2, i)), strict=True):
        assert not new[place].isfinite()
        new[place] = old[place]
        assert torch.equal(old, new)


@pytest.mark.parametrize("grad", (1e-38, 1e-44, 0.0, 1e38))
def test_small_and_large_gradients_scatter(grad):
    x_BI, w_OI = some(3, 6, 4)
    y_BO, where_BO = device.farthest(x_BI, w_OI, tile=LARGE)
    grad_BO = torch.full((3, 4), grad)
    dx_BI, _ = device.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
    truth_BI, _ = true_gradients(grad_BO, x_BI, w_OI, math.inf)
    assert torch.equal(dx_BI, truth_BI.float())


@pytest.mark.parametrize("p", (8, 1000))
def test_tiles_strips_and_slabs_change_nothing_but_the_order_of_sums(p, monkeypatch):
    x_BI, w_OI = some(11, 7, 10)
    y_BO = device.distance_forward(x_BI, w_OI, p, tile=LARGE)
    assert torch.equal(y_BO, device.distance_forward(x_BI, w_OI, p, tile=LARGE))
    assert torch.equal(y_BO, device.distance_forward(x_BI, w_OI, p, tile=SMALL))
    first = device.distance_backward(y_BO, x_BI, w_OI, y_BO, p, strip=Strip(4, 8))
    again = device.distance_backward(y_BO, x_BI, w_OI, y_BO, p, strip=Strip(4, 8))
    monkeypatch.setattr(device, "_PARTIAL_BYTES", 2 * x_BI.numel() * x_BI.element_size())
    other = device.distance_backward(y_BO, x_BI, w_OI, y_BO, p, strip=Strip(4, 16, splits=3))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert error(c, a) <= 2e-6


@pytest.mark.parametrize("shape", ((1, 1, 1), (5, 8, 7), (9, 13, 4)))
def test_intervals_at_infinity_are_subtractions_and_maxima(shape):
    x_BI, w_OI = some(*shape)
    lower_BI, upper_BI = x_BI - 0.3, x_BI + 0.3
    if shape[0] > 3:
        lower_BI[1, 0], upper_BI[2, 1], w_OI[3, 0] = math.nan, math.inf, math.nan
    below_BOI, above_BOI = differences(lower_BI, w_OI), differences(upper_BI, w_OI)
    lower_BO, upper_BO = device.interval_forward(lower_BI, upper_BI, w_OI, math.inf, tile=LARGE)
    far_BO = torch.maximum(above_BOI, -below_BOI).amax(-1)
    near_BO = torch.maximum(below_BOI, -above_BOI).amax(-1).clamp(min=0)
    assert torch.equal(upper_BO.nan_to_num(nan=-9), far_BO.nan_to_num(nan=-9))
    assert torch.equal(lower_BO.nan_to_num(nan=-9), near_BO.nan_to_num(nan=-9))


@pytest.mark.parametrize("p", (8, 1000))
def test_intervals_at_finite_powers(p):
    x_BI, w_OI = some(6, 10, 7)
    lower_BI, upper_BI = x_BI - 0.9, x_BI + 0.9
    lower_BO, upper_BO = device.interval_forward(lower_BI, upper_BI, w_OI, p, tile=LARGE)
    below_BOI, above_BOI = differences(lower_BI, w_OI), differences(upper_BI, w_OI)
    assert error(upper_BO, norm(torch.maximum(above_BOI, -below_BOI), p)) <= 1e-6
    assert error(lower_BO, norm(torch.maximum(below_BOI, -above_BOI).clamp(min=0), p)) <= 1e-6
    zero_BO, _ = device.interval_forward(w_OI[:6] - 1, w_OI[:6] + 1, w_OI, p, tile=LARGE)
    assert torch.equal(zero_BO.diagonal(), torch.zeros(6))


@pytest.mark.parametrize("p", (8, math.inf))
def test_an_empty_batch(p):
    x_BI, w_OI = torch.empty(0, 4), torch.ones(3, 4)
    y_BO = device.distance_forward(x_BI, w_OI, p)
    assert y_BO.shape == (0, 3)
    dx_BI, dw_OI = device.distance_backward(y_BO, x_BI, w_OI, y_BO, p)
    assert dx_BI.shape == (0, 4) and torch.equal(dw_OI, torch.zeros(3, 4))


@pytest.mark.parametrize("p", (8.0, math.inf))
def test_through_the_public_function(p, monkeypatch):
    monkeypatch.setenv("LIPCERT_KERNELS", "triton")
    x_BI, w_OI = (t.requires_grad_() for t in some(3, 5, 4))
    assert kernels.backend() == "triton"
    y_BO = kernels.distance(x_BI, w_OI, p)
    found = torch.autograd.grad(y_BO.sum(), (x_BI, w_OI))
    for part, truth in zip(found, true_gradients(torch.ones(3, 4), x_BI.detach(), w_OI.detach(), p), strict=True):
        assert error(part, truth) <= 1e-5
