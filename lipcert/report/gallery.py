"""Pictures of certified images for the tour."""

from typing import TYPE_CHECKING

import torch

from lipcert.attack import margin_attack, predict
from lipcert.certify import ABSTAIN
from lipcert.recertify import Recertified, cut
from lipcert.report.figures import INK, VERMILLION, Figure, canvas, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FARTHEST = 64  # certified radii; how far `attack_strip` looks for another answer


def gallery(result: Recertified, columns: int = 5) -> Figure:
    """Every image with prediction, runner-up and certified radius above it."""
    rows = result.image_rows()
    lines = -(-len(rows) // columns)
    figure, first = canvas(1.5 * columns, 2.2 * lines)
    first.remove()
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for n, (axis, (_, label, predicted, rival, radius)) in enumerate(zip(axes.flat, rows, strict=False)):
        text = f"{predicted}\nthen {rival or 'nothing'}\nr = {radius}"
        _show(axis, result.image_CHW(n), text, INK if predicted == label else VERMILLION)
    words = "; ".join(f"image {n}: {p}, certified radius {r}" for n, _, p, _, r in rows)
    head = ("image", "label", "prediction", "runner-up", "certified l2 radius")
    return finish("tour", figure, f"{len(rows)} test images. {words}.", head, rows)


def attack_strip(result: Recertified, image: int = 0) -> Figure:
    """One image; the worst found within its certified radius; the nearest found that changes the answer.

    Raises:
        ValueError: the network abstains at that image.
    """
    certificates = result.certificates
    predicted, rival = int(certificates.prediction_B[image]), int(certificates.runner_up_B[image])
    radius = float(certificates.radius_B[image])
    if predicted == ABSTAIN:
        raise ValueError(f"image={image}: the network abstains there; choose another")
    original = result.image_CHW(image)
    inside = margin_attack(result.chain, original, predicted, rival, radius)
    factor, beyond = 1.0, inside
    while predict(result.chain, beyond[None]).item() == predicted and factor < _FARTHEST:
        factor *= 1.1
        beyond = margin_attack(result.chain, original, predicted, rival, radius * factor)
    pictures = (
        ("as it is", original, f"certified r = {cut(radius)}"),
        ("inside the radius", inside, "proven not to change"),
        ("farther out", beyond, "beyond the certificate"),
    )
    figure, first = canvas(6.6, 3.1)
    first.remove()
    rows = []
    for axis, (where, picture, remark) in zip(figure.subplots(1, 3), pictures, strict=True):
        axis.set_axis_off()
        answer = result.names[predict(result.chain, picture[None]).item()]
        distance = (picture - original).norm().item()
        _show(axis, picture, f"{where}: {answer}\nmoved by {cut(distance)}\n{remark}", INK)
        rows.append((where, answer, f"{distance:.6f}"))
    words = "; ".join(f"{where}, moved by {distance}: {answer}" for where, answer, distance in rows)
    return finish("tour-attack", figure, f"One image three times. {words}.", ("where", "answer", "l2 distance"), rows)


def _show(axis: "Axes", image_CHW: torch.Tensor, title: str, colour: str) -> None:
    picture = image_CHW[0] if image_CHW.shape[0] == 1 else image_CHW.permute(1, 2, 0)
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9, color=colour)
