"""Lipschitz constants of maps, from above and from below; no formula of lipcert takes part.

From above: the Jacobian of every affine part (what lies between two activations) by autograd, its norm by LAPACK. From
below: pairs of inputs that climb.
"""

import numpy as np
import torch
from torch import nn

from lipcert.layers import MinMax, ReLU

ROWS = 150  # no part has more outputs


def images(shape: tuple[int, ...], count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=dtype)


def constant(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The Lipschitz constant by composition: the chain is cut at its activations, and a part y = sum_l A_l x_l of
    earlier values x_l is at most sum_l |A_l| Lip(x_l) fast."""
    leaves, outputs = [images(shape, 1).repeat(ROWS, *[1] * len(shape)).requires_grad_()], []

    def cut(_, inputs, output):
        outputs.append(inputs[0])
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    activations = [part for part in layer.modules() if isinstance(part, (MinMax, ReLU, nn.ReLU))]
    hooks = [activation.register_forward_hook(cut) for activation in activations]
    last = layer(leaves[0])
    for hook in hooks:
        hook.remove()
    speeds = [1.0]
    for output in outputs if last is leaves[-1] else [*outputs, last]:
        speeds.append(sum(dense_norm(output, leaf) * speed for leaf, speed in zip(leaves, speeds, strict=False)))
    return speeds[-1]


def dense_norm(output: torch.Tensor, leaf: torch.Tensor) -> float:
    """Spectral norm of the Jacobian d output / d leaf, row by row of the batch; 0 where none leads to the other."""
    size = output[0].numel()
    assert size <= ROWS
    entries = output.flatten(1)[:size].diagonal().sum()
    (rows,) = torch.autograd.grad(entries, leaf, retain_graph=True, allow_unused=True)
    return 0.0 if rows is None else float(np.linalg.norm(rows[:size].flatten(1).numpy(), 2))


def steepest(chain: nn.Module, shape: tuple[int, ...], rounds: int) -> float:
    """The largest stretch |f(x) - f(y)| / |x - y| met on the way of 16 pairs, each climbing by its gradient."""
    start, way = images(shape, 16), images(shape, 16)
    length = torch.logspace(-2, 1, 16, dtype=torch.float64)
    best = 0.0
    for _ in range(rounds):
        start.requires_grad_(), way.requires_grad_()
        step = way * spread(length / way.flatten(1).norm(dim=1), shape)
        stretch = (chain(start + step) - chain(start)).flatten(1).norm(dim=1) / length
        best = max(best, stretch.max().item())
        slopes = torch.autograd.grad(stretch.sum(), (start, way))
        with torch.no_grad():
            start, way = (along(x, slope, shape) for x, slope in zip((start, way), slopes, strict=True))
    return best


def along(x: torch.Tensor, slope: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A step up the slope, 0.3 times as long as x."""
    lengths = (x.flatten(1).norm(dim=1), slope.flatten(1).norm(dim=1).clamp(min=1e-30))
    return x + spread(0.3 * lengths[0] / lengths[1], shape) * slope


def spread(factor_B: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return factor_B.reshape(-1, *[1] * len(shape))
