"""`load_dataset`: a verified set as uint8 tensors, with its splits and its class subset.

Shape suffixes: N images, C channels, H height, W width.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lipcert.data import registry
from lipcert.data.source import Part, Source, verify
from lipcert.data.splits import choose_classes, stratified_cut
from lipcert.paths import data_dir


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images_NCHW uint8, labels_N int64 in 0..classes-1, index_N int64, the place in the source file.

    `index_N` counts within the file order of the part the image came from: the training files for train and validation,
    the test files for test, the whole set for digits.
    """

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    index_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with all three tensors on `device`."""
        return Split(self.images_NCHW.to(device), self.labels_N.to(device), self.index_N.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, verified and split. Pixels in [0, 1] are `to_unit(images, scale)`.

    `class_ids`: the ids kept, ascending, in the numbering of the whole set; label i stands for the i-th of them.

    `sha256` covers every pixel, label and index of the three splits and the choice that made them, so a record that
    quotes it pins exactly what was used.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    scale: int
    shape: tuple[int, int, int]
    sha256: str

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set resident on `device`: CIFAR takes 184 MB there, once, and no transfer per step."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


def load_dataset(
    name: str,
    classes: int | None = None,
    class_seed: int = 2023,
    validation: bool = False,
    download: bool = False,
    root: str | Path | None = None,
) -> Dataset:
    """Load, verify and split a data set; tensors are on the CPU, `.to(device)` moves them.

    name: one of `known_datasets()`.
    classes: keep this many classes, chosen by `class_seed` (see `splits.choose_classes`), renumbered 0..classes-1 in
        ascending order of their old ids. None, or the full number, keeps all.
    validation: False trains on all training images and leaves `validation` empty. True holds out a fixed, stratified
        part of the training images (CIFAR 45,000/5,000, MNIST 55,000/5,000, digits 1,077/360) to choose settings on.
        The test split is the same either way. The cut is made before classes are dropped, so an image held out of a
        subset is held out of the full set too. Copies of one image (CIFAR-100) may lie on both sides of it.
    download: fetch a missing torchvision set; nothing is ever fetched without it.
    root: folder in torchvision's layout; None means `LIPCERT_DATA`, else `data/` in the project.

    Raises ValueError for unknown names, impossible class counts and sets that fail their checksum, FileNotFoundError
    for a missing set, OSError for a failed download, ImportError without torchvision.
    """
    if name not in registry.DATASETS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(registry.known_datasets())}")
    facts = registry.DATASETS[name]
    class_ids = choose_classes(name, facts.classes, classes, class_seed)
    folder = data_dir() if root is None else Path(root).expanduser()
    source = facts.read(folder, download)
    verify(name, source, facts.pinned, facts.fix(folder))
    train, held_out, test = (_keep(part, index_N, class_ids) for part, index_N in _cut(source, facts, validation))
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        test=test,
        classes=len(class_ids),
        class_names=tuple(source.class_names[i] for i in class_ids),
        class_ids=class_ids,
        scale=facts.scale,
        shape=facts.shape,
        sha256=_hash((train, held_out, test), {"name": name, "scale": facts.scale, "class_ids": class_ids}),
    )


def to_unit(images: torch.Tensor, scale: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 images of any shape -> images / scale in [0, 1], each value the correctly rounded quotient in float32/64.

    Raises TypeError for images that are not uint8: they may have been scaled before.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images of {images.dtype}: to_unit takes uint8 pixels; leave out to_unit if they are scaled")
    # On CUDA, dividing by a Python number multiplies by its rounded reciprocal; a tensor on the device divides.
    return images.to(dtype) / torch.full((), scale, dtype=dtype, device=images.device)


def _cut(source: Source, facts: registry.Facts, validation: bool) -> list[tuple[Part, np.ndarray]]:
    """(part, ascending indices) of train, validation, test before classes are dropped."""
    if "all" in source.parts:
        pool = test_pool = source.parts["all"]
        test, held_out, train = stratified_cut(pool.labels_N, (facts.test, facts.validation))
    else:
        pool, test_pool = source.parts["train"], source.parts["test"]
        test = np.arange(len(test_pool.labels_N))
        held_out, train = stratified_cut(pool.labels_N, (facts.validation,))
    if not validation:
        train, held_out = np.union1d(train, held_out), held_out[:0]
    return [(pool, train), (pool, held_out), (test_pool, test)]


def _keep(part: Part, index_N: np.ndarray, class_ids: tuple[int, ...]) -> Split:
    """The images at `index_N` whose class is kept, copied, with new labels."""
    labels_N = part.labels_N[index_N]
    kept_N = np.isin(labels_N, class_ids)
    index_N = index_N[kept_N].astype(np.int64)
    renumbered_N = np.searchsorted(np.asarray(class_ids), labels_N[kept_N]).astype(np.int64)
    images_NCHW = np.ascontiguousarray(part.images_NCHW[index_N])
    return Split(torch.from_numpy(images_NCHW), torch.from_numpy(renumbered_N), torch.from_numpy(index_N))


def _hash(splits: tuple[Split, Split, Split], choice: dict[str, object]) -> str:
    sizes = [len(split) for split in splits]
    digest = hashlib.sha256(json.dumps({**choice, "sizes": sizes}, sort_keys=True).encode())
    for split in splits:
        digest.update(split.images_NCHW.numpy())
        digest.update(split.labels_N.numpy().astype("<i8"))
        digest.update(split.index_N.numpy().astype("<i8"))
    return digest.hexdigest()
