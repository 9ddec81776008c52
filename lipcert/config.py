"""Settings as frozen, typed values: an unknown or mistyped key is an error that lists the known ones.

`ModelConfig` names a network, `TrainConfig` a whole run. Both are plain literals on disk (YAML or a notebook's
`parameters` cell) and hash to the run's id, so two runs with one id had the same settings.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lipcert.families import FAMILIES, OPTIONAL
from lipcert.radius import Radius
from lipcert.schedules import schedule


def _radius_text(value: Any) -> str:
    return str(Radius(value))


def _number_or_text(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(value).removesuffix(".0") if number else value  # one text for 1 and 1.0: it goes into the run's id


RadiusText = Annotated[str, BeforeValidator(_radius_text)]
ScheduleText = Annotated[str, BeforeValidator(_number_or_text)]  # in the language of lipcert.schedules


class ConfigError(ValueError):
    """Settings that cannot be run; the message names every offending key, its value, the rule and the known keys."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, settings: Any) -> Any:
        # YAML and JSON know lists only.
        if not isinstance(settings, dict):
            return settings
        return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


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


class TrainConfig(Architecture):
    """One training run, complete: data, network, loss, schedule, arithmetic, seed.

    Exactly one of `steps`, `epochs` and `minutes` sets the length. `minutes` is measured once at the start, turned
    into `steps`, and only the steps are stored, so that a rerun from the record repeats the run exactly.
    """

    dataset: Literal["digits", "mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet"] = Field(
        "digits", description="data set"
    )
    classes: int | None = Field(None, ge=2, description="use a seeded subset of that many classes")
    class_seed: int = Field(2023, ge=0, description="seed of the class subset")
    validation: bool = Field(False, description="hold out a validation split and report on it, not on the test set")

    generated: str | None = Field(None, description="npz of generated images to train on as well")
    generated_ratio: float = Field(3.0, gt=0, le=100, description="generated images per real one in a step")

    loss: Literal["emma", "emma_fixed", "gloro", "trades_kl", "trades_ce", "cross_entropy"] = Field(
        "emma", description="training loss"
    )
    robust_weight: ScheduleText = Field("1", description="weight of the robust term of TRADES: number or schedule")
    plain_share: float = Field(0.0, ge=0, lt=1, description="share of the run, first, on plain cross-entropy")
    radius: RadiusText = Field("36/255", description="l2 radius to certify, in pixels of [0, 1]")
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

    optimizer: Literal["adam", "adamw", "nadam"] = Field("adamw", description="optimiser")
    lr: float = Field(4e-3, gt=0, le=10, description="peak learning rate")
    lr_schedule: ScheduleText = Field(
        "cosine", description="after the warm-up: cosine, constant_exp (half and half), or a schedule of factors of lr"
    )
    lr_end: float = Field(0.0, ge=0, le=1, description="final learning rate as a factor of lr")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run with a linearly growing learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="optimiser momentum")
    beta2: float = Field(0.98, ge=0, lt=1, description="optimiser second-moment decay")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    lookahead: bool = Field(False, description="Lookahead around the optimiser (alpha 0.5, every 6 steps)")
    clip: float = Field(3.0, gt=0, description="largest global gradient norm")
    power_steps: int = Field(3, ge=1, le=1000, description="warm-started power-method steps per training step")
    augmentation: Literal["crop", "gloro_cifar", "gloro_tiny", "randaugment", "imagenet", "imagenet_randaugment"] = (
        Field("crop", description="crop and flip, or a published recipe's own; see lipcert.data.batches")
    )
    crop: int | None = Field(None, ge=0, le=64, description="padding of the random crop; none: the data set's own")
    flip: bool | None = Field(None, description="random horizontal flip; none: the data set's own")

    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of the forward pass")
    compiled: bool = Field(False, description="torch.compile the backbone")
    published: tuple[str, ...] = Field((), description="ids of the rows of published.csv that this run re-measures")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        lengths = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(lengths) != 1:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in lengths) or "none of them"
            raise ValueError(f"length of the run: give exactly one of steps, epochs, minutes (given: {given})")
        if Radius(self.radius).exact == 0:
            raise ValueError(f"radius={self.radius} with loss {self.loss!r}: must be > 0")
        for key in ("lr_schedule", "radius_schedule", "robust_weight"):
            named = ("cosine", "constant_exp") if key == "lr_schedule" else ()
            if (text := getattr(self, key)) is not None and text not in named:
                try:
                    schedule(text, self.epochs)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
        return self

    def digest(self) -> str:
        """Eight hexadecimal digits that change whenever a setting does (where it runs aside)."""
        settings = self.model_dump(mode="json", exclude={"device"})
        for key in _LATER:
            if settings[key] == TrainConfig.model_fields[key].default:
                del settings[key]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    def run_id(self) -> str:
        """`cifar10-liresnet-L6W64-emma-s0-1a2b3c4d`."""
        data = self.dataset if self.classes is None else f"{self.dataset}c{self.classes}"
        size = f"{self.family}-L{self.depth}W{self.width}"  # the published GloRo nets are L2W16, L4W32, L6W32, L8W64
        return f"{data}-{size}-{self.loss}-s{self.seed}-{self.digest()}"

    def model(self, channels: int, size: int, classes: int) -> ModelConfig:
        """The network this run trains on square images of `size` pixels a side."""
        architecture = self.model_dump(include=set(Architecture.model_fields))
        return ModelConfig(**architecture, channels=channels, input_size=size, classes=classes)

    def with_steps(self, steps: int) -> "TrainConfig":
        """The same run with its length pinned to `steps`."""
        return self.model_copy(update={"steps": steps, "epochs": None, "minutes": None})


# Settings younger than the first published runs: hashed only where they are used, so that those runs keep their ids.
_LATER = (
    "activation", "centering", "tail_depth", "branch_scale", "init", "generated", "generated_ratio", "robust_weight",
    "plain_share", "radius_schedule", "augmentation",
)  # fmt: skip

_LIMITS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}


def describe(cls: type[Settings]) -> str:
    """Every known key with type, range, default and meaning: what error messages and `--help` print."""
    lines = []
    for name, schema in cls.model_json_schema()["properties"].items():
        options = schema.get("anyOf", [schema])
        kinds = [
            "|".join(map(str, o["enum"])) if "enum" in o else "none" if o.get("type") == "null" else o.get("type", "")
            for o in options
        ]
        bounds = [f"{sign} {o[key]}" for o in options for key, sign in _LIMITS.items() if key in o]
        default = "required" if "default" not in schema else f"default {schema['default']}"
        lines.append(
            f"  {name}: {' or '.join(kinds)}{' ' + ', '.join(bounds) if bounds else ''}; {default}; "
            f"{schema.get('description', '')}"
        )
    return "\n".join(lines)


def parse(cls: type[Settings], settings: dict[str, Any]) -> Any:
    """Checked settings from untrusted ones.

    Whole floats are not integers here and text is not a number: `depth=12.5`, `depth="twelve"` and `dpeth=12` are
    refused, each with its value, the rule and the list of known keys.

    Raises:
        ConfigError: with one line per offending key.
    """
    try:
        return cls(**settings)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"][:1]))
            if problem["type"] == "extra_forbidden":
                lines.append(f"{key}={problem['input']!r}: unknown parameter{_suggest(key, cls)}")
            elif key:
                lines.append(f"{key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
            else:
                lines.append(problem["msg"].removeprefix("Value error, "))
        message = "\n".join(lines) + f"\nKnown parameters:\n{describe(cls)}"
        raise ConfigError(message) from None


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


def plain_values(namespace: dict[str, Any]) -> dict[str, Any]:
    """The literals among a notebook's variables, IPython's own left out."""
    literals = (bool, int, float, str, list, tuple, dict, type(None))
    own = ("In", "Out")
    return {k: v for k, v in namespace.items() if not k.startswith("_") and k not in own and isinstance(v, literals)}


def _suggest(key: str, cls: type[Settings]) -> str:
    import difflib

    close = difflib.get_close_matches(key, cls.model_fields, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Loader(yaml.SafeLoader):
    """PyYAML with the numbers of YAML 1.2: `1e-3` is one, not text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Literals only, as `yaml.safe_load`."""
    return yaml.load(text, _Loader)


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
