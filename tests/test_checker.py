"""The checker believes what is true and nothing else."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import forge
import numpy as np
import pytest
import torch
from forge import verdict
from forgeries import forgeries
from torch import nn

from lipcert import checker, load
from lipcert.chain import chain_bounds
from lipcert.data.registry import DATASETS
from lipcert.paths import data_dir

FILE = Path(checker.__file__)
pytestmark = pytest.mark.usefixtures("digits_once")
CLAIMS = [("real", "float64"), ("executed", "float64"), ("executed", "float32")]


@pytest.fixture(scope="module")
def small() -> forge.Bundle:
    return forge.honest(forge.every_kind())


@pytest.fixture(scope="module")
def trained():
    """The shipped network for the digits and its bounds."""
    net = load("digits-liresnet-L6W32")
    return net, chain_bounds(net, (1, 8, 8))


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
def test_true_bundles_are_accepted(trained, tmp_path, guarantee, arithmetic):
    net, bounds = trained
    bundle = forge.honest(net, count=90, guarantee=guarantee, arithmetic=arithmetic, bounds=bounds)
    code, said = verdict(bundle.write(tmp_path / "bundle"))
    assert code == 0, said
    assert f"{guarantee}, {arithmetic}" in said
    if (guarantee, arithmetic) == ("real", "float64"):  # float32 errs more than float64, so this claims too much
        bundle.claims |= {"guarantee": "executed", "arithmetic": "float32"}
        assert verdict(bundle.write(tmp_path / "stronger"))[0] == 1


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
def test_every_kind_of_layer(tmp_path, guarantee, arithmetic):
    bundle = forge.honest(forge.every_kind(1), guarantee=guarantee, arithmetic=arithmetic)
    assert verdict(bundle.write(tmp_path / "bundle"))[0] == 0


def test_weaker_claims_are_accepted(small, tmp_path):
    for place, (name, change) in enumerate(forge.weaker()):
        code, said = verdict(small.changed(change).write(tmp_path / str(place)))
        assert code == 0, f"{name}: {said}"


def test_forgeries_are_rejected(small, tmp_path):
    assert verdict(small.write(tmp_path / "honest"))[0] == 0
    names = []
    for place, (name, change) in enumerate(forgeries()):
        code, said = verdict(small.changed(change).write(tmp_path / str(place)))
        assert code == 1 and said.startswith("rejected: ") and said.count("\n") == 1, f"{name}: {said}"
        names.append(name)
    assert len(set(names)) == len(names) >= 500


def test_forged_bounds_of_banded_layers(trained, tmp_path):
    net, bounds = trained
    bundle = forge.honest(net, count=2, bounds=bounds)
    layer = next(layer for layer in bundle.claims["layers"] if layer["name"] == "stack4")
    layer["upper"] = forge.scaled(layer["lower"], 1 - 1e-9)  # the lower end is the stretch of a vector
    layer["lower"] = forge.scaled(layer["lower"], 0.5)
    bundle.products()
    code, said = verdict(bundle.write(tmp_path / "bundle"))
    assert code == 1 and "stack4" in said


def test_single_bytes(small, tmp_path):
    """A thousand bytes changed, one at a time, in proportion to the sizes of the files but a third in the claims."""
    folder, rng = small.write(tmp_path / "bundle"), random.Random(0)
    files = [file for file in sorted(folder.iterdir()) for _ in range(400 if file.suffix == ".json" else 300)]
    for file in files:
        blob = file.read_bytes()
        place = rng.randrange(len(blob))
        file.write_bytes(blob[:place] + bytes([blob[place] ^ rng.randrange(1, 256)]) + blob[place + 1 :])
        assert verdict(folder)[0] == 1, f"byte {place} of {file.name}"
        file.write_bytes(blob)
    assert verdict(folder)[0] == 0 and len(files) == 1000


def test_exit_codes(small, tmp_path, monkeypatch):
    folder = small.write(tmp_path / "bundle")
    assert verdict(tmp_path / "nowhere")[0] == 2
    with pytest.raises(SystemExit, match="2"), contextlib.redirect_stderr(io.StringIO()):
        checker.main([str(folder), "--trust"])
    assert verdict(folder, "--bounds-only")[0] == 3
    elsewhere = small.copy()
    elsewhere.claims["data"] |= {"name": "cifar10", "part": "test", "scale": 255}
    folder = elsewhere.write(tmp_path / "elsewhere")
    monkeypatch.setenv("LIPCERT_DATA", str(tmp_path))
    assert verdict(folder)[0] == 3 and str(tmp_path) in verdict(folder)[1]
    assert verdict(folder, "--data", str(tmp_path / "nowhere"))[0] == 3
    false = elsewhere.changed(forge.end("stem", "upper", 0.9)).write(tmp_path / "false")
    assert verdict(false)[0] == verdict(false, "--bounds-only")[0] == 1


def test_it_runs_alone(small, tmp_path):
    """Without torch, scikit-learn and the rest of lipcert, from another folder."""
    folder = small.write(tmp_path / "bundle")
    program = (
        "import builtins, runpy, sys\n"
        "real = builtins.__import__\n"
        "def guarded(name, *rest):\n"
        "    if name.split('.')[0] in ('torch', 'sklearn', 'scipy', 'lipcert', 'safetensors', 'flint'):\n"
        "        raise ImportError(name)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = guarded\n"
        f"sys.argv = ['checker.py', {str(folder)!r}]\n"
        f"runpy.run_path({str(FILE)!r}, run_name='__main__')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("accepted: "), done.stderr + done.stdout


def test_it_stays_short_enough_to_be_read():
    lines = FILE.read_text().splitlines()
    assert len(lines) <= 575 and max(map(len, lines)) <= 120


def random_layer(rng: np.random.Generator):
    """The checker's reading of a random convolution, the matrix torch makes of it; None for what it refuses."""
    groups = int(rng.choice([1, 1, 2]))
    ins, outs = (int(n) * groups for n in rng.integers(1, 4, 2))
    taps, strides, gaps = rng.integers(1, 5, 2).tolist(), rng.integers(1, 4, 2).tolist(), rng.integers(1, 3, 2).tolist()
    padding = rng.integers(0, 3, 2).tolist()
    if rng.random() < 0.2:
        strides, padding = [1, 1], "same"
    elif rng.random() < 0.1:
        padding = "valid"
    mode, shape = str(rng.choice(["zeros", "zeros", "circular"])), (ins, *rng.integers(1, 9, 2).tolist())
    weight = (rng.standard_normal((outs, ins // groups, *taps)) * 10.0 ** rng.integers(-20, 10)).astype(np.float32)
    entry = {"name": "layer", "kind": "Conv2d", "in_channels": ins, "out_channels": outs, "kernel_size": taps}
    entry |= {"stride": strides, "padding": padding, "dilation": gaps, "groups": groups, "padding_mode": mode}
    try:
        layer = checker.read_layer(entry | {"bias": False}, shape, {"layer.weight": weight})
    except ValueError:
        return None
    pads = padding if isinstance(padding, str) else tuple(padding)
    conv = nn.Conv2d(ins, outs, taps, strides, pads, gaps, groups, False, mode).double().requires_grad_(False)
    conv.weight.copy_(torch.from_numpy(weight))
    out = conv(torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape))
    assert tuple(out.shape[1:]) == layer.after
    return layer, out.flatten(1).T.numpy()


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("exact", [False, True])
def test_bounds_against_dense_matrices(exact):
    """Never below the truth, never far above it, for every geometry; the lower end likewise."""
    if exact:
        pytest.importorskip("flint")
    rng, done = np.random.default_rng(exact), 0
    while done < (15 if exact else 120):
        if (made := random_layer(rng)) is None or not made[1].any():
            continue
        layer, matrix = made
        norm, vector = np.linalg.svd(matrix)[1][0], np.linalg.svd(matrix)[2][0].astype(np.float32).reshape(layer.shape)
        assert np.linalg.norm(abs(matrix), 2) * (1 - 1e-12) <= layer.magnitude
        for upper, lower, true in ((1 + 1e-6, 1 - 1e-5, True), (1 - 1e-9, 0, False), (1 + 1e-6, 1 + 1e-9, False)):
            layer.upper, layer.lower = float(norm * upper), float(norm * lower)
            if true:
                checker.prove_layer(layer, vector, exact)
            else:
                with pytest.raises(ValueError):
                    checker.prove_layer(layer, vector, exact)
        done += 1


def test_a_garbage_factor_proves_nothing(monkeypatch):
    """The factor is not trusted: LAPACK may return what it likes."""
    rng = np.random.default_rng(5)
    layer, matrix = next(made for made in iter(lambda: random_layer(rng), 0) if made is not None)
    norm = np.linalg.norm(matrix, 2)
    for garbage in (np.zeros_like, np.ones_like, lambda m: m * np.nan, lambda m: np.eye(len(m))):
        monkeypatch.setattr(np.linalg, "cholesky", lambda m, upper, garbage=garbage: garbage(m))
        monkeypatch.setattr(np.linalg, "inv", lambda m: m)
        layer.upper, layer.lower = float(norm * (1 - 1e-9)), 0.0
        with pytest.raises((ValueError, OverflowError)):
            checker.prove_layer(layer, np.ones(layer.shape, np.float32), False)


def test_large_circles_are_refused_by_name():
    weight = np.ones((64, 64, 3, 3), np.float32)
    entry = {"name": "ring", "kind": "Conv2d", "in_channels": 64, "out_channels": 64, "kernel_size": [3, 3]}
    entry |= {
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "padding_mode": "circular",
        "bias": False,
    }
    layer = checker.read_layer(entry, (64, 16, 16), {"ring.weight": weight})
    layer.upper, layer.lower = 1e6, 0.0
    with pytest.raises(ValueError, match=r"ring.*too many"):
        checker.prove_layer(layer, np.ones(layer.shape, np.float32), False)


def test_logits_err_less_than_said(small, tmp_path):
    """Against the same pass in extended precision; and the bound is not idle."""
    it = checker.read_bundle(small.write(tmp_path / "bundle"), Path(), False)
    x_CBHW = it.x_BCHW.transpose(1, 0, 2, 3)
    z_NB, off_NB, _ = checker.forward(it.layers, x_CBHW, it.prediction, it.radius, "float64", True)
    x = (it.x_BCHW * 16).transpose(1, 0, 2, 3).astype(np.longdouble) / 16
    for layer in it.layers:
        if layer.affine:
            weight = layer.weight_GOIT.reshape(layer.groups, -1, layer.weight_GOIT[0, 0].size)
            read = checker.columns(layer, x, layer.groups)
            out = np.stack([w.astype(np.longdouble) @ r for w, r in zip(weight, read, strict=True)])
            x = out.reshape(-1, x.shape[1], *layer.outputs) + layer.bias_O[:, None, None, None]
        else:
            x = layer.apply(x)
    error = abs(x[:, :, 0, 0] - z_NB)
    assert (error <= off_NB).all() and error.max() > 0 and off_NB.max() < 1e-10


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_images_are_those_of_the_library(name):
    if not (
        data_dir() / {"mnist": "MNIST", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    ).exists():
        pytest.skip(f"{name} is not in {data_dir()}")
    pixels, labels = checker.read_images(name, data_dir())
    assert hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() == DATASETS[name].pinned["test"]


def test_pickled_code_is_not_run(small, tmp_path):
    class Exploit:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Exploit(), "labels": []}))
    bundle = small.copy()
    bundle.claims["data"] |= {"name": "cifar10", "part": "test", "scale": 255}
    code, said = verdict(bundle.write(tmp_path / "bundle"), "--data", str(tmp_path))
    assert code == 1 and "mkdir" in said and not (tmp_path / "owned").exists()


@pytest.mark.data("cifar10")
def test_a_bundle_about_cifar(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    bundle = forge.honest(net.eval().requires_grad_(False), "cifar10", count=25)
    assert verdict(bundle.write(tmp_path / "bundle"), "--data", str(data_dir()))[0] == 0
    assert json.loads((tmp_path / "bundle" / "certificate.json").read_text())["data"]["part"] == "test"
