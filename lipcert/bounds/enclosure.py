"""norm_bound: a proven enclosure of the spectral norm of a plain dense or convolution layer.

upper: `verified` (dense matrices) and `torus` (convolutions), rounding included. lower: the stretch ||Av|| / ||v|| of
one stored vector v, every rounding counted downwards. Neither trusts an iteration to have converged.

Shape suffixes: G groups, O outputs, I inputs, K taps and inputs together, T taps, P output positions, N columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

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
from lipcert.bounds.search import lanczos, start_vector
from lipcert.bounds.torus import torus_norm
from lipcert.bounds.verified import matrix_norm_squared

_MATRIX_ENTRIES = 1024**2  # a convolution whose matrix has at most so many entries is bounded as that matrix


@dataclass(frozen=True)
class Enclosure:
    """lower <= true spectral norm <= upper, both proven; `method` names how the upper end was found."""

    lower: float
    upper: float
    method: str

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
    effort: "fast" is what there is today; a harder one is refused, never replaced by a weaker one.
    device: where to compute; default where the weights are.
    method of the result: "matrix" (tight), "torus" (convolutions too large for a matrix) or "zero".

    Excess of upper over the truth: dense at most 2e-9; convolutions by the torus typically 1e-3 at 16 x 16 and below
    1e-2 at 8 x 8 (module `torus`). TypeError: a layer nothing is known about. ValueError: settings or weights that
    have no bound. NotImplementedError: an effort that is not there yet.
    """
    if norm != "l2":
        raise ValueError(f"norm={norm!r}: norm_bound proves 'l2' norms only; use norm='l2'")
    if effort in ("tight", "exact"):
        raise NotImplementedError(f"effort={effort!r}: not available yet and never replaced by less; use effort='fast'")
    if effort != "fast":
        raise ValueError(f"effort={effort!r}: must be 'fast', 'tight' or 'exact'")
    with torch.inference_mode(False), torch.no_grad():
        operator = read_operator(layer, input_shape, device)
        arithmetic = TorchArithmetic(operator.weights_GOIKL.device)
        with torch.autocast(operator.weights_GOIKL.device.type, enabled=False):
            return enclose(operator, arithmetic)


def enclose(operator: Operator, arithmetic: Arithmetic) -> Enclosure:
    """The enclosure in a given arithmetic: the matrix itself where that is small or all there is, else the torus."""
    weights = operator.weights_GOIKL
    if not bool(weights.any()):
        return Enclosure(0.0, 0.0, "zero")
    matrices_GMN = exact_matrices(operator)
    if matrices_GMN is None:
        upper, method = torus_norm(operator, arithmetic), "torus"
        vector_CHW = _stretched_image(operator)
        lower = stretch_at_least(weights.flatten(3), operator.patches(vector_CHW), vector_CHW, arithmetic)
        entries = weights[0].numel()
    else:
        square, index, vector_N = matrix_norm_squared(matrices_GMN, arithmetic)
        upper, method = root_up(square), "matrix"
        vector_N = vector_N / vector_N.abs().amax().clamp_min(2.0**-100)
        chosen = matrices_GMN[index : index + 1]
        lower = stretch_at_least(chosen[..., None], vector_N[None, :, None], vector_N, arithmetic)
        entries = chosen.numel()
    # Entries zeroed by scaling: a change below LOST_IN_SCALING in each entry moves the norm by less than this.
    lost = LOST_IN_SCALING * entries
    unit = Fraction(2) ** operator.scale
    return Enclosure(round_down(max(Fraction(0), lower - lost) * unit), round_up((upper + lost) * unit), method)


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
    with || |A| || <= sqrt(||A||_1 ||A||_inf): a row of A holds each weight of one output at most once, a column each
    weight of one input channel at most once. ||y|| is rounded down, ||v|| and the sums up (module `rounding`).
    """
    _, outs, _, taps = weights_GOIT.shape
    terms = patches_GKP.shape[1]
    outputs_GOP = arithmetic.product(weights_GOIT.flatten(2), patches_GKP)
    magnitudes_GOIT = weights_GOIT.abs()
    row_sum = arithmetic.sum_at_most(largest(arithmetic.total(magnitudes_GOIT.flatten(2), dim=2)), terms)
    by_column = magnitudes_GOIT.transpose(2, 3).flatten(1, 2)  # (G, O*T, I)
    column_sum = arithmetic.sum_at_most(largest(arithmetic.total(by_column, dim=1)), outs * taps)
    length = root_up(arithmetic.sum_at_most(largest(arithmetic.squares(vector.reshape(1, 1, -1))), vector.numel()))
    stretched = arithmetic.squares(outputs_GOP.reshape(1, 1, -1))
    stretched = root_down(arithmetic.sum_at_least(largest(stretched), outputs_GOP.numel()))
    error = arithmetic.gamma(terms) * root_up(column_sum * row_sum) * length
    error += arithmetic.flushed(terms) * outputs_GOP.numel()
    return max(Fraction(0), stretched - error) / length if length > 0 else Fraction(0)


def _stretched_image(operator: Operator) -> Tensor:
    """An image that the operator stretches about as much as it can: Lanczos in single precision (untrusted)."""
    weights = operator.weights_GOIKL
    shape = (weights.shape[0] * weights.shape[2], operator.axes[0].size, operator.axes[1].size)
    weights_DIKL = weights.flatten(end_dim=1).float()

    def apply_gram(vector_N: Tensor) -> Tensor:
        image_CHW = vector_N.reshape(shape).requires_grad_()
        with torch.enable_grad():
            energy = operator.apply(image_CHW, weights_DIKL).square().sum() / 2
            return torch.autograd.grad(energy, image_CHW)[0].flatten()

    size = shape[0] * shape[1] * shape[2]
    start_N = start_vector(size, weights.device, torch.float32)[:, 0]
    _, vector_N = lanczos(apply_gram, start_N, steps=200, tolerance=1e-6)
    return vector_N.reshape(shape).to(torch.float64) / vector_N.abs().amax().clamp_min(1e-30)
