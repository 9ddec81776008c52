"""Small chains with residual blocks of every make."""

from __future__ import annotations

import torch
from torch import nn

from lipcert.layers import MinMax, Residual, Shift

IMAGE = (1, 4, 4)


def block(*layers: nn.Module) -> Residual:
    return Residual(nn.Sequential(*layers))


def conv(channels: int, **settings) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, **settings)


def residual_chain(seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    """A small chain with blocks of every make, one inside of another, and one image of 8-bit pixels."""
    torch.manual_seed(seed)
    channels = 2 * (seed % 2 + 1)
    inner = block(conv(channels, bias=False), Shift(0.25), nn.ReLU())
    layers: list[nn.Module] = [
        Shift([0.5, 0.3, -2.0][seed % 3]),
        nn.Conv2d(1, channels, 3, padding=1, stride=1 + seed % 2),
        block(conv(channels), MinMax(), conv(channels)),
        MinMax(),
        block(conv(channels), nn.ReLU(), inner, conv(channels)),
        nn.Flatten(),
    ]
    size = nn.Sequential(*layers)(torch.zeros(1, *IMAGE)).shape[1]
    layers += [nn.Linear(size, 6), block(nn.Linear(6, 4), MinMax(), nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3)]
    chain = nn.Sequential(*layers).eval().requires_grad_(False)
    with torch.no_grad():
        for layer in chain.modules():
            if hasattr(layer, "weight"):
                layer.weight *= [1.0, 2.0, 0.25][seed % 3]
    return chain, torch.randint(0, 256, (1, *IMAGE), dtype=torch.float64) / 255
