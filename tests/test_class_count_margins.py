"""What the page on class count says of margins, rivals, training images and looks, and what it draws."""

import csv
import io

from made import make_record
from made_class_count import cells, everything, line

from lipcert.paths import results_dir
from lipcert.records import write_record
from lipcert.report import class_count_figures as figures
from lipcert.report import class_count_margins as margins
from lipcert.report import matrices
from lipcert.report.class_count_runs import IMAGES, SUBSETS, WHOLE, load


def test_margins_and_rivals():
    everything()
    evidence = load()
    table = margins.distance_table(evidence)
    assert line(table, "10", "trained")[2:] == [
        "-0.050 (-0.050 to -0.050)", *(f"{q:.3f} ({q:.3f} to {q:.3f})" for q in (0.2, 0.45, 0.6))
    ]  # fmt: skip
    assert line(table, "10", "restricted, 5 draws")[2:] == ["", "0.200", "", ""]
    rivals = line(margins.rivals_table(evidence), "10", "trained")
    assert rivals[2].startswith("20.0 % (") and rivals[3].startswith("50.0 % (") and rivals[4].startswith("3.2 (")
    words = margins.rivals_words(evidence)
    assert "threatened of the right images 20.0 % and 40.0 % (rises)" in words
    assert "median distance 0.200 and 0.020 (falls)" in margins.distance_words(evidence)
    constants = line(margins.constants_table(evidence), "100", "trained, 500")
    assert constants[2:5] == ["0.500", "10.000", "100.000"]


def test_records_without_margins_or_notes_are_left_out():
    for cell in (*cells(WHOLE), *cells(SUBSETS)):
        write_record(make_record(cell, (50, 0, 0), 60, train=matrices.training_images(cell), images=100), results_dir())
    evidence = load(guarantee="nominal")
    assert evidence.at(IMAGES, 10) and "not run" in margins.rivals_table(evidence)
    assert figures.distance_figure(evidence) == "" and "not run" in margins.fit_words(evidence)


def test_training_images_and_looks():
    everything()
    evidence = load()
    assert line(margins.fit_table(evidence), "100", "trained, 50 of")[2:] == [
        "50", "100.0 % (100.0 to 100.0)", "50.0 % (50.0 to 50.0)", "0.500 (0.500 to 0.500)"
    ]  # fmt: skip
    assert (
        "training images falls: 0.950 at 10 classes, 0.500 at 100, a change of -0.450 against -0.200"
        in margins.fit_words(evidence)
    )
    assert margins.looks_at(evidence) == [62_464, 124_928]
    table = margins.looks_table(evidence)
    assert line(table, "62,464", "images of a class fixed")[3].startswith("8.5 (") and table.count("faster") == 6
    assert line(table, "249,856", "images in total fixed")[3] == "47.0 (47.0 to 47.0)"


def test_figures_draw_every_network():
    everything()
    evidence = load()
    every = (figures.accuracy_figure, figures.ratio_figure, figures.distance_figure, figures.difficulty_figure)
    drawn = [list(csv.DictReader(io.StringIO(draw(evidence).csv))) for draw in every]
    assert len(drawn[0]) == len(drawn[1]) == 48 + 18 + 20
    assert {row["classes"] for row in drawn[0]} == {"10", "20", "50", "100"} and len(drawn[2]) == 21 * 18
    # Networks that two series share are drawn once.
    assert len(drawn[3]) == 33 + 45 and {row["networks"].split(",")[0] for row in drawn[3]} == {"restricted", "trained"}
    alts = [draw(evidence).alt for draw in every]
    assert "10 classes clean 80.0 and VRA 64.0" in alts[0] and "100 classes 0.600" in alts[1] and "0.020" in alts[2]
