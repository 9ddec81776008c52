"""Records in words, tables and figures against hand-made records whose numbers are known."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from made import RADII, add_radii, digits, make_record

from lipcert.config import TrainConfig, load_config
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.record import Layer, Record
from lipcert.records import write_record
from lipcert.report import figures, guarantees, labels, names, plane, schema, scoreboard, tables
from lipcert.report.published import load_published
from lipcert.study import load_study

V1 = ROOT / "notebooks/params/published/liresnet-v1-cifar10.yaml"


# --- sentences -------------------------------------------------------------------------------------------------------


def test_run_sentence_of_a_finished_run():
    sentence = tables.run_sentence(make_record(digits(), (6512, 5000, 100)))
    assert (
        "clean accuracy 80.00 %, VRA 65.12 % at l2 radius 36/255 (nominal guarantee); 10,000 test images." in sentence
    )


def test_run_sentence_of_a_stopped_run_claims_nothing():
    sentence = tables.run_sentence(make_record(digits(), status="stopped"))
    assert "stopped after" in sentence and "not tested" in sentence and "%" not in sentence


def test_run_sentence_names_the_validation_split(results: Path):
    path = write_record(make_record(digits(), split="validation"))
    assert "10,000 validation images (held out of the training set" in tables.run_sentence(path)


def test_tables_of_a_run_say_the_guarantee_and_round_outwards():
    record = make_record(digits())
    assert "VRA, nominal | 6510 | 65.10\N{NO-BREAK SPACE}% | 65.13\N{NO-BREAK SPACE}%" in tables.run_table(record)
    bounds = tables.bounds_table(record)
    assert "| `stem` | Conv2d | 1.9999 | 1.9000 | 2.0001 | matrix |" in bounds and "shift" not in bounds
    assert "below the proven lower end" in tables.bounds_words(record)


def with_layers(record: Record, *layers: tuple[str, float, float]) -> Record:
    """The record with bounds of these layers: kind, lower and upper end."""
    made = tuple(
        Layer(name=f"layer{i}", kind=kind, lower=low, upper=high, estimate=(low + high) / 2, method="proof")
        for i, (kind, low, high) in enumerate(layers)
    )
    return record.model_copy(update={"bounds": record.bounds.model_copy(update={"layers": made})})


def test_residual_blocks_are_not_hidden_from_the_words():
    record = with_layers(make_record(digits()), ("Residual", 0.7, 1.3), ("Residual", 0.0, 2.5), ("Conv2d", 2.0, 2.02))
    words = tables.bounds_words(record)
    assert "2 residual blocks are bounded by 1 + branch; their enclosures reach from 0.0000 to 2.5000." in words
    assert "apart from residual blocks, `layer2`, is 1 % wide" in words
    assert "residual" not in tables.bounds_words(make_record(digits()))


def test_layers_of_which_nothing_is_known_from_below_have_words():
    words = tables.bounds_words(with_layers(make_record(digits()), ("Linear", 0.0, 1.0), ("Residual", 0.0, 2.0)))
    assert "widest" not in words and "1 residual block is bounded by 1 + branch; its enclosure reaches from" in words


def test_the_headline_is_a_run_of_the_page_s_family(results: Path):
    write_record(make_record(digits(dataset="cifar10", family="convnet"), (9000, 5000, 100), clean=9500), results)
    assert tables.headline_record() is None
    best = make_record(digits(dataset="cifar10"))
    write_record(best, results)
    assert tables.headline_record() == best
    assert tables.headline_record("convnet").config.family == "convnet"


@pytest.mark.parametrize(("seconds", "text"), [(12.3, "12 s"), (118, "2.0 min"), (5400, "1.5 h")])
def test_durations(seconds: float, text: str):
    assert tables.duration(seconds) == text


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"depth": 18, "width": 256}, "LiResNet L18W256"),
        ({"depth": 12, "width": 512, "tail_depth": 8}, "LiResNet L12W512, 8 dense"),
        ({"family": "convnet"}, "ConvNet L6W32"),
        ({"family": "resnet"}, "ResNet L6W32, conventional"),
        ({"family": "resnet", "activation": "relu"}, "ResNet L6W32, conventional, ReLU"),
        ({"family": "gloro", "depth": 2, "width": 16, "activation": "relu"}, "GloRo 2C2F"),
        ({"family": "gloro", "depth": 4, "width": 32}, "GloRo 4C3F, MinMax"),
        ({"family": "gloro", "depth": 6, "width": 16, "activation": "relu"}, "GloRo 6C2F, width 16"),
    ],
)
def test_networks_have_one_name_each(settings: dict, name: str):
    config = TrainConfig(epochs=1, **settings)
    assert names.network_name(config) == names.network_name(make_record(config)) == name


def test_a_label_names_the_loss_where_the_network_alone_would_not_tell():
    small = {"width": 8}
    configs = [digits(**small), digits(**small, loss="gloro"), digits(**small, seed=1), digits(), digits(seed=1)]
    configs += [digits(dataset="mnist", **small), digits(dataset="mnist", **small, seed=1)]
    records = [make_record(config) for config in configs]
    assert names.labelled(records) == [
        ("digits, LiResNet L6W8, EMMA", records[0]), ("digits, LiResNet L6W8, GloRo", records[1]),
        ("digits, LiResNet L6W8, EMMA", records[2]), ("digits, LiResNet L6W32", records[3]),
        ("digits, LiResNet L6W32", records[4]), ("MNIST, LiResNet L6W8", records[5]),
        ("MNIST, LiResNet L6W8", records[6]),
    ]  # fmt: skip
    assert names.labelled(records[1:2]) == [("digits, LiResNet L6W8", records[1])]


def test_two_losses_of_one_network_have_two_names_everywhere(results: Path):
    rows = [(1, 1, 0.2, 0.3), (1, 1, 0.5, 0.6)]
    for loss, counts in (("emma", (2, 1, 0)), ("gloro", (1, 1, 0))):
        record = make_record(digits(batch=2, loss=loss), counts, clean=2, train=2, images=2)
        write_record(add_radii(record, results, rows), results)
    texts = [tables.study_table(), tables.claim_table(), guarantees.guarantee_table(), figures.vra_figure_words()]
    texts += [figures.vra_figure().alt, figures.vra_figure().svg]
    for text in texts:
        assert "LiResNet L6W32, EMMA" in text and "LiResNet L6W32, GloRo" in text
    assert "- On digits, LiResNet L6W32, EMMA with 1.23 M" in tables.study_words()


def test_every_family_data_set_and_loss_has_a_name():
    from lipcert.data.registry import DATASETS
    from lipcert.models import FAMILIES

    losses = get_args(TrainConfig.model_fields["loss"].annotation)
    assert set(names.FAMILIES) == set(FAMILIES) and set(names.LOSSES) == set(losses)
    assert set(names.DATASETS) >= {*DATASETS, *(row.dataset for row in load_published())}


def test_no_table_is_wider_than_six_columns(results: Path):
    write_record(make_record(load_config(V1)), results)
    write_record(make_record(digits(), train=1437), results)
    write_record(make_record(digits(seed=1), train=1437))
    makers = (
        scoreboard.comparison_table, scoreboard.evidence_table, scoreboard.size_table, scoreboard.recipe_table,
        tables.study_table, tables.local_table, tables.provenance_table, tables.claim_table, schema.field_table,
        schema.settings_table,
    )  # fmt: skip
    for make in makers:
        columns = {line.count(" | ") + 1 for line in make().strip().splitlines()}
        assert len(columns) == 1 and columns.pop() <= 6, make.__name__


def test_study_table_shows_both_numbers_and_leaves_published_networks_out(results: Path):
    write_record(make_record(load_config(V1)), results)
    write_record(make_record(digits(), (7001, 3000, 9), train=1437), results)
    text = tables.study_table().replace("\N{NO-BREAK SPACE}", " ")
    assert "70.01 % nominal (70.04 % estimated)" in text and "1.23 M" in text and "L18W256" not in text
    assert "claimed 3 images more" in tables.study_words()
    assert "+3" in tables.claim_table()


def test_one_seed_of_several_is_said_to_be_one(results: Path):
    write_record(make_record(digits(seed=1), (7000, 3000, 9), train=1437), results)
    assert "seed" not in tables.best_sentence() + tables.study_words()
    write_record(make_record(digits(seed=2), (6000, 3000, 9), train=1437), results)
    write_record(make_record(digits(seed=2, lr=0.5), (1000, 3000, 9), train=1437), results)
    assert "clean 80.00 %; seed 1, mean of 2 seeds 65.00 %)" in tables.best_sentence()
    assert "on 70.00 % (seed 1, mean of 2 seeds 65.00 %)." in tables.study_words()


def test_the_recipe_beside_the_papers_is_that_of_the_speed_run():
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in scoreboard.recipe_table().splitlines()]
    ours = {cells[0].strip("`"): cells[1] for cells in lines[2:]}
    settings = yaml.safe_load((ROOT / "notebooks/params/study/speedrun-cpu.yaml").read_text())
    assert {"optimizer", "lr", "radius_end", "width", "batch"} <= set(ours) and "snapshots" not in ours
    for name in set(ours) & set(settings):
        assert ours[name] in (str(settings[name]), str(float(settings[name]) if name == "epochs" else "")), name


def test_pages_have_words_when_there_are_no_runs(results: Path):
    for make in (tables.study_table, tables.study_words, tables.best_sentence, tables.rerun, tables.provenance_table):
        assert "No" in make()
    assert "no runs of your own" in tables.local_table()
    assert isinstance(figures.vra_figure(), tables.Markdown)


def test_your_runs_are_listed_with_what_they_are(results: Path):
    write_record(make_record(digits(seed=1), status="stopped"))
    write_record(make_record(digits(seed=2), epochs=0))
    write_record(make_record(digits(seed=3), split="validation"))
    (results / "local/runs/broken.json").write_text("{}")
    text = tables.local_table()
    assert "| stopped |" in text and "not tested" in text
    assert "finished, smoke size, no result" in text and "finished, validation split" in text
    assert "Cannot be read: `broken.json: " in text
    assert tables.result_records() == []


def test_rerun_names_the_file_of_the_settings(results: Path):
    write_record(make_record(load_config(V1, seed=3)), results)
    text = tables.rerun()
    assert "lipcert train notebooks/params/published/liresnet-v1-cifar10.yaml seed=3\n" in text
    assert "2.0 min on abacus, 2 threads. Expect a clean accuracy of 80.00 % and a VRA of 65.10 % at 36/255." in text


def test_cells_of_a_study_share_one_command_and_stay_out_of_the_other_tables(results: Path):
    cells = load_study(ROOT / "notebooks/params/study/architecture-loss-cifar10.yaml").cells[:3]
    for number, cell in enumerate(cells):
        write_record(make_record(cell, (5000 + number, 2000, 100), epochs=4), results)
    again = make_record(cells[0].model_copy(update={"seed": 7}), (4000, 2000, 100), epochs=4)
    write_record(again, results)
    text = tables.rerun()
    assert text.count("lipcert study notebooks/params/study/architecture-loss-cifar10.yaml\n") == 1
    assert "Expect 3 runs with a VRA of 50.00 % to 50.02 % at 36/255" in text
    assert "architecture-loss-cifar10.yaml seed=7\n" in text
    assert tables.study_records() == [] and len(tables.all_results()) == 4
    assert tables.provenance_table().count("| `cifar10-") == 4


# --- figures ---------------------------------------------------------------------------------------------------------


def test_vra_figure_draws_what_the_record_counts(results: Path):
    rows = [(1, 1, 0.2, 0.3), (1, 1, 0.14117647058823529, 0.15), (1, 2, 5.0, 5.0), (0, -1, 0.0, 0.0)]
    record = add_radii(make_record(digits(batch=2), (2, 0, 0), clean=2, train=4, images=4), results, rows)
    write_record(record, results)
    drawn = dict(line.split(",")[1:3] for line in figures.vra_figure().csv.splitlines()[1:])
    assert drawn["0/255"] == "50.0000" and drawn["36/255"] == "25.0000" and drawn["52/255"] == "0.0000"
    assert figures.vra_curve([0.5, 0.0], 2, [Radius("0"), Radius("1/2"), Radius("0.6")]) == [100.0, 50.0, 0.0]
    assert "half of the images are right and certified beyond radius 35.9/255" in figures.vra_figure_words()


def test_of_too_many_networks_the_best_of_each_data_set_is_drawn(results: Path):
    for depth, right in ((2, 1), (3, 3), (4, 2), (5, 0), (6, 1)):
        record = make_record(digits(batch=2, depth=depth), (right, 0, 0), clean=4, train=4, images=4)
        write_record(add_radii(record, results, [(1, 1, 0.2, 0.3)] * 4), results)
    (group,) = figures.vra_groups()
    assert [record.config.depth for record in group] == [3]


def test_figures_follow_the_page_and_keep_to_themselves(results: Path):
    write_record(make_record(load_config(V1)), results)
    figure = figures.key_figure()
    assert figure.csv.count("\n") == 2 and "reproduced" in figure.csv and "ours 65.10" in figure.alt
    html = figure._repr_html_()
    assert figures.INK not in html and "currentColor" in html and "<style" not in html
    assert 'role="img"' in html and "aria-label=" in html and "http://www.w3.org/2000/svg" in html
    names = set(re.findall(r'\bid="([^"]+)"', figure.svg))
    assert all(name.startswith("key-figure-") for name in names)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure.svg)) <= names


def test_a_saved_figure_stands_alone(results: Path, tmp_path: Path):
    write_record(make_record(load_config(V1)), results)
    text = figures.key_figure().save(tmp_path / "key.svg").read_text()
    assert text.startswith("<svg") and "<title>" in text and "prefers-color-scheme:dark" in text


def test_labels_cover_no_line_and_no_label():
    _, axes = figures.canvas(5, 3)
    axes.set(xlim=(0, 10), ylim=(0, 10))
    series = [(name, [(x, level) for x in range(11)]) for name, level in (("upper line", 8), ("lower line", 2))]
    assert labels.place_labels(axes, series, figures.INK, 10)
    axes.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in axes.texts]
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        low, high = (axes.transData.inverted().transform(p)[1] for p in (box.p0, box.p1))
        assert not any(low < level < high for level in (2, 8))


def test_without_room_there_are_no_labels():
    _, axes = figures.canvas(2, 1)
    axes.set(xlim=(0, 10), ylim=(0, 10))
    series = [("a label far too long for this", [(x, level) for x in range(11)]) for level in range(0, 10, 2)]
    assert not labels.place_labels(axes, series, figures.INK, 10)
    assert not axes.texts


def test_runs_with_other_radii_get_a_table_and_a_figure_of_their_own(results: Path):
    rows = [(1, 1, 0.2, 0.3), (1, 1, 0.5, 0.6)]
    for seed, radii in enumerate((("36/255", "72/255", "108/255"), ("0.3", "1", "1.58"))):
        record = make_record(digits(batch=2, seed=seed), (2, 1, 0), clean=2, train=2, images=2)
        renamed = [
            r.model_copy(update={"radius": dict(zip(RADII, radii, strict=True))[r.radius]}) for r in record.test.results
        ]
        record = record.model_copy(update={"test": record.test.model_copy(update={"results": tuple(renamed)})})
        write_record(add_radii(record, results, rows), results)
    assert tables.study_table().count("| network |") == 2 and "VRA at 1.58" in tables.study_table()
    first, second = figures.vra_figures()
    assert ">36/255<" in first.svg and ">1.58<" in second.svg and ">1.58<" not in first.svg
    assert ",0.3,50.0000," in second.csv and "50.00 % at 0.3," in second.alt


# --- schema and places -----------------------------------------------------------------------------------------------


def test_every_field_is_explained():
    assert all(meaning for _, _, meaning in schema.record_fields(Record))
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_csv_columns_are_explained_as_they_are_written():
    from lipcert.results import RADII_FIELDS
    from lipcert.run import CURVE_FIELDS

    assert tuple(schema.CURVE_COLUMNS) == CURVE_FIELDS
    assert tuple(schema.RADII_COLUMNS) == RADII_FIELDS
    assert list(schema.PUBLISHED_COLUMNS) == schema.published_columns()


def test_results_readme_is_current():
    assert schema.readme() in (ROOT / "results/README.md").read_text(), "run `lipcert readme`"


def test_report_needs_neither_torch_nor_plotting():
    code = (
        "import sys, lipcert.report.tables, lipcert.report.scoreboard, lipcert.report.figures, lipcert.report.schema;"
        "sys.exit(bool({'torch', 'pandas', 'matplotlib.figure'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the net one can see ---------------------------------------------------------------------------------------------


def test_the_plane_net_keeps_its_promise_and_the_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    net = plane.train_plane_net(steps=20)
    assert plane.changed_on_circles(net) == 0
    honest = net.radii
    monkeypatch.setattr(plane.PlaneNet, "radii", lambda self, x: (honest(x)[0], 3 * honest(x)[1]))
    assert plane.changed_on_circles(net) > 0


def test_every_field_of_the_record_says_what_it_means():
    missing = [line for line in schema.field_table().splitlines() if re.search(r"\|\s*\|$", line)]
    assert not missing
