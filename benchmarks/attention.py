"""How loose bounds of residual and attention blocks are: `python -m benchmarks.attention`, minutes on one core.

Writes `results/local/checks/attention.json`. Blocks of 64 numbers (tokens x features 4 x 16, 8 x 8, 16 x 4) with random
weights, after a second of training on the digits, and after training with the bound held down; every bound against
Jacobians at random points and at points found by search. Nothing here is certified.

Shape letters: B inputs, N tokens, D features of a token.
"""

import argparse
import math
import os
import shlex
import sys
import time
from dataclasses import astuple, fields

import torch
from torch import Tensor, nn

from benchmarks.attention_blocks import (
    ATTENTION,
    COSINE_EPS,
    COSINE_SCALE,
    KINDS,
    NORM_EPS,
    Branch,
    DotProduct,
    LinearConvolution,
    TwoLayers,
    make_branch,
)
from benchmarks.jacobian_search import climb, in_ball, jacobians, sorted_best, stretches
from lipcert.data import load_dataset
from lipcert.report.attention import GOAL, Case
from lipcert.report.checks import measuring

SHAPES = ((4, 16), (8, 8), (16, 4))  # tokens, features
PATCHES = {4: (2, 2), 8: (2, 4), 16: (4, 4)}  # tokens -> rows and columns of patches of an 8 x 8 image
HELD = 0.5  # bound on the branch that training may not exceed, where it is held: the block's bound is then 3/2
FAMILY = (0.0, 1.0, 10.0, 100.0, 1000.0)
_TOLERANCE = 1e-9  # relative: Jacobians and norms are float64 numbers, neither is proven


def patches(images_NCHW: Tensor, tokens: int) -> Tensor:
    """Images (B, 1, 8, 8) as tokens, one for each patch, (B, N, D)."""
    rows, columns = PATCHES[tokens]
    split = images_NCHW.reshape(len(images_NCHW), rows, 8 // rows, columns, 8 // columns)
    return split.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def train(branch: Branch, images_BND: Tensor, labels_B: Tensor, limit: float, steps: int) -> float:
    """Train x + branch(x) with a linear head as a classifier; returns accuracy on the same images.

    The branch's last weights are scaled down after every step until its bound is at most `limit`.
    """
    head = nn.Linear(images_BND[0].numel(), 10).double()
    optimiser = torch.optim.Adam([*branch.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(len(images_BND), (200,))
        x_BND = images_BND[batch]
        loss = nn.functional.cross_entropy(head((x_BND + branch(x_BND)).flatten(1)), labels_B[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        hold(branch, images_BND.shape[1:], limit)
    with torch.no_grad():
        right_B = head((images_BND + branch(images_BND)).flatten(1)).argmax(1) == labels_B
    return float(right_B.double().mean())


@torch.no_grad()
def hold(branch: Branch, shape: tuple[int, int], limit: float) -> None:
    """Scale the branch's last weights until its bound is at most `limit`."""
    if math.isfinite(limit):
        branch.last().mul_(min(1.0, limit / branch.bounds(shape[0], math.sqrt(shape[1]))["ours"]))


def starts(images_BND: Tensor, radius: float | None) -> Tensor:
    """Where searches start: 8 images, 8 random sequences, 8 whose tokens have lengths of many orders of magnitude."""
    shape = (8, *images_BND.shape[1:])
    random_BND = torch.randn(shape, dtype=torch.float64)
    lowest = -2.0 if radius is not None else -4.0
    scale_BN1 = 10 ** (lowest + (1 - lowest) * torch.rand(*shape[:2], 1, dtype=torch.float64))
    spread_BND = scale_BN1 * torch.randn(shape, dtype=torch.float64)
    chosen = torch.randint(len(images_BND), (8,))
    return in_ball(torch.cat([images_BND[chosen], random_BND, spread_BND]), radius)


def measure(
    kind: str, shape: tuple[int, int], heads: int, seed: int, data: tuple[Tensor, Tensor], steps: int = 150
) -> list[Case]:
    """One kind of block with random weights, trained, and trained with its bound held."""
    images_BND, labels_B = patches(data[0], shape[0]), data[1]
    cases = []
    for weights, limit in (("random", None), ("trained", math.inf), ("held", HELD)):
        torch.manual_seed(seed)
        branch = make_branch(kind, *shape, heads).double()
        accuracy = math.nan if limit is None else train(branch, images_BND, labels_B, limit, steps)
        branch.requires_grad_(False)
        cases.append(Case(kind, *shape, heads, weights, seed, *compare(branch, images_BND), accuracy))
    return cases


def compare(branch: Branch, images_BND: Tensor) -> tuple[float, float, float, float, float, int, int]:
    """Bounds of one branch against what is found: fields `published` to `violations` of `Case`."""
    shape = images_BND.shape[1:]
    radius = math.sqrt(shape[1])  # of the ball that holds all images and all normalised tokens
    ball = None if branch.everywhere else radius
    x_BND = torch.cat([in_ball(torch.randn(8, *shape, dtype=torch.float64), ball), starts(images_BND, ball)])
    if isinstance(branch, TwoLayers):
        x_BND = torch.cat([x_BND, *(sorted_best(branch, skip, 16) for skip in (False, True))])
    elif not isinstance(branch, LinearConvolution):
        x_BND = torch.cat([x_BND, climb(branch, x_BND, ball)])
    branch_B, whole_B = stretches(branch, x_BND)
    bounds = branch.bounds(shape[0], radius)
    whole_bound = branch.block_norm() if isinstance(branch, LinearConvolution) else 1 + bounds["ours"]
    slack = 1 + _TOLERANCE
    wrong = sum(int((branch_B > slack * bound).sum()) for bound in bounds.values())
    wrong += int((whole_B > slack * whole_bound).sum())
    found = (float(branch_B.max()), float(whole_B.max()))
    return bounds.get("published", math.nan), bounds["ours"], *found, whole_bound, len(x_BND), wrong


def family(t: float) -> tuple[float, float]:
    """Two tokens 0 and t, one feature, all weights 1: d f_1 / d x_1, and the norm of the whole Jacobian."""
    branch = DotProduct(1, 1).double()
    for weight in branch.parameters():
        nn.init.ones_(weight)
    jacobian_SS = jacobians(branch, torch.tensor([[[0.0], [t]]], dtype=torch.float64))[0]
    return float(jacobian_SS[0, 0]), float(torch.linalg.matrix_norm(jacobian_SS, 2))


def pieces() -> dict[str, float]:
    """Single maps against their constants: the family, softmax (1/2), layer normalisation (1 / sqrt(eps))."""
    torch.manual_seed(0)
    numbers = {f"family {t:g}": family(t)[0] for t in FAMILY} | {f"family norm {t:g}": family(t)[1] for t in FAMILY}
    logits_BN1 = 10 * torch.randn(10_000, 10, 1, dtype=torch.float64)
    pair_BN1 = torch.full((1, 10, 1), -40.0, dtype=torch.float64)
    pair_BN1[:, :2] = 0
    for name, points in (("random", logits_BN1), ("pair", pair_BN1)):
        found = jacobians(lambda x: x.softmax(1), points)
        numbers[f"softmax {name}"] = float(torch.linalg.matrix_norm(found, 2).max())
    token_11D = torch.randn(1, 1, 16, dtype=torch.float64)
    unit_11D = (token_11D - token_11D.mean()) / token_11D.std(correction=0)
    for deviation in (1.0, 1e-1, 1e-2, 1e-3, 0.0):
        found = jacobians(lambda x: nn.functional.layer_norm(x, (16,), eps=NORM_EPS), deviation * unit_11D)
        numbers[f"layer norm {deviation:g}"] = float(torch.linalg.matrix_norm(found, 2))
    return numbers


def run(seeds: int, kinds: tuple[str, ...]) -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    data = load_dataset("digits")
    digits = (data.train.images_NCHW.double() / data.scale, data.train.labels_N)
    with measuring(GOAL, "bounds of residual and attention blocks", "none below a Jacobian found") as found:
        cases: list[Case] = []
        for kind in kinds:
            start = time.perf_counter()
            for shape in SHAPES:
                for heads in (1, 2) if kind in ATTENTION else (1,):
                    for seed in range(seeds):
                        cases += measure(kind, shape, heads, seed, digits)
            print(f"{kind}: {time.perf_counter() - start:.0f} s", flush=True)
        report = findings(cases, seeds)
        found |= report | {"numbers": pieces() | report["numbers"]}


def findings(cases: list[Case], seeds: int) -> dict:
    """What the record says of the blocks measured."""
    points, violations = sum(c.points for c in cases), sum(c.violations for c in cases)
    return {
        "measured": f"{len(cases)} blocks, Jacobians at {points:,} points: {violations} above a bound",
        "verdict": "fell short" if violations else "met",
        "numbers": {
            "blocks": len(cases), "points": points, "violations": violations, "seeds": seeds, "norm eps": NORM_EPS,
            "cosine eps": COSINE_EPS, "cosine scale": COSINE_SCALE, "held": HELD,
        },
        "rows": (tuple(f.name for f in fields(Case)), *(tuple(map(_text, astuple(c))) for c in cases)),
    }  # fmt: skip


def _text(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="blocks of each sort (default 3)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="default: all")
    options = parser.parse_args()
    os.environ["LIPCERT_COMMAND"] = shlex.join(["python", "-m", "benchmarks.attention", *sys.argv[1:]])
    run(options.seeds, tuple(options.kinds))


if __name__ == "__main__":
    main()
