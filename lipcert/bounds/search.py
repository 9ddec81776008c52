"""Untrusted search: guesses of the largest singular value and its vector. Nothing here is part of a proof.

A proven bound takes from this module only where to look: the number c that `verified` then proves or raises, and the
vector whose stretch is then evaluated with every rounding counted. A wrong guess costs tightness, never soundness.

Shape suffixes: B batch, N columns of a matrix (its Gram matrix is NN).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

_DIRECT_SIZE = 96  # up to here a full eigendecomposition is cheaper than Lanczos steps
_CHECK_EVERY = 10


def start_vector(size: int, device: torch.device, dtype: torch.dtype, columns: int = 1) -> Tensor:
    """The same gaussian numbers on every device and in every run, shape (size, columns)."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    numbers = torch.randn(size, columns, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(device=device, dtype=dtype)


def lanczos(
    apply_gram: Callable[[Tensor], Tensor], start_N: Tensor, steps: int, tolerance: float
) -> tuple[float, Tensor]:
    """Largest eigenvalue and unit eigenvector (approximate) of the symmetric map `apply_gram`.

    Lanczos with full reorthogonalisation; stops when the eigenvalue rises by less than `tolerance` (relative) over ten
    steps. The basis takes steps * N numbers.
    """
    steps = min(steps, start_N.numel())
    basis = torch.zeros(steps, start_N.numel(), dtype=start_N.dtype, device=start_N.device)
    basis[0] = start_N / start_N.norm()
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    previous = 0.0
    value, weights = 0.0, np.ones(1)
    for step in range(steps):
        image_N = apply_gram(basis[step]).to(basis.dtype)
        diagonal.append(float(image_N @ basis[step]))
        known = basis[: step + 1]
        for _ in range(2):
            image_N = image_N - (known @ image_N) @ known
        length = float(image_N.norm())
        # What is left after orthogonalisation is rounding noise, no direction: the subspace is invariant.
        exhausted = length <= 100 * torch.finfo(basis.dtype).eps * max(max(diagonal), 1e-30)
        finished = exhausted or step + 1 == steps
        if finished or (step + 1) % _CHECK_EVERY == 0:
            last = (len(diagonal) - 1, len(diagonal) - 1)
            values, vectors = eigh_tridiagonal(diagonal, off_diagonal, select="i", select_range=last)
            value, weights = float(values[0]), vectors[:, 0]
            if finished or value - previous <= tolerance * abs(value):
                break
            previous = value
        off_diagonal.append(length)
        basis[step + 1] = image_N / length
    vector_N = torch.as_tensor(weights, dtype=basis.dtype, device=basis.device) @ basis[: len(weights)]
    return value, vector_N / vector_N.norm()


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
            value, vector_N = lanczos(gram_NN.mv, start_N, steps=400, tolerance=1e-11)
        if value > best[0]:
            best = (value, index, vector_N)
    return best


def largest_eigenvalue(gram_BNN: Tensor) -> float:
    """Largest eigenvalue over the batch by LAPACK's full decomposition; 0 if that does not converge."""
    try:
        return float(torch.linalg.eigvalsh(gram_BNN).max())
    except RuntimeError:
        return 0.0
