"""Relaxed guarantees of the shipped networks, at their own radii: `python -m benchmarks.relaxed`.

Writes `results/local/checks/relaxed.json`, which the book's page on relaxed guarantees shows; `python -m
benchmarks.soundness --publish` copies it to `results/checks`. One float64 pass over each test set serves every k and
every affinity set: minutes on two idle cores. `--images 128` rehearses.
"""

import argparse
import csv
import os

import torch
from torch import Tensor

from lipcert.data import Dataset, load_dataset, to_unit
from lipcert.data.superclasses import CIFAR10_KINDS, cifar100_superclasses
from lipcert.models import load
from lipcert.models.stored import shipped
from lipcert.paths import results_dir
from lipcert.relaxed import SetCertificates, certify_top_k, relaxed_correct
from lipcert.report.checks import measuring
from lipcert.report.relaxed import GOAL, HEAD

TOPS = (1, 2, 3, 5, 10)  # k_max; those below the number of classes
GROUPS = {
    "cifar10": ("animals, vehicles", lambda: CIFAR10_KINDS),
    "cifar100": ("20 superclasses", cifar100_superclasses),
}


def counted(kind: str, certificates: SetCertificates, labels_N: Tensor, radius: str) -> tuple[str, ...]:
    """Counts of one relaxation: the columns of `HEAD` from `sets` on."""
    k_N = certificates.chosen_k_B(radius, "strictest")
    answered_N = k_N > 0
    counts = (
        certificates.k_max,
        relaxed_correct(certificates, labels_N, "0"),
        int(answered_N.sum()),
        relaxed_correct(certificates, labels_N, radius, "loosest"),
        relaxed_correct(certificates, labels_N, radius, "strictest"),
        int(k_N[answered_N].sum()),
    )
    return kind, *map(str, counts)


def measured(name: str, images: int) -> tuple[list[tuple[str, ...]], bool]:
    """Rows for one network, and whether k = 1 gave the stored radii again."""
    network = load(name)
    card = network.card
    data = load_dataset(card["dataset"], card["classes"], card["class_seed"])
    labels_N = data.test.labels_N[: images or None]
    images_NCHW = to_unit(data.test.images_NCHW[: len(labels_N)], data.scale, torch.float64)
    tops = [k for k in TOPS if k < data.classes]
    kind, groups = _groups(data)
    largest = max([*tops, *(len(group) for group in groups.values())])
    found = certify_top_k(network, images_NCHW, largest, effort="tight")
    sets = [("top-k", found.up_to(k)) for k in tops]
    sets += [(kind, found.within(groups, data.class_names))] if groups else []
    where = (name, data.name, card["radius"], str(len(labels_N)))
    rows = [(*where, *counted(kind, part, labels_N, card["radius"])) for kind, part in sets]
    return rows, _as_stored(card["run"], found.up_to(1))


def _groups(data: Dataset) -> tuple[str, dict]:
    kind, read = GROUPS.get(data.name, ("", dict))
    return kind, read()


def _as_stored(run: str, found: SetCertificates) -> bool:
    """Whether the radii of single classes are those that the study published, up to the last bits."""
    with open(results_dir() / "radii" / f"{run}.csv", newline="") as file:
        stored = [float(row["radius"]) for row in csv.DictReader(file)][: len(found)]
    stored_N = torch.tensor(stored, dtype=torch.float64)
    return bool(torch.allclose(found.radius_B, stored_N, rtol=1e-12, atol=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=0, help="test images of each network; 0: all")
    options = parser.parse_args()
    part = f" --images {options.images}" if options.images else ""
    os.environ["LIPCERT_COMMAND"] = f"python -m benchmarks.relaxed{part}"
    title, target = "sets of classes that stay the same", "radii for every k; those of k = 1 are the published ones"
    with measuring(GOAL, title, target) as found:
        rows, same = [], []
        for name in (name for name in shipped() if load(name).card.get("norm", "l2") == "l2"):
            more, agrees = measured(name, options.images)
            rows += more
            same.append(agrees)
            print(*(" ".join(row) for row in more), sep="\n", flush=True)
        total = sum(int(row[3]) for row in {row[0]: row for row in rows}.values())
        found |= {
            "measured": f"{total:,} test images of {len(same)} networks, executed in float64: a set for every k; the "
            f"radii of k = 1 are those published for {sum(same)} of {len(same)} networks",
            "verdict": "fell short" if not all(same) else "in part" if options.images else "met",
            "numbers": {"networks": len(same), "images": total, "as_published": sum(same)},
            "rows": (HEAD, *rows),
        }


if __name__ == "__main__":
    main()
