"""Small networks whose robustness is known by construction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lipcert.config import ModelConfig
from lipcert.layers import MinMax, Shift
from lipcert.models import build_model


def linear(weight, bias=None, dtype=torch.float32) -> nn.Linear:
    """nn.Linear with these numbers."""
    weight_OI = torch.as_tensor(weight, dtype=dtype)
    bias_O = torch.zeros(len(weight_OI)) if bias is None else torch.as_tensor(bias)
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight_OI)
        layer.bias.copy_(bias_O.to(dtype))
    return layer.requires_grad_(False)


def identity_net() -> nn.Sequential:
    """Two pixels, two classes, z = x + (1, 0): class 0 at radius 1/sqrt(2) where both pixels are equal."""
    return nn.Sequential(nn.Flatten(), linear(torch.eye(2)), linear(torch.eye(2), [1.0, 0.0])).eval()


def grey(batch: int = 1) -> Tensor:
    """Images for `identity_net`, both pixels 1/2."""
    return torch.full((batch, 1, 1, 2), 0.5, dtype=torch.float64)


def tiny_model(seed: int = 0, **sizes):
    """A small LiResNet for the digits."""
    torch.manual_seed(seed)
    return build_model(ModelConfig(**({"depth": 2, "width": 8, "neck_width": 16} | sizes)))


def signed_permutation(features: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix of entries 0, 1, -1: exact in any arithmetic."""
    signs_F = torch.randint(0, 2, (features,), generator=generator) * 2.0 - 1
    return torch.eye(features)[torch.randperm(features, generator=generator)] * signs_F[:, None]


def razor_edge(seed: int) -> tuple[nn.Sequential, Tensor, float, Tensor]:
    """A net of signed permutations and MinMax whose exact radius at an image is known, with the worst direction.

    The head looks at two features a and b that come from pixels through sorting alone. Locally the net is an orthogonal
    map Q of the pixels, so z_0 - z_1 = w . Q x + c: the nearest point of the boundary lies along Q^T w, at distance
    margin / |w|, provided no pair of MinMax swaps on the way, which the spread of the pixels makes sure of.

    Returns:
        net, image (1, 1, 1, F) float64, radius, unit direction (1, 1, 1, F) that breaks it.
    """
    generator = torch.Generator().manual_seed(seed)
    features = 2 * int(torch.randint(2, 5, (), generator=generator))
    depth = int(torch.randint(1, 5, (), generator=generator))
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [linear(signed_permutation(features, generator)), MinMax()]
    # Distinct magnitudes, at least 2^-6 apart: no pair of MinMax ties, whatever the signs before it.
    steps_F = torch.randperm(40, generator=generator)[:features].double()
    image = ((steps_F + 12) / 64).reshape(1, 1, 1, -1)
    local_FF = torch.autograd.functional.jacobian(nn.Sequential(*layers).double(), image)[0].reshape(features, -1)
    nn.Sequential(*layers).float()
    head_F = torch.randint(-3, 4, (features,), generator=generator).double()
    head_F[0] = 3
    hidden_F = (local_FF @ image.flatten()).double()
    margin = 2.0**-13
    # Multiples of 2^-6 minus 2^-13: exact in float32.
    offset = margin - float(head_F @ hidden_F)
    head = linear(torch.stack([head_F, torch.zeros(features, dtype=torch.float64)]), [offset, 0.0])
    direction = -(local_FF.T @ head_F)
    length = math.sqrt(float(head_F @ head_F))
    net = nn.Sequential(*layers, head).eval()
    return net, image, margin / length, (direction / length).reshape(1, 1, 1, -1)


def shift_net(amount) -> nn.Sequential:
    """A `Shift` by anything before a head for two pixels."""
    return nn.Sequential(Shift(amount), nn.Flatten(), linear(torch.eye(2), [1.0, 0.0])).eval()
