"""The error model of floating point, and the few scalar operations that are exact or rounded the safe way.

Everything that a proven bound computes on arrays goes through one `Arithmetic`, whose docstring states what is trusted;
everything it computes on scalars is a `fractions.Fraction` and leaves through `round_up` or `round_down`.

The model is the usual one, |fl(AB) - AB| <= gamma_k |A||B| with gamma_k = k u / (1 - k u) (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3), for conventional inner products in any order, fused or not.

Shape suffixes: B batch, M rows, N columns.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import torch
from torch import Tensor

_SUBNORMAL_EXPONENT = -1074  # the smallest positive float64 is 2**-1074
_ROOT_BITS = 128  # relative precision of roots: far below float64, so rounding a root twice costs nothing
LOST_IN_SCALING = Fraction(1, 2**900)  # `power_of_two_scaled` zeroes smaller entries (the largest is about 1)


def exact(value: float | Tensor) -> Fraction:
    """The exact rational behind a finite float (or one-element tensor); ValueError for inf and nan."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number!r} met while proving a bound: every quantity must be finite; the bound is refused")
    return Fraction(number)


def largest(values: Tensor) -> Fraction:
    """Exact maximum of a non-empty tensor (nan and inf are refused: `amax` propagates nan)."""
    return exact(values.amax())


def _to_float(value: Fraction, up: bool) -> float:
    """Non-negative rational to float64 in one direction, by integers alone: no rounding mode, no flushing to zero."""
    if value < 0:
        raise ValueError(f"{float(value)!r}: directed rounding is written for non-negative numbers")
    if value == 0:
        return 0.0
    magnitude = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** magnitude:
        magnitude -= 1
    exponent = max(magnitude - 52, _SUBNORMAL_EXPONENT)
    scaled = value / Fraction(2) ** exponent
    mantissa = -(-scaled.numerator // scaled.denominator) if up else scaled.numerator // scaled.denominator
    if exponent == _SUBNORMAL_EXPONENT:
        # Below 2**-1021 the bits of a float64 are its integer mantissa: written as bits, it survives flush-to-zero.
        return struct.unpack("<d", struct.pack("<q", mantissa))[0]
    try:
        return math.ldexp(mantissa, exponent)
    except OverflowError:
        return math.inf if up else math.nextafter(math.inf, 0.0)


def round_up(value: Fraction) -> float:
    """Smallest float64 >= value (value >= 0); inf if there is none."""
    return _to_float(value, up=True)


def round_down(value: Fraction) -> float:
    """Largest finite float64 <= value (value >= 0)."""
    return _to_float(value, up=False)


def _root(value: Fraction, up: bool) -> Fraction:
    if value < 0:
        raise ValueError(f"{float(value)!r}: the root of a negative number was asked for")
    if value == 0:
        return Fraction(0)
    shift = _ROOT_BITS - (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    scaled = value * Fraction(4) ** shift
    if up:
        return Fraction(math.isqrt(-(-scaled.numerator // scaled.denominator) - 1) + 1) / Fraction(2) ** shift
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator)) / Fraction(2) ** shift


def root_up(value: Fraction) -> Fraction:
    """A rational r >= sqrt(value), within 2**-126 of it (relative)."""
    return _root(value, up=True)


def root_down(value: Fraction) -> Fraction:
    """A rational r <= sqrt(value), within 2**-126 of it (relative)."""
    return _root(value, up=False)


class Arithmetic:
    """Array operations whose rounding errors are bounded. This docstring is what a bound assumes of them.

    With u = `unit`, w = `underflow`, gamma_k = k u / (1 - k u), and k the number of terms added up:

    * product(A, B):   |computed - AB| <= gamma_k |A||B| + 4 k w, entry by entry;
    * subtract(a, b):  |computed - (a - b)| <= u |computed| + 4 w, entry by entry;
    * total(x), x >= 0, and squares(x):   |computed - true| <= gamma_k true + 4 k w.

    IEEE binary64 with rounding to nearest meets this with u = 2**-53 and w = 2**-1022 in every order of summation,
    with or without fused multiply-add: k products and k - 1 additions each add at most w when they underflow (w, not
    2**-1074, so results below 2**-1022 may be flushed to zero), and each such error grows by at most 1 + gamma_k < 2
    on its way to the result. Operands below w may be read as zero too: a sum then changes by at most w for each; a
    factor of a product is either a weight (`power_of_two_scaled` leaves none so small), a frequency block (its own
    error bound has room for w), or a witness, and a flushed witness is as good as any.
    Not covered: Strassen, Winograd, FFT, TF32, emulated float64.
    """

    unit = Fraction(1, 2**53)
    underflow = Fraction(1, 2**1022)

    def product(self, left_BMK: Tensor, right_BKN: Tensor) -> Tensor:
        raise NotImplementedError

    def subtract(self, left: Tensor | float, right: Tensor) -> Tensor:
        raise NotImplementedError

    def total(self, terms: Tensor, dim: int) -> Tensor:
        """Sums of non-negative terms along one dimension."""
        raise NotImplementedError

    def squares(self, matrices_BMN: Tensor) -> Tensor:
        """Squared Frobenius norm of each matrix, shape (B,)."""
        raise NotImplementedError

    def gamma(self, terms: int) -> Fraction:
        """gamma_k = k u / (1 - k u), exactly; ValueError where k u >= 1/2 (nothing useful could be proven)."""
        product = terms * self.unit
        if product >= Fraction(1, 2):
            raise ValueError(f"a sum of {terms} terms: the error model needs terms * unit roundoff < 1/2")
        return product / (1 - product)

    def flushed(self, terms: int) -> Fraction:
        """What underflow can add to a sum of so many terms: 4 k w."""
        return 4 * terms * self.underflow

    def sum_at_most(self, computed: Fraction, terms: int) -> Fraction:
        """computed >= (1 - gamma) true - 4kw, hence true <= (computed + 4kw) / (1 - gamma): for total and squares."""
        return (computed + self.flushed(terms)) / (1 - self.gamma(terms))

    def sum_at_least(self, computed: Fraction, terms: int) -> Fraction:
        """computed <= (1 + gamma) true + 4kw, hence true >= (computed - 4kw) / (1 + gamma), and true >= 0."""
        return max(Fraction(0), computed - self.flushed(terms)) / (1 + self.gamma(terms))


class TorchArithmetic(Arithmetic):
    """The ordinary implementation: torch float64 on one device (conventional GEMM; see `Arithmetic` for the model)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={str(device)!r}: bounds need IEEE float64, on a 'cpu' or a 'cuda' device")
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 10:
            raise ValueError(
                f"device={str(device)!r}: this GPU may emulate float64 products, which the error model does not cover; "
                "prove bounds with device='cpu'"
            )

    def product(self, left_BMK: Tensor, right_BKN: Tensor) -> Tensor:
        return torch.matmul(left_BMK, right_BKN)

    def subtract(self, left: Tensor | float, right: Tensor) -> Tensor:
        return left - right

    def total(self, terms: Tensor, dim: int) -> Tensor:
        return terms.sum(dim=dim)

    def squares(self, matrices_BMN: Tensor) -> Tensor:
        return (matrices_BMN * matrices_BMN).flatten(start_dim=1).sum(dim=1)


def power_of_two_scaled(weights: Tensor) -> tuple[Tensor, int]:
    """Return (scaled, t) with weights = 2**t * scaled, scaled in float64, the largest |scaled| in [1, 2).

    Exact, except that scaled entries below `LOST_IN_SCALING` become zero: callers add the norm of such a change.
    Works on the bits, since with flush-to-zero a multiplication may read a subnormal weight as zero.
    ValueError for inf, nan and what is not real floating point. All zeros: (zeros, 0).
    """
    if weights.dtype in (torch.float16, torch.bfloat16):
        weights = weights.to(torch.float32)
    if weights.dtype == torch.float32:
        bits, fraction_bits, bias = weights.contiguous().view(torch.int32), 23, 127
    elif weights.dtype == torch.float64:
        bits, fraction_bits, bias = weights.contiguous().view(torch.int64), 52, 1023
    else:
        raise ValueError(f"weights of {weights.dtype}: must be float16, bfloat16, float32 or float64")
    magnitudes = bits & torch.iinfo(bits.dtype).max  # the bits without the sign grow with |weight|
    peak, normal = int(magnitudes.max()), 2**fraction_bits
    if peak >> fraction_bits > 2 * bias:
        raise ValueError("weights hold inf or nan: must be finite; such a layer has no bound")
    if peak == 0:
        return torch.zeros_like(weights, dtype=torch.float64), 0
    lowest = 1 - bias - fraction_bits  # exponent of the last bit of a subnormal number
    scale = (peak >> fraction_bits) - bias if peak >= normal else peak.bit_length() - 1 + lowest
    half = scale // 2  # two factors: one alone could overflow
    scaled = weights.to(torch.float64) * 2.0**-half * 2.0 ** (half - scale)
    subnormal = (magnitudes < normal) & (magnitudes > 0)
    if bool(subnormal.any()):
        values = magnitudes.to(torch.float64) * 2.0 ** max(lowest - scale, -1000)
        scaled = torch.where(subnormal, torch.where(bits < 0, -values, values), scaled)
    return torch.where(scaled.abs() < float(LOST_IN_SCALING), 0.0, scaled), scale
