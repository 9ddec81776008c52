"""What the page on residual bounds computes: picture, networks of known constant, tightness by depth, the search."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import exact_constants, tightness_by_depth
from benchmarks.pair_search import pair_search, rates
from lipcert.layers import MinMax, Residual
from lipcert.models import save_network
from lipcert.regions import lipschitz_by_regions
from lipcert.report import block_picture, residual, small_nets, tightness
from lipcert.report.checks import Check, load_checks, write_check

WHERE = {"hardware": {"processor": "A", "cores": 2}, "versions": {}, "finished": "2030-01-02T03:04"}


def publish(folder: Path, goal: str, rows: tuple[tuple[str, ...], ...]) -> None:
    facts = {"measured": "m", "seconds": 1, "command": "c", "commit": None, "dirty": None, "title": "t", "target": "t"}
    write_check(Check(goal=goal, verdict="met", rows=rows, **facts, **WHERE), folder)


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_is_the_block_and_its_bounds():
    b = block_picture.blocks()
    layers = small_nets.small_net("conventional", 1, 2, block_picture.HIDDEN, 2, seed=block_picture.SEED)[0].branch
    first, second = (layers[i].weight.detach().double().numpy() for i in (0, 2))
    assert b.bound == pytest.approx(1 + np.linalg.norm(first, 2) * np.linalg.norm(second, 2), rel=1e-8)
    assert b.conventional.upper < b.triangle < b.bound and b.linear.upper == pytest.approx(b.linear_bound, rel=1e-8)
    # Every Jacobian of the block is the identity plus one of the branch.
    branches = [j + np.eye(2) for j in b.branch.jacobians_JKN]
    assert all(min(np.abs(j - k).max() for k in branches) < 1e-12 for j in b.conventional.jacobians_JKN)
    skip, branch, total = b.skip_branch_sum()
    assert np.allclose(skip + branch, total) and np.linalg.norm(branch) == pytest.approx(b.branch.upper, rel=1e-8)
    assert np.linalg.norm(total) <= b.conventional.upper


def test_the_figure_has_words_numbers_and_no_colour_of_its_own_for_text():
    figure = block_picture.block_figure()
    assert str(block_picture.block_words()) in figure.alt and "proven bound" in figure.csv
    assert "currentColor" in figure.svg and "#010101" not in figure.svg
    assert f"{block_picture.blocks().bound:.9f}" in figure.csv


# --- small networks --------------------------------------------------------------------------------------------------


def test_the_product_counts_a_residual_block_as_one_plus_its_branch():
    halved = nn.Sequential(Residual(nn.Sequential(nn.Linear(2, 2), MinMax(), nn.Linear(2, 2))), nn.Linear(2, 1))
    for layer, value in ((halved[0].branch[0], 2.0), (halved[0].branch[2], 3.0), (halved[1], 0.5)):
        layer.weight.data = value * torch.eye(2)[: layer.out_features]
    assert small_nets.proven(halved) == pytest.approx((1 + 6) * 0.5, rel=1e-8)
    assert small_nets.estimated(halved, 500) == pytest.approx(3.5, rel=1e-8)


def test_making_and_bounding_a_network_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    net = small_nets.small_net("conventional", 1, 2, 6, 3, seed=1)
    assert small_nets.proven(net) > 1 and torch.equal(torch.rand(3), expected)
    again = small_nets.small_net("conventional", 1, 2, 6, 3, seed=1)
    assert torch.equal(net[1].weight, again[1].weight)


def test_training_against_the_bound_tightens_it_and_sees_the_data():
    points_BN, labels_B = small_nets.arms()
    net = small_nets.small_net("linear", 2, 2, 6, 3, seed=1)
    before = lipschitz_by_regions(net, 2).upper / small_nets.proven(net)
    small_nets.trained(net, points_BN, labels_B, "emma", 0.2, steps=120)
    after = lipschitz_by_regions(net, 2).upper / small_nets.proven(net)
    assert after > max(before, 0.9) and float((net(points_BN).argmax(1) == labels_B).double().mean()) > 0.7


def test_projected_digits_keep_their_units():
    points_BN, labels_B = small_nets.projected_digits(4)
    assert points_BN.shape == (len(labels_B), 4) and 0.5 < float(points_BN.std(0).max()) < 8


# --- the record of exact constants -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_rows() -> tuple[tuple[str, ...], ...]:
    """Random networks of every family, as the benchmark measures them."""
    kinds = [(f, b) for f in ("linear", "conventional") for b in (1, 2)]
    plane = [exact_constants.Case("arms", f, "MinMax", b, False, w, 0) for f, b in kinds for w in small_nets.WEIGHTS]
    digits = [exact_constants.Case("digits", f, "MinMax", 1, True, "random", 0) for f in small_nets.KINDS]
    return (exact_constants.HEAD, *map(exact_constants.row, plane + digits))


def test_without_the_record_the_page_says_not_run():
    for text in (
        residual.constants_table(), residual.constants_words(), residual.decomposition_table(),
        residual.decomposition_words(), residual.chains_figure(), residual.chains_words(),
    ):  # fmt: skip
        assert "**not run**" in text


@pytest.mark.slow
def test_the_record_as_published(results: Path, exact_rows, monkeypatch):
    publish(results, "exact-constants", exact_rows)
    for net in residual.nets():
        assert net.lower <= net.upper <= net.lower * (1 + 1e-8) and net.upper <= net.bound * (1 + 1e-11)
        assert 0.5 * net.upper < net.patient <= net.upper * (1 + 1e-8) and net.open == 0
        assert net.upper <= net.blocks_exactly * (1 + 1e-8) <= net.branches_exactly * (1 + 2e-8)
        assert net.branches_exactly <= net.bound * (1 + 1e-8)
    with monkeypatch.context() as only:
        only.setattr(residual, "_WEIGHTS", {"random": "random"})
        table = residual.constants_table()
        assert table.count("\n") == 5 and "| conventional residual, one block and head | random |" in table
        assert f"{len(residual.nets())} networks" in residual.constants_words()
    assert "with 1 block and with 2" in residual.chains_words()
    figure = residual.chains_figure()
    assert str(residual.chains_words()) in figure.alt and figure.csv.count("\n") == 13
    assert residual.decomposition_words().startswith("At 2 blocks")
    first = residual.decomposition_table().splitlines()[2].split("|")[2:-1]
    assert float(first[1]) == 1.0 and math.prod(map(float, first[1:4])) == pytest.approx(float(first[4]), rel=0.03)


# --- the search ------------------------------------------------------------------------------------------------------


def test_the_search_finds_a_linear_map_and_never_more():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 4)).requires_grad_(False)
    truth = float(torch.linalg.matrix_norm((net[2].weight @ net[1].weight).double(), 2))
    found = pair_search(net, torch.rand(8, 3, 2, 2), power_steps=40)
    assert truth * (1 - 1e-6) < found.best <= truth * (1 + 1e-6) and found.near > 0.99 * truth
    again = rates(lambda x: net.double()(x), found.first_X[None].double(), found.second_X[None].double())
    assert float(again) == pytest.approx(found.best, rel=1e-9)


def test_the_search_leaves_a_flat_start_for_a_steep_place():
    """relu(x - 4) steep beyond 4: nothing at the starts shows it."""
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).requires_grad_(False)
    net[0].weight.data, net[0].bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([-4.0])
    net[2].weight.data = torch.tensor([[7.0]])
    found = pair_search(net, torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))
    assert found.near < 1e-6 and found.best == pytest.approx(7.0, rel=1e-6)


# --- tightness by depth ----------------------------------------------------------------------------------------------


def rows_of(*nets: tuple[str, int, float]) -> tuple[tuple[str, ...], ...]:
    lines = [
        (
            "r",
            "cifar10",
            family,
            str(depth),
            "64",
            "emma",
            "0",
            "1",
            "1",
            f"{ratio * 10}",
            "9",
            "10",
            f"{ratio}",
            "2.5",
            "5",
        )
        for family, depth, ratio in nets
    ]
    return (tightness.COLUMNS, *lines)


def test_without_the_record_the_authors_figures_stand_alone():
    assert tightness.measured() == [] and tightness.tightness_figure() == tightness.ABSENT
    table = tightness.tightness_table()
    assert (
        "| this study |  |  | not run | not run | not run |" in table
        and "| 53.35 | 59.03 | 0.90 |" in table
        and "| 23.93 | 101.4 | 0.24 |" in table
    )
    assert "0.90 for their LiResNet, 0.24 for their conventional ResNet" in tightness.tightness_words()


def test_tightness_as_measured(results: Path):
    publish(
        results,
        "tightness",
        rows_of(("liresnet", 12, 0.8), ("liresnet", 3, 0.9), ("liresnet", 3, 0.7), ("resnet", 3, 0.3)),
    )
    table = tightness.tightness_table()
    assert "| CIFAR-10 | LiResNet | 3 | 2 | 8.00 | 10.00 | 0.80 (0.70 to 0.90) |" in table and "not run" not in table
    words = tightness.tightness_words()
    assert words.startswith(
        "CIFAR-10, LiResNet: 0.80 at depth 3, 0.80 at depth 12. CIFAR-10, ResNet: 0.30 at depth 3. Its branches "
        "multiply the bound by 2.5."
    )
    figure = tightness.tightness_figure()
    assert (
        str(words) in figure.alt and "cifar10,resnet,3,0.3\n" in figure.csv and '"resnet, authors",,0.24' in figure.csv
    )


def test_published_figures_that_contradict_themselves_are_refused(results: Path):
    text = "id,paper,network,family,dataset,lower,upper,ratio,evidence,note\n"
    (results / "tightness_published.csv").write_text(text + "a,p,n,f,cifar10,50,100,0.9,authors_statement,\n")
    with pytest.raises(ValueError, match=r"tightness_published\.csv, a"):
        tightness.published_tightness()


def test_a_network_of_residual_blocks_is_measured(results: Path):
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), MinMax(), nn.Conv2d(2, 1, 3, padding=1)))
    chain = nn.Sequential(block, nn.Flatten(), nn.Linear(64, 10)).eval()
    card = {
        "run": "no-such-run", "dataset": "digits", "classes": None, "class_seed": 0, "class_names": list("0123456789"),
        "input_shape": [1, 8, 8], "radius": "36/255", "family": "resnet", "depth": 1, "width": 2,
    }  # fmt: skip
    path = results / "net.safetensors"
    save_network(chain, path, card)
    tightness_by_depth.measure([str(path)], starts=8, rounds=1, effort="tight", device="cpu")
    (check,) = load_checks(results / "local")
    (line,) = (dict(zip(check.rows[0], line, strict=True)) for line in check.rows[1:])
    assert (line["family"], line["depth"], line["seed"]) == ("resnet", "1", "unknown") and check.verdict == "in part"
    assert 0.2 < float(line["ratio"]) <= 1 and float(line["near"]) <= float(line["found"]) <= float(line["bound"])
    assert json.loads((results / "local/checks/tightness.json").read_text())["goal"] == "tightness"
