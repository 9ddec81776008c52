"""Generated images from an npz: mapped or loaded, checked, cut down to the classes trained on."""

import dataclasses
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lipcert.data import Generated, TrainingImages, augment_batch, load_dataset, load_generated


def arrays(count=60, classes=10, shape=(32, 32, 3), seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (count, *shape), dtype=np.uint8), "label": rng.integers(0, classes, count)}


def data(class_ids=tuple(range(10)), shape=(3, 32, 32), name="cifar10", scale=255):
    return SimpleNamespace(name=name, shape=shape, class_ids=class_ids, classes=len(class_ids), scale=scale)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_everything_in_the_file_arrives(save, tmp_path):
    path, stored = tmp_path / "g.npz", arrays()
    save(path, other=np.ones(3), **stored)
    found = load_generated(path, data())
    assert isinstance(found, Generated) and len(found) == 60 and found.images_NCHW.shape == (60, 3, 32, 32)
    assert np.array_equal(found.images_NCHW[:].numpy(), stored["image"].transpose(0, 3, 1, 2))
    assert np.array_equal(found.labels_N.numpy(), stored["label"]) and found.labels_N.dtype == torch.int64
    assert found.index_N.tolist() == list(range(60))
    index = torch.tensor([5, 59, 5])
    assert np.array_equal(found.images_NCHW[index].numpy(), stored["image"][index].transpose(0, 3, 1, 2))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(found.to("cpu"), Generated) and found.crop == 2


def test_uncompressed_images_are_not_loaded(tmp_path):
    path = tmp_path / "g.npz"
    np.savez(path, **arrays())
    assert isinstance(load_generated(path, data()).images_NCHW._images_NHWC, np.memmap)
    # Fortran order cannot be mapped this way, but must still be read rightly.
    stored = arrays()
    np.savez(path, image=np.asfortranarray(stored["image"]), label=stored["label"])
    found = load_generated(path, data()).images_NCHW[:]
    assert np.array_equal(found.numpy(), stored["image"].transpose(0, 3, 1, 2))


def test_subset_keeps_its_classes_renumbered_as_the_data_set_does(tmp_path):
    path, stored = tmp_path / "g.npz", arrays(classes=10, shape=(8, 8, 1))
    np.savez(path, **stored)
    digits = dataclasses.replace(load_dataset("digits", classes=4), scale=255)
    found = load_generated(path, digits)
    kept = np.isin(stored["label"], digits.class_ids)
    assert np.array_equal(found.images_NCHW[:].numpy(), stored["image"][kept].transpose(0, 3, 1, 2))
    assert [digits.class_ids[k] for k in found.labels_N] == stored["label"][kept].tolist()
    assert np.array_equal(found.index_N.numpy(), np.flatnonzero(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "not readable as an npz of the arrays image and label .*np.savez"),
        ({"label": None}, "not readable as an npz of the arrays image and label"),
        ({"image": np.zeros((4, 32, 32, 3))}, r"image is float64 of shape \(4, 32, 32, 3\): must be uint8"),
        ({"image": np.zeros((60, 3, 32, 32), np.uint8)}, r"must be uint8 of shape \(N, 32, 32, 3\) to go with cifar10"),
        ({"image": np.zeros(60, np.uint8)}, "must be uint8 of shape"),
        ({"label": np.zeros(59, int)}, r"label is int64 of shape \(59,\): must be whole numbers, one for each of 60"),
        ({"label": np.zeros(60)}, "label is float64 of shape"),
        ({"label": np.zeros((60, 1), int)}, "must be whole numbers"),
        ({"label": np.full(60, 10)}, "label from 10 to 10: must be from 0 to 9, the classes of cifar10"),
        ({"label": np.full(60, -1)}, "label from -1 to -1: must be from 0"),
        ({"label": np.full(60, 7)}, "60 images, none of the 2 classes trained on"),
        ({"image": np.zeros((0, 32, 32, 3), np.uint8), "label": np.zeros(0, int)}, "0 images, none of the 2 classes"),
        ({"label": np.array([None] * 60)}, "not readable as an npz"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_that_do_not_fit_are_refused(save, changes, message, tmp_path):
    path = tmp_path / "g.npz"
    save(path, **{key: value for key, value in (arrays() | changes).items() if value is not None})
    with pytest.raises(ValueError, match=message):
        load_generated(path, data((1, 3)))


def test_pixels_of_another_scale_are_refused(tmp_path):
    path = tmp_path / "g.npz"
    np.savez(path, **arrays(shape=(8, 8, 1)))
    with pytest.raises(ValueError, match=r"g.npz. with digits, scale=16: must be 255.*leave generated out"):
        load_generated(path, load_dataset("digits"))


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"generated='.*absent.npz': no such file; give the path of an npz"):
        load_generated(tmp_path / "absent.npz", data())
    (tmp_path / "g.npz").write_text("hello")
    with pytest.raises(ValueError, match="not readable as an npz"):
        load_generated(tmp_path / "g.npz", data())


def test_batches_of_generated_images_are_cropped_and_mirrored(tmp_path):
    path = tmp_path / "g.npz"
    np.savez(path, **arrays())
    found = load_generated(path, data())
    source = TrainingImages(found.images_NCHW, "crop", found.crop, True, 255, "cpu")
    index = torch.tensor([0, 33, 7])
    expected = augment_batch("crop", found.images_NCHW[index], torch.Generator().manual_seed(4), 2, True, 255)
    assert torch.equal(source.batch(index, 4), expected)
    assert source.index_device.type == "cpu"
