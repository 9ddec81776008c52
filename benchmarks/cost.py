"""What a training step costs by family and loss: `python -m benchmarks.cost`, a few minutes on one core.

Times are medians of interleaved rounds in one process, memory is the peak of a process of its own; both are ratios to
an ordinary convolution network of the same shape (ReLU, no bound, no orthogonal layers) trained with cross-entropy.
Random images of CIFAR's size stand in for a data set; no accuracy is measured. Writes the check record `cost`.
"""

import argparse
import os

import torch

from benchmarks.harness import Action, grown_bytes, in_own_process, medians, plain_step, random_data
from lipcert.config import ModelConfig, TrainConfig
from lipcert.models import build_model
from lipcert.report.checks import measuring
from lipcert.run import Run

_BATCH, _PER_EPOCH = 256, 50_000 // 256
_SHAPE = {"depth": 6, "width": 32, "neck_width": 128}
_PLAIN = "plain ConvNet, cross-entropy"
_FAMILIES = {
    "ConvNet": {"family": "convnet", **_SHAPE},
    "LiResNet": {"family": "liresnet", **_SHAPE},
    "ResNet, conventional": {"family": "resnet", **_SHAPE},
    "LiResNet, third generation": {"family": "liresnet", **_SHAPE, "centering": True, "tail_depth": 8},
    "GloRo 6C2F": {"family": "gloro", "depth": 6, "width": 32, "neck_width": 512},
}
_LOSSES = {
    "cross_entropy": "cross-entropy",
    "gloro": "GloRo",
    "trades_kl": "TRADES",
    "emma_fixed": "EMMA, fixed",
    "emma": "EMMA",
}


def stepper(name: str, classes: int = 10) -> Action:
    """A function that makes one training step of the named combination, 'family, loss' or the plain network."""
    data = random_data(2 * _BATCH, classes)
    if name == _PLAIN:
        return plain_step(data, _SHAPE["depth"], _SHAPE["width"], _SHAPE["neck_width"], _BATCH)
    family, _, loss = name.rpartition("; ")
    config = TrainConfig(dataset="cifar10", batch=_BATCH, steps=10**6, device="cpu", loss=loss, **_FAMILIES[family])
    return Run(config, data).train_step


def parameters(family: str) -> int:
    """Trained parameters of a family's network."""
    shape = ModelConfig(channels=3, input_size=32, **_FAMILIES[family])
    with torch.device("meta"):
        return build_model(shape).parameter_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(grown_bytes(lambda: stepper(options.memory)))
        return
    torch.set_num_threads(1)
    os.environ["LIPCERT_COMMAND"] = "python -m benchmarks.cost"
    target = "measured for every family and loss; the paper is said to need about twice the memory of standard training"
    with measuring("cost", "cost of a training step", target) as found:
        found |= measure(options.rounds)
        print(found["measured"])


def measure(rounds: int) -> dict[str, object]:
    """The record's contents."""
    names = [f"{family}; {loss}" for family in _FAMILIES for loss in _LOSSES]
    seconds = medians({name: stepper(name) for name in (_PLAIN, *names)}, rounds)
    memory = {name: in_own_process("benchmarks.cost", "--memory", name) for name in (_PLAIN, *names)}
    rows = [("network", "loss", "step, ms", "time", "memory, MB", "memory, ratio")]
    numbers: dict[str, float] = {f"{family}, parameters": parameters(family) for family in _FAMILIES}
    for name in (_PLAIN, *names):
        family, _, loss = name.rpartition("; ")
        label = (family, _LOSSES[loss]) if family else ("plain ConvNet", "cross-entropy, no bound")
        time_ratio, memory_ratio = seconds[name] / seconds[_PLAIN], memory[name] / memory[_PLAIN]
        rows.append(
            (
                *label,
                f"{1000 * seconds[name]:.0f}",
                f"{time_ratio:.2f}",
                f"{memory[name] / 1e6:.0f}",
                f"{memory_ratio:.2f}",
            )
        )
        if loss == "emma":
            numbers |= {f"{family}, time": round(time_ratio, 3), f"{family}, memory": round(memory_ratio, 3)}
    chosen = [(classes, loss) for classes in (10, 100) for loss in ("gloro", "emma")]
    by_class = medians({(c, loss): stepper(f"LiResNet; {loss}", c) for c, loss in chosen}, rounds)
    for classes, loss in chosen:
        numbers[f"{loss}, {classes} classes, seconds an epoch"] = round(by_class[classes, loss] * _PER_EPOCH, 1)
    ratios = [by_class[c, "emma"] / by_class[c, "gloro"] for c in (10, 100)]
    return {
        "measured": f"LiResNet with EMMA takes {numbers['LiResNet, time']:.2f} times the time and "
        f"{numbers['LiResNet, memory']:.2f} times the memory of a plain network of its shape; EMMA against GloRo "
        f"{ratios[0]:.2f} times the time at 10 classes and {ratios[1]:.2f} at 100",
        "verdict": "met",
        "numbers": numbers,
        "rows": tuple(rows),
    }


if __name__ == "__main__":
    main()
