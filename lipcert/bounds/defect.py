"""Nearly orthogonal matrices: ||A||^2 <= c2 + ||A^T A - c2 I||, without a factorisation and without a search.

This is the theorem of `verified` with R = 0: the residual is then all of c2 I - A^T A, its Frobenius norm the
orthogonality defect (c2 = 1 for orthonormal columns; here the largest diagonal entry of A^T A, so that multiples of
them are covered too), and the terms in R vanish. As ||A||^2 >= c2 - defect, the bound exceeds the norm by at most about
the defect over c2: an orthogonal matrix is bounded by 1 and a few roundings, where a factorisation needs room above 1.
For float32 weights of an orthogonalised layer the defect is 1e-6 and more, and the factorisation is tighter.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from lipcert.bounds.rounding import Arithmetic, exact, root_up
from lipcert.bounds.verified import GramCheck


def defect_squared(check: GramCheck) -> tuple[Fraction, Fraction]:
    """(c2 + ||A^T A - c2 I||_F + roundings, a proven bound on the squared norm of each matrix of the batch; c2)."""
    square = float(check.gram_BNN.diagonal(dim1=-2, dim2=-1).amax())
    return check.bound(square, check.shifted(square), None), exact(square)


def defect_bound(matrices_BMN: Tensor, arithmetic: Arithmetic) -> Fraction:
    """Proven upper bound on the largest norm of a batch of matrices from their orthogonality defects.

    matrices_BMN: float64, finite, entries of size about 1 at most.
    """
    return root_up(defect_squared(GramCheck(matrices_BMN.detach(), arithmetic))[0])
