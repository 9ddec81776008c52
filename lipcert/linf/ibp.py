"""Interval bound propagation in training: the worst logits in an l_inf box, differentiable, in float32.

The conventional way to certify in l_inf (arXiv 1810.12715), and what the dense heads of l_inf-distance nets are trained
by. It trains and never certifies: rounding is ignored here, `lipcert.linf.interval` has the proof.

Shape letters: B batch, C channels, H W image, K classes, F features.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.layers import Conv, Dense, Flatten, Head, Map, MinMax, ReLU, plain_linear
from lipcert.linf.maps import DistanceMap

if TYPE_CHECKING:
    from lipcert.models.network import Network

_MONOTONE = (ReLU, MinMax, nn.Tanh)  # of each input, so ends map to ends


class IntervalHead(Head):
    """A dense layer, tanh, and the last dense layer: the "+MLP" of l_inf-distance nets (arXiv 2102.05363, section 6).

    Features come in pixels and are divided by `unit`, the deviation of the images, before the first layer.
    """

    def __init__(self, features: int, hidden: int, classes: int, unit: float):
        super().__init__(hidden, classes)
        self.hidden = nn.Linear(features, hidden)
        self.unit = unit

    def forward(self, x_BF: Tensor) -> Tensor:
        return super().forward(self.hidden(x_BF / self.unit).tanh())

    def box(self, centre_BF: Tensor, reach_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and reach of what the last layer sees."""
        centre = F.linear(centre_BF / self.unit, self.hidden.weight, self.hidden.bias)
        reach = F.linear(reach_BF / self.unit, self.hidden.weight.abs())
        return _from_ends((centre - reach).tanh(), (centre + reach).tanh())

    def plain(self) -> list[nn.Module]:
        first = plain_linear(self.hidden.weight / self.unit, self.hidden.bias)
        return [first, nn.Tanh(), *super().plain()]


def worst_logits(network: "Network", images_BCHW: Tensor, labels_B: Tensor, radius: float) -> Tensor:
    """Upper ends of z_j - z_y over the box of pixels in [0, 1] within `radius`, (B, K); 0 at the label.

    The last layer bounds every difference of two logits at once, which is tighter than bounding each.

    Raises:
        TypeError: a map without an interval rule.
    """
    low, high = (images_BCHW - radius).clamp(min=0), (images_BCHW + radius).clamp(max=1)
    centre, reach = _from_ends(low, high)
    for name, layer in network.backbone.named_children():
        centre, reach = box_through(name, layer, centre, reach)
    head = network.head
    if isinstance(head, IntervalHead):
        centre, reach = head.box(centre, reach)
    rows_KF = head.rows()
    apart_BKF = rows_KF[None] - rows_KF[labels_B][:, None]
    worst_BK = torch.einsum("bkf,bf->bk", apart_BKF, centre) + torch.einsum("bkf,bf->bk", apart_BKF.abs(), reach)
    return worst_BK + head.linear.bias - head.linear.bias[labels_B][:, None]


def box_through(name: str, layer: Map, centre: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and reach, both (B, ...), of a box around the image of a box."""
    if isinstance(layer, Conv):
        conv = layer.conv
        return layer(centre), F.conv2d(reach, conv.weight.abs(), None, conv.stride, conv.padding)
    if isinstance(layer, Dense):
        return layer(centre), F.linear(reach, layer.linear.weight.abs())
    if isinstance(layer, _MONOTONE):
        return _from_ends(layer(centre - reach), layer(centre + reach))
    if isinstance(layer, Flatten):
        return layer(centre), layer(reach)
    if isinstance(layer, DistanceMap):
        # Every output moves at most as far as the input that moves most: exact before clipping to the pixels' range.
        y = layer(centre)
        return y, reach.flatten(1).amax(1, keepdim=True).expand(y.flatten(1).shape).view_as(y)
    raise TypeError(f"no interval rule for {type(layer).__name__} at {name!r}: train it on margins instead")


def _from_ends(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (low + high) / 2, (high - low) / 2
