"""What the CPU kernels of l_inf-distance layers cost, beside torch and beside a counted limit.

`python -m benchmarks.linf_kernels` writes the record `linf-kernels`: accuracy over many shapes, then G triples
(image, output, input) a second for each p and each way to compute them (5 minutes on a busy core).
`--full` writes `linf-full`: 10,000 random images through the full network of 6 x 5120 neurons at p = inf (5 minutes).
`--quick` makes both small, for rehearsal.

All on one thread in one process, processor time (other work on the machine counts little), medians of rounds in which
the methods take turns. Slow methods get a part of the images; their cost grows in proportion. The limit is
counted: the instructions that a pass cannot do without, at the rates at which this processor runs them in registers,
measured in the same rounds; loads and loops count nothing. Memory is the peak of a process of its own.
"""

import argparse
import functools
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import in_own_process, take_turns
from lipcert.linf.kernels import native, reference
from lipcert.report.checks import measuring

POWERS = (2.0, 8.0, 10.0, 16.0, 28.3, 30.0, 64.0, 100.0, 1000.0, math.inf)
SHAPES = ((1, 1, 1), (1, 7, 3), (5, 33, 17), (64, 10, 27), (13, 100, 784), (6, 65, 3072), (32, 64, 5120))
LAYER = (256, 1024, 5120)  # images, outputs, inputs
SLOW = 16  # one image in so many is what slow methods get
ROUNDS = 5
REAL_COST = 14  # multiply-adds of a power by logarithm and exponential, as `vector.h` computes it
STEPS = 500_000  # of a tile of instructions, to measure their rates
LIMITING = native.ARITHMETIC[:2]  # instructions of a term at p = inf
FULL = (3072, 5120, 5120, 5120, 5120, 5120, 10)
IMAGES, BATCH = 10_000, 500
PART = 4  # images that torch.cdist gets, one hidden layer
CDIST = "torch.cdist"
METHODS = ("forward", "forward and backward", "near identity", "torch path", CDIST, "torch.compile", "naive loop")
TARGET = "at least 30 times torch.cdist(p=inf) forward; distances to 1e-5 of float64; gradients finite"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the full network at p = inf instead")
    parser.add_argument("--quick", action="store_true", help="a small layer, few images: for rehearsal")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if problem := native.problem():
        raise SystemExit(f"linf_kernels: {problem}; nothing to measure")
    torch.set_num_threads(1)
    if options.memory:
        grown(float(options.memory[0]), tuple(map(int, options.memory[1:])))
    elif options.full:
        full(600 if options.quick else IMAGES)
    else:
        kernels((64, 256, 1024) if options.quick else LAYER)


# ------------------------------------------------------------------------------------------------------ one layer
def kernels(layer: tuple[int, int, int]) -> None:
    """Goal `linf-kernels`."""
    with measuring("linf-kernels", "l_inf-distance kernels on a CPU", TARGET) as found:
        errors = {p: accuracy(p) for p in POWERS}
        data, near = draw(layer), draw(layer, near_identity=True)
        times = {p: layer_times(p, data, near) for p in POWERS}
        memory = {p: memory_of(p, layer) for p in (8.0, math.inf)}
        found |= told(layer, errors, times, memory)


def accuracy(p: float) -> float:
    """Largest relative error of a distance against float64, over all shapes; infinity if a gradient is not finite."""
    worst = 0.0
    for shape in SHAPES:
        for near in (False, True):
            x_BI, w_OI, grad_BO = draw(shape, near_identity=near)
            y_BO = native.distance_forward(x_BI, w_OI, p)
            t_BOI = (x_BI.double()[:, None] - w_OI.double()).abs()
            true_BO = t_BOI.amax(-1) if p == math.inf else (torch.logsumexp(p * t_BOI.log(), -1) / p).exp()
            worst = max(worst, float(((y_BO.double() - true_BO).abs() / true_BO).max()))
            if not all(bool(d.isfinite().all()) for d in native.distance_backward(grad_BO, x_BI, w_OI, y_BO, p)):
                return math.inf
    return worst


def draw(shape: tuple[int, int, int], near_identity: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weights and gradients, all normal; near the identity as training starts, w_oo = -10."""
    batch, outputs, inputs = shape
    g = torch.Generator().manual_seed(0)
    x_BI, w_OI, grad_BO = (torch.randn(s, generator=g) for s in ((batch, inputs), (outputs, inputs), (batch, outputs)))
    if near_identity:
        row_O = torch.arange(outputs)
        w_OI[row_O, row_O % inputs] = -10
    return x_BI, w_OI, grad_BO


def layer_times(p: float, data: tuple[Tensor, ...], near: tuple[Tensor, ...]) -> dict[str, float]:
    """G triples a second of every method, and of torch.cdist at p = inf in the same rounds."""
    x_BI, w_OI, _ = data
    few_BI = x_BI[: max(1, len(x_BI) // SLOW)]
    triples, part = x_BI.numel() * len(w_OI) / 1e9, few_BI.numel() * len(w_OI) / 1e9
    torch._dynamo.reset()  # it gives up after a few values of p otherwise
    compiled = torch.compile(functools.partial(broadcast, p=p), dynamic=False)
    counted = STEPS * native.arithmetic("bitwise", 1) / 1e9
    methods: dict[str, tuple[float, Callable[[], object]]] = {
        "forward": (triples, lambda: native.distance_forward(x_BI, w_OI, p)),
        "forward and backward": (triples, lambda: step(*data, p)),
        "near identity": (triples, lambda: step(*near, p)),
        "torch path": (part, lambda: reference.distance_forward(few_BI, w_OI, p)),
        CDIST: (part, lambda: torch.cdist(few_BI, w_OI, p=p)),
        "torch.compile": (part, lambda: compiled(few_BI, w_OI)),
        "naive loop": (part, lambda: naive(few_BI, w_OI, p)),
        "cdist at inf": (part, lambda: torch.cdist(few_BI, w_OI, p=math.inf)),
        **{kind: (counted, functools.partial(native.arithmetic, kind, STEPS)) for kind in native.ARITHMETIC},
    }
    seconds = take_turns({name: run for name, (_, run) in methods.items()}, ROUNDS, 1, time.process_time)
    return {name: methods[name][0] / statistics.median(s) for name, s in seconds.items()}


def step(x_BI: Tensor, w_OI: Tensor, grad_BO: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Distance and both gradients, as a training step computes them."""
    if p == math.inf:
        return native.farthest_backward(grad_BO, x_BI, w_OI, *native.farthest(x_BI, w_OI))
    return native.distance_backward(grad_BO, x_BI, w_OI, native.distance_forward(x_BI, w_OI, p), p)


def broadcast(x_BI: Tensor, w_OI: Tensor, p: float) -> Tensor:
    """What torch.compile fuses into one loop; no scaling, so it overflows for large p."""
    t_BOI = (x_BI[:, None] - w_OI).abs()
    return t_BOI.amax(-1) if p == math.inf else t_BOI.pow(p).sum(-1).pow(1 / p)


def naive(x_BI: Tensor, w_OI: Tensor, p: float) -> Tensor:
    """One output after the other."""
    return torch.stack([broadcast(x_BI, row_I[None], p)[:, 0] for row_I in w_OI], 1)


def limit_of(p: float, found: dict[str, float]) -> float:
    """G triples a second that the count of instructions allows, at the rates measured in the same rounds.

    At p = inf, and where powers are taken of a few terms only: a subtraction, and three instructions in all (the
    others clear a sign and take a maximum of bits). Dense powers: squarings and multiplications by the base for whole
    p, the last of them joined to the sum; the two polynomials for other p.
    """
    if p > native.WHOLE_TO:
        return min(found["subtraction"], found["bitwise"] / 3)
    whole = int(p)
    return found["multiply-add"] / (whole.bit_length() + whole.bit_count() - 2 if whole == p else REAL_COST)


def memory_of(p: float, layer: tuple[int, int, int]) -> float | None:
    """MiB by which a forward and backward pass, gradients included, raises the peak of a new process."""
    return in_own_process("benchmarks.linf_kernels", "--memory", str(p), *map(str, layer))


def grown(p: float, layer: tuple[int, int, int]) -> None:
    """What `memory_of` runs."""
    data = draw(layer)
    step(*draw((2, 2, 2)), p)
    print(json.dumps(memory_mib(functools.partial(step, *data, p))))


def memory_mib(run: Callable[[], object]) -> float | None:
    """Growth of the process's peak memory while `run` runs; None where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = re.search(r"VmRSS:\s*(\d+)", status.read_text())
    except OSError:
        before = None
    run()
    return before and (int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) - int(before[1])) / 1024


def told(layer: tuple, errors: dict, times: dict, memory: dict) -> dict:
    """The record, in words and numbers."""
    batch, outputs, inputs = layer
    last = times[math.inf]
    limit = limit_of(math.inf, last)
    ratio, share = last["forward"] / last["cdist at inf"], last["forward"] / limit
    worst, slowest = max(errors.values()), min(found["forward and backward"] for found in times.values())
    rows = [("p", *METHODS, "forward over cdist(p=inf)", "share of the limit", "largest error")]
    for p, found in times.items():
        finite = torch.cdist(*draw((2, 2, inputs))[:2], p=p).isfinite().all()
        cells = [f"{found[m]:.3g}" + (" (overflows)" if m == CDIST and not finite else "") for m in METHODS]
        over, part = found["forward"] / found["cdist at inf"], found["forward"] / limit_of(p, found)
        rows.append((f"{p:g}", *cells, f"{over:.3g}", f"{part:.0%}", f"{errors[p]:.1e}"))
    naive_gib = 4 * batch * outputs * inputs / 2**30
    mib = {p: m for p, m in memory.items() if m is not None}
    held = " and ".join(f"{m:,.0f} MiB at p = {p:g}" for p, m in mib.items()) or "not known"
    return {
        "measured": f"forward at p = inf {last['forward']:.1f} G triples a second on one thread, "
        f"{ratio:.0f} times torch.cdist and {share:.0%} of the counted limit "
        f"({limit:.0f}); forward and backward at least {slowest:.1f} for every p; largest relative error "
        f"{worst:.1e}, gradients finite; memory of a forward and backward pass {held} (the broadcast: {naive_gib:.1f} "
        f"GiB); {batch} x {inputs} inputs, {outputs} outputs, slow methods on a {SLOW}th of the images",
        "verdict": "met" if ratio >= 30 and worst <= 1e-5 else "fell short" if worst > 1e-5 else "in part",
        "numbers": {
            "forward_inf": round(last["forward"], 2), "times_cdist": round(ratio, 1),
            "share_inf": round(share, 3), "limit_inf": round(limit, 1),
            "limit_multiply_add": round(last["multiply-add"], 1), "largest_error": float(f"{worst:.3g}"),
            "slowest_step": round(slowest, 2), **{f"memory_mib_{p:g}": round(m) for p, m in mib.items()},
        },
        "rows": tuple(rows),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- the whole network
def full(images: int) -> None:
    """Goal `linf-full`: the margin and the interval pass of the full network on random images."""
    target = f"{images:,} images through 6 x 5120 neurons: time, memory, share of the limit, ratio to torch.cdist"
    with measuring("linf-full", "certifying with the full l_inf network", target) as found:
        g = torch.Generator().manual_seed(0)
        weights = [torch.randn(o, i, generator=g) for i, o in itertools.pairwise(FULL)]
        triples = sum(w.numel() for w in weights)
        seconds, limits, cdist = {"margin": 0.0, "interval": 0.0}, [], []
        memory, counted = None, STEPS * native.arithmetic("bitwise", 1) / 1e9
        for start in range(0, images, BATCH):
            count = min(BATCH, images - start)
            x_BI = torch.rand(count, FULL[0], generator=g)
            if start == 0:
                memory = memory_mib(functools.partial(forward, weights, x_BI))
            for kind, run in (("margin", forward), ("interval", boxes)):
                seconds[kind] += clock(functools.partial(run, weights, x_BI))
            rates = {kind: counted / clock(functools.partial(native.arithmetic, kind, STEPS)) for kind in LIMITING}
            limits.append(limit_of(math.inf, rates))
            part = (torch.rand(PART, FULL[1], generator=g), weights[1])
            cdist.append(PART * weights[1].numel() / 1e9 / clock(functools.partial(torch.cdist, *part, p=math.inf)))
        found |= full_told(images, triples, seconds, statistics.median(limits), statistics.median(cdist), memory)


def forward(weights: list[Tensor], x_BI: Tensor) -> Tensor:
    """Logits, up to sign; centred between layers as a trained network is."""
    for w_OI in weights:
        x_BI = native.distance_forward(x_BI, w_OI, math.inf)
        x_BI = x_BI - x_BI.mean()
    return x_BI


def boxes(weights: list[Tensor], x_BI: Tensor, radius: float = 8 / 255) -> tuple[Tensor, Tensor]:
    """The same for a box around each image."""
    lower, upper = (x_BI - radius).clamp(min=0), (x_BI + radius).clamp(max=1)
    for w_OI in weights:
        lower, upper = native.interval_forward(lower, upper, w_OI, math.inf)
        centre = (lower.mean() + upper.mean()) / 2
        lower, upper = lower - centre, upper - centre
    return lower, upper


def clock(run: Callable[[], object]) -> float:
    """Seconds of processor time that `run` takes; with one thread, its wall time on an idle machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def full_told(images: int, triples: int, seconds: dict, limit: float, cdist: float, memory: float | None) -> dict:
    """The record, in words and numbers."""
    speed = {kind: images * triples / 1e9 / s for kind, s in seconds.items()}
    held = "not known" if memory is None else f"{memory:,.0f} MiB beyond the {4 * triples / 2**20:,.0f} MiB of weights"
    return {
        "measured": f"{images:,} random images, {triples / 1e6:.1f} M triples each, one thread, batches of {BATCH}: "
        f"forward (all that the margin needs) {seconds['margin']:.0f} s, {speed['margin']:.1f} G triples a second, "
        f"{speed['margin'] / limit:.0%} of the counted limit ({limit:.0f}) and "
        f"{speed['margin'] / cdist:.0f} times torch.cdist, measured on {PART} images and one hidden layer in "
        f"the same rounds ({cdist:.2f}: "
        f"{images * triples / 1e9 / cdist / 60:.0f} minutes); interval pass {seconds['interval']:.0f} s; memory {held}",
        "verdict": "met" if speed["margin"] >= 30 * cdist else "in part",
        "numbers": {
            "images": images, "triples_per_image": triples, "seconds_margin": round(seconds["margin"], 1),
            "seconds_interval": round(seconds["interval"], 1), "speed": round(speed["margin"], 2),
            "share": round(speed["margin"] / limit, 3), "times_cdist": round(speed["margin"] / cdist, 1),
            **({} if memory is None else {"memory_mib": round(memory)}),
        },
        "rows": (
            ("pass", "seconds", "G triples a second", "share of the limit", "times torch.cdist"),
            *(
                (kind, f"{s:.0f}", f"{speed[kind]:.1f}", f"{speed[kind] / limit * (1 if kind == 'margin' else 2):.0%}",
                 f"{speed[kind] / cdist:.0f}")
                for kind, s in seconds.items()
            ),
        ),
    }  # fmt: skip


if __name__ == "__main__":
    main()
