"""Records `tightness` and `depth-tightness`: how much of their proven bounds trained networks use, by family and depth.

`python -m benchmarks.tightness_by_depth RUN ...` takes ids of runs (or names or files of networks), searches the
backbone of each, all layers up to the head, for the pair of points that it moves apart most, and divides by the proven
bound of that backbone: the comparison that the authors of LiResNet made for two networks. A network of six layers and
64 channels on CIFAR-10 takes about a minute of one core.

With `--studies FILE ...` in place of runs it takes the cells of study files, of one seed unless `--seeds` says more,
as far as their networks are kept, and writes the record `depth-tightness`. A network that is not kept any more stands
there as the published record has it, where that was measured with the same effort and the run was not made anew since.
"""

import argparse
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.pair_search import pair_search
from lipcert.chain import chain_bounds
from lipcert.config import TrainConfig
from lipcert.data import load_dataset, to_unit
from lipcert.models import open_network
from lipcert.paths import local_dir, results_dir
from lipcert.provenance import tensors_sha256
from lipcert.record import Record
from lipcert.records import RecordError, find_record, read_record
from lipcert.report.checks import find_check, measuring
from lipcert.report.depth_tightness import GOAL
from lipcert.report.tightness import COLUMNS, published_tightness
from lipcert.study import load_study

DEPTHS = {3, 6, 12, 18}  # what is asked for, of three families


class Facts(NamedTuple):
    """Where a network comes from."""

    run: str
    data: str
    family: str
    depth: str
    width: str
    loss: str
    seed: str


def facts(name: str, card: dict) -> Facts:
    """From its card, and from the record of its run where there is one."""
    run = card.get("run") or name
    family, depth, width = (str(card.get(key, "unknown")) for key in ("family", "depth", "width"))
    try:
        config = find_record(run)[0].config
        loss, seed = config.loss, str(config.seed)
        family += ", open" if config.branch_scale else ""
    except RecordError:
        loss, seed = "unknown", "unknown"
    return Facts(run, card["dataset"], family, depth, width, loss, seed)


def cells_of(files: Sequence[str], seeds: Sequence[int]) -> dict[str, TrainConfig]:
    """The runs of these studies with these seeds, by id."""
    return {cell.run_id(): cell for file in files for cell in load_study(file).cells if cell.seed in seeds}


def kept(run: str) -> bool:
    """Whether the network of a run is still here."""
    return any((folder / "models" / f"{run}.safetensors").exists() for folder in (local_dir(), results_dir()))


def record_of(run: str) -> Record:
    """The published record of a run, your own where there is none."""
    path = results_dir() / "runs" / f"{run}.json"
    return read_record(path) if path.exists() else find_record(run)[0]


def check_weights(run: str, chain: nn.Sequential) -> None:
    """That a network is the one of its record, the published one where there is one.

    Raises:
        ValueError: other weights, of a rerun that came out differently.
    """
    if tensors_sha256(chain.state_dict()) != record_of(run).model.weights_sha256:
        raise ValueError(f"network {run}: holds other weights than the run's record says; run it again or publish it")


def row(name: str, starts: int, rounds: int, effort: str, device: str) -> tuple[str, ...]:
    """One network: pairs found from the Jacobians near images, between images, and at all; bound; their ratio."""
    start = time.monotonic()
    chain = open_network(name)
    card = chain.card
    data = load_dataset(card["dataset"], card["classes"], card["class_seed"])
    bounds = chain_bounds(chain, tuple(card["input_shape"]), effort)
    backbone = nn.Sequential(*list(chain)[:-1]).to(device)
    images_BCHW = to_unit(data.train.images_NCHW[:starts], data.scale)
    found = pair_search(backbone, images_BCHW, rounds)
    branches = math.prod(layer.enclosure.upper for layer in bounds.layers if layer.kind == "Residual")
    numbers = (found.near, found.far, found.best, bounds.estimate, bounds.upper, found.best / bounds.upper, branches)
    line = (*facts(name, card), *(f"{v:.6g}" for v in numbers), f"{time.monotonic() - start:.0f}")
    print(dict(zip(COLUMNS, line, strict=True)), flush=True)
    return line


def earlier_rows(cells: Collection[str], effort: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """What the published record says of these runs, by id, and where it was measured, in words.

    A run recorded later than that measurement is another network and is left out.

    Args:
        effort: start of the measurement's arguments, `--starts 32 --rounds 1 --effort tight`.
    """
    check = find_check(GOAL)
    if check is None or check.rows[:1] != (COLUMNS,) or effort not in check.command:
        return {}, ""
    found = {line[0]: line for line in check.rows[1:] if line[0] in cells}
    for run in list(found):
        if record_of(run).provenance.finished > check.finished:
            del found[run]
    return found, f"commit {(check.commit or 'unknown')[:7]} on {check.hardware.get('processor')}"


def efforts(starts: int, rounds: int, effort: str) -> str:
    """The arguments that decide how hard is searched and how far bounds are tightened, as the command line has them."""
    return f"--starts {starts} --rounds {rounds} --effort {effort}"


def measure_studies(cells: Mapping[str, TrainConfig], starts: int, rounds: int, effort: str, device: str) -> None:
    """The cells of studies as far as their networks are kept or were measured before, one row each.

    Raises:
        ValueError: none is kept, or one is another network than its record's.
    """
    names = [run for run in cells if kept(run)]
    if not names:
        raise ValueError(f"no network of {len(cells)} runs is kept in {local_dir() / 'models'}: run the studies first")
    for name in names:
        check_weights(name, open_network(name))
    earlier, where = earlier_rows(cells.keys() - set(names), efforts(starts, rounds, effort))
    target = "a network of every cell of the studies on depth"
    with measuring(GOAL, "empirical over proven constant by family, depth and budget", target) as found:
        lines = earlier | {name: row(name, starts, rounds, effort, device) for name in names}
        lines = {name: lines[name] for name in cells if name in lines}
        ratios: dict[str, list[float]] = {}
        for name, line in lines.items():
            net, cell = dict(zip(COLUMNS, line, strict=True)), cells[name]
            key = f"{net['family']} at depth {cell.depth} after {cell.epochs:g} epochs"
            ratios.setdefault(key, []).append(float(net["ratio"]))
        refuted = sum(value > 1 + 1e-6 for values in ratios.values() for value in values)
        lost = len(cells) - len(lines)
        found |= {
            "measured": f"{len(lines)} networks: "
            + ", ".join(f"{key} {mean(values):.2f}" for key, values in ratios.items())
            + f"; {starts} starts each, bounds {effort}; {refuted} bounds refuted"
            + (f"; {len(earlier)} as measured before, by {where}" if earlier else "")
            + (f"; {lost} networks of {len(cells)} were not kept" if lost else ""),
            "verdict": "fell short" if refuted else "in part" if lost else "met",
            "numbers": {"networks": len(lines), "earlier": len(earlier), "cells": len(cells), "refuted": refuted},
            "rows": (COLUMNS, *lines.values()),
        }


def measure(names: list[str], starts: int, rounds: int, effort: str, device: str) -> None:
    """All networks, one row each; also that no pair refutes its bound."""
    authors = {p.family: p.ratio for p in published_tightness() if p.dataset == "cifar10"}
    said = " and ".join(f"{ratio} ({family})" for family, ratio in authors.items())
    target = f"three families at depths {', '.join(map(str, sorted(DEPTHS)))}, beside the authors' {said}"
    with measuring("tightness", "empirical over proven constant of trained networks", target) as found:
        rows = [row(name, starts, rounds, effort, device) for name in names]
        nets = [dict(zip(COLUMNS, r, strict=True)) for r in rows]
        shares: dict[tuple[str, str], list[float]] = {}
        for net in nets:
            shares.setdefault((net["family"], net["depth"]), []).append(float(net["ratio"]))
        refuted = sum(float(net["ratio"]) > 1 + 1e-6 for net in nets)
        whole = [
            f
            for f in {net["family"] for net in nets}
            if {int(d) for g, d in shares if g == f and d.isdigit()} >= DEPTHS
        ]
        found |= {
            "measured": f"{len(rows)} networks: "
            + ", ".join(f"{family} at depth {depth} {mean(values):.2f}" for (family, depth), values in shares.items())
            + f"; {starts} starts each, bounds {effort}; {refuted} bounds refuted",
            "verdict": "fell short" if refuted else "met" if len(whole) >= 3 else "in part",
            "numbers": {"networks": len(rows), "least": min(map(min, shares.values()), default=math.nan)},
            "rows": (COLUMNS, *rows),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="id of a run, name of a shipped network, or a file")
    parser.add_argument("--studies", nargs="+", metavar="FILE", help="study files in place of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the studies' runs (default 0)")
    parser.add_argument("--starts", type=int, default=64, help="training images to start from (default 64)")
    parser.add_argument("--rounds", type=int, default=1, help="how often to search through all distances (default 1)")
    parser.add_argument("--effort", choices=("fast", "tight"), default="tight", help="of the bounds (default tight)")
    parser.add_argument("--device", default="cpu", help="where to search: cpu or cuda (default cpu)")
    options = parser.parse_args()
    if bool(options.runs) == bool(options.studies):
        parser.error("give runs or --studies, one of the two")
    words = [efforts(options.starts, options.rounds, options.effort), *options.runs]
    if options.studies:
        words += ["--seeds", *map(str, options.seeds), "--studies", *options.studies]
    os.environ["LIPCERT_COMMAND"] = f"python -m benchmarks.tightness_by_depth {' '.join(words)}"
    if options.device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    how = (options.starts, options.rounds, options.effort, options.device)
    if options.studies:
        measure_studies(cells_of(options.studies, options.seeds), *how)
    else:
        measure(options.runs, *how)


if __name__ == "__main__":
    main()
