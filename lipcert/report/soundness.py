"""The goals of the page "Is it sound?" and what was measured of each: `results/checks/*.json` against the full list.

A goal without a measurement is shown as not run; nothing stands in for it.
"""

from collections.abc import Iterable

from lipcert.report.checks import Check, load_checks
from lipcert.report.tables import Markdown, duration, table

# goal -> what is asked, the figure aimed at: shown where nothing was measured yet.
GOALS = {
    "S1": ("no unsound layer bound", "0 violations in 100,000 cases"),
    "S2": ("tight bounds", "dense 2e-9, tight 1e-6, fast 0.2 % above the norm (1 % on small images)"),
    "S3": ("speed of the bounds", "seconds on two cores"),
    "S4": ("bounds in integers", "all dense layers, banded ones up to 64 channels"),
    "S5": ("independent checker", "never disagrees; 1,000 byte changes and 200 forgeries rejected"),
    "S6": ("rounding", "0 images lost in float64"),
    "S7": ("radii known exactly", "kept at r(1 - 1e-7), broken at r(1 + 1e-7)"),
    "S8": ("planted mistakes found", "all of at least 40; the power method fails"),
    "S9": ("fails closed", "nothing certified in a table of 50 cases"),
    "S10": ("attacks inside the radius", "0 successes on all certified test images"),
    "S11": ("counter-examples to public codes", "all rejected when executed"),
    "S12": ("the same bytes", "any batch size, any number of threads, again"),
    "S13": ("the price of certifying", "1.1 times a float64 inference pass"),
}
_FOLDED = 24  # rows of a table that are more than a page wants to see


def _checks() -> dict[str, Check]:
    return {check.goal: check for check in load_checks() if check.goal in GOALS}


def headline() -> Markdown:
    """How many goals were met, fell short or were not run."""
    verdicts = [check.verdict for check in _checks().values()]
    counts = [(verdicts.count(v), v) for v in ("met", "in part", "fell short")]
    counts.append((len(GOALS) - len(verdicts), "not run"))
    first, *others = (f"{n} {verdict}" for n, verdict in counts if n or verdict == "met")
    return Markdown(f"**Of {len(GOALS)} goals, {', '.join([first, *others])}.**")


def goals_table() -> Markdown:
    """Every goal: what is asked, the verdict, what was measured, the figure aimed at."""
    checks, rows = _checks(), []
    for goal, (title, target) in GOALS.items():
        check = checks.get(goal)
        if check is None:
            rows.append((f"{goal}, {title}", "not run", "", target))
        else:
            verdict = check.verdict if check.verdict == "met" else f"**{check.verdict}**"
            rows.append((f"{goal}, {check.title}", verdict, check.measured, check.target))
    return table(("goal", "verdict", "measured", "target"), rows)


def details(goals: Iterable[str], rows: bool = True) -> Markdown:
    """Each of some goals in a paragraph, with the table that came with its measurement."""
    checks, parts = _checks(), []
    for goal in goals:
        check = checks.get(goal)
        if check is None:
            parts.append(f"**{goal}, {GOALS[goal][0]}**: not run.")
            continue
        code = "unknown commit" if check.commit is None else f"commit {check.commit[:7]}"
        code += " with changes" if check.dirty else ""
        parts.append(
            f"**{goal}, {check.title}**: {check.verdict}. {check.measured.rstrip('.')}. (`{check.command}`, "
            f"{duration(check.seconds)}, {_machine(check)}, {code})"
        )
        if rows and 1 < len(check.rows) <= _FOLDED:
            head, *body = check.rows
            parts.append(table(head, body))
    return Markdown("\n\n".join(parts) + "\n")


def _machine(check: Check) -> str:
    processor, cores = check.hardware.get("processor", "unknown processor"), check.hardware.get("cores", "?")
    device = check.hardware.get("accelerator")
    return f"{device} ({processor})" if device else f"{processor}, {cores} cores"


def machines_words() -> Markdown:
    """Where everything was measured, and on which code."""
    checks = _checks().values()
    if not checks:
        return Markdown("Nothing has been measured yet.")
    machines = sorted({_machine(check) for check in checks})
    commits = sorted({check.commit[:7] if check.commit else "unknown" for check in checks})
    torches = sorted({check.versions.get("torch", "?") for check in checks})
    gpu = any("accelerator" in check.hardware for check in checks)
    days = sorted(check.finished[:10] for check in checks)
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    at = f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"
    text = (
        f"The {len(checks)} measurements were made on {'; '.join(machines)} with torch {', '.join(torches)}, at {at}, "
        f"{when}, {duration(sum(check.seconds for check in checks))} in all."
    )
    return Markdown(text if gpu else f"{text} None was made on a GPU.")
