"""Small networks that compute something else than they mean, for the chapter on rounding; made while it is built.

Shape suffixes: S points looked at, C channels, H height, W width.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from lipcert.certify import certify_each
from lipcert.forward import FORMATS
from lipcert.report.enclosures import scientific
from lipcert.report.svg import BLUE, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

CLAIMS = (("nominal", "float64"), ("executed", "float64"), ("executed", "float32"))
_PIXEL, _THRESHOLD = 0.5, 0.45  # the network of the figure: answer 0 while the pixel is above the threshold
_BIASES = tuple(10.0 ** (k / 2) for k in range(37))
_STEPS = 4001  # points looked at between the image and a distance of 0.1


def cancelling_net(bias: float) -> nn.Sequential:
    """One pixel x through x + B and then - B, against the constant 0.45: in real numbers, B does nothing."""
    chain = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    weights, biases = ([[1.0]], [[1.0]], [[1.0], [0.0]]), ([bias], [-bias], [0.0, _THRESHOLD])
    for layer, weight, shift in zip(list(chain)[1:], weights, biases, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(shift)
    return chain


@torch.no_grad()
def nearest_change(chain: nn.Sequential, arithmetic: str) -> float:
    """Distance to the nearest of 4001 darker or brighter pixels at which the net, run so, does not answer 0."""
    dtype = FORMATS[arithmetic].dtype
    distance_S = torch.linspace(0, 0.1, _STEPS, dtype=torch.float64)
    found = []
    for sign in (-1, 1):
        pixels_SCHW = (_PIXEL + sign * distance_S).to(dtype)[:, None, None, None]
        changed_S = copy.deepcopy(chain).to(dtype)(pixels_SCHW).argmax(1) != 0
        found += [float(distance_S[changed_S.int().argmax()])] if changed_S.any() else []
    return min(found, default=float("nan"))


@dataclass(frozen=True)
class Bias:
    """One bias: radius certified for answer 0 by each claim (0: none), distance of the nearest change as run."""

    bias: float
    certified: tuple[float, ...]
    change: dict[str, float]


@functools.cache
def bias_sweep() -> tuple[Bias, ...]:
    """The network of one pixel with biases from 1 to 10^18."""
    image = torch.full((1, 1, 1, 1), _PIXEL, dtype=torch.float64)
    sweep = []
    for bias in _BIASES:
        chain = cancelling_net(bias)
        claims = certify_each(chain, image, CLAIMS)
        radii = tuple(float(c.radius_B[0]) if int(c.prediction_B[0]) == 0 else 0.0 for c in claims)
        sweep.append(Bias(bias, radii, {name: nearest_change(chain, name) for name in FORMATS}))
    return tuple(sweep)


def bias_figure() -> Figure:
    """Radii by guarantee, and where the answer really changes, against the size of a bias that cancels."""
    sweep = bias_sweep()
    figure, axes = canvas(WIDTH, 3.9)
    x = [b.bias for b in sweep]
    axes.plot(x, [b.certified[0] for b in sweep], color=INK, linewidth=5, alpha=0.3, label="certified nominal")
    for n, colour, style in ((1, BLUE, "-"), (2, VERMILLION, "--")):
        label = f"certified {CLAIMS[n][0]}, {CLAIMS[n][1]}"
        axes.plot(x, [b.certified[n] for b in sweep], style, color=colour, linewidth=2.0, label=label)
    for arithmetic, colour, marker in (("float64", BLUE, "s"), ("float32", VERMILLION, "o")):
        y = [b.change[arithmetic] for b in sweep]
        hollow = {"markerfacecolor": "none", "markeredgecolor": colour, "linestyle": "none", "markersize": 5.5}
        axes.plot(x, y, marker, **hollow, label=f"answer changes, run in {arithmetic}", clip_on=False)
    axes.set(xscale="log", xlim=(1, x[-1]), ylim=(0, 0.1), xlabel="size of the bias that cancels")
    axes.set_ylabel("distance from the image")
    axes.set_xticks([10.0**k for k in range(0, 19, 3)])
    axes.minorticks_off()
    axes.grid()
    axes.legend(loc="upper left", labelcolor=INK, fontsize=9.5, frameon=False)
    rows = [(f"{b.bias:.6g}", *(f"{v:.12g}" for v in (*b.certified, *b.change.values()))) for b in sweep]
    head = ("bias", "nominal", "executed_float64", "executed_float32", *(f"change_{name}" for name in FORMATS))
    alt = "Certified radii against the size of a bias. " + bias_words().replace("*", "")
    return finish("cancelling-bias", figure, alt, head, rows)


def bias_words() -> Markdown:
    """The figure in words, with the case of a million spelt out."""
    sweep = bias_sweep()
    million = next(b for b in sweep if b.bias == 1e6)
    nominal, double, single = million.certified
    broken = sum(min(b.change.values()) < b.certified[0] for b in sweep)
    kept = sum(b.certified[n] > b.change[CLAIMS[n][1]] for b in sweep for n in (1, 2))
    verdict = "certifies nothing" if single == 0 else f"certifies {single:.6f}"
    reach = "never reaches" if kept == 0 else f"reaches {kept} times"
    return Markdown(
        f"At a bias of one million *nominal* states a radius of {_cut(nominal)}, but run in float32 the network "
        f"changes its answer at {_cut(million.change['float32'])}. *Executed* in float32 {verdict}; in float64 it "
        f"certifies {_cut(double, 9)}. In {broken} of the {len(sweep)} networks the nominal radius is overstated for "
        f"float32 or float64; a radius called *executed* {reach} past a change of the answer."
    )


def _cut(value: float, digits: int = 4) -> str:
    return f"{int(value * 10**digits) / 10**digits:.{digits}f}"


_ORDERS: dict[str, Callable] = {
    "(0.1 + 0.2) − 0.3": lambda a, b, c: (a + b) + c,
    "0.1 + (0.2 − 0.3)": lambda a, b, c: a + (b + c),
    "(0.1 − 0.3) + 0.2": lambda a, b, c: (a + c) + b,
}
_NUMBERS = (0.1, 0.2, -0.3)


def order_table() -> Markdown:
    """0.1 + 0.2 - 0.3 in every order and both arithmetics, and exactly, on the numbers as they are stored."""
    rows = []
    for name, add in _ORDERS.items():
        rows.append((name, *(scientific(float(add(*map(kind, _NUMBERS)))) for kind in (np.float64, np.float32))))
    exact = (sum(Fraction(float(kind(x))) for x in _NUMBERS) for kind in (np.float64, np.float32))
    rows.append(("the exact sum of the stored numbers", *(scientific(float(value)) for value in exact)))
    return table(("order", "float64", "float32"), rows, right=(1, 2))


def order_words() -> Markdown:
    """What the certifier says of a classifier whose two logits are that sum and 0."""
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([_NUMBERS, (0.0, 0.0, 0.0)])
    image = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    found = []
    for certificates, (guarantee, arithmetic) in zip(
        certify_each(nn.Sequential(nn.Flatten(), head).eval(), image, CLAIMS), CLAIMS, strict=True
    ):
        radius = float(certificates.radius_B[0])
        answer = (
            f"answers {int(certificates.prediction_B[0])} with radius {scientific(radius)}" if radius else "abstains"
        )
        found.append(f"*{guarantee}*{'' if guarantee == 'nominal' else f' in {arithmetic}'} {answer}")
    return Markdown(
        "Let the sum be the first logit of a classifier with float32 weights, and 0 the second, at an image of three "
        f"white pixels: {'; '.join(found)}."
    )
