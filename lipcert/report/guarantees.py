"""The four words side by side: the study's records, and one shipped network certified while the page is built.

Shape suffixes: N images, K classes, C channels, H height, W width.
"""

import functools

import torch
from torch import Tensor

from lipcert.certify import Certificates, certified_correct, certify_each
from lipcert.data import load_dataset, to_unit
from lipcert.models import load
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.report.enclosures import scientific
from lipcert.report.estimates import NETWORK
from lipcert.report.names import labelled
from lipcert.report.tables import NOTHING, Markdown, percent, result_records, table

WORDS = (
    ("estimated", "float64"), ("nominal", "float64"), ("real", "float64"), ("executed", "float64"), ("real", "float32"),
    ("executed", "float32"),
)  # fmt: skip
_IMAGES = 120  # of the test digits: enough for the page
_SHOWN = [word for word in WORDS if word != ("real", "float32")]


def guarantee_table() -> Markdown:
    """VRA of every published run at its own radius by guarantee, with differences in images to *nominal*."""
    records = result_records()
    if not records:
        return Markdown(NOTHING)
    rows = [
        (f"{label}, {r.config.radius}", *(_cell(r, r.config.radius, *word) for word in _SHOWN))
        for label, r in labelled(records)
    ]
    return table(("network, radius", *(_name(*word) for word in _SHOWN)), rows, right=range(1, len(_SHOWN) + 1))


def _name(guarantee: str, arithmetic: str) -> str:
    return f"{guarantee}, float32" if arithmetic == "float32" else guarantee


def _count(record: Record, radius: str, guarantee: str, arithmetic: str) -> int | None:
    result = record.result(radius, guarantee, arithmetic=arithmetic)
    return result.certified_correct if result else None


def _cell(record: Record, radius: str, guarantee: str, arithmetic: str) -> str:
    count, nominal = (_count(record, radius, *word) for word in ((guarantee, arithmetic), ("nominal", "float64")))
    if count is None:
        return "not run"
    share = percent(count / record.test.images)
    if guarantee == "nominal" or nominal is None:
        return f"{share} ({count:,})"
    return f"{share} ({f'{count - nominal:+,}'.replace('-', '−') if count != nominal else '±0'})"


def guarantee_words() -> Markdown:
    """What is lost from word to word, over all radii of all published runs."""
    cases = [(r, radius) for r in result_records() for radius in {x.radius for x in r.test.results}]
    lines = []
    for guarantee, arithmetic in WORDS:
        if guarantee == "nominal":
            continue
        pairs = [(_count(*case, guarantee, arithmetic), _count(*case, "nominal", "float64")) for case in cases]
        changes = [count - nominal for count, nominal in pairs if count is not None and nominal is not None]
        word = f"*{guarantee}*" if guarantee == "estimated" else f"*{guarantee}* in {arithmetic}"
        lines.append(f"{word}: {_change(changes)}")
    return Markdown("Images against *nominal*, over all radii of all published runs. " + "; ".join(lines) + ".")


def _change(changes: list[int]) -> str:
    if not changes:
        return "not run"
    different = sum(change != 0 for change in changes)
    if not different:
        return f"the same number in all {len(changes)} counts"
    worst = max(changes, key=abs)
    return f"another number in {different} of {len(changes)} counts, by {f'{worst:+,}'.replace('-', '−')} at most"


@functools.cache
def shipped_certificates() -> tuple[dict[tuple[str, str], Certificates], tuple[Tensor, str]]:
    """The first test digits certified by the shipped network in every proven word; (their labels, the radius)."""
    chain, data = load(NETWORK), load_dataset("digits")
    images_NCHW = to_unit(data.test.images_NCHW[:_IMAGES], data.scale, torch.float64)
    certified = certify_each(chain, images_NCHW, WORDS[1:])
    return dict(zip(WORDS[1:], certified, strict=True)), (data.test.labels_N[:_IMAGES], chain.card["radius"])


def slack_table() -> Markdown:
    """How much of the margin rounding bounds take, image by image, on those certified (nominal) at the own radius."""
    certified, (labels_N, radius) = shipped_certificates()
    nominal = certified["nominal", "float64"]
    rows = []
    for word, c in certified.items():
        slack_N = 1 - c.radius_B / nominal.radius_B
        slack_N = slack_N[nominal.radius_B >= float(Radius(radius))].sort().values
        count = certified_correct(c.prediction_B, c.radius_B, labels_N, radius)
        shares = (
            ("", "")
            if word[0] == "nominal"
            else (scientific(float(slack_N[len(slack_N) // 2])), scientific(float(slack_N[-1])))
        )
        rows.append((*word, f"{count} of {len(labels_N)}", *shares))
    head = ("guarantee", "run in", f"correct and certified at {radius}", "slack / margin, median", "largest")
    return table(head, rows, right=(2, 3, 4))


def slack_words() -> Markdown:
    """How far the worst case is from what happens: margins in float32 beside float64."""
    certified, _ = shipped_certificates()
    single, double = certified["real", "float32"], certified["nominal", "float64"]
    kept_N = (single.prediction_B == double.prediction_B) & (single.radius_B > 0)
    own_N, rival_N = single.prediction_B[kept_N, None], single.runner_up_B[kept_N, None]

    def margin(c: Certificates) -> Tensor:
        logits_NK = c.logits_BK[kept_N]
        return (logits_NK.gather(1, own_N) - logits_NK.gather(1, rival_N))[:, 0]

    lipschitz_N = single.bounds.margin_lipschitz_KK[own_N[:, 0], rival_N[:, 0]]
    allowed_N = margin(single) - lipschitz_N * single.radius_B[kept_N]
    measured_N = (margin(single) - margin(double)).abs()
    measured, allowed = scientific(float(measured_N.max())), scientific(float(allowed_N.median()))
    return Markdown(
        f"Worst cases do not happen: on the {int(kept_N.sum())} images where both answer, float32 margins differ from "
        f"float64 ones by {measured} at most, while the bound has to allow {allowed} in the "
        f"median. A proof for float32 pays for what could go wrong; in float64 that is so little that it costs nothing."
    )
