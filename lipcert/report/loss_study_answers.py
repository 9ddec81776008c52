"""The page on losses: its claim, what EMMA costs (check `loss-cost`), and the answers to questions 2 and 6."""

import math
import statistics
from dataclasses import dataclass

from lipcert.data.registry import DATASETS as FACTS
from lipcert.report.checks import find_check
from lipcert.report.loss_study import (
    AHEAD,
    BEHIND,
    EMMA,
    EVEN,
    GLORO,
    LossStudy,
    in_100,
    listed,
    missing,
    plural,
    remark,
    runs_word,
    signed,
    spread,
    verdict,
)
from lipcert.report.loss_study_curves import FASTER, SHARE, SLOWER, image_ratios, speed
from lipcert.report.loss_study_fall import BETTER, WORSE, falls, luck, scaling
from lipcert.report.loss_study_vra import judged
from lipcert.report.names import DATASETS
from lipcert.report.tables import Markdown, table

CHECK = "loss-cost"
_AGAIN = "gloro, again"  # of the check: the same step a second time
_COMMAND = "python -m benchmarks.loss_cost"
_WEAK = 0.05  # what equal losses would show more often than this is weak evidence of a difference


# ---------------------------------------------------------------------------------------------------------------- price
@dataclass(frozen=True)
class Price:
    """A step under a loss: its time, that over GloRo's (median and quartiles of the rounds), the loss's share of it.

    again: quartiles of GloRo's own step, timed a second time in the same rounds, over the first.
    """

    ms: float
    ratio: float
    low: float
    high: float
    share: float
    again: tuple[float, float]

    @property
    def told_apart(self) -> bool:
        """Whether the quartiles lie beside those of GloRo's second time."""
        return self.low > self.again[1] or self.high < self.again[0]


def price(study: LossStudy, classes: int, title: str) -> Price | None:
    """From the published check; None where it was not run, or not for that loss."""
    check, arm = find_check(CHECK), study.arm(classes, title)
    if check is None or not arm.cells:
        return None
    keys = [f"{arm.config.loss}; {classes} classes; {what}" for what in ("ms", "ratio", "low", "high", "share")]
    twice = tuple(float(check.numbers.get(f"{_AGAIN}; {classes} classes; {end}", 1)) for end in ("low", "high"))
    return Price(*(float(check.numbers[key]) for key in keys), twice) if keys[0] in check.numbers else None


def epoch_seconds(study: LossStudy, classes: int, found: Price) -> float:
    """Of whole batches over the data set's training images of so many classes."""
    facts, batch = FACTS[study.dataset], study.arm(classes, EMMA).config.batch
    return found.ms / 1000 * (facts.train * classes // facts.classes // batch)


def price_table(study: LossStudy) -> Markdown:
    """Every loss: its step over GloRo's at every count of classes; time, share and an epoch at the most classes."""
    counts, rows = study.counts, []
    for title in study.titles:
        found = [price(study, classes, title) for classes in counts]
        if not all(found):
            continue
        steps = ["1" if title == GLORO else f"{p.ratio:.3f} ({p.low:.3f} to {p.high:.3f})" for p in found]
        last, epoch = found[-1], epoch_seconds(study, counts[-1], found[-1])
        rows.append((title, *steps, f"{last.ms:.1f} ms", f"{100 * last.share:.2g} %", f"{epoch:.1f} s"))
    if not rows:
        return Markdown("")
    steps = [f"over GloRo's, {classes} classes" for classes in counts]
    head = ("loss", *steps, f"a step, {counts[-1]} classes", "the loss alone", "an epoch")
    return table(head, rows, right=range(1, 4 + len(counts)))


def price_words(study: LossStudy) -> Markdown:
    """How it was timed and what EMMA costs beside GloRo."""
    check = find_check(CHECK)
    found = {classes: price(study, classes, EMMA) for classes in study.counts}
    if check is None or not any(found.values()):
        return Markdown(f"The price of a step: **not run** (`{_COMMAND}`, five minutes of one quiet core).")
    threads, rounds = check.numbers.get("threads", 1), check.numbers.get("rounds", 0)
    where = f"{check.hardware.get('processor', 'a processor')}, {threads} {'thread' if threads == 1 else 'threads'}"
    said = [f"{_price_words(p)} at {classes} classes" for classes, p in found.items() if p]
    twice = ["{:.3f} to {:.3f}".format(*p.again) for p in found.values() if p]
    return Markdown(
        f"Steps of the network and recipe of this page under every loss, in turns in one process, {rounds} rounds "
        f"({where}); in brackets the quartiles of the rounds. EMMA's step takes {'; '.join(said)}. GloRo's own, timed "
        f"a second time in the same rounds, takes {' and '.join(twice)} times as long as the first: "
        "smaller differences the clock cannot tell. "
        "*The loss alone*, with its gradients and on the same batch, is the share of a step that another loss could "
        "save. Every step also computes GloRo's bottom logit once, for the training curve."
    )


def _price_words(found: Price) -> str:
    text = f"{found.ratio:.3f} times GloRo's ({found.low:.3f} to {found.high:.3f})"
    return text if found.told_apart else f"{text}, not told apart from it,"


# ------------------------------------------------------------------------------------------------------------ the claim
def headline(study: LossStudy) -> Markdown:
    """What came out, for the top of the page."""
    planned = sum(len(arm.cells) for arm in study.arms.values())
    title = f"VRA of {len(study.titles)} losses on {study.name}"
    if not study.records():
        return Markdown(f"**{title}**: **not run** ({planned} runs are planned).")
    done = f"{planned - len(study.records())} of {planned} runs are still missing" if missing(study) else ""
    said = []
    for classes in reversed(study.counts):
        arm, found = study.arm(classes, EMMA), judged(study, classes)
        if arm.complete and any(found[word] for word in (AHEAD, BEHIND, EVEN)):
            share = statistics.fmean(arm.vra.values())
            said.append(
                f"At {classes} classes EMMA certifies {share:.2f} % ({runs_word(arm)}); ahead of it: "
                f"{listed(found[AHEAD])}; behind: {listed(found[BEHIND])}; not told apart: {listed(found[EVEN])}."
            )
    if not said:
        return Markdown(f"**{title}**: {done or 'too few pairs to read'}.")
    return Markdown(f"**{' '.join(said)}** VRA at {study.radius}, {study.guarantee}.{f' {done}.' if done else ''}")


# ----------------------------------------------------------------------------------------------------------- question 2
def scaling_answer(study: LossStudy) -> Markdown:
    """Question 2: would other losses than EMMA scale better to many classes?"""
    start = "**Would losses other than EMMA scale better to many classes?**"
    found, sides = falls(study), scaling(study)
    read = [*sides[BETTER], *sides[WORSE], *sides[EVEN]]
    if EMMA not in found or not read:
        why = missing(study) or f"no loss beside {EMMA} has pairs enough"
        return Markdown(f"{start} Not answered: {why}.")
    few, many = study.counts[0], study.counts[-1]
    at_few, at_many = judged(study, few), judged(study, many)
    better, worse, even = sides[BETTER], sides[WORSE], sides[EVEN]
    if better:
        said = [remark(t, f"{_word(at_few, t)} at {few} classes, {_word(at_many, t)} at {many}") for t in better]
        end = f"By our rule {len(better)} of {len(read)} {'does' if len(better) == 1 else 'do'}: {listed(said)}."
        if not set(better) & set(at_many[AHEAD]):
            end += f" None that does is ahead of EMMA at {many}."
    elif len(worse) == len(study.rivals):
        end = (
            f"By our rule none does: measured against EMMA, all {len(worse)} do worse at {many} classes than at {few}."
        )
    elif len(worse) == len(read):
        end = f"None that was run in full does: {listed(worse)} scaled worse."
    else:
        end = f"Our data show none that does, and do not decide it for {listed(even)}."
    end += _chance_words(study, len(better), len(worse))
    end += f" Scaled worse: {listed(worse)}." if 0 < len(worse) < len(read) else ""
    fall = found[EMMA].ends()
    text = f"{start} {end} EMMA itself goes from {fall[0]:.2f} to {fall[1]:.2f} % as classes go from {few} to {many}."
    if even:
        apart = max(max(gaps) - min(gaps) for title in even for gaps in found[title].points)
        text += (
            f" Where it is not decided, the pairs of one loss lie up to {apart:.2f} points apart; it would take "
            "more draws and more seeds."
        )
    text += f" At {many} classes alone, ahead of EMMA: {listed(at_many[AHEAD])}; behind: {listed(at_many[BEHIND])}."
    left = [title for title in study.rivals if title not in read]
    text += f" Not in this: {listed(left)} ({missing(study) or 'too few pairs'})." if left else ""
    return Markdown(text)


def _word(sides: dict[str, list[str]], title: str) -> str:
    """`ahead`, `behind`, `not told apart`."""
    return next((word for word in (AHEAD, BEHIND) if title in sides[word]), "not told apart")


def _chance_words(study: LossStudy, better: int, worse: int) -> str:
    """What equal losses would show; nothing where no verdict was given."""
    if not (better or worse):
        return ""
    by_chance = luck(study)
    text = (
        f" If none differed from EMMA, chance alone would give about {by_chance.verdicts:.1f} verdicts in "
        f"{plural(by_chance.comparisons, 'comparison')} (simulated)"
    )
    if better:
        often = by_chance.better[better]
        text += f', and {better} or more of them "better" in {in_100(often)} studies like this one'
        text += f", so {'one alone' if better == 1 else 'this'} is weak evidence" if often > _WEAK else ""
    return f"{text}."


# ----------------------------------------------------------------------------------------------------------- question 6
def price_answer(study: LossStudy) -> Markdown:
    """Question 6: what EMMA costs beside GloRo: time, convergence, final VRA, at the most classes."""
    start = f"**What does EMMA cost beside GloRo on {DATASETS[study.dataset]}?**"
    if not study.counts:
        return Markdown(f"{start} Not answered: no study file.")
    classes = study.counts[-1]
    return Markdown(f"{start} {_time(study, classes)} {_convergence(study, classes)} {_end(study, classes)}")


def _time(study: LossStudy, classes: int) -> str:
    found = [price(study, classes, title) for title in (EMMA, GLORO)]
    if not all(found):
        return f"*Time*: **not run** (`{_COMMAND}`)."
    seconds = [epoch_seconds(study, classes, p) for p in found]
    return (
        f"*Time*: a step under EMMA takes {_price_words(found[0]).rstrip(',')}; an epoch takes {seconds[0]:.1f} s, "
        f"GloRo's {seconds[1]:.1f} s."
    )


def _convergence(study: LossStudy, classes: int) -> str:
    ratios = image_ratios(study, classes, GLORO)
    if not ratios:
        return "*Convergence*: **not run**."
    word, mean = speed(study, classes, GLORO), math.exp(statistics.fmean(map(math.log, ratios)))
    each = f" ({', '.join(f'{ratio:.2f}' for ratio in ratios)})" if len(ratios) > 1 else ", one pair"
    told = _told(word, {FASTER: "GloRo is the faster", SLOWER: "EMMA is the faster"})
    return (
        f"*Convergence*: to reach {100 * SHARE:g} % of the lower of their ends GloRo needs {mean:.2f} times as many "
        f"images as EMMA{each}, by estimates on training images: {told}."
    )


def _end(study: LossStudy, classes: int) -> str:
    if not (gaps := study.gaps(classes, GLORO)):
        return "*Final VRA*: **not run**."
    emma, gloro = (spread(study.arm(classes, title).vra.values()) for title in (EMMA, GLORO))
    told = _told(verdict(gaps), {AHEAD: "GloRo is ahead", BEHIND: "EMMA is ahead"})
    return (
        f"*Final VRA* at {classes} classes: EMMA {emma}, GloRo {gloro}; GloRo minus EMMA "
        f"{signed(gaps, unit=' points')}: {told}."
    )


def _told(word: str, names: dict[str, str]) -> str:
    return names.get(word) or (f"the two {EVEN}" if word == EVEN else "too few pairs to read")
