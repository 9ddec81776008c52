"""What "auto" becomes: the fastest of what was timed, once per machine and kind of step, whatever happens to the cache.

Times are made up here; `fit` with open settings is tested in test_open_runs.py.
"""

import json

import pytest
import torch
from runs import tiny

from lipcert import machine
from lipcert.__main__ import main
from lipcert.config import TrainConfig
from lipcert.data import load_dataset
from lipcert.machine import Choice, choose
from lipcert.run import Run, TrainingError
from lipcert.timings import Candidate, blank_timings, cache_path, cached_timings, keep_timings

OPEN = {"precision": "auto", "layout": "auto", "kernels": "auto", "compiled": "auto"}
PLAIN = "float32 channels_last"
EAGER = [
    PLAIN, "float32 contiguous", "float32 channels_last native", "bfloat16 channels_last", "bfloat16 contiguous",
    "bfloat16 channels_last native",
]  # fmt: skip


@pytest.fixture(autouse=True)
def equipped(monkeypatch):
    """A machine with compilers, whose compiled code is what it was made of."""
    monkeypatch.setattr("lipcert.machine.has_compiler", lambda device: True)
    monkeypatch.setattr("lipcert.machine.kernels.problem", lambda: None)
    monkeypatch.setattr("lipcert.run._forward", lambda config, network: network.backbone)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def clock(monkeypatch):
    """Sets the seconds that a step of each candidate takes, 20 where not named; returns what is timed, in order."""

    def set_clock(seconds=None, failing=()):
        timed = []

        def time_steps(self, steps):
            timed.append(label := Candidate.of(self.config).label)
            if label in failing:
                raise RuntimeError("no such instruction\nin a long traceback")
            return (seconds or {}).get(label, 20.0)

        monkeypatch.setattr(Run, "time_steps", time_steps)
        return timed

    return set_clock


def chosen(config, digits):
    return Candidate.of(choose(config, digits, progress=False).config).label


def kinds(timed):
    return list(dict.fromkeys(timed))


# --- which -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", EAGER)
def test_the_fastest_is_chosen(fastest, clock, digits):
    timed = clock({fastest: 8.0})
    config = tiny(**OPEN | {"compiled": False})
    choice = choose(config, digits, progress=False)
    assert Candidate.of(choice.config).label == fastest and kinds(timed) == EAGER
    assert choice.measured == dict.fromkeys(EAGER, 20.0) | {fastest: 8.0}
    assert not choice.config.left_open() and choice.config.answers(config)


def test_a_plainer_one_within_noise_is_kept(clock, digits):
    clock({PLAIN: 10.0, "bfloat16 contiguous": 9.8})
    assert chosen(tiny(**OPEN), digits) == PLAIN


def test_what_is_slow_is_timed_once(clock, digits):
    timed = clock({PLAIN: 10.0, "bfloat16 channels_last": 31.0})
    chosen(tiny(**OPEN), digits)
    race = timed[timed.index("float32 contiguous") - 2 :]
    assert race.count("bfloat16 channels_last") == 2 < race.count(PLAIN)  # to warm up, and the time itself


@pytest.mark.parametrize("given", [{"precision": "bfloat16"}, {"layout": "contiguous"}, {"kernels": "torch"}])
def test_what_is_given_stays(given, clock, digits):
    clock({"float32 channels_last native": 5.0})
    config = choose(tiny(**OPEN | given), digits, progress=False).config
    (key, value), *_ = given.items()
    assert getattr(config, key) == value and not config.left_open()


def test_nothing_is_timed_where_nothing_is_open(clock, digits):
    timed = clock()
    for config in (tiny(), tiny(precision="bfloat16", layout="contiguous", compiled=True)):
        assert choose(config, digits) == Choice(config)
    assert not timed and not cache_path().exists()


def test_no_kernels_in_c_without_a_compiler(clock, digits, monkeypatch):
    monkeypatch.setattr("lipcert.machine.kernels.problem", lambda: "no compiler")
    timed = clock()
    chosen(tiny(**OPEN), digits)
    assert not [label for label in timed if "native" in label]


def test_a_precision_that_is_not_there_is_refused(digits):
    with pytest.raises(TrainingError, match=r"tfloat32.*only CUDA"):
        choose(tiny(**OPEN | {"precision": "tfloat32"}), digits)
    with pytest.raises(TrainingError, match="layout='auto': measure first"):
        Run(tiny(layout="auto"), digits)


# --- short runs ------------------------------------------------------------------------------------------------------


def test_below_five_minutes_float32_eager(clock, digits):
    timed = clock({PLAIN: 7.0, "bfloat16 channels_last": 1.0})
    assert chosen(tiny(**OPEN), digits) == PLAIN  # 40 steps x 7 s = 280 s
    assert kinds(timed) == [PLAIN]
    assert chosen(tiny(**OPEN, steps=43), digits) == "bfloat16 channels_last"  # 301 s


def test_minutes_below_five_need_no_clock(clock, digits):
    timed = clock({"bfloat16 channels_last": 1.0})
    config = tiny(**OPEN | {"steps": None, "minutes": 4.9})
    assert choose(config, digits).measured is None and chosen(config, digits) == PLAIN and not timed
    assert chosen(tiny(**OPEN | {"steps": None, "minutes": 5.0}), digits) == "bfloat16 channels_last"


# --- compilation -----------------------------------------------------------------------------------------------------


def test_compiled_where_it_pays(clock, digits):
    timed = clock({PLAIN: 10.0, f"{PLAIN} compiled": 8.0})
    assert chosen(tiny(**OPEN), digits) == f"{PLAIN} compiled"
    assert kinds(timed)[-1] == f"{PLAIN} compiled"


def test_not_compiled_where_it_cannot_pay(clock, digits):
    timed = clock({PLAIN: 10.0, "bfloat16 channels_last": 3.0})
    assert chosen(tiny(**OPEN), digits) == "bfloat16 channels_last"  # 120 s are left: a third of them is not 40
    assert not [label for label in timed if "compiled" in label]


def test_a_gain_below_what_compiling_takes_is_none(clock, digits):
    clock({PLAIN: 10.0, f"{PLAIN} compiled": 9.0})
    chosen(tiny(**OPEN), digits)
    (timings,) = cached_timings()
    timings.compiling[f"{PLAIN} compiled"] = 41.0  # of 40 steps, each faster by a second
    keep_timings(timings)
    assert chosen(tiny(**OPEN), digits) == PLAIN
    assert chosen(tiny(**OPEN, steps=42), digits) == f"{PLAIN} compiled"


def test_kernels_in_c_are_not_compiled_but_compared(clock, digits):
    timed = clock({"float32 channels_last native": 10.0, f"{PLAIN} compiled": 9.0})
    assert chosen(tiny(**OPEN), digits) == f"{PLAIN} compiled"
    assert "float32 channels_last native compiled" not in timed


def test_a_failing_compiler_is_left_out_with_a_warning(clock, digits, capsys):
    timed = clock({PLAIN: 10.0}, failing=[f"{PLAIN} compiled"])
    choice = choose(tiny(**OPEN), digits)
    assert Candidate.of(choice.config).label == PLAIN and f"{PLAIN} compiled" not in choice.measured
    err = capsys.readouterr().err
    assert f"warning: {PLAIN} compiled left out: RuntimeError: no such instruction\n" in err and "choosing" in err
    timed.clear()
    assert chosen(tiny(**OPEN), digits) == PLAIN and not timed, "once is enough"


def test_what_failed_before_is_an_error_where_nothing_else_is_asked_for(clock, digits):
    clock(failing=["bfloat16 channels_last"])
    chosen(tiny(**OPEN), digits)
    assert "bfloat16 channels_last" in cached_timings()[0].failed
    with pytest.raises(RuntimeError, match="no such instruction"):
        choose(tiny(**OPEN | {"precision": "bfloat16"}), digits)


def test_want_of_memory_is_not_remembered(clock, digits, monkeypatch):
    timed = clock()
    whole = Run.time_steps

    def time_steps(self, steps):
        if self.config.precision == "bfloat16":
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, steps)

    monkeypatch.setattr(Run, "time_steps", time_steps)
    assert chosen(tiny(**OPEN | {"compiled": False}), digits).startswith("float32") and not cached_timings()[0].failed
    monkeypatch.setattr(Run, "time_steps", whole)
    timed.clear()
    chosen(tiny(**OPEN | {"compiled": False}), digits)
    assert "bfloat16 channels_last" in timed


def test_what_is_compiled_has_no_kernels_in_c(clock, digits):
    timed = clock({"float32 channels_last native": 5.0, "bfloat16 contiguous": 8.0})
    choice = choose(tiny(**OPEN | {"compiled": True}), digits)
    assert (choice.config.kernels, choice.config.precision) == ("torch", "bfloat16")
    assert not [label for label in timed if "native" in label]


def test_no_compiler_no_trial(clock, digits, monkeypatch):
    monkeypatch.setattr("lipcert.machine.has_compiler", lambda device: False)
    timed = clock({PLAIN: 10.0})
    chosen(tiny(**OPEN), digits)
    assert not [label for label in timed if "compiled" in label]


def test_what_fails_plainly_is_an_error(clock, digits):
    clock(failing=[PLAIN])
    with pytest.raises(RuntimeError, match="no such instruction"):
        choose(tiny(**OPEN), digits)


def test_times_of_a_later_race_are_put_on_the_clock_of_the_first(clock, digits):
    clock({PLAIN: 10.0})
    chosen(tiny(**OPEN | {"compiled": False}), digits)
    clock({PLAIN: 30.0, f"{PLAIN} compiled": 24.0})  # now another program is running
    chosen(tiny(**OPEN), digits)
    assert cached_timings()[0].seconds[PLAIN] == 10.0
    assert cached_timings()[0].seconds[f"{PLAIN} compiled"] == pytest.approx(8.0)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_measured_once(clock, digits):
    timed = clock({"bfloat16 contiguous": 5.0})
    first = choose(tiny(**OPEN), digits)
    assert timed
    timed.clear()
    assert choose(tiny(**OPEN), digits) == first and not timed
    free = {"seed": 3, "lr": 0.1, "steps": 50, "radius": "0.3", "validation": True, "weight_decay": 0.1}
    seeded = choose(tiny(**OPEN, **free), digits)
    assert Candidate.of(seeded.config).label == "bfloat16 contiguous" and not timed, "the step costs the same"
    (timings,) = cached_timings()
    assert timings.seconds["bfloat16 contiguous"] == 5.0 and timings.machine["torch"] == torch.__version__


SHAPES = [
    {"depth": 3}, {"width": 16}, {"neck": "dense"}, {"neck_width": 8}, {"batch": 32}, {"classes": 4}, {"loss": "gloro"},
    {"optimizer": "nadam"}, {"power_steps": 5}, {"activation": "relu"}, {"family": "convnet"},
    {"lookahead": True}, {"augmentation": "randaugment"},
]  # fmt: skip


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_another_step_is_measured_by_itself(changes, clock, digits):
    timed = clock()
    chosen(tiny(**OPEN, steps=100), digits)
    timed.clear()
    config = tiny(**OPEN, steps=100, **changes)
    chosen(config, load_dataset("digits", config.classes, config.class_seed))
    assert timed and len(cached_timings()) == 2


def test_another_number_of_threads_or_torch_is_another_machine(clock, digits, monkeypatch):
    clock()
    before = blank_timings(tiny(), digits)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert not blank_timings(tiny(), digits).same_step(before)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert not blank_timings(tiny(), digits).same_step(before)


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"timings": 3}', '{"timings": [1, null, {}]}', "\x00", '{"timings": [{"machine": {}}]}',
     '{"timings": [{"machine": {}, "shape": {}, "seconds": {"a": "fast"}}]}', "[" * 100_000],
    ids=lambda text: text[:20] or "empty",
)  # fmt: skip
def test_a_damaged_cache_is_measured_again_and_mended(damage, clock, digits):
    timed = clock({"bfloat16 contiguous": 5.0})
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(damage)
    assert chosen(tiny(**OPEN), digits) == "bfloat16 contiguous" and timed
    timed.clear()
    assert chosen(tiny(**OPEN), digits) == "bfloat16 contiguous" and not timed
    assert len(json.loads(cache_path().read_text())["timings"]) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(clock, digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIPCERT_CACHE", str(tmp_path / "file" / "folder"))
    timed = clock({"bfloat16 contiguous": 5.0})
    for _ in range(2):
        assert choose(tiny(**OPEN), digits).config.layout == "contiguous" and timed
        assert "the measurement cannot be kept" in capsys.readouterr().err
        timed.clear()


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPCERT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_path() == tmp_path / "a" / "choices.json"
    monkeypatch.delenv("LIPCERT_CACHE")
    assert cache_path() == tmp_path / "b" / "lipcert" / "choices.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path() == tmp_path / ".cache" / "lipcert" / "choices.json"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_measures_and_lists(clock, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tiny().model_dump(mode="json", exclude_defaults=True)))
    clock({"bfloat16 contiguous": 0.5})
    assert main(["machine"]) == 1 and "Nothing was timed yet" in capsys.readouterr().out
    assert main(["machine", str(file)]) == 1
    capsys.readouterr()
    assert main(["machine", str(file), "--measure"]) == 0
    for arguments in ([], [str(file)], [str(file), "seed=5"]):
        assert main(["machine", *arguments]) == 0
        out = capsys.readouterr().out
        assert f"torch        {torch.__version__}" in out and str(cache_path()) in out and "liresnet L2 W8" in out
        assert "bfloat16 contiguous                        2 steps/s   40.00x" in out
    assert main(["machine", str(file), "depth=3"]) == 1 and "Nothing was timed yet" in capsys.readouterr().out
    clock({"bfloat16 contiguous": 0.25})
    assert main(["machine", str(file), "--measure"]) == 0 and "80.00x" in capsys.readouterr().out


def test_measuring_needs_a_file(capsys):
    assert main(["machine", "--measure"]) == 2
    assert "name the FILE" in capsys.readouterr().err


# --- a real clock ----------------------------------------------------------------------------------------------------


def test_trials_leave_the_run_alone(digits, monkeypatch):
    monkeypatch.setattr("lipcert.machine.SHORT_SECONDS", 0.0)
    monkeypatch.setattr("lipcert.machine._ROUNDS_SECONDS", 0.0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run = Run(tiny(), digits)
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    config = tiny(**OPEN | {"compiled": False})
    choice = choose(config, digits, progress=False)
    trial = run.trial(precision="bfloat16", layout="contiguous")
    assert trial.time_steps(2) > 0 and trial.step == 2 and run.step == 0 and run.config == tiny()
    assert all(torch.equal(before[key], value) for key, value in run.network.state_dict().items())
    assert run.stream.layout == "channels_last" and not run.optimizer.state_dict()["state"]
    assert set(choice.measured) == set(EAGER) and choice.config.answers(config)
    assert torch.equal(torch.rand(3), expected), "the caller's generator is not touched"


def test_candidates_of_cuda_have_tf32_and_no_kernels_in_c():
    labels = [candidate.label for candidate in machine.eager_candidates(torch.device("cuda"))]
    assert labels[0] == PLAIN and "tfloat32 channels_last" in labels and not [x for x in labels if "native" in x]


def test_only_whole_answers_count():
    asked = TrainConfig(steps=3, **OPEN)
    assert TrainConfig(steps=3, precision="bfloat16", compiled=True).answers(asked)
    assert not TrainConfig(steps=4).answers(asked) and not TrainConfig(steps=3, seed=1).answers(asked)
    assert TrainConfig(steps=3, device="cpu").answers(TrainConfig(steps=3))
    assert not TrainConfig(steps=3, layout="contiguous").answers(TrainConfig(steps=3, precision="auto"))
