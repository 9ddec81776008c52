"""`falsify`: attacks on certified images, and every certificate that they refute.

Shape letters: B images, C H W image.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipcert.attack.fields import AttackResult, Falsification, Violation, images_sha256, ratios_of
from lipcert.attack.linearised import DeepFool, Fab
from lipcert.attack.projected import Apgd, Inside, Pgd
from lipcert.attack.rounding import Rounding
from lipcert.attack.target import Found, Target, nothing, put
from lipcert.certify import ABSTAIN, Certificates
from lipcert.chain import NotCertifiable, plain_chain
from lipcert.provenance import tensors_sha256

Attack = Inside | Pgd | Apgd | Fab | DeepFool | Rounding
ATTACKS: dict[str, type[Attack]] = {
    "inside": Inside, "pgd": Pgd, "apgd": Apgd, "fab": Fab, "deepfool": DeepFool, "rounding": Rounding,
}  # fmt: skip


def falsify(
    chain: nn.Module,
    images_BCHW: Tensor,
    certificates: Certificates,
    attacks: Sequence[str | Attack] = ("inside", "pgd", "apgd", "fab", "deepfool"),
    seed: int = 0,
    box: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Falsification:
    """Attack every image that has a certificate and compare the closest changed point with the certified radius.

    A violation is a point whose distance, rounded up, is at most the radius and at which the network, executed in
    float64, answers otherwise than certified. Images at which the certifier abstained, or certified radius 0, are
    skipped and counted in `abstained`.

    Args:
        chain: what was certified: a plain chain or `Network`, in evaluation mode.
        images_BCHW: the certified images, in the order of the certificates.
        attacks: names of `ATTACKS`, with default settings, or settings such as `Fab(steps=100)`.
        box: hold points to pixels of [0, 1]. False is the harder test: certificates hold outside too.
        progress: called with the number of images done, for every attack anew.

    Raises:
        ValueError: an unknown attack, or another number of images than certificates.
        NotCertifiable: a model in training mode.
    """
    chosen = [_settings(attack) for attack in attacks]
    if len(images_BCHW) != len(certificates):
        raise ValueError(f"{len(images_BCHW)} images for {len(certificates)} certificates: need one each")
    if certificates.norm != "l2":
        raise NotCertifiable(f"norm={certificates.norm!r}: these attacks move images in l2 only")
    chain = plain_chain(chain)
    certified_B = (certificates.prediction_B != ABSTAIN) & (certificates.radius_B > 0)
    index = certified_B.nonzero()[:, 0].cpu()
    results, violations, beyond, seconds = [], [], [], 0.0
    if len(index):
        target = Target.of(
            chain, images_BCHW[index], certificates.prediction_B[index], certificates.radius_B[index], box, seed
        )
        for attack in chosen:
            began = time.monotonic()
            found = _find(attack, target, progress)
            spent = time.monotonic() - began
            seconds += spent
            executed = attack.arithmetic if isinstance(attack, Rounding) else "float64"
            broken = _violations(attack.name, executed, target, found, index)
            (violations if executed == certificates.arithmetic else beyond).extend(broken)
            results.append(_result(attack, executed, target, found, len(broken), spent))
    return Falsification(
        model_sha256=tensors_sha256(chain.state_dict()),
        images_sha256=images_sha256(images_BCHW),
        images=len(images_BCHW),
        abstained=len(images_BCHW) - len(index),
        guarantee=certificates.guarantee,
        arithmetic=certificates.arithmetic,
        effort=certificates.effort,
        seed=seed,
        box=box,
        attacks=tuple(results),
        violations=tuple(violations),
        beyond=tuple(beyond),
        seconds=seconds,
    )


def _settings(attack: "str | Attack") -> Attack:
    if isinstance(attack, str):
        if attack not in ATTACKS:
            raise ValueError(f"attack={attack!r}: must be one of {', '.join(ATTACKS)}")
        return ATTACKS[attack]()
    if type(attack) not in ATTACKS.values():
        raise ValueError(f"attack={attack!r}: must be a name or settings of {', '.join(ATTACKS)}")
    return attack


def _find(attack: Attack, target: Target, progress: Callable[[int], None] | None) -> Found:
    found = nothing(target)
    for index in torch.arange(len(target), device=target.images_BCHW.device).split(attack.batch):
        put(found, index, attack.find(target.part(index)))
        if progress is not None:
            progress(len(index))
    return found


def _violations(name: str, executed: str, target: Target, found: Found, index: Tensor) -> list[Violation]:
    # Distances are rounded up and radii down, so this comparison of floats implies that of the exact numbers.
    inside = (found.distance_B <= target.radius_B).nonzero()[:, 0].tolist()
    return [
        Violation(
            attack=name,
            executed=executed,
            image=int(index[i]),
            prediction=int(target.classes_B[i]),
            found=int(found.class_B[i]),
            radius=float(target.radius_B[i]),
            distance=float(found.distance_B[i]),
            witness=tuple(found.points_BCHW[i].flatten().tolist()),
        )
        for i in inside
    ]


def _result(
    attack: Attack, executed: str, target: Target, found: Found, violations: int, seconds: float
) -> AttackResult:
    distances = found.distance_B.tolist()
    ratios, median = ratios_of(list(zip(distances, target.radius_B.tolist(), strict=True)))
    hit = found.distance_B.isfinite()
    return AttackResult(
        name=attack.name,
        settings=attack.model_dump(mode="json", exclude={"name"}),
        executed=executed,
        images=len(target),
        found=int(hit.sum()),
        violations=violations,
        min_ratio=min((r for r in ratios if r is not None), default=None),
        median_ratio=median,
        min_distance=min(distances) if hit.any() else None,
        ratios=() if isinstance(attack, Inside) else tuple(ratios),
        seconds=seconds,
    )
