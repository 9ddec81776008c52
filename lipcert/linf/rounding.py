"""Directed rounding for boxes, and what is assumed of the arithmetic a network is run in.

**Assumed of an arithmetic** with unit roundoff u and smallest normal number w. One addition or subtraction is the exact
result rounded to nearest; absolute values, maxima and negations are exact; results and operands below w may be read as
zero, or not. A sum of k products and a constant obeys |computed - true| <= gamma_{k+2} (sum of absolute values) + t in
every order, fused or not (`lipcert.deviation`). A tanh is within `TANH_UNITS` u of the true value, relative to it.

**Assumed of this process**: IEEE to nearest, nothing flushed to zero. `check_gradual` refuses where that is false.

Shape letters: B batch, C H W image.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.bounds.rounding import round_up
from lipcert.chain import NotCertifiable
from lipcert.forward import FORMATS, FloatFormat

Box = tuple[Tensor, Tensor]
"""Lower and upper ends, of one shape and dtype."""

TANH_UNITS = 16
"""Relative error of a library's tanh in unit roundoffs, 8 units in the last place; libraries state 1 to 4."""

UP = 1 + 2.0**-45
"""Times this, a result of fewer than 100 operations on non-negative float64 numbers is above the exact one."""

LOST = 2.0**-900
"""Above what underflow takes from such a result."""


def down(x: Tensor) -> Tensor:
    """The next smaller number: below everything that rounds to x."""
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def up(x: Tensor) -> Tensor:
    """The next larger number: above everything that rounds to x."""
    return torch.nextafter(x, torch.full_like(x, math.inf))


def outward(lower: Tensor, upper: Tensor) -> Box:
    """Ends that were rounded once to nearest, moved beyond what they were rounded from.

    Works after a maximum of rounded numbers too: rounding is monotone, so the maximum of the rounded is the maximum
    rounded, and one step undoes one rounding however many numbers were compared.
    """
    return down(lower), up(upper)


def cast_outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Box:
    """float64 ends in another format, never moved inward."""
    if dtype == torch.float64:
        return lower, upper
    low, high = lower.to(dtype), upper.to(dtype)
    return torch.where(low.double() > lower, down(low), low), torch.where(high.double() < upper, up(high), high)


@dataclass(frozen=True)
class Rounding:
    """What an interval pass has to allow for.

    guarantee: "nominal", "real" or "executed". form: the arithmetic of the pass, and of the network if executed.
    """

    guarantee: str
    form: FloatFormat

    @property
    def dtype(self) -> torch.dtype:
        """The number format of boxes."""
        return self.form.dtype

    @property
    def counted(self) -> bool:
        """Whether anything is allowed for at all."""
        return self.guarantee != "nominal"

    @property
    def executed(self) -> bool:
        """Whether the deployed network rounds."""
        return self.guarantee == "executed"

    def once(self, lower: Tensor, upper: Tensor) -> Box:
        """Ends after one rounded operation that is monotone in each operand.

        *executed*: the deployed result at any point lies between the results at the ends, rounded alike, so they stand;
        only what a processor flushes to zero is taken in. *real*: one step outward undoes the rounding.
        """
        return outward(lower, upper) if self.guarantee == "real" else self.unflushed(lower, upper)

    def unflushed(self, lower: Tensor, upper: Tensor) -> Box:
        """Ends that take in what the deployed network's processor makes of a number in the box by flushing it."""
        if not self.executed:
            return lower, upper
        smallest = float(self.form.smallest)
        return (
            torch.where((lower > 0) & (lower < smallest), 0.0, lower),
            torch.where((upper < 0) & (upper > -smallest), 0.0, upper),
        )

    def sum_error(self, terms: int, name: str) -> float:
        """gamma_{terms+4} of the pass, which adds up in float64, and of the deployed sum if it rounds; rounded up.

        Two more terms than a sum with a constant needs: differences of weights are rounded once.
        """
        return own_error(terms, name) + (gamma(terms, self.form, name) if self.executed else 0.0)

    def flushed(self, terms: int, weight: float, size_B: Tensor) -> Tensor:
        """What underflow and flushed operands add to one such sum, of inputs up to `size_B` and weights up to `weight`.

        Products, partial sums and the result lose less than w each and grow by less than 2 on the way; a weight read as
        zero loses w |x|, an input w |weight|.
        """
        lowest = round_up(FORMATS["float64"].smallest) + (round_up(self.form.smallest) if self.executed else 0.0)
        return lowest * UP * (4.0 * (terms + 4) + terms * (weight + size_B))


def own_error(terms: int, name: str) -> float:
    """gamma_{terms+4} of float64, in which every pass adds up."""
    return gamma(terms, FORMATS["float64"], name)


def gamma(terms: int, form: FloatFormat, name: str) -> float:
    """gamma_{terms+4} of an arithmetic, rounded up and at most 1/2, so that 1 / (1 - gamma) <= 1 + 2 gamma."""
    product = (terms + 4) * form.unit
    if product >= Fraction(1, 3):
        raise NotCertifiable(
            f"layer {name!r} adds {terms} products: too many for {form.name} to promise anything; use float64"
        )
    return round_up(product / (1 - product))


def ball(images_BCHW: Tensor, radius_B: Tensor, rounding: Rounding) -> Box:
    """The box of all images with pixels in [0, 1] within `radius_B` in l_inf, ends rounded outward, (B, C, H, W).

    The exact image is what was rounded to `images_BCHW` in float64 (k/255, say), so it is within one step of it; the
    difference to the radius, taken as the exact number that the float is, rounds once more. What an arithmetic makes of
    a real image in the box stays in the box of its own numbers around it, because rounding is monotone.
    """
    x, r = images_BCHW.double(), radius_B.double().view(-1, *[1] * (images_BCHW.ndim - 1)).to(images_BCHW.device)
    if not rounding.counted:
        return (x - r).clamp_min(0).to(rounding.dtype), (x + r).clamp_max(1).to(rounding.dtype)
    lower, upper = down(down(x) - r), up(up(x) + r)
    return rounding.unflushed(*cast_outward(lower.clamp_min(0), upper.clamp_max(1), rounding.dtype))


def check_gradual(device: torch.device) -> None:
    """Refuse where numbers below the smallest normal one become zero: results would not be those of IEEE arithmetic."""
    for dtype in (torch.float32, torch.float64):
        smallest = torch.full((64,), torch.finfo(dtype).tiny, dtype=dtype, device=device)
        if not ((smallest * 1.5 - smallest) > 0).all():
            raise NotCertifiable(
                f"{dtype} on {device.type} flushes small numbers to zero: call torch.set_flush_denormal(False)"
            )
