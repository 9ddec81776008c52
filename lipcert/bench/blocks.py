"""Chains of residual blocks x + g(x) on which 1 + |g| is exact, so that whatever is claimed above it is false.

A branch that multiplies by c > 0 where the image is makes a block that multiplies by 1 + c: skip and branch point the
same way. The truth is the slope of the whole network at the image, found without any bound of a block.

Shape letters: F features, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.bench.edge import convolution, frozen, local_map, with_head
from lipcert.bench.razor import Activation, orthogonal, signed_permutation
from lipcert.bench.verdict import Case
from lipcert.layers import MinMax, Residual

_DEEPEST, _DEEPEST_NESTED = 5, 3  # steeper networks leave the truth fewer digits than the nearest witness shows


def block(*layers: nn.Module) -> Residual:
    return Residual(nn.Sequential(*layers))


def _factor(generator: torch.Generator, least: int = -3) -> float:
    """A power of two, 2**least to 2."""
    return 2.0 ** float(torch.randint(least, 2, (), generator=generator))


def _sorting(x_F: Tensor, generator: torch.Generator, activation: Activation) -> Residual:
    """Permute with signs, sort, and take both back times c: a branch that is no linear map, but c times x at x."""
    before = [frozen(signed_permutation(len(x_F), generator)), activation()]
    local_FF, _ = local_map(before, x_F)
    return block(*before, frozen(_factor(generator) * local_FF.T.float()))


def _nested(x_F: Tensor, generator: torch.Generator, activation: Activation) -> Residual:
    """c (1 + c') x by a block inside of the branch."""
    inner = _sorting(x_F, generator, activation)
    return block(inner, frozen(_factor(generator, 0) * torch.eye(len(x_F))))


def _dense(features: int, generator: torch.Generator, top_F: Tensor) -> Residual:
    """A symmetric branch that stretches `top_F` most, by c, and other directions by less, some of them backwards."""
    rest_FF = orthogonal(features, generator)
    rest_FF[:, 0] = top_F
    frame_FF = torch.linalg.qr(rest_FF)[0]
    factor = _factor(generator)
    values_F = factor * (1.8 * torch.rand(features, generator=generator, dtype=torch.float64) - 0.9)
    values_F[0] = factor
    return block(frozen(frame_FF * values_F @ frame_FF.T, dtype=torch.float64))


def _convolutions(channels: int, generator: torch.Generator) -> Residual:
    """Two convolutions that permute channels with signs, there and back, times c."""
    kernels = torch.zeros(2, channels, channels, 3, 3)
    kernels[0, :, :, 1, 1] = signed_permutation(channels, generator)
    kernels[1, :, :, 1, 1] = _factor(generator) * kernels[0, :, :, 1, 1].T
    return block(*(convolution(kernel, padding=1) for kernel in kernels))


def residual_blocks(kind: str, seed: int, activation: Activation = MinMax) -> Case:
    """A network of 1 to 5 residual blocks with its image, exact radius and breaking perturbations.

    kind: "sorting" (branches of dense layers and an activation), "nested" (blocks inside of branches), "dense"
    (symmetric branches in float64) or "convolutions". activation: as in `razor_edge`.
    """
    generator = torch.Generator().manual_seed(seed)
    deepest = _DEEPEST_NESTED if kind == "nested" else _DEEPEST
    depth = 1 + int(torch.randint(0, deepest, (), generator=generator))
    features = 2 * int(torch.randint(2, 5, (), generator=generator))
    shape = (features // 2, 2, 2) if kind == "convolutions" else (1, 1, features)
    # Distinct sizes at least 2^-6 apart, and signed permutations keep them so: no pair of the activation swaps nearby.
    image_CHW = ((torch.randperm(40, generator=generator)[: math.prod(shape)] + 12) / 64).reshape(shape)
    layers: list[nn.Module] = [] if kind == "convolutions" else [nn.Flatten()]
    top_F = nn.functional.normalize(torch.randn(features, generator=generator, dtype=torch.float64), dim=0)
    for _ in range(depth):
        if kind == "convolutions":
            layers.append(_convolutions(shape[0], generator))
        elif kind == "dense":
            layers.append(_dense(features, generator, top_F))
        else:
            x_F = local_map(layers, image_CHW)[1].float()
            make: Callable = {"sorting": _sorting, "nested": _nested}[kind]
            layers += [make(x_F, generator, activation), activation()]
    if kind == "convolutions":
        layers.append(nn.Flatten())
    return with_head(layers, image_CHW, generator, f"residual blocks, {kind}, seed {seed}", along_top=True)
