"""The frame that three families share: stem, a stack of blocks, neck, head (arXiv 2301.12549, code of 2023).

Only the stack differs between a LiResNet, a conventional ResNet and a plain ConvNet, so that they can be compared.
Three generations of LiResNet are in circulation under one name, and `neck` tells them apart:

- `conv_dense`: the code published in 2023 with arXiv v1 (L18W256 on CIFAR-10);
- `dense`: the NeurIPS version, whose parameter count (49 M) fixes this shape; its code is not public;
- `orthogonal`: the follow-up of ICLR 2024 (arXiv 2310.02513): both maps Cholesky-orthogonal, then `tail_depth`
  orthogonal residual dense layers.
"""

from collections import OrderedDict
from collections.abc import Callable

from lipcert.config import ModelConfig
from lipcert.layers import ACTIVATIONS, Conv, Dense, Flatten, Map, NormalizedHead, Shift, ZeroPad
from lipcert.models.network import Network
from lipcert.orthogonal import OrthogonalDense, OrthogonalPatchConv, OrthogonalResidualStack
from lipcert.settings import ConfigError

_PATCH = 4  # side of the neck's patches: the stack's map must divide by it
_SIZES = {8: "3x3/1", 28: "5x5/2", 32: "5x5/2", 64: "5x5/2", 224: "patch"}


def trunk(config: ModelConfig, stack: Callable[[int], Map]) -> Network:
    """A network around `stack(size)`, which maps (B, width, size, size) to the same shape.

    28-pixel images are zero-padded to 32 by the first map (an isometry); 8-pixel images keep their size through a stem
    of stride 1; 224-pixel images are cut into patches whose side makes the stem's matrix square.

    Raises:
        ConfigError: an input size the neck cannot divide, with the sizes that work.
    """
    maps: OrderedDict[str, Map] = OrderedDict()
    size = config.input_size
    if size == 28:
        maps["pad"] = ZeroPad(2)
        size = 32
    maps["shift"] = Shift(0.5)
    kernel, stride, padding = _stem(config)
    maps["stem"] = Conv(config.channels, config.width, kernel, stride, padding, size)
    maps["stem_activation"] = ACTIVATIONS[config.activation]()
    size = (size + 2 * padding - kernel) // stride + 1
    if size % _PATCH or size <= 0:
        raise ConfigError(
            f"input_size={config.input_size} with stem {kernel}x{kernel}/{stride} gives a {size}x{size} map, which the "
            f"neck cannot cut into {_PATCH}x{_PATCH} patches; sizes that work with stem 'auto': "
            f"{', '.join(map(str, _SIZES))}"
        )
    maps["stack"] = stack(size)
    maps.update(_neck(config, size))
    if config.tail_depth:
        maps["tail"] = OrthogonalResidualStack(config.tail_depth, config.neck_width)
    head = NormalizedHead(config.neck_width, config.classes)
    return Network(maps, head, (config.channels, config.input_size, config.input_size))


def _stem(config: ModelConfig) -> tuple[int, int, int]:
    """Kernel, stride and padding of the first convolution."""
    name = _SIZES.get(config.input_size) if config.stem == "auto" else config.stem
    if name is None:
        raise ConfigError(
            f"input_size={config.input_size} with stem 'auto': known sizes are {', '.join(map(str, _SIZES))}; "
            "name the stem yourself for another"
        )
    if name == "patch":
        side = max(1, round((config.width / config.channels) ** 0.5))
        return side, side, 0
    kernel, stride = int(name[0]), int(name[-1])
    return kernel, stride, kernel // 2


def _neck(config: ModelConfig, size: int) -> "OrderedDict[str, Map]":
    width, features, activation = config.width, config.neck_width, ACTIVATIONS[config.activation]
    patches = (size // _PATCH) ** 2
    if config.neck == "conv_dense":
        return OrderedDict(
            neck_conv=Conv(width, 2 * width, _PATCH, _PATCH, 0, size),
            neck_conv_activation=activation(),
            flatten=Flatten(),
            neck_dense=Dense(2 * width * patches, features),
            neck_activation=activation(),
        )
    orthogonal = config.neck == "orthogonal"
    return OrderedDict(
        neck_conv=OrthogonalPatchConv(width, width, _PATCH)
        if orthogonal
        else Conv(width, width, _PATCH, _PATCH, 0, size),
        flatten=Flatten(),
        neck_dense=(OrthogonalDense if orthogonal else Dense)(width * patches, features),
        neck_activation=activation(),
    )
