"""What the page on relaxed guarantees computes: its record in tables and words, digits certified in sets."""

import shutil
from pathlib import Path

import pytest

from lipcert.paths import RESULTS
from lipcert.report import relaxed
from lipcert.report.checks import Check, write_check

WHERE = {"hardware": {"processor": "A", "cores": 2}, "versions": {}, "finished": "2030-01-02T03:04"}
ROWS = (
    ("b", "cifar100", "36/255", "1000", "top-k", "1", "500", "700", "400", "400", "700"),
    ("b", "cifar100", "36/255", "1000", "top-k", "5", "800", "900", "650", "600", "1800"),
    ("b", "cifar100", "36/255", "1000", "20 superclasses", "5", "520", "720", "410", "405", "740"),
    ("a", "digits", "0.3", "360", "top-k", "1", "350", "330", "324", "324", "330"),
    ("a", "digits", "0.3", "360", "top-k", "2", "355", "340", "333", "330", "360"),
)


def record(results: Path, rows=ROWS, head=relaxed.HEAD) -> None:
    facts = {"title": "t", "target": "t", "measured": "Done.", "verdict": "met", "seconds": 1, "command": "c"}
    check = Check(goal=relaxed.GOAL, commit=None, dirty=None, rows=(head, *rows), **facts, **WHERE)
    write_check(check, results)


def test_without_a_record_the_page_says_not_run():
    assert relaxed.measured() == []
    assert relaxed.relaxed_table() == relaxed.relaxed_words() == relaxed.relaxed_figure() == "Not run."


def test_with_a_record(results: Path):
    record(results)
    digits, cifar = relaxed.measured()
    assert [m.k_max for m in digits] == [1, 2] and [m.sets for m in cifar] == ["top-k", "top-k", "20 superclasses"]
    table = relaxed.relaxed_table().replace("\N{NO-BREAK SPACE}", " ")
    assert "| digits, 0.3 | one class: VRA | **90.00 %** | 97.22 % | 91.67 % | 1.00 |" in table
    assert "|  | up to 5 classes | 65.00 % | 80.00 % | 90.00 % | 2.00 |" in table
    assert "|  | inside of 20 superclasses | 41.00 % | 52.00 % | 72.00 % | 1.03 |" in table
    words = relaxed.relaxed_words().replace("\N{NO-BREAK SPACE}", " ")
    assert "digits, 0.3: VRA 90.00 %, relaxed to 2 classes 92.50 %" in words
    assert "goes from 10.00 to 15.00 points; something is certified for 90.00 % of the images" in words
    assert "instead of 70.00 %. Sets inside of 20 superclasses bring 1.00 points." in words


def test_the_figure_has_every_point_of_sets_of_limited_size(results: Path):
    record(results)
    figure = relaxed.relaxed_figure()
    assert figure.csv.splitlines()[1:] == [
        "a,1,90.0000,97.2222", "a,2,92.5000,98.6111", "b,1,40.0000,50.0000", "b,5,65.0000,80.0000",
    ]  # fmt: skip
    assert "CIFAR-100, 36/255: 40.00 % for 1, 65.00 % for 5" in figure.alt


def test_a_record_of_other_columns_is_refused(results: Path):
    record(results, head=("network", "k"), rows=(("a", "1"),))
    with pytest.raises(ValueError, match="columns network, k"):
        relaxed.measured()


def test_nothing_certified_is_no_division_by_zero(results: Path):
    record(results, rows=(("a", "digits", "9", "360", "top-k", "1", "350", "0", "0", "0", "0"),))
    assert "| 0.00" in relaxed.relaxed_table() and relaxed.relaxed_words() == "Not run."


def test_examples_are_what_they_say(results: Path):
    shutil.copytree(RESULTS / "models", results / "models", ignore=shutil.ignore_patterns("cifar*", "mnist*"))
    relaxed.digit_sets.cache_clear()
    found, labels, radius = relaxed.digit_sets()
    chosen = relaxed.rescued()
    assert chosen and relaxed.examples_table().count("\n") == min(len(chosen), 6) + 2
    for n in chosen:
        sets = [k for k in (1, 2, 3) if found.radius_BT[n, k - 1] >= 36 / 255]
        assert radius == "36/255" and min(sets) > 1 and labels[n] in found.order_BT[n, : min(sets)]
    words = relaxed.examples_words()
    assert f"of {len(chosen)} more the label is in a certified set" in words and "of 360 test digits" in words
