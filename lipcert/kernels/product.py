"""Matrix products and convolutions of float64 and float32 on the CPU, by `product.c`: each entry one conventional sum.

What BLAS libraries do at a third of the speed on processors that they do not know well, and without copying the windows
of a convolution first. Sums run in one order, whatever the batch, the alignment and the number of threads.

Shape letters: B batch, M rows, N columns, K depth, C channels, H height, W width, O outputs, I inputs.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lipcert.kernels.native import build

SOURCE = Path(__file__).with_name("product.c")
BITS = {torch.float32: 32, torch.float64: 64}


def fits(*tensors: Tensor) -> bool:
    """Whether the kernel can take these: one dtype of the two, on the CPU, and a compiler at hand."""
    dtype = tensors[0].dtype
    return (
        dtype in BITS
        and all(t.dtype == dtype and t.device.type == "cpu" and t.numel() > 0 for t in tensors)
        and not isinstance(_library(dtype), str)
    )


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a b, (M, N), for matrices of any strides.

    Raises:
        ValueError: not two matrices that fit together. C would read past their ends.
    """
    if not a_MK.ndim == b_KN.ndim == 2 or a_MK.shape[1] != len(b_KN):
        raise ValueError(f"product of {tuple(a_MK.shape)} and {tuple(b_KN.shape)}: must be (M, K) and (K, N)")
    depth, columns = b_KN.shape
    along, across = (torch.arange(size) * step for size, step in zip((depth, columns), b_KN.stride(), strict=True))
    c_MN = a_MK.new_empty(len(a_MK), columns)
    _call(a_MK, b_KN, c_MN, along, across, 1, 0)
    return c_MN


def conv2d(
    padded_BCHW: Tensor, weight_OIhw: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """`F.conv2d` of images that are padded already, (B, O, H, W) contiguous.

    Raises:
        ValueError: channels or sizes that do not fit together. C would read past their ends.
    """
    padded_BCHW = padded_BCHW.contiguous()
    batch, channels, height, width = padded_BCHW.shape
    outputs, inputs, *kernel = weight_OIhw.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if channels != inputs * groups or outputs % groups or reach[0] > height or reach[1] > width:
        raise ValueError(
            f"convolution of {tuple(padded_BCHW.shape)} with {tuple(weight_OIhw.shape)} in {groups} groups, dilation "
            f"{tuple(dilation)}: channels must be equal, and the kernel no larger than the image"
        )
    size = [(n - r) // s + 1 for n, r, s in zip((height, width), reach, stride, strict=True)]
    pixels = torch.arange(height * width).view(height, width)
    window = pixels[: reach[0] : dilation[0], : reach[1] : dilation[1]]
    along = (torch.arange(inputs)[:, None] * height * width + window.reshape(1, -1)).flatten()
    across = pixels[: size[0] * stride[0] : stride[0], : size[1] * stride[1] : stride[1]].flatten()
    parts = []
    for images, matrix in zip(padded_BCHW.chunk(groups, 1), weight_OIhw.flatten(1).chunk(groups), strict=True):
        part = padded_BCHW.new_empty(batch, outputs // groups, *size)
        _call(matrix, images, part, along, across.contiguous(), batch, channels * height * width)
        parts.append(part)
    return parts[0] if groups == 1 else torch.cat(parts, 1)


def _library(dtype: torch.dtype) -> ctypes.CDLL | str:
    return build(SOURCE, f"-DREAL_BITS={BITS[dtype]}")


def _call(a_MK: Tensor, b: Tensor, c: Tensor, along_K: Tensor, across_N: Tensor, count: int, step: int) -> None:
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a_MK, b, c, along_K, across_N)]
    sizes = (len(a_MK), len(across_N), len(along_K), *a_MK.stride(), count, step)
    if _library(c.dtype).product(*pointers, *map(ctypes.c_long, sizes), torch.get_num_threads()):
        raise MemoryError(f"product: no memory for blocks of {tuple(a_MK.shape)}")
