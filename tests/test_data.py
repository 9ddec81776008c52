"""Data: fixed splits, refused tampering, class subsets."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.data import DATASETS, Facts, digits, known_datasets, load_dataset, vision
from lipcert.data.source import Part, Source
from lipcert.data.splits import choose_classes, draw_order, stratified_cut

TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

# SHA-256 of the source indices (little-endian int64) of each part: a drifting split would silently mix test into train.
PINNED_INDICES = {
    "digits": {
        "train": "cc7a43702c01bac64259af7228c9b434bc399fa7a90b4dd0f73ddb3818cde7b8",
        "validation": "db2f08cbe91d70db5dc65da5db7f9eafcaa505fd74883595f8058b60a92f19f8",
        "test": "349eee1a86f1e0891cdebe782f0a652c4dcc93bc3bd95d3738bb50072c8977de",
    },
    "mnist": {"validation": "cad4cf9a8abe4d8ee1b122bb71881e7b75c56dbf61c25e06a43a5ce82fa1ace7"},
    "cifar10": {"validation": "8586e1b2d514497324b0aa3fb36cf135eb4e9c1293fec9b950f10a03c001d28f"},
    "cifar100": {"validation": "7dcbe3833a10b77a05175d39cae07dc8bb32db28e5fa4f5deeecd8ca719d8fb3"},
}

PINNED_ORDER = [0, 2, 1, 3, 5, 7, 4, 6]
PINNED_TWENTY = (0, 1, 2, 9, 12, 24, 28, 44, 45, 46, 50, 55, 60, 64, 69, 74, 77, 79, 86, 90)


def index_hash(split):
    return hashlib.sha256(split.index_N.numpy().astype("<i8").tobytes()).hexdigest()


def part_hash(images, labels):
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def counts(split, classes):
    return torch.bincount(split.labels_N, minlength=classes).tolist()


def toy_parts():
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8), np.arange(n) % 5)
        for split, n in (("train", 100), ("test", 40))
    }


@pytest.fixture
def toy(monkeypatch):
    """A registered five-class set whose parts a test may damage through the returned dictionary."""
    parts = toy_parts()
    facts = Facts(
        lambda root, download: Source({s: Part(*p) for s, p in parts.items()}, tuple("abcde")),
        (3, 4, 4), 5, train=100, validation=20, test=40, crop=1, flip=True,
        pinned={split: part_hash(*part) for split, part in toy_parts().items()},
    )  # fmt: skip
    monkeypatch.setitem(DATASETS, "toy", facts)
    return parts


# Splits


def test_digits_need_no_folder_and_match_their_pinned_split(tmp_path):
    data = load_dataset("digits", validation=True, root=tmp_path / "absent")
    assert (len(data.train), len(data.validation), len(data.test)) == (1077, 360, 360)
    assert {k: index_hash(getattr(data, k)) for k in PINNED_INDICES["digits"]} == PINNED_INDICES["digits"]
    assert (data.scale, data.shape, data.classes) == (16, (1, 8, 8), 10)
    assert data.train.images_NCHW.dtype == torch.uint8 and data.train.labels_N.dtype == torch.int64
    assert data.train.images_NCHW.max() == 16


def test_digits_parts_are_disjoint_exhaustive_and_true_to_the_source():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_dataset("digits", validation=True)
    parts = (data.train, data.validation, data.test)
    assert sorted(torch.cat([part.index_N for part in parts]).tolist()) == list(range(1797))
    for part in parts:
        assert np.array_equal(part.images_NCHW[:, 0].numpy(), bunch.images[part.index_N])
        assert np.array_equal(part.labels_N.numpy(), bunch.target[part.index_N])
        share = np.bincount(bunch.target) * len(part) / 1797
        assert np.all(np.abs(counts(part, 10) - share) < 2)


def test_without_validation_the_held_out_images_return_to_training():
    split, folded = load_dataset("digits", validation=True), load_dataset("digits")
    assert len(folded.validation) == 0 and folded.validation.images_NCHW.shape == (0, 1, 8, 8)
    both = torch.cat([split.train.index_N, split.validation.index_N]).sort().values
    assert torch.equal(folded.train.index_N, both)
    assert torch.equal(folded.test.index_N, split.test.index_N)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 6), min_size=3, max_size=80),
    shares=st.tuples(st.floats(0, 0.6), st.floats(0, 0.4)),
    seed=st.integers(0, 2**32),
)
def test_stratified_cut_is_a_proportional_partition(labels, shares, seed):
    labels = np.array(labels)
    sizes = tuple(int(share * len(labels)) for share in shares)
    parts = stratified_cut(labels, sizes, seed)
    assert tuple(map(len, parts[:-1])) == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    left = np.bincount(labels, minlength=7)
    for part, size in zip(parts, sizes, strict=False):
        assert list(part) == sorted(part)
        taken = np.bincount(labels[part], minlength=7)
        assert np.all(np.abs(taken - left * size / max(left.sum(), 1)) < 1)
        left = left - taken


def test_draw_order_is_pinned():
    assert draw_order(8, 2023).tolist() == PINNED_ORDER


# Class subsets


@pytest.mark.parametrize("classes", [2, 7])
def test_subset_keeps_whole_classes_and_renumbers_them_in_ascending_order(classes):
    whole, part = load_dataset("digits", validation=True), load_dataset("digits", classes=classes, validation=True)
    ids = [int(name) for name in part.class_names]
    assert ids == sorted(set(ids)) and len(ids) == part.classes == classes
    for split in ("train", "validation", "test"):
        old, new = getattr(whole, split), getattr(part, split)
        keep = torch.tensor([label in ids for label in old.labels_N.tolist()])
        assert torch.equal(new.index_N, old.index_N[keep])
        assert torch.equal(new.images_NCHW, old.images_NCHW[keep])
        assert [ids[label] for label in new.labels_N] == old.labels_N[keep].tolist()


def test_subsets_of_one_seed_are_nested_and_seeds_differ():
    small, large = (set(choose_classes("cifar100", 100, k, 7)) for k in (10, 20))
    assert small < large
    assert choose_classes("cifar100", 100, 20, 7) != choose_classes("cifar100", 100, 20, 8)
    assert choose_classes("cifar100", 100, 20, 2023) == PINNED_TWENTY


@pytest.mark.parametrize("classes", [0, 1, 11, -3, True, 2.0])
def test_impossible_class_counts_are_refused(classes):
    with pytest.raises(ValueError, match=r"classes=.* with 'digits': must be an integer from 2 to 10"):
        load_dataset("digits", classes=classes)


# The hash of what was used


def test_sha256_pins_the_choice():
    base = load_dataset("digits")
    # Records quote this value: a change of the recipe orphans them.
    assert base.sha256 == "19cb7e154c739699e8814c7032e549d121fe6b0a5e64a4fea591b76951a935df"
    assert load_dataset("digits").sha256 == load_dataset("digits", classes=10, class_seed=5).sha256 == base.sha256
    others = [
        load_dataset("digits", validation=True),
        load_dataset("digits", classes=5),
        load_dataset("digits", classes=5, class_seed=3),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 4


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("what", ["pixel", "label"])
def test_sha256_sees_one_changed_pixel_or_label_of_every_split(toy, split, what, monkeypatch):
    before = load_dataset("toy", validation=True)
    images, labels = toy["test" if split == "test" else "train"]
    # Two labels trade places within the split, so that the stratified cut stays the same.
    first, second = getattr(before, split).index_N[:2].tolist()
    if what == "pixel":
        images[first, 0, 0, 0] ^= 1
    else:
        labels[[first, second]] = labels[[second, first]]
    pins = {name: part_hash(*part) for name, part in toy.items()}
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], pinned=pins))
    assert load_dataset("toy", validation=True).sha256 != before.sha256


# Refusals


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="name='cifar': must be one of digits, mnist, cifar10, cifar100"):
        load_dataset("cifar")


@pytest.mark.parametrize("what", ["pixel", "label", "fraction"])
def test_tampered_digits_are_refused(what, monkeypatch):
    images, labels = (array.copy() for array in digits._raw_digits())
    if what == "label":
        labels[700] = (labels[700] + 1) % 10
    else:
        images[3, 4, 4] += 1 if what == "pixel" else 0.25
    monkeypatch.setattr(digits, "_raw_digits", lambda: (images, labels))
    with pytest.raises(ValueError, match=r"digits.*scikit-learn"):
        load_dataset("digits")


def test_intact_toy_set_loads(toy, monkeypatch):
    data = load_dataset("toy", validation=True)
    assert counts(data.validation, 5) == [4] * 5 and counts(data.test, 5) == [8] * 5
    assert np.array_equal(data.train.images_NCHW.numpy(), toy["train"][0][data.train.index_N])
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], pinned=None))
    assert data.verified and not load_dataset("toy").verified


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("what", ["pixel", "label", "swapped labels", "missing image"])
def test_tampered_set_is_refused_by_name(toy, split, what):
    images, labels = toy[split]
    expected = part_hash(images, labels)
    if what == "pixel":
        images[11, 2, 3, 3] ^= 1
    elif what == "label":
        labels[11] = (labels[11] + 1) % 5
    elif what == "swapped labels":
        labels[[0, 1]] = labels[[1, 0]]
    else:
        toy[split] = images[:-1], labels[:-1]
    found = part_hash(*toy[split])
    with pytest.raises(ValueError, match=f"toy, split '{split}'.*{found}.*{expected}.*download=True"):
        load_dataset("toy")


def test_swapped_splits_are_refused_and_recognised(toy):
    toy["train"], toy["test"] = toy["test"], toy["train"]
    with pytest.raises(ValueError, match=r"split 'train'.*this is the test split"):
        load_dataset("toy")


# Reading through torchvision


@pytest.mark.parametrize("name", TITLES)
def test_missing_set_names_folder_variable_and_option(name, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setenv("LIPCERT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name)
    for word in (name, str(tmp_path), "LIPCERT_DATA", "download=True"):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def write_files(name, root, content=b"not a data set"):
    for file in vision._FILES[name]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)


@pytest.mark.parametrize("name", TITLES)
@pytest.mark.parametrize("content", [b"", b"not a data set"])
def test_damaged_files_are_refused_by_name(name, content, tmp_path):
    pytest.importorskip("torchvision")
    write_files(name, tmp_path, content)
    with pytest.raises(ValueError, match=f"{name}: the files in .* are damaged .*download=True"):
        load_dataset(name, root=tmp_path)


def test_well_formed_files_of_another_set_are_refused(tmp_path):
    pytest.importorskip("torchvision")
    write_files("mnist", tmp_path)
    for file in vision._FILES["mnist"]:
        shape = (3, 28, 28) if "images" in file else (3,)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (tmp_path / file).write_bytes(header + bytes(np.prod(shape)))
    with pytest.raises(ValueError, match="mnist, split 'train': .*must be " + DATASETS["mnist"].pinned["train"]):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize("download", [False, True])
def test_download_happens_on_request_only_and_its_failure_is_named(download, tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    asked = []

    def refuse(root, train, download):
        asked.append(download)
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    message = "cifar10: the download into .* failed .*no route" if download else "cifar10: no cifar-10-batches-py"
    with pytest.raises(OSError, match=message):
        load_dataset("cifar10", download=download, root=tmp_path)
    assert asked == [download]


# The real sets


def real(name, validation=False):
    """The real set, or a skip that says how to provide it."""
    pytest.importorskip("torchvision")
    try:
        return load_dataset(name, validation=validation)
    except FileNotFoundError:
        pytest.skip(f"set LIPCERT_DATA to a folder with {TITLES[name]}")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "held_out", "test"),
    [("cifar10", [5000] * 10, [500] * 10, [1000] * 10), ("cifar100", [500] * 100, [50] * 100, [100] * 100),
     ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
      [494, 562, 496, 511, 487, 452, 493, 522, 487, 496],
      [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])],
)  # fmt: skip
def test_real_set_has_its_published_counts_and_pinned_split(name, train, held_out, test):
    whole, cut = real(name), real(name, validation=True)
    size = len(train)
    assert whole.shape == whole.train.images_NCHW.shape[1:] == ((1, 28, 28) if name == "mnist" else (3, 32, 32))
    assert (counts(whole.train, size), counts(whole.test, size)) == (train, test)
    assert counts(cut.validation, size) == held_out
    assert index_hash(cut.validation) == PINNED_INDICES[name]["validation"]
    assert torch.equal(torch.cat([cut.train.index_N, cut.validation.index_N]).sort().values, whole.train.index_N)
    assert torch.equal(cut.validation.images_NCHW, whole.train.images_NCHW[cut.validation.index_N])
    assert torch.equal(cut.test.images_NCHW, whole.test.images_NCHW)
    assert len(whole.class_names) == size


@pytest.mark.data
def test_real_set_agrees_with_torchvision_image_by_image():
    from torchvision import datasets

    from lipcert.paths import data_dir

    data = real("cifar10").test
    source = datasets.CIFAR10(str(data_dir()), train=False)
    for i in (0, 1, 4999, 9999):
        image, label = source[i]
        assert np.array_equal(data.images_NCHW[i].permute(1, 2, 0).numpy(), np.asarray(image))
        assert data.labels_N[i] == label


def test_registry_facts_hold_for_the_embedded_set():
    assert known_datasets()[:1] == ("digits",)
    facts, data = DATASETS["digits"], load_dataset("digits", validation=True)
    assert (facts.train, facts.validation, facts.test) == (len(data.train) + 360, len(data.validation), len(data.test))
    assert {name: (f.crop, f.flip) for name, f in DATASETS.items()} == {
        "digits": (0, False), "mnist": (2, False), "cifar10": (4, True), "cifar100": (4, True),
        "tiny_imagenet": (8, True), "imagenet": (0, True),
    }  # fmt: skip
