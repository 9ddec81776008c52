"""Run records made by hand, with counts that a test knows."""

from pathlib import Path

from lipcert.config import TrainConfig
from lipcert.record import Record

RADII = ("36/255", "72/255", "108/255")


def make_record(
    config: TrainConfig,
    nominal: tuple[int, ...] = (6510, 5000, 100),
    clean: int = 8000,
    status: str = "finished",
    epochs: int = 800,
    train: int = 50_000,
    images: int = 10_000,
    split: str = "test",
) -> Record:
    """A record with these counts at RADII; the power method claims three images more at every radius."""
    shared = {"norm": "l2", "method": "margin", "arithmetic": "float64"}
    results = []
    for radius, count in zip(RADII, nominal, strict=True):
        results.append(
            {"radius": radius, "effort": "fast", "guarantee": "nominal", "certified_correct": count, **shared}
        )
        results.append(
            {
                "radius": radius,
                "effort": None,
                "guarantee": "estimated",
                "certified_correct": min(count + 3, clean),
                **shared,
            }
        )
    steps = epochs * (train // config.batch)
    test = {"split": split, "images": images, "clean": clean, "seconds": 2.0, "radii": None, "results": tuple(results)}
    layers = (
        {"name": "shift", "kind": "Shift", "lower": 1.0, "upper": 1.0, "estimate": 1.0, "method": "1-Lipschitz"},
        {"name": "stem", "kind": "Conv2d", "lower": 1.99994, "upper": 2.00001, "estimate": 1.9, "method": "matrix"},
    )
    finished = status == "finished"
    return Record(
        schema=1,
        id=config.run_id(),
        published=config.published,
        config=config,
        data={
            "name": config.dataset, "classes": 10, "sha256": "0" * 64, "train": train, "test": images,
            "validation": images if split == "validation" else 0,
        },
        model={
            "family": "liresnet", "depth": config.depth, "width": config.width, "parameters": 1_234_567,
            "weights_sha256": "1" * 64, "file": None,
        },
        training={
            "loss": config.loss, "status": status, "batch": config.batch, "steps": steps,
            "images": steps * config.batch, "seconds": 118.0, "images_per_second": 1.0, "peak_memory_bytes": None,
            "choices": {"precision": "float32", "layout": "channels_last", "compiled": False}, "curve": None,
        },
        test=test if finished else None,
        bounds={"effort": "fast", "estimate": 1.9, "upper": 2.00001, "lower": 1.99994, "layers": layers}
        if finished
        else None,
        provenance={
            "command": "papermill notebooks/train.ipynb", "seed": config.seed, "commit": "c" * 40, "dirty": False,
            "versions": {"python": "3"}, "hardware": {"device": "cpu", "processor": "abacus", "threads": 2},
            "finished": "2026-01-01T00:00:00+00:00",
        },
    )  # fmt: skip


def digits(**changes: object) -> TrainConfig:
    return TrainConfig(epochs=40, **changes)


def add_radii(record: Record, folder: Path, rows: list[tuple[int, int, float, float]]) -> Record:
    """Write per-image radii (label, prediction, proven, estimated) and name them in the record."""
    name = f"radii/{record.id}.csv"
    (folder / "radii").mkdir(exist_ok=True)
    lines = ["index,label,prediction,runner_up,radius,radius_estimated"]
    lines += [f"{i},{label},{said},1,{proven},{claim}" for i, (label, said, proven, claim) in enumerate(rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return record.model_copy(update={"test": record.test.model_copy(update={"radii": name})})
