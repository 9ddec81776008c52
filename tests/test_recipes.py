"""The augmentations of the published recipes, against one image at a time: colorsys, scipy, torchvision."""

import colorsys
import math
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from lipcert.data import POLICIES, Shuffled, TrainingImages, augment, augment_batch, to_unit
from lipcert.data import randaugment as ra
from lipcert.data.warp import gloro_cifar, gloro_tiny, scale_contrast, scale_saturation, warp

BATCH, CHANNELS, HEIGHT, WIDTH = 12, 3, 16, 20


def images(seed=0, batch=BATCH, shape=(CHANNELS, HEIGHT, WIDTH)):
    """Smooth on purpose: bilinear interpolation then hardly depends on the last bits of coordinates."""
    rng = np.random.default_rng(seed)
    noise = rng.random((batch, *shape)) * 255
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5), mode="wrap").astype(np.uint8))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def uniform(seed, *ranges):
    """The first draws of a seed, and the generator that goes on from there."""
    drawn = generator(seed)
    parts = torch.rand(len(ranges), BATCH, generator=drawn)
    return [(low + (high - low) * part).double().numpy() for (low, high), part in zip(ranges, parts)], drawn  # noqa: B905


# GloRo, CIFAR-10


def test_saturation_and_contrast_equal_the_slow_reference():
    pixels = torch.rand(4, 3, 5, 6, generator=generator(1), dtype=torch.float64)
    pixels[0, :, 0, 0], pixels[1, :, 0, 0], pixels[1, :, 1, 1] = 0, 0.4, torch.tensor([1.0, 0, 0])
    factors = torch.tensor([0.5, 0.9, 1.2, 3.0], dtype=torch.float64)
    expected = pixels.clone()
    for b, factor in enumerate(factors.tolist()):
        for row in range(5):
            for column in range(6):
                hue, saturation, value = colorsys.rgb_to_hsv(*pixels[b, :, row, column].tolist())
                rgb = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
                expected[b, :, row, column] = torch.tensor(rgb)
    assert torch.allclose(scale_saturation(pixels, factors), expected, atol=1e-12)
    for b, factor in enumerate(factors.tolist()):
        for channel in range(3):
            plane = pixels[b, channel].numpy()
            assert np.allclose(
                scale_contrast(pixels, factors)[b, channel], (plane - plane.mean()) * factor + plane.mean()
            )
    grey = pixels[:, :1]
    assert torch.allclose(scale_saturation(grey, factors), grey)


def sampled(plane, matrix, shift, mode):
    """scipy's bilinear sampling of one channel; matrix and shift are about the centre."""
    centre = (np.array(plane.shape) - 1) / 2
    return ndimage.affine_transform(plane, matrix, centre + shift - matrix @ centre, order=1, mode=mode)


def turned(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize("flip", [True, False])
def test_gloro_cifar_equals_the_slow_reference(flip):
    batch = to_unit(images(), 255)
    result = gloro_cifar(batch, generator(3), flip)
    (saturation, contrast, angle, zoom, down, right), drawn = uniform(
        3, (0.5, 1.2), (0.8, 1.2), (-0.157, 0.157), (0.8, 1), (-1, 1), (-1, 1)
    )
    mirrored = torch.randint(0, 2, (BATCH,), generator=drawn).tolist() if flip else [0] * BATCH
    assert not flip or 0 < sum(mirrored) < BATCH
    noise = torch.randn(batch.shape, generator=drawn).numpy()
    for b in range(BATCH):
        one = torch.tensor(batch[b : b + 1].double().numpy())
        one = scale_contrast(
            scale_saturation(one, torch.tensor(saturation[b : b + 1])), torch.tensor(contrast[b : b + 1])
        )
        image = one[0].numpy()[..., ::-1] if mirrored[b] else one[0].numpy()
        window = np.array([down[b] * HEIGHT, right[b] * WIDTH]) * (1 - zoom[b]) / 2
        matrix, shift = turned(angle[b]) * zoom[b], turned(angle[b]) @ window
        for channel in range(CHANNELS):
            expected = sampled(image[channel], matrix, shift, "grid-constant") + 0.01 * noise[b, channel]
            assert np.abs(result[b, channel].numpy() - expected.clip(0, 1)).max() < 1e-4


def test_gloro_cifar_window_stays_inside_and_noise_has_its_size():
    batch = torch.full((400, 1, 32, 32), 0.5)
    result = gloro_cifar(batch, generator(0), True)
    centre = result[:, :, 8:24, 8:24]
    assert abs(centre.std().item() - 0.01) < 2e-4 and abs(centre.mean().item() - 0.5) < 2e-4
    # Black corners come from rotation only, at most 9 degrees.
    assert (result[:, :, 0, 12:20] > 0.1).float().mean() > 0.9


# GloRo, Tiny-ImageNet


@pytest.mark.parametrize("flip", [True, False])
def test_gloro_tiny_equals_the_slow_reference(flip):
    batch = to_unit(images(5), 255)
    result = gloro_tiny(batch, generator(4), flip)
    twenty, tenth = math.radians(20), math.radians(0.1)
    (angle, shear, down, right, rows, columns), drawn = uniform(
        4, (-twenty, twenty), (-tenth, tenth), (-0.2 * HEIGHT, 0.2 * HEIGHT), (-0.2 * WIDTH, 0.2 * WIDTH),
        (0.9, 1.1), (0.9, 1.1),
    )  # fmt: skip
    mirrored = torch.randint(0, 2, (BATCH,), generator=drawn).tolist() if flip else [0] * BATCH
    for b in range(BATCH):
        # As Keras composes them: 3x3 matrices, rotation x shift x shear x zoom; the mirror is applied to the result.
        whole = np.eye(3)
        whole[:2, :2] = turned(angle[b])
        for factor in (
            [[1, 0, down[b]], [0, 1, right[b]], [0, 0, 1]],
            [[1, -math.sin(shear[b]), 0], [0, math.cos(shear[b]), 0], [0, 0, 1]],
            [[rows[b], 0, 0], [0, columns[b], 0], [0, 0, 1]],
        ):
            whole = whole @ np.array(factor)
        for channel in range(CHANNELS):
            plane = batch[b, channel].double().numpy()
            expected = sampled(plane, whole[:2, :2], whole[:2, 2], "nearest")
            expected = expected[:, ::-1] if mirrored[b] else expected
            assert np.abs(result[b, channel].numpy() - expected).max() < 1e-4


def test_warp_without_movement_is_the_identity_and_moves_whole_pixels():
    batch = torch.rand(1, 2, 7, 9, generator=generator(0))
    one = torch.eye(2)[None]
    assert torch.allclose(warp(batch, one, torch.zeros(1, 2), "zeros"), batch, atol=1e-6)
    moved = warp(batch, one, torch.tensor([[2.0, -1.0]]), "zeros")
    assert torch.allclose(moved[..., :5, 1:], batch[..., 2:, :-1], atol=1e-5) and moved[..., 5:, :].abs().max() < 1e-5
    edge = warp(batch, one, torch.tensor([[100.0, 0.0]]), "border")
    assert torch.allclose(edge, batch[..., -1:, :].expand_as(batch), atol=1e-5)


# RandAugment


def torchvision_transforms():
    return pytest.importorskip("torchvision.transforms")


@pytest.mark.parametrize("kind_of_image", ["tensor", "pillow"])
def test_operations_are_those_of_torchvision(kind_of_image):
    transforms = torchvision_transforms()
    image = images(2, 1, (3, 32, 40))[0]
    if kind_of_image == "pillow":
        image = transforms.functional.to_pil_image(image)
    theirs, seen = transforms.RandAugment(num_ops=1), set()
    for seed in range(150):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = theirs(image)
            torch.manual_seed(seed)
            kind, negative = int(torch.randint(14, (1,))), int(torch.randint(2, (1,)))
        seen.add((kind, negative))
        assert np.array_equal(np.asarray(ra.apply(image, kind, negative)), np.asarray(expected)), (kind, negative)
    assert len(seen) == 28


def test_rand_augment_of_a_batch_equals_one_image_at_a_time():
    torchvision_transforms()
    batch = images(7, 64, (3, 32, 32))
    result = ra.rand_augment(batch, generator(11))
    drawn = generator(11)
    chosen = torch.rand(64, generator=drawn) < 0.5
    kinds, signs = ra.draw(64, drawn)
    assert 20 < chosen.sum() < 44
    for b in range(64):
        expected = batch[b]
        for turn in range(2):
            expected = ra.apply(expected, int(kinds[b, turn]), int(signs[b, turn])) if chosen[b] else expected
        # Means over a batch may be summed in another order.
        difference = (result[b].int() - expected.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def test_rand_augment_leaves_its_input_and_the_global_generator_alone():
    torchvision_transforms()
    batch = images(1, 40, (3, 32, 32))
    copy, state = batch.clone(), torch.get_rng_state()
    whole = ra.rand_augment(batch, generator(0), probability=1.0)
    assert torch.equal(batch, copy) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ra.rand_augment(batch, generator(0), probability=0.0), batch)
    assert whole.dtype == torch.uint8 and (whole != batch).flatten(1).any(1).float().mean() > 0.8


def test_without_torchvision_rand_augment_is_refused_at_once(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ImportError, match=r"'randaugment' uses torchvision's operations: pip install 'lipcert\[vision\]'"
    ):
        TrainingImages(images(), "randaugment", 4, True, 255, "cpu")


# One entry point


@pytest.mark.parametrize("policy", ["crop", "gloro_cifar", "gloro_tiny", "randaugment"])
def test_every_policy_is_a_function_of_the_seed_alone(policy):
    if policy == "randaugment":
        torchvision_transforms()
    batch, copy, state = images(3), images(3), torch.get_rng_state()
    first, second, other = (augment_batch(policy, batch, generator(s), 2, True, 255) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.dtype == torch.float32 and first.shape == batch.shape
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(batch, copy) and torch.equal(torch.get_rng_state(), state)


def test_training_images_take_the_augmented_batch_of_a_seed():
    stored = images(0, 50)
    index = torch.tensor([3, 49, 3, 0])
    for policy in ("crop", "gloro_tiny"):
        source = TrainingImages(stored, policy, 2, True, 255, "cpu")
        assert torch.equal(source.batch(index, 8), augment_batch(policy, stored[index], generator(8), 2, True, 255))
        assert source.prefetch(index, 8) is None and len(source) == 50
    plain = TrainingImages(stored, "crop", 0, False, 255, "cpu")
    assert torch.equal(plain.batch(index, 8), to_unit(stored[index], 255))
    shifted = TrainingImages(stored, "crop", 1, False, 255, "cpu").batch(index, 8)
    assert torch.equal(shifted, to_unit(augment(stored[index], generator(8), 1, False), 255))


def test_policies_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'imagenet' for images in memory: must be one of crop, crop_edge, gloro"):
        TrainingImages(images(), "imagenet", 0, True, 255, "cpu")
    with pytest.raises(ValueError, match="augmentation='blur' for images in memory"):
        augment_batch("blur", images(), generator(0), 0, True, 255)
    with pytest.raises(ValueError, match="'randaugment' with scale=16: must be 255"):
        augment_batch("randaugment", images(), generator(0), 0, True, 16)
    assert POLICIES == (
        "crop", "crop_edge", "gloro_cifar", "gloro_tiny", "randaugment", "imagenet", "imagenet_randaugment",
    )  # fmt: skip


# Order


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (7, 7), (4, 11), (5, 1)])
def test_shuffled_passes_hold_everything_once_whatever_was_asked_before(count, batch):
    shuffled = Shuffled(count, batch, seed=3)
    steps = [shuffled(step) for step in range(4 * count)]
    stream = torch.cat(steps)
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count].tolist()) == list(range(count))
    assert count == 1 or not torch.equal(stream[:count], stream[count : 2 * count])
    assert torch.equal(Shuffled(count, batch, seed=3)(9), steps[9])
    assert all(len(step) == batch and step.dtype == torch.int64 for step in steps)
    assert not torch.equal(torch.cat([Shuffled(count, batch, seed=4)(s) for s in range(9)]), torch.cat(steps[:9]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["crop", "gloro_cifar", "gloro_tiny", "randaugment"])
def test_on_cuda_a_seed_repeats(policy):
    batch = images(0, 64, (3, 32, 32)).cuda()
    first, second = (
        augment_batch(policy, batch, torch.Generator("cuda").manual_seed(5), 4, True, 255) for _ in range(2)
    )
    assert first.is_cuda and torch.equal(first, second) and first.min() >= 0 and first.max() <= 1
