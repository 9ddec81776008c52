"""Counter-examples in layers: maps steeper than a certifier takes them to be, and computation that it misses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.bench.corpus import Entry, along, entry, grey, pair
from lipcert.bench.edge import convolution, frozen
from lipcert.bench.verdict import Case
from lipcert.layers import MinMax

UNKNOWN = "gloro strategies.for_layer: an unknown layer counts as 1 after a warning"
PADDING = "zero padding assumed"
SUBCLASS = "known by isinstance or by name, so a subclass passes for its parent"
HIDDEN = "what a module computes may be replaced without its type or weights showing it"


class Times(nn.Module):
    """x -> factor (x - 1/2) + 1/2: grey stays grey."""

    def __init__(self, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (x - 0.5) + 0.5


class Residual(nn.Module):
    """x + f(x): slopes add up."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Normalise(nn.Module):
    """(x - 1/2) / sigma, as data sets are normalised: radii shrink by sigma."""

    def __init__(self, sigma: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("sigma", torch.tensor(sigma))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / self.sigma


class LoudLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 50 * (super().forward(x) - 0.5) + 0.5


class LoudDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return 50 * (x - 0.5) + 0.5


class StaleLinear(nn.Linear):
    """Evaluates with a stored copy of its weights, which need not be its weights."""

    def __init__(self, factor: float) -> None:
        super().__init__(2, 2, bias=False)
        self.weight.data = torch.eye(2)
        self.register_buffer("eval_weight", factor * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.training else self.eval_weight)


class WrongPairs(MinMax):
    """The larger value of each pair twice: slope sqrt(2)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second)] * 2, dim=1)


class HouseHolder(nn.Module):
    """x -> x - 2 v (v . x) on one side of v, with a v that is not a unit vector: no reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.tensor([1.5, -1.5]))

    def forward(self, x: Tensor) -> Tensor:
        inner = (x @ self.v)[:, None]
        return torch.where(inner > 0, x - 2 * inner * self.v, x)


class LoudSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(50 * (x - 0.5) + 0.5)


def _batch_norm(layer: nn.Module) -> nn.Module:
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(1.0)
    layer.weight.data.fill_(10.0)
    layer.bias.data.fill_(0.5)
    return layer


def _spread(layer: nn.Module, shape: tuple[int, ...] = (1, 1, 2), towards: Tensor | None = None) -> Case:
    """A layer that copies pixels, before a head that adds all copies up: class 0 as long as the image is bright."""
    with torch.no_grad():
        outputs = layer(grey(shape)).numel()
    weight = torch.stack([torch.ones(outputs), torch.zeros(outputs)]) / outputs**0.5
    with torch.no_grad():
        offset = 0.125 - float((weight[0] * layer(grey(shape)).flatten()).sum())
    model = nn.Sequential(layer, nn.Flatten(), frozen(weight, torch.tensor([offset, 0.0]))).eval()
    return along(model, grey(shape), -torch.ones(shape) if towards is None else towards)


def _max_pool() -> Case:
    """One bright pixel that all nine windows see: slope 3."""
    image = grey((1, 3, 3), 0.25)
    image[0, 0, 1, 1] = 0.875
    head = frozen(torch.stack([torch.ones(9), torch.zeros(9)]) / 3, torch.tensor([0.125 - 3 * 0.875, 0.0]))
    model = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Flatten(), head).eval()
    towards = torch.zeros(1, 3, 3)
    towards[0, 1, 1] = -1.0
    return along(model, image, towards)


def _below_zero(layer: nn.Module) -> Case:
    return along(pair(frozen(torch.eye(2), torch.tensor([-1.0, -1.0])), layer), grey())


def _steep_at(layer: nn.Module, value: float) -> Case:
    return along(pair(frozen(torch.eye(2), torch.full((2,), value - 0.5)), layer), grey())


def _wrong_pairs() -> Case:
    """Four features; the first of each pair is the larger, so both outputs follow it."""
    head = frozen(torch.tensor([[1.0, -1.0, 1.0, -1.0], [0, 0, 0, 0]]), torch.tensor([0.25, 0.0]))
    start = frozen(torch.tensor([[1.0, 0.0], [0, 1], [0, 0], [0, 0]]))
    return along(nn.Sequential(nn.Flatten(), start, WrongPairs(), head).eval(), grey())


def _house_holder() -> Case:
    return along(pair(HouseHolder()), grey(), (1.0, -1.0))


def _weights_of_parent(kind: type[nn.Linear]) -> nn.Linear:
    layer = kind(2, 2)
    layer.weight.data, layer.bias.data = torch.eye(2), torch.zeros(2)
    return layer


def _spectral_norm() -> Case:
    """A parametrised weight whose stored singular vectors are wrong: its norm is 50, not 1."""
    layer = parametrizations.spectral_norm(_weights_of_parent(nn.Linear), n_power_iterations=1).eval()
    stored = layer.parametrizations.weight[0]
    tilted = torch.tensor([0.02, 0.02]) / (0.02 * 2**0.5)
    stored._u.copy_(tilted)
    stored._v.copy_(torch.tensor([1.0, -0.96]) / torch.tensor([1.0, -0.96]).norm())
    return along(pair(layer), grey())


def _weight_norm() -> Case:
    layer = parametrizations.weight_norm(_weights_of_parent(nn.Linear))
    layer.parametrizations.weight.original0.data.fill_(20.0)
    return along(pair(layer), grey())


def _precise() -> nn.Sequential:
    return pair().double()


def _hooked(place: int | None, before: bool) -> Case:
    model = _precise()
    target = model if place is None else model[place]
    if before:
        target.register_forward_pre_hook(lambda module, inputs: (50 * (inputs[0] - 0.5) + 0.5,))
    else:
        fixed = torch.tensor([0.5, 0.5] if place == 1 else [0.75, 0.5])  # the output for a grey image
        target.register_forward_hook(lambda module, inputs, output: 50 * (output - fixed) + fixed)
    return along(model, grey())


def _replaced(place: int | None) -> Case:
    model = _precise()
    target = model if place is None else model[place]
    original = target.forward
    target.forward = lambda x: original(50 * (x - 0.5) + 0.5)
    return along(model, grey())


def _first(layer: nn.Module) -> Case:
    return along(nn.Sequential(layer, *pair()).eval(), grey())


def _middle(layer: nn.Module) -> Case:
    return along(pair(layer), grey())


def _loud_sequential() -> Case:
    return along(LoudSequential(*pair()).eval(), grey())


def _unknown(name: str, layer: Callable[[], nn.Module]) -> Entry:
    return entry("unknown layers", name, UNKNOWN, lambda: _middle(layer()))


ENTRIES = [
    _unknown("a layer that triples", Times),
    _unknown("Sequential in a Sequential", lambda: nn.Sequential(Times())),
    _unknown("residual block", lambda: Residual(frozen(torch.eye(2)))),
    _unknown("residual block with a loud branch", lambda: Residual(frozen(5 * torch.eye(2)))),
    _unknown("BatchNorm1d with a scale of 10", lambda: _batch_norm(nn.BatchNorm1d(2))),
    entry("unknown layers", "BatchNorm2d on images", UNKNOWN, lambda: _first(_batch_norm(nn.BatchNorm2d(1)))),
    _unknown("LayerNorm", lambda: nn.LayerNorm(2)),
    entry("unknown layers", "LeakyReLU of slope 3", UNKNOWN, lambda: _below_zero(nn.LeakyReLU(3.0))),
    entry("unknown layers", "PReLU of slope 3", UNKNOWN, lambda: _below_zero(nn.PReLU(init=3.0))),
    entry("unknown layers", "ELU of slope 3", UNKNOWN, lambda: _below_zero(nn.ELU(6.0))),
    entry("unknown layers", "SELU", UNKNOWN, lambda: _below_zero(nn.SELU())),
    entry("unknown layers", "GELU, steeper than 1", UNKNOWN, lambda: _steep_at(nn.GELU(), 1.4)),
    entry("unknown layers", "SiLU, steeper than 1", UNKNOWN, lambda: _steep_at(nn.SiLU(), 2.4)),
    entry("unknown layers", "Hardswish, slope 1.5", UNKNOWN, lambda: _steep_at(nn.Hardswish(), 2.7)),
    entry("unknown layers", "upsampling", UNKNOWN, lambda: _spread(nn.Upsample(scale_factor=2))),
    entry("unknown layers", "sum pooling", UNKNOWN, lambda: _spread(nn.LPPool2d(1, (1, 2)))),
    entry("unknown layers", "overlapping maximum pooling", UNKNOWN, _max_pool),
    entry("unknown layers", "normalisation forgotten", "radii stated after normalisation", lambda: _first(Normalise())),
    entry(
        "unknown layers",
        "normalisation as a 1 x 1 convolution",
        "radii stated after normalisation",
        lambda: _first(convolution(torch.full((1, 1, 1, 1), 5.0))),
    ),
    entry("unknown layers", "HouseHolder without unit vector", "liresnet models/layers", _house_holder),
    entry("padding", "ReplicationPad2d", PADDING, lambda: _spread(nn.ReplicationPad2d(1))),
    entry("padding", "ReflectionPad2d", PADDING, lambda: _spread(nn.ReflectionPad2d(1), (1, 2, 2))),
    entry("padding", "CircularPad2d", PADDING, lambda: _spread(nn.CircularPad2d(1), (1, 2, 2))),
    *(
        entry(
            "padding",
            f"convolution with padding_mode {mode!r}",
            PADDING,
            lambda mode=mode: _spread(convolution(torch.ones(1, 1, 3, 3), padding=1, padding_mode=mode), (1, 3, 3)),
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    entry(
        "replaced computation",
        "subclass of Linear",
        SUBCLASS,
        lambda: along(pair(_weights_of_parent(LoudLinear)), grey()),
    ),
    entry("replaced computation", "subclass of Dropout", SUBCLASS, lambda: _middle(LoudDropout())),
    entry("replaced computation", "subclass of MinMax with other pairs", SUBCLASS, _wrong_pairs),
    entry(
        "replaced computation",
        "subclass of Sequential",
        SUBCLASS,
        lambda: along(LoudSequential(*pair()).eval(), grey()),
    ),
    entry(
        "replaced computation",
        "stale eval_weight",
        "liresnet: bounds from weights, evaluation from a buffer",
        lambda: _middle(StaleLinear(20.0)),
    ),
    entry("replaced computation", "spectral_norm with stored vectors that are wrong", HIDDEN, _spectral_norm),
    entry("replaced computation", "weight_norm", HIDDEN, _weight_norm),
    *(
        entry(
            "replaced computation",
            f"{'input' if before else 'output'} hook on the {place}",
            HIDDEN,
            lambda index=index, before=before: _hooked(index, before),
        )
        for place, index in (("first layer", 1), ("head", -1), ("chain", None))
        for before in (True, False)
    ),
    *(
        entry("replaced computation", f"replaced forward of the {place}", HIDDEN, lambda index=index: _replaced(index))
        for place, index in (("first layer", 1), ("head", -1), ("chain", None))
    ),
]
