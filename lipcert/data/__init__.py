"""Data sets as tensors or image files: checked, split by a fixed rule, augmented on the device.

`load_dataset("digits")` needs nothing beyond the dependencies. MNIST, CIFAR-10 and CIFAR-100 are read through
torchvision from `LIPCERT_DATA` (default `data/`), pinned by checksum, and downloaded only with `download=True`.
Tiny-ImageNet and ImageNet are read from their usual folders there.
The test split is for the final certification; settings are chosen on `load_dataset(..., validation=True).validation`.
"""

from lipcert.data.augment import augment
from lipcert.data.batches import POLICIES, Shuffled, TrainingImages, augment_batch
from lipcert.data.dataset import Dataset, Split, batches, load_dataset, to_unit
from lipcert.data.generated import Generated, load_generated
from lipcert.data.registry import DATASETS, Facts, known_datasets

__all__ = [
    "DATASETS",
    "POLICIES",
    "Dataset",
    "Facts",
    "Generated",
    "Shuffled",
    "Split",
    "TrainingImages",
    "augment",
    "augment_batch",
    "batches",
    "known_datasets",
    "load_dataset",
    "load_generated",
    "to_unit",
]
