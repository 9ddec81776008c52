"""Radii as exact fractions: 8/255 is not 0.03137.

A radius is in the units of the network's input tensor, pixels in [0, 1]; the norm is named where the radius is used.
"""

import math
import re
from fractions import Fraction
from functools import total_ordering

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(?:/\s*(\d+))?\s*")


@total_ordering
class Radius:
    """An exact, non-negative radius that keeps its text: `Radius("36/255")`.

    Equal by value (`Radius("72/510") == Radius("36/255")`), displayed by text. Turned into a float only at the edge
    and then rounded *up*, so that certifying at the float certifies at the exact radius too.

    Args:
        value: text such as `"36/255"`, `"0.3"`, `"1"`; an int, a float (taken at its shortest decimal text, so 0.3
            means 3/10), a `Fraction` or another `Radius`.

    Raises:
        ValueError: not a non-negative finite number or fraction, or larger than 10: no perturbation of that size in
            pixels of [0, 1] leaves an image recognisable, so 36 was written where 36/255 was meant.
    """

    __slots__ = ("exact", "text")

    def __init__(self, value: "str | int | float | Fraction | Radius"):
        if isinstance(value, Radius):
            self.text, self.exact = value.text, value.exact
            return
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Fraction)):
            raise ValueError(f"radius={value!r}: must be text like '36/255' or a number")
        text = repr(value) if isinstance(value, float) else str(value)
        match = _TEXT.fullmatch(text)
        if not match or (match[2] and int(match[2]) == 0):
            raise ValueError(f"radius={value!r}: must be a non-negative number or fraction such as '36/255' or '0.3'")
        self.exact = Fraction(match[1]) / int(match[2] or 1)
        self.text = text.replace(" ", "")
        if self.exact > 10:
            raise ValueError(f"radius={value!r}: must be at most 10; pixels are in [0, 1], so write {self.text}/255")

    def __float__(self) -> float:
        """The smallest float64 that is not below the exact radius."""
        nearest = float(self.exact)
        return nearest if Fraction(nearest) >= self.exact else math.nextafter(nearest, math.inf)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Radius) and self.exact == other.exact

    def __lt__(self, other: "Radius") -> bool:
        return self.exact < other.exact

    def __hash__(self) -> int:
        return hash(self.exact)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Radius({self.text!r})"

    def within(self, radius: float) -> bool:
        """Whether this exact radius is at most the float `radius` (exact comparison; False for NaN)."""
        return radius == math.inf or (math.isfinite(radius) and self.exact <= Fraction(radius))
