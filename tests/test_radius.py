"""Radii are exact."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.radius import Radius


@pytest.mark.parametrize(
    ("value", "exact"),
    [("36/255", Fraction(36, 255)), (" 8 / 255 ", Fraction(8, 255)), ("0.3", Fraction(3, 10)), (0.3, Fraction(3, 10)),
     (1, Fraction(1)), ("1e-3", Fraction(1, 1000)), (Fraction(1, 3), Fraction(1, 3)), ("0", Fraction(0)),
     ("0.5/255", Fraction(1, 510)), (Radius("36/255"), Fraction(36, 255))],
)  # fmt: skip
def test_value(value, exact):
    assert Radius(value).exact == exact


def test_equal_by_value_and_shown_by_text():
    a, b = Radius("72/510"), Radius("36/255")
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert str(a) == "72/510" and str(b) == "36/255"
    assert Radius("36/255") < Radius("0.15") <= Radius("0.15") and a != "36/255"


@given(st.integers(0, 10**6), st.integers(10**5, 10**6))
def test_float_is_the_smallest_one_not_below(top, bottom):
    radius = Radius(Fraction(top, bottom))
    rounded = float(radius)
    assert Fraction(rounded) >= radius.exact
    assert rounded == 0 or Fraction(math.nextafter(rounded, -1)) < radius.exact
    assert radius.within(rounded) and (rounded == 0 or not radius.within(math.nextafter(rounded, -1)))


def test_within_is_false_for_nan_and_true_for_infinity():
    assert not Radius("0.1").within(math.nan)
    assert not Radius("0").within(-1.0)
    assert not Radius("0").within(-math.inf)
    assert Radius("10").within(math.inf)


@pytest.mark.parametrize(
    "value",
    ["", "x", "-1", -1, -0.1, math.nan, math.inf, "nan", "1/0", "1/2/3", "0x1", "1/0.5", True, None, [1], "36", 36, 255,
     "10.1"],
)  # fmt: skip
def test_refused(value):
    with pytest.raises(ValueError, match="radius="):
        Radius(value)
