"""The constant by linear regions against closed forms, grids, samples and liars.

Shape letters: N inputs, F features, K outputs, P points.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipcert import polyhedra
from lipcert.bounds import norm_bound
from lipcert.layers import MinMax, Residual, Shift
from lipcert.regions import lipschitz_by_regions

TIGHT = 1e-8  # relative width promised of an enclosure


def dense(weight, bias=None) -> nn.Linear:
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias, dtype=torch.float64)
    return layer


def random_net(*sizes: int, act: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def encloses(found, truth: float) -> None:
    assert found.lower <= truth * (1 + 1e-12) and truth <= found.upper * (1 + 1e-12)
    assert found.upper <= found.lower * (1 + TIGHT) and found.open == 0


def largest_jacobian(net: nn.Sequential, points_PN: torch.Tensor) -> float:
    """Largest spectral norm of autograd's Jacobians at these points, by numpy."""
    double = net.double()
    points_PN = points_PN.double().requires_grad_(True)
    outputs_PK = double(points_PN)
    rows = [torch.autograd.grad(o.sum(), points_PN, retain_graph=True)[0] for o in outputs_PK.unbind(1)]
    return float(np.linalg.norm(torch.stack(rows, 1).numpy(), ord=2, axis=(1, 2)).max())


def test_linear_networks_have_the_norm_of_their_product():
    net = nn.Sequential(nn.Linear(5, 7), nn.Identity(), nn.Linear(7, 3), Shift(0.25))
    product = net[2].weight.detach().double().numpy() @ net[0].weight.detach().double().numpy()
    found = lipschitz_by_regions(net, 5)
    encloses(found, float(np.linalg.norm(product, 2)))
    assert found.regions == 1


@pytest.mark.parametrize("seed", range(5))
def test_one_hidden_layer_on_a_line_against_its_kinks(seed):
    rng = np.random.default_rng(seed)
    w, b, v = rng.standard_normal((3, 9))
    kinks = np.sort(-b / w)
    middles = np.concatenate([[kinks[0] - 1], (kinks[1:] + kinks[:-1]) / 2, [kinks[-1] + 1]])
    slopes = [abs(sum(v * w * (w * x + b > 0))) for x in middles]
    found = lipschitz_by_regions(nn.Sequential(dense(w[:, None], b), nn.ReLU(), dense(v[None])), 1)
    encloses(found, max(slopes))
    assert found.regions == 10


def test_without_biases_every_pattern_of_an_invertible_matrix_exists():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((2, 5, 5))
    truth = max(np.linalg.norm(second * np.array(on) @ first, 2) for on in itertools.product((0, 1), repeat=5))
    found = lipschitz_by_regions(nn.Sequential(dense(first), nn.ReLU(), dense(second)), 5)
    encloses(found, truth)
    assert found.regions == 32


def test_hyperplanes_in_general_position_make_as_many_regions_as_they_must():
    found = lipschitz_by_regions(random_net(3, 7, 2), 3)
    assert found.regions == sum(math.comb(7, k) for k in range(4)) and found.open == 0


def test_a_pattern_that_no_point_has_does_not_count():
    net = nn.Sequential(dense([[1.0], [-1.0]]), nn.ReLU(), dense([[2.0, -2.0]]))  # 2 relu(x) - 2 relu(-x) = 2x
    found = lipschitz_by_regions(net, 1)
    encloses(found, 2.0)
    assert found.regions == 2
    assert math.prod(norm_bound(layer, (layer.in_features,)).upper for layer in (net[0], net[2])) > 3.999


def test_in_a_box_only_what_it_holds_counts():
    net = nn.Sequential(dense([[1.0], [1.0]], [-2.0, 5.0]), nn.ReLU(), dense([[5.0, 1.0]]))  # 5 relu(x - 2) + (x + 5)
    encloses(lipschitz_by_regions(net, 1), 6.0)
    encloses(lipschitz_by_regions(net, 1, box=(0.0, 1.0)), 1.0)
    encloses(lipschitz_by_regions(net, 1, box=(0.0, 2.0)), 1.0)
    encloses(lipschitz_by_regions(net, 1, box=(0.1, 2.0 + 2.0**-20)), 6.0)


@pytest.mark.parametrize("act", [nn.ReLU, MinMax])
@pytest.mark.parametrize("seed", range(2))
def test_two_hidden_layers_in_the_plane_against_a_dense_grid(act, seed):
    net = random_net(2, 6, 6, 3, act=act, seed=seed)
    found = lipschitz_by_regions(net, 2, box=(-3.0, 3.0))
    side = torch.linspace(-3, 3, 500, dtype=torch.float64)[1:-1]
    truth = largest_jacobian(net, torch.cartesian_prod(side, side))
    assert found.lower * 0.98 <= truth <= found.upper * (1 + 1e-12) and found.upper <= found.lower * (1 + TIGHT)
    whole = lipschitz_by_regions(net, 2)
    assert whole.upper >= found.lower and whole.regions >= found.regions


def test_two_hidden_layers_on_a_line_against_a_dense_grid():
    net = random_net(1, 6, 6, 2, seed=4)
    truth = largest_jacobian(net, torch.linspace(-60, 60, 400_001)[:, None])
    encloses(lipschitz_by_regions(net, 1), truth)


def test_the_witness_is_where_the_jacobian_is_the_steepest():
    net = random_net(3, 8, 4, 2, act=MinMax, seed=1)
    found = lipschitz_by_regions(net, 3)
    there = largest_jacobian(net, torch.from_numpy(found.point_N)[None])
    assert there == pytest.approx(found.lower, rel=1e-9) == pytest.approx(found.norms_J.max(), rel=1e-9)


def test_the_block_that_halves_its_input():
    half = Residual(nn.Sequential(dense(-0.5 * np.eye(3))))
    encloses(lipschitz_by_regions(nn.Sequential(half), 3), 0.5)
    eye = np.eye(3)
    relus = nn.Sequential(dense(np.vstack([eye, -eye])), nn.ReLU(), dense(np.hstack([-0.5 * eye, 0.5 * eye])))
    encloses(lipschitz_by_regions(nn.Sequential(Residual(relus)), 3), 0.5)
    encloses(lipschitz_by_regions(nn.Sequential(Residual(relus), Residual(relus)), 3), 0.25)


def test_residual_blocks_against_a_grid_and_inside_of_each_other():
    torch.manual_seed(2)
    inner = nn.Sequential(nn.Linear(2, 4), MinMax(), nn.Linear(4, 2))
    net = nn.Sequential(Residual(nn.Sequential(nn.Linear(2, 2), Residual(inner), nn.ReLU())), nn.Linear(2, 2))
    found = lipschitz_by_regions(net, 2, box=(-4.0, 4.0))
    side = torch.linspace(-4, 4, 401, dtype=torch.float64)[1:-1]
    truth = largest_jacobian(net, torch.cartesian_prod(side, side))
    assert found.lower * 0.98 <= truth <= found.upper * (1 + 1e-12)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([nn.ReLU, MinMax]))
def test_no_pair_of_points_is_moved_apart_further(seed, act):
    net = random_net(2, 4, 4, 2, act=act, seed=seed).double()
    found = lipschitz_by_regions(net, 2)
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 4000, 2, generator=rng, dtype=torch.float64) * 3
    with torch.no_grad():
        rates = (net(x) - net(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(rates.max()) <= found.upper * (1 + 1e-9)
    product = math.prod(norm_bound(layer, (layer.in_features,)).upper for layer in net if isinstance(layer, nn.Linear))
    assert found.upper <= product * (1 + TIGHT)


def test_degenerate_weights_equal_neurons_dead_neurons_and_ties():
    weight = [[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [-1.0, -2.0], [2.0, 4.0]]
    net = nn.Sequential(dense(weight, [0.5, 0.5, 1.0, 0.0, -0.5, 1.0]), nn.ReLU(), dense(np.ones((1, 6))))
    found = lipschitz_by_regions(net, 2)  # slopes 4 and -1 along (1, 2)
    encloses(found, 4 * math.sqrt(5))
    assert found.regions == 2
    constant = lipschitz_by_regions(nn.Sequential(dense(np.zeros((2, 2)), [1.0, -1.0]), nn.ReLU()), 2)
    assert constant.lower == 0 and constant.upper < 1e-300


def test_scales_far_apart_do_not_matter():
    net = nn.Sequential(dense([[2.0**-40], [-(2.0**-40)]], [2.0**-30, 1.0]), nn.ReLU(), dense([[2.0**60, 2.0**59]]))
    encloses(lipschitz_by_regions(net, 1), 2.0**20)


@pytest.mark.parametrize("room", [-1.0, 1.0])
def test_a_linear_program_that_lies_cannot_make_the_ends_false(monkeypatch, room):
    net = random_net(2, 5, 5, 2, seed=6)
    honest = lipschitz_by_regions(net, 2)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(polyhedra, "_POINTS", 8)
    monkeypatch.setattr(
        polyhedra, "_program", lambda rows: (room, rng.standard_normal(rows.shape[1] - 1), rng.random(len(rows)))
    )
    fooled = lipschitz_by_regions(net, 2)
    assert fooled.open > 0 and fooled.lower <= honest.upper and fooled.upper >= honest.lower


def test_contradictions_are_proven_exactly_or_not_at_all():
    assert polyhedra._refuted(((1, 0), (-1, 0)), np.array([0.5, 0.5]))  # x > 0 and -x > 0
    assert polyhedra._refuted(((1, -1), (-1, 1)), np.array([0.5, 0.5]))  # x > 1 and x < 1
    assert not polyhedra._refuted(((1, 0), (-1, 1)), np.array([0.5, 0.5]))  # 0 < x < 1
    assert not polyhedra._refuted(((1, 0), (2, 1)), np.array([0.5, 0.5]))  # x > 0: weights of both signs prove nothing
    assert not polyhedra._refuted(((10**9, 0), (-(10**9), 1)), np.array([0.5, 0.5]))  # 0 < x < 1e-9
    assert not polyhedra._refuted(((1, 0, 0), (0, 1, 0)), np.array([0.5, 0.5]))
    assert polyhedra._refuted(((1, 0, 0), (0, 1, 0), (-1, -1, 0)), np.array([1.0, 1.0, 1.0]))
    assert not polyhedra._refuted(((1, 0, 0), (0, 1, 0), (-1, -1, 1)), np.array([1.0, 1.0, 1.0]))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_the_dependence_of_rows_is_one(columns, seed):
    rng = np.random.default_rng(seed)
    rows = [tuple(map(int, row)) for row in rng.integers(-5, 6, (columns + 1, columns))]
    weights = polyhedra._dependence(rows)
    rank = np.linalg.matrix_rank(np.array(rows))
    assert (weights is None) == (rank < columns)
    if weights is not None:
        assert any(weights) and not any(
            sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(columns)
        )


def hooked() -> nn.Sequential:
    chain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    chain[0].register_forward_hook(lambda layer, inputs, output: 10 * output)
    return chain


def replaced() -> nn.Sequential:
    chain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    chain[1].forward = torch.exp
    return chain


class Tenfold(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * super().forward(x)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (nn.Linear(2, 2), "cannot certify Linear"),
        (nn.Sequential(Residual(nn.Linear(2, 2))), "Residual '0' around Linear: must be an nn.Sequential"),
        (Tenfold(nn.Linear(2, 2)), "cannot certify Tenfold"),
        (nn.Sequential(Tenfold(nn.Linear(2, 2))), "no linear regions for Tenfold at '0'"),
        (nn.Sequential(Residual(Tenfold(nn.Linear(2, 2)))), "Residual '0' around Tenfold"),
        (hooked(), "Linear '0' has hooks or a replaced forward"),
        (replaced(), "ReLU '1' has hooks or a replaced forward"),
        (nn.Sequential(nn.Flatten(0)), "no linear regions for Flatten at '0'"),
        (nn.Sequential(Residual(nn.Sequential(nn.ReLU(inplace=True)))), "ReLU '0.branch.0' overwrites the skip"),
    ],
)
def test_what_computes_something_else_than_its_layers_say_is_refused(chain, message):
    with pytest.raises(TypeError, match=message):
        lipschitz_by_regions(chain, 2)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_chain_does_not_matter_and_stays(training):
    net = random_net(2, 4, 2).train(training)
    assert lipschitz_by_regions(net, 2).upper == lipschitz_by_regions(net.eval(), 2).upper
    assert lipschitz_by_regions(net.train(training), 2).regions > 1
    assert all(module.training == training for module in net.modules())


def test_what_cannot_be_listed_is_refused():
    for chain, message in (
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "no linear regions for Tanh at '1'"),
        (nn.Sequential(Residual(nn.Sequential(nn.Linear(2, 2), nn.GELU()))), r"GELU at '0.branch.1'"),
    ):
        with pytest.raises(TypeError, match=message):
            lipschitz_by_regions(chain, 2)
    for chain, message in (
        (nn.Sequential(nn.Linear(3, 2)), "takes 3 features and gets 2"),
        (nn.Sequential(nn.Linear(2, 3), MinMax()), "3 features: the number must be even"),
        (nn.Sequential(Residual(nn.Sequential(nn.Linear(2, 3)))), "adds 2 and 3 features"),
        (nn.Sequential(dense([[math.nan, 1.0]])), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            lipschitz_by_regions(chain, 2)
    with pytest.raises(ValueError, match="more than most=10"):
        lipschitz_by_regions(random_net(2, 8, 2), 2, most=10)
    with pytest.raises(ValueError, match="low < high"):
        lipschitz_by_regions(random_net(2, 8, 2), 2, box=(1.0, 1.0))
