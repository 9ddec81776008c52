"""What lipcert refuses, tried while the page is built: the message, and the way out."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.certify import certify
from lipcert.report.tables import Markdown, table

_GREY = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)


class Residual(nn.Module):
    """x + f(x) for a dense f."""

    def __init__(self, features: int):
        super().__init__()
        self.branch = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def saying(action: Callable[[], object]) -> str:
    """The message that an action is refused with; AssertionError where it is not refused."""
    try:
        action()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("this was not refused")


def _net(*layers: nn.Module, features: int = 512) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10)).eval()


def refusals() -> list[tuple[str, nn.Module, Tensor, str]]:
    """What one might try, as words, model and images; and the way out."""
    conv, plain = nn.Conv2d(1, 8, 3, padding=1), _net(features=64)
    mirrored = nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect")
    hooked = _net(nn.Identity(), features=64)
    hooked[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    soft = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()
    own = nn.Sequential(nn.Flatten(), Residual(64), nn.Linear(64, 10)).eval()
    fuse, pool = "`nn.utils.fuse_conv_bn_eval`", "a stride; average pooling as a convolution"
    scale = "divide by the largest value; put your own normalisation into the first layer"
    return [
        ("`nn.BatchNorm2d`", _net(conv, nn.BatchNorm2d(8)), _GREY, fuse),
        ("`padding_mode='reflect'`", _net(mirrored), _GREY, "zero padding"),
        ("`nn.MaxPool2d`", _net(conv, nn.MaxPool2d(2), features=128), _GREY, pool),
        ("`nn.Softmax` at the end", soft, _GREY, "leave it out: it keeps the order of the logits"),
        ("a module of your own", own, _GREY, "fold a linear branch into one layer; others have no bound yet"),
        ("a forward hook", hooked, _GREY, "remove it"),
        ("training mode", _net(features=64).train(), _GREY, "`model.eval()`"),
        ("pixels up to 255", plain, 255 * _GREY, scale),
        ("images of another size", plain, _GREY[..., :7], "the size it was made for"),
    ]


def refusals_table() -> Markdown:
    """Each of them, tried."""
    rows = []
    for what, model, images_BCHW, way_out in refusals():
        message = saying(functools.partial(certify, model, images_BCHW)).replace("|", "\\|")
        rows.append((what, message, way_out))
    return table(("you give", "lipcert answers", "way out"), rows)
