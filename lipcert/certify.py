"""The certifier: prediction and proven radius per image. It fails closed.

Shape letters: B images, K classes, C H W image, F features. Everything here runs in float64 on a plain chain; bounds
come from `lipcert.bounds` (proven), never from the power method.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.chain import ChainBounds, NotCertifiable, chain_bounds, fingerprint, plain_chain
from lipcert.radius import Radius

ABSTAIN = -1
GUARANTEES = ("nominal",)
_MICRO_BATCH = 64


@dataclass(frozen=True)
class Certificates:
    """What is promised for each image: no perturbation of norm at most `radius_B` changes `prediction_B`.

    The guarantee is *nominal*: rounding in the float64 forward pass itself is not counted.

    Attributes:
        prediction_B: (B,) int64; `ABSTAIN` (-1) where nothing can be promised (a tie or a non-finite logit).
        radius_B: (B,) float64, proven, rounded down, 0 where abstaining; in units of the input tensor.
        runner_up_B: (B,) int64; the class that limits the radius, -1 where abstaining.
        logits_BK: (B, K) float64. estimated_radius_B: what the power method would have claimed; never a certificate.
        bounds: the constants behind the radii.
        norm, method, effort, guarantee, arithmetic: what was asked and delivered.
    """

    prediction_B: Tensor
    radius_B: Tensor
    runner_up_B: Tensor
    logits_BK: Tensor
    estimated_radius_B: Tensor
    bounds: ChainBounds
    norm: str = "l2"
    method: str = "margin"
    effort: str = "fast"
    guarantee: str = "nominal"
    arithmetic: str = "float64"

    def __len__(self) -> int:
        return len(self.prediction_B)


@torch.no_grad()
def certify(
    model: nn.Module,
    images_BCHW: Tensor,
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    guarantee: str = "nominal",
    arithmetic: str = "float64",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> Certificates:
    """Certify every image: radius min over i != j of (z_j - z_i) / K_ij, rounded down.

    (arXiv 2102.08452, section 3, with proven constants.) Guarantee *nominal*: the margins are computed in float64 and
    their rounding in the forward pass is ignored; the bounds, the margin's difference, the quotient and the comparison
    with a radius are rounded against us. Runs in micro-batches of a fixed size, so that the result does not depend on
    how the images were batched.

    Args:
        model: a `Network`, a chain from `load`, or an `nn.Sequential` of nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten,
            nn.ZeroPad2d, nn.Identity, MinMax and Shift whose last layer is an nn.Linear; in evaluation mode.
        images_BCHW: (B, C, H, W) with pixels in [0, 1]; at least one image.
        norm: "l2". method: "margin". effort: as in `norm_bound`. guarantee: "nominal". arithmetic: "float64".
            Asking for more than the code can prove raises.
        bounds: constants of this very chain from `chain_bounds`, to save computing them again.
        progress: called with the number of images done.

    Raises:
        NotCertifiable: a request, model or input for which nothing can be promised.
        TypeError: a layer without a bound, by name and place.
    """
    _check_request(norm, method, guarantee, arithmetic)
    chain = plain_chain(model)
    _check_images(images_BCHW)
    shape = tuple(images_BCHW.shape[1:])
    if bounds is None:
        bounds = chain_bounds(chain, shape, effort)
    elif (bounds.effort, bounds.proven_for) != (effort, fingerprint(chain, shape)):
        raise NotCertifiable(
            f"bounds: proven for other weights, layers, image shape or effort than {shape}, {effort!r}; leave them out"
        )
    logits_BK = _logits(chain, images_BCHW, progress)
    prediction_B, radius_B, runner_up_B = margin_radius(logits_BK, bounds.margin_lipschitz_KK)
    _, estimated_B, _ = margin_radius(logits_BK, bounds.margin_estimate_KK)
    return Certificates(prediction_B, radius_B, runner_up_B, logits_BK, estimated_B, bounds, norm, method, effort)


def vra(certificates: Certificates, labels_B: Tensor, radius: "Radius | str | float") -> float:
    """Verified-robust accuracy: the share of images both correctly classified and certified at `radius`."""
    return certified_correct(certificates.prediction_B, certificates.radius_B, labels_B, radius) / len(labels_B)


def certified_correct(prediction_B: Tensor, radius_B: Tensor, labels_B: Tensor, radius: "Radius | str | float") -> int:
    """Number of images whose prediction equals the label and whose radius reaches `radius` (compared exactly).

    Raises:
        NotCertifiable: lengths differ, or no images.
    """
    if labels_B.shape != prediction_B.shape or not len(labels_B):
        raise NotCertifiable(
            f"labels of shape {tuple(labels_B.shape)} for certificates of shape {tuple(prediction_B.shape)}: need one "
            "each, at least one"
        )
    # float(Radius) is the smallest float64 not below the exact radius, so this float comparison is the exact one.
    certified_B = (radius_B.double() >= float(Radius(radius))) & (prediction_B != ABSTAIN)
    return int((certified_B & (prediction_B == labels_B.to(prediction_B))).sum())


def margin_radius(logits_BK: Tensor, margin_lipschitz_KK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, radius (rounded down) and limiting class of each row of logits, (B,) each.

    A tie for the largest logit, a non-finite logit or a non-finite constant: ABSTAIN, 0, -1. The radius is strictly
    below margin / K, so at every point of the closed ball the margin stays positive.
    """
    if logits_BK.dtype != torch.float64:
        raise NotCertifiable(f"logits of {logits_BK.dtype}: must be float64, as the constants are")
    top_B1, predicted_B1 = logits_BK.max(1, keepdim=True)
    margin_BK = top_B1 - logits_BK
    # Rounded to nearest, hence one step down is below the exact difference; 0 or less is a tie.
    margin_BK = torch.where(margin_BK > 0, torch.nextafter(margin_BK, torch.zeros_like(margin_BK)), margin_BK)
    lipschitz_BK = margin_lipschitz_KK.to(logits_BK)[predicted_B1[:, 0]]
    quotient_BK = margin_BK / lipschitz_BK
    quotient_BK = torch.nextafter(quotient_BK, torch.zeros_like(quotient_BK))
    is_own_BK = torch.zeros_like(logits_BK, dtype=torch.bool).scatter(1, predicted_B1, True)
    sound_BK = is_own_BK | ((margin_BK > 0) & lipschitz_BK.isfinite() & (lipschitz_BK > 0) & (quotient_BK > 0))
    sound_B = sound_BK.all(1) & logits_BK.isfinite().all(1)
    radius_B, runner_up_B = quotient_BK.masked_fill(is_own_BK, math.inf).min(1)
    return (
        torch.where(sound_B, predicted_B1[:, 0], ABSTAIN),
        torch.where(sound_B, radius_B, 0.0),
        torch.where(sound_B, runner_up_B, ABSTAIN),
    )


def _logits(chain: nn.Sequential, images_BCHW: Tensor, progress: Callable[[int], None] | None) -> Tensor:
    """Logits in float64, (B, K), computed in padded micro-batches of one fixed size, on the chain's device."""
    chain = copy.deepcopy(chain).double()
    device = next(chain.parameters()).device
    parts = []
    for start in range(0, len(images_BCHW), _MICRO_BATCH):
        batch = images_BCHW[start : start + _MICRO_BATCH].to(device, torch.float64)
        padding = batch.new_zeros(_MICRO_BATCH - len(batch), *batch.shape[1:])
        parts.append(chain(torch.cat([batch, padding]))[: len(batch)].cpu())
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)


def _check_request(norm: str, method: str, guarantee: str, arithmetic: str) -> None:
    for key, value, known in (
        ("norm", norm, ("l2",)),
        ("method", method, ("margin",)),
        ("guarantee", guarantee, GUARANTEES),
        ("arithmetic", arithmetic, ("float64",)),
    ):
        if value not in known:
            raise NotCertifiable(f"{key}={value!r}: not proven by this version; it proves {', '.join(known)}")


def _check_images(images_BCHW: Tensor) -> None:
    if images_BCHW.ndim != 4 or not len(images_BCHW):
        raise NotCertifiable(f"images of shape {tuple(images_BCHW.shape)}: need (B, C, H, W) with at least one image")
    if not images_BCHW.is_floating_point():
        raise NotCertifiable(f"images are {images_BCHW.dtype}: need floating-point pixels in [0, 1]; divide by 255")
    if not ((images_BCHW >= 0) & (images_BCHW <= 1)).all():
        low, high = images_BCHW.min().item(), images_BCHW.max().item()
        raise NotCertifiable(f"pixels from {low:g} to {high:g}: must be in [0, 1], the unit of every radius")
