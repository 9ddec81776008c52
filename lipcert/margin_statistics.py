"""How far images lie from the boundaries of their own class, in numbers few enough for a record. Not certificates.

The distance of an image of label y from class j is (z_y - z_j) / K_yj, the margin over its constant (arXiv 2102.08452,
section 3): negative where j is ahead. It is rounded to nearest and rounding in the forward pass is left out, so it may
be above what is proven; `lipcert.margins` proves.

Shape letters: N images, B a piece of them, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.radius import Radius

_PIECE = 2**22  # entries of a (B, K) matrix: 32 MB


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest boundary of each image, (N,) each.

    distance_N: float64, in units of the input; negative where misclassified.
    class_N: int64, the class behind that boundary; the first of several that are as near.
    threats_N: int64, how many classes have their boundary nearer than the radius.
    """

    distance_N: Tensor
    class_N: Tensor
    threats_N: Tensor


def boundary_distances(logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor) -> Tensor:
    """Signed distance of each image from each class, (B, K) in the type of the logits; inf from its own.

    Args:
        logits_BK: (B, K). labels_B: (B,) int64. margin_lipschitz_KK: (K, K), positive off its diagonal.
    """
    labels_B1 = labels_B.to(logits_BK.device)[:, None]
    margin_BK = logits_BK.gather(1, labels_B1) - logits_BK
    distance_BK = margin_BK / margin_lipschitz_KK.to(logits_BK)[labels_B1[:, 0]]
    return distance_BK.scatter(1, labels_B1, torch.inf)


def nearest_boundaries(
    logits_NK: Tensor, labels_N: Tensor, margin_lipschitz_KK: Tensor, radius: "Radius | str | float"
) -> Nearest:
    """What limits each image, piece by piece: a million logits a thousand classes wide take no second copy.

    Args:
        radius: of the ball in which `threats_N` counts. The rest as in `boundary_distances`.
    """
    limit, size = float(Radius(radius)), max(1, _PIECE // logits_NK.shape[1])
    found = []
    for logits_BK, labels_B in zip(logits_NK.split(size), labels_N.split(size), strict=True):
        distance_BK = boundary_distances(logits_BK, labels_B, margin_lipschitz_KK)
        found.append((*distance_BK.min(1), (distance_BK < limit).sum(1)))
    return Nearest(*(torch.cat(column) for column in zip(*found, strict=True)))


def quantiles(values: Tensor, parts: int) -> tuple[float, ...]:
    """The least, the greatest and those between at every `parts`-th of the way, linear between neighbours."""
    shares = [part / parts for part in range(parts + 1)]
    return tuple(np.quantile(values.flatten().cpu().numpy(), shares).tolist())


def counts_up_to(threats_N: Tensor, most: int) -> tuple[int, ...]:
    """How many entries are 0, 1, ..., `most` - 1, and `most` or more."""
    return tuple(torch.bincount(threats_N.clamp(max=most), minlength=most + 1).tolist())


def effective_rivals(labels_N: Tensor, class_N: Tensor, classes: int) -> float:
    """How many classes limit the images of one label, in effect: exp(entropy) of `class_N`, averaged over labels.

    1 where each label has one rival; `classes` - 1 where all are as frequent. Shares are those of the images at hand,
    so it is also at most the number of images of a label, and low where that is not many times the number of classes.
    Labels without an image are left out.
    """
    pairs_N = labels_N.to(class_N.device) * classes + class_N
    counts_KK = torch.bincount(pairs_N, minlength=classes**2).reshape(classes, classes).double()
    counts_KK = counts_KK[counts_KK.sum(1) > 0]
    share_KK = counts_KK / counts_KK.sum(1, keepdim=True)
    return float(torch.special.entr(share_KK).sum(1).exp().mean())


def pair_constants(margin_lipschitz_KK: Tensor) -> Tensor:
    """K_ij of every pair i < j, (K (K - 1) / 2,)."""
    rows, columns = torch.triu_indices(*margin_lipschitz_KK.shape, offset=1)
    return margin_lipschitz_KK[rows, columns]
