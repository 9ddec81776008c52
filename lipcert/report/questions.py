"""The study's questions, each with the answer that its page computes from the records."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from lipcert.radius import Radius
from lipcert.report import (
    attention,
    class_count,
    depth_gains,
    depth_runs,
    limits_words,
    linf,
    loss_study,
    loss_study_answers,
    proof_cost_certificates,
    residual,
    systems,
)
from lipcert.report.class_count_runs import load
from lipcert.report.limits import gather
from lipcert.report.names import LOSSES, network_name
from lipcert.report.tables import Markdown, percent

_RADIUS, _GUARANTEE = "36/255", "executed"
_FIRST_TRY = "vra-l3w64-cifar10"


@dataclass(frozen=True)
class Question:
    """One question, its answer in Markdown, and the file of the page with the evidence, as the book names it."""

    asked: str
    answer: str
    page: str


def questions() -> Iterator[Question]:
    """In the order of the study's plan; the claims that were checked come last."""
    losses = loss_study.load("cifar100", _RADIUS, _GUARANTEE)
    yield Question(
        "Why does VRA fall so much faster than clean accuracy when classes are added?",
        class_count.answer(load(Radius(_RADIUS), _GUARANTEE)),
        "notebooks/class_count.ipynb",
    )
    yield Question(
        "Do losses other than EMMA scale better to many classes?",
        loss_study_answers.scaling_answer(losses),
        "notebooks/losses.ipynb",
    )
    yield Question(
        "Where is the limit of deterministic certification?",
        limits_words.headline(gather("cifar10", _RADIUS, _GUARANTEE)),
        "notebooks/limits.ipynb",
    )
    yield Question(
        "How much of LiResNet's gain is the linear residual? Does a conventional ResNet gain with depth?",
        depth_gains.headline(depth_runs.View()),
        "notebooks/depth_scaling.ipynb",
    )
    yield Question(
        "How far are estimate and proven bound from a constant that is known exactly?",
        _known_constants(),
        "residual_bounds.md",
    )
    yield Question(
        "What is EMMA's price against GloRo's loss?", loss_study_answers.price_answer(losses), "notebooks/losses.ipynb"
    )
    yield Question("Are residual bounds the obstacle in transformers too?", attention.claim_words(), "attention.md")
    yield Question(
        "Twice the memory of standard training? Three minutes to certify an ImageNet image?",
        proof_cost_certificates.claims_words(),
        "notebooks/bounds.ipynb",
    )
    yield Question(
        "Do ℓ∞-distance nets hold a fundamental advantage over conventional networks under typical certification?",
        f"{linf.headline()} {linf.elsewhere_words()}",
        "linf.md",
    )
    yield Question(
        "What does the first network that a reader tries reach, L3 W64 on CIFAR-10?", _first_try(),
        "notebooks/vra_tables.ipynb",
    )  # fmt: skip


def questions_words() -> Markdown:
    """All of them, one section each."""
    return Markdown(
        "\n\n".join(
            f"### {number}. {each.asked}\n\n{each.answer}\n\n[The evidence]({each.page})."
            for number, each in enumerate(questions(), 1)
        )
    )


def _known_constants() -> str:
    """The networks of the record `exact-constants`: how much of the bound is used, how often the estimate is short."""
    if not (nets := residual.nets()):
        return str(residual.ABSENT)
    wrong = sum(net.upper > net.bound * (1 + 1e-11) for net in nets)  # they are written to twelve digits
    short = sum(net.power_10 < net.lower for net in nets)
    many = f"{len(nets)} small networks"
    said = [
        f"**The proven bound is below the constant in {wrong} of {many}, an error of ours; the estimate in {short}.**"
        if wrong
        else f"**The proven bound is never below the constant; the estimate is in {short or 'none'} of {many}.**",
        f"The constants are enclosed to {max(net.upper / net.lower for net in nets) - 1:.1e}. The estimate is the "
        "product of the layers' norms after ten rounds of the power method from a cold start.",
    ]
    if used := ", ".join(filter(None, map(_used, ("emma", "cross-entropy", "random")))):
        said.append(
            "Used of the proven bound (constant over bound, medians on digits, from the worst kind of network to the "
            f"best): {used}."
        )
    return " ".join(said)


def _used(weights: str) -> str:
    """`93 to 100 % trained with EMMA`; empty without such networks."""
    kinds: dict[str, list[float]] = {}
    for net in residual.nets():
        if (net.data, net.weights) == ("digits", weights):
            kinds.setdefault(net.family, []).append(100 * net.share)
    if not kinds:
        return ""
    medians = sorted(map(statistics.median, kinds.values()))
    ends = " to ".join(dict.fromkeys(f"{share:.0f}" for share in (medians[0], medians[-1])))
    how = "at random weights" if weights == "random" else f"trained with {LOSSES[weights.replace('-', '_')]}"
    return f"{ends} % {how}"


def _first_try() -> str:
    """The one run of the network, or the command that makes it."""
    system = next(each for each in systems.systems() if each.study == _FIRST_TRY)
    if not system.runs:
        return f"**Not run**: `lipcert study notebooks/params/study/{_FIRST_TRY}.yaml`."
    run = system.runs[0]
    return (
        f"{percent(run.vra(_RADIUS))} VRA at {_RADIUS} and {percent(run.clean_accuracy())} clean after "
        f"{run.training.images:,} images ({network_name(run)}, {run.model.parameters / 1e6:.2f} M parameters, one run)."
    )
