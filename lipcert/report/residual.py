"""Small networks whose Lipschitz constant is known, beside their bounds: the record `exact-constants` in words.

`python -m benchmarks.exact_constants` makes the record. Without it everything here says so.
"""

from dataclasses import dataclass
from statistics import median

from lipcert.report.checks import rows_of
from lipcert.report.svg import BLUE, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

ABSENT = Markdown("Networks of known constant: **not run**.")
_FAMILIES = {"dense": "dense", "linear": "linear residual", "conventional": "conventional residual"}
_WEIGHTS = {"random": "random", "cross-entropy": "cross-entropy", "emma": "EMMA"}
_COLOURS = {"linear": BLUE, "conventional": VERMILLION}
_STYLES = {"random": (":", "^"), "cross-entropy": ("--", "s"), "emma": ("-", "o")}


@dataclass(frozen=True)
class Net:
    """One network of the record; constants as they were written, to twelve digits."""

    data: str
    family: str
    activation: str
    blocks: int
    weights: str
    regions: int
    open: int
    lower: float
    upper: float
    power_10: float
    power_500: float
    bound: float
    quick: float
    patient: float
    blocks_exactly: float
    branches_exactly: float

    @property
    def share(self) -> float:
        """Exact constant over proven bound: 1 means that nothing is wasted."""
        return self.upper / self.bound

    @property
    def layers(self) -> str:
        """Blocks and head in words."""
        blocks = "one block" if self.blocks == 1 else f"{self.blocks} blocks"
        return f"{blocks} and head" if self.family == "conventional" else f"{self.blocks + 1} layers"


def nets() -> list[Net]:
    """All networks of the record; empty without it."""
    rows = rows_of("exact-constants")
    found = []
    for line in rows[1:]:
        n = dict(zip(rows[0], line, strict=True))
        numbers = ("at least", "at most", "power 10", "power 500", "bound", "quick search", "patient search")
        found.append(
            Net(
                n["data"], n["family"], n["activation"], int(n["blocks"]), n["weights"], int(n["regions"]),
                int(n["open"]), *(float(n[key]) for key in (*numbers, "blocks exactly", "branches exactly")),
            )
        )  # fmt: skip
    return found


def _groups(chosen: list[Net]) -> dict[tuple[str, str, str, int], list[Net]]:
    groups: dict[tuple[str, str, str, int], list[Net]] = {}
    for net in chosen:
        groups.setdefault((net.family, net.activation, net.weights, net.blocks), []).append(net)
    return groups


def constants_table(activation: str = "MinMax") -> Markdown:
    """Networks of two and three layers on digits: constant; found pair, power method and bound in units of it.

    Medians over the seeds; ten rounds of the power method, from a cold start.
    """
    chosen = [n for n in nets() if n.data == "digits" and n.activation == activation]
    if not chosen:
        return ABSENT
    rows = []
    for (family, _, weights, _), group in _groups(chosen).items():
        ratios = zip(*((n.patient / n.upper, n.power_10 / n.upper, n.bound / n.upper) for n in group), strict=True)
        name = f"{_FAMILIES[family]}, {group[0].layers}"
        constant = f"{median(n.upper for n in group):.3g}"
        rows.append((name, _WEIGHTS[weights], constant, *(f"{median(values):.2f}" for values in ratios)))
    head = ("network", "weights", "constant", "pair found", "power method", "proven bound")
    return table(head, rows, right=(2, 3, 4, 5))


def constants_words() -> Markdown:
    """The table in words: who wastes what, and who is below the truth."""
    chosen = [n for n in nets() if n.data == "digits"]
    if not chosen:
        return ABSENT
    shares = "; ".join(
        f"{_FAMILIES[family]} "
        + ", ".join(
            f"{median(n.share for n in chosen if (n.family, n.weights) == (family, weights)):.2f} ({name})"
            for weights, name in _WEIGHTS.items()
        )
        for family in _FAMILIES
    )
    low10, low500 = (sum(getattr(n, key) < n.lower for n in nets()) for key in ("power_10", "power_500"))
    recall = [n.patient / n.upper for n in nets()]
    return Markdown(
        f"{len(nets())} networks, {sum(n.regions for n in nets()):,} linear regions. The constant over the proven "
        f"bound, median: {shares}. A product of power-method estimates lies *below* the network's own constant in "
        f"{low10} of them after ten rounds from a cold start: radii computed with a cold start of so few rounds would "
        f"be too long there. After 500 rounds it does in {low500}. "
        f"The search for a pair finds at least {min(recall):.2f} of the constant, median {median(recall):.3f}."
    )


def decomposition_table() -> Markdown:
    """Chains in the plane: how each step of the bound adds to the constant, as factors; medians over the seeds."""
    chosen = [n for n in nets() if n.data == "arms" and n.family == "conventional"]
    if not chosen:
        return ABSENT
    rows = []
    for weights, name in _WEIGHTS.items():
        for blocks in sorted({n.blocks for n in chosen}):
            group = [n for n in chosen if (n.weights, n.blocks) == (weights, blocks)]
            factors = zip(*(_factors(n) for n in group), strict=True)
            rows.append((name, blocks, *(f"{median(f):.2f}" for f in factors)))
    head = ("weights", "blocks", "product over blocks", "skip + branch", "product in the branch", "together")
    return table(head, rows, right=(1, 2, 3, 4, 5))


def decomposition_words() -> Markdown:
    """The deepest chains in words."""
    chosen = [n for n in nets() if n.data == "arms" and n.family == "conventional"]
    if not chosen:
        return ABSENT
    deepest, parts = max(n.blocks for n in chosen), []
    for weights, name in _WEIGHTS.items():
        group = [_factors(n) for n in chosen if (n.weights, n.blocks) == (weights, deepest)]
        over, total, within, _ = (median(values) for values in zip(*group, strict=True))
        parts.append(f"{total:.2f} by the sum of skip and branch, {over:.2f} and {within:.2f} by the products ({name})")
    return Markdown(f"At {deepest} blocks the bound is multiplied {'; '.join(parts)}.")


def _factors(n: Net) -> tuple[float, float, float, float]:
    """Blocks taken one by one; 1 + Lip(g) for each; norms multiplied inside of g; all of it."""
    return (
        n.blocks_exactly / n.upper, n.branches_exactly / n.blocks_exactly, n.bound / n.branches_exactly,
        n.bound / n.upper,
    )  # fmt: skip


def chains_figure() -> Figure | Markdown:
    """Share of the proven bound that is used against the number of blocks; medians over the seeds."""
    chosen = [n for n in nets() if n.data == "arms"]
    if not chosen:
        return ABSENT
    figure, axes = canvas(WIDTH, 3.9)
    rows = []
    for family, colour in _COLOURS.items():
        for weights, (dash, marker) in _STYLES.items():
            depths = sorted({n.blocks for n in chosen if (n.family, n.weights) == (family, weights)})
            shares = [share_at(family, weights, blocks) for blocks in depths]
            label = f"{family}, {_WEIGHTS[weights]}"
            axes.plot(depths, shares, dash, marker=marker, color=colour, linewidth=1.6, markersize=5, label=label)
            rows += [(family, weights, blocks, f"{s:.6g}") for blocks, s in zip(depths, shares, strict=True)]
    axes.set(yscale="log", xlabel="blocks", ylabel="constant / proven bound")
    low = min(float(r[3]) for r in rows)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= low / 1.5]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks(sorted({n.blocks for n in chosen}))
    axes.minorticks_off()
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    alt = f"Exact constant over proven bound against the number of blocks, for chains in the plane. {chains_words()}"
    return finish("chains", figure, alt, ("family", "weights", "blocks", "share"), rows)


def share_at(family: str, weights: str, blocks: int) -> float:
    """Median share of the bound over the seeds of one kind of chain in the plane."""
    return median(
        n.share for n in nets() if (n.data, n.family, n.weights, n.blocks) == ("arms", family, weights, blocks)
    )


def chains_words() -> Markdown:
    """The figure in words."""
    chosen = [n for n in nets() if n.data == "arms"]
    if not chosen:
        return ABSENT
    first, last = min(n.blocks for n in chosen), max(n.blocks for n in chosen)
    parts = [
        f"{family} with {_WEIGHTS[weights]} weights {share_at(family, weights, first):.2f} and "
        f"{share_at(family, weights, last):.2f}"
        for family in _COLOURS
        for weights in _STYLES
    ]
    return Markdown(f"Share of the bound that is used, with {first} block and with {last}: {'; '.join(parts)}.")
