"""Record `loss-cost`: what a training step costs under each loss, beside GloRo's: `python -m benchmarks.loss_cost`.

The network and recipe of the study's losses-100.yaml, random images, 10 and 100 classes, every l2 loss; about five
minutes of one quiet core, `--quick` less than one. All steps take turns in one process, and what is compared is the
median of the rounds' ratios to GloRo's step. GloRo's own step is timed twice: how far the second one is from 1 says
what the comparison can tell. Beside them stands the loss alone, forward and backward, on the same batch: what a step
could differ by. With one thread, the default, times are processor time, so that other work on the machine counts
little.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import harness
from benchmarks.harness import Action, Seconds
from lipcert.config import TrainConfig
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.report.checks import measuring
from lipcert.run import Run
from lipcert.schedules import loss_weight
from lipcert.study import load_study

STUDY = ROOT / "notebooks" / "params" / "study" / "losses-100.yaml"
BASE = "gloro"
LOSSES = (BASE, "emma", "emma_fixed", "trades_kl", "trades_ce", "margin", "focal", "annealing", "cross_entropy")
AGAIN = "gloro, again"
TIMED = {**{loss: loss for loss in LOSSES}, AGAIN: BASE}
CLASSES, ROUNDS = (10, 100), 150
_REPEATS = 20  # of a loss alone in a round: it takes less than a clock can tell
GOAL = 1.05
TARGET = f"a step under every loss in at most {GOAL} times GloRo's, at {' and at '.join(map(str, CLASSES))} classes"


def config_of(loss: str, **changes: object) -> TrainConfig:
    """The study's run under this loss; so long that nothing changes while it is timed."""
    cell = load_study(STUDY).cells[0]
    never = {"steps": 10**6, "snapshots": 0, "threats": 0, "device": "cpu"}
    return TrainConfig(**{**cell.model_dump(), **never, "loss": loss, **changes})


def step_of(run: Run) -> Action:
    """One training step."""
    return run.train_step


def loss_of(run: Run) -> Action:
    """The loss alone and its gradients, `_REPEATS` times, on logits of the run's first batch."""
    config = run.config
    images_BCHW, labels_B = run.stream(0)
    with torch.no_grad():
        logits_BK = run.network(images_BCHW)
        margin_KK = run.network.margin_lipschitz(run.network.lipschitz_estimate(1))
        scale = run.network.head.logit_scale()
    inputs = logits_BK.requires_grad_(), margin_KK.requires_grad_()
    radius, weight = float(Radius(config.radius)), loss_weight(config, 0.0)

    def work() -> None:
        for _ in range(_REPEATS):
            loss = run.loss(inputs[0], labels_B, inputs[1], radius, weight, scale)
            torch.autograd.grad(loss, inputs, allow_unused=True)  # plain cross-entropy knows no constants

    return work


def measure(
    rounds: int, clock: Callable[[], float], classes: Sequence[int] = CLASSES, **changes: object
) -> tuple[Seconds, TrainConfig]:
    """Seconds of every step and of every loss alone, round by round, and the settings they share."""
    works: dict[str, Action] = {}
    for count in classes:
        for name, loss in TIMED.items():
            config = config_of(loss, **changes)
            run = Run(config, harness.random_data(4 * config.batch, count))
            works |= {f"{name}; {count} classes": step_of(run), f"{name}; {count} classes; alone": loss_of(run)}
    seconds = harness.take_turns(works, rounds, warmup=3, clock=clock)
    alone = {name: [s / _REPEATS for s in taken] for name, taken in seconds.items() if name.endswith("alone")}
    return seconds | alone, config


def told(seconds: Seconds, config: TrainConfig, classes: Sequence[int] = CLASSES) -> dict:
    """The record's contents."""
    rows = [("classes", "loss", "ms a step", "over gloro's step", "loss alone, ms", "share of the step")]
    numbers: dict[str, float | str] = {}
    dearest: dict[int, tuple[float, str]] = {}
    for count in classes:
        ratios = {}
        for loss in TIMED:
            key = f"{loss}; {count} classes"
            step, alone = (1000 * statistics.median(seconds[name]) for name in (key, f"{key}; alone"))
            ratios[loss] = over = harness.ratio(seconds, key, f"{BASE}; {count} classes")
            share = harness.ratio(seconds, f"{key}; alone", key).median
            rows.append((str(count), loss, f"{step:.1f}", over.show(digits=3), f"{alone:.2f}", f"{share:.1%}"))
            numbers |= {f"{key}; ms": step, f"{key}; ms alone": alone, f"{key}; share": share}
            numbers |= {f"{key}; ratio": over.median, f"{key}; low": over.low, f"{key}; high": over.high}
        dearest[count] = max((over.median, loss) for loss, over in ratios.items() if TIMED[loss] != BASE)
    numbers = {key: float(f"{value:.4g}") for key, value in numbers.items()}
    sizes = {name: getattr(config, name) for name in ("depth", "width", "neck_width", "batch", "kernels", "precision")}
    within = [ratio <= GOAL for ratio, _ in dearest.values()]
    return {
        "measured": "; ".join(
            f"{count} classes: GloRo's step {numbers[f'{BASE}; {count} classes; ms']:.1f} ms, a second time "
            f"{numbers[f'{AGAIN}; {count} classes; ratio']:.3f} times as long, "
            f"the dearest other loss {loss} {ratio:.3f}"
            for count, (ratio, loss) in dearest.items()
        ),
        "verdict": "met" if all(within) else "in part" if any(within) else "fell short",
        "numbers": numbers | sizes,
        "rows": tuple(rows),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed steps of every loss (default {ROUNDS})")
    parser.add_argument("--threads", type=int, default=1, help="1: processor time (default); more: wall time")
    parser.add_argument("--quick", action="store_true", help="three rounds: for rehearsal")
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rounds = 3 if options.quick else options.rounds
    os.environ["LIPCERT_COMMAND"] = shlex.join(["python", "-m", "benchmarks.loss_cost", *given])
    with measuring("loss-cost", "a training step under each loss", TARGET) as found:
        found |= told(*measure(rounds, clock))
        found["numbers"] |= {"threads": options.threads, "rounds": rounds}
        for row in found["rows"]:
            print(" | ".join(row))


if __name__ == "__main__":
    main()
