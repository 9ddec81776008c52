"""ImageNet from generated folders in its layout: the real set is not needed and not tested.

Truth: Pillow and torchvision.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from pictures import WNIDS, imagenet_folder, picture, save  # noqa: E402

from lipcert.data import DATASETS, TrainingImages, imagenet, load_dataset  # noqa: E402
from lipcert.data.dataset import batches  # noqa: E402
from lipcert.data.lazy import LazyImages, View  # noqa: E402


@pytest.fixture
def large(tmp_path, monkeypatch):
    reader = imagenet.Reader(classes=3, train=(3, 5), total=12, test=2)
    facts = replace(DATASETS["imagenet"], list_files=reader, classes=3, train=12, validation=3, test=6)
    monkeypatch.setitem(DATASETS, "imagenet", facts)
    monkeypatch.setenv("LIPCERT_DATA", str(tmp_path))
    return imagenet_folder(tmp_path)


def test_registered_counts_are_those_of_the_published_sets():
    tiny, large = DATASETS["tiny_imagenet"], DATASETS["imagenet"]
    assert (tiny.classes, tiny.train, tiny.test, tiny.shape) == (200, 100_000, 10_000, (3, 64, 64))
    assert (large.classes, large.train, large.test, large.shape) == (1000, 1_281_167, 50_000, (3, 224, 224))
    assert tiny.pinned is None and large.pinned is None
    assert (tiny.read.classes * tiny.read.train, tiny.read.classes * tiny.read.test) == (tiny.train, tiny.test)
    listed = large.list_files
    assert (listed.total, listed.classes * listed.test, listed.side) == (large.train, large.test, large.shape[1])


def test_imagenet_pixels_are_torchvisions(large):
    transforms = pytest.importorskip("torchvision.transforms")
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    data = load_dataset("imagenet")
    for split, part in (("train", data.train), ("val", data.test)):
        names = [p for wnid in sorted(WNIDS) for p in sorted((large / split / wnid).iterdir())]
        expected = [np.asarray(view(Image.open(p).convert("RGB"))).transpose(2, 0, 1) for p in names]
        assert np.array_equal(part.images_NCHW[:].numpy(), np.stack(expected))
        assert [sorted(WNIDS)[k] for k in part.labels_N] == [p.parent.name for p in names]
    assert data.train.images_NCHW.shape == (12, 3, 224, 224) and data.class_names == tuple(sorted(WNIDS))


def test_indices_and_pieces_agree(large):
    images = load_dataset("imagenet").train.images_NCHW
    whole = images[:]
    index = torch.tensor([7, 0, 7, 11])
    assert torch.equal(images[index], whole[index])
    assert torch.equal(torch.cat(list(batches(images, 5))), whole)
    images.prefetch(index)
    assert torch.equal(images[:2], whole[:2])
    images.prefetch(slice(3, 5))
    assert torch.equal(images[3:5], whole[3:5])
    assert images[3:3].shape == (0, 3, 224, 224)


def test_lazy_images_refuse_what_only_a_batch_can_do(large):
    images = load_dataset("imagenet").train.images_NCHW
    assert images.to("cpu") is images
    for index, error, message in (
        (3, TypeError, "indexed by a slice or a 1-d int64 tensor, not int"),
        (torch.ones(12, dtype=torch.bool), TypeError, "not torch.bool tensor"),
        (torch.tensor([12]), IndexError, "from 12 to 12: must be from 0 to 11"),
        (torch.tensor([-1]), IndexError, "must be from 0 to 11"),
    ):
        with pytest.raises(error, match=message):
            images[index]
    with pytest.raises(TypeError, match="take a batch first"):
        images.to(torch.float64)
    with pytest.raises(ValueError, match="side=9 with shorter=8"):
        LazyImages(large, [], [], 9, 8)


def test_subset_reads_its_folders_only_and_holds_out_the_same_images(large, monkeypatch):
    whole = load_dataset("imagenet", validation=True)
    assert (len(whole.train), len(whole.validation)) == (9, 3)
    assert torch.bincount(whole.validation.labels_N).tolist() == [1, 1, 1]
    opened = []
    original = imagenet._sizes
    monkeypatch.setattr(imagenet, "_sizes", lambda folder: opened.append(folder.name) or original(folder))
    part = load_dataset("imagenet", classes=2, validation=True)
    assert sorted(set(opened)) == list(part.class_names) and len(opened) == 4
    for split in ("train", "validation", "test"):
        old, new = getattr(whole, split), getattr(part, split)
        kept = torch.isin(old.labels_N, torch.tensor(part.class_ids))
        assert torch.equal(new.index_N, old.index_N[kept]) and bool((new.index_N.diff() > 0).all())
        assert torch.equal(new.images_NCHW[:], old.images_NCHW[torch.nonzero(kept)[:, 0]])
        assert [part.class_ids[k] for k in new.labels_N] == old.labels_N[kept].tolist()
    assert part.sha256 != whole.sha256


def test_fingerprint_sees_names_and_sizes(large):
    before = load_dataset("imagenet").sha256
    assert load_dataset("imagenet").sha256 == before
    one = large / "val" / WNIDS[0] / "val_2_0.JPEG"
    one.write_bytes(one.read_bytes() + b"\0")
    longer = load_dataset("imagenet").sha256
    one.rename(one.with_name("z.JPEG"))
    assert len({before, longer, load_dataset("imagenet").sha256}) == 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("absent", r"imagenet: no imagenet/train in .*LIPCERT_DATA.*torchvision.datasets.ImageNet"),
        ("raw val", r"imagenet: val/ holds 1 files and no class folders: images must lie in val/<wnid>/.*torchvision"),
        ("classes", r"imagenet: val/ holds 2 class folders: must be 3"),
        ("other class", r"imagenet: class 'n00000001' is in only one of train/ and val/"),
        ("few", r"imagenet: train/n00000003 holds 2 files \*.JPEG: must be from 3 to 5"),
        ("total", r"imagenet: train/ holds 11 images: must be 12"),
        ("test", r"imagenet: val/n00000001 holds 3 files \*.JPEG: must be 2"),
    ],
)
def test_damaged_imagenet_is_refused_by_name(large, what, message):
    wnids = sorted(WNIDS)
    if what == "absent":
        large.rename(large.with_name("elsewhere"))
    elif what == "raw val":
        (large / "val").rename(large / "old")
        save(large / "val" / "ILSVRC2012_val_00000001.JPEG", picture(0, 9, 9))
    elif what == "classes":
        (large / "val" / wnids[0]).rename(large / "aside")
    elif what == "other class":
        (large / "val" / wnids[0]).rename(large / "val" / "n8")
    elif what in ("few", "total"):
        (large / "train" / wnids[2 if what == "few" else 0] / f"train_{2 if what == 'few' else 0}_0.JPEG").unlink()
    else:
        save(large / "val" / wnids[0] / "z.JPEG", picture(0, 9, 9))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_dataset("imagenet")


def test_corrupt_image_is_named_when_it_is_read_and_others_still_are(large):
    images = load_dataset("imagenet").test.images_NCHW
    path = large / images.names[2]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{path.name}: must be a whole image in the format JPEG or PNG"):
        images[:]
    assert len(images[:2]) == 2


# Training windows


def test_windows_are_cut_from_the_resized_image(large):
    images = load_dataset("imagenet").train.images_NCHW
    index = torch.tensor([0, 1, 3, 5, 8])
    drawn = images.augmented(index, "imagenet", seed=3)
    mirrored = 0
    for position, window in zip(index.tolist(), drawn.numpy(), strict=True):
        image = Image.open(large / images.names[position]).convert("RGB")
        scale = 256 / min(image.size)
        size = tuple(int(np.floor(side * scale + 1e-9)) for side in image.size)
        whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        views = np.lib.stride_tricks.sliding_window_view(whole, (3, 224, 224))[0]
        both = (window, window[:, :, ::-1])
        found = [np.any(np.all(views[..., 7, ::9] == w[:, 7, ::9], axis=(-1, -2))) for w in both]
        assert any(found)
        mirrored += found[1] and not found[0]
    assert 0 < mirrored < 5


@pytest.mark.parametrize("policy", ["imagenet", "imagenet_randaugment"])
def test_windows_are_a_function_of_the_seed_alone(large, policy):
    pytest.importorskip("torchvision")
    images = load_dataset("imagenet").train.images_NCHW
    index = torch.tensor([4, 2, 9])
    state = torch.get_rng_state()
    first = images.augmented(index, policy, seed=5)
    images.prefetch_augmented(torch.tensor([1, 2]), policy, seed=6)
    ahead = images.augmented(torch.tensor([1, 2]), policy, seed=6)
    fresh = load_dataset("imagenet").train.images_NCHW
    assert torch.equal(fresh.augmented(torch.tensor([1, 2]), policy, seed=6), ahead)
    assert torch.equal(fresh.augmented(index, policy, seed=5), first)
    assert not torch.equal(fresh.augmented(index, policy, seed=7), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_have_the_stated_ranges():
    images = LazyImages(None, [], [])
    views = images._views(6000, "imagenet_randaugment", 0, True)
    sides = np.array([view.shorter for view in views])
    assert sides.min() == 224 and sides.max() == 288 and np.bincount(sides - 224).min() > 45  # 92 expected
    places = np.array([view.place for view in views])
    assert np.abs(np.histogram2d(*places.T, bins=4, range=[[0, 1]] * 2)[0] - 375).max() < 95
    assert abs(np.mean([view.mirrored for view in views]) - 0.5) < 0.033
    assert np.bincount([kind for view in views for kind, _ in view.operations], minlength=14).min() > 740
    plain = images._views(100, "imagenet", 0, False)
    assert {(view.shorter, view.operations, view.mirrored) for view in plain} == {(256, (), False)}


def test_every_place_of_the_window_can_be_drawn():
    ramp = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6)).convert("RGB")
    corners = {
        (down, right): View(6, (down, right)).of(ramp, 4)[0, 0, 0] for down in (0, 0.999) for right in (0, 0.999)
    }
    assert list(corners.values()) == [0, 2, 12, 14]
    assert View(6).of(ramp, 4)[0, 0, 0] == 7
    assert View(6, (0, 0), mirrored=True).of(ramp, 4)[0, 0].tolist() == [3, 2, 1, 0]


def test_training_images_of_files(large):
    data = load_dataset("imagenet")
    images = TrainingImages(data.train.images_NCHW, "imagenet", 0, True, data.scale, "cpu")
    index = torch.tensor([3, 1])
    images.prefetch(index, 9)
    batch = images.batch(index, 9)
    assert batch.dtype == torch.float32 and batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch, data.train.images_NCHW.augmented(index, "imagenet", 9).float() / 255)
    with pytest.raises(ValueError, match="'crop' for images in files: must be one of imagenet, imagenet_randaugment"):
        TrainingImages(data.train.images_NCHW, "crop", 0, True, 255, "cpu")
