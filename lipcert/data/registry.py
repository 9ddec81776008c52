"""The data sets lipcert knows: one entry each, all facts in one place.

To add a set: write a reader `(root, download) -> Source` in a file beside `vision.py`, or, for one that does not fit
into memory, `(root, class_ids) -> FileSource` as in `imagenet.py`, and add one entry to DATASETS, with the fingerprints
of its decoded parts where they are known. Splits, class subsets, checks and records follow from the entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lipcert.data import digits, imagenet, tiny_imagenet, vision
from lipcert.data.source import FileSource, Source


@dataclass(frozen=True)
class Facts:
    """What is fixed about one data set.

    read: reads all of it; or list_files: lists the files of some classes. Exactly one of them.
    shape: (C, H, W). scale: the pixel value that stands for 1.0. train, test: number of images without a validation
    split; validation: how many of `train` are held out on request. crop, flip: default augmentation (padding in pixels,
    horizontal mirror). pinned: SHA-256 of each decoded part, see `source.fingerprint`; None where no checksum is known:
    such a set is checked by its reader (counts, names), never called verified, and gets no certificate bundle.
    fix: the way out named by a refusal, given the data folder.
    """

    read: Callable[[Path, bool], Source] | None
    shape: tuple[int, int, int]
    classes: int
    train: int
    validation: int
    test: int
    crop: int
    flip: bool
    pinned: Mapping[str, str] | None = None
    fix: Callable[[Path], str] = vision.fix
    scale: int = 255
    list_files: Callable[[Path, tuple[int, ...]], FileSource] | None = None


DATASETS: dict[str, Facts] = {
    # 60/20/20 of one part, cut by `splits.stratified_cut`. Augmentation off: a pixel is an eighth of the image.
    "digits": Facts(
        digits.read_digits, (1, 8, 8), 10, train=1437, validation=360, test=360, crop=0, flip=False, scale=16,
        pinned={"all": "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"},
        fix=lambda root: digits.FIX,
    ),
    "mnist": Facts(
        vision.read_mnist, (1, 28, 28), 10, train=60_000, validation=5_000, test=10_000, crop=2, flip=False,
        pinned={
            "train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
            "test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
        },
    ),
    "cifar10": Facts(
        vision.read_cifar10, (3, 32, 32), 10, train=50_000, validation=5_000, test=10_000, crop=4, flip=True,
        pinned={
            "train": "973ef2abb5897efc795681a4d79a6f5f642fa2bcb1a828f7476017c89db53a57",
            "test": "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51",
        },
    ),
    "cifar100": Facts(
        vision.read_cifar100, (3, 32, 32), 100, train=50_000, validation=5_000, test=10_000, crop=4, flip=True,
        pinned={
            "train": "3f04bb596c34a28a39a030be86f7777c004db9cb45165568a504cca261f6765c",
            "test": "9f0797cda23af3231dce0cca7e8d619c0607f6bb8ca05e9b95ff23e4d044c600",
        },
    ),
    "tiny_imagenet": Facts(
        tiny_imagenet.Reader(), (3, 64, 64), 200, train=100_000, validation=10_000, test=10_000, crop=8, flip=True,
        fix=tiny_imagenet.fix,
    ),
    # Its windows are cut from larger images (`lazy.RECIPES`), so there is no padding. Held out: 50 of every class.
    "imagenet": Facts(
        None, (3, 224, 224), 1000, train=1_281_167, validation=50_000, test=50_000, crop=0, flip=True,
        fix=imagenet.fix, list_files=imagenet.Reader(),
    ),
}  # fmt: skip


def known_datasets() -> tuple[str, ...]:
    """Names that `load_dataset` accepts."""
    return tuple(DATASETS)
