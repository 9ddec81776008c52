"""Published numbers beside ours, in words and tables. All counts come from the records and from published.csv."""

import os
import subprocess
from collections import Counter

from lipcert.config import load_config
from lipcert.paths import ROOT
from lipcert.records import load_records
from lipcert.report.published import (
    EVIDENCE,
    TOLERANCE,
    Comparison,
    compare,
    load_published,
    preset_parameters,
    presets,
    schedule_differences,
)
from lipcert.report.tables import DATASETS, Markdown, table


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
    return Markdown(
        f"{opening} Counted are the numbers with a preset, out of {total} in our list; records as of `{commit()}`."
    )


def comparison_table() -> Markdown:
    """Every published number that has a preset, beside ours."""
    rows = []
    for c in compare(load_records()):
        name = f"{c.row.model}, {DATASETS[c.row.dataset]}"
        at = "clean" if c.row.metric == "clean" else c.row.radius
        paper = f"{c.row.value} %" + ("" if c.row.evidence == "authors_statement" else f" ({EVIDENCE[c.row.evidence]})")
        gap = f"{c.difference:+.2f}" if c.ours else ""
        rows.append((name, at, _ours(c), paper, gap, c.status))
    return table(("model", "radius", "**ours**", "paper", "difference", "status"), rows, right=(4,))


def _ours(comparison: Comparison) -> str:
    if not comparison.ours:
        return ""
    result = comparison.runs[0].result(comparison.row.radius) if comparison.row.metric == "vra" else None
    word = f" ({result.guarantee})" if result else ""
    seeds = len(comparison.ours)
    spread = "one run" if seeds == 1 else f"{seeds} seeds, {min(comparison.ours):.2f} to {max(comparison.ours):.2f}"
    return f"{comparison.mean:.2f} %{word}, {spread}"


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
        text += f" The largest gap is {far.difference:+.2f} points, for {far.row.model} on {DATASETS[far.row.dataset]}."
    return Markdown(text)


def deviations() -> Markdown:
    """For every re-measured number, how our run differs from its preset."""
    lines = []
    for c in compare(load_records()):
        for record in c.runs:
            found = schedule_differences(record, c.preset.config)
            lines.append(f"- `{record.id}`: {'; '.join(found) or 'no difference in the settings'}.")
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


def size_table() -> Markdown:
    """Parameters of every preset's network as counted here, beside the published size (imports torch)."""
    published = {row.id: row.parameters_millions for row in load_published()}
    rows = []
    for preset in presets():
        sizes = [published[name] for name in preset.config.published if published[name]]
        c = preset.config
        name = f"LiResNet L{c.depth}W{c.width}, {DATASETS[c.dataset]}"
        counted = preset_parameters(preset)
        rows.append((name, f"`{c.neck}`", f"{counted:,}", f"{sizes[0]:g} M" if sizes else "not stated"))
    return table(("network", "neck", "parameters here", "published"), rows, right=(2, 3))


def preset_list() -> Markdown:
    """Every preset: the command that runs it and the numbers it answers."""
    rows = {row.id: row for row in load_published()}
    lines = []
    for preset in presets():
        answers = ", ".join(
            f"{rows[i].value} % {'clean' if rows[i].metric == 'clean' else f'VRA at {rows[i].radius}'}"
            for i in preset.config.published
        )
        lines.append(
            f"- `lipcert train {preset.name} --download`\\\n  {preset.config.epochs:g} epochs; answers {answers}"
        )
    return Markdown("\n".join(lines))


def recipe_table() -> Markdown:
    """Settings in which this study's CIFAR-10 run differs from the published presets for the same data."""
    columns = {"this study": load_config(ROOT / "notebooks/params/study/cifar10-small.yaml")}
    columns |= {p.path.stem: p.config for p in presets() if p.config.dataset == "cifar10"}
    configs = list(columns.values())
    left_out = {"published", "seed", "device", "report_radii"}
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
