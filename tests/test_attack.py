"""Falsifiers against nets whose exact radius is known."""

import torch
from torch import nn

from lipcert.attack import margin_attack, predict
from lipcert.certify import certify
from lipcert.layers import plain_linear


def linear_chain(seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    head = plain_linear(torch.randn(3, 12, generator=generator), torch.randn(3, generator=generator) / 10)
    return nn.Sequential(nn.Flatten(), head).eval()


def test_on_a_linear_net_the_attack_breaks_just_beyond_the_radius_and_never_inside() -> None:
    broken = 0
    for seed in range(40):
        chain = linear_chain(seed)
        generator = torch.Generator().manual_seed(seed + 1000)
        # In the middle of the box, so that clipping to [0, 1] does not shorten the step.
        image = 0.4 + 0.2 * torch.rand(3, 2, 2, dtype=torch.float64, generator=generator)
        c = certify(chain, image[None])
        prediction, rival, radius = int(c.prediction_B[0]), int(c.runner_up_B[0]), float(c.radius_B[0])
        inside = margin_attack(chain, image, prediction, rival, radius * (1 - 1e-9))
        assert predict(chain, inside[None]).item() == prediction
        assert (inside - image).norm().item() <= radius
        if radius * 1.01 < 0.39:  # the ball lies in the box
            outside = margin_attack(chain, image, prediction, rival, radius * 1.0001, steps=50)
            assert predict(chain, outside[None]).item() != prediction
            broken += 1
    assert broken >= 10


def test_the_perturbed_image_stays_in_the_ball_and_in_the_box() -> None:
    chain = linear_chain(1)
    image = torch.rand(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for radius in (0.0, 0.1, 0.7):
        moved = margin_attack(chain, image, 0, 1, radius)
        assert (moved - image).norm().item() <= radius * (1 + 1e-12)
        assert moved.min() >= 0 and moved.max() <= 1
