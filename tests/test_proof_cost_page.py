"""What the page on the cost of proofs computes, from made-up records and checks with counts that a test knows."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from made import add_radii
from made_proofs import COST_ROWS, cells_of, check, linf, made, published

from lipcert.paths import ROOT, results_dir
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import proof_cost, proof_cost_certificates
from lipcert.report.svg import Figure

# --- images ----------------------------------------------------------------------------------------------------------


def test_without_records_everything_says_not_run():
    assert "**not run**" in proof_cost.headline() and "**not run**" in proof_cost.gap_table()
    assert "**not run**" in proof_cost.gap_words()
    empty = (proof_cost.gap_figure, proof_cost.cause_words, proof_cost.images_words, proof_cost.rounding_words)
    assert all(show() == "" for show in empty)
    assert proof_cost.counts() == [] and proof_cost.without_estimate() == []


def test_the_gap_is_counted_run_by_run_and_radius_by_radius():
    published(seed=0)
    published(seed=1, claimed=(6030, 4100, 2000))
    found = proof_cost.counts()
    assert sorted(c.more for c in found) == [0, 0, 5, 10, 30, 100]
    assert sorted(c.more for c in found if c.own) == [10, 30]
    assert max(c.points for c in found) == pytest.approx(1.0)
    row = cells_of(proof_cost.gap_table(), "LiResNet")
    assert row == ["LiResNet", "2", "4 of 6", "0.20, at most 0.30", "0.08, at most 1.00", "1.0100, at most 1.0100"]
    headline = proof_cost.headline()
    assert "**In 4 of 6 counts" in headline and "2 networks" in headline
    assert "claims 0.20 points of VRA more in the median and 0.30 at most (" in headline
    assert "LiResNet L6W32, EMMA, 30 of 10,000 images). A proof costs no more than this." in headline
    assert "too small, as it is for certain in 2 of 2 networks" in headline
    words = proof_cost.gap_words()
    assert "4,100 images claimed and 4,000 of 10,000 proven, 100 more (1.00 points, 2.5 % of what is proven)" in words
    assert "never claims fewer" in words and "ℓ∞" not in words


def test_networks_of_test_sets_of_any_size_are_compared_in_points():
    """5 of 1,000 images are more than 44 of 10,000."""
    published(claimed=(6044, 4000, 2000))
    facts = made(dataset="mnist", proven=(600, 400, 200), claimed=(605, 400, 200)).model_dump(
        by_alias=True, mode="json"
    )
    facts["data"]["test"] = 1000
    facts["test"] |= {"images": 1000, "clean": 800}
    write_record(Record(**facts), results_dir())
    headline, words = proof_cost.headline(), proof_cost.gap_words()
    assert "0.47 points of VRA more in the median and 0.50 at most (MNIST, " in headline
    assert "5 of 1,000 images)" in headline and "44" not in headline
    assert words.count("605 images claimed and 600 of 1,000 proven, 5 more (0.50 points") == 2
    assert cells_of(proof_cost.gap_table(), "LiResNet")[3] == "0.47, at most 0.50"
    drawn = csv.DictReader(io.StringIO(proof_cost.gap_figure().csv))
    assert sorted(row["points"] for row in drawn) == ["0.4400", "0.5000"]


def test_one_network_and_one_that_loses_nothing():
    published(claimed=(6000, 4001, 2000))
    assert "the estimate claims no more than is proven: there a proof costs nothing." in proof_cost.headline()
    published(claimed=(6010, 4001, 2000))
    assert "the estimate claims 0.10 points of VRA more (CIFAR-10, LiResNet L6W32, " in proof_cost.headline()
    assert "in the median" not in proof_cost.headline()


def test_an_estimate_that_claims_less_is_said():
    published(claimed=(5990, 4005, 2000))
    assert "In 1 of 3 counts the estimate claims fewer" in proof_cost.gap_words()


def test_families_stand_apart_and_linf_networks_are_left_out_and_named():
    published()
    published(family="convnet", claimed=(6100, 4000, 2000), upper=2.2)
    write_record(linf(), results_dir())
    table = proof_cost.gap_table()
    assert cells_of(table, "ConvNet")[1:] == [
        "1",
        "1 of 3",
        "1.00, at most 1.00",
        "0.00, at most 1.00",
        "1.1000, at most 1.1000",
    ]
    assert cells_of(table, "all")[1:3] == ["2", "3 of 6"]
    assert "Left out are 1 networks certified in ℓ∞" in proof_cost.gap_words()
    assert len(proof_cost.without_estimate()) == 1


def test_which_end_is_off():
    published()
    assert "too small in 1 of 1 networks" in proof_cost.cause_words()  # 1.9 against 1.99994
    facts = made(seed=1).model_dump(by_alias=True, mode="json")
    facts["bounds"]["layers"][1]["estimate"] = 1.99999
    write_record(Record(**facts), results_dir())
    words = proof_cost.cause_words()
    assert "too small in 1 of 2 networks" in words and "1.0100 times in the median" in words
    assert "depth" not in words
    published(depth=12, upper=2.06)
    assert "LiResNet 1.0100 at depth 6 and 1.0300 at depth 12" in proof_cost.cause_words()


def test_images_that_only_one_of_the_two_claims(results: Path):
    rows = [(1, 1, 0.1, 0.2), (1, 1, 0.2, 0.2), (2, 1, 0.0, 0.9), (1, 1, 0.3, 0.3)] + [(0, 1, 0.0, 0.0)] * 9996
    record = add_radii(made(), results, rows)
    write_record(record, results_dir())
    (own,) = (c for c in proof_cost.counts() if c.own)
    assert proof_cost.crossings(own) == (1, 0)
    assert "1 right images are claimed by the estimate and not proven, and 0 proven and" in proof_cost.images_words()
    assert proof_cost.images_words("nominal") == ""


def test_what_rounding_takes():
    published()
    assert "as many images in all 3 counts" in proof_cost.rounding_words()
    facts = made(seed=1).model_dump(by_alias=True, mode="json")
    for result in facts["test"]["results"]:
        if result["guarantee"] == "executed" and result["radius"] == "72/255":
            result["certified_correct"] -= 4
    write_record(Record(**facts), results_dir())
    assert (
        "another number of images in 1 of 6 counts, by 0.04 points at most (4 of 10,000" in proof_cost.rounding_words()
    )
    assert sorted(c.more for c in proof_cost.counts("nominal")) == [0, 0, 5, 5, 10, 10]
    assert sorted(c.more for c in proof_cost.counts()) == [0, 0, 5, 9, 10, 10]


def test_the_guarantee_must_be_one():
    with pytest.raises(ValueError, match="guarantee='estimated': must be one of nominal, real, executed"):
        proof_cost.counts("estimated")


def test_the_figure_has_every_run_at_its_own_radius():
    published(seed=0)
    published(seed=1, claimed=(6030, 4100, 2000))
    figure = proof_cost.gap_figure()
    assert isinstance(figure, Figure) and "LiResNet 0.20, at most 0.30" in figure.alt
    drawn = list(csv.DictReader(io.StringIO(figure.csv)))
    assert sorted(int(row["more"]) for row in drawn) == [10, 30]
    assert all(int(row["claimed"]) - int(row["proven"]) == int(row["more"]) for row in drawn)


def test_dots_on_one_place_stand_above_each_other():
    run = made()
    group = [proof_cost.Count(run, "36/255", 10, 10 + more) for more in (5, 5, 5, 50)]
    heights = [(c.more, y) for c, y in proof_cost.stacked(group, lambda c: c.more)]
    assert sorted(y for more, y in heights if more == 5) == pytest.approx([-0.09, 0.0, 0.09])
    assert [y for more, y in heights if more == 50] == [0.0]
    many = proof_cost.stacked(group[:1] * 50, lambda c: c.more)
    assert max(abs(y) for _, y in many) <= 0.4


# --- certificates and claims -----------------------------------------------------------------------------------------


def small_check() -> None:
    numbers = {"threads": 1, "proofs; fast; seconds": 4.2}
    for way, ms, ratio in (("executed, float64", 2.0, 0.5), ("executed, float32", 4.0, 8.0)):
        numbers |= {f"{way}; ms an image": ms, f"{way}; ratio": ratio}
    for kind, ms in (("float64", 4.0), ("float32", 0.5)):
        numbers |= {f"plain, {kind}; ms an image": ms, f"plain, {kind}; ratio": 1.0}
    check("certification", numbers)


def large_check(seconds: float = 0.75) -> None:
    numbers: dict[str, float] = {"threads": 1, "micro-batch": 64}
    for net, more in (("first", 1.0), ("third", 1.2)):
        numbers |= {f"{net}; proofs; seconds": 300 * more, f"{net}; parameters": 1.08e8}
        numbers[f"{net}; block; seconds"] = 10.0
        numbers |= {f"{net}; memory of {phase}; GB": 2 * more for phase in ("proofs", "certifying")}
        for way, each, ratio in (("executed, float64", seconds, 0.75), ("executed, float32", 2 * seconds, 4.0)):
            numbers |= {f"{net}; {way}; seconds an image": each * more, f"{net}; {way}; ratio": ratio}
        for kind in ("float64", "float32"):
            numbers[f"{net}; plain, {kind}; seconds an image"] = 1.0
    numbers["first; trained block; seconds"] = 12.0
    check("imagenet-certification", numbers, (("network",), ("first",), ("third",)))


def test_costs_of_a_certificate():
    table = proof_cost_certificates.cost_table()
    assert all(cells_of(table, name)[1:] == ["not run"] * 5 for name in ("LiResNet L6W80", "LiResNet L18W588"))
    assert proof_cost_certificates.cost_words().count("Not run: `python -m benchmarks.") == 2
    assert proof_cost_certificates.pass_ratios() == []
    small_check()
    large_check()
    table, words = proof_cost_certificates.cost_table(), proof_cost_certificates.cost_words()
    small = cells_of(table, "LiResNet L6W80")
    assert small[1:5] == ["4.2 s", "2.00 ms (0.50 ×)", "4.00 ms (8.00 ×)", "4.00 ms and 0.50 ms"]
    third = cells_of(table, "LiResNet L18W588, third, 108.0 M")
    assert third[1:4] == ["6.0 min", "0.90 s (0.75 ×)", "1.80 s (4.00 ×)"] and third[5] == "2.4 GB"
    assert "one image alone takes as long as 64, 58 s here" in words and "took 1.20 times as long to prove" in words
    assert "waits for the constants as well, 7.0 min in all; over the 50,000 validation images they add 7.2 ms" in words
    assert sorted(proof_cost_certificates.pass_ratios()) == [0.5, 0.75, 0.75]


def test_the_claims_without_measurements_and_with():
    table, words = proof_cost_certificates.claims_table(), proof_cost_certificates.claims_words()
    assert cells_of(table, "training needs")[2] == cells_of(table, "about three")[2] == "not run"
    assert words.count("**not run**") == 2 and "150 s for an ImageNet image" in words
    check("cost", {}, COST_ROWS)
    large_check()
    table, words = proof_cost_certificates.claims_table(), proof_cost_certificates.claims_words()
    assert cells_of(table, "training needs")[2] == "LiResNet 0.90 to 1.20 times; GloRo 6C2F 2.00 times"
    assert (
        cells_of(table, "about three")[2] == "0.90 s, executed, float64; 1.80 s, executed, float32, one thread of a CPU"
    )
    assert "LiResNets in float32 it does not hold: no ratio reaches 2. Peak of a process" in words
    assert "plain network's: 0.90 to 1.20 times over the losses (`cost`). Each peak" in words and "depends" not in words
    assert "the claim does not hold: 0.90 s an image on one thread of a CPU, 200 times less" in words


def memory_check(*, nets: dict[str, tuple[float, float, float, float]], plain: tuple[float, ...] = ()) -> None:
    """Ratios of each net: in all with both necks, an image with both necks; a plain network's KB an image."""
    numbers: dict[str, float] = {"threads": 2}
    for net, ratios in nets.items():
        names = [
            (row, unit) for unit in ("MB", "KB an image") for row in ("float32, eager", "neck 256; float32, eager")
        ]
        numbers |= {f"{net}; memory {row}; ratio of {unit}": v for (row, unit), v in zip(names, ratios, strict=True)}
        numbers |= {f"{net}; memory papers; ratio of {unit}": 3.0 for unit in ("MB", "KB an image")}
    numbers |= {f"{net}; memory plain; KB an image": value for net, value in zip(nets, plain, strict=False)}
    check("training-step", numbers, (("net", "step"), *((net, "papers' way") for net in nets)))


@pytest.mark.parametrize(
    ("narrow", "wide", "said", "depends"),
    [
        ((0.9, 1.0, 0.7, 0.8), (1.5, 1.6, 2.3, 4.5), "it holds in part: 2 of 8 ratios reach 2",
         "width and on what is counted"),
        ((0.9, 1.0, 0.7, 0.8), (1.5, 1.6, 1.3, 1.5), "it does not hold: no ratio reaches 2", "width"),
        ((0.9, 1.7, 0.7, 1.4), (1.5, 1.6, 1.3, 1.5), "it does not hold: no ratio reaches 2", None),
        ((0.9, 1.7, 2.0, 2.4), (1.5, 1.6, 2.3, 2.5), "it holds in part: 4 of 8 ratios reach 2", "what is counted"),
        ((2.0, 2.1, 2.0, 2.4), (2.1, 2.6, 2.3, 2.5), "it holds.", None),
    ],
)  # fmt: skip
def test_memory_depends_on_what_the_numbers_say(narrow, wide, said: str, depends: str | None):
    memory_check(nets={"L6 W64": narrow, "L6 W128": wide}, plain=(1000.0, 2000.0))
    words, table = proof_cost_certificates.claims_words(), proof_cost_certificates.claims_table()
    assert f"LiResNets in float32 {said}" in words and "rough" not in words and "`cost`" not in words
    assert (f"So it depends on {depends}." in words) if depends else ("depends on" not in words)
    ends = [f"{end(narrow[i], narrow[i + 1], wide[i], wide[i + 1]):.2f}" for i in (0, 2) for end in (min, max)]
    assert "LiResNet {} to {} times, counted an image {} to {} times".format(*ends) in table
    assert f"{wide[0]:.2f} to {wide[1]:.2f} times at width 128 (`training-step`, both necks)" in words
    assert "codes do it takes 3.00 times, counted an image 3.00 times, its neck" in words


def test_a_plain_network_that_needs_less_where_it_is_wider_is_said():
    even = (1.0, 1.0, 1.0, 1.0)
    memory_check(nets={"L6 W64": even, "L12 W64": even, "L6 W128": even}, plain=(1190.0, 1830.0, 600.0))
    words = proof_cost_certificates.claims_words()
    assert "1.19 MB an image on L6 W64 and 0.60 MB on L6 W128, which is wider" in words and "rough" in words


@pytest.mark.parametrize(("seconds", "verdict"), [(100.0, "does not hold"), (160.0, "claim holds")])
def test_a_claim_may_hold(seconds: float, verdict: str):
    large_check(seconds)  # the slower network takes 1.2 times as long
    assert verdict in proof_cost_certificates.claims_words()


def test_published_times_are_an_images_and_say_how_they_are_known():
    table = proof_cost_certificates.published_table()
    lines = table.splitlines()[2:]
    assert len(lines) == len(proof_cost_certificates.PUBLISHED)
    assert cells_of(table, "GloRo net")[2:] == ["0.04 ms", "GloRo paper's table", "unverified"]
    assert cells_of(table, "KW")[2] == "252 ms" or cells_of(table, "KW")[2] == "0.25 s"
    assert cells_of(table, "randomised smoothing, 100,000")[2] == "2.5 min"
    assert cells_of(table, "denoised")[2] == "7.8 min" and cells_of(table, "LiResNet of 0.8 M")[2] == "2.23 ms"


# --- the notebook -----------------------------------------------------------------------------------------------------


def test_the_notebook_is_clean_and_names_the_benchmarks():
    notebook = json.loads((ROOT / "notebooks" / "bounds.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    assert "@" not in text and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for name in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
