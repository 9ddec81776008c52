"""The forward pass that certificates are computed from: conventional inner products only, in a named arithmetic.

The error bounds of `lipcert.deviation` hold for sums in any order, not for Winograd, FFT or reduced-precision products,
which `F.conv2d` may choose on its own. So a convolution here is data movement and one matrix product, by a kernel of
our own on a CPU with a C compiler, by BLAS elsewhere. The caller's settings (TF32, autocast, number of threads, batch
size) do not reach it: images run in micro-batches of a fixed size, each on one thread. What runs is the chain's flat
program (`lipcert.program`): a residual block ends with one addition, of the activations remembered and the branch's.

Shape letters: B batch, C channels, H height, W width, F features, K classes, L layers.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.kernels import product
from lipcert.layers import MinMax, Shift
from lipcert.program import Fork, Instruction, Join, instructions
from lipcert.threads import one_thread_each

_MICRO_BATCH = 64
_COLUMN_ENTRIES = 2**21  # of one convolution's columns at a time: what still fits into a processor's cache
# Rows of products are filled up to a multiple of 128 bytes: BLAS takes other paths, with other last bits, for rows that
# begin at odd addresses, so the bits of an image would depend on its place in the micro-batch.
_ALIGNED = 16
AFFINE = (nn.Conv2d, nn.Linear)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE format: unit roundoff, smallest normal and largest finite number (below it, results may be flushed)."""

    name: str
    dtype: torch.dtype
    unit: Fraction
    smallest: Fraction
    largest: Fraction


FORMATS = {
    "float64": FloatFormat(
        "float64", torch.float64, Fraction(1, 2**53), Fraction(1, 2**1022), Fraction(torch.finfo(torch.float64).max)
    ),
    "float32": FloatFormat(
        "float32", torch.float32, Fraction(1, 2**24), Fraction(1, 2**126), Fraction(torch.finfo(torch.float32).max)
    ),
}


@dataclass(frozen=True)
class Activations:
    """What the forward pass saw, per image, in float64; column l belongs to line l of the program, the head included.

    image_norms_B: l2 norm of the image as the pass saw it.
    norms_BL: l2 norm of the input of an affine layer, of the output of a `Shift` or `Join`, 0 elsewhere; not rounded
        outwards.
    magnitudes_BL: norm of |W||x| + |b| of every affine layer; None unless asked for.
    head_magnitudes_BK: |W||x| + |b| of the head, class by class; None unless asked for.
    """

    logits_BK: Tensor
    image_norms_B: Tensor
    norms_BL: Tensor
    magnitudes_BL: Tensor | None
    head_magnitudes_BK: Tensor | None


@dataclass(frozen=True)
class Place:
    """One line of a program with the shapes, without the batch, before and after it."""

    name: str
    layer: Instruction
    shape: tuple[int, ...]
    after: tuple[int, ...]


def places(
    chain: nn.Sequential,
    input_shape: tuple[int, ...],
    check: Callable[[str, nn.Module, tuple[int, ...]], None] | None = None,
) -> list[Place]:
    """The program of a chain for inputs of this shape; `check` sees every layer before it is tried.

    Raises:
        ValueError: a layer that cannot take what reaches it, or a residual block whose branch changes the shape.
        TypeError: a layer without a forward pass here.
    """
    found: list[Place] = []
    remembered, shape = [], tuple(input_shape)
    for name, layer in instructions(chain):
        after = shape
        if isinstance(layer, Fork):
            remembered.append(shape)
        elif isinstance(layer, Join):
            if (before := remembered.pop()) != shape:
                raise ValueError(f"layer {name!r}: the branch makes {shape} of {before}; it must keep the shape")
        else:
            if check is not None:
                check(name, layer, shape)
            try:
                after = output_shape(layer, shape)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"layer {name!r} cannot take an input of shape {shape}: {error}") from error
        found.append(Place(name, layer, shape, after))
        shape = after
    return found


@torch.no_grad()
def run_chain(
    chain: nn.Sequential,
    images_BCHW: Tensor,
    arithmetic: str = "float64",
    magnitudes: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Run a plain chain on the device of its weights; results on the CPU.

    The bytes of a row depend on its image, the chain and the machine, not on the batch it came in or on how many
    threads there are: the last micro-batch is filled up with zeros, and threads take different micro-batches.

    magnitudes: also run |W||x| + |b|, which doubles the work and makes float32 error bounds two to four times smaller.
    progress: called with the number of images done.
    """
    layers = [_Prepared(layer, FORMATS[arithmetic].dtype, magnitudes) for _, layer in instructions(chain)]
    device = next((p.device for p in chain.parameters()), torch.device("cpu"))
    dtype = FORMATS[arithmetic].dtype

    def run(start: int) -> list[Tensor]:
        batch_BCHW = images_BCHW[start : start + _MICRO_BATCH].to(device, dtype)
        padding = batch_BCHW.new_zeros(_MICRO_BATCH - len(batch_BCHW), *batch_BCHW.shape[1:])
        filled = torch.cat([batch_BCHW, padding])
        return [part[: len(batch_BCHW)].double().cpu() for part in _run_micro_batch(layers, filled, magnitudes)]

    starts = range(0, len(images_BCHW), _MICRO_BATCH)
    parts = []
    with ieee_products(dtype, device), one_thread_each(device) as workers:
        for start, part in zip(starts, workers(run, starts), strict=True):
            parts.append(part)
            if progress is not None:
                progress(min(_MICRO_BATCH, len(images_BCHW) - start))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Activations(*columns, *([] if magnitudes else [None, None]))


def output_shape(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape without the batch; RuntimeError or ValueError where the layer cannot take the input."""
    prepared = _Prepared(layer, torch.float64, False)
    return tuple(prepared(torch.zeros(1, *shape, dtype=torch.float64, device=prepared.device)).shape[1:])


class _Prepared:
    """One line of the program with its weights in the arithmetic it runs in."""

    def __init__(self, layer: Instruction, dtype: torch.dtype, magnitudes: bool) -> None:
        self.layer = layer
        self.affine = isinstance(layer, AFFINE)
        self.weight = self.bias = self.size = None
        self.device = torch.device("cpu")
        if self.affine:
            self.weight = layer.weight.detach().to(dtype)
            self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            self.device = self.weight.device
        if self.affine and magnitudes:
            self.size = (self.weight.abs(), None if self.bias is None else self.bias.abs())

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if self.affine:
            return affine(layer, x, self.weight, self.bias)
        if isinstance(layer, Shift):
            return x - layer.amount
        return compared(layer, x)

    def magnitude(self, x: Tensor) -> Tensor:
        """|W||x| + |b|."""
        return affine(self.layer, x.abs(), *self.size)


def compared(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer that only moves, clips or sorts does: exact, and monotone in every entry.

    Raises:
        TypeError: another layer.
    """
    if isinstance(layer, nn.ReLU):
        return x.clamp_min(0)
    if isinstance(layer, MinMax):
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
    if isinstance(layer, nn.ZeroPad2d):
        return F.pad(x, layer.padding)
    if isinstance(layer, nn.Flatten):
        return x.flatten(1)
    if isinstance(layer, nn.Identity):
        return x
    raise TypeError(f"no forward pass for {type(layer).__name__}: a plain chain does not hold it")


def _run_micro_batch(layers: list[_Prepared], x: Tensor, magnitudes: bool) -> list[Tensor]:
    norms, sizes, head, image = [], [], None, _norm(x)
    remembered: list[Tensor] = []
    for layer in layers:
        if layer.affine and magnitudes:
            head = layer.magnitude(x)
            sizes.append(_norm(head))
        else:
            sizes.append(torch.zeros_like(image))
        before = x
        if isinstance(layer.layer, Fork):
            remembered.append(x)
        elif isinstance(layer.layer, Join):
            x = remembered.pop() + x
        else:
            x = layer(x)
        measured = before if layer.affine else x if isinstance(layer.layer, (Shift, Join)) else None
        norms.append(torch.zeros_like(image) if measured is None else _norm(measured))
    columns = [x, image, torch.stack(norms, dim=1)]
    return [*columns, torch.stack(sizes, dim=1), head] if magnitudes else columns


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1).double(), dim=1)


def affine(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's geometry with these weights: one conventional matrix product, then the bias."""
    native = product.fits(x, weight)
    if isinstance(layer, nn.Linear):
        if native:
            out = product.matmul(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], -1)
            return out if bias is None else out.add_(bias)
        margin = -weight.shape[1] % _ALIGNED
        out = _filled(x, 0, margin) @ _filled(weight, 0, margin).T
        return out if bias is None else out + bias
    x, (high, wide) = _padded(layer, x)
    if native:
        out = product.conv2d(x, weight, layer.stride, layer.dilation, layer.groups)
        return out if bias is None else out.add_(bias[:, None, None])
    groups, outs = layer.groups, len(weight) // layer.groups
    matrix_GOI = weight.reshape(groups, outs, -1)
    matrix_GOI = _filled(matrix_GOI, 0, -matrix_GOI.shape[-1] % _ALIGNED)
    entries = matrix_GOI.shape[-1] * groups * high * wide
    parts = []
    # A power of two divides the micro-batch, so that every part has the same size.
    for images in x.split(2 ** max(0, (_COLUMN_ENTRIES // entries).bit_length() - 1)):
        columns = _columns(layer, images, high, wide).reshape(len(images), groups, -1, high * wide)
        below, right = matrix_GOI.shape[-1] - columns.shape[2], -columns.shape[3] % _ALIGNED
        wide_product = matrix_GOI @ _filled(columns, 0, right, 0, below)
        parts.append(wide_product[..., : high * wide].reshape(len(images), groups * outs, high, wide))
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out if bias is None else out.add_(bias[:, None, None])


def _filled(x: Tensor, *margins: int) -> Tensor:
    """Zero-padded, without a copy where there is nothing to pad."""
    return F.pad(x, margins) if any(margins) else x


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The padded images and the size of the output."""
    if x.ndim != 4 or x.shape[1] != layer.in_channels:
        raise ValueError(f"Conv2d takes {layer.in_channels} channels: got an input of shape {tuple(x.shape[1:])}")
    margins: list[int] = []
    for axis in (1, 0):  # F.pad counts from the last dimension
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        if layer.padding == "same":
            margins += [total // 2, total - total // 2]
        else:
            margins += [0, 0] if layer.padding == "valid" else [layer.padding[axis]] * 2
    x = F.pad(x, margins, mode="circular" if layer.padding_mode == "circular" else "constant")
    sizes = tuple(
        (x.shape[2 + axis] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1) // layer.stride[axis] + 1
        for axis in (0, 1)
    )
    if min(sizes) < 1:
        raise ValueError(f"Conv2d with kernel {layer.kernel_size}: larger than its padded input {tuple(x.shape[2:])}")
    return x, sizes


def _columns(layer: nn.Conv2d, x: Tensor, high: int, wide: int) -> Tensor:
    """The inputs that each output reads, (B, C, k1, k2, high, wide): a view."""
    batch, channel, row, column = x.stride()
    strides = (batch, channel, row * layer.dilation[0], column * layer.dilation[1])
    return x.as_strided(
        (*x.shape[:2], *layer.kernel_size, high, wide),
        (*strides, row * layer.stride[0], column * layer.stride[1]),
        x.storage_offset(),
    )


@contextlib.contextmanager
def ieee_products(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products, no autocast, whatever the caller has set; restored afterwards."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.float32:
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            _check_products(dtype, device)
            yield
    finally:
        if dtype == torch.float32:
            torch.set_float32_matmul_precision(before)


def _check_products(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse where a product of numbers with full mantissas does not come out exactly: a reduced precision is on."""
    last = torch.finfo(dtype).eps
    left = torch.full((64, 64), 0.0, dtype=dtype, device=device)
    left.fill_diagonal_(1 + last)
    right = torch.full((64, 64), 1 - last, dtype=dtype, device=device)
    right[0] = 1 + last
    exact = torch.full_like(right, 1.0)  # (1 + e)(1 - e) = 1 - e^2 rounds to 1
    exact[0] = 1 + 2 * last  # and (1 + e)^2 = 1 + 2e + e^2 to 1 + 2e
    if not torch.equal(left @ right, exact):
        raise ValueError(
            f"products of {dtype} on {device.type} are not IEEE (TF32, bfloat16 or emulation is on): certify on the CPU"
        )
