"""Networks on disk: the plain chain's geometry and float32 tensors in a safetensors file, its card in a JSON beside it.

A residual block is stored as its program (`lipcert.program`): Fork, the branch's layers, Join. Nothing is unpickled and
no class name from a file is looked up freely: the layer kinds are the ones below.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lipcert.forward import places
from lipcert.layers import MinMax, Shift
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance
from lipcert.paths import local_dir, results_dir
from lipcert.program import Fork, Instruction, Join, assemble, instructions
from lipcert.provenance import tensors_sha256

# kind -> (class, names of its arguments): everything the program of a plain chain may consist of.
_KINDS: dict[str, tuple[type[Instruction], tuple[str, ...]]] = {
    "Conv2d": (
        nn.Conv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "MinMax": (MinMax, ()),
    "Shift": (Shift, ("amount",)),
    "ZeroPad2d": (nn.ZeroPad2d, ("padding",)),
    "Flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "ReLU": (nn.ReLU, ()),
    "Identity": (nn.Identity, ()),
    "Distance": (Distance, ("in_features", "out_features")),
    "DistanceConv": (DistanceConv, ("in_channels", "out_channels", "kernel_size", "stride", "padding")),
    "SortedDistance": (SortedDistance, ("in_features", "out_features", "keep", "terms")),
    "Negate": (Negate, ()),
    "Tanh": (nn.Tanh, ()),
    "Fork": (Fork, ()),
    "Join": (Join, ()),
}


# Keys of a card that every reader relies on.
_CARD = {"dataset", "classes", "class_seed", "class_names", "input_shape", "radius", "file_sha256"}


def geometry(chain: nn.Sequential) -> list[dict[str, Any]]:
    """Name, kind and arguments of every line of the program: what rebuilds the chain around its tensors."""
    layers = []
    for name, layer in instructions(chain):
        kind = type(layer).__name__
        if _KINDS.get(kind, (None,))[0] is not type(layer):
            raise TypeError(f"cannot store {kind} at {name!r}: a plain chain holds {', '.join(_KINDS)}")
        arguments = {key: getattr(layer, key) for key in _KINDS[kind][1]}
        layers.append({"name": name, "kind": kind, **arguments})
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layers[-1]["bias"] = layer.bias is not None
    return layers


def save_network(chain: nn.Sequential, path: Path, card: dict[str, Any]) -> None:
    """Write `path` (.safetensors) and its card (.json), atomically.

    Args:
        chain: a plain chain on any device; stored as float32.
        card: JSON-able facts a user needs: data set, input shape, class names, pixel scale, radius, run id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # In the card: two keys of metadata come in a random order, and equal networks should be equal files.
    card = card | {"file_sha256": write_chain(chain, partial)}
    os.replace(partial, path)
    partial.write_text(json.dumps(card, indent=1) + "\n")
    os.replace(partial, path.with_suffix(".json"))


def write_chain(chain: nn.Sequential, path: Path) -> str:
    """Write the chain alone, geometry in the metadata, weights as float32; returns its digest.

    Raises:
        ValueError: weights that float32 cannot hold: the file would be another network.
    """
    # channels-last kernels are strided views; the file holds plain row-major tensors
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in chain.state_dict().items()}
    for key, value in chain.state_dict().items():
        if not torch.equal(tensors[key].to(value.dtype), value.cpu()):
            raise ValueError(f"{key} holds numbers that float32 cannot: convert the network with .float() first")
    plan = json.dumps(geometry(chain))
    save_file(tensors, path, metadata={"geometry": plan})
    return _digest(plan, tensors)


def _digest(plan: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256((plan + tensors_sha256(tensors)).encode()).hexdigest()


def load_network(path: str | Path) -> nn.Sequential:
    """The plain chain stored at `path`, in evaluation mode, weights frozen; its card is `.card`.

    Raises:
        FileNotFoundError: no such file. ValueError: not a network file of this library, or damaged.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    if not path.exists():
        raise FileNotFoundError(f"no network at {path}; shipped ones: {', '.join(shipped()) or 'none'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        chain = assemble(map(_instruction, json.loads(metadata["geometry"])))
        if any(t.dtype != torch.float32 or not t.isfinite().all() for t in tensors.values()):
            raise ValueError("weights must be finite float32")
        chain.load_state_dict(tensors, strict=True)
        card = json.loads(path.with_suffix(".json").read_text())
        if missing := _CARD - set(card):
            raise ValueError(f"its card lacks {', '.join(sorted(missing))}")
        if card["file_sha256"] != _digest(metadata["geometry"], tensors):
            raise ValueError("checksum differs from its card's")
        if any(isinstance(layer, Join) for _, layer in instructions(chain)):
            places(chain, tuple(card["input_shape"]))  # torch adds up what does not fit by broadcasting, without a word
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is damaged or was not written by lipcert: {error}") from error
    chain.card = card
    return chain.eval().requires_grad_(False)


def _instruction(entry: dict[str, Any]) -> tuple[str, Instruction]:
    """Name and layer of one entry of a geometry, without weights."""
    kind, name = entry.pop("kind"), entry.pop("name")
    known, arguments = _KINDS[kind]
    if set(entry) - {"bias"} != set(arguments):
        raise ValueError(f"layer {name!r} has arguments {sorted(entry)}, {kind} takes {sorted(arguments)}")
    entry = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    weighted = known in (nn.Conv2d, nn.Linear)
    return name, nn.utils.skip_init(known, **entry) if weighted else known(**entry)


def shipped() -> list[str]:
    """Names of the networks in `results/models`."""
    return sorted(p.stem for p in (results_dir() / "models").glob("*.safetensors"))


def open_network(name: str) -> nn.Sequential:
    """A network by path, where there is such a file or folder part, else by name as `load` takes it."""
    named = Path(name)
    return load_network(named) if named.exists() or len(named.parts) > 1 else load(name)


def load(name: str) -> nn.Sequential:
    """A shipped network by name, or one of your own runs by id, ready to certify.

    Raises:
        FileNotFoundError: unknown name; lists the shipped ones.
    """
    own = local_dir() / "models" / f"{name}.safetensors"
    return load_network(own if own.exists() else results_dir() / "models" / name)
