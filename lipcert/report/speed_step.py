"""Where the time and memory of a training step go, for the chapter on speed: tables of measured checks.

The checks are `training-step`, `peers` and `certification` of `benchmarks`; each part says "not run" without its own.
"""

import itertools
from collections.abc import Sequence

from lipcert.report.checks import Check, check_words, find_check, rows_of
from lipcert.report.tables import Markdown, table

STEP = "training-step"
_NOT_RUN = Markdown("Not run: `python -m benchmarks.training_step` measures it.")
_PAPERS = "papers' way"
# Beginnings of the rows' names, which stand for what a table shows; the arithmetic follows behind a semicolon.
SAME, CHANGED = "same", "changed"
_PARTS = {
    "lipschitz": "norm estimates and their gradient",
    "orthogonalisation": "orthogonalisation and its gradient",
    "images": "drawing and augmenting images",
}
_MEMORY = {
    "plain": "plain convolution net, ReLU, cross-entropy",
    "papers": "papers' way",
    "float32, eager": "lipcert, float32",
    "bfloat16, eager": "lipcert, bfloat16",
    "neck 256; float32, eager": "lipcert, neck of 256, float32",
    "neck 256; bfloat16, eager": "lipcert, neck of 256, bfloat16",
}

FLOAT32 = ("float32, eager", "neck 256; float32, eager")  # of those, lipcert's in float32


def nets(check: Check) -> list[str]:
    """Names of the networks measured, in order: `L6 W64`."""
    return list(dict.fromkeys(row[0] for row in check.rows[1:]))


def step_table(kind: str) -> Markdown:
    """How fast steps of one kind are, each net a column: milliseconds, times as fast as the papers' way, of the limit.

    Args:
        kind: `SAME` or `CHANGED` mathematics; "neck" for the rows of a smaller neck.
    """
    if (check := find_check(STEP)) is None:
        return _NOT_RUN
    columns = nets(check)
    chosen = [row for row in dict.fromkeys(line[1] for line in check.rows[1:]) if _kind(row) == kind]
    against = f"; ratio to {_PAPERS}, neck 256" if kind == "neck" else "; ratio"
    base = f"{_PAPERS}, neck 256" if kind == "neck" else _PAPERS
    rows = [(_name(row), *(_cell(check, net, row, against) for net in columns)) for row in (base, *chosen)]
    return table(("step", *columns), rows, right=range(1, len(columns) + 1))


def _kind(row: str) -> str:
    start = row.partition(";")[0]
    return "baseline" if start.startswith(_PAPERS) else "neck" if "neck" in start else start


def _name(row: str) -> str:
    """`same, neck 256; float32, eager` without what the table's title says."""
    start, _, how = row.partition("; ")
    return row if not how else f"{start.partition(',')[0]}: {how}" if "neck" in start else how


def _cell(check: Check, net: str, row: str, against: str) -> str:
    """`590 ms, **5.22 ×**, 65 % of the limit`."""
    n, key = check.numbers, f"{net}; {row}"
    if f"{key}; ms" not in n:
        return "not here" if (net, row, "not here") in {line[:3] for line in check.rows} else "not run"
    faster = f", **{n[key + against]:.2f} ×**" if key + against in n else ""
    return f"{n[f'{key}; ms']:,.0f} ms{faster}, {n[f'{key}; of the limit']:.0%} of the limit".replace("%", " %")


def step_words() -> Markdown:
    """The best of each kind, how far the same mathematics is the same, and what was asked for."""
    if (check := find_check(STEP)) is None:
        return _NOT_RUN
    n, said = check.numbers, []
    for net in nets(check):
        same, best = _best(check, net, f"{SAME}; float32"), _best(check, net, CHANGED)
        if same and best:
            said.append(
                f"{net}: {same[1]:.2f} times as fast with the same mathematics ({_how(same)}), {best[1]:.2f} times "
                f"with changed mathematics ({_how(best)})"
            )
    if not said:
        return Markdown("The baseline's shares do not agree with the public code's, so **no ratio is claimed**.")
    differences = [v for k, v in n.items() if k.endswith("; difference") and "float32" in k]
    same = f" In float32 loss, estimate and gradient of the first step differ by at most {max(differences):.0e}."
    threads = "one thread" if n["threads"] == 1 else f"{n['threads']:g} threads"
    where = f"{check.hardware.get('processor')}, {threads}, commit {(check.commit or 'unknown')[:7]}"
    return Markdown(f"{'; '.join(said)}.{same if differences else ''} ({where}; goals: {check.verdict})")


def _best(check: Check, net: str, beginning: str) -> tuple[str, float] | None:
    """The fastest row that begins so, and how many times as fast as the papers' way it is."""
    found = {
        key.removeprefix(f"{net}; ").removesuffix("; ratio"): float(value)
        for key, value in check.numbers.items()
        if key.startswith(f"{net}; {beginning}") and key.endswith("; ratio") and "neck" not in key
    }
    return max(found.items(), key=lambda item: item[1]) if found else None


def _how(best: tuple[str, float]) -> str:
    return best[0].partition("; ")[2]


def parts_table() -> Markdown:
    """Shares of a step's time: the papers' way, ours with the same mathematics in float32, and the fastest."""
    if (check := find_check(STEP)) is None:
        return Markdown("")  # the words beside it say that it was not run
    n, first = check.numbers, nets(check)[0]
    best = [found[0] for kind in (f"{SAME}; float32", CHANGED) if (found := _best(check, first, kind))]
    rows = []
    for net in nets(check):
        papers = {part: f"{net}; papers {part} share" for part in _PARTS}
        for part, name in _PARTS.items():
            shares = [n.get(papers[part]), *(n.get(f"{net}; {row}; {part} share") for row in best)]
            rows.append((net, name, *map(_percent, shares)))
        alone = (n.get(f"{net}; {row}; convolutions") for row in (_PAPERS, *best))
        rows.append((net, "its convolutions alone", *map(_percent, alone)))
    head = ("net", "share of the step", _PAPERS, *(row.replace(";", ":") for row in best))
    return table(head, rows, right=range(2, len(head)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def parts_words() -> Markdown:
    """The papers' step in words, and what drawing images costs."""
    if (check := find_check(STEP)) is None:
        return Markdown("")  # the words beside it say that it was not run
    n, net = check.numbers, nets(check)[0]
    groups = ("orthogonalisation", "convolution gradients", "convolution", "passes over images")
    shares = {name: n[f"{net}; papers {name} share"] for name in groups if f"{net}; papers {name} share" in n}
    papers = ", ".join(f"{name} {share:.0%}" for name, share in shares.items()).replace("%", " %")
    text = f"Of the papers' step on {net}: {papers}."
    if (rate := n.get(f"{net}; images a second")) is not None:
        text += f" It finds its images ready; ours are drawn and augmented within the step, at {rate:,.0f} a second."
    return Markdown(text)


def memory_table() -> Markdown:
    """Peak memory of training beside a plain network's, in all and an image, each net a column."""
    if (check := find_check(STEP)) is None:
        return Markdown("")  # the words beside it say that it was not run
    columns = [net for net in nets(check) if f"{net}; memory plain; MB" in check.numbers]
    rows = []
    for key, name in _MEMORY.items():
        rows.append((name, *(_held(check.numbers, f"{net}; memory {key}") for net in columns)))
    return table(("peak of training, in all and for each image", *columns), rows, right=range(1, len(columns) + 1))


def _held(numbers: dict, key: str) -> str:
    """`366 MB (1.11 ×), 1.13 MB (0.95 ×)`."""
    if f"{key}; MB" not in numbers:
        return "not run"
    whole, image = numbers[f"{key}; MB"], numbers[f"{key}; KB an image"] / 1e3
    of_whole, of_image = (numbers[f"{key}; ratio of {unit}"] for unit in ("MB", "KB an image"))
    return f"{whole:,.0f} MB ({of_whole:.2f} ×), {image:.2f} MB ({of_image:.2f} ×)"


def memory_words() -> Markdown:
    """The largest ratios of lipcert in float32, whatever its neck, and of the papers' way: in all and an image."""
    if (check := find_check(STEP)) is None:
        return _NOT_RUN
    n = check.numbers
    most = {}
    for who, names in (("ours", FLOAT32), ("papers", ("papers",))):
        for unit in ("MB", "KB an image"):
            keys = (f"{net}; memory {name}; ratio of {unit}" for net in nets(check) for name in names)
            most[who, unit] = max((n[key] for key in keys if key in n), default=None)
    if None in most.values():
        return _NOT_RUN
    ours, papers = ((most[who, "MB"], most[who, "KB an image"]) for who in ("ours", "papers"))
    return Markdown(
        f"In float32 training holds at most {ours[0]:.2f} times what a plain network of the same depth and width "
        f"holds, counted an image {ours[1]:.2f} times; the papers' way {papers[0]:.2f} and {papers[1]:.2f} times. × is "
        "the ratio to the plain network; memory an image is the difference of the peaks at two batch sizes."
    )


# --- peers, certification --------------------------------------------------------------------------------------------


def certification_tables() -> list[Markdown]:
    """The passes and the proofs of the check `certification`, each a table of its own; none without it."""
    rows = rows_of("certification")
    starts = [n for n, row in enumerate(rows) if n == 0 or row[0].startswith("proof of")]
    return [_block(rows[start:end]) for start, end in itertools.pairwise([*starts, len(rows)])]


def certification_words() -> Markdown:
    """The check in its own words, and what counting roundings costs."""
    text = str(check_words("certification"))
    if (check := find_check("certification")) is None:
        return Markdown(text)
    n = check.numbers
    over = n["executed, float64; ms an image"] / n["nominal, float64; ms an image"]
    text += f"\n\nIn float64 counting every rounding takes {over:.2f} times as long as not counting any."
    if n["executed, float64; ratio"] < 1:
        text += (
            " Certifying is faster than plain inference because the certifier multiplies in float64 with a kernel of "
            "its own, which plain inference lacks."
        )
    return Markdown(text)


def _block(rows: Sequence[tuple[str, ...]]) -> Markdown:
    return table(rows[0], [[cell.replace("%", " %") for cell in row] for row in rows[1:]], right=(1, 2))
