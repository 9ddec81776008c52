"""What the command line prints: certificates of images, lists of runs."""

import functools
import sys
from typing import TYPE_CHECKING

from lipcert.paths import local_dir
from lipcert.record import Record
from lipcert.records import RecordError, find_record, load_records

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lipcert.config import TrainConfig
    from lipcert.study import Study
    from lipcert.timings import Timings


def certify_images(request: dict[str, object]) -> int:
    """Certify test images of a data set with a stored network and print one line each."""
    from lipcert.recertify import Request, recertify
    from lipcert.report.tables import up
    from lipcert.settings import parse

    result = recertify(parse(Request, request))
    norm = result.certificates.norm
    print(f"{'image':>6}  {'label':<14}{'prediction':<22}{'runner-up':<14}certified {norm} radius")
    for number, label, predicted, rival, proven in result.image_rows():
        print(f"{number:>6}  {label:<14}{predicted:<22}{rival:<14}{proven}")
    total, certificates = len(result.labels_N), result.certificates
    print(f"\n{result.clean()} of {total} correct.")
    for at in result.radii:
        proven, estimated = result.counts(at)
        claimed = f"; the power method would claim {estimated}" if norm == "l2" else ""
        print(
            f"{proven} of {total} correct and certified at {norm} radius {at} ({certificates.guarantee} guarantee, "
            f"{certificates.arithmetic}){claimed}."
        )
    how = f"Certified by the {certificates.method} method."
    if norm == "l2":
        upper, estimate = up(certificates.bounds.upper), certificates.bounds.estimate
        how = f"Lipschitz constant of the backbone: at most {upper} (proven), {estimate:.6g} by the power method."
    print(f"{how} {result.seconds:.1f} s.\n{result.path}")
    if result.bundle:
        print(f"{result.bundle}  (check it with `lipcert verify`)")
    return 0


def certify_sets(request: dict[str, object]) -> int:
    """Certify sets of classes for test images of a data set with a stored network and print one line each."""
    from lipcert.recertify import SetRequest, recertify_sets
    from lipcert.report.tables import up
    from lipcert.settings import parse

    result = recertify_sets(parse(SetRequest, request))
    norm = result.certificates.norm
    rows = [("image", "label", "certified set", f"{norm} radius", "first class alone"), *result.image_rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for number, label, members, proven, alone in rows:
        print(f"{number:>{widths[0]}}  {label:<{widths[1]}}  {members:<{widths[2]}}  {proven:<9}  {alone}")
    certificates, total = result.certificates, len(result.labels_N)
    inside = "inside of the affinity sets" if certificates.affinity else f"of at most {certificates.k_max}"
    print("\nRelaxed guarantees: a set of classes stays the same, not the first of them. No VRA.")
    for at in result.radii:
        loosest, strictest, alone = result.counts(at)
        print(
            f"{loosest} of {total} have their label in a certified set {inside} at {norm} radius {at} "
            f"({certificates.guarantee} guarantee, {certificates.arithmetic}), {strictest} in the smallest certified "
            f"one; {alone} are correct and certified as one class."
        )
    upper = up(certificates.bounds.upper)
    print(f"Lipschitz constant of the backbone: at most {upper} (proven). {result.seconds:.1f} s.")
    return 0


def certify_run(run: str, effort: str) -> int:
    """Certify a finished run again, in every guarantee and arithmetic."""
    from lipcert.evaluate import certify_again
    from lipcert.report.tables import run_sentence

    path = certify_again(run, effort, progress=True)
    print(run_sentence(path))
    print(path)
    return 0


def bench_certifier(
    certify: str | None, bound: str | None, cases: int, seed: int, guarantee: str | None, arithmetic: str
) -> int:
    """Run the test bench on the named functions, or on lipcert's own; 1 if anything claimed was contradicted."""
    from lipcert.bench.run import load_target, run_bench

    if certify or bound:
        targets = [load_target(name) if name else None for name in (bound, certify)]
    else:
        guarantee = guarantee or "executed"
        targets = [own_bound, functools.partial(own_certify, guarantee=guarantee, arithmetic=arithmetic)]
    report = run_bench(*targets, cases, seed, guarantee or "nominal", arithmetic)
    print(report.table())
    return 0 if report.sound else 1


def own_bound(layer: "nn.Module", input_shape: tuple[int, ...]) -> float:
    """lipcert's bound as the bench wants it."""
    from lipcert.bounds import norm_bound

    return norm_bound(layer, input_shape).upper


def own_certify(model: "nn.Module", images_BCHW: "Tensor", guarantee: str, arithmetic: str) -> "tuple[Tensor, Tensor]":
    """lipcert's certifier as the bench wants it."""
    from lipcert.certify import certify

    result = certify(model, images_BCHW, guarantee=guarantee, arithmetic=arithmetic)
    return result.prediction_B, result.radius_B


def show_machine(config: "TrainConfig | None", again: bool, download: bool) -> int:
    """This machine and what was timed on it, for one run's step or all of them; 1 where nothing was."""
    from lipcert.device import pick_device
    from lipcert.machine import SHORT_SECONDS, has_compiler
    from lipcert.settings import ConfigError
    from lipcert.timings import cache_path, cached_timings, machine_facts

    if config is None and again:
        raise ConfigError("--measure: name the FILE of the run whose step is to be timed")
    device = pick_device(config.device if config else "auto")
    facts = machine_facts(device)
    compiler = "there" if has_compiler(device) else "not there"
    for name, value in (*facts.items(), ("compiler", compiler), ("cache", cache_path())):
        print(f"{name:<13}{value}")
    if config is None:
        # Times depend on the number of threads, too, but a small run has one of its own.
        here = [t for t in cached_timings() if t.machine == facts | {"threads": t.machine.get("threads", 0)}]
    else:
        here = _timings_of(config, again, download)
    for timings in here:
        print(f"\n{timings.table()}")
    rule = "the fastest, a plainer one within 3 % of it, and the plainest in a run"
    print(f"\nA run that leaves the choice open takes {rule} below {SHORT_SECONDS / 60:.0f} minutes.")
    if not here:
        print("Nothing was timed yet: `lipcert machine FILE --measure` does it for the run of FILE.")
    return 0 if here else 1


def _timings_of(config: "TrainConfig", again: bool, download: bool) -> "list[Timings]":
    from lipcert.data import load_dataset
    from lipcert.device import own_threads
    from lipcert.machine import measure
    from lipcert.timings import blank_timings, cached_timings

    data = load_dataset(
        config.dataset, config.classes, config.class_seed, config.validation, download, train_images=config.train_images
    )
    with own_threads(config, data):
        if again:
            return [measure(config, data)]
        blank = blank_timings(config, data)
        return [timings for timings in cached_timings() if timings.same_step(blank)]


def list_runs() -> int:
    """One line per run: where it lies, status, clean accuracy and VRA."""
    from lipcert.report.tables import local_records

    own, damaged = local_records()
    for label, records in (("published", load_records()), ("yours", own)):
        for record in records:
            print(f"{label:<10}{record.id:<60}{record.training.status:<10}{_figures(record)}")
    _warn(damaged)
    return 0


def list_study(study: "Study") -> int:
    """One line per cell: published, yours or missing; 1 while any is missing."""
    from lipcert.study import record_of, records_by_id

    published, own = records_by_id(load_records()), records_by_id(load_records("local"))
    missing = 0
    for cell in study.cells:
        where, record = "published", record_of(cell, published)
        if record is None:
            where, record = "yours", record_of(cell, own)
        if record is None:
            where, missing = "missing", missing + 1
        figures = _figures(record) if record else ""
        if where == "yours" and (reason := record.not_committed()):
            figures += f"; {reason}"
        print(f"{where:<10}{record.id if record else cell.run_id():<60}{figures}".rstrip())
    print(f"{len(study.cells) - missing} of {len(study.cells)} runs of {study.name} are there")
    return 1 if missing else 0


def _warn(damaged: list[str]) -> None:
    for line in damaged:
        print(f"cannot be read: {line}", file=sys.stderr)


def _figures(record: Record) -> str:
    if record.test is None:
        return "not tested"
    radius = record.config.radius
    on = "" if record.test.split == "test" else f" on {record.test.split}"
    return f"clean {record.clean_accuracy():.2%}, VRA {record.vra(radius):.2%} at {radius}{on}"


def latest_run() -> int:
    """The newest of your runs in one sentence."""
    from lipcert.report.tables import local_records, run_sentence

    records, damaged = local_records()
    _warn(damaged)
    if not records:
        raise RecordError(f"no runs in {local_dir()} yet; start one with `lipcert train FILE`")
    print(run_sentence(max(records, key=lambda record: record.provenance.finished)))
    return 0


def show_run(run: str) -> int:
    """One record: the sentence, its settings and where its files lie."""
    import yaml

    from lipcert.report.tables import run_sentence

    record, folder = find_record(run)
    print(run_sentence(record))
    print(f"record: {folder / 'runs' / (record.id + '.json')}\n\nsettings:")
    print(yaml.safe_dump(record.config.model_dump(mode="json"), sort_keys=False))
    return 0


def repeat_run(run: str, progress: bool, download: bool) -> int:
    """Make a run again from its record and print what came out the same; 1 where anything differs."""
    from lipcert.repeat import repeat

    found = repeat(run, progress, download)
    for part, verdict, extent in found.parts:
        print(f"{part:<24}{verdict:<12}{extent}".rstrip())
    for name, then, now in found.circumstances:
        print(f"{name}: {then} then, {now} now")
    print(f"{found.then.id} {'is reproduced' if found.same else 'is not reproduced bit for bit'}: {found.path}")
    return 0 if found.same else 1
