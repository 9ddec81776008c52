"""Pixels in [0, 1] and augmentation, against exact quotients and a slow reference."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.data import augment, augment_batch, to_unit
from lipcert.data.augment import draw

PINNED = "e9b9abb4adb6baa8355e03dcbff7d1c63b4af83fffa658a67c892cc9f732c242"

# Pixels in [0, 1]


@pytest.mark.parametrize("scale", [16, 255])
def test_to_unit_is_the_correctly_rounded_quotient(scale):
    pixels = torch.arange(scale + 1, dtype=torch.uint8)
    assert to_unit(pixels, scale, torch.float64).tolist() == [k / scale for k in range(scale + 1)]
    single = np.arange(scale + 1, dtype=np.float32) / np.float32(scale)
    assert np.array_equal(to_unit(pixels, scale).numpy(), single)


def test_to_unit_refuses_scaled_images():
    with pytest.raises(TypeError, match="to_unit takes uint8 pixels"):
        to_unit(torch.rand(2, 1, 8, 8), 255)


# Augmentation


def slow_augment(images, top, left, mirror, crop, mode="constant"):
    result = np.zeros_like(images)
    for b, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode)
        window = padded[:, top[b] : top[b] + image.shape[1], left[b] : left[b] + image.shape[2]]
        result[b] = window[:, :, ::-1] if mirror[b] else window
    return result


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)),
    crop=st.integers(0, 3),
    flip=st.booleans(),
    edge=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_augment_equals_the_slow_reference(shape, crop, flip, edge, dtype, seed):
    images = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    result = augment(images, torch.Generator().manual_seed(seed), crop, flip, edge)
    drawn = draw(shape[0], torch.Generator().manual_seed(seed), crop, flip)
    expected = slow_augment(images.numpy(), *(d.numpy() for d in drawn), crop, "edge" if edge else "constant")
    assert result.dtype == dtype and np.array_equal(result.numpy(), expected)


def test_augment_without_crop_and_flip_is_the_identity_and_draws_nothing():
    images = torch.rand(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert augment(images, generator, crop=0, flip=False) is images
    assert torch.equal(generator.get_state(), before)


def test_every_shift_and_mirror_occurs_about_equally_often():
    images = torch.arange(1, 65, dtype=torch.float32).reshape(1, 1, 8, 8).expand(20_000, 1, 8, 8)
    result = augment(images, torch.Generator().manual_seed(0), crop=1, flip=True)
    kinds, occurrences = torch.unique(result.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 18
    # 1111 expected for each of 3 x 3 shifts x 2 mirrors; five standard deviations are 162
    assert occurrences.min() > 949 and occurrences.max() < 1273


def test_augment_is_reproducible_and_leaves_its_input_alone():
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    copy = images.clone()
    generator = torch.Generator().manual_seed(5)
    first, second = (augment(images, generator, crop=4, flip=True) for _ in range(2))
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(5), crop=4, flip=True))
    assert not torch.equal(first, second)
    assert torch.equal(images, copy)


def test_crop_and_flip_give_the_bytes_they_always_gave():
    images = (torch.arange(8 * 3 * 16 * 16) % 251).to(torch.uint8).view(8, 3, 16, 16)
    result = augment(images, torch.Generator().manual_seed(2023), crop=2, flip=True)
    # A run resumed by another release goes on with other images if this changes.
    assert hashlib.sha256(result.numpy().tobytes()).hexdigest() == PINNED
    unit = augment_batch("crop", images, torch.Generator().manual_seed(2023), crop=2, flip=True, scale=255)
    assert unit.dtype == torch.float32 and torch.equal(unit, to_unit(result, 255))


@pytest.mark.parametrize("crop", [-1, 8])
def test_impossible_crops_are_refused(crop):
    with pytest.raises(ValueError, match=f"crop={crop} for 8x10 images: must be from 0 to 7"):
        augment(torch.zeros(2, 1, 8, 10), torch.Generator(), crop=crop, flip=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_is_read_back_and_values_match_the_cpu():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    twin = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(images, generator, crop=4, flip=True)
        unit = to_unit(result, 255, torch.float64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    drawn = [d.cpu().numpy() for d in draw(64, twin, 4, True)]
    assert np.array_equal(result.cpu().numpy(), slow_augment(images.cpu().numpy(), *drawn, 4))
    assert torch.equal(unit.cpu(), to_unit(result.cpu(), 255, torch.float64))
