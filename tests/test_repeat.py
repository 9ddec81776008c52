"""A run made again from its record: what is compared, and that a difference is seen."""

import json

import pytest
from runs import run, stopped, tiny

from lipcert.__main__ import main
from lipcert.paths import local_dir, results_dir
from lipcert.records import RecordError, publish, read_record
from lipcert.repeat import DIFFERENT, SAME, UNKNOWN, repeat
from lipcert.run import Run


@pytest.fixture
def config():
    return tiny(steps=6)


def verdicts(found):
    return {part: verdict for part, verdict, _ in found.parts}


def test_a_run_made_again_is_the_same_to_the_bit_and_leaves_the_first_alone(config, monkeypatch):
    record = run(config)
    path = local_dir() / "runs" / f"{record.id}.json"
    before = path.read_bytes()
    step, steps = Run.train_step, []
    monkeypatch.setattr(Run, "train_step", lambda self: steps.append(self.step) or step(self))
    found = repeat(record.id, progress=False)
    assert steps == list(range(config.steps)), "it was trained again"
    assert set(verdicts(found).values()) == {SAME} and found.same and found.circumstances == ()
    assert path.read_bytes() == before and found.path == local_dir() / "repeat" / "local" / "runs" / path.name
    made = found.path.stat().st_mtime_ns
    assert repeat(record.id[:-2], progress=False).path.stat().st_mtime_ns == made, "and only once"


def changed(path, change):
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "part, change",
    [
        ("weights", lambda facts: facts["model"].update(weights_sha256="0" * 64)),
        ("images", lambda facts: facts["data"].update(sha256="0" * 64)),
        ("certified and correct", lambda facts: facts["test"]["results"][2].update(certified_correct=1)),
    ],
)
def test_a_record_that_says_something_else_is_found_out(config, part, change, capsys):
    record = run(config)
    changed(local_dir() / "runs" / f"{record.id}.json", change)
    assert main(["runs", "repeat", record.id, "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "is not reproduced bit for bit" in said
    (line,) = (line for line in said.splitlines() if DIFFERENT in line)
    assert line.startswith(part)


@pytest.mark.parametrize("name, part", [("curve", "training curve"), ("radii", "radius of every image")])
def test_a_changed_digit_in_a_file_is_found_out(config, name, part):
    record = run(config)
    path = local_dir() / (record.training.curve if name == "curve" else record.test.radii)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:-1] + str((int(lines[-1][-1]) + 1) % 10)]) + "\n")
    found = repeat(record.id, progress=False)
    assert [part] == [part for part, verdict in verdicts(found).items() if verdict == DIFFERENT] and not found.same


def test_what_was_not_kept_and_what_has_changed_around_the_run_is_named(config, capsys):
    record = run(config)
    path = local_dir() / "runs" / f"{record.id}.json"
    changed(path, lambda facts: facts["provenance"].update(commit="c" * 40, dirty=False))
    changed(path, lambda facts: facts["provenance"]["versions"].update(torch="1.0"))
    publish(record.id, brief=True)
    path.unlink()
    assert main(["runs", "repeat", record.id, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert (
        f"radius of every image   {UNKNOWN}" in said
        and "torch: 1.0 then, " in said
        and "commit: cccccccccc then, " in said
    )
    assert f"{record.id} is reproduced: " in said
    assert (results_dir() / "runs" / path.name).exists() and not path.exists()


def test_only_finished_runs_are_repeated(config, monkeypatch):
    stopped(config, monkeypatch, step=3)
    with pytest.raises(RecordError, match="is stopped: only finished runs are repeated"):
        repeat(config.run_id(), progress=False)
    with pytest.raises(RecordError, match="no run 'nothing'"):
        repeat("nothing", progress=False)
    assert read_record(local_dir() / "runs" / f"{config.run_id()}.json").training.status == "stopped"
