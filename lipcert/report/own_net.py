"""Networks of any make certified beside a shipped one, for the chapter "Certify your own network".

Everything is computed while the page is built. Shape suffixes: N images, K classes, C H W image.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import lipcert
from lipcert.attack import Fab, falsify
from lipcert.certify import Certificates, certified_correct, margin_radius
from lipcert.chain import plain_chain
from lipcert.data import load_dataset, to_unit
from lipcert.report.estimates import public_estimates
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, down, percent, table, up

RADII = ("0.05", "0.1", "36/255")
ATTACKED = 40  # images: some seconds for the slowest network
_LINES = ((BLUE, "o"), (VERMILLION, "s"), (PURPLE, "P"), (GREEN, "D"))


@functools.cache
def test_digits() -> tuple[Tensor, Tensor]:
    """Test images in [0, 1], float64, and labels."""
    data = load_dataset("digits")
    return to_unit(data.test.images_NCHW, data.scale, torch.float64), data.test.labels_N


@dataclass(frozen=True, eq=False)
class Tried:
    """A network, its certificates on all test digits, what the power method claims, how near an attack comes.

    claimed: by name of the layer, 500 steps in float32 from ones. distances: of the closest changed answer found, for
    the first `ATTACKED` images; infinite where none was found.
    """

    name: str
    chain: nn.Sequential
    certificates: Certificates
    claimed: dict[str, float]
    distances: tuple[float, ...]
    refuted: int

    @property
    def constant(self) -> float:
        """The product of the power method's norms."""
        return math.prod(self.claimed.values())

    @property
    def radii(self) -> list[float]:
        """Certified radii of the images attacked."""
        return self.certificates.radius_B[: len(self.distances)].tolist()

    def counts(self, radius: str) -> tuple[int, int]:
        """Correct test images certified at a radius, and those that the power method would claim."""
        c, labels_N = self.certificates, test_digits()[1]
        claimed_KK = self.constant * c.bounds.distances_KK
        prediction_N, radius_N, _ = margin_radius(c.logits_BK, claimed_KK)
        own = certified_correct(c.prediction_B, c.radius_B, labels_N, radius)
        return own, certified_correct(prediction_N, radius_N, labels_N, radius)

    def clean(self) -> float:
        return float((self.certificates.prediction_B == test_digits()[1]).double().mean())


@torch.no_grad()
def tried(name: str, model: nn.Module) -> Tried:
    """Certify a network on the test digits (effort tight), estimate its norms and attack it."""
    images_NCHW, _ = test_digits()
    chain = plain_chain(model)
    found = lipcert.certify(chain, images_NCHW, effort="tight")
    some = lipcert.certify(chain, images_NCHW[:ATTACKED], effort="tight", bounds=found.bounds)
    with torch.enable_grad():
        attacked = falsify(chain, images_NCHW[:ATTACKED], some, [Fab(restarts=1)])
    ratios = iter(attacked.attacks[0].ratios)
    distances = tuple(r * (next(ratios) or math.inf) if r > 0 else math.nan for r in some.radius_B.tolist())
    claimed = {
        step_name: public_estimates(layer, torch.ones(1, *step.input_shape))[-1]
        for (step_name, layer), step in zip(list(chain.named_children())[:-1], found.bounds.plan, strict=False)
        if step.affine
    }
    return Tried(name, chain, found, claimed, distances, len(attacked.violations))


def norms_table(net: Tried) -> Markdown:
    """Every layer of the backbone: proven lower end, the power method, proven upper end."""
    rows = [
        (f"`{b.name}`", down(b.enclosure.lower, 7), f"{net.claimed[b.name]:.7f}", up(b.enclosure.upper, 7))
        for b in net.certificates.bounds.layers
        if b.name in net.claimed
    ]
    bounds = net.certificates.bounds
    rows.append(("product", down(bounds.lower, 5), f"{net.constant:.5f}", up(bounds.upper, 5)))
    return table(("layer", "at least", "power method", "at most"), rows, right=(1, 2, 3))


def norms_words(net: Tried) -> Markdown:
    """Whether the power method was right this time."""
    bounds = net.certificates.bounds
    low = sum(net.claimed[b.name] < b.enclosure.lower for b in bounds.layers if b.name in net.claimed)
    own, claimed = net.counts("36/255")
    return Markdown(
        f"The power method's product differs from the proven upper end by {abs(net.constant / bounds.upper - 1):.0e} "
        f"of it; {low} of {len(net.claimed)} estimates lie below the proven lower end of their layer. At 36/255 it "
        f"claims {claimed} of {len(net.certificates)} images where {own} are proven."
    )


def vra_table(nets: Sequence[Tried]) -> Markdown:
    """Clean accuracy and VRA at small radii."""
    total = len(nets[0].certificates)
    rows = []
    for net in nets:
        shares = (percent(net.counts(r)[0] / total) for r in RADII)
        rows.append((net.name, up(net.certificates.bounds.upper, 2), percent(net.clean()), *shares))
    head = ("network", "constant, at most", "clean", *(f"VRA at {r}" for r in RADII))
    return table(head, rows, right=range(1, len(head)))


def gap_figure(nets: Sequence[Tried]) -> Figure:
    """Per image: certified radius against the distance of the closest changed answer found."""
    figure, axes = canvas(WIDTH, 4.2)
    points = [(net, r, d) for net in nets for r, d in zip(net.radii, net.distances, strict=True) if math.isfinite(d)]
    low, high = min(r for _, r, _ in points) / 1.3, max(d for *_, d in points) * 1.3
    axes.plot([low, high], [low, high], color=INK, linewidth=1.2)
    style = {"textcoords": "offset points", "va": "center", "ha": "right", "color": INK, "fontsize": 10}
    axes.annotate("here a certificate would be refuted", (high, low), (-6, 12), **style)
    axes.fill_between([low, high], low, [low, high], color=FAINT, alpha=0.15, linewidth=0)
    for net, (colour, marker) in zip(nets, _LINES, strict=False):
        x, y = zip(*((r, d) for owner, r, d in points if owner is net), strict=True)
        axes.plot(x, y, marker, color=colour, markersize=4.5, alpha=0.75, label=net.name, linestyle="none")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="certified ℓ₂ radius, pixels in [0, 1]", ylabel="closest changed answer found")
    ticks = [t for t in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if low < t < high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    rows = [(net.name, f"{r:.9g}", f"{d:.9g}") for net, r, d in points]
    alt = "Certified radius of each image against the distance of the closest changed answer. No point lies below the "
    alt += f"diagonal, where it would refute its certificate. {gap_words(nets)}"
    return finish("gap", figure, alt, ("network", "certified_radius", "closest_found"), rows)


class Median(NamedTuple):
    """Medians over the images attacked: certified radius, distance of the closest change, their ratio; least ratio."""

    radius: float
    distance: float
    ratio: float
    least: float


def medians(nets: Sequence[Tried]) -> list[Median]:
    """Of each network."""
    found = []
    for net in nets:
        ratios = [d / r for r, d in zip(net.radii, net.distances, strict=True) if r > 0]
        middle = (statistics.median(values) for values in (net.radii, net.distances, ratios))
        found.append(Median(*middle, min(ratios)))
    return found


def gap_table(nets: Sequence[Tried]) -> Markdown:
    """Those as a table."""
    rows = [
        (net.name, f"{m.radius:.3f}", f"{m.distance:.3f}", f"{m.ratio:.2f}", down(m.least, 2))
        for net, m in zip(nets, medians(nets), strict=True)
    ]
    head = ("network", "radius, median", "closest change, median", "ratio, median", "ratio, least")
    return table(head, rows, right=(1, 2, 3, 4))


def gap_words(nets: Sequence[Tried]) -> Markdown:
    """The figure in words."""
    parts = [f"{net.name}: {m.ratio:.1f}" for net, m in zip(nets, medians(nets), strict=True)]
    refuted = sum(net.refuted for net in nets)
    return Markdown(
        f"On {ATTACKED} images each, the median distance of the closest change found, in certified radii, is "
        f"{'; '.join(parts)}. Certificates refuted: {refuted}."
    )
