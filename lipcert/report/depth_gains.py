"""What depth gains at each budget, how sure that is, and between which budgets curves cross: for the page on depth."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lipcert.report.depth_runs import (
    COLOURS,
    DEEP,
    MARKERS,
    NAMES,
    NOT_RUN,
    OPEN,
    SHALLOW,
    Arm,
    Budget,
    View,
    branch_additions,
    budgets,
    counted,
    families,
)
from lipcert.report.intervals import CONFIDENCE, FEWER, RUNS, Estimate, contrast, pair_range
from lipcert.report.names import DATASETS
from lipcert.report.published import EVIDENCE
from lipcert.report.svg import FAINT, INK, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Arms = dict[tuple[str, int], Arm]  # of one budget, by family and depth

ABSENT = Markdown("No run of this part has been published yet: **not run**.")
OPEN_RULE = f"A residual branch counts as open where it adds {OPEN:g} or more to its block's constant of 1."
BOTH = ("liresnet", "resnet")  # the two whose gains are compared
# The claim, by the signs of LiResNet's and of the conventional network's gain; 0: not to be told apart from none.
ANSWERS = {
    (1, -1): "it holds: LiResNet gains and ResNet loses",
    (1, 0): "not contradicted: LiResNet gains, ResNet's gain cannot be told from none",
    (1, 1): "it does not hold: both gain",
    (0, -1): "open: LiResNet's gain cannot be told from none, ResNet loses",
    (0, 0): "open: neither gain can be told from none",
    (0, 1): "it does not hold: ResNet gains, LiResNet's gain cannot be told from none",
    (-1, -1): "it does not hold: both lose",
    (-1, 0): "it does not hold: LiResNet loses, ResNet's gain cannot be told from none",
    (-1, 1): "it does not hold: ResNet gains and LiResNet loses",
}


def answer(linear: Estimate | None, conventional: Estimate | None) -> str:
    """Whether only LiResNet gains, as far as these two gains tell."""
    if linear is None or conventional is None:
        return NOT_RUN
    if linear.low is None or conventional.low is None:
        least = min(linear, conventional, key=lambda found: found.runs)
        return f"no verdict from {least.lack}"
    return ANSWERS[linear.sign, conventional.sign]


def headline(view: View) -> Markdown:
    """The claim and what came out, budget by budget, for the top of the page."""
    by_budget, lines, rule = budgets(view.dataset), [], ""
    for budget, arms in by_budget.items():
        gains = {family: gain(view, arms, family) for family in BOTH}
        parts = "; ".join(f"{NAMES[family]} {found.words() if found else NOT_RUN}" for family, found in gains.items())
        said = "" if not any(gains.values()) else f" {parts}."
        shut = _branches(arms)
        lines.append(f"- **{budget.title}: {answer(*gains.values())}.**{said}{_at_equal_depth(view, arms)}{shut}")
        rule = OPEN_RULE if shut else rule
    said_by = EVIDENCE["unverified_recollection"]
    done, planned = counted(arm for arms in by_budget.values() for arm in arms.values())
    missing = f" {done} of {planned} runs of this page are published." if done < planned else ""
    return Markdown(
        f"**Does only LiResNet gain with depth**, as the paper is said to find ({said_by})? VRA at {view.radius} on "
        f"{DATASETS[view.dataset]} with {DEEP} blocks less that with {SHALLOW}, in points; in brackets the "
        f"{100 * CONFIDENCE:.0f} % t-interval over seeds, given from {RUNS} runs of each network on:\n\n"
        + "\n\n".join(filter(None, ("\n".join(lines), f"{rule}{missing}".strip())))
    )


def _at_equal_depth(view: View, arms: Arms) -> str:
    """LiResNet less ResNet at every depth that both were run at, and who is ahead where that can be told."""
    linear, conventional = (NAMES[family] for family in BOTH)
    found = {depth: ahead(view, arms, depth) for depth in sorted({depth for _, depth in arms})}
    said = [
        f"at depth {depth} {e.words()}{'' if e.low is None else f', {_side(e)}'}" for depth, e in found.items() if e
    ]
    return f" {linear} less {conventional} of equal depth and width: {'; '.join(said)}." if said else ""


def _side(found: Estimate) -> str:
    return verdict(found, *(f"{NAMES[family]} ahead" for family in BOTH))


def _branches(arms: Arms) -> str:
    """How many branches that began open are open at the end, by depth, and what ResNet is where none is."""
    counts = {}
    for (family, depth), arm in arms.items():
        if family == "resnet" and (added := [value for run in arm.runs for value in branch_additions(run)]):
            counts[depth] = sum(value >= OPEN for value in added), len(added)
    if not counts:
        return ""
    parts = [f"{opened} of {every} at depth {depth}" for depth, (opened, every) in counts.items()]
    said = f" Residual branches of ResNet that are open at the end, all runs together: {', '.join(parts)}"
    shut = [str(depth) for depth, (opened, _) in counts.items() if not opened]
    if len(shut) == len(counts):
        return (
            f"{said}. So the ResNet that LiResNet is compared with has shut its residual branches, and none of the VRA "
            "at this budget is seen to come from conventional residual branches."
        )
    if shut:
        return f"{said}; at depth {' and '.join(shut)} LiResNet is compared with a network that has shut them all."
    return f"{said}."


def verdict(found: Estimate | None, more: str, less: str) -> str:
    """In words: which of the two, or that it cannot be told, or that there are too few runs to tell."""
    if found is None:
        return NOT_RUN
    if found.low is None:
        return found.lack
    return {1: more, -1: less, 0: "cannot be told apart"}[found.sign]


def _line(found: Estimate | None, more: str, less: str) -> tuple[str, str, str]:
    """Points, interval, verdict."""
    if found is None:
        return "", "", NOT_RUN
    interval = "" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
    return f"{found.value:+.2f}", interval, verdict(found, more, less)


def gain(view: View, arms: Arms, family: str) -> Estimate | None:
    """VRA of the deep networks of a family less that of the shallow ones, in points."""
    deep, shallow = (view.shares(arms.get((family, depth), Arm())) for depth in (DEEP, SHALLOW))
    return contrast((1, deep), (-1, shallow))


def gains_table(view: View) -> Markdown:
    """What nine more blocks gain: difference of means, t-interval, smallest and largest difference of two runs."""
    rows = []
    for budget, arms in budgets(view.dataset).items():
        if not counted(arms.values())[0]:
            rows.append((budget.title, "all", "", "", "", NOT_RUN))
            continue
        for family, by_depth in families(arms).items():
            if not {SHALLOW, DEEP} <= set(by_depth):
                continue
            deep, shallow = (view.shares(by_depth[depth]) for depth in (DEEP, SHALLOW))
            ends = ""
            if min(len(deep), len(shallow)) > 1:
                low, high = pair_range(deep, shallow)
                ends = f"{low:+.2f} to {high:+.2f}"
            points, interval, word = _line(gain(view, arms, family), "gains", "loses")
            rows.append((budget.title, NAMES[family], points, interval, ends, word))
    head = ("budget", "network", "gain, points", "t-interval", "pairs of runs", "verdict")
    return table(head, rows, right=(2, 3, 4))


def ahead(view: View, arms: Arms, depth: int) -> Estimate | None:
    """VRA of LiResNet less that of the conventional network at a depth."""
    linear, conventional = (view.shares(arms.get((family, depth), Arm())) for family in BOTH)
    return contrast((1, linear), (-1, conventional))


def gain_difference(view: View, more: Sequence[tuple[Arms, str]], less: Sequence[tuple[Arms, str]]) -> Estimate | None:
    """Sum of the gains of some (arms of a budget, family) less that of others."""
    parts = []
    for sign, side in ((1, more), (-1, less)):
        for arms, family in side:
            deep, shallow = (view.shares(arms.get((family, depth), Arm())) for depth in (DEEP, SHALLOW))
            parts += [(sign, deep), (-sign, shallow)]
    return contrast(*parts)


def pairs_of_budgets(view: View) -> list[tuple[Budget, Budget]]:
    """Budgets that differ in length alone, each with the next longer one."""
    return [pair for pair in itertools.pairwise(budgets(view.dataset)) if pair[0].extends(pair[1])]


def interaction_table(view: View) -> Markdown:
    """Who is ahead, whose gain is larger, and whether a gain grows with the budget."""
    by_budget, rows = budgets(view.dataset), []
    linear, conventional = (NAMES[family] for family in BOTH)
    for budget, arms in by_budget.items():
        if not counted(arms.values())[0]:
            rows.append(("all", budget.title, "", "", NOT_RUN))
            continue
        for depth in (SHALLOW, DEEP):
            line = _line(ahead(view, arms, depth), f"{linear} ahead", f"{conventional} ahead")
            rows.append((f"{linear} less {conventional}, depth {depth}", budget.title, *line))
        line = _line(gain_difference(view, [(arms, "liresnet")], [(arms, "resnet")]), "gains more", "gains less")
        rows.append((f"gain of {linear} less that of {conventional}", budget.title, *line))
    for short, long in pairs_of_budgets(view):
        ends = f"{long.epochs:g} less {short.title}"
        one, two = by_budget[long], by_budget[short]
        if not (counted(one.values())[0] and counted(two.values())[0]):
            rows.append(("all", ends, "", "", NOT_RUN))
            continue
        for family in BOTH:
            line = _line(gain_difference(view, [(one, family)], [(two, family)]), "grows", "shrinks")
            rows.append((f"gain of {NAMES[family]}", ends, *line))
        both = gain_difference(view, [(one, "liresnet"), (two, "resnet")], [(one, "resnet"), (two, "liresnet")])
        rows.append((f"gain of {linear} less that of {conventional}", ends, *_line(both, "grows", "shrinks")))
    return table(("difference", "budget", "points", "t-interval", "verdict"), rows, right=(2, 3))


def crossing(series: Sequence[tuple[int, Estimate | None]]) -> str:
    """Where a difference changes its sign, from (images, difference) in order; only signs that can be told count."""
    known = [(images, found) for images, found in series if found is not None]
    if len(known) < len(series) or not known:
        return NOT_RUN
    if few := [found for _, found in known if found.low is None]:
        return f"{min(few, key=lambda found: found.runs).lack}, so no crossing is claimed"
    told = [(images, found.sign) for images, found in known if found.sign]
    turns = [(a, b) for a, b in itertools.pairwise(told) if a[1] != b[1]]
    if turns:
        (last, _), (first, sign) = turns[-1]
        return f"crosses between {last:,} and {first:,} images, {'upwards' if sign > 0 else 'downwards'}"
    if not told:
        return "cannot be told from 0 anywhere"
    side = "above" if told[0][1] > 0 else "below"
    if len(told) == len(known):
        return f"{side} 0 throughout, no crossing"
    where = ", ".join(f"{images:,}" for images, _ in told)
    return f"{side} 0 after {where} images, not to be told from 0 elsewhere"


def interaction_words(view: View) -> Markdown:
    """Between which budgets the curves cross, as far as the ends of the runs tell."""
    by_budget, lines = budgets(view.dataset), []
    for short, long in pairs_of_budgets(view):
        both = [(budget.images, by_budget[budget]) for budget in (short, long)]
        series = {f"Gain of {NAMES[f]}": [(n, gain(view, arms, f)) for n, arms in both] for f in BOTH}
        series |= {
            f"LiResNet less ResNet at depth {depth}": [(n, ahead(view, arms, depth)) for n, arms in both]
            for depth in (SHALLOW, DEEP)
        }
        lines += [f"- {name}, {short.epochs:g} against {long.title}: {crossing(s)}." for name, s in series.items()]
    return Markdown(
        f"An interval is the {100 * CONFIDENCE:.0f} % t-interval of a sum of means over seeds (Welch), which supposes "
        "that runs are normally distributed; with three seeds that cannot be checked. *Pairs of runs*: the smallest "
        f"and the largest difference between a deep run and a shallow one. A verdict needs {RUNS} runs of every "
        "network that a difference is made of, and an interval without 0; of twenty differences that are none, one "
        "gets it by chance.\n\n" + "\n".join(lines)
    )


def focus(axes: "Axes", title: str, drawn: Mapping[str, Sequence[float]], numbers: bool = True) -> None:
    """Limits that show what lies between the residual networks; under the title, what is then below the frame.

    Args:
        drawn: values by label; a ConvNet's label begins with its name.
        numbers: write the values that lie below, not the labels alone.
    """
    apart = [value for label, values in drawn.items() if not label.startswith(NAMES["convnet"]) for value in values]
    inside = apart or [value for values in drawn.values() for value in values]
    span = max(max(inside) - min(inside), 1.0)
    low = min(inside) - 0.15 * span
    lost = {label: [f"{value:.1f}" for value in values if value < low] for label, values in drawn.items()}
    said = "; ".join(f"{label} {', '.join(v)}" if numbers else label for label, v in lost.items() if v)
    axes.set_ylim(low, max(inside) + 0.12 * span)
    axes.set_title(f"{title}\nbelow the frame: {said}" if said else title, color=INK, fontsize=10)


def gain_figure(view: View) -> "Figure | Markdown":
    """Gain from depth over the budget, one line a family where the recipe is the same; bars are t-intervals."""
    by_budget = budgets(view.dataset)
    found = {
        (family, budget): estimate
        for budget, arms in by_budget.items()
        for family in families(arms)
        if (estimate := gain(view, arms, family)) is not None
    }
    if not found:
        return ABSENT
    figure, axes = canvas(WIDTH, 3.4)
    order, shown, rows = list(by_budget), list(dict.fromkeys(family for family, _ in found)), []
    for n, family in enumerate(shown):
        marker, dash = MARKERS[family]
        colour, shift = COLOURS[family], 0.07 * (n - (len(shown) - 1) / 2)
        own = [(order.index(budget), budget, e) for (f, budget), e in found.items() if f == family]
        for (x, a, first), (_, b, last) in itertools.pairwise(own):
            if a.extends(b):
                axes.plot([x + shift, x + 1 + shift], [first.value, last.value], dash, color=colour, linewidth=1.6)
        for x, budget, e in own:
            if e.low is not None:
                axes.plot([x + shift] * 2, [e.low, e.high], "-", color=colour, linewidth=1.2)
            fill, label = ("none" if e.low is None else colour), (NAMES[family] if budget == own[0][1] else None)
            axes.plot(x + shift, e.value, marker, color=colour, markerfacecolor=fill, markersize=7, label=label)
            ends = ("", "") if e.low is None else (f"{e.low:.4f}", f"{e.high:.4f}")
            rows.append((budget.epochs, budget.images, family, f"{e.value:.4f}", *ends))
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set_xticks(range(len(order)), [f"{b.title}\n{b.images / 1e3:,.0f} thousand\nwidth {b.width}" for b in order])
    axes.set(xlim=(-0.4, len(order) - 0.6), ylabel="gain, points")
    values = {NAMES[f]: [v for (g, _), e in found.items() if g == f for v in (e.value, e.low, e.high) if v is not None]
              for f in shown}  # fmt: skip
    focus(axes, f"VRA with {DEEP} blocks less that with {SHALLOW}", {"zero": [0.0], **values})
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    said = "; ".join(f"{NAMES[f]} after {b.title} {e.words()}" for (f, b), e in found.items())
    alt = f"Gain in VRA from {SHALLOW} to {DEEP} blocks by budget, in points: {said}. Hollow: {FEWER} a depth."
    return finish("depth-gain", figure, alt, ("epochs", "images", "family", "gain", "low", "high"), rows)
