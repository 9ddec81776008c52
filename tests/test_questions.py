"""The page of questions: all there, answered or said to be not run, each with a page that exists."""

import re
from pathlib import Path

import pytest
from made import make_record

from lipcert.paths import ROOT, results_dir
from lipcert.records import write_record
from lipcert.report import questions, systems
from lipcert.report.checks import Check, write_check


@pytest.fixture(autouse=True)
def published_numbers(results: Path):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


def test_without_records_every_answer_says_so_and_names_a_page_of_the_book():
    found = list(questions.questions())
    assert len({each.asked for each in found}) == len(found) == 10
    pages = (ROOT / "book/_toc.yml").read_text()
    for each in found:
        assert (ROOT / "book" / each.page).exists() and Path(each.page).with_suffix("").as_posix() in pages
        assert re.search("not run|nothing|missing|no verdict", each.answer, re.IGNORECASE), each.answer


HEAD = ("data", "family", "activation", "blocks", "weights", "regions", "open", "at least", "at most", "power 10",
        "power 500", "bound", "quick search", "patient search", "blocks exactly", "branches exactly")  # fmt: skip


def known(data: str, family: str, weights: str, power: float, bound: float) -> tuple[str, ...]:
    """A network of constant 1."""
    return (data, family, "MinMax", "1", weights, "4", "0", "1", "1.0000000001", str(power), "1", str(bound), "1", "1",
            "1", "1")  # fmt: skip


def constants(rows: list[tuple[str, ...]]) -> str:
    check = Check(
        goal="exact-constants", title="t", target="t", measured="m", verdict="met", seconds=1, command="c", commit=None,
        dirty=None, hardware={}, versions={}, finished="2030-01-02T03:04", rows=(HEAD, *rows),
    )  # fmt: skip
    write_check(check, results_dir())
    (asked,) = [each for each in questions.questions() if "known exactly" in each.asked]
    assert asked.page == "residual_bounds.md"
    return asked.answer


def test_known_constants_are_answered_in_words():
    kinds = [("dense", 1.25), ("dense", 2.5), ("dense", 1.25), ("linear", 4.0), ("conventional", 10.0)]
    rows = [known("digits", family, "random", 0.5, bound) for family, bound in kinds]
    rows += [known("digits", "dense", "emma", 1.5, 2.0), known("arms", "linear", "emma", 1.5, 100.0)]
    words = constants(rows)
    assert "never below the constant; the estimate is in 5 of 7 small networks" in words and "to 1.0e-10" in words
    assert "50 % trained with EMMA, 10 to 80 % at random weights." in words and "cross-entropy" not in words


def test_a_bound_below_the_constant_would_be_said():
    words = constants([known("arms", "dense", "emma", 1.5, 0.9), known("arms", "dense", "emma", 1.5, 2.0)])
    assert "below the constant in 1 of 2 small networks, an error of ours; the estimate in 0." in words
    assert "never" not in words and "Used of" not in words
    assert "the estimate is in none of 1 small" in constants([known("arms", "dense", "emma", 1.5, 2.0)])


def test_the_first_try_is_one_run():
    system = next(each for each in systems.systems() if each.study == "vra-l3w64-cifar10")
    write_record(make_record(system.cells[0], (5012, 3000, 10), 6500), results_dir())
    (asked,) = [each for each in questions.questions() if "L3 W64" in each.asked]
    answer = asked.answer.replace("\xa0", " ")
    assert answer.startswith("50.12 % VRA at 36/255 and 65.00 % clean") and "one run" in answer
