"""Residual blocks in a plain chain: program, refusals, bounds against dense matrices, certificates."""

import copy
import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from blocks import IMAGE, block, conv, residual_chain
from nets import linear
from torch import nn
from truth import layer_matrix

from lipcert.attack import falsify, lipschitz_lower
from lipcert.certify import certify, certify_each
from lipcert.chain import NotCertifiable, chain_bounds, plain_chain
from lipcert.forward import places, run_chain
from lipcert.layers import Residual
from lipcert.program import Fork, Join, assemble, instructions

# --- the program ------------------------------------------------------------------------------------------------------


def test_programs_name_the_places_of_the_chain():
    chain, _ = residual_chain(0)
    names = [name for name, _ in instructions(chain)]
    assert names[2:6] == ["2.fork", "2.branch.0", "2.branch.1", "2.branch.2"] and names[6] == "2.join"
    assert [n for n in names if n.startswith("4.branch.2.")] == [
        "4.branch.2.fork", *(f"4.branch.2.branch.{i}" for i in range(3)), "4.branch.2.join",
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    weighted = {f"{name}.weight" for name, layer in instructions(chain) if hasattr(layer, "weight")}
    assert weighted == {key for key in chain.state_dict() if key.endswith("weight")}
    again = assemble(instructions(chain))
    assert list(again.state_dict()) == list(chain.state_dict()) and str(again) == str(chain)


def test_programs_that_are_none():
    relu = nn.ReLU()
    for program in (
        [("a.fork", Fork())],
        [("a.join", Join())],
        [("a.fork", Fork()), ("a.join", Join())],
        [("a.fork", Fork()), ("a.branch.0", relu), ("b.join", Join())],
        [("a.fork", Fork()), ("0", relu), ("a.join", Join())],
        [("a.fork", Fork()), ("a.branch.0.1", relu), ("a.join", Join())],
        [("a", Fork()), ("a.branch.0", relu), ("a.join", Join())],
        [(".fork", Fork()), (".branch.0", relu), (".join", Join())],
        [("a", relu), ("a", relu)],
        [("a", relu), ("a.fork", Fork()), ("a.branch.0", relu), ("a.join", Join())],
        [("a.fork", Fork()), ("a.branch.0", relu), ("a.branch.0", relu), ("a.join", Join())],
        [("a.fork", Fork()), ("a.branch.b.fork", Fork()), ("a.branch.b.branch.0", relu), ("a.join", Join())],
    ):
        with pytest.raises(ValueError, match=r"forks and joins must match|has no end"):
            assemble(program)


def test_the_forward_pass_is_torchs():
    for seed in range(6):
        chain, _ = residual_chain(seed)
        images = torch.rand(70, *IMAGE, dtype=torch.float64)
        with torch.no_grad():
            truth, single = copy.deepcopy(chain).double()(images), chain(images.float()).double()
        torch.testing.assert_close(run_chain(chain, images).logits_BK, truth, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(run_chain(chain, images, "float32").logits_BK, single, rtol=1e-3, atol=1e-3)


def test_norms_are_measured_at_the_sum():
    chain, image = residual_chain(1)
    seen = {}
    double = copy.deepcopy(chain).double()
    double[2].register_forward_hook(lambda module, inputs, output: seen.update(sum=output.flatten().norm()))
    double(image)
    place = [name for name, _ in instructions(chain)].index("2.join")
    torch.testing.assert_close(run_chain(chain, image).norms_BL[0, place], seen["sum"])


# --- what may stand in a branch ---------------------------------------------------------------------------------------


def around(*layers: nn.Module) -> nn.Sequential:
    """Sixteen pixels, a block with this branch, a head."""
    return nn.Sequential(nn.Flatten(), block(*layers), nn.Linear(16, 3)).eval()


def test_nested_sequentials_and_dropout_inside_of_branches():
    torch.manual_seed(0)
    dense = [nn.Linear(16, 8), nn.Linear(8, 16)]
    model = around(nn.Sequential(dense[0], nn.Dropout(0.5)), nn.Sequential(nn.ReLU(), nn.Sequential(dense[1])))
    flat = nn.Sequential(nn.Flatten(), block(dense[0], nn.Identity(), nn.ReLU(), dense[1]), model[2]).eval()
    images = torch.rand(3, *IMAGE, dtype=torch.float64)
    result, same = certify(model, images), certify(flat, images)
    assert torch.equal(result.radius_B, same.radius_B) and (result.radius_B > 0).all()
    assert [b.name for b in result.bounds.layers[1].branch] == [
        "1.branch.0_0", "1.branch.0_1", "1.branch.1_0", "1.branch.1_1_0",
    ]  # fmt: skip
    assert type(plain_chain(model)[1].branch[1]) is nn.Identity and type(model[1].branch[0][1]) is nn.Dropout
    assert all(a is b for a, b in zip(plain_chain(model).parameters(), model.parameters(), strict=True))


class Louder(nn.Sequential):
    def forward(self, x):
        return 100 * super().forward(x)


class LouderResidual(Residual):
    def forward(self, x):
        return 100 * super().forward(x)


def test_what_is_unknown_inside_of_a_branch_is_refused():
    images = torch.rand(1, *IMAGE, dtype=torch.float64)
    for layer, message in (
        (nn.Sigmoid(), r"no l2 bound for Sigmoid at '1\.branch\.0'"),
        (nn.LayerNorm(16), r"no l2 bound for LayerNorm at '1\.branch\.0'"),
        (block(nn.GELU()), r"no l2 bound for GELU at '1\.branch\.0\.branch\.0'"),
        (LouderResidual(nn.Sequential(nn.ReLU())), r"no l2 bound for LouderResidual at '1\.branch\.0'"),
        (LouderDropout(), r"no l2 bound for LouderDropout at '1\.branch\.0'"),
        (Louder(nn.ReLU()), r"no l2 bound for Louder at '1\.branch\.0'"),
        (Residual(Louder(nn.ReLU())), r"'1\.branch\.0'.*Louder"),
        (Residual(nn.ReLU()), r"'1\.branch\.0'.*ReLU"),
        (block(), r"'1\.branch\.0'.*at least one layer"),
    ):
        with pytest.raises(TypeError, match=message):
            certify(around(layer), images)


@pytest.mark.parametrize(
    "before", [[], [nn.Identity()], [nn.Flatten(), nn.Dropout(0.5)], [nn.Sequential()]], ids=lambda before: len(before)
)
def test_a_branch_that_overwrites_the_skip_is_refused(before):
    """torch then adds relu(x) to relu(x), the certifier to x."""
    model, images = around(*before, nn.Sequential(nn.ReLU(inplace=True))), torch.rand(1, *IMAGE, dtype=torch.float64)
    with pytest.raises(TypeError, match="overwrites the skip"):
        certify(model, images)
    behind = around(*before, nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Identity(), nn.ReLU(inplace=True))
    with torch.no_grad():
        truth = copy.deepcopy(behind).double()(images.clone())
    torch.testing.assert_close(certify(behind, images).logits_BK, truth, rtol=1e-12, atol=1e-12)


class LouderDropout(nn.Dropout):
    def forward(self, x):
        return 100 * x


@pytest.mark.parametrize("place", ["block", "branch", "layer", "inner sequential"])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_hooks_and_replaced_forwards_are_refused(place, how):
    model = around(nn.Sequential(nn.Linear(16, 16)), nn.ReLU())
    target = {"block": model[1], "branch": model[1].branch, "layer": model[1].branch[0][0]}.get(place)
    target = model[1].branch[0] if target is None else target
    if how == "hook":
        target.register_forward_hook(lambda module, inputs, output: 100 * output)
    elif how == "pre-hook":
        target.register_forward_pre_hook(lambda module, inputs: 100 * inputs[0])
    else:
        target.forward = lambda x: 100 * x
    with pytest.raises(TypeError, match="hooks or a replaced forward"):
        certify(model, torch.rand(1, *IMAGE, dtype=torch.float64))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.ReLU()])
def test_training_mode_inside_of_a_branch_is_refused(layer):
    model = around(layer)
    layer.train()
    with pytest.raises(NotCertifiable, match=r"'1\.branch\.0' is in training mode"):
        certify(model, torch.rand(1, *IMAGE, dtype=torch.float64))


@pytest.mark.parametrize("branch", [nn.Linear(16, 8), nn.Linear(16, 1), nn.Conv2d(1, 1, 2)])
def test_a_branch_that_changes_the_shape_is_refused(branch):
    """torch would broadcast one feature over sixteen without a word."""
    model = around(branch)
    if type(branch) is nn.Conv2d:
        model = nn.Sequential(block(branch), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(NotCertifiable, match="must keep the shape"):
        certify(model, torch.rand(1, *IMAGE, dtype=torch.float64))


def test_names_that_collide_inside_of_a_branch_are_refused():
    branch = nn.Sequential()
    branch.add_module("a", nn.Sequential(nn.ReLU()))
    branch.add_module("a_0", nn.ReLU())
    model = nn.Sequential(nn.Flatten(), Residual(branch), nn.Linear(16, 3)).eval()
    with pytest.raises(TypeError, match=r"'1\.branch\.a_0'.*rename"):
        certify(model, torch.rand(1, *IMAGE, dtype=torch.float64))


def test_the_fingerprint_tells_a_block_from_its_layers():
    dense, images = nn.Linear(16, 16), torch.rand(1, *IMAGE, dtype=torch.float64)
    model = around(dense)
    other = nn.Sequential(nn.Flatten(), dense, model[2]).eval()
    with pytest.raises(NotCertifiable, match="proven for other"):
        certify(model, images, bounds=chain_bounds(other, IMAGE))


# --- bounds against dense matrices ------------------------------------------------------------------------------------


def dense_matrix(layers, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of linear layers and blocks of such, by definition."""
    matrix = np.eye(math.prod(shape))
    for layer in layers:
        if isinstance(layer, Residual):
            matrix = matrix + dense_matrix(layer.branch, shape) @ matrix
        elif not isinstance(layer, nn.Flatten):
            matrix = layer_matrix(layer, shape) @ matrix
            shape = tuple(layer(torch.zeros(1, *shape)).shape[1:])
    return matrix


@pytest.mark.parametrize("effort", ["fast", "tight"])
def test_linear_blocks_are_enclosed(effort):
    for seed in range(6):
        torch.manual_seed(seed)
        scale = [0.02, 0.3, 1.0][seed % 3]
        branches = [[conv(2, bias=False)], [conv(2, bias=False), block(conv(2, bias=False))], [nn.Conv2d(2, 2, 1)]]
        with torch.no_grad():
            for layer in nn.ModuleList(itertools.chain(*branches)).modules():
                if hasattr(layer, "weight"):
                    layer.weight *= scale
        for branch in branches:
            whole = block(*branch)
            bounds = chain_bounds(
                nn.Sequential(whole, nn.Flatten(), nn.Linear(50, 2)).eval().requires_grad_(False), (2, 5, 5), effort
            )
            found, inside = bounds.layers[0], dense_matrix(branch, (2, 5, 5))
            norm = np.linalg.norm(np.eye(50) + inside, 2)
            factors = [np.linalg.norm(dense_matrix([layer], (2, 5, 5)), 2) for layer in branch]
            assert found.kind == "Residual" and found.name == "0"
            assert found.enclosure.lower <= norm <= found.enclosure.upper
            if len(branch) == 1:
                assert 1 + factors[0] <= found.enclosure.upper <= (1 + factors[0]) * (1 + 1e-2)
                assert found.enclosure.lower >= 1 - factors[0] * (1 + 1e-2)
            assert bounds.upper == found.enclosure.upper >= np.linalg.norm(inside, 2)


def test_both_ends_are_attained():
    for factor, lower, upper in ((1.0, 0.0, 2.0), (-0.5, 0.5, 1.5), (-0.25, 0.75, 1.25), (0.0, 1.0, 1.0)):
        model = nn.Sequential(nn.Flatten(), block(linear(factor * torch.eye(4))), linear(torch.eye(4))).eval()
        found = chain_bounds(model, (1, 2, 2)).layers[1].enclosure
        assert lower * (1 - 1e-8) <= found.lower <= lower and upper <= found.upper <= upper * (1 + 1e-8)


def test_products_are_exact_fractions_rounded_outwards():
    chain, _ = residual_chain(4)
    bounds = chain_bounds(chain, IMAGE)

    def product(layers) -> Fraction:
        out = Fraction(1)
        for layer in layers:
            out *= 1 + product(layer.branch) if layer.branch else Fraction(layer.enclosure.upper)
        return out

    assert product(bounds.layers) <= Fraction(bounds.upper) <= product(bounds.layers) * (1 + Fraction(1, 2**45))
    assert bounds.lower <= bounds.upper and len(bounds.layers) == len(chain) - 1
    assert [b.kind for b in bounds.layers[4].branch] == ["Conv2d", "ReLU", "Residual", "Conv2d"]
    assert len(bounds.plan) == len(instructions(chain)) == len(places(chain, IMAGE))


def test_estimates_of_blocks_are_one_plus_their_branch():
    torch.manual_seed(3)
    inner, outer = nn.Linear(16, 16), nn.Linear(16, 16)
    bounds = chain_bounds(around(outer, nn.ReLU(), block(inner)), IMAGE)
    inside, outside = (np.linalg.norm(x.weight.detach().double().numpy(), 2) for x in (inner, outer))
    expected = 1 + outside * (1 + inside)
    assert len(bounds.estimates) == len(bounds.layers) and bounds.estimates[0] == 1.0
    assert bounds.estimates[1] == pytest.approx(expected, rel=1e-3) and bounds.estimates[1] <= bounds.upper
    assert bounds.estimate == bounds.estimates[1]
    assert bounds.estimate_of(bounds.layers[1].branch[0]) == pytest.approx(outside, rel=1e-3)
    assert bounds.estimate_of(bounds.layers[1].branch[1]) == 1.0
    assert bounds.estimate_of(bounds.layers[1].branch[2]) == pytest.approx(1 + inside, rel=1e-3)


def test_norms_beyond_float64_are_refused():
    big = linear(torch.full((2, 2), 1e200, dtype=torch.float64), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), block(big, copy.deepcopy(big)), linear(torch.eye(2))).double().eval()
    with pytest.raises(NotCertifiable, match=r"'1'.*too large"):
        certify(model, torch.ones(1, 1, 1, 2))


# --- certificates -----------------------------------------------------------------------------------------------------


def test_known_radii_are_reached_and_not_passed():
    """x + c x is a map of slope 1 + c: the margin (1 + c) (x_0 - x_1) + b has a known radius."""
    for scale in (1.0, 0.25, 3.0):
        blocks = [block(linear(scale * torch.eye(2)), nn.ReLU(), linear(torch.eye(2))) for _ in range(5)]
        chain = nn.Sequential(nn.Flatten(), *blocks, linear(torch.eye(2), [1.0, 0.0])).eval()
        radius = 1 / ((1 + scale) ** 5 * 2**0.5)
        image = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
        for certificate in certify_each(chain, image, [("nominal", "float64"), ("executed", "float64")]):
            assert radius * (1 - 1e-7) < certificate.radius_B.item() < radius
        beyond = image + torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2).double() * radius * 2**-0.5 * (1 + 1e-9)
        assert copy.deepcopy(chain).double()(beyond).argmax().item() == 1


def test_guarantees_are_ordered():
    chain, image = residual_chain(1)
    images = torch.cat([image, image.flip(2), image.mT, 1 - image])
    nominal, real, executed, rough = certify_each(
        chain, images, [("nominal", "float64"), ("real", "float64"), ("executed", "float64"), ("executed", "float32")]
    )
    assert (nominal.radius_B > real.radius_B).all() and (real.radius_B > executed.radius_B).all()
    assert (executed.radius_B > rough.radius_B).all() and (rough.radius_B > 0).any()


def test_attacks_do_not_refute_certificates_and_refute_forged_ones():
    chain, _ = residual_chain(0)
    images = torch.rand(6, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    certificates = certify(chain, images)
    found = falsify(chain, images, certificates, ("inside", "fab", "deepfool"), box=False)
    closest = min(result.min_ratio for result in found.attacks if result.min_ratio is not None)
    assert not found.violations and any(result.found for result in found.attacks) and closest > 1
    forged = replace(certificates, radius_B=certificates.radius_B * (closest * 1.5))
    assert falsify(chain, images, forged, ("inside",), box=False).violations
    bounds = chain_bounds(chain, IMAGE)
    lower = lipschitz_lower(chain, images, bounds=bounds, power_steps=5, ascent_steps=10)
    assert 0 < lower.value <= bounds.upper
