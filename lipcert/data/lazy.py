"""Images that stay on disk: an array of uint8 pixels of one size, decoded when it is indexed.

Shape suffixes: N images, B batch, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lipcert.data import randaugment
from lipcert.data.decode import open_rgb, pixels_CHW, pool, resized

if TYPE_CHECKING:
    from PIL.Image import Image

# ImageNet as published holds one PNG under a JPEG's name.
_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True)
class Recipe:
    """How training images are drawn: shorter side resized to a random size in shortest..longest, RandAugment if
    `rand_augment`, a random window of the array's size, mirrored with probability 1/2.
    """

    shortest: int
    longest: int
    rand_augment: bool


RECIPES = {"imagenet": Recipe(256, 256, False), "imagenet_randaugment": Recipe(224, 288, True)}


@dataclass(frozen=True)
class View:
    """What is seen of one image: shorter side in pixels, operations of RandAugment (kind, negative), place of the
    window as a share of the room it has, in [0, 1) down and right (None: the centre), and whether it is mirrored.
    """

    shorter: int
    place: tuple[float, float] | None = None
    mirrored: bool = False
    operations: tuple[tuple[int, int], ...] = ()

    def of(self, image: "Image", side: int) -> np.ndarray:
        """The square window of that side, uint8 (C, H, W)."""
        image = resized(image, self.shorter)
        for kind, negative in self.operations:
            image = randaugment.apply(image, kind, negative)
        room = (image.height - side, image.width - side)
        if self.place is None:
            top, left = (round(free / 2) for free in room)  # ties to even, as torchvision's CenterCrop
        else:
            top, left = (math.floor(share * (free + 1)) for share, free in zip(self.place, room, strict=True))
        window_CHW = pixels_CHW(image.crop((left, top, left + side, top + side)))
        return window_CHW[:, :, ::-1] if self.mirrored else window_CHW


class LazyImages:
    """(N, 3, side, side) uint8 images in files; indexing decodes them, on threads, to tensors on the CPU.

    `images[index]`, with an int64 tensor or a slice, is what a network is tested and certified on: shorter side resized
    to `shorter` (bilinear with antialiasing, by Pillow), the central square of `side` pixels; torchvision's Resize and
    CenterCrop of a Pillow image give the same pixels. `augmented` is what it is trained on. Either can be asked for one
    batch ahead with the same arguments, so that threads decode while the device computes.
    """

    dtype = torch.uint8

    def __init__(self, folder: Path, names: Sequence[str], sizes: Sequence[int], side: int = 224, shorter: int = 256):
        """names: paths of the files relative to `folder`, with forward slashes. sizes: their bytes."""
        if not 1 <= side <= shorter:
            raise ValueError(f"side={side} with shorter={shorter}: must be from 1 to shorter")
        self.folder, self.names, self.sizes, self.side, self.shorter = folder, names, sizes, side, shorter
        self._ahead: tuple[object, torch.Tensor, list[Future]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self), 3, self.side, self.side))

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        return self._result(self._positions(index), None, 0, False)

    def prefetch(self, index: torch.Tensor | slice) -> None:
        """Begin to decode what the next `images[index]` asks for."""
        self._begin(self._positions(index), None, 0, False)

    def augmented(self, index: torch.Tensor | slice, policy: str, seed: int, flip: bool = True) -> torch.Tensor:
        """Randomly drawn windows by a policy of `RECIPES`, uint8 (B, 3, side, side): a function of the arguments."""
        return self._result(self._positions(index), policy, seed, flip)

    def prefetch_augmented(self, index: torch.Tensor | slice, policy: str, seed: int, flip: bool = True) -> None:
        """Begin to decode what the next `augmented` with these arguments asks for."""
        self._begin(self._positions(index), policy, seed, flip)

    def take(self, positions: np.ndarray) -> "LazyImages":
        """The images at these positions, as an array of their own; nothing is decoded."""
        names, sizes = ([column[i] for i in positions.tolist()] for column in (self.names, self.sizes))
        return LazyImages(self.folder, names, sizes, self.side, self.shorter)

    def to(self, device: torch.device | str) -> "LazyImages":
        """Itself: the files stay where they are, and batches come on the CPU.

        Raises:
            TypeError: asked for another dtype, which only a batch can have.
        """
        if isinstance(device, torch.dtype):
            raise TypeError(f"images in files have no {device}: take a batch first, as in images[:256].to({device})")
        return self

    def listing(self) -> bytes:
        """Size and name of every file, a line each: what stands for the pixels in a fingerprint."""
        return "".join(f"{size} {name}\n" for size, name in zip(self.sizes, self.names, strict=True)).encode()

    def _positions(self, index: torch.Tensor | slice) -> tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(range(*index.indices(len(self))))
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            kind = f"{index.dtype} tensor" if isinstance(index, torch.Tensor) else type(index).__name__
            raise TypeError(f"images in files are indexed by a slice or a 1-d int64 tensor, not {kind}")
        positions = tuple(index.tolist())
        if positions and not 0 <= min(positions) <= max(positions) < len(self):
            raise IndexError(f"index from {min(positions)} to {max(positions)}: must be from 0 to {len(self) - 1}")
        return positions

    def _views(self, batch: int, policy: str | None, seed: int, flip: bool) -> list[View]:
        if policy is None:
            return [View(self.shorter)] * batch
        recipe = RECIPES.get(policy)
        if recipe is None:
            raise ValueError(f"augmentation={policy!r} for images in files: must be one of {', '.join(RECIPES)}")
        if recipe.shortest < self.side:
            raise ValueError(f"augmentation={policy!r} with side={self.side}: must be at most {recipe.shortest}")
        if recipe.rand_augment:
            randaugment.check()
        generator = torch.Generator().manual_seed(seed)
        sides = torch.randint(recipe.shortest, recipe.longest + 1, (batch,), generator=generator).tolist()
        places = torch.rand(batch, 2, generator=generator, dtype=torch.float64).tolist()
        mirrors = (torch.randint(0, 2, (batch,), generator=generator).bool() & flip).tolist()
        operations: list[list[tuple[int, int]]] = [[]] * batch
        if recipe.rand_augment:
            operations = torch.stack(randaugment.draw(batch, generator), dim=-1).tolist()
        return [
            View(side, tuple(place), mirrored, tuple(map(tuple, turns)))
            for side, place, mirrored, turns in zip(sides, places, mirrors, operations, strict=True)
        ]

    def _begin(self, positions: tuple[int, ...], policy: str | None, seed: int, flip: bool) -> None:
        views = self._views(len(positions), policy, seed, flip)
        self._forget()
        out_BCHW = torch.empty(len(positions), *self.shape[1:], dtype=torch.uint8)
        array_BCHW = out_BCHW.numpy()

        def read(place: int) -> None:
            path = self.folder / self.names[positions[place]]
            array_BCHW[place] = views[place].of(open_rgb(path, _FORMATS), self.side)

        futures = [pool().submit(read, place) for place in range(len(positions))]
        self._ahead = (positions, policy, seed, flip), out_BCHW, futures

    def _result(self, *asked: object) -> torch.Tensor:
        if self._ahead is None or self._ahead[0] != asked:
            self._begin(*asked)
        _, out_BCHW, futures = self._ahead
        try:
            for future in futures:
                future.result()
        finally:
            self._forget()
        return out_BCHW

    def _forget(self) -> None:
        for future in self._ahead[2] if self._ahead else ():
            future.cancel()
        self._ahead = None
