"""3x3 convolutions by Winograd's F(4x4, 3x3) on the CPU, forward and backward, by `winograd.c`: the same numbers as a
direct convolution but for rounding, with a quarter of its multiplications.

A tile of 4 x 4 outputs is A^T [(G w G^T) . (B^T x B)] A with 36 products a pair of channels instead of 144 (Lavin and
Gray, arXiv 1509.09308, section 4.3). The kernel G w G^T is transformed here by torch, so that autograd takes its
gradient back to w; the C code transforms images, multiplies 36 matrices and transforms back, tile by tile in cache.

For training: what is certified is executed and analysed as a direct convolution.

Shape letters: B batch, C I O channels, H W image, T the 36 points of a tile, P parts of a batch.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lipcert.kernels.native import build

SOURCE = Path(__file__).with_name("winograd.c")
_PARTS = 8  # of a batch, each with its own sum over images, so that threads change no bit
_POINTS = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64)
_KERNEL_T9 = (torch.kron(_POINTS, _POINTS) / 24**2).float()


def fits(x_BCHW: Tensor, weight_OIhw: Tensor, minmax: bool) -> bool:
    """Whether the kernel can take them: float32 on the CPU, 3 x 3, channels a multiple of a vector, a compiler."""
    if isinstance(library := build(SOURCE), str):
        return False
    outputs, inputs, *kernel = weight_OIhw.shape
    vector = library.channels_of_a_vector()
    return (
        x_BCHW.device.type == weight_OIhw.device.type == "cpu"
        and x_BCHW.dtype == weight_OIhw.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and kernel == [3, 3]
        and x_BCHW.shape[1] == inputs
        and x_BCHW.numel() > 0
        and inputs % vector == outputs % (2 * vector if minmax else vector) == 0
    )


def conv3x3(x_BCHW: Tensor, weight_OIhw: Tensor, bias_O: Tensor, minmax: bool) -> Tensor:
    """As `F.conv2d(x, weight, bias, padding=1)`, then MinMax if asked for; (B, O, H, W) in channels-last layout,
    differentiable once.

    Every entry carries some 1e-6 of the largest one as rounding error, several times a direct convolution's. What C
    computes does not depend on the number of threads.
    """
    outputs, inputs = weight_OIhw.shape[:2]
    kernel_TIO = (_KERNEL_T9 @ weight_OIhw.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, inputs, outputs)
    return _Winograd.apply(x_BCHW.contiguous(memory_format=torch.channels_last), kernel_TIO, bias_O, minmax)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW: Tensor, kernel_TIO: Tensor, bias_O: Tensor, minmax: bool) -> Tensor:
        batch, inputs, height, width = x_BCHW.shape
        outputs = kernel_TIO.shape[2]
        y_BOHW = torch.empty(batch, outputs, height, width, dtype=x_BCHW.dtype, memory_format=torch.channels_last)
        swapped = torch.empty(y_BOHW.numel() // 2, dtype=torch.bool) if minmax else None
        sizes = (batch, height, width, inputs, outputs)
        _call("winograd_forward", x_BCHW, kernel_TIO, bias_O.contiguous(), y_BOHW, swapped, sizes=sizes)
        ctx.save_for_backward(x_BCHW, kernel_TIO, swapped)
        ctx.sizes = (*sizes, min(_PARTS, batch))
        return y_BOHW

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BOHW: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x_BCHW, kernel_TIO, swapped = ctx.saved_tensors
        grad_BOHW = grad_BOHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW) if ctx.needs_input_grad[0] else None
        *_, outputs, parts = ctx.sizes
        dkernel_PTIO, dbias_PO = kernel_TIO.new_empty(parts, *kernel_TIO.shape), kernel_TIO.new_empty(parts, outputs)
        back_TOI = kernel_TIO.mT.contiguous()
        tensors = (grad_BOHW, x_BCHW, back_TOI, swapped, dx_BCHW, dkernel_PTIO, dbias_PO)
        _call("winograd_backward", *tensors, sizes=ctx.sizes)
        return dx_BCHW, dkernel_PTIO.sum(0), dbias_PO.sum(0), None


def _call(name: str, *tensors: Tensor | None, sizes: tuple[int, ...]) -> None:
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    if getattr(build(SOURCE), name)(*pointers, *map(ctypes.c_long, sizes), torch.get_num_threads()):
        raise MemoryError(f"{name}: no memory for tiles of {sizes[3]} and {sizes[4]} channels")
