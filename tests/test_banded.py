"""Effort "tight": the block-banded proof. Each term under hostile arithmetic, any witness, any cut into blocks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hostile import ForgetfulArithmetic, HostileArithmetic
from torch import Tensor, nn
from truth import layer_matrix, norm_is_below

from lipcert.bounds import banded, norm_bound
from lipcert.bounds import enclosure as bounds
from lipcert.bounds.banded import BandedGram, banded_norm_squared, cholesky_row
from lipcert.bounds.operators import read_operator
from lipcert.bounds.rounding import TorchArithmetic, root_up

HOSTILE = {"unit": 2.0**-12, "underflow": 2.0**-30}
OUTPUTS = 8


class Raising:
    """Differences are raised as far as allowed, whatever their sign: with products lowered, all point one way."""

    def subtract(self, left: Tensor | float, right: Tensor) -> Tensor:
        raised = left - right + 4 * float(self.underflow)
        return raised / (1 - raised.sign() * float(self.unit))


class RaisingArithmetic(Raising, HostileArithmetic):
    pass


class ForgetfulRaisingArithmetic(Raising, ForgetfulArithmetic):
    pass


def gram_of(layer: nn.Conv2d, shape: tuple[int, ...], arithmetic) -> BandedGram:
    operator = read_operator(layer, shape, None)
    return BandedGram(operator.weights_GOIKL[0], operator.axes, arithmetic)


def ones(pixels: int) -> tuple[nn.Conv2d, tuple[int, ...]]:
    """For each pixel OUTPUTS sums of its two channels: the squared norm is 2 * OUTPUTS. The second tap is zero."""
    layer = nn.Conv2d(2, OUTPUTS, (1, 2), padding=(0, 1), bias=False, dtype=torch.float64)
    layer.weight.data.zero_()[..., 0] = 1.0
    return layer, (2, 1, pixels)


def worst_terms(arithmetic: HostileArithmetic, pixels: int) -> tuple[dict[str, Fraction], float]:
    """The terms of the bound and c2, with c2 and R chosen so that every term is needed at the last pixel.

    R = rho [[1, -1], [0, 0]] hides from the top direction (1, 1), where |R| is largest, and E = -e/2 in every entry
    points along (1, 1) too. A pixel before it makes the last one's rows pass through one more rounding; its own Gram
    matrix is scaled down until such an R leaves no E there.
    """
    u, w = float(arithmetic.unit), float(arithmetic.underflow)
    terms = 2 * OUTPUTS
    gamma_terms, gamma_two, e = terms * u / (1 - terms * u), 2 * u / (1 - 2 * u), OUTPUTS / 2
    chained = pixels > 1
    gram = OUTPUTS * (1 - gamma_terms) - 4 * terms * w
    off = (-gram + 12 * w) / (1 + u) if chained else -gram
    rho_square = (-(1 + u) * e / 2 - 12 * w - off) / (1 + gamma_two)
    diagonal = rho_square * (1 - gamma_two) - 8 * w - (1 + u) * e / 2 - 4 * w
    diagonal = (1 - u) * diagonal - 12 * w if chained else diagonal
    square = (1 - u) * diagonal - 4 * w + gram
    flat, steep = (1 - gamma_two) / (1 + gamma_two), 1 / (1 - u)
    weaker = ((square + 4 * w) * steep + 12 * w * (1 + flat)) / (flat + steep)
    rhos = [((weaker - 12 * w) / (1 + gamma_two)) ** 0.5] * (pixels - 1) + [rho_square**0.5]
    check = gram_of(*ones(pixels), arithmetic)
    assert (check.blocks, check.ahead, check.unknowns) == (pixels, int(chained), 2 * pixels)
    honest, left = check.gram_row, iter(rhos)
    check.gram_row = lambda index: honest(index) * (weaker / gram if index < pixels - 1 else 1.0)

    def witness(updated_XW: Tensor) -> Tensor:
        factor_XW = torch.zeros_like(updated_XW)
        factor_XW[0, :2] = next(left) * torch.tensor([1.0, -1.0])
        return factor_XW

    return check.error_terms(square, witness), square


@pytest.fixture
def blocks_of_two(monkeypatch):
    monkeypatch.setattr(banded, "_BLOCK_SIZES", (2, 2))


@pytest.mark.parametrize("pixels", [1, 2])
def test_worst_case_is_survived_and_nearly_tight(pixels, blocks_of_two):
    terms, square = worst_terms(RaisingArithmetic(**HOSTILE), pixels)
    bound = Fraction(square) + sum(terms.values())
    assert 2 * OUTPUTS <= bound <= 2 * OUTPUTS * (1 + Fraction(1, 10**4 if pixels > 1 else 10**7))


@pytest.mark.parametrize("dropped", ["E", "dE", "dP", "dS", "dG", "underflow"])
def test_dropping_a_term_is_noticed(dropped, blocks_of_two):
    terms, square = worst_terms(RaisingArithmetic(**HOSTILE), 1)
    assert len(terms) == 6
    assert Fraction(square) + sum(term for name, term in terms.items() if name != dropped) < 2 * OUTPUTS


def test_rounding_of_the_updated_rows_counts(blocks_of_two):
    arithmetic = RaisingArithmetic(**HOSTILE)
    terms, square = worst_terms(arithmetic, 2)
    terms["dP"] *= arithmetic.gamma(2) / arithmetic.gamma(3)  # K where K + 1 belongs
    assert Fraction(square) + sum(terms.values()) < 2 * OUTPUTS


def test_forgetting_any_inflation_is_noticed(blocks_of_two):
    def bound(forgotten: int) -> tuple[Fraction, int]:
        arithmetic = ForgetfulRaisingArithmetic(forgotten, **HOSTILE)
        terms, square = worst_terms(arithmetic, 1)
        return Fraction(square) + sum(terms.values()), arithmetic.calls

    _, calls = bound(-1)
    assert calls == 8  # sums for E, for the rows and columns of R and A; two gammas, one underflow
    for forgotten in range(calls):
        assert bound(forgotten)[0] < 2 * OUTPUTS, forgotten


def layers() -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    torch.manual_seed(1)
    return [
        (nn.Conv2d(1, 1, 3, padding=1), (1, 4, 4)),
        (nn.Conv2d(2, 1, 3, stride=2, padding=1), (2, 5, 4)),
        (nn.Conv2d(2, 4, (3, 2), padding=(1, 0), groups=2), (2, 4, 3)),
        (nn.Conv2d(1, 2, 3, padding=2, dilation=2), (1, 3, 5)),
    ]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (48, 320)])
@pytest.mark.parametrize("direction", ["down", "up", "shrink"])
@pytest.mark.parametrize("kind", [HostileArithmetic, RaisingArithmetic])
def test_whole_bound_survives_hostile_arithmetic(sizes, direction, kind, monkeypatch):
    monkeypatch.setattr(banded, "_BLOCK_SIZES", sizes)
    for layer, shape in layers():
        for positive in (False, True):
            if positive:
                layer.weight.data.abs_()
            operator = read_operator(layer, shape, None)
            matrix = layer_matrix(layer, shape)
            guess = (np.linalg.norm(matrix, 2) / 2.0**operator.scale) ** 2
            arithmetic = kind(2.0**-16, 2.0**-40, direction)
            upper = root_up(banded_norm_squared(operator, guess, arithmetic)) * Fraction(2) ** operator.scale
            assert norm_is_below(matrix, upper), (shape, positive)


WITNESSES = {
    "zero": torch.zeros_like,
    "garbage": lambda row: torch.randn(row.shape, generator=torch.Generator().manual_seed(3), dtype=row.dtype),
    "huge": lambda row: 1e50 * torch.ones_like(row),
    "not triangular": torch.ones_like,
}


@pytest.mark.parametrize("kind", WITNESSES)
@pytest.mark.parametrize("block", [1, 5, 100])
def test_any_witness_gives_a_bound(kind, block, monkeypatch):
    monkeypatch.setattr(banded, "_BLOCK_SIZES", (block, block))
    for layer, shape in layers()[:2]:
        check = gram_of(layer, shape, TorchArithmetic())
        unit = Fraction(2) ** read_operator(layer, shape, None).scale
        for square in (0.0, 1.0, 1e3):
            assert norm_is_below(layer_matrix(layer, shape), root_up(check.bound(square, WITNESSES[kind])) * unit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_witnesses_that_are_not_finite_refuse(bad):
    check = gram_of(*layers()[0], TorchArithmetic())
    with pytest.raises(ValueError, match="must be finite"):
        check.bound(2.0, lambda row: torch.full_like(row, bad))


@pytest.mark.parametrize("factor", [0.0, 0.01, 1.0, 4.0])
def test_wrong_guesses_cost_tightness_only(factor):
    for layer, shape in layers():
        operator, matrix = read_operator(layer, shape, None), layer_matrix(layer, shape)
        truth = float(np.linalg.norm(matrix, 2)) / 2.0**operator.scale
        upper = root_up(banded_norm_squared(operator, factor * truth**2, TorchArithmetic()))
        assert norm_is_below(matrix, upper * Fraction(2) ** operator.scale)
        assert float(upper) <= truth * (1 + (1e-8 if factor == 1.0 else 6.0))


@pytest.mark.parametrize("block", [1, 3, 8, 48])
def test_gram_rows_are_those_of_the_matrix(block, monkeypatch):
    monkeypatch.setattr(banded, "_BLOCK_SIZES", (block, block))
    for layer, shape in layers():
        check = gram_of(layer, shape, TorchArithmetic())
        rows = []
        for index in range(check.blocks):
            row_XW = check.gram_row(index)
            before = check.span(index).start * check.channels
            rows.append(torch.nn.functional.pad(row_XW, (before, check.unknowns - before - row_XW.shape[1])))
        upper = torch.cat(rows)
        full = torch.where(upper.abs() > 0, upper, upper.mT)
        matrix = read_operator(layer, shape, None).matrix()[0]
        np.testing.assert_allclose(torch.linalg.eigvalsh(full)[-1], torch.linalg.norm(matrix, 2) ** 2, rtol=1e-12)
        np.testing.assert_allclose(full.square().sum(), (matrix.mT @ matrix).square().sum(), rtol=1e-12)


def test_cholesky_gives_up_where_the_corner_is_not_definite():
    assert cholesky_row(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), (16, 14, 12)),
        (nn.Conv2d(3, 24, 5, stride=2, padding=2), (3, 32, 32)),
        (nn.Conv2d(16, 32, 4, stride=2, padding=1), (16, 16, 16)),
        (nn.Conv2d(24, 24, 3, padding=1, groups=8), (24, 16, 16)),
    ],
)
def test_layers_of_a_network_are_tight(layer, shape):
    enclosure = norm_bound(layer, shape, effort="tight")
    assert enclosure.method == "banded"
    assert enclosure.lower < enclosure.upper < enclosure.lower * (1 + 5e-9)


def test_circular_padding_is_exact_or_refused(monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 0)
    round_once = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    enclosure = norm_bound(round_once, (2, 5, 4), effort="tight")
    assert enclosure.method == "torus" and enclosure.upper < enclosure.lower * (1 + 5e-9)
    with pytest.raises(ValueError, match="circular padding whose outputs"):
        norm_bound(nn.Conv2d(2, 2, 3, padding_mode="circular"), (2, 5, 4), effort="tight")
