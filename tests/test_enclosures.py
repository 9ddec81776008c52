"""The figures and tables of the chapters on bounds and on rounding, against numpy, exact sums and hand-made records."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from made import digits, make_record
from torch import nn
from truth import layer_matrix

from lipcert.bounds import Enclosure
from lipcert.layers import MinMax
from lipcert.records import write_record
from lipcert.report import enclosures, estimates, guarantees, misses, roundings

SPACE = "\N{NO-BREAK SPACE}"


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown table without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


# --- the power method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(2, 3, 3, padding=1)], ids=["dense", "convolution"])
def test_public_estimates_are_the_power_method_written_out(layer: nn.Module):
    shape = (7,) if isinstance(layer, nn.Linear) else (2, 4, 4)
    matrix, v, expected = layer_matrix(layer, shape), np.ones(math.prod(shape)), []
    for _ in range(5):
        v = matrix.T @ (matrix @ v)
        v /= np.linalg.norm(v)
        expected.append(np.linalg.norm(matrix @ v))
    found = estimates.public_estimates(layer, torch.ones(1, *shape), rounds=5)
    assert found == pytest.approx(expected, rel=1e-5)
    assert max(found) <= np.linalg.norm(matrix, 2) * (1 + 1e-6)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """A small network in place of the shipped one; dense 3 * orthogonal, then 0.5 * orthogonal."""
    torch.manual_seed(0)
    chain = nn.Sequential()
    layers = (nn.Flatten(), nn.Linear(64, 64), MinMax(), nn.Linear(64, 64), nn.Linear(64, 10))
    for name, layer in zip(("flatten", "stack10", "sort", "dense", "head"), layers, strict=True):
        chain.add_module(name, layer)
    for layer, scale in ((chain.stack10, 3.0), (chain.dense, 0.5)):
        layer.weight.data = scale * torch.linalg.qr(torch.randn(64, 64))[0]
    chain.requires_grad_(False).eval().card = {"input_shape": [1, 8, 8], "radius": "36/255"}
    caches = (estimates.power_runs, enclosures.shipped_bounds, guarantees.shipped_certificates)
    for module in (estimates, enclosures, guarantees):
        monkeypatch.setattr(module, "load", lambda name: chain)
    for cached in caches:
        cached.cache_clear()
    yield chain
    for cached in caches:
        cached.cache_clear()


def test_the_figure_of_the_power_method_draws_both_runs_and_the_proven_ends(shipped, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimates, "LAYER_SHAPE", (64,))
    runs, figure = estimates.power_runs(), estimates.power_figure()
    norm = np.linalg.norm(shipped.stack10.weight.detach().double().numpy(), 2)
    assert runs.tight.lower <= norm <= runs.tight.upper <= norm * (1 + 1e-6)
    lines = figure.csv.splitlines()
    assert len(lines) == 1 + 2 * estimates.ROUNDS + 2 and lines[1] == f"from all ones,1,{runs.ones[0]:.9f}"
    assert "after 10 rounds" in figure.alt and "proven, tight: both ends" in figure.svg
    assert f"% after {estimates.ROUNDS}" in figure.alt
    words = estimates.power_words()
    assert "lie" in words and " %" not in words


def test_the_words_count_how_many_final_estimates_are_too_low(monkeypatch: pytest.MonkeyPatch):
    tight, fast = Enclosure(1.9, 2.0, "matrix"), Enclosure(1.9, 2.1, "torus")
    for ones, random, text in ((1.8, 1.8, "both lie"), (1.8, 1.95, "one lies"), (1.95, 1.95, "neither lies")):
        runs = estimates.Runs([ones] * 500, [random] * 500, fast, tight)
        monkeypatch.setattr(estimates, "power_runs", lambda runs=runs: runs)
        assert f"two final estimates {text} below" in estimates.power_words()
        assert f"fast bound is 5{SPACE}% too high" in estimates.power_words()


def test_made_layers_defeat_the_power_method_as_the_table_says():
    table = {cells[0]: cells[1:] for cells in rows_of(misses.misses_table())}
    for miss in misses.misses():
        norm = np.linalg.norm(layer_matrix(miss.layer, miss.shape), 2)
        low, high = table[miss.name][:2]
        if "10⁻" not in high:
            assert float(low) <= norm <= float(high) and float(high) - float(low) < 1e-5
    assert table["rows (10, −10) and (0.1, 0.1)"][2:] == [f"0.141421 (99{SPACE}% low)", "14.1421 (right)"]
    assert table["10⁻⁷ times the identity"][:3] == ["1.000000 · 10⁻⁷", "1.000001 · 10⁻⁷", f"0 (100{SPACE}% low)"]
    assert table["stored start vector set to 0"][2] == f"0 (100{SPACE}% low)"
    assert table["made against a known random start"][3] == f"1 (0.99{SPACE}% low)"
    assert table["difference of two channels, 3×3"][3].endswith("(right)")


# --- proven bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [5, 7, 8, 12])
def test_circles_are_fourier_transforms_and_only_larger_ones_bound(points: int):
    kernel = np.array([2.0, -1.0] + [0.0] * (points - 3) + [-1.0])
    assert enclosures.circle_value(points, 0.0) == pytest.approx(np.abs(np.fft.fft(kernel)).max())
    size = 7
    truth = np.linalg.norm(layer_matrix(enclosures.second_difference(), (1, 1, size)), 2)
    assert (enclosures.circle_value(points, 0.0) >= truth) == (points > size)
    assert enclosures.circle_value(size + 1, math.pi) == pytest.approx(truth, rel=1e-14)


def test_the_table_of_circles_marks_what_is_no_bound():
    verdicts = [cells[2] for cells in rows_of(enclosures.torus_table())]
    assert verdicts == ["", f"−1.2{SPACE}%: **no bound**", f"+4.0{SPACE}%", "exact", "proven"]


def test_the_enclosures_of_a_network_are_tabled_outwards(shipped):
    rows = {cells[0]: cells[1:] for cells in rows_of(enclosures.enclosure_table())}
    assert list(rows) == ["`stack10`", "`dense`", "product"]
    for name, norm in (("`stack10`", 3.0), ("`dense`", 0.5), ("product", 1.5)):
        low, _, tight, fast = map(float, rows[name][:4])
        assert low <= norm * (1 + 1e-6) and norm * (1 - 1e-6) <= tight <= fast and fast - low < 1e-3
    assert "of 2 layers" in enclosures.enclosure_words()


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (4.21e-9, r"$4.2 \cdot 10^{-9}$"), (-2.5e3, r"$-2.5 \cdot 10^{3}$")]
)
def test_numbers_in_powers_of_ten(value: float, text: str):
    assert enclosures.scientific(value) == text


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [1.0, 1e4, 1e6, 1e13, 1e16])
def test_the_nearest_change_is_where_numpy_finds_it(bias: float, kind: type):
    stored, threshold, distances = kind(np.float32(bias)), kind(np.float32(0.45)), np.linspace(0, 0.1, 4001)
    x = np.concatenate([(0.5 - distances).astype(kind), (0.5 + distances).astype(kind)])
    changed = (x + stored) - stored <= threshold
    expected = np.tile(distances, 2)[changed].min() if changed.any() else math.nan
    arithmetic = np.dtype(kind).name
    # The threshold is class 1's: a tie goes to class 0.
    ties = (x + stored) - stored == threshold
    assert not ties.any()
    found = roundings.nearest_change(roundings.cancelling_net(bias), arithmetic)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_executed_never_reaches_a_change_and_nominal_does():
    sweep = roundings.bias_sweep()
    million = next(case for case in sweep if case.bias == 1e6)
    assert million.certified[0] > million.change["float32"] and million.certified[2] == 0 < million.certified[1]
    for case in sweep:
        for radius, (_, arithmetic) in zip(case.certified[1:], roundings.CLAIMS[1:], strict=True):
            assert not radius > case.change[arithmetic]
    figure = roundings.bias_figure()
    assert len(figure.csv.splitlines()) == 1 + len(sweep)
    assert "never reaches past a change" in figure.alt and "*" not in figure.alt


def test_sums_in_every_order_and_exactly():
    rows = rows_of(roundings.order_table())
    assert [cells[1] for cells in rows[:3]] == [
        enclosures.scientific(v) for v in (0.1 + 0.2 - 0.3, 0.1 + (0.2 - 0.3), (0.1 - 0.3) + 0.2)
    ]
    exact = float(sum(Fraction(float(np.float32(x))) for x in (0.1, 0.2, -0.3)))
    assert rows[3][2] == enclosures.scientific(exact) and rows[0][2] == "0"
    words = roundings.order_words()
    assert "*nominal* answers 1" in words and "*executed* in float32 abstains" in words


# --- the four words --------------------------------------------------------------------------------------------------


def test_words_that_were_not_measured_are_not_run(results: Path):
    assert "published" in guarantees.guarantee_table()
    write_record(make_record(digits(), (6510, 5000, 100)), results)
    name, *cells = rows_of(guarantees.guarantee_table())[0]
    assert name.endswith("36/255")
    assert cells == [f"65.13{SPACE}% (+3)", f"65.10{SPACE}% (6,510)", "not run", "not run", "not run"]
    words = guarantees.guarantee_words()
    assert "*estimated*: another number in 3 of 3 counts, by +3 at most" in words
    assert "*executed* in float64: not run" in words


def test_words_that_were_measured_say_what_they_cost(results: Path):
    record = make_record(digits(), (6510, 5000, 100))
    found = list(record.test.results)
    for result in record.test.results:
        if result.guarantee == "nominal":
            found.append(result.model_copy(update={"guarantee": "executed"}))
            fewer = {
                "guarantee": "executed",
                "arithmetic": "float32",
                "certified_correct": result.certified_correct - 7,
            }
            found.append(result.model_copy(update=fewer))
    write_record(record.model_copy(update={"test": record.test.model_copy(update={"results": tuple(found)})}), results)
    cells = rows_of(guarantees.guarantee_table())[0]
    assert cells[3:] == ["not run", f"65.10{SPACE}% (±0)", f"65.03{SPACE}% (−7)"]
    words = guarantees.guarantee_words()
    assert "*executed* in float64: the same number in all 3 counts" in words
    assert "*executed* in float32: another number in 3 of 3 counts, by −7 at most" in words


def test_slack_is_the_share_of_the_radius_that_is_lost(shipped):
    certified, (labels_N, _) = guarantees.shipped_certificates()
    rows = {tuple(cells[:2]): cells[2:] for cells in rows_of(guarantees.slack_table())}
    assert set(rows) == set(certified) and rows["nominal", "float64"][1:] == ["", ""]
    nominal, executed = certified["nominal", "float64"], certified["executed", "float32"]
    held = nominal.radius_B >= 36 / 255
    slack = np.sort(1 - (executed.radius_B / nominal.radius_B)[held].numpy())
    assert rows["executed", "float32"][1:] == [
        enclosures.scientific(slack[len(slack) // 2]),
        enclosures.scientific(slack[-1]),
    ]
    assert all(cells[0].endswith(f"of {len(labels_N)}") for cells in rows.values())
    assert "float32 margins differ" in guarantees.slack_words()
