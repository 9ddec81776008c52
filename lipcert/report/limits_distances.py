"""What the distances between images allow: the check `distances` of `benchmarks.distances` in tables and words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lipcert.radius import Radius
from lipcert.records import load_records
from lipcert.report.checks import find_check
from lipcert.report.limits import Found
from lipcert.report.names import DATASETS
from lipcert.report.published import Row, load_published, results_only
from lipcert.report.tables import Markdown, duration, table

CHECK = "distances"
NOT_RUN = Markdown("The distances have not been measured yet: **not run** (`python -m benchmarks.distances`).")
NORMS = {"l2": "ℓ₂", "linf": "ℓ∞"}
_PAIRS = {"test": "within the test set", "train": "test to training set"}
_NAMES = re.compile(r"(\w+); (l2|linf); test; smallest")


@dataclass(frozen=True)
class Bound:
    """Test images that no classifier certifies at a radius: at least and at most so many of `images`."""

    radius: Radius
    images: int
    least: int
    most: int

    @property
    def above(self) -> float:
        """No classifier has more VRA, per cent."""
        return 100 * (self.images - self.least) / self.images

    @property
    def reached(self) -> float:
        """A classifier that knows the test set has so much, per cent."""
        return 100 * (self.images - self.most) / self.images


def numbers() -> dict[str, float | int | str]:
    """Those of the published check; empty where it was not run."""
    check = find_check(CHECK)
    return check.numbers if check else {}


def measured() -> list[tuple[str, str]]:
    """Data sets and norms that were measured, in the order of the check."""
    return [match.groups() for key in numbers() if (match := _NAMES.fullmatch(key))]


def bounds(dataset: str, norm: str) -> list[Bound]:
    """The bound at every radius it was taken at, ascending; empty where it was not run."""
    found, start = numbers(), f"{dataset}; {norm}; lost at "
    texts = [key.removeprefix(start).removesuffix("; at least") for key in found if key.startswith(start)]
    radii = [Radius(text) for text in texts if not text.endswith("; at most")]
    images = int(found.get(f"{dataset}; images", 0))
    ends = [[int(found[f"{start}{radius}; {end}"]) for end in ("at least", "at most")] for radius in radii]
    both = [Bound(radius, images, *lost) for radius, lost in zip(radii, ends, strict=True)]
    return sorted(both, key=lambda bound: bound.radius)


def at(dataset: str, norm: str, radius: Radius) -> Bound | None:
    """The bound at a radius; None where it was not taken there."""
    return next((bound for bound in bounds(dataset, norm) if bound.radius == radius), None)


def begins(dataset: str, norm: str) -> float:
    """Half the smallest distance within the test set: up to there no two images exclude each other. In pixels."""
    return float(numbers()[f"{dataset}; {norm}; test; smallest"]) / 2


# ----------------------------------------------------------------------------------------------------------- distances
def distances_table() -> Markdown:
    """Distances from a test image to the nearest one of another class, by data set and norm."""
    found = numbers()
    if not found:
        return NOT_RUN
    rows = [
        (
            f"{DATASETS[name]}, {NORMS[norm]}", words,
            *(f"{found[f'{name}; {norm}; {pair}; {what}']:.3f}" for what in ("smallest", "1 %", "median", "largest")),
        )
        for name, norm in measured() for pair, words in _PAIRS.items()
    ]  # fmt: skip
    return table(("data set, norm", "pairs", "smallest", "1 %", "median", "largest"), rows, right=(2, 3, 4, 5))


def distances_words(dataset: str) -> Markdown:
    """The closest pair of a data set, and images that occur twice with two labels."""
    found = numbers()
    if (dataset, "l2") not in measured():
        return Markdown("")
    within, across = (float(found[f"{dataset}; l2; {pair}; smallest"]) for pair in _PAIRS)
    pairs = [found[f"{dataset}; l2; {pair}; pair"] for pair in _PAIRS]
    text = (
        f"Of {DATASETS[dataset]}'s {int(found[f'{dataset}; images']):,} test images the two closest of different "
        f"classes are {within:.3f} apart in ℓ₂: {pairs[0]}. The closest one to a training image is {across:.3f} from "
        f"it: {pairs[1]}. A pixel that goes from 0 to 255 counts 1."
    )
    return Markdown(f"{text} {_identical(name for name, norm in measured() if norm == 'l2')}")


def _identical(names: Iterable[str]) -> str:
    """Images that are equal in every pixel and differ in their label."""
    found, said = numbers(), []
    for name in names:
        count = {what: int(found[f"{name}; identical; two labels, {what}"]) for what in ("test", "train", "across")}
        if any(count.values()):
            said.append(
                f"{DATASETS[name]} has groups of identical images with two labels, {count['test']} within the test "
                f"set, {count['train']} within the training set and {count['across']} across both"
            )
    return f"{'. '.join(said)}." if said else "No set has the same image with two labels."


# ----------------------------------------------------------------------------------------------------------- the bound
def bound_table(found: Found, norm: str = "l2") -> Markdown:
    """The bound at the radii of the study, beside what is reached here and what has been published."""
    everywhere = bounds(found.dataset, norm)
    if not everywhere:
        return NOT_RUN
    best = best_here(found, norm), best_published(found.dataset, norm)
    rows = [
        (bound.radius, f"{bound.above:.2f} %", f"{bound.reached:.2f} %", *(_share(b.get(bound.radius)) for b in best))
        for bound in everywhere
    ]
    head = ("radius", "no classifier above", "one that knows the test set", "best here", "best published")
    return table(head, rows, right=(1, 2, 3, 4))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def best_here(found: Found, norm: str = "l2") -> dict[Radius, float]:
    """The highest VRA of this study's runs with the guarantee by radius, per cent."""
    best: dict[Radius, float] = {}
    for record in results_only(load_records()):
        if (record.data.name, record.config.classes) != (found.dataset, None):
            continue
        for result in record.test.results:
            if (result.norm, result.guarantee, result.arithmetic) == (norm, found.guarantee, "float64"):
                radius, share = Radius(result.radius), 100 * result.certified_correct / record.test.images
                best[radius] = max(share, best.get(radius, 0.0))
    return best


def best_published(dataset: str, norm: str = "l2") -> dict[Radius, float]:
    """The highest published VRA by radius, whatever it was trained on, per cent."""
    best: dict[Radius, float] = {}
    for row in load_published():
        if _is_certified(row, dataset, norm):
            radius = Radius(row.radius)
            best[radius] = max(float(row.value), best.get(radius, 0.0))
    return best


def _is_certified(row: Row, dataset: str, norm: str) -> bool:
    return (row.dataset, row.norm, row.metric) == (dataset, norm, "vra") and row.evidence != "unverified_recollection"


def bound_words(found: Found, norm: str = "l2") -> Markdown:
    """Where the bound begins to say something, and how far that is from the radius in question."""
    everywhere = bounds(found.dataset, norm)
    if not everywhere:
        return NOT_RUN
    where = at(found.dataset, norm, found.radius)
    parts = [*([_at_radius(where)] if where else []), _start_words(found, norm)]
    for share in (99, 90):
        if below := next((bound for bound in everywhere if bound.above < share), None):
            parts.append(f"Below {share} % the bound is found at radius {below.radius} ({below.above:.1f} %).")
    last = everywhere[-1]
    parts.append(
        f"At {last.radius}, the largest radius taken, it is {last.above:.1f} %, and a classifier exists that has "
        f"{last.reached:.1f} %."
    )
    return Markdown(" ".join(parts))


def _start_words(found: Found, norm: str) -> str:
    """Up to where no two images exclude each other, those aside that are equal."""
    if start := begins(found.dataset, norm):
        times = f", {start / float(found.radius):.1f} times {found.radius}" if norm == "l2" else ""
        return f"Up to radius {start:.3f}{times}, no two of these test images exclude each other."
    first, *rest = bounds(found.dataset, norm)
    same = [bound for bound in rest if bound.least == first.least]
    return f"They are equal images with different labels. Up to radius {(same or [first])[-1].radius} no other is lost."


def _at_radius(bound: Bound) -> str:
    if not bound.least:
        return f"**At {bound.radius} the bound is 100 %: it is vacuous.**"
    return (
        f"**At {bound.radius} the bound is {bound.above:.2f} %**: {bound.least} of {bound.images:,} test images "
        f"{'is' if bound.least == 1 else 'are'} lost to every classifier."
    )


def other_words() -> Markdown:
    """Where the bound begins on every set and in both norms."""
    if not measured():
        return NOT_RUN
    said: dict[str, list[str]] = {}
    for name, norm in measured():
        start = begins(name, norm)
        said.setdefault(name, []).append(f"{start:.3f} ({NORMS[norm]})" if start else "0, for equal images")
    lines = [f"{DATASETS[name]} {' and '.join(dict.fromkeys(starts))}" for name, starts in said.items()]
    return Markdown(f"So the bound begins to say something at these radii: {'; '.join(lines)}.")


def cost_words() -> Markdown:
    """What measuring the distances took."""
    if (check := find_check(CHECK)) is None:
        return NOT_RUN
    threads, cores, processor = (check.hardware.get(key) for key in ("threads", "cores", "processor"))
    commit = (check.commit or "unknown")[:7]
    took = f"{duration(check.seconds)} on {threads} of {cores} cores of {processor}"
    return Markdown(f"`{check.command}`: {took}, commit {commit}.")


def geometry(found: Found) -> Markdown:
    """The first half of the answer to the question of limits."""
    bound = at(found.dataset, "l2", found.radius)
    if bound is None:
        return NOT_RUN
    best = best_here(found).get(found.radius)
    reached = "" if best is None else f"; the best network here has {best:.2f} %"
    if bound.least:
        said = f"distances between test images leave room for {bound.above:.2f} % of VRA at {found.radius}"
    else:
        said = f"distances between test images rule out nothing at {found.radius}: the bound is 100 %"
    return Markdown(f"On {DATASETS[found.dataset]} {said}{reached}.")
