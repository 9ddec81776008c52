"""A network of two pixels whose exact radius is known, drawn for the chapter "How to test a certifier".

Shape suffixes: N points, P pixels (2), F features, K classes, C H W image.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lipcert.bench.edge import frozen, local_map
from lipcert.bench.exact import executed_class
from lipcert.certify import certify
from lipcert.layers import MinMax
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown

_TURNS, _SHIFTS = (120.0, 10.0), ((0.68, -0.18), (-0.05, 0.15))  # degrees and biases of the two orthogonal layers
_HEAD, _LEVELS = ((-0.9, -0.4), (0.8, -0.6), (0.1, 1.0)), (0.15, -0.05, 0.0)
_POINTS = ((0.3, 0.75), (0.15, 0.4), (0.4, 0.2), (0.75, 0.25), (0.85, 0.65), (0.6, 0.82))
_COLOURS, _MARKERS = (BLUE, VERMILLION, GREEN), ("o", "s", "^")


def razor_net() -> nn.Sequential:
    """Two pixels, three classes: two rotations with MinMax behind each, so that distances are kept piece by piece."""
    layers: list[nn.Module] = [nn.Flatten()]
    for turn, shift in zip(_TURNS, _SHIFTS, strict=True):
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        weight = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        layers += [frozen(weight, torch.tensor(shift, dtype=torch.float64), torch.float64), MinMax()]
    rows, levels = (torch.tensor(values, dtype=torch.float64) for values in (_HEAD, _LEVELS))
    return nn.Sequential(*layers, frozen(rows, levels, torch.float64)).eval().requires_grad_(False)


@dataclass(frozen=True)
class Point:
    """One image of two pixels: its class, certified and exact radius, the exact nearest boundary point.

    broken: the class executed just outside, at (1 + 1e-7) times the exact radius towards it, differs.
    """

    place: tuple[float, float]
    predicted: int
    certified: float
    exact: float
    nearest: tuple[float, float]
    broken: bool


@functools.cache
def razor_points() -> tuple[Point, ...]:
    """The points of the figure, certified (executed, float64) and looked at just outside of their exact radius."""
    net, points = razor_net(), []
    images_NCHW = torch.tensor(_POINTS, dtype=torch.float64).reshape(-1, 1, 1, 2)
    found = certify(net, images_NCHW)
    head = net[-1].weight
    for image_CHW, predicted, certified in zip(
        images_NCHW, found.prediction_B.tolist(), found.radius_B.tolist(), strict=True
    ):
        local_FP, hidden_F = local_map(list(net)[:-1], image_CHW)
        logits_K = head @ hidden_F + net[-1].bias
        slopes_KP = (head[predicted] - head) @ local_FP
        radii_K = ((logits_K[predicted] - logits_K) / slopes_KP.norm(dim=1)).nan_to_num(math.inf)
        exact, rival = (value.item() for value in radii_K.min(0))
        unit_CHW = -(slopes_KP[rival] / slopes_KP[rival].norm()).reshape(image_CHW.shape)
        outside = executed_class(net, image_CHW + exact * (1 + 1e-7) * unit_CHW, torch.float64)
        touch = (image_CHW + exact * unit_CHW).flatten().tolist()
        points.append(
            Point(tuple(image_CHW.flatten().tolist()), predicted, certified, exact, tuple(touch), outside != predicted)
        )
    return tuple(points)


def razor_figure() -> Figure:
    """The plane of two pixels: answers, boundaries, where pairs swap, and certified discs that touch."""
    from matplotlib.patches import Circle

    net = razor_net()
    figure, axes = canvas(WIDTH, 4.9)
    x, y = np.meshgrid(np.linspace(0, 1, 401), np.linspace(0, 1, 401))
    grid_NCHW = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)).reshape(-1, 1, 1, 2)
    region = net(grid_NCHW).argmax(1).reshape(x.shape).numpy()
    for k, colour in enumerate(_COLOURS):
        axes.contourf(x, y, region == k, levels=[0.5, 1.5], colors=[colour], alpha=0.13)
        axes.contour(x, y, region == k, levels=[0.5], colors=[INK], linewidths=1.0)
    for last in (2, 4):
        values_NP = net[:last](grid_NCHW)
        gap = (values_NP[:, 0] - values_NP[:, 1]).reshape(x.shape).numpy()
        axes.contour(x, y, gap, levels=[0], colors=[FAINT], linestyles="dotted", linewidths=1.2)
    for p in razor_points():
        colour, marker = _COLOURS[p.predicted], _MARKERS[p.predicted]
        axes.add_patch(Circle(p.place, p.certified, fill=False, edgecolor=colour, linewidth=1.4))
        axes.plot(*p.place, marker, color=colour, markersize=5)
        axes.plot(*p.nearest, "x", color=INK, markersize=6, markeredgewidth=1.6)
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1), xlabel="first pixel", ylabel="second pixel")
    rows = [
        (*(f"{v:.4f}" for v in p.place), p.predicted, *(f"{v:.17g}" for v in (p.certified, p.exact)), p.broken)
        for p in razor_points()
    ]
    alt = f"The plane of two pixels, answers of a network in colour, {len(rows)} certified discs. {razor_words()}"
    head = ("first", "second", "prediction", "certified_radius", "exact_radius", "broken_just_outside")
    return finish("razor-edge", figure, alt, head, rows)


def razor_words() -> Markdown:
    """The picture in words."""
    points = razor_points()
    short = max(1 - p.certified / p.exact for p in points)
    broken, inside = sum(p.broken for p in points), sum(p.certified < p.exact for p in points)
    return Markdown(
        f"Every disc touches a boundary: certified radii fall short of the exact ones by at most {short:.1e} of them. "
        f"They are below the exact ones at {inside} of {len(points)} points, and at {broken} of {len(points)} the "
        "network, run at 1 + 10⁻⁷ times the exact radius (the cross), gives another answer."
    )
