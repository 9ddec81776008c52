"""Layers on which wrong norm bounds show themselves: each family sees mistakes that the others cannot.

Random kernels alone are a weak test: they see a bound 0.1 % too low in no case and the circular estimate in one of 40.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lipcert.bench.exact import operator_matrix, svd_norm

Generator = np.random.Generator


@dataclass(frozen=True)
class NormCase:
    """A layer, the shape of its input without the batch, its operator as a matrix and the norm of that."""

    layer: nn.Module
    shape: tuple[int, ...]
    matrix: np.ndarray
    norm: float

    def __str__(self) -> str:
        return f"{self.layer} on {self.shape}, {self.layer.weight.dtype}, norm {self.norm!r}"


def dense(weight: np.ndarray, double: bool = True) -> nn.Linear:
    """nn.Linear with these weights, without bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)), requires_grad=False)
    return layer if double else layer.float()


def conv(kernel: np.ndarray, double: bool = True, **settings) -> nn.Conv2d:
    """nn.Conv2d with this kernel (outputs, inputs of a group, height, width), without bias."""
    outs, ins, *size = kernel.shape
    inputs = ins * settings.get("groups", 1)
    layer = nn.Conv2d(inputs, outs, tuple(size), bias=False, dtype=torch.float64, **settings)
    layer.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(kernel)), requires_grad=False)
    return layer if double else layer.float()


def _square(g: Generator, i: int, scale: float = 1.0, size: int | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    channels, size = 1 + i % 3, size or 4 + i % 3
    return conv(scale * g.standard_normal((channels, channels, 3, 3)), i % 2 == 0, padding=1), (channels, size, size)


def _delta(g: Generator, i: int):
    channels, size = 1 + i % 3, 3 + i % 4
    kernel = np.zeros((channels, channels, 3, 3))
    kernel[range(channels), g.permutation(channels), 1, 1] = g.choice([-1.0, 1.0], channels)
    return conv(kernel, i % 2 == 0, padding=1), (channels, size, size)


def _tiny(g: Generator, i: int):
    scale = 10.0 ** -(7 + i % 24)
    if i % 2:
        return _square(g, i, scale)
    return dense(scale * g.standard_normal((3, 4)), i % 4 == 0), (4,)


def _huge(g: Generator, i: int):
    scale = 10.0 ** (5 + i % 25)
    if i % 2:
        return _square(g, i, scale)
    return dense(scale * g.standard_normal((4, 3)), i % 4 == 0), (3,)


def _difference(g: Generator, i: int):
    kernel = np.zeros((2, 2, 3, 3))
    kernel[0, :, 1, 1] = 5.0, -5.0
    kernel[1, :, 1, 1] = 0.1 * g.standard_normal()
    return conv(kernel, i % 2 == 0, padding=1), (2, 3 + i % 4, 4)


def _zero_sum(g: Generator, i: int):
    weight = g.standard_normal((4, 5))
    weight -= weight.mean(axis=1, keepdims=True)
    if i % 2 == 0:
        # The weak second row keeps the iterate alive, in a direction that has nothing of the strong one.
        return dense(np.array([[10.0, -10.0], [0.1, 0.1]]) * 2.0 ** (i % 5), i % 4 == 0), (2,)
    return dense(weight), (5,)


def _nyquist(g: Generator, i: int):
    channels, signs = 1 + i % 2, np.array([1.0, -1.0, 1.0])
    kernel = np.abs(g.standard_normal((channels, channels, 3, 3))) * signs[:, None] * signs
    return conv(kernel, i % 2 == 0, padding=1), (channels, 5 + i % 3, 5 + i % 3)


def _small(g: Generator, i: int):
    return _square(g, i, size=1 + i % 3)


def _box(g: Generator, i: int):
    size = 3 + i % 5
    return conv(np.full((1, 1, 3, 3), 2.0 ** (i % 3)), i % 2 == 0, padding=1), (1, size, size)


def _strided(g: Generator, i: int):
    taps, stride, pad = [(4, 2, 1), (3, 2, 1), (5, 2, 2), (3, 3, 1), (2, 2, 1), (2, 2, 0), (3, 2, 0)][i % 7]
    size = 5 + i % 3
    kernel = g.standard_normal((2, 1 + i % 2, taps, taps))
    return conv(kernel, i % 2 == 0, stride=stride, padding=pad), (1 + i % 2, size, size)


def _rectangular(g: Generator, i: int):
    outs, ins, high, wide = [(1, 3, 1, 3), (3, 1, 3, 1), (2, 1, 2, 3), (1, 2, 5, 1)][i % 4]
    settings = {"stride": (1 + i % 2, 1), "padding": (high // 2, wide // 2)}
    return conv(g.standard_normal((outs, ins, high, wide)), i % 2 == 0, **settings), (ins, 5, 3 + i % 3)


def _grouped(g: Generator, i: int):
    groups = 2 + i % 2
    kernel = g.standard_normal((groups * (1 + i % 2), 1 + i % 2, 3, 3))
    kernel[-1] *= 4.0  # the last group is the loud one
    layer = conv(kernel, i % 2 == 0, padding=1, groups=groups)
    return layer, (layer.in_channels, 4, 4)


def _dilated(g: Generator, i: int):
    kernel = g.standard_normal((2, 1, 3, 3))
    return conv(kernel, i % 2 == 0, padding=1 + i % 2, dilation=2), (1, 5 + i % 3, 6)


def _circular(g: Generator, i: int):
    kernel = g.standard_normal((1 + i % 2, 2, 3, 3))
    return conv(kernel, i % 2 == 0, padding=1, padding_mode="circular"), (2, 4 + i % 3, 4)


def _dense(g: Generator, i: int):
    rows, columns = [(3, 8), (8, 3), (1, 12), (12, 1), (6, 6)][i % 5]
    return dense(g.standard_normal((rows, columns)), i % 2 == 0), (columns,)


def _close(g: Generator, i: int):
    """The two largest singular values lie so close that an iteration has long stopped before it tells them apart."""
    turns = [np.linalg.qr(g.standard_normal((5, 5)))[0] for _ in range(2)]
    values = np.array([1.0, 1 - 10.0 ** -(2 + i % 3), 0.5, 0.2, 0.1])
    turns[1][:, 0] = np.eye(5)[:, 0] - 1 / 5 + 1e-9 * g.standard_normal(5)  # nearly orthogonal to the vector of ones
    turns[1] = np.linalg.qr(turns[1])[0]
    return dense(turns[0] * values @ turns[1].T), (5,)


def _nilpotent(g: Generator, i: int):
    """Upper triangular: all eigenvalues are small, the norm is not."""
    return dense(np.triu(g.standard_normal((4, 4)), 1) + 1e-3 * np.eye(4), i % 2 == 0), (4,)


FAMILIES: dict[str, Callable[[Generator, int], tuple[nn.Module, tuple[int, ...]]]] = {
    "random": _square,
    "delta": _delta,
    "tiny": _tiny,
    "huge": _huge,
    "difference of channels": _difference,
    "orthogonal to ones": _zero_sum,
    "nyquist": _nyquist,
    "small image": _small,
    "box filter": _box,
    "strided": _strided,
    "rectangular": _rectangular,
    "grouped": _grouped,
    "dilated": _dilated,
    "circular": _circular,
    "dense": _dense,
    "close singular values": _close,
    "nilpotent": _nilpotent,
}


def norm_cases(family: str, cases: int, seed: int) -> list[NormCase]:
    """The first `cases` layers of a family with their truth (SVD in float64 of the operator written out)."""
    generator = np.random.default_rng([seed, *family.encode()])
    out = []
    for index in range(cases):
        layer, shape = FAMILIES[family](generator, index)
        matrix = operator_matrix(layer, shape)
        out.append(NormCase(layer, shape, matrix, svd_norm(matrix)))
    return out


def scaled(layer: nn.Module, power: int) -> nn.Module:
    """The layer times 2**power: exact, so its norm is exactly 2**power times that of the layer."""
    kernel = layer.weight.detach().double().numpy() * math.ldexp(1.0, power)
    if type(layer) is nn.Linear:
        return dense(kernel)
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return conv(kernel, **{name: getattr(layer, name) for name in names})
