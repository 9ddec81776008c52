"""Razor-edge networks: orthogonal maps and sorting activations, so that the margin formula is exact.

Such maps keep distances, hence the product of the layers' norms is the local slope of the network. It is linear as long
as no pair of the activation swaps on the way to the boundary: the gap of every pair exceeds that distance many times.

Shape letters: F features, N pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.bench.edge import convolution, frozen, with_head
from lipcert.bench.verdict import Case
from lipcert.layers import MinMax

Activation = Callable[[], nn.Module]
_GAP = 2.0**-9
_DEEPEST = 24
_ATTEMPTS = 200


def signed_permutation(features: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix of entries 0, 1, -1: exact in any arithmetic."""
    signs_F = torch.randint(0, 2, (features,), generator=generator) * 2.0 - 1
    return torch.eye(features)[torch.randperm(features, generator=generator)] * signs_F[:, None]


def reflections(features: int, generator: torch.Generator) -> Tensor:
    """A dense orthogonal matrix of exact float32 entries: reflections at (+-1, +-1, +-1, +-1) / 2, then a permutation.

    I - 2 v v^T / |v|^2 with |v|^2 = 4 has entries that are multiples of 1/2.
    """
    matrix_FF = signed_permutation(features, generator)
    for _ in range(2):
        chosen = torch.randperm(features, generator=generator)[:4]
        v_F = torch.zeros(features)
        v_F[chosen] = torch.randint(0, 2, (4,), generator=generator) * 2.0 - 1
        matrix_FF = matrix_FF - 0.5 * torch.outer(v_F, v_F @ matrix_FF)
    return matrix_FF


def orthogonal(features: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix in float64, orthogonal to about 1e-15."""
    return torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64))[0]


def _depth(generator: torch.Generator) -> int:
    """1 to 24, as often below 5 as above."""
    return int(math.exp(float(torch.rand((), generator=generator)) * math.log(_DEEPEST + 0.99)))


def _dense_layers(kind: str, generator: torch.Generator, activation: Activation) -> tuple[list[nn.Module], tuple]:
    make = {"permutations": signed_permutation, "reflections": reflections, "orthogonal": orthogonal}[kind]
    features = 2 * int(torch.randint(2, 5, (), generator=generator))
    dtype = torch.float64 if kind == "orthogonal" else torch.float32
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(_depth(generator)):
        layers += [frozen(make(features, generator), dtype=dtype), activation()]
    return layers, (1, 1, features)


def _conv_layers(generator: torch.Generator, activation: Activation) -> tuple[list[nn.Module], tuple]:
    """Perhaps 2 x 2 patches, then convolutions with one tap: signed permutations of channels."""
    half, size = torch.randint(1, 3, (2,), generator=generator).tolist()
    channels, size = 2 * half, size + 1
    layers: list[nn.Module] = []
    shape = (channels, size, size)
    if torch.rand((), generator=generator) < 0.5:
        shape = (1, 2 * size, 2 * size)
        channels = 4
        layers += [convolution(signed_permutation(4, generator).reshape(4, 1, 2, 2), stride=2), activation()]
    for _ in range(max(1, _depth(generator) - len(layers) // 2)):
        taps = 1 + 2 * int(torch.randint(0, 2, (), generator=generator))
        kernel = torch.zeros(channels, channels, taps, taps)
        kernel[:, :, taps // 2, taps // 2] = signed_permutation(channels, generator)
        layers += [convolution(kernel, padding=taps // 2), activation()]
    return [*layers, nn.Flatten()], shape


def razor_edge(kind: str, seed: int, activation: Activation = MinMax) -> Case:
    """A razor-edge network of depth 1 to 24 with its image, exact radius and breaking perturbations.

    kind: "permutations", "reflections", "orthogonal" (this one with float64 weights) or "convolutions".
    activation: builds the sorting activation; any that permutes values of distinct pairs will do.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_ATTEMPTS):
        if kind == "convolutions":
            layers, shape = _conv_layers(generator, activation)
        else:
            layers, shape = _dense_layers(kind, generator, activation)
        # Distinct pixels at least 2^-6 apart, between 12/64 and 51/64, all exact in float32.
        steps_N = torch.randperm(40, generator=generator)[: math.prod(shape)]
        if len(steps_N) < math.prod(shape):
            continue
        image_CHW = ((steps_N + 12) / 64).reshape(shape)
        if _smallest_gap(layers, image_CHW) > _GAP:
            return with_head(layers, image_CHW, generator, f"razor edge, {kind}, seed {seed}")
    raise RuntimeError(f"razor edge, {kind}, seed {seed}: no image without near ties in {_ATTEMPTS} attempts")


def _smallest_gap(layers: list[nn.Module], image_CHW: Tensor) -> float:
    """The smallest difference of two features before any layer without weights: none closer, none swaps."""
    x, smallest = image_CHW[None].double(), math.inf
    for layer in layers:
        if not list(layer.parameters()) and type(layer) is not nn.Flatten:
            values = x.flatten(2) if x.ndim == 4 else x[..., None]
            apart = (values[0, :, None] - values[0, None]).abs() + torch.eye(values.shape[1])[..., None]
            smallest = min(smallest, float(apart.min()))
        x = copy.deepcopy(layer).double()(x)
    return smallest
