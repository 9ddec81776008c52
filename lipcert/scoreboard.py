"""Published numbers beside ours, in words and tables. All counts come from the records and from published.csv."""

import os
import subprocess
from collections import Counter

from lipcert.paths import ROOT
from lipcert.published import EVIDENCE, TOLERANCE, Comparison, compare, load_published, schedule_differences
from lipcert.records import load_records
from lipcert.report import DATASETS, Markdown, table


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


def commit() -> str:
    """Short name of the commit the report is built from; `an unknown commit` outside a repository."""
    stated = os.environ.get("LIPCERT_COMMIT")
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = stated or subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return found[:10]
