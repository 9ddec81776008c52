"""Aligned networks: linear chains of general layers, each with its largest singular vectors along its neighbours'.

So the product of the layers' norms is the slope of the network. The truth is that of the whole map as one matrix, for
which no layer's norm was ever needed.

Shape letters: F features, N pixels, O outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lipcert.bench.edge import frozen, local_map, with_head
from lipcert.bench.families import FAMILIES
from lipcert.bench.razor import orthogonal
from lipcert.bench.verdict import Case

_FAMILIES = ("strided", "box filter", "nyquist", "random", "grouped", "rectangular", "difference of channels")


def aligned(seed: int) -> Case:
    """A linear network of a convolution and dense layers whose largest singular vectors meet, with its exact radius."""
    generator = torch.Generator().manual_seed(seed)
    family = _FAMILIES[seed % len(_FAMILIES)]
    first, shape = FAMILIES[family](np.random.default_rng(seed), seed // len(_FAMILIES))
    dtype = torch.float64 if seed % 2 else torch.float32
    layers: list[nn.Module] = [first.to(dtype), nn.Flatten()]
    for _ in range(int(torch.randint(0, 3, (), generator=generator))):
        local_FN, _ = local_map(layers, torch.full(shape, 0.5))
        top_F = torch.linalg.svd(local_FN)[0][:, 0]
        rest_FF = orthogonal(len(top_F), generator) - torch.outer(top_F, top_F)
        weight_OF = torch.randn(4, len(top_F), generator=generator, dtype=torch.float64) @ rest_FF / 20
        weight_OF -= torch.outer(weight_OF @ top_F, top_F)
        left_O = orthogonal(4, generator)[:, 0]
        scale = 2.0 ** float(torch.randint(-3, 4, (), generator=generator))
        layers.append(frozen(scale * (weight_OF + torch.outer(left_O, top_F)), dtype=dtype))
    image_CHW = torch.randint(16, 49, shape, generator=generator) / 64
    return with_head(layers, image_CHW, generator, f"aligned, {family}, seed {seed}", along_top=True)
