"""The price of losses: what is timed is the study's step, and what is said is what was timed."""

import itertools
import typing

import pytest

from benchmarks import loss_cost
from lipcert.config import TrainConfig
from lipcert.settings import ConfigError, parse
from lipcert.study import load_study

SMALL = {"depth": 1, "width": 4, "neck_width": 8, "batch": 8, "kernels": "torch"}


def accepted(loss: str) -> bool:
    try:
        return parse(TrainConfig, {"family": "liresnet", "loss": loss, "steps": 1}).loss == loss
    except ConfigError:
        return False


def test_every_loss_that_a_liresnet_can_be_trained_on_is_timed_once():
    known = typing.get_args(TrainConfig.model_fields["loss"].annotation)
    assert sorted(loss_cost.LOSSES) == sorted(filter(accepted, known))


def test_the_steps_are_those_of_the_study():
    study = load_study(loss_cost.STUDY)
    assert {cell.loss for cell in study.cells} <= set(loss_cost.LOSSES)
    length = {"steps", "snapshots", "threats", "device", "seed"}
    for cell in study.cells:
        assert loss_cost.config_of(cell.loss).model_dump(exclude=length) == cell.model_dump(exclude=length)


def test_rehearsal_on_a_small_network(monkeypatch):
    monkeypatch.setattr(loss_cost, "_REPEATS", 2)
    ticks = itertools.count()
    seconds, config = loss_cost.measure(2, lambda: next(ticks), classes=(3,), **SMALL)
    assert (config.width, config.steps) == (4, 10**6)
    names = [f"{loss}; 3 classes" for loss in loss_cost.TIMED]
    assert len(names) == len(loss_cost.LOSSES) + 1, "GloRo's step is timed twice"
    assert set(seconds) == {*names, *(f"{name}; alone" for name in names)}
    assert all(seconds[name] == [1, 1] and seconds[f"{name}; alone"] == [0.5, 0.5] for name in names)
    found = loss_cost.told(seconds, config, classes=(3,))
    assert found["verdict"] == "met" and found["numbers"]["emma; 3 classes; ratio"] == 1
    assert found["numbers"]["width"] == 4 and len(found["rows"]) == 1 + len(names)


def made_up(slow: dict[str, float]) -> dict[str, list[float]]:
    """A machine that is three times slower in the second round; factors of some steps."""
    seconds = {}
    for count in loss_cost.CLASSES:
        for loss in loss_cost.TIMED:
            key = f"{loss}; {count} classes"
            factor = slow.get(key, 1.0)
            seconds |= {key: [0.1 * factor, 0.3 * factor, 0.1 * factor], f"{key}; alone": [0.001, 0.003, 0.001]}
    return seconds


@pytest.mark.parametrize(
    ("slow", "verdict"),
    [
        ({}, "met"),
        ({"gloro, again; 10 classes": 2.0}, "met"),
        ({"trades_kl; 100 classes": 1.2}, "in part"),
        ({"trades_kl; 100 classes": 1.2, "emma; 10 classes": 1.1}, "fell short"),
    ],
)
def test_ratios_are_to_gloro_of_the_same_round_and_count(slow, verdict):
    found = loss_cost.told(made_up(slow), loss_cost.config_of("emma"))
    assert found["verdict"] == verdict
    for key, factor in slow.items():
        assert found["numbers"][f"{key}; ratio"] == pytest.approx(factor)
        assert found["numbers"][f"{key}; low"] == pytest.approx(factor)
    if "trades_kl; 100 classes" in slow:
        said = "100 classes: GloRo's step 100.0 ms, a second time 1.000 times as long, the dearest other loss trades_kl"
        assert f"{said} 1.200" in found["measured"]
    assert found["numbers"]["gloro; 10 classes; ratio"] == 1 and found["numbers"]["emma; 10 classes; share"] <= 0.01
    assert found["rows"][0][3] == "over gloro's step" and found["rows"][1][1] == "gloro"
