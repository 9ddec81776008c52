"""The chapter on l_inf-distance nets in words and tables: MNIST, the parts of the loss, CIFAR-10, exactness.

Drawn from the runs in `lipcert.report.linf_runs` and from the check `linf-exactness`.
"""

import itertools
from collections.abc import Callable, Sequence

from lipcert.report.checks import check_rows, check_words, find_check, rows_of
from lipcert.report.linf_runs import (
    MEASURES,
    NOT_RUN,
    PARTS,
    WAYS,
    Arm,
    both,
    cell,
    cifar,
    dots,
    losses,
    mnist,
    number,
    progress,
    published,
    row_of,
    span,
)
from lipcert.report.names import DATASETS, network_name
from lipcert.report.published import EVIDENCE
from lipcert.report.svg import Figure
from lipcert.report.tables import Markdown, table

# The second version's published numbers, each with the best one of interval training in our list.
_ELSEWHERE = (
    ("linf-v2_radius-0-1_mnist_linf_0-1_vra", "cc-ibp-mtl-ibp-exp-ibp_cc-ibp_mnist_linf_0-1_vra"),
    (
        "linf-v2_radius-0-3_mnist_linf_0-3_vra",
        "verifiably-robust-training_ibp-based-training-lyu-et-al_mnist_linf_0-3_vra",
    ),
    ("linf-v2_radius-2-255_cifar10_linf_2-255_vra", "cc-ibp-mtl-ibp-exp-ibp_cc-ibp_cifar10_linf_2-255_vra"),
    ("linf-v2_radius-8-255_cifar10_linf_8-255_vra", "cc-ibp-mtl-ibp-exp-ibp_mtl-ibp_cifar10_linf_8-255_vra"),
)
SEEDS = 3  # runs of each side from which one is said to be ahead
_EXACTNESS = "linf-exactness"
_ATTACKED = "certified images attacked"
_REACH = ": inside, far"  # end of the heads of the attacks' columns


def shown(*parts: "Figure | Markdown") -> "list[Figure | Markdown]":
    """What a page displays: the parts without the empty ones, which a notebook would show as an empty string."""
    return [part for part in parts if part != ""]


def headline() -> Markdown:
    """Who certifies more by intervals, distance nets or convolutions, as far as the runs decide; then every share."""
    groups, lines = [], []
    for place, distances, conventional in _duels():
        arms = {**distances, "convolutions, IBP": conventional}
        if not any(arm.runs for arm in arms.values()):
            continue
        groups.append((tuple(distances.values()), conventional))
        shares = "; ".join(f"{name} {_share(arm)}" for name, arm in arms.items() if arm.cells)
        lines.append(f"{place}: {shares}{'' if conventional.cells else '; nothing conventional beside it'}.")
    if not lines:
        return Markdown("Certified accuracy of this chapter's networks: **not run**.")
    return Markdown(f"{_decided(groups)} Small networks, certified by intervals. {' '.join(lines)}")


def _duels() -> list[tuple[str, dict[str, Arm], Arm]]:
    """Places, with the arms of distance nets by name and the one of convolutions trained by intervals."""
    ways, found = cifar(), mnist()
    distances = {name: ways[way] for way, (name, _) in WAYS.items() if way != "ibp"}
    duels = [("On CIFAR-10 at 8/255", distances, ways["ibp"])]
    for radius in dict.fromkeys(radius for radius, _ in found):
        distances = {"ℓ∞-distance net": found.get((radius, "linf_mixture"), Arm())}
        duels.append((f"On MNIST at {radius}", distances, found.get((radius, "ibp"), Arm())))
    return duels


def _share(arm: Arm) -> str:
    return f"{arm.mean():.2f} % ({arm.seeds})" if arm.runs else "not run"


def _decided(groups: "Sequence[tuple[Sequence[Arm], Arm]]") -> str:
    """What all places say together. Ahead is who has every one of three or more seeds above every one of the others."""
    pairs = [
        (max(ran, key=Arm.mean), conventional)
        for distances, conventional in groups
        if conventional.runs and (ran := [arm for arm in distances if arm.runs])
    ]
    if not pairs:
        return "**Not decided**: nowhere have both kinds been run."
    if any(min(len(arm.runs) for arm in pair) < SEEDS for pair in pairs):
        return "**Not decided**: there are fewer than three runs of one kind or the other."
    ends = [[(min(shares), max(shares)) for shares in (arm.shares("interval") for arm in pair)] for pair in pairs]
    if all(ours[0] > theirs[1] for ours, theirs in ends):
        return "**At this size the distance nets are ahead**, by every seed; that it is fundamental does not follow."
    if all(theirs[0] > ours[1] for ours, theirs in ends):
        return "**Not at this size**: the convolutions are ahead, by every seed."
    return "**Not decided**: neither kind is ahead by every seed everywhere."


def _points(difference: float, other: str) -> str:
    """`1.22 points below the published network`."""
    return f"{abs(difference):.2f} points {'below' if difference < 0 else 'above'} {other}"


# --- MNIST -----------------------------------------------------------------------------------------------------------


def _beginning(radius: str, loss: str) -> str | None:
    return None if loss == "ibp" else f"linf-v2_radius-{radius.replace('.', '-')}"


def mnist_table() -> Markdown:
    """Clean and certified accuracy by radius, the two rules side by side, with what was published."""
    rows = []
    for (radius, loss), arm in mnist().items():
        name = "convolutions, IBP" if loss == "ibp" else "ℓ∞-distance net"
        shares = (cell(arm, measure) for measure in MEASURES)
        rows.append((radius, name, *shares, both(published(_beginning(radius, loss), "mnist", radius))))
    head = ("radius", "network", "clean", "by margins", "by intervals", "published: clean, certified")
    return table(head, rows, right=(2, 3, 4))


def mnist_words() -> Markdown:
    """The table in words: what intervals gain, how far the published networks are, and what IBP reaches."""
    said = [
        _conventional(radius, arm) if loss == "ibp" else _distances(radius, arm)
        for (radius, loss), arm in mnist().items()
        if arm.runs
    ]
    return Markdown("\n\n".join(said)) if said else NOT_RUN


def _distances(radius: str, arm: Arm) -> str:
    run = arm.runs[0]
    gain = f"At {radius} intervals certify {span(arm.gains())} images of {run.test.images:,} more than margins do"
    _, row = published(_beginning(radius, "linf_mixture"), "mnist", radius)
    theirs = "" if row is None else (
        f" The published network, {row.parameters_millions:g} M parameters, reaches {row.value} %. Ours, "
        f"{network_name(run)} with {arm.millions} and {run.config.epochs:g} epochs, is "
        f"{_points(arm.mean() - float(row.value), 'that')}: **not comparable**."
    )  # fmt: skip
    return f"{gain} ({arm.seeds}).{theirs}"


def _conventional(radius: str, arm: Arm) -> str:
    """Interval-trained convolutions beside the distance net at that radius."""
    reached = f"At {radius} convolutions trained and certified by intervals reach {arm.mean():.2f} % ({arm.seeds}"
    ours = mnist().get((radius, "linf_mixture"), Arm())
    if not ours.runs:
        return f"{reached}); the distance net was not run."
    images = span([run.training.images for run in (*arm.runs, *ours.runs)])
    return (
        f"{reached}, {arm.millions} parameters; either network saw {images} images): "
        f"{_points(arm.mean() - ours.mean(), 'the distance net')}."
    )


def mnist_figure() -> "Figure | Markdown":
    """One line a radius and network, one dot a seed, the published number hollow."""
    lines = [
        (
            f"{radius}, {'IBP' if loss == 'ibp' else 'distances'}",
            arm,
            published(_beginning(radius, loss), "mnist", radius)[1],
        )
        for (radius, loss), arm in mnist().items()
        if arm.runs
    ]
    return dots("linf-mnist", lines, "share of MNIST test images, %", mnist_words())


# --- the parts of the loss -------------------------------------------------------------------------------------------


def losses_table() -> Markdown:
    """Every part of the loss on MNIST, beside the published ablation on CIFAR-10."""
    rows = []
    for part, arm in losses().items():
        name, beginning = PARTS[part]
        shares = (cell(arm, "clean"), cell(arm, "interval"))
        rows.append((name, *shares, *map(number, published(beginning, "cifar10", "8/255"))))
    at = next((f" at {arm.cells[0].radius}" for arm in losses().values() if arm.cells), "")
    head = ("loss", "MNIST, clean", f"MNIST, certified{at}", "published: CIFAR-10, clean", "certified at 8/255")
    return table(head, rows, right=(1, 2, 3, 4))


def losses_words() -> Markdown:
    """Our order beside the published one, and which neighbours the seeds do not tell apart."""
    ours = {part: arm for part, arm in losses().items() if arm.runs}
    if not ours:
        return NOT_RUN
    rows = {part: published(PARTS[part][1], "cifar10", "8/255")[1] for part in ours}
    order = sorted(ours, key=lambda part: -ours[part].mean())
    theirs = sorted((part for part in ours if rows[part]), key=lambda part: -float(rows[part].value))
    here = "; ".join(f"{PARTS[part][0]} {ours[part].mean():.2f} %" for part in order)
    there = "; ".join(f"{PARTS[part][0]} {rows[part].value} %" for part in theirs)
    evidence = ", ".join(dict.fromkeys(EVIDENCE[rows[part].evidence] for part in theirs))
    same = "The order is the same." if order == theirs else "**The order is not the same.**"
    missing = f" {len(PARTS) - len(ours)} of {len(PARTS)} losses were not run." if len(ours) < len(PARTS) else ""
    return Markdown(
        f"Best first, on MNIST: {here}. Published, on CIFAR-10 ({evidence}): {there}. {same if len(ours) > 1 else ''}"
        f"{_overlaps(order, ours)}{missing}"
    )


def _overlaps(order: Sequence[str], found: dict[str, Arm]) -> str:
    """Neighbours whose ranges over the seeds meet."""
    pairs = [
        f"*{PARTS[better][0]}* and *{PARTS[worse][0]}*"
        for better, worse in itertools.pairwise(order)
        if min(found[better].shares("interval")) <= max(found[worse].shares("interval"))
    ]
    if not pairs:
        return " The ranges over the seeds of neighbours do not meet." if len(order) > 1 else ""
    return f" The ranges over the seeds meet for {', and for '.join(pairs)}: these are not told apart."


def losses_figure() -> "Figure | Markdown":
    """One line a part of the loss, one dot a seed."""
    lines = [(PARTS[part][0].replace(", ", ",\n"), arm, None) for part, arm in losses().items() if arm.runs]
    return dots("linf-losses-mnist", lines, "share of MNIST test images, %", losses_words())


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def cifar_table() -> Markdown:
    """Hinge, mixture and interval training at 8/255, with what was published."""
    rows = []
    for way, arm in cifar().items():
        name, beginning = WAYS[way]
        shares = (cell(arm, measure) for measure in MEASURES)
        size = f", {arm.millions}" if arm.runs else ""
        rows.append((f"{name}{size}", *shares, both(published(beginning, "cifar10", "8/255"))))
    head = ("trained with", "clean", "by margins", "by intervals", "published: clean, certified")
    return table(head, rows, right=(1, 2, 3))


def cifar_words() -> Markdown:
    """Who is ahead, at how many images seen, for how much time."""
    found = {way: arm for way, arm in cifar().items() if arm.runs}
    if not found:
        return NOT_RUN
    runs = [run for arm in found.values() for run in arm.runs]
    order = sorted(found, key=lambda way: -found[way].mean())
    said = "; ".join(f"{WAYS[way][0]} {found[way].mean():.2f} %" for way in order)
    hours = sum(run.training.seconds for run in runs) / 3600
    few = all(len(arm.runs) == 1 for arm in found.values())
    caution = " Every line is one run, so small differences mean nothing." if few else ""
    missing = f" {len(WAYS) - len(found)} of {len(WAYS)} were not run." if len(found) < len(WAYS) else ""
    return Markdown(
        f"Certified by intervals at 8/255, best first: {said}. Each saw {span([r.training.images for r in runs])} "
        f"images; training took {hours:.1f} hours in all.{caution}{missing}"
    )


def cifar_figure() -> "Figure | Markdown":
    """One line a way of training."""
    lines = [
        (WAYS[way][0].replace(", ", ",\n"), arm, published(WAYS[way][1], "cifar10", "8/255")[1])
        for way, arm in cifar().items()
        if arm.runs
    ]
    return dots("linf-cifar10", lines, "share of CIFAR-10 test images, %", cifar_words())


def elsewhere_words() -> Markdown:
    """The published comparison at full size: the second version against the best interval training in our list."""
    said, ahead = [], []
    for ours, theirs in _ELSEWHERE:
        first, second = row_of(ours), row_of(theirs)
        if first and second:
            where = f"{DATASETS[first.dataset]} at {first.radius}"
            evidence = EVIDENCE[second.evidence]
            said.append(f"{where}: {first.value} % against {second.value} % ({second.model}, {evidence})")
            ahead += [where] if float(first.value) > float(second.value) else []
    if not said:
        return Markdown("")
    where = f" ({', '.join(ahead)})" if ahead else ""
    return Markdown(
        "Published, the second version of the distance nets is ahead of the best interval training in our list in "
        f"{len(ahead) or 'none'} of {len(said)} places{where}. {'; '.join(said)}."
    )


def study_list() -> Markdown:
    """The study files of the chapter of which runs are missing."""
    lines = [
        f"- `lipcert study notebooks/params/study/{name}.yaml`: {done} of {planned} runs published"
        for name, done, planned in progress()
        if done < planned
    ]
    return Markdown("\n".join(["Not run, or in part:", "", *lines]) if lines else "")


# --- exactness in floating point -------------------------------------------------------------------------------------


def boxes_table() -> Markdown:
    """Every network of the measurement: points run, and what left its box."""
    return _columns(lambda name: not name.endswith(_REACH) and name != _ATTACKED)


def attacks_table() -> Markdown:
    """Every network of the measurement: certified images attacked, successes inside the ball and far outside."""
    return _columns(lambda name: name.endswith(_REACH) or name in ("network", _ATTACKED))


def _columns(wanted: Callable[[str], bool]) -> Markdown:
    if not (rows := rows_of(_EXACTNESS)):
        return Markdown("")  # the words say that it was not run
    chosen = [n for n, name in enumerate(rows[0]) if wanted(name)]
    head, *lines = ([row[n] for n in chosen] for row in rows)
    return table(head, lines, right=range(1, len(chosen)))


def exactness_words() -> Markdown:
    """What the measurement of the boxes says, in words."""
    if (check := find_check(_EXACTNESS)) is None:
        return NOT_RUN
    n = check.numbers
    left = f"{n['outside']:,} had a logit outside of its box" if n["outside"] else "none had a logit outside of its box"
    changed = f"{n['changed']:,} had" if n["changed"] else "none had"
    return Markdown(
        f"{n['points']:,} random and corner points, each run through the network in float32 or float64: {left}. Of the "
        f"{n['certified_points']:,} in certified balls, {changed} another class. Without counting roundings no logit "
        f"could move further than the radius: {n['slack_free_broken']:,} points break that rule."
    )


def measured(goal: str) -> list[Markdown]:
    """A check in words and its table; one plain sentence where it was not run."""
    return [check_words(goal), check_rows(goal)] if rows_of(goal) else [check_words(goal)]


def attacks_words() -> Markdown:
    """What the attacks found."""
    if (check := find_check(_EXACTNESS)) is None:
        return NOT_RUN
    inside, far = (check.numbers[f"attack_successes{end}"] for end in ("", "_far"))
    return Markdown(
        f"Successes inside of certified balls: **{inside:,}**. In far larger balls {far:,} images lose their class, so "
        "the attacks work."
    )
