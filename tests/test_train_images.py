"""Fewer training images: which are kept of every class, what stays as it is, what is refused, what a run says."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import run, tiny

from lipcert.config import TrainConfig, load_config
from lipcert.data import DATASETS, Facts, load_dataset
from lipcert.data.source import Part, Source
from lipcert.data.splits import choose_classes, choose_images, draw_order, images_of_each
from lipcert.evaluate import certify_again
from lipcert.paths import ROOT, local_dir
from lipcert.records import read_record
from lipcert.report.published import network_differences
from lipcert.settings import ConfigError, parse
from lipcert.timings import blank_timings

# SHA-256 of the indices kept (little-endian int64): another draw would make other runs under the ids of the old ones.
PINNED = "797ea738b94f226e748592f52f5dcd108242629aa09b2e61687df22f128fc514"

NAMES = tuple("abcde")


def by_hand(labels, pool, class_ids, each, seed):
    """Members of every class sorted by their numbers, the first ones kept."""
    numbers = np.random.PCG64(np.random.SeedSequence([seed, 1])).random_raw(len(labels)).tolist()
    of_class = [[i for i in pool if labels[i] == label] for label in class_ids]
    return sorted(i for members in of_class for i in sorted(members, key=numbers.__getitem__)[:each])


@st.composite
def choices(draw):
    """Labels of a part of up to five classes, the indices left of it, the classes kept, what the least of them has."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    labels = np.array(draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)])))
    held_out = draw(st.sets(st.integers(0, len(labels) - 1), max_size=len(labels) // 2))
    pool = np.array(sorted(set(range(len(labels))) - held_out))
    class_ids = tuple(sorted(draw(st.sets(st.sampled_from(range(len(sizes))), min_size=1))))
    return labels, pool, class_ids, min(int(sum(labels[pool] == label)) for label in class_ids)


@settings(deadline=None, max_examples=60)
@given(choices(), st.integers(0, 2**40))
def test_of_every_class_the_first_of_a_seeded_order_are_kept(choice, seed):
    labels, pool, class_ids, least = choice
    assume(least > 0)
    smaller = set()
    for each in range(1, least + 1):
        kept = choose_images(labels, pool, class_ids, NAMES, each, seed).tolist()
        assert kept == by_hand(labels.tolist(), pool.tolist(), class_ids, each, seed)
        assert np.bincount(labels[kept], minlength=5)[list(class_ids)].tolist() == [each] * len(class_ids)
        assert smaller < set(kept) <= set(pool.tolist())
        smaller = set(kept)
        apart = [choose_images(labels, pool, (label,), NAMES, each, seed) for label in class_ids]
        assert sorted(np.concatenate(apart).tolist()) == kept


@settings(deadline=None, max_examples=30)
@given(choices())
def test_more_than_the_least_class_has_is_refused_by_its_name(choice):
    labels, pool, class_ids, least = choice
    with pytest.raises(ValueError, match=f"but '[a-e]' has {least} to train on") as refusal:
        choose_images(labels, pool, class_ids, NAMES, least + 1, 0)
    named = NAMES.index(str(refusal.value).split("'")[1])
    assert named in class_ids and sum(labels[pool] == named) == least
    assert str(refusal.value).endswith(f"must be at most {least * len(class_ids)}")


@pytest.mark.parametrize("seed", [0, 1, 2023, 2**32, 2**64 + 5])
def test_images_are_not_drawn_with_the_numbers_that_drew_the_classes(seed):
    assert draw_order(100, (seed, 1)).tolist() != draw_order(100, seed).tolist()
    assert draw_order(100, (seed, 1)).tolist() != draw_order(100, (seed + 1, 1)).tolist()


# Data sets


SIZES = {"train": 100, "test": 40}


@pytest.fixture
def toy(monkeypatch):
    """A registered set of five classes of 20 images, of which a validation split takes four each."""
    rng = np.random.default_rng(0)
    parts = {s: Part(rng.integers(0, 256, (n, 3, 4, 4), np.uint8), np.arange(n) % 5) for s, n in SIZES.items()}
    facts = Facts(lambda *_: Source(parts, NAMES), (3, 4, 4), 5, **SIZES, validation=20, crop=1, flip=True)
    monkeypatch.setitem(DATASETS, "toy", facts)


def counts(split, classes):
    return torch.bincount(split.labels_N, minlength=classes).tolist()


def same(one, other):
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("images_NCHW", "labels_N", "index_N"))


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("classes", [None, 4])
def test_nothing_but_the_training_images_changes(classes, validation):
    whole = load_dataset("digits", classes, 7, validation)
    few = load_dataset("digits", classes, 7, validation, train_images=200)
    assert counts(few.train, few.classes) == [200 // few.classes] * few.classes
    place = torch.isin(whole.train.index_N, few.train.index_N)
    assert torch.equal(few.train.index_N, whole.train.index_N[place])
    assert torch.equal(few.train.labels_N, whole.train.labels_N[place])
    assert torch.equal(few.train.images_NCHW, whole.train.images_NCHW[place])
    assert same(few.validation, whole.validation) and same(few.test, whole.test)
    assert (few.class_ids, few.class_names) == (whole.class_ids, whole.class_names)


def test_sets_of_one_seed_are_nested_in_images_and_in_classes():
    small, large = (set(load_dataset("digits", train_images=n).train.index_N.tolist()) for n in (50, 100))
    assert small < large
    some, more = (load_dataset("digits", k, 3, train_images=20 * k) for k in (3, 6))
    kept = torch.isin(torch.tensor(more.class_ids)[more.train.labels_N], torch.tensor(some.class_ids))
    assert torch.equal(more.train.index_N[kept], some.train.index_N)


@pytest.mark.parametrize("validation", [False, True])
def test_all_there_are_is_the_set_itself(toy, validation):
    whole = load_dataset("toy", validation=validation)
    every = load_dataset("toy", validation=validation, train_images=80 if validation else 100)
    assert same(every.train, whole.train) and every.sha256 == whole.sha256


def test_the_draw_is_pinned_and_its_hash_sees_it():
    data = load_dataset("digits", train_images=100)
    assert hashlib.sha256(data.train.index_N.numpy().astype("<i8").tobytes()).hexdigest() == PINNED
    others = [
        load_dataset("digits"), load_dataset("digits", train_images=90),
        load_dataset("digits", train_images=100, class_seed=1),
    ]  # fmt: skip
    assert len({data.sha256, *(other.sha256 for other in others)}) == 4


def test_the_smallest_class_sets_the_limit():
    whole = load_dataset("digits")
    least = min(counts(whole.train, 10))
    label = counts(whole.train, 10).index(least)
    most = load_dataset("digits", train_images=10 * least)
    assert torch.equal(
        most.train.index_N[most.train.labels_N == label], whole.train.index_N[whole.train.labels_N == label]
    )
    message = f"train_images={10 * least + 10}: {least + 1} of every class, but '{label}' has {least} to train on; "
    with pytest.raises(ValueError, match=f"^{message}must be at most {10 * least}$"):
        load_dataset("digits", train_images=10 * least + 10)


@pytest.mark.parametrize(
    ("value", "near"), [(0, 5), (-5, 5), (4, 5), (7, 5), (99, 95), (True, 5), (10.0, 5), ("10", 5), (101, 100)]
)
def test_impossible_numbers_are_refused_before_anything_is_read(toy, monkeypatch, value, near):
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], read=lambda *_: pytest.fail("was read")))
    rule = "with 5 classes: must be a multiple of 5, so that every class has as many, such as"
    with pytest.raises(ValueError, match=f"^train_images={value!r} {rule} {near}$"):
        load_dataset("toy", train_images=value)


def test_images_of_each_class():
    assert [images_of_each(5000, k) for k in (20, 50, 100)] == [250, 100, 50]


def test_images_in_files_are_refused_before_they_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"train_images=5000 with 'imagenet', whose images stay in files: .*leave it"):
        load_dataset("imagenet", train_images=5000, root=tmp_path)


# Runs


def test_the_id_names_the_number_behind_the_classes():
    base = {"dataset": "cifar100", "steps": 1}
    assert TrainConfig(**base, classes=20, train_images=5000).run_id().startswith("cifar100c20n5000-liresnet-L6W32-")
    assert TrainConfig(**base, train_images=5000).run_id().startswith("cifar100n5000-liresnet-L6W32-")


def test_settings_that_cannot_be_are_refused_with_the_rest_of_the_settings():
    settings = {"dataset": "cifar100", "classes": 30, "train_images": 5000, "steps": 1}
    with pytest.raises(ConfigError, match="train_images=5000 with 30 classes: must be a multiple of 30"):
        parse(TrainConfig, settings)
    with pytest.raises(ConfigError, match=r"train_images=1: .*greater than or equal to 2"):
        parse(TrainConfig, settings | {"train_images": 1})
    assert parse(TrainConfig, settings | {"train_images": 4980}).train_images == 4980


def test_a_run_trains_on_them_says_so_and_can_be_certified_again():
    config = tiny(depth=1, classes=2, class_seed=3, train_images=50, batch=10, steps=None, epochs=1.0)
    record = run(config)
    assert (record.data.train, record.training.steps) == (50, 5)
    assert record.data.sha256 == load_dataset("digits", 2, 3, train_images=50).sha256
    card = json.loads((local_dir() / record.model.file).with_suffix(".json").read_text())
    assert card["train_images"] == 50
    again = read_record(certify_again(record.id))
    assert (again.data, again.test.clean) == (record.data, record.test.clean)
    assert load_config(local_dir() / "runs" / f"{record.id}.json") == config


def test_a_step_is_timed_once_whatever_the_number():
    few, data = tiny(train_images=500), load_dataset("digits", train_images=500)
    assert blank_timings(few, data).same_step(blank_timings(tiny(), load_dataset("digits")))


def test_a_run_on_fewer_images_is_no_repetition_of_a_published_one():
    preset = load_config(ROOT / "notebooks/params/published/liresnet-v1-cifar10.yaml")
    fewer = preset.model_copy(update={"train_images": 5000})
    assert network_differences(fewer, preset) == ["train_images"] and network_differences(preset, preset) == []


# The real sets


@pytest.mark.slow
@pytest.mark.data("cifar100")
def test_the_sets_of_the_study_hold_as_many_images_and_fewer_of_a_class():
    kept = {}
    for classes in (20, 50, 100):
        data = load_dataset("cifar100", classes, 1, train_images=5000)
        assert data.class_ids == choose_classes("cifar100", 100, classes, 1)
        assert counts(data.train, classes) == [5000 // classes] * classes
        assert counts(data.test, classes) == [100] * classes
        ids = torch.tensor(data.class_ids)[data.train.labels_N].tolist()
        kept[classes] = set(zip(ids, data.train.index_N.tolist(), strict=True))
    for fewer, more in ((20, 50), (50, 100)):
        known = {label for label, _ in kept[fewer]}
        assert {pair for pair in kept[more] if pair[0] in known} < kept[fewer]


@pytest.mark.slow
@pytest.mark.data("mnist")
def test_the_least_digit_of_mnist_sets_the_limit():
    assert counts(load_dataset("mnist", train_images=54_210).train, 10) == [5421] * 10
    with pytest.raises(ValueError, match=r"5422 of every class, but '5.*' has 5421 to train on; must be at most 54210"):
        load_dataset("mnist", train_images=54_220)
