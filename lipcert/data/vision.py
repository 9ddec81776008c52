"""MNIST, CIFAR-10 and CIFAR-100 through torchvision, which is imported only when one of them is read.

Sources: Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, 1998; A. Krizhevsky, *Learning
Multiple Layers of Features from Tiny Images*, 2009 (CIFAR).

CIFAR-100 as published holds 26 groups of pixel-identical images: 14 within train, 2 within test, and 10 with one copy
in each. They are a property of the original and are kept, so that accuracies compare with the literature.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lipcert.data.source import Part, Source

_FILES = {
    "mnist": [
        f"MNIST/raw/{half}-{kind}-ubyte" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ],
    "cifar10": [
        f"cifar-10-batches-py/{file}"
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ],
    "cifar100": [f"cifar-100-python/{file}" for file in ("train", "test", "meta")],
}

# What torchvision raises for absent, truncated or foreign files differs by set and release.
_READ_ERRORS = (RuntimeError, ValueError, AssertionError, LookupError, EOFError, OSError)


def read_mnist(root: Path, download: bool) -> Source:
    """60,000 training and 10,000 test images, 1x28x28, classes "0" to "9"."""
    sets = _read("mnist", "MNIST", root, download)
    parts = {split: Part(np.asarray(s.data)[:, None], np.asarray(s.targets)) for split, s in sets.items()}
    return Source(parts, tuple(str(digit) for digit in range(10)))


def read_cifar10(root: Path, download: bool) -> Source:
    """50,000 training and 10,000 test images, 3x32x32, 10 classes of equal size."""
    return _cifar("cifar10", "CIFAR10", root, download)


def read_cifar100(root: Path, download: bool) -> Source:
    """50,000 training and 10,000 test images, 3x32x32, 100 fine classes of equal size."""
    return _cifar("cifar100", "CIFAR100", root, download)


def _cifar(name: str, kind: str, root: Path, download: bool) -> Source:
    sets = _read(name, kind, root, download)
    parts = {split: Part(s.data.transpose(0, 3, 1, 2), np.asarray(s.targets)) for split, s in sets.items()}
    return Source(parts, tuple(sets["train"].classes))


def _read(name: str, kind: str, root: Path, download: bool) -> dict[str, Any]:
    """The two torchvision data sets; every failure becomes an error that names the set, the folder and the way out."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(f"{name} is read through torchvision: pip install 'lipcert[vision]'") from error
    reader = getattr(datasets, kind)
    try:
        return {split: reader(str(root), train=split == "train", download=download) for split in ("train", "test")}
    except _READ_ERRORS as error:
        missing = [file for file in _FILES[name] if not (root / file).is_file()]
        if missing and download:
            raise OSError(
                f"{name}: the download into {root} failed ({error}); check the connection, or put "
                f"{missing[0].rsplit('/', 1)[0]}/ there by hand"
            ) from error
        if missing:
            more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"{name}: no {missing[0]}{more} in {root}: set LIPCERT_DATA (or root=) to a folder that holds the set, "
                f"or download it with download=True"
            ) from error
        raise ValueError(
            f"{name}: the files in {root / Path(_FILES[name][0]).parent} are damaged or not the published ones "
            f"({error}); {fix(root)}"
        ) from error


def fix(root: Path) -> str:
    """The way out that every refusal of a downloaded set ends with."""
    return f"delete its folder and archives in {root} and load it again with download=True"
