"""The page on depth: proven accuracy by depth at each budget, beside what was published.

Drawn from the runs in `lipcert.report.depth_runs`. `depth_gains` has what depth gains, `depth_curves` the way there,
`depth_bounds` constants, branches and tightness.
"""

import statistics

from lipcert.report.depth_gains import ahead, focus, verdict
from lipcert.report.depth_runs import (
    COLOURS,
    DEEP,
    MARKERS,
    NAMES,
    NOT_RUN,
    SHALLOW,
    Arm,
    Budget,
    View,
    budgets,
    counted,
    families,
    progress,
    recipe,
    untrained,
)
from lipcert.report.intervals import CONFIDENCE, RUNS, contrast, count_interval
from lipcert.report.published import EVIDENCE, load_published
from lipcert.report.svg import INK, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

_ENDS = (SHALLOW, DEEP)
# Published numbers of different depths on the same data without extra images; networks and recipes differ as well.
_PUBLISHED = (
    "liresnet-arxiv-v1_liresnet-l18w256_cifar10_l2_36-255_vra",
    "liresnet-neurips-2023_liresnet-l12w512_cifar10_l2_36-255_vra",
    "liresnet-neurips-2023_liresnet-l12w512-no-eps-schedule_cifar10_l2_36-255_vra",
)


def vra_tables(view: View) -> list[Markdown]:
    """Certified share by family and depth, one table a budget."""
    found = []
    for budget, arms in budgets(view.dataset).items():
        depths = sorted({depth for _, depth in arms})
        rows = [
            (NAMES[family], *(_cell(view, by_depth.get(depth)) for depth in depths))
            for family, by_depth in families(arms).items()
        ]
        head = (f"{budget.title}, width {budget.width}", *(f"depth {depth}" for depth in depths))
        found.append(table(head, rows, right=range(1, len(head))))
    return found


def _cell(view: View, arm: Arm | None) -> str:
    if arm is None:
        return ""
    if not (values := view.shares(arm)):
        longest = max((run.training for run in arm.stopped), key=lambda training: training.images, default=None)
        return NOT_RUN if longest is None else f"{longest.status} after {longest.images:,} images"
    if len(values) > 1:
        missing = f", {len(values)} of {len(arm.cells)} seeds" if len(values) < len(arm.cells) else ""
        return f"{statistics.fmean(values):.2f} % ({min(values):.2f} to {max(values):.2f}){missing}"
    low, high = count_interval(view.count(arm.runs[0]), arm.runs[0].test.images)
    return f"{values[0]:.2f} % [{low:.1f} to {high:.1f}]"


def vra_words(view: View) -> Markdown:
    """How to read the tables, and for each budget recipe, highest cell and how many runs there are."""
    lines = []
    for budget, arms in budgets(view.dataset).items():
        done, planned = counted(arms.values())
        count = f"{done} of {planned} runs" if done else f"**{NOT_RUN}** ({planned} runs)"
        lines.append(f"- {recipe(budget, arms)}; {count}.{_highest(view, arms)}{_untrained(arms)}")
    return Markdown(
        f"Mean VRA at {view.radius} ({view.guarantee}), in round brackets the smallest and largest of the seeds. Where "
        f"there is one run, square brackets hold the exact {100 * CONFIDENCE:.0f} % interval of its count (Clopper and "
        "Pearson): what other test images would change, and not what another seed would. Each budget has its own "
        "schedule; numbers of different tables are not comparable where recipe or width differ:\n\n" + "\n".join(lines)
    )


def _highest(view: View, arms: dict[tuple[str, int], Arm]) -> str:
    """The cell with the highest mean, or all that share it; empty where fewer than two cells have runs."""
    shares = {key: values for key, arm in arms.items() if (values := view.shares(arm))}
    if len(shares) < 2:
        return ""
    top = max(map(statistics.fmean, shares.values()))
    found = [
        f"{NAMES[family]} at depth {depth}{_few(len(values))}"
        for (family, depth), values in shares.items()
        if statistics.fmean(values) == top
    ]
    return f" Highest: {' and '.join(found)}, {top:.2f} %."


def _few(runs: int) -> str:
    """How many runs a mean has, where they are too few to compare."""
    if runs >= RUNS:
        return ""
    return " (one run)" if runs == 1 else f" ({runs} runs)"


def _untrained(arms: dict[tuple[str, int], Arm]) -> str:
    """Networks that tell the classes apart no better than one guess for all images would."""
    found = [
        f"{NAMES[family]} at depth {depth}" for (family, depth), arm in arms.items() if any(map(untrained, arm.runs))
    ]
    return f" Did not train, clean accuracy at chance: {', '.join(found)}." if found else ""


def vra_figures(view: View) -> "list[Figure | Markdown]":
    """VRA over depth, one figure a budget that has runs, one line a family, one dot a run; hollow is one run."""
    return [
        _draw_depths(view, budget, arms)
        for budget, arms in budgets(view.dataset).items()
        if any(view.shares(arm) for arm in arms.values())
    ]


def _draw_depths(view: View, budget: Budget, arms: dict[tuple[str, int], Arm]) -> Figure:
    figure, axes = canvas(WIDTH, 3.0)
    rows, said, drawn = [], [], {}
    for family, by_depth in families(arms).items():
        points = {depth: values for depth, arm in by_depth.items() if (values := view.shares(arm))}
        if not points:
            continue
        marker, dash = MARKERS[family]
        colour, means = COLOURS[family], {depth: statistics.fmean(values) for depth, values in points.items()}
        axes.plot(list(means), list(means.values()), dash, color=colour, linewidth=1.6)
        axes.plot([], [], dash, marker=marker, color=colour, linewidth=1.6, label=NAMES[family])
        for depth, values in points.items():
            axes.plot([depth] * len(values), values, "_", color=colour, markersize=9)
            fill = colour if len(values) > 1 else "none"
            axes.plot(depth, means[depth], marker, color=colour, markerfacecolor=fill, markersize=6)
            rows += [(budget.epochs, family, depth, f"{value:.4f}") for value in values]
        drawn[NAMES[family]] = [value for values in points.values() for value in values]
        said.append(f"{NAMES[family]}: " + ", ".join(f"{means[d]:.2f} % at depth {d}" for d in means))
    depths = sorted({row[2] for row in rows})
    axes.set(xlabel="depth, blocks", ylabel="VRA, % of test images")
    axes.set_xticks(depths, list(map(str, depths)))
    focus(axes, budget.title, drawn)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = f"VRA at {view.radius} over depth after {budget.title}. {'. '.join(said)}."
    return finish(f"depth-{budget.epochs:g}", figure, alt, ("epochs", "family", "depth", "vra_percent"), rows)


def claims(view: View) -> Markdown:
    """What else was said of depth, by whom, and what the runs here say."""
    stated, quoted = (EVIDENCE[key] for key in ("authors_statement", "third_party_quote"))
    by_budget = budgets(view.dataset)
    order, plain, beyond = ({b: of(view, a) for b, a in by_budget.items()} for of in (_order, _plain, _beyond))
    return Markdown(
        "What else was said of depth, how we know of it, and what came out here:\n\n"
        f"- *Conventional ResNets lie below LiResNets* ({stated}). LiResNet less ResNet, {_each(order)}.\n"
        f"- *Plain ConvNets of 18 blocks diverge* ({stated}). {_each(plain)}.\n"
        f"- *LiResNet's gain ends soon* (a reviewer, {quoted}). {_each(beyond)}."
    )


def _each(said: dict[Budget, str]) -> str:
    return "; ".join(f"{budget.title}: {text}" for budget, text in said.items() if text)


def _order(view: View, arms: dict[tuple[str, int], Arm]) -> str:
    """Which of the two families is ahead at either depth, and by how many points."""
    found = {depth: ahead(view, arms, depth) for depth in _ENDS}
    parts = [
        f"{verdict(e, 'LiResNet ahead', 'ResNet ahead')}{f' ({e.value:+.2f})' if e else ''} at depth {depth}"
        for depth, e in found.items()
    ]
    return ", ".join(parts) if any(found.values()) else NOT_RUN


def _plain(view: View, arms: dict[tuple[str, int], Arm]) -> str:
    """How ConvNets did by depth; empty where none was asked for."""
    said = {}
    for depth, arm in families(arms).get("convnet", {}).items():
        values = view.shares(arm)
        mean = f"{statistics.fmean(values):.2f} %" if values else _cell(view, arm)
        said[f"depth {depth}"] = "at chance" if any(map(untrained, arm.runs)) else mean
    return NOT_RUN if set(said.values()) == {NOT_RUN} else ", ".join(f"{key} {text}" for key, text in said.items())


def _beyond(view: View, arms: dict[tuple[str, int], Arm]) -> str:
    """LiResNets deeper than DEEP against those of DEEP; empty where none was asked for."""
    by_depth = families(arms).get("liresnet", {})
    usual, parts = view.shares(by_depth.get(DEEP, Arm())), []
    for depth, arm in by_depth.items():
        if depth > DEEP:
            found = contrast((1, view.shares(arm)), (-1, usual))
            text = NOT_RUN if found is None else f"{found.value:+.2f} points against depth {DEEP}"
            parts.append(f"depth {depth} {text}{f', {found.lack}' if found and found.lack else ''}")
    return ", ".join(parts)


def published_table(view: View) -> Markdown:
    """Published numbers of LiResNets of different depth beside ours of the longest budget: none is comparable."""
    rows_of = {row.id: row for row in load_published()}
    rows = [
        (row.model, row.radius, "", f"{row.value} % ({EVIDENCE[row.evidence]})", "not comparable")
        for row in (rows_of[name] for name in _PUBLISHED)
    ]
    arms = list(budgets(view.dataset).values())[-1]
    for depth, arm in families(arms).get("liresnet", {}).items():
        name = f"LiResNet L{depth}W{arm.cells[0].width}"
        rows.append((name, view.radius, _cell(view, arm), "", "not comparable"))
    return table(("model", "radius", "**ours**", "paper", "status"), rows)


def study_list() -> Markdown:
    """The study files, and how many of their runs are missing."""
    lines = [
        f"- `lipcert study notebooks/params/study/{name}.yaml`: {done} of {planned} runs published"
        for name, done, planned in progress()
        if done < planned
    ]
    return Markdown(
        "\n".join(["Not run, or in part:", "", *lines]) if lines else "All runs of this page are published."
    )
