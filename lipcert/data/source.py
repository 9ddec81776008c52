"""What a reader returns, and the checksum it must match before anybody sees a pixel.

Shape suffixes: N images, C channels, H height, W width.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lipcert.data.lazy import LazyImages


@dataclass(frozen=True, eq=False)
class Part:
    """One file order of a source set: `images_NCHW` uint8 and `labels_N` int64, both NumPy arrays."""

    images_NCHW: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, eq=False)
class Source:
    """A set as published: parts "train" and "test", or one part "all" where the set has no split of its own."""

    parts: Mapping[str, Part]
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Files:
    """One part whose images stay in files: `labels_N` int64, `index_N` int64, the place of each image in the part.

    Only some classes may have been listed; `index_N` does not depend on which, and ascends.
    """

    images_NCHW: LazyImages
    labels_N: np.ndarray
    index_N: np.ndarray


@dataclass(frozen=True, eq=False)
class FileSource:
    """Parts "train" and "test" of a set in files, and the names of all its classes, listed or not."""

    parts: Mapping[str, Files]
    class_names: tuple[str, ...]


def fingerprint(part: Part) -> str:
    """SHA-256 over the uint8 pixels in NCHW order, then the labels as little-endian int64."""
    digest = hashlib.sha256(np.ascontiguousarray(part.images_NCHW, dtype=np.uint8))
    digest.update(np.ascontiguousarray(part.labels_N, dtype="<i8"))
    return digest.hexdigest()


def verify(name: str, source: Source, pinned: Mapping[str, str], fix: str) -> None:
    """Raise ValueError, naming set and part, unless every part has its pinned fingerprint.

    Decoded arrays are hashed, not files: a set stored again through a lossy format, with another pixel order or with
    other labels is refused although its files may be flawless.
    """
    if set(source.parts) != set(pinned):
        raise ValueError(f"{name}: parts {sorted(source.parts)} read, {sorted(pinned)} expected: {fix}")
    for split, expected in pinned.items():
        found = fingerprint(source.parts[split])
        if found != expected:
            twin = next((f" (this is the {other} split)" for other, pin in pinned.items() if pin == found), "")
            raise ValueError(
                f"{name}, split '{split}': pixels and labels have SHA-256 {found}{twin}, "
                f"must be {expected}: the set is damaged or not the published one; {fix}"
            )
