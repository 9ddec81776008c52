"""Tiny networks for l_inf, one for each kind of layer, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipcert.layers import MinMax, Residual, Shift
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance


def filled(layer: nn.Module, scale: float = 0.5) -> nn.Module:
    """Random numbers in a distance layer."""
    layer.weight.data.copy_(torch.randn(layer.weight.shape) * scale)
    layer.shift.data.copy_(torch.randn(layer.shift.shape) * 0.2)
    return layer


def frozen(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval().requires_grad_(False)


def tiny(kind: str, seed: int = 0) -> nn.Sequential:
    """A chain for images (1, 3, 3) with three classes."""
    torch.manual_seed(seed)
    return frozen(*_LAYERS[kind]())


_LAYERS = {
    "distances": lambda: [
        nn.Flatten(), filled(Distance(9, 5)), filled(Distance(5, 4)), filled(Distance(4, 3)), Negate(),
    ],
    "shifted": lambda: [
        Shift(0.1307), nn.ZeroPad2d(1), nn.Flatten(), filled(Distance(25, 4)), MinMax(), nn.ReLU(), nn.Identity(),
        filled(Distance(4, 3)), Negate(),
    ],
    "windows": lambda: [
        filled(DistanceConv(1, 2, 2, 1, 1)), filled(DistanceConv(2, 3, 3, 2, 0)), nn.Flatten(), filled(Distance(3, 3)),
        Negate(),
    ],
    "sorted": lambda: [
        nn.Flatten(), filled(SortedDistance(9, 6, 0.6, 4)), filled(SortedDistance(6, 4, 0.6)), filled(Distance(4, 3)),
        Negate(),
    ],
    "convolution": lambda: [
        nn.Conv2d(1, 2, 2, padding=1), nn.ReLU(), Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())),
        nn.Conv2d(2, 4, 2, stride=2), MinMax(), nn.Flatten(), nn.Linear(16, 5), Shift(0.1), nn.ReLU(), nn.Linear(5, 3),
    ],
    "dense in the middle": lambda: [
        nn.Flatten(), filled(Distance(9, 4)), nn.Linear(4, 4), filled(Distance(4, 3)), Negate(),
    ],
}  # fmt: skip
KINDS = tuple(_LAYERS)
LIPSCHITZ = ("distances", "shifted", "windows", "sorted")


def nearest(weights: list[float], shift: float = 0.0) -> nn.Sequential:
    """One pixel, the class of the nearest weight: the border between two lies in the middle."""
    layer = Distance(1, len(weights))
    layer.weight.data = torch.tensor(weights)[:, None]
    layer.shift.data = torch.full((len(weights),), shift)
    return frozen(nn.Flatten(), layer, Negate())


def pixel(*values: float) -> Tensor:
    """One image for each value, (B, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
