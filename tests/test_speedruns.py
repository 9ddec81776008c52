"""The presets of the speed runs: within their budgets, fit to be compared, and what the papers' recipe changes."""

import pytest

from lipcert.config import TrainConfig, load_config, steps_of
from lipcert.models import build_model
from lipcert.paths import ROOT
from lipcert.study import load_study

PARAMS = ROOT / "notebooks" / "params"
IMAGES = 50_000
SIZE = ("family", "depth", "width", "neck", "neck_width", "tail_depth", "activation", "stem")


def cells(name):
    return load_study(PARAMS / "study" / f"{name}.yaml").cells


def seen(config):
    return steps_of(config, IMAGES) * config.batch


@pytest.mark.parametrize("name", ["speedrun-cpu", "speedrun-cpu-papers"])
def test_three_seeds_within_a_million_images_and_900_000_parameters(name):
    runs = cells(name)
    assert [run.seed for run in runs] == [0, 1, 2]
    for run in runs:
        assert not run.validation
        assert run.generated is None
        assert 990_000 < seen(run) <= 1_000_000
        assert build_model(run.model(3, 32, 10)).parameter_count() <= 900_000


def test_both_recipes_train_one_network_on_equally_many_images():
    for ours, theirs in zip(cells("speedrun-cpu"), cells("speedrun-cpu-papers"), strict=True):
        assert all(getattr(ours, key) == getattr(theirs, key) for key in (*SIZE, "radius", "seed", "dataset"))
        assert seen(ours) == seen(theirs)


def test_papers_recipe_is_the_published_one_but_for_size_and_length():
    published = load_config(PARAMS / "published" / "liresnet-iclr-cifar10.yaml")
    changed = {
        key
        for key in TrainConfig.model_fields
        if getattr(published, key) != getattr(cells("speedrun-cpu-papers")[0], key)
    }
    assert changed == {"depth", "width", "neck_width", "tail_depth", "epochs", "published", "kernels", "snapshots"}


def test_the_long_run_changes_nothing_but_width_and_length():
    long, short = load_config(PARAMS / "study" / "speedrun-cpu-long.yaml"), cells("speedrun-cpu")[0]
    changed = {key for key in TrainConfig.model_fields if getattr(long, key) != getattr(short, key)}
    assert changed == {"width", "epochs"}
    assert seen(short) < seen(long) <= 10_000_000
