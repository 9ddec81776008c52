"""From a trained network to its run record: materialise, bound, certify, count, write.

The test set is used here only.
"""

import csv
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lipcert import provenance, records
from lipcert.certificate import Images, write_bundle
from lipcert.certify import Certificates, certified_correct, certify_each, passes_for
from lipcert.chain import chain_bounds
from lipcert.checker import DATA as CHECKABLE
from lipcert.config import TrainConfig
from lipcert.data import Dataset, Split, batches, load_dataset, to_unit
from lipcert.linf import kernels
from lipcert.models import load_network, save_network
from lipcert.paths import local_dir
from lipcert.progress import Progress
from lipcert.radius import Radius
from lipcert.run import Run, write_curve

RADII_FIELDS = ("index", "label", "prediction", "runner_up", "radius", "radius_estimated")


# (guarantee, arithmetic), the weakest first. Those in float32 cost three more passes: `certify_again` adds them.
CLAIMS = (("nominal", "float64"), ("real", "float64"), ("executed", "float64"))
ALL_CLAIMS = (*CLAIMS, ("real", "float32"), ("executed", "float32"))
_PIECE_BYTES = 2**30  # of float64 images at a time: 50,000 images of 224 pixels would take 60 GB at once
_Found = TypeVar("_Found")


def write_results(run: Run, status: str) -> Path:
    """Certify (a finished run only) and write network, per-image radii, curve and record; returns the record's path."""
    config, folder = run.config, local_dir()
    run_id = config.run_id()
    chain = run.network.plain()
    test = bounds = None
    if status == "finished":
        split_name = "validation" if config.validation else "test"
        test, bounds = certified_parts(run_id, config, chain, run.data, split_name, run.device)
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
            generated=run.stream.generated_sha256,
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
            versions=provenance.versions(), hardware=provenance.hardware(run.device), finished=provenance.now(),
        ),
    )  # fmt: skip
    return records.write_record(record)


def add_snapshot(run: Run) -> None:
    """Certify the network as it is now and append what was found to `run.snapshots`."""
    config, split = run.config, "validation" if run.config.validation else "test"
    labels_N, claim = getattr(run.data, split).labels_N, (("executed", "float64"),)
    how = {"norm": config.norm, "method": config.methods[-1], "radii": (config.radius,)}
    (found,) = certify_split(run.network.plain(), run.data, split, run.device, claims=claim, **how)
    run.snapshots.append(
        {
            "images": run.step * run.batch,
            "seconds": round(run.seconds, 3),
            "clean": int((found.prediction_B == labels_N).sum()),
            "certified_correct": certified_correct(found.prediction_B, found.radius_B, labels_N, Radius(config.radius)),
            "upper": None if found.bounds is None else found.bounds.upper,
        }
    )


def certify_again(run: str, effort: str = "fast", progress: bool = False) -> Path:
    """Certify the stored network of a finished run again, in every guarantee and arithmetic; returns the new record.

    Writes to `results/local`, a published run's copy too; training and its provenance stay as they were, and
    `test.certified` says what certified. The network is certified on the CPU.

    Raises:
        records.RecordError: unknown run, one that did not finish, or one whose network was not kept.
    """
    record, folder = records.find_record(run)
    if record.test is None or record.model.file is None:
        raise records.RecordError(f"run {record.id}: certifying again needs a finished run whose network was kept")
    chain = load_network(folder / record.model.file)
    if provenance.tensors_sha256(chain.state_dict()) != record.model.weights_sha256:
        raise records.RecordError(f"run {record.id}: {record.model.file} holds other weights than the run's")
    config = record.config
    data = load_dataset(config.dataset, config.classes, config.class_seed, config.validation)
    if data.sha256 != record.data.sha256:
        raise records.RecordError(f"run {record.id}: trained on other data than {config.dataset} as it is here")
    commit, dirty = provenance.git_state()
    device = torch.device("cpu")
    # Intervals report every claim, margins every forward pass.
    rounds = sum(len(ALL_CLAIMS) if m == "interval" else len(passes_for(ALL_CLAIMS)) for m in config.methods)
    total = len(getattr(data, record.test.split)) * rounds
    with Progress(total, "image", shown=progress) as bar:
        test, bounds = certified_parts(
            record.id, config, chain, data, record.test.split, device, effort, ALL_CLAIMS,
            lambda images: bar.update(bar.done + images, "certifying"),
        )  # fmt: skip
    certified = records.Certified(
        command=provenance.command(), commit=commit, dirty=dirty, versions=provenance.versions(),
        hardware=provenance.hardware(device), finished=provenance.now(),
    )  # fmt: skip
    _bring(record, folder)
    model = record.model.model_copy(update={"file": f"models/{record.id}.safetensors"})
    test = test.model_copy(update={"certified": certified})
    return records.write_record(record.model_copy(update={"model": model, "test": test, "bounds": bounds}))


def _bring(record: records.Record, folder: Path) -> None:
    """Copy the curve and network of a published run to your own results, where its new record looks for them."""
    if folder == local_dir():
        return
    stored, here = folder / record.model.file, local_dir() / "models" / f"{record.id}.safetensors"
    pairs = [(stored, here), (stored.with_suffix(".json"), here.with_suffix(".json"))]
    if record.training.curve:
        pairs.append((folder / record.training.curve, local_dir() / record.training.curve))
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def certified_parts(
    run_id: str,
    config: TrainConfig,
    chain: nn.Sequential,
    data: Dataset,
    split_name: str,
    device: torch.device,
    effort: str = "fast",
    claims: Sequence[tuple[str, str]] = CLAIMS,
    progress: Callable[[int], None] | None = None,
) -> tuple[records.Test, records.Bounds | None]:
    """Certify a split; writes per-image radii (executed in float64) and, for a test split, the certificate bundle.

    No bundle for a data set that `lipcert.checker` does not know: nobody could check it.
    """
    start = time.monotonic()
    radii = (config.radius, *config.report_radii)
    certificates = []
    for method in config.methods:
        how = {"norm": config.norm, "method": method, "radii": radii}
        certificates += certify_split(chain, data, split_name, device, effort, claims, progress, **how)
    seconds = time.monotonic() - start
    # Of the last method, which proves the most.
    split = getattr(data, split_name)
    chosen = certificates[claims.index(("executed", "float64")) - len(claims)]
    file, bundle = f"radii/{run_id}.csv", None
    write_radii(local_dir() / file, chosen, split)
    if split_name == "test" and data.name in CHECKABLE:
        bundle = f"certificates/{run_id}"
        write_bundle(local_dir() / bundle, chain, chosen, Images.of(data, split), tuple(dict.fromkeys(radii)))
    bounds = bounds_part(chosen) if "margin" in config.methods else None
    return test_part(certificates, split, split_name, radii, seconds, file, bundle), bounds


def certify_split(
    chain: nn.Sequential,
    data: Dataset,
    split: str,
    device: torch.device,
    effort: str = "fast",
    claims: Sequence[tuple[str, str]] = CLAIMS,
    progress: Callable[[int], None] | None = None,
    norm: str = "l2",
    method: str = "margin",
    radii: tuple[str, ...] = (),
) -> list[Certificates]:
    """Certify every image of a split: bounds on the CPU, logits in float64 on `device` where it has float64."""
    bounds = chain_bounds(chain, data.shape, effort) if norm == "l2" else None
    on_device = chain if device.type == "mps" else chain.to(device)
    pieces = [
        certify_each(on_device, images_BCHW, claims, norm, method, effort, bounds, progress, radii)
        for images_BCHW in unit_pieces(data, split)
    ]
    return [joined(parts) for parts in zip(*pieces, strict=True)]


def unit_pieces(data: Dataset, split: str) -> Iterator[Tensor]:
    """The images of a split as (B, C, H, W) float64 in [0, 1], read and converted piece by piece.

    Whole micro-batches of 64: certificates are the same, byte by byte, as in one piece.
    """
    size = max(1, _PIECE_BYTES // (8 * math.prod(data.shape)) // 64) * 64
    for images_BCHW in batches(getattr(data, split).images_NCHW, size):
        yield to_unit(images_BCHW, data.scale, torch.float64)


def joined(pieces: Sequence[_Found]) -> _Found:
    """Certificates, or certificates of sets, of consecutive pieces of a split, under the same bounds, as one."""
    first = pieces[0]
    names = [field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)]
    return replace(first, **{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in names})


def test_part(
    certificates: Sequence[Certificates],
    split: Split,
    split_name: str,
    radii: tuple[str, ...],
    seconds: float,
    file: str | None,
    bundle: str | None,
) -> records.Test:
    """Counts at every radius: what the power method would have claimed, then every guarantee and arithmetic."""
    labels_N, first = split.labels_N, certificates[0]
    results = []
    for radius in dict.fromkeys(map(Radius, radii)):
        claims = [(c, c.radius_B, c.guarantee, c.effort) for c in certificates]
        if first.norm == "l2":  # a constant of 1 by construction leaves nothing to estimate
            claims.append((first, first.estimated_radius_B, "estimated", None))
        for found, radius_N, guarantee, effort in claims:
            results.append(
                records.Result(
                    norm=found.norm,
                    radius=str(radius),
                    method=found.method,
                    effort=effort,
                    guarantee=guarantee,
                    arithmetic=found.arithmetic,
                    certified_correct=certified_correct(found.prediction_B, radius_N, labels_N, radius),
                )
            )
    return records.Test(
        split=split_name,
        images=len(labels_N),
        clean=int((first.prediction_B == labels_N).sum()),
        seconds=round(seconds, 3),
        radii=file,
        results=tuple(results),
        bundle=bundle,
    )


def bounds_part(certificates: Certificates) -> records.Bounds:
    """The constants behind the radii, layer by layer."""
    bounds = certificates.bounds
    layers = tuple(
        records.Layer(
            name=b.name, kind=b.kind, lower=b.enclosure.lower, upper=b.enclosure.upper, estimate=estimate,
            method=b.enclosure.method,
        )
        for b, estimate in zip(bounds.layers, bounds.estimates, strict=True)
    )  # fmt: skip
    return records.Bounds(
        effort=certificates.effort, estimate=bounds.estimate, upper=bounds.upper, lower=bounds.lower, layers=layers
    )


def training_part(run: Run, status: str) -> records.Training:
    """Length, speed and choices of the run."""
    images = run.step * run.batch
    memory = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
    config = run.config
    return records.Training(
        loss=run.config.loss, status=status, batch=run.batch, steps=run.step, images=images,
        seconds=round(run.seconds, 3), images_per_second=round(images / max(run.seconds, 1e-9), 1),
        peak_memory_bytes=memory,
        choices=records.Choices(
            precision=config.precision, layout=config.layout, compiled=config.compiled, measured=run.measured,
            kernels=kernels.backend(run.device) if config.family == "linf_net" else config.kernels,
        ),
        curve=f"curves/{run.config.run_id()}.csv",
        snapshots=tuple(records.Snapshot(**snapshot) for snapshot in run.snapshots),
    )  # fmt: skip


def card(run: Run) -> dict[str, object]:
    """What a user of the network file needs to know."""
    config, data = run.config, run.data
    return {
        "run": config.run_id(), "dataset": config.dataset, "classes": config.classes, "class_seed": config.class_seed,
        "class_names": list(data.class_names), "input_shape": list(data.shape), "pixel_scale": data.scale,
        "radius": config.radius, "norm": config.norm, "methods": list(config.methods), "family": config.family,
        "depth": config.depth, "width": config.width,
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
