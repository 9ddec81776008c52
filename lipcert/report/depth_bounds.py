"""What the constants of deep networks are made of: proven ends, what an estimate would have claimed, open branches."""

import math
import statistics
from collections.abc import Sequence

from lipcert.record import Record
from lipcert.report.depth_curves import curve_rows
from lipcert.report.depth_runs import (
    DEEP,
    NAMES,
    NOT_RUN,
    OPEN,
    SHALLOW,
    SHUT,
    Arm,
    View,
    branch_additions,
    budgets,
)
from lipcert.report.tables import Markdown, table, up

CONVENTIONAL = ("resnet", SHUT)
ABSENT = Markdown("Constants of these networks: **not run**.")


def blocks_factor(run: Record) -> float:
    """By what the blocks multiply the proven constant: the product of their upper ends."""
    return math.prod(layer.upper for layer in run.bounds.layers if layer.name.startswith("stack"))


def excess(run: Record) -> float:
    """How far the proven constant of the backbone lies above its estimate, as a share of the estimate."""
    return run.bounds.upper / run.bounds.estimate - 1


def extra_claims(view: View, run: Record) -> int | None:
    """Images that the estimate would have claimed beyond those certified; None where one was not measured."""
    proven, claimed = view.count(run), view.count(run, "estimated")
    return None if proven is None or claimed is None else claimed - proven


def constants_table(view: View) -> Markdown:
    """Proven constant, the part of it that the blocks make, how far it is above the estimate, what that claims."""
    rows = []
    for budget, arms in budgets(view.dataset).items():
        for (family, depth), arm in arms.items():
            if arm.runs:
                claims = [extra for run in arm.runs if (extra := extra_claims(view, run)) is not None]
                rows.append(
                    (
                        budget.title, f"{NAMES[family]}, depth {depth}", _span([r.bounds.upper for r in arm.runs], 2),
                        up(statistics.fmean(map(blocks_factor, arm.runs)), 3),
                        f"{100 * statistics.fmean(map(excess, arm.runs)):.2f} %", _counts(claims),
                    )
                )  # fmt: skip
    head = ("budget", "network", "constant, at most", "of it the blocks", "above the estimate", "claimed beyond")
    return table(head, rows, right=(2, 3, 4, 5)) if rows else ABSENT


def _span(values: Sequence[float], digits: int) -> str:
    """Mean and ends, rounded up: a printed bound is never below the proven one."""
    mean, low, high = (up(value, digits) for value in (statistics.fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _counts(claims: Sequence[int]) -> str:
    if not claims:
        return "not measured"
    return f"{claims[0]:+d}" if len(claims) == 1 else f"{min(claims):+d} to {max(claims):+d}"


def constants_words(view: View) -> Markdown:
    """What an unproven estimate would have claimed in all, where most, and whether depth makes it worse."""
    found = [
        (extra, run, budget, family, depth)
        for budget, arms in budgets(view.dataset).items()
        for (family, depth), arm in arms.items()
        for run in arm.runs
        if (extra := extra_claims(view, run)) is not None
    ]
    if not found:
        return ABSENT
    extra, run, budget, family, depth = max(found, key=lambda each: each[0])
    worst, images = 100 * extra / run.test.images, run.test.images
    growth = []
    for b, arms in budgets(view.dataset).items():
        for f in NAMES:
            ends = [[excess(r) for r in arms[f, d].runs] if (f, d) in arms else [] for d in (SHALLOW, DEEP)]
            if all(ends):
                shallow, deep = (100 * statistics.fmean(values) for values in ends)
                growth.append(f"{NAMES[f]} {shallow:.2f} and {deep:.2f} % ({b.title})")
    said = f" At depths {SHALLOW} and {DEEP} it lies above by: {'; '.join(growth)}." if growth else ""
    most = (
        f"No network would have been given more than was proven at {view.radius}."
        if extra <= 0
        else f"At {view.radius} it would have claimed up to {extra} of {images:,} images more than are certified, "
        f"{worst:.2f} points of VRA: {NAMES[family]} at depth {depth} after {budget.title}."
    )
    return Markdown(
        "The constant is that of the backbone, all layers up to the head, learnt and not imposed. The *estimate* is "
        f"the product of the layers' norms by the power method, 500 rounds, from below and without proof. {most} The "
        "bound lies above the estimate for two reasons: the estimate is below the norm, and a bound that is quick to "
        f"prove (*fast*) is above it. Both multiply from layer to layer.{said}"
    )


# --- branches --------------------------------------------------------------------------------------------------------


def opened_from_shut(view: View) -> int:
    """How many branches that began at scale 0 are open after training, over all runs."""
    arms = [arm for found in budgets(view.dataset).values() for (family, _), arm in found.items() if family == SHUT]
    return sum(value >= OPEN for arm in arms for value in _all(arm.runs))


def _conventional(view: View) -> list[tuple[str, str, int, Arm]]:
    return [
        (budget.title, family, depth, arm)
        for budget, arms in budgets(view.dataset).items()
        for (family, depth), arm in arms.items()
        if family in CONVENTIONAL and any(branch_additions(run) for run in arm.runs)
    ]


def branch_table(view: View) -> Markdown:
    """How many branches are open after training, what they add, and the estimate of the constant before and after."""
    rows = []
    for title, family, depth, arm in _conventional(view):
        every = sorted(_all(arm.runs))
        opened = sum(value >= OPEN for value in every)
        factors = [math.prod(1 + value for value in branch_additions(run)) for run in arm.runs]
        rows.append(
            (
                title, f"{NAMES[family]}, depth {depth}", f"{opened} of {len(every)}",
                f"{statistics.median(every):.2g} ({every[0]:.2g} to {every[-1]:.2g})", _span(factors, 3),
                _before_and_after(arm.runs),
            )
        )  # fmt: skip
    head = ("budget", "network", "branches open", "one adds", "all multiply by", "estimated constant, begin and end")
    return table(head, rows, right=(2, 3, 4, 5)) if rows else Markdown("Branches of conventional blocks: **not run**.")


def _before_and_after(runs: Sequence[Record]) -> str:
    ends = [(rows[0]["lipschitz_estimate"], rows[-1]["lipschitz_estimate"]) for r in runs if (rows := curve_rows(r))]
    if not ends:
        return "not noted"
    first, last = (statistics.fmean(column) for column in zip(*ends, strict=True))
    return f"{first:,.3g}, {last:.3g}"


def branch_words(view: View) -> Markdown:
    """Whether training shut the branches that began open, and what the conventional arm then is."""
    by_budget, lines, shut, deep = budgets(view.dataset), [], [], False
    for budget, arms in by_budget.items():
        opened = {d: arm for (f, d), arm in arms.items() if f == "resnet" and _all(arm.runs)}
        parts = [_still_open(depth, _all(arm.runs)) for depth, arm in opened.items()]
        if DEEP in opened:
            linear = arms.get(("liresnet", DEEP), Arm()).runs
            beside = f", those of LiResNet by {_factor(linear)}" if linear else ""
            parts.append(
                f"together the blocks multiply the bound by {_factor(opened[DEEP].runs)} at depth {DEEP}{beside}"
            )
        lines += [f"- {budget.title}: {'; '.join(parts)}."] if parts else []
        deep |= any(depth >= DEEP for depth in opened)
        shut += [
            f"depth {depth} after {budget.title}"
            for depth, arm in opened.items()
            if depth >= DEEP and _mostly_shut(_all(arm.runs))
        ]
    if not lines:
        return Markdown(f"Whether open branches stayed open: **{NOT_RUN}**.")
    end = f"Nowhere at depth {DEEP} or beyond did more than half of them shut." if deep else ""
    if shut:
        end = (
            f"More than half of the branches shut themselves at {', '.join(shut)}: there the conventional arm is a "
            "network that chose to be shallow, and its gain or loss says little about residual blocks."
        )
    return Markdown(
        f"A branch counts as open where it adds {OPEN:g} or more to its block's constant of 1. Of the branches that "
        "began open, still open are:\n\n" + "\n".join(lines) + f"\n\n{end}"
    )


def _mostly_shut(values: Sequence[float]) -> bool:
    return 2 * sum(value < OPEN for value in values) > len(values)


def _still_open(depth: int, values: Sequence[float]) -> str:
    opened = sum(value >= OPEN for value in values)
    return f"{opened} of {len(values)} at depth {depth} (half add less than {statistics.median(values):.2g})"


def _factor(runs: Sequence[Record]) -> str:
    return up(statistics.fmean(map(blocks_factor, runs)), 2)


def _all(runs: Sequence[Record]) -> list[float]:
    return [value for run in runs for value in branch_additions(run)]
