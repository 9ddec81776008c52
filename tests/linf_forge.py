"""Certificate bundles in l_inf written from the page of the format alone; see `forge`.

Radii of boxes are claimed to the last bit: the largest float at which the certifier proves them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import torch
from forge import Bundle, rounded, written
from linf_nets import filled
from safetensors.numpy import save
from torch import Tensor, nn

from lipcert.certify import certify
from lipcert.chain import plain_chain
from lipcert.data import load_dataset
from lipcert.data.registry import DATASETS
from lipcert.forward import FORMATS
from lipcert.layers import MinMax, Residual, Shift
from lipcert.linf.interval import Propagation
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance
from lipcert.linf.rounding import Rounding, ball
from lipcert.models.stored import geometry
from lipcert.program import instructions


class LinfBundle(Bundle):
    """Two files: there is no evidence."""

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        network = self.header(save(self.weights, {"geometry": json.dumps(self.geometry)} | self.metadata))
        text = self.text(written(self.claims | {"network_sha256": hashlib.sha256(network).hexdigest()}))
        files = {"network.safetensors": network, "certificate.json": text.encode("utf-8")}
        for name, blob in (files | self.extra).items():
            if blob is not None:
                (folder / name).write_bytes(blob)
        return folder


def every_kind(seed: int = 0) -> nn.Sequential:
    """A small network for the digits with every layer that has a margin rule."""
    torch.manual_seed(seed)
    layers = OrderedDict(
        shift=Shift(0.3),
        pad=nn.ZeroPad2d((1, 0, 0, 1)),
        windows=filled(DistanceConv(1, 6, 3, 2, 1), 0.4),
        sort=MinMax(),
        relu=nn.ReLU(),
        nothing=nn.Identity(),
        flatten=nn.Flatten(),
        dense=filled(Distance(150, 24), 0.3),
        sorted=filled(SortedDistance(24, 20, 0.7, 8), 0.3),
        head=filled(Distance(20, 10), 0.3),
        negate=Negate(),
    )
    return nn.Sequential(layers).eval()


def convolutions(seed: int = 0) -> nn.Sequential:
    """A conventional network: certified by boxes alone."""
    torch.manual_seed(seed)
    inner = OrderedDict(up=nn.Conv2d(8, 8, 3, padding="same", groups=2), sort=MinMax())
    layers = OrderedDict(
        shift=Shift(0.3),
        stem=nn.Conv2d(1, 8, 3, stride=2, padding=1),
        relu=nn.ReLU(),
        block=Residual(nn.Sequential(inner)),
        flatten=nn.Flatten(),
        hidden=nn.Linear(128, 32),
        tanh=nn.Tanh(),
        head=nn.Linear(32, 10),
    )
    return nn.Sequential(layers).eval().requires_grad_(False)


def honest(
    model: nn.Module, method: str, guarantee: str = "executed", arithmetic: str = "float64", count: int = 30
) -> LinfBundle:
    """A true bundle about the first test digits."""
    data, chain = load_dataset("digits"), plain_chain(model)
    images = data.test.images_NCHW[:count].double() / data.scale
    asked = {"norm": "linf", "method": "margin", "guarantee": guarantee, "arithmetic": arithmetic}
    if method == "margin":
        found = certify(chain, images, **asked)
        prediction_B, radius_B = found.prediction_B, found.radius_B
        radius = [rounded(Fraction(r) * (1 - Fraction(1, 10**9)), math.floor).hex() for r in radius_B.tolist()]
    else:
        prediction_B = copy.deepcopy(chain).double()(images).argmax(1)
        radius = [r.hex() for r in largest_radii(chain, images, prediction_B, guarantee, arithmetic).tolist()]
    program = instructions(chain)
    layers = [{"kind": type(layer).__name__, "name": name} for name, layer in program]
    labels_N = data.test.labels_N[:count]
    claims = {"format": "lipcert certificate 1", "norm": "linf", "method": method, "guarantee": guarantee}
    claims |= {"arithmetic": arithmetic, "effort": "fast", "input_shape": list(images.shape[1:]), "layers": layers}
    claims |= {"lipschitz": {}} if method == "margin" else {}
    claims["data"] = {"classes": list(data.class_ids), "name": "digits", "part": "all", "scale": data.scale}
    claims["data"] |= {"sha256": DATASETS["digits"].pinned["all"]}
    claims["images"] = {"index": data.test.index_N[:count].tolist(), "label": labels_N.tolist()}
    claims["images"] |= {"prediction": prediction_B.tolist(), "radius": radius}
    claims["counts"] = {}
    weights = {key: value.numpy().copy() for key, value in chain.state_dict().items()}
    bundle = LinfBundle(claims, json.loads(json.dumps(geometry(chain))), weights, {})
    if method == "margin":
        for line, (_, layer) in zip(layers, program, strict=True):
            weighted = isinstance(layer, SortedDistance)
            total = sum(map(Fraction, layer.coefficients().tolist())) if weighted else Fraction(1)
            line |= {"lower": rounded(total, math.floor).hex(), "upper": rounded(total, math.ceil).hex()}
        bundle.products()
    bundle.counts()
    return bundle


def largest_radii(chain: nn.Sequential, images: Tensor, class_B: Tensor, guarantee: str, arithmetic: str) -> Tensor:
    """The largest float64 at which boxes hold, 0 where they do not even at 0."""
    boxes = Propagation(chain, Rounding(guarantee, FORMATS[arithmetic]))
    low_B = torch.zeros(len(images), dtype=torch.int64)
    high_B = torch.ones(len(images), dtype=torch.float64).view(torch.int64)
    while (high_B - low_B).max() > 1:  # positive floats are ordered like the integers of their bits
        middle_B = (low_B + high_B) // 2
        holds_B = boxes.worst(*ball(images, middle_B.view(torch.float64), boxes.rounding), class_B).holds_B
        low_B, high_B = torch.where(holds_B, middle_B, low_B), torch.where(holds_B, high_B, middle_B)
    return low_B.view(torch.float64)
