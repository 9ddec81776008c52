"""Networks whose exact radius at an image is known: what is claimed above it is false by any amount one cares to see.

Attacks do not see a certifier that is wrong by a factor of five: on a trained network the nearest adversarial example
that they find is that far outside of the certified ball. Here the boundary is known to about 1e-12: around the image
the network is linear, z_p - z_j = (w_p - w_j) . J x + c, so that the nearest point where class j catches up lies at
margin / |J^T (w_p - w_j)|, in a known direction.

Shape letters: F features, N pixels, K classes.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from lipcert.bench.verdict import Case

BEYOND = (1e-7, 1e-3, 0.03)  # witnesses lie this much outside of the exact radius; the first shows in float64 only
_MARGIN = 2.0**-13


def frozen(weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """nn.Linear of these weights; zero bias by default."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer.requires_grad_(False)


def convolution(kernel: Tensor, **settings) -> nn.Conv2d:
    outs, ins, *size = kernel.shape
    layer = nn.Conv2d(ins, outs, tuple(size), dtype=kernel.dtype, **settings)
    with torch.no_grad():
        layer.weight.copy_(kernel)
        layer.bias.zero_()
    return layer.requires_grad_(False)


def local_map(layers: list[nn.Module], image_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobian (F, N) and value (F,) of the layers at an image, in float64."""
    precise = copy.deepcopy(nn.Sequential(*layers)).double()
    image = image_CHW[None].double()
    local = torch.autograd.functional.jacobian(precise, image)
    with torch.no_grad():
        value_F = precise(image)[0]
    return local.reshape(len(value_F), -1), value_F


def with_head(
    layers: list[nn.Module], image_CHW: Tensor, generator: torch.Generator, name: str, along_top: bool = False
) -> Case:
    """Close the network with 2 to 4 classes so that the predicted one and a rival are 2^-13 apart."""
    local_FN, hidden_F = local_map(layers, image_CHW)
    features, classes = len(hidden_F), int(torch.randint(2, 5, (), generator=generator))
    predicted, rival = torch.randperm(classes, generator=generator)[:2].tolist()
    rows_KF = torch.randint(-3, 4, (classes, features), generator=generator).double()
    if along_top:
        rows_KF = rows_KF / 8
        rows_KF[predicted] = rows_KF[rival] + 3 * torch.linalg.svd(local_FN)[0][:, 0]
    else:
        rows_KF[predicted, 0] = rows_KF[rival, 0] + 3
    dtype = next(p for layer in layers for p in layer.parameters()).dtype
    rows_KF = rows_KF.to(dtype).double()
    slope = float((local_FN.T @ (rows_KF[predicted] - rows_KF[rival])).norm())
    margin = _MARGIN * min(1.0, slope)  # keeps the radius below 2^-13 for layers of any scale
    levels_K = torch.full((classes,), -4.0 * max(1.0, slope), dtype=torch.float64)
    levels_K[predicted], levels_K[rival] = margin, 0.0
    head = frozen(rows_KF, levels_K - rows_KF @ hidden_F, dtype)
    # The biases were rounded: the truth is that of the stored ones.
    logits_K = head.weight.double() @ hidden_F + head.bias.double()
    slopes_KN = (head.weight[predicted].double() - head.weight.double()) @ local_FN
    radii_K = (logits_K[predicted] - logits_K) / slopes_KN.norm(dim=1)
    radii_K[predicted] = math.inf
    radius, nearest = (value.item() for value in radii_K.min(0))
    direction_CHW = -(slopes_KN[nearest] / slopes_KN[nearest].norm()).reshape(image_CHW.shape)
    points = [(0, image_CHW.double() + radius * (1 + beyond) * direction_CHW) for beyond in BEYOND]
    model = nn.Sequential(*layers, head).eval().requires_grad_(False)
    return Case(model, image_CHW[None], tuple(points), limits=(radius,), name=name)
