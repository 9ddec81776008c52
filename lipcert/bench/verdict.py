"""What a certifier claims for a model and images, held against perturbations that are known to break it.

Shape letters: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bench.exact import distance_squared, executed_class, real_class
from lipcert.bench.report import Outcome

Certify = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
GUARANTEES = ("nominal", "real", "executed")
_SLACK = 1e-9  # the answer of a certifier that ought to be tight


@dataclass(frozen=True)
class Claim:
    """What a certifier says its radii are about, which decides the witnesses that count against it.

    guarantee: "nominal" (real arithmetic with the rounding of the forward pass ignored: witnesses by rounding do not
    count), "real" (the network in real arithmetic) or "executed" (the network as run in `arithmetic`, "float64" or
    "float32").
    """

    guarantee: str = "nominal"
    arithmetic: str = "float64"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("guarantee", self.guarantee, GUARANTEES),
            ("arithmetic", self.arithmetic, tuple(DTYPES)),
        ):
            if value not in known:
                raise ValueError(f"{key}={value!r}: must be one of {', '.join(known)}")

    def covers(self, semantics: str) -> bool:
        """Whether a case with these semantics ("any", "real", "float64", "float32") concerns the claim."""
        executed = self.guarantee == "executed" and self.arithmetic == semantics
        return semantics == "any" or executed or self.guarantee == semantics == "real"

    def seen(self, image: Tensor) -> Tensor:
        """The image as the network in question gets it: float32 networks get float32 pixels."""
        return image.to(DTYPES[self.arithmetic]) if self.guarantee == "executed" else image

    def class_of(self, model: nn.Module, image: Tensor, semantics: str) -> int:
        """The class of an image under the semantics that the claim is about."""
        if semantics == "real":
            return real_class(model, image)
        return executed_class(model, image, DTYPES[self.arithmetic if self.guarantee == "executed" else "float64"])


@dataclass(frozen=True)
class Case:
    """A model, images, and what must hold of any answer.

    Attributes:
        model: what is certified. images_BCHW: as the certifier gets them.
        witnesses: (index of the image, perturbed image) pairs. Where the class of a perturbed image is not the
            predicted one, the radius must be below its distance. Every image is also a witness against itself.
        nothing: no claim is acceptable at all (a prediction with a positive radius), whatever the witnesses.
        semantics: "any" (a real change of class, which rounding does not explain), "real", "float64" or "float32"
            (a change of class in that arithmetic only).
        limits: for each image the exact radius where it is known, for `kept`.
    """

    model: nn.Module
    images_BCHW: Tensor
    witnesses: tuple[tuple[int, Tensor], ...] = ()
    nothing: bool = False
    semantics: str = "any"
    limits: tuple[float, ...] = ()
    name: str = ""


def claims(certify: Certify, case: Case) -> list[tuple[int, float]] | None:
    """(class, radius) for each image as claimed; class -1 or radius 0 for none. None: refused by an exception.

    Raises ValueError if the answers do not match the images.
    """
    try:
        prediction_B, radius_B = certify(case.model, case.images_BCHW)
    except Exception:
        return None
    prediction_B, radius_B = torch.as_tensor(prediction_B), torch.as_tensor(radius_B)
    batch = len(case.images_BCHW) if case.images_BCHW.ndim else 0
    if prediction_B.shape != (batch,) or radius_B.shape != (batch,):
        raise ValueError(f"answers of shape {tuple(prediction_B.shape)} and {tuple(radius_B.shape)} for {batch} images")
    # `not radius > 0` is true of NaN: that is no claim.
    pairs = zip(prediction_B.tolist(), radius_B.tolist(), strict=True)
    return [(int(p), float(r)) if p >= 0 and r > 0 else (-1, 0.0) for p, r in pairs]


def judge(certify: Certify, case: Case, claim: Claim) -> Outcome:
    """Whether the certifier's answer to a case is contradicted."""
    try:
        answers = claims(certify, case)
    except ValueError as error:
        return Outcome(math.inf, violated=True, note=f"{case.name}: {error}")
    if answers is None:
        return Outcome(refused=True)
    worst, violated, note = 0.0, False, ""
    points = [] if case.nothing else [*enumerate(case.images_BCHW), *case.witnesses]
    if case.nothing and any(predicted >= 0 for predicted, _ in answers):
        return Outcome(math.inf, True, note=f"{case.name}: claims {answers} where nothing can be promised")
    for index, unrounded in points:
        predicted, radius = answers[index]
        point = claim.seen(unrounded)
        if predicted < 0 or not _reaches(radius, point, case, index, worst):
            continue
        squared = distance_squared(point, case.images_BCHW[index])
        found = claim.class_of(case.model, point, case.semantics)
        if found == predicted:
            continue
        broken = math.isinf(radius) or Fraction(radius) ** 2 >= squared
        ratio = radius / _root(squared) if squared else math.inf
        worst, violated = max(worst, ratio), violated or broken
        if broken and not note:
            note = f"{case.name}: claims class {predicted} within {radius!r}, class {found} at {_root(squared)!r}"
    return Outcome(worst, violated, note=note)


def kept(certify: Certify, case: Case, slack: float) -> int:
    """The number of images whose radius reaches (1 - slack) times the exact one: sharp, if no witness contradicts."""
    answers = claims(certify, case) or []
    return sum(radius >= limit * (1 - slack) for (_, radius), limit in zip(answers, case.limits, strict=False))


def _reaches(radius: float, point: Tensor, case: Case, index: int, worst: float) -> bool:
    """False where evaluating the point cannot change the verdict nor raise the worst ratio."""
    distance = float(torch.linalg.vector_norm(point.double() - case.images_BCHW[index].double()))
    return not radius < distance * worst * (1 - _SLACK)


def _root(squared: Fraction) -> float:
    # Through integers: the float of a small square underflows.
    scale = 1 << 2400
    return math.isqrt(int(squared * scale)) / (1 << 1200)
