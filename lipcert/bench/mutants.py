"""Unsound certifiers, each one line away from the reference: a test bench that lets one of them live is too weak.

Shape letters: B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.bench import reference as parts
from lipcert.bench.exact import in_dtype, operator_matrix
from lipcert.bench.reference import REFERENCE, Reference, Shape, exact_norm, is_steady
from lipcert.bench.state import Bound
from lipcert.bench.verdict import Certify, Claim
from lipcert.bench.wrong_blocks import WRONG_BLOCKS, without_skips
from lipcert.bench.wrong_norms import WRONG_NORMS, power_method
from lipcert.layers import MinMax

GLORO_9, LIRESNET, GLORO = "gloro issue 9", "liresnet", "gloro"
MISTAKE = "a mistake one makes"


@dataclass(frozen=True)
class Mutant:
    """A certifier that must not pass: what is wrong with it, where that was seen, its callables and what they promise.

    bound: None where it is that of the reference.
    """

    name: str
    source: str
    bound: Bound | None
    certify: Certify
    claim: Claim


def _mutant(name: str, source: str, claim: Claim | None = None, **changes) -> Mutant:
    wrong = replace(REFERENCE, **changes)
    bound = wrong.bound if changes.keys() & {"norm", "weighted", "admit"} else None
    return Mutant(name, source, bound, wrong.certify, claim or Claim())


class Remembering:
    """A norm that is computed once for each key."""

    def __init__(self, key: Callable[[nn.Module, Shape], object]) -> None:
        self.key, self.known = key, {}

    def __call__(self, layer: nn.Module, shape: Shape) -> float:
        key = self.key(layer, shape)
        if key not in self.known:
            self.known[key] = (layer, exact_norm(layer, shape))  # with the layer, or its id would be used again
        return self.known[key][1]


class WarmStart:
    """2000 steps of the power method on dense layers, from where it ended on the last one of this shape."""

    def __init__(self) -> None:
        self.vectors: dict[object, Tensor] = {}

    def __call__(self, layer: nn.Module, shape: Shape) -> float:
        if len(shape) > 1:
            return exact_norm(layer, shape)
        matrix = torch.from_numpy(operator_matrix(layer, shape))
        gram = torch.linalg.matrix_power(matrix.T @ matrix / exact_norm(layer, shape) ** 2, 2000)
        start = self.vectors.get(matrix.shape, torch.linspace(1, 2, matrix.shape[1], dtype=torch.float64))
        v = nn.functional.normalize(gram @ start, dim=0, eps=1e-300)
        self.vectors[matrix.shape] = v
        return float((matrix @ v).norm()) * (1 + 1e-9)


def _from_buffer(layer: nn.Module, shape: Shape) -> float:
    stored = next(layer.buffers(), None)
    if stored is None:
        return exact_norm(layer, shape)
    return power_method(layer, shape, start=stored.flatten())


def _as_zeros(mode: str) -> Callable[[nn.Module, Shape], float]:
    def norm(layer: nn.Module, shape: Shape) -> float:
        if getattr(layer, "padding_mode", "") != mode:
            return exact_norm(layer, shape)
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        plain.weight = layer.weight
        return exact_norm(plain, shape)

    return norm


def _known_as(known: dict[type, Callable[[nn.Module], float]]) -> Callable[[nn.Module, Shape], float]:
    return lambda layer, shape: known[type(layer)](layer) if type(layer) in known else parts.refuse(layer, shape)


def _batch_norm(layer: nn.BatchNorm1d) -> float:
    return float((layer.weight.abs() / (layer.running_var + layer.eps).sqrt()).max())


def _residual(layer: nn.Module, shape: Shape) -> float:
    branch = getattr(layer, "branch", None)
    return max(1.0, exact_norm(branch, shape)) if branch is not None else parts.refuse(layer, shape)


def _weighted_subclass(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def _weight_only(layer: nn.Module, shape: Shape) -> float:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(layer.weight.detach())
    return exact_norm(plain, shape)


def _without(check: Callable[[nn.Module], None]) -> tuple[Callable[[nn.Module], None], ...]:
    return tuple(other for other in REFERENCE.admit if other is not check)


def _root_only(model: nn.Module) -> None:
    if model.training:
        raise ValueError("training mode")


def _run_in(rounded: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Layer by layer, weights and activations rounded before each product."""

    def run(model: nn.Module, images_BCHW: Tensor) -> Tensor:
        x = images_BCHW.double()
        for layer in model:
            layer = in_dtype(layer, torch.float64)
            if isinstance(layer, nn.Linear):
                x = nn.functional.linear(rounded(x).double(), rounded(layer.weight).double(), layer.bias)
            else:
                x = layer(x)
        return x

    return run


def _tf32(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def _neighbouring_pairs(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    x = images_BCHW.double()
    for layer in in_dtype(model, torch.float64):
        if type(layer) is MinMax:
            pairs = x.unflatten(1, (-1, 2))
            x = torch.stack([pairs.amax(2), pairs.amin(2)], dim=2).flatten(1, 2)
        else:
            x = layer(x)
    return x


def _without_biases(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    *backbone, head = parts.layers_of(in_dtype(model, torch.float64))
    return nn.Sequential(*backbone)(images_BCHW.double()) @ head.weight.T


def _unit_rows(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    *backbone, head = parts.layers_of(in_dtype(model, torch.float64))
    return nn.Sequential(*backbone)(images_BCHW.double()) @ nn.functional.normalize(head.weight).T + head.bias


def _by_255(images_BCHW: Tensor) -> Tensor:
    return images_BCHW / 255 if parts.admit_images(images_BCHW).max() > 1 else images_BCHW


def _last_columns_cut(images_BCHW: Tensor) -> Tensor:
    return parts.admit_images(images_BCHW)[..., :2] if images_BCHW.shape[1:3] == (1, 1) else images_BCHW


def _ones(weight_KF: Tensor) -> Tensor:
    return torch.ones(len(weight_KF), len(weight_KF), dtype=weight_KF.dtype)


def _tied(logits_BK: Tensor, predicted_B: Tensor) -> Tensor:
    return logits_BK == logits_BK.amax(1, keepdim=True)


def _and_last(logits_BK: Tensor, predicted_B: Tensor) -> Tensor:
    mask_BK = parts.only_own(logits_BK, predicted_B)
    mask_BK[:, -1] |= logits_BK.shape[1] > 2
    return mask_BK


def _second_logit(quotients_BK: Tensor, logits_BK: Tensor) -> Tensor:
    return quotients_BK.gather(1, logits_BK.topk(2, dim=1).indices[:, 1:])[:, 0]


def _no_infinite(quotients_BK: Tensor) -> Tensor:
    return quotients_BK.masked_fill(quotients_BK.isinf(), -math.inf)


def _always(logits_BK: Tensor, slopes_BK: Tensor) -> Tensor:
    return torch.ones(len(logits_BK), dtype=torch.bool)


def _nan_to(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda quotients_BK, logits_BK: quotients_BK.nan_to_num(value, math.inf, -math.inf).amin(1)


def _padded(predicted_B: Tensor, radius_B: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(-(-len(predicted_B) // 8) * 8) % len(predicted_B)
    return predicted_B[rows], radius_B[rows]


def _probabilities(top_B1: Tensor, logits_BK: Tensor) -> Tensor:
    scaled_BK = 50 * logits_BK
    return scaled_BK.softmax(1).amax(1, keepdim=True) - scaled_BK.softmax(1)


def _float32_product(norms: list[float]) -> float:
    return float(torch.tensor(norms, dtype=torch.float32).prod()) * (1 + 1e-5) if norms else 1.0


def _finite_or_one(norms: list[float]) -> float:
    product = math.prod(norms)
    return product if math.isfinite(product) else 1.0


def _with_slack(norm: parts.Norm) -> parts.Norm:
    """As much slack as the reference has, so that a mutant dies of its method and not of a last bit."""

    def slackened(layer: nn.Module, shape: Shape) -> float:
        with np.errstate(all="ignore"):
            return norm(layer, shape) * (1 + parts.SLACK)

    return slackened


def _bounds() -> list[Mutant]:
    wrong = {name: _with_slack(norm) for name, norm in WRONG_NORMS.items()}
    return [_mutant(f"norm: {name}", "norms of layers", norm=norm) for name, norm in wrong.items()] + [
        _mutant("norm: start from a stored buffer", LIRESNET, norm=_from_buffer),
        _mutant("norm: circular padding taken for zeros", MISTAKE, norm=_as_zeros("circular")),
        _mutant("norm: reflecting padding taken for zeros", MISTAKE, norm=_as_zeros("reflect")),
        _mutant("norm: remembered by layer", LIRESNET, norm=Remembering(lambda layer, shape: id(layer))),
        _mutant("norm: remembered by shape", MISTAKE, norm=Remembering(lambda layer, shape: shape)),
        _mutant("norm: warm start from another layer", LIRESNET, norm=WarmStart()),
    ]


def _constants() -> list[Mutant]:
    return [
        _mutant("unknown layer counts as 1", GLORO, unknown=lambda layer, shape: 1.0),
        _mutant("another's residual block: maximum instead of sum", MISTAKE, unknown=_residual),
        _mutant("subclasses pass for their parents", MISTAKE, weighted=_weighted_subclass, norm=_weight_only),
        _mutant("subclass of MinMax passes", MISTAKE, steady=lambda x: is_steady(x) or isinstance(x, MinMax)),
        _mutant("HouseHolder passes whatever its vector", LIRESNET, steady=lambda x: is_steady(x) or hasattr(x, "v")),
        _mutant("normalisation forgotten", MISTAKE, steady=lambda x: is_steady(x) or hasattr(x, "sigma")),
        _mutant("maximum of norms instead of their product", MISTAKE, product=lambda norms: max(norms, default=1.0)),
        _mutant("sum of norms instead of their product", MISTAKE, product=lambda norms: sum(norms) if norms else 1.0),
        _mutant("first layer forgotten", MISTAKE, product=lambda norms: math.prod(norms[1:])),
        _mutant("last layer forgotten", MISTAKE, product=lambda norms: math.prod(norms[:-1])),
        _mutant("root of the product", MISTAKE, product=lambda norms: math.sqrt(math.prod(norms))),
        _mutant("product in float32", LIRESNET, product=_float32_product),
        _mutant("infinite constant counts as 1", "L = NaN", product=_finite_or_one),
        _mutant("norms at the size of the output", "layers swapped", seen=lambda layer, b, a: a if len(a) == 3 else b),
        _mutant("a layer that stands twice counts once", MISTAKE, layers=lambda model: list(dict.fromkeys(model))),
    ]


def _blocks() -> list[Mutant]:
    found = [_mutant(f"residual block: {name}", MISTAKE, residual=rule) for name, rule in WRONG_BLOCKS.items()]
    return [*found, _mutant("residual block: run without its skip", MISTAKE, run=without_skips)]


def _models() -> list[Mutant]:
    dropouts = _known_as({nn.Dropout: lambda layer: 1.0, nn.AlphaDropout: lambda layer: 1.0})
    norms = _known_as({nn.BatchNorm1d: _batch_norm})
    shallow = (parts.plain_sequential, _root_only, parts.no_hooks, parts.no_replaced_forward)
    return [
        _mutant("dropout left on", MISTAKE, admit=_without(parts.no_training), unknown=dropouts),
        _mutant("one dropout left on", MISTAKE, admit=shallow, unknown=dropouts),
        _mutant("BatchNorm in training mode", MISTAKE, admit=_without(parts.no_training), unknown=norms),
        _mutant("hooks not looked for", MISTAKE, admit=_without(parts.no_hooks)),
        _mutant("replaced forward not looked for", MISTAKE, admit=_without(parts.no_replaced_forward)),
        _mutant("subclass of Sequential passes", MISTAKE, admit=_without(parts.plain_sequential)),
        _mutant("pixels above 1 divided by 255 in silence", MISTAKE, images=_by_255),
        _mutant("images cut to the size of the network", MISTAKE, images=_last_columns_cut),
        _mutant("radius in units of 0 to 255", MISTAKE, finish=lambda radius_B: 255 * radius_B),
        _mutant("padded evaluation set", "DistributedSampler", answer=_padded),
    ]


def _verdicts() -> list[Mutant]:
    distances = parts.row_distances
    unit = nn.functional.normalize
    return [
        _mutant("ties masked", GLORO_9, no_rivals=_tied),
        _mutant("last class forgotten", MISTAKE, no_rivals=_and_last),
        _mutant("at least instead of more than", LIRESNET, finish=lambda radius_B: radius_B),
        _mutant("NaN quotient counts as no limit", LIRESNET, reduce=_nan_to(math.inf), sound=_always),
        _mutant("infinite logits pass", LIRESNET, sound=_always),
        _mutant("minus infinite rivals pass", "gloro", sound=lambda logits_BK, s: logits_BK.amax(1).isfinite()),
        _mutant("runner-up by the second logit", GLORO, reduce=_second_logit),
        _mutant("maximum over rivals", MISTAKE, reduce=lambda q, _: _no_infinite(q).amax(1)),
        _mutant("mean over rivals", MISTAKE, reduce=lambda q, _: q.masked_fill(q.isinf(), 0).sum(1) / (q.shape[1] - 1)),
        _mutant("largest radius of the batch for all", MISTAKE, answer=lambda p, r: (p, r.amax().expand_as(r))),
        _mutant("mean radius of the batch for all", MISTAKE, answer=lambda p, r: (p, r.mean().expand_as(r))),
        _mutant("order of the batch reversed", MISTAKE, answer=lambda p, r: (p, r.flip(0))),
        _mutant("distance of rows dropped", MISTAKE, distances=_ones),
        _mutant("distance of rows as sqrt 2", MISTAKE, distances=lambda w: 2**0.5 * _ones(w)),
        _mutant("distance of normalised rows", MISTAKE, distances=lambda w: distances(unit(w))),
        _mutant("length of the own row only", MISTAKE, distances=lambda w: w.norm(dim=1)[:, None] * _ones(w)),
        _mutant("largest entry for the distance of rows", MISTAKE, distances=lambda w: (w[:, None] - w).abs().amax(2)),
        _mutant("half the distance of rows", MISTAKE, distances=lambda w: distances(w) / 2),
        _mutant("prediction is class 0", MISTAKE, answer=lambda p, r: (torch.zeros_like(p), r)),
        _mutant("margins of probabilities", MISTAKE, margins=_probabilities),
        _mutant("head evaluated with normalised rows", LIRESNET, run=_unit_rows),
        _mutant("biases forgotten", MISTAKE, run=_without_biases),
        _mutant("activation with other pairs", MISTAKE, run=_neighbouring_pairs),
        _mutant("logits in TF32", LIRESNET, run=_run_in(_tf32)),
        _mutant("logits in bfloat16", LIRESNET, run=_run_in(lambda x: x.bfloat16())),
        _mutant("logits in float32", LIRESNET, run=lambda m, x: in_dtype(m, torch.float32)(x.float()).double()),
        _mutant("radius rounded to six digits", MISTAKE, finish=lambda r: (r * 1e6).round() / 1e6),
        _mutant("radius one millionth too large", MISTAKE, finish=lambda r: r * (1 + 1e-6)),
    ]


def _promises() -> list[Mutant]:
    """The reference itself is a mutant where rounding counts: it leaves all of it out."""
    claims = (Claim("real"), Claim("executed", "float64"), Claim("executed", "float32"))
    return [
        _mutant(f"all rounding ignored: {claim.guarantee}, {claim.arithmetic}", "nominal sold as more", claim=claim)
        for claim in claims
    ]


def mutants() -> list[Mutant]:
    """All of them, made anew, for some remember what they have seen."""
    return [*_bounds(), *_constants(), *_blocks(), *_models(), *_verdicts(), *_promises()]


def public_power_method() -> Reference:
    """The negative control: a certifier whose norms are 500 steps of the power method in float32 from ones."""
    return replace(REFERENCE, norm=power_method)
