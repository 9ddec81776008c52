"""Hundreds of ways to lie in a certificate bundle, every checksum computed again: each must be found out.

Every claim here is false, stronger than what is known, or said in another way than the only one there is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
from forge import (
    AFFINE,
    PLAIN,
    RADII,
    Change,
    argument,
    array,
    at,
    claim,
    counted,
    end,
    in_turn,
    radii,
    scaled,
    without,
    written,
)


def forgeries() -> Iterator[tuple[str, Change]]:
    """Claims that are false, stronger than what is known, or said in another way than the one there is."""
    yield from _bounds()
    yield from _network()
    yield from _images()
    yield from _words()


def _bounds() -> Iterator[tuple[str, Change]]:
    for name in AFFINE:
        vector = f"vector.{name}"
        for less in (1e-6, 1e-3, 0.5, 1.0):
            yield f"{name}: upper end {less:g} too small", end(name, "upper", 1 - less)
            both = in_turn(end(name, "upper", 1 - less), end(name, "lower", 0.4 * (1 - less)))
            yield (
                f"{name}: both ends {less:g} smaller, another vector",
                in_turn(both, array("evidence", vector, np.ones_like)),
            )
        for more in (1e-6, 1e-3, 1.0):
            yield f"{name}: lower end {more:g} too large", end(name, "lower", 1 + more)
        yield f"{name}: vector of zeros", array("evidence", vector, np.zeros_like)
        yield (
            f"{name}: another vector",
            array("evidence", vector, lambda v: np.roll(v, 1).astype(np.float32)[..., ::-1]),
        )
        yield f"{name}: vector with nan", array("evidence", vector, at(..., lambda v: v * np.float32("nan")))
        yield f"{name}: vector with inf", array("evidence", vector, at(..., lambda v: v + np.float32("inf")))
        yield f"{name}: vector in float64", array("evidence", vector, lambda v: v.astype(np.float64))
        yield f"{name}: vector of another shape", array("evidence", vector, lambda v: v.reshape(1, -1))
        yield f"{name}: no vector", lambda b, vector=vector: b.evidence.pop(vector)
    for name, other in (("middle", "last"), ("last", "middle")):
        swap = lambda b, n=name, o=other: b.evidence.update({f"vector.{n}": b.evidence[f"vector.{o}"]})  # noqa: E731
        yield f"{name}: the vector and lower end of {other}, doubled", in_turn(swap, end(name, "lower", 2.0))
    for name in PLAIN:
        yield f"{name}: upper end below 1", end(name, "upper", 1 - 1e-9)
        yield f"{name}: lower end above 1", end(name, "lower", 1 + 1e-9)
    yield "vector for the head", lambda b: b.evidence.update({"vector.head": np.ones(16, np.float32)})
    yield "product: upper end too small", claim("lipschitz", "upper", by=lambda x: scaled(x, 1 - 1e-12))
    yield "product: lower end too large", claim("lipschitz", "lower", by=lambda x: scaled(x, 1 + 1e-12))
    for bad in (
        "inf",
        "nan",
        "-0x1.0000000000000p+0",
        "0x1p+0",
        "0X1.0000000000000P+0",
        "1.0",
        " 0x1.0000000000000p+0",
        1.0,
    ):
        yield f"an upper end written {bad!r}", claim("layers", 0, "upper", value=bad)
        yield f"a lower end written {bad!r}", claim("layers", 0, "lower", value=bad)


def _network() -> Iterator[tuple[str, Change]]:
    for name in (*AFFINE, "head"):
        weight, bias = f"{name}.weight", f"{name}.bias"
        yield f"{name}: weights larger by 1e-3", array("weights", weight, lambda w: w * np.float32(1.001))
        yield f"{name}: one weight moved by 1e-3", array("weights", weight, at((0, 0), lambda w: w + np.float32(1e-3)))
        yield f"{name}: bias moved by 1e-3", array("weights", bias, at(0, lambda v: v + np.float32(1e-3)))
        yield f"{name}: weights of nan", array("weights", weight, lambda w: w * np.float32("nan"))
        yield f"{name}: weights of inf", array("weights", weight, lambda w: w + np.float32("inf"))
        yield f"{name}: weights in float64", array("weights", weight, lambda w: w.astype(np.float64))
        yield f"{name}: weights of another shape", array("weights", weight, lambda w: w[..., None])
        yield f"{name}: weights in another order", array("weights", weight, lambda w: w[::-1])
        yield f"{name}: no weights", lambda b, weight=weight: b.weights.pop(weight)
        yield f"{name}: no bias", lambda b, bias=bias: b.weights.pop(bias)
        yield f"{name}: bias denied", argument(name, "bias", False)
        yield f"{name}: bias written as 1", argument(name, "bias", 1)
    for name in ("stem", "middle", "last"):
        old = {"stem": 2, "middle": 1, "last": 1}[name]
        for key, values in {
            "stride": ([3 - old, 3 - old], [True, True], [old], [old, old, old], old, [0, 0]),
            "padding": ([2, 2], [0, 0], "valid", "full", [-1, -1]),
            "dilation": ([3, 3], [1.0, 1.0]),
            "groups": (4, 8, 0, True),
            "padding_mode": ("circular", "reflect", "zero"),
            "kernel_size": ([3, 4], [1, 1], 3),
            "in_channels": (4, 16),
            "out_channels": (4, 16),
        }.items():
            for value in values:
                yield f"{name}: {key}={value!r}", argument(name, key, value)
    for name, kind in (
        ("relu", "Identity"),
        ("sort", "ReLU"),
        ("sort", "Identity"),
        ("nothing", "ReLU"),
        ("dense_sort", "ReLU"),
    ):
        relabel = in_turn(argument(name, "kind", kind), lambda b, n=name, k=kind: b.layer(n).update(kind=k))
        yield f"{name} becomes {kind}", relabel
    for kind in ("BatchNorm2d", "Sigmoid", "Conv3d", ""):
        yield (
            f"relu becomes {kind!r}",
            in_turn(argument("relu", "kind", kind), lambda b, k=kind: b.layer("relu").update(kind=k)),
        )
    for value in (0.25, -0.5, 1, float("nan"), "0.5", None):
        yield f"shift by {value!r}", argument("shift", "amount", value)
    for value in ([0, 1, 1, 0], [1, 0, 0], [1, 0, 0, -1], 1):
        yield f"pad by {value!r}", argument("pad", "padding", value)
    for key, value in (("start_dim", 0), ("end_dim", 2), ("start_dim", True), ("order", 1)):
        yield f"flatten with {key}={value!r}", argument("flatten", key, value)
    for key, value in (("in_features", 121), ("out_features", 17), ("in_features", 120.0)):
        yield f"dense with {key}={value!r}", argument("dense", key, value)
    for name in (*PLAIN, *AFFINE):
        yield f"{name} left out of the claims", without(name, "claims")
        yield f"{name} left out of the network", without(name, "network")
        yield f"{name} renamed in the claims", lambda b, n=name: b.layer(n).update(name="other")
        yield f"{name} of another kind in the claims", lambda b, n=name: b.layer(n).update(kind="Dropout")
        if name != "nothing":
            yield f"{name} left out of both", without(name, "claims", "network")
    for first in (0, 1, 3, 4):
        order = lambda layers, i=first: [*layers[:i], layers[i + 1], layers[i], *layers[i + 2 :]]  # noqa: E731
        swap = lambda b, order=order: setattr(b, "geometry", order(b.geometry))  # noqa: E731
        yield f"layers {first} and {first + 1} swapped", in_turn(swap, claim("layers", by=order))
        yield f"claims {first} and {first + 1} swapped", claim("layers", by=order)
    yield "head taken away", lambda b: b.geometry.pop()
    yield "a tensor for nothing", lambda b: b.weights.update({"more.weight": np.ones(3, np.float32)})
    yield "metadata for nothing", lambda b: b.metadata.update(more="1")
    yield "a name twice", argument("sort", "name", "relu")
    for size in ([1, 4, 4], [1, 8, 9], [8, 8], [1.0, 8, 8], [True, 8, 8], [3, 8, 8], [1, -8, -8], "1, 8, 8"):
        yield f"input_shape={size!r}", claim("input_shape", value=size)


def _images() -> Iterator[tuple[str, Change]]:
    for image in range(0, 30, 2):
        yield (
            f"image {image}: radius 1e-6 larger",
            counted(claim("images", "radius", image, by=lambda r: scaled(r, 1 + 1e-6))),
        )
    for image in range(1, 30, 7):
        yield f"image {image}: radius doubled", counted(claim("images", "radius", image, by=lambda r: scaled(r, 2)))
        other = counted(claim("images", "prediction", image, by=lambda p: (p + 1) % 10))
        yield f"image {image}: another prediction", other
        yield f"image {image}: another prediction with a small radius", in_turn(other, radii(lambda r: scaled(r, 1e-3)))
        yield f"image {image}: another label", counted(claim("images", "label", image, by=lambda y: (y + 1) % 10))
        yield f"image {image}: the next one", counted(claim("images", "index", image, by=lambda i: i + 1))
        moved = at((image, 0), lambda z: z * (1 + 1e-8))
        yield f"image {image}: logit 1e-8 larger", array("evidence", "logits", moved)
        yield (
            f"image {image}: all its logits moved together",
            array("evidence", "logits", at(image, lambda z: z + 1e-9)),
        )
    yield "an abstention with a radius", counted(claim("images", "prediction", 3, value=-1))
    for bad in (10, -2, 1.0, True, "1", None):
        yield f"a prediction of {bad!r}", claim("images", "prediction", 0, value=bad)
        yield f"a label of {bad!r}", claim("images", "label", 0, value=bad)
    for bad in (-1, 1797, 10**6, 10**30, 0.0, "0"):
        yield f"an index of {bad!r}", claim("images", "index", 29 if type(bad) is int and bad > 0 else 0, value=bad)
    for bad in ("inf", "nan", "-0x1.0000000000000p-4", "-0x0.0p+0", "0x1p-4", "0.0625", 0.0625, None, "1/16"):
        yield f"a radius written {bad!r}", claim("images", "radius", 5, value=bad)
    yield "two images swapped", claim("images", "index", by=lambda i: [i[1], i[0], *i[2:]])
    yield "an image twice", claim("images", "index", by=lambda i: [i[0], i[0], *i[2:]])
    for key in ("index", "label", "prediction", "radius"):
        yield f"one {key} too few", claim("images", key, by=lambda values: values[:-1])
    yield "rows of logits swapped", array("evidence", "logits", lambda z: z[::-1])
    yield "columns of logits swapped", array("evidence", "logits", lambda z: z[:, ::-1])
    yield "a row of logits too few", array("evidence", "logits", lambda z: z[:-1])
    yield "logits in float32", array("evidence", "logits", lambda z: z.astype(np.float32))
    yield "logits of nan", array("evidence", "logits", lambda z: z * np.nan)
    yield "no logits", lambda b: b.evidence.pop("logits")
    for key, values in {
        "name": ("mnist", "imagenet", "cifar10"),
        "part": ("test", "train"),
        "scale": (255, 1, 16.0, 0),
        "sha256": ("0" * 64, "", None),
        "classes": (
            [*range(9)],
            [*range(11)],
            [1, 0, *range(2, 10)],
            [*range(9), 8],
            [*range(1, 11)],
            [False, *range(1, 10)],
        ),
    }.items():
        for value in values:
            yield f"data: {key}={value!r}", claim("data", key, value=value)
    for key in ("clean", "images"):
        yield f"counts: {key} one more", claim("counts", key, by=lambda n: n + 1)
        yield f"counts: {key} as a float", claim("counts", key, by=float)
    for place in range(len(RADII)):
        yield f"counts: one more at {RADII[place]}", claim("counts", "certified", place, 1, by=lambda n: n + 1)
        yield (
            f"counts: those at {RADII[place]} at another",
            claim("counts", "certified", place, 0, value=("1/255", "3")[place < 2]),
        )


def _words() -> Iterator[tuple[str, Change]]:
    yield "float32 instead of float64", claim("arithmetic", value="float32")
    yield "real in float32", in_turn(claim("arithmetic", value="float32"), claim("guarantee", value="real"))
    for key, values in {
        "format": ("lipcert certificate 2", "", None),
        "norm": ("linf", "L2"),
        "method": ("interval", "smoothing"),
        "guarantee": ("nominal", "EXECUTED", "all", ["executed"]),
        "arithmetic": ("float16", "bfloat16", "exact"),
        "effort": ("none", "best", True),
        "network_sha256": ("0" * 64, ""),
        "evidence_sha256": ("0" * 64, ""),
    }.items():
        for value in values:
            yield f"{key}={value!r}", lambda b, k=key, v=value: setattr(b, "text", _retold({k: v}))
    for key in (
        "format",
        "norm",
        "guarantee",
        "effort",
        "layers",
        "lipschitz",
        "data",
        "images",
        "counts",
        "network_sha256",
    ):
        yield f"{key} left out", lambda b, k=key: setattr(b, "text", _retold({k: None}, leave_out=True))
    yield "one key more", claim("note", value="trust me")
    for key in ("data", "images", "counts", "lipschitz"):
        yield f"one key more in {key}", claim(key, "note", value=1)
    yield "one key more in a layer", claim("layers", 2, "note", value=1)
    for name, retell in {
        "spaces": lambda text: text.replace(":[", ": ["),
        "another end of line": lambda text: text.replace("\n", "\r\n"),
        "no last end of line": lambda text: text[:-1],
        "one end of line more": lambda text: text + "\n",
        "a key twice": lambda text: text.replace('"norm": "l2",', '"norm": "linf",\n"norm": "l2",'),
        "an escape": lambda text: text.replace('"l2"', '"\\u006c2"'),
        "no checksum": lambda text: text[: text.index(',\n"sha256"')] + "\n}\n",
        "a wrong checksum": lambda text: text[:-8] + ("0" if text[-8] != "0" else "1") + text[-7:],
    }.items():
        yield f"the text with {name}", lambda b, retell=retell: setattr(b, "text", retell)
    for name in ("network.safetensors", "evidence.safetensors", "certificate.json"):
        yield f"no {name}", lambda b, n=name: b.extra.update({n: None})
        yield f"an empty {name}", lambda b, n=name: b.extra.update({n: b""})
    yield "a file more", lambda b: b.extra.update({"README.md": b"trust me"})
    for name, rewrite in {
        "bytes behind": lambda blob: blob + bytes(8),
        "bytes missing": lambda blob: blob[:-4],
        "a header too long": lambda blob: (2**40).to_bytes(8, "little") + blob[8:],
        "another type": lambda blob: blob.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1),
        "tensors on top of each other": lambda blob: blob.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
        "a space in the header": lambda blob: blob.replace(b'"shape":[10]', b'"shape":[+1]'),
    }.items():
        yield f"network with {name}", lambda b, rewrite=rewrite: setattr(b, "header", rewrite)


def _retold(changes: dict, leave_out: bool = False) -> Callable[[str], str]:
    """The text with other values for some keys, checksums computed again."""

    def retell(text: str) -> str:
        claims = {key: value for key, value in json.loads(text).items() if key != "sha256"}
        claims = {k: v for k, v in claims.items() if k not in changes} if leave_out else claims | changes
        return written(claims)

    return retell
