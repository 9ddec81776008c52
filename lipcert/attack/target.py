"""What all attacks share: the network under attack, its margins and gradients, and the check that a success is one.

Shape letters: B images, K classes, C H W image.
"""

import copy
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.bounds.rounding import root_up, round_up

_MICRO_BATCH = 64  # as in `certify`: the executed network is the one that sees batches of this size
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_PUSHES = 16  # how often `verify` moves a point outward that lies on the wrong side by rounding alone


@dataclass(frozen=True)
class Found:
    """The closest point found per image at which the executed class differs from the prediction.

    Attributes:
        points_BCHW: (B, C, H, W) float64; the image itself where nothing was found.
        distance_B: (B,) float64, l2 distance to the image rounded up; inf where nothing was found.
        class_B: (B,) int64, the executed class at the point; the prediction where nothing was found.
    """

    points_BCHW: Tensor
    distance_B: Tensor
    class_B: Tensor


@dataclass(frozen=True)
class Target:
    """Images, the classes that an attack tries to change, and the network in every arithmetic.

    Attributes:
        nets: the chain by dtype; a search runs in float32 or float64, a success is verified in float64.
        images_BCHW: float64. classes_B: int64. radius_B: float64, the certified radii, which scale a search.
        box: whether points must stay within pixels of [0, 1]; certificates hold without, so that is the harder test.
        seed: of everything random.
    """

    nets: dict[torch.dtype, nn.Module]
    images_BCHW: Tensor
    classes_B: Tensor
    radius_B: Tensor
    box: bool = True
    seed: int = 0

    @classmethod
    def of(
        cls,
        chain: nn.Module,
        images_BCHW: Tensor,
        classes_B: Tensor,
        radius_B: Tensor | None = None,
        box: bool = True,
        seed: int = 0,
    ) -> "Target":
        """A target on the chain's device; without radii, the scale of a search is 0.1.

        Raises:
            ValueError: numbers of images, classes and radii differ, or images outside of [0, 1] with `box`.
        """
        device = next(chain.parameters()).device
        if radius_B is None:
            radius_B = torch.full((len(images_BCHW),), 0.1, dtype=torch.float64)
        if not len(images_BCHW) == len(classes_B) == len(radius_B):
            raise ValueError(
                f"{len(images_BCHW)} images, {len(classes_B)} classes, {len(radius_B)} radii: need one each per image"
            )
        images_BCHW = images_BCHW.detach().to(device, torch.float64)
        if box and not ((images_BCHW >= 0) & (images_BCHW <= 1)).all():
            raise ValueError("pixels outside of [0, 1] with box=True: divide by the pixel scale or pass box=False")
        nets = {
            dtype: copy.deepcopy(chain).to(dtype).eval().requires_grad_(False)
            for dtype in (torch.float32, torch.float64)
        }
        return cls(nets, images_BCHW, classes_B.to(device), radius_B.to(device, torch.float64), box, seed)

    def __len__(self) -> int:
        return len(self.images_BCHW)

    def part(self, index: Tensor | slice) -> "Target":
        """Some of the images."""
        return replace(
            self, images_BCHW=self.images_BCHW[index], classes_B=self.classes_B[index], radius_B=self.radius_B[index]
        )

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, so that a search draws the same numbers on every device."""
        return torch.Generator().manual_seed(self.seed)

    def boxed(self, points_BCHW: Tensor) -> Tensor:
        """The points clamped to [0, 1], if the attack is held to it."""
        return points_BCHW.clamp(0, 1) if self.box else points_BCHW

    def logits(self, points_BCHW: Tensor) -> Tensor:
        """(B, K) in the arithmetic of the points."""
        return self.nets[points_BCHW.dtype](points_BCHW)

    def margins(self, points_BCHW: Tensor) -> Tensor:
        """Largest rival's logit minus the prediction's, (B,): above 0 where the answer has changed."""
        with torch.no_grad():
            return margin_of(self.logits(points_BCHW), self.classes_B)

    def margin_gradient(self, points_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """`margins` and their gradients, (B,) and (B, C, H, W)."""
        return gradient_of(lambda x: margin_of(self.logits(x), self.classes_B), points_BCHW)

    def into_ball(self, points_BCHW: Tensor, radius_B: Tensor) -> Tensor:
        """Points moved into the box and, along the line to their image, into the ball (the box is convex)."""
        images_BCHW = self.images_BCHW.to(points_BCHW.dtype)
        away_BCHW = self.boxed(points_BCHW) - images_BCHW
        scale_B = (radius_B.to(away_BCHW) / lengths(away_BCHW)).clamp(max=1)
        return images_BCHW + column(scale_B) * away_BCHW


def margin_of(logits_BK: Tensor, classes_B: Tensor) -> Tensor:
    """max over j != c of z_j - z_c, (B,)."""
    own_B = logits_BK.gather(1, classes_B[:, None])[:, 0]
    return logits_BK.scatter(1, classes_B[:, None], -math.inf).amax(1) - own_B


def gradient_of(function, points_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B,) and gradients of a function of each image; a gradient that is not finite counts as 0."""
    points_BCHW = points_BCHW.detach().requires_grad_(True)
    values_B = function(points_BCHW)
    (gradients_BCHW,) = torch.autograd.grad(values_B.sum(), points_BCHW)
    return values_B.detach(), gradients_BCHW.nan_to_num(0.0, 0.0, 0.0)


def rival_gradients(target: Target, points_BCHW: Tensor, rivals: int) -> tuple[Tensor, Tensor]:
    """z_j - z_c for the rivals j of the largest logits, (B, R), and its gradients, (B, R, C, H, W)."""
    points_BCHW = points_BCHW.detach().requires_grad_(True)
    logits_BK = target.logits(points_BCHW)
    own_B1 = target.classes_B[:, None]
    margin_BK = logits_BK - logits_BK.gather(1, own_B1)
    others_BK = margin_BK.detach().scatter(1, own_B1, -math.inf)
    rival_BR = others_BK.topk(min(rivals, logits_BK.shape[1] - 1), dim=1).indices
    margin_BR = margin_BK.gather(1, rival_BR)
    gradients = [
        torch.autograd.grad(margin_BR[:, r].sum(), points_BCHW, retain_graph=True)[0].nan_to_num(0.0, 0.0, 0.0)
        for r in range(rival_BR.shape[1])
    ]
    return margin_BR.detach(), torch.stack(gradients, dim=1)


def nearest_plane(offset_BR: Tensor, gradient_BRCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Offset (B,) and normal (B, C, H, W) of the nearest of R hyperplanes with these offsets and normals."""
    ratio_BR = offset_BR.abs() / gradient_BRCHW.flatten(2).norm(dim=2).clamp(min=1e-30)
    nearest_B = ratio_BR.nan_to_num(math.inf).argmin(1)
    row_B = torch.arange(len(nearest_B), device=nearest_B.device)
    return offset_BR[row_B, nearest_B], gradient_BRCHW[row_B, nearest_B]


def lengths(x_BCHW: Tensor) -> Tensor:
    """l2 norm of each image, (B,), never 0: it is divided by."""
    return x_BCHW.flatten(1).norm(dim=1).clamp(min=1e-30)


def column(x_B: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1), to scale images with."""
    return x_B[:, None, None, None]


@torch.no_grad()
def executed_classes(net: nn.Module, points_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Classes (B,) of the network as it is run, in padded micro-batches, and whether all logits are finite."""
    classes, finite = [], []
    for part in points_BCHW.split(_MICRO_BATCH):
        padding = part.new_zeros(_MICRO_BATCH - len(part), *part.shape[1:])
        logits_BK = net(torch.cat([part, padding]))[: len(part)]
        classes.append(logits_BK.argmax(1))
        finite.append(logits_BK.isfinite().all(1))
    return torch.cat(classes), torch.cat(finite)


def changed(target: Target, points_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the executed answer differs from the prediction, (B,), and what it is. Non-finite logits differ."""
    class_B, finite_B = executed_classes(target.nets[points_BCHW.dtype], points_BCHW)
    return (class_B != target.classes_B) | ~finite_B, class_B


def verify(target: Target, points_BCHW: Tensor, push: bool = True, arithmetic: torch.dtype = torch.float64) -> Found:
    """Run the network on every point as it is executed; keep only those whose class differs, with exact distances.

    Args:
        push: move a point whose class has not changed outward, by growing shares of its distance, 1e-14 to
            2e-7 in float64, 1e-6 to 3/2 in float32: a search stops on the boundary, where rounding decides the side.
        arithmetic: torch.float64 or torch.float32; points are rounded to it first.
    """
    points_BCHW = target.boxed(points_BCHW.to(torch.float64)).to(arithmetic)
    points_BCHW = torch.where(points_BCHW.isfinite(), points_BCHW, target.images_BCHW.to(arithmetic))
    changed_B, class_B = changed(target, points_BCHW)
    relative = 2.0**-46 if arithmetic == torch.float64 else 2.0**-20
    for _ in range(_PUSHES if push else 0):
        left = (~changed_B).nonzero()[:, 0]
        if not len(left) or relative > 2:
            break
        rest = target.part(left)
        away_BCHW = points_BCHW[left].double() - rest.images_BCHW
        further_BCHW = rest.boxed(rest.images_BCHW + (1 + relative) * away_BCHW).to(arithmetic)
        changed_B[left], class_B[left] = changed(rest, further_BCHW)
        points_BCHW[left[changed_B[left]]] = further_BCHW[changed_B[left]]
        relative *= 3
    points_BCHW = torch.where(column(changed_B), points_BCHW.double(), target.images_BCHW)
    distance_B = torch.full_like(target.radius_B, math.inf)
    for i in changed_B.nonzero()[:, 0].tolist():
        distance_B[i] = distance_up(points_BCHW[i], target.images_BCHW[i])
    return Found(points_BCHW, distance_B, torch.where(changed_B, class_B, target.classes_B))


def nothing(target: Target) -> Found:
    """No success at any image."""
    distance_B = torch.full_like(target.radius_B, math.inf)
    return Found(target.images_BCHW.clone(), distance_B, target.classes_B.clone())


def put(found: Found, index: Tensor, part: Found) -> None:
    """Write what was found for some of the images into what was found for all, where it is closer."""
    closer = part.distance_B < found.distance_B[index]
    found.points_BCHW[index[closer]] = part.points_BCHW[closer]
    found.distance_B[index[closer]] = part.distance_B[closer]
    found.class_B[index[closer]] = part.class_B[closer]


def squared_distance(point_CHW: Tensor, image_CHW: Tensor) -> Fraction:
    """|point - image|^2 without any rounding: floats are integers over powers of two."""
    ratios = [
        (x.as_integer_ratio(), y.as_integer_ratio())
        for x, y in zip(point_CHW.double().flatten().tolist(), image_CHW.double().flatten().tolist(), strict=True)
    ]
    common = max(max(x[1], y[1]) for x, y in ratios)
    total = sum((x[0] * (common // x[1]) - y[0] * (common // y[1])) ** 2 for x, y in ratios)
    return Fraction(total, common**2)


def distance_up(point_CHW: Tensor, image_CHW: Tensor) -> float:
    """The smallest float64 not below the exact l2 distance (to within 2^-126 of it)."""
    return round_up(root_up(squared_distance(point_CHW, image_CHW)))
