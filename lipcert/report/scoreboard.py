"""Published numbers beside ours, in words and tables. All counts come from the records and from published.csv."""

import itertools
import os
import subprocess
from collections import Counter

from lipcert.config import TrainConfig
from lipcert.paths import ROOT
from lipcert.records import load_records
from lipcert.report.names import DATASETS, network_name
from lipcert.report.published import (
    EVIDENCE,
    TOLERANCE,
    Comparison,
    Preset,
    Row,
    compare,
    load_published,
    preset_parameters,
    presets,
    published_millions,
    schedule_differences,
)
from lipcert.report.tables import Markdown, table
from lipcert.study import load_study

# Presets beside which the study's own CIFAR-10 network is set: one a generation, none with generated images.
_RECIPES = {
    "first generation": "liresnet-v1-cifar10",
    "second generation": "liresnet-neurips-cifar10",
    "third generation": "liresnet-iclr-cifar10",
}
_DOWNLOADED = ("mnist", "cifar10", "cifar100")


def scoreboard() -> Markdown:
    """How many published numbers came out again, in one sentence."""
    comparisons, total = compare(load_records()), len(load_published())
    measured = [c for c in comparisons if c.ours]
    at_or_above = sum(c.at_or_above for c in measured)
    opening = f"**{len(measured)} of {len(comparisons)} published numbers re-measured**"
    rest = len(comparisons) - len(measured)
    if not measured:
        opening += ": no network of a paper's own size has been trained here yet."
    else:
        below = len(measured) - at_or_above
        opening += f", {at_or_above} at or above the paper, {below} below, {rest or 'none'} not run."
        if short := sum(map(_is_cut, measured)):
            opening += f" Of those measured, {short} saw only part of its recipe's images."
    return Markdown(
        f"{opening} Counted are the numbers with a preset, out of {total} in our list; records as of `{commit()}`."
    )


def comparison_table() -> Markdown:
    """Every published number that has a preset, beside ours; those of one network that were not run share a line."""
    rows = []
    for _, group in itertools.groupby(compare(load_records()), key=_line):
        together = list(group)
        c = together[0]
        at = ", ".join("clean" if x.row.metric == "clean" else x.row.radius for x in together)
        paper = ", ".join(x.row.value for x in together) + " %"
        paper += "" if c.row.evidence == "authors_statement" else f" ({EVIDENCE[c.row.evidence]})"
        gap = f"{c.difference:+.2f}" if c.ours else ""
        rows.append((row_name(c.row), at, _ours(c), paper, gap, c.status))
    return table(("model", "radius", "**ours**", "paper", "difference", "status"), rows, right=(4,))


def _line(c: Comparison) -> tuple[str, ...]:
    """Comparisons with equal keys share a line of the table: never two that were measured."""
    return (row_name(c.row), c.row.evidence, c.status, c.row.id if c.ours else "")


def row_name(row: Row) -> str:
    """Network and data of a published number: `LiResNet L12W512, CIFAR-10, generated images`."""
    extra = "" if row.extra_data == "none" else ", generated images"
    return f"{row.model}, {DATASETS[row.dataset]}{extra}"


def _ours(comparison: Comparison) -> str:
    if not comparison.ours:
        return ""
    result = comparison.runs[0].result(comparison.row.radius) if comparison.row.metric == "vra" else None
    word = f" ({result.guarantee})" if result else ""
    seeds = len(comparison.ours)
    spread = "one run" if seeds == 1 else f"{seeds} seeds, {min(comparison.ours):.2f} to {max(comparison.ours):.2f}"
    return f"{comparison.mean:.2f} %{word}, {spread}{cut(comparison, ', ')}"


def cut(comparison: Comparison, before: str) -> str:
    """How much of its recipe a run was given, after `before`; nothing where that is all of it."""
    return f"{before}{100 * comparison.share_seen:.0f} % of the recipe's images" if _is_cut(comparison) else ""


def _is_cut(comparison: Comparison) -> bool:
    return comparison.share_seen < 0.995


def comparison_words() -> Markdown:
    """The comparison table in words."""
    comparisons = compare(load_records())
    count = Counter(c.status for c in comparisons)
    papers = len({c.row.paper for c in comparisons})
    text = f"{len(comparisons)} published numbers of {papers} papers have a preset: " + ", ".join(
        f"{count[word]} {word}" for word in ("reproduced", "above", "below", "not comparable", "not run") if count[word]
    )
    text += f". *Reproduced* means within {TOLERANCE} percentage points either way."
    measured = [c for c in comparisons if c.ours]
    if measured:
        far = measured[0]
        text += f" The largest gap is {far.difference:+.2f} points, for {row_name(far.row)}"
        text += cut(far, ", trained on ") + "."
    return Markdown(text)


def deviations() -> Markdown:
    """For every re-measured number, how our run differs from its preset."""
    lines = []
    for c in compare(load_records()):
        for record in c.runs:
            found = schedule_differences(record, c.preset.config)
            lines.append(f"- `{record.id}`: {'; '.join(found) or 'no difference in the settings'}.")
        for record in c.shorter:
            lines.append(f"- `{record.id}` names `{c.row.id}` but is shorter than the run that counts.")
        for record in c.others:
            lines.append(f"- `{record.id}` names `{c.row.id}` but is not comparable and not counted.")
    nothing = "No preset has been run at full length yet, so there is nothing to list."
    return Markdown("\n".join(dict.fromkeys(lines)) or nothing)


def evidence_words() -> Markdown:
    """Where the published numbers come from."""
    rows = load_published()
    count = Counter(row.evidence for row in rows)
    parts = ", ".join(f"{count[key]} are {words}" for key, words in EVIDENCE.items() if count[key])
    papers = len({row.paper for row in rows})
    return Markdown(f"`results/published.csv` holds {len(rows)} numbers from {papers} works: {parts}.")


def evidence_table() -> Markdown:
    """Number of published values by work and evidence."""
    count = Counter((row.paper, row.evidence) for row in load_published())
    papers = dict.fromkeys(paper for paper, _ in count)
    rows = [(paper, *(count[paper, key] or "" for key in EVIDENCE)) for paper in papers]
    return table(("work", *EVIDENCE.values()), rows, right=(1, 2, 3, 4))


def size_table(beginning: str = "") -> Markdown:
    """Parameters of every preset's network as counted here, beside the published size (imports torch).

    Presets of one network and data set share a line; `recipes` says how many they are.

    Args:
        beginning: of the file names of the presets to show, such as "liresnet"; all of them by default.
    """
    rows: list[tuple[object, ...]] = []
    published = {row.id: row for row in load_published()}
    shown = [preset for preset in presets() if preset.path.stem.startswith(beginning)]
    for work, group in itertools.groupby(shown, key=lambda preset: preset.work):
        lines: dict[tuple[str, str, int], list[Preset]] = {}
        for preset in group:
            neck = "" if preset.config.family == "gloro" else f"`{preset.config.neck}`"
            lines.setdefault((_network(preset.config), neck, preset_parameters(preset)), []).append(preset)
        rows.append((f"**{work}**", "", "", "", ""))
        for (name, neck, counted), same in lines.items():
            size = next((m for p in same if (m := published_millions(p, published))), None)
            rows.append((name, neck, len(same), f"{counted:,}", _size(counted, size)))
    return table(("network", "neck", "recipes", "parameters here", "published"), rows, right=(2, 3, 4))


def size_words(beginning: str = "") -> Markdown:
    """How many published sizes come out, in one sentence; arguments as for `size_table`."""
    published = {row.id: row for row in load_published()}
    shown = [preset for preset in presets() if preset.path.stem.startswith(beginning)]
    sizes = [_size(preset_parameters(preset), published_millions(preset, published)) for preset in shown]
    differ, silent = (sum(word in size for size in sizes) for word in ("differs", "not stated"))
    return Markdown(
        f"Of {len(sizes)} presets the published size comes out for {len(sizes) - differ - silent}; it differs for "
        f"{differ or 'none'} and is not stated for {silent or 'none'}."
    )


def _size(counted: int, millions: float | None) -> str:
    """A published size, marked where it is another network's: sizes are printed to two or three figures."""
    if millions is None:
        return "not stated"
    return f"{millions:g} M" + ("" if abs(counted / 1e6 / millions - 1) < 0.02 else ", differs")


def _network(config: TrainConfig) -> str:
    return f"{network_name(config)}, {DATASETS[config.dataset]}"


def preset_list() -> Markdown:
    """Every preset, work by work: the command that runs it and the numbers it answers."""
    rows = {row.id: row for row in load_published()}
    lines = []
    for work, group in itertools.groupby(presets(), key=lambda preset: preset.work):
        lines.append(f"\n**{work}**\n")
        lines += [_preset_item(preset, rows) for preset in group]
    return Markdown("\n".join(lines))


def _preset_item(preset: Preset, rows: dict[str, Row]) -> str:
    config = preset.config
    numbers = []
    for model, group in itertools.groupby((rows[name] for name in config.published), key=lambda row: row.model):
        values = [f"{r.value} % {'clean' if r.metric == 'clean' else f'VRA at {r.radius}'}" for r in group]
        remark = model.partition(" (")[2]
        numbers.append(", ".join(values) + (f" ({remark}" if remark else ""))
    images = f", generated images from `{config.generated}` in the data folder" if config.generated else ""
    return (
        f"- `lipcert train {preset.name}{' --download' if config.dataset in _DOWNLOADED else ''}`\\\n"
        f"  {_network(config)}, {config.epochs:g} epochs{images}; "
        + (f"answers {'; '.join(numbers)}" if numbers else "answers no published number, see the file")
    )


def recipe_table() -> Markdown:
    """Settings in which the recipe of this study's CIFAR-10 runs differs from LiResNet's three generations there."""
    columns = {"this study": load_study(ROOT / "notebooks/params/study/speedrun-cpu.yaml").cells[0]}
    by_name = {p.path.stem: p.config for p in presets()}
    columns |= {title: by_name[name] for title, name in _RECIPES.items()}
    configs = list(columns.values())
    left_out = {"published", "seed", "device", "report_radii", "snapshots"}
    rows = []
    for name in type(configs[0]).model_fields:
        values = [getattr(config, name) for config in configs]
        if name not in left_out and len(set(values)) > 1:
            rows.append((f"`{name}`", *("automatic" if value is None else value for value in values)))
    return table(("setting", *columns), rows)


def commit() -> str:
    """Short name of the commit the report is built from; `an unknown commit` outside a repository."""
    stated = os.environ.get("LIPCERT_COMMIT")
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = stated or subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return found[:10]
