"""Boxes through a network: ends that no output can leave, for the exact network or for the one that rounds.

Let a layer's input lie in a box. Its rule gives a box for its output, of the exact layer (*real*) or of whatever the
deployed layer can compute, in any order of summation, for any numbers in the box (*executed*). By induction the box of
the logits holds every logit of the ball (interval propagation: arXiv 1810.12715).

**Layers that only compare**: sorting, clipping at 0, negation, padding. Monotone and exact: ends map to ends.

**Distance** (arXiv 2110.06850): |x_i - w_i| over [l_i, u_i] is between max(0, l_i - w_i, w_i - u_i) and
max(u_i - w_i, w_i - l_i), and the maximum over i between the maxima of these. *Executed*: the deployed neuron is
fl(max_i |fl(x_i - w_i)| + shift). fl is monotone and odd, so fl(x_i - w_i) lies between fl(l_i - w_i) and
fl(u_i - w_i), its absolute value between max(0, fl(l_i - w_i), fl(w_i - u_i)) and max(fl(u_i - w_i), fl(w_i - l_i)); a
maximum of such numbers does not depend on the order in which it is taken, and the addition is monotone again. The pass
computes exactly these ends, in the same arithmetic: no error term, and each end of a neuron is attained by some numbers
in its input box. *Real*: two roundings, two steps outward.

**Shift, join of a residual block**: one monotone operation, as above. The constant of a shift may be rounded first.

**SortedDistance**: the t-th largest of numbers is monotone in each, so ends sort to ends as exactly as for a maximum;
their weighted sum, with weights that are not negative, rounds: sum and shift together are off by at most
gamma (sum + |shift|) + t (`lipcert.linf.rounding`).

**Linear, Conv2d**: with c any point, rho >= |x - c| and m >= |x| on the box, W x + b is within |W| rho of W c + b. All
three products are taken in float64; those of non-negative numbers fall short by at most a factor 1 - gamma and t. The
deployed sum is off by at most gamma (|W| m + |b|) + t in its own arithmetic.

**Linear as the last layer**: z_y - z_j = (w_y - w_j) x + b_y - b_j is bounded at once, which is tighter than the
difference of two bounds (arXiv 1810.12715, section 3); the deployed logits are each off as above.

**Tanh**: monotone, and off by `TANH_UNITS` u relative to the result, in the pass and in the deployed network. That a
library's tanh rounds in a monotone way is not assumed.

Anything not finite on the way, or a sum that could overflow, leaves the image without a certificate.

Shape letters: B batch, I inputs, O outputs, K classes, T terms, C H W image.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.forward import AFFINE, affine, compared
from lipcert.layers import MinMax, Shift
from lipcert.linf import kernels
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance, from_windows, windows
from lipcert.linf.rounding import LOST, TANH_UNITS, UP, Box, Rounding, cast_outward, down, outward, own_error, up
from lipcert.program import Fork, Join, instructions


@dataclass(frozen=True)
class Worst:
    """What a box proves about one class for each image.

    gap_B: least lower end of z_y - z_j, float64, a guide for searches. rival_B: its j. holds_B: whether class y is
    strictly above every other in the whole box: the proof.
    """

    gap_B: Tensor
    rival_B: Tensor
    holds_B: Tensor


class Propagation:
    """A plain chain that takes boxes, under one kind of rounding; it holds its weights in what it computes with.

    Args:
        chain: one that `lipcert.linf.program.linf_bounds` took.
        rounding: what to allow for.
        cast: shared by passes over the same chain.
    """

    def __init__(self, chain: nn.Sequential, rounding: Rounding, cast: "Cast | None" = None):
        self.rounding, cast = rounding, cast or Cast()
        lines = [
            layer if isinstance(layer, (Fork, Join)) else rule(name, layer, rounding, cast)
            for name, layer in instructions(chain)
        ]
        self.head = lines.pop() if type(lines[-1]) is _Affine and type(lines[-1].layer) is nn.Linear else None
        self.lines = lines

    def logits(self, images: Tensor) -> Tensor:
        """Logits of points: the pass over boxes without extent, (B, K) float64. NaN where anything is not finite."""
        return self.ends(images, images)[0].double()

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        """Ends of every logit over the boxes, (B, K) each. NaN where anything is not finite."""
        lower, upper, finite_B = self._run(lower, upper)
        if self.head is not None:
            lower, upper, fits_B = self.head(lower, upper)
            finite_B = finite_B & fits_B & lower.isfinite().all(1) & upper.isfinite().all(1)
        return tuple(torch.where(finite_B[:, None], end, math.nan) for end in (lower, upper))

    def worst(self, lower: Tensor, upper: Tensor, class_B: Tensor) -> Worst:
        """Push boxes through and compare one class of each image with all others."""
        lower, upper, finite_B = self._run(lower, upper)
        if self.head is not None:
            margin_BK, fits_B = self.head.margins(lower, upper, class_B)
            above_BK, finite_B = margin_BK > 0, finite_B & fits_B
        else:
            own_B1 = lower.gather(1, class_B[:, None])
            margin_BK, above_BK = own_B1.double() - upper.double(), below(upper, own_B1)
        margin_BK = margin_BK.scatter(1, class_B[:, None], math.inf)
        gap_B, rival_B = margin_BK.min(1)
        holds_B = above_BK.scatter(1, class_B[:, None], True).all(1) & finite_B
        return Worst(torch.where(finite_B, gap_B, -math.inf), rival_B, holds_B)

    def _run(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends after all lines but a linear head's, and whether every number met is finite and every sum fits, (B,)."""
        remembered: list[Box] = []
        finite_B = torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        for line in self.lines:
            if isinstance(line, Fork):
                remembered.append((lower, upper))
                continue
            if isinstance(line, Join):
                low, high = remembered.pop()
                lower, upper = self.rounding.once(low + lower, high + upper)
            else:
                lower, upper, fits_B = line(lower, upper)
                finite_B = finite_B & fits_B
            for end in (lower, upper):
                # An infinity may be hidden again by a later clipping; in the deployed network it could have become NaN.
                finite_B = finite_B & end.flatten(1).isfinite().all(1)
        return lower, upper, finite_B


def below(upper_BK: Tensor, own_B1: Tensor) -> Tensor:
    """U_j < L_y, a comparison: a difference would round."""
    return upper_BK < own_B1


class Cast:
    """Weights in other formats, each converted once: those of the largest networks take a gigabyte."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        key = id(weight), dtype
        if key not in self._kept:
            self._kept[key] = weight, weight.detach().to(dtype)  # kept alive, so that no other tensor gets its id
        return self._kept[key][1]


def rule(name: str, layer: nn.Module, rounding: Rounding, cast: Cast | None = None) -> "_Exact":
    """What a layer does to a box: called with two ends, (B, ...), it returns two ends and whether every sum fits, (B,).

    Raises:
        TypeError: a layer without a rule, by name and place.
    """
    for kinds, line in _LINES.items():
        if type(layer) in kinds:
            return line(name, layer, rounding, cast or Cast())
    raise TypeError(f"no l_inf rule for {type(layer).__name__} at {name!r}: give the layer one or remove it")


class _Exact:
    """A layer that only moves and compares; also what all lines share."""

    def __init__(self, name: str, layer: nn.Module, rounding: Rounding, cast: Cast):
        self.name, self.layer, self.rounding = name, layer, rounding

    def __call__(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of the outputs, and for each image whether no sum on the way can overflow."""
        return *self.ends(lower, upper), torch.ones(len(lower), dtype=torch.bool, device=lower.device)

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        """For layers without sums."""
        layer = self.layer
        if type(layer) is Negate:
            return -upper, -lower
        return compared(layer, lower), compared(layer, upper)


class _Shift(_Exact):
    """x - a. A deployed network may round a before it subtracts, or after: both neighbours of a are met."""

    def __init__(self, name: str, layer: Shift, rounding: Rounding, cast: Cast):
        super().__init__(name, layer, rounding, cast)
        amount = torch.tensor([layer.amount], dtype=torch.float64)
        ends = cast_outward(amount, amount, rounding.dtype) if rounding.counted else [amount.to(rounding.dtype)] * 2
        self.low, self.high = map(float, ends)

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        return self.rounding.once(lower - self.high, upper - self.low)


class _Distance(_Exact):
    """Two rounded operations, monotone in every input."""

    def __init__(self, name: str, layer: Distance, rounding: Rounding, cast: Cast):
        super().__init__(name, layer, rounding, cast)
        self.weight_OI = cast(layer.weight, rounding.dtype).flatten(1)
        self.shift_O = cast(layer.shift, rounding.dtype)

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        low, high = self.rounding.once(*kernels.interval(lower, upper, self.weight_OI))
        # One step below 0 is no distance.
        return self.rounding.once(low.clamp_min(0) + self.shift_O, high + self.shift_O)


class _DistanceConv(_Distance):
    """The same over windows; padding is exactly 0."""

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        layer, batch = self.layer, len(lower)
        (low, size), (high, _) = (
            windows(end, layer.kernel_size, layer.stride, layer.padding) for end in (lower, upper)
        )
        low, high = super().ends(low, high)
        return from_windows(low, batch, size), from_windows(high, batch, size)


class _Sorted(_Distance):
    """Sorted distances, exact up to one rounding each, and their weighted sum, which is not."""

    def __init__(self, name: str, layer: SortedDistance, rounding: Rounding, cast: Cast):
        super().__init__(name, layer, rounding, cast)
        self.coefficients = layer.coefficients().double().tolist()
        terms = len(self.coefficients)
        self.error = rounding.sum_error(terms, name) if rounding.counted else 0.0
        self.own = own_error(terms, name)

    def __call__(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low_BOT, high_BOT = kernels.top_interval(lower, upper, self.weight_OI, len(self.coefficients))
        low_BOT, high_BOT = self.rounding.once(low_BOT, high_BOT)
        low, high = self._sum(low_BOT.clamp_min(0)), self._sum(high_BOT)
        shift_O = self.shift_O.double()
        if not self.rounding.counted:
            ends = ((end + shift_O).to(self.rounding.dtype) for end in (low, high))
            return *ends, torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        terms, largest_B = len(self.coefficients), high_BOT.double().flatten(1).amax(1)
        flushed_B = self.rounding.flushed(terms, max(self.coefficients), largest_B)[:, None]
        size = ((high + flushed_B) * (1 + 2 * self.own) + shift_O.abs()) * UP
        error = (size * self.error + 2 * flushed_B) * UP + LOST
        ends = outward(low + shift_O - error, high + shift_O + error)
        return *cast_outward(*ends, self.rounding.dtype), _fits(size, self.rounding)

    def _sum(self, sorted_BOT: Tensor) -> Tensor:
        # One product and addition after another: the same bits whatever the batch.
        total = torch.zeros_like(sorted_BOT[..., 0], dtype=torch.float64)
        for coefficient, value in zip(self.coefficients, sorted_BOT.double().unbind(-1), strict=True):
            total = total + coefficient * value
        return total


class _Affine(_Exact):
    """Centre and reach, in float64 whatever the arithmetic."""

    def __init__(self, name: str, layer: nn.Module, rounding: Rounding, cast: Cast):
        super().__init__(name, layer, rounding, cast)
        self.weight = cast(layer.weight, torch.float64)
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
        self.bias = bias.double()
        self.size = self.weight.abs()
        self.terms, self.largest = self.weight[0].numel(), float(self.size.max())
        self.error = rounding.sum_error(self.terms, name) if rounding.counted else 0.0
        self.own = own_error(self.terms, name)

    def __call__(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centre, reach, size = _centred(lower, upper)
        middle = affine(self.layer, centre, self.weight, self.bias)
        spread = affine(self.layer, reach, self.size, None)
        if not self.rounding.counted:
            ends = ((middle - spread).to(self.rounding.dtype), (middle + spread).to(self.rounding.dtype))
            return *ends, torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        flushed = self._flushed(size).view(-1, *[1] * (middle.ndim - 1))
        total = self._raised(affine(self.layer, size, self.size, self.bias.abs()), flushed)
        extent = (self._raised(spread, flushed) + total * self.error + 2 * flushed) * UP + LOST
        ends = outward(middle - extent, middle + extent)
        return *cast_outward(*ends, self.rounding.dtype), _fits(total, self.rounding)

    def margins(self, lower: Tensor, upper: Tensor, class_B: Tensor) -> tuple[Tensor, Tensor]:
        """Lower ends of z_y - z_j over the box, (B, K) float64, and whether no sum can overflow."""
        centre, reach, size = _centred(lower, upper)
        middle, spread = (torch.zeros(len(lower), len(self.weight)).to(centre) for _ in range(2))
        for label in class_B.unique().tolist():
            # All images each time: a product's last bits may depend on how many there are.
            apart_KI, ahead_K = self.weight[label] - self.weight, self.bias[label] - self.bias
            mine_B1 = (class_B == label)[:, None]
            middle = torch.where(mine_B1, affine(self.layer, centre, apart_KI, ahead_K), middle)
            spread = torch.where(mine_B1, affine(self.layer, reach, apart_KI.abs(), None), spread)
        if not self.rounding.counted:
            return middle - spread, torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        flushed = self._flushed(size)[:, None]
        total = self._raised(affine(self.layer, size, self.size, self.bias.abs()), flushed)
        both = (total + total.gather(1, class_B[:, None])) * UP
        extent = (self._raised(spread, 2 * flushed) + both * self.error + 4 * flushed) * UP + LOST
        return down(middle - extent), _fits(both, self.rounding)

    def _flushed(self, size: Tensor) -> Tensor:
        return self.rounding.flushed(self.terms, self.largest, size.flatten(1).amax(1))

    def _raised(self, computed: Tensor, flushed: Tensor) -> Tensor:
        """Above the exact sum of non-negative products, given what was computed for it."""
        return (computed + flushed) * ((1 + 2 * self.own) * UP)


class _Tanh(_Exact):
    """Off by a few units in the last place, in the pass and in the deployed network."""

    def ends(self, lower: Tensor, upper: Tensor) -> Box:
        low, high = lower.double().tanh(), upper.double().tanh()
        if not self.rounding.counted:
            return low.to(self.rounding.dtype), high.to(self.rounding.dtype)
        units = Fraction(1, 2**53) + (self.rounding.form.unit if self.rounding.executed else 0)
        relative = TANH_UNITS * float(units) * (1 + 2.0**-40)
        flushed = 8 * float(self.rounding.form.smallest)
        ends = down(low - (low.abs() * relative + flushed)), up(high + (high.abs() * relative + flushed))
        return cast_outward(*ends, self.rounding.dtype)


_LINES: dict[tuple[type, ...], type[_Exact]] = {
    (nn.Flatten, nn.ZeroPad2d, nn.Identity, nn.ReLU, MinMax, Negate): _Exact,
    (Shift,): _Shift,
    (Distance,): _Distance,
    (DistanceConv,): _DistanceConv,
    (SortedDistance,): _Sorted,
    AFFINE: _Affine,
    (nn.Tanh,): _Tanh,
}


def _centred(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A point c, rho >= |x - c| and m >= |x| for all x in the box, in float64."""
    lower, upper = lower.double(), upper.double()
    centre = (lower + upper) / 2
    # Differences are rounded once, exact where subnormal: one step in 2^-52 up is enough, and keeps 0 at 0.
    reach = torch.maximum(upper - centre, centre - lower) * (1 + 2.0**-51)
    return centre, reach, torch.maximum(lower.abs(), upper.abs())


def _fits(total: Tensor, rounding: Rounding) -> Tensor:
    """Whether no partial sum can overflow, in the pass or in the deployed network, (B,)."""
    return (total < float(rounding.form.largest) / 4).flatten(1).all(1)
