"""The page on class count, what to make of it: the answer to question 1, and what each cause gives of the fall.

Drawn from the points in `class_count_runs`. `class_count_tables` has what came out, `class_count_figures` draws it,
`class_count_margins` looks behind the counts.
"""

from collections.abc import Sequence
from statistics import fmean

from lipcert.report import matrices
from lipcert.report.class_count_runs import (
    ARMS,
    IMAGES,
    RESTRICTED,
    TOTAL,
    Difference,
    Evidence,
    Measure,
    clean,
    difference,
    gap,
    ratio,
    vra,
)
from lipcert.report.class_count_tables import (
    CLAIM,
    NONE,
    difficulty,
    digits_of,
    fall_rates,
    growth,
    mean,
    one_size,
    passes,
    plural,
    short,
    signed,
    step,
)
from lipcert.report.names import DATASETS
from lipcert.report.tables import Markdown, table

_MEASURES = (clean, vra, gap, ratio)


# --------------------------------------------------------------------------------------------------------------- answer
def answer(evidence: Evidence) -> Markdown:
    """What came out, and the answer to question 1 as far as the evidence carries it."""
    arms = [arm for arm in (IMAGES, TOTAL) if evidence.fall(arm, vra).pairs]
    data = DATASETS[evidence.planned[IMAGES][evidence.many][0].dataset]
    if not arms:
        return Markdown(
            f"Question 1, why VRA falls so much faster than clean accuracy when classes are added: **{NONE}**. There "
            f"are no networks trained on both {evidence.few} and {evidence.many} classes of {data}."
        )
    falls = " and ".join(
        f"{evidence.fall(arm, vra).mean:.1f} points with {short(arm)} (clean accuracy: "
        f"{evidence.fall(arm, clean).mean:.1f})"
        for arm in arms
    )
    begin = step(evidence)
    said = [f"**{begin[0].upper()}{begin[1:]} of {data} VRA falls by {falls}.**"]
    said += [_faster("points", [growth(evidence, arm).sign for arm in arms], arms)]
    said += [_faster("proportion", [evidence.fall(arm, ratio).sign for arm in arms], arms)]
    return Markdown(f"{' '.join(said)}\n\n{question(evidence)}")


def _faster(what: str, signs: Sequence[int], arms: Sequence[str]) -> str:
    """`In points VRA falls faster than clean accuracy in both series.`"""
    words = {1: "VRA falls faster than clean accuracy", -1: "VRA falls more slowly than clean accuracy"}
    words[0] = "the two cannot be told apart"
    if len(set(signs)) == 1:
        where = "both series" if len(arms) == 2 else f"the series with {short(arms[0])}"
        return f"In {what} {words[signs[0]]} in {where}."
    return f"In {what} {'; '.join(f'{words[s]} with {short(a)}' for s, a in zip(signs, arms, strict=True))}."


def question(evidence: Evidence) -> Markdown:
    """Question 1 itself: decided, or what keeps it open."""
    if undecided := open_points(evidence):
        return Markdown(f"**Question 1: our data do not decide it.** {'; '.join(undecided)}.")
    whole = evidence.fall(IMAGES, ratio)
    if whole.sign < 0:
        return Markdown(
            "**Question 1: nothing to explain here.** The certified share of the right images rises with the number of "
            "classes, so VRA does not fall faster than clean accuracy does."
        )
    parts = causes(evidence)
    few, many = (mean(evidence.at(IMAGES, n), ratio) for n in (evidence.few, evidence.many))
    said = [
        f"**Question 1.** {_premise(evidence)} With images of a class fixed the certified share of the right images "
        f"falls from {few:.3f} to {many:.3f}.",
        _alone(parts["restriction"], whole, parts["training"].sign),
        _added(parts["training"], "Training on all classes instead of on the few alone"),
        _added(parts["images"], f"Having {one_size(evidence):,} images instead of all"),
        _hardness(evidence),
        f"All this holds for up to {evidence.many} classes of small images and says nothing about the "
        f"{CLAIM['many']:,} of {CLAIM['data']}.",
    ]
    return Markdown(" ".join(filter(None, said)))


def _premise(evidence: Evidence) -> str:
    """Whether there is a fall in points that is faster, which the question takes for granted."""
    sign = growth(evidence, IMAGES).sign
    if sign > 0:
        return "VRA falls faster here too, in points and in proportion."
    rates = fall_rates(evidence, IMAGES)  # where the sign is below 0, clean accuracy falls in all pairs
    rate = f"{fmean(rates):.2f} points for one of clean accuracy" if rates else ""
    begin = f"In points VRA does not surely fall faster here{rate and f': {rate}'}"
    if sign < 0:
        begin = f"In points the premise does not hold here: VRA falls by {rate}, by less than one in every pair"
    return f"{begin}; what there is to explain is the proportion."


def _hardness(evidence: Evidence) -> str:
    """The other reading: not the number of classes but how hard the task is."""
    if (shares := difficulty(evidence)) is None:
        return ""
    alone, _, both = shares
    return (
        f"Over all trained networks clean accuracy accounts for {alone:.0f} % of the variance of the certified "
        f"share, and the number of classes for {both - alone:.0f} points more."
    )


def _alone(found: Difference, whole: Difference, training: int) -> str:
    """What restriction gives of the whole; training: the sign of what training gives beside it."""
    who = "Networks that are not trained again, only asked about fewer classes,"
    if not found.sign:
        return (
            f"{who} show {found.mean:+.3f} of that fall, which has no sure sign over the draws: whether the number of "
            "inequalities alone explains any of it, our data do not tell."
        )
    if found.sign < 0:
        return f"{who} show the opposite ({found.mean:+.3f}): the number of inequalities alone does not explain it."
    share = 100 * found.mean / whole.mean
    much = f"{share:.0f} % of that fall"
    if share > 100 and training < 1:
        much = "all of that fall and more" if training else "all of that fall, within the spread of the draws"
    return f"{who} show {much} ({found.mean:.3f}): that much is geometry, the same margins under more inequalities."


def _added(found: Difference, what: str) -> str:
    if not found.sign:
        return f"{what} changes the fall by {found.mean:+.3f}, which has no sure sign over the draws."
    return f"{what} {'adds' if found.sign > 0 else 'takes off'} {abs(found.mean):.3f}."


def open_points(evidence: Evidence) -> list[str]:
    """What keeps question 1 from being decided: arms without runs, falls that cannot be told from none."""
    found = []
    for arm, title in ARMS.items():
        fall = evidence.fall(arm, ratio)
        if not fall.pairs:
            found.append(f"Networks {title}: {NONE}")
        elif arm != RESTRICTED and not fall.sign:
            found.append(
                f"With {short(arm)} VRA / clean changes by {-fall.mean:+.3f}, which has no sure sign over "
                f"{plural(len(fall.by_draw()), 'draw')}"
            )
    if not found and not all(part.pairs for part in causes(evidence).values()):
        found.append(f"The same draws, trained and restricted, or with all images and with fewer: {NONE}")
    if not found and len({evidence.fall(arm, ratio).sign for arm in (IMAGES, TOTAL)}) > 1:
        found.append("The two series disagree on whether VRA / clean falls")
    return found


# --------------------------------------------------------------------------------------------------------------- causes
def causes(evidence: Evidence, measure: Measure = ratio) -> dict[str, Difference]:
    """The fall from all classes to the fewest, cut in parts that add up.

    "restriction": the same networks, fewer inequalities. "training": on the fewest classes alone. Together they are the
    fall with images of a class fixed; with "images", which is what fewer of them cost all classes, that of the other
    series. Means add up where all runs are there.
    """
    few, many = evidence.few, evidence.many
    return {
        "restriction": difference(evidence.at(RESTRICTED, few), evidence.at(RESTRICTED, many), measure),
        "training": difference(evidence.at(IMAGES, few), evidence.at(RESTRICTED, few), measure),
        "images": difference(evidence.at(IMAGES, many), evidence.at(TOTAL, many), measure),
    }


def remainders(evidence: Evidence) -> list[float]:
    """What the parts leave of each fall, for every measure: nothing but rounding where all runs are there.

    Empty where a part or a whole series was not run, or in part only.
    """
    full = all(
        len(evidence.at(arm, n)) == len(evidence.planned[arm].get(n, ()) or (None,))
        for arm in (IMAGES, TOTAL) for n in (evidence.few, evidence.many)
    )  # fmt: skip
    nets = {point.net for point in evidence.at(RESTRICTED, evidence.many)}
    if not full or len(nets) < len(evidence.planned[IMAGES][evidence.many]):
        return []
    left = []
    for measure in _MEASURES:
        parts = [part.mean for part in causes(evidence, measure).values()]
        left += [sum(parts[:2]) - evidence.fall(IMAGES, measure).mean, sum(parts) - evidence.fall(TOTAL, measure).mean]
    return left


def parts_table(evidence: Evidence) -> Markdown:
    """What each part gives, in clean accuracy, VRA, the gap between them and their ratio."""
    parts = {measure: causes(evidence, measure) for measure in _MEASURES}
    few = f"{evidence.few} classes"
    size = f"{one_size(evidence):,}" if evidence.planned[TOTAL] else "fewer"
    titles = {
        "restriction": (f"the same networks, asked about {few} instead of {evidence.many}", None),
        "training": (f"trained on those {few} alone", IMAGES),
        "images": (f"at {evidence.many} classes, all images instead of {size}", TOTAL),
    }
    lines = []
    for key, (title, arm) in titles.items():
        lines.append((title, *(signed(parts[m][key], digits_of(m)) for m in _MEASURES)))
        if arm:
            cells = (signed(evidence.fall(arm, m), digits_of(m)) for m in _MEASURES)
            lines.append((f"**together, {short(arm)}**", *cells))
    return table(("step", "clean", "VRA", "clean - VRA", "VRA / clean"), lines, right=(1, 2, 3, 4))


def parts_words(evidence: Evidence) -> Markdown:
    """How much of the fall is there without any training."""
    whole = {m: evidence.fall(IMAGES, m) for m in (clean, vra)}
    parts = {m: causes(evidence, m) for m in (clean, vra)}
    there = all(found.pairs for found in (*whole.values(), *(parts[vra][key] for key in ("restriction", "training"))))
    if not there or min(found.mean for found in whole.values()) <= 0:
        return Markdown(f"What restriction alone explains: **{NONE}**.")
    shares = [100 * parts[m]["restriction"].mean / whole[m].mean for m in whole]
    gain = parts[vra]["training"]
    ahead = sum(value > 0 for value in gain.by_draw().values())
    often = passes(evidence, IMAGES, evidence.few) / passes(evidence, IMAGES, evidence.many)
    return Markdown(
        f"Restriction alone gives {shares[1]:.0f} % of the fall of VRA and {shares[0]:.0f} % of that of clean "
        f"accuracy. Trained on {evidence.few} classes alone, networks are ahead of restricted ones in VRA in {ahead} "
        f"of {plural(len(gain.by_draw()), 'draw')}, by {signed(gain)} points. They have seen the images of their "
        f"classes {often:g} times as often, which is part of that difference and no matter of geometry."
    )


def paired_table(evidence: Evidence) -> Markdown:
    """Trained against restricted, more images against fewer: draw by draw, at every count where both are planned."""
    lines, cells = [], evidence.cells()
    for classes in evidence.counts:
        pairs = [("trained - restricted", RESTRICTED)] if (classes, RESTRICTED) in cells else []
        if (classes, TOTAL) in cells:
            each = [matrices.training_images(evidence.planned[arm][classes][0]) // classes for arm in (IMAGES, TOTAL)]
            pairs.append((f"{each[0]} - {each[1]} images of a class", TOTAL))
        for title, arm in pairs:
            both = evidence.at(IMAGES, classes), evidence.at(arm, classes)
            found = {measure: difference(*both, measure) for measure in (clean, vra, ratio)}
            ahead = found[vra].by_draw()
            won = f"{sum(v > 0 for v in ahead.values())} of {plural(len(ahead), 'draw')}" if ahead else NONE
            lines.append((classes, title, *(signed(f, digits_of(m)) for m, f in found.items()), won))
    head = ("classes", "difference", "clean", "VRA", "VRA / clean", "ahead in VRA")
    return table(head, lines, right=(0, 2, 3, 4, 5))
