"""Certificate bundles written from the page of the format alone, and the tools to change what they claim.

A `Bundle` is what is in the three files. `write` computes all checksums again, so that only what the claims mean can
tell a forgery; `verdict` is what the checker says. `weaker` are changes after which the claims are still true;
`forgeries.py` has the others.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from lipcert import checker
from lipcert.certify import certify_each
from lipcert.chain import ChainBounds, plain_chain
from lipcert.data import load_dataset
from lipcert.data.registry import DATASETS
from lipcert.layers import MinMax, Residual, Shift
from lipcert.models.stored import geometry

RADII = ("1/255", "8/255", "36/255")
AFFINE = ("stem", "middle", "last", "dense")
PLAIN = ("shift", "pad", "sort", "relu", "nothing", "flatten", "dense_sort")
_SLACK = Fraction(1, 10**7)  # radii are claimed this much below the proven ones; forgeries add ten times as much


@dataclass
class Bundle:
    """claims: `certificate.json` but for its checksums. extra: bytes of other files, or files to leave out (None)."""

    claims: dict
    geometry: list
    weights: dict[str, np.ndarray]
    evidence: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    header: Callable[[bytes], bytes] = lambda blob: blob
    text: Callable[[str], str] = lambda text: text
    extra: dict[str, bytes | None] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        network = self.header(save(self.weights, {"geometry": json.dumps(self.geometry)} | self.metadata))
        files = {"network.safetensors": network, "evidence.safetensors": save(self.evidence)}
        sums = {f"{name.split('.')[0]}_sha256": hashlib.sha256(blob).hexdigest() for name, blob in files.items()}
        sums = dict(sorted(sums.items(), reverse=True))
        text = self.text(written(self.claims | sums))
        files["certificate.json"] = text.encode("utf-8")
        for name, blob in (files | self.extra).items():
            if blob is not None:
                (folder / name).write_bytes(blob)
        return folder

    def copy(self) -> Bundle:
        return copy.deepcopy(self)

    def changed(self, *changes: Change) -> Bundle:
        bundle = self.copy()
        in_turn(*changes)(bundle)
        return bundle

    def layer(self, name: str) -> dict:
        return next(layer for layer in self.claims["layers"] if layer["name"] == name)

    def module(self, name: str) -> dict:
        return next(layer for layer in self.geometry if layer["name"] == name)

    def products(self) -> None:
        """Claim the products that follow from the layers, and the counts that follow from the images."""
        ends = {}
        for end, toward in (("lower", -math.inf), ("upper", math.inf)):
            exact = math.prod(Fraction(float.fromhex(layer[end])) for layer in outside(self.claims["layers"]))
            value = float(exact)
            ends[end] = (value if Fraction(value) == exact else math.nextafter(value, toward)).hex()
        self.claims["lipschitz"] = ends

    def joins(self) -> None:
        """Claim for every residual block what follows from its branch."""
        layers = self.claims["layers"]
        for place, layer in enumerate(layers):
            if layer["kind"] == "Join":
                fork = next(i for i, entry in enumerate(layers) if entry["name"] == layer["name"][:-5] + ".fork")
                branch = outside(layers[fork + 1 : place])
                stretch = math.prod((Fraction(float.fromhex(entry["upper"])) for entry in branch), start=Fraction(1))
                layer["upper"] = rounded(1 + stretch, math.ceil).hex()
                layer["lower"] = rounded(max(1 - stretch, Fraction(0)), math.floor).hex()
        self.products()

    def counts(self) -> None:
        images = self.claims["images"]
        right = [p == y for p, y in zip(images["prediction"], images["label"], strict=True)]
        radii = [Fraction(float.fromhex(r)) for r in images["radius"]]
        certified = [[t, sum(c and r >= Fraction(t) for c, r in zip(right, radii, strict=True))] for t in RADII]
        self.claims["counts"] = {"certified": certified, "clean": sum(right), "images": len(right)}


def verdict(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of the checker."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = checker.main([str(folder), *options])
    return code, said.getvalue()


def outside(layers: list[dict]) -> list[dict]:
    """Entries that are in no branch; a Join speaks for its block."""
    depth, found = 0, []
    for layer in layers:
        depth -= layer["kind"] == "Join"
        if depth == 0 and layer["kind"] != "Fork":
            found.append(layer)
        depth += layer["kind"] == "Fork"
    return found


def written(claims: dict) -> str:
    """The text of the claims with its checksum."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'), sort_keys=True)}" for k, v in claims.items()]
    digest = hashlib.sha256(("{\n" + ",\n".join(lines) + "\n}\n").encode()).hexdigest()
    return "{\n" + ",\n".join([*lines, f'"sha256": "{digest}"']) + "\n}\n"


def every_kind(seed: int = 0) -> nn.Sequential:
    """A small network for the digits with a layer of every kind."""
    torch.manual_seed(seed)
    layers = OrderedDict(
        shift=Shift(0.5),
        pad=nn.ZeroPad2d((1, 0, 0, 1)),
        stem=nn.Conv2d(1, 8, 3, stride=2, padding=1),
        sort=MinMax(),
        middle=nn.Conv2d(8, 8, 3, padding="same", groups=2),
        relu=nn.ReLU(),
        last=nn.Conv2d(8, 8, (3, 2), padding=(1, 0), dilation=(1, 2)),
        nothing=nn.Identity(),
        flatten=nn.Flatten(),
        dense=nn.Linear(120, 16),
        dense_sort=MinMax(),
        head=nn.Linear(16, 10),
    )
    return nn.Sequential(layers).eval().requires_grad_(False)


def blocks(seed: int = 0) -> nn.Sequential:
    """A small network for the digits with residual blocks, one inside of another."""
    torch.manual_seed(seed)
    layers = OrderedDict(
        shift=Shift(0.5),
        stem=nn.Conv2d(1, 4, 3, stride=2, padding=1),
        first=residual(up=nn.Conv2d(4, 8, 3, padding=1), sort=MinMax(), down=nn.Conv2d(8, 4, 3, padding=1)),
        sort=MinMax(),
        second=residual(
            one=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            inner=residual(two=nn.Conv2d(4, 4, 1), relu=nn.ReLU()),
            shift=Shift(0.25),
        ),
        flatten=nn.Flatten(),
        dense=nn.Linear(64, 16),
        third=residual(up=nn.Linear(16, 8), sort=MinMax(), nothing=nn.Identity(), down=nn.Linear(8, 16)),
        head=nn.Linear(16, 10),
    )
    return nn.Sequential(layers).eval().requires_grad_(False)


def residual(**layers: nn.Module) -> Residual:
    return Residual(nn.Sequential(OrderedDict(layers)))


def honest(
    model: nn.Module,
    name: str = "digits",
    count: int = 30,
    guarantee: str = "executed",
    arithmetic: str = "float64",
    bounds: ChainBounds | None = None,
) -> Bundle:
    """A true bundle about the first test images: bounds up, radii down, everything at 31 bits."""
    data, facts = load_dataset(name), DATASETS[name]
    split, chain = data.test, plain_chain(model)
    index_N, labels_N = split.index_N[:count], split.labels_N[:count]
    images = split.images_NCHW[:count].double() / data.scale
    wanted = [(guarantee, arithmetic), ("executed", "float64")]
    certificates, in_float64 = certify_each(chain, images, wanted, bounds=bounds)
    layers, evidence = [], {"logits": in_float64.logits_BK.numpy()}

    def describe(bounds) -> None:
        for bound in bounds:
            lower, upper, kind, name = bound.enclosure.lower, bound.enclosure.upper, bound.kind, bound.name
            if kind in ("Conv2d", "Linear"):
                lower = rounded(Fraction(lower) * (1 - Fraction(1, 2**29)), math.floor)
                upper = rounded(Fraction(upper) * (1 + Fraction(1, 2**29)), math.ceil)
                evidence[f"vector.{name}"] = bound.enclosure.vector.numpy()
            if kind == "Residual":
                one = (1.0).hex()
                layers.append({"kind": "Fork", "lower": one, "name": f"{name}.fork", "upper": one})
                describe(bound.branch)
                kind, name = "Join", f"{name}.join"
            layers.append({"kind": kind, "lower": lower.hex(), "name": name, "upper": upper.hex()})

    describe(certificates.bounds.layers)
    part = "all" if name == "digits" else "test"
    claims = {"format": "lipcert certificate 1", "norm": "l2", "method": "margin", "guarantee": guarantee}
    claims |= {"arithmetic": arithmetic, "effort": "fast", "input_shape": list(images.shape[1:]), "layers": layers}
    claims |= {"lipschitz": {}, "data": {"classes": list(data.class_ids), "name": name, "part": part}}
    claims["data"] |= {"scale": data.scale, "sha256": facts.pinned[part]}
    claims["images"] = {"index": index_N.tolist(), "label": labels_N.tolist()}
    weights = {key: value.numpy().copy() for key, value in chain.state_dict().items()}
    bundle = Bundle(claims, json.loads(json.dumps(geometry(chain))), weights, evidence)
    bundle.joins()
    excess = Fraction(float.fromhex(claims["lipschitz"]["upper"])) / Fraction(certificates.bounds.upper)
    radius = [rounded(Fraction(r) / excess * (1 - _SLACK), math.floor).hex() for r in certificates.radius_B.tolist()]
    claims["images"] |= {"prediction": certificates.prediction_B.tolist(), "radius": radius}
    claims["counts"] = {}
    bundle.counts()
    return bundle


def rounded(value: Fraction, cut: Callable[[Fraction], int]) -> float:
    """To 31 significant bits."""
    if value == 0:
        return 0.0
    unit = Fraction(2) ** (value.numerator.bit_length() - value.denominator.bit_length() - 31)
    return float(cut(value / unit) * unit)


def scaled(text: str, factor: float) -> str:
    return (float.fromhex(text) * factor).hex()


Change = Callable[[Bundle], None]


def claim(*path, value=None, by: Callable | None = None) -> Change:
    """Put `value` at this place of the claims, or what `by` makes of what is there."""

    def change(b: Bundle) -> None:
        place = b.claims
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value if by is None else by(place[path[-1]])

    return change


def end(name: str, which: str, factor: float) -> Change:
    """Move one end of a layer, and the product with it."""

    def change(b: Bundle) -> None:
        b.layer(name)[which] = scaled(b.layer(name)[which], factor)
        b.products()

    return change


def argument(name: str, key: str, value: object) -> Change:
    """Another argument of a layer of the network."""

    def change(b: Bundle) -> None:
        b.module(name)[key] = value

    return change


def array(where: str, key: str, by: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another tensor in "weights" or "evidence"."""

    def change(b: Bundle) -> None:
        getattr(b, where)[key] = np.ascontiguousarray(by(getattr(b, where)[key].copy()))

    return change


def in_turn(*changes: Change) -> Change:
    def change(b: Bundle) -> None:
        for one in changes:
            one(b)

    return change


def at(place: tuple | int, by: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """Change one entry of an array."""

    def change(values: np.ndarray) -> np.ndarray:
        values[place] = by(values[place])
        return values

    return change


def counted(*changes: Change) -> Change:
    return in_turn(*changes, Bundle.counts)


def radii(by: Callable[[str], str]) -> Change:
    return counted(claim("images", "radius", by=lambda values: [by(r) for r in values]))


def without(name: str, *places: str) -> Change:
    """Take a layer out of the "claims", the "network", or both."""

    def change(b: Bundle) -> None:
        if "claims" in places:
            b.claims["layers"].remove(b.layer(name))
            b.products()
        if "network" in places:
            b.geometry.remove(b.module(name))
            for key in (f"{name}.weight", f"{name}.bias"):
                b.weights.pop(key, None)
            b.evidence.pop(f"vector.{name}", None)

    return change


def weaker() -> Iterator[tuple[str, Change]]:
    """Changes after which every claim is still true."""
    every, zero = slice(None), "0x0.0p+0"
    yield "smaller radii", radii(lambda r: scaled(r, 0.9))
    yield "a radius of zero", counted(claim("images", "radius", 3, value=zero))
    yield "real instead of executed", claim("guarantee", value="real")
    yield "exact: as true, more to prove", claim("effort", value="exact")
    yield "counts at no radius", claim("counts", "certified", value=[])
    abstain = claim("images", "prediction", 2, value=-1), claim("images", "radius", 2, value=zero)
    yield "one more abstention", counted(*abstain)
    yield "padding 'same' in numbers", argument("middle", "padding", [1, 1])
    yield "no Identity", without("nothing", "claims", "network")
    wide = {"lower": "0x1.0000000000000p-9", "upper": "0x1.0000000000000p+90"}
    yield "a wider product", claim("lipschitz", value=wide)
    for name in AFFINE:
        loose = radii(lambda r: scaled(r, 0.6))
        yield f"{name}: larger upper end, smaller radii", in_turn(end(name, "upper", 1.5), loose)
        yield f"{name}: smaller lower end", end(name, "lower", 0.5)
        nothing = in_turn(end(name, "lower", 0.0), array("evidence", f"vector.{name}", np.zeros_like))
        yield f"{name}: no lower end, no vector", nothing
    fewer = [claim("images", key, by=lambda v: v[:4] + v[9:]) for key in ("index", "label", "prediction", "radius")]
    rows = array("evidence", "logits", lambda z: np.delete(z, range(4, 9), axis=0)[every])
    yield "fewer images", counted(*fewer, rows)
