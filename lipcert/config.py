"""The settings of networks and runs, frozen and typed (`lipcert.settings` has what checks them).

`ModelConfig` names a network, `TrainConfig` a whole run. Both are plain literals on disk (YAML or a notebook's
`parameters` cell) and hash to the run's id, so two runs with one id had the same settings.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from lipcert.families import FAMILIES, INTERVAL_FAMILIES, OPTIONAL
from lipcert.radius import Radius
from lipcert.schedules import schedule
from lipcert.settings import ConfigError, RadiusText, ScheduleText, Settings, parse, plain_values, read_yaml


class Architecture(Settings):
    """What a network is, apart from the images it takes: shared by `ModelConfig` and `TrainConfig`."""

    family: Literal[tuple(FAMILIES)] = Field("liresnet", description="network family")
    depth: int = Field(6, ge=1, le=1000, description="blocks; gloro: convolutions, of a published network")
    width: int = Field(32, ge=2, le=8192, multiple_of=2, description="channels of the blocks, or of the first stage")
    activation: Literal["minmax", "relu"] = Field("minmax", description="non-linearity")
    neck: Literal["conv_dense", "dense", "orthogonal"] = Field(
        "orthogonal", description="reference necks of generations 1 and 2, or the Cholesky-orthogonal one; not of gloro"
    )
    neck_width: int = Field(
        128, ge=2, le=65536, multiple_of=2, description="features after the neck; gloro: of hidden dense layers"
    )
    stem: Literal["auto", "5x5/2", "7x7/4", "3x3/1", "patch"] = Field(
        "auto", description="first convolution, kernel/stride; auto picks it from the input size; not of gloro"
    )
    centering: bool = Field(False, description="subtract batch means in the blocks of a liresnet (generation 3)")
    tail_depth: int = Field(0, ge=0, le=1000, description="orthogonal residual dense layers after the neck")
    branch_scale: float = Field(
        0.0, ge=0, le=10, description="initial scale of a resnet's branches, times depth^(-1/2); 0 as in the reference"
    )
    init: Literal["orthogonal", "glorot"] = Field("orthogonal", description="initial weights of a gloro network")
    keep: float = Field(1.0, gt=0, le=1, description="share of inputs a SortNet neuron keeps; 1: the plain maximum")
    mlp_width: int = Field(0, ge=0, le=65536, description="hidden features of a linf_net's dense head; 0: distances")

    @model_validator(mode="after")
    def _of_the_family(self) -> "Architecture":
        for key in OPTIONAL:
            value, default = getattr(self, key), Architecture.model_fields[key].default
            if value != default and key not in FAMILIES[self.family].settings:
                families = [name for name, family in FAMILIES.items() if key in family.settings]
                only = f"of {', '.join(families)} only; leave it out"
                raise ValueError(f"{key}={value!r} with family {self.family!r}: {only}")
        return self


class ModelConfig(Architecture):
    """A network by family and size; `lipcert.models.build_model` turns it into a module."""

    channels: int = Field(1, ge=1, le=64, description="input channels")
    input_size: int = Field(8, ge=1, le=4096, description="side of the square input images in pixels")
    classes: int = Field(10, ge=2, le=100_000, description="number of classes")
    pixel_mean: tuple[float, ...] = Field((), description="mean of each channel, in pixels; none: 1/2")
    pixel_std: float = Field(0.25, gt=0, le=1, description="deviation of all pixels: the unit of a linf_net's weights")


class TrainConfig(Architecture):
    """One training run, complete: data, network, loss, schedule, arithmetic, seed.

    Exactly one of `steps`, `epochs` and `minutes` sets the length. `minutes` is measured once at the start, turned
    into `steps`, and only the steps are stored, so that a rerun from the record repeats the run exactly.
    """

    dataset: Literal["digits", "mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet"] = Field(
        "digits", description="data set"
    )
    classes: int | None = Field(None, ge=2, description="use a seeded subset of that many classes")
    class_seed: int = Field(2023, ge=0, description="seed of the subset of classes, and of that of images")
    train_images: int | None = Field(None, ge=2, description="keep this many training images, equally many a class")
    validation: bool = Field(False, description="hold out a validation split and report on it, not on the test set")

    generated: str | None = Field(None, description="npz of generated images to train on as well")
    generated_ratio: float = Field(3.0, gt=0, le=100, description="generated images per real one in a step")

    loss: Literal[
        "emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", "cross_entropy", "linf_mixture", "linf_hinge", "ibp",
        "margin", "focal", "annealing",
    ] = Field("emma", description="training loss")  # fmt: skip
    robust_weight: ScheduleText = Field("1", description="weight of the robust term of TRADES: number or schedule")
    plain_weight: ScheduleText = Field(
        "0.1", description="weight of cross-entropy in linf_mixture, margin and ibp: number or schedule"
    )
    exponent: ScheduleText = Field(
        "[8]-exp-[96%:1000]", description="p of a linf_net's layers as a schedule; infinite after its last section"
    )
    plain_share: float = Field(0.0, ge=0, lt=1, description="share of the run, first, on plain cross-entropy")
    radius: RadiusText = Field("36/255", description="radius to certify, in pixels of [0, 1] and the network's norm")
    radius_start: float = Field(0.1, ge=0, le=10, description="training radius at the start, as a factor of radius")
    radius_end: float = Field(1.5, gt=0, le=10, description="training radius from radius_ramp on, as a factor")
    radius_ramp: float = Field(0.5, ge=0, le=1, description="share of the run over which the radius grows")
    radius_schedule: ScheduleText | None = Field(
        None, description="factor of radius over the run as a schedule; takes the place of the three above"
    )
    report_radii: tuple[RadiusText, ...] = Field(
        ("36/255", "72/255", "108/255"), description="radii reported beside `radius`"
    )

    steps: int | None = Field(None, ge=1, description="length in optimiser steps")
    epochs: float | None = Field(None, gt=0, le=100_000, description="length in passes over the training images")
    minutes: float | None = Field(None, gt=0, le=100_000, description="length in minutes, measured at the start")
    batch: int = Field(256, ge=1, le=1_000_000, description="images per step")

    optimizer: Literal["adam", "adamw", "nadam", "muon"] = Field(
        "adamw", description="optimiser; muon: for the backbone's matrices, with adamw for the rest"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of muon; beta1 and beta2 are adamw's beside it")
    lr: float = Field(4e-3, gt=0, le=10, description="peak learning rate")
    lr_schedule: ScheduleText = Field(
        "cosine", description="after the warm-up: cosine, constant_exp (half and half), or a schedule of factors of lr"
    )
    lr_end: float = Field(0.0, ge=0, le=1, description="final learning rate as a factor of lr")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run with a linearly growing learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="optimiser momentum")
    beta2: float = Field(0.98, ge=0, lt=1, description="optimiser second-moment decay")
    adam_eps: float = Field(1e-8, gt=0, le=1, description="what Adam adds to the root of the second moment")
    scale_lr: float = Field(0.2, ge=0, le=100, description="learning rate of a linf_net's logit scale as a factor")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    lp_decay: float = Field(0.0, ge=0, le=1, description="weight decay in the geometry of l_p, of a linf_net")
    lookahead: bool = Field(False, description="Lookahead around the optimiser (alpha 0.5, every 6 steps)")
    clip: float = Field(3.0, gt=0, description="largest global gradient norm")
    power_steps: int = Field(3, ge=1, le=1000, description="warm-started power-method steps per training step")
    norm_method: Literal["power", "lanczos"] = Field(
        "power", description="how those steps estimate norms; lanczos: the best that as many products can tell"
    )
    augmentation: Literal[
        "crop", "crop_edge", "gloro_cifar", "gloro_tiny", "randaugment", "imagenet", "imagenet_randaugment"
    ] = Field("crop", description="crop and flip, or a published recipe's own; see lipcert.data.batches")
    crop: int | None = Field(None, ge=0, le=64, description="padding of the random crop; none: the data set's own")
    flip: bool | None = Field(None, description="random horizontal flip; none: the data set's own")

    snapshots: int = Field(
        0, ge=0, le=200, description="how often, evenly spaced, the run also certifies the network as it then is"
    )
    threats: int = Field(
        0, ge=0, le=200, description="how often, evenly spaced, the run notes which class threatens its training images"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")
    precision: Literal["float32", "tfloat32", "bfloat16", "auto"] = Field(
        "float32", description="arithmetic of the training step; tfloat32: of CUDA; auto: measured at the start"
    )
    layout: Literal["channels_last", "contiguous", "auto"] = Field(
        "channels_last", description="memory layout of images in training; auto: measured at the start"
    )
    compiled: bool | Literal["auto"] = Field(
        False, description="torch.compile the backbone; auto: measured at the start"
    )
    kernels: Literal["torch", "native", "auto"] = Field(
        "torch", description="native: convolutions of fewer products in C, other rounding; auto: measured at the start"
    )
    published: tuple[str, ...] = Field((), description="ids of the rows of published.csv that this run re-measures")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        lengths = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(lengths) != 1:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in lengths) or "none of them"
            raise ValueError(f"length of the run: give exactly one of steps, epochs, minutes (given: {given})")
        if Radius(self.radius).exact == 0:
            raise ValueError(f"radius={self.radius} with loss {self.loss!r}: must be > 0")
        if self.train_images is not None and self.train_images % (self.classes or 1):
            rule = f"must be a multiple of {self.classes}, so that every class has as many"
            raise ValueError(f"train_images={self.train_images} with {self.classes} classes: {rule}")
        if self.compiled is True and self.kernels == "native":
            raise ValueError(
                "compiled=True with kernels='native': torch.compile cannot trace them; keep one of the two"
            )
        self._check_loss()
        self._check_optimizer()
        for key in ("lr_schedule", "radius_schedule", "robust_weight", "plain_weight", "exponent"):
            named = ("cosine", "constant_exp") if key == "lr_schedule" else ()
            if (text := getattr(self, key)) is not None and text not in named:
                try:
                    schedule(text, self.epochs)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
        p = schedule(self.exponent, self.epochs)
        if (least := min(p(share / 100) for share in range(101))) < 1:
            raise ValueError(f"exponent={self.exponent!r}: reaches p = {least:g}, must stay >= 1")
        return self

    def _check_optimizer(self) -> None:
        if self.optimizer == "muon" and (FAMILIES[self.family].norm == "linf" or self.lookahead):
            with_what = "lookahead=True" if self.lookahead else f"family {self.family!r}"
            raise ValueError(f"optimizer='muon' with {with_what}: only without lookahead, and for linear maps")

    def _check_loss(self) -> None:
        """A loss that trains for what the network can be certified by."""
        distances = FAMILIES[self.family].norm == "linf" and not self.mlp_width
        if self.loss.startswith("linf") and not distances:
            raise ValueError(
                f"loss={self.loss!r} with family {self.family!r}, mlp_width={self.mlp_width}: trains the distances of "
                "a linf_net without a dense head; use 'ibp' for intervals in l_inf"
            )
        if self.mlp_width and self.loss not in ("ibp", "cross_entropy"):
            raise ValueError(f"loss={self.loss!r} with mlp_width={self.mlp_width}: must be 'ibp' or 'cross_entropy'")
        if self.loss == "ibp" and (distances or self.family not in INTERVAL_FAMILIES):
            raise ValueError(
                f"loss='ibp' with family {self.family!r}: must be one of {', '.join(INTERVAL_FAMILIES)}; a linf_net "
                "needs mlp_width > 0, without it its margins say the same"
            )
        if self.threats and self.methods == ("interval",):
            raise ValueError(f"threats={self.threats} with loss {self.loss!r}: must be 0, intervals have no margins")

    @property
    def norm(self) -> str:
        """Of the perturbations that the run trains against and certifies: "l2" or "linf"."""
        return "linf" if self.loss == "ibp" else FAMILIES[self.family].norm

    @property
    def methods(self) -> tuple[str, ...]:
        """How its certificates are proven."""
        if self.loss == "ibp" or self.mlp_width:
            return ("interval",)
        return ("margin", "interval") if self.norm == "linf" else ("margin",)

    def digest(self) -> str:
        """Eight hexadecimal digits that change whenever a setting does (where it runs aside)."""
        settings = self.model_dump(mode="json", exclude={"device"})
        for key in _LATER:
            if settings[key] == TrainConfig.model_fields[key].default:
                del settings[key]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    def run_id(self) -> str:
        """`cifar10-liresnet-L6W64-emma-s0-1a2b3c4d`; `cifar100c20n5000-...` of 20 classes and 5,000 images."""
        data = self.dataset if self.classes is None else f"{self.dataset}c{self.classes}"
        data += "" if self.train_images is None else f"n{self.train_images}"
        size = f"{self.family}-L{self.depth}W{self.width}"  # the published GloRo nets are L2W16, L4W32, L6W32, L8W64
        return f"{data}-{size}-{self.loss}-s{self.seed}-{self.digest()}"

    def model(self, channels: int, size: int, classes: int) -> ModelConfig:
        """The network this run trains on square images of `size` pixels a side."""
        settings = self.model_dump(include=set(Architecture.model_fields))
        if self.dataset in PIXELS and FAMILIES[self.family].norm == "linf":
            settings["pixel_mean"], settings["pixel_std"] = PIXELS[self.dataset]
        return ModelConfig(**settings, channels=channels, input_size=size, classes=classes)

    def left_open(self) -> tuple[str, ...]:
        """What `lipcert.machine` is to choose: the settings of `MEASURED` that say "auto"."""
        return tuple(key for key in MEASURED if getattr(self, key) == "auto")

    def answers(self, asked: "TrainConfig") -> bool:
        """Whether a run of these settings is what `asked` wants: the same, except where that says "auto"."""
        return self.model_copy(update=dict.fromkeys(asked.left_open(), "auto")).run_id() == asked.run_id()

    def with_steps(self, steps: int) -> "TrainConfig":
        """The same run with its length pinned to `steps`."""
        return self.model_copy(update={"steps": steps, "epochs": None, "minutes": None})


# Settings of speed alone, which may be left to a measurement. None of them touches what is certified: the weights are
# float32 in any case.
MEASURED = ("precision", "layout", "compiled", "kernels")

# Mean of each channel and one deviation for all of them, in pixels: what the l_inf recipes take as the unit of weights.
PIXELS: dict[str, tuple[tuple[float, ...], float]] = {
    "mnist": ((0.1307,), 0.3081),
    "cifar10": ((0.4914, 0.4822, 0.4465), 0.2009),
    "cifar100": ((0.5071, 0.4867, 0.4408), 0.2667),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), 0.2276),
}

# Settings younger than the first published runs: hashed only where they are used, so that those runs keep their ids.
_LATER = (
    "activation", "centering", "tail_depth", "branch_scale", "init", "generated", "generated_ratio", "robust_weight",
    "plain_share", "radius_schedule", "augmentation", "keep", "mlp_width", "plain_weight", "exponent", "adam_eps",
    "scale_lr", "lp_decay", "layout", "momentum", "kernels", "norm_method",
    "snapshots", "threats", "train_images",
)  # fmt: skip


def config_from(namespace: dict[str, Any], **extra: type) -> tuple[TrainConfig, dict[str, Any]]:
    """A `TrainConfig` from a notebook's variables: `config, options = config_from(globals(), resume=bool)`.

    Takes every plain value defined so far, so that a misspelt `-p dpeth 12`, which papermill only warns about, is
    refused here. `minutes` or `steps`, when given, take the place of the default `epochs`.

    Args:
        namespace: `globals()` of the notebook, before anything but its parameters is defined.
        extra: names and types of parameters that are not settings of the run.

    Returns:
        The settings, and the values of `extra`.

    Raises:
        ConfigError: as `parse`; also for an extra parameter of another type.
    """
    settings, options = plain_values(namespace), {}
    for name, kind in extra.items():
        options[name] = settings.pop(name, None)
        if type(options[name]) is not kind:
            raise ConfigError(f"{name}={options[name]!r}: must be {kind.__name__}")
    if settings.get("minutes") is not None or settings.get("steps") is not None:
        settings.pop("epochs", None)
    try:
        return parse(TrainConfig, settings), options
    except ConfigError as error:
        known = "".join(f"  {name}: {kind.__name__}; of the notebook\n" for name, kind in extra.items())
        raise ConfigError(f"{error}\n{known}".rstrip()) from None


def load_config(path: str | Path, /, **overrides: Any) -> TrainConfig:
    """A `TrainConfig` from a YAML file of literals, or from a run record, with overrides.

    Raises:
        ConfigError: not a mapping of known keys with allowed values; names the file.
    """
    try:
        settings = read_yaml(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path}: must be a mapping of parameter names to values")
    if {"schema", "config"} <= settings.keys():  # a run record: its settings repeat the run
        settings = settings["config"]
    try:
        return parse(TrainConfig, settings | overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def steps_of(config: TrainConfig, images: int) -> int:
    """Optimiser steps of a run over `images` training images; the last, incomplete batch of an epoch is not used.

    Raises:
        ConfigError: the length is in minutes, which only a measurement turns into steps.
    """
    if config.steps is not None:
        return config.steps
    if config.epochs is None:
        raise ConfigError(f"minutes={config.minutes}: measure first; lipcert.train.fit does")
    per_epoch = max(images // config.batch, 1)
    return max(1, math.ceil(config.epochs * per_epoch))
