"""l_inf-distance layers on a GPU: forward, backward and interval pass of (sum_i |x_i - w_i|^p)^(1/p) in Triton.

Each thread owns a patch of outputs in registers and walks over the inputs. Forward at finite p is two passes, the
largest distance first and then the sum of (distance / largest)^p, which neither overflows nor loses the sum at
p = 1000. Backward at finite p takes each power once for both gradients; at p = inf it scatters. Every run gives the
same bits: sums have a fixed order, and what is scattered adds up in whole numbers.

Shapes: B batch, I inputs, O outputs, R blocks of weight rows, S parts of the batch. Layers and their derivatives:
arXiv 2102.05363 and 2110.06850.
"""

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from lipcert.linf.kernels.triton_device import largest_kernel, power_kernel, scatter_kernel, slopes_kernel

STEP = 4  # inputs (backward: images) of a loop iteration, fixed in the programs
_DISTANCE, _UPPER, _LOWER, _FLOORED = range(4)  # |x - w|; max(u - w, w - l); max(l - w, w - u); that, not below 0
_FORWARD_SQUARES, _BACKWARD_SQUARES = 1024, 64  # powers of two up to which squaring costs less than log2 and exp2
_PARTIAL_BYTES = 2**29  # of parts of grad_x that wait to be added up
_SCATTERED = 128  # outputs of a program that scatters


class Tile(NamedTuple):
    """Forward: outputs of a thread and threads of a program, along B and along O."""

    rows: int
    columns: int
    row_threads: int = 8
    column_threads: int = 16


class Strip(NamedTuple):
    """Backward at finite p: weight rows of a thread, threads of a program (along I), parts of the batch."""

    rows: int
    threads: int = 128
    splits: int = 1


# the share of instructions in the compiled inner loop of the maximum that are subtractions and maxima
TILES = {Tile(8, 8): 0.91, Tile(4, 8): 0.82, Tile(4, 4): 0.71, Tile(2, 4): 0.62, Tile(1, 2): 0.31, Tile(1, 1): 0.22}


def distance_forward(x_BI: Tensor, w_OI: Tensor, p: float, tile: Tile | None = None) -> Tensor:
    """(sum_i |x_bi - w_oi|^p)^(1/p); at p = inf the largest |x_bi - w_oi|, bit for bit as torch rounds it.

    Args:
        x_BI, w_OI: contiguous, both float32 or both float64, on one GPU.
        p: 1 <= p <= math.inf.
        tile: by default what fills the GPU best.

    Returns:
        y_BO. NaN where an input is NaN (or inf - inf), infinite where one is infinite.
    """
    y_BO = x_BI.new_empty(len(x_BI), len(w_OI))
    _forward(_DISTANCE, x_BI, x_BI, w_OI, y_BO, None, p, tile)
    return y_BO


def farthest(x_BI: Tensor, w_OI: Tensor, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """`distance_forward` at p = inf and, int32, at which of the steps over the inputs each distance was found."""
    y_BO = x_BI.new_empty(len(x_BI), len(w_OI))
    where_BO = y_BO.new_empty(y_BO.shape, dtype=torch.int32)
    _forward(_DISTANCE, x_BI, x_BI, w_OI, y_BO, where_BO, math.inf, tile)
    return y_BO, where_BO


def interval_forward(
    lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, p: float, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Bounds of the distances over the box lower <= x <= upper: |max(0, l - w, w - u)|_p and |max(u - w, w - l)|_p.

    Args:
        lower_BI, upper_BI, w_OI, tile: as for `distance_forward`.
        p: 1 <= p <= math.inf; at infinity there is nothing but subtractions and maxima.

    Returns:
        (lower_BO, upper_BO). No gradient.
    """
    bounds = []
    for kind in (_LOWER, _UPPER):
        bounds.append(lower_BI.new_empty(len(lower_BI), len(w_OI)))
        _forward(kind, lower_BI, upper_BI, w_OI, bounds[-1], None, p, tile)
    return bounds[0], bounds[1]


def distance_backward(
    grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, p: float, saved: Tensor | None = None,
    strip: Strip | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of sum(grad * y): dy/dx_i = sign(x_i - w_i) (|x_i - w_i| / y)^(p - 1) = -dy/dw_i, 0 where y = 0.

    Args:
        grad_BO: gradient with respect to the distances.
        x_BI, w_OI, y_BO, p: what went into and came out of `distance_forward`.
        saved: at p = inf, what `farthest` found (found again where it is missing).
        strip: by default what fills the GPU best.

    Returns:
        (dx_BI, dw_OI), the same bits in every run. In float32 they are good to about p * 2^-22 relative, the rounding
        of y to the power p and (for any p but powers of two up to 64) that of the GPU's log2.
    """
    if p == math.inf:
        return farthest_backward(grad_BO, x_BI, w_OI, y_BO, farthest(x_BI, w_OI)[1] if saved is None else saved)
    if y_BO.numel() == 0:
        return torch.zeros_like(x_BI), torch.zeros_like(w_OI)
    with _on(w_OI):
        return _slopes(grad_BO.contiguous(), x_BI, w_OI, y_BO, p, strip or _strip(x_BI, w_OI))


def farthest_backward(
    grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, where_BO: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients at p = inf: each output passes its own to one of its largest distances, unless that is zero.

    Gradients are added up as whole multiples of (the largest of them) * max(B, O) * 2^-62, rounded towards zero, so
    that their order does not matter: the same bits in every run. Infinite and NaN ones arrive as they are.

    Args:
        y_BO, where_BO: what `farthest` returned.

    Returns:
        (dx_BI, dw_OI).
    """
    if y_BO.numel() == 0:
        return torch.zeros_like(x_BI), torch.zeros_like(w_OI)
    with _on(w_OI):
        return _scatter(grad_BO.contiguous(), x_BI, w_OI, y_BO, where_BO)


def _forward(
    kind: int, lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, y_BO: Tensor, where_BO: Tensor | None, p: float,
    tile: Tile | None,
) -> None:  # fmt: skip
    if y_BO.numel() == 0:
        return
    wide, narrow = (tile, tile) if tile else (_tile(y_BO, 64), _tile(y_BO, 16))
    tensors, sizes = (lower_BI, upper_BI, w_OI, y_BO), (*y_BO.shape, w_OI.shape[1])
    with _on(w_OI):
        _start(largest_kernel, wide, sizes)(
            *tensors, y_BO if where_BO is None else where_BO, *sizes, KIND=kind, SAVE=where_BO is not None
        )
        if p < math.inf:
            _start(power_kernel, narrow, sizes)(
                *tensors, *sizes, *_two(p), KIND=_FLOORED if kind == _LOWER else kind, FAST=_fast(w_OI),
                SQUARINGS=_squarings(p, _FORWARD_SQUARES), TINY=torch.finfo(w_OI.dtype).tiny,
            )  # fmt: skip


def _start(kernel: triton.JITFunction, tile: Tile, sizes: tuple[int, int, int]) -> Callable:
    """The kernel on a grid of tiles, its first axis the batch: programs that run together share weights."""
    batch, outputs, inputs = sizes
    rows, columns = tile.rows * tile.row_threads, tile.columns * tile.column_threads
    return functools.partial(
        kernel[triton.cdiv(batch, rows), triton.cdiv(outputs, columns)],
        EVEN=inputs % STEP == 0, RM=tile.rows, RN=tile.columns, TM=tile.row_threads, TN=tile.column_threads,
        num_warps=max(1, tile.row_threads * tile.column_threads // 32),
    )  # fmt: skip


def _slopes(grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, p: float, strip: Strip) -> tuple[Tensor, Tensor]:
    (batch, outputs), inputs = y_BO.shape, w_OI.shape[1]
    inverse_BO = y_BO.clamp(min=torch.finfo(y_BO.dtype).tiny).reciprocal_()
    squarings = _squarings(p, _BACKWARD_SQUARES)
    if squarings < 0 and p < 2:
        squarings = -2
    span = STEP * triton.cdiv(batch, STEP * strip.splits)
    splits, blocks = triton.cdiv(batch, span), triton.cdiv(outputs, strip.rows)
    most = max(1, _PARTIAL_BYTES // (x_BI.numel() * x_BI.element_size()))
    slab = triton.cdiv(blocks, triton.cdiv(blocks, most))  # slabs of one size, none larger than the memory allows
    dx_BI, dw_SOI = torch.zeros_like(x_BI), w_OI.new_empty(splits, *w_OI.shape)
    partial_RBI = x_BI.new_empty(slab, *x_BI.shape)
    for first in range(0, blocks, slab):
        count = min(slab, blocks - first)
        slopes_kernel[triton.cdiv(inputs, strip.threads), count, splits](
            x_BI, w_OI, grad_BO, inverse_BO, partial_RBI, dw_SOI, first, span, batch, outputs, inputs, *_two(p),
            SQUARINGS=squarings, FAST=_fast(w_OI), RO=strip.rows, T=strip.threads,
            num_warps=max(1, strip.threads // 32),
        )  # fmt: skip
        dx_BI += partial_RBI[:count].sum(dim=0)
    return dx_BI, dw_SOI[0] if splits == 1 else dw_SOI.sum(dim=0)


def _scatter(grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, where_BO: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.where(grad_BO.isfinite(), grad_BO, 0.0).abs().amax()
    # sums of up to max(B, O) gradients in units of 1 / scale stay below 2^62
    bits = 62 - math.ceil(math.log2(max(y_BO.shape))) - torch.frexp(largest).exponent
    scale = torch.exp2(bits.double().clamp(max=1000))
    wholes = [torch.zeros(t.shape, dtype=torch.int64, device=t.device) for t in (x_BI, w_OI)]
    grads = [torch.empty_like(t) for t in (x_BI, w_OI)]
    for rest in (False, True):  # finite gradients, then the others, which are rare
        if rest:
            for whole, grad in zip(wholes, grads, strict=True):
                torch.mul(whole, 1 / scale, out=grad)
        scatter_kernel[(triton.cdiv(y_BO.numel(), _SCATTERED),)](
            x_BI, w_OI, y_BO, grad_BO, where_BO, scale, *(grads if rest else wholes), y_BO.numel(), len(w_OI),
            x_BI.shape[1], REST=rest, T=_SCATTERED, num_warps=4,
        )  # fmt: skip
    return grads[0], grads[1]


def _tile(y_BO: Tensor, most: int) -> Tile:
    """What keeps most of the GPU busy: large tiles load less, small ones leave no processor idle at the end."""
    (batch, outputs), processors = y_BO.shape, _processors(y_BO.device)

    def share(tile: Tile) -> float:
        rows, columns = tile.rows * tile.row_threads, tile.columns * tile.column_threads
        programs = triton.cdiv(batch, rows) * triton.cdiv(outputs, columns)
        rounds = triton.cdiv(programs, processors)
        return TILES[tile] * batch * outputs / (rounds * processors * rows * columns)

    most = most if y_BO.element_size() == 4 else min(most, 16)
    return max((tile for tile in TILES if tile.rows * tile.columns <= most), key=share)


def _strip(x_BI: Tensor, w_OI: Tensor) -> Strip:
    """The batch in parts where weight rows alone are too few programs; each part at least 64 images."""
    rows = 32 if w_OI.element_size() == 4 else 16
    programs = triton.cdiv(len(w_OI), rows) * triton.cdiv(w_OI.shape[1], 128)
    wanted = triton.cdiv(8 * _processors(w_OI.device), programs)
    return Strip(rows, splits=max(1, min(wanted, len(x_BI) // 64)))


def _squarings(p: float, limit: int) -> int:
    """log2 p of a power of two, -1 of anything else."""
    return int(math.log2(p)) if p <= limit and math.frexp(p)[0] == 0.5 else -1


def _two(p: float) -> tuple[float, float]:
    """p as the sum of two float32 numbers: a kernel is handed no float64."""
    high = ctypes.c_float(p).value
    return high, p - high


def _fast(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.float32


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(tensor: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
