"""What the pages on trust compute: attacks as published, razor edges, the negative control, own networks, the goals."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import lipcert
from lipcert.attack import Fab, falsify
from lipcert.bench.corpus import all_entries
from lipcert.report import attacks, controls, own_net, razors, refusals, soundness
from lipcert.report.checks import Check, write_check

# --- attacks ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def falsification():
    """FAB on three images of a linear classifier, whose radii are exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval().requires_grad_(False)
    images_BCHW = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    return falsify(model, images_BCHW, lipcert.certify(model, images_BCHW), [Fab(restarts=1)], box=False)


def publish(folder: Path, record: dict, name: str = "one") -> None:
    (folder / "attacks").mkdir(exist_ok=True)
    (folder / "attacks" / f"{name}.json").write_text(json.dumps(record))


def test_without_attacks_the_page_says_not_run():
    assert attacks.shown() == [attacks.ABSENT]
    assert attacks.attacks_table() == attacks.attacks_figure() == attacks.attacks_words() == attacks.ABSENT


def test_attacks_as_published(results: Path, falsification):
    record = falsification.record() | {"model": "linear", "dataset": "digits"}
    publish(results, record)
    (one,) = attacks.load_attacks()
    assert attacks.closest(one) == list(falsification.attacks[0].ratios)
    assert all(1 <= ratio < 1 + 1e-6 for ratio in attacks.closest(one))
    table, figure, words = attacks.shown()
    assert "| digits, `linear` | 3 of 3 | 0 | 3 | 1.00 | 1.00 |" in table
    assert "linear" in figure.alt and figure.csv.count("\n") == 4
    assert words.startswith("No certificate was refuted. But radii that are 1.00 times too large")


def test_the_closest_attack_of_all_counts_and_only_in_the_arithmetic_certified(results: Path, falsification):
    record = falsification.record()
    found = record["attacks"][0]
    record["attacks"] = [
        {**found, "ratios": [3.0, 2.0, None]},
        {**found, "ratios": [2.5, None, None]},
        {**found, "ratios": [0.5, 0.5, 0.5], "executed": "float32"},
    ]
    publish(results, record)
    assert attacks.closest(attacks.load_attacks()[0]) == [2.5, 2.0, math.inf]
    assert "| 2.00 | 2.50 |" in attacks.attacks_table()
    assert attacks.attacks_figure().csv.splitlines()[-1].endswith("66.6667")


def test_a_refuted_certificate_is_said_in_bold(results: Path, falsification):
    violation = {"attack": "fab", "executed": "float64", "image": 0, "prediction": 0, "found": 1, "radius": 0.5}
    publish(results, falsification.record() | {"violations": [violation | {"distance": 0.4, "witness": [0.0]}]})
    assert attacks.attacks_words().startswith("**1 certificates were refuted.**")


def test_a_damaged_falsification_is_refused_by_name(results: Path):
    publish(results, {"images": 1})
    with pytest.raises(ValueError, match=r"one\.json: not a falsification"):
        attacks.load_attacks()


# --- razor edges and the bench ---------------------------------------------------------------------------------------


def test_discs_of_the_picture_touch_and_do_not_cross():
    net, points = razors.razor_net(), razors.razor_points()
    angle_A = torch.arange(720, dtype=torch.float64) * (2 * math.pi / 720)
    around_AP = torch.stack([angle_A.cos(), angle_A.sin()], 1)
    for p in points:
        place_P = torch.tensor(p.place, dtype=torch.float64)
        for share in (0.25, 0.5, 0.75, 1.0):
            rim = place_P + share * p.certified * around_AP
            assert (net(rim.reshape(-1, 1, 1, 2)).argmax(1) == p.predicted).all()
        beyond_P = place_P + (1 + 1e-7) * (torch.tensor(p.nearest, dtype=torch.float64) - place_P)
        assert net(beyond_P.reshape(1, 1, 1, 2)).argmax(1) != p.predicted and p.broken
    assert {p.predicted for p in points} == {0, 1, 2}
    assert f"{len(points)} of {len(points)}" in razors.razor_words()
    assert razors.razor_figure().csv.count("\n") == len(points) + 1


def test_the_negative_control_fails_and_lipcert_does_not():
    power_method, own = controls.control()
    assert not power_method.sound and own.sound
    assert f"{power_method.violations} false claims in {power_method.cases} cases" in controls.control_words()
    assert controls.control_table().count("\n") == len(own.checks) + 2


def test_the_corpus_tables_hold_every_entry_once():
    rows = [row for public in (True, False) for row in controls.corpus_table(public).splitlines()[2:] if row]
    more = [row.split("|")[2].rpartition(" and ")[2].split() for row in rows]
    assert sum(1 + (int(w[0]) if w[1:] == ["more"] else 0) for w in more) == len(all_entries())
    assert "gloro issue 9" in controls.corpus_table() and "gloro issue" not in controls.corpus_table(public=False)


# --- networks of any make --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_net() -> own_net.Tried:
    """A linear classifier between two orthogonal layers that do nothing: its radii are the true distances."""
    torch.manual_seed(1)
    eye = nn.Linear(64, 64)
    eye.weight.data, eye.bias.data = torch.eye(64), torch.zeros(64)
    head = nn.Linear(64, 10)
    head.weight.data *= 0.05  # small enough for distances that stay within [0, 1]
    return own_net.tried("linear", nn.Sequential(nn.Flatten(), eye, head).eval())


def test_for_a_linear_network_nothing_is_lost(linear_net):
    assert own_net.medians([linear_net])[0].ratio == pytest.approx(1, abs=0.3)
    assert all(d >= r for r, d in zip(linear_net.radii, linear_net.distances, strict=True)) and not linear_net.refuted
    assert linear_net.constant == pytest.approx(1, rel=1e-6) and linear_net.claimed.keys() == {"1"}
    assert "| `1` |" in own_net.norms_table(linear_net)
    assert "| linear |" in own_net.vra_table([linear_net]) and "| linear |" in own_net.gap_table([linear_net])
    own, claimed = linear_net.counts("0.05")
    labels_N = own_net.test_digits()[1]
    assert own == round(360 * lipcert.vra(linear_net.certificates, labels_N, "0.05")) and claimed == own


def test_the_claim_is_computed_from_the_power_method_alone(linear_net):
    boasting = dataclasses.replace(linear_net, claimed={"1": 1e-6})
    own, claimed = boasting.counts("0.5")
    assert claimed == round(360 * linear_net.clean()) > own


def test_the_figure_of_gaps_has_every_point(linear_net):
    figure = own_net.gap_figure([linear_net])
    assert figure.csv.count("\n") == 1 + own_net.ATTACKED and "Certificates refuted: 0." in figure.alt


def test_every_refusal_of_the_page_is_one():
    table = refusals.refusals_table()
    assert table.count("\n") == len(refusals.refusals()) + 2
    for words in ("BatchNorm2d at '1'", "padding_mode='reflect'", "call model.eval() first", "hooks"):
        assert words in table
    with pytest.raises(AssertionError, match="not refused"):
        refusals.saying(lambda: None)


# --- goals -----------------------------------------------------------------------------------------------------------


def check(goal: str, verdict: str, **more) -> Check:
    facts = {"measured": f"{goal} came out.", "seconds": 120, "command": "soundness.py", "commit": None, "dirty": None}
    where = {"hardware": {"processor": "A", "cores": 2}, "versions": {"torch": "9"}, "finished": "2030-01-02T03:04"}
    return Check(goal=goal, title=f"title of {goal}", target="t", verdict=verdict, **{**facts, **where, **more})


def test_goals_without_measurements_are_not_run():
    assert soundness.headline() == f"**Of {len(soundness.GOALS)} goals, 0 met, {len(soundness.GOALS)} not run.**"
    assert soundness.goals_table().count("| not run |") == len(soundness.GOALS) == 13
    assert soundness.details(["S1"]).strip() == "**S1, no unsound layer bound**: not run."
    assert soundness.machines_words() == "Nothing has been measured yet."


def test_goals_with_measurements(results: Path):
    rows = (("a", "b"), ("1", "2"))
    for one in (
        check("S1", "met", rows=rows, commit="0123456789", dirty=True),
        check("S8", "fell short", rows=rows * 20),
        check("S12", "in part", hardware={"processor": "A", "cores": 2, "accelerator": "G"}),
    ):
        write_check(one, results)
    assert soundness.headline() == "**Of 13 goals, 1 met, 1 in part, 1 fell short, 10 not run.**"
    table = soundness.goals_table()
    assert "| S1, title of S1 | met | S1 came out. | t |" in table and "| **fell short** |" in table
    assert "| S2, tight bounds |" in table and table.count("| not run |") == 10
    text = soundness.details(["S1", "S8"])
    assert "S1 came out. (`soundness.py`, 2.0 min, A, 2 cores, commit 0123456 with changes)" in text
    assert text.count("| 1 | 2 |") == 1 and "unknown commit" in text
    assert "G (A)" in soundness.machines_words() and "6.0 min in all" in soundness.machines_words()
