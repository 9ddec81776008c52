"""The three stacks of 3x3 blocks that the ablation compares: linear residual, conventional residual, no skip.

Input and output of each are (B, width, size, size). The norms of all blocks of a stack are estimated at once, by one
grouped convolution over the concatenated power-method iterates.

Shape letters: B batch, C channels, H height, W width, L blocks of a stack, O outputs, I inputs, h w taps.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.kernels import conv3x3, is_fast
from lipcert.layers import ACTIVATIONS, Map, MinMax, Residual, conv_estimate, plain_conv
from lipcert.power import start_vector

_CENTRE_MOMENTUM = 0.1  # of the running mean, as in the code of arXiv 2310.02513


class LinearResidualStack(Map):
    """`depth` linear residual blocks: x <- act(x + depth^(-1/2) gamma_l (V_l * x) + b_l).

    The identity is folded into one kernel per block, K_l = Id + depth^(-1/2) gamma_l V_l, so that a block is one
    convolution and its Lipschitz constant is the norm of one linear map: no triangle inequality over skip and branch,
    so a block's bound loses nothing; the product over blocks may still exceed the network's constant (arXiv
    2301.12549). gamma_l is a learnt scale per output channel and V starts at N(0, 1) / (9 width), so the network starts
    near the identity and needs no normalisation layers.

    centering: in training mode, subtract from every channel of the branch's output its mean over the batch and the
        image; in evaluation mode the running mean of it. A constant shift, so the bound does not change (code of arXiv
        2310.02513).
    """

    def __init__(self, depth: int, width: int, input_size: int, activation: str = "minmax", centering: bool = False):
        super().__init__()
        self.depth, self.width, self.centering = depth, width, centering
        self.branch_LOIhw = nn.Parameter(torch.randn(depth, width, width, 3, 3) / (9 * width))
        self.gamma_LO = nn.Parameter(torch.ones(depth, width))
        self.bias_LO = nn.Parameter(torch.zeros(depth, width))
        self.register_buffer("iterate", start_vector(1, depth * width, input_size, input_size, groups=depth))
        if centering:
            self.register_buffer("mean_LO", torch.zeros(depth, width))
        identity_OIhw = torch.zeros(width, width, 3, 3)
        identity_OIhw[:, :, 1, 1] = torch.eye(width)
        self.register_buffer("identity_OIhw", identity_OIhw, persistent=False)
        self.activation = ACTIVATIONS[activation]()

    def branches(self) -> Tensor:
        """The kernels of the branches, depth^(-1/2) gamma_l V_l, (L, O, I, 3, 3)."""
        return self.gamma_LO[..., None, None, None] / math.sqrt(self.depth) * self.branch_LOIhw

    def kernels(self) -> Tensor:
        """The folded kernels K_l, (L, O, I, 3, 3)."""
        return self.identity_OIhw + self.branches()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches_LOIhw, shifts_LO = self.branches(), self._shifts()
        for block, (branch_OIhw, shift_O) in enumerate(zip(branches_LOIhw, shifts_LO, strict=True)):
            if self.centering and self.training:
                shift_O = shift_O - self._batch_mean(block, branch_OIhw, x_BCHW)
            x_BCHW = _conv_activation(x_BCHW, self.identity_OIhw + branch_OIhw, shift_O, self.activation)
        return x_BCHW

    def _shifts(self) -> Tensor:
        """What is added to every channel, the batch's own mean aside, (L, O)."""
        return self.bias_LO - self.mean_LO if self.centering and not self.training else self.bias_LO

    def _batch_mean(self, block: int, branch_OIhw: Tensor, x_BCHW: Tensor) -> Tensor:
        # A convolution is linear: the mean of its outputs over a batch is its output at the mean image. So the mean
        # costs one image, and is known before the block's own convolution.
        mean_1CHW = x_BCHW.mean(0, keepdim=True)
        mean_O = F.conv2d(mean_1CHW, branch_OIhw, padding=1).mean((0, 2, 3))
        with torch.no_grad():
            self.mean_LO[block].lerp_(mean_O.to(self.mean_LO), _CENTRE_MOMENTUM)
        return mean_O

    def norm_estimate(self, steps: int) -> Tensor:
        return conv_estimate(self.kernels().flatten(0, 1), self.iterate, steps, 1, 1, groups=self.depth).prod()

    def plain(self) -> list[nn.Module]:
        shifts_LO = self.bias_LO - self.mean_LO if self.centering else self.bias_LO
        layers: list[nn.Module] = []
        for kernel_OIhw, shift_O in zip(self.kernels(), shifts_LO, strict=True):
            layers += [plain_conv(kernel_OIhw, shift_O, 1, 1), *self.activation.plain()]
        return layers


class ConvStack(Map):
    """`depth` convolutions: x <- act(W_l * x + b_l). The plain network of the ablation; weights start orthogonal."""

    def __init__(self, depth: int, width: int, input_size: int, activation: str = "minmax"):
        super().__init__()
        self.depth = depth
        self.weight_LOIhw = nn.Parameter(_orthogonal_kernels(depth, width))
        self.bias_LO = nn.Parameter(torch.zeros(depth, width))
        self.register_buffer("iterate", start_vector(1, depth * width, input_size, input_size, groups=depth))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for weight_OIhw, bias_O in zip(self.weight_LOIhw, self.bias_LO, strict=True):
            x_BCHW = _conv_activation(x_BCHW, weight_OIhw, bias_O, self.activation)
        return x_BCHW

    def norm_estimate(self, steps: int) -> Tensor:
        return conv_estimate(self.weight_LOIhw.flatten(0, 1), self.iterate, steps, 1, 1, groups=self.depth).prod()

    def plain(self) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for weight_OIhw, bias_O in zip(self.weight_LOIhw, self.bias_LO, strict=True):
            layers += [plain_conv(weight_OIhw, bias_O, 1, 1), *self.activation.plain()]
        return layers


class ResidualStack(Map):
    """`depth` conventional residual blocks: x <- act(x + s_l (W_l2 * act(W_l1 * x + b_l1) + b_l2)).

    s_l is a learnt scalar that starts at scale depth^(-1/2), 0 in the baseline of the code of arXiv 2301.12549. With a
    non-linear branch all that is known in general is the triangle inequality: a block counts 1 + |s_l| |W_l1| |W_l2|.
    A loss that pays for that constant pays for every branch at full slope, however small s_l is: from 0, training may
    never open a branch.
    """

    def __init__(self, depth: int, width: int, input_size: int, activation: str = "minmax", scale: float = 0.0):
        super().__init__()
        self.depth = depth
        self.first_LOIhw = nn.Parameter(_orthogonal_kernels(depth, width))
        self.second_LOIhw = nn.Parameter(_orthogonal_kernels(depth, width))
        self.bias_2LO = nn.Parameter(torch.zeros(2, depth, width))
        self.scale_L = nn.Parameter(torch.full((depth,), scale / math.sqrt(depth)))
        self.register_buffer("iterate", start_vector(1, 2 * depth * width, input_size, input_size, groups=2 * depth))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        blocks = zip(self.first_LOIhw, self.second_LOIhw, *self.bias_2LO, self.scale_L, strict=True)
        for first_OIhw, second_OIhw, before_O, after_O, scale in blocks:
            branch_BCHW = _conv_activation(x_BCHW, first_OIhw, before_O, self.activation)
            # The scale goes into the kernel, which is smaller than the image.
            branch_BCHW = conv3x3(branch_BCHW, scale * second_OIhw, scale * after_O)
            x_BCHW = self.activation(x_BCHW + branch_BCHW)
        return x_BCHW

    def norm_estimate(self, steps: int) -> Tensor:
        kernels = torch.cat([self.first_LOIhw, self.second_LOIhw]).flatten(0, 1)
        first_L, second_L = conv_estimate(kernels, self.iterate, steps, 1, 1, groups=2 * self.depth).chunk(2)
        return (1 + self.scale_L.abs() * first_L * second_L).prod()

    def plain(self) -> list[nn.Module]:
        blocks = zip(self.first_LOIhw, self.second_LOIhw, *self.bias_2LO, self.scale_L, strict=True)
        layers: list[nn.Module] = []
        for first_OIhw, second_OIhw, before_O, after_O, scale in blocks:
            branch = nn.Sequential(
                plain_conv(first_OIhw, before_O, 1, 1),
                *self.activation.plain(),
                plain_conv(scale * second_OIhw, scale * after_O, 1, 1),
            )
            layers += [Residual(branch), *self.activation.plain()]
        return layers


def _conv_activation(x_BCHW: Tensor, kernel_OIhw: Tensor, bias_O: Tensor, activation: Map) -> Tensor:
    """activation(kernel * x + bias); a fast kernel does MinMax while the convolution's output is at hand."""
    if is_fast() and isinstance(activation, MinMax):
        return conv3x3(x_BCHW, kernel_OIhw, bias_O, then_minmax=True)
    return activation(conv3x3(x_BCHW, kernel_OIhw, bias_O))


def _orthogonal_kernels(count: int, width: int) -> Tensor:
    """(count, width, width, 3, 3), each with orthonormal rows as a matrix (width, 9 width)."""
    kernels = torch.empty(count, width, width, 3, 3)
    for kernel in kernels:
        nn.init.orthogonal_(kernel)
    return kernels
