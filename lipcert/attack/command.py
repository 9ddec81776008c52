"""Certify test images of a stored network and attack the certificates, end to end: one JSON and one table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lipcert import provenance
from lipcert.attack.falsify import ATTACKS, Attack, falsify
from lipcert.attack.fields import Falsification
from lipcert.attack.projected import Inside
from lipcert.certify import certify
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.models import open_network
from lipcert.paths import local_dir
from lipcert.progress import Progress
from lipcert.record import Provenance

EVERYWHERE = ("inside",)
STRONG = ("pgd", "apgd", "fab", "deepfool", "rounding")


def run(
    model_name: str,
    count: int = 0,
    strong: int = 100,
    attacks: Sequence[str | Attack] = EVERYWHERE + STRONG,
    start: int = 0,
    seed: int = 0,
    box: bool = True,
    progress: bool = True,
) -> tuple[Falsification, Path]:
    """Attack the certificates of test images; writes `results/local/attacks/NAME.json`, prints the table.

    `inside` takes all `count` images, the other attacks the first `strong` of them. On one core, CIFAR-10 with LiResNet
    L6W80 takes 0.04 s an image for `inside` and 0.6 (DeepFool) to 6 s (rounding) for each of the others.

    Args:
        model_name: a shipped network, id of one of your runs, or path of a .safetensors file.
        count: number of test images from `start` on; 0: all.
        strong: number of images for the attacks other than `inside`; 0: all of them.

    Returns:
        The falsification and the path of its JSON. It has the table of both parts; ratios count certified images only.

    Raises:
        FileNotFoundError, ValueError: unknown network or data set. NotCertifiable: numbers outside the test set.
    """
    named = Path(model_name)
    chain = open_network(model_name)
    card = chain.card
    data = load_dataset(card["dataset"], card["classes"], card["class_seed"])
    stop = len(data.test) if count == 0 else start + count
    if not 0 <= start < stop <= len(data.test):
        raise NotCertifiable(
            f"start={start}, count={count}: {data.name} has {len(data.test)} test images, numbered from 0"
        )
    chosen = [attack if not isinstance(attack, str) else _named(attack) for attack in attacks]
    if not chosen:
        raise ValueError(f"attacks=(): name at least one of {', '.join(ATTACKS)}")
    images_NCHW = to_unit(data.test.images_NCHW[start:stop], data.scale, torch.float64)
    bounds = chain_bounds(chain, data.shape)
    parts = []
    for some, total in (
        ([a for a in chosen if isinstance(a, Inside)], len(images_NCHW)),
        ([a for a in chosen if not isinstance(a, Inside)], min(strong, len(images_NCHW)) or len(images_NCHW)),
    ):
        if some:
            certificates = certify(chain, images_NCHW[:total], bounds=bounds)
            with _Counted(total * len(some), progress) as counted:
                parts.append(falsify(chain, images_NCHW[:total], certificates, some, seed, box, progress=counted.add))
    result = _joined(parts).model_copy(
        update={"model": named.stem, "dataset": data.name, "start": start, "provenance": _provenance(seed)}
    )
    path = local_dir() / "attacks" / f"{named.stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result.record(), indent=1) + "\n")
    os.replace(partial, path)
    print(result.table(), result.words(), path, sep="\n")
    return result, path


class _Counted(Progress):
    """A progress display that is told how many more images are done."""

    def __init__(self, total: int, shown: bool):
        super().__init__(total, "image", shown)

    def add(self, images: int) -> None:
        self.update(self.done + images)


def _named(attack: str) -> Attack:
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r}: must be one of {', '.join(ATTACKS)}")
    return ATTACKS[attack]()


def _joined(parts: list[Falsification]) -> Falsification:
    """The first part, on the most images, with the results of the others added."""
    first = parts[0]
    return first.model_copy(
        update={
            "attacks": tuple(a for part in parts for a in part.attacks),
            "violations": tuple(v for part in parts for v in part.violations),
            "beyond": tuple(v for part in parts for v in part.beyond),
            "seconds": sum(part.seconds for part in parts),
        }
    )


def _provenance(seed: int) -> Provenance:
    commit, dirty = provenance.git_state()
    return Provenance(
        command=provenance.command(),
        seed=seed,
        commit=commit,
        dirty=dirty,
        versions=provenance.versions(),
        hardware=provenance.hardware(torch.device("cpu")),
        finished=provenance.now(),
    )
