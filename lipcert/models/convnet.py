"""ConvNet: the ablation's plain chain of convolutions, without any skip."""

from lipcert.blocks import ConvStack
from lipcert.config import ModelConfig
from lipcert.models.network import Network
from lipcert.models.trunk import trunk


def convnet(config: ModelConfig) -> Network:
    """`depth` convolutions; see `trunk` for the rest and for what raises."""
    return trunk(config, lambda size: ConvStack(config.depth, config.width, size, config.activation))
