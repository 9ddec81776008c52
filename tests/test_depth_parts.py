"""What the page on depth says of crossings, gradients, branches, constants and tightness."""

from pathlib import Path

import pytest
import torch
from depth_made import CELLS, VIEW, cell, curve_file, lines, made, publish, row, steady, tightness
from made import make_record
from torch import nn

from benchmarks import tightness_by_depth
from lipcert.config import TrainConfig
from lipcert.layers import MinMax
from lipcert.models import save_network
from lipcert.paths import ROOT
from lipcert.provenance import tensors_sha256
from lipcert.records import write_record
from lipcert.report import depth, depth_bounds, depth_curves, depth_gains, depth_runs, depth_tightness
from lipcert.report.checks import load_checks, write_check
from lipcert.report.intervals import Estimate
from lipcert.report.svg import canvas


@pytest.fixture(autouse=True)
def published_numbers(results: Path):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


# --- crossings -------------------------------------------------------------------------------------------------------

UP, DOWN, OPEN, ONE = Estimate(1, 0.5, 1.5), Estimate(-1, -1.5, -0.5), Estimate(0.1, -1, 1), Estimate(1.0)
TWO = Estimate(1.0, runs=2)


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ((DOWN, OPEN, UP), "crosses between 100 and 300 images, upwards"),
        ((UP, DOWN, DOWN), "crosses between 100 and 200 images, downwards"),
        ((UP, DOWN, UP), "crosses between 200 and 300 images, upwards"),
        ((UP, UP), "above 0 throughout, no crossing"),
        ((OPEN, DOWN), "below 0 after 200 images, not to be told from 0 elsewhere"),
        ((OPEN, OPEN), "cannot be told from 0 anywhere"),
        ((UP, ONE), "one run, so no crossing is claimed"),
        ((UP, TWO), "fewer than three runs, so no crossing is claimed"),
        ((TWO, ONE), "one run, so no crossing is claimed"),
        ((UP, None), "not run"),
        ((), "not run"),
    ],
)
def test_where_a_difference_changes_its_sign(series, said: str):
    assert depth_gains.crossing([(100 * n, found) for n, found in enumerate(series, 1)]) == said


def test_an_order_that_turns_with_the_budget(results: Path):
    """Conventional ahead after 6 epochs, LiResNet after 18, at both depths; its gain grows, the other's stays."""

    def count(c: TrainConfig) -> int:
        if c.family != "liresnet":
            return steady(c)
        return steady(c) + (-200 if c.epochs < 18 else 200) + (100 if c.epochs == 18 and c.depth == 12 else 0)

    publish(results, count)
    words, table = depth_gains.interaction_words(VIEW), depth_gains.interaction_table(VIEW)
    for n in (3, 12):
        assert f"depth {n}, 6 against 18 epochs: crosses between 299,520 and 898,560 images, upwards" in words
    assert row(table, "LiResNet less ResNet, depth 3", "6 epochs")[4] == "ResNet ahead"
    assert row(table, "LiResNet less ResNet, depth 12", "18 epochs")[2:] == [
        "+3.00",
        "+2.77 to +3.23",
        "LiResNet ahead",
    ]
    assert row(table, "gain of LiResNet", "18 less 6 epochs")[2::2] == ["+1.00", "grows"]
    assert row(table, "gain of ResNet", "18 less 6 epochs")[2::2] == ["+0.00", "cannot be told apart"]
    assert row(table, "gain of LiResNet less that of ResNet", "18 less 6 epochs")[4] == "grows"
    assert "Conventional ResNets" in (claims := depth.claims(VIEW)) and "ResNet ahead (-2.00) at depth 3" in claims


def test_looks_on_the_way(results: Path):
    for c in CELLS:
        if c.epochs == 18 and c.family != "convnet":
            ahead = {"liresnet": (-300, 300, 500), "resnet": (0, 0, 0)}[c.family]
            first, second, last = (3000 + 10 * c.seed + 500 * n + part for n, part in enumerate(ahead))
            write_record(made(c, last, looks=[(1 / 3, first), (2 / 3, second)]), results)
    (figure,) = depth_curves.curve_figures(VIEW)
    assert figure.name == "depth-curve-18" and len(lines(figure)) == 4 * 3 * 3
    assert {"epochs": "18.0", "family": "resnet", "depth": "3", "seed": "1", "images": "299520",
            "vra_percent": "30.1000"} in lines(figure)  # fmt: skip
    found = row(depth_curves.crossings_table(VIEW), "18 epochs", "LiResNet less ResNet, depth 3")
    assert found[2] == "-3.00, +3.00, +5.00"
    assert found[3] == "crosses between 299,520 and 599,040 images, upwards"
    assert found[4] == "not run"
    assert row(depth_curves.crossings_table(VIEW), "18 epochs", "gain of ResNet")[3] == "cannot be told from 0 anywhere"
    assert row(depth_curves.crossings_table(VIEW), "6 epochs", "all")[2] == "not run"
    (figure,) = depth_curves.difference_figures(VIEW)
    assert figure.name == "depth-difference-18" and len(lines(figure)) == 4 * 3
    assert next(line["points"] for line in lines(figure) if line["difference"].endswith("depth 12")) == "-3.0000"


def test_a_figure_shows_the_residual_networks_and_says_what_lies_below():
    _, axes = canvas(4, 3)
    depth_gains.focus(axes, "title", {"LiResNet": [40.0, 41.0], "ResNet": [42.0], "ConvNet, depth 12": [41.0, 10.04]})
    assert axes.get_ylim() == pytest.approx((39.7, 42.24))
    assert axes.get_title() == "title\nbelow the frame: ConvNet, depth 12 10.0"
    depth_gains.focus(axes, "title", {"ConvNet": [10.0, 30.0]})
    assert axes.get_ylim() == pytest.approx((7.0, 32.4)) and axes.get_title() == "title"


def test_the_last_change_of_lead_on_training_batches(results: Path):
    """Two straight lines that cross at 6,000 of 10,000 images; the average over 5 of 100 rows lags by two."""
    images = [100 * n for n in range(1, 101)]
    flat = [{"images": n, "train_vra_estimated": 0.5, "lipschitz_estimate": 3} for n in images]
    rising = [{"images": n, "train_vra_estimated": 0.44 + n / 1e5 + (n % 200) / 1e5, "lipschitz_estimate": 3}
              for n in images]  # fmt: skip
    pair = [cell("liresnet", 3, 2), cell("resnet", 3, 2)]
    for c, rows in zip(pair, (rising, flat), strict=True):
        write_record(made(c, 4000, curve=curve_file(results, c, rows)), results)
    runs = {run.config.family: run for run in depth_runs.records()}
    change, sign = depth_curves.last_change(runs["liresnet"], runs["resnet"])
    assert sign == 1 and 6000 <= change <= 6300
    assert depth_curves.last_change(runs["resnet"], runs["liresnet"]) == (change, -1)
    assert depth_curves.last_change(runs["resnet"], runs["resnet"]) == (0.0, 1)
    found = row(depth_curves.crossings_table(VIEW), "2 epochs", "LiResNet less ResNet, depth 3")
    assert found[3] == "no looks on the way" and found[4] == f"above 0 from {change:,.0f} images on (one run each)"


# --- gradients, branches, constants ----------------------------------------------------------------------------------


def test_gradient_norms(results: Path):
    for c in (cell("liresnet", 3, 6), cell("liresnet", 12, 6), cell("resnet", 3, 6)):
        norms = [2.0 * (4 if c.depth == 12 else 1)] * 30 + [float("nan") if c.family == "resnet" else 5.0] * 10
        rows = [{"images": 100 * n, "lipschitz_estimate": 3, "gradient_norm": norm} for n, norm in enumerate(norms, 1)]
        write_record(made(c, 4000, curve=curve_file(results, c, rows)), results)
    old = cell("liresnet", 3, 2)
    rows = [{"images": 100, "train_vra_estimated": 0.1, "lipschitz_estimate": 3}]
    write_record(made(old, 4000, curve=curve_file(results, old, rows)), results)
    table = depth_curves.gradient_table(VIEW)
    assert row(table, "6 epochs", "LiResNet, depth 3")[2:] == ["1", "2", "5", "25 %"]
    assert row(table, "6 epochs", "LiResNet, depth 12")[2:] == ["1", "8", "8", "100 %"]
    assert row(table, "6 epochs", "ResNet, depth 3")[2:] == ["1", "2", "2", "0 %"] and "2 epochs" not in table
    assert "multiplied: LiResNet 4 times; gradients are clipped at 3" in depth_curves.gradient_words(VIEW)
    assert len(depth_curves.gradients(VIEW)) == 3
    (figure,) = depth_curves.gradient_figures(VIEW)
    assert {"epochs": "6.0", "family": "liresnet", "depth": "12", "images": "200", "gradient_norm": "8"} in lines(
        figure
    )


def test_the_clip_is_said_of_a_budget_with_one_depth_too(results: Path):
    c = cell("liresnet", 3, 18)
    rows = [{"images": 100 * n, "lipschitz_estimate": 3, "gradient_norm": 1.0} for n in range(1, 41)]
    write_record(made(c, 4000, curve=curve_file(results, c, rows)), results)
    assert depth_curves.gradient_words(VIEW).endswith("In the budget of 18 epochs gradients are clipped at 3.")


def test_a_smoothed_curve_is_a_geometric_mean():
    runs = [[(n, 1.0) for n in range(41)], [(n, 100.0) for n in range(1, 41)]]
    assert depth_curves.smoothed(runs) == [(n, pytest.approx(10.0)) for n in range(2, 41)]


def test_branches_that_shut_themselves(results: Path):
    for c in CELLS:
        branches = () if c.family != "resnet" else (0.1, 0.2, 0.3) if c.depth == 3 else (0.001, 0.002, 0.5)
        rows = [{"images": n, "lipschitz_estimate": v, "train_vra_estimated": 0.1} for n, v in ((1, 9000.0), (2, 3.0))]
        write_record(made(c, 4000, branches=branches, curve=curve_file(results, c, rows)), results)
    table, words = depth_bounds.branch_table(VIEW), depth_bounds.branch_words(VIEW)
    assert row(table, "18 epochs", "ResNet, depth 3")[2:] == [
        "9 of 9", "0.2 (0.1 to 0.3)", "1.717 (1.717 to 1.717)", "9e+03, 3",
    ]  # fmt: skip
    assert row(table, "18 epochs", "ResNet, depth 12")[2:4] == ["3 of 9", "0.002 (0.001 to 0.5)"]
    assert "18 epochs: 9 of 9 at depth 3 (half add less than 0.2); 3 of 9 at depth 12" in words
    assert "multiply the bound by 1.51 at depth 12, those of LiResNet by 1.00" in words
    shut = words.partition("More than half of the branches shut themselves at ")[2]
    assert "depth 12 after 18 epochs" in shut and "depth 24 after 6 epochs" in shut and "depth 3 " not in shut
    assert row(depth_bounds.constants_table(VIEW), "18 epochs", "ResNet, depth 3")[3] == "1.717"


@pytest.mark.parametrize(("shut", "most"), [(6, False), (7, True)])
def test_half_of_the_branches_is_not_more_than_half(results: Path, shut: int, most: bool):
    branches = (0.001,) * shut + (0.012,) * (12 - shut)
    write_record(made(cell("resnet", 12, 18), 4000, branches=branches), results)
    assert ("More than half of the branches shut themselves" in depth_bounds.branch_words(VIEW)) == most


def test_branches_that_stay_open(results: Path):
    publish(results, steady, branches=(0.1, 0.2))
    assert "Nowhere at depth 12 or beyond did more than half of them shut" in depth_bounds.branch_words(VIEW)
    began_shut = sum(c.family == "resnet" and not c.branch_scale for c in CELLS)
    assert depth_bounds.opened_from_shut(VIEW) == 2 * began_shut


def test_what_an_estimate_would_have_claimed(results: Path):
    publish(results, steady)
    found = row(depth_bounds.constants_table(VIEW), "18 epochs", "LiResNet, depth 12")
    assert found[2:] == ["2.01 (2.01 to 2.01)", "1.000", "5.26 %", "+3 to +3"]
    assert "up to 3 of 10,000 images more than are certified, 0.03 points" in depth_bounds.constants_words(VIEW)
    assert "LiResNet 5.26 and 5.26 % (18 epochs)" in depth_bounds.constants_words(VIEW)


# --- tightness -------------------------------------------------------------------------------------------------------


def test_tightness_by_budget(results: Path):
    tightness(results, lambda c: 0.9 if c.family == "resnet" else 0.7 if c.family == "liresnet" else None)
    table, words = depth_tightness.tightness_table(VIEW), depth_tightness.tightness_words(VIEW)
    seeds = "2.80 / 4.00 = 0.70 (0.70 to 0.70), 3 networks"
    assert row(table, "LiResNet, 18 epochs") == ["LiResNet, 18 epochs", seeds, "", seeds, "", ""]
    assert row(table, "ResNet, 6 epochs")[-1] == "3.60 / 4.00 = 0.90" and "18 epochs: LiResNet 0.70 at depth 3" in words
    assert "23.93 / 101.4 = 0.24 (stated by the authors)" in words and "**not run**" not in words
    assert words.count("ResNet uses more of its bound") == 2 and words.count("that is one network each") == 1
    figures = {figure.name: figure for figure in depth_tightness.tightness_figures(VIEW)}
    assert len(lines(figures["depth-tightness-18"])) == 12 and "24" in figures["depth-tightness-6"].csv


@pytest.mark.parametrize(("seeds", "said"), [(1, "one network each"), (2, "fewer than three networks")])
def test_tightness_of_few_networks_orders_nothing(results: Path, seeds: int, said: str):
    tightness(results, lambda c: (0.9 if c.family == "resnet" else 0.7) if c.epochs == 18 and c.seed < seeds else None)
    assert f"At depth 12 that is {said}." in depth_tightness.tightness_words(VIEW)


def test_a_network_trained_down_to_a_constant_has_no_ratio(results: Path):
    tightness(results, lambda c: 0.7 if c.family == "liresnet" else 1e-17 if c.family == "convnet" else None)
    table, words = depth_tightness.tightness_table(VIEW), depth_tightness.tightness_words(VIEW)
    assert row(table, "ConvNet, 6 epochs")[1:] == ["flat", "", "flat", "", "flat"]
    assert "ConvNet" not in words and words.count("*Flat*") == 1
    assert not any("ConvNet" in figure.alt for figure in depth_tightness.tightness_figures(VIEW))


def test_tightness_of_the_earlier_runs_alone(results: Path):
    tightness(results, lambda c: 0.5 if c.epochs == 2 else None, goal="tightness")
    words = depth_tightness.tightness_words(VIEW)
    assert "Of the longer budgets: **not run**" in words and "depth-liresnet.yaml" in words
    assert [figure.name for figure in depth_tightness.tightness_figures(VIEW)] == ["depth-tightness-2"]


@pytest.fixture
def kept(results: Path) -> TrainConfig:
    """A run of digits whose network is kept, with its record."""
    config = TrainConfig(depth=1, width=2, epochs=1)
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), MinMax(), nn.Flatten(), nn.Linear(128, 10)).eval()
    card = {
        "run": config.run_id(), "dataset": "digits", "classes": None, "class_seed": 0,
        "class_names": list("0123456789"), "input_shape": [1, 8, 8], "radius": "36/255", "family": "liresnet",
        "depth": 1, "width": 2,
    }  # fmt: skip
    save_network(chain, results / "local/models" / f"{config.run_id()}.safetensors", card)
    record = make_record(config, epochs=1, train=1437, images=360, nominal=(300, 200, 100), clean=340)
    model = record.model.model_copy(update={"weights_sha256": tensors_sha256(chain.state_dict())})
    write_record(record.model_copy(update={"model": model}), results / "local")
    return config


@pytest.mark.slow
def test_the_check_takes_the_networks_that_were_kept(results: Path, kept: TrainConfig):
    lost = kept.model_copy(update={"seed": 1})
    cells = {c.run_id(): c for c in (kept, lost)}
    tightness_by_depth.measure_studies(cells, starts=8, rounds=1, effort="tight", device="cpu")
    (check,) = load_checks(results / "local")
    (line,) = (dict(zip(check.rows[0], values, strict=True)) for values in check.rows[1:])
    assert check.goal == depth_tightness.GOAL and line["run"] == kept.run_id() and 0.2 < float(line["ratio"]) <= 1
    assert check.verdict == "in part" and "1 networks of 2 were not kept" in check.measured
    assert "liresnet at depth 1 after 1 epochs" in check.measured


def test_the_check_keeps_what_it_measured_of_networks_that_are_gone(results: Path, kept: TrainConfig):
    """Unless the run was made anew since, or the earlier search was another one."""
    gone, anew = (kept.model_copy(update={"seed": n}) for n in (1, 2))
    cells = {c.run_id(): c for c in (gone, anew, kept)}
    tightness_by_depth.measure_studies({kept.run_id(): kept}, starts=8, rounds=1, effort="tight", device="cpu")
    (first,) = load_checks(results / "local")
    row = first.rows[1]
    others = tuple((c.run_id(), *row[1:]) for c in (gone, anew))
    told = {"command": "x --starts 8 --rounds 1 --effort tight", "commit": "abcdefg12"}
    told |= {"rows": (first.rows[0], *others), "finished": "2026-01-02T00:00:00+00:00"}
    write_check(first.model_copy(update=told), results)
    for config, day in ((gone, "01"), (anew, "03")):
        record = make_record(config, epochs=1, train=1437, images=360, nominal=(300, 200, 100), clean=340)
        stamp = record.provenance.model_copy(update={"finished": f"2026-01-{day}T00:00:00+00:00"})
        write_record(record.model_copy(update={"provenance": stamp}), results)
    tightness_by_depth.measure_studies(cells, starts=8, rounds=1, effort="tight", device="cpu")
    (check,) = load_checks(results / "local")
    assert [line[0] for line in check.rows[1:]] == [gone.run_id(), kept.run_id()]
    assert check.rows[1] == others[0] and check.numbers["earlier"] == 1 and check.verdict == "in part"
    assert "1 as measured before, by commit abcdefg" in check.measured
    assert "1 networks of 3 were not kept" in check.measured
    tightness_by_depth.measure_studies(cells, starts=9, rounds=1, effort="tight", device="cpu")
    (check,) = load_checks(results / "local")
    assert [line[0] for line in check.rows[1:]] == [kept.run_id()]


def test_the_check_refuses_other_weights_and_no_networks(results: Path, kept: TrainConfig):
    record = make_record(kept, epochs=1, train=1437, images=360, nominal=(300, 200, 100), clean=340)
    write_record(record, results)
    with pytest.raises(ValueError, match="holds other weights"):
        tightness_by_depth.measure_studies({kept.run_id(): kept}, 8, 1, "tight", "cpu")
    lost = kept.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match="no network of 1 runs is kept"):
        tightness_by_depth.measure_studies({lost.run_id(): lost}, 8, 1, "tight", "cpu")


def test_the_command_names_study_files_and_their_first_seed():
    files = depth_tightness.COMMAND.split("--studies ")[1].split()
    cells = tightness_by_depth.cells_of([ROOT / name for name in files], [0])
    assert len(cells) == 4 + 1 + 4 + 1 + 3 and set(cells) <= {c.run_id() for c in CELLS}
