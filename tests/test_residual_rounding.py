"""Error bounds of residual blocks against exact rational networks and passes that round as badly as allowed."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from blocks import IMAGE, block, residual_chain
from executed import TOY, Maps
from nets import linear
from torch import nn

from lipcert.certify import ABSTAIN, certify
from lipcert.chain import chain_bounds
from lipcert.deviation import Linear, _Runs, deviation
from lipcert.forward import FORMATS, FloatFormat, run_chain


def pixels(image: torch.Tensor) -> list[Fraction]:
    return [Fraction(round(v * 255), 255) for v in image.flatten().tolist()]


def analysed(chain, image, computed="float64", deployed=FORMATS["float64"], magnitudes=False):
    bounds = chain_bounds(chain, tuple(image.shape[1:]))
    passed = run_chain(chain, image, computed, magnitudes)
    return passed, deviation(bounds.plan, passed, chain[-1], FORMATS[computed], deployed)


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_computed_logits_are_within_the_bound_of_the_exact_ones(arithmetic, magnitudes):
    for seed in range(8):
        chain, image = residual_chain(seed)
        passed, errors = analysed(chain, image, arithmetic, FORMATS[arithmetic], magnitudes)
        exact = Maps.of(chain, IMAGE).exactly(pixels(image))
        rows = torch.linalg.vector_norm(chain[-1].weight.double(), dim=1)
        allowed = rows * errors.centre_B + errors.centre_BK[0]
        for logit, truth, bound in zip(passed.logits_BK[0].tolist(), exact, allowed.tolist(), strict=True):
            assert abs(Fraction(logit) - truth) <= Fraction(bound)
            assert bound < {"float64": 1e-9, "float32": 0.5}[arithmetic] * (1 + abs(logit))


def over(chain, image, errors, form: FloatFormat, radii=(0.0, 0.5, 30.0), seeds=range(4)) -> int:
    """How many logits of bad runs at points of the ball leave what is allowed."""
    maps, rows = Maps.of(chain, tuple(image.shape[1:])), torch.linalg.vector_norm(chain[-1].weight.double(), dim=1)
    count = 0
    for seed in seeds:
        generator = np.random.default_rng(seed)
        for radius in radii:
            away = generator.standard_normal(image.numel()) if seed else np.ones(image.numel())
            moved = image.flatten().numpy() + radius * away / np.linalg.norm(away) * (1 - 1e-12)
            exact = np.array([float(v) for v in maps.exactly([Fraction(float(v)) for v in moved])])
            state = errors.ball.at + errors.ball.slope * radius
            allowed = rows * state + errors.ball_K.at + errors.ball_K.slope * radius
            for worst in (True, False):
                rough = maps.rounded(moved, form, generator, worst)
                count += int((np.abs(rough - exact) > allowed[0].numpy()).sum())
    return count


FLUSHING = FloatFormat("flushing", torch.float64, Fraction(1, 2**50), Fraction(1, 2**3), Fraction(2**100))


@pytest.mark.parametrize("form", [TOY, FLUSHING], ids=lambda form: form.name)
def test_a_rough_arithmetic_stays_within_the_bound_over_the_ball(form):
    for seed in range(8):
        chain, image = residual_chain(seed)
        _, errors = analysed(chain, image, deployed=form, magnitudes=seed % 2 == 0)
        assert not over(chain, image, errors, form)


# Chains of positive numbers, on which errors in one direction add up to nearly all that is allowed, each with what
# matters there.
ONE = torch.full((1, 1, 1, 1), 0.75, dtype=torch.float64)
SIXTEEN = torch.full((1, *IMAGE), 0.75, dtype=torch.float64)


def sums() -> tuple[nn.Sequential, torch.Tensor]:
    """Twelve times x + relu(x): nothing but the additions rounds."""
    return nn.Sequential(nn.Flatten(), *(block(nn.ReLU()) for _ in range(12)), linear([[1.0], [0.0]])).eval(), ONE


def skips() -> tuple[nn.Sequential, torch.Tensor]:
    """All errors are made before the block, whose branch does next to nothing."""
    first, last = linear(torch.full((2, 16), 0.25)), linear([[1.0, 1.0], [0.0, 0.0]])
    return nn.Sequential(nn.Flatten(), first, block(linear(2.0**-12 * torch.eye(2))), last).eval(), SIXTEEN


def branches() -> tuple[nn.Sequential, torch.Tensor]:
    """All errors are made inside of the branch."""
    inside = linear(torch.full((16, 16), 0.25))
    return nn.Sequential(nn.Flatten(), block(inside), linear(torch.eye(16)[:2])).eval(), SIXTEEN


def distant() -> tuple[nn.Sequential, torch.Tensor]:
    """Far from the image activations are large because the skip is, and a dense layer behind rounds them."""
    small = block(linear(2.0**-12 * torch.eye(16)))
    behind = linear(torch.full((2, 16), 0.25))
    return nn.Sequential(nn.Flatten(), small, behind, linear([[1.0, 1.0], [0.0, 0.0]])).eval(), SIXTEEN / 100


def distant_sums() -> tuple[nn.Sequential, torch.Tensor]:
    chain, image = sums()
    return chain, image / 1000


def tiny() -> tuple[nn.Sequential, torch.Tensor]:
    """Pixels just below the threshold of underflow, doubled until they are above it: each addition may lose them."""
    return sums()[0], torch.full_like(ONE, 0.124)


class Careless(_Runs):
    """A recursion that forgets parts of the rule for joins."""

    forgets: str = ""

    def fork(self) -> None:
        super().fork()
        centre_B, ball, product, apart = self.remembered.pop()
        zero = Linear(0 * centre_B, 0 * centre_B)
        self.remembered.append(
            (
                0 * centre_B if self.forgets == "e of the skip" else centre_B,
                zero if self.forgets == "d of the skip" else ball,
                0.0 if self.forgets == "P of the skip" else product,
                zero if self.forgets == "g of the skip" else apart,
            )
        )

    def join(self, index, step) -> None:
        if self.forgets in ("e of the branch", "d of the branch"):
            zero = Linear(0 * self.centre_B, 0 * self.centre_B)
            self.centre_B = 0 * self.centre_B if self.forgets[0] == "e" else self.centre_B
            self.ball = zero if self.forgets[0] == "d" else self.ball
        if self.forgets == "P as a product":
            _, _, product, _ = self.remembered[-1]
            before = self.product
            super().join(index, step)
            self.product = max(before, product)
        elif self.forgets == "the sum's rounding":
            centre_B, ball, _, _ = self.remembered[-1]
            before = self.centre_B + centre_B, self.ball + ball
            super().join(index, step)
            self.centre_B, self.ball = before
        elif self.forgets == "the ball in the sum's rounding":
            self.norms_BL = self.norms_BL.clone()
            _, _, product, _ = self.remembered[-1]
            slope = self.ball.slope + self.remembered[-1][1].slope
            super().join(index, step)
            self.ball = Linear(self.ball.at, slope)
        else:
            super().join(index, step)


# what is forgotten -> (chain that shows it, arithmetic)
FORGETTING = {
    "the sum's rounding": (sums, TOY),
    "the ball in the sum's rounding": (distant_sums, TOY),
    "d of the skip": (skips, TOY),
    "d of the branch": (branches, TOY),
    "P of the skip": (distant, TOY),
}


@pytest.mark.parametrize("name", FORGETTING)
def test_forgetting_a_part_of_the_join_is_caught(name, monkeypatch):
    make, form = FORGETTING[name]
    chain, image = make()
    radii = (0.0, 0.6, 100.0)
    assert not over(chain, image, analysed(chain, image, deployed=form, magnitudes=True)[1], form, radii)
    monkeypatch.setattr(Careless, "forgets", name)
    monkeypatch.setattr("lipcert.deviation._Runs", Careless)
    assert over(chain, image, analysed(chain, image, deployed=form, magnitudes=True)[1], form, radii)


@pytest.mark.parametrize("name", ["e of the skip", "e of the branch"])
def test_forgetting_errors_at_the_centre_is_caught(name, monkeypatch):
    """A large bias that is taken back makes true errors in float32, before the block or inside of its branch."""
    lossy = [linear(torch.eye(1), [2.0**20]), linear(torch.eye(1), [-(2.0**20)])]
    head, small = linear([[1.0], [0.0]]), linear(2.0**-12 * torch.eye(1))
    inside = [*lossy] if "branch" in name else [small]
    chain = nn.Sequential(nn.Flatten(), *([] if "branch" in name else lossy), block(*inside), head).eval()
    image = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    truth = Maps.of(chain, (1, 1, 1)).exactly([Fraction(1, 10)])[0]

    def held() -> bool:
        passed, errors = analysed(chain, image, "float32", FORMATS["float32"])
        allowed = errors.centre_B + errors.centre_BK[:, 0]
        return abs(Fraction(passed.logits_BK[0, 0].item()) - truth) <= Fraction(allowed.item())

    assert held()
    monkeypatch.setattr(Careless, "forgets", name)
    monkeypatch.setattr("lipcert.deviation._Runs", Careless)
    assert not held()


def test_the_bound_is_not_far_above_what_bad_runs_reach():
    for make in (sums, skips, branches):
        chain, image = make()
        _, errors = analysed(chain, image, deployed=TOY, magnitudes=True)
        maps, reached = Maps.of(chain, tuple(image.shape[1:])), 0.0
        exact = float(maps.exactly([Fraction(float(v)) for v in image.flatten().tolist()])[0])
        for seed in range(40):
            rough = maps.rounded(image.flatten().numpy(), TOY, np.random.default_rng(seed), True)
            reached = max(reached, abs(rough[0] - exact))
        allowed = float(chain[-1].weight[0].norm() * errors.ball.at + errors.ball_K.at[0, 0])
        assert 0.1 * allowed < reached <= allowed, make


def test_underflow_at_the_sum(monkeypatch):
    chain, image = tiny()
    _, errors = analysed(chain, image, deployed=FLUSHING)
    assert not over(chain, image, errors, FLUSHING, radii=(0.0,))
    monkeypatch.setattr("lipcert.deviation._copied", lambda entries, form: 0.0)
    _, careless = analysed(chain, image, deployed=FLUSHING)
    assert over(chain, image, careless, FLUSHING, radii=(0.0,))


def test_overflow_at_the_sum_abstains():
    """Two halves of the largest number, each far from overflow."""
    huge = [linear(torch.eye(2), [0.9 * 2.0**127, 0.0]), block(nn.Identity())]
    back = [linear(2.0**-40 * torch.eye(2)), nn.ReLU(), linear(torch.eye(2), [1.0, 0.0])]
    image = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    chain = nn.Sequential(nn.Flatten(), *huge, *back).eval()
    assert certify(chain, image).prediction_B.tolist() == [0]
    assert certify(chain, image, arithmetic="float32").prediction_B.tolist() == [ABSTAIN]
