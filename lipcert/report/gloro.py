"""The GloRo page: sizes, the literal reproduction of 2C2F on MNIST, and what else of the paper was measured again."""

import statistics

from lipcert.families import GLORO_NETS
from lipcert.record import Record
from lipcert.records import load_records
from lipcert.report.figures import training_curve, training_curve_words
from lipcert.report.names import DATASETS
from lipcert.report.published import (
    Comparison,
    compare,
    preset_parameters,
    presets,
    schedule_differences,
    share_seen,
)
from lipcert.report.scoreboard import cut, row_name
from lipcert.report.svg import Figure
from lipcert.report.tables import Markdown, duration, machine, percent, run_table, table

_ROW = "gloro-nets_gloro-2c2f_mnist_l2_0-3_vra"


def size_table() -> Markdown:
    """Every published network once: where it was used and its parameters as counted here (imports torch)."""
    rows = {}
    for preset in presets():
        c = preset.config
        if c.family == "gloro":
            net = GLORO_NETS[c.depth].name
            rows.setdefault(c.depth, (net, c.width, DATASETS[c.dataset], f"{preset_parameters(preset):,}"))
    lines = [(f"`{depth}`", *row) for depth, row in sorted(rows.items())]
    return table(("`depth`", "network", "`width`", "data", "parameters"), lines, right=(4,))


def records() -> list[Record]:
    """Published runs of the 2C2F preset."""
    return [record for record in load_records() if _ROW in record.published]


def reproduction() -> Markdown:
    """Paper and ours in one sentence, then every radius and guarantee."""
    (found,) = (c for c in compare(load_records()) if c.row.id == _ROW)
    if not found.ours:
        return Markdown(f"Published: {found.row.value} % VRA. Ours: not run (`lipcert train {found.preset.name}`).")
    run, count = found.runs[0], len(found.ours)
    clean = statistics.fmean(record.clean_accuracy() for record in found.runs)
    changes = schedule_differences(run, found.preset.config)
    settings = (
        f"Not as in the recipe: {'; '.join(changes)}" if changes else "Size, schedule and length are the recipe's"
    )
    return Markdown(
        f"Published: {found.row.value} % VRA at radius {found.row.radius}. Ours: **{found.mean:.2f} %** "
        f"({'one run' if count == 1 else f'mean of {count} runs'}, executed guarantee), clean accuracy "
        f"{percent(clean)}: {found.status}. {settings}: {run.training.steps:,} steps in "
        f"{duration(run.training.seconds)} ({machine(run)}). "
        "Which of the two recipes of 2021 gave the published number is not known; this is the one with GloRo "
        "cross-entropy. The paper's code kept the best weights on the test set; here the last ones are certified, once."
        f"\n\n{run_table(run)}"
    )


def others() -> Markdown:
    """The paper's other numbers: those that were measured again, a line each, and how many were not run."""
    numbers = [c for c in compare(load_records()) if c.preset.path.stem.startswith("gloro") and c.row.id != _ROW]
    lines = [
        f"- {row_name(c.row)}, radius {c.row.radius}: "
        f"ours {c.mean:.2f} %, published {c.row.value} %{cut(c, '; after ')}{_shorter(c)}."
        for c in numbers
        if c.ours
    ]
    rest = f"Not run of the paper's other numbers that have a preset: {len(numbers) - len(lines)} of {len(numbers)}."
    return Markdown("\n".join([*lines, "", rest]))


def _shorter(c: Comparison) -> str:
    """What shorter runs of the same network reached."""
    found = [f"{100 * r.vra(c.row.radius):.2f} % after {100 * share_seen(r, c.preset.config):.0f} %" for r in c.shorter]
    return f" ({', '.join(found)})" if found else ""


def reproduction_figure() -> "list[Figure | Markdown]":
    """The training curve of that run and the same in words."""
    found = records()
    return [training_curve(found[0]), training_curve_words(found[0])] if found else []


def preset_list() -> Markdown:
    """The recipes of 2021 as presets."""
    lines = [
        f"- `lipcert train {p.name}`: {DATASETS[p.config.dataset]}, {GLORO_NETS[p.config.depth].name}, "
        f"`{p.config.loss}`, {p.config.epochs:g} epochs"
        for p in presets()
        if p.config.family == "gloro"
    ]
    return Markdown("All recipes of the paper's code are presets:\n\n" + "\n".join(lines))
