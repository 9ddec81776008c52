"""Effort "exact": proofs in whole numbers, against exact truth; what cannot be proven that way is refused by name."""

from __future__ import annotations

import builtins
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from truth import layer_matrix, norm_is_below

from lipcert.bounds import banded, integers, norm_bound
from lipcert.bounds import enclosure as bounds
from lipcert.bounds.banded import BandedGram
from lipcert.bounds.operators import read_operator
from lipcert.bounds.rounding import TorchArithmetic, root_up

pytest.importorskip("flint", reason="effort='exact' needs python-flint: pip install 'lipcert[exact]'")


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "dense": (nn.Linear(9, 5), (9,)),
        "tall": (nn.Linear(4, 11), (4,)),
        "one row": (nn.Linear(7, 1), (7,)),
        "double": (nn.Linear(6, 6, dtype=torch.float64), (6,)),
        "3x3": (nn.Conv2d(2, 3, 3, padding=1), (2, 4, 3)),
        "stride": (nn.Conv2d(2, 2, 4, stride=2, padding=1), (2, 5, 4)),
        "groups": (nn.Conv2d(4, 2, 3, padding=1, groups=2), (4, 3, 3)),
        "dilation": (nn.Conv2d(1, 3, 3, padding=2, dilation=2), (1, 5, 4)),
        "patches": (nn.Conv2d(2, 3, 2, stride=2), (2, 6, 4)),
    }


@pytest.fixture(params=["matrix", "banded"])
def path(request, monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 1024**2 if request.param == "matrix" else 0)
    monkeypatch.setattr(banded, "_BLOCK_SIZES", (4, 4))
    return request.param


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("power", [0, -40, 300])
def test_exact_truth_is_enclosed_tightly(name, power, path):
    layer, shape = layers()[name]
    layer.double().weight.data *= 2.0**power
    enclosure = norm_bound(layer, shape, effort="exact")
    matrix = layer_matrix(layer, shape)
    assert norm_is_below(matrix, enclosure.upper) and not norm_is_below(matrix, enclosure.lower)
    assert enclosure.upper <= enclosure.lower * (1 + 2e-9)
    separate = layer.weight.ndim == 2 or name == "patches"
    assert enclosure.method == ("exact matrix" if separate else f"exact {path}")
    vector = enclosure.vector.double().flatten().numpy()
    assert enclosure.lower == pytest.approx(np.linalg.norm(matrix @ vector) / np.linalg.norm(vector), rel=1e-13)


@pytest.mark.parametrize("name", layers())
def test_it_agrees_with_tight(name, path):
    layer, shape = layers()[name]
    exactly, tightly = (norm_bound(layer, shape, effort=effort) for effort in ("exact", "tight"))
    assert exactly.lower <= tightly.upper and tightly.lower <= exactly.upper


def test_hostile_floating_point_changes_nothing_but_the_factor(path, monkeypatch):
    """Products that are wrong by 1 % give a poor factor and a poor vector; the two ends still enclose the norm."""
    honest = TorchArithmetic.product
    monkeypatch.setattr(TorchArithmetic, "product", lambda self, left, right: 0.99 * honest(self, left, right))
    for name in ("dense", "3x3"):
        layer, shape = layers()[name]
        matrix, enclosure = layer_matrix(layer, shape), norm_bound(layer, shape, effort="exact")
        assert norm_is_below(matrix, enclosure.upper) and not norm_is_below(matrix, enclosure.lower)


@pytest.mark.parametrize("kind", ["none", "zero", "garbage", "nan", "huge"])
def test_any_factor_gives_a_bound(kind):
    matrix = np.random.default_rng(0).standard_normal((6, 4)) / 4
    numbers, lossless = integers.on_grid(torch.from_numpy(matrix), 60)
    cut = numbers.astype(object) / 2**60
    factor = {
        "none": None,
        "zero": torch.zeros(4, 4, dtype=torch.float64),
        "garbage": torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        "nan": torch.full((4, 4), math.nan, dtype=torch.float64),
        "huge": torch.full((4, 4), 1e300, dtype=torch.float64),
    }[kind]
    for square in (0.0, 1.0, 7.5):
        upper = root_up(integers.matrix_squared_exactly(numbers, factor, square, 60))
        assert norm_is_below(cut.astype(float), upper), square
    assert not lossless or np.array_equal(cut.astype(float), matrix)


@pytest.mark.parametrize("bits", [0, 1, 24, 52, 60])
def test_the_grid_cuts_towards_zero(bits):
    values = [0.0, -0.0, 1.0, -1.0, 1.75, 0.1, -0.1, 2.0**-52, -(2.0**-60), 1.5 * 2.0**-40, 5e-324, 1e-310]
    values.append(math.nextafter(2, 0))
    numbers, lossless = integers.on_grid(torch.tensor(values, dtype=torch.float64), bits)
    wanted = [math.trunc(Fraction(value) * 2**bits) for value in values]
    assert numbers.tolist() == wanted
    assert lossless == all(Fraction(value) * 2**bits == number for value, number in zip(values, wanted, strict=True))
    assert integers.on_grid(torch.tensor([0.5, 0.25], dtype=torch.float64), 2)[1]


@pytest.mark.parametrize("bad", [2.0, math.inf, math.nan])
def test_numbers_off_the_grid_are_refused(bad):
    with pytest.raises(ValueError, match="scale them"):
        integers.on_grid(torch.tensor([bad], dtype=torch.float64), 52)


def test_what_the_grid_cuts_off_is_bounded():
    generator = torch.Generator().manual_seed(0)
    weights = 2 - torch.rand(1, 3, 4, 2, 2, generator=generator, dtype=torch.float64) * 2.0**-12
    numbers, lossless = integers.on_grid(weights, 8)
    layer = nn.Conv2d(4, 3, 2, padding=1, bias=False, dtype=torch.float64)
    layer.weight.data = weights[0] - torch.from_numpy(numbers[0]) * 2.0**-8
    truth, loss = np.linalg.norm(layer_matrix(layer, (4, 5, 5)), 2), integers.grid_loss(weights, 8, lossless)
    assert not lossless and truth <= loss <= 1.3 * truth
    assert integers.grid_loss(weights, 8, True) == 0


def test_what_the_grid_cuts_off_is_counted(path, monkeypatch):
    layer, shape = layers()["3x3"]
    plain = norm_bound(layer, shape, effort="exact")
    unit = 2.0 ** read_operator(layer, shape, None).scale
    monkeypatch.setattr(bounds, "grid_loss", lambda *arguments: Fraction(1, 8))
    shifted = norm_bound(layer, shape, effort="exact")
    assert shifted.upper == pytest.approx(plain.upper + unit / 8, rel=1e-12)
    assert shifted.lower == pytest.approx(plain.lower - unit / 8, rel=1e-12)


def test_stretch_of_large_numbers_is_exact():
    numbers = np.random.default_rng(0)
    weights, vector = numbers.integers(-(2**60), 2**60, (1, 5, 7)), numbers.integers(-(2**24), 2**24, (7, 1))
    found = integers.stretch_exactly(weights, 60, vector[None], vector)
    outputs = weights[0].astype(object) @ vector.astype(object)
    square = Fraction(int((outputs**2).sum()), int((vector.astype(object) ** 2).sum())) / 4**60
    assert 0 <= square - found**2 <= square * Fraction(1, 10**30)


def test_every_product_of_the_band_is_checked():
    """Where one pair of pixels is left out of the exact Gram matrix, the factor no longer fits it."""
    layer, shape = layers()["3x3"]
    operator = read_operator(layer, shape, None)
    truth = float(np.linalg.norm(layer_matrix(layer, shape), 2)) / 2.0**operator.scale
    square = truth**2 * (1 + 1e-6)
    gram = BandedGram(operator.weights_GOIKL[0], operator.axes, TorchArithmetic())
    assert float(integers.banded_squared_exactly(gram, square, 48)) < truth**2 * (1 + 2e-6)
    rows = [gram.gram_row(index) for index in range(gram.blocks)]
    gram.gram_row = lambda index: rows[index].clone()
    for cell, pairs in enumerate(gram.neighbours):
        for pair in list(pairs):
            pairs.remove(pair)
            assert float(integers.banded_squared_exactly(gram, square, 48)) > truth**2 * (1 + 1e-3), (cell, pair)
            pairs.append(pair)


def test_circular_padding_is_refused(monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 0)
    with pytest.raises(ValueError, match="irrational"):
        norm_bound(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 5, 5), effort="exact")


def test_without_flint_the_way_out_is_named(monkeypatch):
    honest = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "flint":
            raise ImportError(name)
        return honest(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'lipcert\[exact\]'"):
        norm_bound(nn.Linear(3, 3), (3,), effort="exact")


def test_the_same_bytes_every_time():
    layer, shape = layers()["3x3"]
    first, second = (norm_bound(layer, shape, effort="exact") for _ in range(2))
    assert first == second and torch.equal(first.vector, second.vector)
