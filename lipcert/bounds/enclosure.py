"""norm_bound: a proven enclosure of the spectral norm of a plain dense or convolution layer.

upper: `verified` (matrices), `torus` (convolutions, fast), `banded` (convolutions, tight), rounding included. lower:
the stretch ||Av|| / ||v|| of one stored vector v, every rounding counted downwards. Neither trusts an iteration to have
converged. Effort "exact" proves the same in whole numbers (`integers`).

Shape suffixes: G groups, O outputs, I inputs, K taps and inputs together, T taps, P output positions, N columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds.banded import banded_norm_squared, grams_of
from lipcert.bounds.defect import defect_squared
from lipcert.bounds.integers import (
    banded_squares_exactly,
    grid_bits,
    grid_loss,
    matrix_squared_exactly,
    on_grid,
    stretch_exactly,
)
from lipcert.bounds.operators import Operator, read_operator
from lipcert.bounds.rounding import (
    LOST_IN_SCALING,
    Arithmetic,
    TorchArithmetic,
    largest,
    root_down,
    root_up,
    round_down,
    round_up,
)
from lipcert.bounds.search import start_vector, top_eigenpair, top_of_gram
from lipcert.bounds.torus import torus_norm
from lipcert.bounds.verified import GramCheck, absolute_norm_squared, find_factor, matrix_norm_squared

_MATRIX_ENTRIES = 1024**2  # a convolution whose matrix has at most so many entries is bounded as that matrix
_TINY_DEFECT = Fraction(1, 10**9)  # the bound from the orthogonality defect exceeds the norm by no more than this


@dataclass(frozen=True)
class Enclosure:
    """lower <= true spectral norm <= upper, both proven; `method` names how the upper end was found.

    vector: the input, float32 of the layer's input shape, whose stretch is the lower end (None for zero weights). Its
    entries are multiples of 2**-24 with a peak of 1.
    """

    lower: float
    upper: float
    method: str
    vector: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper:
            raise ArithmeticError(f"lower={self.lower!r}, upper={self.upper!r}: not an enclosure; the bound is refused")


def norm_bound(
    layer: nn.Module,
    input_shape: tuple[int, ...],
    norm: str = "l2",
    effort: str = "fast",
    device: torch.device | str | None = None,
) -> Enclosure:
    """Proven enclosure of the l2 operator norm of a plain layer (its bias does not matter).

    layer: nn.Linear or nn.Conv2d (any stride, padding, dilation, groups; padding_mode zeros or circular).
    input_shape: (features,) or (channels, height, width), without the batch.
    effort: "fast"; "tight": convolutions by the band of their Gram matrix, not by a torus; "exact": as tight, both ends
        checked in integers by python-flint, so that no floating-point sum is trusted.
    device: where to compute; default where the weights are.

    Excess of upper over the truth: about 5e-10, at most 2e-9 for dense layers, except "torus" for zero padding:
    typically 1e-3 at 16 x 16 and below 1e-2 at 8 x 8. On one core a convolution of 64 channels at 16 x 16 takes about
    0.4 s fast, 4 s tight and some minutes exact; a dense layer 512 x 3072 takes 0.1 s, and 2 s exact.
    method of the result: "zero"; "matrix" (layers that are a small matrix, or many copies of one), "defect" (such, and
    orthogonal up to 1e-9), "torus", "banded"; "exact matrix", "exact banded".

    TypeError: a layer nothing is known about. ValueError: settings or weights that have no bound, or none of this
    effort (circular padding: never exact, and tight only where the outputs go round once). ImportError: "exact"
    without python-flint.
    """
    if norm != "l2":
        raise ValueError(f"norm={norm!r}: norm_bound proves 'l2' norms only; use norm='l2'")
    if effort not in ("fast", "tight", "exact"):
        raise ValueError(f"effort={effort!r}: must be 'fast', 'tight' or 'exact'")
    with torch.inference_mode(False), torch.no_grad():
        operator = read_operator(layer, input_shape, device)
        arithmetic = TorchArithmetic(operator.weights_GOIKL.device)
        with torch.autocast(operator.weights_GOIKL.device.type, enabled=False):
            enclosure = enclose(operator, arithmetic, effort)
    if enclosure.vector is None:
        return enclosure
    return replace(enclosure, vector=enclosure.vector.reshape(tuple(input_shape)))


def enclose(operator: Operator, arithmetic: Arithmetic, effort: str = "fast") -> Enclosure:
    """The enclosure in a given arithmetic; its vector has the shape (C, H, W) of an image."""
    weights = operator.weights_GOIKL
    if not bool(weights.any()):
        return Enclosure(0.0, 0.0, "zero")
    matrices_GMN = exact_matrices(operator)
    if effort == "exact":
        return _enclose_exactly(operator, matrices_GMN, arithmetic)
    if matrices_GMN is not None:
        upper, method, image_CHW = _matrix_upper(operator, matrices_GMN, arithmetic)
    else:
        upper, method, image_CHW = _convolution_upper(operator, arithmetic, effort)
    image_CHW = storable(image_CHW)
    lower = stretch_at_least(weights.flatten(3), operator.patches(image_CHW), image_CHW, arithmetic)
    return _scaled_back(operator, lower, upper, method, image_CHW)


def _scaled_back(operator: Operator, lower: Fraction, upper: Fraction, method: str, image_CHW: Tensor) -> Enclosure:
    # Entries zeroed by scaling: a change below LOST_IN_SCALING in each weight moves the norm by less than this.
    lost = LOST_IN_SCALING * operator.weights_GOIKL[0].numel()
    unit = Fraction(2) ** operator.scale
    ends = round_down(max(Fraction(0), lower - lost) * unit), round_up((upper + lost) * unit)
    return Enclosure(*ends, method, image_CHW.to("cpu", torch.float32))


def _enclose_exactly(operator: Operator, matrices_GMN: Tensor | None, arithmetic: Arithmetic) -> Enclosure:
    """Both ends in integers (module `integers`); floating point only finds the factor and the vector."""
    weights = operator.weights_GOIKL
    if matrices_GMN is not None:
        check = GramCheck(matrices_GMN, arithmetic)
        guess, index, vector_N = top_of_gram(check.gram_BNN)
        if matrices_GMN.shape[-1] != check.columns:
            vector_N = matrices_GMN[index].mT @ vector_N
        image_CHW = _image_of(operator, index, vector_N)
        square, _, factor_BNN = find_factor(check, guess)
        bits, method = grid_bits(square**0.5), "exact matrix"
        pairs = zip(check.matrices_BMN, [None] * len(weights) if factor_BNN is None else factor_BNN, strict=True)
        squares = [matrix_squared_exactly(on_grid(matrix, bits)[0], factor, square, bits) for matrix, factor in pairs]
    elif operator.axes[0].circular:
        raise ValueError("effort='exact' for circular padding: its frequencies are irrational; use effort='tight'")
    else:
        guess, image_CHW = _stretched_image(operator, torch.float64, 1e-7)
        bits, method = grid_bits(guess**0.5), "exact banded"
        squares = banded_squares_exactly(grams_of(operator, arithmetic), guess, bits)
    image_CHW = storable(image_CHW)
    numbers_GOK, lossless = on_grid(weights.flatten(2), bits)
    whole_image = (image_CHW * 2.0**24).round().cpu()
    patches_GKP = operator.patches(whole_image.to(weights.device)).cpu()
    lower = stretch_exactly(numbers_GOK, bits, patches_GKP.to(torch.int64).numpy(), whole_image.to(torch.int64).numpy())
    loss = grid_loss(weights, bits, lossless)
    return _scaled_back(operator, max(Fraction(0), lower - loss), root_up(max(squares)) + loss, method, image_CHW)


def _matrix_upper(operator: Operator, matrices_GMN: Tensor, arithmetic: Arithmetic) -> tuple[Fraction, str, Tensor]:
    check = GramCheck(matrices_GMN, arithmetic)
    (square, center), method, index = defect_squared(check), "defect", 0
    vector_N = check.gram_BNN.new_ones(check.columns)
    if square > center * (1 + _TINY_DEFECT):
        square, index, vector_N = matrix_norm_squared(check)
        method = "matrix"
    if matrices_GMN.shape[-1] != check.columns:  # the check transposed: u is known, A^T u points along v
        vector_N = matrices_GMN[index].mT @ vector_N
    return root_up(square), method, _image_of(operator, index, vector_N)


def _convolution_upper(operator: Operator, arithmetic: Arithmetic, effort: str) -> tuple[Fraction, str, Tensor]:
    if effort == "fast":
        return torus_norm(operator, arithmetic), "torus", _stretched_image(operator, torch.float32, 1e-4)[1]
    if operator.axes[0].circular:
        if any(axis.size % axis.stride or axis.outputs * axis.stride != axis.size for axis in operator.axes):
            raise ValueError(
                f"effort={effort!r} for circular padding whose outputs do not go round exactly once: no tight bound is "
                "known; use effort='fast' or padding_mode='zeros'"
            )
        return torus_norm(operator, arithmetic), "torus", _stretched_image(operator, torch.float64, 1e-7)[1]
    guess, image_CHW = _stretched_image(operator, torch.float64, 1e-7)
    return root_up(banded_norm_squared(operator, guess, arithmetic)), "banded", image_CHW


def storable(image_CHW: Tensor) -> Tensor:
    """The image scaled to a peak of 1 and cut to multiples of 2**-24: exact in float32, and small integers as well."""
    image_CHW = image_CHW / image_CHW.abs().amax().clamp_min(1e-300)
    return torch.nan_to_num((image_CHW * 2.0**24).round() * 2.0**-24)


def _image_of(operator: Operator, index: int, vector_N: Tensor) -> Tensor:
    """The image on which group `index` sees this vector: all its inputs, or one patch of separate ones."""
    groups, _, ins, taps_high, taps_wide = operator.weights_GOIKL.shape
    high, wide = operator.axes
    image_GIHW = vector_N.new_zeros(groups, ins, high.size, wide.size)
    if len(vector_N) == operator.inputs:
        image_GIHW[index] = vector_N.reshape(ins, high.size, wide.size)
    else:
        places = []
        for axis in (high, wide):
            start = -(-axis.front // axis.stride) * axis.stride - axis.front
            places.append(slice(start, start + axis.extent, axis.dilation))
        image_GIHW[index, :, places[0], places[1]] = vector_N.reshape(ins, taps_high, taps_wide)
    return image_GIHW.flatten(0, 1)


def exact_matrices(operator: Operator) -> Tensor | None:
    """One matrix for each group whose largest norm is that of the operator; None where they would be too large.

    If no two outputs share an input (dense layers, patches), the kernel itself will do: the operator is a direct sum of
    it, once for each patch inside the input, and of parts of it, for patches that reach into the padding.
    """
    high, wide = operator.axes
    if high.separate and wide.separate:
        return operator.weights_GOIKL.flatten(2)
    entries = operator.weights_GOIKL.shape[0] * operator.inputs * operator.outputs
    return operator.matrix() if entries <= _MATRIX_ENTRIES and not high.circular else None


def stretch_at_least(weights_GOIT: Tensor, patches_GKP: Tensor, vector: Tensor, arithmetic: Arithmetic) -> Fraction:
    """Proven lower bound on ||Av|| / ||v||, for Av = weights times patches (K = I*T inputs a number, P positions).

    The computed y has |y - Av| <= gamma_K |A||v| + 4Kw, so ||Av|| >= ||y|| - gamma_K || |A| || ||v|| - 4Kw sqrt(len y),
    with || |A| || from `absolute_norm_squared`. ||y|| is rounded down, ||v|| and the sums up (module `rounding`).
    """
    terms = patches_GKP.shape[1]
    outputs_GOP = arithmetic.product(weights_GOIT.flatten(2), patches_GKP)
    absolute = root_up(absolute_norm_squared(weights_GOIT, arithmetic))
    length = root_up(arithmetic.sum_at_most(largest(arithmetic.squares(vector.reshape(1, 1, -1))), vector.numel()))
    stretched = arithmetic.squares(outputs_GOP.reshape(1, 1, -1))
    stretched = root_down(arithmetic.sum_at_least(largest(stretched), outputs_GOP.numel()))
    error = arithmetic.gamma(terms) * absolute * length
    error += arithmetic.flushed(terms) * outputs_GOP.numel()
    return max(Fraction(0), stretched - error) / length if length > 0 else Fraction(0)


def _stretched_image(operator: Operator, dtype: torch.dtype, tolerance: float) -> tuple[float, Tensor]:
    """An image that the operator stretches about as much as it can, and the square of how much (untrusted)."""
    weights = operator.weights_GOIKL
    shape = (weights.shape[0] * weights.shape[2], operator.axes[0].size, operator.axes[1].size)
    weights_DIKL = weights.flatten(end_dim=1).to(dtype)

    def apply_gram(vector_N: Tensor) -> Tensor:
        image_CHW = vector_N.reshape(shape).requires_grad_()
        with torch.enable_grad():
            energy = operator.apply(image_CHW, weights_DIKL).square().sum() / 2
            return torch.autograd.grad(energy, image_CHW)[0].flatten()

    size = shape[0] * shape[1] * shape[2]
    start_N = start_vector(size, weights.device, dtype)[:, 0]
    value, vector_N = top_eigenpair(apply_gram, start_N, tolerance)
    return value, vector_N.reshape(shape)
