"""The training images of every step: which, in what order, augmented how, mixed with generated ones.

All of it is a function of the run's seed and the step, so a resumed run sees what it would have seen.

Shape letters: B batch, G generated images of a step, C H W image.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipcert.config import TrainConfig
from lipcert.data import DATASETS, Dataset, Shuffled, TrainingImages, load_generated
from lipcert.paths import data_dir

_ORDER, _AUGMENT, _GENERATED, _GENERATED_AUGMENT, LAYERS = 1, 2, 3, 4, 5  # random streams
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Stream:
    """`images_BCHW, labels_B = stream(step)`: float32 in [0, 1] on the device, in the layout of the run.

    Real images come in a new seeded permutation every epoch, whose last, incomplete batch is not used; behind them
    stand `generated_ratio` times as many generated ones, if the run has any.

    Attributes:
        batch: real images of a step. size: all images of a step. per_epoch: steps of a pass over the real images.
        generated_sha256: of the file of generated images; None without. layout: of `images_BCHW`, a name of `LAYOUTS`.
    """

    def __init__(self, config: TrainConfig, data: Dataset, device: torch.device):
        """Raises what `load_generated` and `TrainingImages` do."""
        facts = DATASETS[config.dataset]
        crop = facts.crop if config.crop is None else config.crop
        flip = facts.flip if config.flip is None else config.flip
        self.seed, count, self.layout = config.seed, len(data.train.labels_N), config.layout
        self.batch, extra = step_images(config, count)
        self.size = self.batch + extra
        self.per_epoch = count // self.batch
        self.images = TrainingImages(data.train.images_NCHW, config.augmentation, crop, flip, data.scale, device)
        self.labels_N = data.train.labels_N.to(device)
        self._epoch: tuple[int, Tensor] | None = None
        self.generated = self.generated_sha256 = None
        if config.generated is not None:
            # A name alone lies with the data sets; an absolute path stays what it is.
            generated = load_generated(data_dir() / Path(config.generated).expanduser(), data)
            images = TrainingImages(generated.images_NCHW, "crop", generated.crop, flip, data.scale, device)
            order = Shuffled(len(generated), extra, stream_seed(config.seed, _GENERATED, 0))
            self.generated = images, generated.labels_N.to(device), order
            self.generated_sha256 = generated.sha256

    def indices(self, step: int) -> Tensor:
        """Places of the real images of a step, (B,) int64."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, _ORDER, epoch))
            order_N = torch.randperm(len(self.labels_N), generator=generator)
            self._epoch = epoch, order_N.to(self.images.index_device)
        return self._epoch[1][position * self.batch : (position + 1) * self.batch]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        index_B = self.indices(step)
        images_BCHW = self.images.batch(index_B, stream_seed(self.seed, _AUGMENT, step))
        labels_B = self.labels_N[index_B.to(self.labels_N.device)]
        if self.images.in_files:
            self.images.prefetch(self.indices(step + 1), stream_seed(self.seed, _AUGMENT, step + 1))
        if self.generated is not None:
            images, generated_N, order = self.generated
            index_G = order(step)
            drawn_GCHW = images.batch(index_G, stream_seed(self.seed, _GENERATED_AUGMENT, step))
            images_BCHW = torch.cat([images_BCHW, drawn_GCHW])
            labels_B = torch.cat([labels_B, generated_N[index_G.to(generated_N.device)]])
        return images_BCHW.to(memory_format=LAYOUTS[self.layout]), labels_B


def step_images(config: TrainConfig, count: int) -> tuple[int, int]:
    """Real and generated images of a step of a run over `count` training images."""
    real = min(config.batch, count)
    return real, 0 if config.generated is None else max(1, round(config.generated_ratio * real))


def stream_seed(seed: int, stream: int, number: int) -> int:
    """One seed for a triple; streams do not overlap for neighbouring numbers.

    Never of fewer parts: numpy fills them up with zeros, so that (seed, 3) and (seed, 3, 0) would be one stream.
    """
    return int(np.random.SeedSequence((seed, stream, number)).generate_state(1, np.uint64)[0] >> 1)
