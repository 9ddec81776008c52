"""GloRo Nets: small convolution networks trained against their global Lipschitz margins (arXiv 2102.08452).

`depth` names one of `lipcert.families.GLORO_NETS` by its convolutions, `width` is the number of filters of its first
stage, `neck_width` that of the features of its hidden dense layers.

Images enter as they are, pixels in [0, 1], 28-pixel ones too; the head is not normalised.
"""

import re
from collections import OrderedDict

from torch import nn

from lipcert.config import ModelConfig
from lipcert.families import GLORO_NETS
from lipcert.layers import ACTIVATIONS, Conv, Dense, Flatten, Head, Map
from lipcert.models.network import Network
from lipcert.settings import ConfigError


def gloro(config: ModelConfig) -> Network:
    """A GloRo Net for square inputs whose side halves evenly at every strided convolution.

    Raises:
        ConfigError: a depth that names no network, or an input size that does not halve.
    """
    if config.depth not in GLORO_NETS:
        known = ", ".join(map(str, GLORO_NETS))
        raise ConfigError(f"depth={config.depth} with family 'gloro': the networks have {known} convolutions")
    layout, hidden, _ = GLORO_NETS[config.depth]
    maps: OrderedDict[str, Map] = OrderedDict()
    channels, size = config.channels, config.input_size
    for number, text in enumerate(layout.split(), 1):
        filters, kernel, stride = map(int, re.findall(r"\d+", text))
        if size % stride:
            even = 2 ** layout.count("s2")
            raise ConfigError(
                f"input_size={config.input_size} with family 'gloro', depth={config.depth}: must divide by {even}"
            )
        # "same" padding of even and odd kernels alike, where the stride divides the size.
        maps[f"conv{number}"] = Conv(channels, filters * config.width, kernel, stride, (kernel - stride + 1) // 2, size)
        maps[f"conv{number}_activation"] = ACTIVATIONS[config.activation]()
        channels, size = filters * config.width, size // stride
    maps["flatten"] = Flatten()
    features = channels * size**2
    for number in range(1, hidden + 1):
        maps[f"dense{number}"] = Dense(features, config.neck_width)
        maps[f"dense{number}_activation"] = ACTIVATIONS[config.activation]()
        features = config.neck_width
    network = Network(maps, Head(features, config.classes), (config.channels, config.input_size, config.input_size))
    _initialise(network, config.init)
    return network


def _initialise(network: Network, init: str) -> None:
    """Weights as the recipes draw them, biases 0."""
    draw = {"orthogonal": nn.init.orthogonal_, "glorot": nn.init.xavier_uniform_}[init]
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            draw(layer.weight)
            nn.init.zeros_(layer.bias)
