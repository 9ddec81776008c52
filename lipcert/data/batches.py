"""Batches to train on: which images a step sees, and what the recipes make of them. Both are functions of a seed.

Shape suffixes: B batch, C channels, H height, W width.
"""

import numpy as np
import torch

from lipcert.data.augment import augment, check_generator
from lipcert.data.dataset import to_unit
from lipcert.data.generated import StoredImages
from lipcert.data.lazy import RECIPES, LazyImages
from lipcert.data.randaugment import check, rand_augment
from lipcert.data.warp import gloro_cifar, gloro_tiny

BATCH_POLICIES = ("crop", "crop_edge", "gloro_cifar", "gloro_tiny", "randaugment")
POLICIES = (*BATCH_POLICIES, *RECIPES)


def augment_batch(
    policy: str, images_BCHW: torch.Tensor, generator: torch.Generator, crop: int, flip: bool, scale: int
) -> torch.Tensor:
    """uint8 images -> augmented float32 images in [0, 1], on their device; all randomness comes from `generator`.

    policy: "crop": `augment`, shift and mirror; exactly `to_unit(augment(...))`. "crop_edge": the same, padded with the
        outermost pixels instead of zeros, as the l_inf recipes do.
        "randaugment": the same, then RandAugment with probability 1/2 (`randaugment.rand_augment`; scale 255).
        "gloro_cifar", "gloro_tiny": the GloRo recipes (see `warp`); they have no crop, and mirror if `flip`.
    crop, flip: padding of the random crop in pixels, and whether to mirror. scale: the pixel value of 1.0.

    Raises:
        ValueError: an unknown policy, an impossible crop, a generator on another device. ImportError: no torchvision.
    """
    if policy not in BATCH_POLICIES:
        raise ValueError(f"augmentation={policy!r} for images in memory: must be one of {', '.join(BATCH_POLICIES)}")
    check_generator(images_BCHW, generator)
    if policy in ("gloro_cifar", "gloro_tiny"):
        warped = gloro_cifar if policy == "gloro_cifar" else gloro_tiny
        return warped(to_unit(images_BCHW, scale), generator, flip)
    images_BCHW = augment(images_BCHW, generator, crop, flip, edge=policy == "crop_edge")
    if policy == "randaugment":
        if scale != 255:
            raise ValueError(f"augmentation='randaugment' with scale={scale}: must be 255, pixels of 8 bits")
        images_BCHW = rand_augment(images_BCHW, generator)
    return to_unit(images_BCHW, scale)


class TrainingImages:
    """The images of a split as training sees them: `batch(index_B, seed)` is a function of its arguments.

    Images in memory move to `device` once and are augmented there; those in files are decoded batch by batch on the
    CPU. `index_device` is where indices are wanted, so that nobody waits for the device.
    """

    def __init__(
        self,
        images: torch.Tensor | LazyImages | StoredImages,
        policy: str,
        crop: int,
        flip: bool,
        scale: int,
        device: torch.device | str,
    ):
        """policy, crop, flip, scale: see `augment_batch`; images in files have the policies of `lazy.RECIPES`.

        Raises:
            ValueError: a policy that these images cannot have. ImportError: RandAugment without torchvision.
        """
        self.in_files = isinstance(images, LazyImages)
        allowed = tuple(RECIPES) if self.in_files else BATCH_POLICIES
        if policy not in allowed:
            where = "files" if self.in_files else "memory"
            raise ValueError(f"augmentation={policy!r} for images in {where}: must be one of {', '.join(allowed)}")
        if policy.endswith("randaugment"):
            check()
        self.device = torch.device(device)
        self.images, self.policy, self.crop, self.flip, self.scale = images.to(device), policy, crop, flip, scale
        self.index_device = self.device if isinstance(images, torch.Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index_B: torch.Tensor, seed: int) -> torch.Tensor:
        """float32 (B, C, H, W) in [0, 1], on the device."""
        index_B = index_B.to(self.index_device)
        if self.in_files:
            pixels_BCHW = self.images.augmented(index_B, self.policy, seed, self.flip)
            return to_unit(pixels_BCHW.to(self.device), self.scale)
        generator = torch.Generator(self.device).manual_seed(seed)
        pixels_BCHW = self.images[index_B].to(self.device)
        return augment_batch(self.policy, pixels_BCHW, generator, self.crop, self.flip, self.scale)

    def prefetch(self, index_B: torch.Tensor, seed: int) -> None:
        """Begin to decode the next batch while the device computes; nothing to do for images in memory."""
        if self.in_files:
            self.images.prefetch_augmented(index_B.to(self.index_device), self.policy, seed, self.flip)


class Shuffled:
    """`count` items in seeded order, without end: `shuffled(step)` are the `batch` places of that step.

    Every pass over the items is another permutation and holds each once; a batch may reach over the end of a pass.
    What a step sees does not depend on the steps asked for before.
    """

    def __init__(self, count: int, batch: int, seed: int):
        self.count, self.batch, self.seed = count, batch, seed
        self._passes: dict[int, torch.Tensor] = {}

    def __call__(self, step: int) -> torch.Tensor:
        """int64 (batch,) on the CPU."""
        first, last = step * self.batch // self.count, ((step + 1) * self.batch - 1) // self.count
        self._passes = {number: self._pass(number) for number in range(first, last + 1)}
        start = step * self.batch - first * self.count
        return torch.cat(list(self._passes.values()))[start : start + self.batch]

    def _pass(self, number: int) -> torch.Tensor:
        if number in self._passes:
            return self._passes[number]
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0] >> 1)
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
