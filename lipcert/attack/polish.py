"""Sharpen a point that changes the answer: to the boundary along its segment, then along the boundary to the image.

Shape letters: B images, C H W image.
"""

import torch
from torch import Tensor

from lipcert.attack.target import Found, Target, column, lengths, nearest_plane, rival_gradients, verify
from lipcert.settings import Settings

_RIVALS = 9
_SECANTS = {torch.float32: 5, torch.float64: 9}  # network runs per crossing: enough on a piecewise linear margin


class Polished(Settings):
    """An attack whose search proposes points that are then polished and verified."""

    def search(self, target: Target) -> Tensor:
        """A point for every image, (B, C, H, W) float64: a changed one where it found one."""
        raise NotImplementedError(f"no search for {type(self).__name__}")

    def find(self, target: Target) -> Found:
        """The search's points, polished and verified."""
        return verify(target, polish(target, self.search(target)))


def polish(target: Target, points_BCHW: Tensor, steps: int = 20, exact_steps: int = 3) -> Tensor:
    """Points at which the answer still changes, no farther than the given ones, float64.

    A given point just short of the boundary is moved over it first; images for which that fails keep their point.

    Every step linearises the margin on the boundary, as SQP does: the image's projection onto that hyperplane (within
    the box) is the aim; a part of the way towards it is taken, kept if the answer changes closer to the image than
    before, and halved if not. The first `steps` run in float32, the last `exact_steps` in float64.
    """
    points_BCHW = points_BCHW.to(torch.float64)
    for dtype, count in ((torch.float32, steps), (torch.float64, exact_steps)):
        if not count:
            continue
        # Points end on the boundary, where the other arithmetic may see the other side: start a hair beyond it.
        beyond_BCHW = outward(target, points_BCHW.to(dtype), 4 * torch.finfo(dtype).eps)
        broken = (target.margins(beyond_BCHW) > 0).nonzero()[:, 0]
        if not len(broken):
            continue
        rest, given_BCHW = target.part(broken), points_BCHW[broken]
        walked_BCHW = _walk(rest, beyond_BCHW[broken], count).to(torch.float64)
        walked_BCHW = outward(rest, walked_BCHW, 4 * torch.finfo(dtype).eps)
        closer_B = lengths(walked_BCHW - rest.images_BCHW) < lengths(given_BCHW - rest.images_BCHW)
        kept_B = (closer_B & (rest.margins(walked_BCHW) > 0)) | ~(rest.margins(given_BCHW) > 0)
        points_BCHW[broken] = torch.where(column(kept_B), walked_BCHW, given_BCHW)
    return points_BCHW


def outward(target: Target, points_BCHW: Tensor, share: float) -> Tensor:
    """The points; those that do not change the answer moved away from their image until they do.

    By `share` of the distance, then four times as much, and so on up to half of it; left in place if nothing helps.
    """
    points_BCHW, left = points_BCHW.clone(), torch.arange(len(target), device=points_BCHW.device)
    moved_BCHW = points_BCHW
    while True:
        changed_B = target.part(left).margins(moved_BCHW) > 0
        points_BCHW[left[changed_B]] = moved_BCHW[changed_B]
        left = left[~changed_B]
        if not len(left) or share > 0.5:
            return points_BCHW
        images_BCHW = target.images_BCHW[left].to(points_BCHW.dtype)
        moved_BCHW = target.boxed(images_BCHW + (1 + share) * (points_BCHW[left] - images_BCHW))
        share *= 4


def _walk(target: Target, points_BCHW: Tensor, steps: int) -> Tensor:
    images_BCHW = target.images_BCHW.to(points_BCHW.dtype)
    points_BCHW = crossing(target, points_BCHW)
    share_B = points_BCHW.new_ones(len(points_BCHW))
    for step in range(steps):
        active = (share_B > 0.01).nonzero()[:, 0]
        if not len(active):
            break
        rest, image_BCHW, point_BCHW = target.part(active), images_BCHW[active], points_BCHW[active]
        away_BCHW = point_BCHW - image_BCHW
        # Once over all rivals: the boundary that a search ended on need not be the nearest.
        aim_BCHW = _aim(rest, image_BCHW, point_BCHW, rivals=_RIVALS if step == 0 else 1)
        trial_BCHW = torch.lerp(away_BCHW, aim_BCHW, column(share_B[active]))
        # As far out as the point it is to replace, less a hair, so that what is accepted is closer.
        stretch_B = lengths(away_BCHW) * (1 - 4 * torch.finfo(away_BCHW.dtype).eps) / lengths(trial_BCHW)
        trial_BCHW = rest.boxed(image_BCHW + column(stretch_B) * trial_BCHW)
        better_B = rest.margins(trial_BCHW) > 0
        if better_B.any():
            points_BCHW[active[better_B]] = crossing(rest.part(better_B), trial_BCHW[better_B])
        if step:
            share_B[active] = torch.where(better_B, (2 * share_B[active]).clamp(max=1), share_B[active] / 2)
    return points_BCHW


def _aim(target: Target, images_BCHW: Tensor, points_BCHW: Tensor, rivals: int) -> Tensor:
    """The step from the image to the nearest of the rivals' boundaries, linearised at the point."""
    away_BCHW = points_BCHW - images_BCHW
    margin_BR, gradient_BRCHW = rival_gradients(target, points_BCHW, rivals)
    offset_BR = (gradient_BRCHW * away_BCHW[:, None]).flatten(2).sum(2) - margin_BR
    offset_B, normal_BCHW = nearest_plane(offset_BR, gradient_BRCHW)
    return to_hyperplane(images_BCHW, normal_BCHW, offset_B, target.box)


def crossing(target: Target, points_BCHW: Tensor) -> Tensor:
    """Where the segment from the image to the point crosses the boundary, on the far side, (B, C, H, W).

    Regula falsi with the Illinois rule: at the returned point the margin is above 0 in the arithmetic of the points.
    """
    images_BCHW = target.images_BCHW.to(points_BCHW.dtype)
    away_BCHW = points_BCHW - images_BCHW
    low_B, high_B = torch.zeros_like(lengths(away_BCHW)), torch.ones_like(lengths(away_BCHW))
    at_low_B, at_high_B = target.margins(images_BCHW), target.margins(points_BCHW)
    last_B, shift_B = torch.zeros_like(low_B), torch.full_like(low_B, 8 * torch.finfo(low_B.dtype).eps)
    for _ in range(_SECANTS[points_BCHW.dtype]):
        secant_B = low_B + (high_B - low_B) * at_low_B / (at_low_B - at_high_B)
        # On a linear margin the secant hits the boundary, of which rounding may see the near side: aim beyond it by a
        # share of the bracket that grows as long as that happens.
        secant_B = secant_B + shift_B * (high_B - low_B)
        # Bisection where the secant leaves the bracket (a margin of 0 or NaN at an end).
        t_B = torch.where((secant_B > low_B) & (secant_B < high_B), secant_B, (low_B + high_B) / 2)
        at_B = target.margins(images_BCHW + column(t_B) * away_BCHW)
        over_B = at_B > 0
        shift_B = torch.where(over_B, shift_B, 32 * shift_B)
        side_B = torch.where(over_B, 1.0, -1.0).to(t_B)
        twice_B = side_B == last_B
        at_low_B = torch.where(over_B, torch.where(twice_B, at_low_B / 2, at_low_B), at_B)
        at_high_B = torch.where(over_B, at_B, torch.where(twice_B, at_high_B / 2, at_high_B))
        low_B, high_B, last_B = torch.where(over_B, low_B, t_B), torch.where(over_B, t_B, high_B), side_B
    return images_BCHW + column(high_B) * away_BCHW


def to_hyperplane(from_BCHW: Tensor, normal_BCHW: Tensor, offset_B: Tensor, box: bool) -> Tensor:
    """The shortest step d with normal . d = offset from every point, within [0, 1] if `box`, (B, C, H, W).

    Minimising |d| gives d = clamp(t normal, -from, 1 - from) for one t (arXiv 1907.02044, section 2): normal . d grows
    with t piecewise linearly, with a bend where a pixel reaches its end, so t is read off the sorted bends. Where the
    box does not reach the hyperplane, the step goes to the farthest corner.
    """
    normal_BF, start_BF = normal_BCHW.flatten(1), from_BCHW.flatten(1)
    # Scaled to length 1, so that the squares of a small gradient do not underflow.
    length_B1 = normal_BF.norm(dim=1, keepdim=True).clamp(min=1e-30)
    normal_BF, offset_B1 = normal_BF / length_B1, offset_B[:, None] / length_B1
    if not box:
        return (offset_B1 * normal_BF).reshape(from_BCHW.shape)
    normal_BF = normal_BF * torch.where(offset_B1 < 0, -1.0, 1.0).to(normal_BF)
    squares_BF, need_B1 = normal_BF.square(), offset_B1.abs()
    room_BF = torch.where(normal_BF > 0, 1 - start_BF, start_BF)
    bends_BF, order_BF = (room_BF / normal_BF.abs().clamp(min=1e-30)).sort(dim=1)
    sorted_BF = squares_BF.gather(1, order_BF)
    # Moving all pixels up to bend f, those before it are stuck at their ends.
    stuck_BF = (sorted_BF * bends_BF).cumsum(1)
    free_BF = sorted_BF.flip(1).cumsum(1).flip(1) - sorted_BF
    reached_BF = stuck_BF + bends_BF * free_BF
    first_B1 = (reached_BF < need_B1).sum(1, keepdim=True).clamp(max=bends_BF.shape[1] - 1)
    before_B1 = (first_B1 - 1).clamp(min=0)
    stuck_B1 = torch.where(first_B1 > 0, stuck_BF.gather(1, before_B1), 0.0)
    slope_B1 = free_BF.gather(1, first_B1) + sorted_BF.gather(1, first_B1)
    t_B1 = ((need_B1 - stuck_B1) / slope_B1.clamp(min=1e-30)).minimum(bends_BF[:, -1:])
    step_BF = torch.minimum(t_B1 * normal_BF.abs(), room_BF) * normal_BF.sign()
    return step_BF.reshape(from_BCHW.shape)
