"""The record schema as tables, drawn from the pydantic models themselves so that page and code cannot disagree."""

import csv
import json
import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel

from lipcert.config import TrainConfig
from lipcert.record import Record
from lipcert.report.published import published_path
from lipcert.report.tables import Markdown, study_records, table

CURVE_COLUMNS = {
    "step": "optimiser steps done",
    "images": "images seen",
    "seconds": "wall time of training so far, s",
    "learning_rate": "at this step",
    "radius_train": "radius in the loss at this step, pixels in [0, 1]",
    "loss": "mean over the interval's batches",
    "train_accuracy": "fraction right, over the interval's batches",
    "train_vra_estimated": "fraction right and estimated robust at `radius_train`, over the interval's batches",
    "lipschitz_estimate": "power-method estimate of the backbone's constant",
    "gradient_norm": "before clipping, mean over the interval's steps; not in older records",
}
RADII_COLUMNS = {
    "index": "number of the image in its data set",
    "label": "true class",
    "prediction": "class answered; -1 where nothing can be promised",
    "runner_up": "class that limits the radius; -1 where nothing can be promised",
    "radius": "proven ℓ₂ radius, rounded down, pixels in [0, 1]",
    "radius_estimated": "the same formula on power-method estimates; no certificate",
}
PUBLISHED_COLUMNS = {
    "id": "stable name, which presets and records refer to",
    "paper": "authors and work",
    "year": "of publication",
    "model": "as the source names it",
    "parameters_millions": "trained parameters, millions; empty where unknown",
    "dataset": "data set",
    "classes": "number of classes",
    "extra_data": "data beyond the training set: none, ddpm, edm, generated",
    "norm": "l2 or linf; empty for clean accuracy",
    "radius": "pixels in [0, 1]; 0 for clean accuracy",
    "metric": "vra, clean, pgd or autoattack",
    "value_percent": "per cent, as printed",
    "evidence": "authors_statement, official_repository, third_party_quote or unverified_recollection",
    "note": "what else is known",
}


def field_table() -> Markdown:
    """Every field of a run record with type and meaning."""
    rows = [(f"`{name}`", kind, meaning) for name, kind, meaning in record_fields(Record)]
    return table(("field", "type", "meaning"), rows)


def settings_table() -> Markdown:
    """Every setting of a run (the record's `config`) with type, default and meaning."""
    rows = []
    for name, field in TrainConfig.model_fields.items():
        default = "none" if field.default is None else f"`{json.dumps(field.default)}`"
        rows.append((f"`{name}`", _kind(field.annotation), default, field.description or ""))
    return table(("setting", "type", "default", "meaning"), rows)


def columns_table(columns: dict[str, str]) -> Markdown:
    """Columns of a CSV file and what they hold."""
    return table(("column", "meaning, unit"), [(f"`{name}`", meaning) for name, meaning in columns.items()])


def record_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, type and meaning of every field, depth first; `config` is left to `settings_table`."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        part = next((p for p in _parts(field.annotation) if issubclass(p, BaseModel) and p is not TrainConfig), None)
        meaning = field.description or ""
        if part is None or meaning:
            yield path, _kind(field.annotation), meaning
        if part is not None:
            yield from record_fields(part, f"{path}.")


def _parts(annotation: object) -> list[type]:
    inside = [a for a in typing.get_args(annotation) if isinstance(a, type)]
    return [annotation, *inside] if isinstance(annotation, type) and not typing.get_args(annotation) else inside


def _kind(annotation: object) -> str:
    """A type in words: `whole number`, `text or null`, `one of l2, linf`."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}
    if annotation in words:
        return words[annotation]
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"{'one of ' if len(inside) > 1 else ''}{', '.join(map(str, inside))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(a) for a in inside)
    if origin is tuple:
        return f"list of {_kind(inside[0])}"
    if origin is dict:
        return f"names to {_kind(inside[1])}"
    if origin is typing.Annotated:
        return _kind(inside[0])
    return "object"


def example_record() -> Markdown:
    """A published record as it lies on disk, layers and settings cut short."""
    records = study_records()
    if not records:
        return Markdown("No run has been published yet.")
    shown = records[0].model_dump(mode="json", by_alias=True)
    shown["config"] = {**dict(list(shown["config"].items())[:4]), "...": "all settings"}
    if shown["bounds"]:
        shown["bounds"]["layers"] = [*shown["bounds"]["layers"][:1], {"...": "one entry per layer"}]
    return Markdown(f"```json\n{json.dumps(shown, indent=1, ensure_ascii=False)}\n```")


def published_columns() -> list[str]:
    """Header of published.csv."""
    with open(published_path(), newline="") as file:
        return next(csv.reader(file))


def readme() -> str:
    """The tables of results/README.md, between its two marks."""
    parts = (
        ("Run record", field_table()),
        ("Settings (`config` of the record)", settings_table()),
        ("Training curve", columns_table(CURVE_COLUMNS)),
        ("Per-image radii", columns_table(RADII_COLUMNS)),
        ("Published numbers", columns_table(PUBLISHED_COLUMNS)),
    )
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts)
