"""The page on limits in tables and words: networks, fits, published numbers beyond them. All of it computed."""

import math
import statistics
from collections.abc import Sequence

from lipcert.record import Record
from lipcert.report.limits import Ceiling, Cell, Found, Interval, Line, Published, ceiling, left_out, line
from lipcert.report.limits_distances import geometry
from lipcert.report.names import DATASETS
from lipcert.report.published import EVIDENCE
from lipcert.report.tables import Markdown, table

BEYOND = 4.0  # how far past the largest run a fit is drawn, as a factor of operations
NOTICED = 0.25  # points of VRA for a doubling of operations: less is not called growth, as seeds differ by as much
LINES = (("images seen and parameters", ("images", "parameters")), ("operations", ("operations",)))
CEILINGS = (("operations, with a ceiling", "operations"), ("images seen, with a ceiling", "images"))


def not_run(found: Found) -> Markdown:
    """What stands where there is nothing to show."""
    return Markdown(
        f"No LiResNet of this study has been certified on {DATASETS[found.dataset]} at {found.radius} "
        f"({found.guarantee}): **not run**."
    )


# ------------------------------------------------------------------------------------------------------------ the claim
def headline(found: Found) -> Markdown:
    """The page's claim, whichever way the fit falls, and what it rests on."""
    if not found.fitted:
        return not_run(found)
    text = f"**{_claim(found)}**"
    if (fit := ceiling(found.fitted)) is None:
        best = _best(found.fitted)
        return Markdown(f"{text} The highest VRA is {best.vra:.2f} % ({best.network}).")
    end = fit.gain(max(cell.operations for cell in found.fitted))
    return Markdown(
        f"{text} By the fit, one more doubling of the operations of training would bring {_interval(end, '+.2f')} "
        "points there (in brackets the 95 % interval; the curve that is fitted cannot fall, so no gain below 0 is in "
        f"it). {_basis(found.fitted)}"
    )


def _claim(found: Found) -> str:
    where = f"On {DATASETS[found.dataset]} at {found.radius}"
    if (fit := ceiling(found.fitted)) is None:
        return f"{where} this study has {_networks(found.fitted)} of one recipe: too few for a fit."
    if fit.flattens:
        return (
            f"{where} VRA flattens within reach of these runs: every ceiling that fits lies between "
            f"{fit.top.low:.1f} and {fit.top.high:.1f} %."
        )
    gain, much = fit.gain(max(cell.operations for cell in found.fitted)), f"{NOTICED:g} points"
    if gain.low >= NOTICED:
        return (
            f"{where} a doubling of operations still brings {much} of VRA or more at the largest run, and these runs "
            f"do not show where that ends: {_open(fit, found)}."
        )
    if gain.high < NOTICED:
        return (
            f"{where} a doubling of operations brings less than {much} of VRA at the largest run, but these runs "
            f"do not show where VRA ends: {_open(fit, found)}."
        )
    return (
        f"{where} these runs decide neither whether a doubling of operations still brings {much} of VRA or more at the "
        f"largest of them nor where VRA ends: {_open(fit, found)}."
    )


def _open(fit: Ceiling, found: Found) -> str:
    """Which ceilings fit, where 100 % is one: none is tried below what was reached."""
    best = _best(found.fitted).vra
    if fit.top.low <= best + 1e-9:
        return f"no ceiling between the {best:.1f} % that was reached and 100 % is refused"
    return f"the {best:.1f} % that was reached is refused as a ceiling, {fit.top.low:.1f} to 100 % are not"


def answer(found: Found) -> Markdown:
    """What all this says to the question of limits."""
    said = (geometry(found), _claim(found) if found.fitted else not_run(found), published_words(found))
    return Markdown("\n".join(f"{n}. {part}" for n, part in enumerate(filter(None, said), 1)))


def runs(found: Found) -> list[Record]:
    """The runs behind the figure, fitted ones first."""
    return [run for cell in (*found.fitted, *found.others) for run in cell.runs]


def _networks(cells: Sequence[Cell]) -> str:
    return f"{len(cells)} {'network' if len(cells) == 1 else 'networks'}"


def _basis(cells: Sequence[Cell]) -> str:
    runs = sum(len(cell.runs) for cell in cells)
    amounts = len({cell.images for cell in cells})
    return (
        f"The fit rests on {_networks(cells)} ({runs} runs, {amounts} {'length' if amounts == 1 else 'lengths'} of "
        f"training) and holds for their recipe alone: {cells[0].recipe}."
    )


def _best(cells: Sequence[Cell]) -> Cell:
    return max(cells, key=lambda cell: cell.vra)


def _interval(value: Interval, form: str = ".2f") -> str:
    """`+1.20 (+0.70 to +1.90)`: in brackets the 95 % interval."""
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"


# ------------------------------------------------------------------------------------------------------------- networks
def cells_table(found: Found) -> Markdown:
    """Every network: recipe, images, operations, VRA, and how far training accuracy is ahead of test accuracy."""
    if not found.fitted:
        return not_run(found)
    rows = [
        (
            f"{cell.network}, {cell.parameters / 1e6:.2f} M", recipe or cell.recipe, f"{cell.images:,}",
            f"{cell.operations / 1e12:,.1f}", _spread(cell), "" if math.isnan(cell.gap) else f"{cell.gap:+.1f}",
        )
        for recipe, cells in (("fitted", found.fitted), ("", found.others)) for cell in cells
    ]  # fmt: skip
    head = ("network, parameters", "recipe", "images seen", "operations, 10¹²", "VRA", "training less test, points")
    return table(head, rows, right=(2, 3, 4, 5))


def _spread(cell: Cell) -> str:
    if len(cell.shares) == 1:
        return f"{cell.vra:.2f} %, one run"
    return f"{cell.vra:.2f} % ({min(cell.shares):.2f} to {max(cell.shares):.2f})"


def cells_words(found: Found) -> Markdown:
    """The networks in words, and what training accuracy says about the reason."""
    if not found.fitted:
        return Markdown("")
    cells, best = found.fitted, _best(found.fitted)
    first, last = (end(cells, key=lambda cell: cell.operations).operations for end in (min, max))
    text = (
        f"The fitted recipe is {cells[0].recipe}. Its {_networks(cells)} span a factor of {last / first:,.0f} in "
        f"operations and {_factor(cells, 'images')} in images; the best is {best.network} with {best.vra:.2f} % after "
        f"{best.images:,} images."
    )
    if found.others:
        text += f" {_networks(found.others)} of other recipes are drawn and not fitted."
    return Markdown(f"{text} {_gap_words(best)}".strip())


def _factor(cells: Sequence[Cell], name: str) -> str:
    values = [getattr(cell, name) for cell in cells]
    return f"{max(values) / min(values):,.1f}"


def _gap_words(cell: Cell) -> str:
    """Whether the best network is short of capacity or of images."""
    if math.isnan(cell.gap):
        return ""
    if cell.gap < 5:
        return (
            f"At the end of training it is right on {abs(cell.gap):.1f} points {'more' if cell.gap > 0 else 'less'} of "
            "its augmented training images than of the test images: it does not know its training images by heart, "
            "which points to the fit itself as what is missing at this size, and not to a lack of images."
        )
    return (
        f"At the end of training it is right on {cell.gap:.1f} points more of its augmented training images than of "
        "the test images: part of what is missing is what further images would bring."
    )


# ----------------------------------------------------------------------------------------------------------------- fits
def fit_table(found: Found) -> Markdown:
    """Models, what a doubling brings by each, and what each misses of a network that was left out."""
    if not found.fitted:
        return Markdown("")
    rows = [(title, *_line_cells(line(found.fitted, names))) for title, names in LINES]
    rows += [(title, *_ceiling_cells(found.fitted, by)) for title, by in CEILINGS]
    head = ("VRA grows with", "points of VRA that a doubling brings", "misses, points")
    return table(head, rows, right=(2,))


def _line_cells(fit: Line | None) -> tuple[str, str]:
    if fit is None:
        return "these networks cannot tell", ""
    gains = "; ".join(f"{name} {_interval(gain, '+.2f')}" for name, gain in fit.gains.items())
    return gains, _missed(fit.left)


def _missed(points: float) -> str:
    return f"{points:.2f}" if math.isfinite(points) else "not known"


def _ceiling_cells(cells: Sequence[Cell], by: str) -> tuple[str, str]:
    if (fit := ceiling(cells, by)) is None:
        return "these networks cannot tell", ""
    first, last = (fit.gain(end(getattr(cell, by) for cell in cells)) for end in (min, max))
    text = (
        f"{_interval(first, '+.2f')} at the smallest, {_interval(last, '+.2f')} at the largest; ceiling "
        f"{_interval(fit.top, '.1f')} %, exponent {_interval(fit.exponent, '.2f')}"
    )
    return text, _missed(left_out(cells, by))


def _compared(cells: Sequence[Cell]) -> str:
    """Which model predicts networks that were left out, and whether any does better than their mean."""
    lines = {title: fit.left for title, names in LINES if (fit := line(cells, names)) is not None}
    errors = lines | {title: left_out(cells, by) for title, by in CEILINGS}
    known = {title: points for title, points in errors.items() if math.isfinite(points)}
    if not known:
        return "Networks are too few to ask which model predicts one that was left out."
    best = min(known, key=known.__getitem__)
    mean = math.sqrt(statistics.fmean((len(cells) / (len(cells) - 1) * (c.vra - _mean(cells))) ** 2 for c in cells))
    return (
        f"A network that was left out is predicted best by {best}, to {known[best]:.1f} points; the mean of the others "
        f"misses it by {mean:.1f}."
    )


def _mean(cells: Sequence[Cell]) -> float:
    return statistics.fmean(cell.vra for cell in cells)


def fit_words(found: Found) -> Markdown:
    """What the fits decide and what they leave open."""
    fit = ceiling(found.fitted)
    if fit is None:
        return Markdown("There are too few networks for a fit." if found.fitted else "")
    last = max(cell.operations for cell in found.fitted)
    first = min(cell.operations for cell in found.fitted)
    ahead = fit.at(BEYOND * last)
    return Markdown(
        f"{_both_words(line(found.fitted, LINES[0][1]))} {_compared(found.fitted)} Over the operations, with a "
        f"ceiling, the gain of a doubling goes from {fit.gain(first).value:+.1f} to {fit.gain(last).value:+.1f} points "
        f"in the range of these runs. {_ceiling_words(fit, found)} With {BEYOND:g} times the operations of the largest "
        f"run the fit expects {ahead.low:.1f} to {ahead.high:.1f} %; farther out it is not followed. The intervals "
        "know how networks scatter around the curve, and nothing of curves of another shape."
    )


def _both_words(both: Line | None) -> str:
    """Which of images and parameters the runs found to matter."""
    if both is None:
        return "Images and parameters cannot be told apart: networks here that have more of one have more of the other."
    said = [
        f"a doubling of the {name} brings {_interval(gain, '+.1f')} points"
        if gain.low > 0
        else f"what a doubling of the {name} brings is not decided ({gain.low:+.1f} to {gain.high:+.1f} points)"
        if gain.high >= 0
        else f"a doubling of the {name} costs {_interval(Interval(-gain.value, -gain.high, -gain.low), '.1f')} points"
        for name, gain in both.gains.items()
    ]
    alone = " One network alone holds these numbers, so do not lean on them." if math.isinf(both.left) else ""
    return f"With images and parameters apart, {'; '.join(said)}.{alone}"


def _ceiling_words(fit: Ceiling, found: Found) -> str:
    best = _best(found.fitted)
    if fit.flattens:
        return (
            f"The fit without a ceiling below 100 % is refused: the ceiling lies between {fit.top.low:.1f} and "
            f"{fit.top.high:.1f} %, where the best network has {best.vra:.1f} %."
        )
    return f"Where the curve ends, {_networks(found.fitted)} do not decide: {_open(fit, found)}."


# ------------------------------------------------------------------------------------------------------------ published
def published_table(found: Found) -> Markdown:
    """The published numbers of the family at this radius, with what our presets of them would take."""
    if not found.published:
        return Markdown(f"No LiResNet has been published for {DATASETS[found.dataset]} at {found.radius}.")
    rows = [
        (
            each.row.model, "yes" if each.generated else "no", f"{each.images / 1e6:,.1f}",
            f"{each.operations / 1e12:,.0f}", f"{each.row.value} %", EVIDENCE[each.row.evidence],
        )
        for each in found.published
    ]  # fmt: skip
    head = ("network", "generated images", "images seen, 10⁶", "operations, 10¹²", "VRA", "how we know")
    return table(head, rows, right=(2, 3, 4))


def published_words(found: Found) -> Markdown:
    """How much the published runs gain over ours for each doubling, beside what ours gain at their end."""
    plain = [each for each in found.published if not each.generated]
    if not plain or not found.fitted:
        return Markdown("")
    last = max(found.fitted, key=lambda cell: (cell.operations, cell.vra))
    best = max(plain, key=lambda each: float(each.row.value))
    times = best.operations / last.operations
    if times <= 1:
        return Markdown(f"Our largest run takes more operations than {best.row.model}: nothing lies beyond it.")
    mean = (float(best.row.value) - last.vra) / math.log2(times)
    text = (
        f"From our largest run, {last.network} after {last.images:,} images, to the best published number without "
        f"generated images, {best.row.model} with {best.row.value} %, it is a factor of {times:,.0f} in operations and "
        f"{float(best.row.value) - last.vra:+.1f} points: {mean:+.2f} points for each doubling on average."
    )
    return Markdown(" ".join(filter(None, (text, _beside(found, last, mean), _more_images(found, best, mean)))))


def _beside(found: Found, last: Cell, mean: float) -> str:
    if (fit := ceiling(found.fitted)) is None:
        return ""
    end = fit.gain(last.operations)
    if mean < end.low:
        verdict = "The curve bends in between, or their recipe makes less of its operations; we cannot say which."
    elif mean > end.high:
        verdict = "So their networks gain more on the way than ours do at their end."
    else:
        verdict = "That is within the interval: nothing contradicts one curve through both."
    return f"Our fit has {_interval(end, '+.2f')} at its end. {verdict}"


def _more_images(found: Found, plain: Published, mean: float) -> str:
    """What generated images brought, beside what their operations alone would at `mean` points a doubling."""
    same = [each for each in found.published if each.generated and each.row.model == plain.row.model]
    rest = same or [each for each in found.published if each.generated]
    if not rest:
        return ""
    best = max(rest, key=lambda each: float(each.row.value))
    gain, times = float(best.row.value) - float(plain.row.value), best.operations / plain.operations
    expected = mean * math.log2(times)
    verdict = "out there new images count, and not operations alone" if gain > expected else "no more than that"
    return (
        f"With generated images, and {times:.1f} times the operations, {best.row.model} has {best.row.value} %: "
        f"{gain:+.1f} points, where the operations alone would bring {expected:+.1f} at that rate; {verdict}."
    )
