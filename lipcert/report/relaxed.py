"""Relaxed guarantees for their page: the record of `benchmarks/relaxed.py`, and digits certified while it is built.

Shape suffixes: N images.
"""

import functools
from dataclasses import dataclass
from itertools import groupby

from lipcert.report.checks import rows_of
from lipcert.report.svg import BLUE, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import DATASETS, Markdown, down, percent, table

GOAL = "relaxed"
HEAD = (
    "network", "dataset", "radius", "images", "sets", "k_max", "clean", "certified", "label in the largest",
    "label in the smallest", "classes in the smallest",
)  # fmt: skip
TOP = "top-k"
NETWORK = "digits-liresnet-L6W32"
ABSENT = "Not run."
_LINES = ((BLUE, "o", "-"), (VERMILLION, "s", "-"), (GREEN, "D", "-"), (PURPLE, "P", "-"))


@dataclass(frozen=True)
class Measured:
    """One relaxation on one network at its own radius; counts of test images.

    clean: label in the largest T_k at the image itself. certified: some T_k certified, right or wrong. largest,
    smallest: label in the largest or smallest certified T_k. classes: in the smallest certified T_k of all images.
    """

    network: str
    dataset: str
    radius: str
    images: int
    sets: str
    k_max: int
    clean: int
    certified: int
    largest: int
    smallest: int
    classes: int

    @property
    def name(self) -> str:
        """`CIFAR-10, 36/255`."""
        return f"{DATASETS.get(self.dataset, self.dataset)}, {self.radius}"

    @property
    def limit(self) -> str:
        """What sets were allowed, in words."""
        if self.sets != TOP:
            return f"inside of {self.sets}"
        return "one class: VRA" if self.k_max == 1 else f"up to {self.k_max} classes"

    def share(self, count: int) -> float:
        """In per cent of the test images."""
        return 100 * count / self.images


def measured() -> list[list[Measured]]:
    """The published measurement, network by network; none where it was not run.

    Raises:
        ValueError: rows of another kind.
    """
    if not (rows := rows_of(GOAL)):
        return []
    if rows[0] != HEAD:
        raise ValueError(f"check {GOAL!r} has columns {', '.join(rows[0])}: must be {', '.join(HEAD)}")
    found = [Measured(*row[:3], int(row[3]), row[4], *map(int, row[5:])) for row in rows[1:]]
    order = list(DATASETS)
    found.sort(key=lambda m: order.index(m.dataset))
    return [list(group) for _, group in groupby(found, key=lambda m: m.network)]


def relaxed_table() -> Markdown:
    """Every network and relaxation: relaxed VRA, the clean share to compare with, and how large the sets are."""
    rows = []
    for group in measured():
        for m in group:
            name = m.name if m is group[0] else ""
            share = percent(m.largest / m.images)
            size = f"{m.classes / m.certified:.2f}" if m.certified else ""
            shown = f"**{share}**" if m.k_max == 1 else share
            rows.append((name, m.limit, shown, percent(m.clean / m.images), percent(m.certified / m.images), size))
    head = ("network, radius", "certified sets", "label in one", "clean", "some set certified", "classes, mean")
    return table(head, rows, right=(2, 3, 4, 5)) if rows else Markdown(ABSENT)


def relaxed_words() -> Markdown:
    """What relaxing adds, to all certificates and to those with the label, and the gap to clean that is left."""
    lines = []
    for group in measured():
        alone, *others = (m for m in group if m.sets == TOP)
        if not others:
            continue
        widest = others[-1]
        rise = [m.share(m.largest) for m in (alone, widest)]
        gap = [m.share(m.clean - m.largest) for m in (alone, widest)]
        lines.append(
            f"- {alone.name}: VRA {rise[0]:.2f} %, relaxed to {widest.k_max} classes {rise[1]:.2f} %. The gap to the "
            f"clean share goes from {gap[0]:.2f} to {gap[1]:.2f} points; something is certified for "
            f"{widest.share(widest.certified):.2f} % of the images instead of {alone.share(alone.certified):.2f} %."
            + "".join(_affinity_words(alone, m) for m in group if m.sets != TOP)
        )
    return _words("\n".join(lines)) if lines else Markdown(ABSENT)


def _affinity_words(alone: Measured, m: Measured) -> str:
    gain = m.share(m.largest - alone.largest)
    return f" Sets inside of {m.sets} bring {gain:+.2f} points.".replace("-", "−").replace("+", "")


def relaxed_figure() -> "Figure | Markdown":
    """Relaxed VRA and clean top-k accuracy against k_max."""
    groups = measured()
    if not groups:
        return Markdown(ABSENT)
    figure, axes = canvas(WIDTH, 3.9)
    places = sorted({m.k_max for group in groups for m in group if m.sets == TOP})
    rows, alt = [], []
    for group, (colour, marker, dash) in zip(groups, _LINES, strict=False):
        tops = [m for m in group if m.sets == TOP]
        x = [places.index(m.k_max) for m in tops]
        y, clean = ([m.share(count) for m, count in zip(tops, c, strict=True)] for c in _columns(tops))
        axes.plot(x, clean, ":", marker=marker, markerfacecolor="none", color=colour, linewidth=1.6, markersize=5)
        axes.plot(x, y, dash, marker=marker, color=colour, linewidth=1.9, markersize=5, label=tops[0].name)
        rows += [(m.network, m.k_max, f"{a:.4f}", f"{b:.4f}") for m, a, b in zip(tops, y, clean, strict=True)]
        alt.append(f"{tops[0].name}: " + ", ".join(f"{v:.2f} % for {m.k_max}" for m, v in zip(tops, y, strict=True)))
    axes.set(ylim=(0, 100), xlabel="classes in a set, at most", ylabel="test images, %")
    axes.set_xticks(range(len(places)), ["1 (VRA)" if k == 1 else str(k) for k in places])
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    words = "Share of images whose label is in a certified set, against the size allowed; one class is VRA. "
    head = ("network", "k_max", "relaxed_vra_percent", "clean_top_k_percent")
    return finish("relaxed", figure, words + "; ".join(alt) + ".", head, rows)


def _columns(tops: list[Measured]) -> tuple[list[int], list[int]]:
    return [m.largest for m in tops], [m.clean for m in tops]


# --- computed while the page is built ---------------------------------------------------------------------------------


@functools.cache
def digit_sets():
    """Sets of up to three of the test digits, by the shipped network; labels and the network's radius."""
    import torch

    from lipcert.data import load_dataset, to_unit
    from lipcert.models import load
    from lipcert.relaxed import certify_top_k

    network, data = load(NETWORK), load_dataset("digits")
    images_NCHW = to_unit(data.test.images_NCHW, data.scale, torch.float64)
    return certify_top_k(network, images_NCHW, 3), data.test.labels_N, network.card["radius"]


def rescued() -> list[int]:
    """Images whose first class is not certified at the network's radius, but a set with the label is."""
    found, labels_N, radius = digit_sets()
    sets = found.members(found.chosen_k_B(radius, "strictest"))
    pairs = enumerate(zip(sets, labels_N.tolist(), strict=True))
    return [n for n, (members, label) in pairs if len(members) > 1 and label in members]


def examples_table(most: int = 6) -> Markdown:
    """Some of those: the set, its radius and that of the first class alone."""
    found, labels_N, radius = digit_sets()
    k_N = found.chosen_k_B(radius, "strictest")
    sets, rows = found.members(k_N), []
    for n in rescued()[:most]:
        alone, together = (float(found.radius_BT[n, k - 1]) for k in (1, int(k_N[n])))
        rows.append(
            (
                n,
                int(labels_N[n]),
                "{" + ", ".join(map(str, sets[n])) + "}",
                down(together),
                f"{sets[n][0]}: {down(alone)}" if alone > 0 else "none",
                int(found.runner_up_BT[n, int(k_N[n]) - 1]),
            )
        )
    head = ("test image", "label", "certified set", "radius", "its first class alone", "first to enter the set")
    return table(head, rows, right=(0, 1, 3))


def examples_words() -> Markdown:
    """How many there are."""
    found, labels_N, radius = digit_sets()
    k_N = found.chosen_k_B(radius, "strictest")
    first_N = found.order_BT[:, 0] == labels_N
    alone, more = int(((k_N == 1) & first_N).sum()), len(rescued())
    return Markdown(
        f"At radius {radius}, {alone} of {len(labels_N)} test digits are right and certified as one class; of {more} "
        f"more the label is in a certified set of two or three. For {int((k_N < 0).sum())} no such set is certified."
    )


def _words(text: str) -> Markdown:
    """Percentages do not break across lines."""
    return Markdown(text.replace(" %", "\N{NO-BREAK SPACE}%"))
