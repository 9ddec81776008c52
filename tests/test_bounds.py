"""norm_bound against independent truth: exact integers where matrices are small, LAPACK elsewhere, no tolerance.

Every convolution is bounded twice, as one matrix and on the torus (small ones would otherwise never reach the torus).
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from truth import assert_encloses, layer_matrix

from lipcert.bounds import Enclosure, norm_bound
from lipcert.bounds import enclosure as bounds

PATHS = ["matrix", "torus"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    if request.param == "torus":
        monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 0)
    return request.param


def conv(*arguments, seed=0, **settings_of_layer) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(*arguments, **settings_of_layer, bias=False)


def check(layer, shape, excess=0.5) -> Enclosure:
    enclosure = norm_bound(layer, shape)
    matrix = layer_matrix(layer, shape)
    assert_encloses(matrix, enclosure.lower, enclosure.upper)
    assert enclosure.upper <= np.linalg.norm(matrix, 2) * (1 + excess)
    return enclosure


# (layer, input shape): every stride, padding and shape that has its own formula
CASES = {
    "5x5 s2 p2": (conv(2, 3, 5, stride=2, padding=2), (2, 8, 8)),
    "3x3 s2 p1": (conv(2, 3, 3, stride=2, padding=1), (2, 8, 8)),
    "3x3 s2 p1 odd": (conv(2, 3, 3, stride=2, padding=1), (2, 7, 9)),
    "4x4 s4": (conv(2, 5, 4, stride=4), (2, 8, 8)),
    "4x4 s4, stride does not divide": (conv(2, 5, 4, stride=4), (2, 9, 11)),
    "k4 s2 p1": (conv(2, 2, 4, stride=2, padding=1), (2, 8, 8)),
    "k4 s2 p1 odd": (conv(2, 2, 4, stride=2, padding=1), (2, 7, 9)),
    "k3 s3 p1": (conv(2, 2, 3, stride=3, padding=1), (2, 7, 8)),
    "k2 s2 p1": (conv(2, 2, 2, stride=2, padding=1), (2, 6, 7)),
    "k2 s3": (conv(1, 2, 2, stride=3), (1, 8, 8)),
    "rectangular": (conv(2, 3, (3, 5), stride=(1, 2), padding=(1, 0)), (2, 5, 9)),
    "one row": (conv(2, 3, (1, 3), padding=(0, 1)), (2, 4, 6)),
    "one column": (conv(2, 3, (3, 1), padding=(1, 0)), (2, 4, 6)),
    "1x1": (conv(3, 5, 1), (3, 4, 4)),
    "1x1 padded": (conv(3, 5, 1, padding=2), (3, 2, 4)),
    "groups": (conv(4, 6, 3, padding=1, groups=2), (4, 4, 5)),
    "depthwise": (conv(3, 3, 3, padding=1, groups=3), (3, 4, 5)),
    "dilation": (conv(2, 2, 3, padding=2, dilation=2), (2, 5, 6)),
    "dilation and stride": (conv(2, 2, 3, padding=1, dilation=(2, 1), stride=(2, 3)), (2, 7, 8)),
    "no padding": (conv(2, 2, 3), (2, 6, 5)),
    "more padding than kernel": (conv(2, 2, 3, padding=4), (2, 3, 2)),
    "kernel larger than input": (conv(1, 2, 5, padding=2), (1, 2, 3)),
    "one pixel": (conv(2, 3, 3, padding=1), (2, 1, 1)),
    "one output": (conv(2, 3, 4), (2, 4, 4)),
    "same": (conv(2, 2, (2, 4), padding="same"), (2, 5, 5)),
    "valid": (conv(2, 2, 3, padding="valid"), (2, 5, 5)),
    "circular": (conv(2, 2, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
    "circular stride": (conv(2, 2, 4, padding=1, stride=2, padding_mode="circular"), (2, 6, 4)),
    "circular wraps onto itself": (conv(1, 2, 5, padding=2, padding_mode="circular"), (1, 3, 2)),
    "circular unpadded": (conv(2, 2, 3, padding_mode="circular"), (2, 5, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CASES)
def test_truth_helper_agrees_with_torch(name):
    layer, shape = CASES[name]
    image = torch.randn(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = layer.double()(image).flatten().numpy()
        layer.float()
    np.testing.assert_allclose(layer_matrix(layer, shape) @ image.flatten().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_every_geometry_is_enclosed(name, path):
    # The torus is meant for images much larger than the kernel: here it is loose, and only has to be right.
    check(*CASES[name], excess=2e-9 if path == "matrix" and "circular" not in name else 3.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 9), (9, 5), (12, 12)])
def test_dense_is_tight(shape):
    torch.manual_seed(2)
    assert check(nn.Linear(*shape), shape[:1], excess=2e-9).method == "matrix"


@pytest.mark.parametrize("shape", [(300, 120), (90, 257), (512, 512)])
def test_dense_is_tight_in_the_middle(shape):
    torch.manual_seed(2)
    enclosure = check(nn.Linear(*shape), shape[:1], excess=2e-9)
    assert enclosure.lower >= enclosure.upper * (1 - 2e-9)


def test_equal_singular_values():
    torch.manual_seed(0)
    layer = nn.Linear(200, 200)
    nn.init.orthogonal_(layer.weight)
    check(layer, (200,), excess=1e-6)


def box(taps: tuple[int, int]) -> nn.Conv2d:
    layer = conv(1, 1, taps, padding=tuple(k // 2 for k in taps))
    layer.weight.data.fill_(1.0)
    return layer


@pytest.mark.parametrize("size", [2, 5, 16])
def test_box_filter_is_tight_on_the_twisted_torus(size, monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 0)
    truth = (1 + 2 * math.cos(math.pi / (size + 1))) ** 2
    assert truth * (1 - 1e-14) < norm_bound(box((3, 3)), (1, size, size)).upper < truth * (1 + 2e-9)


def test_circular_is_exact():
    torch.manual_seed(0)
    check(conv(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 5), excess=2e-9)


def test_trained_like_layers_are_tight():
    for size, excess in ((16, 1.004), (8, 1.015)):
        layer = conv(32, 32, 3, padding=1)
        with torch.no_grad():
            layer.weight.copy_(0.35 * torch.randn(32, 32, 3, 3) / math.sqrt(9 * 32))
            layer.weight[:, :, 1, 1] += torch.eye(32)
        enclosure = norm_bound(layer, (32, size, size))
        assert enclosure.lower < enclosure.upper < excess * enclosure.lower


@pytest.mark.parametrize("name", ["5x5 s2 p2", "k4 s2 p1 odd", "groups", "circular", "dilation", "few outputs"])
def test_lower_end_is_close(name, path):
    layer, shape = {**CASES, "few outputs": (conv(4, 1, 3, stride=3, dilation=2), (4, 9, 10))}[name]
    assert norm_bound(layer, shape).lower >= np.linalg.norm(layer_matrix(layer, shape), 2) * (1 - 1e-3)


# What the error terms are for


def dense(matrix) -> nn.Linear:
    values = torch.as_tensor(matrix, dtype=torch.float64)
    layer = nn.Linear(values.shape[1], values.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = values
    return layer


@pytest.mark.parametrize("entry", [1.5e-162, math.sqrt(0.1), 5e-324, 2.2e-310, 1e-300, 1e300])
@pytest.mark.parametrize("length", [3, 1000])
@pytest.mark.parametrize("flush", [False, True])
def test_long_rows_of_awkward_numbers(entry, length, flush):
    layer = dense([[entry] * length])
    torch.set_flush_denormal(flush)
    try:
        enclosure = norm_bound(layer, (length,))
    finally:
        torch.set_flush_denormal(False)
    square = length * Fraction(entry) ** 2
    assert Fraction(enclosure.lower) ** 2 <= square <= Fraction(enclosure.upper) ** 2
    if entry > 1e-300:
        assert Fraction(enclosure.upper) ** 2 < square * (1 + Fraction(4, 10**9))


def test_bounds_beyond_float64_are_infinite():
    enclosure = norm_bound(dense([[1.7e308] * 4]), (4,))
    assert enclosure.upper == math.inf and Fraction(enclosure.lower) ** 2 <= 4 * Fraction(1.7e308) ** 2


def test_entries_of_very_different_size():
    assert_encloses(*_enclosed(dense([[1.0, 1e-200], [1e-308, 1e-12]]), (2,)))
    assert_encloses(*_enclosed(dense([[1e308, 1e-308], [5e-324, 1e300]]), (2,)))


def _enclosed(layer, shape):
    enclosure = norm_bound(layer, shape)
    return layer_matrix(layer, shape), enclosure.lower, enclosure.upper


def test_zero_weights():
    layer = conv(2, 2, 3)
    layer.weight.data.zero_()
    assert norm_bound(layer, (2, 5, 5)) == Enclosure(0.0, 0.0, "zero")


@pytest.mark.parametrize("power", [-900, -149, -3, 1, 40, 800])
@pytest.mark.parametrize("name", ["3x3 s2 p1", "circular", "1x1"])
def test_powers_of_two_scale_exactly(name, power, path):
    layer, shape = CASES[name]
    plain = norm_bound(layer, shape)
    scaled = copy.deepcopy(layer)
    scaled.weight.data = layer.weight.data.double() * 2.0**power
    assert norm_bound(scaled, shape) == Enclosure(plain.lower * 2.0**power, plain.upper * 2.0**power, plain.method)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2)])
def test_the_smallest_images(shape, path):
    check(conv(1, 1, 3, padding=1), shape, excess=10.0)


def test_the_same_bytes_every_time():
    layer, shape = CASES["k4 s2 p1 odd"]
    assert norm_bound(layer, shape) == norm_bound(layer, shape)


def test_callers_modes_change_nothing():
    layer, shape = CASES["5x5 s2 p2"]
    plain = norm_bound(layer, shape)
    with torch.inference_mode():
        assert norm_bound(layer, shape) == plain
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm_bound(layer, shape) == plain
    assert torch.is_grad_enabled() and layer.weight.grad is None


def test_adjoint_has_the_same_norm():
    layer = conv(3, 2, 3, padding=1)
    adjoint = conv(2, 3, 3, padding=1)
    adjoint.weight.data = layer.weight.data.transpose(0, 1).flip(2, 3).contiguous()
    first, second = norm_bound(layer, (3, 5, 6)), norm_bound(adjoint, (2, 5, 6))
    assert first.lower <= second.upper and second.lower <= first.upper


# Random geometries

sizes = st.integers(1, 6)
geometries = st.fixed_dictionaries(
    {
        "outs": st.integers(1, 3),
        "ins": st.integers(1, 2),
        "groups": st.integers(1, 2),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "size": st.tuples(sizes, sizes),
        "power": st.sampled_from([0, -40, -600, 500]),
        "positive": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


def check_geometry(case, monkeypatch):
    for axis in range(2):
        assume(case["size"][axis] + 2 * case["padding"][axis] > case["dilation"][axis] * (case["kernel"][axis] - 1))
    groups = case["groups"]
    geometry = (case["kernel"], case["stride"], case["padding"], case["dilation"])
    layer = nn.Conv2d(case["ins"] * groups, case["outs"] * groups, *geometry, groups, dtype=torch.float64)
    generator = torch.Generator().manual_seed(case["seed"])
    weight = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) * 2.0 ** case["power"]
    layer.weight.data = weight.abs() if case["positive"] else weight
    shape = (case["ins"] * groups, *case["size"])
    matrix = layer_matrix(layer, shape) * 2.0 ** -case["power"]
    for entries in (1024**2, 0):
        monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", entries)
        enclosure = norm_bound(layer, shape)
        ends = (end * 2.0 ** -case["power"] for end in (enclosure.lower, enclosure.upper))
        assert_encloses(matrix, *ends)


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@settings(max_examples=120, derandomize=True, deadline=None)
@given(case=geometries)
def test_random_geometries_are_enclosed(module_monkeypatch, case):
    check_geometry(case, module_monkeypatch)


@pytest.mark.slow
@settings(max_examples=3000, derandomize=True, deadline=None)
@given(case=geometries)
def test_many_random_geometries_are_enclosed(module_monkeypatch, case):
    check_geometry(case, module_monkeypatch)
