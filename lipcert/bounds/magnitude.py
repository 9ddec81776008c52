"""Proven upper bound on the norm of |A|: the layer with every weight replaced by its magnitude.

Rounding errors of a forward pass grow with |A||x|, not with Ax, so that norm decides how much an error bound at an
image changes over the ball around it.

Lemma. Let S hold, for every output channel and every input channel and phase of the stride, the sum of the |weights| of
its taps. Then || |A| || <= ||S||, whatever the size of the input, for zero padding and circular padding.
Proof. By polyphase (module `torus`) |A| is a corner of a convolution of stride 1 on some torus, whose singular values
are those of M(theta) = sum_b |K_b| e^{i theta b}; entry by entry |M(theta)| <= M(0) = S, and a matrix has at most the
norm of a matrix that dominates its magnitudes. A dense layer is one tap. QED

Lemma (Collatz-Wielandt). For S >= 0 and any z > 0, ||S||^2 <= max_i (S^T S z)_i / z_i.
Proof. ||S||^2 is the spectral radius of S^T S >= 0, at most its norm for the weighted maximum norm max |x_i| / z_i. QED

*Rounding.* Every number is a sum of products of non-negative terms: the computed S, S z and S^T (S z) are at least
(1 - gamma) of the true ones with the gamma of their lengths, less what underflows; entries are scaled to about 1 and
z >= 2**-20, so 2**-900 covers that.

Shape suffixes: G groups, O outputs, I inputs of a group, K L kernel height and width, C inputs times phases.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds.operators import Operator, read_operator
from lipcert.bounds.rounding import Arithmetic, largest, root_up, round_up

_STEPS = 30
_LOST = Fraction(1, 2**900)


def magnitude_norm(layer: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Upper bound on || |A| ||_2 for a plain nn.Linear or nn.Conv2d, usually within 1e-3 of ||S|| (see the lemma).

    Raises as `norm_bound` does for layers nothing is known about.
    """
    with torch.inference_mode(False), torch.no_grad():
        operator = read_operator(layer, input_shape, "cpu")
        sums_GOC = tap_sums(operator)
        sums_GOC = sums_GOC.mT if sums_GOC.shape[1] < sums_GOC.shape[2] else sums_GOC
        vector_GC1 = sums_GOC.new_ones(len(sums_GOC), sums_GOC.shape[2], 1)
        for _ in range(_STEPS):
            vector_GC1 = sums_GOC.mT @ (sums_GOC @ vector_GC1)
            vector_GC1 = vector_GC1 / vector_GC1.amax(dim=1, keepdim=True).clamp_min(2.0**-100) + 2.0**-20
        image_GC1 = sums_GOC.mT @ (sums_GOC @ vector_GC1)
        ratio = largest(image_GC1 / vector_GC1)
    terms = sum(sums_GOC.shape[1:]) + 2 * operator.weights_GOIKL[0, 0, 0].numel() + 4
    norm = root_up((ratio + _LOST) / (1 - Arithmetic().gamma(2 * terms))) + _LOST
    return round_up(norm * Fraction(2) ** operator.scale)


def tap_sums(operator: Operator) -> Tensor:
    """The matrix S of the lemma for each group, shape (G, O, I * phases)."""
    magnitudes = operator.weights_GOIKL.abs()
    groups, outs, ins, taps_high, taps_wide = magnitudes.shape
    high, wide = operator.axes
    sums = magnitudes.new_zeros(groups, outs, ins, high.stride, wide.stride)
    for row in range(taps_high):
        for column in range(taps_wide):
            phase = (row * high.dilation % high.stride, column * wide.dilation % wide.stride)
            sums[..., phase[0], phase[1]] += magnitudes[..., row, column]
    return sums.flatten(2)
