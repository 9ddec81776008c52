"""The page on losses: what every loss keeps of its VRA from few classes to many, and what chance would make of it."""

import functools
import math
import statistics
from dataclasses import dataclass

import numpy as np

from lipcert.report.loss_study import EMMA, EVEN, FEW, NOT_RUN, PAIRS, Arm, LossStudy, listed, plural
from lipcert.report.tables import Markdown, table

BETTER, WORSE = "scales better", "scales worse"
_TRIALS = 100_000  # of the simulation of equal losses


@dataclass(frozen=True)
class Fall:
    """A loss at the fewest and at the most classes, both with all of their runs; per cent.

    points, ratios: VRA minus EMMA's and over EMMA's, every pair, at few and at many classes.
    """

    few: Arm
    many: Arm
    points: tuple[list[float], list[float]]
    ratios: tuple[list[float], list[float]]

    def ends(self, measure: str = "vra") -> tuple[float, float]:
        """Means at few and at many classes."""
        few, many = (statistics.fmean(getattr(arm, measure).values()) for arm in (self.few, self.many))
        return few, many

    def verdict(self) -> str:
        """Whether it scales better than EMMA: all pairs at many classes above all at few, in points and as a ratio."""
        kinds = (self.points, self.ratios)
        if min(len(values) for ends in kinds for values in ends) < PAIRS:
            return FEW
        if all(min(many) > max(few) for few, many in kinds):
            return BETTER
        return WORSE if all(max(many) < min(few) for few, many in kinds) else EVEN


def falls(study: LossStudy) -> dict[str, Fall]:
    """Losses of which all runs were made at the fewest and the most classes."""
    found = {}
    if len(study.counts) < 2:
        return found
    ends = study.counts[0], study.counts[-1]
    for title in study.titles:
        arms = [study.arm(classes, title) for classes in ends]
        if all(arm.complete for arm in arms):
            points = [study.gaps(classes, title) for classes in ends]
            ratios = [_ratios(arm, study.arm(arm.classes, EMMA)) for arm in arms]
            found[title] = Fall(*arms, tuple(points), tuple(ratios))
    return found


def _ratios(mine: Arm, base: Arm) -> list[float]:
    pairs = sorted(pair for pair in mine.vra.keys() & base.vra.keys() if base.vra[pair])
    return [mine.vra[pair] / base.vra[pair] for pair in pairs]


def fall_table(study: LossStudy) -> Markdown:
    """What every loss keeps from few classes to many; smallest fall relative to its own beginning first."""
    found = falls(study)
    if not found:
        return Markdown("")
    rows = []
    for title, fall in sorted(found.items(), key=lambda item: -_kept(item[1])):
        few, many = fall.ends()
        gaps = [f"{statistics.fmean(values):+.2f}" for values in fall.points if values]
        own = "" if title == EMMA else f"{' → '.join(gaps)}: {fall.verdict()}" if len(gaps) == 2 else NOT_RUN
        shares = f"{few:.2f} → {many:.2f} %"
        kept = (f"{100 * _kept(fall, measure):.1f} %" for measure in ("vra", "clean"))
        rows.append((title, shares, f"{few - many:.2f}", *kept, own))
    span = f"{study.counts[0]} → {study.counts[-1]} classes"
    head = ("loss", f"VRA, {span}", "fall, points", "VRA kept", "clean kept", "VRA minus EMMA's")
    return table(head, rows, right=(2, 3, 4))


def _kept(fall: Fall, measure: str = "vra") -> float:
    few, many = fall.ends(measure)
    return many / few if few else 0.0


def scaling(study: LossStudy) -> dict[str, list[str]]:
    """Losses by whether they scale better than EMMA; those without all runs are left out."""
    found: dict[str, list[str]] = {BETTER: [], WORSE: [], EVEN: [], FEW: []}
    for title, fall in falls(study).items():
        if title != EMMA:
            found[fall.verdict()].append(title)
    return found


@dataclass(frozen=True)
class Luck:
    """What chance alone makes of the comparisons of `scaling` if every loss is EMMA's equal.

    verdicts: better or worse, in the mean. better: how often so many or more scale better, by their number, from 0.
    """

    comparisons: int
    verdicts: float
    better: tuple[float, ...]


def luck(study: LossStudy) -> Luck:
    """For the losses that are read, with EMMA's level and the spread of the pairs at both counts; one must be read."""
    read = [fall for title, fall in falls(study).items() if title != EMMA and fall.verdict() != FEW]
    pairs = tuple(tuple(map(len, fall.points)) for fall in read)
    spreads = tuple(
        math.sqrt(statistics.fmean(map(statistics.variance, end)))
        for end in zip(*(fall.points for fall in read), strict=True)
    )
    levels = tuple(statistics.fmean(study.arm(n, EMMA).vra.values()) for n in (study.counts[0], study.counts[-1]))
    return equals(pairs, spreads, levels)


@functools.cache
def equals(pairs: tuple[tuple[int, int], ...], spreads: tuple[float, float], levels: tuple[float, float]) -> Luck:
    """Losses that are EMMA's equals, simulated: runs with normal noise, those of EMMA shared by all comparisons.

    pairs: of every loss, at few and at many classes. spreads: standard deviation of a loss minus EMMA, points. levels:
    VRA, per cent.
    """
    random = np.random.default_rng(0)
    noise = [spread / math.sqrt(2) for spread in spreads]  # of a run: a pair has two
    most = map(max, zip(*pairs, strict=True))
    shared = [random.normal(*end, (_TRIALS, count)) for *end, count in zip(levels, noise, most, strict=True)]
    better_T, worse_T = np.zeros((2, _TRIALS), int)
    for counts in pairs:
        ends = []
        for emma_TP, level, sigma, count in zip(shared, levels, noise, counts, strict=True):
            base_TP, own_TP = emma_TP[:, :count], random.normal(level, sigma, (_TRIALS, count))
            ends.append((own_TP - base_TP, own_TP / base_TP))
        kinds = list(zip(*ends, strict=True))
        better_T += np.all([many_TP.min(1) > few_TP.max(1) for few_TP, many_TP in kinds], axis=0)
        worse_T += np.all([many_TP.max(1) < few_TP.min(1) for few_TP, many_TP in kinds], axis=0)
    at_least = tuple(float((better_T >= number).mean()) for number in range(len(pairs) + 1))
    return Luck(len(pairs), float((better_T + worse_T).mean()), at_least)


def fall_words(study: LossStudy) -> Markdown:
    """The table in words, with the rule."""
    found = falls(study)
    if not found:
        return Markdown("The fall from few classes to many needs all runs of a loss at both counts: **not run**.")
    by_kept = sorted(found, key=lambda title: -_kept(found[title]))
    most, least = (f"{100 * _kept(found[by_kept[place]]):.1f} %" for place in (0, -1))
    text = f"Of its VRA at {study.counts[0]} classes {by_kept[0]} keeps "
    if len(by_kept) > 1:
        text += f"most at {study.counts[-1]}, {most}, and {by_kept[-1]} least, {least}"
    else:
        text += f"{most} at {study.counts[-1]}"
    less = [title for title, fall in found.items() if _kept(fall) < _kept(fall, "clean")]
    text += (
        f". Less of VRA than of clean accuracy is kept under {len(less)} of {len(found)} losses"
        f"{'' if len(less) in (0, len(found)) else f' ({listed(less)})'}."
    )
    sides = scaling(study)
    if any(sides[word] for word in (BETTER, WORSE, EVEN)):
        by_chance = luck(study)
        text += (
            " *Scales better*: beside EMMA every pair at many classes stands above every pair at few, in points and as "
            f"a ratio; *worse*: below. If every loss were EMMA's equal, chance alone would make about "
            f"{by_chance.verdicts:.1f} of {plural(by_chance.comparisons, 'comparison')} better or worse: simulated, "
            "with one spread for all losses, that of our pairs; losses of unlike spread can pass more often. Scales "
            f"better: {listed(sides[BETTER])}; worse: {listed(sides[WORSE])}; not told apart: {listed(sides[EVEN])}."
        )
    return Markdown(text)
