"""The augmentations of the GloRo recipes, for a whole batch: colours, one affine warp for all geometry, noise.

The reference names the operations and their ranges (arXiv 2102.08452, training scripts); what they mean in detail is
that of the libraries it calls: TensorFlow's for "gloro_cifar", Keras' ImageDataGenerator for "gloro_tiny".

Coordinates are (row, column) in pixels from the centre of the image; a warp maps places of the result to places of the
source. Shape suffixes: B batch, C channels, H height, W width, 2 row and column.
"""

import math

import torch
import torch.nn.functional as F

_KERAS_ROTATION, _KERAS_SHEAR = math.radians(20), math.radians(0.1)  # Keras takes both in degrees


def gloro_cifar(images_BCHW: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Saturation x 0.5 to 1.2, contrast x 0.8 to 1.2, mirror, rotation by up to 0.157 rad, a square window of 0.8 to 1
    of the side blown up to the full size, Gaussian noise of standard deviation 0.01, clipped to [0, 1].

    images_BCHW: floating point in [0, 1]. What a rotation brings in from outside is black.
    """
    batch, (height, width) = len(images_BCHW), images_BCHW.shape[-2:]
    saturation_B, contrast_B, angle_B, zoom_B, down_B, right_B = _uniform(
        batch, generator, (0.5, 1.2), (0.8, 1.2), (-0.157, 0.157), (0.8, 1.0), (-1.0, 1.0), (-1.0, 1.0)
    )
    images_BCHW = scale_contrast(scale_saturation(images_BCHW, saturation_B), contrast_B)
    # The window stays inside the rotated image: its centre moves by at most what it leaves free.
    free_B = (1 - zoom_B) / 2
    offset_B2 = torch.stack([down_B * free_B * height, right_B * free_B * width], dim=1)
    turn_B22 = mirror(batch, generator, flip) @ rotation(angle_B)
    shift_B2 = (turn_B22 @ offset_B2[:, :, None])[:, :, 0]
    warped_BCHW = warp(images_BCHW, turn_B22 * zoom_B[:, None, None], shift_B2, "zeros")
    noise_BCHW = torch.randn(warped_BCHW.shape, generator=generator, device=generator.device)
    return (warped_BCHW + 0.01 * noise_BCHW).clamp(0, 1)


def gloro_tiny(images_BCHW: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Keras' ImageDataGenerator: rotation by up to 20 degrees, shifts by up to 0.2 of the side, shear 0.1 (degrees, as
    Keras reads it), zoom 0.9 to 1.1 along each axis by itself, mirror; outside, the nearest pixel repeats.

    images_BCHW: floating point in [0, 1].
    """
    batch, (height, width) = len(images_BCHW), images_BCHW.shape[-2:]
    down, right = 0.2 * height, 0.2 * width
    angle_B, shear_B, down_B, right_B, rows_B, columns_B = _uniform(
        batch, generator, (-_KERAS_ROTATION, _KERAS_ROTATION), (-_KERAS_SHEAR, _KERAS_SHEAR), (-down, down),
        (-right, right), (0.9, 1.1), (0.9, 1.1),
    )  # fmt: skip
    nothing_B = torch.zeros_like(shear_B)
    sheared_B22 = _matrix(torch.ones_like(shear_B), -shear_B.sin(), nothing_B, shear_B.cos())
    zoomed_B22 = _matrix(rows_B, nothing_B, nothing_B, columns_B)
    rotation_B22 = rotation(angle_B)
    shift_B2 = (rotation_B22 @ torch.stack([down_B, right_B], dim=1)[:, :, None])[:, :, 0]
    matrix_B22 = rotation_B22 @ sheared_B22 @ zoomed_B22 @ mirror(batch, generator, flip)
    return warp(images_BCHW, matrix_B22, shift_B2, "border")


def warp(images_BCHW: torch.Tensor, matrix_B22: torch.Tensor, shift_B2: torch.Tensor, outside: str) -> torch.Tensor:
    """Place p of the result shows place `matrix @ p + shift` of the source, bilinearly.

    outside: "zeros", or "border" for the nearest pixel.
    """
    height, width = images_BCHW.shape[-2:]
    rows_H, columns_W = (
        torch.arange(n, device=images_BCHW.device, dtype=images_BCHW.dtype) - (n - 1) / 2 for n in (height, width)
    )
    place_HW2 = torch.stack(torch.meshgrid(rows_H, columns_W, indexing="ij"), dim=-1)
    source_BHW2 = torch.einsum("bij,hwj->bhwi", matrix_B22, place_HW2) + shift_B2[:, None, None]
    # grid_sample counts columns first, and from -1 to 1 between the outer edges of the outer pixels.
    grid_BHW2 = source_BHW2.flip(-1) * (2 / torch.tensor([width, height], device=images_BCHW.device))
    return F.grid_sample(images_BCHW, grid_BHW2.to(images_BCHW), "bilinear", outside, align_corners=False)


def scale_saturation(images_BCHW: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """Saturation (of hue, saturation, value) times a factor, at most 1; grey images stay as they are.

    With V the largest and m the smallest channel, saturation is (V - m) / V, and scaling it moves every channel
    towards or away from V: x -> V - (V - x) min(factor, V / (V - m)).
    """
    largest_B1HW, smallest_B1HW = images_BCHW.amax(1, keepdim=True), images_BCHW.amin(1, keepdim=True)
    spread_B1HW = (largest_B1HW - smallest_B1HW).clamp_min(torch.finfo(images_BCHW.dtype).tiny)
    factor_B1HW = torch.minimum(factor_B[:, None, None, None], largest_B1HW / spread_B1HW)
    return largest_B1HW - (largest_B1HW - images_BCHW) * factor_B1HW


def scale_contrast(images_BCHW: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """Distance of every pixel from its channel's mean times a factor; may leave [0, 1]."""
    mean_BC11 = images_BCHW.mean((2, 3), keepdim=True)
    return mean_BC11 + (images_BCHW - mean_BC11) * factor_B[:, None, None, None]


def rotation(angle_B: torch.Tensor) -> torch.Tensor:
    """Rotation matrices, angles in rad."""
    sine_B, cosine_B = angle_B.sin(), angle_B.cos()
    return _matrix(cosine_B, -sine_B, sine_B, cosine_B)


def mirror(batch: int, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Per image the identity or, with probability 1/2 if `flip`, the change of left and right."""
    sign_B = torch.ones(batch, device=generator.device)
    if flip:
        sign_B -= 2 * torch.randint(0, 2, (batch,), generator=generator, device=generator.device)
    return _matrix(torch.ones_like(sign_B), torch.zeros_like(sign_B), torch.zeros_like(sign_B), sign_B)


def _matrix(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return torch.stack([a, b, c, d], dim=1).view(-1, 2, 2)


def _uniform(batch: int, generator: torch.Generator, *ranges: tuple[float, float]) -> list[torch.Tensor]:
    drawn = torch.rand(len(ranges), batch, generator=generator, device=generator.device)
    return [low + (high - low) * part_B for (low, high), part_B in zip(ranges, drawn, strict=True)]
