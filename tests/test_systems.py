"""The table of the three systems: what is run, what is missing, which published number stands beside."""

import csv
from pathlib import Path

import pytest
from made import make_record

from lipcert.paths import ROOT, results_dir
from lipcert.radius import Radius
from lipcert.records import write_record
from lipcert.report import systems


@pytest.fixture(autouse=True)
def published_numbers(results: Path):
    """The list of published numbers stays the study's own."""
    (results / "published.csv").write_text((ROOT / "results/published.csv").read_text())


def publish(study: str, certified: tuple[int, ...]) -> None:
    system = next(s for s in systems.systems() if s.study == study)
    for cell, count in zip(system.cells, certified, strict=False):
        write_record(make_record(cell, (count, count - 100, 10), 8000), results_dir())


def row(data: str, name: str) -> list[str]:
    lines = [line for line in systems.systems_table().splitlines() if line.startswith(f"| {data} | {name}")]
    assert len(lines) == 1
    return [cell.strip().replace("\xa0", " ") for cell in lines[0].strip("|").split("|")]


def test_every_row_has_cells_and_rows_of_a_data_set_see_as_many_images():
    found = list(systems.systems())
    assert len(found) == len(systems.ROWS) and all(system.cells for system in found)
    for data in ("mnist", "cifar10", "cifar100"):
        assert len({system.images for system in found if system.config.dataset == data}) == 1
        norms = [(s.config.norm, s.config.family) for s in found if s.config.dataset == data]
        assert {family for _, family in norms} == {"liresnet", "gloro", "linf_net"}
        assert all((norm == "linf") == (family == "linf_net") for norm, family in norms)
        radii = {Radius(s.config.radius) for s in found if s.config.dataset == data and s.config.norm == "l2"}
        assert len(radii) == 1


def test_without_runs_all_are_missing():
    table = systems.systems_table()
    assert table.count("not run") == 2 * len(systems.ROWS) and "0 of 3" in table
    assert systems.systems_words().startswith("Not complete, or **not run**: `vra-liresnet-mnist`")


def test_means_ranges_and_who_is_ahead():
    publish("vra-liresnet-cifar10", (5300, 5200, 5400))
    publish("vra-gloro-cifar10", (4300, 4200, 4400))
    cells = row("CIFAR-10", "LiResNet L6W32")
    assert cells[4:8] == ["496,640", "3 of 3", "80.00 %", "53.00 % (52.00 to 54.00)"]
    words = systems.systems_words()
    assert "CIFAR-10, ℓ₂ 36/255: LiResNet L6W32 over GloRo 6C2F, width 16 by 10.0 points, every seed" in words
    assert "`vra-gloro-cifar10`" not in words and "`vra-gloro-mnist`" in words


def test_overlapping_seeds_prove_nothing():
    publish("vra-liresnet-cifar10", (5300, 5200, 4350))
    publish("vra-gloro-cifar10", (4300, 4200, 4400))
    assert "by 6.5 points, which these runs do not prove" in systems.systems_words()


@pytest.mark.parametrize(("first", "second"), [((5300, 5200), (4300, 4200, 4400)), ((5300,), (4300,))])
def test_fewer_than_three_runs_claim_nothing(first: tuple[int, ...], second: tuple[int, ...]):
    publish("vra-liresnet-cifar10", first)
    publish("vra-gloro-cifar10", second)
    words = systems.systems_words()
    assert "of fewer than three runs each, so no claim" in words and "every seed" not in words


def test_how_far_the_published_numbers_are():
    with open(ROOT / "results/published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    task = ("cifar10", "vra", "none", "l2", "36/255")
    at = [r for r in rows if tuple(r[key] for key in ("dataset", "metric", "extra_data", "norm", "radius")) == task]
    ours, theirs = (max(float(r["value_percent"]) for r in at if name in r["paper"]) for name in ("LiResNet", "GloRo"))
    narrow, net = "GloRo 6C2F, width 16 on CIFAR-10", "LiResNet L6W32 on CIFAR-10"
    start = "of networks as large or larger and trained for longer, is "
    publish("vra-gloro-cifar10", (4000, 4000, 4000))
    assert f"{start}{theirs - 40:.1f} points ({narrow}) above ours." in systems.systems_words()
    publish("vra-liresnet-cifar10", (1000, 1000, 1000))
    far = f"{ours - 10:.1f} points ({net}) above ours."
    assert f"{start}{theirs - 40:.1f} points ({narrow}) to {far}" in systems.systems_words()
    publish("vra-gloro-cifar10", (7900, 7900, 7900))
    assert f"{start}{79 - theirs:.1f} points ({narrow}) below to {far}" in systems.systems_words()


def test_the_published_number_is_the_systems_own_highest_of_the_task():
    with open(ROOT / "results/published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for data, family, paper in (("cifar10", "liresnet", "LiResNet"), ("mnist", "gloro", "GloRo")):
        system = next(s for s in systems.systems() if (s.config.dataset, s.config.family) == (data, family))
        own = [
            float(r["value_percent"]) for r in rows
            if paper in r["paper"] and r["dataset"] == data and r["metric"] == "vra" and r["extra_data"] == "none"
            and r["norm"] == "l2" and Radius(r["radius"]) == Radius(system.config.radius)
        ]  # fmt: skip
        assert float(system.published().value) == max(own)
    none = next(s for s in systems.systems() if s.study == "vra-gloro-cifar100")
    assert none.published() is None and row("CIFAR-100", "GloRo")[-1] == "none"
