"""Negative controls: the ways in which such bounds are usually wrong, each of which these tests must be able to see.

Six families of kernels (no single one sees every mistake) run through norm_bound, which must never fall below the
truth, and through wrong methods, each of which must.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from truth import conv_matrix

from lipcert.bounds import enclosure as bounds
from lipcert.bounds import norm_bound, torus

CASES_OF_FAMILY = 12
Case = tuple[np.ndarray, int]  # a 3x3 kernel (outputs, inputs, 3, 3) and the size of the image, padding 1


def family(name: str) -> list[Case]:
    generator = np.random.default_rng(sum(map(ord, name)))
    cases = []
    for index in range(CASES_OF_FAMILY):
        channels, size = 1 + index % 3, 4 + index % 5
        kernel = generator.standard_normal((channels, channels, 3, 3))
        if name == "delta":  # an isometry: norm 1 exactly
            kernel = np.zeros_like(kernel)
            kernel[range(channels), generator.permutation(channels), 1, 1] = 1.0
        elif name == "tiny":
            kernel *= 1e-13
        elif name == "difference":  # of two channels: orthogonal to a start vector of ones
            kernel = np.zeros((2, 2, 3, 3))
            kernel[0, :, 1, 1] = (5.0, -5.0)
            kernel[1, :, 1, 1] = 0.1 * generator.standard_normal()
        elif name == "nyquist":  # alternating signs: the largest gain at the highest frequency
            signs = np.array([1.0, -1.0, 1.0])
            kernel = np.abs(kernel) * signs[:, None] * signs[None, :]
        elif name == "small":
            size = 1 + index % 3
        cases.append((kernel, size))
    return cases


FAMILIES = {name: family(name) for name in ("random", "delta", "tiny", "difference", "nyquist", "small")}


def operator(kernel: np.ndarray, size: int) -> np.ndarray:
    return conv_matrix(kernel, (kernel.shape[1], size, size), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


def violations(method: Callable[[np.ndarray, int], float], tolerance: float) -> dict[str, int]:
    """How often the method falls below the true norm, for each family."""
    counts = {}
    for name, cases in FAMILIES.items():
        truths = [float(np.linalg.norm(operator(kernel, size), 2)) for kernel, size in cases]
        found = [method(kernel, size) for kernel, size in cases]
        counts[name] = sum(not value >= truth * (1 - tolerance) for value, truth in zip(found, truths, strict=True))
    return counts


def proven(kernel: np.ndarray, size: int) -> float:
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, bias=False, dtype=torch.float64)
    layer.weight.data = torch.from_numpy(kernel)
    return norm_bound(layer, (kernel.shape[1], size, size)).upper


@pytest.mark.parametrize("entries", [1024**2, 0])
def test_proven_bounds_never_fall_below(entries, monkeypatch):
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", entries)
    assert not any(violations(proven, tolerance=0.0).values())


def circular(kernel: np.ndarray, size: int) -> float:
    frequencies = np.fft.fft2(kernel, (size, size)) if size >= 3 else _symbol(kernel, size)
    return float(np.linalg.norm(np.moveaxis(frequencies, (0, 1), (-2, -1)), 2, axis=(-2, -1)).max())


def _symbol(kernel: np.ndarray, size: int) -> np.ndarray:
    folded = np.zeros((*kernel.shape[:2], size, size))
    for y, x in np.ndindex(3, 3):
        folded[:, :, y % size, x % size] += kernel[:, :, y, x]
    return np.fft.fft2(folded)


def power_method(kernel: np.ndarray, size: int, steps: int, start: np.ndarray | None = None) -> float:
    """As certifiers in use do it: float32, normalised with a floor under the length, from a start of ones."""
    matrix = operator(kernel, size).astype(np.float32)
    vector = np.ones(matrix.shape[1], np.float32) if start is None else start.astype(np.float32)
    for _ in range(steps):
        vector = matrix.T @ (matrix @ vector)
        vector /= max(float(np.linalg.norm(vector)), 1e-12)
    return float(np.linalg.norm(matrix @ vector))


def single_precision(kernel: np.ndarray, size: int) -> float:
    matrix = operator(kernel, size).astype(np.float32)
    return math.sqrt(max(float(np.linalg.eigvalsh(matrix.T @ matrix)[-1]), 0.0))


def random_start(kernel: np.ndarray, size: int) -> float:
    return power_method(kernel, size, 500, np.random.default_rng(7).standard_normal(kernel.shape[1] * size * size))


def frobenius_over_rank(kernel: np.ndarray, size: int) -> float:
    matrix = operator(kernel, size)
    return float(np.linalg.norm(matrix)) / math.sqrt(max(np.linalg.matrix_rank(matrix), 1))


WRONG = {
    "circular, N = n": circular,
    "circular, N = kernel": lambda kernel, size: circular(kernel, 3),
    "power method, 10 steps": lambda kernel, size: power_method(kernel, size, 10),
    "power method, 500 steps from ones": lambda kernel, size: power_method(kernel, size, 500),
    "power method, 500 steps from noise": random_start,
    "norm of the reshaped kernel": lambda kernel, size: float(np.linalg.norm(kernel.reshape(len(kernel), -1), 2)),
    "frequency zero only": lambda kernel, size: float(np.linalg.norm(kernel.sum(axis=(2, 3)), 2)),
    "Frobenius over root of rank": frobenius_over_rank,
    "single precision, no slack": single_precision,
    "truth times 0.999": lambda kernel, size: 0.999 * float(np.linalg.norm(operator(kernel, size), 2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_methods_are_caught(name):
    assert sum(violations(WRONG[name], tolerance=1e-11).values()) > 0


def wrong_torus(monkeypatch, change: str) -> None:
    honest = torus.circle
    monkeypatch.setattr(bounds, "_MATRIX_ENTRIES", 0)
    if change == "N = n":
        monkeypatch.setattr(torus, "circle", lambda axis: replace(honest(axis), size=axis.size))
    elif change == "half the frequencies":
        angles = torus.Torus.angles
        monkeypatch.setattr(torus.Torus, "angles", lambda self, phase: angles(self, phase)[: self.circles[1].size])
    elif change == "real parts only":
        monkeypatch.setattr(torus, "_embed", lambda real, imaginary: real)


@pytest.mark.parametrize("change", ["N = n", "half the frequencies", "real parts only"])
def test_wrong_tori_are_caught(change, monkeypatch):
    wrong_torus(monkeypatch, change)
    assert sum(violations(proven_upper_only, tolerance=0.0).values()) > 0


def proven_upper_only(kernel: np.ndarray, size: int) -> float:
    try:
        return proven(kernel, size)
    except ArithmeticError:  # the lower end contradicts it: caught as well
        return 0.0
