"""Counter-examples in numbers: ties, non-finite logits, weights whose norm an iteration or an epsilon gets wrong."""

from __future__ import annotations

import math

import torch
from torch import nn

from lipcert.bench.corpus import along, entry, grey, nothing, pair
from lipcert.bench.edge import convolution, frozen
from lipcert.bench.verdict import Case

GLORO_8 = "gloro issue 8: normalisation with an epsilon under-estimates small weights"
GLORO_9 = "gloro issue 9: every logit equal to the largest is masked"
LIRESNET = "power method of the liresnet code: float32, start of ones, length clamped at 1e-12"
VRA_RULE = "VRA rule of the liresnet code"
MURRAY = "Murray, arXiv 2603.13334: overflow"
TOBLER = "Tobler, Syeda, Murray, arXiv 2505.06958"
FAIL_CLOSED = "a bound of NaN became a verdict in VNN-COMP (NNV, pull request 446)"


def _head(weight, bias) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), frozen(torch.eye(2)), frozen(torch.tensor(weight), torch.tensor(bias))).eval()


def _tied(*bias: float, weight=None) -> Case:
    return nothing(_head(weight or [[1.0, 0.0]] * len(bias), list(bias)), grey())


def _exact_margin() -> Case:
    """One pixel, z = (x, 3/4): class 1 by exactly 1/4 at slope exactly 1; at distance 1/4 both tie and class 0 wins."""
    model = nn.Sequential(nn.Flatten(), frozen(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 0.75]))).eval()
    return Case(model, grey((1, 1, 1)), ((0, torch.full((1, 1, 1), 0.75)),))


def _one_step_ahead() -> Case:
    model = nn.Sequential(nn.Flatten(), frozen(torch.eye(2), torch.tensor([2.0**-24, 0.0]))).eval()
    moved = grey()[0].double() + 2.0**-24 * torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    return Case(model, grey(), ((0, moved),))


def _scaled(small: float, dtype: torch.dtype = torch.float32, layers: int = 1) -> Case:
    """z = x + (1/4, 0) as a product of tiny and huge layers: the network is the same at any scale."""
    down = [frozen(small * torch.eye(2, dtype=dtype), dtype=dtype) for _ in range(layers)]
    up = [frozen(torch.eye(2, dtype=dtype) / small, dtype=dtype) for _ in range(layers - 1)]
    head = frozen(torch.eye(2, dtype=dtype) / small, torch.tensor([0.25, 0.0]), dtype)
    return along(nn.Sequential(nn.Flatten(), *down, *up, head).eval(), grey())


def _poisoned(name: str, zero: bool) -> Case:
    """The layer carries a stored iterate under a name that codes use: zero, or orthogonal to the loud direction."""
    model = pair(first=torch.tensor([[10.0, 0.0], [0.0, 0.1]]), bias=0.25)
    model[1].bias.copy_(torch.tensor([-5.0, -0.05]))
    model[1].register_buffer(name, torch.zeros(1, 2) if zero else torch.tensor([[0.0, 1.0]]))
    return along(model, grey(), (-1.0, 0.0))


def _conv(kernel: torch.Tensor, shape: tuple[int, ...], **settings) -> Case:
    """A convolution before a head along its largest singular vector, as one linear map."""
    layer = convolution(kernel, **settings)
    size = math.prod(shape)
    with torch.no_grad():
        matrix = layer(torch.eye(size).reshape(size, *shape)).reshape(size, -1).T.double()
    left, _, right = torch.linalg.svd(matrix)
    rows = torch.stack([left[:, 0], torch.zeros_like(left[:, 0])])
    offset = 0.125 - float(rows[0] @ matrix @ torch.full((size,), 0.5, dtype=torch.float64))
    model = nn.Sequential(layer, nn.Flatten(), frozen(rows, torch.tensor([offset, 0.0]))).eval()
    return along(model, grey(shape), tuple((-right[0]).tolist()))


def _difference() -> Case:
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[0, :, 1, 1] = torch.tensor([5.0, -5.0])
    kernel[1, :, 1, 1] = 0.1
    return _conv(kernel, (2, 3, 3), padding=1)


def _twice() -> Case:
    layer = frozen(3 * torch.eye(2))
    head = frozen(torch.eye(2), torch.tensor([0.25, 0.0]))
    return along(nn.Sequential(nn.Flatten(), layer, layer, head).eval(), grey())


def _nearer_boundary() -> Case:
    """The class of the second logit is not the nearest boundary: class 2 has a longer row."""
    model = _head([[0.0, 0.0], [0.1, 0.0], [0.0, 9.0]], [2.0, 1.0, -4.0])
    return along(model, grey(), (0.0, 1.0))


def _batch() -> Case:
    """Three images of three classes and radii: nothing may leak from one to another."""
    model = nn.Sequential(nn.Flatten(), frozen(torch.eye(3), torch.tensor([0.5, 0.0, 0.0]))).eval()
    images = torch.tensor([[0.75, 0.25, 0.25], [0.125, 0.875, 0.125], [0.25, 0.5, 0.8125]]).reshape(3, 1, 1, 3)
    moved = torch.tensor([[0.24, 0.75, 0.25], [0.2, 0.69, 0.125], [0.29, 0.5, 0.78]]).reshape(3, 1, 1, 3).double()
    return Case(model, images, tuple(enumerate(moved)))


def _overflow(dtype: torch.dtype) -> Case:
    """Logits that overflow to infinity, or to infinity minus infinity."""
    big = 1e200 if dtype == torch.float64 else 1e38
    layers = [frozen(big * torch.ones(2, 2, dtype=dtype), dtype=dtype) for _ in range(2 if big > 1e100 else 10)]
    head = frozen(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), dtype=dtype)
    return nothing(nn.Sequential(nn.Flatten(), *layers, head).eval(), grey())


def _constant_overflows() -> Case:
    """The product of norms is infinite, the logits of a grey image are not: the loud direction does not see it."""
    loud = torch.tensor([[1e200, -1e200], [0.5, 0.5]], dtype=torch.float64)
    layers = [frozen(loud, dtype=torch.float64), frozen(torch.diag(loud[0].abs()), dtype=torch.float64)]
    layers[1].weight[1, 1] = 1.0
    head = frozen(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0]), torch.float64)
    near = grey()[0].double() + 1e-3 * torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    return Case(nn.Sequential(nn.Flatten(), *layers, head).eval(), grey(), ((0, near),))


NAN, INF = math.nan, math.inf
EYE = [[1.0, 0.0], [0.0, 1.0]]

ENTRIES = [
    entry("ties", "two logits tie for the top", GLORO_9, lambda: _tied(1.0, 1.0, 0.0)),
    entry("ties", "all logits equal", GLORO_9, lambda: _tied(0.0, 0.0, 0.0)),
    entry("ties", "a constant network", GLORO_9, lambda: _tied(0.5, 0.5, weight=[[0.0, 0.0]] * 2)),
    entry("ties", "the same row twice", GLORO_9, lambda: _tied(2.0, 0.0, 2.0, weight=[[0.3, 0.7], [1, 0], [0.3, 0.7]])),
    entry("ties", "margin exactly slope times radius", GLORO_9, _exact_margin),
    entry("ties", "one step ahead of a tie", GLORO_9, _one_step_ahead),
    entry("not finite", "NaN bias", FAIL_CLOSED, lambda: nothing(_head(EYE, [NAN, 0.0]), grey())),
    entry("not finite", "NaN bias of a rival", FAIL_CLOSED, lambda: nothing(_head(EYE, [0.0, NAN]), grey())),
    entry("not finite", "all logits NaN", VRA_RULE, lambda: nothing(_head(EYE, [NAN, NAN]), grey())),
    entry("not finite", "infinite logit", VRA_RULE, lambda: nothing(_head(EYE, [INF, 0.0]), grey())),
    entry("not finite", "minus infinite rival", TOBLER, lambda: nothing(_head(EYE, [0.25, -INF]), grey())),
    entry(
        "not finite",
        "minus infinite third class",
        TOBLER,
        lambda: nothing(_head([*EYE, [0.0, 0.0]], [0.25, 0.0, -INF]), grey()),
    ),
    entry(
        "not finite",
        "NaN weight of the head",
        FAIL_CLOSED,
        lambda: nothing(_head([[NAN, 0.0], [0, 1]], [1.0, 0]), grey()),
    ),
    entry("not finite", "infinite weight", FAIL_CLOSED, lambda: nothing(_head([[INF, 0.0], [0, 1]], [1.0, 0]), grey())),
    entry(
        "not finite",
        "NaN weight that meets a pixel of 0",
        FAIL_CLOSED,
        lambda: nothing(pair(first=torch.tensor([[1.0, NAN], [0.0, 1.0]])), grey(value=0.0)),
    ),
    entry("not finite", "overflow in float64", MURRAY, lambda: _overflow(torch.float64)),
    entry("not finite", "overflow of ten layers", MURRAY, lambda: _overflow(torch.float32)),
    entry("not finite", "the constant overflows, the logits do not", MURRAY, _constant_overflows),
    entry("small and large weights", "1e-5", GLORO_8, lambda: _scaled(1e-5)),
    entry("small and large weights", "1e-7", LIRESNET, lambda: _scaled(1e-7)),
    entry("small and large weights", "1e-13", LIRESNET, lambda: _scaled(1e-13)),
    entry("small and large weights", "1e-30, twice", "product underflows", lambda: _scaled(1e-30, layers=2)),
    entry(
        "small and large weights",
        "1e-150 in float64",
        "squares underflow",
        lambda: _scaled(1e-150, torch.float64),
    ),
    entry("small and large weights", "1e20, twice", "product overflows", lambda: _scaled(1e20, layers=2)),
    entry(
        "iterations",
        "orthogonal to the start of ones",
        LIRESNET,
        lambda: along(pair(first=torch.tensor([[10.0, -10.0], [0.1, 0.1]])), grey()),
    ),
    entry("iterations", "difference of channels", LIRESNET, _difference),
    entry("iterations", "poisoned buffer init_x = 0", LIRESNET, lambda: _poisoned("init_x", True)),
    entry("iterations", "poisoned buffer init_x, orthogonal", LIRESNET, lambda: _poisoned("init_x", False)),
    entry("iterations", "poisoned buffer iterate = 0", LIRESNET, lambda: _poisoned("iterate", True)),
    entry("iterations", "poisoned buffer u, orthogonal", LIRESNET, lambda: _poisoned("u", False)),
    entry(
        "operators",
        "box filter",
        "a reshaped kernel has no more than a third of its norm",
        lambda: _conv(torch.ones(1, 1, 3, 3), (1, 4, 4), padding=1),
    ),
    entry(
        "operators",
        "4 x 4, stride 2, padding 1",
        "first layers of GloRo networks",
        lambda: _conv(torch.ones(1, 1, 4, 4), (1, 6, 6), stride=2, padding=1),
    ),
    entry(
        "operators",
        "circular box filter",
        "zero padding assumed",
        lambda: _conv(torch.ones(1, 1, 3, 3), (1, 3, 3), padding=1, padding_mode="circular"),
    ),
    entry("structure", "a layer that stands twice", "named_children lists a layer once", _twice),
    entry(
        "structure",
        "long rows of the head",
        "head counted as if its rows were normalised",
        lambda: along(pair(scale=8.0), grey()),
    ),
    entry(
        "structure",
        "the second logit is not the nearest class",
        "arXiv 2102.08452, section 3",
        _nearer_boundary,
    ),
    entry("structure", "three images of a batch", "radii reduced over the wrong dimension", _batch),
]
