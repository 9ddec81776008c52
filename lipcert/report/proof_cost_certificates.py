"""What a certificate costs, at 32 pixels and at ImageNet's 224, and the claims about cost that go round.

Drawn from the checks `certification`, `imagenet-certification`, `cost` and `training-step`; each part says "not run"
without its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lipcert.data.registry import DATASETS
from lipcert.report import speed_step
from lipcert.report.checks import Check, find_check
from lipcert.report.proof_cost_systems import (
    AN_IMAGE,
    PAPERS,
    cost_memory,
    memory_ratios,
    step_memory,
    width_of,
)
from lipcert.report.published import EVIDENCE
from lipcert.report.tables import Markdown, duration, table

SMALL, LARGE = "certification", "imagenet-certification"
NOT_RUN = {
    SMALL: "Not run: `python -m benchmarks.certification` measures it.",
    LARGE: "Not run: `python -m benchmarks.imagenet_certification` measures it.",
}
WAYS = ("executed, float64", "executed, float32")
SAID_MEMORY, SAID_SECONDS = 2.0, 180.0  # "about twice", "about three minutes"
_DERIVED = "derived from figures of the authors'"


@dataclass(frozen=True)
class Said:
    """What others state a certificate costs, in seconds for so many images."""

    method: str
    images: str
    seconds: float
    count: int
    where: str
    evidence: str


PUBLISHED = (
    Said(
        "randomised smoothing, 100,000 samples, ResNet-50 (Cohen et al.)", "ImageNet", 150, 1,
        "a GPU; their logs beside it", EVIDENCE["official_repository"],
    ),
    Said(
        "denoised smoothing, 10,000 samples (Carlini et al.)", "ImageNet", 1.5 * 10_000 / 32, 1,
        "one A100", f"{_DERIVED}, confirmed by one of them",
    ),
    Said("randomised smoothing", "CIFAR-10", 36_845.5, 10_000, "GloRo paper's table", "unverified_recollection"),
    Said("KW (Wong et al.)", "CIFAR-10", 2515.6, 10_000, "GloRo paper's table", "unverified_recollection"),
    Said("BCP (Lee et al.)", "CIFAR-10", 5.8, 10_000, "GloRo paper's table", "unverified_recollection"),
    Said("GloRo net", "CIFAR-10", 0.4, 10_000, "GloRo paper's table", "unverified_recollection"),
    Said(
        "LiResNet of 0.8 M parameters (Bembenek's fork), estimated", "CIFAR-10", 22.27, 10_000, "a CPU",
        EVIDENCE["authors_statement"],
    ),
)  # fmt: skip


def nets(check: Check) -> list[str]:
    """Names of the networks of `imagenet-certification`, in order."""
    return list(dict.fromkeys(row[0] for row in check.rows[1:]))


def short(seconds: float) -> str:
    """`0.04 ms`, `2.23 ms`, `0.73 s`, `2.5 min`."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.001 else f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


# ------------------------------------------------------------------------------------------------------------ our costs
def cost_table() -> Markdown:
    """Constants once, then an image: at 32 pixels and at 224."""
    rows = [*_small_rows(find_check(SMALL)), *_large_rows(find_check(LARGE))]
    head = ("network", "constants, once", *(f"an image, {way}" for way in WAYS), "plain inference", "memory")
    return table(head, rows, right=(1, 2, 3, 4, 5))


def _small_rows(check: Check | None) -> Iterator[tuple[str, ...]]:
    name = "LiResNet L6W80, 32 pixels"
    if check is None:
        yield name, *["not run"] * 5
        return
    n = check.numbers
    each = [(f"{n[f'{way}; ms an image']:.2f} ms", n[f"{way}; ratio"]) for way in WAYS]
    bare = " and ".join(f"{n[f'plain, {kind}; ms an image']:.2f} ms" for kind in ("float64", "float32"))
    yield name, f"{n['proofs; fast; seconds']:.1f} s", *(f"{a} ({b:.2f} ×)" for a, b in each), bare, "not measured"


def _large_rows(check: Check | None) -> Iterator[tuple[str, ...]]:
    if check is None:
        yield "LiResNet L18W588, 224 pixels", *["not run"] * 5
        return
    n = check.numbers
    for net in nets(check):
        each = [f"{n[f'{net}; {way}; seconds an image']:.2f} s ({n[f'{net}; {way}; ratio']:.2f} ×)" for way in WAYS]
        bare = " and ".join(f"{n[f'{net}; plain, {kind}; seconds an image']:.2f} s" for kind in ("float64", "float32"))
        held = max(n[f"{net}; memory of {phase}; GB"] for phase in ("proofs", "certifying"))
        name = f"LiResNet L18W588, {net}, {n[f'{net}; parameters'] / 1e6:.1f} M, 224 pixels"
        yield name, duration(n[f"{net}; proofs; seconds"]), *each, bare, f"{held:.1f} GB"


def cost_words() -> Markdown:
    """How the costs were measured, and what random weights can and cannot tell."""
    said = [NOT_RUN[goal] for goal in (SMALL, LARGE) if find_check(goal) is None]
    if check := find_check(SMALL):
        said.append(f"At 32 pixels: {check.measured} ({_where(check)}).")
    if check := find_check(LARGE):
        said += _large_words(check)
    return Markdown("\n\n".join(said))


def _large_words(check: Check) -> Iterator[str]:
    n, names = check.numbers, nets(check)
    batch = f"{n['micro-batch']:g}"
    alone = max(n[f"{net}; {WAYS[0]}; seconds an image"] for net in names) * n["micro-batch"]
    yield (
        f"At 224 pixels: {check.measured} ({_where(check)}; processor time). × is the ratio to plain inference in the "
        f"same arithmetic. Images are certified {batch} at a time, so that bytes do not depend on the batch; one image "
        f"alone takes as long as {batch}, {duration(alone)} here."
    )
    once = max(n[f"{net}; proofs; seconds"] for net in names)
    images = DATASETS["imagenet"].test
    yield (
        f"The very first certificate of a network waits for the constants as well, {duration(once + alone)} in all; "
        f"over the {images:,} validation images they add {short(once / images)} to each."
    )
    pairs = [(n[f"{net}; block; seconds"], n.get(f"{net}; trained block; seconds")) for net in names]
    ratios = [trained / fresh for fresh, trained in pairs if trained is not None]
    yield (
        "The weights are random, as training starts from them. A pass does the same products, sums and bounds on "
        "rounding whatever the numbers are, so its cost does not depend on them. A proof's may: its factorisation is "
        "tried again with more room until one succeeds. A block with a branch of the size that training leaves took "
        f"{_ends(ratios)} times as long to prove as a fresh one. All blocks of a network were given one kernel, so "
        "that one proof stands for them all; its time is counted once for each."
    )


def _ends(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _where(check: Check) -> str:
    threads = f"{check.numbers.get('threads', 1):g} thread{'' if check.numbers.get('threads', 1) == 1 else 's'}"
    return f"{check.hardware.get('processor')}, {threads}, commit {(check.commit or 'unknown')[:7]}"


# --------------------------------------------------------------------------------------------------------------- claims
def claims_table() -> Markdown:
    """The two claims of cost, where they come from, and what was measured."""
    rows = [
        (
            "training needs about twice the memory of standard training",
            "said of LiResNet; the sentence and its place are not known to us",
            _memory_found(),
        ),
        (
            "about three minutes to certify an ImageNet image",
            "the sentence, its place and its method are not known to us",
            _minutes_found(),
        ),
    ]
    return table(("claim", "whose", "measured here"), rows)


def _memory_found() -> str:
    if not (found := memory_ratios()):
        return "not run"
    named = {"LiResNet": "LiResNet", "GloRo 6C2F": "GloRo 6C2F", PAPERS: f"LiResNet, {PAPERS}"}
    said = []
    for key, name in named.items():
        each = f", counted an image {_ends(found[key + AN_IMAGE])} times" if key + AN_IMAGE in found else ""
        said += [f"{name} {_ends(found[key])} times{each}"] if key in found else []
    return "; ".join(said)


def _minutes_found() -> str:
    if (check := find_check(LARGE)) is None:
        return "not run"
    slowest = {way: max(check.numbers[f"{net}; {way}; seconds an image"] for net in nets(check)) for way in WAYS}
    return "; ".join(f"{short(seconds)}, {way}" for way, seconds in slowest.items()) + ", one thread of a CPU"


def claims_words() -> Markdown:
    """What can be said about the claims."""
    return Markdown(f"{_memory_words()}\n\n{_minutes_words()}")


def _memory_words() -> str:
    text = (
        "**Twice the memory.** Nothing that we hold of the GloRo and LiResNet papers contains the sentence. GloRo's "
        "table of costs, as far as it is recalled, gives megabytes an image and no ratio."
    )
    found = memory_ratios()
    if "LiResNet" not in found:
        return f"{text} Measured: **not run**."
    whole, each = found["LiResNet"], found.get(f"LiResNet{AN_IMAGE}", [])
    text += f" For our LiResNets in float32 {_verdict(whole + each)}."
    losses = [f"{_ends(cost)} times over the losses (`cost`)"] if (cost := cost_memory().get("LiResNet")) else []
    steps = [f"{_by_width(step)} (`training-step`, both necks)"] if (step := step_memory()) else []
    text += f" Peak of a process over a plain network's: {'; '.join(losses + steps)}."
    if each:
        text += f" Counted an image, from the peaks at two batch sizes: {_by_width(step_memory(unit='KB an image'))}."
    if causes := _causes(whole, each):
        text += f" So it depends on {' and on '.join(causes)}."
    text += f" Each peak is that of a process of its own, which scatters.{_plain_falls() if each else ''}"
    if PAPERS in found:
        an_image = found.get(f"{PAPERS}{AN_IMAGE}")
        beside = f", counted an image {_ends(an_image)} times" if an_image else ""
        ends = _ends(found[PAPERS])
        text += f" The step as the papers' codes do it takes {ends} times{beside}, its neck of 2048 included."
    return text


def _verdict(ratios: Sequence[float]) -> str:
    above = sum(value >= SAID_MEMORY for value in ratios)
    if above in (0, len(ratios)):
        return "it holds" if above else f"it does not hold: no ratio reaches {SAID_MEMORY:g}"
    return f"it holds in part: {above} of {len(ratios)} ratios reach {SAID_MEMORY:g}"


def _by_width(ratios: dict[int, list[float]]) -> str:
    """`0.90 to 1.03 times at width 64, 1.52 to 1.54 times at width 128`."""
    return ", ".join(f"{_ends(values)} times at width {width}" for width, values in ratios.items())


def _causes(whole: Sequence[float], each: Sequence[float]) -> list[str]:
    """What ratios depend on: width where its ranges lie apart, what is counted where the claim holds for one alone."""
    apart = [
        max(narrow) < min(wide)
        for unit in ("MB", "KB an image")
        for narrow, wide in itertools.pairwise(step_memory(unit=unit).values())
    ]
    reach = [(any(v >= SAID_MEMORY for v in ratios), all(v >= SAID_MEMORY for v in ratios)) for ratios in (whole, each)]
    counted = bool(each) and reach[0] != reach[1]
    return (["width"] if apart and all(apart) else []) + (["what is counted"] if counted else [])


def _plain_falls() -> str:
    """Whether a wider plain network seems to need less an image, which shows how rough these ratios are."""
    check = find_check("training-step")
    held = {net: check.numbers.get(f"{net}; memory plain; KB an image") for net in speed_step.nets(check)}
    known = [(net, value / 1e3) for net, value in held.items() if value is not None]
    for (narrow, more), (wide, less) in itertools.permutations(known, 2):
        deep = narrow.partition(" ")[0] == wide.partition(" ")[0]
        if deep and width_of(narrow) < width_of(wide) and less < more:
            return (
                f" The plain network's own {more:.2f} MB an image on {narrow} and {less:.2f} MB on {wide}, which is "
                "wider, show how much: ratios an image are rough."
            )
    return ""


def _minutes_words() -> str:
    first = PUBLISHED[0]
    text = (
        "**Three minutes an image.** A Lipschitz certificate is one forward pass and a few comparisons. The claim fits "
        "randomised smoothing, which classifies noisy copies of an image by the tens of thousands, for a guarantee by "
        f"probability: its authors state {first.seconds:g} s for an ImageNet image at 100,000 samples, and their log "
        "at noise 0.25 has 2:28 to 2:31 minutes for each. That this is what is meant is our guess."
    )
    if (check := find_check(LARGE)) is None:
        return f"{text} Measured for LiResNets: **not run**."
    slowest = max(check.numbers[f"{net}; {WAYS[0]}; seconds an image"] for net in nets(check))
    if slowest >= SAID_SECONDS:
        return f"{text} For LiResNets the claim holds: {short(slowest)} an image on one thread of a CPU."
    return (
        f"{text} For LiResNets the claim does not hold: {short(slowest)} an image on one thread of a CPU, "
        f"{SAID_SECONDS / slowest:,.0f} times less, once the constants are proven."
    )


def published_table() -> Markdown:
    """What others state, an image at a time; machines and guarantees differ."""
    rows = [
        (s.method, s.images, short(s.seconds / s.count), s.where, EVIDENCE.get(s.evidence, s.evidence))
        for s in PUBLISHED
    ]
    return table(("method", "images", "an image", "on, or from", "how we know"), rows, right=(2,))


def pass_ratios() -> list[float]:
    """Every measured certification over plain inference, both in float64."""
    checks = [check for goal in (SMALL, LARGE) if (check := find_check(goal)) is not None]
    return [
        float(value)
        for check in checks
        for key, value in check.numbers.items()
        if key.endswith("; ratio") and WAYS[0] in key
    ]
