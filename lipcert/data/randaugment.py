"""RandAugment (arXiv 1909.13719) as torchvision's `RandAugment()` does it: 2 operations, magnitude 9 of 31 bins.

torchvision draws from the global generator, image by image. At a fixed magnitude there are only 14 operations with two
signs, so here the draws come from a generator handed in, and each operation runs once over all images that drew it; the
operations themselves are torchvision's.

Shape suffixes: B batch, C channels, H height, W width, N operations per image.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

OPERATIONS = 2  # per image
_BIN, _BINS = 9, 31
_PROBABILITY = 0.5


def rand_augment(
    images_BCHW: torch.Tensor, generator: torch.Generator, probability: float = _PROBABILITY
) -> torch.Tensor:
    """RandAugment on a random share of a batch (uint8, 1 or 3 channels), on its device; reads its draws back once.

    Raises:
        ImportError: no torchvision.
    """
    check()
    batch, device = len(images_BCHW), images_BCHW.device
    chosen_B = torch.rand(batch, generator=generator, device=generator.device) < probability
    kinds_BN, signs_BN = draw(batch, generator)
    # What an image that is left alone drew becomes operation 0, the identity.
    code_NB = (torch.where(chosen_B[:, None], kinds_BN, 0) * 2 + signs_BN).T.tolist()
    result_BCHW = images_BCHW.clone()
    for code_B in code_NB:
        groups: dict[int, list[int]] = {}
        for image, code in enumerate(code_B):
            groups.setdefault(code, []).append(image)
        for code, members in sorted(groups.items()):
            if code >= 2:
                index = torch.tensor(members, device=device)
                result_BCHW[index] = apply(result_BCHW[index], *divmod(code, 2))
    return result_BCHW


def draw(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Per image and turn: which operation, and whether its magnitude is negative (where it has a sign), (B, N)."""
    shape, device = (batch, OPERATIONS), generator.device
    kinds_BN = torch.randint(0, len(_TABLE), shape, generator=generator, device=device)
    return kinds_BN, torch.randint(0, 2, shape, generator=generator, device=device)


def apply(image: Any, kind: int, negative: int) -> Any:
    """One operation on a Pillow image, or on a uint8 tensor (..., C, H, W): the same on all its images."""
    from torchvision.transforms import functional

    name, largest, signed = _TABLE[kind]
    _, height, width = functional.get_dimensions(image)
    extent = {"translate_x": width, "translate_y": height}.get(name, 1)
    # In float32, as torchvision computes it: the last bit decides how some pixels are rounded.
    value = float(torch.linspace(0.0, largest * extent, _BINS)[_BIN])
    return _CALLS[name](functional, image, -value if signed and negative else value)


def check() -> None:
    """Raise ImportError, with the way out, where torchvision is missing."""
    try:
        import torchvision.transforms.functional  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "augmentation 'randaugment' uses torchvision's operations: pip install 'lipcert[vision]'"
        ) from error


# Name, magnitude in the last bin (of a shift: as a share of the side), whether it has a sign; as in torchvision.
_TABLE: tuple[tuple[str, float, bool], ...] = (
    ("identity", 0.0, False),
    ("shear_x", 0.3, True),
    ("shear_y", 0.3, True),
    ("translate_x", 150 / 331, True),
    ("translate_y", 150 / 331, True),
    ("rotate", 30.0, True),
    ("brightness", 0.9, True),
    ("saturation", 0.9, True),
    ("contrast", 0.9, True),
    ("sharpness", 0.9, True),
    ("posterize", 4.0, False),
    ("solarize", 255.0, False),
    ("autocontrast", 0.0, False),
    ("equalize", 0.0, False),
)


def _shear(f: Any, image: Any, x: float, y: float) -> Any:
    return f.affine(image, 0.0, [0, 0], 1.0, [math.degrees(math.atan(s)) for s in (x, y)], center=[0, 0])


def _shift(f: Any, image: Any, x: float, y: float) -> Any:
    return f.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])


# f is torchvision's functional module, v the magnitude.
_CALLS: dict[str, Callable[[Any, Any, float], Any]] = {
    "identity": lambda f, image, v: image,
    "shear_x": lambda f, image, v: _shear(f, image, v, 0.0),
    "shear_y": lambda f, image, v: _shear(f, image, 0.0, v),
    "translate_x": lambda f, image, v: _shift(f, image, v, 0.0),
    "translate_y": lambda f, image, v: _shift(f, image, 0.0, v),
    "rotate": lambda f, image, v: f.rotate(image, v),
    "brightness": lambda f, image, v: f.adjust_brightness(image, 1 + v),
    "saturation": lambda f, image, v: f.adjust_saturation(image, 1 + v),
    "contrast": lambda f, image, v: f.adjust_contrast(image, 1 + v),
    "sharpness": lambda f, image, v: f.adjust_sharpness(image, 1 + v),
    "posterize": lambda f, image, v: f.posterize(image, 8 - round(v)),
    "solarize": lambda f, image, v: f.solarize(image, 255.0 - v),
    "autocontrast": lambda f, image, v: f.autocontrast(image),
    "equalize": lambda f, image, v: f.equalize(image),
}
