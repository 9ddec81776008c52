"""The page on losses: VRA of every loss, beside EMMA's pair by pair, and its fall from few classes to many."""

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from lipcert.report import matrices
from lipcert.report.intervals import count_interval
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
    differences,
    listed,
    rule_words,
    runs_word,
    signed,
    spread,
    verdict,
)
from lipcert.report.names import DATASETS, network_name
from lipcert.report.published import EVIDENCE, load_published
from lipcert.report.svg import BLUE, FAINT, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

_NOTHING = Markdown("No run of this page has been published yet: **not run**.")
_MARKS = ((BLUE, "o"), (VERMILLION, "s"))  # of few classes, of many
BETTER, WORSE = "scales better", "scales worse"
# Published numbers to stand beside: id, and the loss that the network was trained with.
_PUBLISHED = (
    ("liresnet-arxiv-v1_liresnet-l18w256_cifar100_l2_36-255_vra", "EMMA at fixed radius"),
    (
        "recipe-chord-liresnet-iclr-2024_chord-liresnet-l12w512-bronet-authors-run_cifar100_l2_36-255_vra",
        "EMMA",
    ),
    ("bronet_bronet-l-la_cifar100_l2_36-255_vra", "logit annealing"),
)


# ------------------------------------------------------------------------------------------------------- VRA by a count
def ranked(study: LossStudy, classes: int) -> list[Arm]:
    """Arms whose runs were all made, highest mean VRA first; then those made in part, then the rest."""
    return sorted(
        study.at(classes),
        key=lambda arm: (-arm.complete, not arm.runs, -statistics.fmean(arm.vra.values()) if arm.runs else 0),
    )


def setting_words(study: LossStudy) -> Markdown:
    """What all runs share."""
    if not study.arms:
        return _NOTHING
    cell = study.at(study.counts[0])[0].config
    passes = [(study.seen / matrices.training_images(study.at(n)[0].config), n) for n in study.counts]
    return Markdown(
        f"{network_name(cell)}, neck of {cell.neck_width}, {cell.optimizer.capitalize()}, batches of {cell.batch}, "
        f"{study.seen:,} images in every run ({listed([f'{p:.3g} passes over {n} classes' for p, n in passes])}), "
        f"training radius from {cell.radius_start:g} to {cell.radius_end:g} times {cell.radius}. VRA is "
        f"{study.guarantee}, at {study.radius}."
    )


def vra_table(study: LossStudy, classes: int) -> Markdown:
    """Every loss at a count of classes: VRA, clean accuracy, and VRA minus EMMA's for every pair."""
    rows = []
    for arm in ranked(study, classes):
        gaps = study.gaps(classes, arm.title)
        own = ("", "") if arm.title == EMMA else (signed(gaps), verdict(gaps))
        part = f", {runs_word(arm)}" if arm.runs and not arm.complete else ""
        rows.append((arm.title, f"{spread(arm.vra.values())}{part}", spread(arm.clean.values()), *own))
    head = (f"{classes} classes", "VRA", "clean", "VRA minus EMMA's, points", "beside EMMA")
    return table(head, rows, right=(1, 2, 3)) if rows else Markdown("")


def vra_words(study: LossStudy, classes: int) -> Markdown:
    """The table in words: the order, what the pairs tell apart, and how sharp a test set of this size is."""
    order = [arm for arm in ranked(study, classes) if arm.complete]
    found = [arm for arm in study.at(classes) if arm.runs]
    if not found:
        return Markdown(f"{classes} classes: **not run**.")
    said = []
    if len(order) > 1:
        ranks = ", ".join(f"{arm.title} {statistics.fmean(arm.vra.values()):.2f} %" for arm in order)
        said.append(f"Best first at {classes} classes, {runs_word(order[0])} each: {ranks}.")
    said.append(_against_emma(study, classes))
    if gone := [arm.title for arm in study.at(classes) if not arm.complete]:
        said.append(f"Not run, or in part: {listed(gone)}.")
    said.append(_sharpness(study, classes))
    return Markdown(" ".join(filter(None, said)))


def judged(study: LossStudy, classes: int) -> dict[str, list[str]]:
    """Losses by their verdict beside EMMA at a count of classes."""
    found: dict[str, list[str]] = {AHEAD: [], BEHIND: [], EVEN: [], FEW: [], NOT_RUN: []}
    for title in study.rivals:
        found[verdict(study.gaps(classes, title))].append(title)
    return found


def _against_emma(study: LossStudy, classes: int) -> str:
    found = judged(study, classes)
    if not any(found[word] for word in (AHEAD, BEHIND, EVEN)):
        return ""
    told = [
        f"{word}: {listed([f'{t} ({statistics.fmean(study.gaps(classes, t)):+.2f})' for t in found[word]])}"
        for word in (AHEAD, BEHIND)
    ]
    return (
        f"Beside EMMA, by more than the range of the pairs, {'; '.join(told)}; not told apart: {listed(found[EVEN])}."
    )


def _sharpness(study: LossStudy, classes: int) -> str:
    """What the choice of test images leaves open in one run's share."""
    runs = [run for arm in study.at(classes) for run in arm.runs.values()]
    halves = []
    for run in runs:
        count = run.result(study.radius, study.guarantee).certified_correct
        low, high = count_interval(count, run.test.images)
        halves.append((high - low) / 2)
    return (
        f"One run's share of {runs[0].test.images:,} test images stands for all such images to within "
        f"{max(halves):.1f} points (exact 95 % interval); the runs of a pair share their test images, so that less of "
        "this enters their difference."
    )


def twins_words(study: LossStudy) -> Markdown:
    """TRADES with KL and weight 1 is GloRo's loss, term by term: its runs show what rounding alone can do."""
    gaps = []
    for classes in study.counts:
        twin = next((arm for arm in study.at(classes) if _is_twin(arm)), None)
        base = study.arm(classes, GLORO)
        if twin and base.cells:
            gaps.append((classes, differences(twin.vra, base.vra)))
    if not gaps:
        return Markdown("")
    text = (
        "TRADES-KL at weight 1 *is* GloRo: cross-entropy and $\\log(1 + e^{z_\\bot}/\\sum_k e^{z_k})$ add up to it. So "
        "these two do not compare losses; they measure how far two trainings come apart that differ in rounding alone"
    )
    said = [f"{signed(values, unit=' points of VRA')} at {classes} classes" for classes, values in gaps if values]
    return Markdown(f"{text}: {listed(said)}." if said else f"{text}: **not run**.")


def _is_twin(arm: Arm) -> bool:
    return bool(arm.cells) and (arm.config.loss, arm.config.robust_weight) == ("trades_kl", "1")


# ----------------------------------------------------------------------------------------------------------- the figure
def pairs_figure(study: LossStudy) -> "Figure | Markdown":
    """VRA minus EMMA's: a row a loss, a marker a pair, a bar at their mean."""
    counts = study.counts
    titles = [title for title in study.rivals if any(study.gaps(classes, title) for classes in counts)]
    if not titles:
        return Markdown("")
    figure, axes = canvas(WIDTH, 1.3 + 0.55 * len(titles))
    rows = []
    for place, classes in enumerate(counts):
        colour, marker = _MARKS[place % len(_MARKS)]
        for height, title in enumerate(titles):
            arm, base, y = study.arm(classes, title), study.arm(classes, EMMA), 0.16 - 0.32 * place - height
            gaps = study.gaps(classes, title)
            style = {"color": colour, "linestyle": "none", "label": f"{classes} classes, one marker a {arm.way}"}
            axes.plot(gaps, [y] * len(gaps), marker, **style, markersize=6)
            if gaps:
                axes.plot([statistics.fmean(gaps)] * 2, [y - 0.14, y + 0.14], "-", color=colour, linewidth=2.5)
            pairs = sorted(arm.vra.keys() & base.vra.keys())
            rows += [(classes, title, *pair, f"{gap:.4f}") for pair, gap in zip(pairs, gaps, strict=True)]
    axes.axvline(0, color=FAINT, linewidth=1.2)
    axes.set_yticks([-n for n in range(len(titles))], [textwrap.fill(title, 17) for title in titles])
    axes.set(ylim=(0.5 - len(titles), 0.5), xlabel="VRA minus EMMA's, percentage points")
    axes.grid(axis="x")
    legend(figure, axes, 1)
    alt = "VRA of every loss minus EMMA's, pair by pair. " + " ".join(_against_emma(study, n) for n in counts)
    return finish("losses-pairs", figure, alt.strip(), ("classes", "loss", "draw", "seed", "points"), rows)


def legend(figure, axes, columns: int) -> None:
    """One entry a label, below the figure."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, labelcolor=INK, fontsize=9.5,
        frameon=False,
    )  # fmt: skip


def pairs_words(study: LossStudy) -> Markdown:
    """How to read the figure, and the rule behind the verdicts."""
    comparisons = sum(bool(study.gaps(classes, title)) for classes in study.counts for title in study.rivals)
    if not comparisons:
        return _NOTHING
    return Markdown(f"Right of the line is better than EMMA; a bar is the mean. {rule_words(comparisons)}")


# ------------------------------------------------------------------------------------------------------------- the fall
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
        if min(map(len, self.points)) < PAIRS:
            return FEW
        kinds = (self.points, self.ratios)
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


def fall_words(study: LossStudy) -> Markdown:
    """The table in words, with the rule."""
    found = falls(study)
    if not found:
        return Markdown("The fall from few classes to many needs all runs of a loss at both counts: **not run**.")
    by_kept = sorted(found, key=lambda title: -_kept(found[title]))
    text = (
        f"Of its VRA at {study.counts[0]} classes {by_kept[0]} keeps most at {study.counts[-1]}, "
        f"{100 * _kept(found[by_kept[0]]):.1f} %"
    )
    if len(by_kept) > 1:
        text += f", and {by_kept[-1]} least, {100 * _kept(found[by_kept[-1]]):.1f} %"
    less = [title for title, fall in found.items() if _kept(fall) < _kept(fall, "clean")]
    text += (
        f". Less of VRA than of clean accuracy is kept under {len(less)} of {len(found)} losses"
        f"{'' if len(less) in (0, len(found)) else f' ({listed(less)})'}."
    )
    sides = scaling(study)
    if any(sides[word] for word in (BETTER, WORSE, EVEN)):
        text += (
            " *Scales better*: beside EMMA every pair at many classes stands above every pair at few, in points and as "
            "a ratio. Chance alone makes at most one comparison in ten better or worse. Scales better: "
            f"{listed(sides[BETTER])}; worse: {listed(sides[WORSE])}; not told apart: {listed(sides[EVEN])}."
        )
    return Markdown(text)


# ------------------------------------------------------------------------------------------------------------ published
def published_table() -> Markdown:
    """Numbers of other networks by the loss they were trained with, and how we know them."""
    rows = {row.id: row for row in load_published()}
    found: Sequence = [(rows[name], loss) for name, loss in _PUBLISHED if name in rows]
    lines = [
        (loss, f"{row.model}, {DATASETS[row.dataset]}", row.radius, f"{row.value} %", EVIDENCE[row.evidence])
        for row, loss in found
    ]
    return table(("loss", "network", "radius", "VRA", "how known"), lines, right=(3,))
