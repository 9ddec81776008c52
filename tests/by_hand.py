"""Networks by the papers' formulas, from the raw parameters alone; nothing of lipcert but the settings.

`network_by_hand` turns a state_dict into steps; what interprets them knows convolutions, matrices and sorting only.
"""

import itertools
import math

import numpy as np
from scipy import signal
from truth import conv_matrix

from lipcert.config import ModelConfig

LAYOUTS = {  # filters in units of the width, kernel, stride; hidden dense layers (code of arXiv 2102.08452)
    2: ([(1, 4, 2), (2, 4, 2)], 1),
    4: ([(1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2)], 2),
    6: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 3, 1), (2, 4, 2)], 1),
    7: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2), (4, 3, 1), (4, 4, 2)], 0),
    8: ([(1, 3, 1), (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 3, 1), (2, 4, 2), (4, 3, 1), (4, 4, 2)], 1),
}


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """chol(M M^T + d I)^-1 M with d = mean(diag(M M^T)) / 1000, on the smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    gram = matrix @ matrix.T
    return np.linalg.inv(np.linalg.cholesky(gram + np.trace(gram) / len(gram) / 1000 * np.eye(len(gram)))) @ matrix


def network_by_hand(config: ModelConfig, p: dict[str, np.ndarray]) -> tuple[list[tuple], np.ndarray, np.ndarray]:
    """Steps of the backbone, rows and bias of the head."""
    rows = p["head.linear.weight"]
    if config.family == "gloro":
        layout, hidden = LAYOUTS[config.depth]
        steps = []
        for i, (_, kernel, stride) in enumerate(layout, 1):
            # "same": a stride of 2 halves the map, a stride of 1 keeps it
            steps += [conv(p, f"backbone.conv{i}", stride, {3: 1, 4: 1}[kernel]), ("act",)]
        steps.append(("flatten",))
        for i in range(1, hidden + 1):
            steps += [linear(p, f"backbone.dense{i}"), ("act",)]
        return steps, rows, p["head.linear.bias"]
    kernel = p["backbone.stem.conv.weight"].shape[-1]
    stride, padding = (kernel, 0) if config.stem == "patch" else ({3: 1, 5: 2, 7: 4}[kernel], kernel // 2)
    steps = [("pad", 2)] if config.input_size == 28 else []
    steps += [("minus", 0.5), conv(p, "backbone.stem", stride, padding), ("act",)]
    stack = {key.removeprefix("backbone.stack."): value for key, value in p.items() if "backbone.stack." in key}
    for block in range(config.depth):
        steps += block_by_hand(config, stack, block)
    steps += neck_by_hand(config, p)
    for layer in range(config.tail_depth):
        branch, gamma, bias = (p[f"backbone.tail.{key}"][layer] for key in ("branch_LFF", "gamma_LF", "bias_LF"))
        matrix = np.eye(len(bias)) + gamma[:, None] * branch / math.sqrt(config.tail_depth)
        steps += [("dense, orthogonal", orthogonalised(matrix), bias), ("minmax",)]
    return steps, rows / np.linalg.norm(rows, axis=1, keepdims=True), p["head.linear.bias"]


def block_by_hand(config: ModelConfig, stack: dict[str, np.ndarray], block: int) -> list[tuple]:
    if config.family == "convnet":
        return [("conv", stack["weight_LOIhw"][block], stack["bias_LO"][block], 1, 1), ("act",)]
    if config.family == "resnet":
        first, second = stack["first_LOIhw"][block], stack["second_LOIhw"][block]
        before, after = stack["bias_2LO"][:, block]
        return [("residual", first, before, second, after, stack["scale_L"][block]), ("act",)]
    kernel = stack["gamma_LO"][block][:, None, None, None] * stack["branch_LOIhw"][block] / math.sqrt(config.depth)
    kernel[:, :, 1, 1] += np.eye(config.width)
    bias = stack["bias_LO"][block] - (stack["mean_LO"][block] if config.centering else 0)
    return [("conv", kernel, bias, 1, 1), ("act",)]


def neck_by_hand(config: ModelConfig, p: dict[str, np.ndarray]) -> list[tuple]:
    if config.neck == "orthogonal":
        raw = p["backbone.neck_conv.raw_OIhw"]
        kernel = orthogonalised(raw.reshape(len(raw), -1)).reshape(raw.shape)
        matrix, bias = orthogonalised(p["backbone.neck_dense.raw_OI"]), p["backbone.neck_dense.bias"]
        convolution = ("conv, orthogonal", kernel, np.zeros(len(raw)), 4, 0)
        return [convolution, ("flatten",), ("dense, orthogonal", matrix, bias), ("act",)]
    between = [("act",)] if config.neck == "conv_dense" else []
    return [conv(p, "backbone.neck_conv", 4, 0), *between, ("flatten",), linear(p, "backbone.neck_dense"), ("act",)]


def conv(p: dict[str, np.ndarray], place: str, stride: int, padding: int) -> tuple:
    return "conv", p[f"{place}.conv.weight"], p[f"{place}.conv.bias"], stride, padding


def linear(p: dict[str, np.ndarray], place: str) -> tuple:
    return "dense", p[f"{place}.linear.weight"], p[f"{place}.linear.bias"]


def correlate(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding)])
    planes = [signal.correlate(padded, part, mode="valid", method="direct")[0] for part in kernel]
    return np.stack(planes)[:, ::stride, ::stride] + bias[:, None, None]


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return np.where(x > 0, x, 0)
    low, high = np.sort(np.stack(np.split(x, 2)), axis=0)
    return np.concatenate([high, low])


def run_by_hand(steps: list[tuple], x: np.ndarray, activation: str) -> np.ndarray:
    for kind, *of in steps:
        if kind.startswith("conv"):
            x = correlate(x, *of)
        elif kind.startswith("dense"):
            x = of[0] @ x + of[1]
        elif kind == "residual":
            first, before, second, after, scale = of
            branch = activate(correlate(x, first, before, 1, 1), activation)
            x = x + scale * correlate(branch, second, after, 1, 1)
        elif kind == "minus":
            x = x - of[0]
        elif kind == "pad":
            x = np.pad(x, [(0, 0), (of[0], of[0]), (of[0], of[0])])
        else:
            x = x.reshape(-1) if kind == "flatten" else activate(x, activation if kind == "act" else kind)
    return x


def product_by_hand(steps: list[tuple], shape: tuple[int, ...]) -> tuple[float, float]:
    """The product of the dense norms, a residual block counting 1 + |s| |K1| |K2|; and the same as training counts it,
    with 1 for orthogonal maps."""

    def norm(kernel, stride, padding):
        return np.linalg.norm(conv_matrix(kernel, shape, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1), 2)

    product, trained = 1.0, 1.0
    for kind, *of in steps:
        factor = 1.0
        if kind.startswith("conv"):
            kernel, _, stride, padding = of
            factor = norm(kernel, stride, padding)
            shape = (len(kernel), *((side + 2 * padding - kernel.shape[-1]) // stride + 1 for side in shape[1:]))
        elif kind.startswith("dense"):
            factor = np.linalg.norm(of[0], 2)
        elif kind == "residual":
            factor = 1 + abs(of[4]) * norm(of[0], 1, 1) * norm(of[2], 1, 1)
        elif kind == "pad":
            shape = (shape[0], *(side + 2 * of[0] for side in shape[1:]))
        product *= factor
        trained *= 1 if "orthogonal" in kind else factor
    return product, trained


def parameters_by_hand(c: ModelConfig) -> int:
    """Weights, biases and scales, counted on paper."""
    W, D, K = c.width, c.neck_width, c.classes
    if c.family == "gloro":
        layout, hidden = LAYOUTS[c.depth]
        filters = [c.channels, *(f * W for f, _, _ in layout)]
        pairs = list(itertools.pairwise(filters))
        convs = sum(a * b * k * k + b for (a, b), (_, k, _) in zip(pairs, layout, strict=True))
        features = [filters[-1] * (c.input_size // math.prod(s for *_, s in layout)) ** 2, *[D] * hidden, K]
        return convs + sum(a * b + b for a, b in itertools.pairwise(features))
    stems = {8: (3, 8), 28: (5, 16), 32: (5, 16), 64: (5, 32), 224: (14, 16)}
    if c.stem == "auto":
        kernel, side = stems[c.input_size]
    else:
        kernel, side = {"7x7/4": (7, c.input_size // 4), "patch": (2, c.input_size // 2)}[c.stem]
    stem = c.channels * kernel**2 * W + W
    block = {"liresnet": 9 * W**2 + 2 * W, "convnet": 9 * W**2 + W, "resnet": 2 * (9 * W**2 + W) + 1}[c.family]
    wide, bias = (2 * W, 2 * W) if c.neck == "conv_dense" else (W, 0 if c.neck == "orthogonal" else W)
    neck = 16 * W * wide + bias + wide * (side // 4) ** 2 * D + D
    return stem + c.depth * block + neck + c.tail_depth * (D**2 + 2 * D) + D * K + K
