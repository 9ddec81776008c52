"""The fits of the page on limits, against other ways to make them and against curves that a test knows."""

import math

import numpy as np
import pytest
from limit_cells import PLACES, cell, curve
from scipy import optimize, stats

from lipcert.report import limits
from lipcert.report.limits import ceiling, line

# --- the line ---------------------------------------------------------------------------------------------------------


def test_a_line_of_one_predictor_is_that_of_scipy():
    draw = np.random.default_rng(1)
    x = np.linspace(20, 30, 9)
    logit = -2 + 0.15 * x + draw.normal(0, 0.1, 9)
    cells = [cell(100 / (1 + math.exp(-y)), 2**k) for k, y in zip(x, logit, strict=True)]
    gain = line(cells, ["operations"]).gains["operations"]
    other = stats.linregress(x, logit)
    middle = 1 / (1 + math.exp(-logit.mean()))
    unit = 100 * middle * (1 - middle)
    reach = stats.t.ppf(0.975, 7) * other.stderr
    ends = (other.slope, other.slope - reach, other.slope + reach)
    assert (gain.value, gain.low, gain.high) == pytest.approx(tuple(unit * end for end in ends))


def test_what_a_line_misses_is_what_it_misses_when_cells_are_left_out():
    draw = np.random.default_rng(2)
    images, parameters = 2.0 ** draw.integers(15, 22, 8), 2.0 ** draw.integers(14, 20, 8)
    logit = -3 + 0.1 * np.log2(images) + 0.05 * np.log2(parameters) + draw.normal(0, 0.1, 8)
    cells = [
        cell(100 / (1 + math.exp(-y)), 1e12, int(n), int(p)) for n, p, y in zip(images, parameters, logit, strict=True)
    ]
    x = np.column_stack([np.ones(8), np.log2(images), np.log2(parameters)])
    missed = []
    for n in range(8):
        rest = np.arange(8) != n
        slopes = np.linalg.lstsq(x[rest], logit[rest], rcond=None)[0]
        missed.append(cells[n].vra - 100 / (1 + math.exp(-x[n] @ slopes)))
    fit = line(cells, ["images", "parameters"])
    assert fit.left == pytest.approx(math.sqrt(np.mean(np.square(missed))))
    assert fit.gains["images"].low < fit.gains["images"].value < fit.gains["images"].high


def test_a_network_that_certifies_nothing_has_a_logit():
    gain = line([cell(10.0 * k, 1e12 * 2**k) for k in range(7)], ["operations"]).gains["operations"]
    assert gain.low > 0 and math.isfinite(gain.high)


def test_predictors_that_go_together_cannot_be_told_apart():
    cells = [cell(40 + k, 1e12, 1000 * 2**k, 500 * 2**k) for k in range(6)]
    assert line(cells, ["images", "parameters"]) is None and line(cells, ["images"]) is not None
    assert line(cells[:3], ["images", "operations"]) is None and line([], ["images"]) is None


# --- the ceiling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "exponent", "size"), [(0.62, 0.3, 0.15), (0.7, 0.15, 0.25), (0.9, 0.05, 0.4)])
def test_cells_on_a_curve_give_the_curve_back(top, exponent, size):
    fit = ceiling(curve(top, exponent, size, PLACES))
    assert fit.top.value == pytest.approx(100 * top, abs=3) and fit.best[0] == pytest.approx(exponent, rel=0.25)
    for x in PLACES:
        true = 100 * (top - size * (x / fit.reference) ** -exponent)
        assert fit.at(x).value == pytest.approx(true, abs=0.15) and fit.at(x).low <= fit.at(x).value <= fit.at(x).high


def test_least_squares_are_no_larger_than_those_of_an_optimiser():
    draw = np.random.default_rng(3)
    cells = [cell(each.vra + draw.normal(0, 0.8), each.operations) for each in curve(0.65, 0.3, 0.2, PLACES)]
    fit = ceiling(cells)
    share, x = np.array([each.vra for each in cells]) / 100, PLACES / fit.reference

    def missed(unknown):
        return share - (unknown[1] - unknown[2] * x ** -unknown[0])

    best = optimize.least_squares(missed, (0.3, 0.7, 0.2), bounds=([0.01, 0.3, 0], [2, 1, 5]), xtol=1e-14)
    assert (missed(fit.best) ** 2).sum() <= 1.02 * 2 * best.cost
    assert fit.top.value == pytest.approx(100 * best.x[1], abs=1)


def test_the_interval_of_the_ceiling_is_the_profile_of_an_optimiser():
    draw = np.random.default_rng(4)
    cells = [cell(each.vra + draw.normal(0, 0.4), each.operations) for each in curve(0.62, 0.4, 0.2, PLACES)]
    fit = ceiling(cells)
    share, x = np.array([each.vra for each in cells]) / 100, PLACES / fit.reference

    def rest(top):
        # What is left at a given ceiling, by another search than the grid.
        by = optimize.minimize_scalar(
            lambda a: ((top - share) ** 2).sum() - ((top - share) @ x**-a) ** 2 / (x ** (-2 * a)).sum(),
            bounds=(0.01, 2), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        return by.fun

    least = min(rest(top) for top in np.linspace(0.58, 0.7, 241))
    allowed = least * (1 + stats.f.ppf(0.95, 1, 6) / 6)
    inside = [top for top in np.linspace(0.55, 1, 901) if rest(top) <= allowed]
    assert fit.flattens and (fit.top.low, fit.top.high) == pytest.approx((100 * inside[0], 100 * inside[-1]), abs=0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    draw, inside = np.random.default_rng(5), {"top": 0, "place": 0, "gain": 0}
    truth = curve(0.65, 0.25, 0.2, PLACES)
    place, true = 3e16, 100 * (0.65 - 0.2 * 300**-0.25)
    gain = 100 * 0.2 * ((300 / math.sqrt(2)) ** -0.25 - (300 * math.sqrt(2)) ** -0.25)
    for _ in range(100):
        fit = ceiling([cell(each.vra + draw.normal(0, 0.7), each.operations) for each in truth])
        inside["top"] += fit.top.low <= 65 <= fit.top.high
        inside["place"] += fit.at(place).low <= true <= fit.at(place).high
        inside["gain"] += fit.gain(place).low <= gain <= fit.gain(place).high
    assert all(88 <= count <= 100 for count in inside.values()), inside


def test_left_out_networks_of_an_exact_curve_are_predicted():
    assert limits.left_out(curve(0.65, 0.25, 0.2, PLACES)) < 0.3


def test_too_few_cells_are_not_fitted():
    assert ceiling([cell(40 + k, 1e12 * 4**k) for k in range(4)]) is None
    assert ceiling([cell(40 + k, 1e12) for k in range(9)]) is None
    assert math.isnan(limits.left_out(curve(0.6, 0.3, 0.08, PLACES[:5])))
