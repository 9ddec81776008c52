"""The run record: one JSON a run, typed and validated; everything the book shows is drawn from these.

A record names its files (curve, per-image radii, network) by path relative to the folder it lies in:
`results/local` for your runs, `results` for the published ones.
"""

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lipcert.config import TrainConfig
from lipcert.paths import local_dir, results_dir
from lipcert.radius import Radius
from lipcert.settings import RadiusText

if TYPE_CHECKING:
    import pandas

SCHEMA = 1


class RecordError(ValueError):
    """A record that is missing, damaged or not fit for what was asked; names the file and the field."""


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


class Training(_Part):
    loss: str = Field(description="training loss")
    status: Literal["finished", "stopped"] = Field(description="stopped: interrupted before its last step, not tested")
    batch: int = Field(ge=1, description="images per step, generated ones included")
    steps: int = Field(ge=0, description="optimiser steps done")
    images: int = Field(ge=0, description="steps x batch")
    seconds: float = Field(ge=0, description="wall time of the training steps, over all sessions of the run")
    images_per_second: float = Field(ge=0, description="images / seconds")
    peak_memory_bytes: int | None = Field(description="largest allocation on the accelerator; null on a CPU")
    choices: Choices
    curve: str | None = Field(description="training curve, CSV")
    snapshots: tuple[Snapshot, ...] = Field((), description="certified on the way, in order")

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
    """Where the certificates of a run come from, when they were made again after it."""

    command: str = Field(description="what was run")
    commit: str | None = Field(description="git commit; null outside a repository")
    dirty: bool | None = Field(description="lipcert/, notebooks/, pyproject.toml or constraints.txt differ from it")
    versions: dict[str, str] = Field(description="Python and the packages that can change a number")
    hardware: dict[str, str | int] = Field(description="device, processor, cores, threads, accelerator")
    finished: str = Field(description="UTC time, ISO 8601")


class Test(_Part):
    split: Literal["test", "validation"] = Field(description="which images; validation runs are never published")
    images: int = Field(ge=1, description="number of images")
    clean: int = Field(ge=0, description="correctly classified, without any perturbation")
    seconds: float = Field(ge=0, description="wall time of bounding and certifying")
    radii: str | None = Field(description="per-image label, prediction, runner-up and radius, CSV")
    results: tuple[Result, ...] = Field(description="one entry per radius, guarantee and arithmetic")
    bundle: str | None = Field(None, description="folder of the certificate bundle; null when not kept")
    certified: Certified | None = Field(None, description="null where the run itself certified; see provenance")

    @model_validator(mode="after")
    def _counts(self) -> "Test":
        for result in self.results:
            # An estimate may claim a tie away; a certificate never holds for more images than are right.
            if result.certified_correct > self.clean:
                raise ValueError(f"certified_correct={result.certified_correct}: must be at most clean={self.clean}")
        if self.clean > self.images:
            raise ValueError(f"clean={self.clean}: must be at most images={self.images}")
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


def write_record(record: Record, folder: Path | None = None) -> Path:
    """Write `folder/runs/<id>.json` atomically (default: `results/local`) and return its path."""
    path = (folder or local_dir()) / "runs" / f"{record.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    os.replace(partial, path)
    return path


def read_record(path: str | Path) -> Record:
    """A validated record. Raises RecordError naming file, field, value and rule."""
    try:
        return Record(**json.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise RecordError(f"no record at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a run record: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, p['loc']))}={p['input']!r:.80}: {p['msg']}" for p in error.errors()]
        raise RecordError(f"{path}: " + "; ".join(lines)) from None


def load_records(where: Literal["published", "local"] = "published") -> list[Record]:
    """All records of the study, or of your own runs, by id. A damaged one raises: nothing is left out silently."""
    folder = results_dir() if where == "published" else local_dir()
    return [read_record(path) for path in sorted((folder / "runs").glob("*.json"))]


def records_frame(where: Literal["published", "local"] = "published") -> "pandas.DataFrame":
    """All results as a pandas DataFrame: one row per run, radius and guarantee, accuracies as fractions.

    Columns: id, dataset, classes, family, depth, width, parameters, loss, seed, images_trained, split, images, clean,
    norm, radius (text), radius_float, guarantee, arithmetic, effort, certified_correct, vra, lipschitz_upper,
    lipschitz_estimate.
    """
    import pandas

    rows = []
    for record in load_records(where):
        for result in record.test.results if record.test else ():
            rows.append(
                {
                    "id": record.id, "dataset": record.data.name, "classes": record.data.classes,
                    "family": record.model.family, "depth": record.model.depth, "width": record.model.width,
                    "parameters": record.model.parameters, "loss": record.training.loss,
                    "seed": record.provenance.seed, "images_trained": record.training.images,
                    "split": record.test.split, "images": record.test.images, "clean": record.clean_accuracy(),
                    "norm": result.norm, "radius": result.radius, "radius_float": float(Radius(result.radius)),
                    "guarantee": result.guarantee, "arithmetic": result.arithmetic,
                    "effort": result.effort, "certified_correct": result.certified_correct,
                    "vra": result.certified_correct / record.test.images,
                    "lipschitz_upper": record.bounds.upper, "lipschitz_estimate": record.bounds.estimate,
                }
            )  # fmt: skip
    return pandas.DataFrame(rows)


def has_finished_record(run_id: str) -> bool:
    """Whether one of your runs of this id is finished: a later, stopped rerun must not take its place."""
    path = local_dir() / "runs" / f"{run_id}.json"
    return path.exists() and read_record(path).training.status == "finished"


def find_record(run: str) -> tuple[Record, Path]:
    """A record by id or unique beginning of one, among your runs first, and the folder its files lie in.

    Raises:
        RecordError: none or several match; lists what there is.
    """
    for folder in (local_dir(), results_dir()):
        matches = [p for p in sorted((folder / "runs").glob("*.json")) if p.stem.startswith(run)]
        exact = [p for p in matches if p.stem == run]
        if len(exact or matches) == 1:
            return read_record((exact or matches)[0]), folder
        if matches:
            raise RecordError(f"run {run!r} fits several: {', '.join(p.stem for p in matches)}")
    known = [p.stem for f in (local_dir(), results_dir()) for p in sorted((f / "runs").glob("*.json"))]
    raise RecordError(f"no run {run!r}; there are: {', '.join(known) or 'none'}")


def publish(run: str, model: str | None = None, brief: bool = False) -> Path:
    """Copy one of your runs, with curve and per-image radii, to `results/`, where the study's tables come from.

    Args:
        run: id or its unique beginning.
        model: also ship the network, as `results/models/<model>`; for small networks only.
        brief: leave the per-image radii out (half a megabyte for 10,000 images); counts at every radius stay.

    Raises:
        RecordError: unknown run, one that did not finish, one measured on a validation split, or one whose code was
            not committed: its numbers could not be regenerated; a bundle to ship that is of some images only.
    """
    record, folder = find_record(run)
    if folder == results_dir():
        if model is not None:
            raise RecordError(f"run {record.id} is published already: run it again to ship its network as {model!r}")
        return folder / "runs" / f"{record.id}.json"
    if record.training.status != "finished" or record.test is None:
        raise RecordError(f"run {record.id} is {record.training.status}: only finished runs are published")
    if record.test.split != "test":
        raise RecordError(
            f"run {record.id} was measured on the {record.test.split} split: publish a run on the test set"
        )
    if reason := record.not_committed():
        raise RecordError(f"run {record.id} {reason}")
    if model is not None and record.test.bundle:
        claims = folder / record.test.bundle / "certificate.json"
        if (images := json.loads(claims.read_text())["counts"]["images"]) != record.test.images:
            raise RecordError(
                f"{claims}: counts.images={images}: must be all {record.test.images} of the test split; certify again"
            )
    radii = None if brief else record.test.radii
    for name in (record.training.curve, radii):
        if name:
            target = results_dir() / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
    shipped = bundle = None
    if model is not None:
        if record.test.bundle:
            bundle = f"certificates/{model}"
            shutil.copytree(folder / record.test.bundle, results_dir() / bundle, dirs_exist_ok=True)
        shipped = f"models/{model}.safetensors"
        source, target = folder / record.model.file, results_dir() / shipped
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        shutil.copyfile(source.with_suffix(".json"), target.with_suffix(".json"))
    kept = {
        "model": record.model.model_copy(update={"file": shipped}),
        "test": record.test.model_copy(update={"bundle": bundle, "radii": radii}),
    }
    return write_record(record.model_copy(update=kept), results_dir())
