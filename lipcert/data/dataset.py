"""`load_dataset`: a checked set as uint8 tensors or image files, with its splits and its class subset.

Shape suffixes: N images, C channels, H height, W width.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lipcert.data import registry
from lipcert.data.lazy import LazyImages
from lipcert.data.source import Files, FileSource, Part, Source, verify
from lipcert.data.splits import (
    SPLIT_SEED,
    choose_classes,
    choose_images,
    draw_order,
    images_of_each,
    stratified_cut,
)
from lipcert.paths import data_dir


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images_NCHW uint8, labels_N int64 in 0..classes-1, index_N int64, the place in the source file.

    `images_NCHW` is a tensor, or an array of image files that gives one when it is indexed by a slice or an int64
    tensor. `index_N` counts within the file order of the part the image came from: the training files for train and
    validation, the test files for test, the whole set for digits. For ImageNet it is 1,000,000 x class id + place in
    the class folder.
    """

    images_NCHW: torch.Tensor | LazyImages
    labels_N: torch.Tensor
    index_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device | str) -> "Split":
        """The same split with all three tensors on `device`; images in files stay where they are."""
        moved = {name: getattr(self, name).to(device) for name in ("images_NCHW", "labels_N", "index_N")}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, checked and split. Pixels in [0, 1] are `to_unit(images, scale)`.

    `class_ids`: the ids kept, ascending, in the numbering of the whole set; label i stands for the i-th of them.

    `sha256` covers every pixel, label and index of the three splits and the choice that made them, so a record that
    quotes it pins exactly what was used. For images in files (ImageNet) it covers the path and the size of every file
    in place of its pixels, since 193 GB are not read before every run: another image of equal size is not noticed.

    `verified`: whether the pixels were compared with a known checksum of the published set. Tiny-ImageNet and ImageNet
    have none here; only their counts and names are checked.
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
    verified: bool = False

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
    *,
    train_images: int | None = None,
) -> Dataset:
    """Load, check and split a data set; tensors are on the CPU, `.to(device)` moves them.

    name: one of `known_datasets()`.
    classes: keep this many classes, chosen by `class_seed` (see `splits.choose_classes`), renumbered 0..classes-1 in
        ascending order of their old ids. None, or the full number, keeps all.
    validation: False trains on all training images and leaves `validation` empty. True holds out a fixed, stratified
        part of the training images (CIFAR 45,000/5,000, MNIST 55,000/5,000, digits 1,077/360, Tiny-ImageNet
        90,000/10,000, ImageNet 1,231,167/50,000) to choose settings on.
        The test split is the same either way. The cut is made before classes are dropped, so an image held out of a
        subset is held out of the full set too. Copies of one image (CIFAR-100) may lie on both sides of it.
    download: fetch a missing torchvision set; nothing is ever fetched without it, nor the two sets of image files.
    root: folder in torchvision's layout, with `tiny-imagenet-200/` and `imagenet/` beside its folders; None means
        `LIPCERT_DATA`, else `data/` in the project.
    train_images: train on this many images, equally many of every class kept, chosen by `class_seed` too (see
        `splits.choose_images`) among those that `validation` leaves. None keeps all. The other splits stay whole.
        Where classes differ in size (MNIST, digits), the smallest sets the limit. Not for images in files (ImageNet).

    Raises ValueError for unknown names, impossible counts of classes or images and sets that fail their checksum,
    FileNotFoundError for a missing set, OSError for a failed download, ImportError without torchvision or Pillow.
    """
    if name not in registry.DATASETS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(registry.known_datasets())}")
    facts = registry.DATASETS[name]
    class_ids = choose_classes(name, facts.classes, classes, class_seed)
    each = None if train_images is None else images_of_each(train_images, len(class_ids))
    folder = data_dir() if root is None else Path(root).expanduser()
    choice: dict[str, object] = {"name": name, "scale": facts.scale, "class_ids": class_ids}
    if facts.list_files is not None:
        if each is not None:
            rule = "only of a set that is read as a whole; leave it out, or take fewer classes"
            raise ValueError(f"train_images={train_images} with '{name}', whose images stay in files: {rule}")
        source = facts.list_files(folder, class_ids)
        train, held_out, test = _cut_files(source, class_ids, facts.validation // facts.classes if validation else 0)
        choice["window"] = (test.images_NCHW.shorter, test.images_NCHW.side)
    else:
        source = facts.read(folder, download)
        if facts.pinned is not None:
            verify(name, source, facts.pinned, facts.fix(folder))
        cut = _cut(source, facts, validation)
        if each is not None:
            part, index_N = cut[0]
            cut[0] = part, choose_images(part.labels_N, index_N, class_ids, source.class_names, each, class_seed)
        train, held_out, test = (_keep(part, index_N, class_ids) for part, index_N in cut)
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
        sha256=_hash((train, held_out, test), choice),
        verified=facts.pinned is not None,
    )


def to_unit(images: torch.Tensor, scale: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 images of any shape -> images / scale in [0, 1], each value the correctly rounded quotient in float32/64.

    Raises TypeError for images that are not uint8: they may have been scaled before.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images of {images.dtype}: to_unit takes uint8 pixels; leave out to_unit if they are scaled")
    # On CUDA, dividing by a Python number multiplies by its rounded reciprocal; a tensor on the device divides.
    return images.to(dtype) / torch.full((), scale, dtype=dtype, device=images.device)


def batches(images_NCHW: torch.Tensor | LazyImages, size: int) -> Iterator[torch.Tensor]:
    """Consecutive pieces of `size` uint8 images, the last one smaller; files of the next one are decoded meanwhile.

    No images are one empty piece, which whoever needs at least one image refuses.
    """
    for start in range(0, max(1, len(images_NCHW)), size):
        batch_BCHW = images_NCHW[start : start + size]
        if isinstance(images_NCHW, LazyImages) and start + size < len(images_NCHW):
            images_NCHW.prefetch(slice(start + size, start + 2 * size))
        yield batch_BCHW


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


def _cut_files(source: FileSource, class_ids: tuple[int, ...], held_out: int) -> list[Split]:
    """Train, validation, test of the classes listed; `held_out` images of every class, whatever the other classes."""
    train, test = source.parts["train"], source.parts["test"]
    held_out_N = np.zeros(len(train.labels_N), dtype=bool)
    for label in class_ids:
        members = np.flatnonzero(train.labels_N == label)
        held_out_N[members[draw_order(len(members), SPLIT_SEED)[:held_out]]] = True
    kept = [(train, np.flatnonzero(~held_out_N)), (train, np.flatnonzero(held_out_N))]
    return [_take(part, at_N, class_ids) for part, at_N in (*kept, (test, np.arange(len(test.labels_N))))]


def _take(part: Files, at_N: np.ndarray, class_ids: tuple[int, ...]) -> Split:
    renumbered_N = np.searchsorted(np.asarray(class_ids), part.labels_N[at_N]).astype(np.int64)
    index_N = part.index_N[at_N].astype(np.int64)
    return Split(part.images_NCHW.take(at_N), torch.from_numpy(renumbered_N), torch.from_numpy(index_N))


def _hash(splits: tuple[Split, Split, Split], choice: dict[str, object]) -> str:
    sizes = [len(split) for split in splits]
    digest = hashlib.sha256(json.dumps({**choice, "sizes": sizes}, sort_keys=True).encode())
    for split in splits:
        images = split.images_NCHW
        digest.update(images.listing() if isinstance(images, LazyImages) else images.numpy())
        digest.update(split.labels_N.numpy().astype("<i8"))
        digest.update(split.index_N.numpy().astype("<i8"))
    return digest.hexdigest()
