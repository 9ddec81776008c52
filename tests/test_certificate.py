"""Bundles as lipcert writes them, against the checker that knows nothing of lipcert."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from nets import linear, signed_permutation, tiny_model
from torch import nn

from lipcert import checker
from lipcert.certificate import Images, down, up, write_bundle
from lipcert.certify import certify
from lipcert.chain import NotCertifiable
from lipcert.data import load_dataset, to_unit
from lipcert.layers import MinMax
from lipcert.models import load_network
from lipcert.paths import ROOT

SHIPPED = ROOT / "results" / "models" / "digits-liresnet-L6W32.safetensors"
RADII = ("8/255", "36/255")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


def bundle(folder, model, data, count=40, start=0, **asked):
    """Certify some test digits and write the bundle."""
    part = slice(start, start + count)
    split = dataclasses.replace(
        data.test,
        images_NCHW=data.test.images_NCHW[part],
        labels_N=data.test.labels_N[part],
        index_N=data.test.index_N[part],
    )
    certificates = certify(model, to_unit(split.images_NCHW, data.scale, torch.float64), **asked)
    return certificates, write_bundle(folder / "bundle", model, certificates, Images.of(data, split), RADII)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"effort": "tight"},
        {"guarantee": "real"},
        {"arithmetic": "float32"},
        {"arithmetic": "float32", "effort": "tight"},
        {"effort": "exact"},
    ],
    ids=lambda asked: "-".join(asked.values()) or "default",
)
def test_the_checker_accepts_what_is_written(tmp_path, data, asked, capsys):
    if asked.get("effort") == "exact":
        pytest.importorskip("flint")
        model = tiny_model(0).plain()
    else:
        model = load_network(SHIPPED)
    certificates, folder = bundle(tmp_path, model, data, **asked)
    assert checker.main([str(folder)]) == 0, capsys.readouterr().out
    assert (certificates.radius_B > 0).sum() > 30 or asked.get("effort") == "exact"


def test_a_deep_network_is_accepted(tmp_path, data):
    """Every layer's raised upper end costs a little: radii must pay for all of them."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(60):
        layers += [linear(signed_permutation(64, generator)), MinMax()]
    torch.manual_seed(0)
    deep = nn.Sequential(*layers, nn.Linear(64, 10)).eval()
    certificates, folder = bundle(tmp_path, deep, data)
    assert (certificates.radius_B > 0).all()
    assert checker.main([str(folder)]) == 0


def test_claims_stay_within_what_was_proven_and_close_to_it(tmp_path, data):
    certificates, folder = bundle(tmp_path, load_network(SHIPPED), data)
    claims = json.loads((folder / "certificate.json").read_text())
    for text, radius in zip(claims["images"]["radius"], certificates.radius_B.tolist(), strict=True):
        assert radius * (1 - 1e-7) <= float.fromhex(text) < radius or radius == 0.0 == float.fromhex(text)
    for claim, bound in zip(claims["layers"], certificates.bounds.layers, strict=True):
        lower, upper = float.fromhex(claim["lower"]), float.fromhex(claim["upper"])
        assert bound.enclosure.lower * (1 - 1e-8) <= lower <= bound.enclosure.lower
        assert bound.enclosure.upper <= upper <= bound.enclosure.upper * (1 + 1e-8)
    assert claims["counts"]["images"] == 40 and claims["counts"]["certified"][1][0] == "36/255"
    assert (folder / "network.safetensors").read_bytes() == SHIPPED.read_bytes()


def test_the_same_certificates_give_the_same_bytes(tmp_path, data):
    folders = [bundle(tmp_path / name, load_network(SHIPPED), data)[1] for name in ("one", "two")]
    for name in checker.FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_images_that_abstain_and_layers_of_zeros(tmp_path, data):
    tied = nn.Sequential(nn.Flatten(), linear(torch.zeros(4, 64)), linear(torch.zeros(10, 4))).eval()
    certificates, folder = bundle(tmp_path, tied, data)
    assert certificates.prediction_B.unique().tolist() == [-1]
    assert checker.main([str(folder)]) == 0


def test_what_gets_no_bundle(tmp_path, data):
    with pytest.raises(NotCertifiable, match="nominal"):
        bundle(tmp_path, load_network(SHIPPED), data, guarantee="nominal")
    with pytest.raises(NotCertifiable, match="float64 pass"):
        bundle(tmp_path, load_network(SHIPPED), data, guarantee="real", arithmetic="float32")
    odd = nn.Sequential(nn.Flatten(), linear(torch.rand(10, 64).double() / 3, dtype=torch.float64)).eval()
    with pytest.raises(ValueError, match="float32 cannot"):
        bundle(tmp_path, odd, data)
    certificates = certify(load_network(SHIPPED), torch.rand(2, 1, 8, 8, dtype=torch.float64))
    images = Images.of(data, data.test)
    with pytest.raises(NotCertifiable, match="2 certificates of 360 images"):
        write_bundle(tmp_path / "b", load_network(SHIPPED), certificates, images, RADII)
    backwards = dataclasses.replace(images, index_N=images.index_N[:2].flip(0), labels_N=images.labels_N[:2])
    with pytest.raises(NotCertifiable, match="ascend"):
        write_bundle(tmp_path / "b", load_network(SHIPPED), certificates, backwards, RADII)


@pytest.mark.parametrize("value", [1.0, 0.1, 2.5e-310, 1e300, 3.0000000001])
def test_rounding_against_the_claim(value):
    above, below = Fraction(up(value)), Fraction(down(value))
    assert below < Fraction(value) < above
    if value > 1e-300:
        assert above < Fraction(value) * (1 + Fraction(1, 10**8)) and below > Fraction(value) * (1 - Fraction(1, 10**8))
        assert len(up(value).hex().split("p")[0].rstrip("0")) <= len("0x1.") + 8
    assert up(0.0) == down(0.0) == 0.0


def test_verifying_from_the_command_line_needs_no_torch(tmp_path, data):
    folder = bundle(tmp_path, load_network(SHIPPED), data)[1]
    program = (
        "import sys; sys.modules['torch'] = None; from lipcert.__main__ import main;"
        "sys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and "accepted" in done.stdout, done.stderr
    only = subprocess.run(
        [sys.executable, str(ROOT / "lipcert" / "checker.py"), str(folder), "--bounds-only"],
        capture_output=True,
        text=True,
    )
    assert only.returncode == 3, only.stdout + only.stderr
