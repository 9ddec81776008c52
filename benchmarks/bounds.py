"""How tight and how fast the proven bounds are, as a Markdown table: `python benchmarks/bounds.py [--model NAME]`.

excess: the upper end over the lower end, minus one. share: what the fewest multiplications of the proof (Gram matrix,
factor, check, symmetry used) would take at the speed of one large float64 product, over the time it took, search and
lower end included. The speed of that product is measured in the same process. With --threads 1 the seconds are of
processor time, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from lipcert.bounds import norm_bound
from lipcert.bounds.banded import BandedGram
from lipcert.bounds.operators import read_operator
from lipcert.bounds.rounding import TorchArithmetic

DENSE_NETWORKS = {"784-128x8-10": [784, *[128] * 8, 10], "3072-512-256-128x6-10": [3072, 512, 256, *[128] * 6, 10]}
Layer = tuple[str, nn.Module, tuple[int, ...]]
Clock = Callable[[], float]


def product_speed(clock: Clock, size: int = 2048) -> float:
    """Floating-point operations a second in one large float64 product, the best of five."""
    square = torch.randn(size, size, dtype=torch.float64)
    times = []
    for _ in range(5):
        start = clock()
        square @ square
        times.append(clock() - start)
    return 2 * size**3 / min(times)


def dense(rows: int, columns: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
    return layer


def residual_conv(channels: int) -> nn.Conv2d:
    """Like a trained residual convolution: the identity and 0.35 times noise."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    layer.weight.data = 0.35 * noise / math.sqrt(9 * channels)
    layer.weight.data[:, :, 1, 1] += torch.eye(channels)
    return layer


def made_up(large: bool) -> Iterator[Layer]:
    for rows, columns in ((512, 3072), (2048, 2048)):
        yield f"dense {rows} x {columns}", dense(rows, columns), (columns,)
    for channels, size in ((64, 8), (64, 16), (128, 8), (128, 16))[: 4 if large else 3]:
        yield f"conv 3 x 3, {channels} ch, {size} x {size}", residual_conv(channels), (channels, size, size)


def shipped(name: str) -> Iterator[Layer]:
    """The layers with weights of a shipped network, with the shapes that reach them."""
    import lipcert

    network = lipcert.load(name)
    channels = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    side = {"cifar": 32, "mnist": 28, "digits": 8}[next(key for key in ("cifar", "mnist", "digits") if key in name)]
    image = torch.zeros(1, getattr(channels, "in_channels", 1), side, side)
    with torch.no_grad():
        for place, layer in network.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                yield place, layer, tuple(image.shape[1:])
            image = layer(image)


def fewest_operations(layer: nn.Module, shape: tuple[int, ...], method: str) -> float | None:
    """Multiplications and additions that a proof by this method cannot avoid; None where that is not known."""
    operator = read_operator(layer, shape, None)
    if method == "matrix" and layer.weight.ndim == 2:
        small, large = sorted(layer.weight.shape)
        return large * small**2 + 2 * small**3 / 3
    if method == "banded":
        gram = BandedGram(operator.weights_GOIKL[0], operator.axes, TorchArithmetic())
        band = (gram.reach + 1) * gram.channels
        return len(operator.weights_GOIKL) * gram.unknowns * (band**2 + band * gram.block * gram.channels)
    return None


def row(layer: Layer, effort: str, speed: float, clock: Clock) -> tuple[str, float]:
    name, module, shape = layer
    start = clock()
    enclosure = norm_bound(module, shape, effort=effort)
    seconds = clock() - start
    fewest = fewest_operations(module, shape, enclosure.method)
    share = f"{fewest / speed / seconds:.0%}" if fewest else ""
    excess = enclosure.upper / enclosure.lower - 1
    return f"| {name} | {effort} | {enclosure.method} | {excess:.1e} | {seconds:.3f} | {share} |", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="all layers of a shipped network, for example cifar10-liresnet-L6W80")
    parser.add_argument("--efforts", nargs="+", default=["fast", "tight"], choices=["fast", "tight", "exact"])
    parser.add_argument("--large", action="store_true", help="also 128 channels at 16 x 16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    speed = product_speed(clock)
    norm_bound(dense(128, 128), (128,))  # the first call loads libraries
    print(f"{options.threads} threads, torch {torch.__version__}, float64 product: {speed / 1e9:.0f} GFLOP/s\n")
    print("| layer | effort | method | excess | seconds | share |")
    print("|---|---|---|---|---|---|")
    layers = list(shipped(options.model) if options.model else made_up(options.large))
    for effort in options.efforts:
        seconds = 0.0
        for layer in layers:
            if effort == "tight" and isinstance(layer[1], nn.Linear):
                continue  # as fast
            line, took = row(layer, effort, speed, clock)
            print(line, flush=True)
            seconds += took
        if options.model:
            print(f"| all of {options.model} | {effort} | | | {seconds:.3f} | |")
    if not options.model:
        for effort in ("fast", "exact"):
            for name, sizes in DENSE_NETWORKS.items():
                network = list(zip(sizes[1:], sizes[:-1], strict=True))
                start = clock()
                found = [
                    norm_bound(dense(*shape, seed), shape[1:], effort=effort) for seed, shape in enumerate(network)
                ]
                seconds = clock() - start
                excess = max(enclosure.upper / enclosure.lower - 1 for enclosure in found)
                print(f"| dense network {name} | {effort} | {found[0].method} | {excess:.1e} | {seconds:.3f} | |")


if __name__ == "__main__":
    main()
