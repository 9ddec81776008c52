"""What certificates cost beside plain inference, and proofs beside their counted limit.

`python -m benchmarks.certification` writes the check record `certification`: 10,000 images of CIFAR's size through a
shipped network, plain and certified in turns of a thousand, in one process; then the proofs of its constants, once a
network (about 8 minutes on two cores; `--quick` takes 1,000 images and one effort, about 1).

Plain inference runs the same weights in the same arithmetic and the same micro-batches, and only that. The limit of a
proof is what its fewest multiplications would take at the speed of one large float64 product, measured in the same
process. Images are random: the cost does not depend on them. With one thread, times are processor time.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.bounds import fewest_operations, product_speed, shipped
from benchmarks.harness import Spread, ratio, take_turns
from lipcert.bounds import norm_bound
from lipcert.certify import certify
from lipcert.chain import ChainBounds, chain_bounds
from lipcert.models import load
from lipcert.report.checks import measuring

NETWORK, IMAGES, TURN, MICRO_BATCH = "cifar10-liresnet-L6W80", 10_000, 1000, 64
GOAL = 1.1
TARGET = f"10,000 images certified (executed in float64) in at most {GOAL} times plain inference in float64"
CLAIMS = (
    ("nominal", "float64"),
    ("real", "float64"),
    ("executed", "float64"),
    ("executed", "float32"),
)


def measure_images(images: int, turn: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each way in every turn of `turn` images."""
    chain = load(NETWORK)
    shape = tuple(chain.card["input_shape"])
    bounds = chain_bounds(chain, shape)
    doubled = copy.deepcopy(chain).double()
    images_BCHW = torch.rand(turn, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    works = {f"plain, {name}": plain(net, images_BCHW) for name, net in (("float64", doubled), ("float32", chain))}
    works |= {", ".join(claim): certified(chain, images_BCHW, bounds, *claim) for claim in CLAIMS}
    return take_turns(works, images // turn, warmup=1, clock=clock)


def plain(network: nn.Module, images_BCHW: torch.Tensor) -> Callable[[], None]:
    """Inference and nothing else, in the network's arithmetic."""
    own_BCHW = images_BCHW.to(next(network.parameters()).dtype)

    @torch.no_grad()
    def run() -> None:
        for part in own_BCHW.split(MICRO_BATCH):
            network(part).argmax(1)

    return run


def certified(
    chain: nn.Module, images_BCHW: torch.Tensor, bounds: ChainBounds, guarantee: str, arithmetic: str
) -> Callable[[], object]:
    """Prediction and proven radius of every image."""
    return lambda: certify(chain, images_BCHW, guarantee=guarantee, arithmetic=arithmetic, bounds=bounds)


def measure_proofs(efforts: tuple[str, ...], clock: Callable[[], float]) -> list[dict]:
    """Seconds, excess and share of the limit of every layer's proof."""
    speed, found = product_speed(clock), []
    for effort in efforts:
        for name, layer, shape in shipped(NETWORK):
            if effort == "tight" and isinstance(layer, nn.Linear):
                continue  # the same proof
            start = clock()
            enclosure = norm_bound(layer, shape, effort=effort)
            seconds = clock() - start
            fewest = fewest_operations(layer, shape, enclosure.method)
            found.append(
                {
                    "layer": name, "effort": effort, "method": enclosure.method, "seconds": seconds,
                    "excess": enclosure.upper / enclosure.lower - 1, "limit": fewest / speed if fewest else None,
                }
            )  # fmt: skip
    return found


def told(seconds: dict[str, list[float]], proofs: list[dict], images: int, turn: int) -> dict:
    """The record's contents."""
    rows, numbers = [("pass", "ms an image", "over plain inference in the same arithmetic")], {"images": images}
    for name, taken in seconds.items():
        per_image = 1000 * statistics.median(taken) / turn
        over = ratio(seconds, name, f"plain, {name.split(', ')[1]}")
        rows.append((name, f"{per_image:.3f}", over.show(digits=3)))
        numbers |= {f"{name}; ms an image": per_image, f"{name}; ratio": over.median}
        numbers |= {f"{name}; low": over.low, f"{name}; high": over.high}
    rows.append(("proof of a layer, effort", "seconds", "share of the limit"))
    for proof in proofs:
        share = f"{proof['limit'] / proof['seconds']:.0%}" if proof["limit"] else ""
        name = f"{proof['layer']} ({proof['method']}), {proof['effort']}"
        rows.append((name, f"{proof['seconds']:.3f}", share))
        numbers |= {f"proof; {name}; seconds": proof["seconds"], f"proof; {name}; excess": proof["excess"]}
        if proof["limit"]:
            numbers[f"proof; {name}; share"] = proof["limit"] / proof["seconds"]
    for effort in dict.fromkeys(proof["effort"] for proof in proofs):
        known = [proof for proof in proofs if proof["effort"] == effort and proof["limit"]]
        numbers[f"proofs; {effort}; seconds"] = sum(p["seconds"] for p in proofs if p["effort"] == effort)
        if known:
            numbers[f"proofs; {effort}; share"] = sum(p["limit"] for p in known) / sum(p["seconds"] for p in known)
    cost, fast = numbers["executed, float64; ratio"], numbers["proofs; fast; seconds"]
    of_all = fast / (images * numbers["executed, float64; ms an image"] / 1000)
    spread = Spread.of([a / b for a, b in zip(seconds["executed, float64"], seconds["plain, float64"], strict=True)])
    return {
        "measured": f"{images:,} images of {NETWORK}, certified as executed in float64: {spread.show(digits=3)} times "
        f"the time of plain inference in float64; as executed in float32, {numbers['executed, float32; ratio']:.2f} "
        f"times that in float32; {numbers['executed, float64; ms an image']:.2f} ms an image; proving the constants "
        f"takes {fast:.2f} s once, {of_all:.1%} of certifying them in float64",
        "verdict": "met" if cost <= GOAL else "fell short",
        "numbers": {key: float(f"{value:.4g}") for key, value in numbers.items()},
        "rows": tuple(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="1,000 images, one effort: for rehearsal")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    images, turn = (1000, 200) if options.quick else (IMAGES, TURN)
    with measuring("certification", "10,000 certificates against plain inference", TARGET) as found:
        seconds = measure_images(images, turn, clock)
        proofs = measure_proofs(("fast",) if options.quick else ("fast", "tight"), clock)
        found |= told(seconds, proofs, images, turn)
        found["numbers"] |= {"threads": options.threads}
        for row in found["rows"]:
            print(" | ".join(row))


if __name__ == "__main__":
    main()
