"""The way to the numbers of the page on depth: proven accuracy at the looks of each budget, and gradient norms."""

import csv
import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lipcert.paths import results_dir
from lipcert.record import Record
from lipcert.report.depth_gains import Arms, crossing, focus
from lipcert.report.depth_runs import (
    COLOURS,
    DEEP,
    NAMES,
    NOT_RUN,
    SHALLOW,
    Arm,
    Budget,
    View,
    budgets,
    counted,
)
from lipcert.report.intervals import Estimate, contrast
from lipcert.report.speed_runs import curve
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

# By place in the order of depths: dash and marker.
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
_SMOOTH = 20  # a curve of training batches is averaged over one part in so many of the run
# Difference -> (family, depth) less (family, depth).
PAIRS = {
    "gain of LiResNet": (("liresnet", DEEP), ("liresnet", SHALLOW)),
    "gain of ResNet": (("resnet", DEEP), ("resnet", SHALLOW)),
    f"LiResNet less ResNet, depth {SHALLOW}": (("liresnet", SHALLOW), ("resnet", SHALLOW)),
    f"LiResNet less ResNet, depth {DEEP}": (("liresnet", DEEP), ("resnet", DEEP)),
}
NO_LOOKS = Markdown("Looks on the way: **not run**.")
NO_NORMS = Markdown("Gradient norms over training: **not run**. Runs made before they were noted have none.")


def looks(arm: Arm) -> dict[int, list[float]]:
    """VRA of every run, per cent, by images seen, where all runs of the arm were looked at; the end is the last."""
    by_images = [{point.images: point.vra for point in curve(run)} for run in arm.runs]
    shared = sorted(set.intersection(*map(set, by_images))) if by_images else []
    return {images: [one[images] for one in by_images] for images in shared}


def looked_at(view: View) -> dict[Budget, Arms]:
    """Budgets in which some run was certified on the way, with the arms that were."""
    found = {
        budget: {key: arm for key, arm in arms.items() if len(looks(arm)) > 1}
        for budget, arms in budgets(view.dataset).items()
    }
    return {budget: arms for budget, arms in found.items() if arms}


def curve_figures(view: View) -> "list[Figure | Markdown]":
    """Proven VRA over images seen, one figure a budget: mean of the seeds, their range shaded."""
    return [_draw_curves(budget, arms) for budget, arms in looked_at(view).items()] or [NO_LOOKS]


def _draw_curves(budget: Budget, arms: Arms) -> Figure:
    figure, axes = canvas(WIDTH, 4.2)
    depths, rows, said, drawn = sorted({depth for _, depth in arms}), [], [], {}
    for (family, depth), arm in arms.items():
        dash, marker = _STYLES[depths.index(depth) % len(_STYLES)]
        points, colour = looks(arm), COLOURS[family]
        x, means = [images / 1e3 for images in points], [statistics.fmean(values) for values in points.values()]
        fill, label = ("none" if len(arm.runs) == 1 else colour), f"{NAMES[family]}, depth {depth}"
        style = {"color": colour, "markerfacecolor": fill, "markersize": 5.5, "linewidth": 1.7}
        axes.plot(x, means, dash, marker=marker, label=label, **style)
        if len(arm.runs) > 1:
            ends = [[end(values) for values in points.values()] for end in (min, max)]
            axes.fill_between(x, *ends, color=colour, alpha=0.18, linewidth=0)
        for images, values in points.items():
            rows += [
                (budget.epochs, family, depth, run.config.seed, images, f"{value:.4f}")
                for run, value in zip(arm.runs, values, strict=True)
            ]
        said.append(f"{label} ({arm.seeds}): {', '.join(f'{value:.2f}' for value in means)} %")
        drawn[label] = means
    axes.set(xlabel="images seen, thousands", ylabel="proven VRA, % of test images")
    focus(axes, budget.title, drawn, numbers=False)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    at = ", ".join(f"{images:,}" for images in sorted({row[4] for row in rows}))
    alt = f"Proven VRA over images seen in the budget of {budget.title}, after {at} images. {'; '.join(said)}."
    head = ("epochs", "family", "depth", "seed", "images", "vra_percent")
    return finish(f"depth-curve-{budget.epochs:g}", figure, alt, head, rows)


# --- where curves cross ----------------------------------------------------------------------------------------------


def differences(arms: Arms, pair: tuple[tuple[str, int], tuple[str, int]]) -> list[tuple[int, Estimate | None]]:
    """(images, difference) of two arms at the looks both have."""
    more, less = (looks(arms.get(key, Arm())) for key in pair)
    return [(images, contrast((1, more[images]), (-1, less[images]))) for images in more if images in less]


def difference_figures(view: View) -> list[Figure]:
    """The differences of `PAIRS` over images seen, one figure a budget; bars are t-intervals."""
    found = {
        budget: {name: series for name, pair in PAIRS.items() if len(series := differences(arms, pair)) > 1}
        for budget, arms in looked_at(view).items()
    }
    return [_draw_differences(budget, named) for budget, named in found.items() if named]


def _draw_differences(budget: Budget, named: dict[str, list[tuple[int, Estimate]]]) -> Figure:
    figure, axes = canvas(WIDTH, 3.6)
    rows, said = [], []
    for place, (name, series) in enumerate(named.items()):
        (dash, marker), colour = _STYLES[place], (BLUE, VERMILLION, GREEN, PURPLE)[place]
        # Beside each other, so that no bar hides another.
        x = [(images + (place - 1.5) * budget.images / 150) / 1e3 for images, _ in series]
        axes.plot(x, [e.value for _, e in series], dash, marker=marker, color=colour, markersize=5.5, label=name)
        for at, (images, e) in zip(x, series, strict=True):
            if e.low is not None:
                axes.plot([at, at], [e.low, e.high], "-", color=colour, linewidth=1.2)
            ends = ("", "") if e.low is None else (f"{e.low:.4f}", f"{e.high:.4f}")
            rows.append((budget.epochs, name, images, f"{e.value:.4f}", *ends))
        said.append(f"{name}: {', '.join(f'{e.value:+.2f}' for _, e in series)}")
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set(xlabel="images seen, thousands", ylabel="VRA, points")
    axes.set_xlim(left=0)
    axes.set_title(f"{budget.title}, differences", color=INK, fontsize=10)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = f"Differences of proven VRA over images seen, {budget.title}, in points. {'; '.join(said)}."
    head = ("epochs", "difference", "images", "points", "low", "high")
    return finish(f"depth-difference-{budget.epochs:g}", figure, alt, head, rows)


def crossings_table(view: View) -> Markdown:
    """Within a budget: the difference of two curves at each look, where its sign changes, and on training batches."""
    rows = []
    for budget, arms in budgets(view.dataset).items():
        if not counted(arms.values())[0]:
            rows.append((budget.title, "all", NOT_RUN, "", ""))
            continue
        for name, pair in PAIRS.items():
            series = differences(arms, pair)
            points = ", ".join(f"{found.value:+.2f}" for _, found in series) or NOT_RUN
            where = crossing(series) if len(series) > 1 else "no looks on the way" if series else NOT_RUN
            rows.append((budget.title, name, points, where, _on_batches(arms, pair)))
    return table(("budget", "difference", "at the looks, points", "proven", "training batches, estimated"), rows)


def crossings_words() -> Markdown:
    """How to read the table."""
    return Markdown(
        "A difference counts as told from 0 where its t-interval leaves it out; a crossing lies between two looks that "
        "are told apart with opposite signs. Training batches are seen more often: the share of them that is right and "
        "certified *by the estimate* at the training radius of the moment, which is no proof and includes images the "
        f"network was trained on, averaged over a {_SMOOTH}th of the run, seed by seed. It says when the lead changed "
        "for the last time."
    )


def curve_rows(run: Record) -> list[dict[str, float]]:
    """The training curve of a published run; empty where it has none."""
    path = results_dir() / run.training.curve if run.training.curve else None
    return _rows(path, path.stat().st_mtime_ns) if path and path.exists() else []


@functools.lru_cache(maxsize=128)
def _rows(path: Path, changed: int) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def last_change(more: Record, less: Record) -> tuple[float, int] | None:
    """Images after which the sign of the difference on training batches stays, 0 for always, and that sign.

    None where a curve is missing or the two have no point in common.
    """
    first, second = ({row["images"]: row["train_vra_estimated"] for row in curve_rows(run)} for run in (more, less))
    images = sorted(set(first) & set(second))
    width = max(1, len(images) // _SMOOTH)
    gaps = [first[n] - second[n] for n in images]
    signs = [math.copysign(1, math.fsum(gaps[n - width : n])) for n in range(width, len(gaps) + 1)]
    if not signs:
        return None
    before = [n for n, sign in enumerate(signs) if sign != signs[-1]]
    return (images[width + before[-1]] if before else 0.0), int(signs[-1])


def _on_batches(arms: Arms, pair: tuple[tuple[str, int], tuple[str, int]]) -> str:
    more, less = ({run.config.seed: run for run in arms.get(key, Arm()).runs} for key in pair)
    changes = [last_change(more[seed], less[seed]) for seed in sorted(set(more) & set(less))]
    found = [change for change in changes if change is not None]
    if not found:
        return NOT_RUN
    runs = "one run each" if len(found) == 1 else f"{len(found)} seeds"
    if len({sign for _, sign in found}) > 1:
        return f"seeds end on either side ({runs})"
    side = "above" if found[0][1] > 0 else "below"
    first, last = (end(images for images, _ in found) for end in (min, max))
    if last == 0:
        return f"{side} 0 throughout ({runs})"
    if first == 0:
        return f"{side} 0 from {last:,.0f} images on at the latest ({runs})"
    ends = f"{first:,.0f}" if first == last else f"{first:,.0f} to {last:,.0f}"
    return f"{side} 0 from {ends} images on ({runs})"


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient_norms(run: Record) -> list[tuple[float, float]]:
    """(images, mean gradient norm of the interval before clipping); empty in runs that did not note it."""
    pairs = [(row["images"], row.get("gradient_norm", math.nan)) for row in curve_rows(run)]
    return [(images, norm) for images, norm in pairs if not math.isnan(norm)]


def noted(view: View) -> dict[Budget, dict[tuple[str, int], list[list[tuple[float, float]]]]]:
    """The gradient norms of all runs that noted them, by budget, family and depth."""
    found = {
        budget: {
            key: norms for key, arm in arms.items() if (norms := [n for r in arm.runs if (n := gradient_norms(r))])
        }
        for budget, arms in budgets(view.dataset).items()
    }
    return {budget: arms for budget, arms in found.items() if arms}


def gradients(view: View) -> "list[Figure | Markdown]":
    """Table, words and figures of the gradient norms; one sentence where no run noted any."""
    if not noted(view):
        return [NO_NORMS]
    return [gradient_table(view), gradient_words(view), *gradient_figures(view)]


def gradient_table(view: View) -> Markdown:
    """Median and largest norm of an interval, and how many intervals were above the clip, over all runs of an arm."""
    by_budget, rows = budgets(view.dataset), []
    for budget, arms in noted(view).items():
        for (family, depth), runs in arms.items():
            norms = [norm for run in runs for _, norm in run]
            clip = by_budget[budget][family, depth].cells[0].clip
            above = sum(norm > clip for norm in norms) / len(norms)
            name = f"{NAMES[family]}, depth {depth}"
            rows.append(
                (budget.title, name, len(runs), f"{statistics.median(norms):.3g}", f"{max(norms):.3g}",
                 f"{100 * above:.0f} %")
            )  # fmt: skip
    head = ("budget", "network", "runs", "median", "largest", "above the clip")
    return table(head, rows, right=(2, 3, 4, 5))


def gradient_words(view: View) -> Markdown:
    """By what depth multiplies the median norm, and what is clipped."""
    by_budget, lines = budgets(view.dataset), []
    for budget, arms in noted(view).items():
        medians = {key: statistics.median(n for run in runs for _, n in run) for key, runs in arms.items()}
        clips = sorted({arm.cells[0].clip for arm in by_budget[budget].values()})
        said = [
            f"{NAMES[family]} {medians[family, DEEP] / medians[family, SHALLOW]:.2g} times"
            for family in NAMES
            if {(family, DEEP), (family, SHALLOW)} <= set(medians)
        ]
        clip = f"gradients are clipped at {' or '.join(f'{c:g}' for c in clips)}."
        ratio = f"from depth {SHALLOW} to {DEEP} the median is multiplied: {', '.join(said)}; {clip}"
        lines.append(f"After {budget.title}: {ratio}" if said else f"In the budget of {budget.title} {clip}")
    return Markdown(
        "Norm of the whole gradient before clipping, a mean over each of some 200 intervals of a run. "
        + " ".join(lines)
    )


def gradient_figures(view: View) -> "list[Figure | Markdown]":
    """Gradient norm over images seen, one figure a budget: geometric mean of the runs, smoothed."""
    return [_draw_norms(budget, arms, view) for budget, arms in noted(view).items()]


def _draw_norms(budget: Budget, arms: dict[tuple[str, int], list], view: View) -> Figure:
    figure, axes = canvas(WIDTH, 4.0)
    depths, rows, said = sorted({depth for _, depth in arms}), [], []
    for (family, depth), runs in arms.items():
        dash, _ = _STYLES[depths.index(depth) % len(_STYLES)]
        points = smoothed(runs)
        label = f"{NAMES[family]}, depth {depth}"
        axes.plot([n / 1e3 for n, _ in points], [v for _, v in points], dash, color=COLOURS[family], label=label)
        rows += [(budget.epochs, family, depth, f"{images:.0f}", f"{value:.6g}") for images, value in points]
        said.append(f"{label}: {points[0][1]:.3g} at first, {points[-1][1]:.3g} at the end")
    clip = next(iter(budgets(view.dataset)[budget].values())).cells[0].clip
    axes.axhline(clip, color=FAINT, linewidth=1)
    axes.annotate(f"clip {clip:g}", (1, clip), (-2, 3), xycoords=("axes fraction", "data"), ha="right", color=INK,
                  textcoords="offset points", fontsize=9.5)  # fmt: skip
    axes.set(yscale="log", xlabel="images seen, thousands", ylabel="gradient norm")
    axes.set_title(budget.title, color=INK, fontsize=10)
    axes.set_xlim(left=0)
    axes.set_yticks(*_ticks([float(row[4]) for row in rows] + [clip]))
    axes.minorticks_off()
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = f"Gradient norm before clipping over images seen, {budget.title}. {'; '.join(said)}."
    head = ("epochs", "family", "depth", "images", "gradient_norm")
    return finish(f"depth-gradient-{budget.epochs:g}", figure, alt, head, rows)


def _ticks(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Round numbers for a logarithmic axis, and how they are written."""
    low, high = min(values), max(values)
    inside = [(n, n * 10.0**e) for e in range(-6, 9) for n in (1, 2, 5) if low / 1.3 <= n * 10.0**e <= high * 1.3]
    ticks = [value for n, value in inside if n == 1 or len(inside) < 9]
    return ticks, [f"{value:g}" for value in ticks]


def smoothed(runs: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Geometric mean of several curves over a sliding part of the run, at the points that all of them have."""
    by_images = [dict(run) for run in runs]
    images = sorted(set.intersection(*map(set, by_images)))
    logs = [statistics.fmean(math.log(max(one[n], 1e-30)) for one in by_images) for n in images]
    width = max(1, len(images) // _SMOOTH)
    sums = [0.0, *itertools.accumulate(logs)]
    return [(images[n - 1], math.exp((sums[n] - sums[n - width]) / width)) for n in range(width, len(images) + 1)]
