"""Maps that are 1-Lipschitz by construction up to rounding: Cholesky-orthogonal layers (arXiv 2310.02513).

Training counts them as 1. The certifier does not believe that: it bounds the materialised weights like any others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.layers import Map, plain_conv, plain_linear

_RIDGE = 1e-3  # of the mean squared row length, as in the reference; keeps the factorisation well conditioned


def cholesky_orthogonalise(matrix_RC: Tensor) -> Tensor:
    """Rows (or columns, where these are fewer) made almost orthonormal: chol(M M^T + d I)^-1 M.

    d = 1e-3 mean(diag(M M^T)) is treated as a constant. The singular values of the result are sqrt(l / (l + d)) for
    the eigenvalues l of M M^T, below 1 in exact arithmetic. Orthogonalising the smaller side is cheaper and avoids a
    rank-deficient Gram matrix.

    Args:
        matrix_RC: (R, C), any shape, finite.

    Returns:
        (R, C), differentiable.
    """
    if matrix_RC.shape[0] > matrix_RC.shape[1]:
        return cholesky_orthogonalise(matrix_RC.T).T
    # A Gram matrix in bfloat16 would train other weights than those that are certified.
    with torch.autocast("cpu" if matrix_RC.is_meta else matrix_RC.device.type, enabled=False):
        gram = matrix_RC @ matrix_RC.T
        ridge = _RIDGE * gram.detach().diagonal().mean()
        # `_ex`: no wait for the device to report success; where it fails the loss is not finite, which ends the run.
        factor, _ = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        return torch.linalg.solve_triangular(factor, matrix_RC, upper=False)


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
