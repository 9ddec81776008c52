"""The bench passes lipcert, fails the power method and every mutant; its own truth is checked by other means."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lipcert import bounds, chain
from lipcert.bench import BenchReport, Claim, examine, main, mutation, prepare, run_bench
from lipcert.bench.blocks import residual_blocks
from lipcert.bench.corpus import all_entries
from lipcert.bench.exact import exceeds, operator_matrix, real_logits
from lipcert.bench.mutants import Mutant, mutants, public_power_method
from lipcert.bench.razor import razor_edge
from lipcert.bench.reference import REFERENCE
from lipcert.bench.report import tally
from lipcert.bench.run import BLOCKS, RAZORS
from lipcert.bench.verdict import Case, judge, kept
from lipcert.bounds import enclosure, torus
from lipcert.certify import GUARANTEES, certify
from lipcert.paths import ROOT

CLAIMS = [Claim(guarantee) for guarantee in GUARANTEES]
CLAIMS += [Claim("executed", "float32")] if "executed" in GUARANTEES else []


@pytest.fixture(scope="module")
def few():
    return prepare(3)


def upper(layer: nn.Module, shape: tuple[int, ...]) -> float:
    return bounds.norm_bound(layer, shape).upper


def certifier(claim: Claim):
    def certified(model, images_BCHW):
        result = certify(model, images_BCHW, guarantee=claim.guarantee, arithmetic=claim.arithmetic)
        return result.prediction_B, result.radius_B

    return certified


@pytest.fixture
def no_estimates(monkeypatch):
    """One step of the power method instead of 500: estimates are not on trial, and take most of the time."""
    monkeypatch.setattr(chain, "_ESTIMATE_STEPS", 1, raising=False)


# --- lipcert ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1024**2, 0])  # matrices, then the torus for every convolution
def test_norm_bounds_hold(few, entries, monkeypatch):
    monkeypatch.setattr(enclosure, "_MATRIX_ENTRIES", entries)
    report = examine(few, upper, None)
    assert not report.failed, report.table()
    assert report["norm, random"].refused == 0 and report["norm, strided"].refused == 0
    if entries:
        assert report["norm, dense"].worst > 1 - 1e-8


@pytest.mark.usefixtures("no_estimates")
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.guarantee}-{claim.arithmetic}")
def test_certificates_hold(few, claim):
    report = examine(few, None, certifier(claim), claim)
    assert not report.failed, report.table()
    if claim.arithmetic == "float64":
        for name in (*(f"razor edge, {kind}" for kind in RAZORS), *(f"residual blocks, {kind}" for kind in BLOCKS)):
            assert report[name].refused == 0 and report[name].worst > 1 - 2e-7, "sound, but not sharp"
    assert report["corpus, rounding"].cases == (0 if claim.guarantee == "nominal" else report["corpus, rounding"].cases)


@pytest.mark.usefixtures("no_estimates")
def test_certifying_leaves_the_model_alone(few):
    report = examine(replace(few, corpus={}), None, certifier(CLAIMS[0]))
    assert not report["model left alone"].violations, report.table()


# --- teeth ------------------------------------------------------------------------------------------------------------


def test_the_reference_passes_what_does_not_concern_rounding(few):
    assert examine(few, REFERENCE.bound, REFERENCE.certify).sound


def test_the_power_method_fails(few):
    control = public_power_method()
    report = examine(replace(few, edges={}), control.bound, control.certify, habits=False)
    assert not report.sound
    for name in ("norm, tiny", "norm, orthogonal to ones", "norm, difference of channels"):
        assert report[name].violations, report.table()
    assert report["corpus, iterations"].violations and report["corpus, small and large weights"].violations


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught(few, mutant: Mutant):
    assert mutation.row(mutant, few, stop_at_first=True).killed


def test_there_are_enough_mutants_and_each_has_its_name():
    names = [mutant.name for mutant in mutants()]
    assert len(names) == len(set(names)) >= 45
    source = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in ("verified", "residual_rounding"))
    assert all(f"def {test}(" in source for test in mutation.ROUNDING_TERMS)


# --- wrong tori, inside of norm_bound ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["N = n", "half the frequencies", "real parts only"])
def test_wrong_tori_are_caught(change, monkeypatch):
    honest, angles = torus.circle, torus.Torus.angles
    monkeypatch.setattr(enclosure, "_MATRIX_ENTRIES", 0)
    if change == "N = n":
        monkeypatch.setattr(torus, "circle", lambda axis: replace(honest(axis), size=axis.size))
    elif change == "half the frequencies":
        monkeypatch.setattr(torus.Torus, "angles", lambda self, p: angles(self, p)[: self.circles[1].size])
    else:
        monkeypatch.setattr(torus, "_embed", lambda real, imaginary: real)

    def wrong(layer, shape):
        try:
            return upper(layer, shape)
        except ArithmeticError:  # the lower end contradicts it: caught as well
            return 0.0

    assert not examine(prepare(10, networks=False), wrong, None, stop_at_first=True, habits=False).sound


# --- the truth of the bench -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", all_entries(), ids=lambda entry: f"{entry.topic}: {entry.name}")
def test_entries_are_what_they_say(entry):
    case = entry.build()
    assert case.name == entry.name and entry.source
    if case.nothing:
        return
    claim = {"any": Claim(), "real": Claim("real")}.get(case.semantics) or Claim("executed", case.semantics)

    def everything(model, images):  # claims the class that float64 computes, everywhere
        predicted = [Claim().class_of(model, image, "any") for image in images]
        return torch.tensor(predicted).clamp(min=0), torch.full((len(images),), math.inf)

    executed = judge(everything, case, claim)
    in_its_arithmetic = [claim.class_of(case.model, image, case.semantics) for image in case.images_BCHW]
    broken = [claim.class_of(case.model, x, case.semantics) != in_its_arithmetic[i] for i, x in case.witnesses]
    assert executed.violated
    assert all(broken), "a witness that breaks nothing"
    if case.images_BCHW.is_floating_point() and case.images_BCHW.max() <= 1:
        assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for _, x in case.witnesses)


def test_the_corpus_covers_failing_closed():
    topics = [entry.topic for entry in all_entries()]
    assert len(topics) - topics.count("rounding") >= 50
    names = [entry.name for entry in all_entries()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", RAZORS)
def test_razor_edges_hold_inside_and_break_outside(kind):
    for seed in range(5):
        case = razor_edge(kind, seed)
        (_, outside), image = case.witnesses[0], case.images_BCHW[0].double()
        inside = image + (outside - image) * ((1 - 1e-7) / (1 + 1e-7))
        own, near, far = (Claim().class_of(case.model, x, "any") for x in (image, inside, outside))
        assert own == near != far
        assert math.isclose(float((outside - image).norm()), case.limits[0] * (1 + 1e-7), rel_tol=1e-9)


@pytest.mark.parametrize("kind", BLOCKS)
def test_residual_blocks_hold_inside_and_break_outside(kind):
    """The radius of the case against the network itself: in exact fractions where there are no convolutions."""
    for seed in range(4):
        case = residual_blocks(kind, seed)
        (_, outside), image = case.witnesses[0], case.images_BCHW[0].double()
        inside = image + (outside - image) * ((1 - 1e-7) / (1 + 1e-7))
        points = (image, inside, outside)
        if kind == "convolutions":
            own, near, far = (Claim().class_of(case.model, x, "any") for x in points)
        else:
            logits = [real_logits(case.model, x) for x in points]
            own, near, far = (z.index(max(z)) for z in logits)
        assert own == near != far
        assert math.isclose(float((outside - image).norm()), case.limits[0] * (1 + 1e-7), rel_tol=1e-9)


def test_exact_norms():
    root = math.sqrt(6)
    assert Fraction(root) ** 2 < 6
    assert exceeds(np.ones((3, 2)), root) and not exceeds(np.ones((3, 2)), math.nextafter(root, 3))
    assert exceeds(np.eye(3), math.nextafter(1.0, 0.0)) and not exceeds(np.eye(3), 1.0)
    assert not exceeds(np.zeros((2, 3)), 0.0) and exceeds(np.full((1, 1), 5e-324), 0.0)
    for settings in ({"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "groups": 2}, {"padding": (0, 1)}):
        layer = nn.Conv2d(2, 4, 3, bias=False, dtype=torch.float64, **settings).requires_grad_(False)
        image = torch.randn(1, 2, 6, 5, dtype=torch.float64)
        written_out = torch.from_numpy(operator_matrix(layer, (2, 6, 5)))
        assert torch.allclose(written_out @ image.flatten(), layer(image).flatten(), rtol=1e-12, atol=1e-12)


# --- the report -------------------------------------------------------------------------------------------------------


def answering(predicted, radius):
    return lambda model, images: (torch.tensor(predicted), torch.tensor(radius))


def test_verdicts_on_simple_answers():
    case = razor_edge("permutations", 0)
    own = Claim().class_of(case.model, case.images_BCHW[0], "any")
    limit = case.limits[0]

    def verdict(certify):
        outcome = judge(certify, case, Claim())
        return outcome.violated, outcome.refused

    def refusing(model, images):
        raise RuntimeError("no")

    assert verdict(refusing) == (False, True)
    for silent in (answering([-1], [9.0]), answering([own], [0.0]), answering([own], [math.nan])):
        assert verdict(silent) == (False, False)
    assert verdict(answering([own], [limit * (1 - 1e-7)])) == (False, False)
    for false in ([limit * (1 + 2e-7)], [math.inf]):
        assert verdict(answering([own], false)) == (True, False)
    assert verdict(answering([own + 1], [1e-12])) == (True, False), "another class than the network's"
    assert verdict(answering([own, own], [0.0, 0.0])) == (True, False), "more answers than images"
    assert judge(answering([0], [0.1]), Case(case.model, case.images_BCHW, nothing=True), Claim()).violated
    assert kept(answering([own], [limit * (1 - 5e-8)]), case, 1e-7) == 1


def test_reports_and_the_command_line(capsys):
    target = "lipcert.bench.reference:REFERENCE"
    assert main(["--bound", f"{target}.bound", "--certify", f"{target}.certify", "--cases", "1"]) == 0
    assert "no claim contradicted" in capsys.readouterr().out
    assert main(["--bound", "lipcert.bench.wrong_norms:longest_row", "--cases", "2"]) == 1
    printed = capsys.readouterr().out
    assert "UNSOUND" in printed and "| norm, random | norm | 2 |" in printed
    with pytest.raises(ValueError, match="give at least one"):
        run_bench()
    with pytest.raises(ValueError, match="guarantee='proven'"):
        run_bench(bound=upper, guarantee="proven")
    with pytest.raises(KeyError, match="no check"):
        BenchReport(())["nothing"]


# --- the long run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_estimates")
def test_a_thousand_razor_edges():
    many = prepare(250, layers=False)
    claim = CLAIMS[0]
    answers = {}

    def once(model, images_BCHW):  # the certifier, remembering: each network is certified once and asked about twice
        if model not in answers:
            answers[model] = certifier(claim)(model, images_BCHW)
        return answers[model]

    for name, cases in many.edges.items():
        check = tally(name, "radius", (judge(once, case, claim) for case in cases))
        assert check.violations == 0, check
        if name.startswith("razor edge"):
            assert sum(kept(once, case, 1e-7) for case in cases) == len(cases) == 250


@pytest.mark.slow
def test_many_layers():
    report = examine(prepare(120, networks=False), upper, None)
    assert report.cases >= 2000 and not report.failed, report.table()


@pytest.mark.slow
def test_the_whole_mutation_table():
    rows = mutation.mutation_table(12)
    assert all(row.killed for row in rows), mutation.as_markdown(rows)
