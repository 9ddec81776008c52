"""Groups of classes that a data set comes with: CIFAR-100's 20 superclasses, CIFAR-10's animals and vehicles."""

import hashlib
import pickle
from pathlib import Path

import numpy as np

from lipcert.paths import data_dir

# The two kinds of CIFAR-10's classes; the set itself comes without groups.
CIFAR10_KINDS = {
    "animals": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicles": ("airplane", "automobile", "ship", "truck"),
}
# SHA-256 of the files as published.
_PINNED = {
    "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
    "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
}


def cifar100_superclasses(root: str | Path | None = None) -> dict[str, tuple[int, ...]]:
    """The 20 superclasses of CIFAR-100, each with the numbers of its five classes, read from the set's own labels.

    root: folder in torchvision's layout; None means `LIPCERT_DATA`, else `data/` in the project.

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.

    Raises:
        FileNotFoundError: the set is not there. ValueError: files that are not the published ones.
    """
    folder = (data_dir() if root is None else Path(root).expanduser()) / "cifar-100-python"
    train, meta = _read(folder / "train"), _read(folder / "meta")
    fine_N, coarse_N = np.asarray(train["fine_labels"]), np.asarray(train["coarse_labels"])
    return {
        name: tuple(np.unique(fine_N[coarse_N == number]).tolist())
        for number, name in enumerate(meta["coarse_label_names"])
    }


def _read(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(
            f"no {file}: set LIPCERT_DATA (or root=) to a folder that holds CIFAR-100, or download it with "
            "load_dataset('cifar100', download=True)"
        )
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    # Unpickling runs what the file says, so its checksum comes first.
    if found != _PINNED[file.name]:
        raise ValueError(
            f"{file} has SHA-256 {found}, must be {_PINNED[file.name]}: it is damaged or not the published one"
        )
    return pickle.loads(content, encoding="latin1")
