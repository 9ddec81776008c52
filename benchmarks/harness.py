"""What the benchmarks share: turns in one process, medians and ratios, the machine's peaks, counted operations.

A figure is worth something only beside another one that was taken in the same minute on the same machine. So works
take turns, round by round; what is compared is the median of the rounds' ratios; and a limit is what counted
operations and bytes would take at peaks that were measured in the same rounds.
"""

import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from lipcert.data import Split

Action = Callable[[], object]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median, low, high)

    def show(self, scale: float = 1.0, digits: int = 2) -> str:
        """`1.31 (1.28 to 1.36)`."""
        low, median, high = (f"{scale * value:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{median} ({low} to {high})"


def take_turns(works: Mapping[str, Action], rounds: int, warmup: int = 2, clock=time.perf_counter) -> Seconds:
    """Seconds of every work in every round; a busy machine disturbs all alike.

    Args:
        works: what to time. Each must leave its device idle when it returns.
        rounds: timed calls of each, after `warmup` calls of each that are not timed (compilation, caches, allocator).
        clock: `time.process_time` suits one thread on a busy machine.
    """
    for work in works.values():
        for _ in range(warmup):
            work()
    seconds: Seconds = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return seconds


def medians(works: Mapping[str, Action], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of every work."""
    return {name: statistics.median(taken) for name, taken in take_turns(works, rounds, warmup).items()}


def ratio(seconds: Seconds, over: str, under: str) -> Spread:
    """How many times as long `over` takes as `under`, round by round."""
    return Spread.of([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])


# ------------------------------------------------------------------------------------------------ peaks of the machine
@dataclass(frozen=True)
class Work:
    """Something to time whose cost was counted: floating-point operations and bytes to and from memory."""

    run: Action
    operations: float = 0.0
    traffic: float = 0.0


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int, batch: int, size: int, precision: torch.dtype,
    last: bool = True, forward: bool = True, backward: bool = False, images: bool = True,
) -> Work:  # fmt: skip
    """A convolution alone, zero-padded where kernels overlap, on fresh memory of its own.

    Args:
        inputs, outputs: channels. size: side of the input in pixels. last: layout channels-last.
        forward, backward: which passes to run. images: whether the gradient of the input is one of them.
    """
    layout = torch.channels_last if last else torch.contiguous_format
    padding = 0 if kernel == stride else kernel // 2
    x_BCHW = torch.randn(batch, inputs, size, size).to(precision).to(memory_format=layout)
    kernel_OIhw = torch.randn(outputs, inputs, kernel, kernel).to(precision).to(memory_format=layout)
    grad_BCHW = F.conv2d(x_BCHW, kernel_OIhw, stride=stride, padding=padding)
    options = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [images, True, False])

    def run() -> None:
        if forward:
            F.conv2d(x_BCHW, kernel_OIhw, stride=stride, padding=padding)
        if backward:
            torch.ops.aten.convolution_backward(grad_BCHW, x_BCHW, kernel_OIhw, None, *options)

    return Work(run, 2.0 * grad_BCHW.numel() * inputs * kernel**2 * (forward + backward * (1 + images)))


def product(size: int = 2048, precision: torch.dtype = torch.float32) -> Work:
    """A square matrix product."""
    a, b = torch.randn(2, size, size).to(precision)
    return Work(lambda: a @ b, 2.0 * size**3)


def copy(bytes_: int = 2**28) -> Work:
    """A copy in memory: each byte is read and written."""
    source = torch.zeros(bytes_, dtype=torch.uint8)
    target = torch.ones_like(source)
    return Work(lambda: target.copy_(source), traffic=2.0 * bytes_)


def peak_works(width: int, batch: int = 256, size: int = 16) -> dict[str, Work]:
    """What a network of this width can at most reach here, by name."""
    works: dict[str, Work] = {}
    for name, precision, last in (
        ("float32 NCHW", torch.float32, False),
        ("float32", torch.float32, True),
        ("bfloat16", torch.bfloat16, True),
    ):
        shape = (width, width, 3, 1, batch, size, precision, last)
        works[f"convolution, {name}"] = convolution(*shape)
        works[f"convolution gradients, {name}"] = convolution(*shape, forward=False, backward=True)
    works |= {f"product, {name}": product(precision=getattr(torch, name)) for name in ("float32", "bfloat16")}
    return works | {"memory": copy()}


def rates(works: Mapping[str, Work], seconds: Seconds) -> dict[str, float]:
    """Operations (or bytes) a second by the lower quartile of the rounds: a peak is what the machine can."""
    return {name: (work.operations or work.traffic) / Spread.of(seconds[name]).low for name, work in works.items()}


def trunk_convolutions(depth: int, width: int, batch: int, precision: torch.dtype, size: int = 16) -> Action:
    """All convolutions of a LiResNet on 2 size x 2 size images, forward and backward, and nothing between them."""
    common = {"precision": precision, "backward": True}
    works = [convolution(3, width, 5, 2, batch, 2 * size, images=False, **common)]
    works += [convolution(width, width, 3, 1, batch, size, **common) for _ in range(depth)]
    works += [convolution(width, width, 4, 4, batch, size, **common)]

    def run() -> None:
        for work in works:
            work.run()

    return run


# ------------------------------------------------------------------------------------------------- counted operations
@dataclass(frozen=True)
class Part:
    """What a training step cannot avoid in one layer: operations of the forward pass and of the gradients, and the
    values that must cross memory at least once (input and output forward; gradient, input and its gradient backward).
    """

    kind: str  # "convolution", "product" or "orthogonalisation"
    forward: float
    backward: float
    values: float


def liresnet_parts(depth: int, width: int, features: int, batch: int, size: int = 16, channels: int = 3) -> list[Part]:
    """The parts of a LiResNet's step on 2 size x 2 size images with orthogonal neck; a head of few classes is left out.

    Orthogonalisation of (R, C), R <= C: Gram matrix (one triangle), factor and solve take 2 R^2 C + R^3 / 3, the
    gradient one triangle of a product, a product and a solve, 4 R^2 C.
    """
    pixels, cells = batch * size**2, batch * (size // 4) ** 2
    stem, block = 2.0 * pixels * 25 * channels * width, 2.0 * pixels * 9 * width**2
    patch, inner = 2.0 * cells * 16 * width**2, (size // 4) ** 2 * width
    dense = 2.0 * batch * inner * features
    image, map_ = 4.0 * pixels * channels, float(pixels * width)
    parts = [Part("convolution", stem, stem, 2 * image + 2 * map_)]  # images need no gradient
    parts += [Part("convolution", block, 2 * block, 5 * map_)] * depth
    parts += [Part("convolution", patch, 2 * patch, 3 * map_ + 2 * cells * width)]
    parts += [Part("product", dense, 2 * dense, 3.0 * batch * inner + 2.0 * batch * features)]
    for shape in ((width, 16 * width), (features, inner)):
        r, c = sorted(map(float, shape))
        parts.append(Part("orthogonalisation", 2 * r**2 * c + r**3 / 3, 4 * r**2 * c, 6 * r * c))
    return parts


def floor_seconds(parts: list[Part], found: Mapping[str, float], precision: str) -> float:
    """Seconds that the parts need at the peaks `found` by `rates`: the slower of arithmetic and memory, part by part.

    Matrix products count at the best rate that any product or convolution of that precision reached: libraries differ
    by more than the processor does.

    Args:
        precision: "float32" or "bfloat16", of convolutions and dense layers; orthogonalisation is float32 always.
    """
    total = 0.0
    for part in parts:
        kind = "float32" if part.kind == "orthogonalisation" else precision
        forward, backward = found[f"convolution, {kind}"], found[f"convolution gradients, {kind}"]
        if part.kind != "convolution":
            forward = backward = max(forward, backward, found[f"product, {kind}"])
        bytes_ = {"float32": 4, "bfloat16": 2}[kind] * part.values
        total += max(part.forward / forward + part.backward / backward, bytes_ / found["memory"])
    return total


# ------------------------------------------------------------------------------------------------- memory, inputs
def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands the peak of the parent on in `ru_maxrss`
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load_libraries() -> None:
    """What libraries allocate once, whatever the network: before memory is counted."""
    small = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    F.cross_entropy(small(torch.rand(2, 3, 4, 4)), torch.zeros(2, dtype=torch.int64)).backward()
    torch.optim.AdamW(small.parameters(), fused=True).step()


def in_own_process(module: str, *arguments: str) -> object:
    """What `python -m module arguments` prints last, as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def grown_bytes(make: Callable[[], Action], steps: int = 3) -> int:
    """Memory that making a step and running it `steps` times adds to this process, one thread."""
    torch.set_num_threads(1)
    load_libraries()
    before = peak_bytes()
    step = make()
    for _ in range(steps):
        step()
    return peak_bytes() - before


def plain_step(data: SimpleNamespace, depth: int, width: int, features: int, batch: int) -> Action:
    """The yardstick: a LiResNet's shape in ordinary layers, ReLU, cross-entropy, AdamW; no bound of any kind."""
    torch.manual_seed(0)
    blocks = [part for _ in range(depth) for part in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(
        nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), *blocks, nn.Conv2d(width, width, 4, 4), nn.Flatten(),
        nn.Linear(16 * width, features), nn.ReLU(), nn.Linear(features, data.classes),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    images_BCHW = (data.train.images_NCHW[:batch] / 255).to(memory_format=torch.channels_last)
    labels_B = data.train.labels_N[:batch]

    def step() -> None:
        F.cross_entropy(network(images_BCHW), labels_B).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def random_data(images: int, classes: int = 10) -> SimpleNamespace:
    """What `Run` reads of a data set: random images of CIFAR's size."""
    generator = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels_NCHW, torch.randint(0, classes, (images,), generator=generator), torch.arange(images))
    return SimpleNamespace(train=split, shape=(3, 32, 32), classes=classes, scale=255, sha256="")
