"""Independent truth for forward passes: exact rational networks, and passes that round as badly as a format allows.

Only the geometry of plain chains is shared with lipcert: layers are turned into matrices by `truth.layer_matrix`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import nn
from truth import layer_matrix

from lipcert.forward import FloatFormat
from lipcert.layers import MinMax, Residual, Shift

TOY = FloatFormat("toy", torch.float64, Fraction(1, 2**9), Fraction(1, 2**40), Fraction(2**100))
"""Nine bits and a high threshold of underflow: float64 computes its exact results and shows its errors."""


@dataclass(frozen=True)
class Maps:
    """A chain as matrices: one entry a layer, ("affine", A, b), ("shift", a, None), ("minmax" or "relu" or "same").

    What stands between a ("keep") and its ("add") is the branch of a residual block."""

    layers: tuple[tuple, ...]

    @classmethod
    def of(cls, chain: nn.Sequential, shape: tuple[int, ...]) -> Maps:
        layers, zeros = [], torch.zeros(1, *shape)
        for layer in chain:
            if isinstance(layer, Residual):
                inside = cls.of(layer.branch, tuple(zeros.shape[1:])).layers
                layers += [("keep", None, None), *inside, ("add", None, None)]
                continue
            after = layer(zeros) if not isinstance(layer, (nn.Conv2d, nn.Linear)) else layer.float()(zeros)
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                matrix = layer_matrix(layer, tuple(zeros.shape[1:]))
                bias = np.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().double().numpy()
                layers.append(("affine", matrix, np.repeat(bias, matrix.shape[0] // len(bias))))
            elif isinstance(layer, Shift):
                layers.append(("shift", layer.amount, None))
            elif isinstance(layer, MinMax):
                layers.append(("minmax", None, None))
            elif isinstance(layer, nn.ReLU):
                layers.append(("relu", None, None))
            else:
                assert isinstance(layer, (nn.Flatten, nn.Identity)), layer
                layers.append(("same", None, None))
            zeros = after.detach()
        return cls(tuple(layers))

    def exactly(self, image: list[Fraction]) -> list[Fraction]:
        """Logits in exact arithmetic."""
        x, kept = list(image), []
        for kind, first, bias in self.layers:
            if kind == "keep":
                kept.append(x)
            elif kind == "add":
                x = [a + b for a, b in zip(kept.pop(), x, strict=True)]
            elif kind == "affine":
                x = [
                    sum((Fraction(float(w)) * v for w, v in zip(row, x, strict=True) if w), start=Fraction(float(b)))
                    for row, b in zip(first, bias, strict=True)
                ]
            elif kind == "shift":
                x = [v - Fraction(first) for v in x]
            else:
                x = sort(kind, x)
        return x

    def rounded(self, image: np.ndarray, form: FloatFormat, generator: np.random.Generator, worst: bool) -> np.ndarray:
        """Logits as `form` may compute them: random order of summation, each operation rounded to nearest or, if
        `worst`, off by up to the unit roundoff in a random direction for each output; small numbers are flushed."""
        x, kept = rounding(image, form, generator, worst), []
        for kind, first, bias in self.layers:
            if kind == "keep":
                kept.append(x)
            elif kind == "add":
                push = np.where(generator.random(len(x)) < 0.5, -1.0, 1.0)
                x = rounding(flushed(kept.pop(), form) + flushed(x, form), form, generator, worst, push)
            elif kind == "affine":
                order = generator.permutation(len(x))
                total = np.zeros(len(first))
                push = np.where(generator.random(len(first)) < 0.5, -1.0, 1.0)
                for i in order:
                    product = rounding(first[:, i] * flushed(x[i], form), form, generator, worst, push)
                    total = rounding(total + product, form, generator, worst, push)
                x = rounding(total + bias, form, generator, worst, push)
            elif kind == "shift":
                x = rounding(flushed(x, form) - flushed(first, form), form, generator, worst)
            else:
                x = np.array(sort(kind, list(x)))
        return x


def sort(kind: str, x: list) -> list:
    """MinMax and ReLU."""
    if kind == "minmax":
        half = len(x) // 2
        pairs = list(zip(x[:half], x[half:], strict=True))
        return [max(p) for p in pairs] + [min(p) for p in pairs]
    return [max(v, 0 * v) for v in x] if kind == "relu" else x


def flushed(x: np.ndarray | float, form: FloatFormat) -> np.ndarray:
    return np.where(np.abs(x) < float(form.smallest), 0.0, x)


def rounding(
    x: np.ndarray, form: FloatFormat, generator: np.random.Generator, worst: bool, push: np.ndarray | float = 1.0
) -> np.ndarray:
    """To the nearest number of the format, or (worst) moved by all that the error model |fl(x) - x| <= u |x| allows."""
    unit = float(form.unit)
    if worst:
        return flushed(x * (1 + 0.999 * unit * push * np.sign(x)), form)
    mantissa, exponent = np.frexp(x)
    return flushed(np.ldexp(np.round(mantissa / (2 * unit)) * (2 * unit), exponent), form)
