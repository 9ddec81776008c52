"""What the chapter on l_inf-distance nets shows without any run: the neuron, and what a finite p would certify.

Computed while the page is built, with the kernels of the package itself.

Shape letters: B points, P pairs, I inputs, O outputs, K classes.
"""

import contextlib
import functools
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.config import TrainConfig, load_config
from lipcert.linf import kernels
from lipcert.linf.layers import Distance, Negate
from lipcert.paths import ROOT
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The picture: image, radius, and the weights of a linear and of a distance neuron in the unit square.
IMAGE, RADIUS = (0.7, 0.6), 0.12
LINEAR, CENTRE = (0.6, 0.4), (0.3, 0.45)
_PANEL = 1.2  # from one panel to the next

SCALES = (0.1, 1.0, 10.0, 100.0)
_SIZES = (16, 32, 32, 10)
_PAIRS = 2000

WIDTHS = (784, 3072, 5120)
_FULL = "linf-v2-cifar10-8.yaml"  # the preset whose layers the figure multiplies
_FIRST, _LAST = 8, 1000  # p at the start and at the end of the published schedules

GREY = 0.4  # of the picture that a finite p certifies too far: 102 of 255
EXPONENTS, LAYERS = (8.0, 64.0, 1000.0, math.inf), (1, 6)
_PIXELS = 784
_BEYOND = 2.0**-30  # how far beyond middle grey the other answer is looked for


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a compiler the kernels say on stderr that they are slow; a page must not fail on that."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


# --- the neuron ------------------------------------------------------------------------------------------------------


@functools.cache
def movements() -> tuple[float, float]:
    """How far the linear and the distance neuron move at most in the box around the image: over a grid in it."""
    steps = torch.linspace(-RADIUS, RADIUS, 41, dtype=torch.float64)
    x_2, moved_B2 = torch.tensor(IMAGE, dtype=torch.float64), torch.cartesian_prod(steps, steps)
    linear_12, centre_12 = (torch.tensor([w], dtype=torch.float64) for w in (LINEAR, CENTRE))
    with _quiet():
        near, far = (kernels.distance(points, centre_12, math.inf) for points in (x_2 + moved_B2, x_2[None]))
    return float((moved_B2 @ linear_12.T).abs().max()), float((near - far).abs().max())


def neuron_figure() -> Figure:
    """Level lines of a linear and of a distance neuron, and what a box of inputs meets of them."""
    figure, axes = canvas(WIDTH, 3.1)
    value = sum(w * x for w, x in zip(LINEAR, IMAGE, strict=True))
    reach = max(abs(x - w) for x, w in zip(IMAGE, CENTRE, strict=True))
    panels = ((0.0, "linear: level lines", value, _line), (_PANEL, "distance: level squares", reach, _square))
    for left, title, level, draw in panels:
        axes.text(left + 0.5, 1.03, title, ha="center", va="bottom", color=INK)
        frame = axes.fill([left, left + 1, left + 1, left], [0, 0, 1, 1], facecolor="none", edgecolor=FAINT)[0]
        for tenth in range(1, 10):
            draw(axes, left, tenth / 10, frame, color=FAINT, linewidth=0.9)
        for y, colour, style in ((level - RADIUS, BLUE, "--"), (level, INK, "-"), (level + RADIUS, VERMILLION, "-.")):
            draw(axes, left, y, frame, color=colour, linestyle=style, linewidth=1.8)
        corners = [(left + IMAGE[0] + a * RADIUS, IMAGE[1] + b * RADIUS) for a, b in _CORNERS]
        axes.fill(*zip(*corners, strict=True), facecolor=GREEN, alpha=0.35, edgecolor=GREEN, linewidth=1.4)
        axes.plot(left + IMAGE[0], IMAGE[1], "o", color=INK, markersize=4)
    axes.plot(_PANEL + CENTRE[0], CENTRE[1], "+", color=INK, markersize=9)
    axes.annotate("w", (_PANEL + CENTRE[0], CENTRE[1]), (5, -11), textcoords="offset points", color=INK)
    handles = ((INK, "-", "value at x"), (BLUE, "--", "r less"), (VERMILLION, "-.", "r more"))
    for colour, style, label in handles:
        axes.plot([], [], style, color=colour, label=label)
    axes.plot([], [], "s", color=GREEN, alpha=0.6, label="inputs within r of x")
    axes.set(aspect="equal", xlim=(-0.02, _PANEL + 1.02), ylim=(-0.02, 1.16))
    axes.axis("off")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9.5, labelcolor=INK, columnspacing=1.2, frameon=False)
    rows = [
        ("linear", *LINEAR, *IMAGE, RADIUS, f"{value:.9g}", f"{movements()[0]:.9g}"),
        ("distance", *CENTRE, *IMAGE, RADIUS, f"{reach:.9g}", f"{movements()[1]:.9g}"),
    ]
    head = ("neuron", "w_1", "w_2", "x_1", "x_2", "radius", "value", "largest_change")
    alt = f"Two neurons of two inputs, their level sets, and a box of inputs around x. {neuron_words()}"
    return finish("linf-neurons", figure, alt, head, rows)


_CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def _line(axes: "Axes", left: float, level: float, frame: object, **style) -> None:
    """Where the linear neuron has this value."""
    x = np.array([-1.0, 2.0])
    axes.plot(left + x, (level - LINEAR[0] * x) / LINEAR[1], **style)[0].set_clip_path(frame)


def _square(axes: "Axes", left: float, level: float, frame: object, **style) -> None:
    """Where the distance neuron has this value."""
    ends = [(left + CENTRE[0] + a * level, CENTRE[1] + b * level) for a, b in (*_CORNERS, _CORNERS[0])]
    axes.plot(*zip(*ends, strict=True), **style)[0].set_clip_path(frame)


def neuron_words() -> Markdown:
    """The picture in words."""
    linear, distance = movements()
    return Markdown(
        f"Left, a linear neuron whose weights have sizes that add up to {sum(map(abs, LINEAR)):g}; right, the distance "
        f"from a point w. In the box of radius {RADIUS:g} the first moves by up to {linear:.3f}, the second by up to "
        f"{distance:.3f}: the box touches the level sets of r less and r more and crosses neither. Twice the weights "
        "would make the first move twice as far. The second moves as far wherever w lies."
    )


@dataclass(frozen=True)
class Rate:
    """Nets with weights of one size: the largest rate |f(x) - f(x')| / |x - x'| found, in l_inf."""

    scale: float
    distances: float
    linear: float


@functools.cache
def rates() -> tuple[Rate, ...]:
    """A distance net and a ReLU net of the same sizes with normal weights times each scale, over near and far pairs."""
    draw = torch.Generator().manual_seed(0)
    x_PI = torch.rand(_PAIRS, _SIZES[0], dtype=torch.float64, generator=draw)
    corner_PI = torch.rand(x_PI.shape, dtype=torch.float64, generator=draw).round() * 2 - 1
    near_PI = torch.cat([x_PI[: _PAIRS // 2] + 0.01 * corner_PI[: _PAIRS // 2], x_PI.flip(0)[_PAIRS // 2 :]])
    found = []
    for scale in SCALES:
        nets = [], []
        for inputs, outputs in itertools.pairwise(_SIZES):
            weight_OI = scale * torch.randn(outputs, inputs, generator=draw)
            layers = Distance(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
            for net, layer in zip(nets, layers, strict=True):
                layer.weight = nn.Parameter(weight_OI, requires_grad=False)
                net.append(layer)
        distances, linear = nn.Sequential(*nets[0], Negate()), nn.Sequential(nets[1][0], *_relu(nets[1][1:]))
        found.append(Rate(scale, *(_rate(net.double(), x_PI, near_PI) for net in (distances, linear))))
    return tuple(found)


def _relu(layers: list[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        yield nn.ReLU()
        yield layer


@torch.no_grad()
def _rate(net: nn.Sequential, first_PI: Tensor, second_PI: Tensor) -> float:
    with _quiet():
        moved_P = (net(first_PI) - net(second_PI)).abs().amax(1)
    return float((moved_P / (first_PI - second_PI).abs().amax(1)).max())


def rates_table() -> Markdown:
    """Largest rate found, by size of the weights."""
    rows = [(f"{r.scale:g}", f"{r.distances:.3f}", _rounded(r.linear)) for r in rates()]
    return table(("size of the weights", "distance net moves by up to", "ReLU net moves by up to"), rows, (0, 1, 2))


def _rounded(rate: float) -> str:
    return f"{rate:.3f}" if rate < 10 else f"{rate:,.0f}"


def rates_words() -> Markdown:
    """How the table was made."""
    sizes = " to ".join(map(str, _SIZES))
    return Markdown(
        f"Three layers, {sizes}, the same random weights in both networks; the largest of |f(x) − f(x')| / |x − x'|, "
        f"largest coordinates both, over {_PAIRS:,} pairs of points near and far. The distance nets reach their limit "
        f"of 1 and never pass it; the ReLU nets move up to {_rounded(max(r.linear for r in rates()))} times as far as "
        "their input."
    )


@functools.cache
def unclipped_gap() -> float:
    """Largest difference between the interval of a random layer over an unclipped box and value plus and minus r."""
    draw = torch.Generator().manual_seed(1)
    x_BI, weight_OI = (torch.rand(n, 64, dtype=torch.float64, generator=draw) for n in (50, 100))
    with _quiet():
        y_BO = kernels.distance(x_BI, weight_OI, math.inf)
        lower_BO, upper_BO = kernels.interval(x_BI - RADIUS, x_BI + RADIUS, weight_OI)
    return float(torch.maximum((upper_BO - y_BO - RADIUS).abs(), (y_BO - RADIUS - lower_BO).abs()).max())


# --- why p must be infinite ------------------------------------------------------------------------------------------


def factor(inputs: int, p: float) -> float:
    """n^(1/p): how far an l_p distance of n inputs moves when each input moves by one; 1 at p = inf."""
    return inputs ** (1 / p)


@functools.cache
def full_net() -> TrainConfig:
    """The published network whose layers the figure multiplies."""
    return load_config(ROOT / "notebooks" / "params" / "published" / _FULL)


def product(p: float) -> float:
    """The factors of all layers of that network."""
    config = full_net()
    return factor(WIDTHS[1], p) * factor(config.width, p) ** (config.depth - 1)


def growth_figure() -> Figure:
    """Factor of one layer and of the whole network against p."""
    figure, axes = canvas(WIDTH, 3.5)
    grid = [_FIRST * (_LAST / _FIRST) ** (k / 60) for k in range(61)]
    rows, config = [], full_net()
    styles = ((BLUE, ":"), (GREEN, "-."), (PURPLE, "--"))
    for inputs, (colour, dash) in zip(WIDTHS, styles, strict=True):
        y = [factor(inputs, p) for p in grid]
        axes.plot(grid, y, dash, color=colour, linewidth=1.8, label=f"one layer of {inputs:,} inputs")
        rows += [(f"one layer of {inputs} inputs", f"{p:.6g}", f"{v:.9g}") for p, v in zip(grid, y, strict=True)]
    y = [product(p) for p in grid]
    axes.plot(grid, y, "-", color=VERMILLION, linewidth=2.2, label=f"all {config.depth} layers of the CIFAR-10 network")
    rows += [(f"all {config.depth} layers", f"{p:.6g}", f"{v:.9g}") for p, v in zip(grid, y, strict=True)]
    axes.set(xscale="log", yscale="log", xlabel="p", ylabel="factor on the ℓ∞ distance", xlim=(_FIRST, _LAST))
    axes.set_xticks([8, 16, 32, 64, 125, 250, 500, 1000], ["8", "16", "32", "64", "125", "250", "500", "1000"])
    axes.set_yticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
    axes.minorticks_off()
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    alt = f"How far l_p distances can move per unit of l_inf distance, against p. {growth_words()}"
    return finish("linf-exponent", figure, alt, ("layers", "p", "factor"), rows)


def growth_words() -> Markdown:
    """The figure in words."""
    config = full_net()
    layers = f"the {config.depth} layers of the published CIFAR-10 network"
    needed = math.log(product(1.0)) / math.log(1.01)
    return Markdown(
        f"With {config.width:,} inputs a layer can stretch distances {factor(config.width, _FIRST):.2f} times at "
        f"p = {_FIRST} and {factor(config.width, _LAST):.4f} times at p = {_LAST:,}; {layers} {product(_FIRST):.0f} "
        f"and {product(_LAST):.3f} times. To stay below 1.01, p would have to exceed {needed:,.0f}."
    )


@dataclass(frozen=True)
class Claim:
    """A uniformly grey picture, a net that tells dark from bright, and half the margin taken for a radius."""

    p: float
    layers: int
    claimed: float
    changed: float

    @property
    def false(self) -> bool:
        """Whether the other answer was met within the radius."""
        return self.changed < self.claimed


@functools.cache
def claims() -> tuple[Claim, ...]:
    """Every p and depth: half the margin at the grey picture, and the distance at which the answer was seen to change.

    Hidden weights are 0; the classes are the feature vectors of a black and of a white picture.
    """
    return tuple(_claim(p, layers) for p in EXPONENTS for layers in LAYERS)


def _claim(p: float, layers: int) -> Claim:
    levels = torch.tensor([GREY, 0.5 + _BEYOND, 0.0, 1.0], dtype=torch.float64)
    x_BI = levels[:, None].expand(-1, _PIXELS)
    with _quiet():
        for _ in range(layers - 1):
            x_BI = kernels.distance(x_BI, torch.zeros(_PIXELS, _PIXELS, dtype=torch.float64), p)
        logits_BK = -kernels.distance(x_BI, x_BI[2:], p)
    (dark, bright), beyond_K = logits_BK[0].tolist(), logits_BK[1]
    changed = float(levels[1] - levels[0]) if beyond_K[1] > beyond_K[0] else math.inf
    return Claim(p, layers, (dark - bright) / 2, changed)


def claims_table() -> Markdown:
    """What half the margin claims, and what happened."""
    rows = [
        (
            "∞" if math.isinf(c.p) else f"{c.p:g}", c.layers, f"{factor(_PIXELS, c.p) ** c.layers:.4g}",
            f"{c.claimed:.4g}", f"{c.changed:.4g}", "**false**" if c.false else "holds",
        )
        for c in claims()
    ]  # fmt: skip
    head = ("p", "layers", "factor", "half the margin", "answer changes at", "as a radius")
    return table(head, rows, right=range(5))


def claims_words() -> Markdown:
    """The table in words."""
    finite = [c for c in claims() if math.isfinite(c.p)]
    worst = max(finite, key=lambda c: c.claimed)
    mild = min(finite, key=lambda c: c.claimed)
    return Markdown(
        f"A picture of {_PIXELS} pixels, all of them {GREY:g}, and networks that call it dark; beyond middle grey they "
        f"call it bright. At finite p half the margin is a false radius in {sum(c.false for c in finite)} of "
        f"{len(finite)} cases: from {mild.claimed:.5f} (p = {mild.p:,.0f}, {_layers(mild)}) to {worst.claimed:.1f} "
        f"(p = {worst.p:g}, {_layers(worst)}), where pixels of {0.5 + _BEYOND:.3f}, at a distance of "
        f"{worst.changed:.3f}, change the answer. At p = ∞ it is the distance itself. So the factors are attained, and "
        "no certificate may leave them out."
    )


def _layers(claim: Claim) -> str:
    return "one layer" if claim.layers == 1 else f"{claim.layers} layers"
