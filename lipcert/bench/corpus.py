"""Counter-examples: networks, images and perturbations on which certifiers have gone wrong, each with its source.

An entry is passed by refusing (any exception), by abstaining, or by a radius that no witness contradicts. Where nothing
can be promised at all (NaN, ties, random layers, inputs that do not fit) every claim is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lipcert.bench.edge import BEYOND, frozen
from lipcert.bench.exact import executed_class, in_dtype
from lipcert.bench.verdict import Case

_STEPS, _HALVINGS = 64, 45


@dataclass(frozen=True)
class Entry:
    """One counter-example. topic: the check it belongs to; source: the issue or paper that found the failure."""

    name: str
    topic: str
    source: str
    build: Callable[[], Case]


def entry(topic: str, name: str, source: str, build: Callable[[], Case]) -> Entry:
    """An `Entry` whose case carries its name."""
    return Entry(name, topic, source, lambda: replace(build(), name=name))


def grey(shape: tuple[int, ...] = (1, 1, 2), value: float = 0.5) -> Tensor:
    """One image, all pixels alike."""
    return torch.full((1, *shape), value)


def pair(*middle: nn.Module, bias: float = 0.25, scale: float = 1.0, first: Tensor | None = None) -> nn.Sequential:
    """Two pixels, two classes: z = scale * middle(first x) + (bias, 0). Class 0 wins grey images, by `bias`."""
    start = frozen(torch.eye(2) if first is None else first)
    return nn.Sequential(nn.Flatten(), start, *middle, frozen(scale * torch.eye(2), torch.tensor([bias, 0.0]))).eval()


def along(model: nn.Module, images_BCHW: Tensor, direction: Tensor | tuple[float, ...] = (-1.0, 1.0)) -> Case:
    """A case whose witnesses are found by executing the model: the first change of class of image 0 on a line.

    The line is searched in float64 up to a distance of 0.45, which keeps grey images within [0, 1]. Raises RuntimeError
    if the class does not change.
    """
    line = torch.as_tensor(direction, dtype=torch.float64)
    line = (line / line.norm()).reshape(images_BCHW.shape[1:])
    image = images_BCHW[0].double()
    precise = in_dtype(model, torch.float64)  # once, not at every step

    def class_at(distance: float) -> int:
        return executed_class(precise, image + distance * line, torch.float64)

    start = class_at(0.0)
    distances = [0.45 * (i + 1) / _STEPS for i in range(_STEPS)]
    high = next((d for d in distances if class_at(d) != start), None)
    if high is None:
        raise RuntimeError(f"class {start} all along the line: no witness")
    low = high - 0.45 / _STEPS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if class_at(middle) != start else (middle, high)
    points = tuple((0, image + high * (1 + beyond) * line) for beyond in (0.0, *BEYOND))
    return Case(model, images_BCHW, points)


def nothing(model: nn.Module, images_BCHW: Tensor) -> Case:
    """A case for which every claim is wrong."""
    return Case(model, images_BCHW, nothing=True)


def all_entries() -> list[Entry]:
    """The whole corpus, in the order of its topics."""
    from lipcert.bench import corpus_blocks, corpus_inputs, corpus_layers, corpus_numbers, corpus_rounding

    layers = [*corpus_numbers.ENTRIES, *corpus_layers.ENTRIES, *corpus_blocks.ENTRIES]
    return [*layers, *corpus_inputs.ENTRIES, *corpus_rounding.ENTRIES]


def ulp(value: float, digits: int = 53) -> float:
    """Spacing of floats with so many binary digits at `value`."""
    return math.ldexp(1.0, math.frexp(value)[1] - digits)
