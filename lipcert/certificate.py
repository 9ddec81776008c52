"""The certificate bundle: a network, what is claimed about it, and the evidence, for `lipcert.checker` to prove again.

The format is defined in book/bundle.md. Everything is rounded against the claim before it is written, so that a checker
with another BLAS, hence other last bits, still covers it. In l_inf there is no evidence: the network is enough.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lipcert.bounds.rounding import round_down, round_up
from lipcert.certify import ABSTAIN, Certificates, certified_correct
from lipcert.chain import LayerBound, NotCertifiable, plain_chain
from lipcert.data.dataset import Dataset, Split
from lipcert.data.registry import DATASETS
from lipcert.forward import AFFINE, places
from lipcert.linf.layers import SortedDistance
from lipcert.models.stored import write_chain
from lipcert.program import FORK, JOIN, Fork, Instruction, Join, instructions
from lipcert.radius import Radius

FORMAT = "lipcert certificate 1"
NETWORK, EVIDENCE, CLAIMS = "network.safetensors", "evidence.safetensors", "certificate.json"
_BITS = 31  # significant bits of a claimed number
_SLACK = Fraction(1, 2**29)  # how far a claim stays away from what was proven, relative
_APART = Fraction(1, 2**40)  # more of it for radii from l_inf margins, relative to logits: other proofs round elsewhere


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
        if facts.pinned is None:
            raise NotCertifiable(f"{data.name}: no checksum of the set is known, so a bundle cannot name it")
        part = "all" if "all" in facts.pinned else "test"
        return cls(data.name, part, data.scale, facts.pinned[part], data.class_ids, split.index_N, split.labels_N)


def write_bundle(
    folder: Path, model: nn.Module, certificates: Certificates, images: Images, radii: tuple[str, ...]
) -> Path:
    """Write the bundle `folder` (replacing one that is there) and return it.

    Args:
        model: what was certified; its weights must be float32 numbers.
        certificates: executed, or real from a float64 pass; a nominal one is no proof and gets no bundle.
        radii: at which correct and certified images are counted; an l_inf "interval" radius that was proven to reach
            one of them is not rounded below it.

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
    if certificates.norm == "l2":
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
    if certificates.norm == "l2":
        constants, radius_N = _l2_claims(certificates)
    else:
        constants, radius_N = _linf_constants(chain, certificates.method), _linf_radii(certificates, radii)
    # A radius so small that nothing is left of it after rounding claims nothing, unless the image itself was proven.
    kept_N = (radius_N > 0) | (certificates.method == "interval")
    prediction_N = torch.where(kept_N, certificates.prediction_B, ABSTAIN)
    labels_N = images.labels_N
    counts = {
        "certified": [[str(r), certified_correct(prediction_N, radius_N, labels_N, r)] for r in map(Radius, radii)],
        "clean": int((prediction_N == labels_N).sum()),
        "images": len(labels_N),
    }
    evidence = [EVIDENCE] if certificates.norm == "l2" else []
    return {
        "format": FORMAT,
        "norm": certificates.norm,
        "method": certificates.method,
        "guarantee": certificates.guarantee,
        "arithmetic": certificates.arithmetic,
        "effort": certificates.effort if certificates.norm == "l2" else "fast",
        "input_shape": list(certificates.bounds.input_shape),
        **constants,
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
        **{f"{file.split('.')[0]}_sha256": _file_sha256(folder / file) for file in [NETWORK, *evidence]},
    }


def _l2_claims(certificates: Certificates) -> tuple[dict[str, Any], Tensor]:
    """Constants, and radii that a checker finds with the claimed upper ends, which are above the proven ones."""
    bounds = certificates.bounds
    layers, lower, upper = _layer_claims(bounds.layers)
    cost = Fraction(bounds.upper) / upper if upper else Fraction(1)
    radius_N = torch.tensor([down(cost * Fraction(r)) for r in certificates.radius_B.tolist()], dtype=torch.float64)
    return {"layers": layers, "lipschitz": _ends(lower, upper)}, radius_N


def _linf_constants(chain: nn.Sequential, method: str) -> dict[str, Any]:
    """Kinds and names of all layers and, for margins, constants: 1, or the sum of the weights of a mean."""
    program = instructions(chain)
    layers = [{"kind": type(layer).__name__, "name": name} for name, layer in program]
    if method != "margin":
        return {"layers": layers}
    factors = [_constant(layer) for _, layer in program]
    claims = [entry | _ends(factor, factor) for entry, factor in zip(layers, factors, strict=True)]
    lower, upper = (math.prod(Fraction(float.fromhex(claim[end])) for claim in claims) for end in ("lower", "upper"))
    return {"layers": claims, "lipschitz": _ends(lower, upper)}


def _constant(layer: Instruction) -> Fraction:
    return sum(map(Fraction, layer.coefficients().tolist())) if isinstance(layer, SortedDistance) else Fraction(1)


def _linf_radii(certificates: Certificates, radii: tuple[str, ...]) -> Tensor:
    """Rounded down; boxes were tried at the radii counted, and a checker tries the same ones."""
    counted = [float(Radius(r)) for r in radii] if certificates.method == "interval" else []
    rows, claims = zip(certificates.radius_B.tolist(), certificates.logits_BK.tolist(), strict=True), []
    for radius, logits_K in rows:
        lost = _APART * (1 + Fraction(max(map(abs, logits_K)))) if certificates.method == "margin" and radius else 0
        claims.append(max([down(max(Fraction(radius) - lost, Fraction(0))), *(r for r in counted if r <= radius)]))
    return torch.tensor(claims, dtype=torch.float64)


def _ends(lower: Fraction, upper: Fraction) -> dict[str, str]:
    return {"lower": _grid(lower, up=False).hex(), "upper": _grid(upper, up=True).hex()}


def _layer_claims(bounds: Sequence[LayerBound]) -> tuple[list[dict[str, str]], Fraction, Fraction]:
    """Claims line by line of the program, and the products of the lower and the upper ends that count."""
    claims, lower, upper = [], Fraction(1), Fraction(1)
    for bound in bounds:
        kind, name, ends = bound.kind, bound.name, (bound.enclosure.lower, bound.enclosure.upper)
        if bound.branch:
            inside, _, stretch = _layer_claims(bound.branch)
            claims += [_layer_claim(Fork.__name__, name + FORK, 1.0, 1.0), *inside]
            # From the claims about the branch, as a checker has them.
            kind, name = Join.__name__, name + JOIN
            ends = _grid(max(1 - stretch, Fraction(0)), up=False), _grid(1 + stretch, up=True)
        elif bound.enclosure.method != "1-Lipschitz":
            ends = down(ends[0]), up(ends[1])
        claims.append(_layer_claim(kind, name, *ends))
        lower, upper = lower * Fraction(ends[0]), upper * Fraction(ends[1])
    return claims, lower, upper


def _layer_claim(kind: str, name: str, lower: float, upper: float) -> dict[str, str]:
    return {"kind": kind, "lower": lower.hex(), "name": name, "upper": upper.hex()}


def _evidence(chain: nn.Sequential, certificates: Certificates) -> dict[str, Tensor]:
    evidence, vectors = {"logits": certificates.logits_BK.contiguous()}, _vectors(certificates.bounds.layers)
    for place in places(chain, certificates.bounds.input_shape)[:-1]:
        if isinstance(place.layer, AFFINE):
            # Zero weights stretch nothing; any vector shows that their norm is at least 0.
            vector = torch.ones(place.shape) if vectors[place.name] is None else vectors[place.name]
            evidence[f"vector.{place.name}"] = vector.float().cpu().contiguous()
    return evidence


def _vectors(bounds: Sequence[LayerBound]) -> dict[str, Tensor | None]:
    """The vector behind each layer's lower end, branches included."""
    found = {}
    for bound in bounds:
        found |= _vectors(bound.branch) | {bound.name: bound.enclosure.vector}
    return found


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
