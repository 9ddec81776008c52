"""The test bench at work, for the chapter "How to test a certifier": a negative control, and its corpus as a table."""

import functools
import math

from torch import Tensor, nn

from lipcert.bench import Claim
from lipcert.bench.corpus import Entry, all_entries
from lipcert.bench.mutants import public_power_method
from lipcert.bench.mutation import ROUNDING_TERMS
from lipcert.bench.report import BenchReport
from lipcert.bench.run import examine, prepare
from lipcert.bounds import norm_bound
from lipcert.certify import certify
from lipcert.report.tables import Markdown, table

_CASES = 6  # of each family on the page
_ROUNDING = 1e-6  # what float32 alone explains


@functools.cache
def control() -> tuple[BenchReport, BenchReport]:
    """The test bench on the power method as public codes use it, and on lipcert (executed, float64)."""
    material, public = prepare(_CASES), public_power_method()

    def own(model: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        found = certify(model, images_BCHW)
        return found.prediction_B, found.radius_B

    ours = examine(material, lambda layer, shape: norm_bound(layer, shape).upper, own, Claim("executed"), habits=False)
    return examine(material, public.bound, public.certify, habits=False), ours


def control_table() -> Markdown:
    """Both, check by check."""
    rows = [
        (
            theirs.name,
            f"{theirs.violations} of {theirs.cases}",
            _worst(theirs.worst),
            f"{ours.violations} of {ours.cases}",
        )
        for theirs, ours in zip(*(report.checks for report in control()), strict=True)
    ]
    return table(("check", "power method: false", "worst factor", "lipcert: false"), rows, right=(1, 2, 3))


def _worst(value: float) -> str:
    return "" if value <= 1 else "∞" if math.isinf(value) else f"{value:,.9g}"


def control_words() -> Markdown:
    """The verdict on both, and what the power method gets most wrong."""
    theirs, ours = control()
    failed = [c for c in theirs.checks if c.violations]
    worst = max((c for c in failed if math.isfinite(c.worst)), key=lambda c: c.worst)
    endless = [c.name for c in failed if math.isinf(c.worst)]
    slight = sum(1 < c.worst < 1 + _ROUNDING for c in failed)
    return Markdown(
        f"**The power method makes {theirs.violations} false claims in {theirs.cases} cases**; lipcert, whose claims "
        f"are held against rounding as well, {ours.violations} in {ours.cases}. The power method fails {len(failed)} "
        f"of {len(theirs.checks)} checks, {slight} of them by no more than float32 rounds. The worst finite factor is "
        f"{worst.worst:.0f} (*{worst.name}*)" + (f"; without limit: *{'*, *'.join(endless)}*." if endless else ".")
    )  # fmt: skip


_PUBLIC = ("gloro issue", "gloro strategies", "liresnet", "NNV", "CROWN", "arXiv", "ICLR")


def corpus_table(public: bool = True) -> Markdown:
    """Counter-examples by what went wrong: those found in public codes and papers, or all others."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for e in all_entries():
        # The network that one paper describes is no report of a failure.
        known = any(word in e.source for word in _PUBLIC) and "section 3" not in e.source
        if known == public:
            groups.setdefault((e.topic, e.source), []).append(e)
    rows = []
    for (topic, source), entries in groups.items():
        names = entries[0].name + (f" and {len(entries) - 1} more" if len(entries) > 1 else "")
        rows.append((source, f"{topic}: {names}", _must(entries)))
    return table(("what went wrong", "cases", "what must hold, unless refused"), rows)


def _must(entries: list[Entry]) -> str:
    cases = [e.build() for e in entries]
    witnessed = [case for case in cases if not case.nothing]
    if not witnessed:
        return "no claim"
    kinds = sorted({case.semantics for case in witnessed} - {"any"})
    radius = "no radius beyond the witness" + (f" ({', '.join(kinds)})" if kinds else "")
    return radius if len(witnessed) == len(cases) else f"{radius}, or no claim"


def corpus_words() -> Markdown:
    """How many there are."""
    entries = all_entries()
    return Markdown(f"The corpus holds {len(entries)} counter-examples in {len({e.topic for e in entries})} topics.")


def rounding_words() -> Markdown:
    """How many mutants forget a rounding term."""
    return Markdown(
        f"{sum(ROUNDING_TERMS.values())} mutants forget a term or an inflation; each must fall below the truth under "
        "hostile arithmetic, where the complete bound must hold."
    )
