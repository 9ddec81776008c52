"""What a falsification says, as a validated record: JSON under results/attacks, tables in the book."""

import hashlib
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lipcert.record import Provenance
from lipcert.report.tables import DATASETS, Markdown, down, duration, table

TITLES = {
    "inside": "PGD in the certified ball", "pgd": "PGD", "apgd": "APGD", "fab": "FAB", "deepfool": "DeepFool",
    "rounding": "rounding search",
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Violation(_Part):
    """A point at most the certified radius from its image at which the executed network answers otherwise."""

    attack: str = Field(description="name of the attack that found it")
    executed: Literal["float64", "float32"] = Field(description="arithmetic in which the answer changed")
    image: int = Field(ge=0, description="place of the image among those attacked, from 0")
    prediction: int = Field(ge=0, description="certified class")
    found: int = Field(ge=0, description="executed class at the witness")
    radius: float = Field(gt=0, description="certified radius")
    distance: float = Field(ge=0, description="l2 distance of the witness, rounded up")
    witness: tuple[float, ...] = Field(description="the point, pixels in the order C, H, W; exact float64")


class AttackResult(_Part):
    """One attack on some of the certified images; distances are to the closest changed point found."""

    name: str = Field(description="inside, pgd, apgd, fab, deepfool or rounding")
    settings: dict[str, Any] = Field(description="every setting of the attack")
    executed: Literal["float64", "float32"] = Field(description="arithmetic in which a success was verified")
    images: int = Field(ge=1, description="certified images attacked")
    found: int = Field(ge=0, description="images for which a changed point was found, at any distance it looked at")
    violations: int = Field(ge=0, description="images with a changed point within the certified radius")
    min_ratio: float | None = Field(description="smallest distance / certified radius; null when nothing was found")
    median_ratio: float | None = Field(
        description="median distance / certified radius, images without a find counting as infinitely far; null if so"
    )
    min_distance: float | None = Field(description="smallest distance; null when nothing was found")
    ratios: tuple[float | None, ...] = Field(
        description="distance / certified radius per image, null: nothing found; empty for `inside`"
    )
    seconds: float = Field(ge=0, description="wall time")

    @model_validator(mode="after")
    def _counts(self) -> "AttackResult":
        if not self.violations <= self.found <= self.images:
            raise ValueError(
                f"violations={self.violations}, found={self.found}, images={self.images}: must be in ascending order"
            )
        return self


class Falsification(_Part):
    """What attacks found around certified images. It can refute certificates; it proves nothing."""

    model: str | None = Field(None, description="name of the network; null when it was given as an object")
    model_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights: names, shapes, types, bytes")
    dataset: str | None = Field(None, description="name of the data set; null when images were given as an array")
    images_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the images as float64, in order")
    images: int = Field(ge=0, description="images given")
    start: int = Field(0, ge=0, description="place of the first image in the test set, where a data set is named")
    abstained: int = Field(ge=0, description="images skipped: nothing is certified there (abstained or radius 0)")
    guarantee: str = Field(description="of the certificates")
    arithmetic: Literal["float64", "float32"] = Field(description="of the certificates: what a violation must break")
    effort: str = Field(description="of the bounds behind the certificates")
    seed: int = Field(description="of everything random in the attacks")
    box: bool = Field(description="whether points were held to pixels of [0, 1]; a certificate holds without")
    attacks: tuple[AttackResult, ...] = Field(description="in the order they ran")
    violations: tuple[Violation, ...] = Field(
        description="certificates refuted, with witnesses, in the arithmetic they are for"
    )
    beyond: tuple[Violation, ...] = Field(
        (), description="the same in another arithmetic than the certificates': not refuted, but worth knowing"
    )
    seconds: float = Field(ge=0, description="wall time of all attacks")
    provenance: Provenance | None = Field(None, description="how it was run; null when called from Python")

    def record(self) -> dict[str, Any]:
        """JSON-able; `Falsification(**record)` gives the same object back, witnesses to the last bit."""
        return self.model_dump(mode="json")

    def table(self) -> Markdown:
        """One row per attack."""
        rows = [
            (
                TITLES.get(a.name, a.name) + ("" if a.executed == self.arithmetic else f", executed in {a.executed}"),
                f"{a.images:,}",
                a.violations,
                _ratio(a.min_ratio),
                _ratio(a.median_ratio),
                duration(a.seconds),
            )
            for a in self.attacks
        ]
        head = ("attack", "certified images", "inside the radius", "closest / radius", "median / radius", "time")
        return table(head, rows, right=(1, 2, 3, 4))

    def words(self) -> str:
        """The outcome in one paragraph."""
        where = f"{self.images - self.abstained:,} certified images"
        where += f" of {DATASETS.get(self.dataset, self.dataset)}" if self.dataset else ""
        skipped = f" {self.abstained:,} of {self.images:,} images were skipped: nothing is certified there."
        least = min((a.min_ratio for a in self.attacks if a.min_ratio is not None), default=None)
        closest = "" if least is None else f" The closest changed answer lies at {down(least, 2)} certified radii."
        broken = len({v.image for v in self.violations})
        outcome = f"{broken:,} certificates refuted" if broken else "No certificate refuted"
        others = len({v.image for v in self.beyond})
        elsewhere = f" In another arithmetic than certified, {others:,} answers change inside." if others else ""
        return f"{outcome} on {where}.{closest}{elsewhere}" + (skipped if self.abstained else "")


def _ratio(value: float | None) -> str:
    # Cut, so that a point just inside a radius never prints as lying on it.
    return "none found" if value is None else down(value, 3)


def ratios_of(distance_radius: list[tuple[float, float]]) -> tuple[list[float | None], float | None]:
    """Distance over radius per image (None: nothing found) and the median, None where it is infinite."""
    ratios = [d / r if math.isfinite(d) else math.inf for d, r in distance_radius]
    ranked = sorted(ratios)
    middle = (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2
    return [r if math.isfinite(r) else None for r in ratios], middle if math.isfinite(middle) else None


def images_sha256(images_BCHW) -> str:
    """SHA-256 of the images as float64 in C, H, W order."""
    return hashlib.sha256(images_BCHW.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()
