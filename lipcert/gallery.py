"""Pictures of certified images for the tour."""

from typing import TYPE_CHECKING

import torch

from lipcert.attack import margin_attack, predict
from lipcert.certify import ABSTAIN
from lipcert.recertify import Recertified, cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gallery(result: Recertified, columns: int = 5) -> "Figure":
    """Every image with prediction, runner-up and certified radius under it."""
    from lipcert.figures import new_figure

    count = len(result.labels_N)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, size=(1.75 * columns, 2.45 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for i, axis in zip(range(count), axes.flat, strict=False):
        _show(axis, result.images_NCHW[i])
        _, label, predicted, rival, radius = result.image_rows()[i]
        right = predicted == label
        axis.set_title(
            f"{predicted}\nthen {rival or 'nothing'}\nr = {radius}", fontsize=9, color=None if right else "#D55E00"
        )
    figure.tight_layout()
    return figure


def attack_strip(result: Recertified, image: int = 0) -> "Figure":
    """One image; the worst found inside its certified radius; and the nearest found that changes the answer."""
    from lipcert.figures import new_figure

    c = result.certificates
    predicted, rival, radius = (int(c.prediction_B[image]), int(c.runner_up_B[image]), float(c.radius_B[image]))
    if predicted == ABSTAIN:
        raise ValueError(f"image={image}: the network abstains there; choose another")
    original = result.images_NCHW[image]
    inside = margin_attack(result.chain, original, predicted, rival, radius)
    factor, broken = 1.0, inside
    while predict(result.chain, broken[None]).item() == predicted and factor < 64:
        factor *= 1.25
        broken = margin_attack(result.chain, original, predicted, rival, radius * factor)
    figure, axes = new_figure(1, 3, size=(7.5, 3.0))
    names = result.names
    for axis, picture, title in zip(
        axes.flat,
        (original, inside, broken),
        (
            f"as it is: {names[predicted]}\ncertified r = {cut(radius)}",
            f"moved by {_distance(inside, original)}: {_answer(result, inside)}\nproven not to change",
            f"moved by {_distance(broken, original)}: {_answer(result, broken)}\nbeyond the certificate",
        ),
        strict=True,
    ):
        axis.set_axis_off()
        _show(axis, picture)
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def _show(axis: "Axes", image_CHW: torch.Tensor) -> None:
    channels = image_CHW.shape[0]
    picture = image_CHW[0] if channels == 1 else image_CHW.permute(1, 2, 0)
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _distance(moved: torch.Tensor, original: torch.Tensor) -> str:
    return f"{(moved - original).norm().item():.4f}"


def _answer(result: Recertified, image_CHW: torch.Tensor) -> str:
    return result.names[predict(result.chain, image_CHW[None]).item()]
