"""Goal `exact-constants`: networks of two and three layers whose constant is known, beside every way of judging it.

`python -m benchmarks.exact_constants` trains the networks (seconds each), encloses their constants by all their linear
regions, and writes the record `exact-constants`; the book's page on residual bounds reads it. About ten minutes on one
core.
"""

import argparse
import math
import os
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.pair_search import pair_search
from lipcert.attack.lipschitz import lipschitz_lower
from lipcert.layers import Residual
from lipcert.regions import lipschitz_by_regions
from lipcert.report.checks import measuring
from lipcert.report.small_nets import (
    ACTIVATIONS,
    KINDS,
    WEIGHTS,
    arms,
    estimated,
    projected_digits,
    proven,
    small_net,
    trained,
)

SIZES = {"MinMax": (6, 8), "ReLU": (4, 6)}  # inputs and hidden width of the networks on digits
RADIUS = {"digits": 36 / 255, "arms": 0.2}
DEPTHS = (1, 2, 3, 4, 6)  # of the chains in the plane
HEAD = (
    "data", "family", "activation", "blocks", "head", "inputs", "hidden", "weights", "seed", "regions", "open",
    "at least", "at most", "power 10", "power 500", "bound", "quick search", "patient search",
    "blocks exactly", "branches exactly",
)  # fmt: skip


class Case(NamedTuple):
    """One network: where it comes from. Without `head` it is judged up to its last layer."""

    data: str
    family: str
    activation: str
    blocks: int
    head: bool
    weights: str
    seed: int


def cases(seeds: int) -> Iterator[Case]:
    """Networks of two and three layers on digits, then chains of blocks in the plane."""
    for activation in ACTIVATIONS:
        for family in KINDS:
            for blocks in (1, 2):
                for weights in WEIGHTS:
                    for seed in range(seeds):
                        yield Case("digits", family, activation, blocks, True, weights, seed)
    for family in ("linear", "conventional"):
        for blocks in DEPTHS:
            for weights in WEIGHTS:
                for seed in range(seeds):
                    yield Case("arms", family, "MinMax", blocks, False, weights, seed)


def network(case: Case) -> tuple[nn.Sequential, torch.Tensor]:
    """The network of a case and points of its data, (B, N)."""
    inputs, hidden = SIZES[case.activation] if case.data == "digits" else (2, 6)
    points_BN, labels_B = projected_digits(inputs) if case.data == "digits" else arms()
    net = small_net(case.family, case.blocks, inputs, hidden, int(labels_B.max()) + 1, case.activation, case.seed)
    if case.weights != "random":
        trained(net, points_BN, labels_B, case.weights, RADIUS[case.data])
    return (net if case.head else net[:-1]), points_BN


def row(case: Case) -> tuple[str, ...]:
    """Everything measured about one network, in the order of `HEAD`."""
    net, points_BN = network(case)
    inputs = points_BN.shape[1]
    true = lipschitz_by_regions(net, inputs)
    searched = quick_search(net, points_BN[:64]), pair_search(net, points_BN[:64]).best
    layers = [layer for layer in net if isinstance(layer, (nn.Linear, Residual))]
    blocks = math.prod(lipschitz_by_regions(nn.Sequential(x), _inputs(x)).upper for x in layers)
    branches = math.prod(
        1 + lipschitz_by_regions(x.branch, _inputs(x)).upper
        if isinstance(x, Residual)
        else lipschitz_by_regions(nn.Sequential(x), _inputs(x)).upper
        for x in layers
    )
    hidden = SIZES[case.activation][1] if case.data == "digits" else 6
    values = (true.lower, true.upper, estimated(net, 10), estimated(net, 500), proven(net), *searched, blocks, branches)
    words = (
        case.data, case.family, case.activation, case.blocks, int(case.head), inputs, hidden, case.weights, case.seed,
        true.regions, true.open,
    )  # fmt: skip
    return (*map(str, words), *(f"{v:.12g}" for v in values))


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.branch[0].in_features


def quick_search(net: nn.Sequential, points_BN: torch.Tensor) -> float:
    """What `lipcert.attack.lipschitz_lower` finds from these points."""
    features = next(layer for layer in reversed(net) if isinstance(layer, (nn.Linear, Residual)))
    width = features.out_features if isinstance(features, nn.Linear) else _inputs(features)
    # The search looks at all layers but a last dense one, which therefore is added.
    chain = nn.Sequential(nn.Flatten(), *net, nn.Linear(width, width, bias=False)).eval().requires_grad_(False)
    return lipschitz_lower(chain, points_BN[:, None, None]).value


def measure(seeds: int) -> None:
    """Every case, one row each."""
    target = "every constant enclosed to 1e-8, none above its proven bound, no pair found above it"
    title = "networks of two and three layers whose constant is known"
    with measuring("exact-constants", title, target) as found:
        rows = []
        for case in cases(seeds):
            rows.append(row(case))
            print(*rows[-1], flush=True)
        nets = [dict(zip(HEAD, r, strict=True)) for r in rows]
        number = {key: [float(n[key]) for n in nets] for key in HEAD[9:]}
        widest = max(u / max(low, 1e-300) - 1 for low, u in zip(number["at least"], number["at most"], strict=True))
        # Rounding in a search: its ratio is a float64 quotient of differences 1e-3 apart.
        wrong = sum(
            u > b or max(p, q) > u * (1 + 1e-9)
            for u, b, p, q in zip(
                *(number[key] for key in ("at most", "bound", "quick search", "patient search")), strict=True
            )
        )
        below = sum(e < low for e, low in zip(number["power 10"], number["at least"], strict=True))
        shares = {
            f"{family}, {weights}": median(
                float(n["at most"]) / float(n["bound"])
                for n in nets
                if (n["data"], n["family"], n["weights"]) == ("digits", family, weights)
            )
            for family in KINDS
            for weights in WEIGHTS
        }
        recall = [p / u for p, u in zip(number["patient search"], number["at most"], strict=True)]
        found |= {
            "measured": f"{len(rows)} networks with {sum(map(int, number['regions'])):,} linear regions, constants "
            f"enclosed to {widest:.1e}; share of the proven bound that is used, median on digits: "
            + ", ".join(f"{key} {value:.2f}" for key, value in shares.items())
            + f"; the patient search finds at least {min(recall):.2f} of the constant, median {median(recall):.3f}; "
            f"in {below} networks the product of ten-round "
            "power-method estimates lies below the constant",
            "verdict": "met" if widest <= 1e-8 and not wrong else "fell short",
            "numbers": {
                "networks": len(rows),
                "widest": widest,
                "wrong": wrong,
                "power_10_below": below,
                "least_found": min(recall),
            },
            "rows": (HEAD, *rows),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind")
    seeds = parser.parse_args().seeds
    os.environ["LIPCERT_COMMAND"] = f"python -m benchmarks.exact_constants --seeds {seeds}"
    measure(seeds)


if __name__ == "__main__":
    main()
