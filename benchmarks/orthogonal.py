"""Goal `orthogonal`: the price of Cholesky-orthogonal weights, and how orthogonal they are.

`python -m benchmarks.orthogonal` writes the record `orthogonal`; about two minutes on one core. Times are processor
seconds of one thread, medians over rounds in which the ways alternate, so that a busy machine disturbs all alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.bounds import norm_bound
from lipcert.layers import plain_linear
from lipcert.orthogonal import OrthogonalResidualStack, cholesky_orthogonalise
from lipcert.report.checks import measuring

SHAPES = ((512, 1024), (2048, 1024), (2048, 2048), (8, 1024, 1024))  # necks and dense tails in use
SCALES = (1.0, 20.0, 64.0)  # of the branch V, whose entries start at N(0, 1) / features
FEATURES, DEPTH = 64, 8
WHOLE_NUMBERS = 256  # features up to which norms are proven in whole numbers, larger ones in floating point
ROUNDING = 1e-5  # of float32 weights: a norm may exceed 1 by no more than this
TARGET = f"every proven norm at most 1 + {ROUNDING:g}; at least 1.5 times as fast as autograd at every shape"
_RIDGE = 1e-3


def formula(matrix_RC: Tensor) -> Tensor:
    """chol(M M^T + d I)^-1 M of the smaller side as one writes it down, differentiated by autograd."""
    if matrix_RC.shape[-2] > matrix_RC.shape[-1]:
        return formula(matrix_RC.mT).mT
    gram_RR = matrix_RC @ matrix_RC.mT
    ridge = _RIDGE * gram_RR.detach().diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    factor_RR = torch.linalg.cholesky_ex(gram_RR + ridge * torch.eye(gram_RR.shape[-1]))[0]
    return torch.linalg.solve_triangular(factor_RR, matrix_RC, upper=False)


def residual(shape: tuple[int, ...], scale: float) -> Tensor:
    """A matrix as the stack makes it: identity (where it is square) and a random branch."""
    matrix_RC = scale * torch.randn(shape) / (shape[-1] * DEPTH**0.5)
    return matrix_RC + torch.eye(shape[-1]) if shape[-2] == shape[-1] else matrix_RC


def kept_bytes(orthogonalise: Callable[[Tensor], Tensor], matrix_RC: Tensor) -> int:
    """What waits for the backward pass; the matrix too where it is kept, for in a network it is a result itself."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        weight_RC = orthogonalise(matrix_RC)  # noqa: F841 (alive, so that no storage is counted under two addresses)
    return sum(kept.values())


def spent(work: Callable[[], object]) -> tuple[float, object]:
    """Processor seconds, and what came out."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare(shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Medians of both ways at one shape, seconds and bytes; the largest difference of the gradients, relative."""
    ways = {"autograd": formula, "lipcert": cholesky_orthogonalise}
    matrix_RC = residual(shape, 20.0).requires_grad_()
    grad_RC = torch.randn(shape)
    times: dict[str, list[float]] = {f"{way} {part}": [] for way in ways for part in ("forward", "backward")}
    slopes = {}
    for turn in range(rounds + 1):  # the first is for warming up
        for way, orthogonalise in ways.items():
            forward, weight_RC = spent(lambda orthogonalise=orthogonalise: orthogonalise(matrix_RC))
            backward, (slopes[way],) = spent(lambda w=weight_RC: torch.autograd.grad(w, matrix_RC, grad_RC))
            if turn:
                times[f"{way} forward"].append(forward)
                times[f"{way} backward"].append(backward)
    found = {name: statistics.median(seconds) for name, seconds in times.items()}
    for way, orthogonalise in ways.items():
        found[way] = found[f"{way} forward"] + found[f"{way} backward"]
        found[f"{way} bytes"] = kept_bytes(orthogonalise, matrix_RC)
    found["ratio"] = found["autograd"] / found["lipcert"]
    found["difference"] = float((slopes["lipcert"] - slopes["autograd"]).norm() / slopes["autograd"].norm())
    return found


def inverse_root_step(size: int, rounds: int) -> float:
    """Median of one Newton-Schulz step X (3 I - X^T X) / 2: the least that an iteration of products could cost."""
    x_FF = residual((size, size), 1.0)
    return statistics.median(
        spent(lambda: torch.addmm(x_FF, x_FF, x_FF.mT @ x_FF, beta=1.5, alpha=-0.5))[0] for _ in range(rounds)
    )


@torch.no_grad()
def spread(scale: float) -> dict[str, float]:
    """Singular values of a stack's weights whose branches are `scale` times as large as at the start."""
    stack = OrthogonalResidualStack(DEPTH, FEATURES)
    stack.branch_LFF.mul_(scale)
    return _spread(stack.weights())


@torch.no_grad()
def spread_of_one_direction(features: int) -> dict[str, float]:
    """The same where one singular value outweighs all others, which brings the norm as near to 1 as it gets."""
    left_F1, right_F1 = torch.randn(2, features, 1)
    return _spread(cholesky_orthogonalise(torch.eye(features) + left_F1 @ right_F1.mT)[None])


def _spread(weights_LFF: Tensor) -> dict[str, float]:
    effort = "exact" if weights_LFF.shape[-1] <= WHOLE_NUMBERS else "fast"
    singular_LF = torch.linalg.svdvals(weights_LFF.double())
    layers = [plain_linear(weight_FF, weight_FF.new_zeros(len(weight_FF))) for weight_FF in weights_LFF]
    proven = max(norm_bound(layer, (layer.in_features,), effort=effort).upper for layer in layers)
    return {"lowest": float(singular_LF.min()), "highest": float(singular_LF.max()), "proven": proven}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with measuring("orthogonal", "Cholesky-orthogonal weights: price and norms", TARGET) as found:
        price = {shape: compare(shape, options.rounds) for shape in SHAPES}
        step = inverse_root_step(2048, options.rounds)
        norms = {f"V x {scale:g}, {DEPTH} of {FEATURES}": spread(scale) for scale in SCALES}
        norms |= {f"one direction, {n}": spread_of_one_direction(n) for n in (FEATURES, WHOLE_NUMBERS, 2048)}
        found |= told(price, step, norms)


def told(price: dict[tuple[int, ...], dict], step: float, norms: dict[str, dict]) -> dict:
    """The measurements as the record holds them."""
    ratios = [p["ratio"] for p in price.values()]
    proven, forward = max(n["proven"] for n in norms.values()), price[2048, 2048]["lipcert forward"]
    numbers: dict[str, float] = {"inverse root step": step}
    for shape, p in price.items():
        numbers |= {f"{_name(shape)}, {key}": value for key, value in p.items()}
    for name, n in norms.items():
        numbers |= {f"{name}, {key}": value for key, value in n.items()}
    return {
        "measured": f"forward and backward {min(ratios):.2f} to {max(ratios):.2f} times as fast as autograd of the "
        f"same formula, gradients equal to {max(p['difference'] for p in price.values()):.0e}; largest proven norm "
        f"{proven:.8f}; singular values down to {min(n['lowest'] for n in norms.values()):.3f} where V "
        f"is large; one inverse-root step on 2048 x 2048 takes {step:.2f} s, the whole forward pass {forward:.2f} s",
        "verdict": "met" if proven <= 1 + ROUNDING and min(ratios) >= 1.5 else "fell short",
        "numbers": {key: float(f"{value:.9g}") for key, value in numbers.items()},
        "rows": (
            ("shape", "autograd, s", "lipcert, s", "times as fast", "kept by autograd, MiB", "kept by lipcert, MiB"),
            *(
                (
                    _name(shape), f"{p['autograd']:.3f}", f"{p['lipcert']:.3f}", f"{p['ratio']:.2f}",
                    f"{p['autograd bytes'] / 2**20:.0f}", f"{p['lipcert bytes'] / 2**20:.0f}",
                )
                for shape, p in price.items()
            ),
        ),
    }  # fmt: skip


def _name(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


if __name__ == "__main__":
    main()
