"""The embedded default: 1,797 handwritten digits, 8x8 pixels with values 0 to 16, inside scikit-learn.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (the
test part of that set, which is what `sklearn.datasets.load_digits` ships).
"""

from pathlib import Path

import numpy as np

from lipcert.data.source import Part, Source

FIX = "install a scikit-learn release whose digits are unchanged, such as 1.9.1"


def read_digits(root: Path, download: bool) -> Source:
    """All 1,797 digits as one part; `root` and `download` are not needed, the set is always there."""
    images_NHW, labels_N = _raw_digits()
    pixels_NHW = images_NHW.astype(np.uint8)
    # The cast would hide fractions, and the checksum sees only what the cast leaves.
    if not np.array_equal(pixels_NHW, images_NHW):
        raise ValueError(f"digits: pixel values are not integers from 0 to 255: {FIX}")
    part = Part(pixels_NHW.reshape(-1, 1, 8, 8), labels_N.astype(np.int64))
    return Source({"all": part}, tuple(str(digit) for digit in range(10)))


def _raw_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target
