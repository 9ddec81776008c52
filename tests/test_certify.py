"""The certifier against exact truth, and against what must not matter to it."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from nets import grey, identity_net, linear, razor_edge, tiny_model
from torch import nn

from lipcert.certify import ABSTAIN, certified_correct, certify, vra
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.radius import Radius


def exact_square(vector) -> Fraction:
    return sum((Fraction(float(v)) ** 2 for v in vector), start=Fraction(0))


# --- exact truth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_linear_classifier_is_exact_to_1e_9_and_never_above(seed):
    generator = torch.Generator().manual_seed(seed)
    classes, pixels = 5, 6
    weight = torch.randint(-9, 10, (classes, pixels), generator=generator)
    bias = torch.randint(-9, 10, (classes,), generator=generator)
    images = torch.randint(0, 257, (8, 1, 2, 3), generator=generator).double() / 256
    result = certify(nn.Sequential(nn.Flatten(), linear(weight, bias)).eval(), images)
    for image, predicted, radius, rival in zip(
        images, result.prediction_B.tolist(), result.radius_B.tolist(), result.runner_up_B.tolist(), strict=True
    ):
        x = [Fraction(v) for v in image.flatten().tolist()]
        z = [sum(int(w) * v for w, v in zip(row, x, strict=True)) + int(b) for row, b in zip(weight, bias, strict=True)]
        best = max(z)
        if z.count(best) > 1:
            assert (predicted, radius, rival) == (ABSTAIN, 0.0, ABSTAIN)
            continue
        assert predicted == z.index(best)
        squared = {
            j: (best - z[j]) ** 2 / exact_square(weight[predicted] - weight[j])
            for j in range(classes)
            if j != predicted
        }
        truth = min(squared.values())
        assert Fraction(radius) ** 2 < truth
        assert math.isclose(radius, math.sqrt(truth), rel_tol=1e-9)
        assert squared[rival] == truth


def test_runner_up_is_the_nearest_boundary_not_the_second_logit():
    # Class 1 has the second logit, but class 2's row is far away from class 0's and its boundary nearer.
    net = nn.Sequential(nn.Flatten(), linear([[0.0, 0.0], [0.1, 0.0], [0.0, 9.0]], [2.0, 1.0, -4.0])).eval()
    result = certify(net, torch.full((1, 1, 1, 2), 0.5))
    assert result.logits_BK[0].argsort(descending=True).tolist() == [0, 1, 2]
    assert result.runner_up_B.tolist() == [2]
    assert result.radius_B.item() == pytest.approx(1.5 / 9, rel=1e-8)


@pytest.mark.parametrize("block", range(4))
def test_razor_edge_nets_hold_inside_and_break_outside(block):
    for seed in range(block * 50, block * 50 + 50):
        net, image, truth, direction = razor_edge(seed)
        result = certify(net, image)
        assert result.prediction_B.tolist() == [0], seed
        certified = result.radius_B.item()
        assert certified < truth, seed
        assert Radius(truth * (1 - 1e-7)).within(certified), seed
        assert not Radius(truth * (1 + 1e-7)).within(certified), seed
        precise = net.double()
        assert precise(image + truth * (1 - 1e-7) * direction).argmax().item() == 0, seed
        assert precise(image + truth * (1 + 1e-7) * direction).argmax().item() == 1, seed


def test_margin_matrix_is_above_the_exact_one_and_tight():
    torch.manual_seed(0)
    for scale in (1.0, 2.0**-20, 2.0**30):
        net = nn.Sequential(nn.Flatten(), linear(torch.randn(5, 4)), linear(torch.randn(4, 5) * scale)).eval()
        bounds = chain_bounds(net, (1, 2, 2))
        rows = net[-1].weight
        for i, j in itertools.permutations(range(4), 2):
            squared = exact_square(rows[i].double() - rows[j].double()) * Fraction(bounds.upper) ** 2
            bound = Fraction(bounds.margin_lipschitz_KK[i, j].item())
            assert squared <= bound**2 <= squared * (1 + Fraction(1, 10**12))
        assert bounds.margin_lipschitz_KK.diagonal().tolist() == [0.0] * 4


def test_products_over_layers_are_rounded_outwards():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), *(linear(torch.randn(4, 4)) for _ in range(6)), linear(torch.randn(3, 4))).eval()
    bounds = chain_bounds(net, (1, 2, 2))
    assert Fraction(bounds.upper) >= math.prod(Fraction(b.enclosure.upper) for b in bounds.layers)
    assert Fraction(bounds.lower) <= math.prod(Fraction(b.enclosure.lower) for b in bounds.layers)
    product = torch.linalg.multi_dot([layer.weight.double() for layer in list(net)[1:-1]][::-1])
    assert torch.linalg.matrix_norm(product, 2).item() <= bounds.upper


def test_scaling_layers_by_powers_of_two_leaves_radii_unchanged():
    model = tiny_model(3, neck="dense").plain()
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    before = certify(model, images)
    for power in (-40, 7, 30):
        # Everything up to the head is positively homogeneous from here on, the last pair undoes the scale.
        dense, head = model.neck_dense, model.head
        with torch.no_grad():
            dense.weight *= 2.0**power
            dense.bias *= 2.0**power
            head.weight *= 2.0**-power
        after = certify(model, images)
        assert torch.equal(after.prediction_B, before.prediction_B)
        torch.testing.assert_close(after.radius_B, before.radius_B, rtol=1e-14, atol=0)
        with torch.no_grad():
            dense.weight *= 2.0**-power
            dense.bias *= 2.0**-power
            head.weight *= 2.0**power


def test_shifting_all_logits_leaves_radii_unchanged():
    net = identity_net()
    before = certify(net, grey(), guarantee="nominal")
    with torch.no_grad():
        net[-1].bias += 4.0
    assert torch.equal(certify(net, grey(), guarantee="nominal").radius_B, before.radius_B)


# --- what the result does not depend on -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_net():
    """A few steps of training, so that margins are not noise, and some test images."""
    data = load_dataset("digits")
    model = tiny_model(0)
    images = to_unit(data.train.images_NCHW, data.scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        index = torch.arange(step * 128, (step + 1) * 128) % len(images)
        loss = nn.functional.cross_entropy(8 * model(images[index]), data.train.labels_N[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chain = model.plain()
    test = to_unit(data.test.images_NCHW[:150], data.scale, torch.float64)
    return chain, test, data.test.labels_N[:150], chain_bounds(chain, (1, 8, 8))


def test_bytes_do_not_depend_on_batching(digits_net):
    chain, images, _, bounds = digits_net
    whole = certify(chain, images, bounds=bounds)
    for size in (1, 7):
        parts = [certify(chain, images[i : i + size], bounds=bounds) for i in range(0, 60, size)]
        for name in ("prediction_B", "radius_B", "runner_up_B", "logits_BK", "estimated_radius_B"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined[:60], getattr(whole, name)[:60]), (size, name)


def test_bytes_do_not_depend_on_the_order_of_images(digits_net):
    chain, images, _, bounds = digits_net
    whole = certify(chain, images, bounds=bounds)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    permuted = certify(chain, images[order], bounds=bounds)
    assert torch.equal(permuted.logits_BK, whole.logits_BK[order])
    assert torch.equal(permuted.radius_B, whole.radius_B[order])


def test_callers_settings_do_not_reach_the_arithmetic(digits_net):
    chain, images, _, bounds = digits_net
    plain = certify(chain, images[:9], bounds=bounds)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(certify(chain, images[:9]).radius_B, plain.radius_B)
    assert plain.logits_BK.dtype == plain.radius_B.dtype == torch.float64
    assert chain.head.weight.dtype == torch.float32, "the caller's chain must stay as it was"


def test_inference_mode_is_no_obstacle(digits_net):
    chain, images, _, bounds = digits_net
    with torch.inference_mode():
        inside = certify(chain, images[:3], bounds=bounds).radius_B.clone()
    assert torch.equal(inside, certify(chain, images[:3], bounds=bounds).radius_B)


def test_network_and_its_plain_chain_certify_alike():
    model = tiny_model(4)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(certify(model, images).radius_B, certify(model.plain(), images).radius_B)


# --- VRA --------------------------------------------------------------------------------------------------------------


def test_vra_counts_as_a_loop_does(digits_net):
    chain, images, labels, bounds = digits_net
    result = certify(chain, images, bounds=bounds)
    for radius in ("0", "1/255", "36/255", "0.3", "10"):
        count = sum(
            p == y and p != ABSTAIN and Fraction(r) >= Radius(radius).exact
            for p, r, y in zip(result.prediction_B.tolist(), result.radius_B.tolist(), labels.tolist(), strict=True)
        )
        assert certified_correct(result.prediction_B, result.radius_B, labels, radius) == count
        assert vra(result, labels, Radius(radius)) == count / len(labels)
    assert 0 < vra(result, labels, "1/255") < 1


def test_a_radius_one_step_short_is_not_certified():
    exact = Radius("36/255")
    nearest = float(exact.exact)
    radii = torch.tensor([math.nextafter(nearest, 0), nearest, math.nextafter(nearest, 1)], dtype=torch.float64)
    expected = sum(Fraction(r) >= exact.exact for r in radii.tolist())
    assert (
        certified_correct(torch.zeros(3, dtype=torch.long), radii, torch.zeros(3, dtype=torch.long), exact) == expected
    )


def test_abstaining_never_counts_even_for_a_label_minus_one():
    minus = torch.full((2,), ABSTAIN)
    assert certified_correct(minus, torch.zeros(2, dtype=torch.float64), minus, "0") == 0


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long)])
def test_labels_of_another_length_are_refused(labels):
    with pytest.raises(NotCertifiable, match="labels"):
        certified_correct(torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.float64), labels, "0.1")


def test_labels_as_a_column_are_not_broadcast():
    with pytest.raises(NotCertifiable):
        certified_correct(
            torch.tensor([0, 0, 0]), torch.ones(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.long), "0.1"
        )


# --- attack -----------------------------------------------------------------------------------------------------------


def test_no_attack_gets_inside_a_certificate(digits_net):
    chain, images, _, bounds = digits_net
    result = certify(chain, images, bounds=bounds)
    precise = tiny_copy(chain)
    labels, found = result.prediction_B, torch.full((len(images),), math.inf, dtype=torch.float64)
    for scale in (1.5, 3.0, 8.0, 20.0):
        budget = (scale * result.radius_B).clamp(min=1e-3)[:, None, None, None]
        moved = torch.zeros_like(images)
        for _ in range(25):
            moved.requires_grad_()
            z = precise(images + moved)
            own = z.gather(1, labels[:, None])[:, 0]
            other = z.scatter(1, labels[:, None], -math.inf).amax(1)
            (gradient,) = torch.autograd.grad((other - own).sum(), moved)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            moved = (moved + budget * gradient / length / 5).detach()
            size = moved.flatten(1).norm(dim=1)[:, None, None, None]
            moved = moved * (budget / size).clamp(max=1.0)
            broken = precise(images + moved).argmax(1) != labels
            distance = moved.flatten(1).norm(dim=1)
            found = torch.where(broken & (distance < found), distance, found)
    assert found.isfinite().float().mean() > 0.5, "an attack that breaks nothing shows nothing"
    assert (found > result.radius_B).all()


def tiny_copy(chain):
    import copy

    return copy.deepcopy(chain).double()
