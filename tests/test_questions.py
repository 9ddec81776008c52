"""The page of questions: all there, answered or said to be not run, each with a page that exists."""

import re
from pathlib import Path

import pytest
from made import make_record

from lipcert.paths import ROOT, results_dir
from lipcert.records import write_record
from lipcert.report import questions, systems


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


def test_the_first_try_is_one_run():
    system = next(each for each in systems.systems() if each.study == "vra-l3w64-cifar10")
    write_record(make_record(system.cells[0], (5012, 3000, 10), 6500), results_dir())
    (asked,) = [each for each in questions.questions() if "L3 W64" in each.asked]
    answer = asked.answer.replace("\xa0", " ")
    assert answer.startswith("50.12 % VRA at 36/255 and 65.00 % clean") and "one run" in answer
