"""Certified sets of classes against rationals, closed forms and attacks; what ties and bad numbers must not do."""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
from nets import linear, tiny_model
from pairs import CLAIMS, exact, just_below, made_evidence, set_truth
from torch import nn

from lipcert.certify import certified_correct, certify, vra
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.margins import ABSTAIN
from lipcert.models import load_network
from lipcert.paths import RESULTS
from lipcert.radius import Radius
from lipcert.relaxed import SetCertificates, certify_affinity, certify_top_k, relaxed_correct, relaxed_vra, set_radii

ALL_CLAIMS = (*((g, "float64") for g in CLAIMS), ("real", "float32"), ("executed", "float32"))


def certified(logits, k_max=None, lipschitz=1.0) -> SetCertificates:
    """Nominal certificates from logits alone, all constants equal."""
    evidence = made_evidence(0, "nominal", images=len(logits), classes=len(logits[0]))
    evidence.logits_BK[:] = torch.tensor(logits, dtype=torch.float64)
    evidence.bounds.margin_lipschitz_KK = torch.full((len(logits[0]),) * 2, lipschitz, dtype=torch.float64)
    radii = set_radii(evidence, k_max or len(logits[0]) - 1)
    return SetCertificates(*radii, evidence.logits_BK, evidence.bounds, guarantee="nominal")


@pytest.fixture(scope="module")
def digits():
    """The shipped network, its bounds, test images and labels."""
    data, network = load_dataset("digits"), load_network(RESULTS / "models" / "digits-liresnet-L6W32")
    images = to_unit(data.test.images_NCHW, data.scale, torch.float64)
    return network, chain_bounds(network, data.shape), images, data.test.labels_N


# --- exact truth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", CLAIMS)
def test_radii_of_sets_are_just_below_the_least_of_all_pairs(guarantee):
    nothing = 0
    for seed in range(12):
        evidence = made_evidence(seed, guarantee)
        _, radius_BT, runner_up_BT = set_radii(evidence, 4)
        for (image, k), rival in zip(itertools.product(range(12), (1, 2, 3, 4)), runner_up_BT.flatten(), strict=True):
            truth = set_truth(evidence, image, k)
            assert just_below(radius_BT[image, k - 1].item(), truth), (seed, image, k)
            assert (rival == ABSTAIN) == (truth == 0)
            nothing += truth == 0
    assert 20 < nothing < 500, "ties should be there, and not everywhere"


@pytest.mark.parametrize("seed", range(12))
def test_linear_classifier_in_the_plane_is_exact(seed):
    """Class j stays above i up to the line z_j = z_i, so the set changes at the nearest line between in and out."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-9, 10, (5, 2), generator=generator)
    bias = torch.randint(-9, 10, (5,), generator=generator)
    images = torch.randint(64, 193, (4, 1, 1, 2), generator=generator).double() / 256
    net = nn.Sequential(nn.Flatten(), linear(weight, bias)).eval()
    result = certify_top_k(net, images, 4)
    for image, point in enumerate(images.flatten(1)):
        z = [sum(Fraction(int(w)) * exact(x) for w, x in zip(row, point, strict=True)) for row in weight]
        z = [value + int(b) for value, b in zip(z, bias, strict=True)]
        order = sorted(range(5), key=lambda c: -z[c])
        for k in range(1, 5):
            squares = {}
            for j, i in itertools.product(order[:k], order[k:]):
                length = sum(int(w) ** 2 for w in weight[j] - weight[i])
                # Parallel rows never meet; then any radius is right.
                squares[j, i] = (z[j] - z[i]) ** 2 / length if length else Fraction(10**30)
            truth, (j, i) = min((value, pair) for pair, value in squares.items())
            radius = result.radius_BT[image, k - 1].item()
            if truth == 0 or any(z[a] == z[b] for a, b in squares):
                assert radius == 0
                continue
            assert Fraction(radius) ** 2 < truth and math.isclose(radius, math.sqrt(truth), rel_tol=1e-9)
            assert set(result.order_BT[image, :k].tolist()) == set(order[:k])
            step = (weight[i] - weight[j]).double()
            step = step / step.norm() * math.sqrt(truth)
            for factor, kept in ((1 - 1e-7, True), (1 + 1e-7, False)):
                moved = copy.deepcopy(net).double()((point + factor * step).reshape(1, 1, 1, 2))[0]
                assert (set(moved.topk(k).indices.tolist()) == set(order[:k])) == kept, (image, k, factor)


def test_a_pair_is_certified_where_neither_of_its_classes_is():
    result = certified([[2.0, 1.9, 0.0]])
    assert result.radius_BT[0].tolist() == pytest.approx([0.1, 1.9]) and result.best_k_B.tolist() == [2]
    assert result.members(result.best_k_B) == [(0, 1)] and result.runner_up_BT.tolist() == [[1, 2]]


# --- ties and bad numbers ---------------------------------------------------------------------------------------------


def test_a_tie_inside_is_no_obstacle_and_one_across_the_border_is():
    result = certified([[1.0, 1.0, 0.0, -1.0], [2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0] * 4])
    assert (result.radius_BT > 0).tolist() == [
        [False, True, True],
        [True, False, True],
        [False, False, True],
        [False, False, False],
    ]
    assert result.members(result.best_k_B) == [(0, 1), (0,), (0, 1, 2), ()]
    assert result.best_k_B.tolist() == [2, 1, 3, ABSTAIN] and result.radius_B[3] == 0
    # At radius 0 too, nothing proven is nothing.
    assert torch.equal(result.certified_BT("0"), result.radius_BT > 0)
    assert result.chosen_k_B("0").tolist() == [3, 3, 3, ABSTAIN]
    assert result.chosen_k_B("0", "strictest").tolist() == [2, 1, 3, ABSTAIN]
    for label, count in ((0, 3), (1, 2), (2, 1), (3, 0)):
        assert relaxed_correct(result, torch.full((4,), label), "0", "strictest") == count


def test_a_tie_for_the_top_is_certified_as_a_pair_and_holds_when_run():
    net = nn.Sequential(nn.Flatten(), linear(torch.eye(3), [0.5, 0.5, 0.0])).eval()
    image = torch.full((1, 1, 1, 3), 0.25, dtype=torch.float64)
    assert certify(net, image).prediction_B.tolist() == [ABSTAIN]
    result = certify_top_k(net, image, 2)
    assert result.radius_BT[0, 0] == 0 and result.radius_BT[0, 1] == pytest.approx(0.5 / math.sqrt(2))
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(1000, 1, 1, 3, generator=generator, dtype=torch.float64)
    step *= result.radius_BT[0, 1] / step.flatten(1).norm(dim=1)[:, None, None, None]
    logits = copy.deepcopy(net).double()(image + step * (1 - 1e-12))
    assert (logits.topk(2).indices.sort(1).values == torch.tensor([0, 1])).all()
    assert len(set(logits.argmax(1).tolist())) == 2, "the order inside is not promised, and does change"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(3))
def test_a_logit_that_is_not_finite_certifies_no_set(bad, place):
    logits = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]
    logits[0][place] = bad
    result = certified(logits)
    assert (result.radius_BT > 0).tolist() == [[False, False], [True, True]]
    assert result.best_k_B.tolist() == [ABSTAIN, 1] and result.runner_up_BT[0].tolist() == [ABSTAIN] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_bad_constant_certifies_no_set(bad):
    assert not certified([[3.0, 2.0, 1.0]], lipschitz=bad).radius_BT.any()


@pytest.mark.parametrize("limit, expected", [(1.0, [False] * 4), (2.0, [True] * 4), (math.nan, [False] * 4)])
def test_balls_on_which_sums_could_overflow_certify_nothing(limit, expected):
    evidence = made_evidence(3, "executed")
    evidence.logits_BK[:] = torch.arange(5, 0, -1)
    evidence.errors.sums.at[:], evidence.errors.sums.slope[:] = 1.0, 0.1
    object.__setattr__(evidence, "limit", limit)
    assert (set_radii(evidence, 4)[1][0] > 0).tolist() == expected


def test_overflow_counts_at_the_radius_of_each_set():
    evidence = made_evidence(4, "nominal", images=1, classes=3)
    evidence.logits_BK[:] = torch.tensor([3.0, 2.0, -100.0])
    evidence.errors.sums.at[:], evidence.errors.sums.slope[:] = 0.0, 1.0
    evidence.bounds.margin_lipschitz_KK = torch.ones(3, 3, dtype=torch.float64)
    object.__setattr__(evidence, "limit", 50.0)
    assert set_radii(evidence, 2)[1][0].tolist() == [pytest.approx(1.0), 0.0]


# --- k = 1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee, arithmetic", ALL_CLAIMS)
def test_for_one_class_the_result_is_that_of_certify_to_the_bit(digits, guarantee, arithmetic):
    network, bounds, images, labels = digits
    asked = {"guarantee": guarantee, "arithmetic": arithmetic, "bounds": bounds}
    one, sets = certify(network, images, **asked), certify_top_k(network, images, 3, **asked).up_to(1)
    assert torch.equal(one.radius_B, sets.radius_B) and torch.equal(one.runner_up_B, sets.runner_up_BT[:, 0])
    assert torch.equal(one.prediction_B != ABSTAIN, sets.best_k_B == 1)
    sound = one.prediction_B != ABSTAIN
    assert torch.equal(one.prediction_B[sound], sets.order_BT[sound, 0]) and torch.equal(one.logits_BK, sets.logits_BK)
    for radius in ("0", "36/255", "0.3"):
        for choice in ("loosest", "strictest"):
            assert vra(one, labels, radius) == relaxed_vra(sets, labels, radius, choice)
    assert (sets.guarantee, sets.arithmetic, sets.effort) == (guarantee, arithmetic, "fast")


def test_abstaining_for_one_class_is_abstaining_of_certify():
    net = nn.Sequential(nn.Flatten(), linear(torch.eye(3), [0.5, 0.5, 0.0])).eval()
    images = torch.rand(6, 1, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    images[::2] = 0.25
    one, sets = certify(net, images), certify_top_k(net, images, 1)
    assert (sets.best_k_B == ABSTAIN).tolist() == (one.prediction_B == ABSTAIN).tolist() == [True, False] * 3
    assert torch.equal(sets.radius_B, one.radius_B) and torch.equal(sets.runner_up_BT[:, 0], one.runner_up_B)


# --- what grows and what shrinks --------------------------------------------------------------------------------------


def test_larger_k_max_and_weaker_guarantees_never_certify_less(digits):
    network, bounds, images, labels = digits
    found = [certify_top_k(network, images[:100], 9, guarantee=g, bounds=bounds) for g in CLAIMS]
    for weaker, stronger in itertools.pairwise(found):
        assert (weaker.radius_BT >= stronger.radius_BT).all()
    whole = found[-1]
    parts = [whole.up_to(k) for k in range(1, 10)]
    assert torch.equal(parts[2].radius_BT, certify_top_k(network, images[:100], 3, bounds=bounds).radius_BT)
    for smaller, larger in itertools.pairwise(parts):
        assert (smaller.radius_B <= larger.radius_B).all()
        for radius in ("0", "0.2", "0.5"):
            counts = [relaxed_correct(part, labels[:100], radius) for part in (smaller, larger)]
            assert counts[0] <= counts[1]
    counts = [relaxed_correct(whole, labels[:100], radius) for radius in ("0", "0.2", "0.5", "1")]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_relaxed_vra_counts_as_a_loop_does(digits):
    network, bounds, images, labels = digits
    result = certify_top_k(network, images, 4, bounds=bounds)
    for radius, choice in itertools.product(("0", "36/255", "0.4", "10"), ("loosest", "strictest")):
        count, chosen = 0, []
        for order, radii, label in zip(result.order_BT.tolist(), result.radius_BT.tolist(), labels, strict=True):
            ks = [k for k in range(1, 5) if radii[k - 1] > 0 and Fraction(radii[k - 1]) >= Radius(radius).exact]
            k = (max if choice == "loosest" else min)(ks, default=ABSTAIN)
            count += k != ABSTAIN and label in order[:k]
            chosen.append(k)
        assert result.chosen_k_B(radius, choice).tolist() == chosen
        assert relaxed_correct(result, labels, radius, choice) == count
        assert relaxed_vra(result, labels, Radius(radius), choice) == count / 360
    assert relaxed_correct(result, labels, "36/255") > certified_correct(
        result.order_BT[:, 0], result.radius_BT[:, 0], labels, "36/255"
    )


def test_a_radius_one_step_short_is_not_certified():
    exactly = Radius("36/255")
    nearest = float(exactly.exact)
    result = certified([[3.0, 2.0, 1.0]] * 3)
    near = [math.nextafter(nearest, 0), nearest, math.nextafter(nearest, 1)]
    result.radius_BT[:, 1] = torch.tensor(near, dtype=torch.float64)
    expected = [Fraction(r) >= exactly.exact for r in result.radius_BT[:, 1].tolist()]
    assert result.certified_BT(exactly)[:, 1].tolist() == expected and expected != [True] * 3


# --- attack -----------------------------------------------------------------------------------------------------------


def test_no_attack_brings_another_class_into_a_certified_set(digits):
    network, bounds, images, _ = digits
    images = images[:50]
    result = certify_top_k(network, images, 3, bounds=bounds)
    precise = copy.deepcopy(network).double()
    for k in (2, 3):
        radius = result.radius_BT[:, k - 1]
        inside = torch.zeros(len(images), 10, dtype=torch.bool).scatter(1, result.order_BT[:, :k], True)
        # Inside the radius nothing may break; well outside something must, or the attack shows nothing.
        for scale, breaks in ((1.0, False), (6.0, True)):
            budget = (scale * radius)[:, None, None, None]
            broken = torch.zeros(len(images), dtype=torch.bool)
            moved = torch.zeros_like(images)
            for _ in range(12):
                moved.requires_grad_()
                z = precise(images + moved)
                gap = z.masked_fill(inside, -math.inf).amax(1) - z.masked_fill(~inside, math.inf).amin(1)
                (gradient,) = torch.autograd.grad(gap.sum(), moved)
                length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
                moved = (moved + budget * gradient / length / 4).detach()
                size = moved.flatten(1).norm(dim=1)[:, None, None, None]
                moved = moved * ((1 - 1e-12) * budget / size).clamp(max=1.0)
                z = precise(images + moved)
                broken |= z.masked_fill(inside, -math.inf).amax(1) >= z.masked_fill(~inside, math.inf).amin(1)
            assert broken.float().mean() > 0.3 if breaks else not broken.any(), (k, scale)


# --- affinity ---------------------------------------------------------------------------------------------------------


def test_only_sets_inside_an_affinity_set_are_kept_and_single_classes_always():
    logits = [[3.0, 2.9, 1.0, 0.0], [3.0, 1.0, 2.9, 0.0], [0.0, 2.0, 1.9, 1.8], [0.0, 2.0, 2.0, 1.8]]
    result = certified(logits).within([[0, 1], [1, 2, 3]])
    assert (result.radius_BT > 0).tolist() == [
        [True, True, False],  # {0}, {0, 1}
        [True, False, False],  # {0}; {0, 2} is in no set
        [True, True, True],  # {1}, {1, 2}, {1, 2, 3}
        [False, True, True],  # a tie for the top
    ]
    assert result.affinity == ((0, 1), (1, 2, 3)) and result.best_k_B.tolist() == [2, 1, 3, 3]
    assert result.runner_up_BT[1].tolist() == [2, ABSTAIN, ABSTAIN]
    assert (certified([[0.0, 1.0, 2.0, 3.0]]).within([[0, 1]]).radius_BT > 0).tolist() == [[True, False]]


def test_affinity_is_top_k_with_the_other_sets_struck_out(digits):
    network, bounds, images, labels = digits
    sets = "[3,5,9][4,7][1,8]"
    result = certify_affinity(network, images, sets, network.card["class_names"], bounds=bounds)
    top = certify_top_k(network, images, 3, bounds=bounds)
    allowed = [{3, 5, 9}, {4, 7}, {1, 8}]
    for order, own, other in zip(top.order_BT.tolist(), result.radius_BT.tolist(), top.radius_BT.tolist(), strict=True):
        for k in (1, 2, 3):
            inside = k == 1 or any(set(order[:k]) <= members for members in allowed)
            assert own[k - 1] == (other[k - 1] if inside else 0)
    at = "36/255"
    assert relaxed_correct(top.up_to(1), labels, at) < relaxed_correct(result, labels, at)
    assert relaxed_correct(result, labels, at) <= relaxed_correct(top, labels, at)


def test_more_affinity_never_certifies_less():
    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).tolist()
    top = certified(logits)
    few, more = top.within([[0, 1, 2]]), top.within([[0, 1, 2], [2, 3, 4, 5]])
    assert (few.radius_B <= more.radius_B).all() and (more.radius_B <= top.radius_B).all()
    assert (few.radius_B < more.radius_B).any() and (more.radius_B < top.radius_B).any()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k_max", [0, -1, 3, 10, 1.0, True, "2"])
def test_k_max_must_leave_a_class_outside(k_max):
    net = nn.Sequential(nn.Flatten(), linear(torch.eye(3))).eval()
    with pytest.raises(NotCertifiable, match="k_max"):
        certify_top_k(net, torch.zeros(1, 1, 1, 3), k_max)


def test_what_certify_refuses_is_refused():
    net = nn.Sequential(nn.Flatten(), linear(torch.eye(3)))
    for model, images, options, error in (
        (net.train(), torch.zeros(1, 1, 1, 3), {}, NotCertifiable),
        (copy.deepcopy(net).eval(), torch.full((1, 1, 1, 3), 2.0), {}, NotCertifiable),
        (copy.deepcopy(net).eval(), torch.zeros(1, 1, 1, 3), {"guarantee": "estimated"}, NotCertifiable),
        (copy.deepcopy(net).eval(), torch.zeros(1, 1, 1, 3), {"norm": "linf"}, NotCertifiable),
        (nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), torch.zeros(1, 1, 1, 3), {}, TypeError),
        (nn.Sequential().eval(), torch.zeros(1, 1, 1, 3), {}, TypeError),
    ):
        with pytest.raises(error):
            certify_top_k(model, images, 2, **options)


def test_a_network_and_its_chain_agree():
    model, images = tiny_model(4), torch.rand(3, 1, 8, 8)
    assert torch.equal(certify_top_k(model, images, 4).radius_BT, certify_top_k(model.plain(), images, 4).radius_BT)


def test_wrong_requests_of_finished_certificates():
    result = certified([[3.0, 2.0, 1.0, 0.0]], 2)
    for labels in (torch.zeros(2, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)):
        with pytest.raises(NotCertifiable, match="labels"):
            relaxed_correct(result, labels, "0")
    with pytest.raises(NotCertifiable, match="k_max=3"):
        result.up_to(3)
    with pytest.raises(ValueError, match="choice='best'"):
        result.chosen_k_B("0", "best")
    assert relaxed_correct(result, torch.tensor([ABSTAIN]), "0") == 0
