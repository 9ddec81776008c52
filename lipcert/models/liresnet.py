"""LiResNet: a trunk of linear residual blocks, one linear map each, so that no block's bound loses anything
(arXiv 2301.12549, 2310.02513).
"""

from lipcert.blocks import LinearResidualStack
from lipcert.config import ModelConfig
from lipcert.models.network import Network
from lipcert.models.trunk import trunk


def liresnet(config: ModelConfig) -> Network:
    """`depth` linear residual blocks; see `trunk` for the rest and for what raises."""

    def stack(size: int) -> LinearResidualStack:
        return LinearResidualStack(config.depth, config.width, size, config.activation, config.centering)

    return trunk(config, stack)
