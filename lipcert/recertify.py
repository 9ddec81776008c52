"""Certify images with a stored network: what `lipcert certify` and the notebooks `certify` and `tour` do."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lipcert.certificate import Images, has_bundle, write_bundle
from lipcert.certify import ABSTAIN, Certificates, certified_correct, certify
from lipcert.chain import NotCertifiable
from lipcert.config import RadiusText, Settings, parse, plain_values
from lipcert.data import Split, load_dataset, to_unit
from lipcert.evaluate import write_radii
from lipcert.models import open_network
from lipcert.paths import local_dir
from lipcert.provenance import tensors_sha256
from lipcert.report.tables import Markdown, down, percent, table, up


class Request(Settings):
    """Which images to certify with which network."""

    model: str = Field(description="name of a shipped network, id of one of your runs, or path of a .safetensors file")
    images: str | None = Field(None, description="data set; none: the one the network was trained on")
    start: int = Field(0, ge=0, description="first test image")
    count: int = Field(0, ge=0, description="number of test images; 0: all from start on")
    radii: tuple[RadiusText, ...] = Field((), description="radii to count at; none: the network's own")
    effort: Literal["fast", "tight", "exact"] = Field("fast", description="how hard to sharpen the bounds")
    guarantee: Literal["nominal", "real", "executed"] = Field("executed", description="what radii promise")
    arithmetic: Literal["float64", "float32"] = Field("float64", description="what the network is run in")


def request_from(namespace: dict[str, Any], **defaults: Any) -> Request:
    """A checked request from a notebook's variables; unknown or mistyped ones raise `ConfigError`."""
    return parse(Request, defaults | plain_values(namespace))


@dataclass(frozen=True)
class Recertified:
    """Certificates of some test images, with what is needed to print and draw them."""

    request: Request
    chain: nn.Sequential
    certificates: Certificates
    images_NCHW: Tensor
    labels_N: Tensor
    radii: tuple[str, ...]
    seconds: float
    path: Path
    bundle: Path | None

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
        head = ("l2 radius", f"certified ({self.certificates.guarantee})", "estimated", "images")
        return table(head, rows, right=(1, 2, 3))

    def image_table(self) -> Markdown:
        """One row per image."""
        return table(
            ("image", "label", "prediction", "runner-up", "certified l2 radius"), self.image_rows(), right=(4,)
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
    `results/local/certificates/<network>/`.

    Raises:
        FileNotFoundError, ValueError: unknown or damaged network, or a missing data set.
        NotCertifiable: images the network cannot take, or numbers outside the test set.
    """
    named = Path(request.model)
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
    split = _part(data.test, name, request)
    images_NCHW = to_unit(split.images_NCHW, data.scale, torch.float64)
    began = time.monotonic()
    certificates = certify(
        chain, images_NCHW, effort=request.effort, guarantee=request.guarantee, arithmetic=request.arithmetic
    )
    seconds = time.monotonic() - began
    fingerprint = tensors_sha256(chain.state_dict())[:8]
    path = local_dir() / "certified" / f"{named.stem}-{fingerprint}-{name}-{request.start}-{len(split)}.csv"
    write_radii(path, certificates, split)
    radii = request.radii or (card["radius"],)
    bundle = None
    if has_bundle(request.guarantee, request.arithmetic):
        bundle = local_dir() / "certificates" / named.stem
        write_bundle(bundle, chain, certificates, Images.of(data, split), radii)
    return Recertified(request, chain, certificates, images_NCHW, split.labels_N, radii, seconds, path, bundle)


def _part(test: Split, name: str, request: Request) -> Split:
    total = len(test)
    stop = total if request.count == 0 else request.start + request.count
    if not request.start < stop <= total:
        raise NotCertifiable(
            f"start={request.start}, count={request.count}: {name} has {total} test images, numbered from 0"
        )
    part = slice(request.start, stop)
    return Split(test.images_NCHW[part], test.labels_N[part], test.index_N[part])


def cut(radius: float, digits: int = 4) -> str:
    """A radius as text, cut after `digits` places: what is printed is never above what is proven."""
    if radius > 10**6:
        return f"over {10**6}"
    return down(radius, digits)
