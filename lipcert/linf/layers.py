"""The layers of l_inf-distance nets as they are stored, executed and certified: ordinary modules with fixed weights.

A neuron is the l_inf distance of its input from a point, y_o = max_i |x_i - w_oi| + shift_o, and so 1-Lipschitz in
l_inf whatever its weights (arXiv 2102.05363, 2110.06850). Trained layers, with the l_p relaxation, are in
`lipcert.linf.maps`.

A neuron computes one IEEE subtraction an input, absolute values, a maximum, one addition. Rounding is monotone,
absolute value and maximum are exact and do not depend on the order: that is what makes `lipcert.linf.interval` exact
for the network as executed.

Shape letters: B batch, C channels, H height, W width, I inputs, O outputs, T terms.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.linf import kernels


class Distance(nn.Module):
    """y_o = max_i |x_i - w_oi| + shift_o, (B, I) to (B, O).

    Attributes:
        weight: (O, I). shift: (O,), the bias, or minus the running mean that centred the layer in training.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(out_features), requires_grad=False)

    def forward(self, x_BI: Tensor) -> Tensor:
        return kernels.distance(x_BI, self.weight, math.inf) + self.shift

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class DistanceConv(nn.Module):
    """`Distance` of every k x k window of a zero-padded image, (B, C, H, W) to (B, O, H', W').

    Attributes:
        weight: (O, C, k, k). shift: (O,).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.weight = nn.Parameter(
            torch.zeros(out_channels, in_channels, kernel_size, kernel_size), requires_grad=False
        )
        self.shift = nn.Parameter(torch.zeros(out_channels), requires_grad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        windows_NI, size = windows(x_BCHW, self.kernel_size, self.stride, self.padding)
        y_NO = kernels.distance(windows_NI, self.weight.flatten(1), math.inf) + self.shift
        return from_windows(y_NO, len(x_BCHW), size)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.stride}, {self.padding}"


class SortedDistance(nn.Module):
    """SortNet's neuron: a weighted mean of the largest distances (arXiv 2210.01787, section 4).

    y_o = sum_t c_t v_t + shift_o with v_1 >= v_2 >= ... the `terms` largest |x_i - w_oi| and c_t = q (1 - q)^(t-1) /
    (1 - (1 - q)^terms), q = `keep`: the expectation of the maximum over inputs kept with probability q, cut after
    `terms` and renormalised. The c_t are not negative and add up to 1, so it is 1-Lipschitz in l_inf; unlike a maximum,
    the sum rounds.
    """

    def __init__(self, in_features: int, out_features: int, keep: float, terms: int = 10):
        super().__init__()
        if not (0 < keep <= 1 and terms >= 1):
            raise ValueError(f"keep={keep}, terms={terms}: must be above 0 and at most 1, and at least 1")
        self.in_features, self.out_features = in_features, out_features
        self.keep, self.terms = keep, min(terms, in_features)
        self.weight = nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(out_features), requires_grad=False)

    def coefficients(self) -> Tensor:
        """c_t in float32, (T,): the numbers the layer multiplies by, rounded down so that their sum is at most 1."""
        q, terms = self.keep, self.terms
        exact = [q * (1 - q) ** t / (1 - (1 - q) ** terms) for t in range(terms)]
        return torch.tensor([max(c * (1 - 2.0**-22), 0.0) for c in exact])

    def forward(self, x_BI: Tensor) -> Tensor:
        sorted_BOT = kernels.top_distances(x_BI, self.weight, self.terms)
        return sorted_BOT @ self.coefficients().to(sorted_BOT) + self.shift

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, keep={self.keep}"


class Negate(nn.Module):
    """-x: logits are minus distances. Exact."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


def windows(x_BCHW: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, tuple[int, int]]:
    """The windows of zero-padded images as rows, (B H' W', C k k), and H', W'."""
    size = tuple((side + 2 * padding - kernel) // stride + 1 for side in x_BCHW.shape[2:])
    columns_BIP = F.unfold(x_BCHW, kernel, padding=padding, stride=stride)
    return columns_BIP.transpose(1, 2).flatten(0, 1), size


def from_windows(y_NO: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
    """Rows of windows back to images, (B, O, H', W')."""
    return y_NO.view(batch, *size, -1).permute(0, 3, 1, 2)
