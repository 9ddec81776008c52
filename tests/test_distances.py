"""Distances between classes and the bound on VRA from them, against loops over pixels, pairs and covers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import distances
from lipcert.data import Dataset, Split, load_dataset
from lipcert.paths import ROOT, local_dir
from lipcert.radius import Radius
from lipcert.report.checks import load_checks


def split_of(pixels: list[list[int]], labels: list[int]) -> Split:
    images = torch.tensor(pixels, dtype=torch.uint8)
    return Split(images[:, None, None, :], torch.tensor(labels), torch.arange(len(labels)))


def drawn(count: int, pixels: int, classes: int, seed: int, top: int = 256) -> Split:
    draw = np.random.default_rng(seed)
    return split_of(draw.integers(0, top, (count, pixels)).tolist(), draw.integers(0, classes, count).tolist())


def by_hand(one: Split, other: Split, norm: str) -> np.ndarray:
    """Integers of all distances, pixel by pixel, as Python counts."""
    a, b = (split.images_NCHW.flatten(1).tolist() for split in (one, other))
    whole = {"l2": lambda x, y: sum((p - q) ** 2 for p, q in zip(x, y, strict=True)),
             "linf": lambda x, y: max(abs(p - q) for p, q in zip(x, y, strict=True))}  # fmt: skip
    return np.array([[whole[norm](x, y) for y in b] for x in a], dtype=object)


# --- distances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("pixels", [1, 64, 784, 1024, 1025, 3072])
def test_distances_are_those_of_a_loop_over_pixels(norm, pixels):
    one, other = drawn(5, pixels, 3, pixels), drawn(7, pixels, 3, pixels + 1)
    found = distances._DISTANCES[norm](one.images_NCHW.flatten(1), other.images_NCHW.flatten(1))
    assert found.dtype == torch.int32 and (found.numpy() == by_hand(one, other, norm)).all()


@pytest.mark.parametrize("values", [(0, 0), (0, 255), (255, 255), (1, 254), (127, 128)])
def test_no_sum_is_rounded_where_all_products_are_largest(values):
    one, other = (torch.full((2, 3072), value, dtype=torch.uint8) for value in values)
    one[1, 0] ^= 1  # a sum that is odd and as large as they get
    difference = values[0] - values[1]
    changed = int(one[1, 0]) - values[1]
    assert distances.squared_distances(one, other)[:, 0].tolist() == [
        3072 * difference**2, 3071 * difference**2 + changed**2
    ]  # fmt: skip


def test_the_proof_of_exactness_holds_for_the_sizes_in_the_code():
    largest = max(abs(0 - distances._CENTRE), abs(255 - distances._CENTRE)) ** 2
    assert distances._PIECE * largest <= 2**24
    assert 3072 * 255**2 < distances.NONE == torch.iinfo(torch.int32).max


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_nearest_images_of_other_labels_block_by_block(norm, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS", 3)
    monkeypatch.setattr(distances, "_COLUMNS", 4)
    one, other = drawn(11, 6, 3, 1, top=9), drawn(14, 6, 3, 2, top=9)
    for others in (one, other):
        whole = by_hand(one, others, norm)
        whole[one.labels_N.numpy()[:, None] == others.labels_N.numpy()] = distances.NONE
        found = distances.nearest_other(one, others, norm)
        assert found.distance_A.tolist() == whole.min(1).tolist()
        assert [whole[a, b] for a, b in enumerate(found.place_A.tolist())] == whole.min(1).tolist()


def test_with_one_label_nothing_is_near():
    alone = split_of([[1, 2], [3, 4]], [5, 5])
    assert distances.nearest_other(alone, alone, "l2").distance_A.tolist() == [distances.NONE] * 2


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_wrong_products_are_noticed(norm, monkeypatch):
    right = distances._DISTANCES[norm]
    monkeypatch.setitem(distances._DISTANCES, norm, lambda a, b: right(a, b) + 1)
    with pytest.raises(RuntimeError, match="not exact"):
        distances.nearest_other(drawn(4, 5, 2, 0), drawn(4, 5, 2, 1), norm)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_close_pairs_are_all_of_them_once(norm, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS", 3)
    monkeypatch.setattr(distances, "_COLUMNS", 4)
    images = drawn(13, 4, 3, 3, top=6)
    whole, labels = by_hand(images, images, norm), images.labels_N.tolist()
    limit = sorted(whole.flatten())[len(whole.flatten()) // 3]
    expected = {
        (a, b, whole[a, b]) for a, b in itertools.combinations(range(13), 2)
        if labels[a] != labels[b] and whole[a, b] <= limit
    }  # fmt: skip
    found = list(zip(*(part.tolist() for part in distances.close_pairs(images, limit, norm)), strict=True))
    assert len(found) == len(set(found)) and set(found) == expected and expected


@given(st.fractions(0, 3), st.sampled_from(["l2", "linf"]), st.sampled_from([16, 255]))
def test_the_limit_is_the_last_integer_whose_balls_meet(radius, norm, scale):
    def meet(integer: int) -> bool:
        power = 2 if norm == "l2" else 1
        return integer <= (2 * Radius(radius).exact * scale) ** power

    limit = distances.conflict_limit(Radius(radius), norm, scale)
    assert meet(limit) and not meet(limit + 1)


def test_the_limit_at_the_papers_radii():
    assert distances.conflict_limit(Radius("36/255"), "l2", 255) == 72**2
    assert distances.conflict_limit(Radius("8/255"), "linf", 255) == 16
    assert distances.conflict_limit(Radius("0.3"), "linf", 255) == 153


@given(st.floats(1e-3, 9))
def test_printed_radii_are_rounded_up_to_four_digits(radius):
    up = Fraction(distances._up(radius))
    assert Fraction(radius) <= up * (1 + Fraction(1, 10**12)) and up <= Fraction(radius) * Fraction(10012, 10000)
    assert distances._up(0.0) == "0"


# --- the bound --------------------------------------------------------------------------------------------------------


def smallest_cover(count: int, pairs: set[tuple[int, int]]) -> int:
    for size in range(count + 1):
        for cover in itertools.combinations(range(count), size):
            if all(a in cover or b in cover for a, b in pairs):
                return size
    raise AssertionError


def largest_matching(pairs: list[tuple[int, int]]) -> int:
    if not pairs:
        return 0
    (a, b), rest = pairs[0], pairs[1:]
    return max(largest_matching(rest), 1 + largest_matching([p for p in rest if not {a, b} & set(p)]))


graphs = st.integers(1, 8).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=9))
)


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_the_smallest_cover_lies_between_the_ends(graph):
    count, pairs = graph[0], {(min(p), max(p)) for p in graph[1] if p[0] != p[1]}
    ends = [np.array([p[k] for p in sorted(pairs)], dtype=np.int64) for k in (0, 1)]
    least, most = distances.uncertified(count, *ends)
    assert largest_matching(sorted(pairs)) <= least <= smallest_cover(count, pairs) <= most <= count


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(4, 7)), max_size=10))
def test_with_two_classes_the_lower_end_is_the_smallest_cover(pairs):
    """Koenig's theorem: graphs of two classes are bipartite."""
    ends = [np.array([p[k] for p in sorted(pairs)], dtype=np.int64) for k in (0, 1)]
    assert distances.uncertified(8, *ends)[0] == smallest_cover(8, pairs)


def test_three_classes_in_a_ring_lose_two_where_a_matching_says_one():
    ring = np.array([0, 1, 0]), np.array([1, 2, 2])
    assert distances.uncertified(3, *ring) == (2, 2)


def test_bounds_of_images_on_a_line():
    """0 - 10 - 14, classes a b a: at 2 r = 4 one of the last two is lost, at 10 the middle one is enough."""
    line = split_of([[0], [10], [14], [200]], [0, 1, 0, 1])
    nearest = distances.nearest_other(line, line, "linf")
    assert nearest.distance_A.tolist() == [10, 4, 4, 186]
    found = distances.bounds(line, nearest, "linf", 255)
    assert found[Radius("2/255")] == (1, 1) and all(radius.exact <= Fraction(1, 25) for radius in found)
    pairs = distances.close_pairs(line, 10, "linf")
    assert distances.uncertified(4, *pairs[:2]) == (1, 1)


def test_identical_images_with_two_labels():
    test = split_of([[1], [1], [2], [3], [9]], [0, 1, 0, 0, 1])
    train = split_of([[2], [3], [4], [4], [5], [5]], [1, 0, 0, 1, 0, 0])
    data = Dataset("made", train, train, test, 2, ("a", "b"), (0, 1), 255, (1, 1, 1), "0" * 64)
    assert distances.identical(data) == {
        "groups": 5, "two labels, test": 1, "two labels, train": 1, "two labels, across": 1
    }  # fmt: skip


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_digits_against_floating_point():
    numbers, rows = distances.measure("digits")
    data = load_dataset("digits")
    x, y = (split.images_NCHW.flatten(1).double().numpy() for split in (data.test, data.train))
    labels, others = data.test.labels_N.numpy(), data.train.labels_N.numpy()
    for norm, order in (("l2", 2), ("linf", np.inf)):
        for pair, (points, said) in {"test": (x, labels), "train": (y, others)}.items():
            apart = np.array([np.linalg.norm(points - one, order, axis=1) for one in x]) / 16
            apart[labels[:, None] == said] = np.inf
            least = np.sort(apart.min(1))
            assert numbers[f"digits; {norm}; {pair}; smallest"] == pytest.approx(least[0], rel=1e-5)
            assert numbers[f"digits; {norm}; {pair}; median"] == pytest.approx(least[(len(least) - 1) // 2], rel=1e-5)
    assert len(rows) == 4 and numbers["digits; images"] == 360 and numbers["digits; identical; two labels, test"] == 0
    half = numbers["digits; l2; test; smallest"] / 2
    ends = {key.split("; ")[2].removeprefix("lost at "): value for key, value in numbers.items()
            if key.startswith("digits; l2; lost at") and key.endswith("at least")}  # fmt: skip
    assert len(ends) >= 7
    assert all((float(Radius(radius)) >= half) == (lost > 0) for radius, lost in ends.items())
    assert [ends[r] for r in sorted(ends, key=Radius)] == sorted(ends.values())


def test_the_command_writes_its_record(monkeypatch):
    monkeypatch.setattr("sys.argv", ["distances", "--sets", "digits"])
    distances.main()
    (check,) = load_checks(local_dir())
    assert check.goal == "distances" and check.command == "python -m benchmarks.distances --sets digits"
    assert check.verdict == "in part" and "digits" in check.measured and len(check.rows) == 5


@pytest.mark.data("cifar10")
def test_the_published_pair_is_that_far_apart():
    """The pairs of the record, pixel by pixel; no pair of the first 400 images is closer."""
    check = next((check for check in load_checks(ROOT / "results") if check.goal == "distances"), None)
    if check is None:
        pytest.skip("the distances have not been published")
    data = load_dataset("cifar10")
    for pair, others in (("test", data.test), ("train", data.train)):
        words = str(check.numbers[f"cifar10; l2; {pair}; pair"]).replace(",", "").split()
        a, b = int(words[1]), int(words[4])
        apart = data.test.images_NCHW[a].long() - others.images_NCHW[b].long()
        assert int((apart**2).sum()) == check.numbers[f"cifar10; l2; {pair}; smallest, integer"]
        assert data.test.labels_N[a] != others.labels_N[b]
    few = Split(data.test.images_NCHW[:400], data.test.labels_N[:400], data.test.index_N[:400])
    found = distances.nearest_other(few, few, "l2").distance_A
    assert int(found.min()) >= check.numbers["cifar10; l2; test; smallest, integer"]
