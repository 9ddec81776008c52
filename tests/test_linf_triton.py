"""GPU kernels of l_inf-distance layers: in Triton's interpreter on the CPU, and compiled for a GPU that is not there.

The interpreter must be chosen before triton is imported, so both run in processes of their own; the cases are in
`triton_cases`.
"""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def needs_triton() -> tuple[int, int]:
    try:
        return tuple(map(int, metadata.version("triton").split(".")[:2]))
    except metadata.PackageNotFoundError:
        pytest.skip("triton is not installed: it comes with torch for CUDA, on Linux")


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("which", ("not slow", pytest.param("slow", marks=pytest.mark.slow)))
def test_in_the_interpreter(which):
    numpy = tuple(map(int, metadata.version("numpy").split(".")[:2]))
    if needs_triton() < (3, 8) and numpy >= (2, 4):
        pytest.skip("the interpreter of triton below 3.8 breaks on numpy 2.4 or newer: install numpy below 2.4")
    cases = str(TESTS / "triton_cases.py")
    out = run("-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", which, cases, TRITON_INTERPRET="1")
    assert " passed" in out and "skipped" not in out, out


@pytest.mark.slow
def test_compiled_for_a_hopper_gpu(tmp_path):
    needs_triton()
    out = run(str(TESTS / "triton_compile.py"), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert "14 programs compiled" in out, out
