"""The ways in which norms of layers are usually wrong: each is a `bound(layer, shape)` that falls below the truth.

The first ten are those of which soundness tests are known to miss some; what a method does not apply to (strides in a
circular estimate, say) is left to the SVD.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.bench.exact import operator_matrix, svd_norm
from lipcert.bench.families import conv, dense
from lipcert.bench.reference import Norm, Shape, exact_norm


def _kernel(layer: nn.Module) -> np.ndarray:
    return layer.weight.detach().double().numpy()


def _simple(layer: nn.Module) -> bool:
    """A 3 x 3 convolution of stride 1 with padding 1."""
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _symbols(kernel: np.ndarray, high: int, wide: int) -> np.ndarray:
    folded = np.zeros((*kernel.shape[:2], high, wide))
    for y, x in np.ndindex(*kernel.shape[2:]):
        folded[:, :, y % high, x % wide] += kernel[:, :, y, x]
    return np.moveaxis(np.fft.fft2(folded), (0, 1), (-2, -1))


def circular(layer: nn.Module, shape: Shape, size: int | None = None) -> float:
    """Zero padding taken for circular: the singular values at the frequencies of an n x n torus."""
    if type(layer) is not nn.Conv2d or not _simple(layer):
        return exact_norm(layer, shape)
    symbols = _symbols(_kernel(layer), *((size, size) if size else shape[1:]))
    return float(np.linalg.norm(symbols, 2, axis=(-2, -1)).max())


def power_method(
    layer: nn.Module, shape: Shape, steps: int = 500, start: Tensor | None = None, floor: float = 1e-12
) -> float:
    """As public codes do it: float32, from ones, each iterate normalised with a floor under its length."""
    matrix_MN = torch.from_numpy(operator_matrix(layer, shape)).float()
    v_N = torch.ones(matrix_MN.shape[1]) if start is None else start.float()
    for _ in range(steps):
        v_N = F.normalize(matrix_MN.T @ (matrix_MN @ v_N), dim=0, eps=floor)
    return float((matrix_MN @ v_N).norm())


def from_noise(layer: nn.Module, shape: Shape) -> float:
    start = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(7))
    return power_method(layer, shape, 500, start)


def with_epsilon(layer: nn.Module, shape: Shape) -> float:
    """Converged, but the iterate is divided by its length plus 1e-9 (gloro issue 8)."""
    matrix = operator_matrix(layer, shape)
    v = np.linalg.svd(matrix)[2][0]
    v = matrix.T @ (matrix @ v)
    return float(np.linalg.norm(matrix @ (v / (np.linalg.norm(v) + 1e-9))))


def frobenius_over_rank(layer: nn.Module, shape: Shape) -> float:
    matrix = operator_matrix(layer, shape)
    return float(np.linalg.norm(matrix)) / math.sqrt(max(np.linalg.matrix_rank(matrix), 1))


def single_precision(layer: nn.Module, shape: Shape) -> float:
    matrix = operator_matrix(layer, shape).astype(np.float32)
    return math.sqrt(max(float(np.linalg.eigvalsh(matrix.T @ matrix)[-1]), 0.0))


def valid_only(layer: nn.Module, shape: Shape) -> float:
    """Padding ignored: only outputs whose patch lies inside the image."""
    if type(layer) is not nn.Conv2d or not _simple(layer) or min(shape[1:]) < 3:
        return exact_norm(layer, shape)
    return exact_norm(conv(_kernel(layer)), shape)


def smaller_image(layer: nn.Module, shape: Shape) -> float:
    """Computed once on a 3 x 3 image and used for all."""
    if type(layer) is not nn.Conv2d or not _simple(layer):
        return exact_norm(layer, shape)
    return exact_norm(layer, (shape[0], 3, 3))


def first_group(layer: nn.Module, shape: Shape) -> float:
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return exact_norm(layer, shape)
    kernel = _kernel(layer)
    only = conv(kernel[: len(kernel) // groups], padding=layer.padding, stride=layer.stride)
    return exact_norm(only, (shape[0] // groups, *shape[1:]))


def spectral_radius(layer: nn.Module, shape: Shape) -> float:
    """The largest eigenvalue in place of the largest singular value."""
    matrix = operator_matrix(layer, shape)
    square = matrix.shape[0] == matrix.shape[1]
    return float(np.abs(np.linalg.eigvals(matrix)).max()) if square else exact_norm(layer, shape)


def disjoint_patches(layer: nn.Module, shape: Shape) -> float:
    """Any stride above 1 taken for patches that do not overlap."""
    strided = type(layer) is nn.Conv2d and max(layer.stride) > 1 and layer.groups == 1
    return svd_norm(_kernel(layer).reshape(layer.out_channels, -1)) if strided else exact_norm(layer, shape)


def longest_row(layer: nn.Module, shape: Shape) -> float:
    return float(np.linalg.norm(operator_matrix(layer, shape), axis=1).max())


def half_the_frequencies(layer: nn.Module, shape: Shape) -> float:
    """The torus of n + 1 points, which is a bound, but with half of its frequencies left out."""
    if type(layer) is not nn.Conv2d or not _simple(layer):
        return exact_norm(layer, shape)
    symbols = _symbols(_kernel(layer), shape[1] + 1, shape[2] + 1)
    return float(np.linalg.norm(symbols[: (shape[1] + 2) // 4 + 1], 2, axis=(-2, -1)).max())


def real_parts(layer: nn.Module, shape: Shape) -> float:
    if type(layer) is not nn.Conv2d or not _simple(layer):
        return exact_norm(layer, shape)
    symbols = _symbols(_kernel(layer), shape[1] + 1, shape[2] + 1).real
    return float(np.linalg.norm(symbols, 2, axis=(-2, -1)).max())


def bfloat16_weights(layer: nn.Module, shape: Shape) -> float:
    rounded = layer.weight.detach().bfloat16().double().numpy()
    if type(layer) is nn.Linear:
        return exact_norm(dense(rounded), shape)
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return exact_norm(conv(rounded, **{name: getattr(layer, name) for name in names}), shape)


WRONG_NORMS: dict[str, Norm] = {
    "circular, N = n": circular,
    "circular, N = kernel": lambda layer, shape: circular(layer, shape, 3),
    "power method, 10 steps": lambda layer, shape: power_method(layer, shape, 10),
    "power method, 500 steps from ones": power_method,
    "power method, 500 steps from noise": from_noise,
    "norm of the reshaped kernel": lambda layer, shape: svd_norm(_kernel(layer).reshape(len(layer.weight), -1)),
    "frequency zero only": lambda layer, shape: svd_norm(_kernel(layer).reshape(*layer.weight.shape[:2], -1).sum(2)),
    "Frobenius over root of rank": frobenius_over_rank,
    "single precision, no slack": single_precision,
    "truth times 0.999": lambda layer, shape: 0.999 * exact_norm(layer, shape),
    "length plus 1e-9": with_epsilon,
    "padding ignored": valid_only,
    "norm of a smaller image": smaller_image,
    "first group only": first_group,
    "eigenvalue for singular value": spectral_radius,
    "patches taken for disjoint": disjoint_patches,
    "longest row": longest_row,
    "half of the frequencies": half_the_frequencies,
    "real parts of the frequencies": real_parts,
    "weights in bfloat16": bfloat16_weights,
}
