"""The study's questions, each with the answer that its page computes from the records."""

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
    systems,
)
from lipcert.report.checks import find_check
from lipcert.report.class_count_runs import load
from lipcert.report.limits import gather
from lipcert.report.names import network_name
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
        "How far are estimate and proven bound from a constant that is known exactly?", _measured("exact-constants"),
        "bounds.md",
    )  # fmt: skip
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
        linf.headline(),
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


def _measured(goal: str) -> str:
    check = find_check(goal)
    return "**Not run.**" if check is None else f"{check.measured[0].upper()}{check.measured[1:]}."


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
