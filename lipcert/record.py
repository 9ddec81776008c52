"""What a run record holds: typed, validated, one class a part. `lipcert.records` reads and writes them.

A record names its files (curve, per-image radii, network) by path relative to the folder it lies in:
`results/local` for your runs, `results` for the published ones. Fields that came later have a default, so that older
records stay readable.
"""

import itertools
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lipcert.config import TrainConfig
from lipcert.radius import Radius
from lipcert.settings import RadiusText

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Part):
    name: str = Field(description="data set")
    classes: int = Field(ge=2, description="number of classes used")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$", description="of images (imagenet: file names, sizes), labels, split and classes"
    )
    train: int = Field(ge=1, description="training images")
    validation: int = Field(ge=0, description="images held out of the training set")
    test: int = Field(ge=1, description="test images")
    generated: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="sha256 of the file of generated images trained on; null without"
    )


class Model(_Part):
    family: str = Field(description="network family")
    depth: int = Field(description="blocks; gloro: convolutions")
    width: int = Field(description="channels of the blocks, or of the first stage")
    parameters: int = Field(ge=1, description="trained parameters")
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the materialised float32 weights")
    file: str | None = Field(description="the plain network, safetensors; null when not kept")


class Choices(_Part):
    precision: str = Field(description="arithmetic of the training step: forward pass and its gradient")
    layout: str = Field(description="memory layout of images")
    compiled: bool = Field(description="whether the backbone went through torch.compile")
    kernels: str | None = Field(
        None,
        description="what computed distances or convolutions (native, torch, triton); null: torch, in older records",
    )
    measured: dict[str, float] | None = Field(
        None, description="seconds per step of every candidate where `auto` chose; null where the settings were given"
    )


class Snapshot(_Part):
    """The network somewhere on the way, certified as at the end; nothing is chosen by it."""

    images: int = Field(ge=1, description="seen until then")
    seconds: float = Field(ge=0, description="of training until then")
    clean: int = Field(ge=0, description="test images correctly classified")
    certified_correct: int = Field(ge=0, description="and certified at the run's radius, executed in float64")
    upper: float | None = Field(description="proven constant of the backbone; null where certified by intervals")


class Threat(_Part):
    """Which class threatens each of a sample of training images, now and at the note before (`lipcert.threats`)."""

    images: int = Field(ge=1, description="seen until then")
    sample: int = Field(ge=1, description="training images looked at, the same at every note, not augmented")
    changed: int | None = Field(ge=0, description="whose highest wrong class is another one than a note before")
    changed_nearest: int | None = Field(ge=0, description="whose nearest boundary is with another class; null at first")
    right: int = Field(ge=0, description="correctly classified")
    certified_estimated: int = Field(ge=0, description="and farther from every boundary than the radius, by estimate")

    @model_validator(mode="after")
    def _counts(self) -> "Threat":
        counts = (self.certified_estimated, self.right, self.changed or 0, self.changed_nearest or 0)
        if max(counts) > self.sample or self.certified_estimated > self.right:
            raise ValueError(f"counts {counts}: at most sample={self.sample}, the first at most the second")
        return self


class Training(_Part):
    loss: str = Field(description="training loss")
    status: Literal["finished", "stopped", "diverged"] = Field(
        description="stopped: interrupted before its last step; diverged: its loss is not finite; neither is tested"
    )
    batch: int = Field(ge=1, description="images per step, generated ones included")
    steps: int = Field(ge=0, description="optimiser steps done")
    images: int = Field(ge=0, description="steps x batch")
    seconds: float = Field(ge=0, description="wall time of the training steps, over all sessions of the run")
    images_per_second: float = Field(ge=0, description="images / seconds")
    peak_memory_bytes: int | None = Field(
        description="largest allocation on the accelerator while training; null on a CPU"
    )
    choices: Choices
    curve: str | None = Field(description="training curve, CSV")
    snapshots: tuple[Snapshot, ...] = Field((), description="certified on the way, in order")
    threats: tuple[Threat, ...] = Field((), description="which classes threaten, noted on the way and at the end")

    @model_validator(mode="after")
    def _images(self) -> "Training":
        if self.images != self.steps * self.batch:
            raise ValueError(f"images={self.images}: must be steps x batch = {self.steps * self.batch}")
        return self


class Result(_Part):
    norm: Literal["l2", "linf"] = Field(description="norm of the perturbation")
    radius: RadiusText = Field(description="exact, in pixels of [0, 1]")
    method: Literal["margin", "interval"] = Field(description="how radii were proven: margins, or intervals")
    effort: Literal["fast", "tight", "exact"] | None = Field(description="of the bounds; null for estimated")
    guarantee: Literal["estimated", "nominal", "real", "executed"] = Field(description="what the count is worth")
    arithmetic: str = Field(description="of the logits")
    certified_correct: int = Field(ge=0, description="images both correctly classified and certified")


class Certified(_Part):
    """Where the certificates of a run come from, when they were made again after it or on another machine."""

    command: str = Field(description="what was run")
    commit: str | None = Field(description="git commit; null outside a repository")
    dirty: bool | None = Field(description="lipcert/, notebooks/, pyproject.toml or constraints.txt differ from it")
    versions: dict[str, str] = Field(description="Python and the packages that can change a number")
    hardware: dict[str, str | int] = Field(description="device, processor, cores, threads, accelerator")
    finished: str = Field(description="UTC time, ISO 8601")


class Margins(_Part):
    """How far the images lie from the boundaries of their label. No certificate: see `lipcert.margin_statistics`.

    The distance of an image of label y from class j is (z_y - z_j) / K_yj, with proven constants K but in float64 to
    nearest, and without what rounding does to the logits.
    """

    quantiles: tuple[float, ...] = Field(
        min_length=21,
        max_length=21,
        description="of the images' distance from the nearest boundary of their label, in pixels, at 0, 5, ..., 100 %; "
        "negative where misclassified; not a certificate: rounding is ignored",
    )
    threatening: tuple[int, ...] = Field(
        min_length=11,
        max_length=11,
        description="correctly classified images with 0, 1, ..., 9, 10 or more classes whose boundary is nearer than "
        "the run's radius; not a certificate",
    )
    spread: float = Field(
        ge=1,
        description="how many classes are in effect the nearest to images of one label: exp(entropy), mean over labels",
    )
    lipschitz: tuple[float, ...] = Field(
        min_length=5,
        max_length=5,
        description="proven constants K_ij of the margins of two classes, at 0, 25, 50, 75, 100 % of all pairs",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Margins":
        for name in ("quantiles", "lipschitz"):
            if list(values := getattr(self, name)) != sorted(values):
                raise ValueError(f"{name}={values}: must ascend")
        if min(self.threatening) < 0:
            raise ValueError(f"threatening={self.threatening}: must be counts of images")
        return self


class Test(_Part):
    split: Literal["test", "validation"] = Field(description="which images; validation runs are never published")
    images: int = Field(ge=1, description="number of images")
    clean: int = Field(ge=0, description="correctly classified, without any perturbation")
    seconds: float = Field(ge=0, description="wall time of bounding and certifying")
    radii: str | None = Field(description="per-image label, prediction, runner-up and radius, CSV")
    results: tuple[Result, ...] = Field(description="one entry per radius, guarantee and arithmetic")
    bundle: str | None = Field(None, description="folder of the certificate bundle; null when not kept")
    certified: Certified | None = Field(None, description="null where what trained also certified; see provenance")
    margins: Margins | None = Field(
        None, description="distances from class boundaries; null in l_inf, with intervals and in older records"
    )

    @model_validator(mode="after")
    def _counts(self) -> "Test":
        for result in self.results:
            # An estimate may claim a tie away; a certificate never holds for more images than are right.
            if result.certified_correct > self.clean:
                raise ValueError(f"certified_correct={result.certified_correct}: must be at most clean={self.clean}")
        if self.clean > self.images:
            raise ValueError(f"clean={self.clean}: must be at most images={self.images}")
        if self.margins is not None and (counted := sum(self.margins.threatening)) != self.clean:
            raise ValueError(f"margins.threatening counts {counted} images: must be clean={self.clean}")
        return self


class Layer(_Part):
    name: str = Field(description="place in the chain")
    kind: str = Field(description="class of the layer")
    lower: float = Field(ge=0, description="proven lower end of the norm")
    upper: float = Field(ge=0, description="proven upper end of the norm")
    estimate: float = Field(ge=0, description="power method, 500 steps")
    method: str = Field(description="how the upper end was proven")


class Bounds(_Part):
    effort: Literal["fast", "tight", "exact"] = Field(description="how hard the bounds were sharpened")
    estimate: float = Field(description="product of the layers' power-method estimates (backbone)")
    upper: float = Field(description="product of the layers' upper ends, rounded up (backbone)")
    lower: float = Field(description="product of the layers' lower ends, rounded down (backbone)")
    layers: tuple[Layer, ...]

    @model_validator(mode="after")
    def _enclosure(self) -> "Bounds":
        for part in (self, *self.layers):
            if not part.lower <= part.upper:
                raise ValueError(f"lower={part.lower}: must be at most upper={part.upper}")
        return self


class Provenance(_Part):
    command: str = Field(description="what was run")
    seed: int = Field(description="seed of everything random")
    commit: str | None = Field(description="git commit when the run began; null outside a repository")
    dirty: bool | None = Field(description="lipcert/, notebooks/, pyproject.toml or constraints.txt differ from it")
    versions: dict[str, str] = Field(description="Python and the packages that can change a number")
    hardware: dict[str, str | int] = Field(description="device, processor, cores, threads, accelerator")
    finished: str = Field(description="UTC time, ISO 8601")


class Record(_Part):
    """One run. Counts of images are integers, so that VRA is exact; null means not computed."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema", description="version of this schema")
    id: str = Field(
        pattern=r"^[a-z0-9][A-Za-z0-9_.-]*$", description="data set, network, loss, seed and a digest of all settings"
    )
    published: tuple[str, ...] = Field(description="ids of the rows of published.csv that the run re-measures")
    config: TrainConfig = Field(description="the whole run; see the settings below")
    data: Data
    model: Model
    training: Training
    test: Test | None = Field(description="null for a run that was stopped")
    bounds: Bounds | None = Field(description="null for a run that was stopped")
    provenance: Provenance

    @model_validator(mode="after")
    def _one_story(self) -> "Record":
        if (self.training.status == "finished") != (self.test is not None):
            rule = "given" if self.test is None else "null"
            raise ValueError(f"status={self.training.status!r}: test must be {rule}")
        margins = self.test is not None and any(result.method == "margin" for result in self.test.results)
        if margins != (self.bounds is not None):
            raise ValueError("bounds: must be given with certificates by margins, and null without")
        if self.test is not None:
            split = getattr(self.data, self.test.split)
            if self.test.images != split:
                raise ValueError(f"test.images={self.test.images}: must be the {self.test.split} split's {split}")
        return self

    def result(
        self,
        radius: "Radius | str",
        guarantee: str | None = None,
        arithmetic: str = "float64",
        method: str | None = None,
    ) -> Result | None:
        """The result at a radius: the strongest guarantee present, or the one named (`"estimated"` only by name).

        Where both methods were run it is that by intervals, which proves at least as much, unless one is named.
        """
        order = [guarantee] if guarantee else ["executed", "real", "nominal"]
        methods = [method] if method else ["interval", "margin"]
        for wanted in itertools.product(order, methods):
            for result in self.test.results if self.test else ():
                found = (result.guarantee, result.method)
                same = result.arithmetic == arithmetic and Radius(result.radius) == Radius(radius)
                if found == wanted and same:
                    return result
        return None

    def vra(self, radius: "Radius | str", guarantee: str | None = None) -> float:
        """Verified-robust accuracy at a radius as a fraction; NaN where it was not measured."""
        result = self.result(radius, guarantee)
        return result.certified_correct / self.test.images if result else math.nan

    def clean_accuracy(self) -> float:
        """Clean accuracy as a fraction; NaN where it was not measured."""
        return self.test.clean / self.test.images if self.test else math.nan

    def not_committed(self) -> str | None:
        """Why its code keeps it from being published, as the end of a sentence; None where nothing does."""
        for part in (self.provenance, self.test and self.test.certified):
            if part is not None and part.dirty is not False:
                return f"has dirty={part.dirty}: commit the code, run again, then publish"
        return None
