"""Image files to uint8 pixels through Pillow, which is imported only when a set of image files is read.

Shape suffixes: C channels, H height, W width.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def open_rgb(path: Path, formats: tuple[str, ...] = ("JPEG",)) -> "Image":
    """The image in a file, decoded, in mode RGB (grey ones get three equal channels).

    Raises:
        ImportError: no Pillow. FileNotFoundError: no such file. ValueError: not a whole image in one of `formats`.
    """
    pillow = _pillow()
    try:
        with pillow.Image.open(path, formats=formats) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file; restore it from the archive of the set") from None
    # Pillow reports a damaged header, table or stream through different errors.
    except (pillow.UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path}: must be a whole image in the format {' or '.join(formats)} ({error}); "
            "restore it from the archive of the set"
        ) from error


def pixels_CHW(image: "Image") -> np.ndarray:
    """The pixels of an RGB image, uint8, a view."""
    return np.asarray(image).transpose(2, 0, 1)


def resized(image: "Image", shorter: int) -> "Image":
    """The image with its shorter side `shorter` and the longer one in proportion, rounded down.

    Bilinear with antialiasing (Pillow's own filter), as torchvision's `Resize(shorter)` does with a Pillow image.
    """
    width, height = image.size
    least = min(width, height)
    size = (int(shorter * width / least), int(shorter * height / least))
    return image.resize(size, _pillow().Image.Resampling.BILINEAR)


def decoder() -> str:
    """Pillow and its JPEG library by version: another decoder may give other last bits of the same file."""
    from PIL import __version__, features

    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}")


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that decode: Pillow releases Python's lock while it works. At most 16, one per processor."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")


def _pillow() -> Any:
    try:
        import PIL
        import PIL.Image
    except ImportError as error:
        raise ImportError("sets of image files are read through Pillow: pip install 'lipcert[vision]'") from error
    return PIL
