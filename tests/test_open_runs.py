"""Runs that leave settings to the machine: what is stored, found again and resumed are the literals.

Times are made up: see test_machine.py.
"""

import contextlib
import json

import pytest
import torch
import yaml
from made import make_record
from runs import curve, run, stopped, timeless, tiny

from lipcert import certify
from lipcert.__main__ import main
from lipcert.arithmetic import tensor_float
from lipcert.config import TrainConfig, load_config
from lipcert.data import load_dataset, to_unit
from lipcert.machine import Choice
from lipcert.models import Network
from lipcert.paths import local_dir
from lipcert.records import load_records
from lipcert.report import sources
from lipcert.run import Run, TrainingError
from lipcert.study import load_study, run_study
from lipcert.train import fit

OPEN = {"precision": "auto", "layout": "auto", "kernels": "auto", "compiled": "auto"}
LITERAL = {"precision": "bfloat16", "layout": "contiguous", "kernels": "torch", "compiled": False}
SECONDS = {"float32 channels_last": 0.02, "bfloat16 contiguous": 0.01}


@pytest.fixture
def asked(monkeypatch):
    """Whatever is open becomes `LITERAL`; returns the ids of the runs that this was asked for."""
    ids = []

    def choose(config, data, progress=True):
        if not config.left_open():
            return Choice(config)
        ids.append(config.run_id())
        return Choice(config.model_copy(update={key: LITERAL[key] for key in config.left_open()}), SECONDS)

    monkeypatch.setattr("lipcert.train.choose", choose)
    return ids


@pytest.fixture
def long_minutes(monkeypatch):
    """A step that takes a second, whatever the settings, which are returned."""
    timed = []

    def time_steps(self, steps):
        timed.append(self.config)
        return 1.0

    monkeypatch.setattr(Run, "time_steps", time_steps)
    return timed


def checkpoints():
    folder = local_dir() / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- records ---------------------------------------------------------------------------------------------------------


def test_the_record_stores_what_was_chosen_and_a_rerun_measures_nothing(asked, monkeypatch, tmp_path):
    config = tiny(**OPEN)
    first = run(config)
    assert asked == [config.run_id()]
    assert {key: getattr(first.config, key) for key in LITERAL} == LITERAL
    assert first.id == first.config.run_id() != config.run_id() and first.config.answers(config)
    choices = first.training.choices
    assert (choices.precision, choices.layout, choices.compiled) == ("bfloat16", "contiguous", False)
    assert choices.measured == SECONDS
    path = tmp_path / "record.json"
    path.write_text(first.model_dump_json(by_alias=True))
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "again"))
    again = run(load_config(path))
    assert asked == [config.run_id()] and again.training.choices.measured is None
    assert again.id == first.id and again.model.weights_sha256 == first.model.weights_sha256


def test_old_records_have_no_measurement():
    assert make_record(TrainConfig(epochs=1)).training.choices.measured is None


def test_the_layout_moves_images_and_changes_none():
    data = load_dataset("digits")
    images = [Run(tiny(layout=name), data).stream(3)[0] for name in ("channels_last", "contiguous")]
    assert torch.equal(*images) and images[1].is_contiguous()


def test_short_runs_are_float32_and_eager_for_real():
    record = run(tiny(**OPEN, steps=3))
    choices = record.training.choices
    assert (choices.precision, choices.layout, choices.compiled) == ("float32", "channels_last", False)
    assert list(choices.measured) == ["float32 channels_last"]
    assert run(tiny(steps=3)).model.weights_sha256 == record.model.weights_sha256


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["the same command", "its record"])
def test_a_stopped_run_goes_on_bit_for_bit(by, asked, monkeypatch, tmp_path):
    config = tiny(**OPEN)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "whole"))
    whole = run(config)
    whole_curve = curve(whole)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "parts"))
    stopped(config, monkeypatch)
    (record,) = load_records("local")
    assert record.training.status == "stopped" and record.id == whole.id
    asked.clear()
    parts = run(config if by == "the same command" else record.config, resume=True)
    assert not asked, "what was chosen stays chosen"
    assert timeless(parts) == timeless(whole) and curve(parts) == whole_curve
    assert parts.training.choices.measured == SECONDS
    assert not [name for name in checkpoints() if name.endswith("safetensors")]
    asked.clear()
    assert run(config).id == whole.id and asked and not checkpoints()


def test_what_was_chosen_stays_though_the_machine_changed(asked, monkeypatch):
    config = tiny(**OPEN)
    stopped(config, monkeypatch)
    monkeypatch.setitem(LITERAL, "precision", "float32")
    assert run(config, resume=True).config.precision == "bfloat16"
    assert run(config).config.precision == "float32"


def test_an_unfinished_run_is_in_the_way_until_it_is_discarded(asked, monkeypatch):
    config = tiny(**OPEN)
    stopped(config, monkeypatch)
    (record,) = load_records("local")
    asked.clear()
    for same in (config, record.config):
        with pytest.raises(TrainingError, match=f"run {record.id} was stopped .*--resume"):
            fit(same, progress=False)
    assert not asked
    assert run(config, fresh=True).training.status == "finished" and asked and not checkpoints()


def test_the_same_run_asked_for_in_literals_is_in_the_way_too(asked, monkeypatch):
    stopped(tiny(**LITERAL), monkeypatch)
    with pytest.raises(TrainingError, match="was stopped"):
        fit(tiny(**OPEN), progress=False)
    steps, train_step = [], Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda self: steps.append(self.step) or train_step(self))
    run(tiny(**OPEN), resume=True)
    assert steps[0] in (12, 13) and not checkpoints()


def test_a_damaged_note_is_measured_again(asked, monkeypatch):
    config = tiny(**OPEN)
    stopped(config, monkeypatch)
    (local_dir() / "checkpoints" / f"{config.run_id()}.json").write_text("{")
    steps, train_step = [], Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda self: steps.append(self.step) or train_step(self))
    run(config, resume=True)
    assert steps[0] in (12, 13) and len(asked) == 2, "and leads to the same run"


# --- minutes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["the same command", "its record"])
@pytest.mark.parametrize("open_settings", [{}, OPEN], ids=["minutes", "minutes and auto"])
def test_minutes_go_on_too(by, open_settings, asked, long_minutes, monkeypatch):
    config = tiny(**open_settings | {"steps": None, "minutes": 0.5})
    stopped(config, monkeypatch)
    (record,) = load_records("local")
    assert record.config.steps == 30 and record.config.minutes is None and not record.config.left_open()
    long_minutes.clear(), asked.clear()
    steps, train_step = [], Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda self: steps.append(self.step) or train_step(self))
    again = run(config if by == "the same command" else record.config, resume=True)
    assert steps[0] in (12, 13) and steps[-1] == 29 and not long_minutes and not asked
    assert again.id == record.id and again.training.steps == 30


def test_minutes_are_timed_with_what_was_chosen(asked, long_minutes):
    record = run(tiny(**OPEN | {"steps": None, "minutes": 0.1}))
    assert {tuple(getattr(config, key) for key in LITERAL) for config in long_minutes} == {tuple(LITERAL.values())}
    assert record.config.steps == 6


def test_a_checkpoint_under_the_id_of_the_minutes_is_found(asked, long_minutes, monkeypatch):
    # Where the runs of earlier versions left theirs.
    config = tiny(steps=None, minutes=0.5)
    stopped(config, monkeypatch)
    (record,) = load_records("local")
    folder = local_dir() / "checkpoints"
    (folder / f"{record.id}.safetensors").rename(folder / f"{config.run_id()}.safetensors")
    (folder / f"{config.run_id()}.json").unlink()
    long_minutes.clear()
    assert run(config, resume=True).id == record.id and not long_minutes and not checkpoints()


# --- studies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "small.yaml"
    settings = tiny(steps=2).model_dump(mode="json", exclude_defaults=True) | OPEN
    path.write_text(yaml.safe_dump(settings | {"matrix": {"loss": ["emma", "gloro"]}}))
    return path


def test_a_study_finds_the_runs_of_its_open_cells(asked, study, capsys):
    cells = load_study(study)
    paths = list(run_study(cells, progress=False))
    assert len(asked) == 2 and [path.stem for path in paths] == [r.id for r in map(one_of("local"), cells.cells)]
    assert list(run_study(cells, progress=False)) == [] and len(asked) == 2
    assert main(["study", str(study), "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(path.stem in listed for path in paths) and "2 of 2" in listed
    for path in paths:
        (local_dir().parent / "runs").mkdir(exist_ok=True)
        path.rename(local_dir().parent / "runs" / path.name)
    assert [record.id for record in cells.records().values()] == [path.stem for path in paths]
    assert list(run_study(cells, progress=False)) == []


def one_of(where):
    return lambda cell: next(record for record in load_records(where) if record.config.answers(cell))


def test_a_stopped_run_answers_no_cell(asked, study, monkeypatch):
    cells = load_study(study, steps=20)
    stopped(cells.cells[0], monkeypatch)
    assert len(list(run_study(cells, progress=False))) == 2


def test_literal_cells_want_their_own_run(asked, study):
    list(run_study(load_study(study), progress=False))
    literal = load_study(study, **LITERAL | {"precision": "float32"})
    assert len(list(run_study(literal, progress=False))) == 2


def test_a_file_that_leaves_settings_open_is_the_command_of_its_runs(tmp_path, monkeypatch, study):
    folder = tmp_path / "notebooks/params/study"
    folder.mkdir(parents=True)
    study.rename(folder / "open.yaml")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "_commands", sources._commands.__wrapped__)
    record = make_record(tiny(steps=2, **LITERAL, loss="gloro"))
    assert sources.command_of(record) == "lipcert study notebooks/params/study/open.yaml" and sources.is_cell(record)


# --- nothing of it certifies -----------------------------------------------------------------------------------------


def test_certificates_do_not_depend_on_how_a_network_was_trained():
    data = load_dataset("digits")
    fast = Run(tiny(precision="bfloat16", layout="contiguous"), data)
    for _ in range(5):
        fast.train_step()
    plain = Run(tiny(), data)
    plain.network.load_state_dict(fast.network.state_dict())
    images_BCHW = to_unit(data.test.images_NCHW[:64], data.scale, torch.float64)
    chains = [one.network.plain() for one in (fast, plain)]
    assert {weight.dtype for weight in chains[0].state_dict().values()} == {torch.float32}
    found, expected = (certify(chain, images_BCHW) for chain in chains)
    for name in ("prediction_B", "radius_B", "runner_up_B", "estimated_radius_B"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.bounds.upper == expected.bounds.upper and (found.radius_B > 0).any()


def test_tf32_is_on_in_forward_and_gradient_alone(monkeypatch):
    on, seen = [], []

    @contextlib.contextmanager
    def recorded(wanted, device):
        on.append(wanted)
        yield
        on.pop()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(("forward", on[-1]))
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            seen.append(("gradient", on[-1]))
            return slope

    monkeypatch.setattr("lipcert.run.tensor_float", recorded)
    monkeypatch.setattr("lipcert.run.check_machine", lambda *_: None)
    estimate = Network.lipschitz_estimate
    monkeypatch.setattr(
        Network, "lipschitz_estimate", lambda self, steps: seen.append(("power", on[-1])) or estimate(self, steps)
    )
    run = Run(tiny(precision="tfloat32"), load_dataset("digits"))
    run.network.backbone.register_forward_hook(lambda module, inputs, output: Watched.apply(output))
    run.train_step()
    assert seen == [("power", False), ("forward", True), ("power", False), ("gradient", True)] and not on


@pytest.mark.parametrize("before", [("highest", True), ("high", False), ("highest", False)])
def test_tf32_goes_back_to_what_it_was(before):
    def state():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    kept = state()
    try:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        for on in (True, False):
            with contextlib.suppress(ZeroDivisionError), tensor_float(on, torch.device("cuda")):
                assert state() == ("high" if on else "highest", on)
                with tensor_float(not on, torch.device("cpu")):
                    assert state()[1] == on
                raise ZeroDivisionError
            assert state() == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_runs_of_different_sizes_train():
    for width in (8, 16):
        record = run(tiny(steps=3, width=width, compiled=True))
        assert record.training.choices.compiled and json.loads(record.model_dump_json())["config"]["compiled"] is True
        eager = run(tiny(steps=3, width=width))
        assert record.bounds.estimate == pytest.approx(eager.bounds.estimate, rel=1e-3)
