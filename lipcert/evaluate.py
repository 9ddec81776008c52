"""From a trained network to its run record: materialise, bound, certify, count, write.

The test set is used here only.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lipcert import provenance, records
from lipcert.certificate import Images, write_bundle
from lipcert.certify import Certificates, certified_correct, certify_each, rounds_of
from lipcert.chain import chain_bounds
from lipcert.checker import DATA as CHECKABLE
from lipcert.config import TrainConfig
from lipcert.data import Dataset, batches, load_dataset, to_unit
from lipcert.models import load_network, save_network
from lipcert.paths import local_dir
from lipcert.progress import Progress
from lipcert.radius import Radius
from lipcert.record import SCHEMA, Bounds, Certified, Data, Model, Provenance, Record, Test
from lipcert.results import bounds_part, card, test_part, training_part, write_radii
from lipcert.run import Run, write_curve

# (guarantee, arithmetic), the weakest first. Those in float32 cost three more passes: `certify_again` adds them.
CLAIMS = (("nominal", "float64"), ("real", "float64"), ("executed", "float64"))
ALL_CLAIMS = (*CLAIMS, ("real", "float32"), ("executed", "float32"))
_PIECE_BYTES = 2**30  # of float64 images at a time: 50,000 images of 224 pixels would take 60 GB at once
_Found = TypeVar("_Found")


def write_results(run: Run, status: str, progress: bool = False) -> Path:
    """Certify (a finished run only) and write network, per-image radii, curve and record; returns the record's path.

    Of a run that diverged there is no network: its record has the digest of the parameters as they were left.
    """
    config, folder = run.config, local_dir()
    run_id = config.run_id()
    test = bounds = file = None
    chain = run.network if status == "diverged" else run.network.plain()
    if status == "finished":
        split_name = "validation" if config.validation else "test"
        with _certifying(config, run.data, split_name, CLAIMS, progress) as done:
            test, bounds = certified_parts(run_id, config, chain, run.data, split_name, run.device, progress=done)
        if provenance.hardware(run.device) != run.hardware:
            test = test.model_copy(update={"certified": _certified(run.device)})
    if status != "diverged":
        file = f"models/{run_id}.safetensors"
        save_network(chain, folder / file, card(run))
    write_curve(folder / "curves" / f"{run_id}.csv", run.curve)
    record = Record(
        schema=SCHEMA,
        id=run_id,
        published=config.published,
        config=config,
        data=Data(
            name=run.data.name, classes=run.data.classes, sha256=run.data.sha256, train=len(run.data.train.labels_N),
            validation=len(run.data.validation.labels_N), test=len(run.data.test.labels_N),
            generated=run.stream.generated_sha256,
        ),
        model=Model(
            family=config.family, depth=config.depth, width=config.width, parameters=run.network.parameter_count(),
            weights_sha256=provenance.tensors_sha256(chain.state_dict()), file=file,
        ),
        training=training_part(run, status),
        test=test,
        bounds=bounds,
        provenance=Provenance(
            command=provenance.command(), seed=config.seed, commit=run.commit, dirty=run.dirty,
            versions=provenance.versions(), hardware=run.hardware, finished=provenance.now(),
        ),
    )  # fmt: skip
    return records.write_record(record)


def _certified(device: torch.device) -> Certified:
    """What certifies here and now, where that is not what trained."""
    commit, dirty = provenance.git_state()
    return Certified(
        command=provenance.command(), commit=commit, dirty=dirty, versions=provenance.versions(),
        hardware=provenance.hardware(device), finished=provenance.now(),
    )  # fmt: skip


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
    data = load_dataset(
        config.dataset, config.classes, config.class_seed, config.validation, train_images=config.train_images
    )
    if data.sha256 != record.data.sha256:
        raise records.RecordError(f"run {record.id}: trained on other data than {config.dataset} as it is here")
    device, certified = torch.device("cpu"), _certified(torch.device("cpu"))
    with _certifying(config, data, record.test.split, ALL_CLAIMS, progress) as done:
        test, bounds = certified_parts(
            record.id, config, chain, data, record.test.split, device, effort, ALL_CLAIMS, done
        )  # fmt: skip
    certified = certified.model_copy(update={"finished": provenance.now()})
    _bring(record, folder)
    model = record.model.model_copy(update={"file": f"models/{record.id}.safetensors"})
    test = test.model_copy(update={"certified": certified})
    return records.write_record(record.model_copy(update={"model": model, "test": test, "bounds": bounds}))


@contextmanager
def _certifying(
    config: TrainConfig, data: Dataset, split: str, claims: Sequence[tuple[str, str]], shown: bool
) -> Iterator[Callable[[int], None]]:
    """Shows how far certifying a split is; what it gives is called with the number of images done."""
    rounds = sum(rounds_of(claims, config.norm, method) for method in config.methods)
    with Progress(len(getattr(data, split)) * rounds, "image", shown) as bar:
        yield lambda images: bar.update(bar.done + images, "certifying")


def _bring(record: Record, folder: Path) -> None:
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
) -> tuple[Test, Bounds | None]:
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
