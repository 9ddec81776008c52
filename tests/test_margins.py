"""Margins over constants: ties, non-finite numbers, rounding, and the radii that the study has stored."""

import csv
import math
from fractions import Fraction

import pytest
import torch
from pairs import CLAIMS, just_below, made_evidence, pair_truth

from lipcert.certify import certify
from lipcert.chain import NotCertifiable
from lipcert.data import load_dataset, to_unit
from lipcert.margins import ABSTAIN, margin_radius, pair_radii
from lipcert.models import load_network
from lipcert.paths import RESULTS


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


ONES = torch.ones(3, 3, dtype=torch.float64)
NOTHING = {
    "tie for the top": (rows([1.0, 1.0, 0.0]), ONES),
    "all equal": (rows([0.0, 0.0, 0.0]), ONES),
    "NaN logit": (rows([math.nan, 1.0, 0.0]), ONES),
    "all NaN": (rows([math.nan] * 3), ONES),
    "NaN runner-up": (rows([2.0, math.nan, 0.0]), ONES),
    "infinite top": (rows([math.inf, 1.0, 0.0]), ONES),
    "minus infinite other": (rows([2.0, -math.inf, 0.0]), ONES),
    "NaN constant": (rows([2.0, 1.0, 0.0]), ONES * math.nan),
    "infinite constant": (rows([2.0, 1.0, 0.0]), ONES * math.inf),
    "zero constant": (rows([2.0, 1.0, 0.0]), ONES * 0),
    "negative constant": (rows([2.0, 1.0, 0.0]), -ONES),
    "one bad constant": (rows([2.0, 1.0, 0.0]), torch.where(torch.eye(3).bool().roll(1, 1), math.nan, ONES)),
    "smallest margin": (rows([5e-324, 0.0, -1.0]), ONES),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_promised(name):
    predicted, radius, rival = margin_radius(*NOTHING[name])
    assert (predicted.item(), radius.item(), rival.item()) == (ABSTAIN, 0.0, ABSTAIN)


def test_one_bad_row_does_not_touch_the_others():
    predicted, radius, _ = margin_radius(rows([2.0, 1.0, 0.0], [math.nan, 1.0, 0.0], [0.0, 3.0, 1.0]), ONES)
    assert predicted.tolist() == [0, ABSTAIN, 1]
    assert radius[0] > 0 and radius[1] == 0 and radius[2] > 0


def test_radius_is_strictly_below_the_exact_quotient():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-150, 150, 400, dtype=torch.float64)
    logits = torch.randn(400, 3, generator=generator, dtype=torch.float64) * scales[:, None]
    lipschitz = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.1
    predicted, radius, _ = margin_radius(logits, lipschitz)
    for z, j, r in zip(logits.tolist(), predicted.tolist(), radius.tolist(), strict=True):
        truth = min((Fraction(z[j]) - Fraction(z[i])) / Fraction(lipschitz[j, i].item()) for i in range(3) if i != j)
        assert truth * (1 - Fraction(1, 2**50)) <= Fraction(r) < truth


def test_overflowing_margins_stay_below_the_truth():
    for high, constant in ((1.7e308, 1e3), (1.7e308, 1e-3)):
        _, radius, _ = margin_radius(rows([high, -high]), torch.full((2, 2), constant, dtype=torch.float64))
        assert Fraction(radius.item()) < 2 * Fraction(high) / Fraction(constant)


# --- pairs of classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", CLAIMS)
def test_radii_of_pairs_are_just_below_the_inequality_in_rationals(guarantee):
    for seed in range(4):
        evidence = made_evidence(seed, guarantee)
        images, classes = evidence.logits_BK.shape
        for own in range(classes):
            radius_BK = evidence.radii(torch.full((images,), own))
            for image, row in enumerate(radius_BK.tolist()):
                assert row[own] == math.inf
                for other in set(range(classes)) - {own}:
                    truth = max(Fraction(0), pair_truth(evidence, image, own, other))
                    assert just_below(row[other], truth), (seed, image, own, other)


def test_each_row_may_ask_about_another_class():
    evidence = made_evidence(9, "executed")
    class_B = torch.arange(len(evidence.logits_BK)) % 5
    whole = torch.stack([evidence.radii(torch.full_like(class_B, own)) for own in range(5)])
    assert torch.equal(evidence.radii(class_B), whole[class_B, torch.arange(len(class_B))])


def test_the_top_class_of_pairs_is_the_certificate():
    evidence = made_evidence(10, "real", images=50)
    predicted, radius, _ = margin_radius(evidence.logits_BK, *evidence.constants)
    pairs = evidence.radii(evidence.logits_BK.argmax(1)).amin(1)
    assert torch.equal(radius, pairs) and torch.equal(predicted == ABSTAIN, pairs == 0)
    assert 0 < (predicted == ABSTAIN).sum() < 50


def test_a_row_with_a_bad_logit_proves_no_pair():
    radius = pair_radii(rows([2.0, 1.0, math.nan], [2.0, 1.0, 0.0]), torch.tensor([0, 1]), ONES)
    assert radius[0].tolist() == [0.0] * 3 and radius[1, :2].tolist() == [0.0, math.inf] and radius[1, 2] > 0


def test_logits_in_float32_are_refused():
    with pytest.raises(NotCertifiable, match="float32"):
        margin_radius(rows([1.0, 0.0]).float(), ONES[:2, :2])


def test_the_stored_radii_of_the_digits_come_out_again():
    data, network = load_dataset("digits"), load_network(RESULTS / "models" / "digits-liresnet-L6W32")
    images = to_unit(data.test.images_NCHW, data.scale, torch.float64)
    found = certify(network, images, effort="tight")
    with open(RESULTS / "radii" / f"{network.card['run']}.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert found.prediction_B.tolist() == [int(row["prediction"]) for row in stored]
    assert found.runner_up_B.tolist() == [int(row["runner_up"]) for row in stored]
    # On one machine to the last bit; another one's BLAS may add in another order.
    radius = torch.tensor([float(row["radius"]) for row in stored], dtype=torch.float64)
    torch.testing.assert_close(found.radius_B, radius, rtol=1e-12, atol=0)
