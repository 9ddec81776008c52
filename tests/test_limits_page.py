"""The page on limits: fits against other ways to make them, and words from made-up records with counts a test knows."""

import csv
import io
import json
import math

import pytest
import torch
from limit_cells import PLACES, cell, curve
from made import make_record
from torch.utils.flop_counter import FlopCounterMode

from lipcert.config import TrainConfig, load_config
from lipcert.models import build_model
from lipcert.paths import ROOT, results_dir
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import limits, limits_distances, limits_pictures, limits_words
from lipcert.report.checks import Check, write_check
from lipcert.report.limits import Cell, Found, ceiling
from lipcert.report.operations import forward_operations
from lipcert.report.published import preset_model, presets
from lipcert.report.svg import Figure

PRESETS = [each for each in presets() if (each.config.family, each.config.dataset) == ("liresnet", "cifar10")]
BASE = {"dataset": "cifar10", "batch": 250, "optimizer": "muon", "lr": 0.011, "radius_end": 2.0}


@pytest.fixture(autouse=True)
def published_numbers(results):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


def found_of(cells: list[Cell], others: tuple[Cell, ...] = ()) -> Found:
    radius = Radius("36/255")
    return Found("cifar10", radius, "nominal", tuple(cells), others, tuple(limits.published("cifar10", radius)))


def run(vra: int, clean: int = 8000, epochs: int = 2, **settings) -> Record:
    """A finished run with that many certified test images of 10,000."""
    config = TrainConfig(**BASE | {"epochs": epochs} | settings)
    return make_record(config, (vra, 100, 10), clean, epochs=epochs)


def write(*records: Record) -> None:
    for record in records:
        write_record(record, results_dir())


def page(found: Found) -> str:
    """Everything the notebook shows."""
    shown = (
        limits_words.headline(found), limits_words.cells_table(found), limits_words.cells_words(found),
        limits_words.fit_table(found), limits_pictures.scaling_figure(found), limits_words.fit_words(found),
        limits_words.published_table(found), limits_words.published_words(found), limits_distances.distances_table(),
        limits_distances.distances_words(found.dataset), limits_distances.other_words(),
        limits_distances.bound_table(found), limits_pictures.bound_figure(found), limits_distances.bound_words(found),
        limits_words.answer(found), limits_distances.cost_words(),
    )  # fmt: skip
    return "\n".join(part._repr_html_() if isinstance(part, Figure) else str(part) for part in shown)


def rows_of(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


# --- which runs -------------------------------------------------------------------------------------------------------


def test_what_no_network_has_is_refused():
    for wrong, says in (
        (("digits", "36/255", "executed"), "dataset='digits': must be one of mnist, cifar10, cifar100"),
        (("cifar10", "36/255", "estimated"), "guarantee='estimated': must be one of executed, real, nominal"),
        (("cifar10", "36", "executed"), "radius='36': must be at most 10"),
    ):
        with pytest.raises(ValueError, match=says):
            limits.gather(*wrong)


def test_seeds_are_one_cell_and_size_and_length_make_others():
    write(run(4000, seed=0), run(4200, seed=1), run(4500, width=64), run(4600, depth=12), run(4700, epochs=4))
    found = limits.gather("cifar10", "36/255", "nominal")
    assert len(found.fitted) == 4 and not found.others
    both = next(each for each in found.fitted if len(each.runs) == 2)
    assert both.shares == (40.0, 42.0) and both.vra == 41.0 and both.images == 100_000
    assert both.operations == 3 * forward_operations(both.runs[0].config) * 100_000
    assert [each.operations for each in found.fitted] == sorted(each.operations for each in found.fitted)


def test_the_recipe_with_most_cells_is_fitted_and_crops_go_with_the_length():
    write(run(4000), run(4500, width=64, crop=4), run(5000, epochs=4, snapshots=8, kernels="native"))
    write(run(3000, optimizer="adamw", epochs=9), run(3100, optimizer="adamw", depth=12, epochs=9), run(2000, lr=0.1))
    found = limits.gather("cifar10", "36/255", "nominal")
    assert sorted(each.vra for each in found.fitted) == [40, 45, 50]
    assert sorted(each.vra for each in found.others) == [20, 30, 31]
    assert "The fitted recipe is EMMA, muon at 0.011" in limits_words.cells_words(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"family": "resnet"}, {"family": "convnet"}, {"dataset": "cifar100"}, {"classes": 5}, {"radius": "72/255"},
        {"generated": "more.npz"}, {"epochs": 0},
    ],
)  # fmt: skip
def test_runs_of_something_else_are_left_out(settings):
    if settings == {"epochs": 0}:
        write(make_record(TrainConfig(**BASE, epochs=2), epochs=0))
    else:
        write(run(4000, **settings))
    found = limits.gather("cifar10", "36/255", "nominal")
    assert not found.fitted and "**not run**" in limits_words.headline(found) and "nan" not in page(found)


def test_another_guarantee_than_the_records_have_finds_nothing():
    write(run(4000))
    assert not limits.gather("cifar10", "36/255", "executed").fitted


def test_training_accuracy_over_the_end_of_the_curve(results):
    (results / "curves").mkdir()
    lines = [f"{images},{0.5 if images < 950 else 0.9}" for images in range(10, 1001, 10)]
    (results / "curves/c.csv").write_text("\n".join(["images,train_accuracy", *lines]) + "\n")
    record = run(4000)
    write(record.model_copy(update={"training": record.training.model_copy(update={"curve": "curves/c.csv"})}))
    (only,) = limits.gather("cifar10", "36/255", "nominal").fitted
    assert only.gap == pytest.approx(90 - 80)
    words = limits_words.cells_words(limits.gather("cifar10", "36/255", "nominal"))
    assert "right on 10.0 points more" in words and "further images would bring" in words


# --- what the words make of a fit -------------------------------------------------------------------------------------


def test_growth_without_an_end_is_not_said_to_flatten():
    cells = [cell(100 / (1 + math.exp(0.4 - 0.12 * k)) + (-1) ** k * 0.5, 1e12 * 2**k) for k in range(10)]
    fit = ceiling(cells)
    assert not fit.flattens and fit.top.high == 100 and fit.gain(cells[-1].operations).low > 0
    words = limits_words.headline(found_of(cells))
    assert fit.gain(cells[-1].operations).low >= limits_words.NOTICED
    assert "still brings 0.25 points of VRA or more at the largest run" in words and "would bring +" in words
    assert f"reached is refused as a ceiling, {fit.top.low:.1f} to 100 % are not" in words


def test_growth_too_small_to_notice_is_said_to_be():
    cells = [cell(99 + 0.15 * k + (-1) ** k * 0.001, 1e12 * 2**k) for k in range(6)]
    fit = ceiling(cells)
    assert not fit.flattens and fit.gain(cells[-1].operations).high < limits_words.NOTICED
    words = limits_words.headline(found_of(cells))
    assert "brings less than 0.25 points of VRA at the largest run" in words and "do not show where VRA ends" in words


def test_a_ceiling_is_refused_where_the_curve_goes_on_without_scatter():
    cells = [cell(30 + 4 * k + (-1) ** k * 0.01, 1e12 * 2**k) for k in range(7)]
    fit = ceiling(cells)
    best = cells[-1].vra
    assert not fit.flattens and fit.top.low > best + 0.1
    said = f"the {best:.1f} % that was reached is refused as a ceiling, {fit.top.low:.1f} to 100 % are not"
    assert said in limits_words.headline(found_of(cells)) and said in limits_words.fit_words(found_of(cells))


def test_runs_that_flatten_are_said_to():
    cells = curve(0.6, 0.3, 0.08, PLACES)
    words = limits_words.headline(found_of(cells)) + limits_words.fit_words(found_of(cells))
    assert "flattens within reach of these runs" in words and "without a ceiling below 100 % is refused" in words


def test_images_that_go_with_parameters_are_not_told_apart():
    assert "cannot be told apart" in limits_words.fit_words(found_of(curve(0.7, 0.2, 0.15, PLACES)))


def test_scatter_decides_nothing_and_says_so():
    values = (50, 40, 55, 42, 52, 41)
    cells = [cell(v, 1e12 * 2**k) for k, v in enumerate(values)]
    words = limits_words.headline(found_of(cells)) + limits_words.fit_words(found_of(cells))
    assert "decide neither whether a doubling of operations still brings 0.25 points" in words
    assert "6 networks do not decide" in words and ceiling(cells).gain(cells[-1].operations).low >= 0
    assert "cannot fall, so no gain below 0 is in it" in words
    assert ceiling(cells).top.low == pytest.approx(55)
    assert "no ceiling between the 55.0 % that was reached and 100 % is refused" in words


def test_too_few_cells_are_not_fitted():
    words = page(found_of([cell(40 + k, 1e12 * 4**k) for k in range(4)]))
    assert "4 networks of one recipe: too few for a fit" in words and "these networks cannot tell" in words


# --- published numbers ------------------------------------------------------------------------------------------------


def test_published_numbers_of_the_family_and_what_they_take():
    found = {each.row.id: each for each in limits.published("cifar10", Radius("36/255"))}
    v1 = found["liresnet-arxiv-v1_liresnet-l18w256_cifar10_l2_36-255_vra"]
    assert v1.images == 800 * 195 * 256 and v1.row.value == "65.1" and not v1.generated
    ddpm = found["liresnet-neurips-2023_liresnet-l12w512_cifar10_ddpm_l2_36-255_vra"]
    assert ddpm.generated and ddpm.images == 800 * 195 * 1024
    assert not [each for each in limits.published("cifar10", Radius("1/2"))]
    table = limits_words.published_table(found_of([]))
    assert table.count("\n") == 2 + len(found) and "66.9" in table and "70.1" in table


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.path.stem)
def test_operations_of_published_networks_are_nearly_those_that_torch_counts(preset):
    """The count knows one neck; those of generations 1 and 2 are a small part of networks of this size."""
    with torch.device("meta"):
        network = build_model(preset_model(preset.config))

    def at(batch: int) -> int:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(batch, 3, 32, 32))
        return counter.get_total_flops()

    assert forward_operations(preset.config) == pytest.approx(at(2) - at(1), rel=0.02)


def test_the_way_from_our_largest_run_to_the_published_ones():
    cells = curve(0.6, 0.3, 0.08, PLACES)
    words = limits_words.published_words(found_of(cells))
    best = max((p for p in found_of(cells).published if not p.generated), key=lambda p: float(p.row.value))
    mean = (float(best.row.value) - cells[-1].vra) / math.log2(best.operations / 1e16)
    assert f"{mean:+.2f} points for each doubling" in words and "gain more on the way" in words
    assert "and 4.0 times the operations" in words and f"would bring {2 * mean:+.1f} at that rate" in words
    steep = found_of([cell(30 + 4 * k + (-1) ** k * 0.1, 1e12 * 2**k) for k in range(7)])
    assert "bends in between" in limits_words.published_words(steep)
    assert "takes more operations" in limits_words.published_words(found_of([cell(60, 1e25)]))


# --- distances --------------------------------------------------------------------------------------------------------


def distances_check(lost: dict[str, tuple[int, int]], smallest: float = 3.6, twice: int = 0) -> None:
    numbers: dict[str, float | int | str] = {"cifar10; images": 10_000}
    for norm in ("l2", "linf"):
        for pair in ("test", "train"):
            shown = {"smallest": smallest, "1 %": 5.0, "10 %": 6.0, "median": 8.0, "largest": 20.0}
            numbers |= {f"cifar10; {norm}; {pair}; {what}": value for what, value in shown.items()}
            numbers[f"cifar10; {norm}; {pair}; pair"] = f"test 1 (cat), {pair} 2 (dog)"
    for what in ("test", "train", "across"):
        numbers[f"cifar10; identical; two labels, {what}"] = twice
    for radius, ends in lost.items():
        keys = [f"cifar10; l2; lost at {radius}; {end}" for end in ("at least", "at most")]
        numbers |= dict(zip(keys, ends, strict=True))
    check = Check(
        goal="distances", title="t", target="t", measured="m", verdict="met", numbers=numbers, seconds=200,
        commit="a" * 40, command="python -m benchmarks.distances", dirty=False, versions={},
        finished="2030-01-02T03:04", hardware={"processor": "abacus", "cores": 2, "threads": 1},
    )  # fmt: skip
    write_check(check, results_dir())


LOST = {"36/255": (0, 0), "1.8": (1, 1), "2.4": (150, 160), "1": (0, 0), "3.1": (1200, 1500)}


def test_bounds_are_read_in_the_order_of_their_radii():
    assert limits_distances.bounds("cifar10", "l2") == [] and limits_distances.geometry(found_of([])).startswith(
        "The dis"
    )
    distances_check(LOST)
    found = limits_distances.bounds("cifar10", "l2")
    assert [str(bound.radius) for bound in found] == ["36/255", "1", "1.8", "2.4", "3.1"]
    assert [bound.above for bound in found] == [100, 100, 99.99, 98.5, 88] and found[-1].reached == 85
    assert limits_distances.begins("cifar10", "l2") == 1.8


def test_a_vacuous_bound_is_called_vacuous():
    distances_check(LOST)
    words = limits_distances.bound_words(found_of([]))
    assert "At 36/255 the bound is 100 %: it is vacuous." in words and "12.7 times 36/255" in words
    assert "Below 99 % the bound is found at radius 2.4 (98.5 %). Below 90 % the bound is found at radius 3.1" in words
    assert "rule out nothing at 36/255" in limits_distances.geometry(found_of([]))
    assert "No set has the same image with two labels." in limits_distances.distances_words("cifar10")


def test_images_with_two_labels_are_lost_to_every_classifier():
    distances_check(LOST | {"0": (1, 1), "36/255": (1, 1), "1": (1, 1)}, smallest=0.0, twice=1)
    words = limits_distances.bound_words(found_of([])) + limits_distances.distances_words("cifar10")
    assert "At 36/255 the bound is 99.99 %**: 1 of 10,000 test images is lost to every classifier" in words
    assert "Up to radius 1.8 no other is lost" in words and "1 within the test set" in words
    assert "radii: CIFAR-10 0, for equal images." in limits_distances.other_words()
    assert "leave room for 99.99 %" in limits_distances.geometry(found_of([]))


def test_the_bound_stands_beside_what_is_reached():
    distances_check(LOST)
    write(run(5700), run(5500, width=64))
    found = limits.gather("cifar10", "36/255", "nominal")
    line = next(row for row in limits_distances.bound_table(found).splitlines() if row.startswith("| 36/255"))
    cells = [text.strip().replace("\N{NO-BREAK SPACE}", " ") for text in line.split("|")[1:-1]]
    assert cells[:4] == ["36/255", "100.00 %", "100.00 %", "57.00 %"] and float(cells[4].split()[0]) > 78
    drawn = rows_of(limits_pictures.bound_figure(found))
    assert {"what": "best of this study", "radius": "36/255", "vra": "57.0000", "reached": ""} in drawn
    assert sum(row["what"] == "bound" for row in drawn) == len(LOST)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_figure_holds_every_network_and_goes_no_farther_than_it_says():
    cells = curve(0.6, 0.3, 0.08, PLACES)
    drawn = rows_of(limits_pictures.scaling_figure(found_of(cells, (cell(30, 1e13),))))
    assert sum(row["what"] == "this study, fitted" for row in drawn) == 9
    assert sum(row["what"] == "this study, other" for row in drawn) == 1
    fits = [float(row["operations"]) for row in drawn if row["what"].startswith("fit")]
    assert min(fits) == pytest.approx(1e12) and max(fits) == pytest.approx(limits_words.BEYOND * 1e16)
    assert all(float(row["low"]) <= float(row["vra"]) <= float(row["high"]) for row in drawn if "fit," in row["what"])


def test_a_page_without_anything_says_not_run():
    words = page(limits.gather("cifar100", "36/255", "executed"))
    assert words.count("not run") >= 6 and "nan" not in words and "inf" not in words.replace("linf", "")


def test_a_page_with_records_has_no_hole():
    distances_check(LOST)
    write(*(run(3000 + 300 * k, width=2 ** (3 + k), epochs=e) for k in range(4) for e in (1, 3)))
    found = limits.gather("cifar10", "36/255", "nominal")
    words = page(found)
    assert len(found.fitted) == 8 and not [bad for bad in ("not run", "nan", "None", "inf ") if bad in words]


def test_the_kept_table_of_the_notebook_is_the_one_that_is_computed():
    notebook = json.loads((ROOT / "notebooks/limits.ipynb").read_text())
    kept = next(each for each in notebook["cells"] if "keep_output" in each["metadata"].get("tags", []))
    text = "".join(kept["outputs"][0]["data"]["text/markdown"])
    assert kept["execution_count"] and text == str(limits_words.published_table(found_of([])))


def test_the_settings_of_long_runs_belong_to_the_recipe_of_the_speed_run():
    folder = ROOT / "notebooks/params/study"
    long = load_config(folder / "speedrun-cpu-long.yaml") if (folder / "speedrun-cpu-long.yaml").exists() else None
    if long is None:
        pytest.skip("no such file")
    short = long.model_copy(update={"epochs": 20.0, "crop": 2, "seed": 2, "width": 32, "neck_width": 128})
    assert limits.recipe(long) == limits.recipe(short) != limits.recipe(long.model_copy(update={"lr": 0.1}))
