"""Random crop with padding and random horizontal flip, for a whole batch at once, on the device of the images.

Shape suffixes: B batch, C channels, H height, W width, P pixels of one image (H * W).
"""

import torch
import torch.nn.functional as F


def augment(
    images_BCHW: torch.Tensor, generator: torch.Generator, crop: int, flip: bool, edge: bool = False
) -> torch.Tensor:
    """Shift every image by up to `crop` pixels in each direction and mirror it with probability 1/2.

    Zeros enter, or with `edge` copies of the outermost pixels.

    images_BCHW: uint8 or floating point; the result has the same shape, dtype and device. All randomness comes from
    `generator`, which must live on that device; nothing is read back to the host. With crop=0 and flip=False the
    images are returned as they are, not copied, and nothing is drawn.

    Raises ValueError unless 0 <= crop < min(H, W), or if the generator is on another device.
    """
    height, width = images_BCHW.shape[-2:]
    if not 0 <= crop < min(height, width):
        raise ValueError(f"crop={crop} for {height}x{width} images: must be from 0 to {min(height, width) - 1}")
    check_generator(images_BCHW, generator)
    if crop == 0 and not flip:
        return images_BCHW
    return _apply(images_BCHW, *draw(len(images_BCHW), generator, crop, flip), crop, edge)


def check_generator(images_BCHW: torch.Tensor, generator: torch.Generator) -> None:
    """Raise ValueError, with the way out, if the generator is on another device than the images."""
    if generator.device.type != images_BCHW.device.type:
        raise ValueError(
            f"generator on {generator.device}, images on {images_BCHW.device}: make it with "
            f"torch.Generator('{images_BCHW.device}')"
        )


def draw(
    batch: int, generator: torch.Generator, crop: int, flip: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per image: top and left edge of the window in the padded image, int64 in 0..2*crop, and whether to mirror, bool.

    Offsets are drawn first, then mirrors; what is switched off is not drawn.
    """
    device = generator.device
    offsets_2B = torch.zeros(2, batch, dtype=torch.int64, device=device)
    if crop:
        offsets_2B = torch.randint(0, 2 * crop + 1, (2, batch), generator=generator, device=device)
    mirror_B = torch.zeros(batch, dtype=torch.bool, device=device)
    if flip:
        mirror_B = torch.randint(0, 2, (batch,), generator=generator, device=device).bool()
    return offsets_2B[0], offsets_2B[1], mirror_B


def _apply(
    images_BCHW: torch.Tensor,
    top_B: torch.Tensor,
    left_B: torch.Tensor,
    mirror_B: torch.Tensor,
    crop: int,
    edge: bool,
) -> torch.Tensor:
    # One gather over flat pixels does both maps: on a CPU, uint8, B=256, it takes 0.5 ms, a window view 1.3 ms,
    # advanced indexing 3.7 ms.
    batch, channels, height, width = images_BCHW.shape
    margin = 0 if edge else crop
    padded_BCHW = F.pad(images_BCHW, (margin, margin, margin, margin))
    rows_BH = top_B[:, None] + torch.arange(height, device=top_B.device)
    columns_W = torch.arange(width, device=top_B.device)
    columns_BW = left_B[:, None] + torch.where(mirror_B[:, None], width - 1 - columns_W, columns_W)
    if edge:  # rows and columns outside of the image are those at its border
        rows_BH, columns_BW = (rows_BH - crop).clamp(0, height - 1), (columns_BW - crop).clamp(0, width - 1)
    pixel_BP = (rows_BH[:, :, None] * padded_BCHW.shape[-1] + columns_BW[:, None, :]).flatten(1)
    picked_BCP = padded_BCHW.flatten(2).gather(2, pixel_BP[:, None].expand(-1, channels, -1))
    return picked_BCP.view(batch, channels, height, width)
