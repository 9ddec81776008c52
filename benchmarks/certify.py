"""What a certificate costs beside plain inference, as ratios within one process: `python benchmarks/certify.py`."""

import argparse
import copy
import time

import torch

from lipcert.certify import certify
from lipcert.chain import chain_bounds
from lipcert.config import ModelConfig
from lipcert.models import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ModelConfig(depth=options.depth, width=options.width, neck_width=256, channels=3, input_size=32)
    chain = build_model(config).plain()
    images_BCHW = torch.rand(options.images, 3, 32, 32, dtype=torch.float64)
    start = time.perf_counter()
    bounds = chain_bounds(chain, (3, 32, 32))
    once = time.perf_counter() - start
    double = copy.deepcopy(chain).double()
    certify(chain, images_BCHW[:64], bounds=bounds)
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            for part in images_BCHW.split(64):
                double(part)
        plain = time.perf_counter() - start
        start = time.perf_counter()
        certify(chain, images_BCHW, bounds=bounds)
        rounds.append((plain, time.perf_counter() - start))
    plain, proven = min(rounds)
    print(f"L{options.depth} W{options.width}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"proving the constants, once a network: {once:.2f} s")
    print(f"float64 inference: {1000 * plain / options.images:.2f} ms an image")
    print(f"certifying:        {1000 * proven / options.images:.2f} ms an image, {proven / plain:.3f} times inference")


if __name__ == "__main__":
    main()
