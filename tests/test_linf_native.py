"""Compiling the native kernels: without a compiler, with a broken one, twice at once, for a plain processor."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lipcert.kernels import native as compiling
from lipcert.linf import kernels
from lipcert.linf.kernels import native, reference


@pytest.fixture
def fresh(monkeypatch):
    """Nothing built or said yet, and afterwards as before."""
    compiling.build.cache_clear()
    monkeypatch.setattr(kernels, "_said", set())
    monkeypatch.delenv("LIPCERT_KERNELS", raising=False)
    yield
    compiling.build.cache_clear()
    compiling.cache_folder.cache_clear()


def test_without_a_compiler(fresh, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    x_BI, w_OI = torch.randn(3, 7), torch.randn(5, 7)
    for _ in range(2):
        assert torch.equal(kernels.distance(x_BI, w_OI, math.inf), (x_BI[:, None] - w_OI).abs().amax(-1))
    said = capsys.readouterr().err
    assert kernels.backend() == "torch" and "no C compiler" in said and said.count("\n") == 1
    monkeypatch.setenv("LIPCERT_KERNELS", "native")
    with pytest.raises(RuntimeError, match="LIPCERT_KERNELS=native on cpu: no native kernels"):
        kernels.distance(x_BI, w_OI, 2.0)


def test_a_compiler_that_fails_is_tried_once(fresh, monkeypatch, tmp_path, capsys):
    tries = tmp_path / "tries"
    (tmp_path / "broken").write_text(f"#!/bin/sh\necho x >> {tries}\necho 'no such instruction' >&2\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    monkeypatch.setenv("LIPCERT_CACHE", str(tmp_path / "cache"))
    compiling.cache_folder.cache_clear()
    assert kernels.backend() == "torch" and "no such instruction" in capsys.readouterr().err
    count = tries.read_text()
    assert kernels.backend() == "torch" and tries.read_text() == count
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_compiled_twice_at_once_without_tuning(fresh, monkeypatch, tmp_path):
    """Two writers of one file; plain instructions of the processor's family give the same bits at infinity."""
    if problem := native.problem():
        pytest.skip(problem)
    compiling.build.cache_clear()
    monkeypatch.setenv("LIPCERT_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(compiling, "TUNED", ((),))
    compiling.cache_folder.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(compiling.build, [native.SOURCE] * 2, ["-DREAL_BITS=32"] * 2))
    assert not any(isinstance(library, str) for library in built)
    assert len(list(compiling.cache_folder().iterdir())) == 1
    for batch, outputs, inputs in [(1, 1, 1), (7, 33, 65), (19, 70, 1100)]:
        x_BI, w_OI = torch.randn(batch, inputs), torch.randn(outputs, inputs)
        y_BO = reference.distance_forward(x_BI, w_OI, math.inf)
        assert torch.equal(native.farthest(x_BI, w_OI)[0], y_BO)
        boxes = (x_BI - 1, x_BI, w_OI, math.inf)
        assert all(map(torch.equal, native.interval_forward(*boxes), reference.interval_forward(*boxes)))
        for p in (2.0, 9.7, 1000.0):
            y_true = reference.distance_forward(x_BI.double(), w_OI.double(), p)
            assert ((native.distance_forward(x_BI, w_OI, p) - y_true).abs() <= 1e-5 * y_true).all()
