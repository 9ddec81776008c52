"""The certificate bundle: a network, what is claimed about it, and the evidence, for `lipcert.checker` to prove again.

The format is defined in book/bundle.md. Everything is rounded against the claim before it is written, so that a checker
with another BLAS, hence other last bits, still covers it.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lipcert.bounds.rounding import round_down, round_up
from lipcert.certify import ABSTAIN, Certificates, certified_correct
from lipcert.chain import NotCertifiable, layers_of, plain_chain
from lipcert.data.dataset import Dataset, Split
from lipcert.data.registry import DATASETS
from lipcert.forward import AFFINE, output_shape
from lipcert.models.stored import write_chain
from lipcert.radius import Radius

FORMAT = "lipcert certificate 1"
NETWORK, EVIDENCE, CLAIMS = "network.safetensors", "evidence.safetensors", "certificate.json"
_BITS = 31  # significant bits of a claimed number
_SLACK = Fraction(1, 2**29)  # how far a claim stays away from what was proven, relative


@dataclass(frozen=True)
class Images:
    """Which images were certified: of a published part of a data set, by place.

    name, part, scale, sha256: as in `lipcert.data.registry` (`sha256` is the pinned fingerprint of the part).
    class_ids: the classes kept, ascending. index_N: places in the part, ascending. labels_N: 0..len(class_ids)-1.
    """

    name: str
    part: str
    scale: int
    sha256: str
    class_ids: tuple[int, ...]
    index_N: Tensor
    labels_N: Tensor

    @classmethod
    def of(cls, data: Dataset, split: Split) -> "Images":
        """The images of a test split, or of some of it."""
        facts = DATASETS[data.name]
        part = "all" if "all" in facts.pinned else "test"
        return cls(data.name, part, data.scale, facts.pinned[part], data.class_ids, split.index_N, split.labels_N)


def write_bundle(
    folder: Path, model: nn.Module, certificates: Certificates, images: Images, radii: tuple[str, ...]
) -> Path:
    """Write the bundle `folder` (replacing one that is there) and return it.

    Args:
        model: what was certified; its weights must be float32 numbers.
        certificates: executed, or real from a float64 pass; a nominal one is no proof and gets no bundle.
        radii: at which correct and certified images are counted.

    Raises:
        NotCertifiable: certificates that are not a proof, or of other images. TypeError: a layer with no place in the
            format.
    """
    if not has_bundle(certificates.guarantee, certificates.arithmetic):
        raise NotCertifiable(
            f"guarantee={certificates.guarantee!r} in {certificates.arithmetic}: a bundle holds 'executed' "
            "certificates and, from a float64 pass, 'real' ones"
        )
    if len(certificates) != len(images.index_N) or not bool((images.index_N.diff() > 0).all()):
        raise NotCertifiable(f"{len(certificates)} certificates of {len(images.index_N)} images, which must ascend")
    chain = plain_chain(model)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_chain(chain, partial / NETWORK)
    save_file(_evidence(chain, certificates), partial / EVIDENCE)
    (partial / CLAIMS).write_text(claims_text(_claims(chain, certificates, images, radii, partial)), encoding="ascii")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def has_bundle(guarantee: str, arithmetic: str) -> bool:
    """Whether such certificates can be written as a bundle: proofs whose logits come from a float64 pass."""
    return guarantee == "executed" or (guarantee, arithmetic) == ("real", "float64")


def claims_text(claims: dict[str, Any]) -> str:
    """The one text of these claims, its own checksum last."""
    lines = [f"{json.dumps(key)}: {json.dumps(v, separators=(',', ':'), sort_keys=True)}" for key, v in claims.items()]
    digest = hashlib.sha256(_braced(lines).encode("ascii")).hexdigest()
    return _braced([*lines, f'"sha256": "{digest}"'])


def _braced(lines: list[str]) -> str:
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _claims(
    chain: nn.Sequential, certificates: Certificates, images: Images, radii: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    bounds = certificates.bounds
    layers = []
    for bound in bounds.layers:
        lower, upper = bound.enclosure.lower, bound.enclosure.upper
        if bound.enclosure.method != "1-Lipschitz":
            lower, upper = down(lower), up(upper)
        layers.append({"kind": bound.kind, "lower": lower.hex(), "name": bound.name, "upper": upper.hex()})
    ends = [[Fraction(float.fromhex(layer[end])) for layer in layers] for end in ("lower", "upper")]
    # A checker divides by the claimed upper ends, which are above the proven ones.
    claimed = math.prod(ends[1], start=Fraction(1))
    cost = Fraction(bounds.upper) / claimed if claimed else Fraction(1)
    radius_N = torch.tensor([down(cost * Fraction(r)) for r in certificates.radius_B.tolist()], dtype=torch.float64)
    # A radius so small that nothing is left of it after rounding claims nothing.
    prediction_N = torch.where(radius_N > 0, certificates.prediction_B, ABSTAIN)
    labels_N = images.labels_N
    counts = {
        "certified": [[str(r), certified_correct(prediction_N, radius_N, labels_N, r)] for r in map(Radius, radii)],
        "clean": int((prediction_N == labels_N).sum()),
        "images": len(labels_N),
    }
    return {
        "format": FORMAT,
        "norm": certificates.norm,
        "method": certificates.method,
        "guarantee": certificates.guarantee,
        "arithmetic": certificates.arithmetic,
        "effort": certificates.effort,
        "input_shape": list(bounds.input_shape),
        "layers": layers,
        "lipschitz": {
            "lower": _grid(math.prod(ends[0], start=Fraction(1)), up=False).hex(),
            "upper": _grid(math.prod(ends[1], start=Fraction(1)), up=True).hex(),
        },
        "data": {
            "classes": list(images.class_ids),
            "name": images.name,
            "part": images.part,
            "scale": images.scale,
            "sha256": images.sha256,
        },
        "images": {
            "index": images.index_N.tolist(),
            "label": labels_N.tolist(),
            "prediction": prediction_N.tolist(),
            "radius": [radius.hex() for radius in radius_N.tolist()],
        },
        "counts": counts,
        "network_sha256": _file_sha256(folder / NETWORK),
        "evidence_sha256": _file_sha256(folder / EVIDENCE),
    }


def _evidence(chain: nn.Sequential, certificates: Certificates) -> dict[str, Tensor]:
    evidence = {"logits": certificates.logits_BK.contiguous()}
    shape = certificates.bounds.input_shape
    for (name, layer), bound in zip(layers_of(chain)[:-1], certificates.bounds.layers, strict=True):
        if isinstance(layer, AFFINE):
            # Zero weights stretch nothing; any vector shows that their norm is at least 0.
            vector = torch.ones(shape) if bound.enclosure.vector is None else bound.enclosure.vector
            evidence[f"vector.{name}"] = vector.float().cpu().contiguous()
        shape = output_shape(layer, shape)
    return evidence


def up(value: float | Fraction) -> float:
    """A claim safely above a proven upper end: raised by 2**-29 of it, then to 31 significant bits."""
    return _grid(Fraction(value) * (1 + _SLACK), up=True)


def down(value: float | Fraction) -> float:
    """A claim safely below a proven radius or lower end; 0 for 0."""
    return _grid(Fraction(value) * (1 - _SLACK), up=False)


def _grid(value: Fraction, up: bool) -> float:
    if value == 0:
        return 0.0
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - _BITS
    scaled = value / Fraction(2) ** exponent
    mantissa = math.ceil(scaled) if up else math.floor(scaled)
    return (round_up if up else round_down)(mantissa * Fraction(2) ** exponent)


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
