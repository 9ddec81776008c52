"""The search for a recipe: judged on held-out images alone, one row per trial, goes on where it stopped."""

import builtins
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.search import BASE, ablate, judged, main, read, search, settings, train
from lipcert.data import load_dataset
from lipcert.run import Run
from lipcert.settings import ConfigError

DIGITS = BASE | {"dataset": "digits", "depth": 2, "width": 8, "neck_width": 16, "crop": 0, "batch": 64}


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", validation=True)


def trained(data, steps=60):
    run = Run(settings(DIGITS, {"lr": 0.01, "radius": "1/2"}, 64 * steps), data)
    for _ in range(steps):
        run.train_step()
    return run


def test_judged_by_margins_over_the_constant_of_the_plain_chain(data):
    run = trained(data)
    found = judged(run)
    chain = run.network.plain()
    images, labels = data.validation.images_NCHW.double() / data.scale, data.validation.labels_N
    logits = chain.double()(images)
    constant = run.network.lipschitz_estimate(3000).double().item()
    rows = chain[-1].weight
    certified = right = 0
    for z, label in zip(logits, labels, strict=True):  # every pair of classes by itself
        others = [k for k in range(10) if k != label]
        right += all(z[label] > z[k] for k in others)
        certified += all(z[label] - z[k] > 0.5 * constant * (rows[label] - rows[k]).norm() for k in others)
    assert found["accuracy"] == pytest.approx(100 * right / len(labels), abs=0.01)
    assert found["vra"] == pytest.approx(100 * certified / len(labels), abs=0.6)  # two images, of float32
    assert 5 < found["vra"] < found["accuracy"]


def test_test_images_are_never_looked_at(data):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError(f"the test split was asked for {name}")

    blind = replace(data, test=Untouchable())
    config = settings(DIGITS, {}, 640)
    seen, whole = train(config, blind), train(config, data)
    assert {k: v for k, v in seen.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_judging_changes_nothing_of_the_run(data):
    run = trained(data, steps=3)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    judged(run)
    assert run.network.training
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())


def test_equal_images_whatever_the_batch():
    for batch in (32, 64, 128):
        config = settings(DIGITS, {"batch": batch}, 6400)
        assert config.steps * config.batch == 6400


def test_a_search_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("optuna")
    arguments = DIGITS, 640, 2, tmp_path / "study.sqlite", tmp_path / "trials.csv", 0
    search(*arguments)
    first = read(tmp_path / "trials.csv")
    search(*arguments)
    rows = read(tmp_path / "trials.csv")
    assert [line["name"] for line in rows] == ["0", "1", "2", "3"]
    assert rows[:2] == first
    assert len({line["changes"] for line in rows}) == 4  # the second part draws on
    for line in rows:
        config = settings(DIGITS, json.loads(line["changes"]), 640)
        assert config.validation
        assert config.seed == int(line["seed"])


def test_a_row_of_the_search_is_what_its_settings_train(tmp_path, data):
    pytest.importorskip("optuna")
    search(DIGITS, 640, 1, tmp_path / "study.sqlite", tmp_path / "trials.csv", 0)
    (line,) = read(tmp_path / "trials.csv")
    found = train(settings(DIGITS, json.loads(line["changes"]), 640), data)
    assert float(line["vra"]) == pytest.approx(found["vra"], abs=1e-3)
    assert int(line["parameters"]) == found["parameters"]


def test_an_ablation_makes_what_is_missing(tmp_path):
    rows = [{"name": "base"}, {"name": "lr", "lr": 0.01}]
    table = tmp_path / "ablation.csv"
    ablate(DIGITS, rows, 640, [0], table)
    before = read(table)
    ablate(DIGITS, [*rows, {"name": "longer", "images": 1280}], 640, [0, 1], table)
    after = read(table)
    assert after[:2] == before  # seconds too: not made again
    assert [(line["name"], line["seed"], line["images"]) for line in after[2:]] == [
        ("base", "1", "640"), ("lr", "1", "640"), ("longer", "0", "1280"), ("longer", "1", "1280"),
    ]  # fmt: skip


def test_a_misspelt_setting_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="learning"):
        ablate(DIGITS, [{"name": "x", "learning": 1}], 640, [0], tmp_path / "ablation.csv")


def test_command_writes_table_and_base(tmp_path):
    (tmp_path / "base.yaml").write_text(json.dumps(DIGITS))
    (tmp_path / "rows.yaml").write_text("- {name: muon, optimizer: muon}")
    main(["--ablate", f"{tmp_path}/rows.yaml", "--base", f"{tmp_path}/base.yaml", "--images", "640", "--out",
          f"{tmp_path}/out"])  # fmt: skip
    assert json.loads((tmp_path / "out/base-ablation.json").read_text()) == DIGITS
    assert json.loads(read(tmp_path / "out/ablation.csv")[0]["changes"]) == {"optimizer": "muon"}


def test_search_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    original = builtins.__import__

    def missing(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'lipcert\[search\]'"):
        search(DIGITS, 640, 1, tmp_path / "study.sqlite", tmp_path / "trials.csv", 0)
