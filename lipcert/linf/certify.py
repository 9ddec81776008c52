"""Certificates in l_inf: by the margin rule, or by boxes.

Shape letters: B images, K classes, C H W image, N images of one part.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.certify import Certificates, Evidence
from lipcert.chain import NotCertifiable
from lipcert.forward import AFFINE, FORMATS, FloatFormat, ieee_products
from lipcert.linf.interval import Cast, Propagation, Worst
from lipcert.linf.margin import Run, Sizes, margin_deviation
from lipcert.linf.program import LinfBounds, check_margin_rule, check_subnormal, linf_bounds
from lipcert.linf.rounding import Rounding, ball, check_gradual
from lipcert.linf.search import Search
from lipcert.margins import ABSTAIN, margin_radius
from lipcert.radius import Radius
from lipcert.threads import one_thread_each

_MICRO_BATCH = 64
_PART = 1024  # images searched at a time

Claim = tuple[str, str]


def margin_evidence(
    chain: nn.Sequential,
    images_BCHW: Tensor,
    wanted: Sequence[Claim],
    effort: str = "fast",
    bounds: LinfBounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Evidence]:
    """What the margin rule certifies from, one piece for each (guarantee, arithmetic); see `lipcert.linf.margin`.

    Arguments and errors are those of `lipcert.certify.certify`; the chain is plain and the images were checked.
    """
    check_margin_rule(chain)
    bounds = _own_bounds(chain, images_BCHW, effort, bounds)
    for claim in wanted:
        check_subnormal(chain, _rounding(claim))
    passes = {}
    for form in dict.fromkeys(map(_computed, wanted)):
        with _workers_for(chain) as workers:
            passes[form] = Sizes(*_in_micro_batches(Run(chain, form), workers, images_BCHW, progress=progress))
    return [_evidence(chain, passes[_computed(claim)], bounds, claim) for claim in wanted]


def _computed(claim: Claim) -> FloatFormat:
    """What the margin rule's pass runs in: executed is proven from a float64 pass, which errs less."""
    return FORMATS[claim[1] if claim[0] == "real" else "float64"]


def _rounding(claim: Claim) -> Rounding:
    """What boxes allow for; *nominal* ignores rounding, so it takes the arithmetic with the least."""
    return Rounding(claim[0], FORMATS["float64" if claim[0] == "nominal" else claim[1]])


def _evidence(chain: nn.Sequential, sizes: Sizes, bounds: LinfBounds, claim: Claim) -> Evidence:
    computed, deployed = _computed(claim), FORMATS[claim[1]]
    errors = margin_deviation(chain, sizes, computed, deployed)
    limit = float(min(computed.largest, deployed.largest)) / 4
    return Evidence(sizes.logits_BK, bounds, errors, *claim, limit)


def interval_certificates(
    chain: nn.Sequential,
    images_BCHW: Tensor,
    wanted: Sequence[Claim],
    effort: str = "fast",
    bounds: LinfBounds | None = None,
    radii: Sequence["Radius | str | float"] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Certificates]:
    """Certificates from boxes, one for each (guarantee, arithmetic); see `lipcert.linf.interval`.

    *Theorem.* The box holds every image with pixels in [0, 1] within the radius. If L_y, the lower end of the
    prediction's logit, is above the upper end U_j of every other, no such image has another class: of the exact network
    if the guarantee is *real*, of the network as run in `arithmetic` if it is *executed*.

    The prediction is the class of the pass at the image itself. `radius_B` is the largest radius found to pass, and at
    least the largest of `radii` that does; within `search.FINEST` and `search.RELATIVE` of it, one failed. It is 1 at
    most unless one of `radii` is larger: a ball of radius 1 covers everything. A class with radius 0 is proven for the
    image itself, rounded or not, and for no ball.
    """
    bounds = _own_bounds(chain, images_BCHW, effort, bounds)
    exact = [float(Radius(radius)) for radius in radii]  # the smallest float64 that is not below
    for claim in wanted:
        check_subnormal(chain, _rounding(claim))
    found, cast = [], Cast()
    for claim in wanted:
        parts = []
        with _workers_for(chain) as workers:
            boxes = _Boxes(chain, bounds, claim, cast, workers)
            for images_NCHW in images_BCHW.split(_PART):
                parts.append(boxes.certify(images_NCHW, exact))
                if progress is not None:
                    progress(len(images_NCHW))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        found.append(Certificates(*columns, bounds, "linf", "interval", effort, *claim))
    return found


class _Boxes:
    """A chain under one claim: the pass at points, the pass over boxes, and the margin rule to begin from."""

    def __init__(self, chain: nn.Sequential, bounds: LinfBounds, claim: Claim, cast: Cast, workers: "_Workers"):
        self.chain, self.bounds, self.claim, self.workers = chain, bounds, claim, workers
        rounding = _rounding(claim)
        self.plain = Propagation(chain, Rounding("nominal", rounding.form), cast)
        self.boxes = Propagation(chain, rounding, cast)
        self.run = Run(chain, _computed(claim), cast) if bounds.lipschitz else None

    def certify(self, images_NCHW: Tensor, radii: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction, radius, runner-up and logits."""
        (logits_NK,) = _in_micro_batches(self._logits, self.workers, images_NCHW)
        class_N, top_N2 = logits_NK.argmax(1), logits_NK.topk(2, dim=1).values
        gap_N = torch.where(logits_NK.isfinite().all(1), top_N2[:, 0] - top_N2[:, 1], 0.0)

        def examine(index: Tensor, radius: Tensor) -> Worst:
            return Worst(*_in_micro_batches(self._worst, self.workers, images_NCHW[index], radius, class_N[index]))

        search = Search(examine, gap_N)
        search.run(self._start(images_NCHW), radii)
        passed_N = search.passed_B
        return (
            torch.where(passed_N, class_N, ABSTAIN),
            search.best_B,
            torch.where(passed_N, search.rival_B, ABSTAIN),
            logits_NK,
        )

    def _logits(self, images: Tensor) -> tuple[Tensor]:
        return (self.plain.logits(images.to(self.plain.rounding.dtype)),)

    def _worst(self, images: Tensor, radius: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        worst = self.boxes.worst(*ball(images, radius, self.boxes.rounding), label)
        return worst.gap_B, worst.rival_B, worst.holds_B

    def _start(self, images_NCHW: Tensor) -> Tensor:
        """Where a search begins: at the radius of the margin rule if it holds, which boxes improve, else at 1/256."""
        if self.run is None:
            return torch.full((len(images_NCHW),), 2.0**-8, dtype=torch.float64)
        sizes = Sizes(*_in_micro_batches(self.run, self.workers, images_NCHW))
        evidence = _evidence(self.chain, sizes, self.bounds, self.claim)
        return margin_radius(evidence.logits_BK, *evidence.constants)[1]


def _in_micro_batches(
    function: Callable[..., tuple[Tensor, ...]],
    workers: "_Workers",
    images_BCHW: Tensor,
    *columns: Tensor,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Results of `function` on micro-batches, of one size where `workers.fill`, joined on the CPU.

    columns: further arguments, one entry for each image.
    """

    @torch.no_grad()
    def run(start: int) -> list[Tensor]:
        check_gradual(workers.device)
        parts = [whole[start : start + _MICRO_BATCH] for whole in (images_BCHW, *columns)]
        count = len(parts[0])
        if workers.fill:
            parts = [torch.cat([part, part.new_zeros(_MICRO_BATCH - count, *part.shape[1:])]) for part in parts]
        return [result[:count].cpu() for result in function(*(part.to(workers.device) for part in parts))]

    starts, parts = range(0, len(images_BCHW), _MICRO_BATCH), []
    for start, part in zip(starts, workers.map(run, starts), strict=True):
        parts.append(part)
        if progress is not None:
            progress(min(_MICRO_BATCH, len(images_BCHW) - start))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Workers:
    """Threads that compute alone, each on the device of the weights.

    fill: whether the last micro-batch is filled up with zeros, since the last bits of a product depend on its size.
    Distances are the same bits in any batch.
    """

    map: Callable
    device: torch.device
    fill: bool


@contextlib.contextmanager
def _workers_for(chain: nn.Sequential) -> Iterator[_Workers]:
    """Conventional float64 products whatever the caller has set."""
    device = next((p.device for p in chain.parameters()), torch.device("cpu"))
    with ieee_products(torch.float64, device), one_thread_each(device) as workers:
        yield _Workers(workers, device, any(isinstance(layer, (*AFFINE, nn.Tanh)) for layer in chain.modules()))


def _own_bounds(chain: nn.Sequential, images_BCHW: Tensor, effort: str, bounds: LinfBounds | None) -> LinfBounds:
    """Constants are as good as free: those given are checked to be of the right kind and found again."""
    if bounds is not None and not isinstance(bounds, LinfBounds):
        raise NotCertifiable(f"bounds of type {type(bounds).__name__}: not of l_inf; leave them out")
    return linf_bounds(chain, tuple(images_BCHW.shape[1:]), effort)
