"""Maps that are 1-Lipschitz by construction up to rounding: Cholesky-orthogonal layers (arXiv 2310.02513).

Training counts them as 1. The certifier does not believe that: it bounds the materialised weights like any others.

Shape letters: B batch, C channels (of a matrix: columns), H height, W width, R rows, N rows of one block, P rows before
it, F features, L layers of a stack, O outputs, I inputs.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lipcert.arithmetic import tensor_float
from lipcert.kernels import fast, is_fast, matmul
from lipcert.layers import Map, MinMax, plain_conv, plain_linear

_RIDGE = 1e-3  # of the mean squared row length, as in the reference; keeps the factorisation well conditioned
_BLOCK = 256  # rows; small enough for products to do the work, large enough for them to run at full speed


def cholesky_orthogonalise(matrix_RC: Tensor) -> Tensor:
    """Rows (or columns, where these are fewer) made almost orthonormal: W = chol(M M^T + d I)^-1 M.

    d = 1e-3 mean(diag(M M^T)) is treated as a constant. The singular values of the result are sqrt(l / (l + d)) for
    the eigenvalues l of M M^T, below 1 in exact arithmetic. Orthogonalising the smaller side is cheaper and avoids a
    rank-deficient Gram matrix. Autocast does not reach it.

    Args:
        matrix_RC: (..., R, C), a batch of matrices, float32 or float64.

    Returns:
        (..., R, C), differentiable once. NaN where the factorisation fails, which takes entries that are not finite,
        a matrix of zeros, or a rounding error of the Gram matrix above d.
    """
    if matrix_RC.shape[-2] > matrix_RC.shape[-1]:
        return cholesky_orthogonalise(matrix_RC.mT).mT
    return _CholeskyOrthogonalise.apply(matrix_RC.contiguous())[0]


class _CholeskyOrthogonalise(torch.autograd.Function):
    """W = L^-1 M with L L^T = S = M M^T + d I for R <= C, and its gradient.

    Forward, a block N of rows after the rows P before it: S_NP = M_N M_P^T = L_NP L_PP^T and W_P = L_PP^-1 M_P give

        L_NP = M_N W_P^T,   L_NN = chol(M_N M_N^T + d I - L_NP L_NP^T),   W_N = L_NN^-1 (M_N - L_NP W_P),

    so that nearly all the work is matrix products, and only the blocks of S on its diagonal are ever formed.

    Backward: let G = dLoss/dW. From dW = L^-1 dM - L^-1 dL W,

        dLoss = <L^-T G, dM> + <A, dL>,   A = -L^-T G W^T.

    dL = L Phi(L^-1 dS L^-T) with Phi the lower triangle with half the diagonal, so that

        <A, dL> = <sym(L^-T Phi(L^T A) L^-1), dS>,   dS = dM M^T + M dM^T.

    (That only the lower triangle of A meets dL needs no care: L^T times a strictly upper triangle is one again, and Phi
    drops it.) L^T A = -G W^T needs no solve, and M enters only as L^-1 M = W. With Q = Phi(G W^T),

        dLoss/dM = L^-T (G - (Q + Q^T) W):

    two products, of which the first only below the diagonal, and one triangular solve. Only W and L are kept.
    """

    @staticmethod
    def forward(matrix_RC: Tensor) -> tuple[Tensor, Tensor]:
        rows = matrix_RC.shape[-2]
        weight_RC = torch.empty_like(matrix_RC)
        factor_RR = matrix_RC.new_zeros(*matrix_RC.shape[:-1], rows)
        with _full_precision(matrix_RC):
            ridge = _RIDGE * matrix_RC.square().sum(dim=(-2, -1)) / rows
            for start, stop in _blocks(rows):
                block_NC, done_PC = matrix_RC[..., start:stop, :], weight_RC[..., :start, :]
                gram_NN = matmul(block_NC, block_NC.mT)
                gram_NN.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
                if start:
                    left_NP = matmul(block_NC, done_PC.mT)
                    gram_NN -= matmul(left_NP, left_NP.mT)
                    block_NC = block_NC - matmul(left_NP, done_PC)
                    factor_RR[..., start:stop, :start] = left_NP
                corner_NN = _cholesky(gram_NN)
                factor_RR[..., start:stop, start:stop] = corner_NN
                weight_RC[..., start:stop, :] = _solve(corner_NN, block_NC, upper=False)
        return weight_RC, factor_RR

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*output)
        ctx.fast = is_fast()
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RC: Tensor, _: Tensor) -> Tensor:
        weight_RC, factor_RR = ctx.saved_tensors
        grad_RC, rows = grad_RC.contiguous(), weight_RC.shape[-2]
        with _full_precision(weight_RC), fast(ctx.fast):
            slope_RC = grad_RC - matmul(_mirrored_product(grad_RC, weight_RC), weight_RC)
            for start, stop in reversed(_blocks(rows)):
                block_NC = slope_RC[..., start:stop, :]
                if stop < rows:
                    block_NC = block_NC - matmul(factor_RR[..., stop:, start:stop].mT, slope_RC[..., stop:, :])
                corner_NN = factor_RR[..., start:stop, start:stop].mT
                slope_RC[..., start:stop, :] = _solve(corner_NN, block_NC, upper=True)
        return slope_RC


def _mirrored_product(grad_RC: Tensor, weight_RC: Tensor) -> Tensor:
    """Q + Q^T of the backward pass, (..., R, R): the lower triangle of G W^T and its mirror image."""
    rows = weight_RC.shape[-2]
    product_RR = weight_RC.new_empty(*weight_RC.shape[:-1], rows)
    for start, stop in _blocks(rows):
        row_NP = matmul(grad_RC[..., start:stop, :], weight_RC[..., :stop, :].mT)
        corner_NN = row_NP[..., start:]
        corner_NN.copy_(corner_NN.tril() + corner_NN.tril(-1).mT)  # the two halves of the diagonal add up
        product_RR[..., start:stop, :stop] = row_NP
        product_RR[..., :start, start:stop] = row_NP[..., :start].mT
    return product_RR


def _cholesky(gram_NN: Tensor) -> Tensor:
    """The lower factor; NaN on its diagonal where there is none, without a wait for the device (hence `_ex`)."""
    factor_NN, failed = torch.linalg.cholesky_ex(gram_NN)
    # What a failed factorisation leaves behind can be finite; NaN reaches the loss, which ends the run.
    factor_NN.diagonal(dim1=-2, dim2=-1).masked_fill_((failed != 0)[..., None], math.nan)
    return factor_NN


def _solve(factor_NN: Tensor, block_NC: Tensor, upper: bool) -> Tensor:
    """factor^-1 block."""
    # Posed as X^T factor^T = block^T, because rows in memory are columns to LAPACK: asked for X, torch copies twice.
    return torch.linalg.solve_triangular(factor_NN.mT, block_NC.mT, upper=not upper, left=False).mT


def _blocks(rows: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each block."""
    return [(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]


@contextlib.contextmanager
def _full_precision(tensor: Tensor) -> Iterator[None]:
    """No autocast and no TF32: a Gram matrix of rounded entries would train other weights than are certified."""
    kind = "cpu" if tensor.is_meta else tensor.device.type  # autocast does not know "meta"
    with torch.autocast(kind, enabled=False), tensor_float(False, tensor.device):
        yield


class OrthogonalPatchConv(Map):
    """Non-overlapping convolution (kernel = stride), orthogonalised as the matrix (O, I k k); no bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.raw_OIhw = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / (kernel * inputs**0.5))

    def weight(self) -> Tensor:
        """The orthogonalised kernel, (O, I, k, k)."""
        return cholesky_orthogonalise(self.raw_OIhw.flatten(1)).view_as(self.raw_OIhw)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.weight().to(x_BCHW.dtype), stride=self.kernel)

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [plain_conv(self.weight(), self.raw_OIhw.new_zeros(len(self.raw_OIhw)), self.kernel, 0)]


class OrthogonalDense(Map):
    """Dense layer with Cholesky-orthogonal weight (O, I) and a bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.raw_OI = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """The orthogonalised weight, (O, I)."""
        return cholesky_orthogonalise(self.raw_OI)

    def forward(self, x_BF: Tensor) -> Tensor:
        return F.linear(x_BF, self.weight().to(x_BF.dtype), self.bias)

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        return [plain_linear(self.weight(), self.bias)]


class OrthogonalResidualStack(Map):
    """`depth` dense residual layers with Cholesky-orthogonal weights: x <- MinMax(W_l x + b_l), (B, F) to (B, F).

    W_l orthogonalises M_l = I + depth^(-1/2) diag(gamma_l) V_l with V ~ N(0, 1) / features and gamma = 1 at the start,
    so that the stack starts near MinMax alone (arXiv 2310.02513 and its code: 8 layers of 2048 features before the
    head). W_l is nearly orthogonal only while M_l is well conditioned; its norm is below 1 in any case.

    All weights are computed in one batched factorisation each time the stack runs and never kept: a kept one outlives
    the parameters it came from.
    """

    def __init__(self, depth: int, features: int):
        super().__init__()
        if depth < 1 or features < 2 or features % 2:
            raise ValueError(
                f"depth={depth}, features={features}: depth must be >= 1 and features even, because MinMax sorts pairs"
            )
        self.branch_LFF = nn.Parameter(torch.randn(depth, features, features) / features)
        self.gamma_LF = nn.Parameter(torch.ones(depth, features))
        self.bias_LF = nn.Parameter(torch.zeros(depth, features))
        self.activation = MinMax()

    def weights(self) -> Tensor:
        """The orthogonalised weights W_l, (L, F, F)."""
        scale_LF1 = self.gamma_LF[..., None] / math.sqrt(len(self.gamma_LF))
        identity_FF = torch.eye(self.gamma_LF.shape[1], dtype=self.gamma_LF.dtype, device=self.gamma_LF.device)
        return cholesky_orthogonalise(identity_FF + scale_LF1 * self.branch_LFF)

    def forward(self, x_BF: Tensor) -> Tensor:
        for weight_FF, bias_F in zip(self.weights().to(x_BF.dtype), self.bias_LF, strict=True):
            x_BF = self.activation(F.linear(x_BF, weight_FF, bias_F))
        return x_BF

    def norm_estimate(self, steps: int) -> float:
        return 1.0

    def plain(self) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for weight_FF, bias_F in zip(self.weights(), self.bias_LF, strict=True):
            layers += [plain_linear(weight_FF, bias_F), MinMax()]
        return layers
