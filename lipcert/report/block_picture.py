"""Why skip plus branch is bounded loosely, seen: what one small block does to the unit circle, beside its bounds.

Two random blocks of the plane, computed while the page is built: a conventional one, x + W2 MinMax(W1 x), and a linear
one, (I + V) x. Letters: J regions; the plane has two coordinates.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from lipcert.layers import Residual
from lipcert.regions import RegionConstant, lipschitz_by_regions
from lipcert.report.small_nets import proven, small_net
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED, HIDDEN = 0, 6
_ANGLES = np.linspace(0, 2 * math.pi, 181)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])


@dataclass(frozen=True, eq=False)
class Blocks:
    """The two blocks of the picture: Jacobians, exact constants, bounds.

    Attributes:
        conventional, linear: all regions of the blocks. branch: all regions of the branch g alone.
        bound: 1 + |W2| |W1|. linear_bound: |I + V|. linear_sum: 1 + |V|, what the inequality would say of it.
    """

    conventional: RegionConstant
    branch: RegionConstant
    linear: RegionConstant
    bound: float
    linear_bound: float
    linear_sum: float

    @property
    def triangle(self) -> float:
        """1 + Lip(g) with the exact constant of the branch."""
        return 1 + self.branch.upper

    def skip_branch_sum(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The unit vector that the branch stretches most, in the region where it does; its image; their sum."""
        worst_22 = self.branch.jacobians_JKN[self.branch.norms_J.argmax()]
        vector_2 = np.linalg.svd(worst_22)[2][0]
        return vector_2, worst_22 @ vector_2, vector_2 + worst_22 @ vector_2

    def angle(self) -> float:
        """Between skip and branch there, in degrees."""
        skip_2, branch_2, _ = self.skip_branch_sum()
        return math.degrees(math.acos(float(skip_2 @ branch_2) / float(np.linalg.norm(branch_2))))


@functools.cache
def blocks() -> Blocks:
    """Both blocks, random weights, one seed."""
    residual, matrix = (
        small_net("conventional", 1, 2, HIDDEN, 2, seed=SEED)[0],
        small_net("linear", 1, 2, HIDDEN, 2, seed=SEED)[0],
    )
    assert isinstance(residual, Residual)
    branch_22 = matrix.weight.detach().double().numpy() - np.eye(2)
    return Blocks(
        conventional=lipschitz_by_regions(nn.Sequential(residual), 2),
        branch=lipschitz_by_regions(residual.branch, 2),
        linear=lipschitz_by_regions(nn.Sequential(matrix), 2),
        bound=proven(nn.Sequential(residual)),
        linear_bound=proven(nn.Sequential(matrix)),
        linear_sum=1 + float(np.linalg.norm(branch_22, 2)),
    )


def block_figure() -> Figure:
    """The unit circle under both blocks, and the circles that their bounds allow."""
    b = blocks()
    figure, axes = canvas(WIDTH, 3.8)
    reach = 1.05 * max(b.bound, b.linear_sum)
    shift = 2 * reach
    for x, title in ((0.0, "conventional, x + g(x)"), (shift, "linear, (I + V) x")):
        axes.text(x, reach, title, ha="center", va="bottom", color=INK)
        _outline(axes, _CIRCLE, x, color=FAINT, linestyle=(0, (1, 1.5)), linewidth=1.3)
    for jacobian_22 in b.conventional.jacobians_JKN:
        _outline(axes, jacobian_22 @ _CIRCLE, 0.0, color=BLUE, linewidth=1.1, alpha=0.65)
    _outline(axes, b.bound * _CIRCLE, 0.0, color=VERMILLION, linewidth=2.0)
    _outline(axes, b.triangle * _CIRCLE, 0.0, color=PURPLE, linestyle="--", linewidth=1.6)
    _outline(axes, b.linear.jacobian_KN @ _CIRCLE, shift, color=BLUE, linewidth=1.8)
    _outline(axes, b.linear_bound * _CIRCLE, shift, color=VERMILLION, linewidth=2.0)
    _outline(axes, b.linear_sum * _CIRCLE, shift, color=PURPLE, linestyle="--", linewidth=1.6)
    skip_2, branch_2, sum_2 = b.skip_branch_sum()
    for start, end, colour in (((0, 0), skip_2, FAINT), (skip_2, sum_2, GREEN), ((0, 0), sum_2, INK)):
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.7, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", tuple(end), tuple(start), arrowprops=style)
    handles = (
        ("unit circle", {"color": FAINT, "linestyle": (0, (1, 1.5))}), ("its images", {"color": BLUE}),
        ("proven bound", {"color": VERMILLION, "linewidth": 2.0}),
        ("triangle inequality", {"color": PURPLE, "linestyle": "--"}),
        ("skip", {"color": FAINT}), ("branch", {"color": GREEN}), ("their sum", {"color": INK}),
    )  # fmt: skip
    for label, style in handles:
        axes.plot([], [], label=label, **style)
    axes.set(aspect="equal", xlim=(-reach, shift + reach), ylim=(-reach, reach + 0.35))
    axes.axis("off")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9.5, labelcolor=INK, frameon=False)
    rows = [
        ("conventional", "exact constant", f"{b.conventional.upper:.9f}"),
        ("conventional", "1 + exact constant of the branch", f"{b.triangle:.9f}"),
        ("conventional", "proven bound", f"{b.bound:.9f}"),
        ("linear", "exact constant", f"{b.linear.upper:.9f}"),
        ("linear", "proven bound", f"{b.linear_bound:.9f}"),
        ("linear", "1 + constant of the branch", f"{b.linear_sum:.9f}"),
    ]
    for name, vector_2 in (("skip", skip_2), ("branch", branch_2), ("sum", sum_2)):
        rows += [("conventional", f"{name}, {axis}", f"{v:.9f}") for axis, v in zip("xy", vector_2, strict=True)]
    alt = f"The unit circle of the plane under two residual blocks, and the discs their bounds allow. {block_words()}"
    return finish("block-picture", figure, alt, ("block", "what", "value"), rows)


def _outline(axes: "Axes", points_2P: np.ndarray, shift: float, **style) -> None:
    axes.plot(points_2P[0] + shift, points_2P[1], **style)


def block_words() -> Markdown:
    """The picture in words."""
    b = blocks()
    length = float(np.linalg.norm(b.skip_branch_sum()[2]))
    return Markdown(
        f"Left, all {b.conventional.regions} regions of the conventional block: no image of the unit circle reaches "
        f"beyond {up(b.conventional.upper, 3)}, the block's constant. Its branch alone has the constant "
        f"{up(b.branch.upper, 3)}, so the triangle inequality says {up(b.triangle, 3)}; the product of norms inside of "
        f"the branch makes it {up(b.bound, 3)}. The direction that the branch stretches most comes out at "
        f"{b.angle():.0f} degrees to the skip, so the sum has length {length:.3f}. Right, the linear block: its image "
        f"touches its bound, {up(b.linear_bound, 3)}; the triangle inequality would have said {up(b.linear_sum, 3)}."
    )
