"""A test fixture, not a certifier: the margin formula in plain float64, for mutants to be one-line changes of.

Its norms are SVDs with a little slack and its rounding is not counted, so it proves nothing. It is right up to
rounding, and passes the checks that do not concern rounding; each of its parts is a field that a mutant replaces.

Shape letters: B images, K classes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.bench.exact import in_dtype, operator_matrix, svd_norm
from lipcert.layers import MinMax, Residual

Shape = tuple[int, ...]
Norm = Callable[[nn.Module, Shape], float]
SLACK = 2.0**-38  # above what the SVD is off by, below what razor edges show
_STEADY = (MinMax, nn.Flatten, nn.ReLU, nn.Identity)


def exact_norm(layer: nn.Module, shape: Shape) -> float:
    """The SVD of the operator written out, with slack."""
    matrix = operator_matrix(layer, shape)
    if not math.isfinite(float(matrix.sum())):
        raise ValueError("weights that are not finite")
    return svd_norm(matrix) * (1 + SLACK)


def refuse(layer: nn.Module, shape: Shape) -> float:
    raise TypeError(f"no bound for {type(layer).__name__}")


def is_steady(layer: nn.Module) -> bool:
    """Known to have the constant 1."""
    return type(layer) in _STEADY and (type(layer) is not nn.Flatten or (layer.start_dim, layer.end_dim) == (1, -1))


def is_weighted(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Conv2d)


def layers_of(model: nn.Sequential) -> list[nn.Module]:
    return list(model._modules.values())


def no_training(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError("training mode")


def no_hooks(model: nn.Module) -> None:
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise TypeError("hooks")


def no_replaced_forward(model: nn.Module) -> None:
    if any("forward" in vars(module) for module in model.modules()):
        raise TypeError("replaced forward")


def plain_sequential(model: nn.Module) -> None:
    if type(model) is not nn.Sequential:
        raise TypeError(f"no chain: {type(model).__name__}")


def admit_images(images_BCHW: Tensor) -> Tensor:
    if images_BCHW.ndim != 4 or not len(images_BCHW) or images_BCHW.is_complex():
        raise ValueError(f"images of shape {tuple(images_BCHW.shape)}")
    return images_BCHW


def run(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits (B, K) in float64."""
    return in_dtype(model, torch.float64)(images_BCHW.double())


def row_distances(weight_KF: Tensor) -> Tensor:
    """|w_i - w_j|, (K, K)."""
    return (weight_KF[:, None] - weight_KF[None]).norm(dim=2)


def only_own(logits_BK: Tensor, predicted_B: Tensor) -> Tensor:
    """Which classes are no rivals, (B, K): the predicted one."""
    return nn.functional.one_hot(predicted_B, logits_BK.shape[1]).bool()


def all_finite(logits_BK: Tensor, slopes_BK: Tensor) -> Tensor:
    return logits_BK.isfinite().all(1) & slopes_BK.isfinite().all(1)


def step_down(radius_B: Tensor) -> Tensor:
    return torch.nextafter(radius_B, torch.full_like(radius_B, -math.inf))


def triangle(norms: list[float], depth: int) -> float:
    """Of a residual block, from the norms along its branch; `depth` counts the blocks around it."""
    return 1 + math.prod(norms)


@dataclass(frozen=True)
class Reference:
    """The parts of a margin certifier: min over rivals of (z_p - z_j) / (L |w_p - w_j|) (arXiv 2102.08452, section 3).

    Shapes: logits, margins, slopes and quotients (B, K). `admit`: checks of the model, each of which raises.
    """

    norm: Norm = exact_norm
    unknown: Norm = refuse
    steady: Callable[[nn.Module], bool] = is_steady
    weighted: Callable[[nn.Module], bool] = is_weighted
    layers: Callable[[nn.Module], list[nn.Module]] = layers_of
    admit: tuple[Callable[[nn.Module], None], ...] = (plain_sequential, no_training, no_hooks, no_replaced_forward)
    images: Callable[[Tensor], Tensor] = admit_images
    product: Callable[[list[float]], float] = math.prod
    residual: Callable[[list[float], int], float] = triangle
    run: Callable[[nn.Module, Tensor], Tensor] = run
    distances: Callable[[Tensor], Tensor] = row_distances
    no_rivals: Callable[[Tensor, Tensor], Tensor] = only_own
    margins: Callable[[Tensor, Tensor], Tensor] = torch.sub
    reduce: Callable[[Tensor, Tensor], Tensor] = lambda quotients_BK, logits_BK: quotients_BK.amin(1)
    sound: Callable[[Tensor, Tensor], Tensor] = all_finite
    finish: Callable[[Tensor], Tensor] = step_down
    answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda predicted_B, radius_B: (predicted_B, radius_B)
    seen: Callable[[nn.Module, Shape, Shape], Shape] = lambda layer, before, after: before

    def bound(self, layer: nn.Module, shape: Shape) -> float:
        """The norm of a plain layer; raises for others, as for hooks and replaced forwards."""
        for check in self.admit[2:]:
            check(layer)
        if not self.weighted(layer):
            raise TypeError(f"no bound for {type(layer).__name__}")
        return self.norm(layer, shape)

    @torch.no_grad()
    def certify(self, model: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction_B, radius_B), -1 and 0 where nothing is promised."""
        for check in self.admit:
            check(model)
        images_BCHW = self.images(images_BCHW)
        *backbone, head = self.layers(model)
        if not self.weighted(head) or isinstance(head, nn.Conv2d):
            raise TypeError("no linear head")
        pair = torch.zeros(2, *images_BCHW.shape[1:], dtype=torch.float64)
        norms, reaching = self._norms(backbone, pair)
        if reaching.shape != (2, head.in_features):
            raise ValueError(f"{tuple(reaching.shape)} reaches a head for {head.in_features} features")
        slope = self.product(norms)
        logits_BK = self.run(model, images_BCHW)
        top_B1, predicted_B1 = logits_BK.max(1, keepdim=True)
        predicted_B = predicted_B1[:, 0]
        slopes_BK = (slope * self.distances(head.weight.double()))[predicted_B]
        no_rival_BK = self.no_rivals(logits_BK, predicted_B)
        quotients_BK = (self.margins(top_B1, logits_BK) / slopes_BK).masked_fill(no_rival_BK, math.inf)
        radius_B = self.finish(self.reduce(quotients_BK, logits_BK))
        sound_B = self.sound(logits_BK, slopes_BK) & (radius_B > 0)
        return self.answer(torch.where(sound_B, predicted_B, -1), torch.where(sound_B, radius_B, 0.0))

    def _norms(self, layers: list[nn.Module], x: Tensor, depth: int = 0) -> tuple[list[float], Tensor]:
        """Norms of layers one after another, and what they make of x."""
        norms = []
        for layer in layers:
            before, x, started = x.shape[1:], in_dtype(layer, torch.float64)(x), x
            if type(layer) is Residual:
                plain_sequential(layer.branch)
                inside, out = self._norms(self.layers(layer.branch), started, depth + 1)
                if out.shape != started.shape:
                    raise ValueError(f"a branch from {tuple(started.shape)} to {tuple(out.shape)}")
                norms.append(self.residual(inside, depth))
            elif self.weighted(layer):
                norms.append(self.norm(layer, self.seen(layer, tuple(before), tuple(x.shape[1:]))))
            elif not self.steady(layer):
                norms.append(self.unknown(layer, tuple(before)))
        return norms, x


REFERENCE = Reference()
