"""Measure what the book's page "Is it sound?" shows: `python -m benchmarks.soundness S7 S8`, all goals without names.

Each goal writes `results/local/checks/<goal>.json`; `--publish` copies them to `results/checks`. Minutes on two cores:
S1 20, S2 and S3 3, S4 3, S5 10, S6 0, S7 2, S8 2, S9 1, S11 1, S12 2, S13 3.
"""

import argparse
import copy
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import bundles, tightness
from lipcert.attack.fields import Falsification
from lipcert.bench import Claim, mutation_table
from lipcert.bench.mutants import public_power_method
from lipcert.bench.mutation import ROUNDING_TERMS
from lipcert.bench.razor import razor_edge
from lipcert.bench.run import RAZORS, examine, prepare
from lipcert.bench.verdict import judge, kept
from lipcert.certify import GUARANTEES, certify, certify_each
from lipcert.chain import chain_bounds
from lipcert.commands import own_bound, own_certify
from lipcert.data import load_dataset, to_unit
from lipcert.models import load
from lipcert.models.stored import shipped
from lipcert.paths import results_dir
from lipcert.records import load_records
from lipcert.report.checks import measuring, publish_checks

CLAIMS = [Claim(g, a) for g in GUARANTEES for a in ("float64", "float32") if (g, a) != ("nominal", "float32")]


def own(claim: Claim) -> Callable:
    """lipcert's certifier as the bench wants it."""
    return functools.partial(own_certify, guarantee=claim.guarantee, arithmetic=claim.arithmetic)


def razor_edges(nets: int = 250) -> None:
    """S7: radii known exactly, depth 1 to 24."""
    target = "kept at r(1 - 1e-7), broken at r(1 + 1e-7), at least 1,000 nets"
    with measuring("S7", "radii known exactly", target) as found:
        claim, sharp, wrong, total = Claim("executed"), 0, 0, 0
        for kind in RAZORS:
            for seed in range(nets):
                case, answers = razor_edge(kind, seed), {}

                def once(model, images_BCHW, answers=answers):  # certified once, asked about twice
                    key = (id(model), images_BCHW.shape)
                    if key not in answers:
                        answers[key] = own(claim)(model, images_BCHW)
                    return answers[key]

                outcome = judge(once, case, claim)
                wrong += outcome.violated
                sharp += kept(once, case, 1e-7)
                total += len(case.limits)
        found |= {
            "measured": f"{total} networks in {len(RAZORS)} families: {sharp} kept at r(1 - 1e-7), {wrong} claims "
            "broken by the known perturbation at r(1 + 1e-7) (executed, float64)",
            "verdict": "met" if sharp == total and not wrong else "fell short",
            "numbers": {"networks": total, "kept": sharp, "violations": wrong},
        }


def mutants(cases: int = 12) -> None:
    """S8: unsound certifiers planted on purpose, and the power method as negative control."""
    with measuring("S8", "planted mistakes found", "all of at least 40; the power method fails") as found:
        rows = mutation_table(cases)
        dead = sum(row.killed for row in rows)
        control = public_power_method()
        report = examine(prepare(cases), control.bound, control.certify, habits=False)
        terms = sum(ROUNDING_TERMS.values())
        found |= {
            "measured": f"{dead} of {len(rows)} unsound certifiers caught; the power method as public codes use it "
            f"makes {report.violations:,} false claims in {report.cases:,} cases; {terms} mutants that forget a "
            "rounding term are caught by the test suite under hostile arithmetic",
            "verdict": "met" if dead == len(rows) >= 40 and not report.sound else "fell short",
            "numbers": {
                "mutants": len(rows), "caught": dead, "rounding_mutants": terms,
                "power_method_violations": report.violations, "power_method_cases": report.cases,
            },
            "rows": (
                ("mutant", "false claims", "caught by"),
                *((r.mutant.name, str(r.violations), "; ".join(r.killed_by)) for r in rows),
            ),
        }  # fmt: skip


def corpus(cases: int = 12) -> None:
    """S9 and S11: what must never be certified, and what public codes got wrong."""
    material = prepare(cases, layers=True)
    topics = len(material.corpus)
    with measuring("S9", "fails closed", "nothing certified in a table of 50 cases") as found:
        entries = sum(len(c) for topic, c in material.corpus.items() if topic != "rounding")
        report = examine(material, own_bound, own(Claim("executed")), Claim("executed"))
        closed = [check for check in report.checks if check.about == "fail closed"]
        wrong = sum(check.violations for check in closed)
        found |= {
            "measured": f"{entries} cases in {topics - 1} topics: {wrong} certified that must not be, "
            f"{sum(c.refused for c in closed)} refused with a reason, the rest abstained or kept to what is true",
            "verdict": "met" if not wrong and entries >= 50 else "fell short",
            "numbers": {"cases": entries, "violations": wrong},
            "rows": (
                ("topic", "cases", "refused", "false claims"),
                *((c.name, str(c.cases), str(c.refused), str(c.violations)) for c in closed),
            ),
        }
    with measuring("S11", "counter-examples to public codes", "all rejected when executed") as found:
        rows, wrong = [("guarantee", "arithmetic", "cases", "false claims")], 0
        for claim in CLAIMS:
            checks = [c for c in examine(material, None, own(claim), claim).checks if c.name.startswith("corpus")]
            false = sum(c.violations for c in checks)
            wrong += false
            rows.append((claim.guarantee, claim.arithmetic, str(sum(c.cases for c in checks)), str(false)))
        found |= {
            "measured": f"{sum(len(c) for c in material.corpus.values())} known counter-examples under "
            f"{len(CLAIMS)} guarantees: {wrong} false claims",
            "verdict": "met" if not wrong else "fell short",
            "numbers": {"violations": wrong},
            "rows": tuple(rows),
        }


def reproducible(images: int = 512) -> None:
    """S12: the same bytes for every batch size and number of threads."""
    with measuring("S12", "the same bytes", "batches of 1, 7, 256; 1 and 2 threads; two runs") as found:
        digests, nets = {}, [name for name in shipped() if name.startswith(("digits", "cifar10-"))]
        for name in nets:
            for threads, batch in [(1, 256), (1, 256), (2, 256), (1, 7), (1, 1)]:
                count = {256: images, 7: 70, 1: 20}[batch]
                command = [sys.executable, "-m", "benchmarks.soundness", "--digest", name, str(threads), str(batch)]
                out = subprocess.run([*command, str(count)], capture_output=True, text=True, check=True).stdout
                digests.setdefault(name, []).append(json.loads(out))
        same = all(
            run["parts_equal"] and (run["batch"] != 256 or run["whole"] == runs[0]["whole"])
            for runs in digests.values()
            for run in runs
        )
        found |= {
            "measured": f"{', '.join(nets)}: logits, predictions and radii (executed, effort tight for the digits) are "
            f"{'equal' if same else 'NOT equal'} byte for byte across batches of 1, 7 and 256, 1 and 2 threads and "
            "repeated processes",
            "verdict": "met" if same else "fell short",
            "numbers": {"networks": len(nets), "processes": sum(map(len, digests.values()))},
        }


def digest(name: str, threads: int, batch: int, count: int) -> None:
    """One process of S12."""
    torch.set_num_threads(threads)
    chain = load(name)
    data = load_dataset(chain.card["dataset"], chain.card["classes"], chain.card["class_seed"])
    images = to_unit(data.test.images_NCHW[:count], data.scale, torch.float64)
    effort = "tight" if name.startswith("digits") else "fast"
    bounds = chain_bounds(chain, data.shape, effort)
    whole = certify(chain, images, effort=effort, bounds=bounds)
    parts = [certify(chain, part, effort=effort, bounds=bounds) for part in images.split(batch)]
    fields = ("logits_BK", "prediction_B", "radius_B", "runner_up_B")
    equal = all(torch.equal(torch.cat([getattr(p, f) for p in parts]), getattr(whole, f)) for f in fields)
    text = hashlib.sha256(b"".join(getattr(whole, f).numpy().tobytes() for f in fields)).hexdigest()
    print(json.dumps({"whole": text, "parts_equal": equal, "batch": batch}))


def cost(name: str = "cifar10-liresnet-L6W80", images: int = 10_000) -> None:
    """S13: certifying a test set beside a plain float64 inference pass, once the bounds are known."""
    with measuring("S13", "the price of certifying", "1.1 times a float64 inference pass") as found:
        chain = load(name)
        data = load_dataset(chain.card["dataset"])
        images_BCHW = to_unit(data.test.images_NCHW[:images], data.scale, torch.float64)
        bounds = chain_bounds(chain, data.shape)
        double = copy.deepcopy(chain).double()
        for layer in double:
            layer.requires_grad_(False)
        half, times = len(images_BCHW) // 2, {"plain": 0.0, "executed": 0.0, "float32": 0.0}
        for part in (images_BCHW[:half], images_BCHW[half:]):  # by turns, so that a busy machine slows all alike
            for key, run in (
                ("plain", lambda part: [double(batch) for batch in part.split(64)]),
                ("executed", functools.partial(certify, chain, bounds=bounds)),
                ("float32", lambda part: certify(chain, part, arithmetic="float32", bounds=bounds)),
            ):
                start = time.perf_counter()
                with torch.no_grad():
                    run(part)
                times[key] += time.perf_counter() - start
        ratio, rough = times["executed"] / times["plain"], times["float32"] / times["plain"]
        found |= {
            "measured": f"{len(images_BCHW):,} CIFAR-10 images: plain inference {times['plain']:.0f} s, certifying "
            f"(executed, float64) {times['executed']:.0f} s, {ratio:.2f} times; executed in float32 {rough:.2f} times "
            f"({torch.get_num_threads()} threads, torch's own convolution for inference, batches of 64)",
            "verdict": "met" if ratio <= 1.1 else "fell short",
            "numbers": {"ratio": round(ratio, 3), "ratio_float32": round(rough, 3), "images": len(images_BCHW)},
        }


def guarantees() -> None:
    """S6: VRA by guarantee, from the published records."""
    with measuring(
        "S6", "rounding", "0 images between nominal, real and executed in float64; float32 printed"
    ) as found:
        order = [("estimated", "float64"), *((c.guarantee, c.arithmetic) for c in CLAIMS)]
        head = ("run", "radius", *(g if a == "float64" else f"{g}, float32" for g, a in order))
        rows, lost = [head], {}
        for record in load_records():
            radius = record.config.radius
            counts = [record.result(radius, g, arithmetic=a) for g, a in order]
            counts = [None if r is None else r.certified_correct for r in counts]
            rows.append((record.id, radius, *("not run" if c is None else f"{c:,}" for c in counts)))
            for (g, a), c in zip(order[1:], counts[1:], strict=True):
                if c is not None and counts[1] is not None:
                    lost.setdefault((g, a), []).append(counts[1] - c)
        slack = float64_slack()
        double = sum(lost.get(("executed", "float64"), [])) + sum(lost.get(("real", "float64"), []))
        single = {g: sum(lost.get((g, "float32"), [])) for g in ("real", "executed")}
        found |= {
            "measured": f"{double} images lost from nominal to real to executed in float64 (slack over margin at "
            f"most {slack:.1e} where the digits are certified at 36/255); in float32 {single['real']} (real) and "
            f"{single['executed']} (executed) images lost, over {len(rows) - 1} runs",
            "verdict": "met" if double == 0 and slack <= 1e-8 else "fell short",
            "numbers": {"images_lost_float64": double, "images_lost_executed_float32": single["executed"]},
            "rows": tuple(rows),
        }


def float64_slack() -> float:
    """Largest share of a radius that rounding takes in float64, over the digits certified at 36/255."""
    data, chain = load_dataset("digits"), load("digits-liresnet-L6W32")
    images = to_unit(data.test.images_NCHW, data.scale, torch.float64)
    nominal, executed = certify_each(chain, images, [("nominal", "float64"), ("executed", "float64")])
    far = nominal.radius_B >= 36 / 255
    return float((1 - executed.radius_B / nominal.radius_B)[far].max())


def attacks() -> None:
    """S10: what `lipcert attack` found, from its records."""
    with measuring("S10", "attacks inside the radius", "0 successes on all certified test images") as found:
        rows = [("network", "attack", "images", "closest", "median", "changes inside the radius")]
        nearest, broken, images = [], 0, 0
        for path in sorted((results_dir() / "attacks").glob("*.json")):
            record = Falsification.model_validate_json(path.read_text())
            for a in record.attacks:
                close = [f"{r:.3f}" if r else "none found" for r in (a.min_ratio, a.median_ratio)]
                rows.append((path.stem, a.name, f"{a.images:,}", *close, str(a.violations)))
                nearest += [a.min_ratio] if a.found else []
                images = images + a.images if a.name == "inside" else images
            broken += len(record.violations)
        networks = len({row[0] for row in rows[1:]})
        found |= {
            "measured": f"{images:,} certified images attacked inside their radius on {networks} networks: "
            f"{broken} answers changed; the closest change found lies at {min(nearest, default=0):.2f} times "
            "the radius (strong attacks on the first images only)",
            "verdict": "met" if not broken and images else "fell short",
            "numbers": {"images": images, "violations": broken, "closest": round(min(nearest, default=0), 4)},
            "rows": tuple(rows),
        }


GOALS: dict[str, Callable[[], None]] = {
    "S1": tightness.random_layers,
    "S2": tightness.excesses,
    "S3": tightness.speeds,
    "S4": tightness.integers,
    "S5": bundles.bundles,
    "S6": guarantees,
    "S7": razor_edges,
    "S8": mutants,
    "S9": corpus,
    "S10": attacks,
    "S12": reproducible,
    "S13": cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("goals", nargs="*", metavar="GOAL", help=f"any of {', '.join(GOALS)} (default all)")
    parser.add_argument("--publish", action="store_true", help="copy your measurements to results/checks")
    parser.add_argument("--digest", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.digest:
        digest(options.digest[0], *map(int, options.digest[1:]))
        return
    if unknown := set(options.goals) - set(GOALS):
        parser.error(f"{', '.join(sorted(unknown))}: goals are {', '.join(GOALS)}")
    if options.publish:
        print(*publish_checks(), sep="\n")
        return
    for goal in options.goals or GOALS:
        os.environ["LIPCERT_COMMAND"] = f"python -m benchmarks.soundness {goal}"
        GOALS[goal]()


if __name__ == "__main__":
    main()
