"""Independent truth for margins of pairs and sets of classes: plain loops over rationals.

Only the inequality of lipcert's documentation is shared: z_j - z_i - a - b r > K r, with a and b as `real` and
`executed` define them.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import torch

from lipcert.certify import Evidence
from lipcert.deviation import Deviation, Linear

CLAIMS = ("nominal", "real", "executed")


def made_evidence(seed: int, guarantee: str, images: int = 12, classes: int = 5, scale: float = 1e-3) -> Evidence:
    """Logits, constants and rounding errors drawn at random; errors are large enough for each term to count."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    # Multiples of 1/8: ties are common.
    logits_BK = torch.randint(-20, 20, (images, classes), generator=generator).double() / 8
    distances_KK = drawn(classes, classes) + 0.1
    errors = Deviation(
        centre_B=scale * drawn(images),
        centre_BK=scale * drawn(images, classes),
        ball=Linear(scale * drawn(images), 0.3 * drawn(images)),
        ball_K=Linear(scale * drawn(images, classes), 0.3 * drawn(images, classes)),
        sums=Linear(drawn(images), drawn(images)),
    )
    bounds = SimpleNamespace(margin_lipschitz_KK=3 * distances_KK, distances_KK=distances_KK)
    return Evidence(logits_BK, bounds, errors, guarantee, "float64", math.inf)


def pair_truth(evidence: Evidence, image: int, inside: int, outside: int) -> Fraction:
    """Largest r at which the inequality holds with equality for class `inside` over `outside`; 0 or less: never."""
    z, e = evidence.logits_BK[image], evidence.errors
    distance = exact(evidence.bounds.distances_KK[inside, outside])
    margin, slope = exact(z[inside]) - exact(z[outside]), exact(evidence.bounds.margin_lipschitz_KK[inside, outside])
    if evidence.guarantee != "nominal":
        margin -= distance * exact(e.centre_B[image])
        margin -= sum(exact(e.centre_BK[image, c]) for c in (inside, outside))
    if evidence.guarantee == "executed":
        margin -= distance * exact(e.ball.at[image]) + sum(exact(e.ball_K.at[image, c]) for c in (inside, outside))
        slope += distance * exact(e.ball.slope[image])
        slope += sum(exact(e.ball_K.slope[image, c]) for c in (inside, outside))
    return margin / slope


def set_truth(evidence: Evidence, image: int, k: int) -> Fraction:
    """The same for the set of the k largest logits: over all pairs; 0 where two classes tie for place k."""
    logits = evidence.logits_BK[image].tolist()
    order = sorted(range(len(logits)), key=lambda c: -logits[c])
    pairs = itertools.product(order[:k], order[k:])
    return max(Fraction(0), min(pair_truth(evidence, image, *pair) for pair in pairs))


def exact(x: torch.Tensor | float) -> Fraction:
    return Fraction(float(x))


def just_below(radius: float, truth: Fraction) -> bool:
    """Whether a radius is below the truth and loses no more than rounding; nothing where nothing is true."""
    return radius == 0 if truth == 0 else truth * (1 - Fraction(1, 10**11)) <= Fraction(radius) < truth
