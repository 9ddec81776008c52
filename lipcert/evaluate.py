"""From a trained network to its run record: materialise, bound, certify, count, write.

The test set is used here only.
"""

import csv
import datetime
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcert import provenance, records
from lipcert.certify import Certificates, certified_correct, certify
from lipcert.chain import chain_bounds
from lipcert.data import Dataset, Split, to_unit
from lipcert.models import save_network
from lipcert.paths import local_dir
from lipcert.radius import Radius
from lipcert.run import Run, write_curve

RADII_FIELDS = ("index", "label", "prediction", "runner_up", "radius", "radius_estimated")


def write_results(run: Run, status: str) -> Path:
    """Certify (a finished run only) and write network, per-image radii, curve and record; returns the record's path."""
    config, folder = run.config, local_dir()
    run_id = config.run_id()
    chain = run.network.plain()
    test = bounds = None
    if status == "finished":
        split_name = "validation" if config.validation else "test"
        start = time.monotonic()
        certificates = certify_split(chain, run.data, split_name, run.device)
        seconds = time.monotonic() - start
        radii = f"radii/{run_id}.csv"
        split = getattr(run.data, split_name)
        write_radii(folder / radii, certificates, split)
        test = test_part(certificates, split, split_name, (config.radius, *config.report_radii), seconds, radii)
        bounds = bounds_part(certificates)
    save_network(chain, folder / "models" / f"{run_id}.safetensors", card(run))
    write_curve(folder / "curves" / f"{run_id}.csv", run.curve)
    record = records.Record(
        schema=records.SCHEMA,
        id=run_id,
        published=config.published,
        config=config,
        data=records.Data(
            name=run.data.name, classes=run.data.classes, sha256=run.data.sha256, train=len(run.data.train.labels_N),
            validation=len(run.data.validation.labels_N), test=len(run.data.test.labels_N),
        ),
        model=records.Model(
            family=config.family, depth=config.depth, width=config.width, parameters=run.network.parameter_count(),
            weights_sha256=provenance.tensors_sha256(chain.state_dict()), file=f"models/{run_id}.safetensors",
        ),
        training=training_part(run, status),
        test=test,
        bounds=bounds,
        provenance=records.Provenance(
            command=provenance.command(), seed=config.seed, commit=run.commit, dirty=run.dirty,
            versions=provenance.versions(), hardware=provenance.hardware(run.device),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
    )  # fmt: skip
    return records.write_record(record)


def certify_split(chain: nn.Sequential, data: Dataset, split: str, device: torch.device) -> Certificates:
    """Certify every image of a split: bounds on the CPU, logits in float64 on `device` where it has float64."""
    bounds = chain_bounds(chain, data.shape)
    images_NCHW = to_unit(getattr(data, split).images_NCHW, data.scale, torch.float64)
    on_device = chain if device.type == "mps" else chain.to(device)
    return certify(on_device, images_NCHW, bounds=bounds)


def test_part(
    certificates: Certificates, split: Split, split_name: str, radii: tuple[str, ...], seconds: float, file: str | None
) -> records.Test:
    """Counts at every radius, certified and as the power method would have claimed."""
    labels_N = split.labels_N
    results = []
    for radius in dict.fromkeys(map(Radius, radii)):
        for guarantee, radius_N, effort in (
            (certificates.guarantee, certificates.radius_B, certificates.effort),
            ("estimated", certificates.estimated_radius_B, None),
        ):
            count = certified_correct(certificates.prediction_B, radius_N, labels_N, radius)
            results.append(
                records.Result(
                    norm=certificates.norm,
                    radius=str(radius),
                    method=certificates.method,
                    effort=effort,
                    guarantee=guarantee,
                    arithmetic=certificates.arithmetic,
                    certified_correct=count,
                )
            )
    clean = int((certificates.prediction_B == labels_N).sum())
    return records.Test(
        split=split_name,
        images=len(labels_N),
        clean=clean,
        seconds=round(seconds, 3),
        radii=file,
        results=tuple(results),
    )


def bounds_part(certificates: Certificates) -> records.Bounds:
    """The constants behind the radii, layer by layer."""
    bounds = certificates.bounds
    layers = tuple(
        records.Layer(
            name=b.name, kind=b.kind, lower=b.enclosure.lower, upper=b.enclosure.upper, estimate=b.estimate,
            method=b.enclosure.method,
        )
        for b in bounds.layers
    )  # fmt: skip
    return records.Bounds(
        effort=certificates.effort, estimate=bounds.estimate, upper=bounds.upper, lower=bounds.lower, layers=layers
    )


def training_part(run: Run, status: str) -> records.Training:
    """Length, speed and choices of the run."""
    images = run.step * run.batch
    memory = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
    # PyTorch lets cuDNN use TF32 in float32 convolutions unless told otherwise: training may, certifying never does.
    tf32 = run.device.type == "cuda" and run.config.precision == "float32" and torch.backends.cudnn.allow_tf32
    precision = "float32, convolutions in TF32" if tf32 else run.config.precision
    return records.Training(
        loss=run.config.loss, status=status, batch=run.batch, steps=run.step, images=images,
        seconds=round(run.seconds, 3), images_per_second=round(images / max(run.seconds, 1e-9), 1),
        peak_memory_bytes=memory,
        choices=records.Choices(precision=precision, layout="channels_last", compiled=run.config.compiled),
        curve=f"curves/{run.config.run_id()}.csv",
    )  # fmt: skip


def card(run: Run) -> dict[str, object]:
    """What a user of the network file needs to know."""
    config, data = run.config, run.data
    return {
        "run": config.run_id(), "dataset": config.dataset, "classes": config.classes, "class_seed": config.class_seed,
        "class_names": list(data.class_names), "input_shape": list(data.shape), "pixel_scale": data.scale,
        "radius": config.radius, "family": config.family, "depth": config.depth, "width": config.width,
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
