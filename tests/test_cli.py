"""The command line: the same functions, errors in sentences, exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lipcert.__main__ import main
from lipcert.paths import local_dir
from lipcert.records import load_records

SETTINGS = {"dataset": "digits", "depth": 1, "width": 4, "neck_width": 8, "batch": 64, "steps": 4, "device": "cpu"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return str(path)


def lipcert(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lipcert", *arguments], capture_output=True, text=True, env=environment, **options
    )


@pytest.mark.parametrize("arguments", [(), ("train",), ("certify",), ("runs",), ("runs", "list")])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--help"])
    assert leaving.value.code == 0 and "usage: lipcert" in capsys.readouterr().out


def test_help_does_not_load_torch():
    code = "import sys; from lipcert.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


def test_params_lists_every_parameter(capsys):
    assert main(["params"]) == 0
    out = capsys.readouterr().out
    assert "depth: integer >= 1, <= 1000" in out and "radius" in out


def test_train_list_show_certify_publish(file, capsys):
    assert main(["train", file, "depth=2", "--quiet"]) == 0
    out = capsys.readouterr().out
    (record,) = load_records("local")
    assert record.config.depth == 2 and out.splitlines()[-1] == str(local_dir() / "runs" / f"{record.id}.json")
    assert main(["runs", "list"]) == 0
    assert record.id in capsys.readouterr().out
    assert main(["runs", "show", record.id[:12]]) == 0
    assert record.id in capsys.readouterr().out
    assert main(["certify", record.id, "--count", "3"]) == 0
    out = capsys.readouterr().out
    assert "certified at l2 radius 36/255" in out and "of 3 correct" in out and "proven" in out


MISTAKES = {
    "no such file": (["train", "none.yaml"], "none.yaml"),
    "misspelt": (["train", "FILE", "dpeth=12"], "dpeth=12"),
    "text for a number": (["train", "FILE", "depth=twelve"], "depth='twelve'"),
    "fraction for an integer": (["train", "FILE", "depth=12.5"], "depth=12.5"),
    "zero": (["train", "FILE", "depth=0"], "depth=0"),
    "no value": (["train", "FILE", "depth"], "NAME=VALUE"),
    "broken value": (["train", "FILE", "depth=["], "depth"),
    "a setting called path": (["train", "FILE", "path=x"], "path='x': unknown parameter"),
    "two lengths": (["train", "FILE", "epochs=1.0"], "exactly one of steps, epochs, minutes"),
    "no such network": (["certify", "nothing"], "nothing"),
    "no such run": (["runs", "show", "nothing"], "nothing"),
    "nothing to publish": (["runs", "publish", "nothing"], "nothing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_a_sentence_and_code_two(name, file, capsys):
    arguments, expected = MISTAKES[name]
    assert main([file if a == "FILE" else a for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lipcert: ") and expected in captured.err and "Traceback" not in captured.err
    assert not captured.out and not local_dir().exists()


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["certify", "x", "--count", "many"]])
def test_unknown_commands_and_options(arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2


def test_a_damaged_card_is_a_sentence(file, capsys):
    assert main(["train", file, "--quiet"]) == 0
    (record,) = load_records("local")
    card = local_dir() / "models" / f"{record.id}.json"
    card.write_text("{}")
    assert main(["certify", record.id]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_closed_pipe_is_no_error(monkeypatch, capsys):
    def closed():
        raise BrokenPipeError

    monkeypatch.setattr("lipcert.commands.list_runs", closed)
    assert main(["runs", "list"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_module_command_fails_without_traceback(file):
    result = lipcert("train", file, "dpeth=12")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "did you mean 'depth'" in result.stderr


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_resume_finishes(file, results):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lipcert", "train", file, "steps=20000"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = ""
    while "steps of 64 images" not in line:
        line = process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    (record,) = load_records("local")
    assert record.training.status == "stopped" and 0 < record.training.steps < 20000
    again = lipcert("train", file, "steps=20000", timeout=60)
    assert again.returncode == 2 and "--resume" in again.stderr
