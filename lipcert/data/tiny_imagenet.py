"""Tiny-ImageNet-200 from its usual folder, decoded once and kept in a cache beside it.

Source: Y. Le, X. Yang, *Tiny ImageNet Visual Recognition Challenge*, CS 231N, Stanford, 2015. Its 10,000 validation
images are the test split here, as in the papers; the images of its own test folder have no labels and are not read.

Shape suffixes: N images, C channels, H height, W width.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipcert.data.decode import decoder, open_rgb, pixels_CHW, pool
from lipcert.data.source import Part, Source
from lipcert.progress import Progress

FOLDER, CACHE = "tiny-imagenet-200", "tiny-imagenet-200.cache"
_LAYOUT = 1  # of the cache
_Listed = tuple[list[str], np.ndarray]  # files relative to FOLDER, labels


def fix(root: Path) -> str:
    """The way out that every refusal ends with."""
    return f"unpack tiny-imagenet-200.zip again, so that {root / FOLDER} holds the whole set"


@dataclass(frozen=True)
class Reader:
    """Reads the folder; the numbers are those of the published set.

    classes: number of class folders. train, test: images of every class. side: pixels.
    """

    classes: int = 200
    train: int = 500
    test: int = 50
    side: int = 64

    def __call__(self, root: Path, download: bool) -> Source:
        """All images, in order of class and file name (train) and of file name (test); class ids count sorted wnids.

        The first time they are decoded (a minute or two) and written to `tiny-imagenet-200.cache/`, 1.4 GB. The cache
        is used as long as name, size and time of change of every file, the decoder and the cache's own checksum are
        what they were; otherwise it is made again. `download` fetches nothing: no checksum of this set is published.

        Raises:
            FileNotFoundError: no such folder or file. ValueError: counts, names or pixels of another set.
        """
        folder = root / FOLDER
        if not (folder / "wnids.txt").is_file():
            raise FileNotFoundError(
                f"tiny_imagenet: no {FOLDER}/wnids.txt in {root}: lipcert does not download this set; get "
                "tiny-imagenet-200.zip (cs231n.stanford.edu), unpack it, and set LIPCERT_DATA (or root=) to the "
                "folder that holds it"
            )
        wnids = self._wnids(folder)
        words = _words(folder, wnids)
        listed = {"train": self._train(folder, wnids), "test": self._test(folder, wnids)}
        key = _key(folder, [name for names, _ in listed.values() for name in names])
        pixels = _cached(root / CACHE, key)
        if pixels is None:
            pixels = self._decode(folder, {split: names for split, (names, _) in listed.items()})
            _store(root / CACHE, key, pixels)
        return Source({split: Part(pixels[split], labels_N) for split, (_, labels_N) in listed.items()}, words)

    def _wnids(self, folder: Path) -> list[str]:
        wnids = sorted((folder / "wnids.txt").read_text().split())
        if len(wnids) != self.classes or len(set(wnids)) != self.classes:
            raise ValueError(
                f"tiny_imagenet: wnids.txt lists {len(wnids)} classes, {len(set(wnids))} of them different: must be "
                f"{self.classes}; {fix(folder.parent)}"
            )
        found = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
        if found != wnids:
            wrong = sorted(set(found) ^ set(wnids))[0]
            where = "in train/ only" if wrong in found else "in wnids.txt only"
            raise ValueError(f"tiny_imagenet: class {wrong!r} is {where}; {fix(folder.parent)}")
        return wnids

    def _train(self, folder: Path, wnids: list[str]) -> _Listed:
        names = []
        for wnid in wnids:
            place = f"train/{wnid}/images"
            found = _images(folder, place)
            if len(found) != self.train:
                raise ValueError(
                    f"tiny_imagenet: {place} holds {len(found)} files *.JPEG: must be {self.train}; "
                    f"{fix(folder.parent)}"
                )
            names += [f"{place}/{name}" for name in found]
        return names, np.repeat(np.arange(len(wnids)), self.train)

    def _test(self, folder: Path, wnids: list[str]) -> _Listed:
        table = folder / "val" / "val_annotations.txt"
        if not table.is_file():
            raise FileNotFoundError(f"tiny_imagenet: no val/val_annotations.txt in {folder}; {fix(folder.parent)}")
        rows = [line.split("\t")[:2] for line in table.read_text().splitlines() if line.strip()]
        foreign = [row for row in rows if len(row) < 2 or row[1] not in wnids]
        if foreign:
            raise ValueError(
                f"tiny_imagenet: val_annotations.txt has the line {foreign[0]}: must be a file and a class of "
                f"wnids.txt, separated by tabs; {fix(folder.parent)}"
            )
        label_of = {name: wnids.index(wnid) for name, wnid in rows}
        names = sorted(label_of)
        if len(names) != len(rows) or names != _images(folder, "val/images"):
            raise ValueError(
                f"tiny_imagenet: val_annotations.txt names {len(rows)} files, {len(names)} of them different, and "
                f"val/images holds others: must be the same; {fix(folder.parent)}"
            )
        labels_N = np.array([label_of[name] for name in names], dtype=np.int64)
        counts = np.bincount(labels_N, minlength=len(wnids))
        if (counts != self.test).any():
            wnid = wnids[int((counts != self.test).argmax())]
            raise ValueError(
                f"tiny_imagenet: val_annotations.txt names {counts[wnids.index(wnid)]} images of {wnid}: must be "
                f"{self.test} of every class; {fix(folder.parent)}"
            )
        return [f"val/images/{name}" for name in names], labels_N

    def _decode(self, folder: Path, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
        pixels = {split: np.empty((len(some), 3, self.side, self.side), np.uint8) for split, some in names.items()}
        places = [(split, place) for split, some in names.items() for place in range(len(some))]

        def read(split: str, place: int) -> None:
            path = folder / names[split][place]
            image = open_rgb(path)
            if image.size != (self.side, self.side):
                raise ValueError(f"{path}: {image.width}x{image.height} pixels: must be {self.side}x{self.side}")
            pixels[split][place] = pixels_CHW(image)

        with Progress(len(places), "image") as progress:
            for done, _ in enumerate(pool().map(read, *zip(*places, strict=True)), start=1):
                if done % 1000 == 0 or done == len(places):
                    progress.update(done, f"decoding {FOLDER}")
        return pixels


def _words(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """What words.txt calls each class."""
    path = folder / "words.txt"
    if not path.is_file():
        raise FileNotFoundError(f"tiny_imagenet: no words.txt in {folder}; {fix(folder.parent)}")
    words = dict(line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    for wnid in wnids:
        if not words.get(wnid, "").strip():
            raise ValueError(f"tiny_imagenet: words.txt has no name for {wnid}; {fix(folder.parent)}")
    return tuple(words[wnid].strip() for wnid in wnids)


def _images(folder: Path, place: str) -> list[str]:
    if not (folder / place).is_dir():
        raise FileNotFoundError(f"tiny_imagenet: no {place} in {folder}; {fix(folder.parent)}")
    return sorted(entry.name for entry in os.scandir(folder / place) if entry.name.endswith(".JPEG"))


def _key(folder: Path, names: list[str]) -> str:
    """Changes whenever a file that was decoded, or the decoder, does."""
    digest = hashlib.sha256(f"{_LAYOUT} {decoder()}\n".encode())
    for name in names:
        status = os.stat(folder / name)
        digest.update(f"{status.st_size} {status.st_mtime_ns} {name}\n".encode())
    return digest.hexdigest()


def _cached(cache: Path, key: str) -> dict[str, np.ndarray] | None:
    """The decoded parts, mapped from disk; None where there is no cache, or one of other files or with other bytes."""
    try:
        facts = json.loads((cache / "cache.json").read_text())
        if facts["key"] != key:
            return None
        pixels = {split: np.load(cache / f"{split}.npy", mmap_mode="r") for split in facts["sha256"]}
        if {split: _sha256(part) for split, part in pixels.items()} != facts["sha256"]:
            return None
        return pixels
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _store(cache: Path, key: str, pixels: dict[str, np.ndarray]) -> None:
    """Write the cache; a folder that cannot be written only costs the decoding the next time."""
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for split, part in pixels.items():
            np.save(partial / f"{split}.npy", part)
        facts = {"key": key, "sha256": {split: _sha256(part) for split, part in pixels.items()}}
        (partial / "cache.json").write_text(json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(cache, ignore_errors=True)
        os.replace(partial, cache)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        print(f"tiny_imagenet: no cache written ({error}); the set is decoded again next time", file=sys.stderr)


def _sha256(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part)).hexdigest()
