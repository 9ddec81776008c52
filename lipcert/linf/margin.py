"""The margin rule in l_inf, and how far a computed run of a distance net can be from the exact one.

If every layer is 1-Lipschitz from l_inf to l_inf, so is the network f: a logit moves by at most r in the ball of radius
r, a margin by 2 r. So z_y - z_j > 2 r proves the class (arXiv 2102.05363, section 4.1).

**Rounding.** A neuron makes one subtraction, one addition, and nothing else that rounds, so errors add up from layer to
layer and no factor grows with the number of inputs. Let x_l be what the pass computed at the image, f_l the exact
layers, y_l the deployed network's run at any x' in the ball, rounded to its arithmetic first; e_l >= |x_l - f_l(x)| and
d_l(r) >= |y_l - f_l(x')| in l_inf; u and u' the unit roundoffs of the two runs, w and w' their smallest normal numbers,
D the largest distance that the layer computed at the image, Y its largest output.
    input:     e_0 = u |x_0| + w                     d_0 = u' (|x_0| + e_0 + r) + w'
    Distance:  e_l = e_{l-1} + u (D + Y) + 6 w       d_l = d_{l-1} + u' s + 6 w',   s = (1 + 4u + 4u') (D + Y + 2 g)
    Shift by a: the same with D = |a| and a factor 1 + 2u, since a is rounded first
    Sorted:    the same with u + gamma_{T+4} in place of u and |shift| in place of Y
    others:    e_l = e_{l-1}, d_l = d_{l-1}
where g = d_{l-1} + r + e_{l-1} >= |y_{l-1} - x_{l-1}|.
*Proof.* The exact layer does not move the difference of its two inputs further. A rounded result fl(a) is off by at
most u |fl(a)|, and the maximum of rounded numbers is a rounded maximum: u D for the subtractions, u Y for the addition.
At x' the distances are at most D (1 + 2u) + g, and what is added up differs from Y by at most g + u D + u' (D + g) and
second-order terms: both together are below s. A weighted mean of sorted distances is at most the largest; gamma counts
its products, its sum and the shift. Results and operands below w may be read as zero, three for each operation. QED
Then, with the pass at the image and the deployed run anywhere in the ball,
    real:      z_y - z_j - 2 e > 2 r              executed:  z_y - z_j - 2 e - 2 d(r) > 2 r
where d is affine in r. Overflow: nothing met is larger than s.

Shape letters: B batch, K classes, L lines, I inputs, O outputs, N rows of windows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.bounds.rounding import round_up
from lipcert.deviation import Deviation, Linear
from lipcert.forward import FloatFormat
from lipcert.layers import Shift
from lipcert.linf import kernels
from lipcert.linf.interval import Cast, rule
from lipcert.linf.layers import DistanceConv, SortedDistance, from_windows, windows
from lipcert.linf.program import DISTANCES
from lipcert.linf.rounding import LOST, UP, Rounding, gamma
from lipcert.program import instructions


@dataclass(frozen=True)
class Sizes:
    """What a run at the images met, float64, column l for line l of the chain; 0 where nothing rounds.

    logits_BK: (B, K). pixels_B: largest |pixel|. distances_BL: D. outputs_BL: Y.
    """

    logits_BK: Tensor
    pixels_B: Tensor
    distances_BL: Tensor
    outputs_BL: Tensor


class Run:
    """A chain of 1-Lipschitz layers in one arithmetic, measuring as it goes."""

    def __init__(self, chain: nn.Sequential, form: FloatFormat, cast: Cast | None = None):
        self.dtype = form.dtype
        plain = Rounding("nominal", form)
        self.lines = [(layer, rule(name, layer, plain, cast)) for name, layer in instructions(chain)]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The fields of `Sizes`, for images on the device of the weights."""
        x = images.to(self.dtype)
        pixels_B, distances, outputs = _largest(x), [], []
        for layer, line in self.lines:
            nothing_B = torch.zeros_like(pixels_B)
            if isinstance(layer, DISTANCES):
                x, distance_B, output_B = self._distance(layer, line, x)
            else:
                x = line(x, x)[0]
                is_shift = isinstance(layer, Shift)
                distance_B = nothing_B + abs(layer.amount) if is_shift else nothing_B
                output_B = _largest(x) if is_shift else nothing_B
            distances.append(distance_B)
            outputs.append(output_B)
        return x.double(), pixels_B, torch.stack(distances, 1), torch.stack(outputs, 1)

    def _distance(self, layer: nn.Module, line, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, D and Y."""
        if isinstance(layer, SortedDistance):
            largest_B = _largest(kernels.top_distances(x, line.weight_OI, 1))
            return line(x, x)[0], largest_B, torch.zeros_like(largest_B) + float(layer.shift.abs().max())
        batch = len(x)
        if isinstance(layer, DistanceConv):
            x, size = windows(x, layer.kernel_size, layer.stride, layer.padding)
        distance_NO = kernels.distance(x, line.weight_OI, math.inf)
        y_NO = distance_NO + line.shift_O
        y = from_windows(y_NO, batch, size) if isinstance(layer, DistanceConv) else y_NO
        return y, _largest(distance_NO.view(batch, -1)), _largest(y)


def _largest(x: Tensor) -> Tensor:
    return x.flatten(1).abs().amax(1).double()


def margin_deviation(chain: nn.Sequential, sizes: Sizes, computed: FloatFormat, deployed: FloatFormat) -> Deviation:
    """e of the logits and d(r) of the deployed run, as `lipcert.margins` takes them.

    computed: the arithmetic that produced `sizes`. deployed: the one the network is run in.
    """
    units = [round_up(form.unit) for form in (computed, deployed)]
    lowest = [round_up(form.smallest) * UP for form in (computed, deployed)]
    # The stored image is rounded once in float64 and, if the pass runs in another arithmetic, once more.
    centre_B = sizes.pixels_B * ((units[0] + 2.0**-52) * UP) + 2 * lowest[0]
    ball = (Linear(sizes.pixels_B + centre_B, torch.ones_like(centre_B)) * units[1] + lowest[1]).up()
    sums = Linear(torch.zeros_like(centre_B), torch.zeros_like(centre_B))
    for index, (name, layer) in enumerate(instructions(chain)):
        if (factors := _factors(name, layer, computed, deployed)) is None:
            continue
        size_B = (sizes.distances_BL[:, index] + sizes.outputs_BL[:, index]) * UP
        apart = Linear(ball.at + centre_B, ball.slope + 1)
        there = ((apart * 2 + size_B) * (1 + 4 * sum(units))).up()
        sums = Linear(torch.maximum(sums.at, there.at), torch.maximum(sums.slope, there.slope))
        centre_B = (centre_B + size_B * factors[0] + 6 * lowest[0]) * UP + LOST
        ball = (ball + there * factors[1] + 6 * lowest[1]).up()
    nothing_BK = torch.zeros_like(sizes.logits_BK)
    return Deviation(centre_B, nothing_BK, ball, Linear(nothing_BK, nothing_BK), sums)


def _factors(name: str, layer: nn.Module, computed: FloatFormat, deployed: FloatFormat) -> tuple[float, float] | None:
    """What the sizes of a line are multiplied by in e and in d; None where nothing rounds."""
    if isinstance(layer, Shift):
        return tuple(round_up(form.unit * (1 + 2 * form.unit)) for form in (computed, deployed))
    if isinstance(layer, SortedDistance):
        terms = len(layer.coefficients())
        # The pass adds up in float64 and rounds the result to its own arithmetic: less than gamma of that arithmetic.
        return tuple((gamma(terms, form, name) + round_up(form.unit)) * UP for form in (computed, deployed))
    return tuple(round_up(form.unit) for form in (computed, deployed)) if isinstance(layer, DISTANCES) else None
