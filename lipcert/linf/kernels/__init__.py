"""Distances of a batch from a set of points, the one costly operation of l_inf-distance nets.

    distance(x_BI, w_OI, p)                      y = (sum_i |x_i - w_oi|^p)^(1/p), the maximum for p = inf
    interval(lower_BI, upper_BI, w_OI, p)        the box of those distances over a box
    top_distances(x_BI, w_OI, count)             the largest |x_i - w_oi|, sorted
    top_interval(lower_BI, upper_BI, w_OI, count)
    backend(device)                              which code runs: native, torch or triton

No tensor over (batch, outputs, inputs) is ever built. At p = inf every backend computes one rounded subtraction, an
absolute value and a maximum, so all agree bit for bit; a NaN among the inputs of an output makes it NaN.
`LIPCERT_KERNELS=native|torch|triton` forces a backend; `auto`, the default, takes the fastest that works.

Shape letters: B batch, I inputs, O outputs, T terms.
"""

import importlib
import math
import os
import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lipcert.linf.kernels import native, reference

BACKENDS = ("auto", "native", "torch", "triton")
_said: set[str] = set()


def distance(x_BI: Tensor, w_OI: Tensor, p: float) -> Tensor:
    """l_p distance of every row of x from every row of w, differentiable in both.

    Stable for every p: terms are taken relative to the largest one. The gradient is
    dy/dx_i = sign(x_i - w_i) (|x_i - w_i| / y)^(p-1); at p = inf one entry of largest distance carries it (any one of
    those tied); where y = 0 it is 0 (arXiv 2110.06850, section 3).

    Args:
        x_BI: (B, I), float32 or float64; B may be 0.
        w_OI: (O, I), the same dtype and device.
        p: from 1 to `math.inf`.

    Returns:
        (B, O). NaN where an input of that pair is NaN (or the difference of equal infinities).

    Raises:
        ValueError: shapes, dtypes, devices or p outside the above.
    """
    p = _checked(p, w_OI, x_BI)
    return _Distance.apply(x_BI.contiguous(), w_OI.contiguous(), p)


@torch.no_grad()
def interval(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, p: float = math.inf) -> tuple[Tensor, Tensor]:
    """Smallest and largest distance over lower <= x <= upper, (B, O) each; no gradient.

    At p = inf, with fl the rounding of one subtraction: upper = max_i max(fl(u_i - w_i), fl(w_i - l_i)) and
    lower = max(0, max_i max(fl(l_i - w_i), fl(w_i - u_i))). Rounding is monotone, so the distance that
    `distance(x, w, inf)` computes for any x of the box lies between them, as computed. Finite p has no such guarantee.

    Args:
        lower_BI: (B, I). upper_BI: (B, I), nowhere below it: otherwise the result means nothing.
        w_OI: (O, I). p: as in `distance`.

    Raises:
        ValueError: as `distance`.
    """
    p = _checked(p, w_OI, lower_BI, upper_BI)
    return _engine(w_OI).interval_forward(lower_BI.contiguous(), upper_BI.contiguous(), w_OI.contiguous(), p)


@torch.no_grad()
def top_distances(x_BI: Tensor, w_OI: Tensor, count: int) -> Tensor:
    """The `count` largest |x_i - w_oi| of every pair of rows, descending, (B, O, T); no gradient (SortNet's neuron).

    Raises:
        ValueError: as `distance`; count below 1 or above I.
    """
    _checked(math.inf, w_OI, x_BI)
    _count(count, w_OI)
    return _ranking(w_OI).top_distances(x_BI.contiguous(), w_OI.contiguous(), count)


@torch.no_grad()
def top_interval(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bounds of the sorted distances over a box, (B, O, T) each: the t-th largest lies between the t-th entries.

    Raises:
        ValueError: as `top_distances`.
    """
    _checked(math.inf, w_OI, lower_BI, upper_BI)
    _count(count, w_OI)
    return _ranking(w_OI).top_interval(lower_BI.contiguous(), upper_BI.contiguous(), w_OI.contiguous(), count)


def backend(device: torch.device | str = "cpu") -> str:
    """Which code runs for tensors on this device: "native" (C, compiled on first use), "torch" or "triton".

    Raises:
        ValueError: `LIPCERT_KERNELS` is none of auto, native, torch, triton.
        RuntimeError: it names one that cannot run here.
    """
    device, wanted = torch.device(device), os.environ.get("LIPCERT_KERNELS", "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"LIPCERT_KERNELS={wanted!r}: must be one of {', '.join(BACKENDS)}")
    if wanted == "auto":
        choice = {"cpu": "native", "cuda": "triton"}.get(device.type, "torch")
        if problem := _problem(choice, device):
            if choice not in _said:
                print(f"lipcert: {problem}; l_inf distances run in plain torch, many times slower", file=sys.stderr)
                _said.add(choice)
            return "torch"
        return choice
    if problem := _problem(wanted, device):
        raise RuntimeError(f"LIPCERT_KERNELS={wanted} on {device}: {problem}; unset it or use 'auto'")
    return wanted


def _problem(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device; None where it can."""
    if name == "native":
        return "native kernels are for the CPU" if device.type != "cpu" else native.problem()
    if name == "triton":
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "triton kernels are for CUDA devices"
        try:
            _triton()
        except ImportError as error:
            return f"no triton ({error})"
    return None


def _triton() -> ModuleType:
    return importlib.import_module("lipcert.linf.kernels.triton_kernels")


def _engine(like: Tensor) -> ModuleType:
    name = backend(like.device)
    return {"native": native, "torch": reference}.get(name) or _triton()


def _ranking(like: Tensor) -> ModuleType:
    """Sorted distances have a native kernel; elsewhere torch's own sort is used."""
    engine = _engine(like)
    return engine if hasattr(engine, "top_distances") else reference


class _Distance(torch.autograd.Function):
    """`distance`, its gradient recomputed from x, w and y; at p = inf kernels remember the entry instead."""

    @staticmethod
    def forward(ctx, x_BI: Tensor, w_OI: Tensor, p: float) -> Tensor:
        ctx.engine, ctx.p = _engine(w_OI), p
        ctx.located = hasattr(ctx.engine, "farthest") and p == math.inf and any(ctx.needs_input_grad)
        if ctx.located:
            y_BO, where_BO = ctx.engine.farthest(x_BI, w_OI)
            ctx.save_for_backward(x_BI, w_OI, y_BO, where_BO)
        else:
            y_BO = ctx.engine.distance_forward(x_BI, w_OI, p)
            ctx.save_for_backward(x_BI, w_OI, y_BO)
        return y_BO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_BO = grad_BO.contiguous()
        if ctx.located:
            x_BI, w_OI, y_BO, where_BO = ctx.saved_tensors
            dx_BI, dw_OI = ctx.engine.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
        else:
            dx_BI, dw_OI = ctx.engine.distance_backward(grad_BO, *ctx.saved_tensors, ctx.p)
        wants_x, wants_w, _ = ctx.needs_input_grad
        return dx_BI if wants_x else None, dw_OI if wants_w else None, None


def _checked(p: float, w_OI: Tensor, *boxes_BI: Tensor) -> float:
    """p as a float, once everything fits together."""
    for x_BI in boxes_BI:
        if x_BI.dim() != 2 or w_OI.dim() != 2 or x_BI.shape[1] != w_OI.shape[1]:
            raise ValueError(
                f"inputs {tuple(x_BI.shape)} and weights {tuple(w_OI.shape)}: must be (B, I) and (O, I) with the same I"
            )
        if x_BI.dtype != w_OI.dtype or x_BI.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"inputs {x_BI.dtype} and weights {w_OI.dtype}: must both be float32 or both float64")
        if x_BI.device != w_OI.device:
            raise ValueError(f"inputs on {x_BI.device}, weights on {w_OI.device}: move one to the other's device")
        if x_BI.shape != boxes_BI[0].shape:
            raise ValueError(f"lower {tuple(boxes_BI[0].shape)} and upper {tuple(x_BI.shape)}: must have one shape")
    if 0 in w_OI.shape:
        raise ValueError(f"weights {tuple(w_OI.shape)}: at least one output and one input")
    if not p >= 1:
        raise ValueError(f"p={p}: must be from 1 to math.inf")
    return float(p)


def _count(count: int, w_OI: Tensor) -> None:
    if not 1 <= count <= w_OI.shape[1]:
        raise ValueError(f"count={count}: must be from 1 to the number of inputs, {w_OI.shape[1]}")
