"""Every rounding term earns its place: worst-case inputs under hostile arithmetic, and one mutant for each term."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hostile import ForgetfulArithmetic, HostileArithmetic
from torch import nn
from truth import assert_encloses, layer_matrix, norm_is_below

from lipcert.bounds import enclosure as bounds
from lipcert.bounds import rounding, torus
from lipcert.bounds.defect import defect_squared
from lipcert.bounds.enclosure import enclose, stretch_at_least
from lipcert.bounds.operators import Operator, read_operator
from lipcert.bounds.rounding import TorchArithmetic
from lipcert.bounds.verified import GramCheck, matrix_norm_squared, prove_below

HOSTILE = {"unit": 2.0**-12, "underflow": 2.0**-30}
ROWS = 8


def worst_gram_bound(arithmetic: HostileArithmetic, dropped: str | None = None) -> Fraction:
    """The bound for ROWS x 2 ones, whose squared norm is 2*ROWS, with c2 and R chosen so that every term is needed.

    R = rho [[1, -1], [0, 0]] hides from the top direction (1, 1), where |R| is largest; c2 leaves a residual E = -e/2
    in every entry, which also points along (1, 1).
    """
    u, w, truth = HOSTILE["unit"], HOSTILE["underflow"], 2.0 * ROWS
    gamma_rows, gamma_two = ROWS * u / (1 - ROWS * u), 2 * u / (1 - 2 * u)
    gram = ROWS * (1 - gamma_rows) - 4 * ROWS * w
    e = truth / 4
    rho_square = (gram - e / 2 - 8 * w) / (1 + gamma_two)
    square = gram + (1 - u) * (rho_square * (1 - gamma_two) - e / 2 - 8 * w) - 4 * w
    check = GramCheck(torch.ones(1, ROWS, 2, dtype=torch.float64), arithmetic)
    factor = rho_square**0.5 * torch.tensor([[[1.0, -1.0], [0.0, 0.0]]], dtype=torch.float64)
    terms = check.error_terms(check.shifted(square), factor)
    return Fraction(square) + sum(term for name, term in terms.items() if name != dropped)


def test_worst_case_is_survived_and_nearly_tight():
    bound = worst_gram_bound(HostileArithmetic(**HOSTILE))
    assert 2 * ROWS <= bound <= 2 * ROWS * (1 + Fraction(1, 10**7))


@pytest.mark.parametrize("dropped", ["E", "dE", "dP", "dS", "dG", "underflow"])
def test_dropping_a_term_is_noticed(dropped):
    assert worst_gram_bound(HostileArithmetic(**HOSTILE), dropped) < 2 * ROWS


def test_forgetting_any_inflation_is_noticed():
    honest = ForgetfulArithmetic(-1, **HOSTILE)
    worst_gram_bound(honest)
    assert honest.calls == 7  # four sums, two gammas, one underflow
    for forgotten in range(honest.calls):
        assert worst_gram_bound(ForgetfulArithmetic(forgotten, **HOSTILE)) < 2 * ROWS, forgotten


def worst_stretch(arithmetic: HostileArithmetic) -> Fraction:
    """Lower end for 4 x 6 ones and v of ones: the norm is sqrt(24), and the stretch of v attains it."""
    ones = torch.ones(1, 4, 6, 1, dtype=torch.float64)
    return stretch_at_least(ones, ones[:, :1, :, 0].mT, ones[0, 0], arithmetic)


def test_lower_end_survives_and_each_inflation_counts():
    settings = {**HOSTILE, "product": "up", "squares": (-1, 1)}
    honest = ForgetfulArithmetic(-1, **settings)
    value = worst_stretch(honest)
    assert value**2 <= 24 and float(value) > 24**0.5 * (1 - 1e-4)
    assert honest.calls == 6
    for forgotten in range(honest.calls):
        assert worst_stretch(ForgetfulArithmetic(forgotten, **settings)) ** 2 > 24, forgotten


def upper_end(operator: Operator, arithmetic: HostileArithmetic) -> Fraction:
    unit = Fraction(2) ** operator.scale
    matrices = bounds.exact_matrices(operator)
    if matrices is None:
        return torus.torus_norm(operator, arithmetic) * unit
    return rounding.root_up(matrix_norm_squared(GramCheck(matrices, arithmetic))[0]) * unit


@pytest.mark.parametrize("direction", ["down", "shrink", "along"])
@pytest.mark.parametrize("path", ["matrix", "torus"])
def test_whole_bound_survives_hostile_arithmetic(direction, path, monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 1024**2 if path == "matrix" else 0)
    torch.manual_seed(1)
    for layer, shape in [
        (nn.Conv2d(1, 1, 3, padding=1), (1, 4, 4)),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1), (2, 5, 4)),
        (nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
        (nn.Linear(12, 5), (12,)),
    ]:
        for positive in (False, True):
            weight = layer.weight.data.abs_() if positive else layer.weight.data
            operator = read_operator(layer, shape, None)
            hostile = HostileArithmetic(2.0**-16, 2.0**-40, direction)
            assert norm_is_below(layer_matrix(layer, shape), upper_end(operator, hostile)), (weight.shape, positive)


@pytest.mark.parametrize("direction", ["down", "up", "shrink", "along"])
def test_bound_from_the_defect_survives_hostile_arithmetic(direction):
    arithmetic = HostileArithmetic(2.0**-16, 2.0**-40, direction)
    for seed in range(20):
        matrix = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 4)))[0]
        check = GramCheck(torch.from_numpy(matrix)[None], arithmetic)
        upper = rounding.root_up(defect_squared(check)[0])
        assert norm_is_below(matrix, upper) and upper < 1 + 1e-3


def circular_box() -> tuple[nn.Conv2d, tuple[int, ...]]:
    layer = nn.Conv2d(1, 1, 7, padding=3, padding_mode="circular", bias=False, dtype=torch.float64)
    layer.weight.data.fill_(1.0)
    return layer, (1, 8, 8)


def test_error_of_the_frequency_blocks_counts(monkeypatch):
    layer, shape = circular_box()  # norm 49, attained at frequency zero
    operator = read_operator(layer, shape, None)
    hostile = HostileArithmetic(2.0**-16, 2.0**-60)
    assert torus.torus_norm(operator, hostile) >= 49
    monkeypatch.setattr(torus.Torus, "entry_error", lambda self, arithmetic: Fraction(0))
    assert torus.torus_norm(operator, hostile) < 49


def test_every_correction_of_the_frequency_blocks_counts():
    layer, shape = circular_box()
    blocks = torus.Torus(read_operator(layer, shape, None))
    u, w = 2.0**-8, 2.0**-6
    needed = 2**0.5 * (49 * u / (1 - 49 * u) * 49 + 4 * 49 * w)  # real and imaginary entry at their worst
    honest = ForgetfulArithmetic(-1, unit=u, underflow=w)
    assert blocks.entry_error(honest) >= needed
    assert honest.calls == 4
    for forgotten in range(honest.calls):
        assert blocks.entry_error(ForgetfulArithmetic(forgotten, unit=u, underflow=w)) < needed, forgotten


def test_error_of_the_cosine_table_counts(monkeypatch):
    layer, shape = circular_box()
    operator = read_operator(layer, shape, None)
    cosines, sines = torus.cosine_table(16)
    lowered = (tuple(c - 2.0**-20 for c in cosines), sines)
    monkeypatch.setattr(torus, "cosine_table", lambda count: lowered)
    assert torus.torus_norm(operator, TorchArithmetic()) < 49
    monkeypatch.setattr(torus, "_TABLE_ERROR", Fraction(1, 2**20))
    assert torus.torus_norm(operator, TorchArithmetic()) >= 49


def test_entries_lost_in_scaling_count(monkeypatch):
    layer = nn.Linear(4000, 1, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(0.0156)
    layer.weight.data[0, 0] = 1.0
    monkeypatch.setattr(rounding, "LOST_IN_SCALING", Fraction(1, 64))
    operator = read_operator(layer, (4000,), None)
    monkeypatch.setattr(bounds, "LOST_IN_SCALING", Fraction(0))
    assert not norm_is_below(layer_matrix(layer, (4000,)), enclose(operator, TorchArithmetic()).upper)
    monkeypatch.setattr(bounds, "LOST_IN_SCALING", Fraction(1, 64))
    assert_encloses(layer_matrix(layer, (4000,)), *_ends(enclose(operator, TorchArithmetic())))


def _ends(enclosure) -> tuple[float, float]:
    return enclosure.lower, enclosure.upper


@pytest.mark.parametrize("kind", ["zero", "garbage", "huge", "not triangular"])
def test_any_factor_gives_a_bound(kind):
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    check = GramCheck(matrices, TorchArithmetic())
    factor = {
        "zero": torch.zeros(2, 4, 4, dtype=torch.float64),
        "garbage": torch.randn(2, 4, 4, generator=generator, dtype=torch.float64),
        "huge": 1e50 * torch.randn(2, 4, 4, generator=generator, dtype=torch.float64),
        "not triangular": torch.ones(2, 4, 4, dtype=torch.float64),
    }[kind]
    for square in (0.0, 1.0, 1e3):
        upper = rounding.root_up(check.bound(square, check.shifted(square), factor))
        assert all(norm_is_below(matrix.numpy(), upper) for matrix in matrices)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_factors_that_are_not_finite_refuse(bad):
    check = GramCheck(torch.eye(3, dtype=torch.float64)[None], TorchArithmetic())
    factor = torch.full((1, 3, 3), bad, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be finite"):
        check.bound(2.0, check.shifted(2.0), factor)


def test_wrong_guesses_cost_tightness_only():
    matrix = np.random.default_rng(0).standard_normal((1, 9, 5))
    check = GramCheck(torch.from_numpy(matrix), TorchArithmetic())
    truth = float(np.linalg.norm(matrix[0], 2))
    for guess, excess in ((0.0, 1e-8), (truth**2 / 100, 1e-8), (truth**2 * 4, 1.1)):
        upper = rounding.root_up(prove_below(check, guess))
        assert norm_is_below(matrix[0], upper) and float(upper) <= truth * (1 + excess)
