"""A certified network small enough to see: two inputs, three classes, drawn with the balls it proves.

numpy only. Norms are numpy's singular values, which is fine for a picture and is no proof; `lipcert.bounds` proves.
Shape letters: N points, D inputs (2), H hidden (6), K classes (3).
"""

from dataclasses import dataclass

import numpy as np

from lipcert.report.svg import BLUE, GREEN, INK, VERMILLION, Figure, canvas, finish
from lipcert.report.tables import Markdown, percent

_HIDDEN, _CLASSES, _RADIUS = 6, 3, 0.2
_COLOURS, _MARKERS = (BLUE, VERMILLION, GREEN), ("o", "s", "^")


@dataclass(frozen=True)
class PlaneNet:
    """Dense, MinMax, dense, MinMax, dense: x in R^2 to three logits, with its training points."""

    parameters: np.ndarray
    points_ND: np.ndarray
    labels_N: np.ndarray

    def logits(self, points_ND: np.ndarray) -> np.ndarray:
        """(N, K)."""
        first_HD, b1_H, second_HH, b2_H, head_KH, b3_K = _unpack(self.parameters)
        hidden_NH = _minmax(_minmax(points_ND @ first_HD.T + b1_H) @ second_HH.T + b2_H)
        return hidden_NH @ head_KH.T + b3_K

    def margin_lipschitz(self) -> np.ndarray:
        """K_ij = |A_1| |A_2| |w_i - w_j|, (K, K)."""
        first_HD, _, second_HH, _, head_KH, _ = _unpack(self.parameters)
        backbone = np.linalg.norm(first_HD, 2) * np.linalg.norm(second_HH, 2)
        return backbone * np.linalg.norm(head_KH[:, None] - head_KH[None], axis=2)

    def radii(self, points_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and certified radius of each point, (N,) each."""
        logits_NK = self.logits(points_ND)
        predicted_N = logits_NK.argmax(1)
        margin_NK = logits_NK.max(1, keepdims=True) - logits_NK
        own_NK = np.eye(_CLASSES, dtype=bool)[predicted_N]
        lipschitz_NK = np.where(own_NK, 1.0, self.margin_lipschitz()[predicted_N])
        return predicted_N, np.where(own_NK, np.inf, margin_NK / lipschitz_NK).min(1)


def _minmax(x_NH: np.ndarray) -> np.ndarray:
    first, second = np.split(x_NH, 2, axis=1)
    return np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=1)


def _unpack(parameters: np.ndarray) -> list[np.ndarray]:
    shapes = ((_HIDDEN, 2), (_HIDDEN,), (_HIDDEN, _HIDDEN), (_HIDDEN,), (_CLASSES, _HIDDEN), (_CLASSES,))
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(parameters, ends[:-1]), shapes, strict=True)]


def train_plane_net(steps: int = 120, seed: int = 3) -> PlaneNet:
    """Three curled arms of points and a net trained on them with fixed-radius EMMA; gradients by differences."""
    rng = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(_CLASSES), 10)
    length_N = np.tile(np.linspace(0.5, 2.3, 10), _CLASSES)
    angle_N = 2 * np.pi * labels_N / _CLASSES + 1.25 * length_N + rng.normal(0, 0.22, len(labels_N))
    points_ND = np.stack([length_N * np.cos(angle_N), length_N * np.sin(angle_N)], axis=1)
    parameters = rng.normal(0, 0.7, 3 * _HIDDEN + _HIDDEN * (_HIDDEN + 1) + _CLASSES * (_HIDDEN + 1))
    moment, square = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, steps + 1):
        gradient = _gradient(parameters, points_ND, labels_N)
        moment, square = 0.9 * moment + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        scale = np.sqrt(square / (1 - 0.99**step)) + 1e-8
        parameters = parameters - 0.1 * (1 - step / steps) * moment / (1 - 0.9**step) / scale
    return PlaneNet(parameters, points_ND, labels_N)


def _loss(parameters: np.ndarray, points_ND: np.ndarray, labels_N: np.ndarray) -> float:
    net = PlaneNet(parameters, points_ND, labels_N)
    logits_NK = net.logits(points_ND) + _RADIUS * net.margin_lipschitz()[labels_N]
    gap_NK = logits_NK - logits_NK[np.arange(len(labels_N)), labels_N][:, None]
    return float(np.log(np.exp(np.minimum(gap_NK, 50)).sum(1)).mean())


def _gradient(parameters: np.ndarray, points_ND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    nudges = 1e-5 * np.eye(len(parameters))
    up = [_loss(parameters + nudge, points_ND, labels_N) for nudge in nudges]
    down = [_loss(parameters - nudge, points_ND, labels_N) for nudge in nudges]
    return (np.array(up) - np.array(down)) / 2e-5


def plane_figure(net: PlaneNet) -> Figure:
    """Decision regions, points and their certified balls."""
    figure, axes = canvas(5.2, 4.7)
    x, y = np.meshgrid(np.linspace(-2.7, 2.7, 241), np.linspace(-2.7, 2.7, 241))
    region = net.logits(np.stack([x.ravel(), y.ravel()], 1)).argmax(1).reshape(x.shape)
    for k, colour in enumerate(_COLOURS):
        axes.contourf(x, y, region == k, levels=[0.5, 1.5], colors=[colour], alpha=0.13)
        axes.contour(x, y, region == k, levels=[0.5], colors=[INK], linewidths=1.0)
    predicted_N, radius_N = net.radii(net.points_ND)
    from matplotlib.patches import Circle

    for point, predicted, radius, label in zip(net.points_ND, predicted_N, radius_N, net.labels_N, strict=True):
        colour = _COLOURS[predicted]
        axes.add_patch(Circle(point, radius, fill=False, edgecolor=colour, linewidth=1.1))
        axes.plot(*point, _MARKERS[label], color=colour, markersize=4.5)
    axes.set(aspect="equal", xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xlabel="first input", ylabel="second input")
    rows = [
        (f"{a:.5f}", f"{b:.5f}", label, predicted, f"{radius:.5f}")
        for (a, b), label, predicted, radius in zip(net.points_ND, net.labels_N, predicted_N, radius_N, strict=True)
    ]
    alt = (
        f"The plane cut into three regions by a small network, {len(rows)} points in it, and around each point the "
        "disc in which its class is certified not to change. No disc crosses a boundary."
    )
    return finish("plane", figure, alt, ("x", "y", "label", "prediction", "certified_radius"), rows)


def changed_on_circles(net: PlaneNet, directions: int = 720) -> int:
    """How many of `directions` points on every ball's rim have another prediction than its centre."""
    predicted_N, radius_N = net.radii(net.points_ND)
    angle = 2 * np.pi * np.arange(directions) / directions
    rim_AD = np.stack([np.cos(angle), np.sin(angle)], 1)
    around = net.points_ND[:, None] + radius_N[:, None, None] * (1 - 1e-9) * rim_AD
    found = net.logits(around.reshape(-1, 2)).argmax(1).reshape(len(predicted_N), directions)
    return int((found != predicted_N[:, None]).sum())


def distance_to_boundary(net: PlaneNet, directions: int = 360) -> np.ndarray:
    """Distance from each point to the nearest change of class, (N,), searched along rays in steps of 0.005."""
    predicted_N, _ = net.radii(net.points_ND)
    angle = 2 * np.pi * np.arange(directions) / directions
    rim_AD = np.stack([np.cos(angle), np.sin(angle)], 1)
    steps = np.arange(0.005, 4, 0.005)
    nearest = np.empty(len(predicted_N))
    for n, (point, predicted) in enumerate(zip(net.points_ND, predicted_N, strict=True)):
        along = point + steps[:, None, None] * rim_AD[None]
        other = (net.logits(along.reshape(-1, 2)).argmax(1) != predicted).reshape(len(steps), directions).any(1)
        nearest[n] = steps[other.argmax()] if other.any() else np.inf
    return nearest


def plane_words(net: PlaneNet) -> Markdown:
    """The picture in words."""
    predicted_N, radius_N = net.radii(net.points_ND)
    right_N = predicted_N == net.labels_N
    share = np.median(radius_N[right_N] / distance_to_boundary(net)[right_N])
    at = 0.3
    robust = int((right_N & (radius_N >= at)).sum())
    total = len(right_N)
    return Markdown(
        f"{right_N.sum()} of {total} points are classified correctly, and {robust} of {total} are also certified at "
        f"radius {at}: clean accuracy {percent(right_N.mean())}, VRA {percent(robust / total)}. The median certified "
        f"radius is {100 * share:.0f} % of the distance to the boundary. The rest is the price of one constant for "
        "the whole plane."
    )
