"""Falsifiers against nets whose exact radius is known."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from nets import linear, razor_edge
from torch import Tensor, nn

from lipcert.attack import (
    ATTACKS,
    Falsification,
    Inside,
    Rounding,
    Target,
    distance_up,
    falsify,
    lipschitz_lower,
    margin_attack,
    polish,
    predict,
    rounding_search,
    verify,
)
from lipcert.attack.polish import to_hyperplane
from lipcert.attack.projected import dlr
from lipcert.attack.target import executed_classes, squared_distance
from lipcert.certify import certify
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.layers import plain_linear

DISTANCES = ("pgd", "apgd", "fab", "deepfool", "rounding")


def linear_chain(seed: int, classes: int = 3) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(classes, 12, generator=generator), torch.randn(classes, generator=generator) / 10
    return nn.Sequential(nn.Flatten(), plain_linear(weight, bias)).eval()


def linear_truth(chain: nn.Sequential, images_BCHW: Tensor) -> Tensor:
    """Distance to the nearest boundary of a linear classifier: min over j of (z_c - z_j) / |w_c - w_j|."""
    head = chain[-1].double()
    logits_BK = head(images_BCHW.flatten(1))
    chain.float()
    rows_KF = head.weight.double()
    out = []
    for logits_K in logits_BK.tolist():
        c = max(range(len(logits_K)), key=logits_K.__getitem__)
        others = [j for j in range(len(logits_K)) if j != c]
        out.append(min((logits_K[c] - logits_K[j]) / (rows_KF[c] - rows_KF[j]).norm().item() for j in others))
    return torch.tensor(out, dtype=torch.float64)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def forged(certificates, factor: float, radius: float | None = None):
    """The same certificates with larger radii: wrong where the factor passes what is true."""
    radius_B = certificates.radius_B if radius is None else torch.full_like(certificates.radius_B, radius)
    return replace(certificates, radius_B=radius_B * factor)


# --- truth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTANCES)
def test_on_linear_nets_every_attack_finds_the_exact_distance(name: str) -> None:
    for seed in range(2):
        chain, images = linear_chain(seed), pixels(8, 3, 2, 2, seed=seed + 50)
        certificates = certify(chain, images)
        attack = Rounding(rounds=2, samples=8) if name == "rounding" else name
        (result,) = falsify(chain, images, certificates, (attack,), box=False).attacks
        found = torch.tensor(result.ratios, dtype=torch.float64) * certificates.radius_B
        relative = found / linear_truth(chain, images) - 1
        assert relative.abs().max() < 1e-6, f"{name}, seed {seed}: {relative.tolist()}"
        assert result.violations == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_a_razor_edge_is_cut_just_beyond_its_radius_and_never_inside(name: str) -> None:
    attack = Rounding(rounds=1, samples=8) if name == "rounding" else name
    for seed in range(2):
        chain, image, radius, _ = razor_edge(seed)
        true = certify(chain, image)
        sound = falsify(chain, image, true, (attack,))
        assert sound.violations == () and sound.attacks[0].violations == 0
        if name != "inside":
            assert abs(sound.attacks[0].min_distance / radius - 1) < 1e-6
        broken = falsify(chain, image, forged(true, 1 + 1e-7, radius), (attack,))
        (violation,) = broken.violations
        witness = torch.tensor(violation.witness, dtype=torch.float64).reshape(image.shape)
        assert predict(chain, witness).item() == violation.found != violation.prediction
        moved = sum(
            (Fraction(a) - Fraction(b)) ** 2 for a, b in zip(violation.witness, image.flatten().tolist(), strict=True)
        )
        assert moved <= Fraction(violation.distance) ** 2 <= Fraction(violation.radius) ** 2


def test_a_step_to_a_hyperplane_in_the_box_is_the_shortest() -> None:
    start, normal = pixels(20, 1, 1, 6, seed=3), pixels(20, 1, 1, 6, seed=4) - 0.5
    # Offsets to points of the box, so that the plane can be reached; a grid search over t is the truth.
    inside = pixels(20, 1, 1, 6, seed=5)
    offset = (normal * (inside - start)).flatten(1).sum(1)
    step = to_hyperplane(start, normal, offset, box=True)
    assert ((start + step >= -1e-12) & (start + step <= 1 + 1e-12)).all()
    assert torch.allclose((normal * step).flatten(1).sum(1), offset, atol=1e-12)
    for i in range(20):
        low, high = -1e4, 1e4
        for _ in range(200):
            t = (low + high) / 2
            trial = (t * normal[i]).clamp(-start[i], 1 - start[i])
            low, high = (t, high) if (normal[i] * trial).sum() < offset[i] else (low, t)
        assert torch.allclose(step[i], trial, atol=1e-9)
    assert torch.allclose(
        to_hyperplane(start, normal, offset, False).flatten(1).norm(dim=1),
        offset.abs() / normal.flatten(1).norm(dim=1),
    )


def test_points_stay_in_the_box_and_get_closer_without_it() -> None:
    chain, images = linear_chain(3), pixels(16, 3, 2, 2, seed=9).round()
    certificates = certify(chain, images)
    target = Target.of(chain, images, certificates.prediction_B, certificates.radius_B)
    for name in ("pgd", "apgd", "fab", "deepfool"):
        found = ATTACKS[name]().find(target)
        assert found.points_BCHW.min() >= 0 and found.points_BCHW.max() <= 1
        free = ATTACKS[name]().find(replace(target, box=False))
        assert (free.distance_B <= found.distance_B * (1 + 1e-6)).all()
        assert (free.distance_B < found.distance_B * (1 - 1e-3)).any()


# --- what counts ------------------------------------------------------------------------------------------------------


def test_a_point_that_changes_nothing_is_no_success() -> None:
    chain, images = linear_chain(0), pixels(4, 3, 2, 2)
    classes = predict(chain, images)
    target = Target.of(chain, images, classes)
    found = verify(target, images + 1e-9)
    assert found.distance_B.isinf().all() and torch.equal(found.class_B, classes)
    assert torch.equal(found.points_BCHW, images)
    assert torch.equal(polish(target, images + 1e-9), images + 1e-9)


def test_a_point_that_is_not_finite_is_no_success() -> None:
    chain, images = linear_chain(0), pixels(2, 3, 2, 2)
    target = Target.of(chain, images, predict(chain, images), box=False)
    assert verify(target, torch.full_like(images, math.nan)).distance_B.isinf().all()


def test_distances_are_rounded_up() -> None:
    for seed in range(30):
        a, b = pixels(3, 4, 4, seed=seed), pixels(3, 4, 4, seed=seed + 100)
        exact, up = squared_distance(a, b), distance_up(a, b)
        truth = sum(
            (Fraction(x) - Fraction(y)) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
        )
        assert exact == truth <= Fraction(up) ** 2
        assert Fraction(math.nextafter(up, 0)) ** 2 < truth
    assert distance_up(a, a) == 0


def test_the_same_seed_finds_the_same_points() -> None:
    chain, images = linear_chain(1, classes=4), pixels(6, 3, 2, 2, seed=1)
    certificates = certify(chain, images)
    first, again = (falsify(chain, images, certificates, ("pgd", "apgd", "fab"), seed=3) for _ in range(2))
    assert [a.ratios for a in first.attacks] == [a.ratios for a in again.attacks]


def test_dlr_is_the_papers_and_ignores_scale_and_shift() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [1.0, 3.0, 0.5, -1.0]], dtype=torch.float64)
    value = dlr(logits, torch.tensor([0, 0]))
    assert torch.allclose(value, torch.tensor([-2 / 2.5, 2 / 2.5], dtype=torch.float64))
    assert torch.allclose(dlr(7 * logits + 5, torch.tensor([0, 0])), value)


# --- falsify ----------------------------------------------------------------------------------------------------------


def test_images_without_a_certificate_are_skipped_and_counted() -> None:
    chain, images = linear_chain(0), pixels(5, 3, 2, 2)
    certificates = certify(chain, images)
    prediction, radius = certificates.prediction_B.clone(), certificates.radius_B.clone()
    prediction[1], radius[1], radius[3] = -1, 0.0, 0.0
    some = replace(certificates, prediction_B=prediction, radius_B=radius)
    done = []
    result = falsify(chain, images, some, ("deepfool", "inside"), progress=done.append)
    assert (result.abstained, result.images, [a.images for a in result.attacks], done) == (2, 5, [3, 3], [3, 3])
    assert "2 of 5 images were skipped" in result.words()
    none = replace(some, radius_B=torch.zeros_like(radius))
    assert falsify(chain, images, none).attacks == ()


def test_violations_name_the_image_among_all_that_were_given() -> None:
    chain, images = linear_chain(0), pixels(4, 3, 2, 2)
    certificates = certify(chain, images)
    radius = certificates.radius_B.clone()
    radius[0], radius[2] = 0.0, radius[2] * 1.01
    result = falsify(chain, images, replace(certificates, radius_B=radius), ("inside", "deepfool"), box=False)
    assert [(v.image, v.attack) for v in result.violations] == [(2, "inside"), (2, "deepfool")]
    assert "1 certificates refuted" in result.words()


def test_a_record_comes_back_from_json_and_the_table_has_a_row_per_attack() -> None:
    chain, images = linear_chain(0), pixels(3, 3, 2, 2)
    result = falsify(chain, images, forged(certify(chain, images), 1.1), ("inside", "fab"))
    assert Falsification(**json.loads(json.dumps(result.record()))) == result
    lines = result.table().splitlines()
    assert len(lines) == 4 and "PGD in the certified ball" in lines[2] and "FAB" in lines[3]


def test_refusals() -> None:
    chain, images = linear_chain(0), pixels(2, 3, 2, 2)
    certificates = certify(chain, images)
    with pytest.raises(ValueError, match=r"attack='square'.*must be one of inside"):
        falsify(chain, images, certificates, ("square",))
    with pytest.raises(ValueError, match="1 images for 2 certificates"):
        falsify(chain, images[:1], certificates)
    with pytest.raises(NotCertifiable, match="training mode"):
        falsify(linear_chain(0).train(), images, certificates)
    with pytest.raises(ValueError, match=r"pixels outside of \[0, 1\]"):
        falsify(chain, images + 1, certificates)
    with pytest.raises(ValueError, match="pair=\\(0, 0\\)"):
        lipschitz_lower(chain, images, (0, 0))


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arithmetic", "offset"), [("float32", 2.0**23), ("float64", 2.0**52)])
def test_rounding_refutes_a_radius_that_ignores_huge_biases(arithmetic: str, offset: float) -> None:
    # Logits are whole numbers there, so pixels 0.9 and 0.4 look 1 apart, and answers change at 1/2.
    head = linear(torch.eye(2, dtype=torch.float64), torch.tensor([offset] * 2, dtype=torch.float64), torch.float64)
    chain = nn.Sequential(nn.Flatten(), head).eval()
    image = torch.tensor([0.9, 0.4], dtype=torch.float64).reshape(1, 1, 1, 2)
    claim = replace(
        certify(linear_chain(0), pixels(1, 3, 2, 2)),
        prediction_B=torch.tensor([0]),
        radius_B=torch.tensor([1 / math.sqrt(2)], dtype=torch.float64),
    )
    found = rounding_search(chain, image, claim, arithmetic, rounds=3)
    # The nearest other answer, second pixel above 1/2 and first at most 1/2, lies at 0.41.
    assert 0.41 < found.distance_B[0] < 0.6 < claim.radius_B[0]
    result = falsify(chain, image, claim, (Rounding(arithmetic=arithmetic, rounds=3),))
    assert (len(result.violations), len(result.beyond)) == ((1, 0) if arithmetic == "float64" else (0, 1))


def test_float32_flips_a_razor_edge_no_farther_than_its_radius() -> None:
    closer = 0
    for seed in range(6):
        chain, image, radius, _ = razor_edge(seed)
        found = rounding_search(chain, image, certify(chain, image), "float32", rounds=5, samples=32)
        assert found.distance_B[0] < radius * 1.01
        assert found.points_BCHW[0].eq(found.points_BCHW[0].float()).all()
        assert executed_classes(chain, found.points_BCHW.float())[0].item() == found.class_B.item() != 0
        closer += bool(found.distance_B[0] < radius)
    assert closer, "no float32 run changed its answer inside the radius of the exact network"


# --- Lipschitz constants ----------------------------------------------------------------------------------------------


def test_the_empirical_constant_of_a_linear_net_is_its_norm() -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    head = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    chain = nn.Sequential(nn.Flatten(), plain_linear(weight, torch.zeros(7)), plain_linear(head, torch.zeros(3))).eval()
    bounds = chain_bounds(chain, (3, 2, 2))
    images = pixels(4, 3, 2, 2)
    for pair, truth in (
        (None, torch.linalg.matrix_norm(weight.double(), 2)),
        ((0, 2), ((head[0] - head[2]).double() @ weight.double()).norm()),
    ):
        lower = lipschitz_lower(chain, images, pair, bounds, power_steps=200)
        assert abs(lower.value / truth.item() - 1) < 1e-6
        assert lower.share() <= 1 + 1e-9
        assert (lower.first_CHW - lower.second_CHW).norm() > 9e-4


def test_ascent_finds_the_steep_half_of_a_kinked_net() -> None:
    # z = 3 relu(x - 1/2): locally constant at the image, steep a little farther.
    chain = nn.Sequential(
        nn.Flatten(), linear([[1.0]], [-0.5]), nn.ReLU(), linear([[3.0]]), linear([[1.0], [0.0]])
    ).eval()
    images = torch.tensor([0.3, 0.4999], dtype=torch.float64).reshape(2, 1, 1, 1)
    lower = lipschitz_lower(chain, images, (0, 1), chain_bounds(chain, (1, 1, 1)))
    assert lower.value == pytest.approx(3, rel=1e-6) and lower.share() <= 1


# --- margin_attack ----------------------------------------------------------------------------------------------------


def test_on_a_linear_net_the_attack_breaks_just_beyond_the_radius_and_never_inside() -> None:
    broken = 0
    for seed in range(40):
        chain = linear_chain(seed)
        # In the middle of the box, so that clipping to [0, 1] does not shorten the step.
        image = 0.4 + 0.2 * pixels(3, 2, 2, seed=seed + 1000)
        c = certify(chain, image[None])
        prediction, rival, radius = int(c.prediction_B[0]), int(c.runner_up_B[0]), float(c.radius_B[0])
        inside = margin_attack(chain, image, prediction, rival, radius * (1 - 1e-9))
        assert predict(chain, inside[None]).item() == prediction
        assert (inside - image).norm().item() <= radius
        if radius * 1.01 < 0.39:  # the ball lies in the box
            outside = margin_attack(chain, image, prediction, rival, radius * 1.0001, steps=50)
            assert predict(chain, outside[None]).item() != prediction
            broken += 1
    assert broken >= 10


def test_the_perturbed_image_stays_in_the_ball_and_in_the_box() -> None:
    chain, image = linear_chain(1), pixels(3, 2, 2, seed=2)
    for radius in (0.0, 0.1, 0.7):
        moved = margin_attack(chain, image, 0, 1, radius)
        assert (moved - image).norm().item() <= radius * (1 + 1e-12)
        assert moved.min() >= 0 and moved.max() <= 1


# --- end to end -------------------------------------------------------------------------------------------------------


def test_run_writes_one_json_and_prints_the_table(results, capsys, monkeypatch) -> None:
    import lipcert.attack.command as command

    chain = nn.Sequential(nn.Flatten(), plain_linear(torch.randn(10, 64), torch.zeros(10))).eval()
    chain.card = {"dataset": "digits", "classes": 10, "class_seed": 2023}
    monkeypatch.setattr(command, "open_network", lambda name: chain)
    result, path = command.run("some-net", count=12, strong=5, attacks=(Inside(), "deepfool"), start=3, progress=False)
    assert [(a.name, a.images) for a in result.attacks] == [("inside", 12), ("deepfool", 5)]
    assert (result.model, result.dataset, result.start, result.images) == ("some-net", "digits", 3, 12)
    assert Falsification(**json.loads(path.read_text())) == result
    assert path == results / "local" / "attacks" / "some-net.json"
    assert "No certificate refuted" in capsys.readouterr().out
    with pytest.raises(NotCertifiable, match="start=0, count=361"):
        command.run("some-net", count=361, progress=False)
