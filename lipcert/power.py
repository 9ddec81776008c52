"""The power method: norms to train with. It approaches the truth from BELOW, so nothing here ever certifies.

`lipcert.bounds.norm_bound` is the proven counterpart.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def start_vector(*shape: int, groups: int = 1) -> Tensor:
    """A random start, one unit vector per group of channels.

    Random, because a fixed start such as all ones can be orthogonal to the top singular vector and then stays so.
    """
    return _normalise(torch.randn(*shape), groups)


def power_iterate(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    iterate: Tensor,
    steps: int,
    groups: int = 1,
) -> Tensor:
    """Improve `iterate` in place by `steps` rounds of v <- A^T A v / |A^T A v| and return it, cut from the graph.

    |A v| with v held fixed has the gradient u v^T (u = A v / |A v|), which is the gradient of the norm at convergence
    (envelope theorem), so no backward pass through the rounds is needed.
    """
    with torch.no_grad():
        v = iterate
        for _ in range(steps):
            # Each half normalised by itself: A^T A v leaves the range of float32 where A v does not. An iterate that
            # the map sends to zero is kept, or it would stay zero for good.
            image = forward(v)
            v = _normalise(adjoint(_normalise(image, groups)), groups, otherwise=v)
        iterate.copy_(v)
        return iterate.clone()


def stable_norm(x: Tensor, groups: int = 1) -> Tensor:
    """l2 norm of each group, (groups,), without squaring numbers whose squares under- or overflow."""
    rows = x.reshape(groups, -1)
    largest = rows.detach().abs().amax(dim=1)
    largest = torch.where(largest > 0, largest, 1.0)
    return largest * torch.linalg.vector_norm(rows / largest[:, None], dim=1)


def _normalise(v: Tensor, groups: int, otherwise: Tensor | None = None) -> Tensor:
    # Largest entry first: squares of small entries must not underflow, and no epsilon may hide a small norm.
    rows = v.reshape(groups, -1)
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = (rows / torch.where(length > 0, length, 1.0)).reshape(v.shape)
    if otherwise is None:
        return unit
    return torch.where(length > 0, unit.reshape(groups, -1), otherwise.reshape(groups, -1)).reshape(v.shape)


def norm_estimate(layer: nn.Module, input_shape: tuple[int, ...], steps: int = 10, seed: int = 0) -> Tensor:
    """Estimate of the spectral norm of `nn.Linear` or `nn.Conv2d` from a cold, random start; a lower bound in exact
    arithmetic.

    Args:
        layer: `nn.Linear`, or `nn.Conv2d` with zero padding.
        input_shape: (features,) or (C, H, W), without batch.
        steps: rounds of the power method; public codes certify with 500.
        seed: of the start vector.

    Returns:
        Scalar tensor, differentiable with respect to the weight, in the weight's precision and on its device.

    Raises:
        TypeError: another kind of layer.
    """
    weight = layer.weight if isinstance(layer, (nn.Linear, nn.Conv2d)) else None
    if weight is None or (isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"):
        raise TypeError(f"no power method for {layer}: give it an nn.Linear or a zero-padded nn.Conv2d")
    generator = torch.Generator().manual_seed(seed)
    v = _normalise(torch.randn(1, *input_shape, generator=generator), 1).to(weight)
    if isinstance(layer, nn.Linear):

        def forward(v: Tensor) -> Tensor:
            return v @ weight.T

        def adjoint(u: Tensor) -> Tensor:
            return u @ weight
    else:
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def forward(v: Tensor) -> Tensor:
            return F.conv2d(v, weight, None, *options)

        def adjoint(u: Tensor) -> Tensor:
            return torch.nn.grad.conv2d_input(v.shape, weight, u, *options)

    return stable_norm(forward(power_iterate(forward, adjoint, v, steps)))[0]
