"""Small residual and attention branches with textbook bounds: material for one page of the book, NOT certified code.

The bounds are formulas on norms that LAPACK computes; no rounding is counted. `lipcert.certify` uses nothing of this,
and refuses attention, softmax and layer normalisation. Inputs are sequences of tokens; a block is x + branch(x).

Shape letters: B inputs, N tokens, D features of a token, H heads, K = D / H features of a head.
"""

import math

import torch
import torch.nn.functional as F
from scipy.special import lambertw
from torch import Tensor, nn

NORM_EPS = 1e-5  # added to the variance by layer normalisation, torch's default
COSINE_EPS = 1e-2  # added to squared lengths by scaled cosine attention
COSINE_SCALE = 10.0  # factor on the cosines, as in LipsFormer's code


class Branch(nn.Module):
    """A map of x_BND to the same shape.

    Attributes:
        everywhere: the bounds hold for all inputs; otherwise where every token has length at most `radius`.
    """

    everywhere = True

    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        """Upper bounds on the l2 Lipschitz constant by name: always "ours", and "published" where another one is."""
        raise NotImplementedError

    def last(self) -> Tensor:
        """The weights applied last: bound and branch (but for a constant) are proportional to them."""
        raise NotImplementedError


class _Heads(Branch):
    """Matrices of H heads, each (H, K, D) with entries of variance 1 / D, and the output matrix (D, H K)."""

    def __init__(self, features: int, heads: int, names: tuple[str, ...] = ("query", "key", "value")):
        super().__init__()
        if features % heads:
            raise ValueError(f"features={features}, heads={heads}: features must be a multiple of heads")
        for name in names:
            weight_HKD = torch.randn(heads, features // heads, features) / math.sqrt(features)
            self.register_parameter(name, nn.Parameter(weight_HKD))
        self.out = nn.Parameter(torch.randn(features, features) / math.sqrt(features))

    def split(self, x_BND: Tensor, name: str) -> Tensor:
        """x times one of the matrices, (B, H, N, K)."""
        return torch.einsum("hkd,bnd->bhnk", getattr(self, name), x_BND)

    def join(self, heads_BHNK: Tensor) -> Tensor:
        return heads_BHNK.transpose(1, 2).flatten(2) @ self.out.T

    def scores_norm(self, first: str, second: str) -> Tensor:
        """|first^T second| / sqrt(K) of every head, (H,)."""
        product_HDD = torch.einsum("hkd,hke->hde", getattr(self, first), getattr(self, second))
        return norm(product_HDD) / math.sqrt(self.value.shape[1])

    def last(self) -> Tensor:
        return self.out

    def joined(self, constant_H: Tensor) -> float:
        """Bound for all heads: their outputs stand side by side, so squares of their constants add."""
        return float(norm(self.out) * constant_H.square().sum().sqrt())


class DotProduct(_Heads):
    """Softmax attention. Not Lipschitz on the whole space (Kim, Papamakarios, Mnih 2021); on a ball it is.

    With one head, A = Q^T K / sqrt(k) and a = |A| R^2, the constant where all tokens have length at most R is at most

    - published: sqrt(3) |V| (n + a^2 (4 n + 1))^(1/2)   (Castin, Ablin, Peyre 2024);
    - ours: |V| (sqrt(n (1 + a^2)) + a), same steps, but the mean-zero cross term is kept (proof on the page).
    """

    everywhere = False

    def forward(self, x_BND: Tensor) -> Tensor:
        query, key, value = (self.split(x_BND, name) for name in ("query", "key", "value"))
        weights_BHNN = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.join(weights_BHNN @ value)

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        a_H, value_H = self.scores_norm("query", "key") * radius**2, norm(self.value)
        published_H = math.sqrt(3) * value_H * (tokens + a_H**2 * (4 * tokens + 1)).sqrt()
        ours_H = value_H * ((tokens * (1 + a_H**2)).sqrt() + a_H)
        return {"published": self.joined(published_H), "ours": self.joined(ours_H)}


class SquaredDistance(_Heads):
    """L2 attention: one matrix for queries and keys, scores -|y_i - y_j|^2, and that matrix again behind the mean.

    With c = phi^-1(n - 1), phi(c) = c e^(c + 1), and |A| = |Q|^2 / sqrt(k), the constant of one head is at most

    - published: |V| |A| sqrt(n) (4 c + 1)   (Kim, Papamakarios, Mnih 2021, in this notation);
    - ours: |V| |A| (sqrt(n) (2 c + 1) + 2 c), without their last estimate.
    """

    def __init__(self, features: int, heads: int):
        super().__init__(features, heads, ("query", "value"))

    def forward(self, x_BND: Tensor) -> Tensor:
        scaled_HKD = self.query / self.query.shape[1] ** 0.25
        y_BHNK = torch.einsum("hkd,bnd->bhnk", scaled_HKD, x_BND)
        apart_BHNN = (y_BHNK[..., :, None, :] - y_BHNK[..., None, :, :]).square().sum(-1)
        mean_BHND = torch.einsum("hkd,bhnk->bhnd", scaled_HKD, (-apart_BHNN).softmax(-1) @ y_BHNK)
        return self.join(torch.einsum("hkd,bhnd->bhnk", self.value, mean_BHND))

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        c, root = spread(tokens), math.sqrt(tokens)
        head_H = norm(self.value) * self.scores_norm("query", "query")
        factors = {"published": root * (4 * c + 1), "ours": root * (2 * c + 1) + 2 * c}
        return {name: self.joined(head_H * factor) for name, factor in factors.items()}


class Cosine(_Heads):
    """Scaled cosine attention (Qi et al. 2023): queries, keys and values are divided by (|y|^2 + eps)^(1/2).

    Each division stretches at most 1 / sqrt(eps) and gives lengths below 1, so one head is at most
    (sqrt(n) (|V| + t |K|) + t |Q|) / sqrt(eps), with t the factor on the cosines.
    """

    def forward(self, x_BND: Tensor) -> Tensor:
        query, key, value = (self._unit(self.split(x_BND, name)) for name in ("query", "key", "value"))
        return self.join((COSINE_SCALE * query @ key.mT).softmax(-1) @ value)

    @staticmethod
    def _unit(y_BHNK: Tensor) -> Tensor:
        return y_BHNK / (y_BHNK.square().sum(-1, keepdim=True) + COSINE_EPS).sqrt()

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        query_H, key_H, value_H = norm(self.query), norm(self.key), norm(self.value)
        head_H = math.sqrt(tokens) * (value_H + COSINE_SCALE * key_H) + COSINE_SCALE * query_H
        return {"ours": self.joined(head_H / math.sqrt(COSINE_EPS))}


class NoSoftmax(_Heads):
    """Linear attention in its plainest form, (1 / n) sum_j (q_i . k_j) v_j: cubic in x, so Lipschitz on balls only.

    One head is at most 3 R^2 |A| |V|; with A = V = 1 and all tokens equal that is attained.
    """

    everywhere = False

    def forward(self, x_BND: Tensor) -> Tensor:
        query, key, value = (self.split(x_BND, name) for name in ("query", "key", "value"))
        return self.join(query @ (key.mT @ value) / (x_BND.shape[1] * math.sqrt(query.shape[-1])))

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        return {"ours": self.joined(3 * radius**2 * self.scores_norm("query", "key") * norm(self.value))}


class PreNorm(Branch):
    """A branch behind layer normalisation (without its learnt scale), as in vision transformers.

    Normalised tokens have length at most sqrt(D), so a bound on that ball times 1 / sqrt(eps) holds everywhere.
    """

    def __init__(self, branch: _Heads):
        super().__init__()
        self.branch = branch

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.branch(F.layer_norm(x_BND, x_BND.shape[-1:], eps=NORM_EPS))

    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        inner = self.branch.bounds(tokens, math.sqrt(self.branch.out.shape[0]))
        return {name: value / math.sqrt(NORM_EPS) for name, value in inner.items()}

    def last(self) -> Tensor:
        return self.branch.last()


class TwoLayers(Branch):
    """Linear, MinMax on halves of the features, linear: bounded by the product of the two norms, |W2| |W1|.

    Subclasses give the linear maps `first` and `second`. At one token they are a dense branch, on a grid a convolution.
    """

    shape: tuple[int, int]
    down: nn.Linear | nn.Conv2d

    def last(self) -> Tensor:
        return self.down.weight

    def first(self, x_BND: Tensor) -> Tensor:
        raise NotImplementedError

    def second(self, x_BND: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x_BND: Tensor) -> Tensor:
        low, high = self.first(x_BND).chunk(2, dim=-1)
        return self.second(torch.cat([torch.maximum(low, high), torch.minimum(low, high)], -1))

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        return {"ours": float(norm(matrix_of(self.second, self.shape)) * norm(matrix_of(self.first, self.shape)))}


class Dense(TwoLayers):
    """The same two dense layers at every token, as the second half of a transformer's layer."""

    def __init__(self, tokens: int, features: int):
        super().__init__()
        self.shape = (tokens, features)
        self.up, self.down = (nn.Linear(features, features) for _ in range(2))
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=features**-0.5)

    def first(self, x_BND: Tensor) -> Tensor:
        return self.up(x_BND)

    def second(self, x_BND: Tensor) -> Tensor:
        return self.down(x_BND)


class Convolutions(TwoLayers):
    """Two 3x3 convolutions of tokens on a grid, zero-padded: the branch of a conventional residual network."""

    def __init__(self, tokens: int, features: int):
        super().__init__()
        self.shape = (tokens, features)
        self.up, self.down = (grid_conv(features) for _ in range(2))

    def first(self, x_BND: Tensor) -> Tensor:
        return on_grid(self.up, x_BND)

    def second(self, x_BND: Tensor) -> Tensor:
        return on_grid(self.down, x_BND)


class LinearConvolution(Branch):
    """One 3x3 convolution W: the branch of a linear residual block, whose constant |1 + W| is one norm."""

    def __init__(self, tokens: int, features: int):
        super().__init__()
        self.shape = (tokens, features)
        self.conv = grid_conv(features)

    def forward(self, x_BND: Tensor) -> Tensor:
        return on_grid(self.conv, x_BND)

    def last(self) -> Tensor:
        return self.conv.weight

    @torch.no_grad()
    def bounds(self, tokens: int, radius: float) -> dict[str, float]:
        return {"ours": float(norm(matrix_of(self, self.shape)))}

    @torch.no_grad()
    def block_norm(self) -> float:
        """|1 + W|, the constant of the whole block."""
        matrix = matrix_of(self, self.shape)
        return float(norm(torch.eye(len(matrix), dtype=matrix.dtype) + matrix))


def norm(matrix: Tensor) -> Tensor:
    """Largest singular value over the last two dimensions, as LAPACK computes it."""
    return torch.linalg.matrix_norm(matrix, 2)


def spread(tokens: int) -> float:
    """c with c e^(c + 1) = n - 1: no row of squared-distance attention has a larger mean of squared distances."""
    return float(lambertw((tokens - 1) / math.e).real)


def grid_conv(features: int) -> nn.Conv2d:
    """A zero-padded 3x3 convolution with weights of variance 1 / (9 D)."""
    conv = nn.Conv2d(features, features, 3, padding=1)
    nn.init.normal_(conv.weight, std=(9 * features) ** -0.5)
    return conv


def on_grid(conv: nn.Conv2d, x_BND: Tensor) -> Tensor:
    """The convolution of tokens laid out row by row on a grid, as square as their number allows."""
    high = 2 ** (int(math.log2(x_BND.shape[1])) // 2)
    return conv(x_BND.mT.unflatten(2, (high, -1))).flatten(2).mT


def matrix_of(affine, shape: tuple[int, int]) -> Tensor:
    """The matrix of an affine map of one sequence of shape (N, D), (N D, N D) float64 if the map is."""
    size = shape[0] * shape[1]
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return (affine(basis) - affine(torch.zeros_like(basis[:1]))).flatten(1).T


def make_branch(kind: str, tokens: int, features: int, heads: int) -> Branch:
    """A branch with random weights by the name that the page shows; `heads` counts for attention only."""
    attention = {
        "dot product": DotProduct,
        "squared distance": SquaredDistance,
        "cosine": Cosine,
        "no softmax": NoSoftmax,
    }
    local = {"dense": Dense, "convolutions": Convolutions, "linear convolution": LinearConvolution}
    if kind in attention:
        return attention[kind](features, heads)
    if kind == "layer norm, dot product":
        return PreNorm(DotProduct(features, heads))
    if kind in local:
        return local[kind](tokens, features)
    raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")


ATTENTION = ("dot product", "layer norm, dot product", "squared distance", "cosine", "no softmax")
KINDS = (*ATTENTION, "dense", "convolutions", "linear convolution")
