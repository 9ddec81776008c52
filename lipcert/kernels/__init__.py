"""Fast ways to compute what layers compute while they train; the values are torch's, up to rounding where stated.

    conv3x3(x, weight, bias)      zero-padded convolution, stride 1, and MinMax after it if wanted
    matmul(a, b)                  matrix product, outside of autograd
    minmax(x)                     halves of the channels, larger and smaller
    fast(on)                      a context in which the first two may take ways that round differently

`minmax` moves numbers, so its fast way is always taken where there is one. The others compute as torch does unless a
run asks for more (`TrainConfig.kernels`), so that runs can be repeated bit for bit. Certification never comes here with
`fast` on: what is proven is proven of torch's own operations.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lipcert.kernels import pairs, product, winograd
from lipcert.kernels.native import build

_fast = False


@contextlib.contextmanager
def fast(on: bool) -> Iterator[None]:
    """Inside of it `conv3x3` and `matmul` may round differently from torch."""
    global _fast
    before, _fast = _fast, on
    try:
        yield
    finally:
        _fast = before


def problem() -> str | None:
    """Why there are no native kernels on this machine; None where there are."""
    built = build(winograd.SOURCE)
    return built if isinstance(built, str) else None


def conv3x3(x_BCHW: Tensor, weight_OIhw: Tensor, bias_O: Tensor, then_minmax: bool = False) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, then `minmax` if asked for; under `fast` by Winograd's scheme where it
    applies, both in one pass over memory where they can be."""
    for fused in (then_minmax, False) if _fast else ():
        if winograd.fits(x_BCHW, weight_OIhw, fused):
            y_BOHW = winograd.conv3x3(x_BCHW, weight_OIhw, bias_O, fused)
            return minmax(y_BOHW) if then_minmax and not fused else y_BOHW
    y_BOHW = F.conv2d(x_BCHW, weight_OIhw, bias_O, padding=1)
    return minmax(y_BOHW) if then_minmax else y_BOHW


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` for (..., M, K) and (..., K, N), not differentiated; under `fast` by `product.c` where it applies."""
    if not (_fast and a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and product.fits(a, b)):
        return a @ b
    if a.ndim == 2:
        return product.matmul(a, b)
    flat = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True)
    return torch.stack([product.matmul(*pair) for pair in flat]).view(*a.shape[:-1], b.shape[-1])


def is_fast() -> bool:
    """Whether `fast` is on: backward passes run after its context, and may want to go on as the forward pass went."""
    return _fast


def minmax(x: Tensor) -> Tensor:
    """(max, min) of channel c and channel c + C/2; (B, C, ...), C even. Equal numbers stay where they are.

    Raises:
        ValueError: an odd number of channels.
    """
    if x.shape[1] % 2:
        raise ValueError(f"MinMax of {x.shape[1]} channels: must be even, pairs are channel c and channel c + C/2")
    native = x.requires_grad and not torch.compiler.is_compiling() and pairs.fits(x)
    return (_NativeMinMax if native else _MinMax).apply(x)[0]


class _MinMax(torch.autograd.Function):
    # By hand, because autograd's maximum and minimum share out the gradient of ties with eight more passes over memory:
    # a third of a training step on a CPU.

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1), first < second

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> Tensor:
        (swapped,) = ctx.saved_tensors
        high, low = grad.chunk(2, dim=1)
        return torch.cat([torch.where(swapped, low, high), torch.where(swapped, high, low)], dim=1)


class _NativeMinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        y, swapped = pairs.forward(x)
        ctx.save_for_backward(swapped)
        ctx.shape, ctx.stride = x.shape, x.stride()
        ctx.mark_non_differentiable(swapped)
        return y, swapped

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor) -> Tensor:
        (swapped,) = ctx.saved_tensors
        return pairs.backward(grad, swapped, ctx.shape, ctx.stride)
