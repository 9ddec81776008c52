"""Relaxed guarantees: the *set* of the k largest logits stays the same, for a k that the certifier may choose.

A network that cannot promise "cat" may be able to promise "cat or dog, whichever comes first": no perturbation within
the radius brings another class among the two. Such promises are weaker than those of `lipcert.certify`; their numbers
do not compare with VRA. Definitions: Leino and Fredrikson, arXiv 2106.06624; radii are this package's.

Shape letters: B images, K classes, T values of k from 1 on, C H W image.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lipcert.affinity import Affinity, affinity_sets
from lipcert.certify import Evidence, check_labels, gather_evidence
from lipcert.chain import ChainBounds, NotCertifiable, plain_chain
from lipcert.linf.layers import Distance, Negate, SortedDistance
from lipcert.margins import ABSTAIN
from lipcert.radius import Radius

Choice = Literal["loosest", "strictest"]


@dataclass(frozen=True, eq=False)
class SetCertificates:
    """What is promised for each image: no perturbation of l2 norm at most `radius_BT[b, k - 1]` changes which classes
    have the k largest logits.

    They are `order_BT[b, :k]`, called T_k; their order among themselves is not promised. `guarantee` says of which
    network, as in `Certificates`.

    Attributes:
        order_BT: (B, T) int64, classes by falling logit; T = k_max.
        radius_BT: (B, T) float64, proven, rounded down, in units of the input tensor. 0 where nothing is promised: a
            tie between a class inside and one outside, a non-finite logit, a margin that rounding errors could have
            made, or a T_k that no affinity set allows.
        runner_up_BT: (B, T) int64, the class outside T_k that limits the radius; -1 where nothing is promised.
        logits_BK: (B, K) float64.
        bounds: the constants behind the radii.
        affinity: the sets of classes that T_k had to be inside of for k > 1, or None.
        norm, method, effort, guarantee, arithmetic: what was asked and delivered.
    """

    order_BT: Tensor
    radius_BT: Tensor
    runner_up_BT: Tensor
    logits_BK: Tensor
    bounds: ChainBounds
    affinity: Affinity | None = None
    norm: str = "l2"
    method: str = "margin"
    effort: str = "fast"
    guarantee: str = "executed"
    arithmetic: str = "float64"

    def __len__(self) -> int:
        return len(self.order_BT)

    @property
    def k_max(self) -> int:
        """Largest k looked at."""
        return self.order_BT.shape[1]

    @functools.cached_property
    def radius_B(self) -> Tensor:
        """(B,) float64: the largest radius at which some T_k is certified; 0 where none is."""
        return self.radius_BT.amax(1)

    @functools.cached_property
    def best_k_B(self) -> Tensor:
        """(B,) int64: the k of that radius, the smallest of several; `ABSTAIN` where none is certified."""
        first_B = (self.radius_BT == self.radius_B[:, None]).int().argmax(1) + 1
        return torch.where(self.radius_B > 0, first_B, ABSTAIN)

    def certified_BT(self, radius: "Radius | str | float") -> Tensor:
        """(B, T) bool: whether T_k is certified at `radius`, compared exactly."""
        # float(Radius) is the smallest float64 not below the exact radius; a radius of 0 is no promise even at 0.
        return (self.radius_BT >= float(Radius(radius))) & (self.radius_BT > 0)

    def chosen_k_B(self, radius: "Radius | str | float", choice: Choice = "loosest") -> Tensor:
        """(B,) int64: the largest (loosest) or smallest (strictest) k certified at `radius`; `ABSTAIN` where none."""
        if choice not in ("loosest", "strictest"):
            raise ValueError(f"choice={choice!r}: must be 'loosest' or 'strictest'")
        certified_BT = self.certified_BT(radius)
        steps_T = torch.arange(1, self.k_max + 1)
        if choice == "loosest":
            return torch.where(certified_BT, steps_T, ABSTAIN).amax(1)
        smallest_B = torch.where(certified_BT, steps_T, self.k_max + 1).amin(1)
        return torch.where(certified_BT.any(1), smallest_B, ABSTAIN)

    def members(self, k_B: Tensor) -> list[tuple[int, ...]]:
        """T_k of each image as class numbers by falling logit; empty where `k_B` is `ABSTAIN`."""
        return [tuple(row[: max(k, 0)]) for row, k in zip(self.order_BT.tolist(), k_B.tolist(), strict=True)]

    def up_to(self, k_max: int) -> "SetCertificates":
        """What a smaller k_max would have given."""
        if not 1 <= k_max <= self.k_max:
            raise NotCertifiable(f"k_max={k_max}: must be 1 to {self.k_max}, as far as was certified")
        parts = {name: getattr(self, name)[:, :k_max] for name in ("order_BT", "radius_BT", "runner_up_BT")}
        return replace(self, **parts)

    def within(self, affinity: Any, class_names: Sequence[str] | None = None) -> "SetCertificates":
        """Those T_k alone that lie inside one of the sets (see `affinity_sets`), and every T_1."""
        sets = affinity_sets(affinity, self.logits_BK.shape[1], class_names)
        kept = self.up_to(min(self.k_max, max(map(len, sets))))
        allowed_BT = torch.zeros_like(kept.order_BT, dtype=torch.bool)
        allowed_BT[:, 0] = True
        for members in sets:
            inside_K = torch.zeros(self.logits_BK.shape[1], dtype=torch.bool)
            inside_K[list(members)] = True
            allowed_BT |= inside_K[kept.order_BT].cumprod(1).bool()
        radius_BT = torch.where(allowed_BT, kept.radius_BT, 0.0)
        runner_up_BT = torch.where(allowed_BT, kept.runner_up_BT, ABSTAIN)
        return replace(kept, radius_BT=radius_BT, runner_up_BT=runner_up_BT, affinity=sets)


def certify_top_k(
    model: nn.Module,
    images_BCHW: Tensor,
    k_max: int,
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    guarantee: str = "executed",
    arithmetic: str = "float64",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> SetCertificates:
    """Certify for each image and each k <= k_max that the set T_k of its k largest logits stays the same.

    If at radius r every margin z_j - z_i of a class j inside T_k and a class i outside is proven to stay positive, then
    T_k are the k largest logits everywhere in the ball; so its radius is the least over these pairs of the radius that
    `certify` computes for one, with the same rounding terms (relaxed top-k robustness: arXiv 2106.06624; radii: ours).
    A tie inside T_k is no obstacle, one across its border is. For k = 1 the result is that of `certify`, bit for bit.

    Args:
        k_max: 1 to K - 1; the set of all K classes says nothing.
        The rest as in `certify`.

    Raises:
        NotCertifiable: a request, model or input for which nothing can be promised, or another k_max.
        TypeError: a layer without a bound, by name and place.
    """
    chain = plain_chain(model)
    _check_k_max(k_max, chain)
    asked = (norm, method, effort)
    (evidence,) = gather_evidence(chain, images_BCHW, [(guarantee, arithmetic)], *asked, bounds, progress)
    return SetCertificates(
        *set_radii(evidence, k_max), evidence.logits_BK, evidence.bounds, None, *asked, guarantee, arithmetic
    )


def certify_affinity(
    model: nn.Module,
    images_BCHW: Tensor,
    affinity: Any,
    class_names: Sequence[str] | None = None,
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    guarantee: str = "executed",
    arithmetic: str = "float64",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> SetCertificates:
    """`certify_top_k`, keeping those T_k alone that lie inside one of the given sets of classes, and every T_1.

    The promise is that of T_k: it stays the same set, hence inside the affinity set (affinity robustness: arXiv
    2106.06624). k goes up to the size of the largest set.

    Args:
        affinity, class_names: sets of classes as `lipcert.affinity.affinity_sets` takes them.
        The rest as in `certify`.

    Raises:
        NotCertifiable, TypeError: as `certify_top_k`; sets that are none.
    """
    chain = plain_chain(model)
    sets = affinity_sets(affinity, _classes(chain), class_names)
    rest = (norm, method, effort, guarantee, arithmetic, bounds, progress)
    return certify_top_k(chain, images_BCHW, max(map(len, sets)), *rest).within(sets)


def set_radii(evidence: Evidence, k_max: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order, radius and limiting class outside of every T_k, (B, k_max) each: see `SetCertificates`.

    Class by class, so that memory is that of a few (B, K) tensors.
    """
    order_BK = evidence.logits_BK.argsort(dim=1, descending=True, stable=True)
    radius_BT = torch.full((len(order_BK), k_max), math.inf, dtype=torch.float64)
    runner_up_BT = torch.full_like(radius_BT, ABSTAIN, dtype=torch.int64)
    for place in range(k_max):
        # How far the class at `place` stays above the one at every other place, then above all from a place on.
        above_BK = evidence.radii(order_BK[:, place]).gather(1, order_BK)
        least_BK, at_BK = (x.flip(1) for x in above_BK.flip(1).cummin(1))
        at_BK = order_BK.shape[1] - 1 - at_BK
        # T_k holds the class at `place` if k > place; outside of it are the places from k on.
        inside, outside = slice(place, None), slice(place + 1, k_max + 1)
        nearer_BT = least_BK[:, outside] < radius_BT[:, inside]
        limits_BT = order_BK.gather(1, at_BK[:, outside])
        runner_up_BT[:, inside] = torch.where(nearer_BT, limits_BT, runner_up_BT[:, inside])
        radius_BT[:, inside] = torch.minimum(radius_BT[:, inside], least_BK[:, outside])
    in_range_BT = torch.stack([evidence.in_range(radius_B) for radius_B in radius_BT.T], dim=1)
    sound_BT = in_range_BT & (radius_BT > 0)
    return (
        order_BK[:, :k_max],
        torch.where(sound_BT, radius_BT, 0.0),
        torch.where(sound_BT, runner_up_BT, ABSTAIN),
    )


def relaxed_vra(
    certificates: SetCertificates, labels_B: Tensor, radius: "Radius | str | float", choice: Choice = "loosest"
) -> float:
    """Share of images with a set certified at `radius` that holds the label; not comparable with VRA."""
    return relaxed_correct(certificates, labels_B, radius, choice) / len(labels_B)


def relaxed_correct(
    certificates: SetCertificates, labels_B: Tensor, radius: "Radius | str | float", choice: Choice = "loosest"
) -> int:
    """Number of images whose label is in the chosen T_k and T_k certified at `radius` (compared exactly).

    T_k grow with k: with the loosest k this counts labels in *some* certified set.

    Raises:
        NotCertifiable: lengths differ, or no images.
    """
    check_labels(labels_B, certificates.order_BT.shape[:1])
    k_B1 = certificates.chosen_k_B(radius, choice)[:, None]
    is_label_BT = certificates.order_BT == labels_B.to(certificates.order_BT)[:, None]
    return int((is_label_BT & (torch.arange(certificates.k_max) < k_B1)).any(1).sum())


def _classes(chain: nn.Sequential) -> int:
    """Number of logits: those of a last nn.Linear, or of the distance layer in front of a Negate."""
    head = chain[-1] if len(chain) else None
    if type(head) is Negate and len(chain) > 1:
        head = chain[-2]
    if type(head) not in (nn.Linear, Distance, SortedDistance):
        raise TypeError(f"the model ends with {type(head).__name__}: margins need an nn.Linear or distances")
    return head.out_features


def _check_k_max(k_max: int, chain: nn.Sequential) -> None:
    classes = _classes(chain)
    if type(k_max) is not int or not 1 <= k_max < classes:
        raise NotCertifiable(
            f"k_max={k_max!r} with {classes} classes: must be 1 to {classes - 1}; the set of all classes says nothing"
        )
