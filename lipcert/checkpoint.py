"""Checkpoints: one safetensors file with every tensor of a run's state and a JSON of the rest, written atomically.

The file carries a SHA-256 of its own contents; a damaged one is refused and the one before it is used.
Nothing is unpickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lipcert.provenance import tensors_sha256

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and tensors; the file before is kept as `.previous`."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_flatten(state, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"structure": structure, "sha256": _digest(structure, tensors)})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    previous = path.with_suffix(".previous")
    if path.exists():
        # A hard link, not a rename: at no moment is there no checkpoint under the usual name.
        previous.unlink(missing_ok=True)
        try:
            os.link(path, previous)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, previous)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest undamaged state, or None when there is none (or only damaged ones, which are named in the error).

    Raises:
        ValueError: checkpoints exist and all are damaged.
    """
    damaged = []
    for candidate in (path, path.with_suffix(".previous")):
        if not candidate.exists():
            continue
        try:
            return _read(candidate)
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError) as error:
            damaged.append(f"{candidate}: {error}")
    if damaged:
        raise ValueError("no usable checkpoint; start afresh with fresh=True (--fresh). " + "; ".join(damaged))
    return None


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a checkpoint for this process while the context lasts; False where another process holds it.

    The system lets go of it when the process ends, however it ends. Where there are no such locks (Windows, some
    network folders) nothing is held and the answer is True.
    """
    lock = path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(file.fileno()).st_nlink > 0  # else its holder has just let go of it and taken it away
        except BlockingIOError:
            ours = False
        except (AttributeError, OSError):  # no fcntl, no locks on this file system
            ours = True
        try:
            yield ours
        finally:
            if ours:
                lock.unlink(missing_ok=True)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and its predecessor."""
    for suffix in (path.suffix, ".previous", ".partial"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if _digest(metadata["structure"], tensors) != metadata["sha256"]:
        raise ValueError("checksum differs: the file is damaged")
    return _restore(json.loads(metadata["structure"]), tensors)


def _digest(structure: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256((structure + tensors_sha256(tensors)).encode()).hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON-able skeleton of `value`; tensors go to `tensors` and leave their key behind. Keys of any type survive."""
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_flatten(v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"cannot store {type(value).__name__} in a checkpoint")


def _restore(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    (kind, content), *rest = node.items()
    if rest:
        raise ValueError("malformed structure")
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_restore(k, tensors): _restore(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        items = [_restore(v, tensors) for v in content]
        return items if kind == "list" else tuple(items)
    if kind == "value":
        return content
    raise ValueError(f"unknown part {kind!r}")
