"""Training losses as pure functions of logits, labels, margin Lipschitz matrix and radius.

Shape letters: B batch, K classes. `margin_lipschitz_KK[i, j]` is how fast the margin of classes i and j can shrink per
unit of radius; the loss trains against it, so gradients flow into it unless stated.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Floor of EMMA's share: a class that already wins gets almost plain cross-entropy (code of arXiv 2310.02513).
_EMMA_FLOOR = 0.01
_TINY = 1e-8
_FOCUS = 2.0  # of the focal loss, the value that its paper recommends
_ANNEALING = {"focus": 5.0, "offset": 2.0, "temperature": 0.75}  # arXiv 2505.15174: its code's, on CIFAR-100


def emma_loss(
    logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor, dynamic: bool = True
) -> Tensor:
    """EMMA: efficient margin maximisation over all classes at once (arXiv 2301.12549; share and floor as in the code of
    arXiv 2310.02513).

    Every wrong class j is pushed up by rho_j radius K_yj before the cross-entropy. `dynamic` takes for rho_j the share
    of the radius at which class j still cannot overtake the label, (z_y - z_j) / (radius K_yj), clipped to [0.01, 1]
    and held fixed in the gradient; otherwise rho_j = 1 (the loss that arXiv v1 called EMMA).

    Args:
        logits_BK: (B, K). labels_B: (B,) int64. margin_lipschitz_KK: (K, K), non-negative.
        radius: training radius, >= 0, in the units of the input; at 0 the loss is cross-entropy.

    Returns:
        Scalar mean over the batch.
    """
    return F.cross_entropy(_pushed(logits_BK, labels_B, margin_lipschitz_KK, radius, dynamic), labels_B)


def _pushed(
    logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor, dynamic: bool = True
) -> Tensor:
    """What EMMA's cross-entropy sees: gaps to the label's logit, every wrong class pushed up, (B, K)."""
    gap_BK = logits_BK - logits_BK.gather(1, labels_B[:, None])
    push_BK = radius * margin_lipschitz_KK[labels_B]
    if dynamic:
        with torch.no_grad():
            share_BK = (-gap_BK / push_BK.clamp(min=_TINY)).clamp(_EMMA_FLOOR, 1.0)
        push_BK = share_BK * push_BK
    # The label's own push is K_yy = 0 and its gap 0, so cross-entropy sees it unmoved.
    return gap_BK + push_BK


def focal_loss(
    logits_BK: Tensor,
    labels_B: Tensor,
    margin_lipschitz_KK: Tensor,
    radius: float | Tensor,
    focus: float = _FOCUS,
    offset: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """The focal loss on EMMA's logits: images that are safely right count less (arXiv 1708.02002, without its weights
    of classes).

    Mean of -T (1 - p)^focus log p, with p the label's probability under softmax((z' - offset e_y) / T), z' what EMMA's
    cross-entropy sees. At focus 0, offset 0 and T = 1 it is EMMA.

    Args:
        focus: the exponent, 0 or >= 1. offset: taken from the label's logit, >= 0. temperature: T, > 0. The rest as in
            `emma_loss`.
    """
    pushed_BK = _pushed(logits_BK, labels_B, margin_lipschitz_KK, radius)
    moved_BK = pushed_BK.scatter(1, labels_B[:, None], -offset)  # the label itself stands at 0
    surprise_B = F.cross_entropy(moved_BK / temperature, labels_B, reduction="none")
    # 1 - p from its logarithm: near p = 1 the difference itself would be rounding.
    return (temperature * (-torch.expm1(-surprise_B)) ** focus * surprise_B).mean()


def annealing_loss(logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor) -> Tensor:
    """Logit annealing (arXiv 2505.15174) in the form of its code for networks whose constant is learnt: `focal_loss`
    with exponent 5, the label's logit lowered by 2, temperature 0.75.

    The offset asks for margins beyond the radius, the exponent lets go of the images that have them. Arguments and
    result as in `emma_loss`.
    """
    return focal_loss(logits_BK, labels_B, margin_lipschitz_KK, radius, **_ANNEALING)


def bottom_logit(logits_BK: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor) -> Tensor:
    """GloRo's extra logit: the highest any other class can climb against the predicted one within the radius, (B,).

    z_bot = max over i != j of z_i + radius K_ij, with j the predicted class (arXiv 2102.08452, section 3).
    """
    predicted_B = logits_BK.argmax(1)
    climbed_BK = logits_BK + radius * margin_lipschitz_KK[predicted_B]
    return climbed_BK.scatter(1, predicted_B[:, None], -torch.inf).amax(1)


def gloro_loss(logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor) -> Tensor:
    """GloRo cross-entropy: cross-entropy over the logits and the bottom logit, log sum exp([z, z_bot]) - z_y.

    Arguments and result as in `emma_loss` (arXiv 2102.08452, section 4).
    """
    bottom_B = bottom_logit(logits_BK, margin_lipschitz_KK, radius)
    return F.cross_entropy(torch.cat([logits_BK, bottom_B[:, None]], 1), labels_B)


def trades_loss(
    logits_BK: Tensor,
    labels_B: Tensor,
    margin_lipschitz_KK: Tensor,
    radius: float | Tensor,
    weight: float = 1.0,
    divergence: str = "kl",
) -> Tensor:
    """GloRo with TRADES: cross-entropy plus `weight` times the distance from softmax(z) to softmax([z, z_bot]).

    Both distances have closed forms, since the two distributions differ by one common factor on every class: KL is
    log(1 + exp(z_bot - log sum exp z)), and the cross-entropy is KL plus the entropy of softmax(z) (arXiv 2102.08452,
    section 4; "trades_kl" and "trades_ce" of its library).

    Args:
        weight: lambda, >= 0. divergence: "kl" or "ce". The rest as in `emma_loss`.
    """
    bottom_B = bottom_logit(logits_BK, margin_lipschitz_KK, radius)
    total_B = logits_BK.logsumexp(1)
    distance_B = F.softplus(bottom_B - total_B)
    if divergence == "ce":
        distance_B = distance_B + total_B - (logits_BK.softmax(1) * logits_BK).sum(1)
    elif divergence != "kl":
        raise ValueError(f"divergence={divergence!r}: must be 'kl' or 'ce'")
    return F.cross_entropy(logits_BK, labels_B) + weight * distance_B.mean()


def linf_mixture_loss(
    logits_BK: Tensor,
    labels_B: Tensor,
    margin_lipschitz_KK: Tensor,
    radius: float | Tensor,
    weight: float = 1.0,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Clipped hinge of the worst margin, plus `weight` times cross-entropy (arXiv 2110.06850, section 4).

    The hinge (z_j - z_y + radius K_yj) / (radius K_yj) is clipped to [0, 1], so that it moves only images that are
    classified correctly and not yet certified at `radius`; cross-entropy, with a weight that fades, takes care of the
    others. For l_inf-distance nets K_yj = 2 and the divisor is the paper's theta. In l2, where settings call it
    "margin", it is 1 minus the share of the radius that is certified: a reward for certified radius beside
    cross-entropy, as in arXiv 2108.04062, but only up to the radius asked for.

    Args:
        radius: training radius, > 0. weight: of the cross-entropy, >= 0. scale: factor of the logits in it.
    """
    hinge_BK = _hinge(logits_BK, labels_B, margin_lipschitz_KK, radius).clamp(0, 1)
    return hinge_BK.amax(1).mean() + weight * F.cross_entropy(scale * logits_BK, labels_B)


def linf_hinge_loss(
    logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor, share: float = 0.25
) -> Tensor:
    """The loss of the first l_inf-distance nets: the worst hinge mixed with the mean over classes (arXiv 2102.05363).

    (1 - share) max + share mean over the wrong classes of the hinge, not clipped from above, in units of radius K_yj.
    """
    hinge_BK = _hinge(logits_BK, labels_B, margin_lipschitz_KK, radius).clamp(min=0)
    mean_B = hinge_BK.sum(1) / (logits_BK.shape[1] - 1)
    return ((1 - share) * hinge_BK.amax(1) + share * mean_B).mean()


def _hinge(logits_BK: Tensor, labels_B: Tensor, margin_lipschitz_KK: Tensor, radius: float | Tensor) -> Tensor:
    """1 - margin / (radius K_yj), what is missing to a margin that certifies; 0 at the label itself."""
    gap_BK = logits_BK - logits_BK.gather(1, labels_B[:, None])
    push_BK = radius * margin_lipschitz_KK[labels_B]
    hinge_BK = 1 + gap_BK / push_BK.clamp(min=_TINY)
    return hinge_BK.scatter(1, labels_B[:, None], 0.0)


def ibp_loss(logits_BK: Tensor, worst_BK: Tensor, labels_B: Tensor, weight: float) -> Tensor:
    """Cross-entropy of the worst logits in the box, mixed with that of the image: weight CE(z) + (1 - weight) CE(worst)
    (interval bound propagation, arXiv 1810.12715; kappa there is `weight`, in [0, 1])."""
    plain, worst = F.cross_entropy(logits_BK, labels_B), F.cross_entropy(worst_BK, labels_B)
    return weight * plain + (1 - weight) * worst


_LOSSES = {
    "emma": emma_loss,
    "emma_fixed": functools.partial(emma_loss, dynamic=False),
    "gloro": gloro_loss,
    "trades_kl": trades_loss,
    "trades_ce": functools.partial(trades_loss, divergence="ce"),
    "cross_entropy": lambda logits_BK, labels_B, *_: F.cross_entropy(logits_BK, labels_B),
    "linf_hinge": linf_hinge_loss,
    "focal": focal_loss,
    "annealing": annealing_loss,
}


def training_loss(name: str) -> Callable[..., Tensor]:
    """The loss behind a `TrainConfig.loss` name that is a function of margins:
    f(logits, labels, margin Lipschitz matrix, radius, weight=1.0, scale=1.0).

    `weight` matters to TRADES and to the mixture ("linf_mixture", in l2 "margin"), `scale` to the latter only; plain
    cross-entropy ignores matrix and radius too.
    """
    if name in ("linf_mixture", "margin"):
        return linf_mixture_loss
    loss, weighted = _LOSSES[name], name.startswith("trades")

    def of_margins(logits_BK, labels_B, margin_lipschitz_KK, radius, weight=1.0, scale=1.0):
        more = (weight,) if weighted else ()
        return loss(logits_BK, labels_B, margin_lipschitz_KK, radius, *more)

    return of_margins
