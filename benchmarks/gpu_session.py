"""A measurement against the clock: time runs out, failures stop nothing, lines are kept as they come.

Shared by the sections of `benchmarks.gpu_step`.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import harness
from lipcert.config import TrainConfig
from lipcert.evaluate import CLAIMS
from lipcert.paths import local_dir
from lipcert.provenance import hardware
from lipcert.run import Run

DEPTH, WIDTHS, BATCHES = 12, (256, 512, 128, 64), (1024, 512, 2048, 256)  # what matters most first
PRECISIONS = ("bfloat16", "tfloat32", "float32")
MAIN = (256, 1024)  # width and batch that everything is measured at
NECK = 512
GOAL = 0.35  # of the limit


class Session:
    """One measurement: the device, the sizes, what was found so far and how much time is left."""

    def __init__(self, options: argparse.Namespace, goal: str):
        self.device, self.quick = torch.device(options.device), options.quick
        self.depth, self.widths, self.batches = (2, (16, 8), (32, 16)) if self.quick else (DEPTH, WIDTHS, BATCHES)
        self.main = (self.widths[0], self.batches[0])
        on_gpu = self.device.type == "cuda"
        self.precisions = PRECISIONS if on_gpu else tuple(p for p in PRECISIONS if p != "tfloat32")
        self.end = time.monotonic() + options.seconds
        self.numbers: dict[str, float | int | str] = {}
        self.failed: list[str] = []
        self.missed: list[str] = []
        self.runs: dict[tuple[int, int], Run] = {}
        self.data = harness.random_data(256 if self.quick else 50_000)  # a new epoch is the one time a step may wait
        self.path = local_dir() / f"{goal}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def enter(self, section: Callable[["Session"], None]) -> None:
        """Run a section; what fails between its measurements ends it alone."""
        try:
            section(self)
        except Exception as error:
            self.failed.append(f"{section.__name__}: {type(error).__name__}: {error}".split("\n")[0][:300])
            print(self.failed[-1], file=sys.stderr, flush=True)

    def measure(self, key: str, work: Callable[[], dict[str, float]], seconds: float = 0.0) -> None:
        """Keep what `work` finds, each number as "key; name"; `seconds`: what must be left for it to begin."""
        if self.end - time.monotonic() < seconds:
            self.missed.append(key)
            return
        try:
            found = work()
        except Exception as error:  # whatever fails on a machine never seen before, the rest is still wanted
            found = {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
            self.failed.append(f"{key}: {found['failed']}")
        self.numbers |= {f"{key}; {name}": value for name, value in found.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({key: found}) + "\n")
        print(key, *(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in found.items()),
              sep=" | ", flush=True)  # fmt: skip

    def run_at(self, width: int, batch: int) -> Run:
        """A run of that size on random images, built once; its trials are what is timed."""
        if (width, batch) not in self.runs:
            self.runs.clear()  # one at a time in memory
            self.runs[width, batch] = Run(self.config(width, batch), self.data)
        return self.runs[width, batch]

    def config(self, width: int, batch: int, **changes: object) -> TrainConfig:
        neck = 32 if self.quick else NECK
        settings = {"depth": self.depth, "width": width, "batch": batch, "neck_width": neck, "optimizer": "muon"}
        length = {} if changes.keys() & {"minutes", "epochs"} else {"steps": 10**6}
        return TrainConfig(dataset="cifar10", device=self.device.type, lr=0.008, **settings, **length, **changes)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], budget: float = 0.15) -> float:
        """Least mean seconds of three series of calls, the device idle before and after each."""
        work()
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        calls = max(1, min(50, int(budget / 3 / max(time.perf_counter() - start, 1e-6))))
        series = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(calls):
                work()
            self.wait()
            series.append((time.perf_counter() - start) / calls)
        return min(series)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave the block quietly."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("gpu_step: stopped; writing what there is", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def limit_seconds(s: Session, width: int, batch: int, precision: str) -> float | None:
    """What a step needs at this device's peaks; None where a peak is missing. TF32 counts for all products it has."""
    names, rates = ("convolution", "convolution gradients"), {"memory": s.numbers.get("peak; memory; bytes/s")}
    for kind in {precision, "float32"}:
        as_known = "float32" if precision == "tfloat32" else kind  # the harness knows two precisions by name
        measured = "tfloat32" if precision == "tfloat32" else kind
        for name in names:
            rates[f"{name}, {as_known}"] = s.numbers.get(f"peak; {name}; W{width}; {measured}; operations/s")
        rates[f"product, {as_known}"] = s.numbers.get(f"peak; product; {measured}; operations/s")
    if not all(isinstance(rate, float) for rate in rates.values()):
        return None
    counted = harness.liresnet_parts(s.depth, width, s.config(width, batch).neck_width, batch)
    return harness.floor_seconds(counted, rates, "float32" if precision == "tfloat32" else precision)


def told(s: Session) -> dict:
    """The record's contents, from whatever was reached."""
    rows = [("way", "network", "batch", "precision", "ms", "images/s", "of the limit", "host ms", "GB")]
    for key in [key.removesuffix("; ms") for key in s.numbers if key.endswith("; ms") and not key.startswith("part")]:
        way, network, batch, precision = key.split("; ")
        ms, rate = s.numbers[f"{key}; ms"], s.numbers[f"{key}; images/s"]
        if (limit := limit_seconds(s, int(network[1:]), int(batch[1:]), precision)) is not None:
            s.numbers[f"{key}; of the limit"] = 1e3 * limit / ms
        share = f"{1e3 * limit / ms:.0%}" if limit else ""
        others = (s.numbers.get(f"{key}; {name}") for name in ("host ms", "GB"))
        others = ("" if value is None else f"{value:.1f}" for value in others)
        rows.append((way, f"L{s.depth} {network}", batch[1:], precision, f"{ms:.1f}", f"{rate:,.0f}", share, *others))
    main_step = f"step; W{s.main[0]}; B{s.main[1]}; bfloat16"
    rate, share = (s.numbers.get(f"{main_step}; {name}", 0.0) for name in ("images/s", "of the limit"))
    pairs = [(s.numbers.get(f"same; {c}, cpu"), s.numbers.get(f"same; {c}, device")) for c, _ in CLAIMS]
    agree = all(ours is not None and ours == theirs for ours, theirs in pairs)
    goals = (share >= GOAL, s.numbers.get("waits; places") == 0, agree)
    accelerator = str(hardware(s.device).get("accelerator", "no GPU, a rehearsal"))
    counts = ", ".join(f"{c} {ours} and {theirs}" for (c, _), (ours, theirs) in zip(CLAIMS, pairs, strict=True))
    words = [
        accelerator,
        f"L{s.depth} W{s.main[0]}, batch {s.main[1]}, bfloat16: {rate:,.0f} images/s, {share:.0%} of the limit",
        f"waits for the device: {s.numbers.get('waits; where', 'not measured')}",
        f"certified on CPU and on the device: {counts}",
    ]
    words += [f"failed: {'; '.join(s.failed)}"] * bool(s.failed) + [f"not reached: {', '.join(s.missed)}"] * bool(
        s.missed
    )
    numbers = {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in s.numbers.items()}
    return {
        "measured": "; ".join(words),
        "verdict": "met" if all(goals) else "in part" if any(goals) else "fell short",
        "numbers": {"accelerator": accelerator, **numbers},
        "rows": tuple(rows),
    }


def told_tight(s: Session) -> dict:
    """The same for the tight bound alone."""
    names, key = ("seconds", "upper", "excess"), f"bound; L{s.depth} W{s.main[0]}; "
    found = {effort: [s.numbers.get(f"{key}{effort}; {name}") for name in names] for effort in ("fast", "tight")}
    rows = [(effort, *(f"{v:.6g}" for v in values)) for effort, values in found.items() if None not in values]
    words = "; ".join(f"{effort}: {seconds} s, excess {excess}" for effort, seconds, _, excess in rows)
    return {
        "measured": f"{torch.get_num_threads()} threads; {words or 'nothing was reached'}",
        "verdict": "met" if len(rows) == len(found) else "fell short",
        "numbers": {k: v for k, v in s.numbers.items() if not isinstance(v, str)},
        "rows": (("effort", *names), *rows),
    }
