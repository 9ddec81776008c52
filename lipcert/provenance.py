"""Where a number comes from: command, commit, versions, hardware, hashes."""

import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from lipcert.paths import ROOT

_SOURCES = ("lipcert", "notebooks", "pyproject.toml", "constraints.txt")
_PACKAGES = ("lipcert", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors", "pytorch-optimizer")


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_state(*more: str) -> tuple[str | None, bool | None]:
    """Commit and whether the code that makes numbers differs from it; (None, None) outside lipcert's own repository.

    more: what else makes the numbers, as paths in the project.
    `LIPCERT_COMMIT` stands in where the code was copied without its repository (a GPU machine): "<commit>" or
    "<commit>-dirty".
    """
    stated = os.environ.get("LIPCERT_COMMIT")
    if stated:
        return stated.removesuffix("-dirty"), stated.endswith("-dirty")
    if Path(__file__).resolve().parents[1] != ROOT:  # installed: the folder one works in may be any repository
        return None, None
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit, bool(_git("status", "--porcelain", "--", *_SOURCES, *more).strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def command() -> str:
    """The command line, without the folder the program lies in."""
    stated = os.environ.get("LIPCERT_COMMAND")
    program, *arguments = sys.argv
    if "ipykernel" in program:
        return stated or "papermill notebooks/train.ipynb"
    name = ["lipcert" if program.endswith("__main__.py") else os.path.basename(program)]
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if module.startswith("benchmarks."):
        name = ["python", "-m", module]
    return stated or shlex.join([*name, *(a if os.sep not in a else os.path.basename(a) for a in arguments)])


def versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, str | int]:
    """Processor, threads and accelerator."""
    facts: dict[str, str | int] = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
