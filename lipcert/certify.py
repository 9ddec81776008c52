"""The certifier: prediction and proven radius per image. It fails closed.

Shape letters: B images, K classes, C H W image, F features. Bounds come from `lipcert.bounds` (proven), never from the
power method; the forward pass from `lipcert.forward`, its rounding errors from `lipcert.deviation`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.chain import ChainBounds, NotCertifiable, chain_bounds, fingerprint, plain_chain
from lipcert.deviation import Deviation, deviation
from lipcert.forward import FORMATS, Activations, run_chain
from lipcert.margins import ABSTAIN, margin_radius, pair_radii
from lipcert.radius import Radius

GUARANTEES = ("nominal", "real", "executed")  # from the weakest to the strongest
METHODS = {"l2": ("margin",), "linf": ("margin", "interval")}


@dataclass(frozen=True, eq=False)
class Certificates:
    """What is promised for each image: no perturbation of l2 norm at most `radius_B` changes `prediction_B`.

    Of l_inf norm where `norm` is "linf"; where `method` is "interval", none that keeps pixels in [0, 1].
    `guarantee` says of which network: *executed*, of the one run in `arithmetic`, in any summation order; *real*, of
    the same weights in exact arithmetic; *nominal*, of neither strictly, since rounding in the forward pass is ignored.

    Attributes:
        prediction_B: (B,) int64; `ABSTAIN` (-1) where nothing can be promised: a tie, a non-finite logit, or a margin
            that rounding errors could have made.
        radius_B: (B,) float64, proven, rounded down, 0 where abstaining; in units of the input tensor.
        runner_up_B: (B,) int64; the class that limits the radius, -1 where abstaining.
        logits_BK: (B, K) float64.
        bounds: the constants behind the radii.
        norm, method, effort, guarantee, arithmetic: what was asked and delivered.
    """

    prediction_B: Tensor
    radius_B: Tensor
    runner_up_B: Tensor
    logits_BK: Tensor
    bounds: ChainBounds
    norm: str = "l2"
    method: str = "margin"
    effort: str = "fast"
    guarantee: str = "executed"
    arithmetic: str = "float64"

    def __len__(self) -> int:
        return len(self.prediction_B)

    @functools.cached_property
    def estimated_radius_B(self) -> Tensor:
        """(B,) float64: what the power method would have claimed, for comparison; never a certificate."""
        return margin_radius(self.logits_BK, self.bounds.margin_estimate_KK)[1]


def certify(
    model: nn.Module,
    images_BCHW: Tensor,
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    guarantee: str = "executed",
    arithmetic: str = "float64",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
    radii: Sequence["Radius | str | float"] = (),
) -> Certificates:
    """Certify every image: the largest radius at which every margin z_i - z_j is proven to stay positive.

    With margins m_j, proven constants K_j (arXiv 2102.08452, section 3) and rounding bounds a_j + b_j r
    (`lipcert.deviation`), that radius is the least (m_j - a_j) / (K_j + b_j), rounded down. *nominal* leaves a and b
    out, *real* counts the errors of this forward pass, *executed* those of any run in `arithmetic` on the ball as well.
    Images run in micro-batches of a fixed size: the result does not depend on how they were batched.

    Args:
        model: a `Network`, a chain from `load`, or an `nn.Sequential` (nested ones too) of nn.Conv2d, nn.Linear,
            nn.ReLU, nn.Flatten, nn.ZeroPad2d, nn.Identity, nn.Dropout, MinMax, Shift and Residual whose last is an
            nn.Linear; in evaluation mode.
        images_BCHW: (B, C, H, W) with pixels in [0, 1]; at least one image. Best in float64: k/255 in float32 is
            another image, 1e-6 away.
        norm: "l2" or "linf". effort: as in `norm_bound`; no matter in l_inf.
        method: "margin", or in l_inf "interval": boxes pushed through the network, clipped to pixels in [0, 1]
            (`lipcert.linf.interval`), for chains of distance and conventional layers alike.
        guarantee: "nominal", "real" or "executed". Asking for more than the code can prove raises.
        arithmetic: "float64" or "float32": what the network is run in (executed), what this pass runs in (real).
        bounds: constants of this very chain from `chain_bounds`, to save computing them again.
        progress: called with the number of images done.
        radii: with "interval", radii to try exactly, before the search for the largest.

    Raises:
        NotCertifiable: a request, model or input for which nothing can be promised.
        TypeError: a layer without a bound, by name and place.
    """
    wanted = [(guarantee, arithmetic)]
    return certify_each(model, images_BCHW, wanted, norm, method, effort, bounds, progress, radii)[0]


@torch.no_grad()
def certify_each(
    model: nn.Module,
    images_BCHW: Tensor,
    wanted: Sequence[tuple[str, str]],
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
    radii: Sequence["Radius | str | float"] = (),
) -> list[Certificates]:
    """`certify` for several (guarantee, arithmetic) at once, from as few forward passes as they need."""
    if method == "interval":
        from lipcert.linf.certify import interval_certificates

        chain = _checked(model, images_BCHW, wanted, norm, method)
        return interval_certificates(chain, images_BCHW, wanted, effort, bounds, radii, progress)
    found = []
    for evidence in gather_evidence(model, images_BCHW, wanted, norm, method, effort, bounds, progress):
        results = margin_radius(evidence.logits_BK, *evidence.constants)
        sound_B = evidence.in_range(results[1])
        kept = (torch.where(sound_B, r, empty) for r, empty in zip(results, (ABSTAIN, 0.0, ABSTAIN), strict=True))
        asked = (norm, method, effort, evidence.guarantee, evidence.arithmetic)
        found.append(Certificates(*kept, evidence.logits_BK, evidence.bounds, *asked))
    return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a forward pass gives to certify from, under one guarantee and arithmetic.

    Attributes:
        logits_BK: (B, K) float64.
        errors: bounds on what rounding did to them and can do on the ball.
        limit: what partial sums must stay below for `errors` to hold.
    """

    logits_BK: Tensor
    bounds: ChainBounds
    errors: Deviation
    guarantee: str
    arithmetic: str
    limit: float

    @property
    def constants(self) -> tuple[Tensor, Tensor, Deviation, str]:
        """What `margin_radius` and `pair_radii` take after their logits and classes."""
        return self.bounds.margin_lipschitz_KK, self.bounds.distances_KK, self.errors, self.guarantee

    def radii(self, class_B: Tensor) -> Tensor:
        """`pair_radii` of one class for each image, (B, K); overflow is left to `in_range`."""
        return pair_radii(self.logits_BK, class_B, *self.constants)

    def in_range(self, radius_B: Tensor) -> Tensor:
        """Whether no sum can overflow on the balls of these radii, (B,) bool.

        Overflow on the way, hidden again by an activation, would make the logits meaningless.
        """
        return self.errors.sums.at + self.errors.sums.slope * radius_B < self.limit


@torch.no_grad()
def gather_evidence(
    model: nn.Module,
    images_BCHW: Tensor,
    wanted: Sequence[tuple[str, str]],
    norm: str = "l2",
    method: str = "margin",
    effort: str = "fast",
    bounds: ChainBounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Evidence]:
    """Check the request, bound the chain, run the forward passes; one piece of evidence per (guarantee, arithmetic).

    Arguments and errors are those of `certify`.
    """
    chain = _checked(model, images_BCHW, wanted, norm, method)
    if method != "margin":
        raise NotCertifiable(f"method={method!r}: margins alone are evidence for this; use method='margin'")
    if norm == "linf":
        from lipcert.linf.certify import margin_evidence

        return margin_evidence(chain, images_BCHW, wanted, effort, bounds, progress)
    shape = tuple(images_BCHW.shape[1:])
    if bounds is None:
        bounds = chain_bounds(chain, shape, effort)
    elif (bounds.effort, bounds.proven_for) != (effort, fingerprint(chain, shape)):
        raise NotCertifiable(
            f"bounds: proven for other weights, layers, image shape or effort than {shape}, {effort!r}; leave them out"
        )
    passes = {key: run_chain(chain, images_BCHW, *key, progress) for key in passes_for(wanted)}
    return [_evidence(chain, passes[_pass_for(*claim)], bounds, *claim) for claim in wanted]


def rounds_of(wanted: Sequence[tuple[str, str]], norm: str, method: str) -> int:
    """How often `progress` counts every image: intervals take each claim by itself, margins share forward passes."""
    if method == "interval":
        return len(wanted)
    passes = passes_for(wanted)
    # A pass of an l_inf-distance net gives its magnitudes as well.
    return len({arithmetic for arithmetic, _ in passes}) if norm == "linf" else len(passes)


def passes_for(wanted: Sequence[tuple[str, str]]) -> list[tuple[str, bool]]:
    """The forward passes that claims take: arithmetic, and whether with magnitudes."""
    return list(dict.fromkeys(_pass_for(*claim) for claim in wanted))


def _pass_for(guarantee: str, arithmetic: str) -> tuple[str, bool]:
    # Executed in float32 is proven from a float64 pass, which errs less, and from magnitudes, which float32 needs.
    return (arithmetic if guarantee == "real" else "float64"), arithmetic == "float32"


def _evidence(
    chain: nn.Sequential, activations: Activations, bounds: ChainBounds, guarantee: str, arithmetic: str
) -> Evidence:
    computed, deployed = FORMATS[_pass_for(guarantee, arithmetic)[0]], FORMATS[arithmetic]
    errors = deviation(bounds.plan, activations, chain[-1], computed, deployed)
    limit = float(min(computed.largest, deployed.largest)) / 4
    return Evidence(activations.logits_BK, bounds, errors, guarantee, arithmetic, limit)


def vra(certificates: Certificates, labels_B: Tensor, radius: "Radius | str | float") -> float:
    """Verified-robust accuracy: the share of images both correctly classified and certified at `radius`."""
    return certified_correct(certificates.prediction_B, certificates.radius_B, labels_B, radius) / len(labels_B)


def certified_correct(prediction_B: Tensor, radius_B: Tensor, labels_B: Tensor, radius: "Radius | str | float") -> int:
    """Number of images whose prediction equals the label and whose radius reaches `radius` (compared exactly).

    Raises:
        NotCertifiable: lengths differ, or no images.
    """
    check_labels(labels_B, prediction_B.shape)
    # float(Radius) is the smallest float64 not below the exact radius, so this float comparison is the exact one.
    certified_B = (radius_B.double() >= float(Radius(radius))) & (prediction_B != ABSTAIN)
    return int((certified_B & (prediction_B == labels_B.to(prediction_B))).sum())


def check_labels(labels_B: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse labels that are not one for each certificate; a column of them would be broadcast."""
    if labels_B.shape != shape or not len(labels_B):
        raise NotCertifiable(
            f"labels of shape {tuple(labels_B.shape)} for certificates of shape {tuple(shape)}: need one each, at "
            "least one"
        )


def _checked(
    model: nn.Module, images_BCHW: Tensor, wanted: Sequence[tuple[str, str]], norm: str, method: str
) -> nn.Sequential:
    """The plain chain of a request that makes sense."""
    for guarantee, arithmetic in wanted:
        _check_request(norm, method, guarantee, arithmetic)
    chain = plain_chain(model)
    _check_images(images_BCHW)
    if any(arithmetic == "float32" for _, arithmetic in wanted):
        _check_float32(chain)
    return chain


def _check_float32(chain: nn.Sequential) -> None:
    for name, tensor in chain.state_dict().items():
        if not torch.equal(tensor.float().to(tensor.dtype), tensor):
            raise NotCertifiable(f"{name} holds numbers that float32 cannot: use arithmetic='float64'")


def _check_request(norm: str, method: str, guarantee: str, arithmetic: str) -> None:
    for key, value, known in (
        ("norm", norm, tuple(METHODS)),
        ("method", method, METHODS.get(norm, ())),
        ("guarantee", guarantee, GUARANTEES),
        ("arithmetic", arithmetic, tuple(FORMATS)),
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
