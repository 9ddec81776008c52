"""The page on losses: how often the class that threatens a training image is another one than a note before.

`lipcert.threats` notes it for a fixed sample: the wrong class of the highest logit, which is what the LiResNet paper
counts, and the wrong class whose boundary is nearest under the constants of the moment.
"""

import itertools
import math
import statistics

from lipcert.record import Record, Threat
from lipcert.report.loss_study import (
    AHEAD,
    BEHIND,
    EMMA,
    EVEN,
    FEW,
    GLORO,
    NOT_RUN,
    PAIRS,
    Arm,
    LossStudy,
    Pair,
    differences,
    in_100,
    listed,
    remark,
    signed,
    spread,
    verdict,
)
from lipcert.report.loss_study_curves import line_of
from lipcert.report.loss_study_vra import legend
from lipcert.report.svg import WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

MORE, LESS = "more often", "less often"
_NOTHING = Markdown("Which class threatens which image has not been noted in any published run: **not run**.")
KINDS = ("changed", "changed_nearest")  # fields of `lipcert.record.Threat`
_DASHES = (":", "-")  # of few classes, of many


def shares(run: Record, kind: str = "changed") -> list[tuple[int, float]]:
    """Images seen, and per cent of the sample whose threatening class is not that of the note before."""
    return [
        (note.images, 100 * getattr(note, kind) / note.sample)
        for note in run.training.threats
        if getattr(note, kind) is not None
    ]


def rotation(run: Record, kind: str = "changed") -> float | None:
    """Mean of those shares once the training radius has stopped growing; None without notes."""
    start = run.config.radius_ramp * run.training.images
    found = [share for images, share in shares(run, kind) if images > start]
    return statistics.fmean(found) if found else None


def rotations(arm: Arm, kind: str = "changed") -> dict[Pair, float]:
    """Of every run of an arm that has notes."""
    found = {pair: rotation(run, kind) for pair, run in arm.runs.items()}
    return {pair: value for pair, value in found.items() if value is not None}


def gaps(study: LossStudy, classes: int, title: str, kind: str = "changed") -> list[float]:
    """A loss minus EMMA, points, pair by pair."""
    return differences(*(rotations(study.arm(classes, name), kind) for name in (title, EMMA)))


# ------------------------------------------------------------------------------------------------------ table and words
def threat_table(study: LossStudy) -> Markdown:
    """Share of changed threats in the second part of the run: mean and range over the runs of an arm."""
    columns = [(classes, kind) for classes in study.counts for kind in KINDS]
    if not any(rotations(study.arm(classes, title), kind) for classes, kind in columns for title in study.titles):
        return Markdown("")
    rows = [
        (title, *(spread(rotations(study.arm(classes, title), kind).values(), 1) for classes, kind in columns))
        for title in study.titles
    ]
    names = {"changed": "highest", "changed_nearest": "nearest"}
    head = ("changed threats", *(f"{classes} classes, {names[kind]}" for classes, kind in columns))
    return table(head, rows, right=range(1, 1 + len(columns)))


def threat_words(study: LossStudy) -> Markdown:
    """What was noted, what classes do to it, and who rotates less; whether that goes with VRA."""
    noted = [(arm, run) for arm in study.arms.values() for run in arm.runs.values() if run.training.threats]
    if not noted:
        return _NOTHING
    parts = [_how(study, noted), _by_classes(study), *(_by_loss(study, classes) for classes in study.counts)]
    parts.append(_with_vra(study, study.counts[-1]))
    return Markdown("\n\n".join(filter(None, parts)))


def _how(study: LossStudy, noted: list[tuple[Arm, Record]]) -> str:
    steps, sample = {}, max(run.training.threats[0].sample for _, run in noted)
    for arm, run in noted:
        steps.setdefault(arm.classes, (_apart(run.training.threats), run.data.train))
    passes = listed([f"{images / train:.2g} passes at {classes} classes" for classes, (images, train) in steps.items()])
    ramp = noted[0][1].config.radius_ramp
    return (
        f"Noted for {sample:,} training images, without augmentation, every {next(iter(steps.values()))[0]:,} images "
        f'seen: {passes}, so "from note to note" is not the paper\'s "from epoch to epoch". The table takes the notes '
        f"after {100 * ramp:g} % of the run, when the training radius no longer grows. *Highest* is the wrong class "
        "of the highest logit, *nearest* that of the nearest boundary."
    )


def _apart(notes: tuple[Threat, ...]) -> int:
    """Images between two notes, the usual distance."""
    steps = [after.images - before.images for before, after in itertools.pairwise(notes)]
    return round(statistics.median(steps)) if steps else notes[0].images


def _by_classes(study: LossStudy) -> str:
    """Whether the threat rotates more with many classes: ranges over the runs that do not meet."""
    few, many = study.counts[0], study.counts[-1]
    up, down, even = [], [], []
    for title in study.titles:
        ends = [list(rotations(study.arm(classes, title)).values()) for classes in (few, many)]
        if few == many or min(map(len, ends)) < PAIRS:
            continue
        text = remark(title, f"{statistics.fmean(ends[0]):.1f} → {statistics.fmean(ends[1]):.1f} %")
        (up if min(ends[1]) > max(ends[0]) else down if max(ends[1]) < min(ends[0]) else even).append(text)
    if not (up or down or even):
        return ""
    return (
        f"From {few} to {many} classes the highest wrong class changes more often, by more than the ranges over the "
        f"runs, under {listed(up)}; less often under {listed(down)}; not told apart under {listed(even)}. With many "
        "classes an image is also seen less often between two notes; these runs do not separate the two."
    )


def _by_loss(study: LossStudy, classes: int) -> str:
    """Every loss beside EMMA, pair by pair."""
    sides: dict[str, list[str]] = {MORE: [], LESS: [], EVEN: []}
    for title in study.rivals:
        found = gaps(study, classes, title)
        if (word := verdict(found, MORE, LESS)) in sides:
            sides[word].append(remark(title, f"{statistics.fmean(found):+.1f} points"))
    if not any(sides.values()):
        return ""
    return (
        f"At {classes} classes, pair by pair, the highest wrong class changes more often than under EMMA with "
        f"{listed(sides[MORE])}; less often with {listed(sides[LESS])}; not told apart with {listed(sides[EVEN])}."
    )


def concordant(study: LossStudy, classes: int) -> tuple[int, int, int] | None:
    """Pairs of losses of which the one that rotates less has the higher mean VRA, the lower, and all pairs.

    Complete arms only; a tie is neither.
    """
    arms = [arm for arm in study.at(classes) if arm.complete and len(rotations(arm)) == len(arm.runs)]
    points = [(statistics.fmean(rotations(arm).values()), statistics.fmean(arm.vra.values())) for arm in arms]
    signs = [
        math.prod(0 if math.isclose(x, y, rel_tol=1e-9) else x - y for x, y in zip(a, b, strict=True))
        for a, b in itertools.combinations(points, 2)
    ]
    return (sum(each < 0 for each in signs), sum(each > 0 for each in signs), len(signs)) if signs else None


def as_far_by_chance(count: int, things: int) -> float:
    """How often a random order of so many things, none of them tied, has as uneven a split of its pairs: `count`
    against the rest, or the other way round (Kendall's test, exact).
    """
    orders = [1]  # by number of pairs out of order
    for size in range(2, things + 1):
        orders = [sum(orders[max(0, n - size + 1) : n + 1]) for n in range(len(orders) + size - 1)]
    far = abs(2 * count - (len(orders) - 1))
    return sum(each for n, each in enumerate(orders) if abs(2 * n - (len(orders) - 1)) >= far) / math.factorial(things)


def _with_vra(study: LossStudy, classes: int) -> str:
    if (found := concordant(study, classes)) is None:
        return ""
    low, high, every = found
    text = (
        f"Does less rotation go with more VRA? At {classes} classes the loss that rotates less has the higher VRA in "
        f"{low} of {every} pairs of losses; half of them would if the two had nothing to do with each other"
    )
    if low + high == every:
        losses = (1 + math.isqrt(1 + 8 * every)) // 2
        chance = in_100(as_far_by_chance(low, losses))
        text += f", and {chance} random orders of {losses} losses are as far from half, either way"
    return f"{text}."


def _votes(found: list[float], sign: int) -> str:
    """`in 2 of 3 pairs`: those whose difference has that sign."""
    return f"in {sum(sign * value > 0 for value in found)} of {len(found)} pairs"


def argument_words(study: LossStudy) -> Markdown:
    """The paper's argument for EMMA beside our notes, at the most classes."""
    classes = study.counts[-1] if study.counts else 0
    turning, better = gaps(study, classes, GLORO), study.gaps(classes, GLORO)
    words = verdict(turning, MORE, LESS), verdict(better)
    told = (
        f"GloRo minus EMMA at {classes} classes: changed threats {signed(turning, 1, ' points')}, VRA "
        f"{signed(better, unit=' points')}."
    )
    if NOT_RUN in words:
        return Markdown("GloRo and EMMA side by side: **not run**.")
    if FEW in words:
        return Markdown(f"{told} Too few pairs to read.")
    if words == (MORE, BEHIND):
        end = "Both halves of the argument are seen: the threat rotates more under GloRo, and GloRo is behind."
    elif words[0] == LESS or words[1] == AHEAD:
        end = "That is **not** what the argument says."
    elif words[0] == MORE:
        end = (
            "The threat rotates more under GloRo; whether that costs VRA, our rule leaves open: GloRo is behind "
            f"{_votes(better, -1)}."
        )
    elif words[1] == BEHIND:
        end = f"GloRo is behind; whether its threat rotates more, our rule leaves open: it does {_votes(turning, 1)}."
    else:
        end = "Our data do not decide it."
    return Markdown(f"{told} {end}")


# ----------------------------------------------------------------------------------------------------------- the figure
def threat_figure(study: LossStudy, titles: tuple[str, ...] | None = None) -> "Figure | Markdown":
    """Changed threats over images seen, EMMA and GloRo unless others are named; thick at many classes."""
    rows, drawn = [], []
    figure, axes = canvas(WIDTH, 3.8)
    for place, classes in enumerate(study.counts):
        for arm in study.at(classes):
            lines = {pair: shares(run) for pair, run in arm.runs.items()}
            rows += [(classes, arm.title, *pair, n, f"{v:.4f}") for pair, line in lines.items() for n, v in line]
            shown = [line for line in lines.values() if line]
            if arm.title not in (titles or (EMMA, GLORO)) or not shown:
                continue
            common = sorted(set.intersection(*({n for n, _ in line} for line in shown)))
            means = [statistics.fmean(dict(line)[n] for line in shown) for n in common]
            colour, marker, _ = line_of(study, arm.title)
            style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.6}
            label = f"{arm.title}, {classes} classes"
            axes.plot([n / 1e3 for n in common], means, _DASHES[place % len(_DASHES)], label=label, **style)
            ends = [[f(dict(line)[n] for line in shown) for n in common] for f in (min, max)]
            axes.fill_between([n / 1e3 for n in common], *ends, color=colour, alpha=0.15, linewidth=0)
            drawn.append(f"{label}: from {means[0]:.0f} to {means[-1]:.0f}")
    if not drawn:
        return Markdown("")
    axes.set(xlabel="images seen, thousands", ylabel="changed threats, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid()
    legend(figure, axes, 2)
    alt = f"Per cent of the sample whose highest wrong class changed since the note before. {'; '.join(drawn)}."
    return finish("losses-threats", figure, alt, ("classes", "loss", "draw", "seed", "images", "percent"), rows)
