"""The l2 Lipschitz constant of a small piecewise-linear network, enclosed by listing its linear regions.

A network of dense layers, ReLU, MinMax and residual blocks is affine on each of finitely many polyhedra. On a convex
domain its Lipschitz constant is the largest spectral norm among the Jacobians of the regions that have interior points:
almost every segment between two points is cut into pieces that each run through the inside of one region.

Both ends are proven, for the network in real arithmetic:

- a region counts for `lower` when a stored point satisfies all its inequalities strictly, and |Jv| / |v| is computed
  for a stored v; all in whole numbers (weights are floats, hence integers over a power of two);
- a pattern of activations is left out of `upper` only when its inequalities are refuted in whole numbers (module
  `polyhedra`); the norms of the others are bounded by `bounds.verified`, in floats with every rounding counted.

The work grows with the number of regions: some ten thousand are a matter of minutes.
Shape letters: N inputs, F features, S functions whose signs matter, J Jacobians, K outputs; the suffix 1 in N1 stands
for the constant term.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from lipcert.bounds.rounding import TorchArithmetic, root_down, root_up, round_down, round_up
from lipcert.bounds.verified import GramCheck, matrix_norm_squared
from lipcert.chain import plain_chain
from lipcert.layers import MinMax, Shift
from lipcert.polyhedra import Polyhedron, cube, integers, whole_space
from lipcert.program import JOIN, Fork, Instruction, Join, instructions

MOST = 100_000  # regions; more is an error
_CHUNK = 4096  # Jacobians proven at once


@dataclass(frozen=True, eq=False)
class RegionConstant:
    """lower <= Lipschitz constant <= upper, both proven.

    Attributes:
        regions: regions with a checked interior point. open: patterns neither witnessed nor refuted; 0 as a rule.
        jacobians_JKN: the Jacobians of all of them, each entry rounded once; norms_J: their spectral norms, unproven.
        point_N: an interior point of the region behind `lower`. jacobian_KN: the Jacobian there, rounded to float64.
    """

    lower: float
    upper: float
    regions: int
    open: int
    jacobians_JKN: np.ndarray
    norms_J: np.ndarray
    point_N: np.ndarray
    jacobian_KN: np.ndarray


@dataclass(frozen=True)
class _Affine:
    """x -> 2**-scale * exact_FN1 (x, 1), with Python integers."""

    exact_FN1: np.ndarray
    scale: int

    def __add__(self, other: _Affine) -> _Affine:
        scale = max(self.scale, other.scale)
        return _Affine(sum(m.exact_FN1 * (1 << (scale - m.scale)) for m in (self, other)), scale)

    def jacobian(self) -> np.ndarray:
        """(F, N) in float64, each entry rounded once."""
        unit = 1 << self.scale
        return np.array([[n / unit for n in row[:-1]] for row in self.exact_FN1.tolist()])


@dataclass(frozen=True)
class _Region:
    """A polyhedron, what the network computes on it so far, and what open residual blocks will add."""

    where: Polyhedron
    affine: _Affine
    kept: tuple[_Affine, ...] = ()


def lipschitz_by_regions(
    chain: nn.Sequential, inputs: int, box: tuple[float, float] | None = None, most: int = MOST
) -> RegionConstant:
    """Enclosure of the l2 Lipschitz constant of a small network, from all its linear regions; about 1e-9 wide.

    Args:
        chain: nn.Sequential of nn.Linear, nn.ReLU, MinMax, Shift, nn.Flatten, nn.Identity, `Residual` and nn.Sequential
            of such, as it computes in evaluation mode; it is left in the mode it is in.
        inputs: number of inputs. box: (low, high) of every input, or None for the whole space.
        most: stop with an error beyond so many regions.

    Raises:
        TypeError: no nn.Sequential; a layer that is not known to be piecewise linear, has hooks or a replaced forward,
            or overwrites the skip of its block; with its place.
        ValueError: sizes that do not fit, weights that are not finite, an empty box, or more than `most` regions.
    """
    identity = np.array([[int(i == j) for j in range(inputs + 1)] for i in range(inputs)], dtype=object)
    regions = [_Region(whole_space(inputs) if box is None else cube(inputs, *box), _Affine(identity, 0))]
    # A new or sliced Sequential is in training mode, which `plain_chain` refuses; the caller's is not to be changed.
    for name, layer in instructions(plain_chain(copy.deepcopy(chain).eval())):
        regions = [part for region in regions for part in _apply(name, layer, region)]
        if len(regions) > most:
            raise ValueError(f"more than most={most} regions after layer {name!r}: use fewer neurons or inputs")
    return _enclose(regions)


def _apply(name: str, layer: Instruction, region: _Region) -> list[_Region]:
    """What becomes of a region in one layer: itself with another map, or its parts."""
    affine, features = region.affine, len(region.affine.exact_FN1)
    if isinstance(layer, Fork):
        return [replace(region, kept=(*region.kept, affine))]
    if isinstance(layer, Join):
        *kept, skip = region.kept
        if len(skip.exact_FN1) != features:
            block = name.removesuffix(JOIN)
            raise ValueError(f"residual {block!r} adds {len(skip.exact_FN1)} and {features} features: must be equal")
        return [replace(region, affine=skip + affine, kept=tuple(kept))]
    if type(layer) is nn.Linear:
        return [replace(region, affine=_linear(name, layer, affine))]
    if type(layer) is Shift:
        return [replace(region, affine=affine + _constant(-layer.amount, affine))]
    if type(layer) is nn.Identity or (type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)):
        return [region]
    if type(layer) is nn.ReLU:
        return [_relu(part, signs) for part, signs in _parts(region, affine.exact_FN1)]
    if type(layer) is MinMax:
        if features % 2:
            raise ValueError(f"MinMax {name!r} on {features} features: the number must be even")
        first, second = np.split(affine.exact_FN1, 2)
        return [_minmax(part, signs) for part, signs in _parts(region, first - second)]
    raise TypeError(
        f"no linear regions for {type(layer).__name__} at {name!r}: must be Linear, ReLU, MinMax, Shift, "
        "Flatten(1, -1), Identity, Residual or Sequential"
    )


def _linear(name: str, layer: nn.Linear, before: _Affine) -> _Affine:
    features = len(before.exact_FN1)
    if layer.in_features != features:
        raise ValueError(f"Linear {name!r} takes {layer.in_features} features and gets {features}")
    weight = layer.weight.detach().double().cpu().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu().numpy()
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"Linear {name!r} has weights that are not finite: nothing can be proven")
    both, scale = integers(np.column_stack([weight, bias]))
    after = both[:, :-1].dot(before.exact_FN1)
    after[:, -1] += both[:, -1] * (1 << before.scale)
    return _Affine(after, scale + before.scale)


def _constant(value: float, like: _Affine) -> _Affine:
    numerator, denominator = value.as_integer_ratio()
    exact_FN1 = like.exact_FN1 * 0
    exact_FN1[:, -1] += numerator
    return _Affine(exact_FN1, denominator.bit_length() - 1)


def _relu(region: _Region, signs: tuple[int, ...]) -> _Region:
    on_F1 = np.array([[int(s > 0)] for s in signs], dtype=object)
    return replace(region, affine=_Affine(region.affine.exact_FN1 * on_F1, region.affine.scale))


def _minmax(region: _Region, signs: tuple[int, ...]) -> _Region:
    half = len(signs)
    high = [i if s > 0 else i + half for i, s in enumerate(signs)]
    low = [i + half if s > 0 else i for i, s in enumerate(signs)]
    return replace(region, affine=_Affine(region.affine.exact_FN1[high + low], region.affine.scale))


def _parts(region: _Region, exact_SN1: np.ndarray) -> list[tuple[_Region, tuple[int, ...]]]:
    """The region cut where any of S functions changes sign, with the sign of each on every part."""
    parts: list[tuple[Polyhedron, tuple[int, ...]]] = [(region.where, ())]
    for row in exact_SN1.tolist():
        if not any(row[:-1]):  # constant: no boundary, and at 0 both activations agree
            sign = 1 if row[-1] >= 0 else -1
            parts = [(where, (*signs, sign)) for where, signs in parts]
            continue
        divisor = math.gcd(*row)
        sides = [(sign, tuple(sign * n // divisor for n in row)) for sign in (1, -1)]
        parts = [
            (part, (*signs, sign))
            for where, signs in parts
            for sign, side in sides
            if (part := where.side(side)) is not None
        ]
    return [(replace(region, where=where), signs) for where, signs in parts]


def _enclose(regions: list[_Region]) -> RegionConstant:
    jacobians_JKN = np.array([region.affine.jacobian() for region in regions])
    norms_J = np.linalg.norm(jacobians_JKN, ord=2, axis=(1, 2))
    points = [region.where.interior_point() for region in regions]
    witnessed = [j for j, point_N in enumerate(points) if point_N is not None]
    if not witnessed:
        raise ArithmeticError("no region has a checked interior point: the weights are beyond any usual range")
    best = max(witnessed, key=lambda j: norms_J[j])
    return RegionConstant(
        lower=_stretch_at_least(regions[best].affine, jacobians_JKN[best]),
        upper=_norms_at_most(jacobians_JKN),
        regions=len(witnessed),
        open=len(regions) - len(witnessed),
        jacobians_JKN=jacobians_JKN,
        norms_J=norms_J,
        point_N=points[best],
        jacobian_KN=jacobians_JKN[best],
    )


def _stretch_at_least(affine: _Affine, jacobian_KN: np.ndarray) -> float:
    """|Jv| / |v| for the top singular vector v as it is stored, in integers, rounded down."""
    vector_N, _ = integers(np.linalg.svd(jacobian_KN)[2][0])
    image_K = affine.exact_FN1[:, :-1].dot(vector_N)
    squared = Fraction(int(image_K.dot(image_K)), int(vector_N.dot(vector_N))) / 4**affine.scale
    return round_down(root_down(squared))


def _norms_at_most(jacobians_JKN: np.ndarray) -> float:
    """Proven upper end over all Jacobians; what rounding their entries to float64 changed is included."""
    largest = float(np.abs(jacobians_JKN).max())
    unit = 2.0 ** math.frexp(largest)[1] if largest else 0.0
    arithmetic, worst = TorchArithmetic(torch.device("cpu")), Fraction(0)
    with torch.no_grad():
        for part_JKN in torch.from_numpy(jacobians_JKN / unit).split(_CHUNK) if largest else ():
            worst = max(worst, root_up(matrix_norm_squared(GramCheck(part_JKN, arithmetic))[0]))
    # Scaled entries are at most 1, so each was rounded by at most 2**-54, or 2**-1074 before scaling.
    rounding = Fraction(math.prod(jacobians_JKN.shape[1:]), 2**53)
    return round_up((worst + rounding) * Fraction(unit) + Fraction(1, 2**1000))
