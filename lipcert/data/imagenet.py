"""ImageNet (ILSVRC 2012) from the layout of torchvision's ImageFolder: imagenet/train/<wnid>/, imagenet/val/<wnid>/.

Source: O. Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 115, 2015. Its 50,000
validation images are the test split here, as in the papers. Images stay on disk (`lipcert.data.lazy`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipcert.data.lazy import LazyImages
from lipcert.data.source import Files, FileSource
from lipcert.progress import Progress

FOLDER = "imagenet"
_SUFFIXES = (".jpeg", ".jpg")
_PLACES = 1_000_000  # more than any class has images


def fix(root: Path) -> str:
    """The way out that every refusal ends with."""
    return (
        f"put ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into {root / FOLDER} "
        "and let torchvision lay them out: torchvision.datasets.ImageNet(folder, split) for split 'train' and 'val'"
    )


@dataclass(frozen=True)
class Reader:
    """Lists the folders of some classes; the numbers are those of the published set.

    classes: number of class folders. train: least and largest number of training images of a class. total: training
    images of all classes. test: test images of every class. side: pixels of the window that is trained on and
    certified.
    """

    classes: int = 1000
    train: tuple[int, int] = (732, 1300)
    total: int = 1_281_167
    test: int = 50
    side: int = 224

    def __call__(self, root: Path, class_ids: tuple[int, ...]) -> FileSource:
        """Every file of these classes, in order of class and file name; class ids count sorted wnids.

        Class names are wnids. No other class folder is opened.

        Raises:
            FileNotFoundError: no such folder. ValueError: another number of classes or images.
        """
        folder = root / FOLDER
        wnids = {split: self._wnids(root, split) for split in ("train", "val")}
        if wnids["train"] != wnids["val"]:
            wrong = sorted(set(wnids["train"]) ^ set(wnids["val"]))[0]
            raise ValueError(f"imagenet: class {wrong!r} is in only one of train/ and val/; {fix(root)}")
        with Progress(2 * len(class_ids), "class") as progress:
            parts = {
                name: self._files(folder, split, wnids[split], class_ids, progress)
                for name, split in (("train", "train"), ("test", "val"))
            }
        found = len(parts["train"].labels_N)
        if len(class_ids) == self.classes and found != self.total:
            raise ValueError(f"imagenet: train/ holds {found} images: must be {self.total}; {fix(root)}")
        return FileSource(parts, tuple(wnids["train"]))

    def _wnids(self, root: Path, split: str) -> list[str]:
        folder = root / FOLDER / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"imagenet: no {FOLDER}/{split} in {root}: set LIPCERT_DATA (or root=) to a folder that holds "
                f"{FOLDER}/train/<wnid>/*.JPEG and {FOLDER}/val/<wnid>/*.JPEG; lipcert does not download this set: "
                f"with the archives of image-net.org, {fix(root)}"
            )
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        wnids = sorted(entry.name for entry in entries if entry.is_dir())
        if not wnids and entries:
            raise ValueError(
                f"imagenet: {split}/ holds {len(entries)} files and no class folders: images must lie in "
                f"{split}/<wnid>/; {fix(root)}"
            )
        if len(wnids) != self.classes:
            raise ValueError(
                f"imagenet: {split}/ holds {len(wnids)} class folders: must be {self.classes}; {fix(root)}"
            )
        return wnids

    def _files(
        self, folder: Path, split: str, wnids: list[str], class_ids: tuple[int, ...], progress: Progress
    ) -> Files:
        names: list[str] = []
        sizes: list[int] = []
        labels: list[int] = []
        places: list[int] = []
        least, most = self.train if split == "train" else (self.test, self.test)
        for label in class_ids:
            place = f"{split}/{wnids[label]}"
            found = sorted(_sizes(folder / place).items())
            if not least <= len(found) <= most:
                rule = f"{least}" if least == most else f"from {least} to {most}"
                raise ValueError(
                    f"imagenet: {place} holds {len(found)} files *.JPEG: must be {rule}; {fix(folder.parent)}"
                )
            names += [f"{place}/{name}" for name, _ in found]
            sizes += [size for _, size in found]
            labels += [label] * len(found)
            places += range(label * _PLACES, label * _PLACES + len(found))
            progress.update(progress.done + 1, f"listing {FOLDER}/{place}")
        return Files(LazyImages(folder, names, sizes, self.side), np.array(labels), np.array(places))


def _sizes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {e.name: e.stat().st_size for e in entries if e.name.lower().endswith(_SUFFIXES)}
