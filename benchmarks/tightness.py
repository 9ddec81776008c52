"""Goals S1 to S4 of `benchmarks.soundness`: no bound below the truth, how close to it, how fast, and in integers."""

import math
import os
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.bounds import DENSE_NETWORKS, dense, fewest_operations, product_speed, residual_conv, shipped
from lipcert.bounds import norm_bound
from lipcert.models.stored import shipped as shipped_names
from lipcert.paths import ROOT
from lipcert.report.checks import measuring


def random_layers(cases: int = 100_000) -> None:
    """S1: random layers against exact integers and LAPACK."""
    with measuring("S1", "no bound below the truth", "0 violations in 100,000 random layers") as found:
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_bounds.py", "-k", "random"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"LIPCERT_CASES": str(cases)}, capture_output=True, text=True
        )
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
        found |= {
            "measured": f"{cases:,} random layers of eight families, each bounded as a matrix, on the torus and as a "
            f"band, lower and upper ends: {'no violation' if done.returncode == 0 else last}",
            "verdict": "met" if done.returncode == 0 else "fell short",
            "numbers": {"cases": cases, "exit_code": done.returncode},
        }


def excesses() -> None:
    """S2: how far upper ends are above lower ends, on trained networks."""
    target = "dense 2e-9, tight 1e-6, fast 0.2 % at 16 x 16 and 1 % at 8 x 8; whole net 0.5 % fast, 1e-5 tight"
    with measuring("S2", "tightness on trained networks", target) as found:
        rows = [("network", "layer", "input", "fast", "tight", "seconds, fast", "seconds, tight")]
        worst = dict.fromkeys(("dense", "tight", "fast at 16 x 16", "fast at 8 x 8", "net fast", "net tight"), 0.0)
        for name in shipped_names():
            product = {"fast": 1.0, "tight": 1.0}
            for place, layer, shape in list(shipped(name))[:-1]:
                ends, seconds = {}, {}
                for effort in ("fast", "tight"):
                    start = time.perf_counter()
                    ends[effort] = norm_bound(layer, shape, effort=effort)
                    seconds[effort] = time.perf_counter() - start
                lower = max(e.lower for e in ends.values())
                excess = {effort: e.upper / lower - 1 for effort, e in ends.items()}
                for effort in product:
                    product[effort] *= 1 + excess[effort]
                worst["tight"] = max(worst["tight"], excess["tight"])
                kind = "dense" if ends["fast"].method in ("matrix", "defect") else f"fast at {_side(shape)}"
                if kind in worst:
                    worst[kind] = max(worst[kind], excess["fast"])
                size = " x ".join(map(str, shape))
                numbers = (f"{excess['fast']:.1e}", f"{excess['tight']:.1e}", *(f"{s:.2f}" for s in seconds.values()))
                rows.append((name, place, size, *numbers))
            worst["net fast"] = max(worst["net fast"], product["fast"] - 1)
            worst["net tight"] = max(worst["net tight"], product["tight"] - 1)
        limits = (2e-9, 1e-6, 2e-3, 1e-2, 5e-3, 1e-5)
        missed = [key for (key, value), limit in zip(worst.items(), limits, strict=True) if value > limit]
        found |= {
            "measured": f"largest excess over the proven lower end on {len(shipped_names())} networks: "
            + ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
            + (f"; missed: {', '.join(missed)}" if missed else ""),
            "verdict": "in part" if missed else "met",
            "numbers": worst,
            "rows": tuple(rows),
        }


def _side(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]}" if len(shape) == 3 else "1 x 1"


def speeds() -> None:
    """S3: seconds, and the share of the fastest the machine could do."""
    target = "dense nets of the verified certifier's paper 0.1 s and 1 s; 64 channels 16 x 16 in 1 s fast, 5 s tight"
    with measuring("S3", "speed of the proofs", target) as found:
        speed = product_speed(time.perf_counter)
        norm_bound(dense(128, 128), (128,))  # the first call loads libraries
        rows, seconds = [("what", "effort", "excess", "seconds", "share of the limit", "published seconds")], {}
        published = dict(zip(DENSE_NETWORKS, ("1,768", "64,766"), strict=True))
        for name, sizes in DENSE_NETWORKS.items():
            layers = [dense(r, c, seed) for seed, (r, c) in enumerate(zip(sizes[1:], sizes[:-1], strict=True))]
            seconds[name], excess, _ = _timed([(layer, (layer.in_features,)) for layer in layers], "fast")
            rows.append((f"dense {name}", "fast", f"{excess:.1e}", f"{seconds[name]:.3f}", "", published[name]))
        conv, shape = residual_conv(64), (64, 16, 16)
        for effort in ("fast", "tight"):
            seconds[effort], excess, method = _timed([(conv, shape)], effort)
            fewest = fewest_operations(conv, shape, method)
            share = f"{fewest / speed / seconds[effort]:.0%}" if fewest else ""
            rows.append(
                ("conv 3 x 3, 64 channels, 16 x 16", effort, f"{excess:.1e}", f"{seconds[effort]:.2f}", share, "")
            )
        limits = (0.1, 1.0, 1.0, 5.0)
        missed = [key for (key, value), limit in zip(seconds.items(), limits, strict=True) if value > limit]
        found |= {
            "measured": "dense nets of the published shapes with random weights "
            f"{seconds['784-128x8-10']:.3f} s and {seconds['3072-512-256-128x6-10']:.2f} s (published, trained weights "
            "in exact rationals on another machine: 1,768 s and 64,766 s); a 64-channel 16 x 16 convolution "
            f"{seconds['fast']:.2f} s fast, {seconds['tight']:.1f} s tight; {torch.get_num_threads()} threads at "
            f"{speed / 1e9:.0f} GFLOP/s",
            "verdict": "in part" if missed else "met",
            "numbers": {key: round(value, 4) for key, value in seconds.items()},
            "rows": tuple(rows),
        }


def _timed(layers: list[tuple[nn.Module, tuple[int, ...]]], effort: str) -> tuple[float, float, str]:
    start = time.perf_counter()
    ends = [norm_bound(layer, shape, effort=effort) for layer, shape in layers]
    seconds = time.perf_counter() - start
    return seconds, max(e.upper / e.lower - 1 for e in ends), ends[0].method


def integers() -> None:
    """S4: the same proofs without floating point."""
    target = "all dense layers and bands up to 64 channels; the MNIST net in 0.5 s"
    with measuring("S4", "proofs in integers", target) as found:
        rows, seconds = [("what", "excess", "seconds")], {}
        for name, sizes in DENSE_NETWORKS.items():
            layers = [dense(r, c, seed) for seed, (r, c) in enumerate(zip(sizes[1:], sizes[:-1], strict=True))]
            seconds[name], excess, _ = _timed([(layer, (layer.in_features,)) for layer in layers], "exact")
            rows.append((f"dense {name}", f"{excess:.1e}", f"{seconds[name]:.2f}"))
        places = [(layer, shape) for _, layer, shape in shipped("digits-liresnet-L6W32")]
        seconds["digits"], excess, _ = _timed(places, "exact")
        rows.append(("all layers of digits-liresnet-L6W32", f"{excess:.1e}", f"{seconds['digits']:.1f}"))
        seconds["band"], excess, _ = _timed([(residual_conv(64), (64, 16, 16))], "exact")
        rows.append(("conv 3 x 3, 64 channels, 16 x 16", f"{excess:.1e}", f"{seconds['band']:.0f}"))
        met = seconds["784-128x8-10"] <= 0.5 and math.isfinite(seconds["band"])
        found |= {
            "measured": f"dense nets {seconds['784-128x8-10']:.2f} s and {seconds['3072-512-256-128x6-10']:.1f} s, the "
            f"whole digits network {seconds['digits']:.0f} s, a band of 64 channels at 16 x 16 {seconds['band']:.0f} s",
            "verdict": "met" if met else "in part",
            "numbers": {key: round(value, 3) for key, value in seconds.items()},
            "rows": tuple(rows),
        }
