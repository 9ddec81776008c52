"""Times of a training step on this machine, kept in the user's cache folder: what `lipcert.machine` chooses from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field

from lipcert import __version__
from lipcert.config import MEASURED, TrainConfig
from lipcert.data import Dataset
from lipcert.device import pick_device
from lipcert.paths import cache_dir
from lipcert.provenance import hardware
from lipcert.stream import step_images

# Settings that do not change what a step costs. One that is missing here is measured for anew: slower, never wrong.
_FREE = {
    *MEASURED, "device", "seed", "class_seed", "train_images", "validation", "published", "steps", "epochs", "minutes",
    "lr", "lr_schedule", "lr_end", "warmup", "beta1", "beta2", "momentum", "adam_eps", "scale_lr", "weight_decay",
    "clip", "radius", "radius_start", "radius_end", "radius_ramp", "radius_schedule", "report_radii", "robust_weight",
    "plain_weight", "plain_share", "exponent", "generated", "generated_ratio",
}  # fmt: skip
_CLEAR = 1.03  # a candidate must be that much faster than a plainer one: noise alone should not decide


class Candidate(NamedTuple):
    """One way to compute a training step. CUDA graphs would be one more field, tried last as compilation is."""

    precision: str
    layout: str
    kernels: str = "torch"
    compiled: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> "Candidate":
        return cls(*(getattr(config, key) for key in cls._fields))

    @property
    def label(self) -> str:
        native = f" {self.kernels}" if self.kernels != "torch" else ""
        return f"{self.precision} {self.layout}{native}{' compiled' * self.compiled}"


class Timings(BaseModel):
    """What is known of one training step on one machine: an entry of the cache.

    Attributes:
        machine, shape: what the times depend on. seconds: per step, by the candidate's label. failed: candidates that
        raised, and what. compiling: seconds that a compiled candidate's first step took. measured: when, UTC.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    machine: dict[str, str | int]
    shape: dict[str, Any]
    seconds: dict[str, float] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)
    compiling: dict[str, float] = Field(default_factory=dict)
    measured: str = ""

    def of(self, candidate: Candidate) -> float:
        """Seconds per step."""
        return self.seconds[candidate.label]

    def knows(self, candidates: Sequence[Candidate]) -> bool:
        """Whether each of them was timed, or failed."""
        return all(c.label in self.seconds or c.label in self.failed for c in candidates)

    def fastest(self, candidates: Sequence[Candidate]) -> Candidate:
        """The fastest of those that were timed, or a plainer one, which stands earlier, that is as fast within 3 %."""
        timed = [c for c in candidates if c.label in self.seconds]
        limit = min(map(self.of, timed)) * _CLEAR
        return next(c for c in timed if self.of(c) <= limit)

    def same_step(self, other: "Timings") -> bool:
        return (self.machine, self.shape) == (other.machine, other.shape)

    def table(self) -> str:
        """What was timed, the fastest first, with steps per second and the ratio to the plainest."""
        network = "{family} L{depth} W{width}, {classes} classes, {channels} x {input_size} x {input_size} pixels, "
        step = "batch {batch}, {loss}, {optimizer}"
        lines = [(network + step).format(**self.shape) + f"; threads: {self.machine['threads']}; {self.measured}"]
        plainest = next(iter(self.seconds.values()), 1.0)
        for label, seconds in sorted(self.seconds.items(), key=lambda item: item[1]):
            compiling = f"  (compiles in {self.compiling[label]:.0f} s)" if label in self.compiling else ""
            lines.append(f"  {label:<36}{1 / seconds:>8.3g} steps/s {plainest / seconds:>7.2f}x{compiling}")
        return "\n".join([*lines, *(f"  {label:<36}left out: {why}" for label, why in self.failed.items())])


def blank_timings(config: TrainConfig, data: Dataset) -> Timings:
    """Nothing known yet about the step of a run, with torch's present number of threads."""
    shape = {
        **config.model_dump(mode="json", exclude=_FREE),
        **config.model(*data.shape[:2], data.classes).model_dump(mode="json"),
        "batch": sum(step_images(config, len(data.train.labels_N))),
    }  # fmt: skip
    return Timings(machine=machine_facts(pick_device(config.device)), shape=shape)


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """Device, processor, instructions, threads, accelerator, versions."""
    return {
        **hardware(device), "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
        "lipcert": __version__,
    }  # fmt: skip


def cache_path() -> Path:
    """The file of all timings."""
    return cache_dir() / "choices.json"


def cached_timings() -> list[Timings]:
    """All that is kept. What cannot be read counts as not measured."""
    try:
        entries = json.loads(cache_path().read_text())["timings"]
        return [entry for entry in map(_entry, entries) if entry is not None]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, RecursionError):  # RuntimeError: no home folder
        return []


def _entry(fields: Any) -> Timings | None:
    try:
        return Timings(**fields)
    except (ValueError, TypeError):
        return None


def keep_timings(timings: Timings) -> str | None:
    """Write them in place of older ones of the same step, atomically; why it was not possible, if it was not."""
    try:
        others = [entry for entry in cached_timings() if not entry.same_step(timings)]
        path = cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"timings": [t.model_dump() for t in (*others, timings)]}, indent=1) + "\n")
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None
