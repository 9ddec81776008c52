"""The commands people type: papermill with and without an output path, right and wrong parameters; notebook style."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lipcert.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = ["-p", "depth", "2", "-p", "width", "8", "-p", "neck_width", "16", "-p", "epochs", "1"]


def papermill(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run papermill in the project's folder as a user would."""
    command = [sys.executable, "-m", "papermill", *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, text=True, timeout=300, **options)


def tree_state() -> str:
    """What git sees of the working tree, contents included."""
    parts = [["git", "status", "--porcelain"], ["git", "diff", "HEAD", "--", "notebooks", "results", "book"]]
    return "".join(subprocess.run(p, cwd=ROOT, capture_output=True, text=True, check=True).stdout for p in parts)


@pytest.mark.slow
def test_redirected_without_output_path_prints_the_notebook_and_leaves_the_repository_alone(tmp_path, results) -> None:
    before = tree_state()
    out = tmp_path / "out.ipynb"
    with out.open("w") as file:
        done = papermill("notebooks/train.ipynb", *TINY, stdout=file, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = json.loads(out.read_text())["cells"]
    assert any("injected-parameters" in cell["metadata"].get("tags", []) for cell in cells)
    assert list((results / "local" / "runs").glob("digits-liresnet-L2W8-*.json"))
    assert tree_state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("dpeth", "12", "dpeth=12: unknown parameter (did you mean 'depth'?)"),
        ("depth", "twelve", "depth='twelve': Input should be a valid integer"),
        ("depth", "12.5", "depth=12.5: Input should be a valid integer"),
        ("depth", "0", "depth=0: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_parameters_stop_the_run_and_name_the_known_ones(name, value, says, tmp_path, results) -> None:
    before = tree_state()
    out = tmp_path / "out.ipynb"
    done = papermill("notebooks/train.ipynb", str(out), "-p", name, value, capture_output=True)
    assert done.returncode != 0
    assert f"ConfigError: {says}" in done.stderr
    assert re.search(r"depth: integer >= 1, <= 1000; default 6", done.stderr)
    assert out.exists()
    assert not list(results.rglob("*"))
    assert tree_state() == before


def test_papermill_lists_the_parameters_with_types_and_meanings() -> None:
    done = papermill("--help-notebook", "notebooks/train.ipynb", capture_output=True)
    assert done.returncode == 0
    assert re.search(r"depth: int \(default 6\)\s+linear residual blocks", done.stdout)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin_and_stripped(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    assert len(code) <= 12
    for cell, source in zip((c for c in cells if c["cell_type"] == "code"), code, strict=True):
        assert not re.search(r"^\s*(def|class) ", source, re.MULTILINE)
        assert "../" not in source
        if cell not in tagged:
            assert len(source.splitlines()) <= 8
        if "nbval-check-output" not in cell["metadata"].get("tags", []):
            assert not cell["outputs"]
    if tagged:
        for line in "".join(tagged[0]["source"]).splitlines():
            assert re.fullmatch(r"\w+ = .+  # type: \w+ .+", line), line
    assert any(re.search(r"^assert ", source, re.MULTILINE) for source in code)
