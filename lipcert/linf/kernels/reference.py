"""The kernels in plain torch: work on every device, in pieces that keep memory below a fixed budget.

What the native and the GPU kernels compute is defined here; they are tested against it.

Shape letters: B batch, I inputs, O outputs, T terms.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BUDGET_BYTES = 1 << 25
"""Largest tensor over (batch, outputs, inputs) that is ever allocated."""


def pieces(x_BI: Tensor, w_OI: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices over the batch and the outputs whose product fits the budget (at least one row each)."""
    (batch, inputs), outputs = x_BI.shape, len(w_OI)
    pairs = max(1, BUDGET_BYTES // (inputs * x_BI.element_size()))
    tall = max(1, min(batch, pairs // outputs))
    wide = max(1, min(outputs, pairs))
    for b in range(0, batch, tall):
        for o in range(0, outputs, wide):
            yield slice(b, b + tall), slice(o, o + wide)


def power_mean(t_BOI: Tensor, p: float) -> Tensor:
    """(sum_i t_i^p)^(1/p) of non-negative t, and the maximum for p = inf; scaled by the maximum, so it never overflows.

    A NaN anywhere gives NaN, an infinity without a NaN gives infinity.
    """
    top_BO = t_BOI.amax(-1)
    if p == math.inf:
        return top_BO
    unit_BO = torch.where(top_BO > 0, top_BO, 1)
    y_BO = unit_BO * (t_BOI / unit_BO[..., None]).pow_(p).sum(-1).pow_(1 / p)
    return torch.where((top_BO > 0) & top_BO.isfinite(), y_BO, top_BO)


def distance_forward(x_BI: Tensor, w_OI: Tensor, p: float) -> Tensor:
    """y_bo = (sum_i |x_bi - w_oi|^p)^(1/p), shape (B, O)."""
    y_BO = x_BI.new_empty(len(x_BI), len(w_OI))
    for b, o in pieces(x_BI, w_OI):
        y_BO[b, o] = power_mean((x_BI[b, None] - w_OI[o]).abs_(), p)
    return y_BO


def distance_backward(grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Gradients in x and w: dy/dx_i = sign(x_i - w_i) (|x_i - w_i| / y)^(p-1), dy/dw_i its negative.

    The ratio is at most 1, so nothing overflows. For p = inf one entry of largest distance carries the gradient.
    Where y = 0 the gradient is 0.
    """
    dx_BI, dw_OI = torch.zeros_like(x_BI), torch.zeros_like(w_OI)
    for b, o in pieces(x_BI, w_OI):
        d_BOI, grad = x_BI[b, None] - w_OI[o], grad_BO[b, o]
        if p == math.inf:
            where_BO = d_BOI.abs().argmax(-1)
            part_BO = grad * d_BOI.gather(-1, where_BO[..., None])[..., 0].sign()
            part_BO = torch.where(y_BO[b, o].isnan(), math.nan, part_BO)
            dx_BI[b] = dx_BI[b].scatter_add(1, where_BO, part_BO)
            dw_OI[o] = dw_OI[o].scatter_add(1, where_BO.T, -part_BO.T)
            continue
        y = y_BO[b, o]
        unit = torch.where(y == 0, 1, y)[..., None]
        part_BOI = (d_BOI.abs() / unit).pow_(p - 1).mul_(d_BOI.sign_()).mul_(grad[..., None])
        dx_BI[b] += part_BOI.sum(1)
        dw_OI[o] -= part_BOI.sum(0)
    return dx_BI, dw_OI


def interval_forward(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The box of distances over the box [lower, upper]: lower and upper ends, (B, O) each."""
    low_BO = lower_BI.new_empty(len(lower_BI), len(w_OI))
    high_BO = torch.empty_like(low_BO)
    for b, o in pieces(lower_BI, w_OI):
        near_BOI, far_BOI = ends(lower_BI[b, None], upper_BI[b, None], w_OI[o])
        low_BO[b, o], high_BO[b, o] = power_mean(near_BOI, p), power_mean(far_BOI, p)
    return low_BO, high_BO


def ends(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest |x_i - w_i| over lower_i <= x_i <= upper_i, one rounded subtraction each."""
    above, below = upper - w, w - lower
    return torch.maximum(-above, -below).clamp_(min=0), torch.maximum(above, below)


def top_distances(x_BI: Tensor, w_OI: Tensor, count: int) -> Tensor:
    """The `count` largest |x_bi - w_oi| in descending order, (B, O, T)."""
    top_BOT = x_BI.new_empty(len(x_BI), len(w_OI), count)
    for b, o in pieces(x_BI, w_OI):
        top_BOT[b, o] = (x_BI[b, None] - w_OI[o]).abs_().topk(count, dim=-1).values
    return top_BOT


def top_interval(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bounds of each of the `count` largest distances over the box: the t-th largest end bounds the t-th largest."""
    low_BOT = lower_BI.new_empty(len(lower_BI), len(w_OI), count)
    high_BOT = torch.empty_like(low_BOT)
    for b, o in pieces(lower_BI, w_OI):
        near_BOI, far_BOI = ends(lower_BI[b, None], upper_BI[b, None], w_OI[o])
        low_BOT[b, o] = near_BOI.topk(count, dim=-1).values
        high_BOT[b, o] = far_BOI.topk(count, dim=-1).values
    return low_BOT, high_BOT
