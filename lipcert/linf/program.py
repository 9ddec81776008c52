"""Which chains are certified in l_inf, and the constants their records show.

Shape letters: K classes, C H W image.
"""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds import Enclosure
from lipcert.bounds.rounding import round_up
from lipcert.chain import LayerBound, NotCertifiable, check_settings
from lipcert.forward import AFFINE, FORMATS
from lipcert.layers import MinMax, Residual, Shift
from lipcert.linf.interval import rule
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance
from lipcert.linf.rounding import Rounding
from lipcert.program import Fork, Join, instructions

DISTANCES = (Distance, DistanceConv, SortedDistance)
ONE_LIPSCHITZ = (nn.Flatten, nn.ZeroPad2d, Shift, nn.ReLU, MinMax, nn.Identity, Negate, *DISTANCES)
"""1-Lipschitz from l_inf to l_inf, whatever the weights, and off by one rounding or a short sum at most."""


@dataclass(frozen=True, eq=False)
class LinfBounds:
    """Constants of a chain for distances in l_inf, both at the input and between logits.

    For a chain of `ONE_LIPSCHITZ` layers no logit moves faster than 1 and no margin faster than 2, and nothing is
    estimated. Of other chains, which the interval pass alone certifies, `upper` is a product of row sums, shown and
    used nowhere, and nothing is claimed by estimate.

    margin_lipschitz_KK, distances_KK: 2 off the diagonal, or infinite. layers: empty unless all are 1-Lipschitz.
    """

    layers: tuple[LayerBound, ...]
    lower: float
    upper: float
    margin_lipschitz_KK: Tensor
    input_shape: tuple[int, ...]
    effort: str

    @property
    def lipschitz(self) -> bool:
        """Whether the margin rule holds."""
        return bool(self.layers)

    @property
    def distances_KK(self) -> Tensor:
        """How much a common error of the logits can change a margin."""
        return self.margin_lipschitz_KK

    @property
    def estimate(self) -> float:
        """Equal to `upper`: there is nothing that the power method would say."""
        return self.upper

    @functools.cached_property
    def estimates(self) -> tuple[float, ...]:
        """One for each of `layers`."""
        return tuple(bound.enclosure.upper for bound in self.layers)

    @property
    def margin_estimate_KK(self) -> Tensor:
        """The margin constants themselves; infinite, and so no radius by estimate, where there are none."""
        return self.margin_lipschitz_KK


@torch.no_grad()
def linf_bounds(chain: nn.Sequential, input_shape: tuple[int, ...], effort: str = "fast") -> LinfBounds:
    """Check a plain chain for inputs of this shape (C, H, W) and state its constants.

    Raises:
        TypeError: a layer without an interval rule, by name and place.
        NotCertifiable: weights that are not finite, sizes that do not fit, or fewer than two classes.
    """
    program = instructions(chain)
    classes = _run_shapes(chain, tuple(input_shape))
    lipschitz = all(_is_one_lipschitz(name, layer) for name, layer in program)
    one = Enclosure(1.0, 1.0, "1-Lipschitz")
    margin_KK = torch.full((classes, classes), 2.0 if lipschitz else math.inf, dtype=torch.float64)
    return LinfBounds(
        layers=tuple(LayerBound(name, type(layer).__name__, one) for name, layer in program) if lipschitz else (),
        lower=1.0 if lipschitz else 0.0,
        upper=1.0 if lipschitz else _row_sums(chain),
        margin_lipschitz_KK=margin_KK.fill_diagonal_(0.0),
        input_shape=tuple(input_shape),
        effort=effort,
    )


def check_margin_rule(chain: nn.Sequential) -> None:
    """Refuse the first layer that can stretch l_inf distances.

    Raises:
        NotCertifiable: its name, place and the way out.
    """
    for name, layer in chain._modules.items():
        if not _is_one_lipschitz(name, layer):
            raise NotCertifiable(
                f"no l_inf margin rule for {type(layer).__name__} at {name!r}: it can move its output further than its "
                "input moves; use method='interval'"
            )


def check_subnormal(chain: nn.Sequential, rounding: Rounding) -> None:
    """Refuse weights of distance layers that a processor may read as zero: then the deployed neuron is another one."""
    smallest = float(rounding.form.smallest)
    for name, layer in instructions(chain):
        if isinstance(layer, DISTANCES):
            for key, tensor in layer.state_dict().items():
                if ((tensor != 0) & (tensor.double().abs() < smallest)).any():
                    raise NotCertifiable(
                        f"{name}.{key} holds numbers below {smallest:g}, which processors may flush in "
                        f"{rounding.form.name}: set them to 0"
                    )


def _run_shapes(chain: nn.Sequential, shape: tuple[int, ...]) -> int:
    """Number of classes; every layer checked at the shape that reaches it."""
    x = torch.zeros(1, *shape, dtype=torch.float64, device=next((p.device for p in chain.parameters()), None))
    remembered = []
    for name, layer in instructions(chain):
        if isinstance(layer, Fork):
            remembered.append(x)
        elif isinstance(layer, Join):
            if (before := remembered.pop()).shape != x.shape:
                raise NotCertifiable(
                    f"layer {name!r}: the branch makes {tuple(x.shape[1:])} of {tuple(before.shape[1:])}; "
                    "it must keep the shape"
                )
        else:
            check_layer(name, layer, tuple(x.shape[1:]))
            try:
                x = rule(name, layer, Rounding("nominal", FORMATS["float64"]))(x, x)[0]
            except (RuntimeError, ValueError) as error:
                raise NotCertifiable(
                    f"layer {name!r} cannot take an input of shape {tuple(x.shape[1:])}: {error}"
                ) from error
    if x.ndim != 2 or x.shape[1] < 2:
        raise NotCertifiable(f"outputs of shape {tuple(x.shape[1:])}: must be one logit for each of at least 2 classes")
    return x.shape[1]


def check_layer(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse what has no rule, what is not finite, and settings and inputs under which a layer's name misleads."""
    kind = type(layer)
    if kind not in (*ONE_LIPSCHITZ, *AFFINE, nn.Tanh):
        raise TypeError(f"no l_inf rule for {kind.__name__} at {name!r}: give the layer one or remove it")
    if kind is nn.Conv2d and layer.padding_mode not in ("zeros", "circular"):
        raise TypeError(f"Conv2d {name!r} with padding_mode={layer.padding_mode!r}: must be 'zeros' or 'circular'")
    check_settings(name, layer, shape)
    if kind is SortedDistance and not all(c >= 0 for c in _coefficients(name, layer)):
        raise NotCertifiable(f"SortedDistance {name!r} with keep={layer.keep}: must be in (0, 1]")


def _coefficients(name: str, layer: SortedDistance) -> list[float]:
    try:
        return layer.coefficients().tolist()
    except (ArithmeticError, ValueError, TypeError) as error:
        raise NotCertifiable(f"SortedDistance {name!r} with keep={layer.keep}: must be in (0, 1]") from error


def _is_one_lipschitz(name: str, layer: nn.Module) -> bool:
    """By its kind; a weighted mean if its weights add up to at most 1, exactly, as the floats they are."""
    if type(layer) is SortedDistance:
        return sum(map(Fraction, _coefficients(name, layer))) <= 1
    return type(layer) in ONE_LIPSCHITZ


def _row_sums(chain: nn.Sequential) -> float:
    """A bound on the Lipschitz constant in l_inf: largest row sums of |W| multiplied, 1 + c for a block around c."""
    product = Fraction(1)
    for name, layer in chain._modules.items():
        if isinstance(layer, AFFINE):
            rows = layer.weight.detach().double().abs().flatten(1)
            factor = Fraction(float(rows.sum(1).max())) * (1 + Fraction(rows.shape[1], 2**51))
        elif isinstance(layer, Residual):
            factor = 1 + Fraction(_row_sums(layer.branch))
        elif isinstance(layer, SortedDistance):
            factor = sum(map(Fraction, _coefficients(name, layer)))
        else:
            factor = Fraction(1)
        product *= factor
    return round_up(product)
