"""How much of their proven bounds the networks of the page on depth use: the checks `depth-tightness` and `tightness`.

`python -m benchmarks.tightness_by_depth --studies FILE ...` makes the first one, from networks that were kept.
"""

import statistics
from collections.abc import Sequence

from lipcert.report.checks import find_check, rows_of
from lipcert.report.depth_gains import Arms
from lipcert.report.depth_runs import COLOURS, DEEP, MARKERS, MATRICES, NAMES, SHALLOW, Budget, View, budgets
from lipcert.report.intervals import RUNS
from lipcert.report.published import EVIDENCE
from lipcert.report.svg import FAINT, INK, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table, up
from lipcert.report.tightness import published_tightness

GOAL = "depth-tightness"
_FLAT = 0.01  # a rate of change below this everywhere is a network trained down to a constant
_EARLIER = "tightness"  # the check of the runs there were before
COMMAND = "python -m benchmarks.tightness_by_depth --studies " + " ".join(
    f"notebooks/params/study/{name}.yaml" for name in MATRICES
)
ABSENT = Markdown(f"Tightness by depth: **not run**. `{COMMAND}` measures it on networks that were kept.")


def nets() -> dict[str, dict[str, str]]:
    """Rows of both checks by the id of their run."""
    found = {}
    for goal in (_EARLIER, GOAL):
        head, *rows = rows_of(goal) or ((),)
        found |= {line["run"]: line for line in (dict(zip(head, row, strict=True)) for row in rows)}
    return found


def measured(view: View) -> dict[Budget, dict[tuple[str, int], list[dict[str, str]]]]:
    """Those rows by budget, family and depth, as far as there are any."""
    lines = nets()
    found = {
        budget: {key: own for key, arm in arms.items() if (own := [lines[i] for i in arm.ids if i in lines])}
        for budget, arms in budgets(view.dataset).items()
    }
    return {budget: arms for budget, arms in found.items() if arms}


def by_arm(view: View) -> dict[Budget, dict[tuple[str, int], list[float]]]:
    """Rate of change found by search over the proven bound, one number a network, by budget, family and depth.

    Without networks that were trained down to a constant.
    """
    ratios = {
        budget: {key: [float(line["ratio"]) for line in lines] for key, lines in arms.items() if not _flat(lines)}
        for budget, arms in measured(view).items()
    }
    return {budget: arms for budget, arms in ratios.items() if arms}


def _flat(lines: Sequence[dict[str, str]]) -> bool:
    return max(float(line["found"]) for line in lines) < _FLAT


def tightness(view: View) -> "list[Figure | Markdown]":
    """Table, words and figures; words alone where nothing was measured."""
    if not measured(view):
        return [tightness_words(view)]
    return [tightness_table(view), tightness_words(view), *tightness_figures(view)]


def tightness_table(view: View) -> Markdown:
    """Found / proven = ratio, means over the networks measured: one line a budget and family, one column a depth."""
    found = measured(view)
    depths, rows = sorted({depth for arms in found.values() for _, depth in arms}), []
    for budget, arms in found.items():
        for family in dict.fromkeys(family for family, _ in arms):
            cells = [_cell(arms.get((family, depth), [])) for depth in depths]
            rows.append((f"{NAMES[family]}, {budget.title}", *cells))
    head = ("found / proven = ratio", *(f"depth {depth}" for depth in depths))
    return table(head, rows, right=range(1, len(head)))


def _cell(lines: Sequence[dict[str, str]]) -> str:
    if not lines:
        return ""
    if _flat(lines):
        return "flat"
    found, bound, ratios = ([float(line[key]) for line in lines] for key in ("found", "bound", "ratio"))
    means = f"{statistics.fmean(found):.2f} / {up(statistics.fmean(bound), 2)}"
    return f"{means} = {_spread(ratios)}{f', {len(lines)} networks' if len(lines) > 1 else ''}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def tightness_words(view: View) -> Markdown:
    """The ratio at both depths and beyond by family, beside the authors' figures."""
    theirs = "; ".join(
        f"{p.network} {p.lower} / {p.upper} = {p.ratio} ({EVIDENCE[p.evidence]})"
        for p in published_tightness()
        if p.dataset == view.dataset
    )
    theirs = f"For networks of the authors' own size, one each and not comparable: {theirs}."
    lines = []
    for budget, arms in by_arm(view).items():
        parts = []
        for family in NAMES:
            ends = sorted(d for f, d in arms if f == family and (d == SHALLOW or d >= DEEP))
            at = [f"{statistics.fmean(arms[family, d]):.2f} at depth {d}" for d in ends]
            parts += [f"{NAMES[family]} {', '.join(at)}"] if at else []
        if parts:
            lines.append(f"- {budget.title}: {'; '.join(parts)}.{_order(arms)}")
    if not measured(view):
        return Markdown(f"{ABSENT} {theirs}")
    if any(_flat(at) for arms in measured(view).values() for at in arms.values()):
        lines += [
            f"\n*Flat*: no two points were found that the backbone moves apart by {_FLAT:g} of their distance. It was "
            "trained down to a constant and answers one class, so a ratio would say nothing of its bound."
        ]
    missing = "" if find_check(GOAL) else f"\n\nOf the longer budgets: **not run** (`{COMMAND}`)."
    return Markdown(
        "The ratio mixes a loose bound with a search that may have missed the worst pair, so it says how much of the "
        f"bound is needed *at least*. {theirs}\n\n" + "\n".join(lines) + missing
    )


def _order(arms: dict[tuple[str, int], list[float]]) -> str:
    """Which of the two families uses more of its bound at the deep end; told only where ranges of seeds separate."""
    linear, conventional = (arms.get((family, DEEP), []) for family in ("liresnet", "resnet"))
    if not linear or not conventional:
        return ""
    most = max(len(linear), len(conventional))
    if min(len(linear), len(conventional)) < RUNS:
        few = "one network each" if most == 1 else "fewer than three networks"
        return f" At depth {DEEP} that is {few}."
    if min(linear) > max(conventional):
        return f" At depth {DEEP} LiResNet uses more of its bound, ranges of seeds apart."
    if min(conventional) > max(linear):
        return f" At depth {DEEP} ResNet uses more of its bound, ranges of seeds apart."
    return f" At depth {DEEP} the two cannot be told apart."


def tightness_figures(view: View) -> "list[Figure | Markdown]":
    """Ratio over depth, one figure a budget: one line a family, the authors' figures as dotted levels."""
    by_budget = budgets(view.dataset)
    return [_draw(view, budget, arms, by_budget[budget]) for budget, arms in by_arm(view).items()]


def _draw(view: View, budget: Budget, found: dict[tuple[str, int], list[float]], arms: Arms) -> Figure:
    figure, axes = canvas(WIDTH, 3.2)
    rows = [(budget.epochs, family, depth, f"{v:.6g}") for (family, depth), values in found.items() for v in values]
    for p in published_tightness():
        if p.dataset == view.dataset:
            axes.axhline(float(p.ratio), color=FAINT, linestyle=(0, (1, 2)), linewidth=1.4)
            axes.annotate(f"authors: {p.network}", (1, float(p.ratio)), (-2, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", color=INK, fontsize=9.5)  # fmt: skip
    for family in dict.fromkeys(family for family, _ in found):
        marker, dash = MARKERS[family]
        own = {depth: values for (f, depth), values in found.items() if f == family}
        means = [statistics.fmean(values) for values in own.values()]
        style = {"color": COLOURS[family], "linewidth": 1.6, "label": NAMES[family]}
        axes.plot(list(own), means, dash, marker=marker, **style)
        for depth, values in own.items():
            axes.plot([depth] * len(values), values, "_", color=COLOURS[family], markersize=9)
    depths = sorted({depth for _, depth in arms})
    axes.set(ylim=(0, 1.02), xlabel="depth, blocks", ylabel="found / proven")
    axes.set_title(budget.title, color=INK, fontsize=10)
    axes.set_xticks(depths, list(map(str, depths)))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    said = ", ".join(f"{NAMES[f]} at depth {d} {_spread(values)}" for (f, d), values in found.items())
    alt = f"Rate of change found over proven bound against depth, {budget.title}: {said}."
    return finish(f"depth-tightness-{budget.epochs:g}", figure, alt, ("epochs", "family", "depth", "ratio"), rows)
