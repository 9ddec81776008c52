"""Record `class-restriction`: what trained networks certify on some of their classes, without training again.

`python -m benchmarks.class_restriction RUN ...` takes ids of l2 runs (or names or files of networks) on all classes of
a data set. For every count of classes it draws 100 subsets, keeps the test images and the logits of their classes, and
counts those right and those certified at the network's radius. The draws are `choose_classes` with seeds 0 to 99: draws
of one seed are nested, and seeds 0 to 4 are those that networks of their own are trained on (class-count-images.yaml).
About 20 s of one core for a network of six layers and 32 channels, most of it one pass over the test images.

Why a count is a proof. The restricted network is the same backbone under fewer rows of the head. That class y stays
ahead of class j on the ball is one inequality between the two (`lipcert.deviation`, *Head*): it has their logits, the
constant P |w_y - w_j|, and errors of the backbone and of rows y and j, in any order of summation; no third class
appears. So the inequalities that the restricted network needs are some of those of the whole network, and its radius is
the least over them. `pair_radii`, the certifier's own function, is asked once about the label against every class;
each subset then takes the least of its columns. Partial sums, too, are bounded over all rows of the head. What is
counted can only be low: an image with a logit that is not finite proves nothing, even where the subset leaves it out.

Shape letters: N images, M images of a subset, S classes of a subset, K all classes, B images of a piece.
"""

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Spread
from lipcert.certify import gather_evidence
from lipcert.chain import chain_bounds
from lipcert.data import DATASETS, Dataset, load_dataset
from lipcert.data.splits import choose_classes
from lipcert.evaluate import unit_pieces
from lipcert.margin_statistics import boundary_distances
from lipcert.models import open_network
from lipcert.radius import Radius
from lipcert.records import RecordError, find_record
from lipcert.report.checks import measuring

GOAL = "class-restriction"
TARGET = "with all classes, the counts of the run's own record"
COUNTS, DRAWS, TRAINED = (2, 5, 10, 20, 50), 100, 5  # the first of the draws are those that networks are trained on
COLUMNS = ("network", "classes", "draws", "clean", "quartiles", "certified", "quartiles", "median distance")
_CLAIMS = (("nominal", "float64"), ("executed", "float64"))


class Counts(NamedTuple):
    """Test images of some classes under the network restricted to them.

    certified: of the images that are right, at the radius, executed in float64. median: signed distance from the
    nearest boundary in pixels, an estimate (`lipcert.margin_statistics`).
    """

    images: int
    right: int
    certified: int
    median: float


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every test image against every class.

    labels_N: (N,) int64. right_NK: whether the label is ahead of the class (*nominal*, ties are not). certified_NK:
    whether it provably stays ahead on the ball (*executed*, float64). distance_NK: float64, inf from its own class.
    """

    labels_N: Tensor
    right_NK: Tensor
    certified_NK: Tensor
    distance_NK: Tensor

    def counts(self, classes: Sequence[int]) -> Counts:
        """With these classes alone; at least two of them."""
        kept_S = torch.tensor(sorted(classes))
        inside_MS = torch.isin(self.labels_N, kept_S).nonzero(), kept_S
        right_M, certified_M = self.right_NK[inside_MS].all(1), self.certified_NK[inside_MS].all(1)
        return Counts(
            len(right_M),
            int(right_M.sum()),
            int((right_M & certified_M).sum()),
            float(self.distance_NK[inside_MS].amin(1).median()),
        )


def pairs(chain: nn.Sequential, data: Dataset, radius: Radius, effort: str = "fast") -> Pairs:
    """One pass over the test images; bounds of this effort."""
    bounds, start, parts = chain_bounds(chain, data.shape, effort), 0, []
    limit = float(radius)
    for images_BCHW in unit_pieces(data, "test"):
        labels_B = data.test.labels_N[start : (start := start + len(images_BCHW))]
        nominal, executed = gather_evidence(chain, images_BCHW, _CLAIMS, effort=effort, bounds=bounds)
        in_range_B = executed.in_range(torch.full((len(labels_B),), limit, dtype=torch.float64))
        parts.append(
            (
                labels_B,
                nominal.radii(labels_B) > 0,
                (executed.radii(labels_B) >= limit) & in_range_B[:, None],
                boundary_distances(nominal.logits_BK, labels_B, bounds.margin_lipschitz_KK),
            )
        )
    return Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


# --------------------------------------------------------------------------------------------------------- the networks
@dataclass(frozen=True)
class Restricted:
    """One network's counts.

    draws: for every count of classes, one entry a draw. whole: with all classes. agrees: whether those are the counts
    of its record; None without a record whose bounds were of the same effort.
    """

    run: str
    radius: str
    classes: int
    draws: dict[int, list[Counts]]
    whole: Counts
    agrees: bool | None


def restrict(name: str, draws: int, effort: str) -> Restricted:
    """All draws of one network.

    Raises:
        ValueError: not an l2 network on all classes of its data set.
    """
    chain = open_network(name)
    card = chain.card
    if card["classes"] not in (None, DATASETS[card["dataset"]].classes) or card.get("norm", "l2") != "l2":
        raise ValueError(
            f"{name}: classes={card['classes']}, norm={card.get('norm', 'l2')!r}: must be an l2 network trained on all "
            "classes of its data set"
        )
    data, run = load_dataset(card["dataset"]), card.get("run") or name
    found = pairs(chain, data, Radius(card["radius"]), effort)
    whole = found.counts(range(data.classes))
    drawn = {
        count: [found.counts(choose_classes(data.name, data.classes, count, seed)) for seed in range(draws)]
        for count in COUNTS
        if count < data.classes
    }
    return Restricted(run, card["radius"], data.classes, drawn, whole, agreement(run, card["radius"], effort, whole))


def agreement(run: str, radius: str, effort: str, whole: Counts) -> bool | None:
    """Whether a run's record has these counts; None where it has none to compare."""
    try:
        record, _ = find_record(run)
    except RecordError:
        return None
    result = record.result(radius, "executed")
    if result is None or result.effort != effort or record.test.split != "test":
        return None
    return (record.test.clean, result.certified_correct) == (whole.right, whole.certified)


# --------------------------------------------------------------------------------------------------------- the record
def told(found: Sequence[Restricted], draws: int) -> dict:
    """The record's contents: means over draws to read, counts of the draws that networks are trained on to compare."""
    rows, numbers = [COLUMNS], {"networks": len(found), "draws": draws, "trained draws": min(draws, TRAINED)}
    for net in found:
        for count, each in [*net.draws.items(), (net.classes, [net.whole])]:
            key = f"{net.run}; {count} classes"
            clean, vra = (shares(each, field) for field in ("right", "certified"))
            median = statistics.mean(c.median for c in each)
            rows.append((net.run, str(count), str(len(each)), *shown(clean), *shown(vra), f"{median:.3f}"))
            for what, values in (("clean", clean), ("vra", vra)):
                spread = Spread.of(values)
                numbers |= {f"{key}; {what}": statistics.mean(values)}
                numbers |= {f"{key}; {what}, low": spread.low, f"{key}; {what}, high": spread.high}
            numbers[f"{key}; median distance"] = median
            for seed, one in enumerate(each[:TRAINED] if count < net.classes else []):
                numbers |= {f"{key}; seed {seed}; {field}": value for field, value in one._asdict().items()}
    agreed = [net.agrees for net in found]
    return {
        "measured": words(found),
        "verdict": "fell short" if False in agreed else "in part" if None in agreed else "met",
        "numbers": {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in numbers.items()},
        "rows": tuple(rows),
    }


def shares(counts: Iterable[Counts], field: str) -> list[float]:
    """Of all images of the draw, draw by draw."""
    return [getattr(each, field) / each.images for each in counts]


def shown(values: list[float]) -> tuple[str, str]:
    """Mean, and quartiles where there are several."""
    spread = Spread.of(values)
    return f"{statistics.mean(values):.1%}", f"{spread.low:.1%} to {spread.high:.1%}" if len(values) > 1 else ""


def words(found: Sequence[Restricted]) -> str:
    """Clean accuracy and VRA by count of classes, mean over draws and networks, each set and radius by itself."""
    text = []
    for classes, radius in dict.fromkeys((net.classes, net.radius) for net in found):
        nets = [net for net in found if (net.classes, net.radius) == (classes, radius)]
        points = []
        for count in (*nets[0].draws, classes):
            each = [one for net in nets for one in (net.draws[count] if count < classes else [net.whole])]
            clean, vra = (statistics.mean(shares(each, field)) for field in ("right", "certified"))
            points.append(f"{count} classes {clean:.1%} clean, {vra:.1%} certified")
        plural = "s" if len(nets) > 1 else ""
        text.append(f"{len(nets)} network{plural} of {classes} classes, radius {radius}: {'; '.join(points)}")
    compared = [net for net in found if net.agrees is not None]
    agreed = sum(bool(net.agrees) for net in compared)
    known = f"{agreed} of {len(compared)} records have" if compared else "no record with bounds of this effort has"
    return f"{'. '.join(text)}. With all classes, {known} the same counts"


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="id of a run, name of a shipped network, or a file")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"subsets of every size (default {DRAWS})")
    parser.add_argument("--effort", choices=("fast", "tight"), default="fast", help="of the bounds (default fast)")
    options = parser.parse_args(given)
    if options.draws < 1:
        parser.error(f"--draws {options.draws}: must be at least 1")
    os.environ["LIPCERT_COMMAND"] = shlex.join(["python", "-m", "benchmarks.class_restriction", *given])
    with measuring(GOAL, "trained networks on some of their classes", TARGET) as found:
        networks = []
        for name in options.runs:
            networks.append(restrict(name, options.draws, options.effort))
            print(words(networks[-1:]), flush=True)
        found |= told(networks, options.draws)


if __name__ == "__main__":
    main()
