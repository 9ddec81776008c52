"""A plain chain of torch layers and its proven constants: what a certificate is about. The unknown is refused.

Shape letters: K classes, C H W image, F features.
"""

import copy
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.bounds.rounding import round_down, round_up
from lipcert.deviation import Step, steps
from lipcert.forward import DROPOUTS, output_shape
from lipcert.layers import MinMax, Shift
from lipcert.models.network import Network
from lipcert.models.stored import geometry
from lipcert.power import norm_estimate
from lipcert.provenance import tensors_sha256
from lipcert.threads import one_thread_each

_ESTIMATE_STEPS = 500  # what public codes use when they evaluate
_ONE_LIPSCHITZ = (MinMax, Shift, nn.Flatten, nn.ZeroPad2d, nn.ReLU, nn.Identity)


class NotCertifiable(ValueError):
    """Nothing can be promised for this model, input or request; the message says why and what would work."""


@dataclass(frozen=True)
class LayerBound:
    """Enclosure of one layer's l2 norm (a factor 1 for layers that sort, shift, pad or reshape)."""

    name: str
    kind: str
    enclosure: Enclosure


@dataclass(frozen=True, eq=False)
class ChainBounds:
    """Constants of a plain chain. `upper` and `lower` are proven products over the backbone.

    `margin_lipschitz_KK` is rounded up: no margin z_i - z_j shrinks faster than K_ij per unit of l2 distance.
    `lower` is the product of the layers' lower ends; the chain's own constant may be smaller than that product.
    `distances_KK` are the head's |w_i - w_j|, rounded up. `plan` is what rounding errors are bounded from.
    `proven_for` identifies the layers, weights and input shape, so that bounds serve no other chain.

    `estimates`, `estimate` and `margin_estimate_KK` are what the power method says, for comparison only; it is run when
    one of them is first asked for.
    """

    layers: tuple[LayerBound, ...]
    plan: tuple[Step, ...]
    lower: float
    upper: float
    distances_KK: Tensor
    margin_lipschitz_KK: Tensor
    input_shape: tuple[int, ...]
    effort: str
    proven_for: str
    chain: nn.Sequential = field(repr=False)

    @functools.cached_property
    def estimates(self) -> tuple[float, ...]:
        """Norm of each layer of the backbone by the power method: 500 steps from noise, as public codes do."""

        def estimate(place: tuple[nn.Module, Step]) -> float:
            layer, step = place
            with torch.no_grad():  # a setting of each thread
                return float(norm_estimate(layer, step.input_shape, steps=_ESTIMATE_STEPS)) if step.affine else 1.0

        # In float64, so that what is missing to the bound is the power method's own doing.
        double = copy.deepcopy(self.chain).double()
        with one_thread_each(double[-1].weight.device) as workers:
            return tuple(workers(estimate, list(zip(double, self.plan, strict=True))[:-1]))

    @property
    def estimate(self) -> float:
        """Product of the estimates."""
        return math.prod(self.estimates)

    @functools.cached_property
    def margin_estimate_KK(self) -> Tensor:
        """The margin constants as the power method would have them."""
        rows_KF = self.chain[-1].weight.detach().double().cpu()
        return self.estimate * torch.cdist(rows_KF, rows_KF, compute_mode="donot_use_mm_for_euclid_dist")


def plain_chain(model: nn.Module) -> nn.Sequential:
    """The chain of ordinary layers that gets certified: a `Network` materialised, a nested `nn.Sequential` flattened.

    Raises:
        NotCertifiable: a model in training mode. TypeError: neither a `Network` nor an `nn.Sequential`.
    """
    if type(model) is Network:
        _refuse_replaced((name or "model", layer) for name, layer in model.named_modules())
        return model.plain()
    if type(model) is not nn.Sequential:
        raise TypeError(
            f"cannot certify {type(model).__name__}: give a lipcert Network or an nn.Sequential of plain layers"
        )
    if model.training:
        raise NotCertifiable("the model is in training mode: call model.eval() first")
    _refuse_replaced([("model", model)])
    flat = nn.Sequential()
    for name, layer in _leaves(model, ""):
        if layer.training:
            raise NotCertifiable(f"layer {name!r} is in training mode: call model.eval() first")
        if name in flat._modules:
            raise TypeError(f"two layers are called {name!r} once nested Sequentials are joined: rename one")
        flat.add_module(name, layer)
    flat.training = False
    return flat


def _leaves(model: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Layers of nested Sequentials in order, "outer_inner" by name; dropout in evaluation mode is the identity."""
    for name, layer in layers_of(model):
        _refuse_replaced([(prefix + name, layer)])
        if type(layer) is nn.Sequential:
            yield from _leaves(layer, f"{prefix}{name}_")
        else:
            yield prefix + name, nn.Identity().eval() if isinstance(layer, DROPOUTS) and not layer.training else layer


def _refuse_replaced(layers: Iterable[tuple[str, nn.Module]]) -> None:
    for name, layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            raise TypeError(
                f"{type(layer).__name__} {name!r} has hooks or a replaced forward, so what it computes is unknown"
            )


def fingerprint(chain: nn.Sequential, input_shape: tuple[int, ...]) -> str:
    """What bounds depend on: layers with their settings, weights, input shape."""
    plan = json.dumps([geometry(chain), input_shape])
    return hashlib.sha256((plan + tensors_sha256(chain.state_dict())).encode()).hexdigest()


def layers_of(chain: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Names and layers in order. A layer that stands twice is listed twice, unlike in `named_children`."""
    return list(chain._modules.items())


@torch.no_grad()
def chain_bounds(chain: nn.Sequential, input_shape: tuple[int, ...], effort: str = "fast") -> ChainBounds:
    """Proven constants of a plain chain for inputs of this shape (C, H, W). Layers are shared out over torch's threads.

    Raises:
        TypeError: a layer without a bound (named, with its place) or a last layer that is not nn.Linear.
        ValueError: weights that are not finite, or sizes that do not fit.
    """
    if not len(chain):
        raise TypeError("the model has no layers: margins need an nn.Linear at the end")
    *backbone, (head_name, head) = layers_of(chain)
    if type(head) is not nn.Linear:
        raise TypeError(f"last layer {head_name!r} is {type(head).__name__}: margins need an nn.Linear")
    shapes, shape = [], tuple(input_shape)
    for name, layer in backbone:
        shapes.append(shape)
        _check_layer(name, layer, shape)
        try:
            shape = output_shape(layer, shape)
        except (RuntimeError, ValueError) as error:
            raise NotCertifiable(f"layer {name!r} cannot take an input of shape {shape}: {error}") from error
    if shape != (head.in_features,):
        raise NotCertifiable(
            f"input of shape {tuple(input_shape)} reaches the head {head_name!r} as {shape}, "
            f"which takes ({head.in_features},)"
        )
    places = [(name, layer, shape) for (name, layer), shape in zip(backbone, shapes, strict=True)]
    with one_thread_each(head.weight.device) as workers:
        layers = list(workers(lambda place: _layer_bound(*place, effort), places))
    upper = round_up(math.prod((Fraction(b.enclosure.upper) for b in layers), start=Fraction(1)))
    lower = round_down(math.prod((Fraction(b.enclosure.lower) for b in layers), start=Fraction(1)))
    distances_KK = _distances_up(head.weight)
    off_diagonal = ~torch.eye(head.out_features, dtype=torch.bool)
    return ChainBounds(
        layers=tuple(layers),
        plan=tuple(steps(chain, tuple(input_shape), [bound.enclosure.upper for bound in layers])),
        lower=lower,
        upper=upper,
        distances_KK=distances_KK,
        margin_lipschitz_KK=torch.where(off_diagonal, _step_up(distances_KK * upper), 0.0),
        input_shape=tuple(input_shape),
        effort=effort,
        proven_for=fingerprint(chain, tuple(input_shape)),
        chain=copy.deepcopy(chain),
    )


def _layer_bound(name: str, layer: nn.Module, shape: tuple[int, ...], effort: str) -> LayerBound:
    kind = type(layer).__name__
    if type(layer) in _ONE_LIPSCHITZ:
        return LayerBound(name, kind, Enclosure(1.0, 1.0, "1-Lipschitz"))
    try:
        enclosure = norm_bound(layer, shape, effort=effort)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    if not math.isfinite(enclosure.upper):
        raise NotCertifiable(f"layer {name!r}: its norm is too large for float64; scale the weights")
    return LayerBound(name, kind, enclosure)


def _check_layer(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse what has no bound, and settings and inputs under which a layer does something else than its name says."""
    if type(layer) not in (*_ONE_LIPSCHITZ, nn.Conv2d, nn.Linear):
        raise TypeError(f"no l2 bound for {type(layer).__name__} at {name!r}: give the layer a bound or remove it")
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        raise TypeError(f"Flatten {name!r} over dimensions {layer.start_dim}..{layer.end_dim}: must be 1..-1")
    if type(layer) is MinMax and (not shape or shape[0] % 2):
        raise TypeError(f"MinMax {name!r} on an input of shape {shape}: the first dimension must be even")
    if type(layer) is nn.ZeroPad2d and len(shape) != 3:
        raise TypeError(f"ZeroPad2d {name!r} on an input of shape {shape}: must be (C, H, W)")
    if type(layer) is Shift and not (isinstance(layer.amount, float) and math.isfinite(layer.amount)):
        raise TypeError(f"Shift {name!r} by {layer.amount!r}: must be one finite float")


def _distances_up(weight_KF: Tensor) -> Tensor:
    """|w_i - w_j| in float64, rounded up, (K, K).

    Difference, square and sum of F terms in any order have relative error below (F + 4) u in the root's argument (all
    terms are non-negative), the root one more u; squares that underflow lose at most F 2^-1022. The factor and the
    added term cover both.
    """
    rows_KF = weight_KF.detach().double().cpu()
    features = rows_KF.shape[1]
    lost = round_up(Fraction(math.isqrt(features) + 1)) * 2.0**-511
    out = [(rows_KF - row_F).square().sum(1).sqrt() * (1 + 2 * (features + 8) * 2.0**-53) + lost for row_F in rows_KF]
    return _step_up(torch.stack(out))


def _step_up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))
