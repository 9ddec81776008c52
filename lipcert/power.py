"""The power method and Lanczos': norms to train with. They approach the truth from BELOW: nothing here ever certifies.

`lipcert.bounds.norm_bound` is the proven counterpart.

Shape letters: G groups (norms taken at once), N entries of a group's vector, M vectors of a basis.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SQUARINGS = 26  # of a small matrix; 2^26 powers tell eigenvalues apart that differ by 1e-7
_NEGLIGIBLE = 1e-5  # of a vector's length: what is left of it beside a basis is rounding
_lanczos = False


@contextlib.contextmanager
def lanczos(on: bool) -> Iterator[None]:
    """Inside of it `power_iterate` makes the best of its products: `lanczos_iterate`."""
    global _lanczos
    before, _lanczos = _lanczos, on
    try:
        yield
    finally:
        _lanczos = before


def start_vector(*shape: int, groups: int = 1) -> Tensor:
    """A random start, one unit vector per group of channels.

    Random, because a fixed start such as all ones can be orthogonal to the top singular vector and then stays so.
    """
    return _normalise(torch.randn(*shape), groups)


def power_iterate(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    iterate: Tensor,
    steps: int,
    groups: int = 1,
) -> Tensor:
    """Improve `iterate` in place by `steps` rounds of v <- A^T A v / |A^T A v| and return it, cut from the graph.

    |A v| with v held fixed has the gradient u v^T (u = A v / |A v|), which is the gradient of the norm at convergence
    (envelope theorem), so no backward pass through the rounds is needed.
    """
    if _lanczos:
        return lanczos_iterate(forward, adjoint, iterate, steps, groups)
    with torch.no_grad():
        v = iterate
        for _ in range(steps):
            # Each half normalised by itself: A^T A v leaves the range of float32 where A v does not. An iterate that
            # the map sends to zero is kept, or it would stay zero for good.
            image = forward(v)
            v = _normalise(adjoint(_normalise(image, groups)), groups, otherwise=v)
        iterate.copy_(v)
        return iterate.clone()


@torch.no_grad()
def lanczos_iterate(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    iterate: Tensor,
    steps: int,
    groups: int = 1,
) -> Tensor:
    """As `power_iterate`, to the best vector that `steps` products with A^T A can tell of: the unit v in the span of
    v, A^T A v, ..., (A^T A)^steps v for which |A v| is largest (Lanczos 1950, one round, fully orthogonalised).

    Five steps, warm, come nearer to the norm than ten rounds of the power method at half the price.
    """
    shape = iterate.shape
    basis, images = [_normalise(iterate, groups).reshape(groups, -1)], []
    for step in range(steps + 1):
        image = forward(basis[-1].reshape(shape))
        images.append(image.reshape(groups, -1))
        if step < steps:
            basis.append(_next_direction(adjoint(_normalise(image, groups)).reshape(groups, -1), basis))
    images_GMN, basis_GMN = torch.stack(images, 1), torch.stack(basis, 1)
    weights_GM = _top_eigenvector(images_GMN.double() @ images_GMN.double().mT).to(iterate)
    v_GN = (weights_GM[:, None] @ basis_GMN)[:, 0]
    iterate.copy_(_normalise(v_GN.reshape(shape), groups, otherwise=iterate))
    return iterate.clone()


def _next_direction(v_GN: Tensor, basis: list[Tensor]) -> Tensor:
    """The part of v at right angles to an orthonormal basis, of length 1; 0 where there is none."""
    basis_GMN = torch.stack(basis, 1)
    largest_G1 = v_GN.abs().amax(1, keepdim=True)
    v_GN = v_GN / torch.where(largest_G1 > 0, largest_G1, 1.0)
    whole_G1 = torch.linalg.vector_norm(v_GN, dim=1, keepdim=True)
    for _ in range(2):  # the second time takes out what rounding left of the first
        v_GN = v_GN - ((v_GN[:, None] @ basis_GMN.mT) @ basis_GMN)[:, 0]
    rest_G1 = torch.linalg.vector_norm(v_GN, dim=1, keepdim=True)
    return torch.where(rest_G1 > _NEGLIGIBLE * whole_G1, v_GN / torch.where(rest_G1 > 0, rest_G1, 1.0), 0.0)


def _top_eigenvector(gram_GMM: Tensor) -> Tensor:
    """Of positive semi-definite matrices, (G, M), by squaring: an eigenvalue solver would wait for the device."""
    for _ in range(_SQUARINGS):
        largest_G11 = gram_GMM.abs().amax((1, 2), keepdim=True)
        gram_GMM = gram_GMM / torch.where(largest_G11 > 0, largest_G11, 1.0)
        gram_GMM = gram_GMM @ gram_GMM
    longest_G = gram_GMM.square().sum(1).argmax(1)
    column_GM = gram_GMM.gather(2, longest_G[:, None, None].expand(-1, gram_GMM.shape[1], 1))[..., 0]
    return column_GM / torch.linalg.vector_norm(column_GM, dim=1, keepdim=True).clamp(min=1e-300)


def stable_norm(x: Tensor, groups: int = 1) -> Tensor:
    """l2 norm of each group, (groups,), without squaring numbers whose squares under- or overflow."""
    rows = x.reshape(groups, -1)
    largest = rows.detach().abs().amax(dim=1)
    largest = torch.where(largest > 0, largest, 1.0)
    return largest * torch.linalg.vector_norm(rows / largest[:, None], dim=1)


def _normalise(v: Tensor, groups: int, otherwise: Tensor | None = None) -> Tensor:
    # Largest entry first: squares of small entries must not underflow, and no epsilon may hide a small norm.
    rows = v.reshape(groups, -1)
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = (rows / torch.where(length > 0, length, 1.0)).reshape(v.shape)
    if otherwise is None:
        return unit
    return torch.where(length > 0, unit.reshape(groups, -1), otherwise.reshape(groups, -1)).reshape(v.shape)


def norm_estimate(layer: nn.Module, input_shape: tuple[int, ...], steps: int = 10, seed: int = 0) -> Tensor:
    """Estimate of the spectral norm of `nn.Linear` or `nn.Conv2d` from a cold, random start; a lower bound in exact
    arithmetic.

    Args:
        layer: `nn.Linear`, or `nn.Conv2d` with zero padding.
        input_shape: (features,) or (C, H, W), without batch.
        steps: rounds of the power method; public codes certify with 500.
        seed: of the start vector.

    Returns:
        Scalar tensor, differentiable with respect to the weight, in the weight's precision and on its device.

    Raises:
        TypeError: another kind of layer.
    """
    weight = layer.weight if isinstance(layer, (nn.Linear, nn.Conv2d)) else None
    if weight is None or (isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"):
        raise TypeError(f"no power method for {layer}: give it an nn.Linear or a zero-padded nn.Conv2d")
    generator = torch.Generator().manual_seed(seed)
    v = _normalise(torch.randn(1, *input_shape, generator=generator), 1).to(weight)
    if isinstance(layer, nn.Linear):

        def forward(v: Tensor) -> Tensor:
            return v @ weight.T

        def adjoint(u: Tensor) -> Tensor:
            return u @ weight
    else:
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def forward(v: Tensor) -> Tensor:
            return F.conv2d(v, weight, None, *options)

        def adjoint(u: Tensor) -> Tensor:
            return torch.nn.grad.conv2d_input(v.shape, weight, u, *options)

    return stable_norm(forward(power_iterate(forward, adjoint, v, steps)))[0]
