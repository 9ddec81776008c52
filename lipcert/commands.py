"""What the command line prints: certificates of single images, lists of runs."""

from pathlib import Path

from lipcert.records import find_record, load_records


def certify_images(model: str, images: str | None, start: int, count: int, radius: str | None) -> int:
    """Certify test images of a data set with a stored network and print one line each."""
    import time

    import torch

    from lipcert.certify import ABSTAIN, NotCertifiable, certified_correct, certify
    from lipcert.data import load_dataset, to_unit
    from lipcert.models import load, load_network

    chain = load_network(model) if Path(model).exists() or "/" in model else load(model)
    card = chain.card
    name = images or card["dataset"]
    data = load_dataset(name, card["classes"] if name == card["dataset"] else None, card["class_seed"])
    if list(data.shape) != card["input_shape"] or data.classes != len(card["class_names"]):
        raise NotCertifiable(
            f"--images {name}: images of shape {data.shape} in {data.classes} classes; the network takes "
            f"{tuple(card['input_shape'])} in {len(card['class_names'])} ({card['dataset']})"
        )
    total = len(data.test.labels_N)
    stop = total if count == 0 else start + count
    if count < 0 or not 0 <= start < stop <= total:
        raise NotCertifiable(f"--start {start} --count {count}: {name} has {total} test images, numbered from 0")
    began = time.monotonic()
    images_NCHW = to_unit(data.test.images_NCHW[start:stop], data.scale, torch.float64)
    certificates = certify(chain, images_NCHW)
    seconds = time.monotonic() - began
    labels_N = data.test.labels_N[start:stop]
    names = card["class_names"]
    print(f"{'image':>6}  {'label':<14}{'prediction':<14}{'runner-up':<14}{'certified l2 radius'}")
    for i, (label, predicted, rival, proven) in enumerate(
        zip(
            labels_N.tolist(), certificates.prediction_B.tolist(), certificates.runner_up_B.tolist(),
            certificates.radius_B.tolist(), strict=True,
        ),
        start=start,
    ):  # fmt: skip
        if predicted == ABSTAIN:
            print(f"{i:>6}  {names[label]:<14}{'abstains':<14}{'':<14}none")
        else:
            note = "" if predicted == label else "  (wrong)"
            # Truncated, not rounded: a printed radius is never above the proven one.
            print(f"{i:>6}  {names[label]:<14}{names[predicted]:<14}{names[rival]:<14}{_truncate(proven)}{note}")
    at = radius or card["radius"]
    robust = certified_correct(certificates.prediction_B, certificates.radius_B, labels_N, at)
    clean = int((certificates.prediction_B == labels_N).sum())
    bounds = certificates.bounds
    print(
        f"\n{clean} of {len(labels_N)} correct, {robust} of {len(labels_N)} correct and certified at l2 radius {at} "
        f"({certificates.guarantee} guarantee, {certificates.arithmetic}).\n"
        f"Lipschitz constant of the backbone: at most {bounds.upper:.6g} (proven), {bounds.estimate:.6g} by the power "
        f"method. {seconds:.1f} s."
    )
    return 0


def _truncate(radius: float, digits: int = 4) -> str:
    return f"{int(radius * 10**digits) / 10**digits:.{digits}f}"


def list_runs() -> int:
    """One line per run: where it lies, status, clean accuracy and VRA."""
    for where in ("published", "local"):
        for record in load_records(where):
            label = "published" if where == "published" else "yours"
            print(f"{label:<10}{record.id:<60}{record.training.status:<10}{_figures(record)}")
    return 0


def _figures(record) -> str:
    if record.test is None:
        return "not tested"
    radius = record.config.radius
    on = "" if record.test.split == "test" else f" on {record.test.split}"
    return f"clean {record.clean_accuracy():.2%}, VRA {record.vra(radius):.2%} at {radius}{on}"


def show_run(run: str) -> int:
    """One record: the sentence, its settings and where its files lie."""
    import yaml

    from lipcert.report import run_sentence

    record, folder = find_record(run)
    print(run_sentence(record))
    print(f"record: {folder / 'runs' / (record.id + '.json')}\n\nsettings:")
    print(yaml.safe_dump(record.config.model_dump(mode="json"), sort_keys=False))
    return 0
