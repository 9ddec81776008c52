"""Untrusted search: guesses of the largest singular value and its vector. Nothing here is part of a proof.

A proven bound takes from this module only where to look: the number c that `verified` then proves or raises, and the
vector whose stretch is then evaluated with every rounding counted. A wrong guess costs tightness, never soundness.

Shape suffixes: B batch, N columns of a matrix (its Gram matrix is NN).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

_DIRECT_SIZE = 96  # up to here a full eigendecomposition is cheaper than Lanczos steps
_RESTARTS = 100


def start_vector(size: int, device: torch.device, dtype: torch.dtype, columns: int = 1) -> Tensor:
    """The same gaussian numbers on every device and in every run, shape (size, columns)."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    numbers = torch.randn(size, columns, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(device=device, dtype=dtype)


def top_eigenpair(apply_gram: Callable[[Tensor], Tensor], start_N: Tensor, tolerance: float) -> tuple[float, Tensor]:
    """Largest eigenvalue and unit eigenvector (approximate, float64) of the symmetric positive map `apply_gram`.

    ARPACK's restarted Lanczos, from a fixed start: the same result in every run. The eigenvalue errs by about
    tolerance**2 over the relative gap to the next one. Vectors travel to the CPU and back; `apply_gram` sees tensors
    like start_N.
    """
    size = start_N.numel()

    def apply(numbers: np.ndarray) -> np.ndarray:
        image_N = apply_gram(torch.from_numpy(np.ravel(numbers).copy()).to(start_N))
        return image_N.detach().to("cpu", torch.float64).numpy()

    if size <= _DIRECT_SIZE:
        values, vectors = np.linalg.eigh(np.stack([apply(unit) for unit in np.eye(size)]))
        value, numbers = values[-1], vectors[:, -1]
    else:
        value, numbers = _arpack(apply, start_N.to("cpu", torch.float64).numpy(), tolerance)
    vector_N = torch.from_numpy(numbers.copy()).to(start_N.device)
    return max(float(value), 0.0), vector_N / vector_N.norm().clamp_min(1e-300)


def _arpack(apply: Callable[[np.ndarray], np.ndarray], start: np.ndarray, tolerance: float) -> tuple[float, np.ndarray]:
    gram = LinearOperator((start.size, start.size), matvec=apply, dtype=np.float64)
    try:
        values, vectors = eigsh(gram, k=1, v0=start, ncv=20, tol=tolerance, maxiter=_RESTARTS, rng=0)
        return values[0], vectors[:, 0]
    except ArpackNoConvergence:
        return _arpack(apply, start, 30 * tolerance)
    except ArpackError:  # the map sends the start to zero: no direction is better than another
        return 0.0, start


def power_ranking(apply_gram: Callable[[Tensor], Tensor], start_BNC: Tensor, steps: int) -> Tensor:
    """Rough largest eigenvalue of each block of a batch, shape (B,): a few steps of the power method."""
    block_BNC = start_BNC
    for _ in range(steps):
        image_BNC = apply_gram(block_BNC)
        block_BNC = image_BNC / image_BNC.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return image_BNC.norm(dim=1).amax(dim=-1)


def top_of_gram(gram_BNN: Tensor) -> tuple[float, int, Tensor]:
    """Largest eigenvalue over a batch of Gram matrices, the index of its block and its unit eigenvector (N,)."""
    batch, size = gram_BNN.shape[0], gram_BNN.shape[-1]
    candidates = [0]
    if batch > 1:
        start_BNC = start_vector(size, gram_BNN.device, gram_BNN.dtype, columns=2).expand(batch, size, 2)
        ranking_B = power_ranking(lambda block_BNC: gram_BNN @ block_BNC, start_BNC, steps=10)
        candidates = torch.topk(ranking_B, min(batch, 4)).indices.tolist()
    best = (-1.0, 0, gram_BNN.new_ones(size))
    for index in candidates:
        gram_NN = gram_BNN[index]
        if size <= _DIRECT_SIZE:
            values_N, vectors_NN = torch.linalg.eigh(gram_NN)
            value, vector_N = float(values_N[-1]), vectors_NN[:, -1]
        else:
            start_N = start_vector(size, gram_NN.device, gram_NN.dtype)[:, 0]
            value, vector_N = top_eigenpair(gram_NN.mv, start_N, tolerance=1e-7)
        if value > best[0]:
            best = (value, index, vector_N)
    return best


def largest_eigenvalue(gram_BNN: Tensor) -> float:
    """Largest eigenvalue over the batch by LAPACK's full decomposition; 0 if that does not converge."""
    try:
        return float(torch.linalg.eigvalsh(gram_BNN).max())
    except RuntimeError:
        return 0.0
