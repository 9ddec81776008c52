"""The power method against what is proven, for the chapter on bounds: computed while the page is built.

The power method is written here as public codes write it, in float32 and with a clamped normalisation; the proven ends
come from `lipcert.bounds`. Suffix N: features.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.models import load
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, down, up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NETWORK, LAYER, LAYER_SHAPE = "digits-liresnet-L6W32", "stack10", (32, 8, 8)
ROUNDS = 500  # what public codes use when they evaluate
_LINEAR = 1e-3  # per cent; between minus and plus this, the figure's vertical axis is linear


def public_estimates(layer: nn.Module, start: Tensor, rounds: int = ROUNDS) -> list[float]:
    """|A v| after 1, 2, ... rounds of v <- A^T A v / max(|A^T A v|, 1e-12), the clamp of `F.normalize`.

    layer: nn.Linear or zero-padded nn.Conv2d. start: (1, *input shape).
    """
    weight, estimates, v = layer.weight.detach(), [], start
    for _ in range(rounds):
        image = _forward(layer, weight, v)
        v = F.normalize(_adjoint(layer, weight, image, start).flatten(), dim=0).reshape(start.shape)
        estimates.append(float(_forward(layer, weight, v).norm()))
    return estimates


def _forward(layer: nn.Module, weight: Tensor, v: Tensor) -> Tensor:
    return v @ weight.T if isinstance(layer, nn.Linear) else F.conv2d(v, weight, None, layer.stride, layer.padding)


def _adjoint(layer: nn.Module, weight: Tensor, u: Tensor, like: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return u @ weight
    return torch.nn.grad.conv2d_input(like.shape, weight, u, layer.stride, layer.padding)


def random_start(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Runs:
    """One layer of a shipped network: what the power method says round by round, and what is proven."""

    ones: list[float]
    random: list[float]
    fast: Enclosure
    tight: Enclosure

    def excess(self, value: float) -> float:
        """Per cent above the proven norm (the tight upper end)."""
        return 100 * (value / self.tight.upper - 1)


@functools.cache
def power_runs() -> Runs:
    """Both runs of the power method on `LAYER` of `NETWORK`, and its enclosures."""
    layer = load(NETWORK).get_submodule(LAYER)
    return Runs(
        public_estimates(layer, torch.ones(1, *LAYER_SHAPE)),
        public_estimates(layer, random_start(LAYER_SHAPE)),
        norm_bound(layer, LAYER_SHAPE, effort="fast"),
        norm_bound(layer, LAYER_SHAPE, effort="tight"),
    )


def power_figure() -> Figure:
    """How far the power method is from the norm after each round, with the proven ends."""
    runs = power_runs()
    figure, axes = canvas(WIDTH, 3.9)
    x = range(1, ROUNDS + 1)
    drawn = (("from all ones", runs.ones, VERMILLION, "--"), ("from a random start", runs.random, BLUE, "-"))
    for label, values, colour, dash in drawn:
        axes.plot(x, [runs.excess(v) for v in values], dash, color=colour, linewidth=1.9, label=label)
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.6)
    axes.set(xscale="log", xlim=(1, ROUNDS), ylim=(-100, 3), xlabel="rounds of the power method")
    axes.set_ylabel("distance from the layer's norm")
    _ends(axes, runs)
    ticks = (-100, -10, -1, -0.1, -0.01, -0.001, 0, 0.001, 0.01, 0.1, 1)
    axes.set_yticks(ticks, ["0" if t == 0 else f"{t:+g}\N{NO-BREAK SPACE}%".replace("-", "−") for t in ticks])
    axes.set_xticks([1, 10, 100, ROUNDS], ["1", "10", "100", str(ROUNDS)])
    axes.minorticks_off()
    axes.grid()
    axes.legend(loc="lower right", labelcolor=INK, fontsize=10, frameon=False)
    rows = [(label, n, f"{v:.9f}") for label, values, _, _ in drawn for n, v in enumerate(values, 1)]
    rows += [("proven, fast", "", f"{runs.fast.upper:.9f}"), ("proven, tight", "", f"{runs.tight.upper:.9f}")]
    early, late = ([f"{-runs.excess(run[n]):.2g} %" for run in (runs.ones, runs.random)] for n in (9, -1))
    alt = (
        f"Distance of the power method from the norm of one layer, in per cent, against its rounds. Both runs stay "
        f"below the norm, by {early[0]} from all ones and {early[1]} from a random start after 10 rounds, by {late[0]} "
        f"and {late[1]} after {ROUNDS}. The tight proven ends lie on the norm, the fast one "
        f"{runs.excess(runs.fast.upper):.2g} % above."
    )
    return finish("power-method", figure, alt, ("what", "round", "norm"), rows)


def _ends(axes: "Axes", runs: Runs) -> None:
    """The proven ends as lines with their names; below zero a certificate is too large, which is shaded."""
    axes.axhspan(-100, 0, color=FAINT, alpha=0.12, linewidth=0)
    style = {"color": INK, "fontsize": 10, "ha": "left"}
    for value, name in ((runs.excess(runs.fast.upper), "proven, fast"), (0.0, "proven, tight: both ends")):
        axes.axhline(value, color=GREEN, linewidth=2.2, linestyle="-" if value == 0 else "-.")
        axes.annotate(name, (1.08, value), (0, 3), textcoords="offset points", va="bottom", **style)
    axes.annotate("below the line: radii too large", (1.08, 0), (0, -4), textcoords="offset points", va="top", **style)


def power_words() -> Markdown:
    """The picture in words."""
    runs = power_runs()
    late = ("neither lies", "one lies", "both lie")[sum(run[-1] < runs.tight.lower for run in (runs.ones, runs.random))]
    return words(
        f"The layer is `{LAYER}` of the shipped digits network. Its norm lies between {down(runs.tight.lower, 8)} and "
        f"{up(runs.tight.upper, 8)} (effort *tight*). After 10 rounds the power method is "
        f"{-runs.excess(runs.ones[9]):.2g} % too low from all ones and {-runs.excess(runs.random[9]):.2g} % from a "
        f"random start; after {ROUNDS} rounds still {-runs.excess(runs.ones[-1]):.2g} % and "
        f"{-runs.excess(runs.random[-1]):.2g} %. Of the two final estimates {late} below the proven lower end. "
        f"The fast bound is {runs.excess(runs.fast.upper):.2g} % too high, which makes radii smaller and nothing false."
    )


def words(text: str) -> Markdown:
    """A sentence whose percentages do not break across lines."""
    return Markdown(text.replace(" %", "\N{NO-BREAK SPACE}%"))
