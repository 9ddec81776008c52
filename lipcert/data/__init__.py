"""Data sets as tensors: pinned by checksum, split by a fixed rule, augmented on the device.

`load_dataset("digits")` needs nothing beyond the dependencies. MNIST, CIFAR-10 and CIFAR-100 are read through
torchvision from `LIPCERT_DATA` (default `data/`) and downloaded only with `download=True`.
The test split is for the final certification; settings are chosen on `load_dataset(..., validation=True).validation`.
"""

from lipcert.data.augment import augment
from lipcert.data.dataset import Dataset, Split, load_dataset, to_unit
from lipcert.data.registry import DATASETS, Facts, known_datasets

__all__ = ["DATASETS", "Dataset", "Facts", "Split", "augment", "known_datasets", "load_dataset", "to_unit"]
