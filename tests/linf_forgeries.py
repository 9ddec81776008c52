"""What can be forged in an l_inf bundle, every checksum computed again: each must be found out.

Every claim here is false, stronger than what is known, or said in another way than the only one there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from forge import RADII, Bundle, Change, argument, array, at, claim, counted, in_turn, radii, scaled
from safetensors.numpy import save

PLAIN = ("shift", "pad", "sort", "relu", "nothing", "flatten", "negate")
WEIGHTED = ("windows", "dense", "sorted", "head")


def forgeries(method: str) -> Iterator[tuple[str, Change]]:
    """False claims about `every_kind`, true but for one change."""
    yield from _images(method)
    yield from _network()
    yield from _words(method)
    yield from _constants() if method == "margin" else _boxes()


def _images(method: str) -> Iterator[tuple[str, Change]]:
    slightly = lambda r: scaled(r, 1 + 1e-6)  # noqa: E731
    for image in range(0, 30, 3):
        yield f"image {image}: radius slightly larger", counted(claim("images", "radius", image, by=slightly))
        yield f"image {image}: radius doubled", counted(claim("images", "radius", image, by=lambda r: scaled(r, 2)))
        other = claim("images", "prediction", image, by=lambda p: (p + 1) % 10)
        yield f"image {image}: another prediction", counted(other)
        nothing = claim("images", "radius", image, value="0x0.0p+0")
        yield f"image {image}: another prediction at no radius", counted(other, nothing)
        yield f"image {image}: another label", counted(claim("images", "label", image, by=lambda y: (y + 1) % 10))
        yield f"image {image}: the next one", counted(claim("images", "index", image, by=lambda i: i + 1))
    yield "an abstention with a radius", counted(claim("images", "prediction", 3, value=-1))
    for bad in ("inf", "nan", "-0x1.0000000000000p-4", "0x1p-4", 0.0625, None):
        yield f"a radius written {bad!r}", claim("images", "radius", 5, value=bad)
    for place, radius in enumerate(RADII):
        yield f"one more at {radius}", claim("counts", "certified", place, 1, by=lambda n: n + 1)
    yield "one more correct", claim("counts", "clean", by=lambda n: n + 1)


def _network() -> Iterator[tuple[str, Change]]:
    for name in WEIGHTED:
        weight, shift = f"{name}.weight", f"{name}.shift"
        yield f"{name}: weights 1e-3 larger", array("weights", weight, lambda w: w * np.float32(1.001))
        yield f"{name}: weights in another order", array("weights", weight, lambda w: w[::-1])
        yield f"{name}: weights in float64", array("weights", weight, lambda w: w.astype(np.float64))
        yield f"{name}: weights of another shape", array("weights", weight, lambda w: w[..., None])
        yield f"{name}: a weight of nan", array("weights", weight, at((0, 0), lambda w: w * np.float32("nan")))
        yield f"{name}: weights of inf", array("weights", weight, lambda w: w + np.float32("inf"))
        yield f"{name}: no weights", lambda b, weight=weight: b.weights.pop(weight)
        yield f"{name}: no shift", lambda b, shift=shift: b.weights.pop(shift)
        yield f"{name}: shifts in another order", array("weights", shift, lambda v: v[::-1])
        yield f"{name}: shifts of 0", array("weights", shift, np.zeros_like)
        yield (
            f"{name}: bias instead of shift",
            lambda b, n=name: b.weights.update({f"{n}.bias": b.weights.pop(f"{n}.shift")}),
        )
    for key, values in {
        "keep": (1.5, 1.0000001, 0.0, -0.5, 0.5, 1.0, 2, "0.7", True, None, float("nan"), float("inf")),
        "terms": (25, 7, 1, 0, -1, 8.0, True),
        "in_features": (20, 25),
        "out_features": (24, 21),
    }.items():
        for value in values:
            yield f"sorted: {key}={value!r}", argument("sorted", key, value)
    for key, values in {
        "kernel_size": (2, 5, [3, 3], 3.0, 0),
        "stride": (1, 3, [2, 2], 0),
        "padding": (0, 2, [1, 1], "same", -1),
        "in_channels": (2,),
        "out_channels": (5, 12),
    }.items():
        for value in values:
            yield f"windows: {key}={value!r}", argument("windows", key, value)
    for name, kinds in {
        "negate": ("Identity", "ReLU"),
        "nothing": ("Negate",),
        "relu": ("Tanh", "Sigmoid"),
        "sort": ("ReLU",),
        "sorted": ("Distance",),
        "dense": ("Linear", "SortedDistance"),
        "windows": ("Conv2d",),
    }.items():
        for kind in kinds:
            yield f"{name} becomes {kind}", relabelled(name, kind)
    for name in (*PLAIN, *WEIGHTED):
        yield f"{name} left out of the claims", claim("layers", by=lambda v, n=name: [x for x in v if x["name"] != n])
        yield f"{name} renamed in the claims", lambda b, n=name: b.layer(n).update(name="other")
        if name not in ("nothing", "relu", "shift"):  # these change nothing, or too little
            yield f"{name} left out of both", without(name)
    for value in (0.31, 0.5, 1, "0.3"):
        yield f"shift by {value!r}", argument("shift", "amount", value)
    yield "pad elsewhere", argument("pad", "padding", [0, 1, 1, 0])
    yield "a tensor for nothing", lambda b: b.weights.update({"more.weight": np.ones(3, np.float32)})
    yield (
        "a dense layer in between",
        inserted("middle", "Linear", {"in_features": 20, "out_features": 20, "bias": False}),
    )


def _words(method: str) -> Iterator[tuple[str, Change]]:
    yield "norm l2", claim("norm", value="l2")
    yield "norm l2, with evidence", in_turn(claim("norm", value="l2"), evidence)
    yield "with evidence", evidence
    other = {"margin": "interval", "interval": "margin"}[method]
    yield f"method {other}", claim("method", value=other)
    for key, values in {
        "norm": ("L_inf", "l_inf", None),
        "method": ("smoothing", "", None),
        "guarantee": ("nominal", "all"),
        "arithmetic": ("float16", "exact"),
        "effort": ("tight", "exact", "best"),
        "format": ("lipcert certificate 2",),
    }.items():
        for value in values:
            yield f"{key}={value!r}", claim(key, value=value)
    yield "real in float32", in_turn(claim("arithmetic", value="float32"), claim("guarantee", value="real"))
    yield "one key more", claim("note", value="trust me")
    yield "one key more in a layer", claim("layers", 2, "note", value=1)
    yield "a checksum of no evidence", claim("evidence_sha256", value=hashlib.sha256(b"").hexdigest())
    for name in ("network.safetensors", "certificate.json"):
        yield f"no {name}", lambda b, n=name: b.extra.update({n: None})
    yield "a tie", in_turn(tied, radii(lambda r: "0x0.0p+0"))


def _constants() -> Iterator[tuple[str, Change]]:
    for name in (*PLAIN, *WEIGHTED):
        yield f"{name}: upper end below 1", constant(name, "upper", 1 - 2.0**-20)
        yield f"{name}: lower end above 1", constant(name, "lower", 1 + 2.0**-20)
    yield "sorted: exactly 1", constant("sorted", "lower", 1 + 2.0**-22)
    yield "product: upper end too small", claim("lipschitz", "upper", by=lambda x: scaled(x, 0.5))
    yield "product: lower end too large", claim("lipschitz", "lower", by=lambda x: scaled(x, 2))
    yield "no constants", lambda b: b.claims.pop("lipschitz")
    boxes = lambda b: [line.pop(end) for line in b.claims["layers"] for end in ("lower", "upper")]  # noqa: E731
    yield "layers without constants", boxes


def _boxes() -> Iterator[tuple[str, Change]]:
    # Boxes gain where pixels are black or white: the rule of margins does not reach so far.
    yield "the same by margin", by_margin
    yield "float32 instead of float64", claim("arithmetic", value="float32")
    yield "constants where there are none", claim("lipschitz", value={"lower": (1.0).hex(), "upper": (1.0).hex()})
    yield "a constant of a layer", claim("layers", 2, "upper", value=(1.0).hex())


def conventional() -> Iterator[tuple[str, Change]]:
    """False claims about `convolutions`."""
    for image in range(0, 30, 5):
        more = claim("images", "radius", image, by=lambda r: scaled(r, 1 + 1e-6))
        yield f"image {image}: radius slightly larger", counted(more)
        other = counted(claim("images", "prediction", image, by=lambda p: (p + 1) % 10))
        yield f"image {image}: another prediction", in_turn(other, radii(lambda r: "0x0.0p+0"))
    for name in ("stem", "block.branch.up", "hidden", "head"):
        weight, bias = f"{name}.weight", f"{name}.bias"
        yield f"{name}: weights 1e-3 larger", array("weights", weight, lambda w: w * np.float32(1.001))
        yield f"{name}: biases in another order", array("weights", bias, lambda v: v[::-1])
        yield f"{name}: a weight of nan", array("weights", weight, at((0, 0), lambda w: w * np.float32("nan")))
    yield "tanh becomes ReLU", relabelled("tanh", "ReLU")
    yield "tanh becomes Identity", relabelled("tanh", "Identity")
    yield "groups of one", argument("block.branch.up", "groups", 1)
    yield "no skip", lambda b: [kept(b, lambda line: line["kind"] not in ("Fork", "Join"))]
    yield "no join", lambda b: [kept(b, lambda line: line["kind"] != "Join")]
    yield "float32 instead of float64", claim("arithmetic", value="float32")
    yield "by margin", by_margin


def weaker(method: str) -> Iterator[tuple[str, Change]]:
    """Changes after which every claim is still true."""
    zero = "0x0.0p+0"
    yield "smaller radii", radii(lambda r: scaled(r, 0.99))
    yield "radii of zero", radii(lambda r: zero)
    yield "real instead of executed", in_turn(claim("guarantee", value="real"), radii(lambda r: scaled(r, 1 - 1e-9)))
    yield "no Identity", without("nothing")
    abstain = claim("images", "prediction", 2, value=-1), claim("images", "radius", 2, value=zero)
    yield "one more abstention", counted(*abstain)
    keys = ("index", "label", "prediction", "radius")
    yield "fewer images", counted(*(claim("images", key, by=lambda v: v[:4] + v[9:]) for key in keys))
    yield "a keep that is written otherwise", argument("sorted", "keep", 0.7)
    if method == "margin":
        yield "a wider constant", constant("dense", "upper", 2.0)


def by_margin(b: Bundle) -> None:
    """A bundle of boxes with the constants that one of margins has."""
    ends = {"lower": (2.0**-20).hex(), "upper": (1.0).hex()}
    b.claims["method"] = "margin"
    for line in b.claims["layers"]:
        line |= {"lower": (0.5).hex(), "upper": (1.0).hex()}
    entries = list(b.claims.items())
    place = list(b.claims).index("layers") + 1
    b.claims = dict([*entries[:place], ("lipschitz", ends), *entries[place:]])


def evidence(b: Bundle) -> None:
    b.extra["evidence.safetensors"] = save({"logits": np.zeros((30, 10))})


def tied(b: Bundle) -> None:
    """The class predicted first and another one become the same neuron."""
    first = b.claims["images"]["prediction"][0]
    for key in ("head.weight", "head.shift"):
        b.weights[key][(first + 1) % 10] = b.weights[key][first]


def constant(name: str, which: str, factor: float) -> Change:
    def change(b: Bundle) -> None:
        b.layer(name)[which] = scaled(b.layer(name)[which], factor)
        b.products()

    return change


def relabelled(name: str, kind: str) -> Change:
    return in_turn(argument(name, "kind", kind), lambda b: b.layer(name).update(kind=kind))


def kept(b: Bundle, wanted: Callable[[dict], bool]) -> None:
    b.geometry = [line for line in b.geometry if wanted(line)]
    b.claims["layers"] = [line for line in b.claims["layers"] if wanted(line)]


def without(name: str) -> Change:
    def change(b: Bundle) -> None:
        kept(b, lambda line: line["name"] != name)
        b.weights = {key: value for key, value in b.weights.items() if not key.startswith(f"{name}.")}
        if "lipschitz" in b.claims:
            b.products()

    return change


def inserted(name: str, kind: str, arguments: dict) -> Change:
    """A dense identity before the head."""

    def change(b: Bundle) -> None:
        place = next(i for i, line in enumerate(b.geometry) if line["name"] == "head")
        b.geometry.insert(place, {"name": name, "kind": kind, **arguments})
        line = {"kind": kind, "name": name}
        if "lipschitz" in b.claims:
            line |= {"lower": (1.0).hex(), "upper": (1.0).hex()}
        b.claims["layers"].insert(place, line)
        b.weights[f"{name}.weight"] = 2 * np.eye(arguments["in_features"], dtype=np.float32)

    return change
