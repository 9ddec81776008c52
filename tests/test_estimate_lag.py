"""What the record on lagging estimates says, from ratios and times made up; no training."""

import pytest

from benchmarks import estimate_lag

RATIOS = {"powers, 3": [0.7, 0.9, 0.9], "powers, 10": [0.8, 0.93, 0.94], "Krylov, 3": [0.9, 0.96, 0.99]}


def told(shares, ratios=RATIOS):
    shared = {"steps": [1, 50, 100], "truths": [2.0, 3.0, 4.0], "ratios": ratios, "seconds": shares}
    return estimate_lag.told(shared, {}, 1.0)


@pytest.mark.parametrize(
    ("krylov", "verdict", "words"),
    [
        (0.02, "met", "best at no more than 3 % of a step Krylov, 3 0.960 (2.0%)"),
        (0.10, "fell short", "best at no more than 3 % of a step powers, 3 0.900 (1.0%)"),
    ],
)
def test_only_what_is_affordable_meets_the_target(krylov, verdict, words):
    found = told({"powers, 3": 0.01, "powers, 10": 0.04, "Krylov, 3": krylov})
    assert found["verdict"] == verdict and words in found["measured"]


def test_nothing_affordable_is_said_so():
    found = told(dict.fromkeys(RATIOS, 0.1))
    assert found["verdict"] != "met"
    assert "none at no more than 3 % of a step; best of all Krylov, 3 0.960 (10.0%)" in found["measured"]
