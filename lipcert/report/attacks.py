"""What attacks found around certified images: `results/attacks/*.json` as table, figure and words.

Of each image the closest changed answer over all attacks counts, in certified radii.
"""

import json
import math
import statistics
from pathlib import Path

from pydantic import ValidationError

from lipcert.attack.fields import Falsification
from lipcert.paths import results_dir
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import DATASETS, Markdown, down, duration, table

ABSENT = "Not run: no falsification has been published yet."
_LINES = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":"))


def load_attacks(folder: Path | None = None) -> list[Falsification]:
    """All published falsifications (or those in a folder), by name of the network.

    Raises:
        ValueError: a damaged file, by name.
    """
    found = []
    for path in sorted(((folder or results_dir()) / "attacks").glob("*.json")):
        try:
            found.append(Falsification(**json.loads(path.read_text())))
        except (ValidationError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}: not a falsification: {error}") from error
    return found


def closest(one: Falsification) -> list[float]:
    """Per image attacked by all: the least distance over radius, infinite where nothing was found."""
    lists = [a.ratios for a in one.attacks if a.ratios and a.executed == one.arithmetic]
    return [min(math.inf if r is None else r for r in image) for image in zip(*lists, strict=False)]


def title(one: Falsification) -> str:
    """`CIFAR-10, cifar10-liresnet-L6W80`."""
    return f"{DATASETS.get(one.dataset, one.dataset)}, `{one.model}`" if one.dataset else f"`{one.model}`"


def attacks_table() -> Markdown:
    """One row per network: images, certificates refuted, and how near the nearest attack of all came."""
    rows = []
    for one in load_attacks():
        ratios = closest(one)
        figures = (_ratio(min(ratios)), _ratio(statistics.median(ratios))) if ratios else ("not run", "not run")
        certified = f"{one.images - one.abstained:,} of {one.images:,}"
        rows.append((title(one), certified, len(one.violations), f"{len(ratios):,}", *figures, duration(one.seconds)))
    head = (
        "network",
        "certified images",
        "refuted",
        "strongly attacked",
        "closest / radius",
        "median / radius",
        "time",
    )
    return table(head, rows, right=(1, 2, 3, 4, 5)) if rows else Markdown(ABSENT)


def shown() -> "list[Markdown | Figure]":
    """Table, figure and words; one plain sentence where nothing was run."""
    return [attacks_table(), attacks_figure(), attacks_words()] if load_attacks() else [Markdown(ABSENT)]


def _ratio(value: float | None) -> str:
    return "none found" if value is None or math.isinf(value) else down(value, 2)


def attacks_words() -> Markdown:
    """What a certifier could get wrong without any of these attacks noticing."""
    parts, refuted = [], 0
    for one in load_attacks():
        ratios, refuted = closest(one), refuted + len(one.violations)
        if ratios and math.isfinite(min(ratios)):
            half = _ratio(statistics.median(ratios))
            parts.append(
                f"{down(min(ratios), 2)} times too large on all images and {half} times on half of them ({title(one)})"
            )
    if not parts:
        return Markdown(ABSENT)
    verdict = "No certificate was refuted." if not refuted else f"**{refuted} certificates were refuted.**"
    return Markdown(f"{verdict} But radii that are {'; '.join(parts)} would have passed these attacks as well.")


def attacks_figure() -> "Figure | Markdown":
    """Share of images whose answer some attack changed, against the distance in certified radii."""
    drawn = [(one, sorted(r for r in closest(one) if math.isfinite(r)), len(closest(one))) for one in load_attacks()]
    drawn = [(one, found, total) for one, found, total in drawn if found][: len(_LINES)]
    if not drawn:
        return Markdown(ABSENT)
    figure, axes = canvas(WIDTH, 3.4)
    least, most = min(found[0] for _, found, _ in drawn), max(found[-1] for _, found, _ in drawn)
    axes.axvspan(1, least, color=FAINT, alpha=0.15, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1.4)
    rows, alt = [], []
    for (one, found, total), (colour, dash) in zip(drawn, _LINES, strict=False):
        share = [100 * (n + 1) / total for n in range(len(found))]
        label = title(one).replace("`", "")
        axes.step([found[0], *found], [0, *share], dash, where="post", color=colour, linewidth=2, label=label)
        rows += [(one.model, f"{r:.6g}", f"{s:.4f}") for r, s in zip(found, share, strict=True)]
        alt.append(
            f"{label}: from {down(found[0], 2)} certified radii on, half of them at {_ratio(statistics.median(found))}"
        )
    axes.set(xscale="log", xlim=(0.9, most * 1.1), ylim=(0, 100), xlabel="distance / certified radius")
    axes.set_ylabel("images with a changed answer, %")
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100) if t <= most * 1.1]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid()
    figure.legend(loc="outside lower center", ncols=1, fontsize=9.5, labelcolor=INK, frameon=False)
    words = "Share of images for which an attack found a changed answer, against its distance in certified radii. "
    return finish("attacks", figure, words + "; ".join(alt) + ".", ("network", "ratio", "share_percent"), rows)
