"""Bundles in l_inf: what is true is accepted, what is forged is not, and boxes hold what a network computes."""

import copy
import dataclasses
import json
import math
import random
from fractions import Fraction

import linf_forgeries
import numpy as np
import pytest
import torch
from forge import RADII, claim, counted, radii, scaled, verdict
from linf_forge import convolutions, every_kind, honest
from linf_nets import filled, frozen
from torch import nn

from lipcert import checker
from lipcert.certificate import Images, write_bundle
from lipcert.certify import certify
from lipcert.chain import NotCertifiable
from lipcert.data import load_dataset, to_unit
from lipcert.layers import Shift
from lipcert.linf.layers import Distance, Negate, SortedDistance
from lipcert.program import Fork, Join, instructions

pytestmark = pytest.mark.usefixtures("digits_once")
CLAIMS = [("executed", "float64"), ("real", "float64"), ("executed", "float32")]
METHODS = ("margin", "interval")


def written(folder, model, count=20, at=RADII, **asked):
    """Certify some test digits and write the bundle."""
    data = load_dataset("digits")
    part = {key: getattr(data.test, key)[:count] for key in ("images_NCHW", "labels_N", "index_N")}
    split = dataclasses.replace(data.test, **part)
    images = to_unit(split.images_NCHW, data.scale, torch.float64)
    certificates = certify(model, images, norm="linf", radii=at, **asked)
    return certificates, write_bundle(folder / "bundle", model, certificates, Images.of(data, split), at)


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
@pytest.mark.parametrize("method", METHODS)
def test_bundles_of_lipcert_are_accepted(tmp_path, method, guarantee, arithmetic):
    for number, model in enumerate((every_kind(1), convolutions(1))[: 1 + (method == "interval")]):
        asked = {"method": method, "guarantee": guarantee, "arithmetic": arithmetic}
        certificates, folder = written(tmp_path / str(number), model, **asked)
        code, said = verdict(folder)
        assert code == 0 and (certificates.radius_B > 0).sum() > 15, said
        assert f"linf {method}" in said and f"{guarantee}, {arithmetic}" in said
        claims = json.loads((folder / "certificate.json").read_text())
        for text, radius in zip(claims["images"]["radius"], certificates.radius_B.tolist(), strict=True):
            assert radius * (1 - 1e-6) <= float.fromhex(text) <= radius
        assert sorted(file.name for file in folder.iterdir()) == ["certificate.json", "network.safetensors"]
        assert ("lipschitz" in claims) == (method == "margin")


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
@pytest.mark.parametrize("method", METHODS)
def test_bundles_from_the_page_are_accepted(tmp_path, method, guarantee, arithmetic):
    bundle = honest(every_kind(2), method, guarantee, arithmetic, count=20)
    if guarantee == "executed":  # to the last bit; a real pass may be rounded outward in another way
        code, said = verdict(bundle.write(tmp_path / "bundle"))
        assert code == 0, said
    smaller = bundle.changed(radii(lambda r: scaled(r, 1 - 2.0**-31))).write(tmp_path / "smaller")
    assert verdict(smaller)[0] == 0
    assert verdict(smaller, "--bounds-only")[0] == 3


@pytest.mark.parametrize("method", METHODS)
def test_forgeries_are_rejected(tmp_path, method):
    bundle = honest(every_kind(), method)
    assert verdict(bundle.write(tmp_path / "honest"))[0] == 0
    names = reject(bundle, linf_forgeries.forgeries(method), tmp_path)
    assert len(set(names)) == len(names) >= 200
    for name, change in linf_forgeries.weaker(method):
        code, said = verdict(bundle.changed(change).write(tmp_path / name))
        assert code == 0, f"{name}: {said}"


def test_forgeries_about_conventional_networks(tmp_path):
    bundle = honest(convolutions(), "interval")
    smaller = bundle.changed(radii(lambda r: scaled(r, 1 - 1e-9)))
    assert verdict(smaller.write(tmp_path / "honest"))[0] == 0
    assert len(reject(smaller, linf_forgeries.conventional(), tmp_path)) >= 25


def reject(bundle, forgeries, folder) -> list[str]:
    names = []
    for place, (name, change) in enumerate(forgeries):
        code, said = verdict(bundle.changed(change).write(folder / str(place)))
        assert code == 1 and said.startswith("rejected: ") and said.count("\n") == 1, f"{name}: {said}"
        names.append(name)
    return names


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
@pytest.mark.parametrize("make", [every_kind, convolutions])
def test_boxes_hold_whatever_the_network_computes(tmp_path, monkeypatch, make, arithmetic):
    """Every layer of the network run by torch, at corners of the ball and inside of it."""
    model, dtype = make(3), getattr(torch, arithmetic)
    bundle = honest(model, "interval", arithmetic=arithmetic, count=6)
    bundle = bundle.changed(radii(lambda r: (0.05).hex()))
    it, found = checker.read_bundle(bundle.write(tmp_path / "bundle"), None, False), recorded(monkeypatch)
    checker.boxes(it.layers, it.x_BCHW.transpose(1, 0, 2, 3), it.prediction, it.radius, arithmetic, True, True)
    chain, generator = copy.deepcopy(model).to(dtype), torch.Generator().manual_seed(0)
    centre = torch.from_numpy(it.x_BCHW)
    for draw in range(40):
        step = torch.rand(centre.shape, generator=generator, dtype=torch.float64) * 2 - 1
        x = (centre + 0.05 * (step.sign() if draw % 2 else step)).clamp(0, 1).to(dtype)
        held, lines = [], iter(found)
        for (_, layer), (low, high) in zip(instructions(chain), lines, strict=False):
            held += [x] if isinstance(layer, Fork) else []
            x = held.pop() + x if isinstance(layer, Join) else x if isinstance(layer, Fork) else layer(x)
            y = x.numpy().reshape(len(centre), len(low), -1)
            low, high = (end.swapaxes(0, 1).reshape(y.shape) for end in (low, high))
            assert low.dtype == arithmetic and (low <= y).all() and (y <= high).all(), layer


def test_tanh_need_not_round_to_nearest(monkeypatch):
    """Two libraries differ in last bits, so a point has a box around its image, a few units wide."""
    x, found = np.random.default_rng(0).random((1, 1, 90, 90)), recorded(monkeypatch)
    layer = checker.read_layer({"name": "one", "kind": "Tanh"}, (1, 90, 90), {})
    checker.boxes([layer], x, np.zeros(1, int), np.zeros(1), "float32", True, True)
    y, ((low, high),) = torch.from_numpy(x).float().tanh().numpy(), found
    assert (low < y).all() and (y < high).all() and (high - low < 1e-5).all()


def test_the_constant_of_a_shift_may_be_rounded_before_or_after(monkeypatch):
    x, found = np.random.default_rng(0).random((1, 1, 50, 50)).astype(np.float32), recorded(monkeypatch)
    layers = [{"name": "a", "kind": "Shift", "amount": 0.3}, {"name": "b", "kind": "Shift", "amount": -0.1307}]
    for entry in layers:
        layer, rounded = checker.read_layer(entry, (1, 50, 50), {}), np.float32(entry["amount"])
        checker.boxes([layer], x.astype(float), np.zeros(1, int), np.zeros(1), "float32", True, True)
        before, after = x - rounded, (x.astype(float) - entry["amount"]).astype(np.float32)
        low, high = found.pop()
        assert (before != after).any() and all(((low <= y) & (y <= high)).all() for y in (before, after))


def recorded(monkeypatch) -> list:
    """Ends behind every layer, as the checker goes through them."""
    found, through = [], checker.through

    def watched(*arguments):
        low, high, size = through(*arguments)
        found.append((low, high))
        return low, high, size

    monkeypatch.setattr(checker, "through", watched)
    return found


def test_real_boxes_hold_exact_results(tmp_path, monkeypatch):
    """In fractions, where the rounded network is off; and boxes of points are a few units wide."""
    torch.manual_seed(0)
    layers = [
        nn.Flatten(),
        Shift(100.1),
        filled(Distance(64, 6)),
        Shift(1e4 / 3),
        filled(Distance(6, 6)),
        Shift(1e5 / 7),
    ]
    layers += [filled(SortedDistance(6, 5, 0.3, 4)), nn.Linear(5, 4), nn.Linear(4, 10)]
    bundle = honest(frozen(*layers), "interval", "real", count=3)
    bundle = bundle.changed(radii(lambda r: (0.0).hex()))
    it, found = checker.read_bundle(bundle.write(tmp_path / "bundle"), None, False), recorded(monkeypatch)
    checker.boxes(it.layers, it.x_BCHW.transpose(1, 0, 2, 3), it.prediction, it.radius, "float64", False, True)
    for image in range(3):
        x = [Fraction(value) for value in it.x_BCHW[image].ravel().tolist()]
        for layer, (low, high) in zip(layers[:-1], found, strict=True):
            x = exact(layer, x)
            for value, below, above in zip(
                x, low[:, image].ravel().tolist(), high[:, image].ravel().tolist(), strict=True
            ):
                assert below <= value <= above < below + 1e-9


def exact(layer: nn.Module, x: list[Fraction]) -> list[Fraction]:
    if isinstance(layer, (nn.Flatten, Shift)):
        return [value - Fraction(getattr(layer, "amount", 0)) for value in x]
    constant = layer.bias if isinstance(layer, nn.Linear) else layer.shift
    rows = zip(layer.weight.tolist(), constant.tolist(), strict=True)
    if isinstance(layer, nn.Linear):
        return [sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) + Fraction(b) for row, b in rows]
    shares = layer.coefficients().tolist() if isinstance(layer, SortedDistance) else [1.0]
    found = []
    for row, b in rows:
        apart = sorted((abs(v - Fraction(w)) for w, v in zip(row, x, strict=True)), reverse=True)
        found.append(sum(Fraction(c) * v for c, v in zip(shares, apart, strict=False)) + Fraction(b))
    return found


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
def test_distances_are_those_of_the_formula(arithmetic):
    """Bit for bit, whatever the parts they are computed in."""
    rng = np.random.default_rng(0)
    for inputs, outputs, count, terms in ((1, 1, 1, 1), (7, 5, 3, 1), (40, 300, 30, 1), (9, 6, 4, 9), (300, 700, 3, 5)):
        weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (inputs, count)))
        entry = {"name": "one", "kind": "SortedDistance", "in_features": inputs, "out_features": outputs}
        entry |= {"keep": 0.5, "terms": terms}
        stored = {"one.weight": weight, "one.shift": np.zeros(outputs, np.float32)}
        layer = checker.read_layer(entry, (inputs,), stored)
        low = x.astype(arithmetic)[..., None, None]
        high = low + rng.random(low.shape).astype(arithmetic)
        near, far = checker.distances(layer, low, high)
        under, over = (end.astype(arithmetic)[:, :, 0, 0].T[:, None] - weight.astype(arithmetic) for end in (low, high))
        for found, every in ((near, np.maximum(under, -over)), (far, np.maximum(over, -under))):
            assert found.dtype == arithmetic and (found == np.sort(every, 2)[..., -terms:]).all()


def test_radii_that_are_counted_are_not_rounded_below(tmp_path):
    """8/255 itself was tried and holds, so it is claimed, not the number of 31 bits below it."""
    model = frozen(nn.Flatten(), filled(Distance(64, 10), 0.1), Negate())
    certificates, folder = written(tmp_path, model, 40, ("2/255",), method="interval", arithmetic="float32")
    at = math.nextafter(2 / 255, 1) if Fraction(2 / 255) < Fraction(2, 255) else 2 / 255
    only = dataclasses.replace(certificates, radius_B=torch.where(certificates.radius_B >= at, at, 0.0))
    data = load_dataset("digits")
    split = dataclasses.replace(data.test, labels_N=data.test.labels_N[:40], index_N=data.test.index_N[:40])
    counts = []
    for number, some in enumerate((certificates, only)):
        folder = write_bundle(tmp_path / str(number), model, some, Images.of(data, split), ("2/255",))
        assert verdict(folder)[0] == 0
        counts.append(json.loads((folder / "certificate.json").read_text())["counts"]["certified"][0][1])
    assert counts[0] == counts[1] > 0


def test_predictions_without_a_ball(tmp_path):
    """Boxes prove the image itself; a tie proves nothing."""
    layer = filled(Distance(64, 10), 0.1)
    layer.weight.data[1:], layer.shift.data[:] = layer.weight.data[0], 0.0
    for number, shift in enumerate((-1e-6, 0.0)):  # more than rounding leaves, less than any radius tried
        layer.shift.data[3] = shift
        certificates, folder = written(tmp_path / str(number), frozen(nn.Flatten(), layer, Negate()), method="interval")
        claims = json.loads((folder / "certificate.json").read_text())
        assert claims["images"]["prediction"] == [3 if shift else -1] * 20 == certificates.prediction_B.tolist()
        assert verdict(folder)[0] == 0


def test_single_bytes(tmp_path):
    folder, rng = honest(every_kind(), "interval").write(tmp_path / "bundle"), random.Random(0)
    for file in [file for file in sorted(folder.iterdir()) for _ in range(60)]:
        blob = file.read_bytes()
        place = rng.randrange(len(blob))
        file.write_bytes(blob[:place] + bytes([blob[place] ^ rng.randrange(1, 256)]) + blob[place + 1 :])
        assert verdict(folder)[0] == 1, f"byte {place} of {file.name}"
        file.write_bytes(blob)
    assert verdict(folder)[0] == 0


def test_weights_that_a_processor_may_read_as_zero(tmp_path):
    model = every_kind()
    model.head.weight.data[0, 0] = 1e-40
    for arithmetic, code in (("float64", 0), ("float32", 1)):
        bundle = honest(model, "interval", arithmetic=arithmetic, count=5)
        bundle = bundle.changed(radii(lambda r: (0.0).hex()))
        assert verdict(bundle.write(tmp_path / arithmetic))[0] == code


def test_overflow_proves_nothing(tmp_path):
    """In float32 sums overflow where float64 has room, even if ReLU hides it again."""
    dense, far = nn.Linear(64, 4), filled(Distance(64, 4))
    dense.weight.data *= 2.0**127
    far.weight.data[:], far.shift.data[:] = -2.5e38, 2e38
    for number, middle in enumerate(([dense], [far, Negate()])):
        model = frozen(nn.Flatten(), *middle, nn.ReLU(), nn.Linear(4, 10))
        model[-1].weight.data *= 2.0**-110
        bundle = honest(model, "interval", count=5).changed(radii(lambda r: (0.0).hex()))
        for arithmetic, code in (("float64", 0), ("float32", 1)):
            bundle.claims["arithmetic"] = arithmetic
            assert verdict(bundle.write(tmp_path / f"{number}{arithmetic}"))[0] == code, number


def test_boxes_of_distances_to_the_last_bit(tmp_path):
    """Of pure distance nets the largest float that holds is accepted, the next one is not."""
    torch.manual_seed(0)
    model = frozen(nn.Flatten(), filled(Distance(64, 9)), filled(Distance(9, 10), 0.3), Negate())
    bundle = honest(model, "interval")
    assert verdict(bundle.write(tmp_path / "bundle"))[0] == 0
    for image in range(0, 30, 2):
        text = bundle.claims["images"]["radius"][image]
        more = counted(claim("images", "radius", image, value=math.nextafter(float.fromhex(text), math.inf).hex()))
        code, said = verdict(bundle.changed(more).write(tmp_path / str(image)))
        assert code == 1 and "not covered" in said


def test_what_gets_no_bundle(tmp_path):
    with pytest.raises(NotCertifiable, match="nominal"):
        written(tmp_path, every_kind(), method="interval", guarantee="nominal")
    with pytest.raises(NotCertifiable, match="float64 pass"):
        written(tmp_path, every_kind(), method="margin", guarantee="real", arithmetic="float32")
