"""The page on attention: blocks, textbook bounds and the search behind it, against plain loops and known constants."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from truth import conv_matrix

from lipcert.paths import ROOT
from lipcert.report import attention as page
from lipcert.report.checks import Check, write_check

sys.path.insert(0, str(ROOT))  # measurements are no part of the package

from benchmarks import attention as measured
from benchmarks import attention_blocks as blocks
from benchmarks.jacobian_search import climb, in_ball, jacobians, sorted_best, stretches

SHAPES = ((2, 4), (4, 6), (6, 2), (9, 4))
GRIDS = ((4, 4), (8, 2), (16, 2))


def make(kind: str, tokens: int, features: int, heads: int = 1, scale: float = 1.0) -> blocks.Branch:
    branch = blocks.make_branch(kind, tokens, features, heads).double().requires_grad_(False)
    for weight in branch.parameters():
        weight *= scale
    return branch


# --- what the branches compute: plain loops ---------------------------------------------------------------------------


def softmax(scores):
    grown = np.exp(scores - scores.max())
    return grown / grown.sum()


def by_loops(kind: str, branch, x_ND: np.ndarray) -> np.ndarray:
    """Head by head and token by token, from the definition."""
    weights = {name: weight.numpy() for name, weight in branch.named_parameters()}
    if kind == "layer norm, dot product":
        weights = {name.removeprefix("branch."): weight for name, weight in weights.items()}
        x_ND = np.stack([(x - x.mean()) / math.sqrt(x.var() + blocks.NORM_EPS) for x in x_ND])
    heads, size, _ = weights["value"].shape
    out = np.zeros_like(x_ND)
    for i, h in itertools.product(range(len(x_ND)), range(heads)):
        query, value = weights["query"][h], weights["value"][h]
        if kind == "squared distance":
            form = query.T @ query / math.sqrt(size)
            p = softmax(np.array([-(x_ND[i] - y) @ form @ (x_ND[i] - y) for y in x_ND]))
            head = value @ form @ sum(w * y for w, y in zip(p, x_ND, strict=True))
        else:
            asked, keys, values = query @ x_ND[i], x_ND @ weights["key"][h].T, x_ND @ value.T
            if kind == "cosine":
                asked, *_ = unit(asked[None])
                keys, values = unit(keys), unit(values)
                p = softmax(blocks.COSINE_SCALE * keys @ asked)
            else:
                scores = keys @ asked / math.sqrt(size)
                p = scores / len(x_ND) if kind == "no softmax" else softmax(scores)
            head = p @ values
        out[i] += weights["out"][:, h * size : (h + 1) * size] @ head
    return out


def unit(rows):
    return rows / np.sqrt((rows**2).sum(1, keepdims=True) + blocks.COSINE_EPS)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kind", blocks.ATTENTION)
def test_attention_is_what_its_definition_says(kind, heads):
    torch.manual_seed(heads)
    branch = make(kind, 5, 6, heads)
    x_ND = torch.randn(5, 6, dtype=torch.float64)
    np.testing.assert_allclose(branch(x_ND[None])[0].numpy(), by_loops(kind, branch, x_ND.numpy()), rtol=1e-12)


@pytest.mark.parametrize("kind", blocks.ATTENTION)
def test_jacobians_agree_with_differences_of_the_loops(kind):
    torch.manual_seed(3)
    branch = make(kind, 3, 4, 2)
    x_ND = torch.randn(3, 4, dtype=torch.float64)
    found = jacobians(branch, x_ND[None])[0].numpy()
    for column in range(12):
        step = np.zeros(12)
        step[column] = 1e-6
        ends = [by_loops(kind, branch, x_ND.numpy() + sign * step.reshape(3, 4)) for sign in (1, -1)]
        np.testing.assert_allclose(found[:, column], (ends[0] - ends[1]).ravel() / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "features"), GRIDS)
def test_convolutions_have_the_matrix_of_their_definition(tokens, features):
    torch.manual_seed(tokens)
    branch = make("linear convolution", tokens, features)
    high = 4 if tokens == 16 else 2
    weight = branch.conv.weight.numpy()
    by_channel = conv_matrix(weight, (features, high, tokens // high), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    order = np.arange(tokens * features).reshape(features, tokens).T.ravel()
    np.testing.assert_allclose(blocks.matrix_of(branch, (tokens, features)), by_channel[np.ix_(order, order)])
    assert branch.block_norm() == pytest.approx(np.linalg.norm(np.eye(len(order)) + by_channel, 2))


# --- bounds -----------------------------------------------------------------------------------------------------------


def points(tokens: int, features: int, radius: float | None, count: int) -> torch.Tensor:
    """Sequences whose tokens have lengths of many orders of magnitude, in the ball or on its sphere."""
    scale = 10 ** (torch.rand(count, tokens, 1, dtype=torch.float64) * 5 - 4)
    together = torch.randn(count, 1, features, dtype=torch.float64) * (torch.rand(count, 1, 1) < 0.5)
    return in_ball(together + scale * torch.randn(count, tokens, features, dtype=torch.float64), radius)


def norms(branch, x_BND) -> np.ndarray:
    return np.linalg.norm(jacobians(branch, x_BND).numpy(), 2, axis=(1, 2))


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_no_jacobian_is_above_a_bound(kind):
    """Thousands of points for each kind, weights from tame to sharp."""
    torch.manual_seed(0)
    local, checked = kind not in blocks.ATTENTION, 0
    for (tokens, features), scale in itertools.product(GRIDS if local else SHAPES, (0.3, 1.0, 3.0)):
        for heads in (1,) if local else (1, 2):
            branch = make(kind, tokens, features, heads, scale)
            radius = float(torch.rand(()) * 3 + 0.1)
            bounds = branch.bounds(tokens, radius)
            found_B = norms(branch, points(tokens, features, None if branch.everywhere else radius, 90))
            assert found_B.max() <= min(bounds.values()) * (1 + 1e-9), (tokens, features, scale)
            checked += len(found_B)
    assert checked > 800


@pytest.mark.parametrize("kind", ["dot product", "squared distance", "cosine", "layer norm, dot product"])
def test_no_point_found_by_search_is_above_a_bound(kind):
    torch.manual_seed(1)
    branch = make(kind, 4, 4, 1, 2.0)
    ball = None if branch.everywhere else 2.0
    start_BND = points(4, 4, ball, 8)
    end_BND = climb(branch, start_BND, ball, (20, 60), keep=3)
    branch_B, whole_B = stretches(branch, end_BND)
    assert branch_B[:3].max() >= norms(branch, start_BND).max() * (1 - 1e-9)
    assert branch_B.max() <= branch.bounds(4, 2.0)["ours"] * (1 + 1e-9)
    assert (whole_B <= 1 + branch_B + 1e-9).all() and (whole_B >= branch_B - 1 - 1e-9).all()
    assert ball is None or end_BND.norm(dim=-1).max() <= ball * (1 + 1e-12)


def test_our_bounds_are_never_worse_than_the_published():
    for kind, tokens, scale in itertools.product(("dot product", "squared distance"), (2, 7, 50), (0.01, 1.0, 30.0)):
        bounds = make(kind, tokens, 4, 2, scale).bounds(tokens, 1.5)
        assert bounds["ours"] < bounds["published"]


def test_published_bounds_are_their_formulas():
    torch.manual_seed(5)
    branch = make("dot product", 6, 4)
    query, key, value = (getattr(branch, name)[0].numpy() for name in ("query", "key", "value"))
    a, v = np.linalg.norm(query.T @ key, 2) / 2, np.linalg.norm(value, 2) * np.linalg.norm(branch.out.numpy(), 2)
    expected = math.sqrt(3) * v * math.sqrt(a**2 * 1.5**4 * (4 * 6 + 1) + 6)
    assert branch.bounds(6, 1.5)["published"] == pytest.approx(expected)


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 1.0, 30.0, 1e4])
def test_dot_product_attention_has_no_constant(t):
    derivative, whole = measured.family(t)
    assert derivative == pytest.approx(0.5 + t**2 / 4, rel=1e-12) and whole >= derivative * (1 - 1e-12)


def test_softmax_stretches_by_one_half_at_most():
    numbers = measured.pieces()
    assert numbers["softmax random"] <= 0.5 and numbers["softmax pair"] == pytest.approx(0.5, rel=1e-12)


def test_layer_norm_stretches_by_the_root_of_one_over_eps():
    numbers = measured.pieces()
    assert numbers["layer norm 0"] == pytest.approx(1 / math.sqrt(blocks.NORM_EPS))
    assert numbers["layer norm 0.1"] == pytest.approx(1 / math.sqrt(0.01 + blocks.NORM_EPS))


def test_without_softmax_the_bound_is_attained():
    branch = make("no softmax", 3, 2)
    for weight in branch.parameters():
        weight.copy_(torch.eye(2).expand_as(weight))
    x_1ND = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(1, 3, 2)
    bound = 3 * 4 / math.sqrt(2)  # 3 R^2 |A| with R = 2 and A = 1 / sqrt(2)
    assert branch.bounds(3, 2.0)["ours"] == pytest.approx(bound) == norms(branch, x_1ND)[0]


@pytest.mark.parametrize("tokens", [2, 5, 16])
def test_spread_is_the_largest_mean_of_squared_distances(tokens):
    c = blocks.spread(tokens)
    assert c * math.exp(c + 1) == pytest.approx(tokens - 1)

    def mean(squares):
        return (squares * np.exp(-squares)).sum(-1) / (1 + np.exp(-squares).sum(-1))

    assert mean(np.full(tokens - 1, c + 1)) == pytest.approx(c)
    assert mean(np.random.default_rng(0).exponential(c + 1, (10_000, tokens - 1))).max() <= c


@pytest.mark.parametrize("skip", [False, True])
def test_order_search_finds_the_exact_constant_of_a_dense_branch(skip):
    torch.manual_seed(7)
    branch = make("dense", 1, 8)
    up, down = branch.up.weight.numpy(), branch.down.weight.numpy()
    best = 0.0
    for order in itertools.product((False, True), repeat=4):
        rows = [c + 4 if s else c for c, s in enumerate(order)] + [c if s else c + 4 for c, s in enumerate(order)]
        best = max(best, np.linalg.norm(skip * np.eye(8) + down @ up[rows], 2))
    found = stretches(branch, sorted_best(branch, skip, 16))[skip].max()
    assert float(found) == pytest.approx(best)


# --- the measurement --------------------------------------------------------------------------------------------------


def test_held_branches_keep_to_their_limit_while_they_learn():
    images_BND = measured.patches(torch.rand(50, 1, 8, 8, dtype=torch.float64), 4)
    labels_B = (images_BND.mean((1, 2)) > 0.5).long()
    torch.manual_seed(0)
    branch = blocks.make_branch("squared distance", 4, 16, 2).double()
    assert branch.bounds(4, 4.0)["ours"] > measured.HELD
    accuracy = measured.train(branch, images_BND, labels_B, measured.HELD, 5)
    assert branch.bounds(4, 4.0)["ours"] <= measured.HELD * (1 + 1e-12) and 0 < accuracy <= 1


@pytest.mark.parametrize("tokens", measured.PATCHES)
def test_patches_are_parts_of_the_image(tokens):
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    patches_1ND = measured.patches(image, tokens)
    rows, columns = measured.PATCHES[tokens]
    last = image[0, 0, 8 - 8 // rows :, 8 - 8 // columns :]
    assert patches_1ND.shape == (1, tokens, 64 // tokens) and (patches_1ND[0, -1] == last.flatten()).all()


@pytest.fixture(scope="module")
def check() -> Check:
    """A record of three small blocks, measured here."""
    torch.manual_seed(0)
    data = (torch.rand(50, 1, 8, 8, dtype=torch.float64), torch.randint(10, (50,)))
    cases = []
    for kind in ("linear convolution", "dense", "squared distance"):  # quick ones
        cases += measured.measure(kind, (4, 16), 1, 0, data, steps=10)
    found = measured.findings(cases, 1)
    found["numbers"] |= measured.pieces()
    return Check(
        goal="attention", title="t", target="t", seconds=1, command="c", commit=None, dirty=None, hardware={},
        versions={}, finished="2030-01-02T03:04", **found,
    )  # fmt: skip


def test_a_linear_block_wastes_nothing_once_its_sum_is_one_map(check):
    linear = [c for c in page.cases(check) if c.block == "linear convolution"]
    assert len(linear) == 3
    for case in linear:
        assert case.whole == pytest.approx(case.whole_bound, rel=1e-6)
        assert case.branch_factor == pytest.approx(1, rel=1e-6) and case.total >= 1
        assert case.total == pytest.approx(case.branch_factor * case.sum_factor)


def test_violations_are_counted(monkeypatch):
    monkeypatch.setattr(blocks.Dense, "bounds", lambda self, tokens, radius: {"ours": 0.1})
    data = (torch.rand(50, 1, 8, 8, dtype=torch.float64), torch.randint(10, (50,)))
    wrong = sum(case.violations for case in measured.measure("dense", (8, 8), 1, 0, data, steps=2))
    assert wrong > 0


# --- the page ---------------------------------------------------------------------------------------------------------

SHOWN = (
    "family_table", "pieces_table", "published_table", "looseness_words", "claim_words", "found_words",
    "measured_words",
)  # fmt: skip


def test_without_a_record_the_page_says_not_run():
    for name in SHOWN:
        assert "not run" in str(getattr(page, name)()).lower(), name
    assert page.looseness_figure() == page.looseness_table("trained") == page.depth_words() == page.NOT_RUN


def test_the_page_shows_what_was_measured(results, check):
    write_check(check, results)
    table = page.looseness_table("held")
    assert table.count("\n") == 2 + 3 and "| linear convolution |" in table and "| 1.00 |" in table
    figure = page.looseness_figure()
    assert figure.csv.count("\n") == 1 + 9 and "around attention" in figure.alt
    for name in SHOWN:
        assert "not run" not in str(getattr(page, name)()).lower(), name
    assert page.violations() == 0
    heads = check.rows[0].index("heads")
    assert {row[heads] for row in check.rows[1:]} == {"1"} and ", 1 head, seeds" in page.measured_words()


def test_words_follow_the_numbers(results, check):
    rows = check.rows
    bound, branch = (rows[0].index(name) for name in ("bound", "branch"))

    def exact(row):
        return (*row[:bound], row[branch], *row[bound + 1 :]) if row[0] == "squared distance" else row

    write_check(check, results)
    before = page.claim_words()
    write_check(check.model_copy(update={"rows": (rows[0], *map(exact, rows[1:]))}), results)
    assert page.claim_words() != before


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((0.03, 0.0, 0.39), "**Not the main one around attention**"),
        ((0.7, 0.61, 1.0), "**Yes, around attention too**"),
        ((0.5, 0.3, 0.65), "**It depends on the weights**"),
        ((0.45, 0.5, 0.55), "**In part**"),
        ((0.03, math.nan, 0.39), "**Not measured**"),
    ],
)
def test_the_claim_begins_with_what_the_shares_say(results, check, monkeypatch, shares, says):
    write_check(check, results)
    told = dict(zip(page.WEIGHTS, shares, strict=True))
    monkeypatch.setattr(page, "sum_share", lambda weights, blocks: told[weights] if blocks == page.ATTENTION else 0.5)
    words = page.claim_words().replace("\xa0", " ")
    assert words.startswith(says) and "nan" not in words
    assert "Around conventional branches the sum takes 50 % (random weights), 50 %" in words
    assert [
        each for each in shares if math.isnan(each)
    ] or f"attention the sum takes {100 * shares[0]:.0f} % (r" in words


def test_lipcert_refuses_attention():
    table = page.refusals_table()
    for name in ("MultiheadAttention", "Softmax", "LayerNorm"):
        assert f"no l2 bound for {name}" in table
    assert table.count("no l2 bound for") == table.count("\n") - 2
