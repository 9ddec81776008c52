"""Inputs at which a small block stretches most: lower bounds on Lipschitz constants, found and not proven.

Every number is the largest singular value of a Jacobian that automatic differentiation gives in float64.

Shape letters: B inputs, N tokens, D features of a token, S = N D, R restarts, P pairs of features that MinMax sorts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.attention_blocks import Branch, TwoLayers, matrix_of, norm

Function = Callable[[Tensor], Tensor]


def jacobians(function: Function, x_BND: Tensor) -> Tensor:
    """The Jacobian at each input, (B, S, S)."""
    x_BND = x_BND.detach().requires_grad_()
    sums_S = function(x_BND).flatten(1).sum(0)
    rows = [torch.autograd.grad(output, x_BND, retain_graph=True)[0].flatten(1) for output in sums_S]
    return torch.stack(rows, dim=1)


def stretches(branch: Branch, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the Jacobians of the branch and of the block x + branch(x), both (B,)."""
    jacobian_BSS = jacobians(branch, x_BND)
    eye_SS = torch.eye(jacobian_BSS.shape[-1], dtype=jacobian_BSS.dtype)
    return norm(jacobian_BSS), norm(jacobian_BSS + eye_SS)


def in_ball(x_BND: Tensor, radius: float | None) -> Tensor:
    """Tokens longer than `radius` shortened to it; None: the whole space."""
    if radius is None:
        return x_BND
    return x_BND * (radius / x_BND.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)


def climb(
    branch: Function, starts_BND: Tensor, radius: float | None, steps: tuple[int, int] = (50, 150), keep: int = 6
) -> Tensor:
    """Points reached by ascent on the norm of the Jacobian, first of the branch, then of the block, (2 keep, N, D).

    All starts climb for steps[0], the best `keep` of each kind go on for steps[1].
    """
    x_BND = in_ball(starts_BND.repeat(2, 1, 1), radius)
    skip_B11 = torch.arange(2).repeat_interleave(len(starts_BND)).double()[:, None, None]
    x_BND, u_BND, stretch_B = _ascend(branch, skip_B11, x_BND, _unit(torch.randn_like(x_BND)), radius, steps[0])
    top = torch.cat([half.topk(keep).indices + i * len(starts_BND) for i, half in enumerate(stretch_B.chunk(2))])
    return _ascend(branch, skip_B11[top], x_BND[top], u_BND[top], radius, steps[1])[0]


def _ascend(branch: Function, skip_B11: Tensor, x_BND: Tensor, u_BND: Tensor, radius: float | None, steps: int):
    """Points, left directions and stretches after some steps.

    One evaluation of |J(x)^T u| and its gradient gives both the direction uphill in x and the next round of the power
    method, J J^T u. A step in x is kept where the stretch grew, and doubled, else halved; u improves at every step.
    """
    for _ in range(10):
        best_B, uphill_BND, u_BND = _stretch(branch, skip_B11, x_BND, u_BND)
    step_B = 0.3 * x_BND.flatten(1).norm(dim=1)
    for _ in range(steps):
        trial_BND = in_ball(x_BND + step_B[:, None, None] * uphill_BND, radius)
        both = (torch.cat([x_BND, trial_BND]), u_BND.repeat(2, 1, 1))
        value_2, uphill_2, u_2 = (t.chunk(2) for t in _stretch(branch, skip_B11.repeat(2, 1, 1), *both))
        better_B = value_2[1] > torch.maximum(value_2[0], best_B)
        moved = better_B[:, None, None]
        x_BND = torch.where(moved, trial_BND, x_BND)
        u_BND, uphill_BND = torch.where(moved, u_2[1], u_2[0]), torch.where(moved, uphill_2[1], uphill_2[0])
        best_B = torch.where(better_B, value_2[1], value_2[0])
        step_B = torch.where(better_B, 2 * step_B, step_B / 2)
    return x_BND, u_BND, best_B


def _stretch(branch: Function, skip_B11: Tensor, x_BND: Tensor, u_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|J^T u| of branch(x) + skip x, (B,), the unit direction in x that raises it, and J J^T u made a unit vector."""
    x_BND, u_BND = x_BND.detach().requires_grad_(), u_BND.detach().requires_grad_()
    (pulled_BND,) = torch.autograd.grad((branch(x_BND) * u_BND).sum(), x_BND, create_graph=True)
    stretch_B = (pulled_BND + skip_B11 * u_BND).flatten(1).norm(dim=1)
    uphill_BND, power_BND = torch.autograd.grad(stretch_B.sum(), (x_BND, u_BND))
    return stretch_B.detach(), _unit(uphill_BND), _unit(power_BND)


def _unit(v_BND: Tensor) -> Tensor:
    return v_BND / v_BND.flatten(1).norm(dim=1).clamp(min=1e-300)[:, None, None]


@torch.no_grad()
def sorted_best(branch: TwoLayers, skip: bool, restarts: int) -> Tensor:
    """Inputs whose order of pairs makes the Jacobian of a two-layer branch (or of its block) large, (R, N, D).

    The map is linear wherever MinMax keeps its order, and if the first layer is invertible any order occurs. For fixed
    singular vectors the best order is found pair by pair, for a fixed order the singular vectors: both in turn, from
    random orders, until nothing changes. Found, not proven: the maximum over 2^P orders may be larger.
    """
    tokens, features = branch.shape
    first_SS, second_SS = matrix_of(branch.first, branch.shape), matrix_of(branch.second, branch.shape)
    swap_RNP = torch.rand(restarts, tokens, features // 2) < 0.5
    for _ in range(30):
        jacobian_RSS = second_SS @ _sort(first_SS.reshape(tokens, features, -1), swap_RNP).flatten(1, 2)
        if skip:
            jacobian_RSS = jacobian_RSS + torch.eye(len(first_SS), dtype=first_SS.dtype)
        left_RSS, _, right_RSS = torch.linalg.svd(jacobian_RSS)
        inner_RND = (right_RSS[:, 0] @ first_SS.T).reshape(restarts, tokens, features)
        outer_RND = (left_RSS[:, :, 0] @ second_SS).reshape(restarts, tokens, features)
        (low, high), (low_out, high_out) = inner_RND.chunk(2, -1), outer_RND.chunk(2, -1)
        better_RNP = low_out * high + high_out * low > low_out * low + high_out * high
        if (better_RNP == swap_RNP).all():
            break
        swap_RNP = better_RNP
    hidden_RND = torch.cat([torch.where(swap_RNP, -1.0, 1.0), torch.where(swap_RNP, 1.0, -1.0)], -1).double()
    offset_ND = branch.first(torch.zeros(1, tokens, features, dtype=torch.float64))
    return torch.linalg.solve(first_SS, (hidden_RND - offset_ND).flatten(1).T).T.reshape(hidden_RND.shape)


def _sort(rows_NDS: Tensor, swap_RNP: Tensor) -> Tensor:
    low, high = rows_NDS.chunk(2, dim=1)
    chosen = swap_RNP[..., None]
    return torch.cat([torch.where(chosen, high, low), torch.where(chosen, low, high)], dim=2)
