"""Network families: one file each and one line in `FAMILIES`."""

from lipcert.config import ModelConfig
from lipcert.models.convnet import convnet
from lipcert.models.gloro import gloro
from lipcert.models.liresnet import liresnet
from lipcert.models.network import Network
from lipcert.models.resnet import resnet
from lipcert.models.stored import load, load_network, open_network, save_network

FAMILIES = {
    "liresnet": liresnet,
    "resnet": resnet,
    "convnet": convnet,
    "gloro": gloro,
}


def build_model(config: ModelConfig) -> Network:
    """A freshly initialised network (torch's global generator draws the weights).

    Raises:
        lipcert.config.ConfigError: sizes that do not fit together, with the sizes that do.
    """
    return FAMILIES[config.family](config)


__all__ = ["FAMILIES", "ModelConfig", "Network", "build_model", "load", "load_network", "open_network", "save_network"]
