"""What the page on class count computes, from made-up records: points, pairs, falls and the words about them."""

import math
import random

import numpy as np
import pytest
from made_class_count import FEW_IMAGES, TRAINED, cells, everything, line, publish, restrict

from lipcert.paths import ROOT, results_dir
from lipcert.report import class_count, matrices
from lipcert.report import class_count_figures as figures
from lipcert.report import class_count_margins as margins
from lipcert.report import class_count_tables as tables
from lipcert.report.class_count_runs import (
    FEWER,
    IMAGES,
    RESTRICTED,
    SUBSETS,
    TOTAL,
    WHOLE,
    Difference,
    Point,
    clean,
    difference,
    gap,
    load,
    ratio,
    vra,
)
from lipcert.report.intervals import count_interval


@pytest.fixture(autouse=True)
def published_numbers(results):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


TABLES = (
    tables.accuracy_table, tables.falls_table, class_count.parts_table, class_count.paired_table,
    margins.distance_table, margins.rivals_table, margins.constants_table, margins.fit_table, margins.looks_table,
)  # fmt: skip
WORDS = (
    class_count.answer, tables.accuracy_words, tables.falls_words, tables.claim_words,
    tables.difficulty_words, class_count.parts_words,
    margins.distance_words, margins.rivals_words, margins.fit_words,
)  # fmt: skip
FIGURES = (figures.accuracy_figure, figures.ratio_figure, figures.distance_figure, figures.difficulty_figure)


# --- with no and with some runs ---------------------------------------------------------------------------------------


def test_without_records_everything_says_not_run():
    evidence = load()
    assert all("**not run**" in say(evidence) for say in WORDS)
    assert all("not run" in show(evidence) and "nan" not in show(evidence) for show in TABLES)
    assert all(draw(evidence) == "" for draw in FIGURES)
    assert evidence.records() == [] and class_count.remainders(evidence) == []
    missing = tables.missing_words(evidence)
    assert missing.count("class-count-") == 3 and "total.yaml`: 0 of 15" in missing
    assert f"class_restriction {cells(WHOLE)[0].run_id()} " in missing and "`: 0 of 3" in missing


def test_with_everything_nothing_is_missing():
    everything()
    evidence = load()
    assert not any("not run" in str(say(evidence)) for say in (*WORDS, *TABLES))
    assert tables.missing_words(evidence) == "" and len(evidence.records()) == 33


def test_without_study_files(tmp_path, monkeypatch):
    for name in (WHOLE, SUBSETS):
        (tmp_path / f"{name}.yaml").write_text((matrices.FOLDER / f"{name}.yaml").read_text())
    everything()
    monkeypatch.setattr(matrices, "FOLDER", tmp_path)
    evidence = load()
    assert evidence.fall(IMAGES, vra).pairs and not evidence.fall(TOTAL, vra).pairs
    assert (100, TOTAL) not in evidence.cells() and "total.yaml`: 0 of 0" in tables.missing_words(evidence)
    assert all("images in total fixed" in say(evidence) for say in (class_count.answer, tables.claim_words))
    assert all(isinstance(say(evidence), str) for say in (*WORDS, *TABLES, tables.design_words))


def test_a_part_of_the_draws_is_said_and_decides_nothing():
    publish(WHOLE, TRAINED)
    publish(SUBSETS, TRAINED, lambda cell: cell.class_seed < 2)
    evidence = load()
    table = tables.accuracy_table(evidence)
    assert line(table, "10", "trained, 500 of a class")[2:] == [
        "2 of 5 draws", "78.5 % (78.0 to 79.0)", "62.5 % (62.0 to 63.0)", "0.796 (0.795 to 0.797)"
    ]  # fmt: skip
    assert line(table, "10", "restricted")[2:] == ["not run"] * 4
    assert line(tables.falls_table(evidence), "trained, images of a class")[5] == "cannot be told apart"
    answer = class_count.answer(evidence)
    assert "do not decide it" in answer and "Networks restricted, not trained again: not run" in answer
    assert "no sure sign over 2 draws" in answer and "0.020" not in answer


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_run_every_part_of_the_page_says_something(seed):
    rng = random.Random(seed)
    for name, shares in ((WHOLE, TRAINED), (SUBSETS, TRAINED), (FEWER, FEW_IMAGES)):
        publish(name, shares, lambda cell: rng.random() < 0.3)
    restrict(nets=rng.randrange(4))
    evidence = load()
    assert all(isinstance(say(evidence), str) and "nan" not in say(evidence) for say in (*WORDS, *TABLES))
    assert "**" in class_count.question(evidence) and class_count.remainders(evidence) == []


# --- points and pairs -------------------------------------------------------------------------------------------------


def test_measures_of_a_point():
    point = Point(10, 1000, 800, 600)
    assert (clean(point), vra(point), gap(point), ratio(point)) == (80, 60, 20, 0.75)
    assert ratio(Point(10, 1000, 0, 0)) == 0


def test_pairs_share_draw_and_network_where_both_have_one():
    few = [Point(10, 100, 90, 80 + draw, draw, net) for draw in (0, 1) for net in ("a", "b")]
    many = [Point(100, 100, 50, 40 + rank, None, net) for rank, net in enumerate(("a", "b"))]
    assert difference(few, many, vra).pairs == ((0, 40), (0, 39), (1, 41), (1, 40))
    drawn = [Point(10, 100, 90, 10 * draw, draw) for draw in (0, 1, 2)]
    assert difference(drawn, drawn, vra).pairs == ((0, 0), (1, 0), (2, 0))
    assert difference(many, few, vra).by_draw() == {0: -39.5, 1: -40.5}


@pytest.mark.parametrize(
    ("pairs", "sign"),
    [
        (((0, 1.0), (1, 2.0), (2, 0.1)), 1),
        (((0, -1.0), (1, -2.0), (2, -0.1)), -1),
        (((0, 1.0), (1, 2.0), (2, 0.0)), 0),
        (((0, 1.0), (1, 2.0), (2, -0.1)), 0),
        (((0, 1.0), (0, 2.0), (1, 0.1)), 0),  # two draws
        ((), 0),
    ],
)
def test_a_sign_needs_every_pair_of_three_draws(pairs, sign):
    assert Difference(pairs).sign == sign


@pytest.mark.parametrize(("count", "images"), [(0, 50), (50, 50), (7, 50), (623, 1000)])
def test_count_interval_against_the_binomial_sum(count, images):
    def at_most(k: int, share: float) -> float:
        return math.fsum(math.comb(images, i) * share**i * (1 - share) ** (images - i) for i in range(k + 1))

    low, high = (end / 100 for end in count_interval(count, images))
    assert low <= count / images <= high
    assert (count == 0 and low == 0) or 1 - at_most(count - 1, low) == pytest.approx(0.025, rel=1e-6)
    assert (count == images and high == 1) or at_most(count, high) == pytest.approx(0.025, rel=1e-6)


def test_explained_against_the_correlation():
    points = [Point(n, 1000, 100 + 7 * n, 60 + n * n % 90) for n in range(10, 40)]
    correlation = np.corrcoef([clean(p) for p in points], [ratio(p) for p in points])[0, 1]
    assert tables.explained(points, (clean,)) == pytest.approx(correlation**2)
    assert tables.explained(points, (clean, ratio)) == pytest.approx(1)
    assert tables.explained([Point(10, 100, 50, 40)] * 3, (clean,)) == 0


# --- arms -------------------------------------------------------------------------------------------------------------


def test_the_arms_are_those_of_the_study_files():
    evidence = load()
    assert evidence.counts == [10, 20, 50, 100] and evidence.planned[IMAGES][10] == evidence.planned[TOTAL][10]
    assert evidence.cells() == [
        (10, RESTRICTED), (10, IMAGES), (20, RESTRICTED), (20, IMAGES), (20, TOTAL), (50, RESTRICTED), (50, IMAGES),
        (50, TOTAL), (100, IMAGES), (100, TOTAL),
    ]  # fmt: skip
    names = {evidence.name(n, arm) for n, arm in evidence.cells() if arm == TOTAL}
    assert names == {f"trained, {each} of a class" for each in (250, 100, 50)}
    words = tables.design_words(evidence)
    assert "sees 249,856 images" in words and "50, 25, 10 and 5 times at 10, 20, 50 and 100 classes" in words
    assert "in total fixed (5,000), 50 times" in words


def test_restricted_networks_are_read_as_the_check_writes_them():
    everything()
    evidence = load()
    assert {n: len(each) for n, each in evidence.points[RESTRICTED].items()} == {10: 15, 20: 15, 50: 15, 100: 3}
    first = evidence.at(RESTRICTED, 10)[0]
    assert (first.images, first.draw) == (1000, 0) and first.net in {c.run_id() for c in cells(WHOLE)}
    assert sorted(p.vra for p in evidence.at(RESTRICTED, 10)) == sorted(
        52 + d + n for d in range(-2, 3) for n in (-1, 0, 1)
    )
    assert evidence.broad[10].vra == pytest.approx(52, abs=1e-3) and evidence.draws == 5
    assert evidence.broad[10].low < 52 < evidence.broad[10].high and evidence.broad[10].median == pytest.approx(0.2)


def test_a_check_of_other_networks_or_another_radius_is_left_out():
    restrict()
    assert not any(load().points[RESTRICTED].values())  # no record of the networks
    everything()
    assert not any(load("72/255").points[RESTRICTED].values()) and load("72/255").at(IMAGES, 10)
    nominal = load(guarantee="nominal")
    assert nominal.at(IMAGES, 10) and not any(nominal.points[RESTRICTED].values())
    assert margins.looks_at(load()) and not margins.looks_at(load("72/255"))


# --- falls and causes -------------------------------------------------------------------------------------------------


def test_falls_in_points_and_in_proportion():
    everything()
    table = tables.falls_table(load())
    # 80 - 50 and 64 - 30, draws two points and seeds one point to each side.
    assert line(table, "trained, images of a class")[1:4] == [
        "30.0 (27.0 to 33.0)",
        "34.0 (31.0 to 37.0)",
        "VRA faster",
    ]
    assert line(table, "trained, images of a class")[5] == "VRA faster"
    assert line(table, "trained, images in total")[1:4] == ["45.0 (45.0 to 45.0)", "47.0 (47.0 to 47.0)", "VRA faster"]
    assert line(table, "restricted")[1:4] == ["22.0 (20.0 to 24.0)", "22.0 (20.0 to 24.0)", "cannot be told apart"]
    words = tables.falls_words(load())
    assert "are 16.0 % of the images at 10 classes and 20.0 % at 100, a gap that grows in every pair" in words
    assert "80.0 % and 60.0 % are certified" in words


@pytest.mark.parametrize(
    ("ends", "points", "proportion"),
    [
        (((80, 64), (50, 34)), "cannot be told apart", "VRA faster"),
        (((80, 64), (50, 40)), "VRA more slowly", "cannot be told apart"),
        (((80, 64), (50, 45)), "VRA more slowly", "VRA more slowly"),
        (((80, 70), (50, 20)), "VRA faster", "VRA faster"),
    ],
)
def test_verdicts(ends, points, proportion):
    publish(SUBSETS, dict.fromkeys((10, 20, 50), ends[0]), shift=0)
    publish(WHOLE, {100: ends[1]}, shift=0)
    found = line(tables.falls_table(load()), "trained, images of a class")
    assert (found[3], found[5]) == (points, proportion)


def test_parts_add_up_to_the_falls():
    everything()
    evidence = load()
    table = class_count.parts_table(evidence)
    assert line(table, "the same networks, asked about 10")[1:3] == ["+22.0 (+20.0 to +24.0)"] * 2
    assert line(table, "trained on those 10 classes")[1:3] == ["+8.0 (+7.0 to +9.0)", "+12.0 (+11.0 to +13.0)"]
    assert line(table, "**together, images of a class")[2].startswith("+34.0 (")
    assert line(table, "at 100 classes, all images")[2].startswith("+13.0 (")
    assert line(table, "**together, images in total")[2].startswith("+47.0 (")
    assert len(class_count.remainders(evidence)) == 8 and max(map(abs, class_count.remainders(evidence))) < 1e-9
    words = class_count.parts_words(evidence)
    assert "65 % of the fall of VRA and 73 % of that of clean accuracy" in words  # 22 of 34, 22 of 30
    assert "in 5 of 5 draws, by +12.0" in words and "10 times as often" in words


def test_remainders_only_of_whole_series():
    everything()
    (results_dir() / "runs" / f"{cells(FEWER)[-1].run_id()}.json").unlink()
    assert class_count.remainders(load()) == []
    everything()
    restrict(nets=2)
    assert class_count.remainders(load()) == []


def test_draw_by_draw():
    everything()
    table = class_count.paired_table(load())
    assert line(table, "10", "trained")[2:4] + line(table, "10", "trained")[5:] == [
        "+8.0 (+7.0 to +9.0)", "+12.0 (+11.0 to +13.0)", "5 of 5 draws"
    ]  # fmt: skip
    assert line(table, "20", "500 - 250")[2:4] == ["+5.0 (+5.0 to +5.0)", "+7.0 (+7.0 to +7.0)"]
    assert line(table, "100", "500 - 50")[5] == "5 of 5 draws" and table.count("| 10 |") == 1


# --- the answer -------------------------------------------------------------------------------------------------------


def test_the_answer_with_everything():
    everything()
    answer = class_count.answer(load())
    assert "**From 10 to 100 classes of CIFAR-100 VRA falls by 34.0 points with images of a class fixed" in answer
    assert "(clean accuracy: 45.0)" in answer and "In points VRA falls faster than clean accuracy in both" in answer
    assert "falls from 0.800 to 0.600" in answer and "**Question 1.**" in answer
    whole = 0.8 - 0.6
    share = 100 * (52 / 72 - 0.6) / whole
    assert f"show {share:.0f} % of that fall" in answer and "says nothing about the 1,000 of ImageNet" in answer
    assert "Training on all classes instead of on the few alone adds 0.078." in answer
    assert "Having 5,000 images instead of all adds 0.11" in answer
    assert "VRA falls faster here too, in points and in proportion" in answer
    assert "accounts for 9" in answer and "points more." in answer


def test_the_premise_in_points_is_not_taken_for_granted():
    everything()
    publish(WHOLE, {100: (50, 34)})
    answer = class_count.answer(load())
    assert "In points VRA does not surely fall faster here: 1.00 points for one" in answer
    assert "In points the two cannot be told apart with images of a class fixed" in answer


def test_a_slower_fall_in_points_contradicts_the_premise():
    """The gap goes from 16 to 12 points in every pair, and the share from 0.80 to 0.76."""
    everything()
    publish(WHOLE, {100: (50, 38)})
    answer = class_count.answer(load())
    rates = [(26 + draw - seed) / (30 + draw - seed) for draw in range(-2, 3) for seed in (-1, 0, 1)]
    assert max(rates) < 1 and f"does not hold here: VRA falls by {np.mean(rates):.2f} points for one" in answer
    assert "by less than one in every pair; what there is to explain is the proportion" in answer
    assert "not surely" not in answer and "In points VRA falls more slowly" in answer


@pytest.mark.parametrize(
    ("asked", "shown", "training"),
    [
        ((80, 68), "all of that fall and more (0.250)", "takes off 0.050"),
        ((80, 64.1), "all of that fall, within the spread of the draws (0.201)", "changes the fall by -0.001, which"),
        ((80, 60), "75 % of that fall (0.150)", "adds 0.050"),
        ((80, 40), "show the opposite (-0.1", "adds 0.30"),
    ],
)
def test_what_restriction_shows_agrees_with_what_training_adds(asked, shown, training):
    everything()
    restrict({n: asked for n in (10, 20, 50)})
    answer = class_count.answer(load())
    assert shown in answer and f"instead of on the few alone {training}" in answer


def test_the_answer_where_there_is_nothing_to_explain():
    flat = dict.fromkeys((10, 20, 50), (80, 64))
    publish(SUBSETS, flat, shift=0)
    publish(WHOLE, {100: (50, 45)}, shift=0)
    publish(FEWER, {n: (40, 36) for n in (20, 50, 100)}, shift=0)
    restrict({n: (70, 60) for n in (10, 20, 50)}, shift=0)
    assert "nothing to explain" in class_count.answer(load())
    publish(FEWER, {n: (40, 20) for n in (20, 50, 100)}, shift=0)
    assert "two series disagree" in class_count.answer(load())
    assert "more slowly than clean accuracy with images of a class fixed" in class_count.answer(load())


def test_geometry_without_a_sure_sign_explains_nothing():
    everything()
    restrict({n: (50, 30) for n in (10, 20, 50)}, shift=3)
    answer = class_count.answer(load())
    assert "explains any of it, our data do not tell" in answer and "geometry, the same margins" not in answer


@pytest.mark.parametrize(("sure", "side"), [(5, "below that"), (-40, "above that")])
def test_the_papers_observation(sure, side):
    publish(SUBSETS, dict.fromkeys((10, 20, 50), (60, 52)), shift=0)
    publish(WHOLE, {100: (50, 45 + sure)}, shift=0)
    words = tables.claim_words(load())
    assert "unverified" in words and side in words and "no reproduction" in words
    publish(WHOLE, {100: (60, 45)}, shift=0)
    assert tables.fall_rates(load(), IMAGES) == []


def test_published_pairs_come_from_the_list():
    table = tables.published_table()
    assert line(table, "CIFAR-100")[1:] == ["100", "62.1 %", "50.1 %", f"{50.1 / 62.1:.3f}", "stated by the authors"]
    assert [int(row.split("|")[2]) for row in table.splitlines()[2:]] == [10, 100, 200, 1000]
