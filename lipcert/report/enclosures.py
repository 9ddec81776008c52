"""Proven bounds on real layers, for the chapter on bounds: a shipped network by two efforts, and the torus at work."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.chain import ChainBounds, chain_bounds
from lipcert.models import load
from lipcert.report.estimates import NETWORK, words
from lipcert.report.tables import Markdown, down, table, up

_SIZE = 7  # of the signal that shows the torus at work; odd, so that no frequency of its own circle is pi


class Shipped(NamedTuple):
    """One layer of the shipped digits network: its enclosures by two efforts and the power method's estimate."""

    name: str
    fast: Enclosure
    tight: Enclosure
    estimate: float


@functools.cache
def shipped_bounds() -> tuple[ChainBounds, ChainBounds]:
    """The constants of the shipped digits network, effort fast and tight."""
    chain = load(NETWORK)
    fast, tight = (chain_bounds(chain, tuple(chain.card["input_shape"]), effort) for effort in ("fast", "tight"))
    return fast, tight


def shipped_layers() -> list[Shipped]:
    """Its layers with a norm of their own, in order."""
    fast, tight = shipped_bounds()
    layers = zip(fast.layers, tight.layers, fast.estimates, strict=True)
    own = [Shipped(quick.name, quick.enclosure, sharp.enclosure, estimate) for quick, sharp, estimate in layers]
    return [layer for layer in own if layer.fast.method != "1-Lipschitz"]


def enclosure_table() -> Markdown:
    """Every layer of that network: proven lower end, the power method's estimate, both upper ends."""
    fast, tight = shipped_bounds()
    rows = []
    for x in shipped_layers():
        ends = down(x.tight.lower, 6), f"{x.estimate:.6f}", up(x.tight.upper, 6), up(x.fast.upper, 6)
        proofs = x.tight.method if x.tight.method == x.fast.method else f"{x.tight.method}, {x.fast.method}"
        rows.append((f"`{x.name}`", *ends, proofs))
    rows.append(("product", down(tight.lower), f"{fast.estimate:.4f}", up(tight.upper), up(fast.upper), ""))
    head = ("layer", "at least", "power method", "at most, tight", "at most, fast", "proofs")
    return table(head, rows, right=(1, 2, 3, 4))


def enclosure_words() -> Markdown:
    """The table in words."""
    (fast, tight), layers = shipped_bounds(), shipped_layers()
    low = sum(x.estimate < x.tight.lower for x in layers)
    worst = max(layers, key=lambda x: x.fast.upper / x.tight.lower)
    return words(
        f"In {low} of {len(layers)} layers the power method, 500 rounds in float64, lies below the proven lower end. "
        f"Over the whole backbone it lacks {100 * (1 - fast.estimate / tight.lower):.2g} %. The fast bound has "
        f"{100 * (fast.upper / tight.upper - 1):.2g} % too much, at most "
        f"{100 * (worst.fast.upper / worst.tight.lower - 1):.2g} % in one layer (`{worst.name}`). The two ends of the "
        f"tight enclosure differ by {scientific(tight.upper / tight.lower - 1)} of the product."
    )


def scientific(value: float) -> str:
    """A number as mathematics for a page: 4.2 times a power of ten."""
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"${digits} \\cdot 10^{{{int(exponent)}}}$"


def second_difference() -> nn.Conv2d:
    """One row of pixels, kernel (−1, 2, −1), zero padding: its norm is 2 + 2 cos(π/(n + 1))."""
    layer = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    layer.weight.data = torch.tensor([[[[-1.0, 2.0, -1.0]]]])
    return layer


def circle_value(points: int, phase: float) -> float:
    """Largest |Khat| of that kernel at the angles (2 pi j + phase) / points; not rounded outwards."""
    angles = (2 * np.pi * np.arange(points) + phase) / points
    return float(np.abs(2 - 2 * np.cos(angles)).max())


def torus_table() -> Markdown:
    """The kernel (−1, 2, −1) on seven pixels: the true norm, circles of several sizes and phases, the proven bound."""
    truth = 2 + 2 * math.cos(math.pi / (_SIZE + 1))
    values = [
        (f"N = n = {_SIZE}, φ = 0 (the usual FFT estimate)", circle_value(_SIZE, 0.0)),
        (f"N = n + 1 = {_SIZE + 1}, φ = 0", circle_value(_SIZE + 1, 0.0)),
        (f"N = n + 1 = {_SIZE + 1}, φ = π", circle_value(_SIZE + 1, math.pi)),
    ]
    rows = [("the norm itself, 2 + 2 cos(π/8)", f"{truth:.6f}", "")]
    for name, value in values:
        excess = value / truth - 1
        verdict = "exact" if abs(excess) < 1e-12 else f"{100 * excess:+.1f} %".replace("-", "−")
        rows.append((name, f"{value:.6f}", verdict if excess > -1e-12 else f"{verdict}: **no bound**"))
    proven = norm_bound(second_difference(), (1, 1, _SIZE))
    rows.append((f"`norm_bound`, method {proven.method}", up(proven.upper, 6), "proven"))
    return table(("seven pixels, kernel (−1, 2, −1)", "value", ""), rows, right=(1,))
