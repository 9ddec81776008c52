"""The certifier: prediction and proven radius per image. It fails closed.

Shape letters: B images, K classes, C H W image, F features. Everything here runs in float64 on a plain chain; bounds
come from `lipcert.bounds` (proven), never from the power method.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.bounds.rounding import round_down, round_up
from lipcert.layers import MinMax, Shift
from lipcert.models.network import Network
from lipcert.models.stored import geometry
from lipcert.power import norm_estimate
from lipcert.provenance import tensors_sha256
from lipcert.radius import Radius

ABSTAIN = -1
GUARANTEES = ("nominal",)
_MICRO_BATCH = 64
_ESTIMATE_STEPS = 500  # what public codes use when they evaluate
_ONE_LIPSCHITZ = (MinMax, Shift, nn.Flatten, nn.ZeroPad2d, nn.ReLU, nn.Identity)


class NotCertifiable(ValueError):
    """Nothing can be promised for this model, input or request; the message says why and what would work."""


@dataclass(frozen=True)
class LayerBound:
    """Enclosure of one layer's l2 norm (a factor 1 for layers that sort, shift, pad or reshape)."""

    name: str
    kind: str
    enclosure: Enclosure
    estimate: float


@dataclass(frozen=True)
class ChainBounds:
    """Constants of a plain chain. `upper` and `lower` are proven products over the backbone, `estimate` is not.

    `margin_lipschitz_KK` is rounded up: no margin z_i - z_j shrinks faster than K_ij per unit of l2 distance.
    `lower` is the product of the layers' lower ends; the chain's own constant may be smaller than that product.
    `proven_for` identifies the layers, weights and input shape, so that bounds serve no other chain.
    """

    layers: tuple[LayerBound, ...]
    lower: float
    upper: float
    estimate: float
    margin_lipschitz_KK: Tensor
    margin_estimate_KK: Tensor
    effort: str
    proven_for: str


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
    elif (bounds.effort, bounds.proven_for) != (effort, _fingerprint(chain, shape)):
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


def plain_chain(model: nn.Module) -> nn.Sequential:
    """The chain of ordinary layers that gets certified.

    Raises:
        NotCertifiable: a model in training mode. TypeError: neither a `Network` nor an `nn.Sequential`.
    """
    if type(model) is Network:
        _refuse_replaced((name or "model", layer) for name, layer in model.named_modules())
        return model.plain()
    if type(model) is not nn.Sequential:
        raise TypeError(
            f"cannot certify {type(model).__name__}: give a lipcert Network or an nn.Sequential of plain layers"
        )
    if model.training:
        raise NotCertifiable("the model is in training mode: call model.eval() first")
    _refuse_replaced([("model", model), *layers_of(model)])
    return model


def _refuse_replaced(layers: Iterable[tuple[str, nn.Module]]) -> None:
    for name, layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            raise TypeError(
                f"{type(layer).__name__} {name!r} has hooks or a replaced forward, so what it computes is unknown"
            )


def _fingerprint(chain: nn.Sequential, input_shape: tuple[int, ...]) -> str:
    """What bounds depend on: layers with their settings, weights, input shape."""
    plan = json.dumps([geometry(chain), input_shape])
    return hashlib.sha256((plan + tensors_sha256(chain.state_dict())).encode()).hexdigest()


def layers_of(chain: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Names and layers in order. A layer that stands twice is listed twice, unlike in `named_children`."""
    return list(chain._modules.items())


@torch.no_grad()
def chain_bounds(chain: nn.Sequential, input_shape: tuple[int, ...], effort: str = "fast") -> ChainBounds:
    """Proven constants of a plain chain for inputs of this shape (C, H, W), with the power method's beside them.

    Raises:
        TypeError: a layer without a bound (named, with its place) or a last layer that is not nn.Linear.
        ValueError: weights that are not finite, or sizes that do not fit.
    """
    if not len(chain):
        raise TypeError("the model has no layers: margins need an nn.Linear at the end")
    *backbone, (head_name, head) = layers_of(chain)
    if type(head) is not nn.Linear:
        raise TypeError(f"last layer {head_name!r} is {type(head).__name__}: margins need an nn.Linear")
    layers, shape = [], tuple(input_shape)
    for name, layer in backbone:
        layers.append(_layer_bound(name, layer, shape, effort))
        shape = _output_shape(name, layer, shape)
    if shape != (head.in_features,):
        raise NotCertifiable(
            f"input of shape {tuple(input_shape)} reaches the head {head_name!r} as {shape}, "
            f"which takes ({head.in_features},)"
        )
    upper = round_up(math.prod((Fraction(b.enclosure.upper) for b in layers), start=Fraction(1)))
    lower = round_down(math.prod((Fraction(b.enclosure.lower) for b in layers), start=Fraction(1)))
    estimate = math.prod(b.estimate for b in layers)
    distances_KK = _distances_up(head.weight)
    off_diagonal = ~torch.eye(head.out_features, dtype=torch.bool)
    margin_KK = torch.where(off_diagonal, _step_up(distances_KK * upper), 0.0)
    rows_KF = head.weight.detach().double().cpu()
    estimate_KK = estimate * torch.cdist(rows_KF, rows_KF, compute_mode="donot_use_mm_for_euclid_dist")
    proven_for = _fingerprint(chain, tuple(input_shape))
    return ChainBounds(tuple(layers), lower, upper, estimate, margin_KK, estimate_KK, effort, proven_for)


def _layer_bound(name: str, layer: nn.Module, shape: tuple[int, ...], effort: str) -> LayerBound:
    kind = type(layer).__name__
    if type(layer) in _ONE_LIPSCHITZ:
        _check_one_lipschitz(name, layer, shape)
        return LayerBound(name, kind, Enclosure(1.0, 1.0, "1-Lipschitz"), 1.0)
    if type(layer) not in (nn.Conv2d, nn.Linear):
        raise TypeError(f"no l2 bound for {kind} at {name!r}: give the layer a bound or remove it")
    try:
        enclosure = norm_bound(layer, shape, effort=effort)
        # In float64, so that what is missing to the bound is the power method's own doing.
        estimate = float(norm_estimate(copy.deepcopy(layer).double(), shape, steps=_ESTIMATE_STEPS))
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    return LayerBound(name, kind, enclosure, estimate)


def _check_one_lipschitz(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse the settings and inputs under which such a layer does something else: torch broadcasts silently."""
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        raise TypeError(f"Flatten {name!r} over dimensions {layer.start_dim}..{layer.end_dim}: must be 1..-1")
    if type(layer) is MinMax and (not shape or shape[0] % 2):
        raise TypeError(f"MinMax {name!r} on an input of shape {shape}: the first dimension must be even")
    if type(layer) is nn.ZeroPad2d and len(shape) != 3:
        raise TypeError(f"ZeroPad2d {name!r} on an input of shape {shape}: must be (C, H, W)")
    if type(layer) is Shift and not (isinstance(layer.amount, float) and math.isfinite(layer.amount)):
        raise TypeError(f"Shift {name!r} by {layer.amount!r}: must be one finite float")


def _output_shape(name: str, layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        with torch.no_grad():
            reference = next(layer.parameters(), torch.empty(0))
            return tuple(layer(torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device)).shape[1:])
    except RuntimeError as error:
        raise NotCertifiable(f"layer {name!r} cannot take an input of shape {shape}: {error}") from error


def _distances_up(weight_KF: Tensor) -> Tensor:
    """|w_i - w_j| in float64, rounded up, (K, K).

    Difference, square and sum of F terms in any order have relative error below (F + 4) u in the root's argument (all
    terms are non-negative), the root one more u; squares that underflow lose at most F 2^-1022. The factor and the
    added term cover both.
    """
    rows_KF = weight_KF.detach().double().cpu()
    features = rows_KF.shape[1]
    lost = round_up(Fraction(math.isqrt(features) + 1)) * 2.0**-511
    out = [(rows_KF - row_F).square().sum(1).sqrt() * (1 + 2 * (features + 8) * 2.0**-53) + lost for row_F in rows_KF]
    return _step_up(torch.stack(out))


def _step_up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


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
