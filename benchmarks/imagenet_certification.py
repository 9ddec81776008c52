"""What certifying an ImageNet image costs at the papers' size: `python -m benchmarks.imagenet_certification`.

Writes the check record `imagenet-certification`; about 8 minutes of one quiet core, 5 GB, no data. Two published
presets at 224 pixels, each in a process of its own: constants proven once, then one micro-batch of random images
through plain inference and through the certifier. Times are processor time of one thread.

Weights are those training would start from. What a pass costs does not depend on them, nor on the images: the same
products, sums and bounds on their rounding are computed whatever the numbers are. What a proof costs may: its
factorisation is tried again, with more room above the norm, until one succeeds, which is hardest where many singular
values lie together, as at the start near the identity. So one block is proven a second time with a branch of the size
that trained ones have. All blocks of a network are given the kernel of its first: one proof stands for them all, and
its time is counted once for each.

A certificate needs a whole micro-batch of 64, filled up with zeros, so that its bytes do not depend on the batch: one
image alone takes as long as 64.
"""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import lipcert.chain
from benchmarks.certification import certified, plain
from benchmarks.harness import in_own_process, peak_bytes, take_turns
from lipcert.bounds import Enclosure, norm_bound
from lipcert.chain import ChainBounds, chain_bounds
from lipcert.config import ModelConfig, load_config
from lipcert.forward import AFFINE, places
from lipcert.models import build_model
from lipcert.paths import ROOT
from lipcert.provenance import tensors_sha256
from lipcert.report.checks import measuring
from lipcert.report.published import preset_model

FOLDER = ROOT / "notebooks" / "params" / "published"
PRESETS = {
    "first generation": "liresnet-v1-imagenet",
    "third generation": "liresnet-iclr-imagenet-l18",
}  # both L18 W588; name for readers -> file
MICRO_BATCH = 64  # what the certifier runs at once
PLAIN_DOUBLES = 16  # images of plain inference in float64, which has no fast kernel: enough for a time an image
BRANCH = 0.35  # of noise of unit norm an output, beside the identity: a trained block's
SAID_SECONDS, MEMORY_GB = 180, 24
TARGET = (
    f"a certificate, executed in float64, in less than the {SAID_SECONDS // 60} minutes an image that are said to be "
    f"the cost of certifying ImageNet; within {MEMORY_GB} GB"
)
CLAIMS = (("executed", "float64"), ("executed", "float32"))
# For rehearsal: the same layers in small.
SMALL = {"input_size": 32, "stem": "auto", "width": 16, "depth": 3, "neck_width": 32, "classes": 10}


def network(name: str, quick: bool) -> nn.Sequential:
    """The plain network of a preset, its weights as training starts from them; every block with the first one's."""
    config = shape_of(name, quick)
    torch.manual_seed(0)
    chain = build_model(config).plain()
    first, *others = (layer for layer in chain if is_block(layer))
    for layer in others:
        layer.load_state_dict(first.state_dict())
    return chain


def shape_of(name: str, quick: bool) -> ModelConfig:
    """The network that a preset trains."""
    config = preset_model(load_config(FOLDER / f"{PRESETS[name]}.yaml"))
    small = SMALL | {"tail_depth": min(2, config.tail_depth)}
    return config.model_copy(update=small) if quick else config


def is_block(layer: nn.Module) -> bool:
    """Whether this is the convolution of a linear residual block: of all layers only they overlap and keep the size."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1)


def trained_like(block: nn.Conv2d) -> nn.Conv2d:
    """A block of the same shape: identity and a random branch of the size that training leaves."""
    made = copy.deepcopy(block)
    noise_OIhw = torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1))
    made.weight.data = BRANCH * noise_OIhw / math.sqrt(noise_OIhw[0].numel())
    made.weight.data[:, :, 1, 1] += torch.eye(len(noise_OIhw))
    return made


class Prover:
    """`norm_bound` with a stopwatch; a layer that stands several times is proven once and its time counted each time.

    found: (title of the layer, method, seconds) of every proof asked for.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, str, float]] = []
        self._known: dict[tuple, tuple[Enclosure, float]] = {}

    def __call__(self, layer: nn.Module, shape: tuple[int, ...], effort: str = "fast") -> Enclosure:
        key = (repr(layer), shape, effort, tensors_sha256({"weight": layer.weight}))
        if key not in self._known:
            start = time.process_time()
            enclosure = norm_bound(layer, shape, effort=effort)
            self._known[key] = enclosure, time.process_time() - start
        enclosure, seconds = self._known[key]
        self.found.append((title(layer), enclosure.method, seconds))
        return enclosure


def title(layer: nn.Module) -> str:
    """`convolution 3x3, 588 to 588`."""
    if isinstance(layer, nn.Conv2d):
        return f"convolution {layer.kernel_size[0]}x{layer.kernel_size[1]}, {layer.in_channels} to {layer.out_channels}"
    return f"dense, {layer.in_features} to {layer.out_features}"


@contextmanager
def proving() -> Iterator[Prover]:
    """Bounds of chains are proven by the `Prover` that this gives."""
    prover = Prover()
    with mock.patch.object(lipcert.chain, "norm_bound", prover):
        yield prover


def operations(chain: nn.Sequential, shape: tuple[int, ...]) -> float:
    """Multiplications and additions of one image, forward."""
    affine = (place for place in places(chain, shape) if isinstance(place.layer, AFFINE))
    return sum(2.0 * place.layer.weight[0].numel() * math.prod(place.after) for place in affine)


def forget_peak() -> None:
    """Begin to count the largest resident memory anew; elsewhere than on Linux it stays that of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, quick: bool, rounds: int) -> dict[str, object]:
    """One preset's numbers: times in seconds, memory in bytes; in this process, which is to do nothing else."""
    torch.set_num_threads(1)
    warm = network(name, quick=True)  # compiles kernels and loads libraries
    certified(warm, torch.rand(1, *image_shape(name, True)), chain_bounds(warm, image_shape(name, True)), *CLAIMS[1])()
    chain, shape = network(name, quick), image_shape(name, quick)
    block = next(layer for layer in chain if is_block(layer))
    facts: dict[str, object] = {
        "parameters": build_parameters(name, quick),
        "operations": operations(chain, shape),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in chain.state_dict().values()),
    }
    forget_peak()
    with proving() as prover:
        bounds = chain_bounds(chain, shape)
        facts["proofs"] = list(prover.found)
        if name == next(iter(PRESETS)):  # the blocks of all presets have one shape
            size = next(place.shape for place in places(chain, shape) if place.layer is block)
            prover(trained_like(block), size)
            facts["trained block"] = prover.found[-1][2]
    facts["memory of proofs"] = peak_bytes()
    images_BCHW = torch.rand(MICRO_BATCH, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return facts | passes(chain, images_BCHW, bounds, rounds)


def passes(chain: nn.Sequential, images_BCHW: torch.Tensor, bounds: ChainBounds, rounds: int) -> dict[str, object]:
    """Seconds an image of every way, the median of the rounds; the peak while certifying."""
    doubled, few_BCHW = copy.deepcopy(chain).double(), images_BCHW[:PLAIN_DOUBLES]
    works = {
        "plain, float64": (plain(doubled, few_BCHW), len(few_BCHW)),
        "plain, float32": (plain(chain, images_BCHW), len(images_BCHW)),
    }
    taken = {key: shared(work, images, rounds) for key, (work, images) in works.items()}
    del doubled, works
    forget_peak()
    for claim in CLAIMS:
        taken[", ".join(claim)] = shared(certified(chain, images_BCHW, bounds, *claim), len(images_BCHW), rounds)
    return {"seconds": taken, "memory of certifying": peak_bytes()}


def shared(work, images: int, rounds: int) -> float:
    """Processor seconds of one call, an image."""
    seconds = take_turns({"": work}, rounds, warmup=0, clock=time.process_time)[""]
    return sorted(seconds)[len(seconds) // 2] / images


def image_shape(name: str, quick: bool) -> tuple[int, int, int]:
    config = shape_of(name, quick)
    return config.channels, config.input_size, config.input_size


def build_parameters(name: str, quick: bool) -> int:
    """Trained parameters, counted without allocating them."""
    with torch.device("meta"):
        return build_model(shape_of(name, quick)).parameter_count()


def told(found: dict[str, dict]) -> dict[str, object]:
    """The record's contents, of `measure` by preset."""
    rows = [("network", "what", "time", "beside plain inference in the same arithmetic")]
    numbers: dict[str, float] = {"micro-batch": MICRO_BATCH, "said; seconds": SAID_SECONDS}
    for name, facts in found.items():
        rows += list(proof_rows(name, facts["proofs"]))
        if (trained := facts.get("trained block")) is not None:
            rows.append((name, "proof of one block with a branch as trained", f"{trained:.1f} s", ""))
            numbers |= {f"{name}; trained block; seconds": trained}
        proving_seconds = sum(seconds for _, _, seconds in facts["proofs"])
        numbers |= {f"{name}; proofs; seconds": proving_seconds, f"{name}; parameters": facts["parameters"]}
        numbers[f"{name}; GFLOP an image"] = facts["operations"] / 1e9
        numbers[f"{name}; block; seconds"] = block_seconds(facts["proofs"])
        for phase in ("proofs", "certifying"):
            numbers[f"{name}; memory of {phase}; GB"] = facts[f"memory of {phase}"] / 1e9
        for way, seconds in facts["seconds"].items():
            ratio = seconds / facts["seconds"][f"plain, {way.split(', ')[1]}"]
            numbers |= {f"{name}; {way}; seconds an image": seconds, f"{name}; {way}; ratio": ratio}
            beside = "" if way.startswith("plain") else f"{ratio:.2f}"
            rows.append((name, f"an image, {way}", f"{seconds:.3f} s", beside))
    slowest = max(numbers[f"{name}; executed, float64; seconds an image"] for name in found)
    memory = max(value for key, value in numbers.items() if "memory" in key)
    return {
        "measured": f"{slowest:.2f} s an image at most, executed in float64, in micro-batches of {MICRO_BATCH}, on one "
        f"thread; {SAID_SECONDS / slowest:.0f} times less than the {SAID_SECONDS} s that are said; memory at most "
        f"{memory:.1f} GB",
        "verdict": "met" if slowest < SAID_SECONDS and memory < MEMORY_GB else "fell short",
        "numbers": {key: float(f"{value:.4g}") for key, value in numbers.items()}
        | {f"{name}; file": PRESETS[name] for name in found},
        "rows": tuple(rows),
    }


def block_seconds(proofs: Sequence[Sequence]) -> float:
    """Of the proof of a block, which is the layer that stands most often."""
    titles = [proof[0] for proof in proofs]
    return next(seconds for what, _, seconds in proofs if what == max(titles, key=titles.count))


def proof_rows(name: str, proofs: Sequence[Sequence]) -> Iterator[tuple[str, ...]]:
    """A row for every kind of layer, its number in front."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for what, method, seconds in proofs:
        kinds.setdefault((what, method), []).append(seconds)
    for (what, method), seconds in kinds.items():
        yield name, f"proof of {len(seconds)} x {what} ({method})", f"{sum(seconds):.1f} s", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="of each pass")
    parser.add_argument("--quick", action="store_true", help="networks of 16 channels on 32 pixels: for rehearsal")
    parser.add_argument("--preset", choices=list(PRESETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.preset:
        print(json.dumps(measure(options.preset, options.quick, options.rounds)))
        return
    quick = ["--quick"] * options.quick
    os.environ["LIPCERT_COMMAND"] = " ".join(["python -m benchmarks.imagenet_certification", *quick])
    with measuring("imagenet-certification", "certifying an ImageNet image", TARGET) as found:
        passed = ("--rounds", str(options.rounds), *quick)
        found |= told({name: in_own_process(__spec__.name, "--preset", name, *passed) for name in PRESETS})
        found["numbers"] |= {"threads": 1}
        for row in found["rows"]:
            print(" | ".join(row))


if __name__ == "__main__":
    main()
