"""The kill table: every mutant, and the checks that it does not pass."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.bench.mutants import Mutant, mutants
from lipcert.bench.report import HABIT, BenchReport
from lipcert.bench.run import Material, examine, prepare

# Mutants of the proofs' rounding terms need hostile arithmetic instead of a certifier's answers: they are killed by
# these tests of tests/test_verified.py and tests/test_residual_rounding.py, with how many each kills, and count apart
# from the table.
ROUNDING_TERMS = {
    "test_dropping_a_term_is_noticed": 6,
    "test_forgetting_any_inflation_is_noticed": 7,
    "test_lower_end_survives_and_each_inflation_counts": 6,
    "test_error_of_the_frequency_blocks_counts": 1,
    "test_every_correction_of_the_frequency_blocks_counts": 4,
    "test_error_of_the_cosine_table_counts": 1,
    "test_entries_lost_in_scaling_count": 1,
    "test_forgetting_a_part_of_the_join_is_caught": 5,
    "test_forgetting_errors_at_the_centre_is_caught": 2,
}


@dataclass(frozen=True)
class Row:
    """A mutant, the checks that caught it and the number of false claims (of the first check only, in a quick run)."""

    mutant: Mutant
    killed_by: tuple[str, ...]
    violations: int

    @property
    def killed(self) -> bool:
        return bool(self.killed_by)


def row(mutant: Mutant, material: Material, stop_at_first: bool = False) -> Row:
    """Run one mutant. Habits are left out: a mutant is only dead if a claim of it is false."""
    report: BenchReport = examine(material, mutant.bound, mutant.certify, mutant.claim, stop_at_first, habits=False)
    killers = tuple(check.name for check in report.checks if check.violations and check.about != HABIT)
    return Row(mutant, killers, report.violations)


def mutation_table(cases: int = 12, seed: int = 0, stop_at_first: bool = False) -> list[Row]:
    """Run all mutants. With `stop_at_first` each ends with the first check that catches it."""
    material = prepare(cases, seed)
    return [row(mutant, material, stop_at_first) for mutant in mutants()]


def as_markdown(rows: list[Row]) -> str:
    """The table as Markdown, with the score and the mutants tested elsewhere below."""
    lines = ["| mutant | seen in | false claims | caught by |", "|---|---|--:|---|"]
    for r in rows:
        caught = "; ".join(r.killed_by) or "**nothing**"
        lines.append(f"| {r.mutant.name} | {r.mutant.source} | {r.violations} | {caught} |")
    dead = sum(r.killed for r in rows)
    elsewhere = f"{sum(ROUNDING_TERMS.values())} mutants of rounding terms are tested in tests/."
    return "\n".join([*lines, "", f"{dead} of {len(rows)} mutants caught; {elsewhere}"])
