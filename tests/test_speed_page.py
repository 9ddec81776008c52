"""What the chapter on speed computes: curves, ratios and tables from made-up records with counts that a test knows."""

import csv
import io
import json
from pathlib import Path

import pytest
from made import make_record

from lipcert.config import TrainConfig
from lipcert.paths import ROOT, results_dir
from lipcert.record import Record
from lipcert.records import load_records, write_record
from lipcert.report import readme, speed, speed_curve, speed_lag, speed_runs, speed_search, speed_step
from lipcert.report.checks import Check, write_check
from lipcert.report.operations import counts
from lipcert.report.speed_runs import Point, Reached
from lipcert.report.svg import Figure

STEP_ROWS = (("net", "step", "ms"), ("L6 W64", "papers' way", "900"), ("L6 W64", "papers' way, neck 256", "300"),
             ("L6 W64", "same; float32, eager", "450"), ("L6 W64", "changed; float32, native", "300"),
             ("L6 W64", "changed; bfloat16, eager", "not here"),
             ("L6 W64", "changed, neck 256; float32, eager", "200"))  # fmt: skip


@pytest.fixture(autouse=True)
def published_numbers(results: Path, monkeypatch):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


def publish(name: str, ends: tuple[int, ...], looks: tuple[tuple[float, int], ...] = ((0.25, 2000), (0.5, 4000))):
    """Records of a study file's seeds: counts at the looks (share of the run, count, 10 less a seed) and at the end."""
    for cell, end in zip(speed_runs.recipe(name, "").cells, ends, strict=False):
        write_record(made(cell, end, looks), results_dir())


def made(cell: TrainConfig, end: int, looks: tuple[tuple[float, int], ...]) -> Record:
    facts = make_record(cell, (end, 100, 10), 8000, epochs=20).model_dump(by_alias=True, mode="json")
    for result in facts["test"]["results"]:
        result["guarantee"] = "executed" if result["guarantee"] == "nominal" else result["guarantee"]
    snapshots = [
        {"images": round(share * facts["training"]["images"]), "seconds": 60 * share, "clean": 8000,
         "certified_correct": count - 10 * cell.seed, "upper": 5.0}
        for share, count in looks
    ]  # fmt: skip
    facts["training"] |= {"snapshots": snapshots, "seconds": 60.0}
    return Record(**facts)


def check(goal: str, numbers: dict, rows: tuple = ()) -> None:
    found = Check(
        goal=goal, title="t", target="t", measured="what came out", verdict="in part", seconds=1, command="c",
        commit="a" * 40, dirty=False, hardware={"processor": "abacus", "cores": 2}, versions={},
        finished="2030-01-02T03:04", numbers=numbers, rows=rows,
    )  # fmt: skip
    write_check(found, results_dir())


def step_check(**more: float) -> None:
    numbers = {"threads": 1, "claimed": 1}
    for _, row, ms in STEP_ROWS[1:]:
        if ms.isdigit():
            key = f"L6 W64; {row}"
            numbers |= {f"{key}; ms": float(ms), f"{key}; of the limit": 0.5, f"{key}; convolutions": 0.25}
            numbers[f"{key}; ratio"] = 900 / float(ms)
            if "256" in row:
                numbers[f"{key}; ratio to papers' way, neck 256"] = 300 / float(ms)
    check("training-step", {**numbers, **more}, STEP_ROWS)


def lines(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


def cells_of(table: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table that begins so."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [text.strip().replace("\N{NO-BREAK SPACE}", " ") for text in line.split("|")[1:-1]]


# --- without records -------------------------------------------------------------------------------------------------


def test_without_records_everything_says_not_run():
    words = (speed.headline, speed.verdict, speed.gains_words, speed.long_words, speed.price_words, speed.choices_table,
             speed_curve.curve_words, speed_lag.own_words, speed_search.ablation_words)  # fmt: skip
    assert all("**not run**" in say() for say in words)
    by_check = (speed_step.step_words, speed_step.memory_words, speed_lag.lag_words, speed_lag.lag_table)
    assert all(say().startswith("Not run") for say in by_check)
    assert all(speed_step.step_table(kind).startswith("Not run") for kind in ("same", "changed", "neck"))
    empty = (speed_curve.curve_figure, speed_curve.looks_table, speed_step.parts_table, speed_step.memory_table,
             speed_lag.lag_figure, speed_lag.own_table, speed_search.trials_figure,
             speed_search.singles_table)  # fmt: skip
    assert all(show() == "" for show in empty)
    assert speed_step.certification_tables() == [] and speed_step.certification_words() == "Not run."
    assert speed.gains_table().count("not run") >= 12 and "nan" not in speed.gains_table()
    assert speed.study_list().count(" runs published") == 3 and "not run yet" in speed.readme_line()
    assert speed_runs.time_ratio() is None and speed_runs.images_ratio() is None


def test_without_study_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(speed_runs, "STUDIES", tmp_path)
    assert speed_runs.records() == [] and "**not run**" in speed.headline() + speed.differences()
    assert cells_of(speed.price_table(), "speed run")[1:] == ["not run"] * 4
    step_check()
    assert speed_runs.step_ratio() is None


# --- curves and ratios -----------------------------------------------------------------------------------------------


def points(*pairs: tuple[int, float]) -> list[Point]:
    return [Point(images, 0.0, 100.0, vra) for images, vra in pairs]


@pytest.mark.parametrize(
    ("curve", "found"),
    [
        (points((100, 10.0), (200, 30.0), (300, 40.0)), Reached(150.0, True)),
        (points((100, 25.0), (200, 30.0)), Reached(100, True)),
        (points((100, 10.0), (200, 19.9)), Reached(200, False)),
        (points((100, 10.0), (200, 30.0), (300, 10.0), (400, 50.0)), Reached(150.0, True)),
        (points((100, 10.0), (200, 20.0)), Reached(200.0, True)),
        ([], None),
    ],
)
def test_when_a_curve_first_passes_twenty(curve: list[Point], found: Reached | None):
    assert speed_runs.reached(curve, 20.0) == found


def test_the_mean_curve_ends_at_the_end_and_the_claim_is_its_mean():
    publish(speed_runs.OURS, (5500, 5600, 5700))
    mine = speed_runs.ours()
    assert [p.images for p in mine.mean_curve()] == [249_600, 499_200, 998_400]
    assert [p.vra for p in mine.mean_curve()] == pytest.approx([19.9, 39.9, 56.0])
    assert [p.seconds for p in mine.mean_curve()] == pytest.approx([15, 30, 60])
    assert mine.images_per_second() == pytest.approx(998_400 / 60)
    headline = speed.headline()
    assert "**56.00 % VRA**" in headline and "3 seeds, 55.00 to 57.00 %" in headline and "998,400" in headline
    assert "**met** with 56.00 %" in speed.verdict() and "within ten million, **not run**" in speed.verdict()


@pytest.mark.parametrize(
    ("looks", "end", "said"),
    [
        (((0.25, 1900), (0.5, 3900)), 5000, "is ahead at every look, by 1.0 to 5.0 points"),
        (((0.25, 2100), (0.5, 4100)), 5600, "is behind at every look, by 1.0 to 1.0 points"),
        (((0.25, 1900), (0.5, 4100)), 5000, "lead changes: the speed run is ahead at 2 of 3 looks, at the end by +5.0"),
    ],
)
def test_who_leads(looks, end, said):
    publish(speed_runs.OURS, (5500,))
    publish(speed_runs.PAPERS, (end,), looks)
    assert said in speed_curve.curve_words()


def test_looks_that_not_all_seeds_have_are_no_part_of_the_mean():
    first, second, _ = speed_runs.ours().cells
    write_record(made(first, 5000, ((0.25, 1000), (0.5, 3000))), results_dir())
    write_record(made(second, 5200, ((0.5, 3010),)), results_dir())
    assert [p.vra for p in speed_runs.ours().mean_curve()] == pytest.approx([30.0, 51.0])


def test_time_is_images_times_step():
    """Ours passes 50.8 between 40 % at one half and 56 % at the end, theirs between 40 % and 52 %."""
    publish(speed_runs.OURS, (5600,), ((0.5, 4000),))
    publish(speed_runs.PAPERS, (5200,), ((0.5, 4000),))
    assert speed_runs.time_ratio() is None and cells_of(speed.gains_table(), "time of a step")[2] == "not run"
    step_check()
    mine, theirs = 0.5 + 0.5 * 10.8 / 16, 0.5 + 0.5 * 10.8 / 12
    images, known = speed_runs.images_ratio()
    assert known and images == pytest.approx(theirs / mine, rel=1e-3)
    assert speed_runs.step_ratio() == (1.5, "changed, neck 256; float32, eager")
    assert speed_runs.time_ratio()[0] == pytest.approx(1.5 * images)
    assert cells_of(speed.gains_table(), "time to 50.8")[3] == f"**{1.5 * images:.1f} ×**"
    assert "batches of 128 with Muon" in speed.gains_words()


def test_the_row_of_the_speed_runs_own_kernels_goes_first():
    step_check(**{"L6 W64; changed, neck 256; float32, native; ratio to papers' way, neck 256": 2.5})
    assert speed_runs.step_ratio() == (2.5, "changed, neck 256; float32, native")
    own = "speed run, neck 256; float32, native"
    step_check(**{f"L6 W64; {own}; ratio to papers' way, neck 256": 2.4})
    assert speed_runs.step_ratio() == (2.4, own)


def test_what_never_arrives_gives_a_lower_limit_and_what_does_not_lead_nothing():
    publish(speed_runs.OURS, (5600,), ((0.5, 4000),))
    publish(speed_runs.PAPERS, (4800,), ((0.5, 4000),))
    step_check()
    images, known = speed_runs.images_ratio()
    assert not known and images == pytest.approx(998_400 / (499_200 + 499_200 * 10.8 / 16), rel=1e-3)
    table = speed.gains_table()
    assert cells_of(table, "images to")[1] == "not within 998,400" and cells_of(table, "images to")[3] == "**> 1.2 ×**"
    assert "**more than 1.8 times as long**" in speed.headline() and "-8.00 points" in speed.headline()
    assert cells_of(table, "VRA")[3] == "+8.00 points"


def test_a_speed_run_that_does_not_reach_the_target_claims_no_ratio():
    publish(speed_runs.OURS, (4900,))
    publish(speed_runs.PAPERS, (5500,))
    step_check()
    assert speed_runs.images_ratio() is None and "as long" not in speed.headline()
    assert cells_of(speed.gains_table(), "images to")[1:] == ["858,624", "not within 998,400", "not run"]
    assert "**fell short** with 49.00 %" in speed.verdict()


def test_the_figure_and_its_words():
    publish(speed_runs.OURS, (5500, 5600, 5700))
    publish(speed_runs.PAPERS, (5000, 5000, 5000), ((0.25, 2100), (0.5, 3500)))
    drawn, words = lines(speed_curve.curve_figure()), speed_curve.curve_words()
    assert len(drawn) == 2 * 3 * 3
    assert {"recipe": "speed run", "seed": "1", "images": "249600", "seconds": "15.0", "clean": "80.0000",
            "vra": "19.9000"} in drawn  # fmt: skip
    assert "The speed run (3 seeds) stands at 19.9 % after 249,600 images, passes 50.8 %" in words
    assert "papers' recipe (3 seeds) stands at 20.9 %" in words and "never reaches 50.8 %" in words
    assert "begins behind (-1.0 points at 249,600 images), leads from 499,200 images on and ends 6.0 points" in words
    assert cells_of(speed_curve.looks_table(), "papers' recipe | 499,200")[4:] == ["80.00 %", "34.90 %"]


def test_operations_count_the_whole_step():
    for recipe in (speed_runs.ours(), speed_runs.papers()):
        config, step = recipe.cells[0], counts(recipe.cells[0])
        forward = 2 * 256 * 64 * (75 + 6 * 9 * 64) + 2 * 16 * 16 * 64**2 + 2 * 1024 * 256 + 2 * 256 * 10
        assert step.convolutions == 3 * config.batch * forward
        assert recipe.operations() > 3 * forward
        assert recipe.operations() * (1 - speed_runs.fixed_share(config)) == pytest.approx(3 * forward)
    assert speed_runs.ours().operations() > speed_runs.papers().operations()  # smaller batches, and Muon


def test_both_recipes_setting_by_setting():
    table = speed.differences()
    assert cells_of(table, "`optimizer`") == ["`optimizer`", "muon", "nadam"]
    assert "`seed`" not in table and "`depth`" not in table


def test_the_long_run():
    config = TrainConfig(**(speed_runs.load_config(speed_runs.STUDIES / f"{speed_runs.LONG}.yaml").model_dump()))
    write_record(made(config, 6150, ()), results_dir())
    assert "61.50 % VRA at 36/255" in speed.long_words()
    assert "within ten million, **met** with 61.50 %" in speed.verdict() and len(speed_runs.records()) == 1
    assert "no entry by the [rules](#speed-rules), whose budget is 1,000,000 images" in speed.long_words()


@pytest.mark.parametrize(
    ("epochs", "says"),
    [(40, "**not decided**: 59.00 % after 1,996,800 images, where the run ends"), (200, "**fell short** with 59.00 %")],
)
def test_a_long_run_below_its_goal_decides_nothing_unless_it_has_seen_the_images(epochs: int, says: str):
    config = speed_runs.load_config(speed_runs.STUDIES / f"{speed_runs.LONG}.yaml")
    record, steps = made(config, 5900, ()), epochs * 390
    training = record.training.model_copy(update={"steps": steps, "images": 128 * steps})
    write_record(record.model_copy(update={"training": training}), results_dir())
    assert f"61 % within ten million, {says}." in speed.verdict()


def test_choices_that_a_machine_made(results: Path):
    publish(speed_runs.OURS, (5600,))
    (record,) = load_records()
    choices = record.training.choices.model_copy(
        update={"measured": {"float32, torch": 0.4, "float32, native": 0.2}, "kernels": "native"}
    )
    training = record.training.model_copy(update={"choices": choices})
    write_record(record.model_copy(update={"training": training}), results)
    row = cells_of(speed.choices_table(), "LiResNet L6W64")
    assert row[2:] == ["float32, native 200 ms; float32, torch 400 ms", "float32, channels_last, native"]


def test_the_readme_has_the_sentence():
    publish(speed_runs.OURS, (5500, 5600, 5700))
    assert "Expect a VRA of 56.00 % (55.00 to 57.00) at 36/255." in speed.readme_line()
    assert "**Speed run**" in readme.current()


# --- a step's time ---------------------------------------------------------------------------------------------------


def test_rows_of_the_same_mathematics_stand_apart():
    step_check(**{"L6 W64; same; float32, eager; difference": 2e-6})
    same, changed, neck = (speed_step.step_table(kind) for kind in ("same", "changed", "neck"))
    assert cells_of(same, "float32, eager") == ["float32, eager", "450 ms, **2.00 ×**, 50 % of the limit"]
    assert "native" not in same and cells_of(changed, "float32, native")[1].startswith("300 ms, **3.00 ×**")
    assert cells_of(changed, "bfloat16, eager")[1] == "not here"
    assert cells_of(neck, "papers' way, neck 256")[1].startswith("300 ms, **1.00 ×**")
    assert cells_of(neck, "changed: float32, eager")[1].startswith("200 ms, **1.50 ×**")
    words = speed_step.step_words()
    assert "2.00 times as fast with the same mathematics (float32, eager), 3.00 times with changed" in words
    assert "differ by at most 2e-06" in words and "one thread" in words


def test_no_ratio_where_the_check_claims_none():
    numbers = {"threads": 1, "claimed": 0, "L6 W64; papers' way; ms": 900.0, "L6 W64; papers' way; of the limit": 0.2}
    check("training-step", numbers, STEP_ROWS)
    assert "**no ratio is claimed**" in speed_step.step_words()
    assert cells_of(speed_step.step_table("same"), "papers' way")[1] == "900 ms, 20 % of the limit"
    assert cells_of(speed_step.step_table("same"), "float32")[1] == "not run" and speed_runs.step_ratio() is None


def test_shares_and_memory():
    shares = {"papers orthogonalisation share": 0.48, "same; float32, eager; orthogonalisation share": 0.2}
    memory = {"MB": 300.0, "KB an image": 1000.0, "ratio of MB": 1.5, "ratio of KB an image": 1.25}
    ways = ("plain", "float32, eager", "papers")
    held = {f"L6 W64; memory {name}; {unit}": v for name in ways for unit, v in memory.items()}
    step_check(**{f"L6 W64; {key}": value for key, value in shares.items()}, **held)
    row = cells_of(speed_step.parts_table(), "L6 W64 | orthogonalisation")
    assert row[2:] == ["48.0 %", "20.0 %", ""]
    assert cells_of(speed_step.parts_table(), "L6 W64 | its conv")[2:] == ["25.0 %"] * 3
    assert "orthogonalisation 48 %" in speed_step.parts_words()
    assert cells_of(speed_step.memory_table(), "papers' way")[1] == "300 MB (1.50 ×), 1.00 MB (1.25 ×)"
    assert cells_of(speed_step.memory_table(), "lipcert, bfloat16")[1] == "not run"
    said = "at most 1.50 times what a plain network of the same depth and width holds, counted an image 1.25 times; the"
    assert said in speed_step.memory_words() and "way 1.50 and 1.25 times" in speed_step.memory_words()
    neck = "L6 W64; memory neck 256; float32, eager; ratio of"
    more = {f"{neck} MB": 1.6, f"{neck} KB an image": 4.5}
    step_check(**{f"L6 W64; {key}": value for key, value in shares.items()}, **held, **more)
    assert "at most 1.60 times" in speed_step.memory_words() and "an image 4.50 times; the" in speed_step.memory_words()


def test_certification_is_two_tables():
    rows = (("pass", "ms an image", "over"), ("plain, float64", "9", "1"), ("proof of a layer, effort", "s", "of"),
            ("stem", "0.1", "15%"))  # fmt: skip
    names = ("nominal, float64; ms an image", "executed, float64; ms an image", "executed, float64; ratio")
    check("certification", dict(zip(names, (8.0, 10.0, 0.9), strict=True)), rows)
    passes, proofs = speed_step.certification_tables()
    assert "plain, float64" in passes and "stem" not in passes and cells_of(proofs, "stem")[2] == "15 %"
    assert "1.25 times as long" in speed_step.certification_words() and "faster" in speed_step.certification_words()


# --- the estimate, the search ----------------------------------------------------------------------------------------


def test_the_lag_in_order_of_steps_and_after_a_tenth():
    low = {2: 0.5, 10: 0.9, 100: 0.95}
    own = {f"own; {m}; vra; seed {s}": v for m, s, v in (("powers, 3", 0, 0.4), ("powers, 3", 1, 0.42),
                                                        ("Krylov, 5", 0, 0.43), ("Krylov, 5", 1, 0.43))}  # fmt: skip
    numbers = {f"powers, 3; step {k}": v for k, v in low.items()} | own | {"steps": 100, "powers, 3; share": 0.02}
    check("estimate-lag", numbers | {"own; powers, 3; seed 0; step 50": 0.8}, (("method", "low"), ("powers, 3", "1%")))
    assert speed_lag.ratios("powers, 3") == [(2, 0.5), (10, 0.9), (100, 0.95)]
    assert "power method, 3 rounds: 0.900 (0.950 at the end, 2.0 % of a step)" in speed_lag.lag_words()
    assert len(lines(speed_lag.lag_figure())) == 3
    assert cells_of(speed_lag.own_table(), "power method")[1:] == ["2", "0.800", "", "41.00 %", "40.00 to 42.00 %"]
    assert (
        "2.00 points, no more than the 2.00" in speed_lag.own_words() and "Lanczos, 5 products" in speed_lag.own_words()
    )


@pytest.mark.parametrize(("better", "words"), [(0.43, "3.00 points, which is told apart"),
                                               (0.41, "1.00 points, which is not told apart")])  # fmt: skip
def test_one_run_of_each_method_has_no_spread(better, words):
    """A share of 5,000 images near 0.4 has a standard error of 0.7 points, twice that of a difference is 2."""
    numbers = {"own; powers, 3; vra; seed 0": 0.4, "own; Krylov, 5; vra; seed 0": better, "steps": 100}
    check("estimate-lag", numbers, (("method", "low"), ("powers, 3", "1%")))
    said = speed_lag.own_words()
    assert words in said and "below about 2 points" in said and "seeds of one method" not in said
    assert cells_of(speed_lag.own_table(), "power method")[-1] == "one run"


def search_files(kind: str, base: dict, rows: list[tuple]) -> None:
    folder = results_dir() / "search"
    folder.mkdir(exist_ok=True)
    (folder / f"base-{kind}.json").write_text(json.dumps(base))
    with open(folder / f"{kind}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "state", "changes", "seed", "images", "accuracy", "vra"))
        writer.writerows([(n, state, json.dumps(c), 0, i, "60", v) for n, (state, c, i, v) in enumerate(rows)])


BASE = {"depth": 4, "width": 32, "neck_width": 128, "optimizer": "adamw", "lr": 4e-3, "radius_end": 1.0}
MUON = {"optimizer": "muon", "lr": 0.01}


def test_one_change_at_a_time():
    search_files("ablation", BASE, [
        ("complete", {"batch": 128}, 1000, 41.0), ("complete", {}, 1000, 40.0), ("complete", MUON, 1000, 43.0),
        ("complete", {**MUON, "radius_end": 2.0}, 1000, 45.5), ("complete", {"batch": 128}, 2000, 50.0),
    ])  # fmt: skip
    found = {(key, old, new): after.vra - before.vra for key, old, new, before, after in speed_search.single_changes()}
    assert found == {
        ("batch", 256, 128): 1.0, ("optimizer", "adamw", "muon"): 3.0, ("radius_end", 1.0, 2.0): 2.5
    }  # fmt: skip
    assert speed_search.singles_table().index("`optimizer`") < speed_search.singles_table().index("`radius_end` | 1")
    assert cells_of(speed_search.ablation_table(), "`optimizer` muon, `lr` 0.01, `radius_end` 2")[5] == "+5.50"
    assert "after 1,000 images +5.50 points over the base" in speed_search.ablation_words()
    assert speed_search.standard_error(50.0) == pytest.approx(0.7071, abs=1e-4)
    # Two independent shares of 5,000 images, each 1 with chance 1/2: variance of the difference 2 x 0.25 / 5,000.
    assert speed_search.told_apart(speed_search.standard_error(50.0)) == pytest.approx(200 * (0.5 / 5000) ** 0.5)
    words = speed_search.ablation_words()
    assert "0.7 points and a difference of two up to 1.0" in words and "below about 2 points nothing is told" in words
    assert "Of 3 single changes 2 are that large." in words


def test_trials_and_the_best_so_far():
    search_files("trials", BASE, [
        ("pruned", {}, 500, 45.0), ("complete", {}, 1000, 40.0), ("complete", MUON, 1000, 39.0),
        ("complete", {"lr": 0.01}, 1000, 42.0),
    ])  # fmt: skip
    search_files("ablation", BASE, [("complete", MUON, 1000, 44.0), ("complete", MUON, 2000, 49.0)])
    words = speed_search.trials_words()
    assert "4 trials of 1,000 images on L4 W32, neck 128, 1 of them stopped early" in words
    assert "adamw 42.00 %, muon 39.00 %. The best overall: `lr` 0.01." in words
    assert "By hand, on as many images and the same net: 44.00 % (`optimizer` muon, `lr` 0.01)" in words
    assert [line["state"] for line in lines(speed_search.trials_figure())] == ["pruned", *["complete"] * 3]


def test_the_searchs_own_tables_can_be_read(results: Path):
    (results / "search").symlink_to(ROOT / "results" / "search")
    if not (results / "search").exists():
        pytest.skip("no search has been kept")
    assert len(speed_search.trials("ablation")) > 1 and speed_search.single_changes()
    assert "trials of" in speed_search.trials_words() and "averaging the weights" in speed_search.averaging_words()
