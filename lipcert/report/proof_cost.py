"""What a proof costs in VRA: every published l2 run, its proven count beside what an estimate would have claimed.

The estimate is the power method's, 500 rounds in float64; its claim is the same margins over it, no rounding counted.
What a proof costs in seconds and memory: `proof_cost_systems`, `proof_cost_certificates`.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.figures import read_radii
from lipcert.report.names import DATASETS, FAMILIES, LOSSES, data_name, network_name
from lipcert.report.published import results_only
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

GUARANTEES = ("nominal", "real", "executed")
NOT_RUN = Markdown("No run with an estimate has been published yet: **not run**.")
_MARKS = {"mnist": (BLUE, "o"), "cifar10": (VERMILLION, "s"), "cifar100": (GREEN, "D"), "digits": (PURPLE, "^")}
_OTHER = (FAINT, "P")


@dataclass(frozen=True)
class Count:
    """One run at one radius: images certified by a proof, and claimed by the estimate; right ones only, both times."""

    run: Record
    radius: str
    proven: int
    claimed: int

    @property
    def more(self) -> int:
        """Images that the estimate claims beyond the proof."""
        return self.claimed - self.proven

    @property
    def own(self) -> bool:
        """Whether this is the radius that the run was trained for."""
        return Radius(self.radius) == Radius(self.run.config.radius)

    @property
    def points(self) -> float:
        """The same in percentage points of VRA: test sets differ in size."""
        return 100 * self.more / self.run.test.images

    @property
    def name(self) -> str:
        """`MNIST, ConvNet L3W32, EMMA`."""
        return f"{data_name(self.run)}, {network_name(self.run)}, {LOSSES[self.run.config.loss]}"


def counts(guarantee: str = "executed") -> list[Count]:
    """Every published run at every radius it was counted at, where both numbers are known.

    Args:
        guarantee: the proof's; without the estimate or this guarantee in float64 a count is left out.

    Raises:
        ValueError: a guarantee that is none.
    """
    if guarantee not in GUARANTEES:
        raise ValueError(f"guarantee={guarantee!r}: must be one of {', '.join(GUARANTEES)}")
    found = []
    for run in results_only(load_records()):
        for radius in dict.fromkeys(result.radius for result in run.test.results):
            proof = run.result(radius, guarantee, method="margin")
            claim = run.result(radius, "estimated", method="margin")
            if proof and claim:
                found.append(Count(run, radius, proof.certified_correct, claim.certified_correct))
    return found


def without_estimate() -> list[Record]:
    """Published runs in which there is nothing to estimate: certified in l_inf, by constants of 1 or by intervals."""
    return [
        run
        for run in results_only(load_records())
        if not any(result.guarantee == "estimated" for result in run.test.results)
    ]


def ratio(run: Record) -> float:
    """The proven upper end of the backbone's constant over its estimate."""
    return run.bounds.upper / run.bounds.estimate


def too_small(run: Record) -> bool:
    """Whether some layer's estimate lies below the proven lower end of its norm; residual blocks have no useful one."""
    return any(layer.estimate < layer.lower for layer in run.bounds.layers if layer.kind != "Residual")


def runs_of(found: Iterable[Count]) -> list[Record]:
    """The runs behind counts, each once."""
    return list({count.run.id: count.run for count in found}.values())


def by_family(found: Iterable[Count]) -> dict[str, list[Count]]:
    """Counts by the family of the network, in the order of the families."""
    groups: dict[str, list[Count]] = {family: [] for family in FAMILIES}
    for count in found:
        groups[count.run.config.family].append(count)
    return {family: group for family, group in groups.items() if group}


# ----------------------------------------------------------------------------------------------------- words and tables
def headline(guarantee: str = "executed") -> Markdown:
    """What was found, for the top of the page."""
    found = counts(guarantee)
    if not found:
        return Markdown("VRA that an estimate would have claimed beside VRA proven: **not run**.")
    own, over = [c for c in found if c.own], sum(c.more > 0 for c in found)
    text = (
        f"**In {over} of {len(found)} counts the estimate claims images that the proof does not** "
        f"({len(runs_of(found))} networks, all radii)."
    )
    return Markdown(f"{text} {_own_words(own)}" if own else text)


def _own_words(own: Sequence[Count]) -> str:
    """How much more the estimate claims at the radii of training, and how much of it may be the estimate's fault."""
    worst, where = max(own, key=lambda c: c.points), "At the radius a network was trained for"
    if worst.more <= 0:
        return f"{where}, the estimate claims no more than is proven: there a proof costs nothing."
    points = f"{worst.points:.2f} points of VRA more"
    if len(own) > 1:
        median = statistics.median(c.points for c in own)
        points = f"{median:.2f} points of VRA more in the median and {worst.points:.2f} at most"
    runs = runs_of(own)
    low = sum(map(too_small, runs))
    fault = f" Some of it may be an estimate that is too small, as it is for certain in {low} of {len(runs)} networks."
    return (
        f"{where}, the estimate claims {points} ({worst.name}, {worst.more:,} of {worst.run.test.images:,} images). A "
        f"proof costs no more than this.{fault if low else ''}"
    )


def gap_table(guarantee: str = "executed") -> Markdown:
    """The gap by family, in points of VRA."""
    if not (found := counts(guarantee)):
        return NOT_RUN
    groups = by_family(found)
    rows = [_row(FAMILIES[family], group) for family, group in groups.items()]
    if len(groups) > 1:
        rows.append(_row("all", found))
    head = (
        "network", "runs", "counts with more claimed", "more, points, own radius", "more, points, any radius",
        "proven / estimated constant",
    )  # fmt: skip
    return table(head, rows, right=(1, 2, 3, 4, 5))


def _row(name: str, group: Sequence[Count]) -> tuple[str, ...]:
    runs, own = runs_of(group), [c.points for c in group if c.own]
    over = f"{sum(c.more > 0 for c in group)} of {len(group)}"
    every = _spread(c.points for c in group)
    return name, str(len(runs)), over, _spread(own), every, _spread(map(ratio, runs), ".4f")


def _spread(values: Iterable[float], digits: str = ".2f") -> str:
    """`0.12, at most 0.69`: the median and the largest."""
    if not (values := list(values)):
        return "not run"
    return f"{statistics.median(values):{digits}}, at most {max(values):{digits}}"


def gap_words(guarantee: str = "executed") -> Markdown:
    """The table in words: the largest gaps, whether the estimate ever claims less, which end is off."""
    if not (found := counts(guarantee)):
        return NOT_RUN
    under = [c for c in found if c.more < 0]
    said = [f"Median, then the largest. The largest gap: {_case(max(found, key=lambda c: c.points))}."]
    if own := [c for c in found if c.own]:
        said.append(f"At its own radius: {_case(max(own, key=lambda c: c.points))}.")
    said.append(
        f"In {len(under)} of {len(found)} counts the estimate claims fewer images than are proven."
        if under
        else "It never claims fewer images than are proven."
    )
    if known := without_estimate():
        said.append(
            f"Left out are {len(known)} networks certified in ℓ∞, where constants are 1 by construction or intervals "
            "take their place: there is nothing to estimate."
        )
    return Markdown(" ".join(said))


def _case(count: Count) -> str:
    share = 100 * count.more / count.proven if count.proven else float("nan")
    beside = f", {share:.2g} % of what is proven" if count.proven else ""
    return (
        f"{count.name} at radius {count.radius}, {count.claimed:,} images claimed and {count.proven:,} of "
        f"{count.run.test.images:,} proven, {count.more:,} more ({count.points:.2f} points{beside})"
    )


def cause_words(guarantee: str = "executed") -> Markdown:
    """Which of the two is off: estimates proven too small, and what is left for the proof's own slack."""
    runs = runs_of(counts(guarantee))
    if not runs:
        return Markdown("")
    low = [run for run in runs if too_small(run)]
    widest = max(runs, key=ratio)
    text = (
        f"An image claimed and not proven is not shown to be false: the proof may be too careful, or the estimate too "
        f"small. For certain the estimate is too small in {len(low)} of {len(runs)} networks, where that of some layer "
        f"lies below the proven lower end of its norm. The proven constant exceeds the estimated one "
        f"{statistics.median(map(ratio, runs)):.4f} times in the median and {ratio(widest):.4f} times at most "
        f"({data_name(widest)}, {network_name(widest)})."
    )
    return Markdown(f"{text}{_over_depth(runs)}")


def _over_depth(runs: Sequence[Record]) -> str:
    """The ratio of the constants at the ends of every family's depths, one data set: factors of layers multiply."""
    said = []
    for family in FAMILIES:
        by_depth: dict[int, list[float]] = {}
        for run in runs:
            if run.config.family == family and run.data.name == "cifar10":
                by_depth.setdefault(run.config.depth, []).append(ratio(run))
        if len(by_depth) > 1:
            ends = (f"{statistics.median(by_depth[d]):.4f} at depth {d}" for d in (min(by_depth), max(by_depth)))
            said.append(f"{FAMILIES[family]} {' and '.join(ends)}")
    return f" Layers' factors multiply; on CIFAR-10, medians: {'; '.join(said)}." if said else ""


def images_words(guarantee: str = "executed") -> Markdown:
    """Image by image, where per-image radii were published."""
    found = [(count, *crossings(count)) for count in counts(guarantee) if count.run.test.radii]
    if not found or guarantee != "executed":  # radii are kept of the strongest guarantee alone
        return Markdown("")
    claimed, proven = (sum(case[n] for case in found) for n in (1, 2))
    return Markdown(
        f"Of {len(runs_of(case[0] for case in found))} networks every image's radius is kept. There, over all radii, "
        f"{claimed:,} right images are claimed by the estimate and not proven, and {proven:,} proven and not claimed."
    )


def rounding_words() -> Markdown:
    """How much of the gap is due to rounding: the same proofs without what rounding in the forward pass could do."""
    executed, nominal = ({(c.run.id, c.radius): c for c in counts(g)} for g in ("executed", "nominal"))
    both = executed.keys() & nominal.keys()
    if not both:
        return Markdown("")
    lost = [(abs(nominal[key].proven - executed[key].proven), executed[key].run.test.images) for key in both]
    images, of = max(lost, key=lambda each: each[0] / each[1])
    if not images:
        return Markdown(f"Proofs that ignore rounding certify as many images in all {len(both)} counts.")
    return Markdown(
        f"Proofs that ignore rounding certify another number of images in {sum(n > 0 for n, _ in lost)} of {len(both)} "
        f"counts, by {100 * images / of:.2f} points at most ({images:,} of {of:,} images)."
    )


def crossings(count: Count) -> tuple[int, int]:
    """Right images that the estimate certifies and the proof does not, and the other way round."""
    proven, estimated = read_radii(count.run)
    radius = float(Radius(count.radius))
    pairs = [(p >= radius, e >= radius) for p, e in zip(proven, estimated, strict=True)]
    return sum(e and not p for p, e in pairs), sum(p and not e for p, e in pairs)


# --------------------------------------------------------------------------------------------------------------- figure
def gap_figure(guarantee: str = "executed") -> "Figure | Markdown":
    """A row for every family, a dot for every run: VRA claimed beyond the proof at the run's own radius, in points."""
    groups = by_family(count for count in counts(guarantee) if count.own)
    if not groups:
        return Markdown("")
    figure, axes = canvas(WIDTH, 1.3 + 0.75 * len(groups))
    rows, handles = [], {}
    for n, (family, group) in enumerate(groups.items()):
        for count, y in stacked(group, lambda count: count.points):
            colour, marker = _MARKS.get(count.run.data.name, _OTHER)
            (dot,) = axes.plot(count.points, y - n, marker, color=colour, markersize=5, alpha=0.75, linewidth=0)
            handles.setdefault(DATASETS[count.run.data.name], dot)
            numbers = (count.run.test.images, count.proven, count.claimed, count.more, f"{count.points:.4f}")
            rows.append((family, count.run.id, count.radius, *numbers))
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_yticks([-n for n in range(len(groups))], [FAMILIES[family] for family in groups])
    axes.set(ylim=(0.55 - len(groups), 0.55), xlabel="claimed and not proven, own radius, points of VRA")
    axes.grid(axis="x")
    names = [name for name in DATASETS.values() if name in handles]
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=4, labelcolor=INK, fontsize=9.5,
        frameon=False,
    )  # fmt: skip
    said = "; ".join(f"{FAMILIES[family]} {_spread(c.points for c in group)}" for family, group in groups.items())
    alt = f"Points of VRA claimed by the estimate and not proven, one dot a run, median and largest: {said}."
    head = ("family", "run", "radius", "test_images", "proven", "claimed", "more", "points")
    return finish("proof-gap", figure, alt, head, rows)


def stacked(
    group: Sequence[Count], place: Callable[[Count], float], columns: int = 45, step: float = 0.09
) -> list[tuple[Count, float]]:
    """Heights around 0 for dots of one row, so that those nearly on one place stand above each other.

    Args:
        columns: how many places the row has. step: between two heights, made smaller where many share a place.
    """
    low, high = min(map(place, group)), max(map(place, group))
    width = (high - low) / columns or 1.0
    piles: dict[int, list[Count]] = {}
    for count in sorted(group, key=place):
        piles.setdefault(round((place(count) - low) / width), []).append(count)
    step = min(step, 0.8 / max(map(len, piles.values())))
    return [(c, step * (i - (len(pile) - 1) / 2)) for pile in piles.values() for i, c in enumerate(pile)]
