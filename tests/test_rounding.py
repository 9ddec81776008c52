"""Directed rounding against exact rationals, scaling bit by bit, and the cosine table against 60 digits."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.bounds.rounding import (
    LOST_IN_SCALING,
    Arithmetic,
    exact,
    largest,
    power_of_two_scaled,
    root_down,
    root_up,
    round_down,
    round_up,
)
from lipcert.bounds.torus import cosine_table

few = settings(max_examples=200, derandomize=True, deadline=None)
rationals = st.builds(
    lambda number, scale: number * Fraction(2) ** scale,
    st.fractions(min_value=0, max_denominator=10**30),
    st.integers(-1200, 900),
)


@few
@given(rationals)
def test_rounding_is_directed_and_nearest(value):
    up, down = round_up(value), round_down(value)
    assert Fraction(down) <= value and (math.isinf(up) or value <= Fraction(up))
    assert up == down or up == math.nextafter(down, math.inf)
    assert (up == down) == (Fraction(down) == value)


LARGEST = 1.7976931348623157e308


@pytest.mark.parametrize("value", [0.0, 5e-324, 1.5e-310, 2.0**-1022, 2.0**-1021, 0.1, 1.0, 2.0**53, LARGEST])
def test_floats_round_to_themselves(value):
    assert round_up(Fraction(value)) == value == round_down(Fraction(value))


def test_beyond_the_range_of_floats():
    assert round_up(Fraction(2) ** 1024) == math.inf
    assert round_down(Fraction(2) ** 1024) == LARGEST
    assert round_up(Fraction(1, 2**2000)) == 5e-324 and round_down(Fraction(1, 2**2000)) == 0.0
    with pytest.raises(ValueError, match="non-negative"):
        round_up(Fraction(-1))


@few
@given(rationals)
def test_roots_are_directed_and_close(value):
    up, down = root_up(value), root_down(value)
    assert down**2 <= value <= up**2
    assert up - down <= up * Fraction(1, 2**120)


def test_perfect_squares_are_exact():
    assert root_up(Fraction(9, 4)) == root_down(Fraction(9, 4)) == Fraction(3, 2)
    assert root_up(Fraction(0)) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_refuse(value):
    with pytest.raises(ValueError, match="must be finite"):
        exact(value)
    with pytest.raises(ValueError, match="must be finite"):
        largest(torch.tensor([1.0, value, 2.0]).abs())


def test_gamma_is_exact_and_has_an_end():
    arithmetic = Arithmetic()
    assert arithmetic.gamma(3) == Fraction(3, 2**53 - 3)
    with pytest.raises(ValueError, match="error model"):
        arithmetic.gamma(2**52)


@few
@given(st.integers(1, 1000), st.fractions(min_value=0, max_value=10), st.fractions(min_value=-1, max_value=1))
def test_sums_are_enclosed(terms, true, wrongness):
    arithmetic = Arithmetic()
    computed = true + wrongness * (arithmetic.gamma(terms) * true + arithmetic.flushed(terms))
    computed = max(computed, Fraction(0))
    assert arithmetic.sum_at_least(computed, terms) <= true <= arithmetic.sum_at_most(computed, terms)


def floats_of_bits(values: list[int], dtype: torch.dtype) -> torch.Tensor:
    size = dtype.itemsize
    return torch.frombuffer(bytearray(b"".join(v.to_bytes(size, "little") for v in values)), dtype=dtype)


def as_fraction(bits: int, dtype: torch.dtype) -> Fraction:
    kind = {torch.float64: "<d", torch.float32: "<f", torch.float16: "<e"}[dtype]
    return Fraction(struct.unpack(kind, bits.to_bytes(dtype.itemsize, "little"))[0])


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@few
@given(data=st.data())
def test_scaling_is_exact_in_every_mode(dtype, flush, data):
    infinity = {torch.float64: 0x7FF << 52, torch.float32: 0xFF << 23, torch.float16: 0x1F << 10}[dtype]
    patterns = st.one_of(st.integers(0, infinity - 1), st.integers(0, 2**8))  # the second are zero or subnormal
    bits = data.draw(st.lists(patterns, min_size=1, max_size=5))
    truth = [as_fraction(pattern, dtype) for pattern in bits]
    weights = floats_of_bits(bits, dtype)
    torch.set_flush_denormal(flush)
    try:
        scaled, scale = power_of_two_scaled(weights)
    finally:
        torch.set_flush_denormal(False)
    values = [Fraction(float(value)) for value in scaled]
    assert max(truth) == 0 or 1 <= max(values) < 2
    for value, wanted in zip(values, truth, strict=True):
        ideal = wanted / Fraction(2) ** scale
        assert value == ideal or (value == 0 and ideal < LOST_IN_SCALING)


def test_signs_survive_scaling():
    weights = torch.tensor([-1.0, 1e-310, -1e-310, -0.5], dtype=torch.float64)
    for chosen in (weights, weights[1:3]):
        scaled, scale = power_of_two_scaled(chosen)
        for value, weight in zip(scaled.tolist(), chosen.tolist(), strict=True):
            assert value == 0 or Fraction(value) * Fraction(2) ** scale == Fraction(weight)
    assert scaled[0] == -scaled[1] != 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scaling_refuses_what_is_not_finite(bad, dtype):
    with pytest.raises(ValueError, match="must be finite"):
        power_of_two_scaled(torch.tensor([1.0, bad], dtype=dtype))


@pytest.mark.parametrize("count", [2, 4, 6, 18, 34, 66, 2 * 33 * 35])
def test_cosine_table_is_within_half_an_ulp_of_one(count):
    cosines, sines = cosine_table(count)
    with mpmath.workdps(60):
        for j in range(count):
            angle = 2 * mpmath.pi * j / count
            assert abs(mpmath.mpf(cosines[j]) - mpmath.cos(angle)) <= mpmath.mpf(2) ** -53
            assert abs(mpmath.mpf(sines[j]) - mpmath.sin(angle)) <= mpmath.mpf(2) ** -53
