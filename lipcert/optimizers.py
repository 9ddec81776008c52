"""The optimisers of a run: those of torch, and Muon for the matrices of a network.

Adam moves every weight by about the learning rate, whatever the others do. A Lipschitz network is bound by the norms of
its maps, and there the natural step is one that moves all singular directions of a map alike: the momentum's polar
factor (K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024).

Shape letters: L layers of a stack, O outputs, I inputs, R rows, C columns of a matrix.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lipcert.config import TrainConfig
from lipcert.models import Network

# Odd quintic whose repetition sends (0, 1] near 1; steep at 0 rather than exact at 1 (Jordan et al.).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_SIZE = 0.2  # root mean square of an update's entries, as Adam's are in practice: so both share a learning rate


def make_optimizer(config: TrainConfig, network: Network) -> "torch.optim.Optimizer | Joined":
    """The optimiser that a run's settings name. Each of its groups has a `factor`: what it multiplies the run's
    learning rate by.

    Raises:
        lipcert.run.TrainingError: Lookahead without the package it comes from.
    """
    scale = getattr(network.head, "scale", None)
    groups = [{"params": [p for p in network.parameters() if p is not scale], "factor": 1.0}]
    groups += [] if scale is None else [{"params": [scale], "factor": config.scale_lr}]
    common = {
        "lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }  # fmt: skip
    if config.optimizer == "muon":
        matrices, others = divide(network)
        groups = [{"params": matrices, "factor": 1.0}]
        return Joined(
            Muon(groups, config.lr, config.momentum, config.weight_decay),
            torch.optim.AdamW([{"params": others, "factor": 1.0}], fused=True, **common),
        )
    if config.optimizer == "nadam":
        optimizer = torch.optim.NAdam(groups, decoupled_weight_decay=True, **common)
    else:
        # Without weight decay Adam and AdamW are the same method.
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        optimizer = kind(groups, fused=True, **common)
    if config.lookahead:
        try:
            from pytorch_optimizer import Lookahead
        except ImportError:
            from lipcert.run import TrainingError  # which imports this module

            raise TrainingError(
                "lookahead=True needs the package pytorch-optimizer: pip install 'lipcert[train]'"
            ) from None
        optimizer = Lookahead(optimizer, k=6, alpha=0.5)
    return optimizer


def divide(network: Network) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the backbone, and what is left: scales and biases of channels, and the head, whose rows are
    normalised and belong to classes.

    Names decide, as they carry the shape: a stack of biases (L, O) and a matrix (O, I) have two dimensions both.
    """
    named = list(network.backbone.named_parameters())
    matrices = [p for name, p in named if p.ndim > 1 and name.endswith(("weight", "OI", "OIhw", "FF"))]
    taken = {id(p) for p in matrices}
    return matrices, [p for p in network.parameters() if id(p) not in taken]


def polar_factor(matrix_RC: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T, by matrix products alone.

    After five rounds the singular values that were above a hundredth of the Frobenius norm lie in [0.6, 1.3]; the
    singular vectors stay. A matrix of zeros stays one.

    A round is X <- q(A) X with A = X X^T and q(A) = a + b A + c A^2, so that the next A is q(A) A q(A): all rounds
    happen in the small Gram matrix, and only the product of the q meets the wide matrix, once.

    Args:
        matrix_RC: (..., R, C), a batch of matrices, float32 or float64.
    """
    if matrix_RC.shape[-2] > matrix_RC.shape[-1]:
        return polar_factor(matrix_RC.mT, rounds).mT
    a, b, c = _QUINTIC
    length = torch.linalg.matrix_norm(matrix_RC, keepdim=True)
    matrix_RC = matrix_RC / torch.where(length > 0, length, 1.0)
    gram_RR, product_RR = matrix_RC @ matrix_RC.mT, None
    for _ in range(rounds):
        q_RR = b * gram_RR + c * gram_RR @ gram_RR
        q_RR.diagonal(dim1=-2, dim2=-1).add_(a)
        product_RR = q_RR if product_RR is None else q_RR @ product_RR
        gram_RR = q_RR @ gram_RR @ q_RR
    return product_RR @ matrix_RC


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose polar factor is the step, for matrices, kernels and stacks of either.

    A parameter (O, I, ...) is the matrix (O, I...), one (L, O, I, h, w) or (L, R, C) a batch of L matrices. The step is
    lr 0.2 sqrt(max(R, C)) times the polar factor, so that its entries are of Adam's size.

    Args:
        params: parameters or groups of them, each with at least two dimensions.
        lr: learning rate. momentum: share of the average that is kept, in [0, 1).
        weight_decay: decoupled, times lr.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon on a parameter of shape {tuple(parameter.shape)}: must have two dimensions")

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(state["average"], group["momentum"])
        step_RC = polar_factor(as_matrices(ahead))
        scale = _SIZE * max(step_RC.shape[-2:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step_RC.reshape(parameter.shape), alpha=-group["lr"] * scale)


def as_matrices(parameter: Tensor) -> Tensor:
    """(O, I), (O, I h w) or, of a stack, (L, R, C)."""
    stacked = parameter.ndim in (3, 5)
    return parameter.reshape(*parameter.shape[: 1 + stacked], -1)


class Joined:
    """Several optimisers as one: the part of `torch.optim.Optimizer` that a run uses."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, of_part in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(of_part)
