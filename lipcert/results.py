"""What a run found, as the parts of its record and the files beside it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lipcert.certify import Certificates, certified_correct
from lipcert.data import Split
from lipcert.linf import kernels
from lipcert.margin_statistics import counts_up_to, effective_rivals, nearest_boundaries, pair_constants, quantiles
from lipcert.radius import Radius
from lipcert.record import Bounds, Choices, Layer, Margins, Result, Snapshot, Test, Threat, Training
from lipcert.run import Run

RADII_FIELDS = ("index", "label", "prediction", "runner_up", "radius", "radius_estimated")


def test_part(
    certificates: Sequence[Certificates],
    split: Split,
    split_name: str,
    radii: tuple[str, ...],
    seconds: float,
    file: str | None,
    bundle: str | None,
) -> Test:
    """Counts at every radius: what the power method would have claimed, then every guarantee and arithmetic.

    radii: the run's own first.
    """
    labels_N, first = split.labels_N, certificates[0]
    results = []
    for radius in dict.fromkeys(map(Radius, radii)):
        claims = [(c, c.radius_B, c.guarantee, c.effort) for c in certificates]
        if first.norm == "l2":  # a constant of 1 by construction leaves nothing to estimate
            claims.append((first, first.estimated_radius_B, "estimated", None))
        for found, radius_N, guarantee, effort in claims:
            results.append(
                Result(
                    norm=found.norm,
                    radius=str(radius),
                    method=found.method,
                    effort=effort,
                    guarantee=guarantee,
                    arithmetic=found.arithmetic,
                    certified_correct=certified_correct(found.prediction_B, radius_N, labels_N, radius),
                )
            )
    return Test(
        split=split_name,
        images=len(labels_N),
        clean=int((first.prediction_B == labels_N).sum()),
        seconds=round(seconds, 3),
        radii=file,
        results=tuple(results),
        bundle=bundle,
        margins=margins_part(first, labels_N, radii[0]),
    )


def margins_part(certificates: Certificates, labels_N: Tensor, radius: str) -> Margins | None:
    """Distances from class boundaries by the logits that were certified; None unless by *nominal* margins in l2.

    None too where a distance or a constant is not finite: JSON has no such numbers, and the run's counts say enough.
    """
    if (certificates.norm, certificates.method, certificates.guarantee) != ("l2", "margin", "nominal"):
        return None
    margin_lipschitz_KK = certificates.bounds.margin_lipschitz_KK
    found = nearest_boundaries(certificates.logits_BK, labels_N, margin_lipschitz_KK, radius)
    constants = pair_constants(margin_lipschitz_KK)
    if not (found.distance_N.isfinite().all() and constants.isfinite().all()):
        return None
    right_N = certificates.prediction_B == labels_N
    return Margins(
        quantiles=tuple(map(_short, quantiles(found.distance_N, 20))),
        threatening=counts_up_to(found.threats_N[right_N], 10),
        spread=_short(effective_rivals(labels_N, found.class_N, len(margin_lipschitz_KK))),
        lipschitz=tuple(map(_short, quantiles(constants, 4))),
    )


def _short(number: float) -> float:
    """To six digits."""
    return float(f"{number:.6g}")


def bounds_part(certificates: Certificates) -> Bounds:
    """The constants behind the radii, layer by layer."""
    bounds = certificates.bounds
    layers = tuple(
        Layer(
            name=b.name, kind=b.kind, lower=b.enclosure.lower, upper=b.enclosure.upper, estimate=estimate,
            method=b.enclosure.method,
        )
        for b, estimate in zip(bounds.layers, bounds.estimates, strict=True)
    )  # fmt: skip
    return Bounds(
        effort=certificates.effort, estimate=bounds.estimate, upper=bounds.upper, lower=bounds.lower, layers=layers
    )


def training_part(run: Run, status: str) -> Training:
    """Length, speed and choices of the run."""
    images = run.step * run.batch
    config = run.config
    return Training(
        loss=run.config.loss, status=status, batch=run.batch, steps=run.step, images=images,
        seconds=round(run.seconds, 3), images_per_second=round(images / run.seconds, 1) if run.seconds else 0.0,
        peak_memory_bytes=run.peak_bytes,
        choices=Choices(
            precision=config.precision, layout=config.layout, compiled=config.compiled, measured=run.measured,
            kernels=kernels.backend(run.device) if config.family == "linf_net" else config.kernels,
        ),
        curve=f"curves/{run.config.run_id()}.csv",
        snapshots=tuple(Snapshot(**snapshot) for snapshot in run.snapshots),
        threats=tuple(Threat(**note) for note in run.threats.notes) if run.threats else (),
    )  # fmt: skip


def card(run: Run) -> dict[str, object]:
    """What a user of the network file needs to know."""
    config, data = run.config, run.data
    return {
        "run": config.run_id(), "dataset": config.dataset, "classes": config.classes, "class_seed": config.class_seed,
        "train_images": config.train_images, "class_names": list(data.class_names), "input_shape": list(data.shape),
        "pixel_scale": data.scale, "radius": config.radius, "norm": config.norm, "methods": list(config.methods),
        "family": config.family, "depth": config.depth, "width": config.width,
        "parameters": run.network.parameter_count(), "data_sha256": data.sha256,
    }  # fmt: skip


def write_radii(path: Path, certificates: Certificates, split: Split) -> None:
    """One row per image, columns `RADII_FIELDS`; radii in the shortest text that reads back to the same float64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: list[Tensor] = [
        split.index_N, split.labels_N, certificates.prediction_B, certificates.runner_up_B, certificates.radius_B,
        certificates.estimated_radius_B,
    ]  # fmt: skip
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RADII_FIELDS)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
