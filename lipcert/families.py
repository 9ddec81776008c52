"""The families of networks: one line each, and a file of the same name in `lipcert/models/`.

Settings, names for readers and `build_model` all start from here; nothing here needs torch.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """title: the name for readers. settings: which of the optional settings below its networks have."""

    title: str
    settings: tuple[str, ...] = ()


_TRUNK = ("neck", "stem", "tail_depth")  # of every family around `lipcert.models.trunk`

FAMILIES = {
    "liresnet": Family("LiResNet", (*_TRUNK, "centering")),
    "resnet": Family("ResNet", (*_TRUNK, "branch_scale")),
    "convnet": Family("ConvNet", _TRUNK),
    "gloro": Family("GloRo", ("init",)),
}

# Settings that not every family has; a family without one refuses other values than the default.
OPTIONAL = (*_TRUNK, "centering", "branch_scale", "init")
