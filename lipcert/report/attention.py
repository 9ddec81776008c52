"""The page on residual and attention blocks: how loose their bounds are, read from the record `attention`.

Blocks, bounds and search are measurements in `benchmarks`, no part of the certifier; this module only shows numbers.
One thing is computed while the page is built: what lipcert answers to attention.
"""

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from lipcert.report.checks import Check, find_check
from lipcert.report.svg import BLUE, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

GOAL = "attention"
NOT_RUN = Markdown("Not run.")
NAMES = {
    "linear convolution": "linear convolution",
    "dense": "dense, MinMax, dense",
    "convolutions": "two convolutions, MinMax between",
    "no softmax": "attention without softmax",
    "dot product": "dot-product attention",
    "squared distance": "L2 attention",
    "cosine": "scaled cosine attention",
    "layer norm, dot product": "layer norm, dot-product attention",
}
CONVENTIONAL, ATTENTION = tuple(NAMES)[1:3], tuple(NAMES)[3:]
WEIGHTS = {"random": "random weights", "trained": "trained", "held": "trained, bound held"}


@dataclass(frozen=True)
class Case:
    """One block x + g(x), measured. `weights` is a key of `WEIGHTS`, `block` one of `NAMES`.

    Attributes:
        published, bound: upper bounds on the constant of g; nan where no other than `bound` was published.
        branch, whole: the largest Jacobian norm found for g and for the block.
        whole_bound: the best bound on the block: 1 + bound, or the norm of one map where g is linear.
        points, violations: how many Jacobians were looked at, and how many were above a bound.
        accuracy: of the block with a linear head, on the images it was trained on; nan if untrained.
    """

    block: str
    tokens: int
    features: int
    heads: int
    weights: str
    seed: int
    published: float
    bound: float
    branch: float
    whole: float
    whole_bound: float
    points: int
    violations: int
    accuracy: float

    @property
    def branch_factor(self) -> float:
        """What the bound on the branch loses: (1 + bound) / (1 + found)."""
        return (1 + self.bound) / (1 + self.branch)

    @property
    def sum_factor(self) -> float:
        """What the triangle inequality loses, were the branch known: (1 + found) / found for the block."""
        return (1 + self.branch) / self.whole

    @property
    def total(self) -> float:
        """1 + bound over what was found for the block: the product of the two."""
        return (1 + self.bound) / self.whole


def cases(check: Check | None = None) -> list[Case]:
    """Every block of a record (the published one), or nothing where there is none.

    Raises:
        ValueError: rows with other columns than this page knows.
    """
    check = check or find_check(GOAL)
    if check is None:
        return []
    head, *rows = check.rows
    kinds = {field.name: field.type for field in fields(Case)}
    if set(head) != set(kinds):
        raise ValueError(f"record {GOAL!r} has columns {', '.join(head)}: must be {', '.join(kinds)}; measure again")
    return [Case(**{name: kinds[name](text) for name, text in zip(head, row, strict=True)}) for row in rows]


def chosen(weights: str, blocks: Sequence[str]) -> list[Case]:
    return [case for case in cases() if case.weights == weights and case.block in blocks]


def violations() -> int:
    """Points at which a Jacobian was above a bound."""
    return sum(case.violations for case in cases())


def _shown(function: Callable) -> Callable:
    """`Not run.` where the record is missing."""

    @functools.wraps(function)
    def show(*args):
        return function(*args) if cases() else NOT_RUN

    return show


# --- single maps ------------------------------------------------------------------------------------------------------


@_shown
def family_table() -> Markdown:
    """Two tokens 0 and t: the derivative as measured and its closed form."""
    numbers = find_check(GOAL).numbers
    steps = [float(key.removeprefix("family ")) for key in numbers if key.startswith("family ") and "norm" not in key]
    rows = [(f"{t:,.0f}", f"{numbers[f'family {t:g}']:,.2f}", f"{0.5 + t * t / 4:,.2f}") for t in sorted(steps)]
    return table(("$t$", "measured", "$1/2 + t^2/4$"), rows, right=(0, 1, 2))


@_shown
def pieces_table() -> Markdown:
    """Softmax and layer normalisation: the proven constant, the largest Jacobian norm found, and where."""
    numbers = find_check(GOAL).numbers
    limit = f"{1 / math.sqrt(numbers['norm eps']):.2f}"
    rows = [
        ("softmax", "0.5", f"{numbers['softmax random']:.4f}", "random inputs"),
        ("softmax", "0.5", f"{numbers['softmax pair']:.4f}", "two entries equal, the rest far below"),
    ]
    for key, value in numbers.items():
        if key.startswith("layer norm "):
            rows.append(("layer norm", limit, f"{value:.2f}", f"deviation {key.removeprefix('layer norm ')}"))
    return table(("map", "constant", "Jacobian norm", "where"), rows, right=(1, 2))


# --- blocks -----------------------------------------------------------------------------------------------------------


@_shown
def published_table() -> Markdown:
    """Bound over found for the two attentions with a published bound, by number of tokens, random weights."""
    rows = []
    for block in ("dot product", "squared distance"):
        found = chosen("random", (block,))
        for tokens in sorted({case.tokens for case in found}):
            some = [case for case in found if case.tokens == tokens]
            ratios = [[getattr(case, name) / case.branch for case in some] for name in ("published", "bound")]
            rows.append((NAMES[block], tokens, *map(_spread, ratios)))
    return table(("branch", "tokens", "published over found", "ours over found"), rows, right=(1, 2, 3))


@_shown
def looseness_table(weights: str) -> Markdown:
    """For each kind of branch: what it stretches, its bound over that, and what bound and sum lose in the block."""
    rows = []
    for block, name in NAMES.items():
        if found := chosen(weights, (block,)):
            ratio = [case.bound / case.branch for case in found]
            factors = ([getattr(case, key) for case in found] for key in ("branch_factor", "sum_factor", "total"))
            rows.append(
                (name, _number(statistics.median(c.branch for c in found)), _spread(ratio), *map(_middle, factors))
            )
    head = ("branch", "found, branch", "bound over found", "lost by bound", "lost by sum", "lost together")
    return table(head, rows, right=(1, 2, 3, 4, 5))


@_shown
def looseness_figure() -> Figure:
    """What a block's bound loses, split into the branch's bound and the sum, for every kind and all weights."""
    from matplotlib.patches import Patch

    figure, axes = canvas(WIDTH, 5.6)
    rows, ticks, place = [], [], 0.0
    for block, name in reversed(NAMES.items()):
        if not chosen("random", (block,)):
            continue
        ticks.append((place + 1, name.replace(", ", ",\n", 1)))
        for weights in reversed(WEIGHTS):
            found = chosen(weights, (block,))
            bound, total = (statistics.median(getattr(c, key) for c in found) for key in ("branch_factor", "total"))
            axes.barh(place, bound - 1, left=1, height=0.8, color=BLUE)
            axes.barh(place, total - bound, left=bound, height=0.8, color=VERMILLION, hatch="///", edgecolor=INK)
            beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "color": INK}
            axes.annotate(weights, (max(total, bound), place), **beside)
            rows.append((block, weights, f"{bound:.6g}", f"{total / bound:.6g}", f"{total:.6g}"))
            place += 1
        place += 0.8
    # The longest bar takes up to three quarters of the logarithmic axis: room for the words beside it.
    end = max(2.0, *(float(number) for row in rows for number in (row[2], row[4]))) ** (4 / 3)
    axes.set(xscale="log", xlim=(1, end), xlabel="(1 + bound) / found")
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=9)
    powers = range(math.ceil(math.log10(end)))
    marks = [first * 10**power for power in powers for first in (1, 2, 5) if first * 10**power <= end]
    axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
    axes.minorticks_off()
    axes.grid(axis="x")
    summed = Patch(facecolor=VERMILLION, edgecolor=INK, hatch="///", label="lost by the sum")
    keys = [Patch(color=BLUE, label="lost by the bound"), summed]
    axes.legend(handles=keys, loc="upper right", labelcolor=INK, fontsize=9.5, frameon=False)
    alt = "Bars: how much too large the bound of a residual block is, by kind of branch. " + looseness_words()
    return finish(
        "attention-looseness", figure, alt, ("block", "weights", "lost_by_bound", "lost_by_sum", "total"), rows
    )


@_shown
def looseness_words() -> Markdown:
    """The figure in words."""
    parts = []
    for weights, name in WEIGHTS.items():
        spans = [_span(weights, group) for group in (("linear convolution",), CONVENTIONAL, ATTENTION)]
        parts.append(
            f"{name}: {spans[0]} around a linear convolution, {spans[1]} around conventional branches, {spans[2]} "
            "around attention"
        )
    return Markdown(f"Medians of 1 + bound over found. {'. '.join(part[0].upper() + part[1:] for part in parts)}.")


def sum_share(weights: str, blocks: Sequence[str]) -> float:
    """Share of the logarithm of all that is lost that the sum accounts for; nan where nothing is lost or measured."""
    found = chosen(weights, blocks)
    lost = sum(math.log(case.total) for case in found)
    return sum(math.log(case.sum_factor) for case in found) / lost if lost > 0 else math.nan


@_shown
def claim_words() -> Markdown:
    """Which of the two effects dominates, for attention and for conventional branches, whichever way it falls."""
    lines = []
    for name, blocks in (("attention", ATTENTION), ("conventional branches", CONVENTIONAL)):
        shares = {weights: sum_share(weights, blocks) for weights in WEIGHTS}
        told = ", ".join(
            f"{'not measured' if share != share else f'{100 * share:.0f} %'} ({WEIGHTS[weights]})"
            for weights, share in shares.items()
        )
        lines.append(f"- Around {name} the sum takes {told}: {_verdict(list(shares.values()))}.")
    answer = _ANSWERS[_verdict([sum_share(weights, ATTENTION) for weights in WEIGHTS])]
    told = "\n".join(lines).replace(" %", "\N{NO-BREAK SPACE}%")
    return Markdown(
        f"{answer} A block $x + g(x)$ is bounded by 1 + the bound on its branch $g$. That can lose in two places: in "
        "the bound on $g$, and in the sum, since skip and branch need not pull the same way. On small single blocks, "
        f"as shares of the logarithm of all that is lost:\n\n{told}"
    )


_SUM, _BRANCH = "mostly the sum's doing", "mostly the doing of the branch's own bound"
_EITHER, _EQUAL, _UNKNOWN = "it depends on the weights", "both count about the same", "not measured"
# What the verdict on attention says to the question whether residual bounds are the obstacle in transformers too.
_ANSWERS = {
    _SUM: "**Yes, around attention too**: most is lost in adding skip and branch.",
    _BRANCH: "**Not the main one around attention**: little is lost in adding skip and branch, most in the bound on "
    "the attention itself.",
    _EITHER: "**It depends on the weights** how much of the loss around attention is due to adding skip and branch.",
    _EQUAL: "**In part**: around attention about as much is lost in adding skip and branch as in the branch's bound.",
    _UNKNOWN: "**Not measured** around attention with all weights.",
}


def _verdict(shares: Sequence[float]) -> str:
    if not shares or any(share != share for share in shares):
        return _UNKNOWN
    if min(shares) > 0.6:
        return _SUM
    if max(shares) < 0.4:
        return _BRANCH
    return _EITHER if max(shares) > 0.6 or min(shares) < 0.4 else _EQUAL


@_shown
def depth_words(blocks: int = 12) -> Markdown:
    """What a conventional block's loss would come to over many of them."""
    once = statistics.median(case.total for case in chosen("trained", ("convolutions",)))
    return Markdown(
        f"Small losses add up: a trained conventional block of convolutions lost {once:.2f} (median), which over "
        f"{blocks} blocks, if all lost as much, would be {once**blocks:.1f}."
    )


@_shown
def found_words() -> Markdown:
    """How much of a large bound is no looseness, and what is left of a branch whose bound is held."""
    limit = find_check(GOAL).numbers["held"]
    free, held = (_found(weights, ATTENTION) for weights in ("trained", "held"))
    return Markdown(
        f"Not all of it is looseness. Trained freely, attention was found to stretch by {free} (medians), so that even "
        f"its exact constant would be of little use. With the bound held at {limit:g}, conventional branches were "
        f"found to stretch by {_found('held', CONVENTIONAL)}, attention by {held}: the looser the bound, the less of "
        "the branch is left."
    )


def _found(weights: str, blocks: Sequence[str]) -> str:
    found = [chosen(weights, (block,)) for block in blocks]
    return _range([statistics.median(case.branch for case in some) for some in found if some])


@_shown
def measured_words() -> Markdown:
    """How much was measured, and that no bound was violated (or how often)."""
    check, found = find_check(GOAL), cases()
    wrong = violations()
    shapes = ", ".join(f"{n} × {d}" for n, d in sorted({(case.tokens, case.features) for case in found}))
    heads = " and ".join(map(str, sorted({case.heads for case in found})))
    code = f"commit {check.commit[:7]}" if check.commit else "unknown commit"
    return Markdown(
        f"{len(found)} blocks of {shapes} (tokens × features), {heads} {'head' if heads == '1' else 'heads'}, seeds: "
        f"{check.numbers['seeds']}; Jacobians at {sum(case.points for case in found):,} points, random ones and those "
        f"that the search found: {wrong if wrong else 'none'} above a bound. Cosines have τ = "
        f"{check.numbers['cosine scale']:g} and ε = {check.numbers['cosine eps']:g}. (`{check.command}`, "
        f"{check.seconds:,.0f} s, {check.hardware.get('processor', 'unknown processor')}, {code})"
    )


def _span(weights: str, blocks: Sequence[str]) -> str:
    found = [chosen(weights, (block,)) for block in blocks]
    return _range([statistics.median(case.total for case in some) for some in found if some])


def _range(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _spread(values: Sequence[float]) -> str:
    return f"{_middle(values)} ({_number(min(values))}–{_number(max(values))})"


def _middle(values: Sequence[float]) -> str:
    return _number(statistics.median(values))


def _number(value: float) -> str:
    """Three digits that count, or two decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# --- refused ----------------------------------------------------------------------------------------------------------


def refusals_table() -> Markdown:
    """What `lipcert.certify` answers to attention, softmax and layer normalisation inside a chain, tried now."""
    import torch
    from torch import nn

    from lipcert.certify import certify
    from lipcert.layers import Residual
    from lipcert.report.refusals import saying

    image_BCHW = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    tried = {
        "`nn.MultiheadAttention`": nn.MultiheadAttention(64, 1),
        "`nn.TransformerEncoderLayer`": nn.TransformerEncoderLayer(64, 1, batch_first=True),
        "a residual block around attention": Residual(nn.Sequential(nn.MultiheadAttention(64, 1))),
        "`nn.Softmax` between layers": nn.Softmax(1),
        "`nn.LayerNorm`": nn.LayerNorm(64),
    }
    rows = []
    for name, layer in tried.items():
        model = nn.Sequential(nn.Flatten(), layer, nn.Linear(64, 10)).eval()
        rows.append((name, saying(functools.partial(certify, model, image_BCHW))))
    return table(("you give", "lipcert answers"), rows)
