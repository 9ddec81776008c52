"""Generated images (a diffusion model's, say) from an npz file, as a second stream beside the training images.

The format is that of the third-generation recipe (arXiv 2310.02513): `image`, uint8 (N, H, W, C), and `label`, the
class each image was generated for.

Shape suffixes: N images, B batch, C channels, H height, W width.
"""

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lipcert.data.dataset import Dataset, Split
from lipcert.data.registry import DATASETS

_ARRAYS = ("image", "label")


class StoredImages:
    """(N, C, H, W) uint8 images in an array of shape (N, H, W, C), which may be mapped from disk.

    Indexed by an int64 tensor or a slice; batches come as tensors on the CPU.
    """

    dtype = torch.uint8

    def __init__(self, images_NHWC: np.ndarray, positions_N: np.ndarray):
        self._images_NHWC, self._positions_N = images_NHWC, positions_N

    def __len__(self) -> int:
        return len(self._positions_N)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        height, width, channels = self._images_NHWC.shape[1:]
        return torch.Size((len(self), channels, height, width))

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        positions_B = self._positions_N[index if isinstance(index, slice) else index.cpu().numpy()]
        return torch.from_numpy(self._images_NHWC[positions_B]).permute(0, 3, 1, 2).contiguous()

    def to(self, device: torch.device | str) -> "StoredImages":
        """Itself: there may be millions, so they stay where they are."""
        return self


@dataclass(frozen=True, eq=False)
class Generated(Split):
    """Generated images of the classes of a data set: images_NCHW (`StoredImages`), labels_N renumbered as there.

    index_N: places in the file. sha256: of the file's bytes, as `sha256sum` prints it.
    """

    sha256: str

    @property
    def crop(self) -> int:
        """Padding of their random crop: 2 for 32 pixels, 4 for 64, half of what real images get (arXiv 2310.02513)."""
        return self.images_NCHW.shape[-1] // 16


def load_generated(path: str | Path, data: Dataset, total: int | None = None) -> Generated:
    """Open the generated images that go with a data set.

    Args:
        path: an npz of `image` and `label`. Written by `np.savez`, images are mapped from disk and only read batch by
            batch; from `np.savez_compressed` they are loaded at once.
        data: the data set trained on: images must have its shape, and only images of its classes are kept. Its pixels
            must have 8 bits (scale 255), as generated ones do.
        total: labels run from 0 to total - 1, in the numbering of the whole set; None for the registered number of
            classes of `data`.

    Raises:
        FileNotFoundError: no such file. ValueError: not such an npz, or images or labels that do not fit the data set.
    """
    path = Path(path).expanduser()
    if data.scale != 255:
        raise ValueError(
            f"generated={str(path)!r} with {data.name}, scale={data.scale}: must be 255, pixels of 8 bits; leave "
            "generated out"
        )
    total = DATASETS[data.name].classes if total is None else total
    arrays = _open(path)
    images_NHWC, labels_N = arrays["image"], np.asarray(arrays["label"])
    channels, height, width = data.shape
    if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (height, width, channels):
        raise ValueError(
            f"{path}: image is {images_NHWC.dtype} of shape {images_NHWC.shape}: must be uint8 of shape "
            f"(N, {height}, {width}, {channels}) to go with {data.name}; generate or convert it so"
        )
    if labels_N.shape != images_NHWC.shape[:1] or labels_N.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: label is {labels_N.dtype} of shape {labels_N.shape}: must be whole numbers, one for each of "
            f"{len(images_NHWC)} images"
        )
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < total:
        raise ValueError(
            f"{path}: label from {labels_N.min()} to {labels_N.max()}: must be from 0 to {total - 1}, the classes of "
            f"{data.name}"
        )
    positions_N = np.flatnonzero(np.isin(labels_N, data.class_ids)).astype(np.int64)
    if not len(positions_N):
        raise ValueError(f"{path}: {len(labels_N)} images, none of the {data.classes} classes trained on; use another")
    renumbered_N = np.searchsorted(np.asarray(data.class_ids), labels_N[positions_N]).astype(np.int64)
    return Generated(
        StoredImages(images_NHWC, positions_N),
        torch.from_numpy(renumbered_N),
        torch.from_numpy(positions_N),
        _sha256(path),
    )


def _open(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"generated={str(path)!r}: no such file; give the path of an npz of image and label")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.getinfo(f"{name}.npy") for name in _ARRAYS}
        return {name: _array(path, name, member) for name, member in members.items()}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: not readable as an npz of the arrays image and label ({error}); write it with "
            "np.savez(path, image=..., label=...)"
        ) from error


def _array(path: Path, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of the archive: mapped from the file where its bytes lie there as they are, else read."""
    if member.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(member.header_offset + 26)  # two lengths end the fixed part of a zip's local header, 30 bytes
            file.seek(member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if not fortran and not dtype.hasobject and np.prod(shape):
                return np.memmap(path, dtype, "r", file.tell(), shape)
    with np.load(path, allow_pickle=False) as archive:
        return archive[name]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
