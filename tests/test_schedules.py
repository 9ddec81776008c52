"""The schedule language against formulas, and the schedules of a run: learning rate, radius, weight."""

import csv
import math
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.config import TrainConfig
from lipcert.paths import local_dir
from lipcert.records import read_record
from lipcert.run import Run
from lipcert.schedules import learning_rate, loss_weight, schedule, training_radius
from lipcert.settings import ConfigError, parse
from lipcert.train import fit

SHARES = [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.75, 0.999]
JOINS = {  # value after the share t of the way from a to b
    "": lambda a, b, t: a,
    "-": lambda a, b, t: (1 - t) * a + t * b,
    "-exp-": lambda a, b, t: a ** (1 - t) * b**t,
    "-log-": lambda a, b, t: math.log((1 - t) * math.exp(a) + t * math.exp(b)),
    "-cos-": lambda a, b, t: a + (b - a) * math.sin(math.pi * t / 2) ** 2,
}


def run(**settings):
    return TrainConfig(**({"dataset": "digits", "epochs": 100.0} | settings))


# --- the language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize(("start", "end"), [(0.01, 1.0), (3.0, 0.5), (2.0, 2.0)])
def test_joins_are_their_formulas(join, start, end):
    over_all = schedule(f"[{start}]{join}[{end}]", None)
    within = schedule(f"[20%:{start}]{join}[60%:{end}]", None)
    in_epochs = schedule(f"[10:{start}]{join}[30:{end}]", 50)
    for share in SHARES:
        expected = JOINS[join](start, end, share)
        assert over_all(share) == pytest.approx(expected, rel=1e-12)
        assert within(0.2 + 0.4 * share) == pytest.approx(expected, rel=1e-9)
        assert in_epochs(0.2 + 0.4 * share) == pytest.approx(expected, rel=1e-9)
    for function in (within, in_epochs):
        assert function(0.0) == function(0.1) == start
        assert function(0.61) == function(0.999) == end


@given(
    st.lists(st.floats(0.01, 5), min_size=2, max_size=6),
    st.lists(st.sampled_from(list(JOINS)), min_size=5, max_size=5),
    st.floats(0, 0.999),
)
def test_long_rows_of_sections(values, joins, progress):
    last = len(values) - 1
    times = [100 * i // last for i in range(last + 1)]
    text = f"[{values[0]:.4f}]" + "".join(
        f"{join}[{time}%:{value:.4f}]" for join, time, value in zip(joins, times[1:], values[1:], strict=False)
    )
    i = max(i for i in range(last) if times[i] <= 100 * progress)
    start, end = (float(f"{value:.4f}") for value in values[i : i + 2])
    share = (100 * progress - times[i]) / (times[i + 1] - times[i])
    assert schedule(text, None)(progress) == pytest.approx(JOINS[joins[i]](start, end, share), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("text", ["0.5", "2", "1e-3", "1.5e+2", "0"])
def test_a_number_is_constant(text):
    assert {schedule(text, None)(share) for share in SHARES} == {float(text)}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[0.7]", {0.0: 0.7, 0.9: 0.7}),
        ("[50%:0.7]", {0.0: 0.7, 0.9: 0.7}),
        ("[1][50%:2][3]", {0.0: 1, 0.49: 1, 0.5: 2, 0.99: 2}),
        ("[0]-[100%:1]", {0.0: 0, 0.5: 0.5}),
        ("[1]-[50%:2][50%:5]-[7]", {0.25: 1.5, 0.4999: pytest.approx(2, abs=1e-3), 0.5: 5, 0.75: 6}),  # a jump
        ("[0%:1]-[0%:4]-[2]", {0.0: 4, 0.5: 3}),
        ("[1]-[200:0]", {0.5: 0.5}),  # the last epoch of 200
        ("[1]-[12.5%:2]-[2]", {0.0625: 1.5}),
        ("[1.]-[2e0]", {0.5: 1.5}),
    ],
)
def test_times_and_values(text, values):
    function = schedule(text, 200)
    assert {share: function(share) for share in values} == values


@pytest.mark.parametrize("text", ["[0.01]-log-[50%:1]-[1]", "[1]-[20:3]-exp-[2]", "0.5"])
def test_values_come_from_progress_alone(text):
    function = schedule(text, 100)
    there = [function(share) for share in SHARES]
    assert [function(share) for share in reversed(SHARES)] == there[::-1]
    assert [schedule(text, 100)(share) for share in SHARES] == there


MISTAKES = {
    "nothing": ("", "must read like"),
    "words": ("linear", "must read like"),
    "unknown join": ("[0]-lin-[1]", "must read like"),
    "a space": ("[0] - [1]", "must read like"),
    "a join before": ("-[0]", "must read like"),
    "a join behind": ("[0]-", "must read like"),
    "no bracket": ("[0]-[1", "must read like"),
    "negative": ("[-1]-[1]", "must read like"),
    "negative number": ("-1", "must read like"),
    "no number": ("[nan]", "must read like"),
    "infinite": ("inf", "must read like"),
    "another text behind": ("[0]-[1]x", "must read like"),
    "no time inside": ("[0]-[1]-[0]", "sections between the first and the last need a time"),
    "times go back": ("[50%:0]-[20%:1]", "must ascend and lie within the run"),
    "after the end": ("[0]-[120%:1]", "must ascend and lie within the run"),
    "epochs after the end": ("[0]-[201:1]", "must ascend and lie within the run"),
    "exponential from 0": ("[0]-exp-[1]", "-exp- needs values above 0"),
    "exponential to 0": ("[1]-[50%:1]-exp-[0]", "-exp- needs values above 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_give_value_and_rule(name):
    text, rule = MISTAKES[name]
    with pytest.raises(ValueError) as refusal:
        schedule(text, 200)
    assert f"schedule {text!r}" in str(refusal.value) and rule in str(refusal.value)


@pytest.mark.parametrize("key", ["lr_schedule", "radius_schedule", "robust_weight"])
@pytest.mark.parametrize("length", [{"steps": 10}, {"minutes": 1.0}])
def test_epochs_need_a_run_in_epochs(key, length):
    with pytest.raises(ConfigError) as refusal:
        parse(TrainConfig, {"dataset": "digits", key: "[0.5]-[20:1]", **length})
    message = str(refusal.value)
    assert message.startswith(f"{key}: schedule '[0.5]-[20:1]'") and "write 50%" in message
    assert parse(TrainConfig, {"dataset": "digits", key: "[0.5]-[20%:1]", **length})


@pytest.mark.parametrize("key", ["lr_schedule", "radius_schedule", "robust_weight"])
@pytest.mark.parametrize("name", MISTAKES)
def test_settings_name_the_key(key, name):
    text, rule = MISTAKES[name]
    with pytest.raises(ConfigError) as refusal:
        parse(TrainConfig, {"dataset": "digits", "epochs": 200.0, key: text})
    assert str(refusal.value).startswith(f"{key}: schedule {text!r}") and rule in str(refusal.value)


@pytest.mark.parametrize("key", ["radius_schedule", "robust_weight"])
@pytest.mark.parametrize("word", ["cosine", "constant_exp"])
def test_words_of_the_learning_rate_are_no_schedules_of_others(key, word):
    with pytest.raises(ConfigError, match=key):
        parse(TrainConfig, {"dataset": "digits", "epochs": 2.0, key: word})


@pytest.mark.parametrize("text", ["1e999", "[1]-[1e999]", "[1]-log-[800]"])
def test_values_beyond_float64_are_refused(text):
    with pytest.raises(ConfigError, match="radius_schedule"):
        config = parse(TrainConfig, {"dataset": "digits", "epochs": 2.0, "radius_schedule": text})
        assert math.isfinite(training_radius(config, 0.5)), "infinite"


# --- the schedules of a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", SHARES)
def test_learning_rate_of_the_words(progress):
    common = {"lr": 0.01, "warmup": 0.1, "lr_end": 0.02}
    after = (progress - 0.1) / 0.9
    cosine = 0.01 * (0.02 + 0.98 * math.cos(math.pi * after / 2) ** 2)
    halves = 0.01 if after < 0.5 else 0.01 * 0.02 ** (2 * (after - 0.5))
    warming = 0.1 * progress
    for word, expected in (("cosine", cosine), ("constant_exp", halves), ("[1]-[0.5]", 0.01 * (1 - progress / 2))):
        found = learning_rate(run(lr_schedule=word, **common), progress)
        assert found == pytest.approx(warming if progress < 0.1 else expected, rel=1e-12), word


@pytest.mark.parametrize("progress", SHARES)
def test_radius_of_the_ramp_and_of_a_schedule(progress):
    ramp = {"radius_start": 0.2, "radius_end": 1.4, "radius_ramp": 0.6}
    grown = 36 / 255 * (0.2 + 1.2 * min(progress / 0.6, 1))
    assert training_radius(run(**ramp), progress) == pytest.approx(grown, rel=1e-12)
    assert training_radius(run(**ramp | {"radius_ramp": 0.0}), progress) == pytest.approx(1.4 * 36 / 255, rel=1e-12)
    scheduled = run(radius_schedule="[0.5]-[2]", **ramp)  # takes the place of the ramp
    assert training_radius(scheduled, progress) == pytest.approx(36 / 255 * (0.5 + 1.5 * progress), rel=1e-12)


def test_weight_of_trades_is_a_number_or_a_schedule():
    assert loss_weight(run(loss="trades_kl"), 0.7) == 1.0
    assert loss_weight(run(loss="trades_kl", robust_weight=2), 0.7) == 2.0
    assert loss_weight(run(loss="trades_ce", robust_weight="[0.5]-[20]"), 0.5) == 10.25


EPOCHS = [0, 1, 100, 249, 250, 251, 400, 499]


@pytest.mark.parametrize("epoch", EPOCHS)
def test_schedules_of_the_mnist_recipe(epoch):
    """MNIST at 0.3, scripts of 2021: 500 epochs, radius 0.45, 1e-3 for half of them and then exponentially to 1e-6,
    lambda of TRADES linear from 0 to 2."""
    words = run(
        epochs=500.0, radius="0.3", radius_schedule=1.5, lr=1e-3, lr_schedule="constant_exp", lr_end=1e-3, warmup=0.0,
        robust_weight="[0]-[2]", loss="trades_ce",
    )  # fmt: skip
    language = words.model_copy(update={"lr_schedule": "[1][250:1]-exp-[0.001]"})
    expected = 1e-3 if epoch < 250 else 1e-3 * math.exp((epoch - 250) / 250 * math.log(1e-3))
    for config in (words, language):
        assert learning_rate(config, epoch / 500) == pytest.approx(expected, rel=1e-9)
        assert training_radius(config, epoch / 500) == pytest.approx(0.45, rel=1e-12)
        assert loss_weight(config, epoch / 500) == pytest.approx(2 * epoch / 500, rel=1e-12)


@pytest.mark.parametrize("epoch", [0, 1, 200, 399, 400, 500, 799])
def test_logarithmic_radius_of_the_cifar_recipe(epoch):
    """0.141 x 1.1, from a hundredth to the whole over the first half of 800 epochs, linear in e^value."""
    config = run(epochs=800.0, radius="0.141", radius_schedule="[0.011]-log-[50%:1.1]-[1.1]")
    share = min(epoch / 400, 1)
    expected = 0.141 * math.log(math.exp(0.011) * (1 - share) + math.exp(1.1) * share)
    assert training_radius(config, epoch / 800) == pytest.approx(expected, rel=1e-12)


def test_a_resumed_run_sees_the_same_values(monkeypatch, tmp_path):
    config = TrainConfig(
        dataset="digits", device="cpu", depth=1, width=4, neck_width=8, batch=256, epochs=4.0, loss="trades_kl",
        robust_weight="[0.1]-[2:3]-exp-[1]", radius_schedule="[0.01]-log-[50%:1]-[1]",
        lr_schedule="[1][2:1]-exp-[0.01]",
    )  # fmt: skip
    steps, found = 20, []
    for stops in ((), (7, 8, 15)):
        monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / str(len(stops))))
        for stop in stops:
            with monkeypatch.context() as patch:
                patch.setattr(Run, "train_step", until(stop, Run.train_step))
                with pytest.raises(KeyboardInterrupt):
                    fit(config, resume=True, progress=False)
        record = read_record(fit(config, resume=True, progress=False))
        with open(local_dir() / record.training.curve, newline="") as file:
            rows = [(int(row["step"]), row["learning_rate"], row["radius_train"]) for row in csv.DictReader(file)]
        found.append((record.model.weights_sha256, rows))
    (weights, rows), (weights_of_parts, rows_of_parts) = found
    assert weights == weights_of_parts and set(rows_of_parts) <= set(rows)
    for step, rate, radius in rows:
        progress = (step - 1) / steps
        assert float(rate) == pytest.approx(learning_rate(config, progress), rel=1e-7)
        assert float(radius) == pytest.approx(training_radius(config, progress), rel=1e-7)
    assert len(rows) == steps


def until(stop, train_step):
    """Ctrl-C in the step before this one, which is finished."""

    def stopping(self):
        if self.step == stop - 1:
            os.kill(os.getpid(), signal.SIGINT)
        assert self.step < stop
        train_step(self)

    return stopping


@pytest.mark.parametrize("text", ["1e200*[1e200]", "10*[1]-[1e308]"])
def test_a_factor_that_makes_a_value_infinite_is_refused(text):
    with pytest.raises(ValueError, match=r"schedule .*too large"):
        schedule(text, None)


@pytest.mark.parametrize("join", ["-", "-exp-", "-cos-"])
@pytest.mark.parametrize(("start", "end"), [("1e-300", "1e300"), ("1e300", "1e-300"), ("1e308", "1e-308")])
def test_values_far_apart_are_joined_without_overflow(join, start, end):
    function = schedule(f"[{start}]{join}[{end}]", None)
    values = [function(share) for share in SHARES]
    assert values == sorted(values, reverse=float(start) > float(end)) and all(map(math.isfinite, values))
    if join == "-exp-":
        assert function(0.5) == pytest.approx(1.0, rel=1e-9)
