"""The whole training step beside the papers' way, in one process: `python -m benchmarks.training_step`.

Small CIFAR-10 nets at batch 256, random images; no accuracy is measured. Writes the check record `training-step`; about
25 minutes on two quiet cores, `--quick` about 4 (the smallest net, few rounds). Rows of the *same mathematics* (neck of
2048 orthogonalised on its rows, ten power-method rounds, NAdam inside Lookahead) stand apart from rows of *changed
mathematics*: the smaller side of the neck orthogonalised, which gives other weights from the same parameters wherever
there are more rows than columns; three rounds; AdamW in one kernel; and a neck of 256. Steps of lipcert include drawing
and augmenting their images and counting accuracy, those of the papers' way find their images ready. *Native* kernels
need fewer products than a convolution is counted at, so they can pass what is called the limit here.

Before anything is timed, the first steps are compared: loss, Lipschitz estimate and gradient norm. Ratios are claimed
only where the baseline's phases agree with what the public code itself takes (`benchmarks.papers_way`). With one
thread, times are processor time and other work on the machine counts little.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks import harness
from benchmarks.harness import Action
from benchmarks.papers_way import PapersNet, PapersStep, disagreements, operation_shares, phase_shares
from lipcert.config import TrainConfig
from lipcert.orthogonal import _CholeskyOrthogonalise
from lipcert.power import lanczos
from lipcert.report.checks import measuring
from lipcert.run import Run, TrainingError
from lipcert.schedules import training_radius

NETS = {"L6 W64": (6, 64), "L12 W64": (12, 64), "L6 W128": (6, 128)}
NECK, SMALL_NECK, BATCH = 2048, 256, 256
GOALS = {"L6 W64": 3.5, "L12 W64": 3.5, "L6 W128": 2.5}  # in the best precision for the machine
SAME_GOAL, LIPSCHITZ_GOAL, ORTHOGONAL_GOAL, MEMORY_GOAL = 1.3, 0.03, 0.10, 1.3
TARGET = (
    f"against the papers' way: same mathematics in float32 {SAME_GOAL} times as fast; best precision "
    f"{', '.join(map(str, GOALS.values()))} times; Lipschitz part at most {LIPSCHITZ_GOAL:.0%} of a step, "
    f"orthogonalisation {ORTHOGONAL_GOAL:.0%}; memory at most {MEMORY_GOAL} times a plain network's"
)
PAPERS, SMALL_PAPERS = "papers' way", "papers' way, neck 256"
_ARITHMETIC = {
    "float32, eager": {},
    "float32, native": {"kernels": "native"},
    "float32, compiled": {"compiled": True},
    "bfloat16, eager": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
}
_SAME = {"power_steps": 10, "norm_method": "power", "optimizer": "nadam", "lookahead": True, "beta2": 0.999}
# row -> settings of the run; "same" rows change nothing but rounding
ROWS: dict[str, dict] = {
    **{f"same; {name}": {**_SAME, **how} for name, how in _ARITHMETIC.items()},
    **{f"changed; {name}": how for name, how in _ARITHMETIC.items()},
    "same, neck 256; float32, eager": {**_SAME, "neck_width": SMALL_NECK},
    "same, neck 256; float32, native": {**_SAME, "neck_width": SMALL_NECK, "kernels": "native"},
    "changed, neck 256; float32, eager": {"neck_width": SMALL_NECK},
    "changed, neck 256; float32, native": {"neck_width": SMALL_NECK, "kernels": "native"},
    "changed, neck 256; bfloat16, compiled": {"neck_width": SMALL_NECK, **_ARITHMETIC["bfloat16, compiled"]},
    # a step of the speed run sees half as many images: two of them are timed
    "speed run, neck 256; float32, native": {
        "neck_width": SMALL_NECK,
        "kernels": "native",
        "optimizer": "muon",
        "batch": BATCH // 2,
        "centering": False,
    },
}
QUICK = ("changed; bfloat16, compiled",)  # of the rows that compile
_MEMORY = {
    "plain": None, "papers": None, "float32, eager": {}, "bfloat16, eager": _ARITHMETIC["bfloat16, eager"],
    "neck 256; float32, eager": {"neck_width": SMALL_NECK},
    "neck 256; bfloat16, eager": {"neck_width": SMALL_NECK, **_ARITHMETIC["bfloat16, eager"]},
}  # fmt: skip


def config_of(net: str, settings: dict, batch: int = BATCH) -> TrainConfig:
    """The run of a row; so long that nothing changes while it is timed."""
    depth, width = NETS[net]
    shape = {"depth": depth, "width": width, "neck_width": NECK, "centering": True, "batch": batch}
    return TrainConfig(dataset="cifar10", steps=10**6, device="cpu", **{**shape, **settings})


def steps_over(run: Run, images: int) -> Action:
    """As many of the run's steps as see so many images."""
    count = images // run.batch

    def work() -> None:
        for _ in range(count):
            run.train_step()

    return work


def run_of(net: str, row: str) -> Run:
    """A run whose `train_step` is the row's step."""
    run = Run(config_of(net, ROWS[row]), harness.random_data(4 * BATCH))
    if row.startswith("same"):
        neck = run.network.backbone.neck_dense
        neck.weight = lambda: _CholeskyOrthogonalise.apply(neck.raw_OI)[0]  # on the rows, however many
    return run


def papers_of(net: str, neck: int, run: Run, clock: Callable[[], float]) -> tuple[PapersStep, Action]:
    """The papers' way from the weights of a run, and its step on the run's first images."""
    step = PapersStep(PapersNet(*NETS[net], neck).adopt(run.network), clock=clock)
    images_BCHW, labels_B = run.stream(0)
    images_BCHW, radius = images_BCHW.contiguous(), training_radius(run.config, 0)
    return step, lambda: step(images_BCHW, labels_B, radius)


def first_steps(runs: dict[str, Run], papers: dict[str, tuple[PapersStep, Action]]) -> dict[str, float]:
    """Largest relative difference of loss, estimate and gradient norm of each row's first step from the papers'."""
    found = {}
    baselines = {}
    for name, (step, work) in papers.items():
        work()
        baselines[name] = step.first
    for row, run in runs.items():
        run.train_step()
        *_, loss, estimate, gradient = run.check_finite()
        if row.startswith("same"):
            pairs = zip((loss, estimate, gradient), baselines[SMALL_PAPERS if "256" in row else PAPERS], strict=True)
            found[row] = max(abs(own - other) / abs(other) for own, other in pairs)
    return found


def parts_of(run: Run) -> dict[str, Action]:
    """The Lipschitz estimate, the neck's weights and the images of a run, alone; gradients included."""
    network, steps = run.network, run.config.power_steps
    necks = [network.backbone.neck_conv, network.backbone.neck_dense]
    raws, slopes = [necks[0].raw_OIhw, necks[1].raw_OI], [torch.randn_like(neck.weight()) for neck in necks]
    kernels = list(network.backbone.parameters())

    def estimate() -> None:
        with lanczos(run.config.norm_method == "lanczos"):
            torch.autograd.grad(network.lipschitz_estimate(steps), kernels, allow_unused=True)

    def orthogonalise() -> None:
        for neck, raw, slope in zip(necks, raws, slopes, strict=True):
            torch.autograd.grad(neck.weight(), raw, slope)

    count = iter(range(10**9))
    return {"lipschitz": estimate, "orthogonalisation": orthogonalise, "images": lambda: run.stream(next(count))}


def measure(net: str, rounds: int, clock: Callable[[], float], rows: tuple[str, ...]) -> dict:
    """Everything about one net: seconds of all works by round, differences, shares of the baseline's phases."""
    runs, impossible = {}, {}
    for row in rows:  # all of them before any compiles: building a run resets compilers
        try:
            runs[row] = run_of(net, row)
        except TrainingError as error:
            impossible[row] = str(error)
    same, small = runs["same; float32, eager"], runs["same, neck 256; float32, eager"]
    papers = {PAPERS: papers_of(net, NECK, same, clock), SMALL_PAPERS: papers_of(net, SMALL_NECK, small, clock)}
    differences = first_steps(runs, papers)
    works: dict[str, Action] = {name: work for name, (_, work) in papers.items()}
    works |= {row: steps_over(run, BATCH) for row, run in runs.items()}
    for precision in ("float32", "bfloat16"):
        works[f"convolutions; {precision}"] = harness.trunk_convolutions(*NETS[net], BATCH, getattr(torch, precision))
    for label, row in (("changed", "changed; float32, eager"), ("neck 256", "changed, neck 256; float32, eager"),
                       ("same", "same; float32, eager")):  # fmt: skip
        works |= {f"{part}; {label}": work for part, work in parts_of(runs[row]).items()}
    peaks = harness.peak_works(NETS[net][1])
    seconds = harness.take_turns({**works, **{name: peak.run for name, peak in peaks.items()}}, rounds, clock=clock)
    step, work = papers[PAPERS]
    return {
        "seconds": seconds,
        "rates": harness.rates(peaks, seconds),
        "differences": differences,
        "impossible": impossible,
        "phases": phase_shares(step, work, max(rounds // 2, 1)),
        "operations": operation_shares(work, max(rounds // 2, 1)),
    }


def _steps(row: str) -> int:
    """Steps of a row that see as many images as one of the others."""
    return BATCH // ROWS.get(row, {}).get("batch", BATCH)


def rows_of(net: str, found: dict, claimed: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Lines of the record's table and its numbers, for one net."""
    seconds, numbers, lines = found["seconds"], {}, []
    for row in (name for name in (PAPERS, SMALL_PAPERS, *ROWS) if name in seconds):
        settings = ROWS.get(row, {})
        precision = settings.get("precision", "float32")
        median = statistics.median(seconds[row])
        alone = harness.ratio(seconds, f"convolutions; {precision}", row).median
        features = SMALL_NECK if "256" in row else NECK
        parts = harness.liresnet_parts(*NETS[net], features, BATCH)
        parts = [*(_steps(row) - 1) * parts[-2:], *parts]  # the neck is orthogonalised in every step, however small
        limit = harness.floor_seconds(parts, found["rates"], precision) / median
        faster = harness.ratio(seconds, PAPERS, row)
        key = f"{net}; {row}"
        numbers |= {f"{key}; ms": 1000 * median, f"{key}; convolutions": alone, f"{key}; of the limit": limit}
        if claimed:
            numbers |= {f"{key}; ratio": faster.median, f"{key}; low": faster.low, f"{key}; high": faster.high}
            if features == SMALL_NECK:
                numbers[f"{key}; ratio to {SMALL_PAPERS}"] = harness.ratio(seconds, SMALL_PAPERS, row).median
        if row in found["differences"]:
            numbers[f"{key}; difference"] = found["differences"][row]
        lines.append(
            (net, row, f"{1000 * median:.0f}", f"{BATCH / median:.0f}", faster.show() if claimed else "not claimed",
             f"{alone:.0%}", f"{limit:.0%}",
             f"{found['differences'][row]:.0e}" if row in found["differences"] else "")
        )  # fmt: skip
    for part in ("lipschitz", "orthogonalisation", "images"):
        for label in ("same", "changed", "neck 256"):
            numbers[f"{net}; {part} ms; {label}"] = 1000 * statistics.median(seconds[f"{part}; {label}"])
        for row in (row for row in ROWS if row in seconds):
            # A row's orthogonalisation is that of its neck, its estimate that of its power-method rounds.
            small = "256" in row and (part == "orthogonalisation" or not row.startswith("same"))
            label = "neck 256" if small else "same" if row.startswith("same") else "changed"
            times = 1 if part == "images" else _steps(row)
            numbers[f"{net}; {row}; {part} share"] = times * harness.ratio(seconds, f"{part}; {label}", row).median
    numbers[f"{net}; images a second"] = BATCH / statistics.median(seconds["images; changed"])
    numbers |= {f"{net}; peak {name}": rate / 1e9 for name, rate in found["rates"].items()}
    for kind in ("phases", "operations"):
        numbers |= {f"{net}; papers {name} share": share for name, share in found[kind].items()}
    return lines, numbers


def memory(net: str) -> dict[str, float]:
    """Peak memory of training beside a plain network's; bytes an image from the difference of two batch sizes."""
    numbers: dict[str, float] = {}
    for name in _MEMORY:
        whole, half = (
            harness.in_own_process(__spec__.name, "--memory", net, name, str(batch)) for batch in (BATCH, BATCH // 2)
        )
        numbers[f"{net}; memory {name}; MB"] = whole / 1e6
        numbers[f"{net}; memory {name}; KB an image"] = (whole - half) / (BATCH - BATCH // 2) / 1e3
    plain = {unit: numbers[f"{net}; memory plain; {unit}"] for unit in ("MB", "KB an image")}
    for name in _MEMORY:
        for unit, base in plain.items():
            numbers[f"{net}; memory {name}; ratio of {unit}"] = numbers[f"{net}; memory {name}; {unit}"] / base
    return numbers


def stepper(net: str, name: str, batch: int) -> Action:
    """The step whose memory is asked for."""
    data, (depth, width) = harness.random_data(2 * batch), NETS[net]
    if name == "plain":
        return harness.plain_step(data, depth, width, NECK, batch)
    run = Run(config_of(net, _MEMORY[name] or {}, batch), data)
    return papers_of(net, NECK, run, time.perf_counter)[1] if name == "papers" else run.train_step


def told(found: dict[str, dict], doubts: list[str]) -> dict:
    """The record's contents, memory aside."""
    rows = [("net", "step", "ms", "images/s", "times as fast", "convolutions alone", "of the limit", "difference")]
    numbers: dict[str, float] = {}
    for net, result in found.items():
        lines, more = rows_of(net, result, not doubts)
        rows += lines + [(net, row, "not here", "", "", "", "", "") for row in result["impossible"]]
        numbers |= more
    return {"rows": tuple(rows), "numbers": numbers}


def words(nets: list[str], numbers: dict[str, float], doubts: list[str]) -> tuple[str, str]:
    """What came out, and the verdict."""
    goals: list[bool] = []
    if doubts:
        text = [f"the baseline's shares do not agree with the public code's ({'; '.join(doubts)}): no ratio is claimed"]
        goals.append(False)
    else:
        text = []
        for net in nets:
            of = {row: numbers[key] for row in ROWS if (key := f"{net}; {row}; ratio") in numbers}
            same = max((f"same; {how}" for how in _ARITHMETIC if "float32" in how), key=lambda row: of.get(row, 0))
            best = max((f"changed; {how}" for how in _ARITHMETIC), key=lambda row: of.get(row, 0))
            ratios = [of[same], of[best]]
            text.append(
                f"{net}, neck {NECK}: same mathematics ({same.partition('; ')[2]}) {ratios[0]:.2f} times as fast, "
                f"changed mathematics ({best.partition('; ')[2]}) {ratios[1]:.2f} times"
            )
            goals += [ratios[0] >= SAME_GOAL, ratios[1] >= GOALS[net]]
    parts = ("lipschitz", "orthogonalisation")
    bound, orthogonal = (
        max(numbers[f"{net}; changed; float32, eager; {part} share"] for net in nets) for part in parts
    )
    held = max(numbers[f"{net}; memory float32, eager; ratio of MB"] for net in nets)
    goals += [bound <= LIPSCHITZ_GOAL, orthogonal <= ORTHOGONAL_GOAL, held <= MEMORY_GOAL]
    text.append(
        f"Lipschitz part at most {bound:.1%} and orthogonalisation {orthogonal:.1%} of a step in float32 with neck "
        f"{NECK}; memory at most {held:.2f} times a plain network's"
    )
    return "; ".join(text), "met" if all(goals) else "in part" if any(goals) else "fell short"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="the smallest net, three rounds: for rehearsal")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        net, name, batch = options.memory
        print(harness.grown_bytes(lambda: stepper(net, name, int(batch))))
        return
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    nets, rounds, rows = options.nets, options.rounds, tuple(ROWS)
    if options.quick:
        nets, rounds, rows = ["L6 W64"], 3, tuple(row for row in ROWS if "compiled" not in row or row in QUICK)
    with measuring("training-step", "a training step against the papers' way", TARGET) as found:
        results = {net: measure(net, rounds, clock, rows) for net in nets}
        checked = results.get("L6 W64")  # the net whose shares in the public code are known
        doubts = disagreements(checked["phases"], checked["operations"]) if checked else ["L6 W64 was not measured"]
        found |= told(results, doubts)
        for net in nets:
            found["numbers"] |= memory(net)
        found["numbers"] = {key: float(f"{value:.4g}") for key, value in found["numbers"].items()}
        found["numbers"] |= {"threads": options.threads, "rounds": rounds, "neck": NECK, "claimed": int(not doubts)}
        found["measured"], found["verdict"] = words(nets, found["numbers"], doubts)
        for row in found["rows"]:
            print(" | ".join(row))


if __name__ == "__main__":
    main()
