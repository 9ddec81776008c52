"""A proven upper bound on the spectral norm of stored matrices: untrusted Cholesky factor, trusted check.

Theorem (witness). Let A be a stored M x N matrix with M >= N, c2 >= 0 a float, and R any stored N x N matrix. With
    G = fl(A^T A),  S = fl(c2 I - G),  P = fl(R^T R),  E = fl(S - P)
in an arithmetic with the error model of `rounding.Arithmetic` (u, w, gamma_k),
    ||A||^2 <= c2 + ||E||_F (1 + u) + gamma_N ||R||_F^2 + u max|S_ii| + gamma_M ||A||_1 ||A||_inf + 4 w N (M + N + 2).

Proof. Write each computed array as the true one plus its error:
    G = A^T A + dG,   |dG| <= gamma_M |A|^T|A| + 4Mw;      P = R^T R + dP,   |dP| <= gamma_N |R|^T|R| + 4Nw;
    S = c2 I - G + dS,  |dS| <= u|S_ii| + 4w on the diagonal and 0 elsewhere, for a sign change is exact;
    E = S - P + dE,   |dE| <= u|E| + 4w.
Adding up, A^T A = c2 I - R^T R - dP - E + dE + dS - dG. R^T R is positive semidefinite whatever R is, so for every
vector x:  x^T A^T A x <= (c2 + ||dP|| + ||E|| + ||dE|| + ||dS|| + ||dG||) x^T x. (E need not be symmetric.)
Now || |R|^T|R| || = || |R| ||^2 <= ||R||_F^2, || |A|^T|A| || <= ||A||_1 ||A||_inf, a diagonal matrix has the norm of
its largest entry, an N x N matrix with entries below e has norm at most N e, and ||.|| <= ||.||_F. QED

The quantities on the right are themselves sums of computed numbers: each is raised by the gamma of its own length
(`Arithmetic.sum_at_most`) before use, and they are put together in rational arithmetic. Nothing is assumed of the
factorisation: with R = 0 or R = garbage the bound is large, not wrong. c2 is the float that was subtracted.
The idea of such a posteriori checks: S. M. Rump, Verified bounds for singular values, BIT 51 (2011).

A batch shares one c2 and its bound holds for every block: each term is replaced by its maximum over the batch.
Shape suffixes: B batch, M rows, N columns.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from lipcert.bounds.rounding import Arithmetic, exact, largest, root_up
from lipcert.bounds.search import largest_eigenvalue, top_of_gram

_MARGIN = 2.0**-30  # c2 starts this much above the guess: 4.7e-10 of the norm
_ATTEMPTS = 40  # the margin doubles each time
_DECOMPOSITIONS = 3  # at so many failures, look at the eigenvalues of the blocks that failed
_SUSPECTS = 8


class GramCheck:
    """The Gram matrices of a batch A_BMN, and the proof that their norms lie below a given number."""

    def __init__(self, matrices_BMN: Tensor, arithmetic: Arithmetic) -> None:
        if matrices_BMN.shape[-2] < matrices_BMN.shape[-1]:
            matrices_BMN = matrices_BMN.mT  # the smaller Gram matrix; a matrix and its transpose have one norm
        self.matrices_BMN = matrices_BMN
        self.arithmetic = arithmetic
        self.rows, self.columns = matrices_BMN.shape[-2:]
        self.gram_BNN = arithmetic.product(matrices_BMN.mT, matrices_BMN)

    def shifted(self, square: float) -> Tensor:
        """S = fl(c2 I - G), the matrix to factorise."""
        shifted_BNN = -self.gram_BNN
        diagonal_BN = self.gram_BNN.diagonal(dim1=-2, dim2=-1)
        shifted_BNN.diagonal(dim1=-2, dim2=-1).copy_(self.arithmetic.subtract(square, diagonal_BN))
        return shifted_BNN

    def bound(self, square: float, shifted_BNN: Tensor, factor_BNN: Tensor | None) -> Fraction:
        """Proven upper bound on ||A||^2 over the batch, for any factor; ValueError if a number is not finite.

        factor_BNN=None stands for R = 0, for which nothing needs to be multiplied.
        """
        return exact(square) + sum(self.error_terms(shifted_BNN, factor_BNN).values())

    def error_terms(self, shifted_BNN: Tensor, factor_BNN: Tensor | None) -> dict[str, Fraction]:
        """The terms of the theorem beside c2, each by its name in the proof."""
        arithmetic, rows, columns = self.arithmetic, self.rows, self.columns
        entries = columns * columns
        trace, residual_BNN = Fraction(0), shifted_BNN
        if factor_BNN is not None:
            product_BNN = arithmetic.product(factor_BNN.mT, factor_BNN)
            residual_BNN = arithmetic.subtract(shifted_BNN, product_BNN)
            trace = arithmetic.sum_at_most(largest(arithmetic.squares(factor_BNN)), entries)
        residual = root_up(arithmetic.sum_at_most(largest(arithmetic.squares(residual_BNN)), entries))
        magnitudes_BMN = self.matrices_BMN.abs()
        column_sum = arithmetic.sum_at_most(largest(arithmetic.total(magnitudes_BMN, dim=-2)), rows)
        row_sum = arithmetic.sum_at_most(largest(arithmetic.total(magnitudes_BMN, dim=-1)), columns)
        return {
            "E": residual,
            "dE": arithmetic.unit * residual,
            "dP": arithmetic.gamma(columns) * trace,
            "dS": arithmetic.unit * largest(shifted_BNN.diagonal(dim1=-2, dim2=-1).abs()),
            "dG": arithmetic.gamma(rows) * column_sum * row_sum,
            "underflow": columns * arithmetic.flushed(rows + columns + 2),
        }


def absolute_norm_squared(weights_GOIT: Tensor, arithmetic: Arithmetic) -> Fraction:
    """Upper bound ||A||_1 ||A||_inf on || |A| ||^2 for dense layers (T = 1) and convolutions with T taps, any group.

    A row of A holds each weight of one output at most once, a column each weight of one input channel at most once.
    """
    _, outs, ins, taps = weights_GOIT.shape
    magnitudes_GOIT = weights_GOIT.abs()
    row_sum = arithmetic.sum_at_most(largest(arithmetic.total(magnitudes_GOIT.flatten(2), dim=2)), ins * taps)
    by_column = magnitudes_GOIT.transpose(2, 3).flatten(1, 2)  # (G, O*T, I)
    return row_sum * arithmetic.sum_at_most(largest(arithmetic.total(by_column, dim=1)), outs * taps)


def find_factor(check: GramCheck, guess: float) -> tuple[float, Tensor, Tensor | None]:
    """(c2, S, R) with the smallest c2 found for which S has a Cholesky factor: raised until it has (untrusted).

    Should no factorisation succeed, R is None: that still proves something, c2 + ||c2 I - G||_F plus rounding.
    """
    guess, square = max(guess, 2.0**-100), 0.0
    for attempt in range(_ATTEMPTS):
        square = guess * (1 + _MARGIN * 2**attempt)
        shifted_BNN = check.shifted(square)
        factor_BNN, failed_B = torch.linalg.cholesky_ex(shifted_BNN, upper=True)
        if not bool(failed_B.any()):
            return square, shifted_BNN, factor_BNN
        if attempt < _DECOMPOSITIONS:
            suspects_BNN = check.gram_BNN[failed_B != 0]
            order = suspects_BNN.square().sum(dim=(-2, -1)).topk(min(_SUSPECTS, len(suspects_BNN))).indices
            guess = max(guess, largest_eigenvalue(suspects_BNN[order]))
    return square, check.shifted(square), None


def prove_below(check: GramCheck, guess: float) -> Fraction:
    """Smallest proven bound on ||A||^2 found from a guess of it."""
    return check.bound(*find_factor(check, guess))


def matrix_norm_squared(check: GramCheck) -> tuple[Fraction, int, Tensor]:
    """Proven upper bound on max ||A_b||^2; with it the guessed index b and top eigenvector of A^T A (untrusted).

    The matrices hold entries of size about 1 at most (scale first). Excess over the truth: about 5e-10 of the norm
    plus N^2 u / 2.
    """
    guess, index, vector_N = top_of_gram(check.gram_BNN)
    return prove_below(check, guess), index, vector_N
