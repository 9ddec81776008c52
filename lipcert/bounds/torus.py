"""Convolution norms on a twisted torus: the zero-padded operator is a corner of an operator with known singular values.

One axis: y[o] = sum_a K[a] x[o s + a - p] for 0 <= o < m, with x = 0 outside [0, n).
*Polyphase.* Write a - p = s b + r with 0 <= r < s, and x_r[j] = x[s j + r]. Then
y[o] = sum_{b,r} K[s b + r + p] x_r[o+b] is a convolution of stride 1 with s times the channels, block taps b from
b0 = floor(-p/s) to b1 = floor((k-1-p)/s), and signals of length n' = ceil(n/s): where s does not divide n, the last
entries of some x_r lie outside and are zero; letting them be anything can only raise the norm.

Lemma (twisted torus). Let N >= max(n' + max(-b0, q), m), with q = m + b1 - n' the overhang behind the signal. For every
phase phi, ||A|| <= max_j sigma_max(Khat(theta_j)), theta_j = (2 pi j + phi)/N, Khat(theta) = sum_b K_b e^{i theta b}.
Proof. Let T act on C^N by (T x)[o] = sum_b K_b x[o+b], where x is continued by x[j+N] = e^{i phi} x[j]. Row o in [0, m)
reads indices in [b0, m-1+b1] = [b0, n'-1+q]. One in [0, n') is the signal; one in [n', n'+q) lies below N, in the gap
[n', N); one in [b0, 0) is continued from [N+b0, N), again in the gap, as N + b0 >= n'. With x extended by zero into the
gap, the rows of T x in [0, m), m <= N, are A x: so A = P T E with a restriction P and an extension E, both of norm 1.
T is diagonalised by the orthogonal functions e^{i theta_j l}, on which it acts as Khat(theta_j). QED
Two axes: apply it to one after the other. phi = 0 is the ordinary torus (N = n, the usual circular estimate, is *not*
a bound). phi = pi makes the 3-tap box filter exact: 1 + 2 cos(pi/(n+1)). So the smallest of four phases is taken.
An axis with one block tap needs one angle only: there |Khat| does not depend on theta.
Circular padding: where s divides n and m <= n/s, the operator is a restriction of T with N = n/s and phi = 0.

*Symmetry.* Weights are real, so Khat(-theta) = conj Khat(theta): with angles pi j / N, j of one parity in [0, 2N), the
pair (j1, j2) has the norms of (-j1, -j2), and j1 in [0, N] suffices.

*Rounding.* cos and sin come from integer arithmetic, within 2**-53 (`cosine_table`), at arguments reduced in integers.
The computed entry of Re or Im Khat differs from the true one by at most (gamma_T + 2**-53) sum_b |K_b| + 4Tw, T the
number of block taps, since no table entry exceeds 1. Hence the complex error matrix D has |D_oc| <= sqrt(2) times that,
and ||D|| <= || |D| || <= sqrt(2) ((gamma_T + 2**-53) sqrt(||S||_1 ||S||_inf) + 4Tw sqrt(OC)), S_oc = sum_b |K_b,oc|.
Its bound is added to the norm. The computed block X + iY enters the check as [[X, -Y], [Y, X]], which has its norm.

Shape suffixes: G groups, O outputs, I inputs, K L kernel height and width, C inputs times phases of the stride,
T block taps, F frequencies, B = F*G blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.bounds.operators import Axis, Operator
from lipcert.bounds.rounding import Arithmetic, largest, root_up
from lipcert.bounds.search import power_ranking, start_vector, top_of_gram
from lipcert.bounds.verified import GramCheck, prove_below

_TABLE_BITS = 256
_TABLE_ERROR = Fraction(1, 2**53)
_CHUNK_BYTES = 2**26  # one array of blocks; a proof holds about eight of them


@dataclass(frozen=True)
class Circle:
    """One axis after polyphase: block taps first..last on a circle of `size` points; `twist`: a phase may be chosen."""

    stride: int
    first: int
    last: int
    size: int
    twist: bool


def circle(axis: Axis) -> Circle:
    """The smallest circle on which the lemma holds; ValueError for circular padding it does not cover."""
    stride = axis.stride
    first, last = (-axis.front) // stride, (axis.extent - 1 - axis.front) // stride
    length = -(-axis.size // stride)
    if axis.circular:
        if axis.size % stride or axis.outputs > axis.size // stride or max(axis.front, axis.back) > axis.size:
            raise ValueError(
                f"padding_mode='circular' with size {axis.size}, stride {stride}, {axis.outputs} outputs: the stride "
                "must divide the size and the outputs not go round twice; use padding_mode='zeros'"
            )
        return Circle(stride, first, last, axis.size // stride, twist=False)
    if first == last:
        return Circle(stride, first, last, 1, twist=False)
    overhang = axis.outputs + last - length
    return Circle(stride, first, last, max(length + max(-first, overhang), axis.outputs), twist=True)


@functools.lru_cache(maxsize=32)
def cosine_table(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """cos and sin of 2 pi j / count for 0 <= j < count (count >= 2), within 2**-53, from integer arithmetic alone.

    Fixed point with 256 bits: pi by Machin's formula, the first angle by Taylor series (each errs by less than 2**-230,
    there being fewer than 200 terms), the others by rotation. A rotation adds at most 2**-228 to the modulus of the
    error, so even 2**28 of them stay within 2**-200; the last step, int / int, rounds correctly (half an ulp, 2**-54).
    """
    one = 1 << _TABLE_BITS
    turn = 2 * (16 * _arctan_inverse(5) - 4 * _arctan_inverse(239))
    angle = turn // count
    sums, term, order = [one, angle], angle, 1
    while term:
        order += 1
        term = (term * angle >> _TABLE_BITS) // order
        sums[order % 2] += term if order % 4 < 2 else -term
    cos_step, sin_step = sums
    cosine, sine, cosines, sines = one, 0, [], []
    for _ in range(count):
        cosines.append(max(-1.0, min(1.0, cosine / one)))
        sines.append(max(-1.0, min(1.0, sine / one)))
        cosine, sine = (
            (cosine * cos_step - sine * sin_step) >> _TABLE_BITS,
            (sine * cos_step + cosine * sin_step) >> _TABLE_BITS,
        )
    return tuple(cosines), tuple(sines)


def _arctan_inverse(number: int) -> int:
    """arctan(1/number) in fixed point: the alternating series."""
    power, total, order = (1 << _TABLE_BITS) // number, 0, 1
    while power:
        total += power // order if order % 4 == 1 else -(power // order)
        power //= number * number
        order += 2
    return total


class Torus:
    """The frequency blocks of a convolution on its twisted torus."""

    def __init__(self, operator: Operator) -> None:
        self.circles = tuple(circle(axis) for axis in operator.axes)
        self.groups, self.outs = operator.weights_GOIKL.shape[:2]
        self.taps_TGOC, self.offsets = _polyphase(operator, self.circles)
        high, wide = self.circles
        self.turn = 2 * math.lcm(high.size, wide.size)

    def phases(self) -> list[tuple[int, int]]:
        """The twists worth trying: 0 or pi (as 0 or 1) on each axis that allows one."""
        high, wide = self.circles
        return [(t1, t2) for t1 in range(1 + high.twist) for t2 in range(1 + wide.twist)]

    def angles(self, phase: tuple[int, int]) -> Tensor:
        """Integers j with angle 2 pi j / turn of e^{i theta b}, for each frequency and block tap: shape (F, T)."""
        high, wide = self.circles
        rows = torch.arange(phase[0], high.size + 1, 2) * (self.turn // (2 * high.size))
        columns = torch.arange(phase[1], 2 * wide.size, 2) * (self.turn // (2 * wide.size))
        taps = torch.tensor(self.offsets)
        angles = rows[:, None, None] * taps[:, 0] + columns[None, :, None] * taps[:, 1]
        return angles.reshape(-1, len(self.offsets)) % self.turn

    def blocks(self, angles_FT: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
        """Computed real and imaginary parts of Khat, each of shape (F*G, O, C)."""
        flat_TX = self.taps_TGOC.flatten(start_dim=1)
        table_2D = torch.tensor(cosine_table(self.turn), dtype=torch.float64, device=flat_TX.device)
        twiddles_2FT = table_2D[:, angles_FT.to(flat_TX.device)]
        outs, channels = self.taps_TGOC.shape[2:]
        parts = [arithmetic.product(part_FT, flat_TX).reshape(-1, outs, channels) for part_FT in twiddles_2FT]
        return parts[0], parts[1]

    def entry_error(self, arithmetic: Arithmetic) -> Fraction:
        """Upper bound on the norm of (computed Khat - true Khat), for every frequency and group."""
        taps, _, outs, channels = self.taps_TGOC.shape
        magnitudes_TGOC = self.taps_TGOC.abs()
        by_column_GTOC = magnitudes_TGOC.transpose(0, 1).flatten(1, 2)  # (G, T*O, C)
        by_row_GOTC = magnitudes_TGOC.permute(1, 2, 0, 3).flatten(2)  # (G, O, T*C)
        column_sum = arithmetic.sum_at_most(largest(arithmetic.total(by_column_GTOC, dim=1)), taps * outs)
        row_sum = arithmetic.sum_at_most(largest(arithmetic.total(by_row_GOTC, dim=2)), taps * channels)
        relative = arithmetic.gamma(taps) + _TABLE_ERROR
        underflow = arithmetic.flushed(taps) * outs * channels
        return Fraction(3, 2) * (relative * root_up(column_sum * row_sum) + underflow)  # 3/2 > sqrt(2)

    def chunks(self, angles_FT: Tensor) -> Iterator[Tensor]:
        size = 8 * self.groups * 4 * self.outs * self.taps_TGOC.shape[-1]
        return iter(angles_FT.split(max(1, _CHUNK_BYTES // size)))


def _polyphase(operator: Operator, circles: tuple[Circle, ...]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Block taps, shape (T, G, O, I*s1*s2), and the offset (b1, b2) of each: data movement only."""
    weights = operator.weights_GOIKL
    groups, outs, ins = weights.shape[:3]
    spread = weights.new_zeros(*weights.shape[:3], *(axis.extent for axis in operator.axes))
    spread[..., :: operator.axes[0].dilation, :: operator.axes[1].dilation] = weights
    margins: list[int] = []
    for axis, ring in zip(reversed(operator.axes), reversed(circles), strict=True):
        before = -axis.front - ring.stride * ring.first  # zeros in front make the taps start at s b0 <= -p
        total = ring.stride * (ring.last - ring.first + 1)
        margins += [before, total - before - axis.extent]
    padded = F.pad(spread, margins)
    high, wide = circles
    split = padded.unflatten(4, (-1, wide.stride)).unflatten(3, (-1, high.stride))  # G O I b1 r1 b2 r2
    taps = split.permute(3, 5, 0, 1, 2, 4, 6).reshape(-1, groups, outs, ins * high.stride * wide.stride)
    offsets = [(b1, b2) for b1 in range(high.first, high.last + 1) for b2 in range(wide.first, wide.last + 1)]
    return taps.contiguous(), offsets


def _embed(real_BOC: Tensor, imaginary_BOC: Tensor) -> Tensor:
    top = torch.cat((real_BOC, -imaginary_BOC), dim=-1)
    return torch.cat((top, torch.cat((imaginary_BOC, real_BOC), dim=-1)), dim=-2)


def _ranking(torus: Torus, angles_FT: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Rough squared norm of each frequency (largest over the groups), shape (F,): untrusted, in single precision."""
    values = []
    for chunk_FT in torus.chunks(angles_FT):
        blocks = torch.complex(*(part.float() for part in torus.blocks(chunk_FT, arithmetic)))
        start = start_vector(blocks.shape[-1], blocks.device, torch.float32, columns=4).to(blocks.dtype)
        apply = functools.partial(_apply_gram, blocks)
        values.append(power_ranking(apply, start.expand(len(blocks), *start.shape), steps=8))
    return torch.cat(values).reshape(-1, torus.groups).amax(dim=1)


def _apply_gram(blocks_BOC: Tensor, vectors_BCX: Tensor) -> Tensor:
    return blocks_BOC.mH @ (blocks_BOC @ vectors_BCX)


def torus_norm(operator: Operator, arithmetic: Arithmetic) -> Fraction:
    """Proven upper bound on the norm of the convolution (its scaled weights): the most promising of the four phases."""
    torus = Torus(operator)
    guesses = []
    for phase in torus.phases():
        angles_FT = torus.angles(phase)
        ranking_F = _ranking(torus, angles_FT, arithmetic)
        best_FT = angles_FT[ranking_F.topk(min(4, len(ranking_F))).indices.cpu()]
        gram_BCC = GramCheck(_embed(*torus.blocks(best_FT, arithmetic)), arithmetic).gram_BNN
        guesses.append((top_of_gram(gram_BCC)[0], phase))
    guess, phase = min(guesses)
    squares = []
    for chunk_FT in torus.chunks(torus.angles(phase)):
        check = GramCheck(_embed(*torus.blocks(chunk_FT, arithmetic)), arithmetic)
        squares.append(prove_below(check, guess))
    return root_up(max(squares)) + torus.entry_error(arithmetic)
