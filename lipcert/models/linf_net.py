"""l_inf-distance nets: neurons ||x - w||_inf, 1-Lipschitz in l_inf by construction (arXiv 2102.05363, 2110.06850).

`depth` counts the distance layers, the head included; `width` is that of the hidden ones; `keep` below 1 makes hidden
layers but the first SortNet's (arXiv 2210.01787). With depth 6 and width 5120 on CIFAR-10, and depth 5 on MNIST, these
are the published networks of 120,637,451 and 82,708,491 parameters. `mlp_width` puts a small dense network in the place
of the head, as in the combinations that the papers call "+MLP": those are certified by intervals only.
"""

from collections import OrderedDict

import torch

from lipcert.config import ModelConfig
from lipcert.layers import Flatten, Map
from lipcert.linf.ibp import IntervalHead
from lipcert.linf.maps import DistanceDense, DistanceHead
from lipcert.models.network import Network


def linf_net(config: ModelConfig) -> Network:
    """A stack of dense distance layers over the pixels of one image."""
    side, unit = config.input_size, config.pixel_std
    mean_C = torch.tensor(config.pixel_mean or [0.5] * config.channels)
    origin_I = mean_C.repeat_interleave(side * side)
    maps: OrderedDict[str, Map] = OrderedDict(flatten=Flatten())
    inputs, origin = config.channels * side * side, origin_I
    hidden = config.depth if config.mlp_width else config.depth - 1
    for number in range(1, hidden + 1):
        keep = config.keep if number > 1 else 1.0
        maps[f"distance{number}"] = DistanceDense(inputs, config.width, unit, origin, keep)
        inputs, origin = config.width, None
    if config.mlp_width:
        head = IntervalHead(inputs, config.mlp_width, config.classes, unit)
    else:
        head = DistanceHead(inputs, config.classes, unit)
    return Network(maps, head, (config.channels, side, side))
