"""The families of networks: one line each, and a file of the same name in `lipcert/models/`.

Settings, names for readers and `build_model` all start from here; nothing here needs torch.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """title: the name for readers. settings: which of the optional settings below its networks have. norm: in which
    margins of its networks are bounded."""

    title: str
    settings: tuple[str, ...] = ()
    norm: str = "l2"


_TRUNK = ("neck", "stem", "tail_depth")  # of every family around `lipcert.models.trunk`

FAMILIES = {
    "liresnet": Family("LiResNet", (*_TRUNK, "centering")),
    "resnet": Family("ResNet", (*_TRUNK, "branch_scale")),
    "convnet": Family("ConvNet", _TRUNK),
    "gloro": Family("GloRo", ("init",)),
    "linf_net": Family("ℓ∞-distance net", ("keep", "mlp_width"), "linf"),
}
INTERVAL_FAMILIES = ("gloro", "linf_net")  # those that can be trained on interval bounds

# Settings that not every family has; a family without one refuses other values than the default.
OPTIONAL = (*_TRUNK, "centering", "branch_scale", "init", "keep", "mlp_width")


class GloroNet(NamedTuple):
    """A published GloRo net.

    layout: its convolutions, `2k4s2` for 2 * `width` filters, kernel 4, stride 2. hidden: dense layers before the head.
    """

    layout: str
    hidden: int
    width: int

    @property
    def name(self) -> str:
        """The paper's: convolutions and dense layers, such as 2C2F."""
        return f"{len(self.layout.split())}C{self.hidden + 1}F"


# By `depth`, the number of convolutions. 7C1F is that of the Tiny-ImageNet script of 2021.
GLORO_NETS = {
    2: GloroNet("1k4s2 2k4s2", 1, 16),
    4: GloroNet("1k3s1 1k4s2 2k3s1 2k4s2", 2, 32),
    6: GloroNet("1k3s1 1k3s1 1k4s2 2k3s1 2k3s1 2k4s2", 1, 32),
    7: GloroNet("1k3s1 1k3s1 1k4s2 2k3s1 2k4s2 4k3s1 4k4s2", 0, 64),
    8: GloroNet("1k3s1 1k3s1 1k4s2 2k3s1 2k3s1 2k4s2 4k3s1 4k4s2", 1, 64),
}
