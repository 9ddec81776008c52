"""Checks that take more than one call: what a certifier remembers, and what it leaves behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from lipcert.bench.corpus import along, grey, pair
from lipcert.bench.edge import frozen
from lipcert.bench.exact import falls_below
from lipcert.bench.families import NormCase, dense, scaled
from lipcert.bench.report import Outcome
from lipcert.bench.verdict import Case, Certify, Claim, claims, judge

Bound = Callable[[nn.Module, tuple[int, ...]], float]


def judge_norm(bound: Bound, case: NormCase) -> Outcome:
    """Whether a claimed bound falls below the norm of the layer."""
    try:
        claim = float(bound(case.layer, case.shape))
    except Exception:
        return Outcome(refused=True)
    below = falls_below(claim, case.matrix, case.norm)
    ratio = case.norm / claim if claim > 0 else math.inf if case.norm > 0 or below else 0.0
    return Outcome(math.inf if math.isnan(ratio) else ratio, below, note=f"bound {claim!r} for {case}")


def remembered_norms(bound: Bound) -> Iterator[Outcome]:
    """Two layers of one shape, one after the other, then the first with its weights changed in place."""
    quiet = dense(torch.diag(torch.tensor([1.0, 0.1])).double().numpy())
    loud = dense(torch.diag(torch.tensor([0.1, 10.0])).double().numpy())
    for layer, norm, change in ((quiet, 1.0, 1.0), (loud, 10.0, 1.0), (quiet, 7.0, 7.0)):
        layer.weight.mul_(change)
        exact = layer.weight.double().numpy()
        yield judge_norm(bound, NormCase(layer, (2,), exact, norm))


def scaling_habit(bound: Bound, cases: list[NormCase]) -> Iterator[Outcome]:
    """bound(2^t layer) = 2^t bound(layer), bit for bit: not so where an epsilon is added or a length clamped."""
    for case in cases:
        for power in (-60, 40):
            try:
                plain, moved = (float(bound(scaled(case.layer, t), case.shape)) for t in (0, power))
            except Exception:
                yield Outcome(refused=True)
                continue
            wrong = moved != math.ldexp(plain, power)
            yield Outcome(0.0, wrong, note=f"times 2^{power}: {moved!r}, not {math.ldexp(plain, power)!r} for {case}")


def _diagonal(first: float, second: float) -> nn.Sequential:
    """Grey stays grey, the two pixels move features at these speeds."""
    model = pair(first=torch.diag(torch.tensor([first, second])))
    model[1].bias.copy_(0.5 - torch.tensor([first, second]) / 2)
    return model


def remembered_models(certify: Certify, claim: Claim) -> Iterator[Outcome]:
    """Weights changed in place, weights loaded, another network of the same shapes first, another head."""
    model = _diagonal(1.0, 1.0)
    _quietly(certify, model)
    model[1].weight.mul_(20.0)
    model[1].bias.copy_(torch.full((2,), -9.5))
    yield judge(certify, _named(along(model, grey()), "weights changed in place"), claim)

    model = _diagonal(1.0, 1.0)
    _quietly(certify, model)
    model.load_state_dict(_diagonal(30.0, 30.0).state_dict())
    yield judge(certify, _named(along(model, grey()), "weights loaded"), claim)

    _quietly(certify, _diagonal(1.0, 0.125))
    yield judge(certify, _named(along(_diagonal(0.125, 16.0), grey(), (0.0, 1.0)), "another network first"), claim)

    model = _diagonal(1.0, 1.0)
    _quietly(certify, model)
    model[-1] = frozen(10 * torch.eye(2), torch.tensor([0.25, 0.0])).eval()
    yield judge(certify, _named(along(model, grey()), "another head"), claim)


def _named(case: Case, name: str) -> Case:
    return Case(case.model, case.images_BCHW, case.witnesses, name=name)


def _quietly(certify: Certify, model: nn.Module) -> None:
    try:
        certify(model, grey())
    except Exception:
        return


def model_left_alone(certify: Certify, cases: list[Case]) -> Iterator[Outcome]:
    """Weights, types and modes of the model, and the images, are afterwards what they were."""
    for case in cases:
        before = copy.deepcopy(case.model.state_dict())
        modes, images = [m.training for m in case.model.modules()], case.images_BCHW.clone()
        claims(certify, case)
        after = case.model.state_dict()
        same = before.keys() == after.keys() and [m.training for m in case.model.modules()] == modes
        same = same and all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
        yield Outcome(violated=not (same and torch.equal(images, case.images_BCHW)), note=f"{case.name}: changed")


def same_in_any_batch(certify: Certify, cases: list[Case]) -> Iterator[Outcome]:
    """The answer for an image is the same bytes whatever images come with it."""
    for case in cases:
        images = torch.cat([case.images_BCHW, 1 - case.images_BCHW, case.images_BCHW.flip(-1)])
        whole = claims(certify, Case(case.model, images))
        alone = [claims(certify, Case(case.model, image[None])) for image in images]
        if whole is None or None in alone:
            yield Outcome(refused=True)
        else:
            yield Outcome(violated=whole != [a[0] for a in alone], note=f"{case.name}: {whole} but alone {alone}")
