"""What rounding does to certificates, for the chapter on it: made examples, the shipped network, the study's records."""

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.certify import Certificates, certify_each
from lipcert.data import load_dataset, to_unit
from lipcert.forward import FORMATS
from lipcert.models import load
from lipcert.radius import Radius
from lipcert.records import Record
from lipcert.report.estimates import NETWORK
from lipcert.report.svg import BLUE, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import NOTHING, Markdown, data_name, network_name, percent, result_records, table

CLAIMS = (("nominal", "float64"), ("executed", "float64"), ("executed", "float32"))
_PIXEL, _THRESHOLD = 0.5, 0.45  # the network of the figure: answer 0 while the pixel is above the threshold
_BIASES = tuple(10.0 ** (k / 2) for k in range(37))
_STEPS = 4001  # points looked at between the image and a distance of 0.1


def cancelling_net(bias: float) -> nn.Sequential:
    """One pixel x through x + B and then - B, against the constant 0.45: in real numbers, B does nothing."""
    chain = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    for layer, weight, shift in zip(
        list(chain)[1:], ([[1.0]], [[1.0]], [[1.0], [0.0]]), ([bias], [-bias], [0.0, _THRESHOLD]), strict=True
    ):
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
    for n, label, colour, style in (
        (0, "nominal", INK, "-"), (1, "executed, float64", BLUE, "-"), (2, "executed, float32", VERMILLION, "-"),
    ):  # fmt: skip
        axes.plot(x, [b.certified[n] for b in sweep], style, color=colour, linewidth=2.0, label=f"certified {label}")
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
    return finish("cancelling-bias", figure, f"Certified radii against the size of a bias. {bias_words()}", head, rows)
