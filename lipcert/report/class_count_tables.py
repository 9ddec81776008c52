"""The page on class count, what came out: the setting, accuracies over the number of classes, how far each falls."""

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from lipcert.report import matrices
from lipcert.report.checks import check_words, find_check
from lipcert.report.class_count_runs import (
    ARMS,
    CHECK,
    IMAGES,
    RESTRICTED,
    TOTAL,
    Difference,
    Evidence,
    Measure,
    Point,
    clean,
    difference,
    gap,
    ratio,
    vra,
)
from lipcert.report.intervals import count_interval
from lipcert.report.names import DATASETS, network_name
from lipcert.report.published import EVIDENCE, Row, load_published
from lipcert.report.tables import Markdown, table

NONE = "not run"
# What question 1 starts from, as it was handed on to us: points of VRA and of clean accuracy lost between the two.
CLAIM = {
    "data": "ImageNet",
    "few": 100,
    "many": 1000,
    "vra": 30.0,
    "clean": 10.0,
    "evidence": "unverified_recollection",
}
_PUBLISHED = "Hu et al. (Recipe / CHORD LiResNet, ICLR 2024)"
_WORDS = {1: "VRA faster", -1: "VRA more slowly", 0: "cannot be told apart"}


# ---------------------------------------------------------------------------------------------------------------- forms
def digits_of(measure: Measure) -> int:
    """Decimals: shares of images in per cent have one, ratios three."""
    return 3 if measure is ratio else 1


def spread(values: Sequence[float], digits: int = 1, unit: str = "") -> str:
    """Mean, smallest and largest: `34.2 (31.0 to 37.5)`."""
    if not values:
        return NONE
    return f"{statistics.fmean(values):.{digits}f}{unit}{_ends(values, f'.{digits}f')}"


def signed(found: Difference, digits: int = 1) -> str:
    """The same with signs, of a difference."""
    if not found.pairs:
        return NONE
    return f"{found.mean:+.{digits}f}{_ends(found.values, f'+.{digits}f')}"


def _ends(values: Sequence[float], form: str) -> str:
    """Smallest and largest of several, in one piece."""
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return ends[:1] + ends[1:].replace(" ", "\N{NO-BREAK SPACE}")


def plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def several(items: Iterable[object]) -> str:
    """`10, 20 and 50`."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def short(arm: str) -> str:
    """`images of a class fixed`."""
    return ARMS[arm].removeprefix("trained, ")


def mean(points: Iterable[Point], measure: Measure) -> float:
    return statistics.fmean(map(measure, points))


def growth(evidence: Evidence, arm: str) -> Difference:
    """Of the gap between clean accuracy and VRA, in points: positive where VRA falls by more points."""
    return difference(evidence.at(arm, evidence.many), evidence.at(arm, evidence.few), gap)


def step(evidence: Evidence) -> str:
    return f"from {evidence.few} to {evidence.many} classes"


def verdict(found: Difference) -> str:
    """Whether VRA falls faster, by the growth of what it falls behind."""
    return _WORDS[found.sign] if found.pairs else NONE


# -------------------------------------------------------------------------------------------------------------- setting
def design_words(evidence: Evidence) -> Markdown:
    """What all runs share and what cannot be held fixed with it."""
    cells = [cell for arm in (IMAGES, TOTAL) for each in evidence.planned[arm].values() for cell in each]
    one = evidence.planned[IMAGES][evidence.many][0]
    seen = sorted({matrices.seen(cell) for cell in cells})
    often = [f"{passes(evidence, IMAGES, n):g}" for n in evidence.counts]
    text = (
        f"Every run is a {network_name(one)} that sees {several(f'{n:,}' for n in seen)} images of "
        f"{DATASETS[one.dataset]}, with one schedule for all, so a smaller set is seen more often. With images of a "
        f"class fixed a run goes through its set {several(often)} times at {several(evidence.counts)} classes"
    )
    if fixed := evidence.planned[TOTAL]:
        often = dict.fromkeys(f"{passes(evidence, TOTAL, n):g}" for n in fixed)
        text += f"; with images in total fixed ({one_size(evidence):,}), {several(often)} times at every count"
    return Markdown(
        f"{text}. Neither series varies the number of classes alone: with more of them, the first also has fewer "
        "passes over more images, the second fewer images of a class. What both series show, neither of these "
        "explains alone."
    )


def one_size(evidence: Evidence) -> int:
    """Training images of the series of fixed total, which must be planned."""
    return matrices.training_images(next(iter(evidence.planned[TOTAL].values()))[0])


def passes(evidence: Evidence, arm: str, classes: int) -> float:
    """How often a run of an arm sees each of its training images."""
    cell = evidence.planned[arm][classes][0]
    return round(matrices.seen(cell) / matrices.training_images(cell), 1)


def missing_words(evidence: Evidence) -> Markdown:
    """Commands of what was not run, or in part; empty where all was."""
    lines = [f"- `{command}`: {done} of {planned}" for command, done, planned in evidence.missing()]
    return Markdown("\n".join(["Not run, or in part:", "", *lines]) if lines else "")


def check_said() -> Markdown:
    """The check on restricted networks in a sentence; empty where it was not run, which `missing_words` says."""
    return check_words(CHECK) if find_check(CHECK) else Markdown("")


# ----------------------------------------------------------------------------------------------------------- accuracies
def accuracy_table(evidence: Evidence) -> Markdown:
    """Clean accuracy and VRA of every kind of network, mean and range over its draws."""
    rows = []
    for classes, arm in evidence.cells():
        points = evidence.at(arm, classes)
        rows.append(
            (
                classes, evidence.name(classes, arm), _made(evidence, arm, classes),
                *(spread([measure(p) for p in points], 1, " %") for measure in (clean, vra)),
                spread([p.ratio for p in points], 3),
            )
        )  # fmt: skip
    return table(("classes", "network", "runs", "clean", "VRA", "VRA / clean"), rows, right=(0, 3, 4, 5))


def _made(evidence: Evidence, arm: str, classes: int) -> str:
    points = evidence.at(arm, classes)
    if not points:
        return NONE
    if arm == RESTRICTED:
        draws, nets = ({getattr(p, key) for p in points} for key in ("draw", "net"))
        return f"{plural(len(draws), 'draw')} of {plural(len(nets), 'network')}"
    cells = evidence.planned[arm][classes]
    kind = "draw" if cells[0].classes else "seed"
    return plural(len(cells), kind) if len(points) == len(cells) else f"{len(points)} of {plural(len(cells), kind)}"


def accuracy_words(evidence: Evidence) -> Markdown:
    """How much of the spread is the choice of classes, and how much counting."""
    said = []
    if points := evidence.at(IMAGES, evidence.few):
        shares, middle = [p.vra for p in points], sorted(points, key=vra)[len(points) // 2]
        low, high = count_interval(middle.certified, middle.images)
        said.append(
            f"A draw of {evidence.few} classes has {middle.images:,} test images: counting alone leaves a VRA of "
            f"{middle.vra:.1f} % open between {low:.1f} and {high:.1f} % (Clopper-Pearson, 95 %)."
        )
        if len(points) > 1:
            width = max(shares) - min(shares)
            said.append(f"The {len(points)} draws range over {width:.1f} points.")
    if broad := evidence.broad.get(evidence.few):
        said.append(
            f"Over {plural(evidence.draws, 'draw')} of {evidence.few} classes the restricted networks' VRA is "
            f"{broad.vra:.1f} % on average, and the middle half of the draws lies between {broad.low:.1f} and "
            f"{broad.high:.1f} %. So what follows compares draw by draw."
        )
    return Markdown(" ".join(said) or f"Accuracies over the number of classes: **{NONE}**.")


# ---------------------------------------------------------------------------------------------------------------- falls
def falls_table(evidence: Evidence) -> Markdown:
    """By how much clean accuracy and VRA fall over the same step, in each arm."""
    rows = []
    for arm, title in ARMS.items():
        down = evidence.fall(arm, ratio)
        falls = (spread(evidence.fall(arm, measure).values) for measure in (clean, vra))
        rows.append((title, *falls, verdict(growth(evidence, arm)), spread(down.values, 3), verdict(down)))
    head = ("networks", "clean falls", "VRA falls", "in points", "VRA / clean falls", "in proportion")
    return table(head, rows, right=(1, 2, 4))


def falls_words(evidence: Evidence) -> Markdown:
    """Gap and ratio at both ends, arm by arm."""
    word = {1: "grows in every pair", -1: "shrinks in every pair", 0: "has no sure sign over the draws"}
    said = []
    for arm, title in ARMS.items():
        ends = [evidence.at(arm, n) for n in (evidence.few, evidence.many)]
        if not all(ends):
            said.append(f"- Networks {title}: **{NONE}**.")
            continue
        gaps, shares = ([mean(points, measure) for points in ends] for measure in (gap, ratio))
        said.append(
            f"- Networks {title}: right and not certified are {gaps[0]:.1f} % of the images at {evidence.few} classes "
            f"and {gaps[1]:.1f} % at {evidence.many}, a gap that {word[growth(evidence, arm).sign]}. Of the right "
            f"images {100 * shares[0]:.1f} % and {100 * shares[1]:.1f} % are certified."
        )
    return Markdown("\n".join(said))


def networks(evidence: Evidence) -> list[Point]:
    """Every trained network once."""
    return [p for classes, arm in evidence.cells() if arm != RESTRICTED for p in evidence.at(arm, classes)]


def explained(points: Sequence[Point], predictors: Sequence[Measure]) -> float:
    """Share of the variance of VRA / clean that a least-squares plane over these predictors accounts for; 0 of none."""
    target = np.array([ratio(point) for point in points])
    design = np.array([[1.0, *(predict(point) for predict in predictors)] for point in points])
    if np.ptp(target) == 0:
        return 0.0
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return 1 - float((rest**2).sum() / ((target - target.mean()) ** 2).sum())


def _logarithm(point: Point) -> float:
    return math.log(point.classes)


def difficulty(evidence: Evidence) -> tuple[float, float, float] | None:
    """`explained` by clean accuracy, by the logarithm of the number of classes, by both, per cent; None of a part."""
    points = networks(evidence)
    if len({point.classes for point in points}) < len(evidence.counts):
        return None
    ways = ((clean,), (_logarithm,), (clean, _logarithm))
    return tuple(100 * explained(points, predictors) for predictors in ways)


def difficulty_words(evidence: Evidence) -> Markdown:
    """Whether the number of classes tells more about VRA / clean than how hard the task came out."""
    if (shares := difficulty(evidence)) is None:
        return Markdown(f"VRA / clean by clean accuracy and number of classes: **{NONE}**.")
    alone, number, both = shares
    return Markdown(
        f"Over all {len(networks(evidence))} trained networks a straight line in clean accuracy accounts for "
        f"{alone:.0f} % of the variance of VRA / clean, one in the logarithm of the number of classes for "
        f"{number:.0f} %, both together for {both:.0f} %. The number of classes adds {both - alone:.0f} points to what "
        f"clean accuracy accounts for, clean accuracy {both - number:.0f} to what the number does."
    )


def claim_words(evidence: Evidence) -> Markdown:
    """What the LiResNet paper is said to have seen, beside ours."""
    data, theirs = CLAIM["data"], CLAIM["vra"] / CLAIM["clean"]
    text = (
        f"The LiResNet paper is said to report that about {CLAIM['vra']:.0f} points of VRA and {CLAIM['clean']:.0f} of "
        f"clean accuracy are lost from {CLAIM['few']} to {CLAIM['many']:,} classes of {data} "
        f"({EVIDENCE[CLAIM['evidence']]}: we have not read these figures in it), {theirs:.1f} points of VRA "
        "for one of clean accuracy."
    )
    for arm in (IMAGES, TOTAL):
        if not (rates := fall_rates(evidence, arm)):
            text += f" Here with {short(arm)}: **{NONE}**."
            continue
        side = "below" if max(rates) < theirs else "above" if min(rates) > theirs else "not apart from"
        text += f" Here {step(evidence)} with {short(arm)}: {spread(rates, 2)}, {side} that."
    return Markdown(f"{text} Neither step contains the other, so this is no reproduction.")


def fall_rates(evidence: Evidence, arm: str) -> list[float]:
    """Points of VRA for one of clean accuracy, of every pair; none where clean accuracy does not fall in all."""
    pairs = list(zip(evidence.fall(arm, vra).values, evidence.fall(arm, clean).values, strict=True))
    return [falls / down for falls, down in pairs] if all(down > 0 for _, down in pairs) else []


def published_table() -> Markdown:
    """One published recipe over data sets of more and more classes: other images too, so a look and no series."""
    found: dict[str, dict[str, Row]] = {}
    for row in load_published():
        # A model with a remark in brackets is somebody else's run.
        own = row.paper == _PUBLISHED and row.extra_data != "none" and "(" not in row.model
        if own and (row.metric == "clean" or (row.metric, row.norm, row.radius) == ("vra", "l2", "36/255")):
            found.setdefault(row.dataset, {})[row.metric] = row
    lines = []
    for pair in sorted((p for p in found.values() if len(p) == 2), key=lambda p: p["vra"].classes):
        right, sure = float(pair["clean"].value), float(pair["vra"].value)
        marks = several(sorted({EVIDENCE[row.evidence] for row in pair.values()}))
        name = DATASETS[pair["vra"].dataset]
        lines.append((name, pair["vra"].classes, f"{right:g} %", f"{sure:g} %", f"{sure / right:.3f}", marks))
    head = ("published, one recipe", "classes", "clean", "VRA at 36/255", "VRA / clean", "evidence")
    return table(head, lines, right=(1, 2, 3, 4))
