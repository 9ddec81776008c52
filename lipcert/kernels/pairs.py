"""MinMax on the CPU in one pass over memory, forward and backward, by `pairs.c`; the same bits as torch's operations.

Written in torch, forward and backward read and write the images some twelve times, which took a third of a step.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from lipcert.kernels.native import build

SOURCE = Path(__file__).with_name("pairs.c")
BITS = {torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
_SMALL = 1 << 18  # below so many pairs, one thread


def fits(x: Tensor) -> bool:
    """Whether the kernel can take this tensor: on the CPU, of a known dtype, dense in one of the two layouts, with a
    compiler at hand."""
    return x.device.type == "cpu" and x.dtype in BITS and _rows(x) is not None and not isinstance(_built(x), str)


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """(max, min) of the halves of dimension 1, laid out as x is; and which pairs were swapped, bool, flat."""
    rows, half = _rows(x)
    y, swapped = torch.empty_like(x), torch.empty(rows * half, dtype=torch.bool)
    _call("minmax_forward", x, y, swapped, rows, half)
    return y, swapped


def backward(grad: Tensor, swapped: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The gradient with respect to x, whose shape and stride are given: `swapped` is in the order of its memory."""
    dx = torch.empty_strided(shape, stride, dtype=grad.dtype)
    if grad.stride() != stride:
        grad = torch.empty_like(dx).copy_(grad)
    _call("minmax_backward", grad, dx, swapped, *_rows(dx))
    return dx


def _rows(x: Tensor) -> tuple[int, int] | None:
    """x in memory as (rows, 2, half); None where it is not dense, or empty."""
    if x.numel() == 0 or x.dim() < 2:
        return None
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.numel() // x.shape[1], x.shape[1] // 2
    return (len(x), x[0].numel() // 2) if x.is_contiguous() else None


def _built(x: Tensor) -> ctypes.CDLL | str:
    return build(SOURCE, f"-DWORD_BITS={BITS[x.dtype]}")


def _call(name: str, x: Tensor, y: Tensor, swapped: Tensor, rows: int, half: int) -> None:
    threads = torch.get_num_threads() if rows * half > _SMALL else 1
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, swapped)]
    getattr(_built(x), name)(*pointers, ctypes.c_long(rows), ctypes.c_long(half), threads)
