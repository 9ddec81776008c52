"""The page on losses: VRA of every loss, beside EMMA's pair by pair."""

import statistics
import textwrap
from collections.abc import Sequence

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
    Arm,
    LossStudy,
    differences,
    listed,
    remark,
    rule_words,
    runs_word,
    signed,
    spread,
    told_apart,
    verdict,
)
from lipcert.report.names import DATASETS, network_name
from lipcert.report.published import EVIDENCE, load_published
from lipcert.report.svg import BLUE, FAINT, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

_NOTHING = Markdown("No run of this page has been published yet: **not run**.")
_MARKS = ((BLUE, "o"), (VERMILLION, "s"))  # of few classes, of many
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
        f"training radius from {cell.radius_start:g} to {cell.radius_end:g} times {cell.radius}. VRA "
        f"counts {study.guarantee} certificates at {study.radius}."
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
        f"{word}: {listed([remark(t, f'{statistics.fmean(study.gaps(classes, t)):+.2f}') for t in found[word]])}"
        for word in (AHEAD, BEHIND)
    ]
    return (
        f"Beside EMMA at {classes} classes, by more than the range of the pairs, {'; '.join(told)}; not told apart: "
        f"{listed(found[EVEN])}."
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
    found = [gaps for classes in study.counts for title in study.rivals if (gaps := study.gaps(classes, title))]
    if not found:
        return _NOTHING
    read = sum(told_apart(gaps) is not None for gaps in found)
    return Markdown(f"Right of the line is better than EMMA; a bar is the mean. {rule_words(read)}")


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
