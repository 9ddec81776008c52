"""Goal `linf-gpu`: what the GPU kernels of l_inf-distance layers cost, against torch and against the counted limit.

`python -m benchmarks.linf_gpu` writes the record `linf-gpu`; it needs a CUDA GPU and triton, and says so with exit
status 2 where there is none. About five minutes, most of them compilation; `--no-compile` leaves torch.compile out
and takes one. `--tiles` times every tile instead, for tuning, and writes nothing.

The limit counts, per triple (image, output, input), what each pass cannot do without and how many of these a
multiprocessor starts in a clock: 128 additions, multiplications or both in one, 64 maxima, 16 special functions, 128
instructions in all. Passes overlap as well as these rates allow; loads, loops and the scatter at p = inf count nothing.
"""

import argparse
import functools
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

from lipcert.report.checks import measuring

SIZES = ((512, 5120, 5120), (512, 1024, 1024))  # batch, inputs, outputs: the full nets' layers and the reduced ones'
POWERS = (8.0, 64.0, 100.0, 1000.0, math.inf)
PASSES = ("forward", "forward and backward", "interval")
ROUNDS, WARM = 10, 3
PART = (64, 96)  # images and outputs that are compared with float64
RATES = {"add": 128, "max": 64, "special": 16, "issue": 128}  # a clock, compute capability 9.0
GENERAL = 0.6  # of the limit: what the published CUDA kernels reach at general p
TARGET = f"at general p, forward and backward, more than {GENERAL:.0%} of the counted limit; distances to 1e-5"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tiles", action="store_true", help="time every tile instead; writes nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("linf-gpu: no CUDA GPU here; nothing measured", file=sys.stderr)
        return 2
    try:
        from lipcert.linf.kernels import triton_kernels
    except ImportError as error:
        print(f"linf-gpu: triton cannot be imported ({error}); nothing measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.tiles:
        sweep(triton_kernels)
        return 0
    with measuring("linf-gpu", "l_inf-distance layers on a GPU", TARGET) as found:
        limit = Limit()
        times = {size: measure(triton_kernels, size, not options.no_compile) for size in SIZES}
        errors = {p: compare(triton_kernels, p) for p in POWERS}
        found |= told(times, errors, limit)
    return 0


class Limit:
    """Seconds that nothing can undercut on this GPU, and the clock they are counted at."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name, self.processors = properties.name, properties.multi_processor_count
        self.megahertz = _highest_clock()

    def seconds(self, work: str, size: tuple[int, int, int], p: float) -> float:
        clocks = sum(_clocks(part, p) for part in work.split(" and "))
        return math.prod(size) * clocks / (self.processors * self.megahertz * 1e6)


def _clocks(part: str, p: float) -> float:
    """Of one multiprocessor and one triple."""
    exponent = math.log2(p) if p < math.inf else 0.0
    squared = exponent == int(exponent) and p <= (64 if part == "backward" else 1024)
    if part == "backward":  # subtract, times 1 / y, the power of p - 1, times the gradient into both sums
        if p == math.inf:
            return 0.0
        return _slowest(add=4 + 2 * (exponent - 1)) if squared else _slowest(add=6, special=2)
    bounds, add, most = (2, 2, 2) if part == "interval" else (1, 1, 1)  # two subtractions and maxima a bound
    if p == math.inf:
        return bounds * _slowest(add=add, max=most)
    power = {"add": exponent + 1} if squared else {"add": 3, "special": 2}
    both = {"add": 2 * add + power["add"], "max": 2 * most - 1, "special": power.get("special", 0)}
    return bounds * _slowest(**both)


def _slowest(**counts: float) -> float:
    return max([sum(counts.values()) / RATES["issue"], *(count / RATES[kind] for kind, count in counts.items())])


def _highest_clock() -> float:
    """MHz of the multiprocessors at most, so that shares are not flattered by a throttled clock."""
    if not shutil.which("nvidia-smi"):
        return torch.cuda.get_device_properties(0).clock_rate / 1e3
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0])


def tensors(batch: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, weights and a gradient, the weights as they start: N(0, 1) and -10 on the diagonal."""
    generator = torch.Generator().manual_seed(0)
    x_BI, w_OI = (torch.randn(rows, inputs, generator=generator) for rows in (batch, outputs))
    w_OI[range(outputs), [i % inputs for i in range(outputs)]] = -10.0
    return x_BI.cuda(), w_OI.cuda(), torch.randn(batch, outputs, generator=generator).cuda()


def measure(kernels: ModuleType, size: tuple[int, int, int], compiled: bool) -> dict[tuple[str, str, float], float]:
    """Median seconds by way, pass and p; NaN where torch could not do it."""
    x_BI, w_OI, grad_BO = tensors(*size)
    lower_BI, upper_BI = x_BI - 0.05, x_BI + 0.05
    found = {}
    for p in POWERS:
        works: dict[tuple[str, str], Callable[[], object]] = {
            ("lipcert", PASSES[0]): lambda p=p: kernels.distance_forward(x_BI, w_OI, p),
            ("lipcert", PASSES[1]): lambda p=p: both_passes(kernels, grad_BO, x_BI, w_OI, p),
            ("lipcert", PASSES[2]): lambda p=p: kernels.interval_forward(lower_BI, upper_BI, w_OI, p),
        }
        ways = {"cdist": lambda x, w, p=p: torch.cdist(x, w, p=p)}
        if compiled:
            fused = torch.compile(broadcast_maximum if p == math.inf else broadcast_power, dynamic=False)
            power = torch.tensor(p, device="cuda")  # a tensor, so that one compilation serves every p
            ways["torch.compile"] = lambda x, w, fused=fused, power=power: fused(x, w, power)
        for way, function in ways.items():
            works[way, PASSES[0]] = lambda function=function: function(x_BI, w_OI)
            works[way, PASSES[1]] = lambda function=function: by_autograd(function, grad_BO, x_BI, w_OI)
        for (way, work), run in works.items():
            try:
                found[way, work, p] = median_seconds(run)
            except RuntimeError as error:  # memory does not suffice, or torch.compile cannot
                if way == "lipcert":
                    raise
                print(f"{way}: {str(error).splitlines()[0]}", file=sys.stderr)
                found[way, work, p] = math.nan
                torch.cuda.empty_cache()
            print(f"{_name(size)} p={p:g} {work}: {way} {1e3 * found[way, work, p]:.3f} ms", flush=True)
    return found


def both_passes(kernels: ModuleType, grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, p: float) -> tuple[Tensor, Tensor]:
    if p == math.inf:
        y_BO, where_BO = kernels.farthest(x_BI, w_OI)
        return kernels.farthest_backward(grad_BO, x_BI, w_OI, y_BO, where_BO)
    return kernels.distance_backward(grad_BO, x_BI, w_OI, kernels.distance_forward(x_BI, w_OI, p), p)


def by_autograd(function: Callable, grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor) -> tuple[Tensor, ...]:
    x_BI, w_OI = x_BI.detach().requires_grad_(), w_OI.detach().requires_grad_()
    return torch.autograd.grad(function(x_BI, w_OI), (x_BI, w_OI), grad_BO)


def broadcast_maximum(x_BI: Tensor, w_OI: Tensor, p: Tensor) -> Tensor:
    return (x_BI[:, None] - w_OI).abs().amax(-1)


def broadcast_power(x_BI: Tensor, w_OI: Tensor, p: Tensor) -> Tensor:
    d_BOI = (x_BI[:, None] - w_OI).abs()
    unit_BO = d_BOI.detach().amax(-1)
    return unit_BO * (d_BOI / unit_BO[..., None]).pow(p).sum(-1).pow(1 / p)


def median_seconds(run: Callable[[], object]) -> float:
    """Median over rounds by the GPU's own clock, after warming up; fewer rounds where they take seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds: list[float] = []
    for turn in range(WARM + ROUNDS):
        start.record()
        run()
        end.record()
        end.synchronize()
        if turn >= WARM:
            seconds.append(start.elapsed_time(end) / 1e3)
        if sum(seconds) > 5:
            break
    return statistics.median(seconds)


def compare(kernels: ModuleType, p: float) -> dict[str, float]:
    """Largest relative error of a part of the large layer against float64 autograd."""
    (batch, outputs), inputs = PART, SIZES[0][1]
    x_BI, w_OI, grad_BO = tensors(batch, inputs, outputs)
    y_BO = kernels.distance_forward(x_BI, w_OI, p)
    found = (y_BO, *both_passes(kernels, grad_BO, x_BI, w_OI, p))
    x, w = (t.double().requires_grad_() for t in (x_BI, w_OI))
    d_BOI = (x[:, None] - w).abs()
    truth_BO = d_BOI.amax(-1) if p == math.inf else broadcast_power(x, w, torch.tensor(p, device="cuda").double())
    truth = (truth_BO, *torch.autograd.grad(truth_BO, (x, w), grad_BO.double()))
    errors = {
        name: float((part - true.detach()).abs().max() / true.detach().abs().max())
        for name, part, true in zip(("y", "dx", "dw"), found, truth, strict=True)
    }
    if p == math.inf and not torch.equal(y_BO, broadcast_maximum(x_BI, w_OI, x_BI)):
        errors["y"] = 1.0  # must be torch's, bit for bit
    return errors


def told(times: dict, errors: dict, limit: Limit) -> dict:
    """The measurements as the record holds them."""
    numbers: dict[str, float | int | str] = {
        "accelerator": limit.name, "multiprocessors": limit.processors, "highest clock, MHz": limit.megahertz,
        "triton": metadata.version("triton"),
    }  # fmt: skip
    rows = [("layer", "p", "pass", "ms", "share of the limit", "cdist", "torch.compile")]
    for size, found in times.items():
        for p in POWERS:
            for work in PASSES:
                own = found["lipcert", work, p]
                share = limit.seconds(work, size, p) / own
                numbers |= {
                    f"{_name(size)}, p={p:g}, {work}, ms": 1e3 * own,
                    f"{_name(size)}, p={p:g}, {work}, share": share,
                }
                others = [found.get((way, work, p), math.nan) / own for way in ("cdist", "torch.compile")]
                numbers |= {
                    f"{_name(size)}, p={p:g}, {work}, {way} ratio": ratio
                    for way, ratio in zip(("cdist", "torch.compile"), others, strict=True)
                    if math.isfinite(ratio)
                }
                ratios = (f"{ratio:.1f} x" if math.isfinite(ratio) else "" for ratio in others)
                rows.append((_name(size), f"{p:g}", work, f"{1e3 * own:.2f}", f"{share:.0%}", *ratios))
    numbers |= {f"error of {name}, p={p:g}": value for p, found in errors.items() for name, value in found.items()}
    general = limit.seconds(PASSES[1], SIZES[0], 100.0) / times[SIZES[0]]["lipcert", PASSES[1], 100.0]
    largest = max(found["y"] for found in errors.values())
    faster = times[SIZES[0]]["cdist", PASSES[0], math.inf] / times[SIZES[0]]["lipcert", PASSES[0], math.inf]
    return {
        "measured": f"{limit.name}: {general:.0%} of the counted limit at p = 100, forward and backward of "
        f"{_name(SIZES[0])}; at p = inf the forward pass takes {faster:.0f} times less than torch.cdist; largest "
        f"relative error {largest:.1e}, of gradients {max(max(e['dx'], e['dw']) for e in errors.values()):.1e}",
        "verdict": "met" if general > GENERAL and largest <= 1e-5 else "fell short",
        "numbers": {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in numbers.items()},
        "rows": tuple(rows),
    }


def sweep(kernels: ModuleType) -> None:
    """Milliseconds of every tile and strip, and of those chosen by default."""
    strips = [kernels.Strip(rows, splits=splits) for rows in (8, 16, 32) for splits in (1, 2, 4)]
    for size in SIZES:
        x_BI, w_OI, grad_BO = tensors(*size)
        for p in (8.0, 100.0, math.inf):
            print(f"{_name(size)} p={p:g}")
            for tile in (None, *kernels.TILES):
                run = functools.partial(kernels.distance_forward, x_BI, w_OI, p, tile=tile)
                print(f"  {1e3 * median_seconds(run):8.3f} ms {tile or 'default'}", flush=True)
            y_BO = kernels.distance_forward(x_BI, w_OI, p)
            for strip in (None, *strips) if p < math.inf else ():
                run = functools.partial(kernels.distance_backward, grad_BO, x_BI, w_OI, y_BO, p, strip=strip)
                print(f"  {1e3 * median_seconds(run):8.3f} ms backward {strip or 'default'}", flush=True)


def _name(size: tuple[int, int, int]) -> str:
    return " x ".join(map(str, size))


if __name__ == "__main__":
    sys.exit(main())
