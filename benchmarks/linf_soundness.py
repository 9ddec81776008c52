"""Try to leave the boxes of `lipcert.linf`: `python -m benchmarks.linf_soundness [--points 1000000] [RUN ...]`.

Writes `results/local/checks/linf-exactness.json`. Small nets of every family, with random weights and after a few steps
of training on the digits, and the networks named (runs, shipped ones or files). About 3 minutes on an idle core.

Shape letters: B images, N points, K classes, C H W image, O outputs.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.certify import certify
from lipcert.data import load_dataset, to_unit
from lipcert.forward import FORMATS
from lipcert.layers import MinMax, Shift
from lipcert.linf import kernels
from lipcert.linf.interval import Propagation
from lipcert.linf.layers import Distance, DistanceConv, Negate, SortedDistance, from_windows, windows
from lipcert.linf.program import ONE_LIPSCHITZ
from lipcert.linf.rounding import Rounding, ball
from lipcert.models import open_network
from lipcert.report.checks import measuring

RADII = (2.0**-20, 1 / 255, 8 / 255, 0.1)
_POINTS_AT_ONCE = 5000
_FAR = 0.25  # an attack that works breaks most images here


def families() -> dict[str, nn.Sequential]:
    """One small net of each family for the digits, random weights from torch's generator, outputs centred."""
    nets = {
        "distances": [
            nn.Flatten(), filled(Distance(64, 64)), filled(Distance(64, 64)), filled(Distance(64, 10)), Negate(),
        ],
        "distance convolution": [
            filled(DistanceConv(1, 8, 3, 2, 1)), filled(DistanceConv(8, 8, 3, 1, 0)), nn.Flatten(),
            filled(Distance(32, 10)), Negate(),
        ],
        "sorted distances": [
            nn.Flatten(), filled(SortedDistance(64, 64, 0.7)), filled(SortedDistance(64, 64, 0.7)),
            filled(Distance(64, 10)), Negate(),
        ],
        "distances with MLP": [
            nn.Flatten(), filled(Distance(64, 64)), filled(Distance(64, 64)), nn.Linear(64, 32), nn.Tanh(),
            nn.Linear(32, 10),
        ],
        "convolutions (IBP)": [
            Shift(0.5), nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), MinMax(), nn.Flatten(),
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
        ],
    }  # fmt: skip
    return {name: centred(nn.Sequential(*layers).eval().requires_grad_(False)) for name, layers in nets.items()}


def filled(layer: nn.Module) -> nn.Module:
    """Random weights about as far apart as pixels are."""
    layer.weight.copy_(torch.randn(layer.weight.shape) * 0.5)
    return layer


def centred(chain: nn.Sequential) -> nn.Sequential:
    """Shift every distance layer by its mean output on noise, as training would; tanh saturates otherwise."""
    x = torch.rand(64, 1, 8, 8)
    for layer in chain:
        if isinstance(layer, (Distance, DistanceConv, SortedDistance)):
            layer.shift.sub_(layer(x).transpose(0, 1).flatten(1).mean(1))
        x = layer(x)
    return chain


def relaxed(chain: nn.Sequential, x: Tensor, p: float) -> Tensor:
    """The chain with l_p distances in place of maxima and sorted sums: gradients that reach more than one input."""
    for layer in chain:
        if isinstance(layer, DistanceConv):
            windows_NI, size = windows(x, layer.kernel_size, layer.stride, layer.padding)
            y_NO = kernels.distance(windows_NI, layer.weight.flatten(1), p) + layer.shift
            x = from_windows(y_NO, len(x), size)
        elif isinstance(layer, (Distance, SortedDistance)):
            x = kernels.distance(x, layer.weight, p) + layer.shift
        else:
            x = layer(x)
    return x


def train(chain: nn.Sequential, images_BCHW: Tensor, labels_B: Tensor, steps: int = 150) -> nn.Sequential:
    """A few steps along signs of averaged gradients, p from 8 to 100, so that boxes are met where networks live."""
    chain.requires_grad_(True)
    parameters = list(chain.parameters())
    averages = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        batch = torch.randint(0, len(images_BCHW), (128,))
        logits_BK = relaxed(chain, images_BCHW[batch].float(), 8 * 12.5 ** (step / steps))
        loss = F.cross_entropy(4 * logits_BK, labels_B[batch])
        with torch.no_grad():
            for p, average, gradient in zip(parameters, averages, torch.autograd.grad(loss, parameters), strict=True):
                average.lerp_(gradient, 0.1)
                p.sub_(average.sign(), alpha=0.01 * (1 - step / steps))
    return chain.requires_grad_(False)


@dataclass
class Tally:
    """Counts of one family. points: logits vectors looked at. outside: those with a logit outside of its box.
    changed: those that are not strictly the certified class's. certified: those from balls that were certified.
    slack: those where some logit moved by more than the radius: a 1-Lipschitz network that did not round could not.
    """

    points: int = 0
    outside: int = 0
    certified: int = 0
    changed: int = 0
    slack: int = 0

    def __iadd__(self, other: "Tally") -> "Tally":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@torch.no_grad()
def probe(chain: nn.Sequential, image_CHW: Tensor, radius: float, arithmetic: str, points: int) -> Tally:
    """Run the deployed network at points of one ball, rounded to its arithmetic, and compare with the boxes."""
    form = FORMATS[arithmetic]
    rounding = Rounding("executed", form)
    boxes, deployed = Propagation(chain, rounding), chain.to(form.dtype)
    ends = ball(image_CHW[None], torch.tensor([radius], dtype=torch.float64), rounding)
    lower_K, upper_K = (end[0] for end in boxes.ends(*ends))
    centre_K = deployed(image_CHW[None].to(form.dtype))[0]
    worst = boxes.worst(*ends, centre_K.argmax()[None])
    lipschitz = all(type(layer) in ONE_LIPSCHITZ for layer in chain)
    tally = Tally()
    for points_NCHW in _draws(image_CHW.double(), radius, points):
        logits_NK = deployed(points_NCHW.to(form.dtype))
        own_N1 = logits_NK[:, centre_K.argmax(), None]
        above_NK = (own_N1 > logits_NK).scatter(1, centre_K.argmax().expand(len(logits_NK))[:, None], True)
        certified = bool(worst.holds_B)
        moved_NK = (logits_NK.double() - centre_K.double()).abs()
        tally += Tally(
            len(logits_NK),
            int((~((lower_K <= logits_NK) & (logits_NK <= upper_K))).any(1).sum()),
            len(logits_NK) * certified,
            int((~above_NK.all(1)).sum()) * certified,
            int((moved_NK > radius).any(1).sum()) * lipschitz,
        )
    chain.float()
    return tally


def _draws(image_CHW: Tensor, radius: float, points: int) -> Iterator[Tensor]:
    """Points of the clipped ball in float64: a half uniform, a quarter corners, a quarter corners with some inside."""
    low, high = inner_box(image_CHW, radius)
    for start in range(0, points, _POINTS_AT_ONCE):
        count = min(_POINTS_AT_ONCE, points - start)
        share = torch.rand(count, *image_CHW.shape, dtype=torch.float64)
        corner = torch.rand(share.shape).round().double()
        kind = torch.randint(0, 4, (count, 1, 1, 1))
        mixed = torch.where(torch.rand(share.shape) < 0.1, share, corner)
        share = torch.where(kind < 2, share, torch.where(kind == 2, corner, mixed))
        yield (low + share * (high - low)).clamp(low, high)


def inner_box(images: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
    """Ends of the clipped ball in float64, the outermost numbers that are still in it: rounding errors are known."""
    low, high = images - radius, images + radius
    low = torch.where(_error(images, -radius, low) > 0, torch.nextafter(low, images), low)
    high = torch.where(_error(images, radius, high) < 0, torch.nextafter(high, images), high)
    return low.clamp_min(0), high.clamp_max(1)


def _error(first: Tensor, second: Tensor | float, total: Tensor) -> Tensor:
    """first + second - total, exactly (Knuth's two-sum)."""
    back = total - first
    return (first - (total - back)) + (second - back)


def attack(
    chain: nn.Sequential,
    images_BCHW: Tensor,
    class_B: Tensor,
    radius_B: Tensor,
    p: float,
    steps: int,
    restarts: int,
    targeted: bool,
) -> Tensor:
    """Which images lose their class in the clipped l_inf ball, (B,): signed gradient ascent in float64.

    The first restart begins at the image, the others in corners; every other one follows cross-entropy instead of the
    margin. targeted: each rival class by itself.
    """
    images, r = images_BCHW.double(), radius_B.double().view(-1, 1, 1, 1)
    low, high = inner_box(images, r)
    chain, broken_B = chain.double(), torch.zeros(len(images), dtype=torch.bool)
    classes = int(chain(images[:1]).shape[1])
    rivals = [(class_B + offset) % classes for offset in range(1, classes)] if targeted else [None]
    for rival_B in rivals:
        for restart in range(restarts):
            x = images.clone() if restart == 0 else torch.where(torch.rand(images.shape) < 0.5, low, high)
            for step in range(steps + 1):
                broken_B |= _lost(chain, x, class_B)
                x.requires_grad_(True)
                loss = _loss(relaxed(chain, x, p), class_B, rival_B, restart % 2 == 1)
                (gradient,) = torch.autograd.grad(loss.sum(), x)
                size = r * 2 * (1 - step / (steps + 1))
                x = (x.detach() + size * gradient.sign()).clamp(low, high)
    chain.float()
    return broken_B


def _lost(chain: nn.Sequential, x: Tensor, class_B: Tensor) -> Tensor:
    with torch.no_grad():
        logits_BK = chain(x.detach())
    others_BK = logits_BK.scatter(1, class_B[:, None], -math.inf)
    return logits_BK.gather(1, class_B[:, None])[:, 0] <= others_BK.amax(1)


def _loss(logits_BK: Tensor, class_B: Tensor, rival_B: Tensor | None, entropy: bool) -> Tensor:
    own_B = logits_BK.gather(1, class_B[:, None])[:, 0]
    if rival_B is not None:
        return logits_BK.gather(1, rival_B[:, None])[:, 0] - own_B
    if entropy:
        return F.cross_entropy(4 * logits_BK, class_B, reduction="none")
    return logits_BK.scatter(1, class_B[:, None], -math.inf).amax(1) - own_B


ATTACKS: dict[str, dict] = {
    "PGD": {"p": math.inf, "steps": 40, "restarts": 1, "targeted": False},
    "multi-restart": {"p": 32.0, "steps": 40, "restarts": 6, "targeted": False},
    "targeted": {"p": 32.0, "steps": 30, "restarts": 2, "targeted": True},
}


def attacked(chain: nn.Sequential, images_BCHW: Tensor) -> tuple[int, dict[str, tuple[int, int]]]:
    """Images with a certified ball, and for each attack its successes inside of the balls and in larger ones."""
    certificates = certify(chain, images_BCHW, norm="linf", method="interval")
    held_B = certificates.radius_B > 0
    images, class_B, radius_B = images_BCHW[held_B], certificates.prediction_B[held_B], certificates.radius_B[held_B]
    found = {}
    for name, settings in ATTACKS.items():
        sizes = (radius_B, (4 * radius_B).clamp_min(_FAR)) if len(images) else ()
        found[name] = tuple(int(attack(chain, images, class_B, size, **settings).sum()) for size in sizes) or (0, 0)
    return len(images), found


def subjects(names: list[str]) -> Iterator[tuple[str, Callable[[], tuple[nn.Sequential, Tensor]]]]:
    """Label, and what makes a network and its images, (B, C, H, W) float64."""
    data = load_dataset("digits")
    train_images, test_images = (to_unit(p.images_NCHW, data.scale, torch.float64) for p in (data.train, data.test))
    for family, chain in families().items():
        yield f"{family}, random", lambda chain=chain: (chain, test_images)
    for family, chain in families().items():
        yield f"{family}, trained", lambda chain=chain: (train(chain, train_images, data.train.labels_N), test_images)
    for name in names:
        yield name, lambda name=name: _stored(name)


def _stored(name: str) -> tuple[nn.Sequential, Tensor]:
    chain = open_network(name)
    data = load_dataset(chain.card["dataset"], chain.card["classes"], chain.card["class_seed"])
    return chain, to_unit(data.test.images_NCHW[:1000], data.scale, torch.float64)


def measure(points: int, attacked_images: int, names: list[str]) -> None:
    """Every subject: points in balls, then attacks on certified images."""
    target = "0 of 1,000,000 points of each family outside; 0 attacks succeed inside a certified ball"
    with measuring("linf-exactness", "boxes that hold the executed network", target) as found:
        head = ("network", "points", "outside", "class changed", "moved further than r", "certified images attacked")
        rows = [(*head, *(f"{name}: inside, far" for name in ATTACKS))]
        total, hits, reach = Tally(), 0, 0
        for label, make in subjects(names):
            chain, images = make()
            tally = Tally()
            balls = [(r, a) for r in RADII for a in ("float32", "float64")]
            each = 4  # images for each radius and arithmetic
            for radius, arithmetic in balls:
                for image in images[torch.randint(0, len(images), (each,))]:
                    tally += probe(chain, image, radius, arithmetic, math.ceil(points / len(balls) / each))
            count, successes = attacked(chain, images[:attacked_images])
            hits += sum(inside for inside, _ in successes.values())
            reach += max(beyond for _, beyond in successes.values())
            total += tally
            cells = (f"{inside}, {beyond}" for inside, beyond in successes.values())
            numbers = (tally.points, tally.outside, tally.changed, tally.slack, count)
            rows.append((label, *(f"{n:,}" for n in numbers), *cells))
            print(rows[-1], flush=True)
        found |= {
            "measured": f"{total.points:,} random and corner points in balls of {len(rows) - 1} networks, float32 and "
            f"float64: {total.outside} with a logit outside of its box, {total.changed} of {total.certified:,} in "
            f"certified balls of another class; the rule |f(x) - f(x0)| <= r without rounding is broken by "
            f"{total.slack:,}; attacks: {hits} successes inside certified balls, {reach} in far larger ones",
            "verdict": "met" if not (total.outside or total.changed or hits) else "fell short",
            "numbers": {
                "points": total.points, "outside": total.outside, "certified_points": total.certified,
                "changed": total.changed, "slack_free_broken": total.slack, "attack_successes": hits,
                "attack_successes_far": reach,
            },
            "rows": tuple(rows),
        }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="further networks: names, run ids or files")
    parser.add_argument("--points", type=int, default=1_000_000, help="points for each network")
    parser.add_argument("--images", type=int, default=100, help="images attacked for each network")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    measure(arguments.points, arguments.images, arguments.runs)
