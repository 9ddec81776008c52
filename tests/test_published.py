"""Published numbers beside hand-made records: what counts as re-measured, and how the two compare."""

from pathlib import Path

import pytest
from made import make_record

from lipcert.config import load_config
from lipcert.paths import ROOT
from lipcert.records import load_records, write_record
from lipcert.report import figures, gloro, published, scoreboard, tables
from lipcert.report.published import compare, load_published

V1 = ROOT / "notebooks/params/published/liresnet-v1-cifar10.yaml"
V1_ID = "liresnet-arxiv-v1_liresnet-l18w256_cifar10_l2_36-255_vra"


def test_published_numbers_are_readable_and_their_ids_unique():
    rows = load_published()
    assert len({row.id for row in rows}) == len(rows) == 388
    assert {row.evidence for row in rows} == set(published.EVIDENCE)


def test_a_damaged_published_number_is_refused_by_line(tmp_path: Path):
    lines = published.published_path().read_text().splitlines()
    (tmp_path / "p.csv").write_text("\n".join([lines[0], lines[1].replace("65.1", "165.1")]))
    with pytest.raises(ValueError, match=r"line 2: value_percent=165\.1: must be in \[0, 100\]"):
        load_published(tmp_path / "p.csv")


def test_nothing_is_counted_without_records(results: Path):
    assert {c.status for c in compare([])} == {"not run"}
    count = len(compare([]))
    assert scoreboard.scoreboard().startswith(f"**0 of {count} published numbers re-measured**: no network")
    assert "not run" in scoreboard.comparison_table() and "nan" not in scoreboard.comparison_table()
    assert isinstance(figures.key_figure(), tables.Markdown)
    assert f"{count} published numbers have a preset that was not run" in figures.key_figure_words()


@pytest.mark.parametrize(
    ("count", "status"),
    [(6510, "reproduced"), (6550, "reproduced"), (6570, "above"), (6460, "reproduced"), (6450, "below")],
)
def test_status_follows_the_difference(count: int, status: str):
    record = make_record(load_config(V1), (count, 5000, 100))
    found = next(c for c in compare([record]) if c.row.id == V1_ID)
    assert found.status == status
    assert found.difference == pytest.approx(count / 100 - 65.1)
    assert found.at_or_above == (count >= 6505)


def test_seeds_are_averaged_and_their_spread_shown(results: Path):
    for seed, count in enumerate((6400, 6500, 6600)):
        write_record(make_record(load_config(V1, seed=seed), (count, 5000, 100)), results)
    assert "65.00\N{NO-BREAK SPACE}% (nominal), 3 seeds, 64.00 to 66.00" in scoreboard.comparison_table()
    text, count = scoreboard.scoreboard(), len(compare([]))
    assert f"1 of {count}" in text and f"0 at or above the paper, 1 below, {count - 1} not run" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"depth": 17}},
        {"config": {"loss": "emma"}},
        {"record": {"nominal": (), "radii": ()}},
        {"config": {"generated": "c10.npz"}},
        {"config": {"tail_depth": 8}},
    ],
    ids=["network", "loss", "radius not measured", "generated images", "dense layers at the end"],
)
def test_a_run_that_differs_is_not_comparable(changes: dict, monkeypatch: pytest.MonkeyPatch):
    record = make_record(load_config(V1, **changes.get("config", {})))
    if "record" in changes:
        record = record.model_copy(update={"test": record.test.model_copy(update={"results": ()})})
    found = next(c for c in compare([record]) if c.row.id == V1_ID)
    assert (found.status, found.ours, found.others) == ("not comparable", (), (record,))


def test_numbers_of_one_network_share_a_line_until_they_are_measured(results: Path):
    assert "| 36/255, 72/255, 108/255, clean |  | 69.8, 56.3, 42.9, 81.0" in scoreboard.comparison_table()
    plain = V1.with_name("liresnet-iclr-cifar10.yaml")
    write_record(make_record(load_config(plain), (6980, 5600, 4290), clean=8100), results)
    text = scoreboard.comparison_table().replace("\N{NO-BREAK SPACE}", " ")
    assert "| 36/255 | 69.80 % (nominal), one run | 69.8 % (quoted by a third party) | +0.00 | reproduced |" in text
    assert "| clean | 81.00 %, one run |" in text and "69.8, 56.3" not in text


def test_of_runs_of_different_lengths_the_longest_count_and_say_how_long_they_are(results: Path):
    for seed, epochs, right in ((0, 40, 5000), (0, 80, 6000), (1, 80, 6100)):
        config = load_config(V1, epochs=epochs, seed=seed)
        write_record(make_record(config, (right, right, right), epochs=epochs), results)
    (found,) = (c for c in compare(load_records()) if c.row.id == V1_ID)
    assert sorted(found.ours) == [60.0, 61.0] and [r.config.epochs for r in found.shorter] == [40]
    assert found.share_seen == 0.1
    table = scoreboard.comparison_table().replace("\N{NO-BREAK SPACE}", " ")
    assert "2 seeds, 60.00 to 61.00, 10 % of the recipe's images |" in table
    assert "trained on 10 % of the recipe's images." in scoreboard.comparison_words()
    assert "Of those measured, 1 saw only part of its recipe's images." in scoreboard.scoreboard()
    assert "VRA at 36/255, 10 % of the recipe's images: paper 65.1, ours 60.50" in figures.key_figure().alt
    assert scoreboard.deviations().count("is shorter than the run that counts") == 1


def test_other_gloro_networks_say_how_much_of_their_recipe_they_had(results: Path):
    assert gloro.others().strip() == "Not run of the paper's other numbers that have a preset: 3 of 3."
    config = load_config(V1.with_name("gloro-cifar10-6c2f.yaml"))
    write_record(make_record(config, (5000, 4000, 3000), epochs=82), results)
    shorter = config.model_copy(update={"seed": 1})
    write_record(make_record(shorter, (4000, 3000, 2000), epochs=41), results)
    line, rest = filter(None, gloro.others().splitlines())
    assert line.startswith("- GloRo 6C2F (paper), CIFAR-10, radius 36/255: ours 50.00 %, published 58.4 %; after 10 %")
    assert line.endswith(" of the recipe's images (40.00 % after 5 %).")
    assert rest.endswith("2 of 3.")


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"status": "stopped"}, {"split": "validation"}])
def test_smoke_stopped_and_validation_runs_are_no_results(changes: dict):
    assert next(c for c in compare([make_record(load_config(V1), **changes)]) if c.row.id == V1_ID).status == "not run"


def test_an_estimate_is_never_taken_for_a_certificate():
    record = make_record(load_config(V1))
    estimated = tuple(r for r in record.test.results if r.guarantee == "estimated")
    record = record.model_copy(update={"test": record.test.model_copy(update={"results": estimated})})
    assert not next(c for c in compare([record]) if c.row.id == V1_ID).ours


def test_differences_in_schedule_are_named():
    preset = load_config(V1)
    found = published.schedule_differences(make_record(load_config(V1, lr=0.002), epochs=10), preset)
    assert found == ["`lr` 0.002 (preset: 0.001)", "images seen 499,200 (preset: 39,936,000)"]
    assert published.schedule_differences(make_record(preset), preset) == []
