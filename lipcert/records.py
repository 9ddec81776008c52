"""Run records on disk, one JSON a run: write, read, find, publish. Everything the book shows is drawn from them."""

import functools
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from lipcert.paths import local_dir, results_dir
from lipcert.radius import Radius
from lipcert.record import Record

if TYPE_CHECKING:
    import pandas


class RecordError(ValueError):
    """A record that is missing, damaged or not fit for what was asked; names the file and the field."""


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
        return _record(Path(path).read_text())
    except FileNotFoundError:
        raise RecordError(f"no record at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a run record: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, p['loc']))}={p['input']!r:.80}: {p['msg']}" for p in error.errors()]
        raise RecordError(f"{path}: " + "; ".join(lines)) from None


@functools.lru_cache(maxsize=4096)
def _record(text: str) -> Record:
    """By content: a page of the book asks for all records dozens of times."""
    return Record(**json.loads(text))


def load_records(where: Literal["published", "local"] = "published") -> list[Record]:
    """All records of the study, or of your own runs, by id. A damaged one raises: nothing is left out silently."""
    folder = results_dir() if where == "published" else local_dir()
    return [read_record(path) for path in sorted((folder / "runs").glob("*.json"))]


def records_frame(where: Literal["published", "local"] = "published") -> "pandas.DataFrame":
    """All results as a pandas DataFrame: one row per run, radius and guarantee, accuracies as fractions.

    Columns: id, dataset, classes, family, depth, width, parameters, loss, seed, images_trained, split, images, clean,
    norm, radius (text), radius_float, method, guarantee, arithmetic, effort, certified_correct, vra, lipschitz_upper,
    lipschitz_estimate; the last two are NaN for networks that are certified by intervals alone.
    """
    import pandas

    rows = []
    for record in load_records(where):
        upper, estimate = (record.bounds.upper, record.bounds.estimate) if record.bounds else (math.nan, math.nan)
        for result in record.test.results if record.test else ():
            rows.append(
                {
                    "id": record.id, "dataset": record.data.name, "classes": record.data.classes,
                    "family": record.model.family, "depth": record.model.depth, "width": record.model.width,
                    "parameters": record.model.parameters, "loss": record.training.loss,
                    "seed": record.provenance.seed, "images_trained": record.training.images,
                    "split": record.test.split, "images": record.test.images, "clean": record.clean_accuracy(),
                    "norm": result.norm, "radius": result.radius, "radius_float": float(Radius(result.radius)),
                    "method": result.method, "guarantee": result.guarantee, "arithmetic": result.arithmetic,
                    "effort": result.effort, "certified_correct": result.certified_correct,
                    "vra": result.certified_correct / record.test.images,
                    "lipschitz_upper": upper, "lipschitz_estimate": estimate,
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
        model: also ship the network, as `results/models/<model>`; for small networks only. None: only if the
            published record of the same weights ships it already.
        brief: leave the per-image radii out (half a megabyte for 10,000 images); counts at every radius stay.

    Raises:
        RecordError: unknown run, one that was stopped, one measured on a validation split, or one whose code was
            not committed: its numbers could not be regenerated; a bundle to ship that is of some images only.
    """
    record, folder = find_record(run)
    if folder == results_dir():
        if model is not None:
            raise RecordError(f"run {record.id} is published already: run it again to ship its network as {model!r}")
        return folder / "runs" / f"{record.id}.json"
    if record.training.status == "stopped":
        raise RecordError(f"run {record.id} is stopped: only runs that finished or diverged are published")
    model = model or _shipped_as(record)
    if record.test is None and model is not None:
        raise RecordError(f"run {record.id} diverged: it has no network to ship as {model!r}")
    if record.config.validation:
        raise RecordError(f"run {record.id} was measured on the validation split: publish a run on the test set")
    if reason := record.not_committed():
        raise RecordError(f"run {record.id} {reason}")
    if model is not None and record.test.bundle:
        claims = folder / record.test.bundle / "certificate.json"
        if (images := json.loads(claims.read_text())["counts"]["images"]) != record.test.images:
            raise RecordError(
                f"{claims}: counts.images={images}: must be all {record.test.images} of the test split; certify again"
            )
    radii = None if brief or record.test is None else record.test.radii
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
    kept = {"model": record.model.model_copy(update={"file": shipped})}
    if record.test is not None:
        kept["test"] = record.test.model_copy(update={"bundle": bundle, "radii": radii})
    return write_record(record.model_copy(update=kept), results_dir())


def _shipped_as(record: Record) -> str | None:
    """The name under which the published record of this run ships the same weights."""
    path = results_dir() / "runs" / f"{record.id}.json"
    if not path.exists():
        return None
    there = read_record(path).model
    return Path(there.file).stem if there.file and there.weights_sha256 == record.model.weights_sha256 else None
