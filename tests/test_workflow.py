"""The study as a workflow: what is missing, what is made, and what a kill leaves for the next time."""

import contextlib
import csv
import errno
import fcntl
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import yaml
from made import make_record
from runs import TINY, curve, run, timeless

from lipcert.__main__ import main
from lipcert.config import TrainConfig
from lipcert.paths import ROOT, local_dir, results_dir
from lipcert.records import read_record, write_record
from lipcert.settings import ConfigError
from workflow import train
from workflow.cells import Finished, cell_of, cells_of

SNAKEFILE = ROOT / "workflow" / "Snakefile"
STUDIES, QUEUE = (sorted((ROOT / "notebooks" / "params" / kind).glob("*.yaml")) for kind in ("study", "gpu"))
engine = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake"), reason='needs snakemake: pip install -c constraints.txt -e ".[study]"'
)


@pytest.fixture
def file(tmp_path):
    """Writes a file of settings into a folder with a space in its name and returns its path."""

    def write(name="small", **settings):
        fixed = {key: value for key, value in TINY.items() if key not in settings.get("matrix", {})}
        path = tmp_path / "my studies" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(fixed | settings, sort_keys=False))
        return path

    return write


def snakemake(*arguments, cwd, snakefile=SNAKEFILE, **variables):
    """Started, with what it says in a pipe."""
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


def said(process):
    return process.communicate(timeout=600)[0]


def to_train(output):
    """The runs that a dry run names."""
    mark = "train, certify and record "
    return {line.split(mark)[1].split(":")[0] for line in output.splitlines() if mark in line}


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES + QUEUE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_cell_of_the_project_is_found_again_by_its_picks(path):
    overrides = {"device": "cuda"} if path in QUEUE else {}
    lists = yaml.safe_load(path.read_text()).get("matrix", {})
    found = cells_of(path, **overrides)
    assert len({cell.id for cell in found}) == len(found) == math.prod(map(len, lists.values()))
    for cell in found:
        assert cell_of(path, cell.picks) == cell


@pytest.mark.parametrize("name", ["linf-losses-mnist", "losses-10"])  # values that YAML would take for lists; words
def test_the_command_of_a_cell_makes_that_cell(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for cell in cells_of(ROOT / "notebooks" / "params" / "study" / f"{name}.yaml")[::4]:
        assert cell.command().startswith(f"lipcert study notebooks/params/study/{name}.yaml ")
        main(["study", str(cell.file.relative_to(ROOT)), *cell.picks, "--list"])
        first, last = capsys.readouterr().out.splitlines()
        assert cell.id in first and "of 1 runs" in last


def test_words_are_quoted_only_where_yaml_would_read_something_else(file):
    path = file(matrix={"loss": ["emma"], "plain_weight": ["0.1", "[1]-exp-[0.01]"], "flip": [None, True]})
    commands = [cell.command() for cell in cells_of(path)]
    assert commands[0] == "lipcert study small.yaml loss=emma 'plain_weight=\"0.1\"' flip=null"
    assert commands[3] == "lipcert study small.yaml loss=emma 'plain_weight=\"[1]-exp-[0.01]\"' flip=true"


def test_picks_that_leave_several_runs_are_refused(file):
    path = file(matrix={"seed": [0, 1], "loss": ["emma", "gloro"]})
    with pytest.raises(ConfigError, match=r"small\.yaml with seed=0: 2 runs, must be 1"):
        cell_of(path, ["seed=0"])


@pytest.mark.parametrize("text", ["depth: [", "- 1\n", "3"])
def test_files_that_are_no_settings_are_named(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        cells_of(tmp_path / "bad.yaml")


# --- what is there ----------------------------------------------------------------------------------------------------


def put(config, folder=None, **facts):
    """A record of these settings, made by hand."""
    return write_record(make_record(config, **facts), folder)


def test_a_finished_record_is_there_published_before_yours(file):
    (cell,) = cells_of(file())
    assert Finished.read().path_of(cell) is None
    put(cell.config, status="stopped")
    assert Finished.read().path_of(cell) is None, "a stopped run is not there"
    own = put(cell.config)
    assert Finished.read().path_of(cell) == own
    assert Finished.read().tally([cell]) == "1 runs: 0 published, 1 yours, 0 missing"
    published = put(cell.config, results_dir())
    assert Finished.read().path_of(cell) == published
    assert Finished.read().tally([cell, cell]) == "1 runs: 1 published, 0 yours, 0 missing"
    for path in (own, published):
        path.unlink()
    assert Finished.read().tally([cell]) == "1 runs: 0 published, 0 yours, 1 missing"


def test_one_of_your_records_that_cannot_be_read_is_missing(file):
    (cell,) = cells_of(file())
    put(cell.config).write_text("{")
    assert Finished.read().path_of(cell) is None


LEFT_OPEN = {
    "auto": ({"precision": "auto", "kernels": "auto"}, {"precision": "bfloat16", "kernels": "native"}),
    "minutes": ({"steps": None, "minutes": 1.5}, {"steps": 12345}),
    "both": ({"steps": None, "minutes": 1.5, "layout": "auto"}, {"steps": 7, "layout": "contiguous"}),
}


@pytest.mark.parametrize("asked, chosen", LEFT_OPEN.values(), ids=LEFT_OPEN)
def test_what_was_left_open_is_answered_by_any_choice_and_by_nothing_else(asked, chosen, file):
    settings = TINY | asked
    (cell,) = cells_of(file(**asked))
    put(TrainConfig(**(settings | {"minutes": None} | chosen | {"seed": 1})))
    assert Finished.read().path_of(cell) is None
    path = put(TrainConfig(**(settings | {"minutes": None} | chosen)))
    assert Finished.read().path_of(cell) == path


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_run_that_another_process_makes_is_waited_for_and_not_made_again(file, tmp_path, capfd, monkeypatch):
    path = file()
    (cell,) = cells_of(path)
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("made again"))
    lock = local_dir() / "workflow" / "locks" / cell.id
    lock.parent.mkdir(parents=True)
    codes, stamp = [], tmp_path / "stamp"
    job = threading.Thread(target=lambda: codes.append(train.main(str(stamp), str(path))))
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        job.start()
        job.join(0.5)
        assert job.is_alive() and not stamp.exists()
        record = put(cell.config)
    job.join(30)
    assert codes == [0] and stamp.read_text() == f"{record}\n"
    assert f"{cell.id}: another process is making it; waiting" in capfd.readouterr().err


def test_a_file_system_without_locks_is_no_obstacle(file, tmp_path, capfd, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    path = file()
    record = put(cells_of(path)[0].config)
    monkeypatch.setattr(train.fcntl, "flock", refuse)
    assert train.main(str(tmp_path / "stamp"), str(path)) == 0
    assert (tmp_path / "stamp").read_text() == f"{record}\n" and "not locked" in capfd.readouterr().err


@pytest.mark.parametrize("status", [1, 130])
def test_a_job_without_a_record_leaves_no_stamp(status, file, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train", lambda *_: status)
    assert train.main(str(tmp_path / "stamp"), str(file())) == status
    assert not (tmp_path / "stamp").exists()


# --- the workflow -----------------------------------------------------------------------------------------------------


@engine
def test_a_fresh_clone_says_exactly_what_is_missing(tmp_path):
    clone, elsewhere = tmp_path / "a clone", tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    for path in sorted((clone / "results" / "runs").glob("*.json"))[::7]:  # so that something is missing for certain
        path.unlink()
    there = {path.stem for path in (clone / "results" / "runs").glob("*.json") if finished(path)}
    asked = {cell.id for path in STUDIES for cell in cells_of(path)}
    assert len(asked - there) >= 5 and asked & there
    variables = {"LIPCERT_RESULTS": str(clone / "results"), "LIPCERT_DATA": ""}
    arguments = {"cwd": elsewhere, "snakefile": clone / "workflow" / "Snakefile", **variables}
    output = said(snakemake("-n", **arguments))
    assert to_train(output) == asked - there
    assert f"The study has {len(asked)} runs" in output and f"{len(asked - there)} missing." in output
    assert "build the book" in output and output.count(": lipcert study notebooks/params/study/") >= 5
    output = said(snakemake("-n", "gpu", "class_count", **arguments))
    wanted = {cell.id for path in QUEUE for cell in cells_of(path)}
    wanted |= {cell.id for path in STUDIES if path.stem.startswith("class-count") for cell in cells_of(path)} - there
    assert to_train(output) == wanted and "build the book" not in output


def finished(path):
    return read_record(path).training.status == "finished"


@engine
def test_a_changed_file_asks_for_its_changed_runs_and_for_no_others(file, tmp_path):
    changed, kept = file("changed", matrix={"lr": [0.01, 0.02]}), file("kept", width=16, matrix={"seed": [0, 1]})
    for cell in cells_of(changed):
        put(cell.config)
    published, missing = cells_of(kept)
    put(published.config, results_dir())
    changed = cells_of(file("changed", matrix={"lr": [0.01, 0.03]}))
    output = said(snakemake("-n", "runs", "--config", f"studies={kept.parent}", cwd=tmp_path))
    assert to_train(output) == {changed[1].id, missing.id}
    assert "The study has 4 runs: 1 published, 1 yours, 2 missing." in output


def test_a_published_run_that_diverged_is_there_and_your_own_is_not(file):
    mine, theirs = cells_of(file("small", matrix={"seed": [0, 1]}))
    put(mine.config, status="diverged")
    put(theirs.config, results_dir(), status="diverged")
    found = Finished.read()
    assert found.path_of(mine) is None and found.path_of(theirs) == results_dir() / "runs" / f"{theirs.id}.json"


def wait_for(condition, process=None, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


@engine
@pytest.mark.slow
def test_killed_twice_it_makes_the_rest_and_goes_on_from_the_checkpoint(file, tmp_path, monkeypatch):
    diverging = {"family": "resnet", "depth": 12, "branch_scale": 1.0, "lr": 10.0, "clip": 1e9, "optimizer": "adam"}
    (bad,), path = cells_of(file("bad", **diverging)), file("three", matrix={"steps": [8, 1000, 12]})
    cells = cells_of(path)
    first, second, third = (cell.id for cell in cells)
    records = {run: local_dir() / "runs" / f"{run}.json" for run in (first, second, third, bad.id)}
    checkpoint = local_dir() / "checkpoints" / f"{second}.safetensors"
    log = local_dir() / "workflow" / f"{second}.1.log"

    def start(*targets):
        return snakemake("-c1", *targets, "--config", f"studies={path.parent}", cwd=tmp_path)

    def killed_in_the_second(number):
        """With all of its processes, as by a batch system or a power cut."""
        log.unlink(missing_ok=True)
        process = start("three")
        wait_for(lambda: log.exists() and f"{second}: 1000 steps" in log.read_text(), process)
        time.sleep(0.5)
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
        said(process)

    put(cells[0].config)
    untouched = records[first].stat().st_mtime_ns
    killed_in_the_second(signal.SIGTERM)
    wait_for(records[second].exists)  # the kernel has a little left to do
    stopped = json.loads(records[second].read_text())["training"]
    assert checkpoint.exists() and stopped["status"] == "stopped" and 0 < stopped["steps"] < 1000
    rows = times(read_record(records[second]))
    killed_in_the_second(signal.SIGKILL)
    assert checkpoint.exists() and not finished(records[second])

    process = start("three", "bad")
    output = said(process)
    assert process.returncode == 1 and f"{bad.id}: Diverged: loss=nan" in output, output
    assert to_train(output) <= {second, third, bad.id} and records[first].stat().st_mtime_ns == untouched
    assert finished(records[second]) and finished(records[third])
    assert read_record(records[bad.id]).training.status == "diverged"
    resumed = read_record(records[second])
    assert times(resumed)[: len(rows)] == rows, "to the very times: not trained again"
    assert resumed.provenance.command == cells[1].command()
    assert to_train(said(start("-n", "three"))) == set()

    bits, radii = timeless(resumed), (local_dir() / resumed.test.radii).read_bytes()
    losses = curve(resumed)
    monkeypatch.setenv("LIPCERT_RESULTS", str(tmp_path / "again"))
    monkeypatch.setenv("LIPCERT_COMMAND", cells[1].command())
    whole = run(cells[1].config)
    assert curve(whole) == losses and (local_dir() / whole.test.radii).read_bytes() == radii
    assert timeless(whole) == bits | {"provenance": timeless(whole)["provenance"]}


def times(record):
    with open(local_dir() / record.training.curve, newline="") as lines:
        return list(csv.reader(lines))
