"""Entry 1 of the GPU queue: how fast a GPU trains a LiResNet, and whether it certifies what a CPU does.

`python -m benchmarks.gpu_step` writes the check record `gpu-step` within five minutes; `--device cpu --quick` rehearses
it without a GPU. Every measurement is a line of `results/local/gpu-step.jsonl` once it is made, and Ctrl-C,
SIGTERM or the end of `--seconds` end the measuring, not the record: it says what was not reached. What fails is one
line with its error, and the next one goes on. Some sections alone (`--sections graphs`) write a record of their own.

    peaks     matrix products and the blocks' convolutions alone, forward and backward, in every precision; memory
    waits     operations inside of a step during which the host waits for the device: there should be none
    steps     whole training steps (Muon) by width, batch and precision; how long the host takes to launch one
    parts     norms, orthogonalisation, optimiser and images of a step, alone
    same      one minute of training, certified on the CPU and on the device: predictions, counts and radii must agree
    compiled  the backbone through torch.compile, plainly and with graphs of its own
    graphs    the whole step recorded once and replayed as a CUDA graph, schedules frozen: an upper limit of the gain
    tight     the tight bound of L12 W256 on this machine's cores; minutes, needs no GPU and only runs if asked for

A step's limit is its counted operations and bytes at the peaks of this device (`benchmarks.harness`).
The kernels of l_inf-distance layers have a measurement of their own: `python -m benchmarks.linf_gpu --no-compile`.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.gpu_session import DEPTH, GOAL, MAIN, Session, stoppable, told, told_tight
from benchmarks.training_step import parts_of
from lipcert.arithmetic import tensor_float
from lipcert.certify import certified_correct, certify_each
from lipcert.chain import chain_bounds
from lipcert.data import Dataset, load_dataset, to_unit
from lipcert.evaluate import CLAIMS
from lipcert.radius import Radius
from lipcert.report.checks import measuring
from lipcert.run import Run

TARGET = (
    f"L{DEPTH} W{MAIN[0]} at batch {MAIN[1]} in bfloat16: {GOAL:.0%} of the limit or more; nothing waits for the "
    "device; the same counts certified on CPU and device"
)
_DTYPES = {"bfloat16": torch.bfloat16, "tfloat32": torch.float32, "float32": torch.float32}
_SLOWEST = 1.5  # seconds of a step that is worth the time
_RADIUS = "36/255"


# ------------------------------------------------------------------------------------------------------------- sections
def peaks(s: Session) -> None:
    size, batch = (256, 16) if s.quick else (8192, 1024)
    with torch.device(s.device):
        s.measure("peak; memory", lambda: {"bytes/s": _rate(s, harness.copy(2**24 if s.quick else 2**31))})
        for precision in s.precisions:
            dtype = _DTYPES[precision]
            with tensor_float(precision == "tfloat32", s.device):
                product = harness.product(size, dtype)
                s.measure(f"peak; product; {precision}", lambda w=product: {"operations/s": _rate(s, w)})
                for width in s.widths:
                    shape = (width, width, 3, 1, batch, 16, dtype)
                    for name, backward in (("convolution", False), ("convolution gradients", True)):
                        work = harness.convolution(*shape, forward=not backward, backward=backward)
                        s.measure(f"peak; {name}; W{width}; {precision}", lambda w=work: {"operations/s": _rate(s, w)})


def _rate(s: Session, work: harness.Work) -> float:
    return (work.operations or work.traffic) / s.seconds_of(work.run)


def waits(s: Session) -> None:
    """Every place where the host waits for the device, by torch's own account."""
    if s.device.type != "cuda":
        s.missed.append("waits: no GPU")
        return
    run = s.run_at(*s.main).trial(precision="bfloat16")
    run.time_steps(3)

    def look() -> dict[str, float | str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run.train_step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
        return {"places": len(found), "where": ", ".join(found) or "none"}

    s.measure("waits", look)


def steps(s: Session) -> None:
    """The main precision over all sizes first, then the others at the main batch."""
    sizes = list(itertools.product(s.batches, s.widths))
    for precision in s.precisions:
        for batch, width in sizes if precision == s.precisions[0] else [(b, w) for b, w in sizes if b == s.main[1]]:
            s.measure(f"step; W{width}; B{batch}; {precision}",
                      lambda w=width, b=batch, p=precision: step(s, s.run_at(w, b).trial(precision=p)), 5)  # fmt: skip


def step(s: Session, run: Run, warmup: int = 3) -> dict[str, float]:
    """Median of five series, and how long the host is busy with a step that it does not wait for."""
    if s.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = run.time_steps(1)
    run.time_steps(warmup)
    rough = run.time_steps(1)
    if rough > _SLOWEST:
        return _told(run, [rough], rough, first)
    count = max(1, min(20, int(0.2 / rough)))
    series = [run.time_steps(count) for _ in range(5)]
    start = time.perf_counter()
    for _ in range(count):
        run.train_step()
    host = (time.perf_counter() - start) / count
    run.synchronise()
    return _told(run, series, host, first)


def _told(run: Run, series: list[float], host: float, first: float) -> dict[str, float]:
    seconds = statistics.median(series)
    found = {"ms": 1e3 * seconds, "images/s": run.batch / seconds, "host ms": 1e3 * host, "first ms": 1e3 * first}
    if run.device.type == "cuda":
        found["GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def parts(s: Session) -> None:
    for width in s.widths[:2]:
        run = s.run_at(width, s.main[1]).trial(precision="bfloat16")
        run.time_steps(2)
        for parameter in run.network.parameters():
            parameter.grad = torch.randn_like(parameter)
        with tensor_float(False, s.device):
            for name, work in {**parts_of(run), "optimiser": run.optimizer.step}.items():
                key = f"part; W{width}; B{run.batch}; {name}"
                s.measure(key, lambda work=work: {"ms": 1e3 * s.seconds_of(work)}, 5)


def same(s: Session) -> None:
    """Train on the device, certify on both; on CIFAR-10, or the embedded digits where it is not at hand."""
    minutes, count = (0.02, 64) if s.quick else (1.0, 500)
    data = None if s.quick else _cifar()
    changes = {"minutes": minutes, "precision": "bfloat16", "radius_end": 2.0}
    config = s.config(*s.main, **changes)
    if data is None:
        data, config = load_dataset("digits"), config.model_copy(update={"dataset": "digits"})

    def both() -> dict[str, float | int | str]:
        run = Run(config, data)
        run.pin_minutes()
        while run.step < run.steps and time.monotonic() < s.end - (0 if s.quick else 25):
            run.train_step()
        run.synchronise()
        return {"steps": run.step, "data": data.name} | _certified_on_both(s, run, data, count)

    s.measure("same", both, 0 if s.quick else 60)


def _cifar() -> Dataset | None:
    try:
        return load_dataset("cifar10")
    except (FileNotFoundError, RuntimeError, ImportError) as error:
        print(f"gpu_step: {error}; the digits are taken instead", file=sys.stderr)
        return None


def _certified_on_both(s: Session, run: Run, data: Dataset, count: int) -> dict[str, float | int]:
    split = data.test
    images_BCHW, labels_B = to_unit(split.images_NCHW[:count], data.scale, torch.float64), split.labels_N[:count]
    chain = run.network.plain()
    start = time.perf_counter()
    bounds = chain_bounds(chain, data.shape)
    found: dict[str, float | int] = {"bound seconds": time.perf_counter() - start, "images": len(labels_B)}
    sides = {}
    for device in ("cpu", s.device.type):
        start = time.perf_counter()
        placed = chain.to(device)
        sides[device] = certify_each(placed, images_BCHW, CLAIMS, bounds=bounds)
        found[f"certify seconds, {'device' if device != 'cpu' else 'cpu'}"] = time.perf_counter() - start
    for ours, theirs, (guarantee, _) in zip(*(sides["cpu"], sides[s.device.type]), CLAIMS, strict=True):
        counts = [certified_correct(c.prediction_B, c.radius_B, labels_B, Radius(_RADIUS)) for c in (ours, theirs)]
        found |= {f"{guarantee}, cpu": counts[0], f"{guarantee}, device": counts[1]}
        found[f"{guarantee}, other predictions"] = int((ours.prediction_B != theirs.prediction_B).sum())
        found[f"{guarantee}, largest difference of radii"] = float((ours.radius_B - theirs.radius_B).abs().max())
    return found


def graphs(s: Session) -> None:
    if s.device.type != "cuda":
        s.missed.append("graphs: no GPU")
        return
    for width, batch in dict.fromkeys([s.main, *((w, b) for b in (256, 1024) for w in s.widths)]):
        s.measure(f"graph; W{width}; B{batch}; bfloat16", lambda w=width, b=batch: graph_step(s, s.run_at(w, b)), 10)


def graph_step(s: Session, run: Run) -> dict[str, float]:
    """`train_step` as it is, recorded once. Images are drawn outside and copied in; learning rate and radius are
    constants of the recording, which training could not do with."""
    run = run.trial(precision="bfloat16")
    stream, count = run.stream, itertools.count(10)
    fixed = tuple(t.clone() for t in stream(0))
    run.stream = lambda _: fixed
    for optimizer in getattr(run.optimizer, "parts", (run.optimizer,)):
        for group in optimizer.param_groups:
            group["capturable"] = True
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run.train_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.train_step()

    def replay() -> None:
        for to, new in zip(fixed, stream(next(count)), strict=True):
            to.copy_(new)
        graph.replay()

    seconds = s.seconds_of(replay, 1.0)
    return {"ms": 1e3 * seconds, "images/s": len(fixed[1]) / seconds, "finite": int(bool(run.totals.isfinite().all()))}


def compiled(s: Session) -> None:
    width, batch = s.main
    s.measure(f"compiled; W{width}; B{batch}; bfloat16",
              lambda: step(s, s.run_at(width, batch).trial(precision="bfloat16", compiled=True)), 60)  # fmt: skip

    def with_graphs() -> dict[str, float]:
        run = s.run_at(width, batch).trial(precision="bfloat16")
        torch.compiler.reset()
        backbone = torch.compile(run.network.backbone, mode="reduce-overhead")

        def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return backbone(images_BCHW)

        run.forward = forward
        return step(s, run, warmup=6)

    if s.device.type == "cuda":
        s.measure(f"compiled with graphs; W{width}; B{batch}; bfloat16", with_graphs, 60)


def tight(s: Session) -> None:
    run = s.run_at(*s.main)
    run.time_steps(1 if s.quick else 20)  # away from the start, where kernels are almost the identity
    chain = run.network.plain()
    for effort in ("fast", "tight"):

        def prove(effort: str = effort) -> dict[str, float]:
            start = time.perf_counter()
            bounds = chain_bounds(chain, run.network.input_shape, effort)
            return {
                "seconds": time.perf_counter() - start,
                "upper": bounds.upper,
                "excess": bounds.upper / bounds.lower - 1,
            }

        s.measure(f"bound; L{s.depth} W{s.main[0]}; {effort}", prove)


SECTIONS = (peaks, waits, steps, parts, same, compiled, graphs, tight)  # what may break a process comes last


def main() -> int:
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to rehearse")
    parser.add_argument("--seconds", type=float, default=285.0, help="after which nothing new begins")
    parser.add_argument("--sections", nargs="+", choices=names, default=names[:-1])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_step: no CUDA GPU here; nothing measured (--device cpu --quick rehearses)", file=sys.stderr)
        return 2
    alone = options.sections == ["tight"]
    whole = options.sections == names[:-1]
    goal = "gpu-step" if whole else f"gpu-{'-'.join(options.sections)}"
    os.environ["LIPCERT_COMMAND"] = " ".join(["python -m benchmarks.gpu_step", *sys.argv[1:]])
    title, target = ("the tight bound", "both proofs end") if alone else ("the training step on a GPU", TARGET)
    with measuring(goal, title, target) as found:
        session = Session(options, goal)
        with stoppable():
            for section in SECTIONS:
                if section.__name__ in options.sections:
                    session.enter(section)
        found |= told_tight(session) if alone else told(session)
        for row in found["rows"]:
            print(" | ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
