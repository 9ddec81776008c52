"""l_inf-distance layers as they are trained: the l_p relaxation, mean shift, identity initialisation.

The maximum of ||x - w||_inf passes its gradient to one input of a thousand, so training begins with ||x - w||_p at
p = 8 and lets p grow (arXiv 2102.05363, section 5). At finite p a neuron is n^(1/p)-Lipschitz in l_inf, not 1: nothing
is certified before p is infinite, and `plain` always is.

Weights are kept in units of the images' standard deviation, `unit`, in which the published settings are given, and used
in units of pixels: distances are homogeneous, so every activation, margin and radius comes out in pixels and no layer
needs to divide.

Shape letters: B batch, I inputs, O outputs, K classes, C channels, H W image.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lipcert.layers import Map, frozen
from lipcert.linf import kernels
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance, from_windows, windows

_IDENTITY = -10.0  # further from every pixel and activation than other weights are, so that this input wins the maximum
_MOMENTUM = 0.1


class DistanceMap(Map):
    """What the dense and the convolutional layer share: weights, the exponent, the shift by the batch mean.

    Attributes:
        weight: (O, ...), in units of `unit`. exponent: p, set by `Network.set_exponent` before every step.
        mean: running mean of the outputs, (O,), in pixels; subtracted in evaluation mode, the batch's own in training.
            Subtracting a constant keeps the layer 1-Lipschitz; dividing, as batch normalisation does, would not.
    """

    def __init__(self, shape: tuple[int, ...], unit: float, identity: bool):
        super().__init__()
        outputs, inputs = shape[0], math.prod(shape[1:])
        weight_OI = torch.randn(outputs, inputs)
        if identity and inputs <= outputs:
            rows_O = torch.arange(outputs)
            weight_OI[rows_O, rows_O % inputs] = _IDENTITY
        self.weight = nn.Parameter(weight_OI.view(shape))
        self.unit = unit
        self.exponent = math.inf
        self.register_buffer("mean", torch.zeros(outputs))
        self.calibrated: tuple[Tensor, int] | None = None

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def centred(self, y_NO: Tensor) -> Tensor:
        """y minus its mean over the batch in training, where the running mean follows; minus that in evaluation."""
        if not self.training:
            return y_NO - self.mean
        mean_O = y_NO.mean(0)
        with torch.no_grad():
            if self.calibrated is None:
                self.mean.lerp_(mean_O, _MOMENTUM)
            else:
                total_O, count = self.calibrated
                self.calibrated = total_O + mean_O, count + 1
        return y_NO - mean_O

    def begin_calibration(self) -> None:
        """From here on training-mode batches are averaged with equal weights and do not move the running mean."""
        self.calibrated = torch.zeros_like(self.mean), 0

    def end_calibration(self) -> None:
        """The running mean becomes the average over the batches since `begin_calibration`."""
        total_O, count = self.calibrated
        self.mean.copy_(total_O / count)
        self.calibrated = None


class DistanceDense(DistanceMap):
    """||x - w_o||_p, mean-shifted, (B, I) to (B, O).

    Args:
        inputs, outputs: features. unit: size of one unit of weight, in pixels.
        origin_I: where the weights' origin lies in the input, (I,), such as the pixels' mean; none: at 0.
        keep: below 1 a SortNet layer (arXiv 2210.01787): in training every step draws the inputs that take part, each
            with this probability; the expectation of that maximum is the weighted mean `SortedDistance` computes.
    """

    def __init__(self, inputs: int, outputs: int, unit: float, origin_I: Tensor | None = None, keep: float = 1.0):
        super().__init__((outputs, inputs), unit, identity=True)
        self.keep = keep
        self.register_buffer("origin", origin_I, persistent=False)

    def used_weight(self) -> Tensor:
        """The points w_o in pixels, (O, I)."""
        return self.unit * self.weight if self.origin is None else torch.add(self.origin, self.weight, alpha=self.unit)

    def forward(self, x_BI: Tensor) -> Tensor:
        if self.keep < 1 and self.training and self.calibrated is None:
            return self.centred(self._masked(x_BI))
        if self.keep < 1:
            return self.centred(self._sorted()(x_BI))
        return self.centred(kernels.distance(x_BI, self.used_weight(), self.exponent))

    def _masked(self, x_BI: Tensor) -> Tensor:
        """Distances over a random share of the inputs, drawn for every part of the batch from torch's generator."""
        parts, weight_OI = [], self.used_weight()
        for part_BI in x_BI.split(_MASK_SHARED):
            kept = (torch.rand(part_BI.shape[1], device=x_BI.device) < self.keep).nonzero()[:, 0]
            kept = kept if len(kept) else kept.new_zeros(1)
            parts.append(kernels.distance(part_BI[:, kept], weight_OI[:, kept], self.exponent))
        return torch.cat(parts)

    def _sorted(self) -> SortedDistance:
        layer = SortedDistance(self.weight.shape[1], self.weight.shape[0], self.keep).to(self.weight)
        layer.weight.copy_(self.used_weight().detach())
        return layer

    def plain(self) -> list[nn.Module]:
        layer = self._sorted() if self.keep < 1 else Distance(self.weight.shape[1], self.weight.shape[0])
        return [_filled(layer, self.used_weight(), -self.mean)]


_MASK_SHARED = 32  # images that share one draw of the inputs kept, as published


class DistanceConvMap(DistanceMap):
    """||window - w_o||_p of every window of a zero-padded image, mean-shifted over batch and places."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, unit: float):
        super().__init__((outputs, inputs, kernel, kernel), unit, identity=True)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x_BCHW: Tensor) -> Tensor:
        windows_NI, size = windows(x_BCHW, self.kernel, self.stride, self.padding)
        y_NO = kernels.distance(windows_NI, self.unit * self.weight.flatten(1), self.exponent)
        return from_windows(self.centred(y_NO), len(x_BCHW), size)

    def plain(self) -> list[nn.Module]:
        outputs, inputs, kernel, _ = self.weight.shape
        layer = DistanceConv(inputs, outputs, kernel, self.stride, self.padding)
        return [_filled(layer, self.unit * self.weight, -self.mean)]


class DistanceHead(Map):
    """Logits z_k = -(||x - w_k||_p + b_k), (B, I) to (B, K): the nearest class wins.

    `scale` is a number that only the cross-entropy of `linf_mixture_loss` sees; scaling all logits changes neither the
    prediction nor the radius.
    """

    def __init__(self, features: int, classes: int, unit: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.scale = nn.Parameter(torch.ones(()))
        self.unit, self.exponent = unit, math.inf

    def forward(self, x_BI: Tensor) -> Tensor:
        return -(kernels.distance(x_BI, self.unit * self.weight, self.exponent) + self.unit * self.bias)

    def logit_scale(self) -> Tensor:
        """What logits are multiplied by before the cross-entropy, per pixel."""
        return self.scale / self.unit

    def distances(self) -> Tensor:
        """How fast margins shrink per unit of l_inf distance: 2, since either logit moves by at most 1; (K, K)."""
        classes = len(self.bias)
        return 2.0 * (1 - torch.eye(classes, device=self.bias.device))

    def plain(self) -> list[nn.Module]:
        layer = Distance(self.weight.shape[1], self.weight.shape[0])
        return [_filled(layer, self.unit * self.weight, self.unit * self.bias), Negate()]


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running means of all distance layers to averages over these images, (B, C, H, W) each, at p = inf.

    The running means of training lag behind the weights, are those of a finite p until late in the run, and of masked
    maxima in SortNet. Networks without distance layers are left alone.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, DistanceMap)]
    if not layers:
        return
    network.set_exponent(math.inf)
    for layer in layers:
        layer.begin_calibration()
    for images_BCHW in batches:
        network.backbone(images_BCHW)
    for layer in layers:
        layer.end_calibration()


@torch.no_grad()
def lp_decay(network: nn.Module, amount: float, p: float) -> None:
    """w_i -= amount (|w_i| / ||w||_p)^(p - 2) w_i for every neuron: weight decay in the geometry of l_p, which at
    p = inf shrinks the largest entries only (arXiv 2102.05363, section 5.2)."""
    for layer in network.modules():
        if isinstance(layer, (DistanceMap, DistanceHead)):
            size_OI = layer.weight.flatten(1).abs()
            relative_OI = size_OI / size_OI.amax(1, keepdim=True).clamp(min=1e-30)
            if math.isinf(p):
                share_OI = (relative_OI == 1).to(relative_OI)
            else:
                norm_O1 = relative_OI.pow(p).sum(1, keepdim=True).pow(1 / p)
                share_OI = (relative_OI / norm_O1).pow(p - 2)
            layer.weight.mul_(1 - amount * share_OI.view_as(layer.weight))


def _filled(layer: nn.Module, weight: Tensor, shift_O: Tensor) -> nn.Module:
    layer.weight, layer.shift = frozen(weight), frozen(shift_O)
    return layer
