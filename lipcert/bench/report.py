"""What a bench run found: one row for each check, and whether anything claimed was contradicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HABIT = "habit"  # checks of habits (bit-exact scaling, leaving the model alone): no proof of unsoundness


@dataclass(frozen=True)
class Outcome:
    """What one case showed.

    ratio: claim over truth (radii) or truth over claim (norms): above 1 the claim is false, 0 if nothing was claimed.
    note: the case in words, for the report.
    """

    ratio: float = 0.0
    violated: bool = False
    refused: bool = False
    note: str = ""


@dataclass(frozen=True)
class CheckResult:
    """One check: how many cases, how many of them were refused, how many false claims, and the worst of those.

    about: "norm", "radius", "fail closed", "rounding", "state" or "habit".
    worst: largest ratio of claim to truth; at most 1 for a sound certifier, near 1 for one that is tight as well.
    """

    name: str
    about: str
    cases: int
    refused: int
    violations: int
    worst: float
    example: str = ""


@dataclass(frozen=True)
class BenchReport:
    """All checks of one run."""

    checks: tuple[CheckResult, ...]

    @property
    def sound(self) -> bool:
        """No claim was contradicted. It says nothing about how much was claimed: see `refused` and `worst`."""
        return not any(check.violations for check in self.checks if check.about != HABIT)

    @property
    def violations(self) -> int:
        return sum(check.violations for check in self.checks if check.about != HABIT)

    @property
    def cases(self) -> int:
        return sum(check.cases for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks with violations, habits included."""
        return tuple(check.name for check in self.checks if check.violations)

    def __getitem__(self, name: str) -> CheckResult:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {', '.join(c.name for c in self.checks)}")

    def table(self) -> str:
        """The report as a Markdown table, with the first counter-example of each failed check below it."""
        lines = [
            "| check | about | cases | refused | violations | worst claim / truth |",
            "|---|---|--:|--:|--:|--:|",
        ]
        for c in self.checks:
            lines.append(f"| {c.name} | {c.about} | {c.cases} | {c.refused} | {c.violations} | {c.worst:.10g} |")
        verdict = "no claim contradicted" if self.sound else "UNSOUND"
        lines += ["", f"{self.cases} cases, {self.violations} violations: {verdict}."]
        lines += [f"- {c.name}: {c.example}" for c in self.checks if c.violations]
        return "\n".join(lines)


def tally(name: str, about: str, outcomes: Iterable[Outcome], stop_at_first: bool = False) -> CheckResult:
    """Count outcomes; `stop_at_first` ends at the first violation, which is all a mutant's death needs."""
    cases = refused = violations = 0
    worst, example = 0.0, ""
    for outcome in outcomes:
        cases += 1
        refused += outcome.refused
        violations += outcome.violated
        worst = max(worst, outcome.ratio)
        if outcome.violated and not example:
            example = outcome.note
        if outcome.violated and stop_at_first:
            break
    return CheckResult(name, about, cases, refused, violations, worst, example)
