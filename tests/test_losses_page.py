"""What the page on losses computes: pairs, verdicts and answers, from made-up records with counts a test knows."""

import json
import math
import random

import numpy as np
import pytest
from losses_made import (
    ANNEALING,
    FIXED,
    FOCAL,
    MARGIN,
    SEEN,
    cells_of,
    drawn,
    few,
    pair,
    publish,
    run_page,
    turning,
    whole,
)

from benchmarks import loss_cost
from lipcert.paths import results_dir
from lipcert.report import loss_study
from lipcert.report import loss_study_answers as answers
from lipcert.report import loss_study_curves as curves
from lipcert.report import loss_study_fall as fall
from lipcert.report import loss_study_threats as threats
from lipcert.report import loss_study_vra as vra
from lipcert.report.checks import Check, write_check
from lipcert.report.loss_study import AHEAD, BEHIND, EMMA, EVEN, FEW, GLORO, NOT_RUN

# --- none, some ------------------------------------------------------------------------------------------------------


def test_without_records_everything_says_not_run():
    study = loss_study.load()
    assert study.counts == (10, 100) and len(study.titles) >= 7 and study.seen == SEEN and study.records() == []
    assert "**not run** (42 runs are planned)" in answers.headline(study)
    assert "Not answered: 42 of 42 runs are missing" in answers.scaling_answer(study)
    assert answers.price_answer(study).count("**not run**") == 3
    words = (vra.pairs_words, fall.fall_words, curves.curve_words, curves.images_words, threats.threat_words,
             threats.argument_words, answers.price_words)  # fmt: skip
    assert all("**not run**" in say(study) for say in words)
    assert vra.vra_words(study, 10) == "10 classes: **not run**."
    assert cells_of(vra.vra_table(study, 100), GLORO)[1:] == [NOT_RUN] * 4
    for empty in (vra.pairs_figure, fall.fall_table, curves.images_table, threats.threat_table, threats.threat_figure,
                  answers.price_table):  # fmt: skip
        assert empty(study) == ""
    missing = loss_study.study_list(study)
    assert curves.curve_figure(study, 10) == "" and (missing.count("0 of 15"), missing.count("0 of 3 runs")) == (2, 4)
    assert "nan" not in " ".join(map(str, run_page()))


def test_without_study_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_study, "STUDIES", tmp_path)
    assert "nan" not in " ".join(map(str, run_page()))
    assert loss_study.load().arms == {} and loss_study.study_list(loss_study.load()) == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dataset": "mnist"}, "dataset='mnist': must be one of cifar100"),
        ({"guarantee": "proven"}, "guarantee='proven': must be one of executed, nominal, estimated"),
        ({"guarantee": "nominal"}, "guarantee='nominal': .* has 36/255 executed"),
        ({"radius": "1"}, "radius=1, .* has 36/255 executed, 36/255 estimated"),
    ],
)
def test_what_the_runs_do_not_have_is_refused(wrong, says):
    publish(lambda cell: 15 if cell.loss == "emma" and cell.seed == 0 and not few(cell) else None)
    with pytest.raises(ValueError, match=says):
        loss_study.load(**wrong)


def test_some_runs_are_shown_and_not_read():
    publish(lambda cell: whole(cell) if pair(cell) < (3 if cell.loss == "emma" else 2) and few(cell) else None)
    study = loss_study.load()
    row = cells_of(vra.vra_table(study, 10), GLORO)
    assert row[1] == "38.50 % (38.10 to 38.90), 2 of 3 draws" and row[3:] == ["-2.00 (-1.90, -2.10)", FEW]
    assert cells_of(vra.vra_table(study, 10), EMMA)[1] == "41.00 % (40.00 to 42.00)"
    words = vra.vra_words(study, 10)
    assert "Best first" not in words and "Beside EMMA" not in words and f"in part: {FIXED}, {GLORO}" in words
    assert "too few pairs to read" in answers.headline(study) or "still missing" in answers.headline(study)
    assert curves.arrivals(study, 10, "proven") == {} and "in part" not in curves.images_table(study)
    assert "Not answered: 27 of 42 runs are missing" in answers.scaling_answer(study)
    assert "27 of 42 runs are still missing" in answers.headline(study)
    assert "nan" not in " ".join(map(str, run_page()))


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ((1.0, 1.1, 1.2), AHEAD),
        ((-1.0, -1.1, -1.2), BEHIND),
        ((0.1, 1.1, 2.2), EVEN),
        ((-0.1, 0.0, 0.1), EVEN),
        ((0.0, 0.0, 0.0), EVEN),
        ((5.0, 5.1), FEW),
        ((), NOT_RUN),
    ],
)
def test_verdicts(gaps, word):
    assert loss_study.verdict(gaps) == word


def test_how_often_chance_passes_the_rule():
    angles = np.linspace(0, math.pi / 6, 2001)
    slope = math.sqrt(6) * np.cos(angles)
    assert np.mean(1 - slope / np.sqrt(1 + slope**2)) == pytest.approx(loss_study.CHANCE, abs=2e-4)
    gaps_NP = np.random.default_rng(0).normal(size=(200_000, 3))
    passed = np.abs(gaps_NP.mean(1)) > np.ptp(gaps_NP, axis=1)
    assert passed.mean() == pytest.approx(loss_study.CHANCE, abs=0.003)
    assert [bool(p) for p in passed[:200]] == [loss_study.told_apart(list(gaps)) for gaps in gaps_NP[:200]]


@pytest.mark.parametrize(
    ("title", "text", "whole"),
    [("GloRo", "+0.90", "GloRo (+0.90)"), ("TRADES-KL (weight 2)", "+0.93", "TRADES-KL (weight 2; +0.93)")],
)
def test_remarks_share_the_brackets_of_a_title(title, text, whole):
    assert loss_study.remark(title, text) == whole


def test_titles_are_one_item_of_a_list():
    titles = loss_study.load().titles
    assert MARGIN in titles and any(title.startswith("TRADES-KL (weight ") for title in titles)
    assert not any(", " in title or " and " in title for title in titles)


def test_comparisons_of_too_few_pairs_are_not_counted():
    publish(lambda cell: whole(cell) if pair(cell) < (2 if few(cell) else 3) else None)
    rivals = len(loss_study.load().rivals)
    assert f"of {rivals} comparisons, {rivals * loss_study.CHANCE:.1f} would" in vra.pairs_words(loss_study.load())
    publish(lambda cell: None)
    assert loss_study.rule_words(0).endswith("comparisons of 3 pairs.") and "of 1 comparison," in loss_study.rule_words(
        1
    )


# --- VRA, the fall ---------------------------------------------------------------------------------------------------


def test_every_loss_beside_emma_pair_by_pair():
    publish(whole)
    study = loss_study.load()
    rows = vra.vra_table(study, 100)
    assert cells_of(rows, FOCAL) == [
        FOCAL, "17.50 % (16.60 to 18.50)", "37.50 % (36.60 to 38.50)", "+1.50 (+1.60, +1.40, +1.50)", AHEAD,
    ]  # fmt: skip
    assert cells_of(rows, EMMA)[3:] == ["", ""] and cells_of(rows, ANNEALING)[4] == EVEN
    assert cells_of(rows, FIXED)[4] == EVEN  # a mean of 0.1, a range of 0.2
    assert [line.split(" |")[0][2:] for line in rows.splitlines()[2:5]] == [FOCAL, ANNEALING, FIXED]
    words = vra.vra_words(study, 100)
    assert f"ahead: {FOCAL} (+1.50); behind: {GLORO} (-2.00), " in words
    assert f"not told apart: {FIXED} and {ANNEALING}." in words and "3 seeds each" in words
    assert (
        "10,000 test images stands for all such images to within 0.8 points" in words
        and "3 draws each" in vra.vra_words(study, 10)
    )
    points = drawn(vra.pairs_figure(study))
    assert len(points) == 2 * 3 * len(study.rivals)
    assert {"classes": "10", "loss": GLORO, "draw": "1", "seed": "0", "points": "-2.1000"} in points
    assert f"of {2 * len(study.rivals)} comparisons, 1.0 would pass" in vra.pairs_words(study)
    claim = answers.headline(study)
    assert f"At 100 classes EMMA certifies 16.00 % (3 seeds); ahead of it: {FOCAL}; behind: {GLORO}, " in claim


def test_who_scales_better():
    publish(whole)
    study = loss_study.load()
    assert fall.scaling(study)[fall.BETTER] == [MARGIN] and fall.scaling(study)[fall.WORSE] == []
    row = cells_of(fall.fall_table(study), MARGIN)
    assert row == [MARGIN, "29.00 → 13.00 %", "16.00", "44.8 %", "67.3 %", "-12.00 → -3.00: scales better"]
    assert cells_of(fall.fall_table(study), EMMA)[1:4] == ["41.00 → 16.00 %", "25.00", "39.0 %"]
    words = fall.fall_words(study)
    assert f"{MARGIN} keeps most at 100, 44.8 %, and " in words and f"Scales better: {MARGIN}; worse: none" in words
    by_chance = fall.luck(study)
    assert f"would make about {by_chance.verdicts:.1f} of 6 comparisons better or worse" in words
    answer = answers.scaling_answer(study)
    remark = loss_study.remark(MARGIN, "behind at 10 classes, behind at 100")
    assert f"By our rule 1 of 6 does: {remark}. None that does is ahead of EMMA at 100." in answer
    assert f"about {by_chance.verdicts:.1f} verdicts in 6 comparisons (simulated), and 1 or more " in answer
    assert (
        f'of them "better" in {100 * by_chance.better[1]:.0f} of 100 studies like this one, so one alone is' in answer
    )
    assert "from 41.00 to 16.00 %" in answer
    assert f"At 100 classes alone, ahead of EMMA: {FOCAL}; behind: " in answer and MARGIN in answer.split("behind: ")[1]


def test_points_and_ratios_must_agree():
    """Half of EMMA's VRA throughout: in points the gap shrinks, as a ratio nothing changes."""
    publish(lambda cell: (40 if few(cell) else 16) / (1 if cell.loss == "emma" else 2))
    assert set(fall.scaling(loss_study.load())[EVEN]) == set(loss_study.load().rivals)
    answer = answers.scaling_answer(loss_study.load())
    assert "do not decide it for" in answer and "chance" not in answer


def test_ahead_at_many_classes_is_said():
    """Focal EMMA from behind to ahead, all others as EMMA: with no spread chance gives no verdict."""
    publish(lambda cell: (40 if few(cell) else 20) + (2 - 4 * few(cell)) * (cell.loss == "focal"))
    answer = answers.scaling_answer(loss_study.load())
    assert f"1 of 6 does: {FOCAL} (behind at 10 classes, ahead at 100). If none" in answer
    assert "about 0.0 verdicts in 6 comparisons" in answer and "fewer than 1 of 100 studies like this one." in answer
    assert "weak evidence" not in answer


def test_without_any_certificate_of_emma_nothing_scales():
    publish(lambda cell: 0.0 if cell.loss == "emma" else 10.0)
    study = loss_study.load()
    assert len(fall.scaling(study)[FEW]) == 6 and "Not answered" in answers.scaling_answer(study)
    assert "by chance" not in fall.fall_words(study)


@pytest.mark.parametrize(("few_pairs", "many_pairs"), [(3, 3), (5, 3)])
def test_chance_of_a_verdict_against_the_count_of_orders(few_pairs, many_pairs):
    """One loss, levels at which points and ratios agree: all orders of the pairs are as likely."""
    found = fall.equals(((few_pairs, many_pairs),), (1.0, 1.0), (1e6, 1e6))
    orders = math.comb(few_pairs + many_pairs, many_pairs)
    assert found.better == pytest.approx((1, 1 / orders), abs=0.003)
    assert found.verdicts == pytest.approx(2 / orders, abs=0.004) and found.comparisons == 1


def test_chance_of_verdicts_that_share_emmas_runs():
    """Written out loss by loss, run by run."""
    draw, trials, better, verdicts = random.Random(1), 8000, [0] * 7, 0
    for _ in range(trials):
        emma = [[draw.gauss(*end) for _ in range(3)] for end in ((58, 0.6 / 2**0.5), (24, 0.25 / 2**0.5))]
        up = 0
        for _ in range(6):
            own = [[draw.gauss(*end) for _ in range(3)] for end in ((58, 0.6 / 2**0.5), (24, 0.25 / 2**0.5))]
            points = [[a - b for a, b in zip(*end, strict=True)] for end in zip(own, emma, strict=True)]
            ratios = [[a / b for a, b in zip(*end, strict=True)] for end in zip(own, emma, strict=True)]
            above = all(x < y for kind in (points, ratios) for x in kind[0] for y in kind[1])
            up += above
            verdicts += above or all(x > y for kind in (points, ratios) for x in kind[0] for y in kind[1])
        for number in range(up + 1):
            better[number] += 1
    found = fall.equals(((3, 3),) * 6, (0.6, 0.25), (58.0, 24.0))
    assert found.verdicts == pytest.approx(verdicts / trials, abs=0.05)
    assert found.better == pytest.approx([count / trials for count in better], abs=0.02)
    assert 0.1 < found.better[1] < 0.25 and found.better[0] == 1


def test_chance_takes_spread_and_level_from_the_pairs():
    publish(whole)
    study = loss_study.load()
    spreads = [
        float(np.sqrt(np.mean([np.var(study.gaps(n, title), ddof=1) for title in study.rivals]))) for n in (10, 100)
    ]
    assert spreads[0] == pytest.approx(math.sqrt((5 * 0.01 + np.var([1, -1, 0.5], ddof=1)) / 6), abs=0.01)
    assert fall.luck(study).verdicts == pytest.approx(fall.equals(((3, 3),) * 6, tuple(spreads), (41.0, 16.0)).verdicts)


def test_all_worse_is_a_no():
    publish(lambda cell: 40.0 if few(cell) else 16 - 5 * (cell.loss != "emma"))
    assert "By our rule none does: measured against EMMA, all 6 do worse" in answers.scaling_answer(loss_study.load())


def test_all_of_some_worse_is_no_answer_yet():
    publish(lambda cell: None if cell.loss not in ("emma", "margin") else 40.0 if few(cell) else
            16 - 5 * (cell.loss == "margin"))  # fmt: skip
    answer = answers.scaling_answer(loss_study.load())
    assert (
        f"None that was run in full does: {MARGIN} scaled worse. If none differed" in answer
        and "verdicts in 1 comparison (" in answer
    )
    assert "Not in this: " in answer


def test_a_single_pair_is_not_read():
    publish(lambda cell: whole(cell) if pair(cell) == 0 and cell.loss in ("emma", "gloro") else None)
    assert "GloRo minus EMMA -1.90 points, one pair: too few pairs" in answers.price_answer(loss_study.load())


def test_gloro_twice():
    publish(whole)
    words = vra.twins_words(loss_study.load())
    twins = {cell.robust_weight for s in loss_study.studies("cifar100") for cell in s.cells if cell.loss == "trades_kl"}
    if twins == {"1"}:
        assert "-0.30 (-0.30, -0.30, -0.30) points of VRA at 10 classes" in words
    else:
        assert words == ""


def test_published_numbers_are_in_the_list():
    assert vra.published_table().count("36/255") == len(vra._PUBLISHED)


# --- price -----------------------------------------------------------------------------------------------------------


def price_check(emma: float) -> None:
    """The check as the benchmark writes it: 100 ms under GloRo, `emma` ms under EMMA, the loss alone 1 ms."""
    seconds = {}
    for loss in loss_cost.TIMED:
        for count in loss_cost.CLASSES:
            step = emma / 1000 if loss == "emma" else 0.101 if loss == loss_cost.AGAIN else 0.1
            seconds[f"{loss}; {count} classes"] = [step * wobble for wobble in (0.99, 1.0, 1.01)]
            seconds[f"{loss}; {count} classes; alone"] = [0.001] * 3
    told = loss_cost.told(seconds, loss_cost.config_of("gloro"))
    told["numbers"] |= {"threads": 1, "rounds": 3}
    found = Check(
        goal=answers.CHECK, title="t", target="t", seconds=1, command="c", commit="a" * 40, dirty=False,
        hardware={"processor": "abacus", "cores": 2}, versions={}, finished="2030-01-02T03:04", **told,
    )  # fmt: skip
    write_check(found, results_dir())


def test_the_price_of_a_step():
    price_check(103.0)
    study = loss_study.load()
    row = cells_of(answers.price_table(study), EMMA)
    assert row[1:] == ["1.030 (1.030 to 1.030)"] * 2 + ["103.0 ms", "0.97 %", f"{0.103 * 390:.1f} s"]
    assert cells_of(answers.price_table(study), GLORO)[1:4] == ["1", "1", "100.0 ms"]
    words = answers.price_words(study)
    assert "1.030 times GloRo's (1.030 to 1.030) at 10 classes" in words and "takes 1.010 to 1.010 and 1.010" in words
    assert "an epoch takes 40.2 s, GloRo's 39.0 s" in answers.price_answer(study)


def test_a_price_within_the_rounds_is_not_told_apart():
    """As far from GloRo's step as that is from itself."""
    price_check(101.0)
    assert "1.010 times GloRo's (1.010 to 1.010), not told apart from it" in answers.price_answer(loss_study.load())


def test_all_three_answers_of_question_six():
    publish(whole)
    price_check(103.0)
    answer = answers.price_answer(loss_study.load())
    assert (
        "**not run**" not in answer and "GloRo minus EMMA -2.00 points (-1.90, -2.10, -2.00): EMMA is ahead" in answer
    )
    assert "EMMA 16.00 % (15.00 to 17.00), GloRo 14.00 % (13.10 to 15.00)" in answer


# --- the notebook ----------------------------------------------------------------------------------------------------


def test_the_whole_page_and_its_checks():
    publish(whole, turning=turning)
    price_check(103.0)
    shown = run_page()
    assert sum(hasattr(part, "svg") for part in shown) == 6
    assert not any("not run" in str(part).lower() or "nan" in str(part) for part in shown)


def test_the_checks_can_fail():
    publish(whole)
    (path,) = results_dir().glob("runs/cifar100-*-gloro-s0-*.json")
    facts = json.loads(path.read_text())
    facts["training"]["threats"].pop()
    path.write_text(json.dumps(facts))
    with pytest.raises(AssertionError):
        run_page()


def test_other_radii_of_the_page():
    publish(whole)
    assert any("VRA counts executed certificates at 72/255" in str(part) for part in run_page(radius="72/255"))
