"""How far a computed forward pass can be from the exact one: at the image, and anywhere in the ball around it.

Notation. The network is its flat program (`lipcert.program`). f_l is its first l lines in exact arithmetic on the
stored weights, c_l a proven bound on line l's norm, P_l one on the Lipschitz constant of f_l (c_1 ... c_l where there
is no residual block), m_l a proven bound on the norm of |W_l| (`bounds.magnitude`), k_l the number of products in one
output, n_l the number of outputs. u and w are unit roundoff and smallest normal number of an arithmetic.

**Centre.** The certifier computes x_l at the image x in its own arithmetic. e_l >= ||x_l - f_l(x)||:
    e_0 = u ||x_0||                                  (pixels are fractions such as k/255; x_0 is what was stored)
    affine:  e_l = c_l e_{l-1} + gamma_{k+2} s_l + t_l,   s_l >= || |W_l||x_{l-1}| + |b_l| ||
    shift:   e_l = e_{l-1} + u (1 + 2u) (||x_l|| + |a| sqrt(n))
    sorting, clipping at 0, padding, reshaping: e_l = e_{l-1}.
*Proof.* Layer l moves the difference of its two inputs by at most c_l; its own rounding is at most gamma_{k+1} |W||x|
+ |b| entry by entry in any order of summation, fused or not (k products, the bias one more term).

**Ball.** y_l is what the *deployed* arithmetic (u, w) computes, in any order, at any x' with ||x' - x|| <= r, rounded
to that arithmetic first. With d_l(r) >= ||y_l - f_l(x')|| over the whole ball, g_l(r) = d_l(r) + P_l r + e_l is at
least ||y_l - x_l||:
    d_0 = u (||x_0|| + e_0 + r) + w sqrt(n)
    affine:  d_l = c_l d_{l-1} + gamma_{k+2} (s_l + m_l g_{l-1}) + t_l
    shift:   d_l = d_{l-1} + u (1 + 2u) (||x_l|| (1 + 2u) + g_{l-1} + |a| sqrt(n)),
since || |W||y| + |b| || <= s_l + || |W||y - x_{l-1}| ||. All of them are affine in r: two numbers, `at` and `slope`.

**Residual blocks.** At a Fork, line s, a run remembers x_s; e_s, d_s, g_s and P_s are kept with it. The lines of the
branch carry on from there. Line l behind them is the Join, x_l = fl(x_s + x_{l-1}) and f_l = f_s + f_{l-1}:
    join:    P_l = P_s + P_{l-1},  e_l = e_s + e_{l-1} + u (1 + 2u) ||x_l||
             d_l = d_s + d_{l-1} + u ((1 + 2u) ||x_l|| + g_s + g_{l-1}).
*Proof.* Triangle inequality, for maps and for errors; if the branch has the constant c, P_l is (1 + c) P_s. An addition
is off by at most u |x_s + x_{l-1}| <= u (1 + 2u) |x_l|; the deployed one by at most u ||y_s + y_{l-1}||, and that norm
is at most ||x_s + x_{l-1}|| + ||y_s - x_s|| + ||y_{l-1} - x_{l-1}||. QED
The sum is an addition of its own, after the branch has been rounded. The errors of the two paths are added although
they begin as one: like the constant 1 + c, loose where the branch takes back what reached it.

**Underflow.** Results and operands below w may be read as zero:
    t_l = w sqrt(n) (4 (k+2) + k max|W| + sqrt(k) ||input||).
Layers that only compare or copy may flush too: w sqrt(n). A shift or a join reads two numbers and writes one, each of
which may be flushed: 4 w sqrt(n), second order included.

**Head.** Logit i is off by h_i e + q_i, with h the rows, q_i >= gamma_{F+2} (|h_i||x| + |b_i|) + t; a margin
z_p - z_j by ||h_p - h_j|| e + q_p + q_j. So with z computed at the centre and K_pj = P ||h_p - h_j||:
    real:      z_p - z_j - (||h_p - h_j|| e + q_p + q_j) > K_pj r    proves the exact network on the ball;
    executed:  z_p - z_j - (...) - (||h_p - h_j|| d(r) + q'_p(r) + q'_j(r)) > K_pj r    proves the deployed one.
**Overflow.** Partial sums in any order stay below 2 (s_l + m_l g_{l-1}); differences, the constants of shifts and the
sums of joins below twice what is in the brackets above; that must be below the largest number.

This is a running error analysis (Higham, Accuracy and Stability, 2nd ed., section 3.3) of both runs; Murray
(arXiv 2603.13334) bounds the same deviation from weights alone, without the activations at the image.

*Rounding of the bounds themselves.* Constants are rational until they are rounded up once. Per-image quantities are
sums and products of non-negative float64 numbers, fewer than 100 operations a layer and no subtraction, so each layer's
result times 1 + 2**-45, plus 2**-900 for underflow, is above the exact one. Norms of n entries are raised by their own
(n + 8) 2**-52 first.

Shape letters: B batch, K classes, L layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds.magnitude import magnitude_norm
from lipcert.bounds.rounding import root_up, round_up
from lipcert.forward import AFFINE, Activations, FloatFormat, Place
from lipcert.layers import Shift
from lipcert.program import Fork, Join

_UP = 1 + 2.0**-45
_LOST = 2.0**-900


@dataclass(frozen=True)
class Step:
    """What the recursion needs to know of one line of the program; floats are rounded up.

    norm: c_l. magnitude: m_l. bias: norm of |b| over all outputs. terms: k. outputs: number of entries.
    weight: largest |weight|. shift: |a|, the constant that a `Shift` subtracts. fork, join: ends of a residual block.
    """

    affine: bool
    norm: float = 1.0
    magnitude: float = 1.0
    bias: float = 0.0
    terms: int = 0
    input_shape: tuple[int, ...] = ()
    outputs: int = 1
    weight: float = 0.0
    shift: float | None = None
    fork: bool = False
    join: bool = False

    @property
    def inputs(self) -> int:
        """Number of entries of the input."""
        return math.prod(self.input_shape)


@dataclass(frozen=True)
class Linear:
    """at + slope * r, per image or per image and class: bounds over a ball of radius r."""

    at: Tensor
    slope: Tensor

    def __add__(self, other: "Linear | Tensor | float") -> "Linear":
        if isinstance(other, Linear):
            return Linear(self.at + other.at, self.slope + other.slope)
        return Linear(self.at + other, self.slope)

    def __mul__(self, factor: "Tensor | float") -> "Linear":
        return Linear(self.at * factor, self.slope * factor)

    def up(self) -> "Linear":
        """Above the exact value after fewer than 100 operations."""
        return Linear(self.at * _UP + _LOST, self.slope * _UP + _LOST)


@dataclass(frozen=True)
class Deviation:
    """Bounds for each image on what rounding does to a margin; margins of classes i, j take `state` ||h_i - h_j||.

    centre_B, centre_BK: e and q of the computed logits. ball, ball_K: d(r) and q'(r) of the deployed arithmetic.
    sums: the largest partial sum met on the ball.
    """

    centre_B: Tensor
    centre_BK: Tensor
    ball: Linear
    ball_K: Linear
    sums: Linear


def steps(program: Sequence[Place], norms: Sequence[float]) -> list[Step]:
    """One step a line; `norms` are the proven upper ends of the affine layers, anything for other lines."""
    return [_step(place, norm) for place, norm in zip(program, norms, strict=True)]


def _step(place: Place, norm: float) -> Step:
    layer, sizes = place.layer, {"input_shape": place.shape, "outputs": math.prod(place.after)}
    if not isinstance(layer, AFFINE):
        amount = abs(layer.amount) if isinstance(layer, Shift) else None
        return Step(False, shift=amount, fork=isinstance(layer, Fork), join=isinstance(layer, Join), **sizes)
    weight = layer.weight.detach().double().abs().cpu()
    squares = [Fraction(b) ** 2 for b in layer.bias.tolist()] if layer.bias is not None else []
    bias = round_up(root_up(math.prod(place.after[1:]) * sum(squares, start=Fraction(0))))
    magnitude, largest = magnitude_norm(layer, place.shape), float(weight.max())
    return Step(True, norm, magnitude, bias, weight[0].numel(), weight=largest, **sizes)


def deviation(
    plan: Sequence[Step], activations: Activations, head: nn.Linear, computed: FloatFormat, deployed: FloatFormat
) -> Deviation:
    """Run both recursions for a batch of activations.

    computed: the arithmetic that produced `activations`. deployed: the one the network is run in. Magnitudes are used
    where `activations` has them, else norms bound them.

    Raises:
        ValueError: a sum so long that the arithmetic promises nothing about it.
    """
    runs = _Runs(activations, plan, computed, deployed)
    for index, step in enumerate(plan[:-1]):
        if step.affine:
            runs.affine(index, step)
        elif step.fork:
            runs.fork()
        elif step.join:
            runs.join(index, step)
        else:
            runs.other(index, step)
    return runs.head(len(plan) - 1, plan[-1], head)


class _Runs:
    """State of the two recursions: e (centre_B), d (ball), P (product), and what open forks remember of them."""

    def __init__(
        self, activations: Activations, plan: Sequence[Step], computed: FloatFormat, deployed: FloatFormat
    ) -> None:
        self.activations, self.computed, self.deployed = activations, computed, deployed
        measured = torch.tensor([step.inputs if step.affine else step.outputs for step in plan])
        self.norms_BL = _raised(activations.norms_BL, measured)
        pixels_B = _raised(activations.image_norms_B, torch.tensor(plan[0].inputs))
        # The stored image is rounded once in float64 and, if the pass runs in another arithmetic, once more.
        rounded = round_up(computed.unit) + 2.0**-52
        self.centre_B = pixels_B * (rounded * _UP) + _copied(plan[0].inputs, computed)
        there = Linear(pixels_B + self.centre_B, torch.ones_like(pixels_B))
        self.ball = (there * round_up(deployed.unit) + _copied(plan[0].inputs, deployed)).up()
        self.product = 1.0
        self.remembered: list[tuple[Tensor, Linear, float, Linear]] = []
        self.sums = Linear(torch.zeros_like(pixels_B), torch.zeros_like(pixels_B))

    def apart(self) -> Linear:
        """g = d + P r + e: how far any deployed activation on the ball is from the computed centre."""
        return Linear(self.ball.at + self.centre_B, self.ball.slope + self.product).up()

    def affine(self, index: int, step: Step) -> None:
        norm_B, apart = self.norms_BL[:, index], self.apart()
        if self.activations.magnitudes_BL is None:
            size_B = (norm_B * step.magnitude + step.bias) * _UP
        else:
            computed_B = _raised(self.activations.magnitudes_BL[:, index], torch.tensor(step.outputs))
            size_B = self._exact(computed_B, step, norm_B, step.outputs)
        reach = (apart * step.magnitude + size_B).up()
        self._meet(reach)
        own_B = size_B * _gamma(step, self.computed) + _flushed(step, self.computed, norm_B, step.outputs)
        own = reach * _gamma(step, self.deployed)
        own += (apart + norm_B) * _flushed_slope(step, self.deployed, step.outputs)
        own += _flushed(step, self.deployed, 0.0, step.outputs)
        self._update(self.centre_B * step.norm + own_B, self.ball * step.norm + own)
        self.product = math.nextafter(self.product * step.norm, math.inf)

    def other(self, index: int, step: Step) -> None:
        centre, ball = _copied(step.outputs, self.computed), Linear(0.0, 0.0) + _copied(step.outputs, self.deployed)
        if step.shift is not None:
            # `amount` is rounded to the arithmetic before it is subtracted: u (1 + 2u) covers both roundings.
            constant = step.shift * math.sqrt(step.outputs) * _UP
            norm_B, units = self.norms_BL[:, index], [round_up(f.unit) for f in (self.computed, self.deployed)]
            centre = (norm_B + constant) * (units[0] * (1 + 2 * units[0])) + 4 * centre
            there = (self.apart() + norm_B * (1 + 2 * units[1]) + constant).up()
            ball = there * (units[1] * (1 + 2 * units[1])) + 4 * ball.at
            self._meet(there)
        self._update(self.centre_B + centre, self.ball + ball)

    def fork(self) -> None:
        self.remembered.append((self.centre_B, self.ball, self.product, self.apart()))

    def join(self, index: int, step: Step) -> None:
        centre_B, ball, product, apart = self.remembered.pop()
        norm_B, units = self.norms_BL[:, index], [round_up(f.unit) for f in (self.computed, self.deployed)]
        size_B = norm_B * (1 + 2 * units[0]) + 4 * _copied(step.outputs, self.computed)
        there = (self.apart() + apart + size_B).up()
        self._meet(there)
        own_B = size_B * units[0] + 4 * _copied(step.outputs, self.computed)
        own = there * units[1] + 4 * _copied(step.outputs, self.deployed)
        self._update(self.centre_B + centre_B + own_B, self.ball + ball + own)
        self.product = math.nextafter(self.product + product, math.inf)

    def head(self, index: int, step: Step, head: nn.Linear) -> Deviation:
        """The same for every logit by itself."""
        norm_B1, apart = self.norms_BL[:, index, None], self.apart()
        apart = Linear(apart.at[:, None], apart.slope[:, None])
        rows_KF = head.weight.detach().double().cpu()
        lengths_K = _raised(torch.linalg.vector_norm(rows_KF, dim=1), torch.tensor(step.inputs))
        if self.activations.head_magnitudes_BK is None:
            bias = 0.0 if head.bias is None else head.bias.detach().double().abs().cpu()
            size_BK = (norm_B1 * lengths_K + bias) * _UP
        else:
            size_BK = self._exact(self.activations.head_magnitudes_BK, step, norm_B1, 1)
        reach = (apart * lengths_K + size_BK).up()
        self._meet(Linear(reach.at.amax(1), reach.slope.amax(1)))
        centre_BK = size_BK * _gamma(step, self.computed) + _flushed(step, self.computed, norm_B1, 1)
        ball = reach * _gamma(step, self.deployed) + _flushed(step, self.deployed, 0.0, 1)
        ball += (apart + norm_B1) * _flushed_slope(step, self.deployed, 1)
        return Deviation(self.centre_B, centre_BK * _UP + _LOST, self.ball, ball.up(), self.sums)

    def _update(self, centre_B: Tensor, ball: Linear) -> None:
        self.centre_B, self.ball = centre_B * _UP + _LOST, ball.up()

    def _meet(self, reach: Linear) -> None:
        """Remember the largest partial sums."""
        self.sums = Linear(torch.maximum(self.sums.at, reach.at), torch.maximum(self.sums.slope, reach.slope))

    def _exact(self, size: Tensor, step: Step, norm: Tensor, outputs: int) -> Tensor:
        """Above the exact |W||x| + |b|, given what the pass computed for it: it fell short by at most gamma."""
        return (size + _flushed(step, self.computed, norm, outputs)) * ((1 + 2 * _gamma(step, self.computed)) * _UP)


def _raised(norms: Tensor, entries: Tensor) -> Tensor:
    """Above the exact norms of vectors with so many entries, given what `vector_norm` computed in float64."""
    return norms * (1 + (entries + 8) * 2.0**-52) + entries.double().sqrt() * 2.0**-500


def _gamma(step: Step, form: FloatFormat) -> float:
    """gamma_{k+2}, rounded up; at most 1/2, so that 1 / (1 - gamma) <= 1 + 2 gamma."""
    product = (step.terms + 2) * form.unit
    if product >= Fraction(1, 3):
        raise ValueError(
            f"a layer adds {step.terms} products: too many for {form.name} to promise anything; use float64"
        )
    return round_up(product / (1 - product))


def _flushed(step: Step, form: FloatFormat, norm: Tensor | float, outputs: int) -> Tensor | float:
    """t: what underflow and flushed operands add to so many outputs together, for inputs of at most this norm."""
    constant = 4.0 * (step.terms + 2) + step.terms * step.weight * _UP
    return norm * _flushed_slope(step, form, outputs) + _copied(outputs, form) * constant


def _flushed_slope(step: Step, form: FloatFormat, outputs: int) -> float:
    return _copied(outputs, form) * math.sqrt(step.terms) * _UP


def _copied(entries: int, form: FloatFormat) -> float:
    """What flushing to zero changes in so many numbers that are only moved or compared."""
    return round_up(form.smallest) * math.sqrt(entries) * _UP
