"""Arithmetic that is as wrong as its error model allows, in the direction that hurts, and mutants of its bookkeeping.

The unit roundoff and the underflow threshold are set large, so that float64 shows their effect almost exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import cycle

import torch
from torch import Tensor

from lipcert.bounds.rounding import Arithmetic

BOOKKEEPING = ("gamma", "flushed", "sum_at_most", "sum_at_least")


class HostileArithmetic(Arithmetic):
    """Every operation errs by the whole of what `Arithmetic` allows.

    product: "down" lowers every entry (worst for matrices without negative entries), "up" raises its size, "shrink"
    lowers its size, "along" lowers a Gram matrix along its top eigenvector and shrinks any other product.
    squares: -1 or +1 for each call in turn. Sums are lowered. Differences from a scalar are raised, others shrunk.
    """

    def __init__(self, unit: float, underflow: float, product: str = "down", squares: Iterable[int] = (-1,)) -> None:
        self.unit = Fraction(unit)
        self.underflow = Fraction(underflow)
        self.direction = product
        self.square_signs = cycle(squares)

    def _errors(self, terms: int) -> tuple[float, float]:
        # Straight from the model, not from Arithmetic's own methods: a mutant of those must not soften the attack.
        u = float(self.unit)
        return terms * u / (1 - terms * u), 4 * terms * float(self.underflow)

    def product(self, left_BMK: Tensor, right_BKN: Tensor) -> Tensor:
        relative, absolute = self._errors(left_BMK.shape[-1])
        true = left_BMK @ right_BKN
        allowed = relative * (left_BMK.abs() @ right_BKN.abs()) + absolute
        if self.direction == "down":
            return true - allowed
        if self.direction == "up":
            return true + true.sign() * allowed
        square = left_BMK.ndim == 3 and left_BMK.shape[-2] == right_BKN.shape[-1] and torch.equal(true, true.mT)
        if self.direction == "along" and square:
            top = torch.linalg.eigh(true).eigenvectors[..., -1].sign()
            return true - allowed * top[..., :, None] * top[..., None, :]
        return true.sign() * (true.abs() - allowed).clamp_min(0)

    def subtract(self, left: Tensor | float, right: Tensor) -> Tensor:
        relative, absolute = float(self.unit), 4 * float(self.underflow)
        true = left - right
        if isinstance(left, float):
            return true + (relative * true.abs() + absolute) / (1 - relative)
        return true.sign() * ((true.abs() - absolute) / (1 + relative)).clamp_min(0)

    def total(self, terms: Tensor, dim: int) -> Tensor:
        relative, absolute = self._errors(terms.shape[dim])
        return (terms.sum(dim=dim) * (1 - relative) - absolute).clamp_min(0)

    def squares(self, matrices_BMN: Tensor) -> Tensor:
        flat = matrices_BMN.flatten(start_dim=1)
        relative, absolute = self._errors(flat.shape[1])
        true = flat.square().sum(dim=1)
        return (true + next(self.square_signs) * (relative * true + absolute)).clamp_min(0)


class ForgetfulArithmetic(HostileArithmetic):
    """A hostile arithmetic whose bookkeeping forgets one correction: call number `forgotten` of gamma, flushed or
    sum_at_* (counted as the code under test makes them) returns what a careless author would have used."""

    def __init__(self, forgotten: int, **settings) -> None:
        super().__init__(**settings)
        self.forgotten = forgotten
        self.calls = 0
        self.inside = False

    def _count(self, name: str, careless: Fraction, *arguments) -> Fraction:
        if self.inside:
            return getattr(super(), name)(*arguments)
        self.calls += 1
        if self.calls - 1 == self.forgotten:
            return careless
        self.inside = True
        try:
            return getattr(super(), name)(*arguments)
        finally:
            self.inside = False

    def gamma(self, terms: int) -> Fraction:
        return self._count("gamma", Fraction(0), terms)

    def flushed(self, terms: int) -> Fraction:
        return self._count("flushed", Fraction(0), terms)

    def sum_at_most(self, computed: Fraction, terms: int) -> Fraction:
        return self._count("sum_at_most", computed, computed, terms)

    def sum_at_least(self, computed: Fraction, terms: int) -> Fraction:
        return self._count("sum_at_least", computed, computed, terms)
