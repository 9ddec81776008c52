"""The files that set the project up agree with each other."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from lipcert.paths import ROOT
from lipcert.provenance import git_state

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_direct_dependency_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {re.split("[=<>]", line)[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    wanted = PROJECT["dependencies"] + [d for group in PROJECT["optional-dependencies"].values() for d in group]
    names = {re.split(r"[\[<>=~! ]", d)[0].lower().replace("_", "-") for d in wanted} - {"lipcert"}
    assert names <= pins, f"not in constraints.txt: {sorted(names - pins)}"


def test_environment_yml_installs_what_make_installs() -> None:
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (install,) = re.findall(r"uv pip install .*", (ROOT / "Makefile").read_text())
    assert pip["pip"] == ["-c constraints.txt", "-e .[all]"]
    assert '-c constraints.txt -e ".[all]"' in install


def test_importing_lipcert_does_not_import_torch() -> None:
    code = "import sys, lipcert; lipcert.TrainConfig; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_public_names_resolve() -> None:
    import lipcert

    for name in lipcert.__all__:
        assert getattr(lipcert, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lipcert.nothing  # noqa: B018


def test_functions_named_like_their_modules_stay_functions() -> None:
    import lipcert

    assert callable(lipcert.vra) and callable(lipcert.certify) and callable(lipcert.certify)


def test_no_path_of_one_machine_in_the_tree() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json", ".cff", ".txt"}
            and path.is_file()
        ):
            assert not re.search(r"(?<![\w.])/(home|root|Users)/\w", path.read_text()), name


def test_a_folder_one_works_in_is_not_the_code_that_runs(monkeypatch, tmp_path):
    """Installed without its checkout, lipcert cannot say which commit it is of, whatever repository one is in."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.delenv("LIPCERT_COMMIT", raising=False)
    monkeypatch.setattr("lipcert.provenance.ROOT", tmp_path)
    assert git_state() == (None, None)
    monkeypatch.setattr("lipcert.provenance.ROOT", ROOT)
    assert git_state("benchmarks")[0] is not None


def test_a_benchmark_notes_how_it_was_called():
    script = "import sys; sys.argv[1:] = ['--threads', '1']; from lipcert.provenance import command; print(command())"
    told = "import runpy, sys; sys.modules['__main__'].__spec__ = __import__('benchmarks.peers').peers.__spec__; "
    said = subprocess.run([sys.executable, "-c", told + script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "python -m benchmarks.peers --threads 1\n"
