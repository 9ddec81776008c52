"""What a plain torch layer computes, as data that proofs can work on: its exact weights and the geometry of its axes.

Anything that is not understood completely is refused by name; nothing is ever assumed harmless.

Shape suffixes: G groups, O output channels of a group, I input channels of a group, K and L kernel height and width,
C channels, H height, W width, P positions of the output, N and M columns and rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.bounds.rounding import power_of_two_scaled


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution: y[o] = sum_a K[a] x[o * stride + a * dilation - front]."""

    size: int
    taps: int
    stride: int = 1
    dilation: int = 1
    front: int = 0
    back: int = 0
    circular: bool = False

    @property
    def extent(self) -> int:
        """Length of the kernel with its gaps."""
        return self.dilation * (self.taps - 1) + 1

    @property
    def outputs(self) -> int:
        return (self.size + self.front + self.back - self.extent) // self.stride + 1

    @property
    def separate(self) -> bool:
        """True if no input is read by two outputs and at least one output reads a whole patch inside the input."""
        first = -(-self.front // self.stride)  # the first output whose patch starts inside the input
        whole = first < self.outputs and first * self.stride - self.front + self.extent <= self.size
        return (self.extent <= self.stride or self.outputs == 1) and whole and not self.circular


@dataclass(frozen=True)
class Operator:
    """The linear map of a layer: weights = 2**scale * weights_GOIKL (float64, largest entry in [1, 2), or all zero)."""

    weights_GOIKL: Tensor
    scale: int
    axes: tuple[Axis, Axis]

    @property
    def inputs(self) -> int:
        """Number of inputs of one group."""
        return self.weights_GOIKL.shape[2] * self.axes[0].size * self.axes[1].size

    @property
    def outputs(self) -> int:
        """Number of outputs of one group."""
        return self.weights_GOIKL.shape[1] * self.axes[0].outputs * self.axes[1].outputs

    def pad(self, images_1CHW: Tensor) -> Tensor:
        high, wide = self.axes
        mode = "circular" if high.circular else "constant"
        return F.pad(images_1CHW, (wide.front, wide.back, high.front, high.back), mode=mode)

    def patches(self, image_CHW: Tensor) -> Tensor:
        """The inputs that each output reads, shape (G, I*K*L, P): data movement only, no arithmetic."""
        groups, _, _, taps_high, taps_wide = self.weights_GOIKL.shape
        high, wide = self.axes
        columns = F.unfold(
            self.pad(image_CHW[None]),
            (taps_high, taps_wide),
            dilation=(high.dilation, wide.dilation),
            stride=(high.stride, wide.stride),
        )
        return columns.reshape(groups, -1, columns.shape[-1])

    def apply(self, image_CHW: Tensor, weights_DIKL: Tensor) -> Tensor:
        """The layer on one image by torch's own convolution, D = G*O: for the untrusted search only."""
        high, wide = self.axes
        return F.conv2d(
            self.pad(image_CHW[None]),
            weights_DIKL,
            stride=(high.stride, wide.stride),
            dilation=(high.dilation, wide.dilation),
            groups=self.weights_GOIKL.shape[0],
        )[0]

    def matrix(self) -> Tensor:
        """The true operator (zero padding), entry by entry: shape (G, O*outputs, I*inputs)."""
        weights = self.weights_GOIKL
        groups, outs, ins, _, _ = weights.shape
        sizes = [(axis.outputs, axis.size) for axis in self.axes]
        dense = weights.new_zeros(groups, outs, ins, sizes[0][0], sizes[0][1], sizes[1][0], sizes[1][1])
        reads = [_reads(axis, weights.device) for axis in self.axes]
        for row, (out_y, in_y) in enumerate(reads[0]):
            for column, (out_x, in_x) in enumerate(reads[1]):
                tap = weights[:, :, :, row, column, None, None]
                dense[:, :, :, out_y[:, None], in_y[:, None], out_x[None, :], in_x[None, :]] = tap
        return dense.permute(0, 1, 3, 5, 2, 4, 6).reshape(groups, self.outputs, self.inputs)


def _reads(axis: Axis, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each tap, the outputs that read the signal through it and the inputs they read (zero padding)."""
    outputs = torch.arange(axis.outputs, device=device)
    pairs = []
    for tap in range(axis.taps):
        inputs = outputs * axis.stride + tap * axis.dilation - axis.front
        inside = (inputs >= 0) & (inputs < axis.size)
        pairs.append((outputs[inside], inputs[inside]))
    return pairs


def read_operator(layer: nn.Module, input_shape: tuple[int, ...], device: torch.device | str | None) -> Operator:
    """The operator of a plain nn.Linear or nn.Conv2d; TypeError or ValueError (value, rule, way out) for all else."""
    name = type(layer).__name__
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise TypeError(f"no l2 bound for {name}: only plain nn.Linear and nn.Conv2d; materialise or remove the layer")
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        raise TypeError(f"no l2 bound for {name} with forward hooks or a replaced forward: remove them first")
    weights = layer.weight.detach()
    if type(weights) is not Tensor:
        raise TypeError(f"no l2 bound for {name} with weights of {type(weights).__name__}: must be a plain Tensor")
    if weights.layout != torch.strided or weights.is_meta or not weights.dtype.is_floating_point:
        raise ValueError(f"{name} weights of {weights.dtype}, {weights.layout}: must be stored real floating point")
    if weights.numel() == 0:
        raise ValueError(f"{name} weights of shape {tuple(weights.shape)}: must not be empty")
    shape = tuple(int(size) for size in input_shape)
    if isinstance(layer, nn.Linear):
        if len(shape) != 1 or shape[0] != weights.shape[1]:
            raise ValueError(f"input_shape={shape} for Linear: must be ({weights.shape[1]},), without the batch")
        axes = (Axis(1, 1), Axis(1, 1))
        weights = weights[None, :, :, None, None]
    else:
        axes = _axes(layer, shape)
        weights = weights.unflatten(0, (layer.groups, -1))
    scaled, scale = power_of_two_scaled(weights.to(device=device) if device is not None else weights)
    return Operator(scaled, scale, axes)


def _axes(layer: nn.Conv2d, shape: tuple[int, ...]) -> tuple[Axis, Axis]:
    channels = layer.weight.shape[1] * layer.groups
    if len(shape) != 3 or shape[0] != channels or min(shape) < 1:
        raise ValueError(f"input_shape={shape} for Conv2d: must be ({channels}, height, width), without the batch")
    if layer.padding_mode not in ("zeros", "circular"):
        raise ValueError(f"padding_mode={layer.padding_mode!r}: has no l2 bound; use 'zeros' or 'circular'")
    taps = tuple(layer.weight.shape[2:])
    if tuple(layer.kernel_size) != taps or layer.weight.shape[0] % layer.groups:
        raise ValueError(f"Conv2d weight of shape {tuple(layer.weight.shape)}: does not fit its own settings")
    axes = []
    for index in range(2):
        stride, dilation = layer.stride[index], layer.dilation[index]
        if layer.padding == "same":
            total = dilation * (taps[index] - 1)
            front, back = total // 2, total - total // 2
        elif layer.padding == "valid":
            front = back = 0
        elif isinstance(layer.padding, str):
            raise ValueError(f"padding={layer.padding!r}: must be 'same', 'valid' or two integers")
        else:
            front = back = layer.padding[index]
        if front < 0:
            raise ValueError(f"padding={layer.padding!r}: must not be negative")
        axis = Axis(shape[1 + index], taps[index], stride, dilation, front, back, layer.padding_mode == "circular")
        if axis.size + front + back < axis.extent:
            raise ValueError(f"input_shape={shape}: smaller than the kernel ({axis.extent}) even when padded")
        axes.append(axis)
    return axes[0], axes[1]
