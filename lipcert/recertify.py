"""Certify images with a stored network: what `lipcert certify` and the notebooks `certify` and `tour` do.

Shape suffixes: N images, C channels, H height, W width.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lipcert.certificate import Images, has_bundle, write_bundle
from lipcert.certify import ABSTAIN, Certificates, certified_correct
from lipcert.chain import NotCertifiable
from lipcert.checker import DATA as CHECKABLE
from lipcert.data import Dataset, Split, load_dataset, to_unit
from lipcert.data.lazy import LazyImages
from lipcert.evaluate import certify_split, joined, unit_pieces
from lipcert.models import open_network
from lipcert.paths import local_dir
from lipcert.provenance import tensors_sha256
from lipcert.relaxed import SetCertificates, certify_affinity, certify_top_k, relaxed_correct
from lipcert.report.tables import Markdown, down, percent, table, up
from lipcert.results import write_radii
from lipcert.settings import RadiusText, Settings, parse, plain_values


class Request(Settings):
    """Which images to certify with which network."""

    model: str = Field(description="name of a shipped network, id of one of your runs, or path of a .safetensors file")
    images: str | None = Field(None, description="data set; none: the one the network was trained on")
    start: int = Field(0, ge=0, description="first test image")
    count: int = Field(0, ge=0, description="number of test images; 0: all from start on")
    radii: tuple[RadiusText, ...] = Field((), description="radii to count at; none: the network's own")
    norm: Literal["l2", "linf"] | None = Field(None, description="norm of the ball; none: the network's own")
    method: Literal["margin", "interval"] | None = Field(
        None, description="margins, or in l_inf intervals; none: what proves the most"
    )
    effort: Literal["fast", "tight", "exact"] = Field("fast", description="how hard to sharpen the bounds")
    guarantee: Literal["nominal", "real", "executed"] = Field("executed", description="what radii promise")
    arithmetic: Literal["float64", "float32"] = Field("float64", description="what the network is run in")


class SetRequest(Request):
    """The same for sets of classes: one of `top_k` and `affinity`."""

    top_k: int = Field(0, ge=0, description="sets of at most so many classes")
    affinity: str = Field("", description="sets inside of these, such as '[3,5][4,7]', by name or number")


def request_from(namespace: dict[str, Any], **defaults: Any) -> Request:
    """A checked request from a notebook's variables; unknown or mistyped ones raise `ConfigError`."""
    return parse(Request, defaults | plain_values(namespace))


@dataclass(frozen=True)
class Recertified:
    """Certificates of some test images, with what is needed to print and draw them.

    data: its test split is the images certified.
    """

    request: Request
    chain: nn.Sequential
    certificates: Certificates
    data: Dataset
    radii: tuple[str, ...]
    seconds: float
    path: Path
    bundle: Path | None

    @property
    def labels_N(self) -> Tensor:
        """Labels of the images certified."""
        return self.data.test.labels_N

    def image_CHW(self, number: int) -> Tensor:
        """One of the images certified, counted from 0, as float64 pixels in [0, 1]."""
        return to_unit(self.data.test.images_NCHW[number : number + 1], self.data.scale, torch.float64)[0]

    @property
    def names(self) -> list[str]:
        """Class names, in the order of the logits."""
        return self.chain.card["class_names"]

    def clean(self) -> int:
        """Number of images classified correctly."""
        return int((self.certificates.prediction_B == self.labels_N).sum())

    def counts(self, radius: str) -> tuple[int, int]:
        """Images correct and certified at `radius`, and what the power method would have claimed."""
        c = self.certificates
        return (
            certified_correct(c.prediction_B, c.radius_B, self.labels_N, radius),
            certified_correct(c.prediction_B, c.estimated_radius_B, self.labels_N, radius),
        )

    def table(self) -> Markdown:
        """VRA at every radius."""
        total = len(self.labels_N)
        rows = [("0 (clean)", percent(self.clean() / total), "", total)]
        for radius in self.radii:
            rows.append((radius, *(percent(count / total) for count in self.counts(radius)), total))
        head = (f"{self.certificates.norm} radius", f"certified ({self.certificates.guarantee})", "estimated", "images")
        return table(head, rows, right=(1, 2, 3))

    def image_table(self) -> Markdown:
        """One row per image."""
        return table(
            ("image", "label", "prediction", "runner-up", f"certified {self.certificates.norm} radius"),
            self.image_rows(),
            right=(4,),
        )

    def image_rows(self) -> list[tuple[str, str, str, str, str]]:
        """Number, label, prediction, runner-up and radius of every image as text; radii are cut, never rounded up."""
        c, names, rows = self.certificates, self.names, []
        for i, (label, predicted, rival, radius) in enumerate(
            zip(
                self.labels_N.tolist(),
                c.prediction_B.tolist(),
                c.runner_up_B.tolist(),
                c.radius_B.tolist(),
                strict=True,
            )
        ):
            number = str(self.request.start + i)
            if predicted == ABSTAIN:
                rows.append((number, names[label], "abstains", "", "none"))
            else:
                wrong = "" if predicted == label else " (wrong)"
                rows.append((number, names[label], names[predicted] + wrong, names[rival], cut(radius)))
        return rows

    def bounds_table(self) -> Markdown:
        """Constants of the backbone, layer by layer; factors of exactly 1 are left out."""
        bounds = self.certificates.bounds
        rows = [
            (b.name, down(b.enclosure.lower, 6), f"{estimate:.6f}", up(b.enclosure.upper, 6), b.enclosure.method)
            for b, estimate in zip(bounds.layers, bounds.estimates, strict=True)
            if b.enclosure.method != "1-Lipschitz"
        ]
        rows.append(("**product**", down(bounds.lower), f"{bounds.estimate:.4f}", up(bounds.upper), ""))
        head = ("layer", "proven lower end", "power method", "proven upper end", "how")
        return table(head, rows, right=(1, 2, 3))


def recertify(request: Request) -> Recertified:
    """Certify; writes one row per image to `results/local/certified/` and, for a proof, a certificate bundle to
    `results/local/certificates/`, both named after network, weights, data set, range of images, guarantee, arithmetic
    and effort.

    Raises:
        FileNotFoundError, ValueError: unknown or damaged network, or a missing data set.
        NotCertifiable: images the network cannot take, or numbers outside the test set.
    """
    chain, data = _opened(request)
    claim, (norm, method) = (request.guarantee, request.arithmetic), _ways(request, chain)
    radii = request.radii or (chain.card["radius"],)
    how = {"norm": norm, "method": method, "radii": radii}
    began = time.monotonic()
    (certificates,) = certify_split(chain, data, "test", torch.device("cpu"), request.effort, [claim], **how)
    seconds = time.monotonic() - began
    fingerprint = tensors_sha256(chain.state_dict())[:8]
    which = f"{data.name}-{request.start}-{len(data.test)}"
    ways = () if norm == "l2" else (norm, method)
    name = "-".join((Path(request.model).stem, fingerprint, which, *ways, *claim, request.effort))
    path = local_dir() / "certified" / f"{name}.csv"
    write_radii(path, certificates, data.test)
    bundle = None
    if has_bundle(*claim) and data.name in CHECKABLE:
        # Not the place of a run's own bundle, which has all images.
        bundle = local_dir() / "certificates" / name
        write_bundle(bundle, chain, certificates, Images.of(data, data.test), radii)
    return Recertified(request, chain, certificates, data, radii, seconds, path, bundle)


@dataclass(frozen=True)
class RecertifiedSets:
    """Certified sets of classes of some test images."""

    request: SetRequest
    chain: nn.Sequential
    certificates: SetCertificates
    labels_N: Tensor
    radii: tuple[str, ...]
    seconds: float

    def image_rows(self) -> list[tuple[str, str, str, str, str]]:
        """Number, label, the set certified farthest, its radius and that of the first class alone; cut, not rounded."""
        c, names, rows = self.certificates, self.chain.card["class_names"], []
        found = zip(c.members(c.best_k_B), self.labels_N.tolist(), c.radius_B, c.radius_BT[:, 0], strict=True)
        for i, (members, label, radius, alone) in enumerate(found):
            wrong = "" if label in members else " (wrong)"
            said = ", ".join(names[m] for m in members) + wrong if members else "abstains"
            cells = [cut(float(r)) if r > 0 else "none" for r in (radius, alone)]
            rows.append((str(self.request.start + i), names[label], said, *cells))
        return rows

    def counts(self, radius: str) -> tuple[int, int, int]:
        """Images whose label is in a certified set, in the smallest certified one, and is certified alone."""
        c, labels_N = self.certificates, self.labels_N
        chosen = [relaxed_correct(c, labels_N, radius, choice) for choice in ("loosest", "strictest")]
        return *chosen, relaxed_correct(c.up_to(1), labels_N, radius)


def recertify_sets(request: SetRequest) -> RecertifiedSets:
    """Certify sets of classes (`lipcert.relaxed`); writes nothing.

    Raises:
        FileNotFoundError, ValueError: unknown or damaged network, or a missing data set.
        NotCertifiable: images the network cannot take, numbers outside the test set, or not one kind of sets.
    """
    if bool(request.top_k) == bool(request.affinity):
        raise NotCertifiable(
            f"top_k={request.top_k}, affinity={request.affinity!r}: sets are limited by exactly one of them"
        )
    chain, data = _opened(request)
    asked = {"effort": request.effort, "guarantee": request.guarantee, "arithmetic": request.arithmetic}
    asked["norm"], _ = _ways(request, chain)
    certify, sets = certify_top_k, (request.top_k,)
    if request.affinity:
        certify, sets = certify_affinity, (request.affinity, data.class_names)
    began, pieces = time.monotonic(), []
    for images_BCHW in unit_pieces(data, "test"):
        bounds = pieces[0].bounds if pieces else None
        pieces.append(certify(chain, images_BCHW, *sets, bounds=bounds, **asked))
    certificates, seconds = joined(pieces), time.monotonic() - began
    radii = request.radii or (chain.card["radius"],)
    return RecertifiedSets(request, chain, certificates, data.test.labels_N, radii, seconds)


def _ways(request: Request, chain: nn.Sequential) -> tuple[str, str]:
    """Norm and method; those not asked for are the network's own, the method that proves the most."""
    card = chain.card
    norm = request.norm or card.get("norm", "l2")
    own = card.get("methods", ["margin"]) if norm == card.get("norm", "l2") else ["interval"]
    return norm, request.method or own[-1]


def _opened(request: Request) -> tuple[nn.Sequential, Dataset]:
    """The network, and its data set with the test images asked for alone."""
    chain = open_network(request.model)
    card = chain.card
    name = request.images or card["dataset"]
    subset = card["classes"] if name == card["dataset"] else None
    data = load_dataset(name, subset, card["class_seed"])
    if list(data.shape) != card["input_shape"] or list(data.class_names) != card["class_names"]:
        raise NotCertifiable(
            f"images={name!r}: images of shape {data.shape} in {data.classes} classes; the network takes "
            f"{tuple(card['input_shape'])} in {len(card['class_names'])} classes of {card['dataset']}"
        )
    return chain, replace(data, test=_part(data.test, name, request))


def _part(test: Split, name: str, request: Request) -> Split:
    total = len(test)
    stop = total if request.count == 0 else request.start + request.count
    if not request.start < stop <= total:
        raise NotCertifiable(
            f"start={request.start}, count={request.count}: {name} has {total} test images, numbered from 0"
        )
    part, images = slice(request.start, stop), test.images_NCHW
    kept = images.take(np.arange(request.start, stop)) if isinstance(images, LazyImages) else images[part]
    return Split(kept, test.labels_N[part], test.index_N[part])


def cut(radius: float, digits: int = 4) -> str:
    """A radius as text, cut after `digits` places: what is printed is never above what is proven."""
    if radius > 10**6:
        return f"over {10**6}"
    return down(radius, digits)
