"""lipcert: networks whose robustness is proven, and the study that measures them.

    import lipcert

    config = lipcert.TrainConfig(dataset="digits", depth=6, width=32, epochs=40)
    record = lipcert.fit(config)                          # trains, certifies, writes a run record; returns its path

    model = lipcert.load("digits-liresnet-L6W32")         # a shipped net, ready to certify
    certificates = lipcert.certify(model, images_BCHW)    # prediction and proven radius per image
    lipcert.vra(certificates, labels_B, "36/255")         # share of images both correct and certified

A certificate at radius r says: no perturbation of l2 norm at most r changes the prediction. It rests on upper bounds
of every layer's norm that are proven, rounding included (`lipcert.norm_bound`), never on the power method
(`lipcert.norm_estimate`), which approaches the norm from below and is used for training only. It holds for the network
as run in float64 (guarantee *executed*): every rounding of the forward pass, at every point of the ball, is counted.

Importing lipcert does not import torch; the names below are loaded when first used.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_PUBLIC = {
    "ModelConfig": "config",
    "TrainConfig": "config",
    "load_config": "config",
    "config_from": "config",
    "Radius": "radius",
    "build_model": "models",
    "load": "models",
    "norm_estimate": "power",
    "norm_bound": "bounds",
    "emma_loss": "losses",
    "gloro_loss": "losses",
    "trades_loss": "losses",
    "certify": "certify",
    "vra": "certify",
    "certify_top_k": "relaxed",
    "certify_affinity": "relaxed",
    "relaxed_vra": "relaxed",
    "fit": "train",
    "load_dataset": "data",
    "load_records": "records",
    "read_record": "records",
    "records_frame": "records",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lipcert' has no attribute {name!r}; known: {', '.join(sorted(_PUBLIC))}")
    return getattr(import_module(f"lipcert.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


class _Package(ModuleType):
    # Importing the submodule lipcert.certify would hide the public function of that name behind the module.
    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
