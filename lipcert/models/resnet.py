"""Conventional ResNet: the ablation's residual blocks with a non-linear branch, bounded by 1 + |branch|."""

from lipcert.blocks import ResidualStack
from lipcert.config import ModelConfig
from lipcert.models.network import Network
from lipcert.models.trunk import trunk


def resnet(config: ModelConfig) -> Network:
    """`depth` blocks of two convolutions each; see `trunk` for the rest and for what raises."""

    def stack(size: int) -> ResidualStack:
        return ResidualStack(config.depth, config.width, size, config.activation, config.branch_scale)

    return trunk(config, stack)
