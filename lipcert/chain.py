"""A plain chain of torch layers and its proven constants: what a certificate is about. The unknown is refused.

Shape letters: K classes, C H W image, F features.
"""

import copy
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds import Enclosure, norm_bound
from lipcert.bounds.rounding import round_down, round_up
from lipcert.deviation import Step, steps
from lipcert.forward import DROPOUTS, Place, places
from lipcert.layers import MinMax, Residual, Shift
from lipcert.models.network import Network
from lipcert.models.stored import geometry
from lipcert.power import norm_estimate
from lipcert.program import JOIN, Fork, Join, instructions
from lipcert.provenance import tensors_sha256
from lipcert.threads import one_thread_each

_ESTIMATE_STEPS = 500  # what public codes use when they evaluate
_ONE_LIPSCHITZ = (MinMax, Shift, nn.Flatten, nn.ZeroPad2d, nn.ReLU, nn.Identity)


class NotCertifiable(ValueError):
    """Nothing can be promised for this model, input or request; the message says why and what would work."""


@dataclass(frozen=True)
class LayerBound:
    """Enclosure of one layer's l2 norm (a factor 1 for layers that sort, shift, pad or reshape).

    A residual block x + g(x) is one factor as well; `branch` has the layers of g, whose ends are no factors of the
    chain's. With c the product of their upper ends, max(0, 1 - c) <= Lip(x + g) <= 1 + c, by the triangle inequality
    either way. Nothing better is known of every g, and it is loose: a linear block has the norm |I + G|, which 1 + |G|
    exceeds unless skip and branch point the same way, and over many blocks the factors multiply (arXiv 2301.12549,
    section 4). The lower end is 0 as soon as c reaches 1.
    """

    name: str
    kind: str
    enclosure: Enclosure
    branch: tuple["LayerBound", ...] = ()


@dataclass(frozen=True, eq=False)
class ChainBounds:
    """Constants of a plain chain. `upper` and `lower` are proven products over the backbone.

    `margin_lipschitz_KK` is rounded up: no margin z_i - z_j shrinks faster than K_ij per unit of l2 distance.
    `lower` is the product of the layers' lower ends; the chain's own constant may be smaller than that product.
    `layers` are those of the backbone in order, a residual block counting as one. `distances_KK` are the head's
    |w_i - w_j|, rounded up. `plan` is what rounding errors are bounded from, one step a line of the program.
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
        """Norm of each of `layers` by the power method: 500 steps from noise, as public codes do."""
        return tuple(map(self.estimate_of, self.layers))

    def estimate_of(self, bound: LayerBound) -> float:
        """The same for one of `layers` or a layer inside of a branch; a residual block has 1 + its branch's product."""
        if bound.branch:
            return 1.0 + math.prod(map(self.estimate_of, bound.branch))
        return self._measured.get(bound.name, 1.0)

    @functools.cached_property
    def _measured(self) -> dict[str, float]:
        """Estimates of the affine layers by name."""

        def measure(line: tuple[str, nn.Module, Step]) -> tuple[str, float]:
            name, layer, step = line
            with torch.no_grad():  # a setting of each thread
                return name, float(norm_estimate(layer, step.input_shape, steps=_ESTIMATE_STEPS))

        # In float64, so that what is missing to the bound is the power method's own doing.
        double = copy.deepcopy(self.chain).double()
        lines = [(*line, step) for line, step in zip(instructions(double), self.plan, strict=True) if step.affine]
        with one_thread_each(double[-1].weight.device) as workers:
            return dict(workers(measure, lines[:-1]))

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

    The same inside of the branches of residual blocks.

    Raises:
        NotCertifiable: a model in training mode. TypeError: neither a `Network` nor an `nn.Sequential`.
    """
    if type(model) is Network:
        _refuse_replaced((name or "model", layer) for name, layer in model.named_modules())
        model = model.plain()
    if type(model) is not nn.Sequential:
        raise TypeError(
            f"cannot certify {type(model).__name__}: give a lipcert Network or an nn.Sequential of plain layers"
        )
    if model.training:
        raise NotCertifiable("the model is in training mode: call model.eval() first")
    _refuse_replaced([("model", model)])
    return _flat(model, "")


def _flat(model: nn.Sequential, prefix: str) -> nn.Sequential:
    """Layers of nested Sequentials in order, "outer_inner" by name; `prefix` is where they are, for messages."""
    flat = nn.Sequential()
    for name, layer in _leaves(model, "", prefix):
        if name in flat._modules:
            raise TypeError(f"two layers are called {prefix + name!r} once nested Sequentials are joined: rename one")
        flat.add_module(name, layer)
    flat.training = False
    return flat


def _leaves(model: nn.Sequential, outer: str, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Dropout in evaluation mode is the identity; a residual block is rebuilt around its flat branch."""
    for name, layer in layers_of(model):
        name = outer + name
        place = prefix + name
        _refuse_replaced([(place, layer)])
        if type(layer) is nn.Sequential:
            yield from _leaves(layer, f"{name}_", prefix)
            continue
        if layer.training:
            raise NotCertifiable(f"layer {place!r} is in training mode: call model.eval() first")
        if type(layer) is Residual:
            _refuse_replaced([(f"{place}.branch", layer.branch)])
            if type(layer.branch) is not nn.Sequential:
                raise TypeError(f"Residual {place!r} around {type(layer.branch).__name__}: must be an nn.Sequential")
            layer = Residual(_flat(layer.branch, f"{place}.branch.")).eval()
        yield name, nn.Identity().eval() if type(layer) in DROPOUTS else layer


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
        NotCertifiable: a weight or bias that is not finite (named), or sizes that do not fit.
    """
    head = chain[-1] if len(chain) else None
    if type(head) is not nn.Linear:
        last = f"the last is {type(head).__name__} {list(chain._modules)[-1]!r}" if len(chain) else "there is none"
        raise TypeError(f"margins need an nn.Linear as last layer: {last}")
    *backbone, at_head = _program(chain, tuple(input_shape))
    if at_head.shape != (head.in_features,):
        raise NotCertifiable(
            f"input of shape {tuple(input_shape)} reaches the head {at_head.name!r} as {at_head.shape}, "
            f"which takes ({head.in_features},)"
        )
    with one_thread_each(head.weight.device) as workers:
        flat = list(workers(lambda place: _layer_bound(place, effort), backbone))
    layers = _blocks(flat)
    upper = round_up(_product(layers, "upper"))
    lower = round_down(_product(layers, "lower"))
    distances_KK = _distances_up(head.weight)
    off_diagonal = ~torch.eye(head.out_features, dtype=torch.bool)
    return ChainBounds(
        layers=layers,
        plan=tuple(steps([*backbone, at_head], [*(bound.enclosure.upper for bound in flat), 1.0])),
        lower=lower,
        upper=upper,
        distances_KK=distances_KK,
        margin_lipschitz_KK=torch.where(off_diagonal, _step_up(distances_KK * upper), 0.0),
        input_shape=tuple(input_shape),
        effort=effort,
        proven_for=fingerprint(chain, tuple(input_shape)),
        chain=copy.deepcopy(chain),
    )


def _program(chain: nn.Sequential, input_shape: tuple[int, ...]) -> list[Place]:
    """The program with its shapes, every layer known."""
    try:
        return places(chain, input_shape, _check_layer)
    except ValueError as error:
        raise NotCertifiable(str(error)) from error


def _layer_bound(place: Place, effort: str) -> LayerBound:
    layer, kind = place.layer, type(place.layer).__name__
    if type(layer) in (*_ONE_LIPSCHITZ, Fork, Join):
        return LayerBound(place.name, kind, Enclosure(1.0, 1.0, "1-Lipschitz"))
    try:
        enclosure = norm_bound(layer, place.shape, effort=effort)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {place.name!r}: {error}") from error
    _check_finite(place.name, enclosure.upper)
    return LayerBound(place.name, kind, enclosure)


def _blocks(flat: Sequence[LayerBound]) -> tuple[LayerBound, ...]:
    """The bounds of the program's lines with every residual block put together."""
    found: list[list[LayerBound]] = [[]]
    for bound in flat:
        if bound.kind == Fork.__name__:
            found.append([])
        elif bound.kind == Join.__name__:
            branch = tuple(found.pop())
            name, stretch = bound.name.removesuffix(JOIN), _product(branch, "upper")
            lower, upper = round_down(max(1 - stretch, Fraction(0))), round_up(1 + stretch)
            _check_finite(name, upper)
            enclosure = Enclosure(lower, upper, "triangle inequality")
            found[-1].append(LayerBound(name, Residual.__name__, enclosure, branch))
        else:
            found[-1].append(bound)
    return tuple(found[0])


def _product(layers: Sequence[LayerBound], end: str) -> Fraction:
    return math.prod((Fraction(getattr(b.enclosure, end)) for b in layers), start=Fraction(1))


def _check_finite(name: str, upper: float) -> None:
    if not math.isfinite(upper):
        raise NotCertifiable(f"layer {name!r}: its norm is too large for float64; scale the weights")


def _check_layer(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    if type(layer) not in (*_ONE_LIPSCHITZ, nn.Conv2d, nn.Linear):
        raise TypeError(f"no l2 bound for {type(layer).__name__} at {name!r}: give the layer a bound or remove it")
    check_settings(name, layer, shape)


def check_settings(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse what is not finite, and settings and inputs under which a layer's name misleads, whatever the norm.

    Raises:
        TypeError: settings or an input shape. NotCertifiable: a weight or bias.
    """
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        raise TypeError(f"Flatten {name!r} over dimensions {layer.start_dim}..{layer.end_dim}: must be 1..-1")
    if type(layer) is MinMax and (not shape or shape[0] % 2):
        raise TypeError(f"MinMax {name!r} on an input of shape {shape}: the first dimension must be even")
    if type(layer) is nn.ZeroPad2d and len(shape) != 3:
        raise TypeError(f"ZeroPad2d {name!r} on an input of shape {shape}: must be (C, H, W)")
    if type(layer) is Shift and not (isinstance(layer.amount, float) and math.isfinite(layer.amount)):
        raise TypeError(f"Shift {name!r} by {layer.amount!r}: must be one finite float")
    for key, tensor in layer.state_dict().items():
        if not (finite := tensor.isfinite()).all():
            raise NotCertifiable(
                f"{name}.{key} holds {tensor[~finite][0].item()}: every weight and bias must be finite; "
                "load or train the network again"
            )


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
