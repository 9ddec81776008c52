"""GPU kernels of l_inf-distance layers: in Triton's interpreter on the CPU, and compiled for a GPU that is not there.

The interpreter must be chosen before triton is imported, so both run in processes of their own; the cases are in
`triton_cases`.
"""

import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks import linf_gpu

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
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)} | environment,
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


def test_the_benchmark_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["linf_gpu"])
    assert linf_gpu.main() == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_counted_limits():
    """132 multiprocessors at 1,980 MHz: 16.7 T maxima a second; two special functions a power, once a pass."""
    limit = object.__new__(linf_gpu.Limit)
    limit.processors, limit.megahertz = 132, 1980.0
    size = linf_gpu.SIZES[0]
    triples = math.prod(size)
    assert triples / limit.seconds("forward", size, math.inf) == pytest.approx(16.73e12, rel=1e-3)
    special = triples / (132 * 1980e6 * 8)
    assert limit.seconds("forward", size, 100.0) == pytest.approx(special)
    assert limit.seconds("forward and backward", size, 100.0) == pytest.approx(2 * special)
    assert limit.seconds("forward and backward", size, 8.0) < special


def test_what_the_benchmark_tells(monkeypatch):
    """Half of the limit everywhere, no torch.compile: falls short, and shows no ratio to it."""
    limit = object.__new__(linf_gpu.Limit)
    limit.name, limit.processors, limit.megahertz = "some GPU", 100, 1000.0
    cells = [(size, p, work) for size in linf_gpu.SIZES for p in linf_gpu.POWERS for work in linf_gpu.PASSES]
    times: dict = {size: {} for size in linf_gpu.SIZES}
    for size, p, work in cells:
        times[size]["lipcert", work, p] = 2 * limit.seconds(work, size, p)
        times[size]["cdist", work, p] = 60 * limit.seconds(work, size, p)
    monkeypatch.setattr(linf_gpu.metadata, "version", lambda name: "0")
    errors = {p: {"y": 1e-7, "dx": 1e-6, "dw": 1e-6} for p in linf_gpu.POWERS}
    told = linf_gpu.told(times, errors, limit)
    assert told["verdict"] == "fell short"
    assert len(told["rows"]) == 1 + len(cells)
    assert told["rows"][1][4:] == ("50%", "30.0 x", "")
    for size in times:
        times[size] |= {key: value / 1.5 for key, value in times[size].items()}
    assert linf_gpu.told(times, errors, limit)["verdict"] == "met"
    errors[8.0]["y"] = 1e-4
    assert linf_gpu.told(times, errors, limit)["verdict"] == "fell short"
