"""Network families: one file each, named as in `lipcert.families`, with one function of that name."""

from importlib import import_module

from lipcert import families
from lipcert.config import ModelConfig
from lipcert.models.network import Network
from lipcert.models.stored import load, load_network, open_network, save_network

FAMILIES = {name: getattr(import_module(f"lipcert.models.{name}"), name) for name in families.FAMILIES}


def build_model(config: ModelConfig) -> Network:
    """A freshly initialised network (torch's global generator draws the weights).

    Raises:
        lipcert.settings.ConfigError: sizes that do not fit together, with the sizes that do.
    """
    return FAMILIES[config.family](config)


__all__ = ["FAMILIES", "ModelConfig", "Network", "build_model", "load", "load_network", "open_network", "save_network"]
