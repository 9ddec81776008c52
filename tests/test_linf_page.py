"""What the chapter on l_inf-distance nets computes: pictures, false radii at finite p, tables from made-up records."""

import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made import make_record

from lipcert.config import TrainConfig
from lipcert.linf import kernels
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import linf, linf_pictures, linf_recipes, linf_runs
from lipcert.report.checks import Check, write_check
from lipcert.report.svg import Figure

NET = {"family": "linf_net", "depth": 3, "width": 16, "epochs": 4, "batch": 500, "report_radii": ["0.1", "0.3"]}
MNIST = {**NET, "dataset": "mnist", "loss": "linf_mixture"}
CIFAR = {**NET, "dataset": "cifar10", "radius": "8/255", "report_radii": ["8/255"]}
IBP = {"family": "gloro", "depth": 2, "width": 16, "loss": "ibp", "epochs": 4, "batch": 500, "activation": "relu"}
FADING = "[0.1]-exp-[0.001]"
STUDIES = {
    "linf-mnist-0.1": {**MNIST, "radius": "0.1", "matrix": {"seed": [0, 1]}},
    "linf-mnist-0.3": {**MNIST, "radius": "0.3", "matrix": {"seed": [0, 1]}},
    "ibp-mnist": {**IBP, "dataset": "mnist", "radius": "0.3", "report_radii": ["0.3"], "matrix": {"seed": [0]}},
    "linf-hinge-mnist": {**MNIST, "loss": "linf_hinge", "radius": "0.3", "lr": 0.02, "matrix": {"seed": [0]}},
    "linf-losses-mnist": {
        **MNIST, "radius": "0.3", "lr": 0.03, "matrix": {"plain_weight": ["0", "0.02", FADING], "seed": [0, 1]}
    },
    "linf-cifar10": {**CIFAR, "matrix": {"loss": ["linf_mixture", "linf_hinge"]}},
    "ibp-cifar10": {**IBP, "dataset": "cifar10", "radius": "8/255", "report_radii": ["8/255"], "matrix": {"seed": [0]}},
}  # fmt: skip
WORDS = (linf.mnist_words, linf.losses_words, linf.cifar_words, linf.exactness_words, linf.attacks_words)
FIGURES = (linf.mnist_figure, linf.losses_figure, linf.cifar_figure)
TABLES = (linf.mnist_table, linf.losses_table, linf.cifar_table)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch) -> Path:
    """The chapter's study files, with runs of the tests' own size."""
    for name, settings in STUDIES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(linf_runs, "STUDIES", tmp_path)
    return tmp_path


def publish(folder: Path, cell: TrainConfig, clean: int, interval: int, margin: int | None, epochs: int = 4) -> Record:
    """A published record of a cell with these counts of 10,000 images at its own radius."""
    facts = make_record(cell, (0, 0, 0), clean, epochs=epochs).model_dump(by_alias=True, mode="json")
    shared = {"norm": "linf", "radius": cell.radius, "arithmetic": "float64", "guarantee": "executed", "effort": "fast"}
    counts = {"interval": interval} | ({} if margin is None else {"margin": margin})
    facts["test"]["results"] = [{"method": m, "certified_correct": count, **shared} for m, count in counts.items()]
    facts["bounds"] = None if margin is None else facts["bounds"]
    record = Record(**facts)
    write_record(record, folder)
    return record


def publish_all(folder: Path, count: Callable[[TrainConfig], tuple[int, int, int | None]]) -> None:
    for name in STUDIES:
        for cell in linf_runs._study(linf_runs.STUDIES / f"{name}.yaml").cells:
            publish(folder, cell, *count(cell))


def lines(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


def cells_of(table: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table that begins so."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [text.strip().replace("\N{NO-BREAK SPACE}", " ") for text in line.split("|")[1:-1]]


# --- the pictures ----------------------------------------------------------------------------------------------------


def test_both_neurons_of_the_picture_move_as_far_as_the_box_reaches():
    assert linf_pictures.movements() == pytest.approx((linf_pictures.RADIUS, linf_pictures.RADIUS), rel=1e-12)
    figure = linf_pictures.neuron_figure()
    assert str(linf_pictures.neuron_words()) in figure.alt and "currentColor" in figure.svg
    linear, distance = lines(figure)
    assert float(linear["value"]) == pytest.approx(0.6 * 0.7 + 0.4 * 0.6) and distance["value"] == "0.4"


def test_distance_nets_never_pass_one_and_the_table_is_the_same_every_time():
    first = linf_pictures.rates()
    torch.rand(5)
    assert linf_pictures.rates.__wrapped__() == first
    assert all(0.9 < rate.distances <= 1 + 1e-9 for rate in first)
    growth = [later.linear / earlier.linear for earlier, later in itertools.pairwise(first)]
    assert all(100 < g < 10_000 for g in growth)  # three layers of weights ten times as large
    assert f"| {linf_pictures._rounded(first[-1].linear)} |" in linf_pictures.rates_table()


def test_intervals_without_clipping_prove_what_margins_prove():
    assert linf_pictures.unclipped_gap() < 1e-13


def test_factors_of_the_published_network():
    layers = [3072] + [5120] * 5
    for p in (8, 30, 1000):
        assert linf_pictures.product(p) == pytest.approx(math.prod(n ** (1 / p) for n in layers), rel=1e-12)
    words = linf_pictures.growth_words()
    assert "2.91 times at p = 8" in words and "1.0086 times at p = 1,000" in words and "568 and 1.052 times" in words
    needed = math.log(math.prod(layers)) / math.log(1.01)
    assert linf_pictures.product(needed * 1.001) < 1.01 < linf_pictures.product(needed * 0.999)
    assert f"exceed {needed:,.0f}" in words
    drawn = lines(linf_pictures.growth_figure())
    assert {line["layers"] for line in drawn} == {
        "one layer of 784 inputs", "one layer of 3072 inputs", "one layer of 5120 inputs", "all 6 layers"
    }  # fmt: skip
    assert all(float(line["factor"]) > 1 for line in drawn)


def test_a_finite_p_claims_the_factor_too_much_and_infinity_nothing():
    """Half the margin of a picture of n equal pixels is (1/2 - grey) n^(layers / p), by hand."""
    claims = linf_pictures.claims()
    for claim in claims:
        by_hand = (0.5 - linf_pictures.GREY) * 784 ** (claim.layers / claim.p)
        assert claim.claimed == pytest.approx(by_hand, rel=1e-9)
        assert claim.changed == pytest.approx(0.1, abs=1e-8) and claim.false == math.isfinite(claim.p)
    table = linf_pictures.claims_table()
    assert table.count("**false**") == 6 and table.count("| holds |") == 2
    assert "in 6 of 6 cases" in linf_pictures.claims_words()


def test_the_counterexample_holds_in_plain_numpy():
    """One layer at p = 8: the claimed radius, and a point inside of it with the other answer."""

    def dark(level: float) -> float:
        to = [np.linalg.norm(np.full(784, level) - corner, 8) for corner in (0.0, 1.0)]
        return to[1] - to[0]

    claim = next(c for c in linf_pictures.claims() if (c.p, c.layers) == (8.0, 1))
    assert dark(0.4) / 2 == pytest.approx(claim.claimed) and dark(0.4) > 0 > dark(0.4 + claim.changed)


def test_a_page_without_a_compiler_prints_no_warning(monkeypatch, capsys):
    monkeypatch.setattr(kernels.native, "problem", lambda: "no C compiler")
    monkeypatch.setattr(kernels, "_said", set())
    linf_pictures.movements.__wrapped__()
    linf_pictures.unclipped_gap.__wrapped__()
    assert capsys.readouterr().err == ""


# --- training --------------------------------------------------------------------------------------------------------


def test_the_losses_drawn_are_those_of_the_formula():
    figure = linf_recipes.loss_figure()
    for line in lines(figure):
        m, value = float(line["margin_over_theta"]), float(line["value"])
        hinge = max(0.0, 1 - m)
        wanted = {
            "hinge": hinge, "clipped hinge": min(1.0, hinge),
            "clipped hinge + 0.1 cross-entropy": min(1.0, hinge) + 0.1 * math.log1p(math.exp(-m)),
        }  # fmt: skip
        assert value == pytest.approx(wanted[line["loss"]], abs=1e-5)
    assert "0.1 times" in figure.alt


@pytest.mark.slow
def test_published_recipes_and_sizes():
    table = linf_recipes.recipe_table()
    assert table.count("| 82,708,491 (82.708 M) |") == 2 and table.count("| 120,637,451 (120.637 M) |") == 3
    assert cells_of(table, "CIFAR-10, 8/255")[1:5] == [
        "0.188 = 6 ε", "0.1 to 0.0005", "100, 1250, 1300", "6 × 5,120"
    ]  # fmt: skip
    assert cells_of(table, "MNIST, 0.3")[1] == "0.900 = 3 ε"


# --- the runs --------------------------------------------------------------------------------------------------------


def test_every_published_row_that_the_chapter_names_exists():
    names = [name for pair in linf._ELSEWHERE for name in pair]
    assert all(linf_runs.row_of(name) for name in names)
    for _, beginning in (*linf_runs.PARTS.values(), *linf_runs.WAYS.values()):
        assert beginning is None or linf_runs.published(beginning, "cifar10", "8/255")[1]
    for radius in ("0.1", "0.3"):
        assert all(linf_runs.published(linf._beginning(radius, "linf_mixture"), "mnist", radius))
    assert "CIFAR-10 at 8/255: 40.06 % against 35.44 % (MTL-IBP, quoted by a third party)" in linf.elsewhere_words()


def test_the_projects_study_files_fill_every_arm():
    """Where they exist: an arm without cells would be shown as not run for ever."""
    assert {key for key, arm in linf_runs.mnist().items() if arm.cells} >= {
        ("0.1", "linf_mixture"), ("0.3", "linf_mixture")
    }  # fmt: skip
    assert set(linf_runs.losses()) == set(linf_runs.PARTS) and set(linf_runs.cifar()) == set(linf_runs.WAYS)
    for arm in (*linf_runs.losses().values(), *linf_runs.cifar().values()):
        assert arm.cells
    parts = linf_runs.losses().values()
    assert {len(arm.cells) for arm in parts} == {3} and {arm.cells[0].radius for arm in parts} == {"0.3"}


@pytest.mark.parametrize("files", [True, False], ids=["study files", "no study files"])
def test_without_records_everything_says_not_run(studies: Path, files: bool):
    if not files:
        for path in studies.iterdir():
            path.unlink()
    assert "**not run**" in linf.headline()
    assert all("**not run**" in words() for words in WORDS)
    assert all(figure() == "" for figure in FIGURES) and linf.boxes_table() == linf.attacks_table() == ""
    for table in TABLES:
        assert table().count("not run") >= 2 * (table().count("\n") - 2) and "nan" not in table()
    assert linf.shown(linf.mnist_words(), linf.mnist_figure()) == [linf.mnist_words()]
    assert linf.measured("linf-kernels") == ["Not run."] and linf_runs.records() == []
    assert linf.study_list().count(" runs published") == (len(STUDIES) if files else 0)


def test_margins_and_intervals_side_by_side(studies: Path, results: Path):
    def count(cell: TrainConfig) -> tuple[int, int, int | None]:
        interval = 9000 + 100 * cell.seed
        return 9500, interval, None if cell.loss == "ibp" else interval - 7 - 2 * cell.seed

    publish_all(results, count)
    table = linf.mnist_table()
    assert cells_of(table, "0.1") == [
        "0.1", "ℓ∞-distance net", "95.00 % (95.00 to 95.00)", "90.42 % (89.93 to 90.91)", "90.50 % (90.00 to 91.00)",
        "98.93 %, 97.95 %, stated by the authors",
    ]  # fmt: skip
    assert "| 0.3 | convolutions, IBP | 95.00\N{NO-BREAK SPACE}% | no such rule | 90.00\N{NO-BREAK SPACE}% |" in table
    words = linf.mnist_words()
    assert "At 0.3 intervals certify 7 to 9 images of 10,000 more than margins do (2 seeds)." in words
    assert "reaches 93.20 %. Ours" in words and "is 2.70 points below that: **not comparable**" in words
    assert (
        "reach 90.00 % (one run, 1.23 M parameters; either network saw 200,000 images): 0.50 points below the" in words
    )
    drawn = lines(linf.mnist_figure())
    assert {"line": "0.3, distances", "measure": "margin", "seed": "1", "percent": "90.9100"} in drawn
    assert {"line": "0.3, distances", "measure": "published", "seed": "", "percent": "93.20"} in drawn
    assert not [line for line in drawn if line["line"] == "0.3, IBP" and line["measure"] in ("margin", "published")]
    assert linf.headline().startswith("**Not decided**: there are fewer than three runs")
    assert "On MNIST at 0.1: ℓ∞-distance net 90.50 % (2 seeds); nothing conventional beside it." in linf.headline()
    assert "On MNIST at 0.3: ℓ∞-distance net 90.50 % (2 seeds); convolutions, IBP 90.00 % (one run)." in linf.headline()
    assert len(linf_runs.records()) == 15 and linf.study_list() == ""


@pytest.mark.parametrize(
    ("distances", "convolutions", "says"),
    [
        ((3000, 3100, 3200), (2000, 2100, 2999), "**At this size the distance nets are ahead**, by every seed"),
        ((3000, 3100, 3200), (2000, 2100, 3000), "**Not decided**: neither kind is ahead by every seed"),
        ((3000, 3100, 3200), (3201, 3300, 3400), "**Not at this size**: the convolutions are ahead"),
        ((3000, 3100, 3200), (2000, 2100), "**Not decided**: there are fewer than three runs"),
        ((3000, 3100, 3200), (), "**Not decided**: nowhere have both kinds been run."),
        ((), (3000, 3100, 3200), "**Not decided**: nowhere have both kinds been run."),
    ],
)
def test_who_is_ahead_takes_three_runs_and_every_seed(studies: Path, results: Path, distances, convolutions, says):
    """The hinge's single low run beside them changes nothing: the better distance net counts."""
    for name, loss, counts in (("linf-cifar10", "linf_mixture", distances), ("ibp-cifar10", "ibp", convolutions)):
        settings = STUDIES[name] | {"matrix": {"loss": [loss], "seed": [0, 1, 2]}}
        (studies / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "loss"}))
        linf_runs._study.cache_clear()
        for cell, count in zip(linf_runs._study(studies / f"{name}.yaml").cells, counts, strict=False):
            publish(results, cell, 9000, count, None if loss == "ibp" else count)
    hinge = TrainConfig(**CIFAR, loss="linf_hinge")
    (studies / "linf-hinge-cifar10.yaml").write_text(yaml.safe_dump({**CIFAR, "matrix": {"loss": ["linf_hinge"]}}))
    publish(results, hinge, 9000, 1000, 1000)
    words = linf.headline()
    assert words.startswith(says) == bool(distances) and "ℓ∞-distance net, hinge 10.00 % (one run)" in words
    assert "MNIST" not in words


def test_published_places_are_counted():
    words = linf.elsewhere_words()
    assert "in 1 of 4 places (CIFAR-10 at 8/255)." in words


ORDERS = {"hinge": 60, "clipped": 10, "fixed": 80, "fading": 90}


@pytest.mark.parametrize("swapped", [False, True])
def test_the_order_of_the_losses_beside_the_published_one(studies: Path, results: Path, swapped: bool):
    share = dict(ORDERS, fixed=90, fading=80) if swapped else ORDERS

    def count(cell: TrainConfig) -> tuple[int, int, int | None]:
        certified = 100 * share[linf_runs._part(cell)] + 50 * cell.seed
        return 9900, certified, certified

    publish_all(results, count)
    words = linf.losses_words()
    assert ("**The order is not the same.**" if swapped else "The order is the same.") in words
    assert "The ranges over the seeds of neighbours do not meet." in words
    assert (
        "cross-entropy that fades 40.06 %; clipped hinge, cross-entropy of fixed weight 39.24 %; hinge 33.30 %" in words
    )
    assert cells_of(linf.losses_table(), "clipped hinge alone")[2:] == ["10.25 % (10.00 to 10.50)", "10 %", "10 %"]
    assert "MNIST, certified at 0.3" in linf.losses_table()
    assert len(lines(linf.losses_figure())) == 3 * 7


def test_seeds_that_overlap_are_not_told_apart(studies: Path, results: Path):
    def count(cell: TrainConfig) -> tuple[int, int, int | None]:
        certified = {"hinge": 7000, "clipped": 1000, "fixed": 8000, "fading": 8100}[linf_runs._part(cell)]
        certified += 200 * cell.seed
        return 9900, certified, certified

    publish_all(results, count)
    assert (
        "meet for *clipped hinge, cross-entropy that fades* and *clipped hinge, cross-entropy of fixed weight*: these"
        in (linf.losses_words())
    )


def test_cifar_in_order_and_with_what_is_missing(studies: Path, results: Path):
    mixture, hinge = linf_runs._study(studies / "linf-cifar10.yaml").cells
    publish(results, mixture, 4000, 3000, 2900)
    publish(results, hinge, 4100, 2500, 2500)
    words = linf.cifar_words()
    assert "linf-losses-mnist.yaml`: 0 of 6 runs published" in linf.study_list()
    assert "linf-cifar10.yaml" not in linf.study_list()
    assert "best first: ℓ∞-distance net, mixture 30.00 %; ℓ∞-distance net, hinge 25.00 %. Each saw 200,000" in words
    assert "Every line is one run" in words and words.endswith("1 of 3 were not run.")
    assert cells_of(linf.cifar_table(), "convolutions")[1:] == ["not run", "not run", "not run", "none"]
    assert cells_of(linf.cifar_table(), "ℓ∞-distance net, hinge, 1.23 M")[4] == "33.30 %, stated by the authors"


# --- exactness -------------------------------------------------------------------------------------------------------

HEAD = ("network", "points", "outside", "class changed", "moved further than r", "certified images attacked",
        "PGD: inside, far", "targeted: inside, far")  # fmt: skip


def exactness(folder: Path, outside: int, rows: Sequence[Sequence[str]]) -> None:
    numbers = {"points": 2000, "outside": outside, "certified_points": 900, "changed": 0, "slack_free_broken": 333,
               "attack_successes": 0, "attack_successes_far": 12}  # fmt: skip
    check = Check(
        goal="linf-exactness", title="t", target="t", measured="m", verdict="met", seconds=1, command="c", commit=None,
        dirty=None, hardware={}, versions={}, finished="2030-01-02T03:04", rows=(HEAD, *rows), numbers=numbers,
    )  # fmt: skip
    write_check(check, folder)


def test_boxes_and_attacks_as_measured(results: Path):
    exactness(results, 0, [("distances, random", "2,000", "0", "0", "333", "20", "0, 6", "0, 12")])
    assert "2,000 random and corner points" in linf.exactness_words()
    assert (
        "none had a logit outside" in linf.exactness_words() and "333 points break that rule" in linf.exactness_words()
    )
    assert cells_of(linf.boxes_table(), "distances") == ["distances, random", "2,000", "0", "0", "333"]
    assert cells_of(linf.attacks_table(), "distances") == ["distances, random", "20", "0, 6", "0, 12"]
    assert "**0**" in linf.attacks_words() and "far larger balls 12 images" in linf.attacks_words()


def test_a_logit_outside_of_its_box_is_said(results: Path):
    exactness(results, 3, [])
    assert "3 had a logit outside of its box" in linf.exactness_words()


@pytest.mark.slow
def test_what_the_benchmark_writes_is_what_the_page_reads(results: Path, monkeypatch):
    """The names of its numbers and columns, from a run of a few points on one network."""
    from benchmarks import linf_soundness

    some = list(linf_soundness.subjects([]))[:1]
    monkeypatch.setattr(linf_soundness, "subjects", lambda names: iter(some))
    monkeypatch.setattr(
        linf_soundness, "ATTACKS", {"PGD": {"p": math.inf, "steps": 1, "restarts": 1, "targeted": False}}
    )
    linf_soundness.measure(64, 2, [])
    (results / "checks").mkdir(exist_ok=True)
    (results / "local/checks/linf-exactness.json").rename(results / "checks/linf-exactness.json")
    assert "random and corner points" in linf.exactness_words() and "Successes inside" in linf.attacks_words()
    assert linf.boxes_table().startswith("| network | points | outside | class changed | moved further than r |")
    assert linf.attacks_table().startswith("| network | certified images attacked | PGD: inside, far |")
