"""Wrong rules for residual blocks x + g(x), for mutants of the reference.

A rule takes the norms along the branch and how many blocks are around this one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from torch import Tensor, nn

from lipcert.layers import Residual

WRONG_BLOCKS: dict[str, Callable[[list[float], int], float]] = {
    "the 1 of the skip forgotten": lambda norms, depth: math.prod(norms),
    "the branch forgotten": lambda norms, depth: 1.0,
    "larger of skip and branch": lambda norms, depth: max(1.0, math.prod(norms)),
    "root of the squares of skip and branch": lambda norms, depth: math.hypot(1.0, math.prod(norms)),
    "twice the geometric mean of skip and branch": lambda norms, depth: 2 * math.sqrt(math.prod(norms)),
    "the branch's largest norm alone": lambda norms, depth: 1 + max(norms, default=1.0),
    "the branch's last norm alone": lambda norms, depth: 1 + (norms or [1.0])[-1],
    "the 1 forgotten in blocks inside of branches": lambda norms, depth: (depth == 0) + math.prod(norms),
    "blocks inside of branches forgotten": lambda norms, depth: 1 + (math.prod(norms) if depth == 0 else 0.0),
}


def without_skips(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits in float64 of the branches alone."""

    def bare(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Sequential):
            return nn.Sequential(*map(bare, layer))
        return bare(layer.branch) if type(layer) is Residual else layer

    return bare(copy.deepcopy(model).double())(images_BCHW.double())
