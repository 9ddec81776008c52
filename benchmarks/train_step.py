"""Seconds of one training step under different choices, as ratios in one process: `python benchmarks/train_step.py`.

Rounds alternate between the choices, and the median of each is compared, so that a busy machine disturbs all alike.
Random images of CIFAR-10's size stand in for the data set; no accuracy is measured.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch

from lipcert.config import TrainConfig
from lipcert.data import Split
from lipcert.run import Run

CHOICES = {
    "float32, eager": {},
    "float32, compiled": {"compiled": True},
    "bfloat16, eager": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
    "float32, eager, 10 power steps": {"power_steps": 10},
    "float32, eager, reference neck": {"neck": "conv_dense"},
}


def random_data(images: int, classes: int = 10) -> SimpleNamespace:
    """What `Run` reads of a data set."""
    generator = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels_NCHW, torch.randint(0, classes, (images,), generator=generator), torch.arange(images))
    return SimpleNamespace(train=split, shape=(3, 32, 32), classes=classes, scale=255, sha256="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    data = random_data(4 * options.batch)
    runs = {}
    for name, settings in CHOICES.items():
        config = TrainConfig(
            dataset="cifar10", depth=options.depth, width=options.width, neck_width=256, batch=options.batch,
            steps=1000, device=options.device, **settings,
        )  # fmt: skip
        runs[name] = Run(config, data)
        for _ in range(3):
            runs[name].train_step()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            run.synchronise()
            start = time.perf_counter()
            for _ in range(3):
                run.train_step()
            run.synchronise()
            times[name].append((time.perf_counter() - start) / 3)
    base = statistics.median(times["float32, eager"])
    print(
        f"L{options.depth} W{options.width}, batch {options.batch}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<34}{1000 * median:8.0f} ms{options.batch / median:10.0f} images/s{base / median:8.2f}x")


if __name__ == "__main__":
    main()
