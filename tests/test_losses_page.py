"""What the page on losses computes: pairs, verdicts and answers, from made-up records with counts a test knows."""

import json
import math

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
    words = (vra.pairs_words, vra.fall_words, curves.curve_words, curves.images_words, threats.threat_words,
             threats.argument_words, answers.price_words)  # fmt: skip
    assert all("**not run**" in say(study) for say in words)
    assert vra.vra_words(study, 10) == "10 classes: **not run**."
    assert cells_of(vra.vra_table(study, 100), GLORO)[1:] == [NOT_RUN] * 4
    for empty in (vra.pairs_figure, vra.fall_table, curves.images_table, threats.threat_table, threats.threat_figure,
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
    assert vra.scaling(study)[vra.BETTER] == [MARGIN] and vra.scaling(study)[vra.WORSE] == []
    row = cells_of(vra.fall_table(study), MARGIN)
    assert row == [MARGIN, "29.00 → 13.00 %", "16.00", "44.8 %", "67.3 %", "-12.00 → -3.00: scales better"]
    assert cells_of(vra.fall_table(study), EMMA)[1:4] == ["41.00 → 16.00 %", "25.00", "39.0 %"]
    words = vra.fall_words(study)
    assert f"{MARGIN} keeps most at 100, 44.8 %, and " in words and f"Scales better: {MARGIN}; worse: none" in words
    answer = answers.scaling_answer(study)
    assert f"By our data yes: beside EMMA {MARGIN} stood better" in answer and "from 41.00 to 16.00 %" in answer
    assert f"That makes up for what {MARGIN} lacked at 10, and no more: not ahead at 100." in answer
    assert f"At 100 classes alone, ahead of EMMA: {FOCAL}; behind: " in answer and MARGIN in answer.split("behind: ")[1]


def test_points_and_ratios_must_agree():
    """Half of EMMA's VRA throughout: in points the gap shrinks, as a ratio nothing changes."""
    publish(lambda cell: (40 if few(cell) else 16) / (1 if cell.loss == "emma" else 2))
    assert set(vra.scaling(loss_study.load())[EVEN]) == set(loss_study.load().rivals)
    answer = answers.scaling_answer(loss_study.load())
    assert "do not decide it for" in answer


def test_all_worse_is_a_no():
    publish(lambda cell: 40.0 if few(cell) else 16 - 5 * (cell.loss != "emma"))
    assert "By our data no: beside EMMA all" in answers.scaling_answer(loss_study.load())


def test_all_of_some_worse_is_no_answer_yet():
    publish(lambda cell: None if cell.loss not in ("emma", "margin") else 40.0 if few(cell) else
            16 - 5 * (cell.loss == "margin"))  # fmt: skip
    answer = answers.scaling_answer(loss_study.load())
    assert f"None that was run in full: beside EMMA {MARGIN} stood worse" in answer and "By our data" not in answer
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
    assert any("VRA is executed, at 72/255" in str(part) for part in run_page(radius="72/255"))
