"""What each idea brought in accuracy, for the chapter on speed: the tables of `results/search`, on held-out images.

Shares there are per cent of the held-out images, by the estimated constant: they rank recipes and certify nothing.
"""

import csv
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

from lipcert.config import TrainConfig
from lipcert.paths import results_dir
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

HELD_OUT = 5000  # training images that no run of the search trained on
_NOT_RUN = Markdown("No search has been kept in `results/search`: **not run**.")
_SHAPE = ("depth", "width", "neck_width")
_OF_SPEED = ("compiled", "precision", "kernels", "layout")  # settings that change no accuracy but by rounding
_MARKS = {"adamw": (BLUE, "o"), "nadam": (GREEN, "D"), "muon": (VERMILLION, "s")}


@dataclass(frozen=True)
class Trial:
    """One training run of the search, per cent of the held-out images. settings: the base with the run's changes."""

    name: str
    complete: bool
    changes: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    images: int
    accuracy: float | None
    vra: float


def trials(kind: str) -> list[Trial]:
    """The rows of `ablation.csv` or `trials.csv`, in the order they were made; rows without a VRA are left out."""
    folder = results_dir() / "search"
    table_, base = folder / f"{kind}.csv", folder / f"base-{kind}.json"
    if not table_.exists() or not base.exists():
        return []
    common = json.loads(base.read_text())
    with open(table_, newline="") as file:
        return [_trial(row, common) for row in csv.DictReader(file) if row["vra"]]


def _trial(row: dict[str, str], base: dict[str, Any]) -> Trial:
    changes = json.loads(row["changes"])
    accuracy = float(row["accuracy"]) if row["accuracy"] else None
    complete = row["state"] == "complete"
    settings = base | changes
    return Trial(
        row["name"], complete, changes, settings, int(row["seed"]), int(row["images"]), accuracy, float(row["vra"])
    )


def standard_error(vra: float) -> float:
    """Of a share of the held-out images, per cent, from their number alone."""
    return math.sqrt(vra * (100 - vra) / HELD_OUT)


def told_apart(error: float) -> float:
    """Below how many points two runs' shares are not told apart, each with this standard error.

    Twice the error of a difference of independent shares. Both are of the same images, so it is less; a seed adds more.
    """
    return 2 * math.sqrt(2) * error


def _shown(changes: dict[str, Any]) -> str:
    kept = {key: value for key, value in changes.items() if key not in _OF_SPEED}
    return ", ".join(f"`{key}` {_value(value)}" for key, value in kept.items()) or "base"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ablation_table() -> Markdown:
    """Runs made by hand, those of as many images side by side, each against the base."""
    found = trials("ablation")
    if not found:
        return _NOT_RUN
    rows = []
    for images, net in sorted(dict.fromkeys((t.images, _net(t)) for t in found)):
        group = [t for t in found if (t.images, _net(t)) == (images, net)]
        base = next((t for t in group if not t.changes), None)
        for t in sorted(group, key=lambda t: -t.vra):
            against = f"{t.vra - base.vra:+.2f}" if base and t is not base else ""
            rows.append((_shown(_recipe(t)), net, f"{images:,}", f"{t.accuracy:.2f} %", f"{t.vra:.2f} %", against))
    head = ("changes", "net", "images", "clean", "VRA, estimated", "against the base")
    return table(head, rows, right=(2, 3, 4, 5))


def _recipe(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.changes.items() if key not in _SHAPE}


def _net(trial: Trial) -> str:
    depth, width, neck = (trial.settings[key] for key in _SHAPE)
    return f"L{depth} W{width}, neck {neck}"


def single_changes() -> list[tuple[str, object, object, Trial, Trial]]:
    """Pairs of runs that differ in one setting alone: (setting, before, after, run before, run after).

    A change of optimiser may bring its own learning rate: their units differ.
    """
    found = []
    for before, after in itertools.combinations(trials("ablation"), 2):
        keys = (set(before.settings) | set(after.settings)) - set(_OF_SPEED)
        differ = {key for key in keys if _setting(before, key) != _setting(after, key)}
        differ -= {"lr"} if "optimizer" in differ else set()
        if len(differ) == 1 and (before.images, before.seed) == (after.images, after.seed):
            (key,) = differ
            # Away from the base, whichever was run first.
            pair = (after, before) if key in before.changes and key not in after.changes else (before, after)
            found.append((key, *(_setting(trial, key) for trial in pair), *pair))
    return found


def _setting(trial: Trial, key: str) -> object:
    return trial.settings.get(key, TrainConfig.model_fields[key].default)


def singles_table() -> Markdown:
    """One change at a time, the largest first; an optimiser brings its own learning rate."""
    pairs = sorted(single_changes(), key=lambda pair: -abs(pair[4].vra - pair[3].vra))
    if not pairs:
        return Markdown("")
    rows = []
    for key, old, new, before, after in pairs:
        own = {key, *_SHAPE, *({"lr"} if key == "optimizer" else ())}
        rest = {k: v for k, v in before.changes.items() if k not in own}
        change, gain = f"{_value(old)} → {_value(new)}", f"{after.vra - before.vra:+.2f}"
        rows.append((f"`{key}`", change, _shown(rest), _net(after), f"{after.images:,}", gain))
    return table(("setting", "change", "all else", "net", "images", "VRA, points"), rows, right=(4, 5))


def ablation_words() -> Markdown:
    """What won, by how much, and how far such differences can be trusted."""
    found = trials("ablation")
    if not found:
        return _NOT_RUN
    base = [t for t in found if not t.changes]
    parts = []
    for start in base:
        rivals = [t for t in found if (t.images, _net(t), t.seed) == (start.images, _net(start), start.seed)]
        best = max(rivals, key=lambda t: t.vra)
        if best is not start:
            gain = f"{best.vra - start.vra:+.2f} points"
            parts.append(f"after {start.images:,} images {gain} over the base ({_shown(best.changes)})")
    error = max(standard_error(t.vra) for t in found)
    return Markdown(
        f"The best recipe: {'; '.join(parts) or 'the base itself'}. {HELD_OUT:,} held-out images alone give one share "
        f"a standard error of {error:.1f} points and a difference of two up to {math.sqrt(2) * error:.1f} (less, as "
        f"both are of the same images). Each run is of one seed: below about {told_apart(error):.0f} points nothing is "
        f"told apart.{_singles_words(told_apart(error))}"
    )


def _singles_words(threshold: float) -> str:
    """How many of the single changes are large enough to tell."""
    gains = [abs(after.vra - before.vra) for *_, before, after in single_changes()]
    if not gains:
        return ""
    large = sum(gain >= threshold for gain in gains)
    what = "change" if len(gains) == 1 else "changes"
    return f" Of {len(gains)} single {what} {large or 'none'} {'are' if large > 1 else 'is'} that large."


def averaging_words() -> Markdown:
    """What averaging weights and mirrored images would have brought."""
    path = results_dir() / "search" / "averaging.csv"
    if not path.exists():
        return Markdown("")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    averaged = [k for k in rows[0] if k.startswith("vra_averaged")] if rows else []
    if not averaged or "vra_mean_with_mirrored" not in rows[0]:
        return Markdown("")
    gains = [max(float(row[key]) for key in averaged) - float(row["vra"]) for row in rows]
    mirror = [float(row["vra_mean_with_mirrored"]) - float(row["vra"]) for row in rows]
    return Markdown(
        f"Not taken: averaging the weights, {min(gains):+.2f} to {max(gains):+.2f} points over {len(rows)} runs at the "
        f"better of {len(averaged)} decays; the mean logits of an image and its mirror image, {min(mirror):+.2f} to "
        f"{max(mirror):+.2f} points at twice the price."
    )


def trials_figure() -> "Figure | Markdown":
    """VRA of every trial of the tuner, and the best so far."""
    found = trials("trials")
    if not found:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.0)
    rows = []
    for number, t in enumerate(found):
        colour, marker = _MARKS.get(t.settings["optimizer"], (PURPLE, "P"))
        face = colour if t.complete else "none"
        label = t.settings["optimizer"] + ("" if t.complete else ", stopped early")
        look = {"color": colour, "markerfacecolor": face, "markersize": 6, "linestyle": "none", "label": label}
        axes.plot(number, t.vra, marker, **look)
        rows.append((t.name, t.settings["optimizer"], "complete" if t.complete else "pruned", t.images, f"{t.vra:.2f}"))
    best = list(itertools.accumulate((t.vra if t.complete else -math.inf for t in found), max))
    shown = [(n, value) for n, value in enumerate(best) if value > -math.inf]
    axes.step(*zip(*shown, strict=True), where="post", color=FAINT, linewidth=1.4, label="best so far")
    axes.set(xlabel="trial", ylabel="VRA, % of held-out images")
    axes.grid()
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, labelcolor=INK, fontsize=9.5,
        frameon=False,
    )  # fmt: skip
    alt = f"Trials of the tuner. {trials_words()}".replace("*", "").replace("`", "")
    return finish("speed-trials", figure, alt, ("trial", "optimizer", "state", "images", "vra"), rows)


def trials_words() -> Markdown:
    """How many trials, the best of them, and the best of each optimiser."""
    found = trials("trials")
    done = [t for t in found if t.complete]
    if not done:
        return _NOT_RUN
    best = max(done, key=lambda t: t.vra)
    optimizers = dict.fromkeys(t.settings["optimizer"] for t in done)
    tops = {name: max(t.vra for t in done if t.settings["optimizer"] == name) for name in optimizers}
    each = ", ".join(f"{name} {vra:.2f} %" for name, vra in tops.items())
    by_hand = [t for t in trials("ablation") if (t.images, _net(t)) == (best.images, _net(best))]
    top = max(by_hand, key=lambda t: t.vra, default=None)
    beside = f" By hand, on as many images and the same net: {top.vra:.2f} % ({_shown(_recipe(top))})." if top else ""
    return Markdown(
        f"{len(found)} trials of {done[0].images:,} images on {_net(best)}, {len(found) - len(done)} of them stopped "
        f"early by the median rule. Best of each optimiser: {each}. The best overall: {_shown(best.changes)}."
        f"{beside}"
    )
