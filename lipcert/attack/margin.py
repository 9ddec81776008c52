"""The smallest margin of one pair of classes around one image: the picture the tour draws.

Shape letters: B images, K classes, C H W image.
"""

import copy

import torch
from torch import Tensor, nn

from lipcert.attack.target import executed_classes


def margin_attack(
    chain: nn.Module, image_CHW: Tensor, prediction: int, rival: int, radius: float, steps: int = 100
) -> Tensor:
    """The perturbed image, within l2 distance `radius` and [0, 1], with the smallest margin found.

    Projected gradient descent on z_prediction - z_rival in float64, steps of 2.5 radius / steps along the unit
    gradient (arXiv 1706.06083 with the l2 ball). Deterministic.

    Args:
        chain: a plain chain in evaluation mode. image_CHW: float64 pixels in [0, 1]. radius: >= 0.

    Returns:
        (C, H, W) float64.
    """
    chain = copy.deepcopy(chain).double()
    best, best_margin = image_CHW, float("inf")
    moved = image_CHW.clone()
    for _ in range(steps + 1):
        moved.requires_grad_(True)
        logits_K = chain(moved[None])[0]
        margin = logits_K[prediction] - logits_K[rival]
        (gradient,) = torch.autograd.grad(margin, moved)
        with torch.no_grad():
            if margin.item() < best_margin:
                best, best_margin = moved.detach().clone(), margin.item()
            length = gradient.norm()
            if length == 0:
                break
            moved = (moved - 2.5 * radius / steps * gradient / length).clamp(0, 1)
            away = moved - image_CHW
            moved = image_CHW + away * (radius / away.norm().clamp(min=1e-300)).clamp(max=1)
    return best


def predict(chain: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Classes (B,) by the chain in float64, in micro-batches of a fixed size, whatever the number of images."""
    return executed_classes(copy.deepcopy(chain).double(), images_BCHW.double())[0]
