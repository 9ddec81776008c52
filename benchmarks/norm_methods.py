"""Ways to keep an estimate of a linear map's norm up to date while its weights change: what `estimate_lag` compares.

A method is a state per map and a way to improve it. All are products of A^T A with a few vectors, warm from the last
step: powers; powers of A^T A - s |A|^2; powers with momentum; two vectors at once; the best vector of the span of v,
A^T A v, ..., (A^T A)^k v (Krylov: one round of Lanczos' method, the best that k products can do from v alone); and the
same with the direction of the last step in the span (as LOBPCG does). All approach the norm from below.

Shape letters: G groups (norms taken at once), N entries of one group's vector, M vectors of a span.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.models import Network

_SHIFT, _MOMENTUM, _POLISH = 0.5, 0.2, 20
_ROUNDS = 6  # restarts that `converged` makes unless told


@dataclass(frozen=True)
class Grouped:
    """`groups` linear maps at once, v of shape (1, G c, h, w)."""

    kernel: Tensor
    stride: int
    padding: int
    groups: int
    shape: tuple[int, ...]

    def forward(self, v: Tensor) -> Tensor:
        return F.conv2d(v, self.kernel, None, self.stride, self.padding, groups=self.groups)

    def gram(self, v_GN: Tensor) -> tuple[Tensor, Tensor]:
        """A v and A^T A v, (G, N) each."""
        image = self.forward(v_GN.reshape(self.shape))
        back = torch.nn.grad.conv2d_input(self.shape, self.kernel, image, self.stride, self.padding, groups=self.groups)
        return image.reshape(self.groups, -1), back.reshape(self.groups, -1)

    def norms(self, v_GN: Tensor) -> Tensor:
        """|A v| for unit v, (G,)."""
        return self.forward(v_GN.reshape(self.shape)).reshape(self.groups, -1).norm(dim=1)


def maps_of(network: Network) -> list[Grouped]:
    """The maps of a LiResNet with orthogonal neck whose norm is not 1 by construction."""
    channels, size, _ = network.input_shape
    stem, stack = network.backbone.stem.conv, network.backbone.stack
    inner = size // stem.stride[0]
    kernels = stack.kernels().flatten(0, 1)
    return [
        Grouped(stem.weight, stem.stride[0], stem.padding[0], 1, (1, channels, size, size)),
        Grouped(kernels, 1, 1, stack.depth, (1, len(kernels), inner, inner)),
    ]


def unit(v_GN: Tensor) -> Tensor:
    return F.normalize(v_GN, dim=1)


@dataclass
class Method:
    """Improves a state at every step: `product(maps)` is the estimate, differentiable like |A v| with v held fixed.

    improve: (map, state, products) -> state, a list of (G, N) whose first is the unit vector that counts.
    early: at first as many products as that, for so many steps.
    """

    improve: Callable[[Grouped, list[Tensor], int], list[Tensor]]
    products: int
    early: tuple[int, int] = (0, 0)
    states: list[list[Tensor]] = field(default_factory=list)
    steps: int = 0

    def start(self, vectors: list[Tensor]) -> "Method":
        """Begin at these unit vectors, one (G, N) a map."""
        self.states, self.steps = [[v_GN.clone()] for v_GN in vectors], 0
        return self

    def product(self, maps: list[Grouped]) -> Tensor:
        count = self.early[0] if self.steps < self.early[1] else self.products
        with torch.no_grad():
            self.states = [self.improve(a, state, count) for a, state in zip(maps, self.states, strict=True)]
        self.steps += 1
        return torch.stack([a.norms(state[0]).prod() for a, state in zip(maps, self.states, strict=True)]).prod()


def powers(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    v_GN = state[0]
    for _ in range(products):
        v_GN = unit(a.gram(v_GN)[1])
    return [v_GN]


def shifted(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    v_GN = state[0]
    for _ in range(products):
        image_GN, back_GN = a.gram(v_GN)
        v_GN = unit(back_GN - _SHIFT * image_GN.square().sum(1, keepdim=True) * v_GN)
    return [v_GN]


def momentum(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    # v <- A^T A v - b |A|^4 v_before in units where v has length 1; b = 1/4 would suit a spectrum that starts at 0 and
    # ends just below the largest value
    v_GN, before_GN = state[0], state[1] if len(state) > 1 else torch.zeros_like(state[0])
    for _ in range(products):
        image_GN, back_GN = a.gram(v_GN)
        squared_G1 = image_GN.square().sum(1, keepdim=True)
        new_GN = back_GN / squared_G1 - _MOMENTUM * before_GN
        length_G1 = new_GN.norm(dim=1, keepdim=True)
        v_GN, before_GN = new_GN / length_G1, v_GN / length_G1
    return [v_GN, before_GN]


def best_of_span(span: list[Tensor], images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Coefficients (G, M) of the unit vector v of an orthonormal span that makes |A v| largest, and v (G, N)."""
    images_GMN, span_GMN = torch.stack(images, 1), torch.stack(span, 1)
    # eigenvectors of a small matrix: its entries differ by less than float32 resolves near convergence
    weights_GM = torch.linalg.eigh((images_GMN @ images_GMN.mT).double())[1][..., -1].to(span_GMN)
    return weights_GM, unit((weights_GM[:, None] @ span_GMN)[:, 0])


def added(span: list[Tensor], v_GN: Tensor) -> Tensor:
    """v made orthogonal to a span and of length 1; zero where nothing is left."""
    length_G1 = v_GN.norm(dim=1, keepdim=True)
    for _ in range(2):
        for q_GN in span:
            v_GN = v_GN - (q_GN * v_GN).sum(1, keepdim=True) * q_GN
    rest_G1 = v_GN.norm(dim=1, keepdim=True)
    return torch.where(rest_G1 > 1e-6 * length_G1, v_GN / rest_G1.clamp(min=1e-30), 0.0)


def krylov(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    span, images = [state[0]], []
    for _ in range(products):
        image_GN, back_GN = a.gram(span[-1])
        images.append(image_GN)
        span.append(added(span, back_GN))
    images.append(a.forward(span[-1].reshape(a.shape)).reshape(a.groups, -1))
    return [best_of_span(span, images)[1]]


def with_last_direction(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    """As `krylov`, with the last change of v in the span: one more image, no product."""
    span, images = [state[0]], []
    for _ in range(products):
        image_GN, back_GN = a.gram(span[-1])
        images.append(image_GN)
        span.append(added(span, back_GN))
    if len(state) > 1:
        span.append(added(span, state[1]))
    images += [a.forward(q_GN.reshape(a.shape)).reshape(a.groups, -1) for q_GN in span[products:]]
    v_GN = best_of_span(span, images)[1]
    rest_GN = v_GN - (v_GN * state[0]).sum(1, keepdim=True) * state[0]
    return [v_GN, unit(rest_GN)]


def two_vectors(a: Grouped, state: list[Tensor], products: int) -> list[Tensor]:
    v_GN = state[0]
    other_GN = state[1] if len(state) > 1 else added([v_GN], torch.randn_like(v_GN))
    for _ in range(products):
        (first_GN, v_GN), (second_GN, other_GN) = a.gram(v_GN), a.gram(other_GN)
        v_GN = unit(v_GN)
        other_GN = added([v_GN], other_GN)
    first_GN, second_GN = (a.forward(v.reshape(a.shape)).reshape(a.groups, -1) for v in (v_GN, other_GN))
    weights_GM, best_GN = best_of_span([v_GN, other_GN], [first_GN, second_GN])
    return [best_GN, unit(weights_GM[:, 1:] * v_GN - weights_GM[:, :1] * other_GN)]


def methods() -> dict[str, Method]:
    """All of them, fresh; the number is that of products A^T A v a step and map."""
    found = {f"powers, {k}": Method(powers, k) for k in (1, 3, 10)}
    found["powers, 30 for 100 steps, then 3"] = Method(powers, 3, early=(30, 100))
    found |= {f"shift 1/2, {k}": Method(shifted, k) for k in (1, 3)}
    found |= {f"momentum 1/5, {k}": Method(momentum, k) for k in (1, 3)}
    found["two vectors, 2"] = Method(two_vectors, 1)
    found |= {f"Krylov, {k}": Method(krylov, k) for k in (1, 2, 3, 5, 10)}
    found |= {f"last direction, {k}": Method(with_last_direction, k) for k in (1, 2, 3, 5)}
    return found


def converged(maps: list[Grouped], vectors: list[Tensor], rounds: int = _ROUNDS) -> tuple[float, list[Tensor]]:
    """The product of norms after `rounds` restarts of 20 Krylov products from `vectors`, and where it ended."""
    method = Method(krylov, _POLISH).start(vectors)
    with torch.no_grad():
        for _ in range(rounds):
            product = float(method.product(maps))
    return product, [state[0] for state in method.states]
