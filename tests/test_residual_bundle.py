"""Bundles about networks with residual blocks: what is true is accepted, what is forged is not."""

import dataclasses
import math
import types
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import forge
import numpy as np
import pytest
import torch
from blocks import block
from forge import verdict
from nets import linear
from torch import nn

from lipcert import checker
from lipcert.certificate import Images, write_bundle
from lipcert.certify import certify
from lipcert.chain import chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.models.stored import geometry

pytestmark = pytest.mark.usefixtures("digits_once")
INSIDE = ("first.branch.up", "second.branch.one", "second.branch.inner.branch.two", "third.branch.down")
JOINS = ("first.join", "second.branch.inner.join", "second.join", "third.join")


@pytest.fixture(scope="module")
def small() -> forge.Bundle:
    return forge.honest(forge.blocks())


CLAIMS = [("executed", "float64"), ("real", "float64"), ("executed", "float32")]


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
def test_bundles_of_lipcert_are_accepted(tmp_path, guarantee, arithmetic):
    data = load_dataset("digits")
    split = dataclasses.replace(
        data.test,
        images_NCHW=data.test.images_NCHW[:20],
        labels_N=data.test.labels_N[:20],
        index_N=data.test.index_N[:20],
    )
    images, model = to_unit(split.images_NCHW, data.scale, torch.float64), forge.blocks(1)
    certificates = certify(model, images, guarantee=guarantee, arithmetic=arithmetic)
    folder = write_bundle(tmp_path / "bundle", model, certificates, Images.of(data, split), forge.RADII)
    code, said = verdict(folder)
    assert code == 0 and (certificates.radius_B > 0).all(), said


@pytest.mark.parametrize(("guarantee", "arithmetic"), CLAIMS)
def test_bundles_from_the_page_are_accepted(tmp_path, guarantee, arithmetic):
    bundle = forge.honest(forge.blocks(2), guarantee=guarantee, arithmetic=arithmetic)
    code, said = verdict(bundle.write(tmp_path / "bundle"))
    assert code == 0, said


def test_exact_bounds(tmp_path):
    pytest.importorskip("flint")
    bundle = forge.honest(forge.blocks(), count=2)
    bundle.claims["effort"] = "exact"
    assert verdict(bundle.write(tmp_path / "bundle"))[0] == 0


def both(change) -> forge.Change:
    """The same change of the order or number of lines in the network and in the claims."""

    def apply(b: forge.Bundle) -> None:
        last = b.geometry[-1]
        b.geometry = [*change(b.geometry[:-1]), last]
        b.claims["layers"] = change(b.claims["layers"])
        b.products()

    return apply


def dropped(*names: str):
    return lambda lines: [entry for entry in lines if entry["name"] not in names]


def moved(name: str, before: str):
    def change(lines: list) -> list:
        entry = next(entry for entry in lines if entry["name"] == name)
        rest = [other for other in lines if other is not entry]
        place = next(i for i, other in enumerate(rest) if other["name"] == before)
        return [*rest[:place], entry, *rest[place:]]

    return change


def relabelled(name: str, kind: str):
    def change(lines: list) -> list:
        return [entry | ({"kind": kind} if entry["name"] == name else {}) for entry in lines]

    return change


def set_end(name: str, which: str, by) -> forge.Change:
    def change(b: forge.Bundle) -> None:
        entry = b.layer(name)
        entry[which] = by(float.fromhex(entry[which])).hex()
        b.products()

    return change


def forgeries() -> Iterator[tuple[str, forge.Change]]:
    for name in JOINS:
        yield f"{name}: the 1 forgotten", set_end(name, "upper", lambda x: x - 1)
        yield f"{name}: maximum of skip and branch", set_end(name, "upper", lambda x: max(1.0, x - 1))
        yield f"{name}: root of the squares", set_end(name, "upper", lambda x: math.hypot(1.0, x - 1))
        yield f"{name}: the branch forgotten", set_end(name, "upper", lambda x: 1.0)
        for less in (1e-8, 1e-3):
            yield f"{name}: upper end {less:g} too small", forge.end(name, "upper", 1 - less)
        yield f"{name}: lower end too large", set_end(name, "lower", lambda x: x + 1e-8)
        yield f"{name}: lower end of an identity", set_end(name, "lower", lambda x: 1.0)
        fork = name.replace("join", "fork")
        yield f"{fork}: upper end below 1", forge.end(fork, "upper", 1 - 1e-9)
        yield f"{fork}: lower end above 1", forge.end(fork, "lower", 1 + 1e-9)
        for lost in ([fork], [name], [fork, name]):
            yield f"{lost} left out of both", both(dropped(*lost))
            yield (
                f"{lost} left out of the network",
                lambda b, lost=lost: setattr(b, "geometry", dropped(*lost)(b.geometry)),
            )
            yield f"{lost} left out of the claims", forge.claim("layers", by=dropped(*lost))
        yield f"{name} becomes Identity", both(relabelled(name, "Identity"))
        yield f"{fork} becomes Identity", both(relabelled(fork, "Identity"))
        yield f"{name} becomes Fork", both(relabelled(name, "Fork"))
        yield f"{fork} becomes Join", both(relabelled(fork, "Join"))
        yield (
            f"{fork} and {name} become Identity",
            both(lambda lines, f=fork, n=name: relabelled(f, "Identity")(relabelled(n, "Identity")(lines))),
        )
        yield f"{name} before its Fork", both(moved(name, fork))
        yield f"{name} right behind its Fork", both(lambda lines, f=fork, n=name: moved(f, n)(lines))
        yield f"{fork} with an argument", forge.argument(fork, "amount", 1.0)
    for name in INSIDE:
        for less in (1e-6, 0.5):
            small = forge.end(name, "upper", 1 - less)
            yield f"{name}: upper end {less:g} too small", small
            yield f"{name}: and the blocks around it", forge.in_turn(small, forge.Bundle.joins)
        yield f"{name}: lower end too large", forge.end(name, "lower", 1 + 1e-6)
        yield f"{name}: weights larger", forge.array("weights", f"{name}.weight", lambda w: w * np.float32(1.001))
        yield f"{name}: no vector", lambda b, name=name: b.evidence.pop(f"vector.{name}")
        yield f"{name}: out of its block", both(moved(name, "flatten"))
    yield "the first block longer", both(moved("first.join", "flatten"))
    yield "the first block shorter", both(moved("first.join", "first.branch.down"))
    yield "the blocks nested wrongly", both(moved("second.join", "second.branch.inner.join"))
    yield "a block begins earlier", both(moved("third.fork", "dense"))
    yield "a block around a change of shape", both(moved("first.fork", "stem"))
    yield "a block around flattening", both(moved("second.join", "dense"))
    yield "a branch that changes the shape", forge.argument("first.branch.down", "padding", [0, 0])
    yield (
        "two joins of one name",
        both(
            lambda lines: [entry | ({"name": "first.join"} if entry["name"] == "third.join" else {}) for entry in lines]
        ),
    )
    yield (
        "head inside of a block",
        lambda b: (
            setattr(b, "geometry", [e for e in b.geometry if e["name"] != "third.join"] + [b.module("third.join")]),
            b.claims["layers"].remove(b.layer("third.join")),
        ),
    )
    for image in range(0, 30, 5):
        larger = forge.claim("images", "radius", image, by=lambda r: forge.scaled(r, 1 + 1e-6))
        yield f"image {image}: radius 1e-6 larger", forge.counted(larger)
        logit = forge.at((image, 0), lambda z: z * (1 + 1e-8))
        yield f"image {image}: logit 1e-8 larger", forge.array("evidence", "logits", logit)


def test_forgeries_are_rejected(small, tmp_path):
    assert verdict(small.write(tmp_path / "honest"))[0] == 0
    count = 0
    for place, (name, change) in enumerate(forgeries()):
        code, said = verdict(small.changed(change).write(tmp_path / str(place)))
        assert code == 1 and said.startswith("rejected: "), f"{name}: {said}"
        count += 1
    assert count > 100


def test_weaker_claims_are_accepted(small, tmp_path):
    for place, (name, change) in enumerate(
        [
            ("a larger upper end of a block", forge.end("first.join", "upper", 1.5)),
            ("no lower end of a block", set_end("second.join", "lower", lambda x: 0.0)),
            ("smaller radii", forge.radii(lambda r: forge.scaled(r, 0.9))),
            ("no Identity in a branch", both(dropped("third.branch.nothing"))),
            (
                "a larger upper end inside, smaller radii",
                forge.in_turn(
                    forge.end("first.branch.up", "upper", 1.5),
                    forge.Bundle.joins,
                    forge.radii(lambda r: forge.scaled(r, 0.5)),
                ),
            ),
        ]
    ):
        code, said = verdict(small.changed(change).write(tmp_path / str(place)))
        assert code == 0, f"{name}: {said}"


def test_logits_err_less_than_said(small, tmp_path):
    """Against the same pass in extended precision."""
    it = checker.read_bundle(small.write(tmp_path / "bundle"), Path(), False)
    x_CBHW = it.x_BCHW.transpose(1, 0, 2, 3)
    z_NB, off_NB, _ = checker.forward(it.layers, x_CBHW, it.prediction, it.radius, "float64", True)
    x, kept = (it.x_BCHW * 16).transpose(1, 0, 2, 3).astype(np.longdouble) / 16, []
    for layer in it.layers:
        if layer.kind == "Fork":
            kept.append(x)
        elif layer.kind == "Join":
            x = x + kept.pop()
        elif layer.affine:
            weight = layer.weight_GOIT.reshape(layer.groups, -1, layer.weight_GOIT[0, 0].size)
            read = checker.columns(layer, x, layer.groups)
            out = np.stack([w.astype(np.longdouble) @ r for w, r in zip(weight, read, strict=True)])
            x = out.reshape(-1, x.shape[1], *layer.outputs) + layer.bias_O[:, None, None, None]
        else:
            x = layer.apply(x)
    error = abs(x[:, :, 0, 0] - z_NB)
    assert (error <= off_NB).all() and error.max() > 0 and off_NB.max() < 1e-9


def checkers_radius(chain: nn.Sequential, image: float, arithmetic: str, checker=checker) -> float:
    """The largest radius that the checker's own inequality holds at, for class 0 of a chain of one pixel."""
    stored = {key: value.numpy().copy() for key, value in chain.state_dict().items()}
    layers, shape, uppers = [], (1, 1, 1), {}

    def collect(bounds) -> None:
        for bound in bounds:
            collect(bound.branch)
            uppers[bound.name] = bound.enclosure.upper

    collect(chain_bounds(chain, (1, 1, 1)).layers)
    for entry in geometry(chain):
        layers.append(
            checker.read_layer({k: list(v) if type(v) is tuple else v for k, v in entry.items()}, shape, stored)
        )
        shape, layers[-1].upper = layers[-1].after, uppers.get(entry["name"], 1.0)
    x_CBHW, low, high = np.full((1, 1, 1, 1), image), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        held_B = checker.forward(layers, x_CBHW, np.array([0]), np.array([middle]), arithmetic, True)[2]
        low, high = (middle, high) if held_B[0] else (low, middle)
    return low


def sums(share: float) -> nn.Sequential:
    """Twelve times x + relu(x): nothing but additions rounds. The margin is `share` of what they lose in float32."""
    lost = 12 * 2.0**12 * PIXEL * 2.0**-24
    level = float(np.float32(-(2.0**12) * PIXEL + share * lost))
    return nn.Sequential(
        nn.Flatten(), *(block(nn.ReLU()) for _ in range(12)), linear([[1.0], [0.0]], [level, 0.0])
    ).eval()


def lossy(inside: bool) -> nn.Sequential:
    """A large bias that is taken back, before a block with a small branch or inside of the branch."""
    large = [linear(torch.eye(1), [2.0**10]), linear(torch.eye(1), [-(2.0**10)])]
    layers = [block(*large)] if inside else [*large, block(linear(2.0**-12 * torch.eye(1)))]
    with torch.no_grad():
        reached = nn.Sequential(*layers)(torch.tensor([[PIXEL]])).item()
    return nn.Sequential(nn.Flatten(), *layers, linear([[1.0], [0.0]], [2e-3 - reached, 0.0])).eval()


PIXEL = 0.75
TIGHT = {
    "sums": lambda: sums(3.0),
    "sums with little left": lambda: sums(2.0),
    "before the block": lambda: lossy(False),
    "inside of the branch": lambda: lossy(True),
}


@pytest.mark.parametrize("name", TIGHT)
def test_rounding_counts_as_much_as_in_the_certifier(name):
    """Where rounding takes a good part of the radius, the checker's and the certifier's recursions agree."""
    chain, pixel = TIGHT[name](), torch.full((1, 1, 1, 1), PIXEL, dtype=torch.float64)
    executed = certify(chain, pixel, arithmetic="float32").radius_B.item()
    assert 0 < executed < 0.9 * certify(chain, pixel, guarantee="nominal").radius_B.item()
    assert checkers_radius(chain, PIXEL, "float32") == pytest.approx(executed, rel=1e-3)


# A line of the checker, what a careless author would have written, and the chain on which that claims too much.
KEPT, JOINED = "held.append((x, e, d, g, P * UP))", "(x, e, d, g, P * UP), strict"
CARELESS = {
    "the sum does not round": ('layer.kind in ("Shift", "Join")', 'layer.kind == "Shift"', "sums"),
    "the skip has no errors": (KEPT, KEPT.replace("e, d", "0 * e, 0 * d"), "before the block"),
    "the branch has no errors": (JOINED, JOINED.replace("e, d", "0 * e, 0 * d"), "inside of the branch"),
    "the skip does not move": (KEPT, KEPT.replace("P * UP", "0 * P"), "sums"),
    "the branch does not move": (JOINED, JOINED.replace("P * UP", "0 * P"), "sums"),
}


@pytest.mark.parametrize("name", CARELESS)
def test_a_careless_checker_is_noticed(name):
    old, new, chain = CARELESS[name]
    source = Path(checker.__file__).read_text()
    assert source.count(old) == 1
    careless = types.ModuleType("careless")
    exec(compile(source.replace(old, new), "careless", "exec"), vars(careless))
    made = TIGHT[chain]()
    assert checkers_radius(made, PIXEL, "float32", careless) > 1.01 * checkers_radius(made, PIXEL, "float32")


def test_products_of_blocks(small):
    """The claimed constant is the product of what is outside of the branches, in fractions."""
    layers = {layer["name"]: Fraction(float.fromhex(layer["upper"])) for layer in small.claims["layers"]}
    inner = 1 + layers["second.branch.inner.branch.two"]
    second = 1 + layers["second.branch.one"] * inner
    first = 1 + layers["first.branch.up"] * layers["first.branch.down"]
    third = 1 + layers["third.branch.up"] * layers["third.branch.down"]
    exact = layers["stem"] * first * second * layers["dense"] * third
    claimed = Fraction(float.fromhex(small.claims["lipschitz"]["upper"]))
    assert exact <= claimed <= exact * (1 + Fraction(1, 2**25))
