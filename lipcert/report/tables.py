"""Records in words and tables: everything a page or a terminal says about a run is computed here from its record.

Accuracies are fractions in the data and per cent only here. Importing this module imports neither torch nor pandas.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from lipcert.paths import local_dir
from lipcert.radius import Radius
from lipcert.record import Layer, Record
from lipcert.records import RecordError, load_records, read_record
from lipcert.report.names import DATASETS, data_name, labelled
from lipcert.report.published import is_smoke, results_only
from lipcert.report.sources import command_of, is_cell

NOTHING = "No run of this study has been published yet, so there is nothing to show here."


class Markdown(str):
    """Text that Jupyter and the book render as Markdown."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def percent(share: float) -> str:
    """A fraction as per cent with two decimals; `not measured` for NaN."""
    return "not measured" if share != share else f"{100 * share:.2f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> Markdown:
    """A Markdown table; columns numbered in `right` are flush right."""
    rule = ["--:" if i in right else ":--" for i in range(len(head))]
    lines = [head, rule, *rows]
    text = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
    return Markdown(text.replace(" %", "\N{NO-BREAK SPACE}%"))


def run_sentence(record: "Record | str | Path") -> str:
    """One run in one sentence, for a terminal.

    Args:
        record: a record or the path of one.
    """
    record = record if isinstance(record, Record) else read_record(record)
    training, test = record.training, record.test
    if test is None:
        return f"{record.id}: {training.status} after {training.steps:,} steps, {training.images:,} images; not tested."
    result = record.result(record.config.radius)
    split = "" if test.split == "test" else " (held out of the training set; the test set was not touched)"
    where = f"{test.images:,} {test.split} images{split}"
    if result is None:
        robust = f"nothing certified at radius {record.config.radius}"
    else:
        share = result.certified_correct / test.images
        robust = f"VRA {percent(share)} at {result.norm} radius {result.radius} ({result.guarantee} guarantee)"
    return f"{record.id}: {training.status}, clean accuracy {percent(record.clean_accuracy())}, {robust}; {where}."


def run_table(record: Record) -> Markdown:
    """One run at every radius it was measured at: counts of images, certified and as the power method would claim."""
    if record.test is None:
        return Markdown(run_sentence(record))
    rows = [("any", "clean accuracy", record.test.clean, percent(record.clean_accuracy()), "")]
    for result in record.test.results:
        if result.guarantee == "estimated":
            continue
        share = percent(result.certified_correct / record.test.images)
        claim = percent(record.vra(result.radius, "estimated"))
        run_in = "" if result.arithmetic == "float64" else f" in {result.arithmetic}"
        rows.append((result.radius, f"VRA, {result.guarantee}{run_in}", result.certified_correct, share, claim))
    head = ("radius", "what", f"images of {record.test.images:,}", "share", "estimated, no certificate")
    return table(head, rows, right=(2, 3, 4))


def bounds_table(record: Record) -> Markdown:
    """Every layer with a norm of its own: proven lower end, power-method estimate, proven upper end."""
    if record.bounds is None:
        return Markdown("This run was stopped before its bounds were proven.")
    layers = [x for x in record.bounds.layers if x.method != "1-Lipschitz"]
    rows = [(f"`{x.name}`", x.kind, down(x.lower), f"{x.estimate:.4f}", up(x.upper), x.method) for x in layers]
    b = record.bounds
    rows.append(("backbone", "product", down(b.lower), f"{b.estimate:.4f}", up(b.upper), ""))
    return table(("layer", "kind", "at least", "estimate", "at most", "proof"), rows, right=(2, 3, 4))


def bounds_words(record: Record) -> Markdown:
    """The table of bounds in words."""
    b = record.bounds
    if b is None:
        return Markdown("")
    layers = [x for x in b.layers if x.method != "1-Lipschitz"]
    residual = [x for x in layers if x.kind == "Residual"]
    low = [x for x in layers if x.estimate < x.lower]
    verdict = (
        f"In {len(low)} of {len(layers)} layers the estimate lies below the proven lower end, so it is too small."
        if low
        else "No estimate lies below the proven lower end of its layer."
    )
    less = 100 * (1 - b.estimate / b.upper) if b.upper else 0.0
    parts = [
        f"The backbone's constant is at most {up(b.upper)}; the power method says {b.estimate:.4f}, {less:.2g} % less."
    ]
    widths = ((x.upper / x.lower, x.name) for x in layers if x.lower > 0 and x.kind != "Residual")
    if wide := max(widths, default=None):
        apart = " apart from residual blocks" if residual else ""
        parts.append(f"The widest enclosure of a layer{apart}, `{wide[1]}`, is {100 * (wide[0] - 1):.2g} % wide.")
    return Markdown(" ".join([*parts, *_residual_words(residual), verdict]))


def _residual_words(blocks: Sequence[Layer]) -> list[str]:
    """What is known of residual blocks; of each only 1 - branch from below, which may be nothing."""
    if not blocks:
        return []
    ends = f"from {down(min(x.lower for x in blocks))} to {up(max(x.upper for x in blocks))}"
    if len(blocks) == 1:
        return [f"1 residual block is bounded by 1 + branch; its enclosure reaches {ends}."]
    return [f"{len(blocks)} residual blocks are bounded by 1 + branch; their enclosures reach {ends}."]


def up(value: float, digits: int = 4) -> str:
    """Rounded up: a printed bound is never below the proven one."""
    return f"{math.ceil(Fraction(value) * 10**digits) / 10**digits:.{digits}f}"


def down(value: float, digits: int = 4) -> str:
    return f"{math.floor(Fraction(value) * 10**digits) / 10**digits:.{digits}f}"


def all_results() -> list[Record]:
    """The published runs that may stand in a table, data set by data set, most images first."""
    order = list(DATASETS)
    return sorted(results_only(load_records()), key=lambda r: (order.index(r.data.name), -r.training.images, r.id))


def result_records() -> list[Record]:
    """Those of them that were made one by one, or are shipped and certified in l2: what all tables of radii can hold.

    Other cells of a study file stand in that study's own table alone.
    """
    return [r for r in all_results() if not is_cell(r) or (r.model.file and r.test.results[0].norm == "l2")]


def study_records() -> list[Record]:
    """Those of them that are this study's own networks, not a paper's."""
    return [r for r in result_records() if not r.published]


def headline_record(family: str = "liresnet") -> Record | None:
    """The run of a family its page looks into: CIFAR-10's best by VRA at its own radius, else the study's largest."""
    records = [r for r in study_records() if r.config.family == family]
    cifar10 = [r for r in records if data_name(r) == DATASETS["cifar10"]]
    return max(cifar10, key=lambda r: r.vra(r.config.radius), default=max(records, key=_images, default=None))


def _images(record: Record) -> int:
    return record.training.images


def study_table() -> Markdown:
    """This study's own runs: certified VRA with the power method's claim beside it; one table per set of radii."""
    tables = []
    for radii, records in by_radii(study_records()).items():
        rows = [
            (
                f"{label}, {r.model.parameters / 1e6:.2f} M", f"{r.training.images:,}",
                percent(r.clean_accuracy()), *(_both(r, radius) for radius in radii),
            )
            for label, r in labelled(records)
        ]  # fmt: skip
        head = ("network", "images seen", "clean", *(f"VRA at {radius}" for radius in radii))
        tables.append(table(head, rows, right=(1, 2)))
    return Markdown("\n".join(tables) or "No run of this study has been published yet: **not run**.")


def by_radii(records: Iterable[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Runs grouped by the radii they report (the first three), which is what a table can show side by side."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        radii = sorted({Radius(result.radius) for result in r.test.results})
        groups.setdefault(tuple(map(str, radii[:3])), []).append(r)
    return groups


def _both(record: Record, radius: str) -> str:
    result = record.result(radius)
    if result is None:
        return "not measured"
    claim = record.vra(radius, "estimated")
    text = f"{percent(record.vra(radius))} {result.guarantee}"
    return text if claim != claim else f"{text} ({percent(claim)} estimated)"


def best_records() -> dict[str, Record]:
    """The run with the highest VRA at its own radius, per data set."""
    best: dict[str, Record] = {}
    for r in study_records():
        name = data_name(r)
        if name not in best or r.vra(r.config.radius) > best[name].vra(r.config.radius):
            best[name] = r
    return best


def best_sentence() -> Markdown:
    """The study's best network per data set, in one sentence."""
    parts = [
        f"{name} {percent(r.vra(r.config.radius))} at {r.config.radius} ({r.result(r.config.radius).guarantee}; clean "
        f"{'; '.join(filter(None, (percent(r.clean_accuracy()), _seeds(r))))})"
        for name, r in best_records().items()
    ]
    return Markdown(f"**VRA of this study's own small networks**: {', '.join(parts)}." if parts else NOTHING)


def _seeds(record: Record) -> str:
    """`seed 0, mean of 3 seeds 57.13 %` where runs of these settings with other seeds are published, else nothing."""
    radius, settings = record.config.radius, record.config.model_copy(update={"seed": 0})
    guarantee = record.result(radius).guarantee
    shares = [
        r.vra(radius, guarantee)
        for r in all_results()
        if r.config.model_copy(update={"seed": 0}) == settings and r.result(radius, guarantee) is not None
    ]
    if len(shares) < 2:
        return ""
    return f"seed {record.config.seed}, mean of {len(shares)} seeds {percent(sum(shares) / len(shares))}"


def study_words() -> Markdown:
    """The study's table in words."""
    best, lines = best_records().values(), []
    if not best:
        return Markdown(NOTHING)
    for label, r in labelled(study_records()):
        if r not in best:
            continue
        radius = r.config.radius
        result = r.result(radius)
        estimated = r.result(radius, "estimated")
        seeds = _seeds(r)
        line = (
            f"- On {label} with {r.model.parameters / 1e6:.2f} M parameters is right on "
            f"{percent(r.clean_accuracy())} of {r.test.images:,} test images, and both right and certified "
            f"({result.guarantee}) at ℓ₂ radius {radius} on {percent(r.vra(radius))}"
            f"{f' ({seeds})' if seeds else ''}."
        )
        if estimated:
            extra = estimated.certified_correct - result.certified_correct
            line += f" The power method would have claimed {_more(extra)}."
        lines.append(line)
    return Markdown("\n".join(lines))


def _more(extra: int) -> str:
    if extra == 0:
        return "exactly as many images"
    return f"{abs(extra)} {'image' if abs(extra) == 1 else 'images'} {'more' if extra > 0 else 'fewer'}"


def claim_table() -> Markdown:
    """For every run of the study, the images that the power method would have claimed beyond the proof."""
    tables = []
    for radii, records in by_radii(result_records()).items():
        rows = [(label, f"{r.test.images:,}", *(_extra(r, x) for x in radii)) for label, r in labelled(records)]
        head = ("network", "test images", *(f"at {x}" for x in radii))
        tables.append(table(head, rows, right=(1, 2, 3, 4)))
    return Markdown("\n".join(tables) or NOTHING)


def _extra(record: Record, radius: str) -> str:
    result, claim = record.result(radius), record.result(radius, "estimated")
    return f"{claim.certified_correct - result.certified_correct:+d}" if result and claim else "not measured"


def local_records() -> tuple[list[Record], list[str]]:
    """Your own runs, and a line for every file among them that cannot be read."""
    records, damaged = [], []
    for path in sorted((local_dir() / "runs").glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            damaged.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}")
    return records, damaged


def local_table() -> Markdown:
    """Your own runs, apart from the study's."""
    records, damaged = local_records()
    if not records and not damaged:
        return Markdown("You have no runs of your own yet. The first appears here when the book is built again.")
    rows = [(f"`{r.id}`", _status(r), f"{r.training.images:,}", *_local_figures(r)) for r in records]
    head = ("run", "status", "images seen", "clean", "VRA", "estimated")
    text = table(head, rows, right=(2, 3)) if rows else ""
    return Markdown(text + "".join(f"\n- Cannot be read: `{line}`" for line in damaged))


def _status(record: Record) -> str:
    words = [record.training.status]
    if record.test is not None and record.test.split != "test":
        words.append("validation split")
    if is_smoke(record):
        words.append("smoke size, no result")
    return ", ".join(words)


def _local_figures(record: Record) -> tuple[str, str, str]:
    if record.test is None:
        return "not tested", "not tested", ""
    radius = record.config.radius
    result = record.result(radius)
    vra = f"{percent(record.vra(radius))} at {radius} ({result.guarantee})" if result else "not measured"
    return percent(record.clean_accuracy()), vra, percent(record.vra(radius, "estimated"))


def duration(seconds: float) -> str:
    """`12 s`, `4.5 min`, `1.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def machine(record: Record) -> str:
    """Where a run was made, in words."""
    hardware = record.provenance.hardware
    threads = hardware.get("threads", "?")
    processor = f"{hardware.get('processor', 'unknown processor')}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{hardware['accelerator']} ({processor})" if "accelerator" in hardware else processor


def rerun(records: "Sequence[Record] | None" = None) -> Markdown:
    """For every run, or study of runs: command, measured time, hardware and the number to expect."""
    by_command: dict[str, list[Record]] = {}
    for r in all_results() if records is None else records:
        by_command.setdefault(command_of(r), []).append(r)
    lines = []
    for command, runs in by_command.items():
        took = duration(sum(r.training.seconds + (r.test.seconds if r.test else 0) for r in runs))
        places = " and ".join(sorted({machine(r) for r in runs}))
        lines.append(f"```bash\n{command}\n```\n\n{took} on {places}. {_expected(runs)}\n")
    return Markdown("\n".join(lines) or "No run has been published yet, so there is no measured time to give.")


def _expected(runs: list[Record]) -> str:
    radius, shares = runs[0].config.radius, [r.vra(r.config.radius) for r in runs]
    if is_cell(runs[0]):
        ends = " to ".join(percent(share) for share in sorted({min(shares), max(shares)}))
        return f"Expect {len(runs)} runs with a VRA of {ends} at {radius}; the study's table has each."
    return (
        f"Expect a clean accuracy of {percent(runs[0].clean_accuracy())} and a VRA of {percent(shares[0])} at {radius}."
    )


def provenance_table(records: "Sequence[Record] | None" = None) -> Markdown:
    """Run ids, commit, hardware, seed, arithmetic and guarantee."""
    records = all_results() if records is None else records
    if not records:
        return Markdown("No published runs.")
    rows = []
    for r in records:
        strongest = r.result(r.config.radius)
        how = f"{strongest.guarantee}, {strongest.arithmetic}, bounds {strongest.effort}" if strongest else "none"
        code = (r.provenance.commit or "unknown")[:10] + (" with changes" if r.provenance.dirty else "")
        rows.append((f"`{r.id}`", f"`{code}`", machine(r), r.provenance.seed, r.training.choices.precision, how))
    return table(("run", "commit", "hardware", "seed", "trained in", "guarantee"), rows, right=(3,))
