"""Run all checks on a certifier, or on a bound alone."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lipcert.bench import corpus, state
from lipcert.bench.aligned import aligned
from lipcert.bench.blocks import residual_blocks
from lipcert.bench.corpus_layers import LoudLinear, Times
from lipcert.bench.exact import svd_norm
from lipcert.bench.families import FAMILIES, NormCase, conv, dense, norm_cases
from lipcert.bench.razor import Activation, razor_edge
from lipcert.bench.report import HABIT, BenchReport, CheckResult, Outcome, tally
from lipcert.bench.state import Bound
from lipcert.bench.verdict import Case, Certify, Claim, judge
from lipcert.layers import MinMax

RAZORS = ("permutations", "reflections", "orthogonal", "convolutions")
BLOCKS = ("sorting", "nested", "dense", "convolutions")
_HABIT_CASES = 3


@dataclass(frozen=True)
class Material:
    """Everything that a certifier is held against, made once: layers by family, networks by check."""

    layers: dict[str, list[NormCase]]
    edges: dict[str, list[Case]]
    corpus: dict[str, list[Case]]


def prepare(
    cases: int = 40, seed: int = 0, activation: Activation = MinMax, layers: bool = True, networks: bool = True
) -> Material:
    """Make the layers and networks, where wanted: `cases` of every family of layers, and of every kind of network."""
    families = {family: norm_cases(family, cases, seed) for family in FAMILIES} if layers else {}
    if not networks:
        return Material(families, {}, {})
    edges = {f"razor edge, {kind}": [razor_edge(kind, seed + i, activation) for i in range(cases)] for kind in RAZORS}
    edges["aligned"] = [aligned(seed + i) for i in range(cases)]
    for kind in BLOCKS:
        edges[f"residual blocks, {kind}"] = [residual_blocks(kind, seed + i, activation) for i in range(cases)]
    entries: dict[str, list[Case]] = {}
    for entry in corpus.all_entries():
        entries.setdefault(entry.topic, []).append(entry.build())
    return Material(families, edges, entries)


def examine(
    material: Material,
    bound: Bound | None,
    certify: Certify | None,
    claim: Claim | None = None,
    stop_at_first: bool = False,
    habits: bool = True,
) -> BenchReport:
    """Run the checks on prepared material; `stop_at_first` ends with the first check that is not passed."""
    claim = claim or Claim()
    checks: list[CheckResult] = []
    for name, about, outcomes in [*_of_bound(material, bound), *_of_certifier(material, certify, claim)]:
        if about == HABIT and not habits:
            continue
        checks.append(tally(name, about, outcomes(), stop_at_first))
        if stop_at_first and checks[-1].violations:
            break
    return BenchReport(tuple(checks))


def run_bench(
    bound: Bound | None = None,
    certify: Certify | None = None,
    cases: int = 40,
    seed: int = 0,
    guarantee: str = "nominal",
    arithmetic: str = "float64",
    activation: Activation = MinMax,
) -> BenchReport:
    """Hold a certifier against layers of known norm, networks of known radius and known counter-examples.

    Args:
        bound: (layer, input shape without the batch) -> claimed upper bound on the l2 norm of a plain nn.Linear or
            nn.Conv2d.
        certify: (model, images_BCHW) -> (prediction_B, radius_B); -1 or radius 0 for abstaining. The claim: no
            perturbation of l2 norm at most radius, in units of the images as given, changes the class.
            Any exception counts as refusing, which is never wrong.
        cases: of each family of layers and of each kind of network. 40 take about half a minute, most of it in
            the certifier.
        guarantee, arithmetic: what the radii promise, as in `verdict.Claim`; rounding counts unless "nominal".
        activation: builds the sorting activation of the networks, where that of lipcert is not known to the certifier.

    Returns:
        A `BenchReport`; `.sound`, `.table()`.
    """
    if bound is None and certify is None:
        raise ValueError("bound and certify are both None: give at least one")
    claim = Claim(guarantee, arithmetic)
    material = prepare(cases, seed, activation, layers=bound is not None, networks=certify is not None)
    return examine(material, bound, certify, claim)


Checks = list[tuple[str, str, Callable[[], object]]]


def _of_bound(material: Material, bound: Bound | None) -> Checks:
    if bound is None:
        return []
    checks: Checks = [
        (f"norm, {family}", "norm", lambda cases=cases: (state.judge_norm(bound, case) for case in cases))
        for family, cases in material.layers.items()
    ]
    few = [case for cases in material.layers.values() for case in cases[:_HABIT_CASES]]
    return [
        *checks,
        ("norm, layers without a bound", "fail closed", lambda: (_judge_odd(bound, *odd) for odd in _odd_layers())),
        ("norm, one layer after another", "state", lambda: state.remembered_norms(bound)),
        ("norm, scaling by powers of two", HABIT, lambda: state.scaling_habit(bound, few)),
    ]


def _of_certifier(material: Material, certify: Certify | None, claim: Claim) -> Checks:
    if certify is None:
        return []

    def judged(cases: list[Case]) -> Callable[[], object]:
        return lambda: (judge(certify, case, claim) for case in cases if claim.covers(case.semantics))

    few = [case for cases in material.edges.values() for case in cases[:_HABIT_CASES]]
    return [
        *((name, "radius", judged(cases)) for name, cases in material.edges.items()),
        *(
            (f"corpus, {topic}", "rounding" if topic == "rounding" else "fail closed", judged(cases))
            for topic, cases in material.corpus.items()
        ),
        ("one model after another", "state", lambda: state.remembered_models(certify, claim)),
        ("model left alone", HABIT, lambda: state.model_left_alone(certify, few)),
        ("same in any batch", HABIT, lambda: state.same_in_any_batch(certify, few)),
    ]


def _odd_layers() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Layers for which a number must hold of what they compute, or none be given."""
    eye, box = torch.eye(2).double().numpy(), torch.ones(1, 1, 3, 3).double().numpy()
    hooked, replaced, loud, odd = dense(eye), dense(eye), LoudLinear(2, 2, dtype=torch.float64), dense(eye)
    hooked.register_forward_hook(lambda module, inputs, output: 50 * output)
    replaced.forward = lambda x: 50 * x
    odd.weight[0, 1] = float("nan")
    infinite = dense(eye)
    infinite.weight[1, 1] = float("inf")
    return [
        ("hook", hooked, (2,)),
        ("replaced forward", replaced, (2,)),
        ("subclass", loud.requires_grad_(False), (2,)),
        ("unknown layer", Times(), (2,)),
        ("NaN weight", odd, (2,)),
        ("infinite weight", infinite, (2,)),
        *((f"padding_mode {m}", conv(box, padding=1, padding_mode=m), (1, 3, 3)) for m in ("reflect", "replicate")),
        ("LayerNorm", nn.LayerNorm(2, dtype=torch.float64).requires_grad_(False), (2,)),
        ("sum pooling", nn.LPPool2d(1, 2), (1, 2, 2)),
    ]


def _judge_odd(bound: Bound, name: str, layer: nn.Module, shape: tuple[int, ...]) -> Outcome:
    try:
        claim = float(bound(layer, shape))
    except Exception:
        return Outcome(refused=True)
    point = torch.full((1, *shape), 0.5, dtype=torch.float64)
    slope_MN = torch.autograd.functional.jacobian(layer, point).reshape(-1, point.numel())
    truth = svd_norm(slope_MN.numpy()) if bool(slope_MN.isfinite().all()) else float("inf")
    return Outcome(truth / claim if claim > 0 else 0.0, not claim >= truth * (1 - 1e-12), note=f"{name}: {claim!r}")


def load_target(name: str) -> Callable:
    """The object that `module:function` names, with the current folder importable."""
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"target {name!r}: must be module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    return functools.reduce(getattr, function.split("."), importlib.import_module(module))


def main(argv: list[str] | None = None) -> int:
    """Command line: print the table; 0 if nothing claimed was contradicted, else 1."""
    parser = argparse.ArgumentParser(prog="lipcert bench", description=run_bench.__doc__.splitlines()[0])
    parser.add_argument("--certify", metavar="MODULE:FUNCTION", help="(model, images) -> (prediction, radius)")
    parser.add_argument("--bound", metavar="MODULE:FUNCTION", help="(layer, input shape) -> upper bound on its norm")
    parser.add_argument("--cases", type=int, default=40, help="of each family (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guarantee", default="nominal", choices=("nominal", "real", "executed"))
    parser.add_argument("--arithmetic", default="float64", choices=("float64", "float32"))
    options = parser.parse_args(argv)
    if not (options.certify or options.bound):
        parser.error("give --certify, --bound or both")
    targets = [load_target(name) if name else None for name in (options.bound, options.certify)]
    report = run_bench(*targets, options.cases, options.seed, options.guarantee, options.arithmetic)
    print(report.table())
    return 0 if report.sound else 1
