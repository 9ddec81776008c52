"""What the page on depth says of accuracy and gains, with their intervals; and that its cells run."""

import json
import random
from pathlib import Path

import pytest
from depth_made import CELLS, VIEW, cell, gaining, lines, made, publish, row, steady, tightness
from made import make_record

from lipcert.paths import ROOT
from lipcert.records import write_record
from lipcert.report import depth, depth_bounds, depth_curves, depth_gains, depth_runs, depth_tightness
from lipcert.report.depth_runs import (
    View,
)
from lipcert.report.intervals import Estimate, contrast, count_interval, pair_range
from lipcert.report.svg import Figure
from lipcert.settings import ConfigError


@pytest.fixture(autouse=True)
def published_numbers(results: Path):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


# --- the matrices and the parameters ---------------------------------------------------------------------------------


def test_three_budgets_of_which_the_first_stands_apart():
    found = depth_runs.budgets()
    assert [(b.title, b.images, b.width) for b in found] == [
        ("2 epochs", 99_840, 32), ("6 epochs", 299_520, 16), ("18 epochs", 898_560, 16)
    ]  # fmt: skip
    first, short, long = found
    assert short.extends(long) and not first.extends(short)
    assert [len(found[long][family, n].cells) for family in ("liresnet", "resnet") for n in (3, 12)] == [3] * 4
    assert {n for family, n in found[short] if family == "convnet"} == {3, 12, 24}
    assert (depth_runs.SHUT, 3) in found[first] and all(family != depth_runs.SHUT for family, _ in found[short])


def test_within_a_budget_nothing_differs_but_what_is_asked_about():
    for arms in depth_runs.budgets().values():
        assert depth_runs.varied(arms) <= {"family", "depth", "seed", "branch_scale", "lr"}


def test_a_rate_of_its_own_is_said(results: Path):
    arms = next(arms for b, arms in depth_runs.budgets().items() if b.epochs == 18)
    budget = next(b for b in depth_runs.budgets() if b.epochs == 18)
    assert "Muon at a learning rate of 0.011, batches of 128, width 16" in depth_runs.recipe(budget, arms)
    key = ("resnet", 3)
    other = depth_runs.Arm(tuple(c.model_copy(update={"lr": 0.02}) for c in arms[key].cells))
    assert "0.011 (LiResNet) / 0.02 or 0.011 (ResNet)" in depth_runs.recipe(budget, {**arms, key: other})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("dataset", "mnist", "cifar10"), ("radius", "1", "36/255, 72/255"), ("guarantee", "estimated", "executed, real")],
)
def test_parameters_that_the_runs_do_not_have_are_refused(name: str, value: str, said: str):
    with pytest.raises(ConfigError, match=f"{name}='{value}': the runs on depth have {said}"):
        View(**{name: value})


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_two_means_is_welchs():
    from scipy.stats import ttest_ind

    a, b = [50.1, 50.9, 50.4], [48.0, 49.9, 49.0]
    found = contrast((1, a), (-1, b))
    truth = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high))
    assert found.value == pytest.approx(sum(a) / 3 - sum(b) / 3) and found.sign == (1 if truth.low > 0 else 0)


def test_the_interval_of_four_means_covers_as_often_as_it_says():
    draw, spreads, inside = random.Random(1), (1.0, 0.5, 2.0, 1.0), 0
    for _ in range(2000):
        groups = [[draw.gauss(n, spread) for _ in range(3)] for n, spread in enumerate(spreads)]
        found = contrast(*((sign, group) for sign, group in zip((1, -1, -1, 1), groups, strict=True)))
        inside += found.low <= 0 - 1 - 2 + 3 <= found.high
    assert 0.93 < inside / 2000 < 0.98


def test_no_interval_from_one_run_and_no_estimate_from_none():
    assert contrast((1, [1.0]), (-1, [0.5, 0.7])) == Estimate(pytest.approx(0.4))
    assert contrast((1, []), (-1, [0.5])) is None
    assert contrast((1, [2.0] * 3), (-1, [1.0] * 4)) == Estimate(1.0, 1.0, 1.0, 3)
    assert Estimate(0.4).sign == 0 and Estimate(0.4).words() == "+0.40, one run"
    assert pair_range([3.0, 5.0], [1.0, 4.0]) == (-1.0, 4.0)


@pytest.mark.parametrize(
    ("runs", "said"), [((1, 3), "+4.00, one run"), ((2, 3), "+4.00, fewer than three runs"), ((3, 3), "+4.00 (+")]
)
def test_a_verdict_takes_three_runs_a_side(runs: tuple[int, int], said: str):
    """Means 4 apart with spreads of 0.1: with three runs a side no other draw would turn them round."""
    values = ([5.0, 5.1, 4.9], [1.0, 1.1, 0.9])
    groups = [[*side[1:count], side[0]] if count != 2 else side[1:] for side, count in zip(values, runs, strict=True)]
    found = contrast((1, groups[0]), (-1, groups[1]))
    assert found.words().startswith(said) and found.sign == (min(runs) == 3) and found.runs == min(runs)
    assert bool(found.lack) == (found.low is None) == (min(runs) < 3)


@pytest.mark.parametrize("count", [0, 1, 4321, 10_000])
def test_the_interval_of_a_count_is_exact(count: int):
    from scipy.stats import binomtest

    truth = binomtest(count, 10_000).proportion_ci(method="exact")
    assert count_interval(count, 10_000) == pytest.approx((100 * truth.low, 100 * truth.high))


# --- without records -------------------------------------------------------------------------------------------------


def test_without_records_everything_says_not_run():
    words = (depth_gains.headline, depth.vra_words, depth_bounds.constants_words, depth_bounds.branch_words)
    assert all("not run" in say(VIEW) for say in words)
    tables = (depth_gains.gains_table, depth_gains.interaction_table, depth_curves.crossings_table, depth.claims,
              depth_bounds.constants_table, depth_bounds.branch_table, depth.published_table)  # fmt: skip
    for show in tables:
        assert "not run" in show(VIEW) and "nan" not in show(VIEW)
    assert all("not run" in table for table in depth.vra_tables(VIEW)) and len(depth.vra_tables(VIEW)) == 3
    assert depth.vra_figures(VIEW) == [] and depth_gains.gain_figure(VIEW) == depth_gains.ABSENT
    assert depth_curves.curve_figures(VIEW) == [depth_curves.NO_LOOKS]
    assert depth_curves.gradients(VIEW) == [depth_curves.NO_NORMS]
    (words,) = depth_tightness.tightness(VIEW)
    assert "**not run**" in words and "53.35 / 59.03 = 0.90 (stated by the authors)" in words
    assert depth.study_list().count("0 of ") == 7 and depth_runs.records() == []


def test_without_study_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(depth_runs, "STUDIES", tmp_path)
    assert depth_runs.studies() == [] and depth_runs.budgets() == {} and depth_runs.progress() == []


# --- the claim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [300, 0, -300])
@pytest.mark.parametrize("conventional", [300, 0, -300])
def test_whether_only_liresnet_gains(results: Path, linear: int, conventional: int):
    publish(results, gaining(liresnet=linear, resnet=conventional))
    signs = ((linear > 0) - (linear < 0), (conventional > 0) - (conventional < 0))
    said = depth_gains.ANSWERS[signs]
    headline = depth_gains.headline(VIEW)
    assert headline.count(f"{said}.**") == 2 and headline.count("no verdict from one run.**") == 1
    assert f"LiResNet {linear / 100:+.2f}" in headline and "runs of this page" not in headline
    word = {1: "gains", -1: "loses", 0: "cannot be told apart"}
    assert row(depth_gains.gains_table(VIEW), "18 epochs", "LiResNet")[5] == word[signs[0]]
    assert row(depth_gains.gains_table(VIEW), "2 epochs", "ResNet")[3:] == ["", "", "one run"]


@pytest.mark.parametrize(
    ("seeds", "answer", "ahead"),
    [
        (1, "no verdict from one run", "at depth 3 +0.00, one run; at depth 12 +3.00, one run."),
        (2, "no verdict from fewer than three runs",
         "at depth 3 +0.00, fewer than three runs; at depth 12 +3.00, fewer than three runs."),
        (3, "not contradicted: LiResNet gains, ResNet's gain cannot be told from none",
         "at depth 3 +0.00 (-0.23 to +0.23), cannot be told apart; at depth 12 +3.00 (+2.77 to +3.23), LiResNet ahead.",
         ),
    ],
)  # fmt: skip
def test_who_is_ahead_at_equal_depth_and_what_the_other_is(results: Path, seeds: int, answer: str, ahead: str):
    """LiResNet 3 points ahead at depth 12; every branch of the ResNets of 18 epochs shut, 15 of one seed and width."""
    for c in CELLS:
        if c.epochs == 18 and c.seed < seeds:
            branches = (1e-6,) * c.depth if c.family == "resnet" else ()
            write_record(made(c, gaining(liresnet=300)(c), branches=branches), results)
    line = next(text for text in depth_gains.headline(VIEW).splitlines() if text.startswith("- **18 epochs"))
    assert f"{answer}.**" in line and f"LiResNet less ResNet of equal depth and width: {ahead}" in line
    assert f"all runs together: 0 of {3 * seeds} at depth 3, 0 of {12 * seeds} at depth 12. So the ResNet" in line
    assert "has shut its residual branches, and none of the VRA at this budget is seen to come from" in line


def test_runs_of_unlike_number_give_no_verdict(results: Path):
    """Three seeds of everything but one: as while the runs are being made."""
    publish(
        results, lambda c: gaining(liresnet=300)(c) if (c.family, c.depth) != ("resnet", 12) or not c.seed else None
    )
    line = next(text for text in depth_gains.headline(VIEW).splitlines() if text.startswith("- **18 epochs"))
    assert "no verdict from one run.**" in line and "LiResNet +3.00 (+2.77 to +3.23); ResNet +0.00" not in line
    assert "LiResNet +3.00 (+2.77 to +3.23); ResNet -0.10, one run." in line
    assert "cannot be told apart; at depth 12 +3.10, one run." in line and "branches" not in line


@pytest.mark.parametrize(
    ("shallow", "deep", "said"),
    [
        ((0.1, 0.2, 0.3), (0.02,) * 5 + (0.001,) * 7, "9 of 9 at depth 3, 15 of 36 at depth 12.\n"),
        (
            (0.01, 0.0099),
            (0.001,) * 12,
            "3 of 6 at depth 3, 0 of 36 at depth 12; at depth 12 LiResNet is compared with",
        ),
    ],
)
def test_branches_that_are_open_in_part(results: Path, shallow, deep, said: str):
    for c in CELLS:
        if c.epochs == 18:
            branches = {3: shallow, 12: deep}[c.depth] if c.family == "resnet" else ()
            write_record(made(c, 4000, branches=branches), results)
    headline = depth_gains.headline(VIEW)
    assert f"all runs together: {said}" in headline and "has shut its residual branches" not in headline
    assert "open where it adds 0.01 or more" in headline


def test_it_can_only_hold_where_liresnet_gains_and_the_other_does_not():
    for (linear, conventional), text in depth_gains.ANSWERS.items():
        assert text.startswith("it holds") == (linear == 1 and conventional == -1)
        assert text.startswith("it does not hold") == (linear == -1 or conventional == 1)
    assert depth_gains.answer(None, Estimate(1.0, 0.5, 1.5)) == "not run"


def test_a_gain_has_its_interval_and_its_pairs(results: Path):
    publish(results, gaining(liresnet=100))
    found = row(depth_gains.gains_table(VIEW), "6 epochs", "LiResNet")
    low, high = (float(text) for text in found[3].split(" to "))
    assert found[2] == "+1.00" and found[4] == "+0.80 to +1.20"
    # Three seeds 0.1 apart each: standard error 0.1 * sqrt(2 / 3), four degrees of freedom.
    assert (low, high) == pytest.approx((1 - 2.7764 * 0.0816, 1 + 2.7764 * 0.0816), abs=0.006)


def test_one_missing_seed_is_said_and_does_not_stop_the_page(results: Path):
    lost = cell("liresnet", 12, 18, 2).run_id()
    publish(results, lambda c: None if c.run_id() == lost else gaining(liresnet=300)(c))
    assert "2 of 3 seeds" in row(depth.vra_tables(VIEW)[2], "LiResNet")[2]
    assert f"{len(CELLS) - 1} of {len(CELLS)} runs of this page are published" in depth_gains.headline(VIEW)
    assert "depth-liresnet.yaml`: 11 of 12 runs published" in depth.study_list()
    found = row(depth_gains.gains_table(VIEW), "18 epochs", "LiResNet")
    assert found[3] == "" and found[5] == "fewer than three runs"
    assert row(depth_gains.gains_table(VIEW), "6 epochs", "LiResNet")[5] == "gains"
    assert "Highest: LiResNet at depth 12 (2 runs), 43.05 %" in depth.vra_words(VIEW)


def test_the_highest_cell_is_named_where_there_are_two(results: Path):
    def line() -> str:
        return next(text for text in depth.vra_words(VIEW).splitlines() if text.startswith("- 18 epochs"))

    assert "Highest" not in line()
    write_record(made(cell("liresnet", 3, 18), 5000), results)
    assert line().endswith("1 of 12 runs.")
    write_record(made(cell("resnet", 3, 18), 5000), results)
    assert line().endswith("Highest: LiResNet at depth 3 (one run) and ResNet at depth 3 (one run), 50.00 %.")
    for seed in range(3):
        write_record(made(cell("resnet", 12, 18, seed), 5100), results)
    assert line().endswith("Highest: ResNet at depth 12, 51.00 %.")


def test_another_radius_is_another_table(results: Path):
    publish(results, steady)
    assert "41.00 %" not in depth.vra_tables(View(radius="72/255"))[1]
    assert "1.00 % (1.00 to 1.00)" in row(depth.vra_tables(View(radius="72/255"))[1], "LiResNet")[1]
    assert "not run" in row(depth.vra_tables(View(guarantee="real"))[1], "LiResNet")[1]


def test_tables_and_figures_of_accuracy(results: Path):
    publish(results, gaining(liresnet=100, convnet=-500))
    first, short, long = depth.vra_tables(VIEW)
    assert row(short, "LiResNet") == ["LiResNet", "40.10 % (40.00 to 40.20)", "41.10 % (41.00 to 41.20)",
                                      "41.00 % [40.0 to 42.0]"]  # fmt: skip
    assert row(first, "ResNet")[1].startswith("40.00 % [39.0") and "depth 24" not in long
    drawn = {figure.name: lines(figure) for figure in depth.vra_figures(VIEW)}
    assert set(drawn) == {"depth-2", "depth-6", "depth-18"} and len(drawn["depth-18"]) == 12
    assert {"epochs": "6.0", "family": "convnet", "depth": "12", "vra_percent": "35.0000"} in drawn["depth-6"]
    gains = lines(depth_gains.gain_figure(VIEW))
    assert {line["family"] for line in gains} == set(depth_runs.NAMES) and len(gains) == 4 + 3 + 2
    assert "Highest: LiResNet at depth 12, 41.10 %" in depth.vra_words(VIEW)
    claims = depth.claims(VIEW)
    assert "LiResNet ahead (+1.00) at depth 12" in claims and "-0.10 points against depth 12, one run" in claims
    assert "cannot be told apart (+0.00) at depth 3" in claims and "depth 12 35.00" in claims


def test_a_network_at_chance_is_named(results: Path):
    for c in CELLS:
        shut = c.family == "convnet" and c.depth > 12
        write_record(made(c, 1000 if shut else 4000, 1000 if shut else 8000), results)
    assert "at chance: ConvNet at depth 24" in depth.vra_words(VIEW)
    assert "depth 18 at chance" in depth.claims(VIEW) and "depth 12 at chance" not in depth.claims(VIEW)


def test_a_run_that_was_stopped_is_shown_as_such(results: Path):
    c = cell("convnet", 24, 6)
    write_record(make_record(c, status="stopped", epochs=2), results)
    assert row(depth.vra_tables(VIEW)[1], "ConvNet")[3] == "stopped after 99,840 images"
    assert depth_runs.records() == [] and "stopped after" in depth.claims(VIEW)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_the_notebooks_cells_run(results: Path, full: bool):
    if full:
        publish(results, gaining(liresnet=100))
        for c in (c for c in CELLS if c.family == "resnet"):
            write_record(made(c, 4000, branches=(0.001, 0.2 if c.branch_scale else 0.002)), results)
        tightness(results, lambda c: 0.8)
    notebook = json.loads((ROOT / "notebooks/depth_scaling.ipynb").read_text())
    scope = {"display": lambda *parts: shown.extend(parts)}
    shown: list = []
    for part in notebook["cells"]:
        if part["cell_type"] == "code":
            exec("".join(part["source"]), scope)
    assert any(isinstance(part, Figure) for part in shown) == full
    assert all(isinstance(part, Figure) or hasattr(part, "_repr_markdown_") for part in shown)
