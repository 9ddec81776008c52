"""Fast convolutions and MinMax of `lipcert.kernels` against torch's own operations, in float64 or bit for bit."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from lipcert import kernels
from lipcert.config import TrainConfig
from lipcert.data import load_dataset
from lipcert.kernels import native, product
from lipcert.orthogonal import cholesky_orthogonalise
from lipcert.run import Run, TrainingError

needs_compiler = pytest.mark.skipif(kernels.problem() is not None, reason=str(kernels.problem()))
SIZES = [  # batch, inputs, outputs, height, width; tiles are 4 x 4, blocks of them 32, vectors at most 16 channels
    (3, 32, 64, 16, 16), (5, 80, 80, 8, 8), (2, 64, 32, 7, 13), (1, 16, 16, 3, 3), (9, 32, 32, 16, 16),
    (1, 16, 32, 1, 1),
]  # fmt: skip


def problem(size, dtype=torch.float32):
    """Image, kernel, bias and a gradient of the output."""
    batch, inputs, outputs, height, width = size
    generator = torch.Generator().manual_seed(sum(size))
    x, w, b, g = (
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in [
            (batch, inputs, height, width),
            (outputs, inputs, 3, 3),
            (outputs,),
            (batch, outputs, height, width),
        ]
    )
    return x.requires_grad_(), (w / (9 * inputs) ** 0.5).requires_grad_(), b.requires_grad_(), g


def relative(found, true):
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm())


@needs_compiler
@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_winograd_is_the_convolution_of_float64(size, minmax):
    x, w, b, g = problem(size)
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    true = F.conv2d(*exact, padding=1)
    if minmax:
        first, second = true.chunk(2, 1)
        true = torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)
    slopes = torch.autograd.grad(true, exact, g.double())
    with kernels.fast(True):
        y = kernels.conv3x3(x, w, b, minmax)
    assert "Winograd" in str(y.grad_fn) or "MinMax" in str(y.grad_fn)
    assert y.is_contiguous(memory_format=torch.channels_last) and relative(y, true) < 5e-6
    assert (y - true).abs().max() < 2e-5 * true.abs().max()
    for found, slope in zip(torch.autograd.grad(y, (x, w, b), g), slopes, strict=True):
        assert relative(found, slope) < 1e-5


@needs_compiler
@pytest.mark.parametrize("minmax", [False, True])
def test_threads_and_layouts_change_no_bit(minmax):
    """Of the weights' gradient torch takes the last sum, in an order that may depend on threads."""
    x, w, b, g = problem((37, 32, 32, 9, 10))
    results, before = [], torch.get_num_threads()
    try:
        for threads, layout in itertools.product((1, 2, 5), (torch.contiguous_format, torch.channels_last)):
            torch.set_num_threads(threads)
            with kernels.fast(True):
                y = kernels.conv3x3(x.to(memory_format=layout), w, b, minmax)
            results.append((y, *torch.autograd.grad(y, (x, w, b), g)))
    finally:
        torch.set_num_threads(before)
    y, dx, dw, db = results[0]
    for later in results[1:]:
        assert torch.equal(y, later[0]) and torch.equal(dx, later[1]) and torch.equal(db, later[3])
        assert relative(later[2], dw.double()) < 1e-6


@needs_compiler
def test_one_bad_number_stays_visible():
    x, w, b, _ = problem((2, 16, 16, 8, 8))
    for bad in (torch.nan, torch.inf):
        with torch.no_grad():
            spoilt = x.clone()
            spoilt[1, 3, 4, 4] = bad
        with kernels.fast(True):
            y = kernels.conv3x3(spoilt.requires_grad_(), w, b)
        assert y[0].isfinite().all() and not y[1].isfinite().all()


@pytest.mark.parametrize(
    ("size", "dtype", "kernel"),
    [
        ((2, 3, 16, 8, 8), torch.float32, 3),  # three channels are no vector
        ((2, 16, 16, 8, 8), torch.float64, 3),
        ((2, 16, 16, 8, 8), torch.float32, 5),
        ((0, 16, 16, 8, 8), torch.float32, 3),
    ],
)
def test_elsewhere_it_is_the_ordinary_convolution(size, dtype, kernel):
    x, w, b, _ = problem(size, dtype)
    if kernel == 5:
        w = F.pad(w, [1] * 4)
    with kernels.fast(True):
        assert torch.equal(kernels.conv3x3(x, w, b), F.conv2d(x, w, b, padding=1))


def test_unless_asked_for_it_is_the_ordinary_convolution():
    x, w, b, _ = problem(SIZES[0])
    assert torch.equal(kernels.conv3x3(x, w, b), F.conv2d(x, w, b, padding=1))
    with kernels.fast(True), kernels.fast(False):
        assert torch.equal(kernels.conv3x3(x, w, b), F.conv2d(x, w, b, padding=1))


def test_under_autocast_products_are_those_of_bfloat16():
    x, w, b, _ = problem(SIZES[0])
    with kernels.fast(True), torch.autocast("cpu", torch.bfloat16):
        assert kernels.conv3x3(x, w, b).dtype == torch.bfloat16


def minmax_by_hand(x, g):
    """Value and gradient, the latter by the definition: what went up to the larger comes back to it."""
    first, second = x.chunk(2, 1)
    high, low = g.chunk(2, 1)
    swapped = first < second
    value = torch.cat([torch.where(swapped, second, first), torch.where(swapped, first, second)], 1)
    return value, torch.cat([torch.where(swapped, low, high), torch.where(swapped, high, low)], 1)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(4, 6), (3, 64, 5, 5), (2, 34, 7, 3), (1, 2, 1, 1), (300, 128, 16, 16), (0, 4)], ids=str
)
def test_minmax_moves_every_bit_as_it_should(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, torch.inf, -torch.inf, 3.5, -2.25])
    for layout in (torch.contiguous_format, torch.channels_last)[: 2 if len(shape) == 4 else 1]:
        x = values[torch.randint(0, len(values), shape, generator=generator)].to(dtype).to(memory_format=layout)
        g = torch.randn(*shape, generator=generator).to(dtype)
        y = kernels.minmax(x.requires_grad_())
        assert "Native" in str(y.grad_fn) or 0 in shape
        value, slope = minmax_by_hand(x.detach(), g)
        (found,) = torch.autograd.grad(y, x, g)
        same = torch.equal(y.detach().to(torch.float64), value.to(torch.float64))
        assert same and torch.equal(found, slope) and torch.equal(y.detach().signbit(), value.signbit())


@needs_compiler
def test_minmax_of_what_is_not_dense_and_of_nan():
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    part = x[:, :, ::2]
    value, _ = minmax_by_hand(part.detach(), part.detach())
    assert torch.equal(kernels.minmax(part), value)
    bad = torch.full((2, 4), torch.nan, requires_grad=True)
    y = kernels.minmax(bad)
    assert y.isnan().all()
    (slope,) = torch.autograd.grad(y, bad, torch.arange(8.0).view(2, 4))
    assert torch.equal(slope, torch.arange(8.0).view(2, 4))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 33, 65), (97, 1030, 130), (8, 16, 128), (200, 5, 300)], ids=str)
def test_products_of_whole_numbers_are_exact(size, dtype):
    rows, columns, depth = size
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-99, 100, (rows, depth), generator=generator)
    b = torch.randint(-99, 100, (depth, columns), generator=generator)
    true = (a @ b).to(dtype)  # below 2^24: nothing is rounded in any order
    for left, right in itertools.product((a, a.T.contiguous().T), (b, b.T.contiguous().T)):
        assert torch.equal(product.matmul(left.to(dtype), right.to(dtype)), true)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "kernel"),
    [
        ((1, 1), (1, 1), 1, (3, 3)),
        ((2, 1), (1, 2), 1, (3, 2)),
        ((3, 4), (1, 1), 2, (5, 1)),
        ((4, 4), (1, 1), 4, (4, 4)),
    ],
)
def test_convolutions_of_whole_numbers_are_exact(stride, dilation, groups, kernel, dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-9, 10, (3, 8, 17, 20), generator=generator).double()
    w = torch.randint(-9, 10, (12, 8 // groups, *kernel), generator=generator).double()
    true = F.conv2d(x, w, None, stride, 0, dilation, groups)
    for images in (x, x.to(memory_format=torch.channels_last)):
        assert torch.equal(product.conv2d(images.to(dtype), w.to(dtype), stride, dilation, groups), true.to(dtype))


@needs_compiler
def test_products_do_not_depend_on_batch_place_or_threads():
    torch.manual_seed(2)
    x, w = torch.randn(9, 16, 10, 10, dtype=torch.float64), torch.randn(24, 16, 3, 3, dtype=torch.float64)
    whole, before = product.conv2d(x, w, (1, 1), (1, 1), 1), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            parts = [product.conv2d(part, w, (1, 1), (1, 1), 1) for part in (x[:1], x[1:6], x[6:])]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_what_does_not_fit_together_is_refused():
    for a, b in [((3, 4), (5, 6)), ((2, 3, 4), (4, 5)), ((3, 4), (4,)), ((4,), (4, 5))]:
        with pytest.raises(ValueError, match=r"must be \(M, K\) and \(K, N\)"):
            product.matmul(torch.ones(a), torch.ones(b))
    shapes = [((2, 4, 6, 6), (3, 5, 3, 3), 1), ((2, 4, 6, 6), (3, 2, 3, 3), 2), ((2, 4, 6, 2), (3, 4, 3, 3), 1)]
    for x, w, groups in shapes:
        with pytest.raises(ValueError, match="channels must be equal, and the kernel no larger"):
            product.conv2d(torch.ones(x), torch.ones(w), (1, 1), (1, 1), groups)


@needs_compiler
def test_products_keep_what_is_no_number():
    a = torch.ones(3, 4, dtype=torch.float64)
    b = torch.ones(4, 5, dtype=torch.float64)
    b[2, 1], b[0, 3] = torch.nan, torch.inf
    c = product.matmul(a, b)
    assert c[:, 1].isnan().all() and c[:, 3].isinf().all() and (c[:, [0, 2, 4]] == 4).all()


@needs_compiler
@pytest.mark.parametrize("shape", [(70, 40), (40, 700), (3, 20, 30)], ids=str)
def test_orthogonal_weights_and_their_gradient(shape, monkeypatch):
    calls, matmul = [], product.matmul
    monkeypatch.setattr(product, "matmul", lambda a, b: calls.append(None) or matmul(a, b))
    torch.manual_seed(3)
    raw, slope = torch.randn(shape).requires_grad_(), torch.randn(shape)
    found = []
    for on in (False, True):
        with kernels.fast(on):
            weight = cholesky_orthogonalise(raw)
        forward = len(calls)
        found.append((weight, *torch.autograd.grad(weight, raw, slope)))
        assert (len(calls) > forward) == on  # though the context is over by then
    exact = raw.detach().double().requires_grad_()
    true = cholesky_orthogonalise(exact)
    (gradient,) = torch.autograd.grad(true, exact, slope.double())
    for weight, got in found:
        assert relative(weight, true) < 1e-5 and relative(got, gradient) < 1e-5


def test_without_a_compiler_everything_runs(monkeypatch, tmp_path):
    x, w, b, g = problem(SIZES[0])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    native.build.cache_clear()
    try:
        assert "no C compiler" in kernels.problem()
        with kernels.fast(True):
            y = kernels.conv3x3(x, w, b, then_minmax=True)
        assert torch.equal(y, kernels.minmax(F.conv2d(x, w, b, padding=1)))
        y.backward(g)
        with pytest.raises(TrainingError, match=r"kernels='native' on cpu: no C compiler.*use kernels=torch"):
            Run(TrainConfig(dataset="digits", steps=1, kernels="native", device="cpu"), load_dataset("digits"))
    finally:
        native.build.cache_clear()


def test_minmax_needs_pairs():
    with pytest.raises(ValueError, match="3 channels: must be even"):
        kernels.minmax(torch.rand(2, 3, 4, 4))


@needs_compiler
def test_the_default_dtype_does_not_matter():
    x, w, b, _ = problem(SIZES[0])
    with kernels.fast(True):
        expected = kernels.conv3x3(x, w, b)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(kernels.conv3x3(x, w, b), expected)
        finally:
            torch.set_default_dtype(torch.float32)
