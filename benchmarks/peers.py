"""Installed peers where they do the same work: `python -m benchmarks.peers`, about 3 minutes on one core.

deel-torchlip and orthogonium (`pip install 'lipcert[peers]'`) beside lipcert's layers of equal shape, forward and
backward at batch 256 in one process, in turns; what is not installed is left out and named. Writes the check record
`peers`. Equal work means a layer of norm at most 1: dense, and convolutions whose patches do not overlap. A 3x3 block
differs by design: lipcert's has a free norm, estimated at every step, the peers' are held to 1 by their own means.

Raw weights are where each library starts them, moved by a tenth of their size: training moves them, and iterations that
stop when they have converged must not find their work done. What the norms really are is proven by `norm_bound`.
With one thread, times are processor time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.harness import Action, ratio, take_turns
from lipcert.blocks import LinearResidualStack
from lipcert.bounds import norm_bound
from lipcert.orthogonal import OrthogonalDense, OrthogonalPatchConv
from lipcert.report.checks import measuring

BATCH, WIDTH, SIZE = 256, 64, 16
DENSE, PATCH, BLOCK = "dense 1024 -> 2048", "4x4/4 patches", "3x3 block"
SHAPES = {DENSE: (BATCH, 16 * WIDTH), PATCH: (BATCH, WIDTH, SIZE, SIZE), BLOCK: (BATCH, WIDTH, SIZE, SIZE)}
TARGET = "forward and backward of layers of equal shape at least as fast as every installed peer"
_POWER_STEPS = 3


def _lipcert() -> dict[str, nn.Module]:
    return {
        DENSE: OrthogonalDense(16 * WIDTH, 32 * WIDTH),
        PATCH: OrthogonalPatchConv(WIDTH, WIDTH, 4),
        BLOCK: LinearResidualStack(1, WIDTH, SIZE),
    }


def _torchlip() -> dict[str, nn.Module]:
    from deel import torchlip

    block = torchlip.SpectralConv2d(WIDTH, WIDTH, (3, 3), padding=1)
    return {
        DENSE: torchlip.SpectralLinear(16 * WIDTH, 32 * WIDTH),
        PATCH: torchlip.SpectralConv2d(WIDTH, WIDTH, (4, 4), stride=4),
        BLOCK: nn.Sequential(block, torchlip.GroupSort2()),
    }


def _orthogonium() -> dict[str, nn.Module]:
    from orthogonium.layers import AdaptiveOrthoConv2d, MaxMin, OrthoLinear

    block = AdaptiveOrthoConv2d(WIDTH, WIDTH, 3, padding="same", padding_mode="zeros")
    return {
        DENSE: OrthoLinear(16 * WIDTH, 32 * WIDTH),
        PATCH: AdaptiveOrthoConv2d(WIDTH, WIDTH, 4, stride=4, padding=0),
        BLOCK: nn.Sequential(block, MaxMin()),
    }


def _orthogonium_cholesky() -> dict[str, nn.Module]:
    from orthogonium.layers import OrthoLinear
    from orthogonium.reparametrizers import CHOLESKY_ORTHO_PARAMS

    return {DENSE: OrthoLinear(16 * WIDTH, 32 * WIDTH, ortho_params=CHOLESKY_ORTHO_PARAMS)}


LIBRARIES: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "lipcert": _lipcert,
    "deel-torchlip": _torchlip,
    "orthogonium": _orthogonium,
    "orthogonium, Cholesky": _orthogonium_cholesky,
}


def layers() -> tuple[dict[tuple[str, str], nn.Module], list[str]]:
    """Layers by kind and library, moved away from their starts; and what is not installed, in words."""
    found, missing = {}, []
    for library, make in LIBRARIES.items():
        torch.manual_seed(0)
        try:
            made = make()
        except ImportError as error:
            missing.append(f"{library} ({error})")
            continue
        for kind, layer in made.items():
            with torch.no_grad():
                for parameter in (p for p in layer.parameters() if p.requires_grad):
                    parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
            found[kind, library] = layer.train()
    return found, missing


def step(layer: nn.Module, kind: str) -> Action:
    """Forward and backward pass, input gradient included."""
    x = torch.randn(SHAPES[kind]).requires_grad_()
    if x.ndim == 4:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(layer(x).detach())
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    def run() -> None:
        results, slopes = [layer(x)], [grad]
        if isinstance(layer, LinearResidualStack):
            results.append(layer.norm_estimate(_POWER_STEPS))
            slopes.append(torch.ones_like(results[1]))
        torch.autograd.grad(results, wanted, slopes, allow_unused=True)

    return run


@torch.no_grad()
def proven_norm(layer: nn.Module, kind: str) -> float:
    """Upper bound on the norm of the layer's linear map, proven from its weights."""
    layer = layer[0] if isinstance(layer, nn.Sequential) else layer.eval()
    if isinstance(layer, LinearResidualStack):
        plain = layer.plain()[0]
    elif isinstance(layer, (OrthogonalDense, OrthogonalPatchConv)):
        (plain,) = layer.plain()
    elif kind == DENSE:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.copy_(layer.weight)
    else:
        plain = nn.Conv2d(WIDTH, WIDTH, layer.kernel_size, layer.stride, 1 if kind == BLOCK else 0, bias=False)
        plain.weight.copy_(layer.weight)
    return norm_bound(plain, SHAPES[kind][1:]).upper


def told(seconds: dict[str, list[float]], norms: dict[str, float], missing: list[str]) -> dict:
    """The record's contents."""
    rows = [("layer", "library", "ms", "times lipcert's", "proven norm")]
    numbers: dict[str, float] = {}
    slower = []
    for name, taken in seconds.items():
        kind, library = name.split("; ")
        over = ratio(seconds, name, f"{kind}; lipcert")
        rows.append((kind, library, f"{1000 * statistics.median(taken):.1f}", over.show(), f"{norms[name]:.7f}"))
        numbers |= {f"{name}; ms": 1000 * statistics.median(taken), f"{name}; ratio": over.median}
        numbers[f"{name}; norm"] = norms[name]
        if library != "lipcert":
            slower.append((over.median, f"{library} {over.median:.2f} times lipcert's time on {kind}"))
    absent = f"not installed, so not compared: {', '.join(missing)}" if missing else ""
    return {
        "measured": "; ".join([*(text for _, text in slower), *([absent] if absent else [])]),
        "verdict": "fell short" if not slower or max(slower)[0] < 1 else "met" if min(slower)[0] >= 1 else "in part",
        "numbers": {key: float(f"{value:.7g}") for key, value in numbers.items()},
        "rows": tuple(rows),
    }


def versions() -> Iterator[tuple[str, str]]:
    """Of the peers that are installed."""
    from importlib import metadata

    for package in ("deel-torchlip", "orthogonium"):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with measuring("peers", "layers beside installed peers'", TARGET) as found:
        made, missing = layers()
        works = {f"{kind}; {library}": step(layer, kind) for (kind, library), layer in made.items()}
        seconds = take_turns(works, options.rounds, clock=clock)
        norms = {f"{kind}; {library}": proven_norm(layer, kind) for (kind, library), layer in made.items()}
        found |= told(seconds, norms, missing)
        found["numbers"] |= {"threads": options.threads, **{f"version; {name}": v for name, v in versions()}}
        for row in found["rows"]:
            print(" | ".join(row))


if __name__ == "__main__":
    main()
