"""Counter-examples in residual blocks: what a certifier misses when it does not look into the branch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.bench.blocks import block
from lipcert.bench.corpus import Entry, along, entry, grey, pair
from lipcert.bench.corpus_layers import HIDDEN, SUBCLASS, UNKNOWN, LoudLinear, LoudSequential, Times
from lipcert.bench.edge import frozen
from lipcert.bench.verdict import Case
from lipcert.layers import Residual

OVERWRITTEN = "an in-place layer overwrites the skip, and x + relu(x) becomes 2 relu(x)"
BROADCAST = "torch adds up shapes that do not fit by broadcasting"


class LoudResidual(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(50 * (x - 0.5) + 0.5)


def _calm() -> Residual:
    """A block whose branch does next to nothing; grey stays grey, nearly."""
    return block(frozen(torch.eye(2) / 1024)).double()


def _levelled(*middle: nn.Module) -> Case:
    """The layers in `pair`, with the head's bias such that class 0 wins a grey image by 1/4."""
    model = pair(*middle).double()
    with torch.no_grad():
        first, second = model(grey().double())[0].tolist()
        model[-1].bias[0] += 0.25 - (first - second)
    return along(model, grey())


def _loud_linear() -> Residual:
    layer = LoudLinear(2, 2)
    layer.weight.data, layer.bias.data = torch.eye(2), torch.zeros(2)
    return block(layer)


def _hooked(before: bool) -> Residual:
    calm = _calm()
    if before:
        calm.branch[0].register_forward_pre_hook(lambda module, inputs: (50 * inputs[0],))
    else:
        calm.branch.register_forward_hook(lambda module, inputs, output: 5000 * output)
    return calm


def _replaced() -> Residual:
    calm = _calm()
    calm.branch.forward = lambda x: 50 * x
    return calm


def _broadcast() -> Case:
    """One feature added to both: I + (4 4; 4 4) has the norm 9, 1 + |(4 4)| is 6.7."""
    start = block(frozen(torch.tensor([[4.0, 4.0]])))
    head = frozen(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([-8.75, 0.0]))
    return along(nn.Sequential(nn.Flatten(), start, head).eval(), grey(), (-1.0, -1.0))


def _in_place(*before: nn.Module) -> Case:
    """At x = -1/4 the block gives 0 and the class is 0; x + relu(x) would be -1/4, where the class is 1."""
    start = frozen(torch.eye(1), torch.tensor([-0.75]))
    head = frozen(torch.tensor([[1.0], [-1.0], [3.0]]), torch.tensor([0.0, -0.0625, -0.125]))
    model = nn.Sequential(nn.Flatten(), start, block(*before, nn.ReLU(inplace=True)), head).eval()
    return Case(model, grey((1, 1, 1)), ((0, torch.full((1, 1, 1), 0.8)),))


def _dropping() -> Case:
    model = pair(block(nn.Dropout(0.5), frozen(4 * torch.eye(2))))
    model[2].branch[0].train()
    return Case(model, grey(), nothing=True)


def _entry(name: str, source: str, layer: Callable[[], nn.Module]) -> Entry:
    return entry("residual blocks", name, source, lambda: _levelled(layer()))


ENTRIES = [
    _entry("a branch that triples", UNKNOWN, lambda: block(Times())),
    _entry("an unknown layer two blocks deep", UNKNOWN, lambda: block(block(Times()))),
    _entry("an unknown layer in a Sequential in a branch", UNKNOWN, lambda: block(nn.Sequential(Times(9.0)))),
    _entry("a branch that is one unknown layer", UNKNOWN, lambda: Residual(Times(9.0))),
    _entry("a branch without layers", UNKNOWN, block),
    _entry("subclass of Linear in a branch", SUBCLASS, _loud_linear),
    _entry("subclass of Sequential as a branch", SUBCLASS, lambda: Residual(LoudSequential(frozen(torch.eye(2))))),
    _entry("subclass of Residual", SUBCLASS, lambda: LoudResidual(nn.Sequential(frozen(torch.eye(2) / 1024)))),
    _entry("input hook on a branch's layer", HIDDEN, lambda: _hooked(before=True)),
    _entry("output hook on a branch", HIDDEN, lambda: _hooked(before=False)),
    _entry("replaced forward of a branch", HIDDEN, _replaced),
    entry("residual blocks", "a branch of one feature for two", BROADCAST, _broadcast),
    entry("residual blocks", "in-place ReLU as a branch", OVERWRITTEN, _in_place),
    entry(
        "residual blocks", "in-place ReLU behind a view", OVERWRITTEN, lambda: _in_place(nn.Identity(), nn.Flatten())
    ),
    entry("residual blocks", "dropout left on in a branch", HIDDEN, _dropping),
]
