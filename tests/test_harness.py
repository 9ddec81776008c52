"""The benchmarks' common core: what it counts, compares and refuses to hide."""

import collections
import itertools
import statistics
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import certification, harness, norm_methods, training_step
from lipcert.config import ModelConfig
from lipcert.models import build_model
from lipcert.paths import ROOT


def test_works_take_turns_and_warm_up_is_not_timed():
    order, time = [], itertools.count()
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = harness.take_turns(works, 3, warmup=2, clock=lambda: next(time))
    assert order == [*"aabb", *"ababab"]
    assert seconds == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_ratio_pairs_rounds_so_that_a_slow_minute_cancels():
    seconds = {"a": [2.0, 20.0, 2.2], "b": [1.0, 10.0, 1.0]}
    assert harness.ratio(seconds, "a", "b").median == 2.0
    assert statistics.median(seconds["a"]) / statistics.median(seconds["b"]) == pytest.approx(2.2)


def test_spread_of_one_repeat():
    assert harness.Spread.of([3.0]) == harness.Spread(3.0, 3.0, 3.0)
    assert harness.Spread.of([1.0, 2.0, 3.0]).show(digits=1) == "2.0 (1.5 to 2.5)"


@pytest.mark.parametrize(("depth", "width", "features"), [(3, 8, 64), (2, 16, 512)])
def test_counted_operations_are_what_torch_counts(depth, width, features):
    parts = harness.liresnet_parts(depth, width, features, batch=4)
    config = ModelConfig(depth=depth, width=width, neck_width=features, neck="dense", channels=3, input_size=32)
    network = build_model(config)
    counter = FlopCounterMode(display=False)
    with counter:
        network.backbone(torch.rand(4, 3, 32, 32))
    assert sum(part.forward for part in parts[:-2]) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        network.backbone(torch.rand(4, 3, 32, 32)).sum().backward()
    assert sum(part.forward + part.backward for part in parts[:-2]) == counter.get_total_flops()


def test_orthogonalisation_is_counted_on_the_smaller_side():
    (wide,), (tall,) = ([p.forward for p in harness.liresnet_parts(1, 8, f, 4)][-1:] for f in (64, 256))
    assert wide == 2 * 64**2 * 128 + 64**3 / 3
    assert tall == 2 * 128**2 * 256 + 128**3 / 3


@pytest.mark.parametrize("images", [True, False])
def test_convolutions_alone_count_their_passes(images):
    work = harness.convolution(4, 6, 3, 1, 2, 8, torch.float32, backward=True, images=images)
    x_BCHW, kernel_OIhw = torch.rand(2, 4, 8, 8, requires_grad=images), torch.rand(6, 4, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(x_BCHW, kernel_OIhw, padding=1).sum().backward()
    assert work.operations == counter.get_total_flops()
    work.run()


def test_floor_takes_the_slower_of_arithmetic_and_memory():
    parts = [harness.Part("convolution", 100.0, 200.0, 1.0), harness.Part("product", 10.0, 20.0, 0.0)]
    parts += [harness.Part("orthogonalisation", 10.0, 20.0, 0.0)] * 2
    rates = {
        "convolution, float32": 10.0,
        "convolution gradients, float32": 20.0,
        "product, float32": 10.0,
        "memory": 1.0,
    }
    assert harness.floor_seconds(parts, rates, "float32") == 20 + 3 * 1.5
    assert harness.floor_seconds(parts, rates | {"memory": 0.01}, "float32") == 400 + 3 * 1.5


GROWS = """
import torch
from benchmarks import harness
held = []
print(harness.grown_bytes(lambda: lambda: held.append(torch.ones(8 * 2**20))))
"""


def test_memory_grows_by_what_a_step_holds():
    """In a process of its own: the peak of this one may be anything."""
    ran = subprocess.run([sys.executable, "-c", GROWS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 90e6 < int(ran.stdout.splitlines()[-1]) < 180e6


# ---------------------------------------------------------------------------------------------------------- estimates
def small_maps():
    """Two matrices at once, as 1x1 convolutions of one pixel, and their norms."""
    torch.manual_seed(0)
    matrices = torch.randn(2, 12, 12)
    kernel = matrices.reshape(24, 12, 1, 1)
    return norm_methods.Grouped(kernel, 1, 0, 2, (1, 24, 1, 1)), torch.linalg.matrix_norm(matrices, ord=2).prod()


@pytest.mark.parametrize("name", norm_methods.methods())
def test_every_method_converges_from_below(name):
    grouped, truth = small_maps()
    method = norm_methods.methods()[name].start([norm_methods.unit(torch.randn(2, 12))])
    estimates = [float(method.product([grouped])) for _ in range(400 // method.products)]
    assert max(estimates) <= truth * (1 + 1e-5)
    assert estimates[-1] >= truth * (1 - 1e-3)


def test_krylov_is_at_least_as_good_as_powers_from_the_same_start():
    grouped, _ = small_maps()
    for seed in range(5):
        start = [norm_methods.unit(torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)))]
        powers, krylov, _ = (
            float(norm_methods.methods()[f"{name}, {k}"].start(start).product([grouped]))
            for name, k in (("powers", 3), ("Krylov", 3), ("Krylov", 5))
        )
        assert krylov >= powers * (1 - 1e-6)


def test_converged_product_is_the_norm():
    grouped, truth = small_maps()
    assert norm_methods.converged([grouped], [norm_methods.unit(torch.randn(2, 12))])[0] == pytest.approx(float(truth))


# ------------------------------------------------------------------------------------------------------------ records
def made_up(slow: float) -> dict:
    works = ["convolutions; float32", "convolutions; bfloat16", training_step.SMALL_PAPERS, *training_step.ROWS]
    works += [f"{part}; {label}" for part in ("lipschitz", "orthogonalisation", "images")
              for label in ("same", "changed", "neck 256")]  # fmt: skip
    return {
        "seconds": {name: [0.01, 0.01] for name in works} | {training_step.PAPERS: [slow, slow]},
        "rates": collections.defaultdict(lambda: 1e12),
        "differences": {},
        "impossible": {"same; float32, native": "no compiler"},
        "phases": {"backward": 0.7},
        "operations": {"convolution": 0.1},
    }


def test_no_ratio_is_claimed_where_the_baseline_is_in_doubt():
    found = {"L6 W64": made_up(0.05)}
    memory = {"L6 W64; memory float32, eager; ratio of MB": 1.2}
    sure, doubtful = training_step.told(found, []), training_step.told(found, ["backward 90%"])
    assert sure["numbers"]["L6 W64; same; float32, eager; ratio"] == pytest.approx(5)
    assert not any("ratio" in key for key in doubtful["numbers"])
    assert all(row[4] == "not claimed" for row in doubtful["rows"][1:-1])
    assert doubtful["rows"][-1][1:3] == ("same; float32, native", "not here")
    text, verdict = training_step.words(["L6 W64"], sure["numbers"] | memory, [])
    assert "5.00 times as fast" in text and verdict == "in part"  # the parts take as long as the step
    text, _ = training_step.words(["L6 W64"], doubtful["numbers"] | memory, ["backward 90%"])
    assert "no ratio is claimed" in text and "times as fast" not in text


def test_certification_record_compares_within_an_arithmetic():
    seconds = {"plain, float64": [1.0, 2.0], "plain, float32": [0.5, 1.0]}
    seconds |= {", ".join(claim): [1.05, 2.1] for claim in certification.CLAIMS}
    proof = {"layer": "stem", "effort": "fast", "method": "matrix", "seconds": 2.0, "excess": 0.0, "limit": 0.5}
    found = certification.told(seconds, [proof], 2000, 1000)
    assert found["verdict"] == "met"
    assert found["numbers"]["executed, float64; ratio"] == pytest.approx(1.05)
    assert found["numbers"]["executed, float32; ratio"] == pytest.approx(2.1)
    assert found["numbers"]["proofs; fast; share"] == 0.25
