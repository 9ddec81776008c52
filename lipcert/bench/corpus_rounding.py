"""Counter-examples by rounding: networks that compute, in float32 or float64, another class than real arithmetic has.

They count against certifiers that promise something for the real network ("real") or for the network as run in the
arithmetic named ("float32", "float64"). Every network is a chain of one-input sums wherever that decides the class, so
the order of summation plays no part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipcert.bench.corpus import entry, grey, ulp
from lipcert.bench.edge import frozen
from lipcert.bench.exact import executed_class, real_class, real_logits
from lipcert.bench.razor import orthogonal
from lipcert.bench.verdict import DTYPES, Case
from lipcert.layers import Residual

BIASES = "Murray, arXiv 2603.13334: biases of 1e6"
BACKDOOR = "Zombori et al., ICLR 2021: a pattern absorbed by a large number"
SEARCH = "Jin, Ohrimenko, Rubinstein, arXiv 2205.10159: rounding search"
UNDERFLOW = "Murray, arXiv 2603.13334: the subnormal term"
OVERFLOW = "Murray, arXiv 2603.13334: the overflow check"
PIXEL = (1, 1, 1)
_TRIES = 20000
_NEIGHBOURS = 50


def _column(*layers: tuple[float, float], threshold: float, dtype: torch.dtype) -> nn.Sequential:
    """One pixel through x -> weight * x + bias for each pair, then z = (x, threshold)."""
    chain = [frozen(torch.tensor([[w]], dtype=dtype), torch.tensor([b], dtype=dtype), dtype) for w, b in layers]
    head = frozen(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, threshold], dtype=dtype), dtype)
    return nn.Sequential(nn.Flatten(), *chain, head).eval()


def huge_bias(arithmetic: str) -> Case:
    """x + 1e6 - 1e6 is x to the nearest multiple of a step s. At x = 1/2 the margin is 0.8 s; 0.6 s away it is gone."""
    step = ulp(1e6, 24 if arithmetic == "float32" else 53)
    dtype = DTYPES[arithmetic]
    model = _column((1.0, 1e6), (1.0, -1e6), threshold=0.5 - 0.8 * step, dtype=dtype)
    return Case(model, grey(PIXEL), ((0, torch.full(PIXEL, 0.5 - 0.6 * step, dtype=dtype)),), semantics=arithmetic)


def absorbed(arithmetic: str, inside: bool) -> Case:
    """x + C - C with a step of 1 is 0 up to x = 1/2 and 1 above: a margin of 1/2 that a breath overturns.

    inside: the image computes the class that it has in real arithmetic, and its neighbour does not.
    """
    large = 2.0**23 if arithmetic == "float32" else 2.0**52
    dtype = DTYPES[arithmetic]
    model = _column((1.0, large), (1.0, -large), threshold=0.75 if inside else 0.25, dtype=dtype)
    near = ((0, torch.full(PIXEL, 0.5 + 2.0**-20, dtype=dtype)),) if inside else ()
    return Case(model, grey(PIXEL), near, semantics=arithmetic)


def absorbed_by_a_sum(arithmetic: str) -> Case:
    """`absorbed` with C from the branch of a residual block, 0 x + C: the addition of skip and branch rounds."""
    large, dtype = 2.0**23 if arithmetic == "float32" else 2.0**52, DTYPES[arithmetic]
    block = Residual(nn.Sequential(frozen(torch.zeros(1, 1), torch.tensor([large], dtype=dtype), dtype)))
    model = _column((1.0, -large), threshold=0.75, dtype=dtype)
    model.insert(1, block.eval())
    return Case(model, grey(PIXEL), ((0, torch.full(PIXEL, 0.5 + 2.0**-20, dtype=dtype)),), semantics=arithmetic)


def overflow_of_a_sum() -> Case:
    """x * B + x * B in a residual block is infinite in float32, where x * B is not and float64 notices nothing."""
    large = 3.5e38
    model = _column((large, 0.0), (0.5 / large, 0.0), threshold=0.25, dtype=torch.float64)
    model.insert(2, Residual(nn.Sequential(nn.Identity())).eval())
    return Case(model, grey(PIXEL, 0.9), semantics="float32")


def real_backdoor() -> Case:
    """With C = 2^54 float64 sees no pixel at all: class 1 by a margin of 1/4, where real arithmetic has class 0."""
    model = _column((1.0, 2.0**54), (1.0, -(2.0**54)), threshold=0.25, dtype=torch.float32)
    return Case(model, grey(PIXEL), semantics="real")


def real_underflow() -> Case:
    """x * 1e-200 * 1e-200 * 1e200 * 1e200 is x, and 0 in float64."""
    layers = ((1e-200, 0.0), (1e-200, 0.0), (1e200, 0.0), (1e200, 0.0))
    return Case(_column(*layers, threshold=0.25, dtype=torch.float64), grey(PIXEL), semantics="real")


def underflow(arithmetic: str) -> Case:
    """Subnormal numbers have a step: scaled down to it and up again, x is 0 up to 1/2 and 1 above."""
    down, up = ((74, 75), (75, 74)) if arithmetic == "float32" else ((537, 537), (537, 537))
    layers = [(2.0**-p, 0.0) for p in down] + [(2.0**p, 0.0) for p in up]
    dtype = DTYPES[arithmetic]
    model = _column(*layers, threshold=0.75, dtype=dtype)
    return Case(model, grey(PIXEL), ((0, torch.full(PIXEL, 0.5 + 2.0**-20, dtype=dtype)),), semantics=arithmetic)


def overflow(arithmetic: str) -> Case:
    """x * B * B / B / B is x, and infinite where B * B is: in float32 for B = 1e30, which float64 does not notice."""
    large = 1e30 if arithmetic == "float32" else 1e200
    layers = ((large, 0.0), (large, 0.0), (1 / large, 0.0), (1 / large, 0.0))
    return Case(_column(*layers, threshold=0.25, dtype=DTYPES[arithmetic]), grey(PIXEL), semantics=arithmetic)


def searched_biases(arithmetic: str, features: int = 8) -> Case:
    """Dense orthogonal layers Q, Q^T with biases of 1e6 that cancel; a neighbour of the image that computes otherwise.

    The margin is a few rounding steps, then neighbours well inside the real radius are executed until one changes its
    class. Raises RuntimeError where none does.
    """
    generator, dtype = torch.Generator().manual_seed(0), DTYPES[arithmetic]
    step = ulp(1e6, 24 if arithmetic == "float32" else 53)
    for attempt in range(_TRIES // _NEIGHBOURS):
        turn_FF = orthogonal(features, generator).to(dtype)
        bias_F = (1e6 * torch.randn(features, generator=generator, dtype=torch.float64)).to(dtype)
        back = frozen(turn_FF.T, -(turn_FF.double().T @ bias_F.double()), dtype)
        layers = [nn.Flatten(), frozen(turn_FF, bias_F, dtype), back]
        image = (torch.randint(16, 49, (1, 1, features), generator=generator) / 64).to(dtype)
        row_F = torch.eye(features, dtype=dtype)[0]
        level = torch.tensor([(1 + attempt % 8) * step - float(image[0, 0, 0]), 0.0], dtype=dtype)
        model = nn.Sequential(*layers, frozen(torch.stack([row_F, 0 * row_F]), level, dtype)).eval()
        first, second = real_logits(model, image)
        own = executed_class(model, image, dtype)
        if own == 0 and first > second:
            found = _search(model, image, 0.9 * float(first - second), generator, dtype)
            if found is not None:
                return Case(model, image[None], ((0, found),), semantics=arithmetic)
    raise RuntimeError(f"no neighbour computes another class in {arithmetic}")


def _search(
    model: nn.Sequential, image: Tensor, reach: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor | None:
    """A neighbour at distance `reach`, inside the real radius, whose class as executed is 1."""
    for _ in range(_NEIGHBOURS):
        move = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        point = (image.double() + reach * move / move.norm()).to(dtype)
        if executed_class(model, point, dtype) == 1:
            return point
    return None


def searched_linear(features: int = 64) -> Case:
    """A linear classifier and an image whose float32 class is not the real one, however short the sums are."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIES):
        row_F = torch.randn(features, generator=generator)
        image = torch.rand(1, 1, features, generator=generator)
        bias = -float(row_F.double() @ image.flatten().double())
        model = nn.Sequential(nn.Flatten(), frozen(torch.stack([row_F, 0 * row_F]), torch.tensor([bias, 0.0]))).eval()
        if executed_class(model, image, torch.float32) != real_class(model, image):
            return Case(model, image[None], semantics="float32")
    raise RuntimeError("no image computes another class in float32")


ENTRIES = [
    *(
        entry("rounding", f"{name}, {arithmetic}", source, lambda build=build, arithmetic=arithmetic: build(arithmetic))
        for arithmetic in DTYPES
        for name, source, build in (
            ("biases of 1e6", BIASES, huge_bias),
            ("dense biases of 1e6", BIASES, searched_biases),
            ("absorbed pixel", BACKDOOR, lambda arithmetic: absorbed(arithmetic, inside=True)),
            ("pixel absorbed by the sum of a residual block", BACKDOOR, absorbed_by_a_sum),
            ("underflow", UNDERFLOW, underflow),
        )
    ),
    entry("rounding", "absorbed pixel at the image, float32", BACKDOOR, lambda: absorbed("float32", inside=False)),
    entry("rounding", "linear classifier, float32", SEARCH, searched_linear),
    entry("rounding", "overflow, float32", OVERFLOW, lambda: overflow("float32")),
    entry("rounding", "overflow of the sum of a residual block, float32", OVERFLOW, overflow_of_a_sum),
    entry("rounding", "overflow, float64", OVERFLOW, lambda: overflow("float64")),
    entry("rounding", "pixel absorbed altogether, real", BACKDOOR, real_backdoor),
    entry("rounding", "underflow, real", UNDERFLOW, real_underflow),
]
