"""Studies: a file of lists becomes runs, each made once; the command says what is there and what is missing."""

import json
import math
import os
import signal

import pytest
import yaml
from made import make_record

import lipcert.train
from lipcert.__main__ import main
from lipcert.chain import NotCertifiable
from lipcert.config import TrainConfig
from lipcert.paths import ROOT, local_dir, results_dir
from lipcert.records import load_records
from lipcert.report import sources
from lipcert.run import Run, TrainingError
from lipcert.study import load_study, run_study

TINY = {"dataset": "digits", "depth": 1, "width": 4, "neck_width": 8, "batch": 64, "steps": 2, "device": "cpu"}
STUDIES = [p for p in (ROOT / "notebooks" / "params" / "study").glob("*.yaml") if "\nmatrix:" in p.read_text()]
MATRIX = {"family": ["liresnet", "convnet"], "loss": ["emma", "gloro"]}


@pytest.fixture
def file(tmp_path):
    """Writes a study file and returns its path."""

    def write(matrix=MATRIX, **settings):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(TINY | settings | {"matrix": matrix}, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def counted(monkeypatch):
    """The ids of the runs that `fit` was asked for."""
    asked, fit = [], lipcert.train.fit

    def counting(config, **options):
        asked.append(config.run_id())
        return fit(config, **options)

    monkeypatch.setattr(lipcert.train, "fit", counting)
    return asked


def ids(study):
    return [cell.run_id() for cell in study.cells]


def publish_by_hand(run):
    """The record of a finished run among the published ones, and no longer among your own."""
    source, target = local_dir() / "runs" / f"{run}.json", results_dir() / "runs" / f"{run}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_the_last_list_fastest(file):
    study = load_study(file())
    combinations = [(family, loss) for family in MATRIX["family"] for loss in MATRIX["loss"]]
    assert study.name == "small" and study.axes == {key: tuple(values) for key, values in MATRIX.items()}
    assert study.cells == tuple(TrainConfig(**TINY, family=family, loss=loss) for family, loss in combinations)
    assert study.records() == dict.fromkeys(study.cells)


def test_overrides_hold_for_every_cell_and_pick_one_value_of_a_list(file):
    study = load_study(file(), steps=5, loss="gloro")
    assert [(cell.family, cell.loss, cell.steps) for cell in study.cells] == [
        ("liresnet", "gloro", 5), ("convnet", "gloro", 5),
    ]  # fmt: skip
    assert study.axes["loss"] == ("gloro",)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_project_can_be_read(path):
    study = load_study(path)
    assert len(set(ids(study))) == len(study.cells) == math.prod(map(len, study.axes.values())) >= 1


MISTAKES = {  # text of the file, arguments behind it -> what the sentence holds
    "no matrix": ("dataset: digits\nsteps: 1\n", [], ["small.yaml", "a key 'matrix'", "lipcert train"]),
    "matrix of no lists": ("steps: 1\nmatrix: {depth: 3}\n", [], ["small.yaml", "lists of values"]),
    "an empty list": ("steps: 1\nmatrix: {depth: []}\n", [], ["small.yaml", "lists of values"]),
    "matrix is a list": ("steps: 1\nmatrix: [depth]\n", [], ["small.yaml", "lists of values"]),
    "not a mapping": ("- 1\n", [], ["small.yaml", "matrix"]),
    "twice": ("steps: 1\ndepth: 2\nmatrix: {depth: [1]}\n", [], ["depth both fixed and in the matrix", "keep one"]),
    "a cell that cannot be": (
        "steps: 1\ncentering: true\nmatrix: {family: [liresnet, resnet]}\n", [],
        ["small.yaml, cell {'family': 'resnet'}", "centering=True", "liresnet only"],
    ),
    "misspelt": ("steps: 1\nmatrix: {dpeth: [1]}\n", [], ["small.yaml, cell {'dpeth': 1}", "did you mean 'depth'"]),
    "no length": ("matrix: {depth: [1]}\n", [], ["exactly one of steps, epochs, minutes"]),
    "minutes": ("minutes: 1.5\nmatrix: {depth: [1]}\n", [], ["minutes=1.5 in a study: give epochs or steps"]),
    "minutes in the matrix": ("matrix: {minutes: [1.5, 2.5]}\n", [], ["minutes=1.5 in a study"]),
    "a value not in the list": ("steps: 1\nmatrix: {depth: [1, 2]}\n", ["depth=3"], ["depth=3", "has [1, 2]"]),
    "misspelt override": ("steps: 1\nmatrix: {depth: [1]}\n", ["widht=3"], ["widht=3", "did you mean 'width'"]),
    "not YAML": ("depth: [", [], ["small.yaml", "not readable as YAML"]),
    "a key that is no text": ("steps: 1\nmatrix: {1: [2]}\n", [], ["small.yaml", "1"]),
    "a setting called path": ("steps: 1\nmatrix: {depth: [1]}\n", ["path=x"], ["path='x': unknown parameter"]),
    "an empty matrix": ("steps: 1\nmatrix: {}\n", [], ["small.yaml", "lists of values"]),
    "the same value twice": ("steps: 1\nmatrix: {depth: [1, 1]}\n", [], ["small.yaml", "depth", "twice"]),
    "a network that cannot be": (
        "dataset: digits\nsteps: 1\nfamily: gloro\nmatrix: {depth: [2, 3]}\n", [],
        ["small.yaml, cell {'depth': 3}", "2, 4, 6, 7, 8"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("listing", [["--list"], ["--quiet"]])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_a_sentence_before_any_run(name, listing, tmp_path, capsys):
    text, arguments, expected = MISTAKES[name]
    path = tmp_path / "small.yaml"
    path.write_text(text)
    assert main(["study", str(path), *arguments, *listing]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lipcert: ") and "Traceback" not in captured.err and not captured.out
    for words in expected:
        assert words in captured.err, words
    assert not local_dir().exists()


def test_a_missing_file_is_named(capsys):
    assert main(["study", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_each_seed_gets_the_command_that_makes_it(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks/params/study"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("steps: 3\nwidth: 4\nmatrix: {depth: [1, 2], seed: [0, 1]}\n")
    (folder / "b.yaml").write_text("steps: 3\nwidth: 4\nmatrix: {depth: [1], seed: [2, 3]}\n")
    (folder / "c.yaml").write_text("steps: 3\nwidth: 4\nseed: 5\ndepth: 1\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "_commands", sources._commands.__wrapped__)

    def command(**settings):
        config = TrainConfig(steps=3, width=4, **settings)
        text = sources.command_of(make_record(config)).replace("notebooks/params/study/", "")
        return text.replace(config.run_id(), "ID")

    assert [command(depth=1, seed=seed) for seed in (1, 3, 5, 9)] == [
        "lipcert study a.yaml", "lipcert study b.yaml", "lipcert train c.yaml", "lipcert train c.yaml seed=9",
    ]  # fmt: skip
    # A study that lists its seeds refuses another.
    assert command(depth=2, seed=9) == "lipcert train results/runs/ID.json"


# --- the runs ---------------------------------------------------------------------------------------------------------


def test_every_missing_run_is_made_once(file, counted):
    study = load_study(file())
    paths = list(run_study(study, progress=False))
    assert [path.stem for path in paths] == ids(study) == counted
    assert {record.id for record in load_records("local")} == set(ids(study))
    assert list(run_study(study, progress=False)) == [] and len(counted) == 4
    more = load_study(file({"family": ["liresnet", "convnet"], "loss": ["emma", "gloro", "trades_kl"]}))
    assert [path.stem for path in run_study(more, progress=False)] == [ids(more)[2], ids(more)[5]]


def test_published_runs_are_not_made_again(file, counted):
    study = load_study(file({"loss": ["emma", "gloro"]}))
    list(run_study(study, progress=False))
    publish_by_hand(ids(study)[0])
    assert list(run_study(study, progress=False)) == []
    found = study.records()
    assert found[study.cells[0]].id == ids(study)[0] and found[study.cells[1]] is None


def test_an_unfinished_run_goes_on_from_its_checkpoint(file, monkeypatch):
    study = load_study(file({"loss": ["emma", "gloro"]}, steps=20))
    whole = {path.stem: path.read_text() for path in run_study(study, progress=False)}
    for path in (local_dir() / "runs").iterdir():
        path.unlink()
    steps, stopped, train_step = [], [], Run.train_step

    def counting(self):
        if self.config.loss == "gloro" and self.step == 8 and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the ninth step, which is finished
        steps.append(self.step)
        train_step(self)

    monkeypatch.setattr(Run, "train_step", counting)
    with pytest.raises(KeyboardInterrupt):
        list(run_study(study, progress=False))
    assert main(["study", str(file({"loss": ["emma", "gloro"]}, steps=20)), "--list"]) == 1
    steps.clear()
    (path,) = run_study(study, progress=False)
    assert steps == list(range(9, 20)), "the first nine steps are not repeated, nor is the finished run"
    fresh, resumed = (json.loads(text)["model"]["weights_sha256"] for text in (whole[path.stem], path.read_text()))
    assert fresh == resumed


@pytest.mark.parametrize("error", [TrainingError, NotCertifiable, ValueError])
def test_a_run_that_cannot_go_on_is_named_and_the_others_are_made(error, file, monkeypatch, capsys):
    fit = lipcert.train.fit

    def failing(config, **options):
        if config.loss == "emma":
            raise error("it diverged")
        return fit(config, **options)

    monkeypatch.setattr(lipcert.train, "fit", failing)
    study = load_study(file({"loss": ["emma", "gloro"]}))
    assert [path.stem for path in run_study(study, progress=False)] == ids(study)[1:]
    assert f"{ids(study)[0]}: it diverged" in capsys.readouterr().err


def test_a_run_of_uncommitted_code_is_not_made_again_but_named(file, monkeypatch, capsys):
    monkeypatch.setattr("lipcert.run.git_state", lambda: ("c" * 40, True))
    study = load_study(file({"loss": ["emma"]}))
    list(run_study(study, progress=False))
    capsys.readouterr()
    assert list(run_study(study, progress=False)) == []
    assert f"{ids(study)[0]}: not made again, but has dirty=True: commit the code" in capsys.readouterr().err


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_runs_and_lists_again(file, capsys):
    path = file({"loss": ["emma", "gloro"]})
    study = load_study(path)
    assert main(["study", path, "--list"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:-1]] == [["missing", run] for run in ids(study)]
    assert lines[-1] == "0 of 2 runs of small are there" and not local_dir().exists()

    assert main(["study", path, "--quiet", "loss=emma"]) == 0
    assert "1 of 1 runs of small are there" in capsys.readouterr().out
    assert main(["study", path, "--list"]) == 1
    assert "1 of 2 runs" in capsys.readouterr().out

    assert main(["study", path, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert f"{local_dir() / 'runs' / ids(study)[1]}.json" in out and "small: run 1 of 1" in err
    publish_by_hand(ids(study)[0])
    assert main(["study", path, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["published", ids(study)[0]], ["yours", ids(study)[1]]]
    assert all("clean" in line and "VRA" in line for line in lines[:-1])


def test_a_damaged_record_is_named_not_taken_for_a_run(file, capsys):
    path = file({"loss": ["emma"]})
    (run,) = ids(load_study(path))
    (local_dir() / "runs").mkdir(parents=True)
    (local_dir() / "runs" / f"{run}.json").write_text("{}")
    assert main(["study", path, "--list"]) == 2
    assert run in capsys.readouterr().err
