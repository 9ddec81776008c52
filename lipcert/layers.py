"""The l2 maps networks are chains of.

A `Map` states how fast it can move its output (`norm_estimate`, from the power method, for training) and what it is
once its parametrisation is resolved (`plain`: ordinary torch layers with frozen float32 weights, which is what gets
certified, stored and executed). A map that can do neither has no place in a chain.

Shape letters: B batch, C channels, H height, W width, F features, K classes, O outputs, I inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.kernels import conv3x3, minmax
from lipcert.power import power_iterate, stable_norm, start_vector


class Map(nn.Module):
    """A layer of a chain. Subclasses override `norm_estimate` unless their Lipschitz constant is at most 1."""

    def norm_estimate(self, steps: int) -> Tensor | float:
        """Differentiable estimate of the Lipschitz constant after `steps` warm-started power-method steps.

        It approaches the truth from below, so it trains and never certifies.
        """
        raise NotImplementedError(f"no estimate for {type(self).__name__}")

    def plain(self) -> list[nn.Module]:
        """The same map as ordinary torch layers with float32 weights."""
        raise NotImplementedError(f"no plain form for {type(self).__name__}")


class MinMax(Map):
    """Sort channel c against channel c + C/2: (max, min). 1-Lipschitz, gradient-norm preserving, no rounding.

    Pairs the first half of dimension 1 with the second half (arXiv 2301.12549, code of 2023);
    input (B, C, ...), C even.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ValueError(f"MinMax on {x.shape[1]} channels: the number must be even")
        return minmax(x)

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [MinMax()]


class ReLU(Map):
    """max(x, 0): 1-Lipschitz, no rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [nn.ReLU()]


ACTIVATIONS: dict[str, type[Map]] = {"minmax": MinMax, "relu": ReLU}


class Residual(nn.Module):
    """x + branch(x), with a branch that need not be linear: the conventional residual block, in a plain chain.

    What is known of it in general is the triangle inequality, Lip <= 1 + Lip(branch). The branch keeps the shape.
    """

    def __init__(self, branch: nn.Sequential):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Shift(Map):
    """Subtract a constant: 1-Lipschitz. Networks see pixels minus 1/2, so that zero padding is mid grey."""

    def __init__(self, amount: float = 0.5):
        super().__init__()
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        return x - self.amount

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [Shift(self.amount)]

    def extra_repr(self) -> str:
        return f"amount={self.amount}"


class ZeroPad(Map):
    """Zero-pad images by `margin` pixels on every side: an isometry, so radii keep their units."""

    def __init__(self, margin: int):
        super().__init__()
        self.margin = margin

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW, [self.margin] * 4)

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [nn.ZeroPad2d(self.margin)]


class Flatten(Map):
    """(B, C, H, W) to (B, CHW), in that order whatever the memory layout: an isometry."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.flatten(1)

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [nn.Flatten()]


class Conv(Map):
    """An ordinary zero-padded convolution with bias; norm by the power method at its real input size.

    Args:
        inputs, outputs: channels. kernel, stride, padding: as in `nn.Conv2d`, equal in both directions.
        input_size: side of the square input map in pixels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, input_size: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        nn.init.orthogonal_(self.conv.weight)
        self.register_buffer("iterate", start_vector(1, inputs, input_size, input_size))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        (stride, _), (padding, _), (kernel, _) = self.conv.stride, self.conv.padding, self.conv.kernel_size
        if (kernel, stride, padding) == (3, 1, 1):
            return conv3x3(x_BCHW, self.conv.weight, self.conv.bias)
        return self.conv(x_BCHW)

    def norm_estimate(self, steps: int) -> Tensor:
        return conv_estimate(self.conv.weight, self.iterate, steps, self.conv.stride[0], self.conv.padding[0])[0]

    def plain(self) -> list[nn.Module]:
        return [plain_conv(self.conv.weight, self.conv.bias, self.conv.stride[0], self.conv.padding[0])]


class Dense(Map):
    """An ordinary dense layer with bias; norm by the power method."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.register_buffer("iterate", start_vector(1, inputs))

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.linear(x_BF)

    def norm_estimate(self, steps: int) -> Tensor:
        weight_OI = self.linear.weight
        v = power_iterate(lambda v: v @ weight_OI.T, lambda u: u @ weight_OI, self.iterate, steps)
        return stable_norm(v @ weight_OI.T)[0]

    def plain(self) -> list[nn.Module]:
        return [plain_linear(self.linear.weight, self.linear.bias)]


class Head(Map):
    """Last dense layer, logits z = w_i . x + b.

    A chain ends with it. Certificates use |w_i - w_j| for every pair of classes instead of one norm for the head,
    which is exact for the last layer (arXiv 2102.08452, section 3).
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def rows(self) -> Tensor:
        """The rows w_i as they are used, (K, F)."""
        return self.linear.weight

    def forward(self, x_BF: Tensor) -> Tensor:
        return F.linear(x_BF, self.rows(), self.linear.bias)

    def distances(self) -> Tensor:
        """|w_i - w_j| for every pair of rows, (K, K), differentiable off the diagonal; the diagonal is 0."""
        rows_KF = self.rows()
        gram_KK = rows_KF @ rows_KF.T
        squares_K = gram_KK.diagonal()
        squared_KK = squares_K[:, None] + squares_K[None, :] - 2 * gram_KK
        apart_KK = (squared_KK > 0) & ~torch.eye(len(gram_KK), dtype=torch.bool, device=gram_KK.device)
        # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
        return torch.where(apart_KK, torch.where(apart_KK, squared_KK, 1.0).sqrt(), 0.0)

    def logit_scale(self) -> float:
        """What the cross-entropy of the l_inf mixture multiplies logits by; nothing here."""
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [plain_linear(self.rows(), self.linear.bias)]


class NormalizedHead(Head):
    """`Head` with rows of unit length, w_i / |w_i| (last-layer normalisation)."""

    def rows(self) -> Tensor:
        return F.normalize(self.linear.weight, dim=1)


def conv_estimate(kernel: Tensor, iterate: Tensor, steps: int, stride: int, padding: int, groups: int = 1) -> Tensor:
    """Norm estimates of `groups` convolutions at once, (groups,); updates the warm-start vectors in place."""

    def forward(v: Tensor) -> Tensor:
        return F.conv2d(v, kernel, None, stride, padding, groups=groups)

    def adjoint(u: Tensor) -> Tensor:
        return torch.nn.grad.conv2d_input(iterate.shape, kernel, u, stride, padding, groups=groups)

    image = forward(power_iterate(forward, adjoint, iterate, steps, groups))
    return stable_norm(image, groups)


def plain_conv(kernel_OIhw: Tensor, bias_O: Tensor, stride: int, padding: int) -> nn.Conv2d:
    """A frozen float32 `nn.Conv2d` with these weights."""
    outputs, inputs, *size = kernel_OIhw.shape
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, tuple(size), stride, padding)
    return _frozen(layer, kernel_OIhw, bias_O)


def plain_linear(weight_OI: Tensor, bias_O: Tensor) -> nn.Linear:
    """A frozen float32 `nn.Linear` with these weights."""
    return _frozen(nn.utils.skip_init(nn.Linear, weight_OI.shape[1], weight_OI.shape[0]), weight_OI, bias_O)


def _frozen(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.weight, layer.bias = frozen(weight), frozen(bias)
    return layer


def frozen(values: Tensor) -> nn.Parameter:
    """What plain layers hold: a float32 copy on the CPU that no longer trains."""
    return nn.Parameter(values.detach().float().cpu().contiguous().clone(), requires_grad=False)
