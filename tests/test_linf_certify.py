"""Certificates in l_inf: margin against boxes, exact radii, what must not be certified, what is refused."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from linf_nets import KINDS, LIPSCHITZ, filled, frozen, nearest, pixel, tiny
from nets import identity_net, linear
from torch import nn

from benchmarks.linf_soundness import ATTACKS, attack, families, train
from lipcert.certify import ABSTAIN, GUARANTEES, certify, certify_each, gather_evidence
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.layers import Residual
from lipcert.linf import interval as interval_module
from lipcert.linf import search
from lipcert.linf.layers import Distance, Negate, SortedDistance
from lipcert.radius import Radius
from lipcert.results import bounds_part

CLAIMS = tuple((g, a) for g in GUARANTEES for a in ("float64", "float32") if (g, a) != ("nominal", "float32"))
PROVEN = CLAIMS[1:]


def images(count: int, low: float = 0.0, high: float = 1.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 1, 3, 3, generator=generator, dtype=torch.float64)


def linf(model, images_BCHW, method="interval", guarantee="executed", arithmetic="float64", **more):
    return certify(model, images_BCHW, "linf", method, guarantee=guarantee, arithmetic=arithmetic, **more)


@pytest.mark.parametrize("kind", ["distances", "windows"])
@pytest.mark.parametrize("claim", PROVEN)
def test_without_clipping_boxes_say_what_the_margin_says(kind, claim):
    inside = images(20, 0.45, 0.55)
    by_margin = linf(tiny(kind), inside, "margin", *claim)
    reached = by_margin.radius_B[by_margin.radius_B < 0.4]
    assert len(reached) > 5
    slack = 1e-5 if claim[1] == "float32" else 1e-12
    # Slightly below every image's own margin radius boxes pass, slightly above they do not.
    for number in by_margin.radius_B.lt(0.4).nonzero()[:, 0].tolist():
        one, radius = inside[number : number + 1], by_margin.radius_B[number].item()
        assert (
            linf(tiny(kind), one, "interval", *claim, radii=[Fraction(radius) - Fraction(slack)]).radius_B
            >= radius - slack
        )
        above = linf(tiny(kind), one, "interval", *claim, radii=[Fraction(radius) + Fraction(slack)])
        assert above.radius_B < radius + slack


@pytest.mark.parametrize("kind", LIPSCHITZ)
def test_clipping_can_only_help(kind):
    some = images(60).round(decimals=0) * 0.9 + 0.05 * images(60, seed=1)
    by_margin, by_boxes = (linf(tiny(kind), some, method) for method in ("margin", "interval"))
    assert (by_boxes.prediction_B == by_margin.prediction_B).all()
    assert (by_boxes.radius_B >= by_margin.radius_B * (1 - search.RELATIVE)).all()
    assert (by_boxes.radius_B > by_margin.radius_B * 1.05).any()


@pytest.mark.parametrize("claim", CLAIMS)
def test_eight_of_255_is_exact(claim):
    eight, hair = Fraction(8, 255), 1e-6 if claim[1] == "float32" else 1e-12
    chain = nearest([0.0, 1.0])
    just, short = pixel(float(Fraction(1, 2) - eight) - hair), pixel(float(Fraction(1, 2) - eight) + hair)
    for method in ("margin", "interval"):
        assert Radius("8/255").within(linf(chain, just, method, *claim, radii=["8/255"]).radius_B.item())
        assert not Radius("8/255").within(linf(chain, short, method, *claim, radii=["8/255"]).radius_B.item())
        assert Radius("0.0313").within(linf(chain, short, method, *claim, radii=["0.0313", "8/255"]).radius_B.item())


def test_the_largest_radius_is_found():
    chain = nearest([0.0, 1.0])
    for x in (0.01, 0.2, 0.49, 0.4999, 0.8):
        certificates = linf(chain, pixel(x))
        true = abs(0.5 - x)
        assert true - max(search.FINEST, 1.01 * search.RELATIVE * true) <= certificates.radius_B.item() < true
        assert certificates.runner_up_B.item() == 1 - certificates.prediction_B.item() == int(x < 0.5)


def test_given_radii_are_reached_when_they_pass():
    some, radii = images(40), ["1/255", "2/255", "8/255", "0.1"]
    for kind in KINDS:
        free, asked = linf(tiny(kind), some), linf(tiny(kind), some, radii=radii)
        for radius in radii:
            assert (free.radius_B >= float(Radius(radius))).sum() <= (asked.radius_B >= float(Radius(radius))).sum()


def test_a_ball_of_radius_one_covers_everything():
    constant = nearest([-1.0, 4.0])
    assert linf(constant, pixel(0.3, 1.0)).radius_B.tolist() == [1.0, 1.0]
    assert linf(constant, pixel(0.3), radii=[2]).radius_B.tolist() == [2.0]


def test_a_class_without_a_ball():
    steep = frozen(nn.Flatten(), linear([[2.0], [0.0]], [-1.0, 0.0]))
    certificates = linf(steep, pixel(0.5 + 2.0**-30))
    assert (certificates.prediction_B.item(), certificates.radius_B.item()) == (0, 0.0)


@pytest.mark.parametrize("method", ["margin", "interval"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_ties_abstain(method, claim):
    for chain, x in ((nearest([0.25, 0.25]), 0.7), (nearest([0.0, 1.0]), 0.5)):
        certificates = linf(chain, pixel(x), method, *claim)
        assert (certificates.prediction_B.item(), certificates.radius_B.item()) == (ABSTAIN, 0.0)
        assert certificates.runner_up_B.item() == ABSTAIN


def test_ties_that_rounding_makes_are_not_certified(monkeypatch):
    # Outputs near 2^20 are multiples of 1/8 in float32: at 0.45 from one weight and 0.55 from the other both are 0.5.
    chain, x = nearest([0.0, 1.0], shift=2.0**20), pixel(0.3)
    assert chain(torch.tensor([[[[0.45]]]])).tolist() == [[-(2.0**20) - 0.5] * 2]
    assert linf(chain, x, arithmetic="float32", radii=["0.15"]).radius_B < 0.15
    assert linf(chain, x, arithmetic="float32", radii=["0.05"]).radius_B >= 0.05
    monkeypatch.setattr(interval_module, "below", lambda upper_BK, own_B1: upper_BK <= own_B1)
    assert linf(chain, x, arithmetic="float32", radii=["0.15"]).radius_B >= 0.15


def test_overflow_is_not_certified():
    huge = 3e38
    shifted = nearest([-huge, 1.0], shift=huge)
    hidden = frozen(
        nn.Flatten(),
        linear([[huge], [1.0]]),
        linear([[-huge, 0.0], [0.0, 1.0]]),
        nn.ReLU(),
        linear(torch.eye(2), [0.0, 9.0]),
    )
    for chain, methods in ((shifted, ("margin", "interval")), (hidden, ("interval",))):
        for method, guarantee in itertools.product(methods, ("real", "executed")):
            certificates = linf(chain, pixel(0.5), method, guarantee, "float32")
            assert (certificates.prediction_B.item(), certificates.radius_B.item()) == (ABSTAIN, 0.0)


def test_a_chain_of_sums_needs_its_error_terms(monkeypatch):
    # Logits of 2^24 that are 4 apart: in float32 sums of such numbers may be off by more.
    head = linear([[2.0**24], [2.0**24]], [0.0, 4.0])
    chain = frozen(nn.Flatten(), head)
    assert linf(chain, pixel(1.0)).prediction_B.item() == 1
    assert linf(chain, pixel(1.0), arithmetic="float32").prediction_B.item() == ABSTAIN
    monkeypatch.setattr(interval_module.Rounding, "sum_error", lambda self, terms, name: 0.0)
    assert linf(chain, pixel(1.0), arithmetic="float32").prediction_B.item() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_batch_does_not_matter(kind, claim):
    some = images(70)
    whole = linf(tiny(kind), some, "interval", *claim)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    parts = [linf(tiny(kind), part, "interval", *claim) for part in some[order].split(27)]
    for name in ("prediction_B", "radius_B", "runner_up_B", "logits_BK"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)[order])


def test_the_number_of_threads_does_not_matter():
    for kind in ("distances", "convolution"):
        torch.set_num_threads(1)
        alone = linf(tiny(kind), images(150))
        torch.set_num_threads(2)
        assert torch.equal(linf(tiny(kind), images(150)).radius_B, alone.radius_B)


def test_several_claims_at_once_are_the_same_as_each():
    some = images(10)
    for method in ("margin", "interval"):
        for claim, found in zip(CLAIMS, certify_each(tiny("sorted"), some, CLAIMS, "linf", method), strict=True):
            alone = linf(tiny("sorted"), some, method, *claim)
            assert torch.equal(found.radius_B, alone.radius_B) and torch.equal(found.logits_BK, alone.logits_BK)
            assert (found.norm, found.method, found.guarantee, found.arithmetic) == ("linf", method, *claim)


def test_stronger_guarantees_promise_less():
    found = [linf(tiny("distances"), images(30), "margin", *claim).radius_B for claim in CLAIMS]
    nominal, real, real32, executed, executed32 = (found[i] for i in (0, 1, 2, 3, 4))
    assert (nominal >= real).all() and (real >= executed).all()
    assert (real >= real32).all() and (executed >= executed32).all()
    assert (nominal - executed).max() < 1e-13 and (nominal - executed32).max() < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_network(kind):
    some = images(50)
    double = tiny(kind).double()
    certificates = linf(tiny(kind), some)
    assert torch.equal(certificates.prediction_B, double(some).argmax(1))
    assert torch.allclose(certificates.logits_BK, double(some))
    if kind in LIPSCHITZ and kind != "sorted":
        assert torch.equal(linf(tiny(kind), some, arithmetic="float32").logits_BK, tiny(kind)(some.float()).double())


@pytest.mark.parametrize("name", ["distances", "sorted distances", "convolutions (IBP)"])
def test_attacks_fail_inside_and_work_outside(name):
    torch.manual_seed(0)
    digits = load_dataset("digits")
    every = to_unit(digits.train.images_NCHW, digits.scale, torch.float64)
    chain, some = train(families()[name], every, digits.train.labels_N, 50), every[:8]
    found = linf(chain, some)
    assert (found.radius_B > 0).all()
    settings = ATTACKS["multi-restart"] | {"steps": 15, "restarts": 2}
    assert not attack(chain, some, found.prediction_B, found.radius_B, **settings).any()
    assert attack(chain, some, found.prediction_B, torch.full_like(found.radius_B, 0.5), **settings).any()


def test_constants_for_records():
    some = images(5)
    for kind, method in ((kind, "interval") for kind in KINDS):
        found = linf(tiny(kind), some, method)
        part = bounds_part(found)
        assert math.isfinite(part.upper) and len(part.layers) == (len(tiny(kind)) if kind in LIPSCHITZ else 0)
        assert (found.estimated_radius_B.isfinite()).all()
        assert kind in LIPSCHITZ or found.estimated_radius_B.max() == 0
    assert (part.lower, linf(tiny("sorted"), some).bounds.upper) == (0.0, 1.0)


def test_the_row_sums_bound_the_constant():
    chain = tiny("convolution").double()
    upper = linf(tiny("convolution"), images(1)).bounds.upper
    x, away = images(200), 0.01 * (2 * images(200, seed=1).round() - 1)
    assert (chain(x + away) - chain(x)).abs().max() <= upper * 0.01


def test_evidence_for_sets_of_classes():
    some, claim = images(30), [("executed", "float64")]
    (evidence,) = gather_evidence(tiny("distances"), some, claim, "linf")
    found = linf(tiny("distances"), some, "margin")
    assert torch.equal(evidence.radii(found.prediction_B).amin(1), found.radius_B)
    with pytest.raises(NotCertifiable, match="method='margin'"):
        gather_evidence(tiny("distances"), some, claim, "linf", "interval")


def test_a_mean_that_is_none_goes_through_boxes():
    assert linf(sort_net(1.5), images(5)).bounds.upper > 1
    assert linf(sort_net(1.0), images(5)).bounds.upper == 1


class Louder(Distance):
    def forward(self, x):
        return 100 * super().forward(x)


def damaged(value: float, kind: type = Distance) -> nn.Sequential:
    layer = filled(kind(9, 3) if kind is Distance else kind(9, 3, 0.5))
    layer.weight.data[0, 0] = value
    return frozen(nn.Flatten(), layer, Negate())


def sort_net(keep: float) -> nn.Sequential:
    layer = filled(SortedDistance(9, 3, 0.5))
    layer.keep = keep  # its constructor would refuse some
    return frozen(nn.Flatten(), layer, Negate())


def with_layer(*layers) -> nn.Sequential:
    return frozen(*layers, nn.Flatten(), filled(Distance(9, 3)), Negate())


def not_float32() -> nn.Sequential:
    chain = tiny("distances").double()
    chain[1].weight.data[0, 0] = 0.1
    return chain


ONE = images(1)
REFUSALS = {
    "margin of a dense layer": (lambda: linf(tiny("dense in the middle"), ONE, "margin"), "Linear at '2'.*'interval'"),
    "margin of a convolution": (lambda: linf(tiny("convolution"), ONE, "margin"), "Conv2d at '0'.*'interval'"),
    "margin of a residual block": (
        lambda: linf(with_layer(Residual(nn.Sequential(nn.ReLU()))), ONE, "margin"), "Residual at '0'.*'interval'",
    ),
    "margin of tanh": (lambda: linf(with_layer(nn.Tanh()), ONE, "margin"), "Tanh at '0'.*'interval'"),
    "unknown layer": (lambda: linf(with_layer(nn.GELU()), ONE), "no l_inf rule for GELU at '0'"),
    "unknown in a block": (lambda: linf(with_layer(Residual(nn.Sequential(nn.GELU()))), ONE), "GELU at '0.branch.0'"),
    "subclass": (lambda: linf(frozen(nn.Flatten(), Louder(9, 3), Negate()), ONE), "Louder at '1'"),
    "reflected padding": (
        lambda: linf(with_layer(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), ONE), "padding_mode='reflect'",
    ),
    "NaN": (lambda: linf(damaged(math.nan), ONE), r"1\.weight holds nan"),
    "infinity": (lambda: linf(damaged(math.inf, SortedDistance), ONE, "margin"), r"1\.weight holds inf"),
    "subnormal weight": (lambda: linf(damaged(1e-40), ONE, arithmetic="float32"), r"1\.weight.*set them to 0"),
    "a mean of more than 1": (lambda: linf(sort_net(1.5), ONE, "margin"), "SortedDistance at '1'.*'interval'"),
    "a mean of nothing": (lambda: linf(sort_net(0.0), ONE, "margin"), r"keep=0\.0"),
    "float64 weights in float32": (lambda: linf(not_float32(), ONE, arithmetic="float32"), "arithmetic='float64'"),
    "sizes": (lambda: linf(tiny("distances"), torch.zeros(1, 1, 2, 2)), "layer '1' cannot take"),
    "one class": (lambda: linf(nearest([0.5]), pixel(0.5)), "at least 2 classes"),
    "logits that are images": (lambda: linf(frozen(nn.ReLU()), ONE), "one logit for each"),
    "bounds of l2": (
        lambda: linf(tiny("distances"), ONE, bounds=chain_bounds(identity_net(), (1, 1, 2))), "not of l_inf",
    ),
    "training mode": (lambda: linf(tiny("distances").train(), ONE), "training mode"),
    "pixels above 1": (lambda: linf(tiny("distances"), 2 * ONE + 1), r"must be in \[0, 1\]"),
    "another norm": (lambda: certify(tiny("distances"), ONE, "l1"), "norm='l1'"),
    "boxes in l2": (lambda: certify(identity_net(), ONE, "l2", "interval"), "method='interval'"),
    "distances in l2": (lambda: certify(tiny("distances"), ONE), "Linear as last layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_a_reason(name):
    call, reason = REFUSALS[name]
    with pytest.raises((NotCertifiable, TypeError), match=reason):
        call()
