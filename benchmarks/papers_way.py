"""The training step as the papers' public codes do it, written anew as a baseline; nothing of lipcert's own layers.

Facts of the code published with arXiv 2310.02513, its eight wide dense layers aside: kernels in float32 and NCHW, run
eagerly; skip, branch and centring as separate passes over the image; MinMax by a mask, two `where`s and a `cat`; ten
power-method rounds a step, recorded by autograd and cut off behind, all blocks in one grouped convolution; the neck's
weights orthogonalised on their rows by autograd through a Cholesky factor, whatever their shape; EMMA; clipping; NAdam
inside Lookahead. Network: stem 5x5/2, `depth` linear residual blocks, an orthogonal 4x4/4 convolution, an orthogonal
dense layer to `features`, MinMax, a head of unit rows.

Shape letters: B batch, C channels, H height, W width, F features, K classes, R rows, O outputs, I inputs.
"""

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.models import Network

_RIDGE, _EMMA_FLOOR, _TINY, _MOMENTUM = 1e-3, 0.01, 1e-8, 0.1

# Shares of a step of L6 W64 at batch 256, measured once on the public code itself (without its dense layers, patched
# to run on a CPU; two threads of a processor with AVX-512): what this baseline must agree with.
PHASES = {"lipschitz": 0.015, "forward and loss": 0.28, "backward": 0.70}
OPERATIONS = {
    "orthogonalisation": 0.48,
    "convolution gradients": 0.20,
    "convolution": 0.085,
    "passes over images": 0.22,
}
# torch's names of what these do; sums of gradients where MinMax forks count as passes, like skips and centring. What
# products the dense layer itself takes cannot be told from those of its orthogonalisation, there as here.
_BUCKETS = {
    "orthogonalisation": "mm linalg_solve_triangular linalg_cholesky linalg_cholesky_ex tril triu",
    "convolution gradients": "convolution_backward mkldnn_convolution_backward",
    "convolution": "mkldnn_convolution _convolution convolution conv2d",
    "passes over images": "where cat gt add add_ sub mean sum div neg",
}


def minmax(x: Tensor) -> Tensor:
    """Sorts channel c against channel c + C/2, by copying."""
    first, second = x.split(x.shape[1] // 2, dim=1)
    larger = first > second
    return torch.cat([torch.where(larger, first, second), torch.where(larger, second, first)], dim=1)


def orthogonalised(matrix_RC: Tensor, smaller_side: bool) -> Tensor:
    """chol(M M^T + d I)^-1 M by autograd. The papers' codes take rows always; `smaller_side` does as lipcert."""
    if smaller_side and matrix_RC.shape[0] > matrix_RC.shape[1]:
        return orthogonalised(matrix_RC.mT, False).mT
    gram_RR = matrix_RC @ matrix_RC.mT
    ridge = _RIDGE * gram_RR.detach().diagonal().mean()
    factor_RR = torch.linalg.cholesky(gram_RR + ridge * torch.eye(len(gram_RR)).to(gram_RR))
    return torch.linalg.solve_triangular(factor_RR, matrix_RC, upper=False)


def power_method(kernel: Tensor, iterate: Tensor, steps: int, stride: int, padding: int, groups: int = 1) -> Tensor:
    """Norms of `groups` convolutions, (groups,), from a vector that is kept; rounds under autograd, cut off behind."""
    x, size, side = iterate.clone(), iterate.shape[-1], kernel.shape[-1]
    rest = size - ((size + 2 * padding - side) // stride * stride - 2 * padding + side)

    def unit(x: Tensor) -> Tensor:
        return F.normalize(x.reshape(groups, -1), dim=1).reshape(x.shape)

    for _ in range(steps):
        image = F.conv2d(x, kernel, None, stride, padding, groups=groups)
        x = unit(F.conv_transpose2d(image, kernel, None, stride, padding, rest, groups=groups))
    x = x.detach()
    iterate.copy_(x)
    return F.conv2d(x, kernel, None, stride, padding, groups=groups).reshape(groups, -1).norm(dim=1)


class Block(nn.Module):
    """y = MinMax(x + o - mean(o) + b), o = D^(-1/2) gamma V * x, mean over batch and image."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.scale = 1 / math.sqrt(depth)
        self.branch_OIhw = nn.Parameter(torch.randn(width, width, 3, 3) / (9 * width))
        self.gamma_O = nn.Parameter(torch.ones(width))
        self.bias_O = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean_O", torch.zeros(width))

    def kernel(self) -> Tensor:
        """Of the branch, (O, I, 3, 3)."""
        return self.scale * self.gamma_O[:, None, None, None] * self.branch_OIhw

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = F.conv2d(x_BCHW, self.kernel(), padding=1)
        mean_O = out_BCHW.mean((0, 2, 3))
        with torch.no_grad():
            self.mean_O += _MOMENTUM * (mean_O - self.mean_O)
        shift_O = self.bias_O - mean_O
        return minmax(x_BCHW + out_BCHW + shift_O[:, None, None])


class PapersNet(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] to logits; `estimate` is the Lipschitz constant below the head.

    Args:
        depth, width, features, classes: sizes. size: side of the images.
        smaller_side: orthogonalise as lipcert does where a weight has more rows than columns (other mathematics).
    """

    def __init__(self, depth: int, width: int, features: int, classes: int = 10, size: int = 32, smaller_side=False):
        super().__init__()
        self.smaller_side, inner = smaller_side, (size // 8) ** 2 * width
        self.stem = nn.Conv2d(3, width, 5, 2, 2)
        self.blocks = nn.ModuleList(Block(depth, width) for _ in range(depth))
        self.patch_OIhw = nn.Parameter(torch.randn(width, width, 4, 4) / (4 * math.sqrt(width)))
        self.dense_OI = nn.Parameter(torch.randn(features, inner) / math.sqrt(inner))
        self.bias_O = nn.Parameter(torch.zeros(features))
        self.head = nn.Linear(features, classes)
        self.register_buffer("stem_iterate", torch.ones(1, 3, size, size))
        self.register_buffer("iterate", torch.ones(1, depth * width, size // 2, size // 2))
        identity_OIhw = torch.zeros(width, width, 3, 3)
        identity_OIhw[:, :, 1, 1] = torch.eye(width)
        self.register_buffer("identity_OIhw", identity_OIhw)

    def estimate(self, steps: int) -> Tensor:
        """Product of the norms that are not 1 by construction."""
        kernel = torch.cat([self.identity_OIhw + block.kernel() for block in self.blocks])
        blocks = power_method(kernel, self.iterate, steps, 1, 1, groups=len(self.blocks))
        return power_method(self.stem.weight, self.stem_iterate, steps, 2, 2)[0] * blocks.prod()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = minmax(self.stem(images_BCHW - 0.5))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        patch_OI = orthogonalised(self.patch_OIhw.flatten(1), self.smaller_side)
        x_BF = F.conv2d(x_BCHW, patch_OI.view_as(self.patch_OIhw), stride=4).flatten(1)
        x_BF = minmax(F.linear(x_BF, orthogonalised(self.dense_OI, self.smaller_side), self.bias_O))
        return F.linear(x_BF, F.normalize(self.head.weight), self.head.bias)

    def margins(self, estimate: Tensor) -> Tensor:
        """K_ij = L |w_i - w_j|, (K, K)."""
        rows_KF = F.normalize(self.head.weight)
        same_KK = torch.eye(len(rows_KF), dtype=rows_KF.dtype, device=rows_KF.device)
        squared_KK = (rows_KF[:, None] - rows_KF).square().sum(-1)
        return estimate * (squared_KK + same_KK).sqrt() * (1 - same_KK)  # a root has no slope at 0, on the diagonal

    def pairs(self, network: Network) -> list[tuple[list[Tensor], Tensor]]:
        """Own tensors, one a block where lipcert stacks them, beside those of its network of the same shape."""
        other = dict(network.named_parameters()) | dict(network.named_buffers())
        single = {
            "stem.conv.weight": self.stem.weight, "stem.conv.bias": self.stem.bias,
            "neck_conv.raw_OIhw": self.patch_OIhw, "neck_dense.raw_OI": self.dense_OI, "neck_dense.bias": self.bias_O,
            "stem.iterate": self.stem_iterate, "stack.iterate": self.iterate,
        }  # fmt: skip
        found = [([tensor], other[f"backbone.{name}"]) for name, tensor in single.items()]
        found += [([tensor], other[f"head.linear.{name}"]) for name, tensor in self.head.named_parameters()]
        for name, own in (("branch_LOIhw", "branch_OIhw"), ("gamma_LO", "gamma_O"), ("bias_LO", "bias_O"),
                          ("mean_LO", "mean_O")):  # fmt: skip
            found.append(([getattr(block, own) for block in self.blocks], other[f"backbone.stack.{name}"]))
        return found

    @torch.no_grad()
    def adopt(self, network: Network) -> "PapersNet":
        """Take over parameters, running means and power-method vectors."""
        for own, other in self.pairs(network):
            for tensor, value in zip(own, other.reshape(len(own), *own[0].shape), strict=True):
                tensor.copy_(value)
        return self


def emma(logits_BK: Tensor, labels_B: Tensor, margins_KK: Tensor, radius: float) -> Tensor:
    """Cross-entropy of z_j - z_y + rho_j radius K_yj, rho held fixed."""
    gap_BK = logits_BK - logits_BK.gather(1, labels_B[:, None])
    push_BK = radius * margins_KK[labels_B]
    share_BK = (-gap_BK / push_BK.clamp(min=_TINY)).clamp(_EMMA_FLOOR, 1).detach()
    return F.cross_entropy(gap_BK + share_BK * push_BK, labels_B)


class PapersStep:
    """One training step on images that are ready: `step(images_BCHW, labels_B, radius)` returns the loss.

    Attributes:
        seconds: by phase, of all steps so far. first: loss, Lipschitz estimate and gradient norm of the first step.
    """

    def __init__(
        self, net: PapersNet, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), power_steps: int = 10,
        lookahead: bool = True, clip: float = 3.0,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self.net, self.power_steps, self.clip, self.clock = net, power_steps, clip, clock
        self.optimizer = torch.optim.NAdam(net.parameters(), lr=lr, betas=betas)
        self.slow = [p.detach().clone() for p in net.parameters()] if lookahead else []
        self.count = 0
        self.seconds: dict[str, float] = {}
        self.first: tuple[float, float, float] | None = None

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor, radius: float) -> Tensor:
        estimate = self._timed("lipschitz", lambda: self.net.estimate(self.power_steps))
        loss = self._timed(
            "forward and loss", lambda: emma(self.net(images_BCHW), labels_B, self.net.margins(estimate), radius)
        )
        self._timed("backward", loss.backward)
        norm = self._timed("clip", lambda: nn.utils.clip_grad_norm_(self.net.parameters(), self.clip))
        self._timed("optimiser", self._update)
        self.first = self.first or tuple(float(value.detach()) for value in (loss, estimate, norm))
        return loss.detach()

    def _timed(self, phase: str, work: Callable):
        start = self.clock()
        result = work()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self.clock() - start
        return result

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        if self.slow and self.count % 6 == 0:
            with torch.no_grad():
                for slow, fast in zip(self.slow, self.net.parameters(), strict=True):
                    slow.lerp_(fast, 0.5)
                    fast.copy_(slow)


def phase_shares(step: PapersStep, work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Share of each phase in `repeats` steps."""
    step.seconds.clear()
    for _ in range(repeats):
        work()
    total = sum(step.seconds.values())
    return {phase: seconds / total for phase, seconds in step.seconds.items()}


def operation_shares(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Share of each group of `OPERATIONS`, by the profiler; "other" is the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(repeats):
            work()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(spent.values())
    shares = {group: sum(spent.get(name, 0) for name in names.split()) / total for group, names in _BUCKETS.items()}
    return shares | {"other": 1 - sum(shares.values())}


def disagreements(phases: dict[str, float], operations: dict[str, float], within: float = 1 / 3) -> list[str]:
    """Shares above 5 % that differ from the public code's by more than `within` of it, in words; none: they agree."""
    found = []
    for name, expected in (PHASES | OPERATIONS).items():
        share = (phases | operations)[name]
        if max(share, expected) > 0.05 and abs(share - expected) > within * expected:
            found.append(f"{name} {share:.1%} of the step, {expected:.1%} in the public code")
    return found
