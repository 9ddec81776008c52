"""What counted operations predict for one H200: time of a step and of a run, and, by a rule of thumb, VRA.

A prediction is made before the run and stays as it was made. It rests on two things, both written out here: rates of
one H200, of which only the matrix product was ever measured (`RATES`), and a rule of thumb for VRA (`predicted_vra`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lipcert.config import TrainConfig, steps_of
from lipcert.data.registry import DATASETS
from lipcert.report.operations import counts

# Operations or bytes a second of an H200. "convolutions": a bfloat16 matrix product of 8192, measured elsewhere; what a
# training step reaches of it is `UTILISATION`. The others are guesses until `benchmarks.gpu_step` has measured them.
RATES = {"convolutions": 790e12, "products": 25e12, "estimates": 15e12, "memory": 3.4e12}
UTILISATION = (0.35, 0.40)  # of the convolutions' rate; 0.5 is what good code reaches on large products
HOST_SECONDS = 0.02  # to launch the some 800 kernels of an eager step of a LiResNet of 12 blocks
# Operations of a step that torch is asked for, views aside: of all but the blocks, and of a block.
LAUNCHES = {"liresnet": (683, 11), "convnet": (669, 10), "resnet": (737, 31)}
# A CPU's run of the plain recipe: VRA in per cent, images, width. Gains per doubling of either, from and to.
KNOWN = {"cifar10": (55.03, 898_560, 80), "cifar100": (25.37, 449_280, 80)}
GAINS = (1.0, 1.5)


@dataclass(frozen=True)
class Predicted:
    """Images a second and passes over the training images, from the least to the most."""

    rate: tuple[float, float]
    epochs: tuple[float, float]


def part_seconds(config: TrainConfig, utilisation: float, rates: Mapping[str, float] = RATES) -> dict[str, float]:
    """Seconds of the parts of a step on the device. In float32 convolutions are as fast as other products, whatever
    the utilisation."""
    step = counts(config)
    fast = config.precision == "bfloat16"
    return {
        "convolutions": step.convolutions / (utilisation * rates["convolutions"] if fast else rates["products"]),
        "element-wise": step.traffic / rates["memory"],
        "norms": step.estimates / rates["estimates"],
        "orthogonalisation": step.orthogonalisation / rates["products"],
        "optimiser": step.optimizer / rates["products"],
    }


def step_seconds(config: TrainConfig, utilisation: float, rates: Mapping[str, float] = RATES) -> float:
    """Seconds of a step: parts one after the other, or launching them, if that takes longer."""
    return max(sum(part_seconds(config, utilisation, rates).values()), launch_seconds(config))


def launch_seconds(config: TrainConfig) -> float:
    """To launch the kernels of a step."""
    (rest, block), (usual, usual_block) = LAUNCHES[config.family], LAUNCHES["liresnet"]
    return HOST_SECONDS * ((rest + block * config.depth) / (usual + usual_block * 12))


def training_seconds(config: TrainConfig) -> tuple[float, float]:
    """Of training alone, from the least to the most: what `minutes` say, or the steps of the file.

    Raises:
        ValueError: as `counts`.
    """
    if config.minutes is not None:
        return 60 * config.minutes, 60 * config.minutes
    facts = DATASETS[config.dataset]
    images = config.train_images or facts.train * (config.classes or facts.classes) // facts.classes
    slow, fast = (steps_of(config, images) * step_seconds(config, share) for share in UTILISATION)
    return fast, slow


def predicted(config: TrainConfig) -> Predicted:
    """What `minutes` are worth.

    Raises:
        ValueError: a length that is not in minutes; as `counts`.
    """
    if config.minutes is None:
        raise ValueError("a prediction needs a length in minutes")
    low, high = (config.batch / step_seconds(config, share) for share in UTILISATION)
    images = DATASETS[config.dataset].train
    return Predicted((low, high), (60 * config.minutes * low / images, 60 * config.minutes * high / images))


def predicted_vra(config: TrainConfig) -> tuple[float, float]:
    """Per cent at 36/255 after the images of `predicted`, by `extrapolated`."""
    train = DATASETS[config.dataset].train
    (low, _), (_, high) = (
        extrapolated(config.dataset, train * epochs, config.width) for epochs in predicted(config).epochs
    )
    return low, high


def extrapolated(dataset: str, images: float, width: int) -> tuple[float, float]:
    """Per cent at 36/255: a CPU's run, plus 1 to 1.5 points for every doubling of its images and of its width.

    A rule of thumb, fitted to nothing but the published LiResNets of the first two generations without generated data,
    which lie inside of its ranges; the third generation's lie above them (`rule_words`). It knows nothing of
    optimisers, whose gain at this size is unknown, and of overfitting.
    """
    known, seen, wide = KNOWN[dataset]
    doublings = math.log2(images / seen) + math.log2(width / wide)
    return known + GAINS[0] * doublings, known + GAINS[1] * doublings
