"""Statistics of margins against plain loops over rationals; and in records, where they belong to what was counted."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from pydantic import ValidationError

from lipcert import margin_statistics as statistics
from lipcert import record as parts
from lipcert.certify import certified_correct, certify
from lipcert.config import TrainConfig
from lipcert.data import load_dataset, to_unit
from lipcert.evaluate import certify_again
from lipcert.models import load_network
from lipcert.paths import RESULTS
from lipcert.radius import Radius
from lipcert.records import read_record
from lipcert.results import margins_part
from lipcert.train import fit

RADIUS = "36/255"
TINY = {"dataset": "digits", "depth": 1, "width": 4, "neck_width": 8, "batch": 64, "steps": 12, "device": "cpu"}


def made(seed: int, images: int = 60, classes: int = 7):
    """Logits and constants that are small binary fractions: margins are exact, ties are common."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = torch.randint(-12, 13, (images, classes), generator=generator).double() / 8
    upper_KK = torch.randint(4, 33, (classes, classes), generator=generator).double().triu(1) / 16
    labels_N = torch.randint(0, classes, (images,), generator=generator)
    return logits_NK, labels_N, upper_KK + upper_KK.T


def truth(logits_NK, labels_N, lipschitz_KK, image: int) -> dict[int, Fraction]:
    """Distance of one image from every class but its own."""
    label = int(labels_N[image])
    row = [Fraction(z) for z in logits_NK[image].tolist()]
    constants = [Fraction(k) for k in lipschitz_KK[label].tolist()]
    return {j: (row[label] - row[j]) / constants[j] for j in range(len(row)) if j != label}


@pytest.mark.parametrize("seed", range(3))
def test_distances_and_what_is_nearest_are_those_of_plain_loops(seed):
    given = made(seed)
    distance_NK = statistics.boundary_distances(*given)
    found = statistics.nearest_boundaries(*given, RADIUS)
    for image in range(len(distance_NK)):
        exact = truth(*given, image)
        row = distance_NK[image].tolist()
        assert row.pop(int(given[1][image])) == math.inf
        assert row == [float(value) for value in exact.values()]  # exact margins: one rounding, of the quotient
        nearest = min(exact, key=lambda j: (exact[j], j))
        assert found.distance_N[image] == float(exact[nearest]) and found.class_N[image] == nearest
        assert found.threats_N[image] == sum(value < Fraction(36, 255) for value in exact.values())


def test_pieces_give_what_the_whole_does(monkeypatch):
    given = made(5)
    whole = statistics.nearest_boundaries(*given, RADIUS)
    monkeypatch.setattr(statistics, "_PIECE", 8 * 7 + 3)
    pieces = statistics.nearest_boundaries(*given, RADIUS)
    for name in ("distance_N", "class_N", "threats_N"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name))


@pytest.mark.parametrize("parts", [1, 4, 20])
def test_quantiles_lie_between_sorted_neighbours(parts):
    values = torch.randn(3, 17, generator=torch.Generator().manual_seed(parts), dtype=torch.float64)
    ranked = sorted(map(Fraction, values.flatten().tolist()))
    for part, found in enumerate(statistics.quantiles(values, parts)):
        place = Fraction(part * (len(ranked) - 1), parts)
        low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
        assert found == pytest.approx(float(low + (high - low) * (place - math.floor(place))), rel=1e-12, abs=1e-15)


def test_counts_put_the_many_together():
    threats_N = torch.tensor([0, 0, 3, 2, 3, 9, 50])
    assert statistics.counts_up_to(threats_N, 3) == (2, 0, 1, 4)
    assert statistics.counts_up_to(threats_N[:0], 2) == (0, 0, 0)


def test_rivals_are_counted_by_how_often_they_come():
    assert statistics.effective_rivals(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), 3) == 1
    every = list(itertools.permutations(range(5), 2))
    labels_N, class_N = torch.tensor(every).T
    assert statistics.effective_rivals(labels_N, class_N, 5) == pytest.approx(4, rel=1e-14)
    _, labels_N, _ = made(7, images=200)
    class_N = (labels_N + 1 + torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(1)) ** 2 // 6) % 7
    expected = []
    for label in labels_N.unique():
        counts = Counter(class_N[labels_N == label].tolist())
        shares = [n / counts.total() for n in counts.values()]
        expected.append(math.exp(-sum(p * math.log(p) for p in shares)))
    assert statistics.effective_rivals(labels_N, class_N, 7) == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_every_pair_of_classes_has_one_constant():
    constants = made(1)[2]
    found = statistics.pair_constants(constants).tolist()
    assert found == [constants[i, j].item() for i in range(7) for j in range(i + 1, 7)]


# --- in records -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Nominal certificates of a shipped network, and labels."""
    data, network = load_dataset("digits"), load_network(RESULTS / "models" / "digits-liresnet-L6W32")
    images_BCHW = to_unit(data.test.images_NCHW, data.scale, torch.float64)
    return certify(network, images_BCHW, guarantee="nominal"), data.test.labels_N


@pytest.mark.parametrize("radius", ["36/255", "0.2", "0.3", "0.4"])
def test_images_without_a_threat_are_those_certified(digits, radius):
    certificates, labels_N = digits
    margins = margins_part(certificates, labels_N, radius)
    count = certified_correct(certificates.prediction_B, certificates.radius_B, labels_N, radius)
    assert margins.threatening[0] == count and 0 < count < len(labels_N)
    assert sum(margins.threatening) == int((certificates.prediction_B == labels_N).sum())


def test_only_rounding_parts_them(digits):
    """At a radius that is some image's distance, the proven radius, rounded down, falls short and the distance not."""
    certificates, labels_N = digits
    logits_NK, lipschitz_KK = certificates.logits_BK, certificates.bounds.margin_lipschitz_KK
    radius = statistics.nearest_boundaries(logits_NK, labels_N, lipschitz_KK, 0).distance_N.median().item()
    exact = Radius(Fraction(radius))
    count = certified_correct(certificates.prediction_B, certificates.radius_B, labels_N, exact)
    found = statistics.nearest_boundaries(logits_NK, labels_N, lipschitz_KK, exact)
    assert int((found.threats_N == 0).sum()) == count + 1


def test_half_of_the_images_are_nearer_than_the_middle(digits):
    certificates, labels_N = digits
    margins = margins_part(certificates, labels_N, RADIUS)
    distances = [
        min(truth(certificates.logits_BK, labels_N, certificates.bounds.margin_lipschitz_KK, image).values())
        for image in range(len(labels_N))
    ]
    assert sum(d < margins.quantiles[10] for d in distances) == pytest.approx(len(distances) / 2, abs=1)
    assert margins.quantiles[0] == pytest.approx(float(min(distances)), rel=1e-5)
    assert margins.quantiles[-1] == pytest.approx(float(max(distances)), rel=1e-5)
    wrong = sum(d <= 0 for d in distances)
    assert wrong == len(labels_N) - sum(margins.threatening) and (margins.quantiles[0] < 0) == (wrong > 0)
    constants = certificates.bounds.margin_lipschitz_KK
    assert margins.lipschitz[-1] == pytest.approx(constants.max().item(), rel=1e-5)
    assert 1 <= margins.spread <= 9


def test_nothing_but_nominal_margins_in_l2_has_them(digits):
    certificates, labels_N = digits
    for other in ({"guarantee": "executed"}, {"norm": "linf"}, {"method": "interval"}):
        assert margins_part(replace(certificates, **other), labels_N, RADIUS) is None
    broken = certificates.logits_BK.clone()
    broken[3, 2] = math.nan
    assert margins_part(replace(certificates, logits_BK=broken), labels_N, RADIUS) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and record of a small run with snapshots, and how often distances were computed."""
    folder, calls = tmp_path_factory.mktemp("run"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPCERT_RESULTS", str(folder))
        original = statistics.nearest_boundaries
        patch.setattr("lipcert.results.nearest_boundaries", lambda *a: calls.append(1) or original(*a))
        path = fit(TrainConfig(**TINY, snapshots=4, radius="0.05"), progress=False)
    return folder, path, len(calls)


def test_a_run_records_them_once_and_snapshots_do_not_pay(run):
    _, path, calls = run
    record = read_record(path)
    nominal = record.result("0.05", "nominal")
    assert calls == 1 and len(record.training.snapshots) == 3
    assert sum(record.test.margins.threatening) == record.test.clean > 0
    assert record.test.margins.threatening[0] == nominal.certified_correct


def test_certifying_again_records_the_same(run, monkeypatch):
    folder, path, _ = run
    before = read_record(path)
    monkeypatch.setenv("LIPCERT_RESULTS", str(folder))
    after = read_record(certify_again(before.id))
    assert after.test.certified is not None and after.test.margins == before.test.margins


def test_older_records_have_none(run, tmp_path):
    facts = json.loads(run[1].read_text())
    del facts["test"]["margins"]
    older = tmp_path / "older.json"
    older.write_text(json.dumps(facts))
    assert read_record(older).test.margins is None


GOOD = {"quantiles": range(21), "threatening": [3] + 10 * [0], "spread": 1.0, "lipschitz": range(5)}
BAD = {
    "a quantile missing": {"quantiles": range(20)},
    "quantiles that fall": {"quantiles": range(21, 0, -1)},
    "constants that fall": {"lipschitz": [5, 4, 3, 2, 1]},
    "a count missing": {"threatening": [3]},
    "a negative count": {"threatening": [4, -1] + 9 * [0]},
    "a distance without end": {"quantiles": [*range(20), math.inf]},
    "less than one rival": {"spread": 0.5},
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_statistics_are_refused(name):
    parts.Margins(**GOOD)
    with pytest.raises(ValidationError):
        parts.Margins(**GOOD | BAD[name])


def test_they_count_the_images_that_are_right():
    test = {"split": "test", "images": 5, "seconds": 0, "radii": None, "results": (), "margins": parts.Margins(**GOOD)}
    assert parts.Test(clean=3, **test).margins.threatening[0] == 3
    with pytest.raises(ValidationError, match=r"threatening counts 3 images: must be clean=4"):
        parts.Test(clean=4, **test)
