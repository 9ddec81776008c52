"""The three systems side by side: small networks of each, as many images seen, beside the published numbers.

Rows come from study files, so that what is missing is said to be missing.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from lipcert.config import TrainConfig, steps_of
from lipcert.data.registry import DATASETS as FACTS
from lipcert.paths import ROOT
from lipcert.radius import Radius
from lipcert.record import Record
from lipcert.report.names import DATASETS, LOSSES, network_name
from lipcert.report.published import EVIDENCE, Row, load_published
from lipcert.report.tables import Markdown, percent, table
from lipcert.study import load_study

SEEDS = 3  # runs of each side from which one is said to be ahead
_STUDIES = ROOT / "notebooks" / "params" / "study"
_FADING = "[10%:0.05]-exp-[90%:0.0002]"  # weight of cross-entropy, as the paper of the l_inf-distance nets has it
# Study files and settings of their cells: one row of the table each. The radius of an l_inf net is one of another norm.
ROWS: tuple[tuple[str, dict], ...] = (
    ("vra-liresnet-mnist", {}),
    ("vra-gloro-mnist", {}),
    ("linf-losses-mnist", {"plain_weight": _FADING}),
    ("vra-liresnet-cifar10", {}),
    ("vra-l3w64-cifar10", {}),
    ("vra-gloro-cifar10", {}),
    ("linf-cifar10", {}),
    ("class-count-100", {}),
    ("vra-gloro-cifar100", {}),
    ("vra-linf-cifar100", {}),
)
# Family -> what names the system's own papers in published.csv.
_PAPERS = {"liresnet": "LiResNet", "gloro": "GloRo", "linf_net": "l_inf-distance nets"}


@dataclass(frozen=True)
class System:
    """One row: the cells of a study file that ask for it, and those of their runs that there are."""

    study: str
    cells: tuple[TrainConfig, ...]
    runs: tuple[Record, ...]

    @property
    def config(self) -> TrainConfig:
        return self.cells[0]

    @property
    def images(self) -> int:
        """Seen in training, as planned."""
        return steps_of(self.config, FACTS[self.config.dataset].train) * self.config.batch

    def shares(self, guarantee: str | None = None) -> list[float]:
        """VRA of every run at its own radius."""
        return [run.vra(run.config.radius, guarantee) for run in self.runs]

    def published(self) -> Row | None:
        """The highest VRA that the system's own papers report on this data, without extra data, in this norm and at
        this radius."""
        config, name = self.config, _PAPERS[self.config.family]
        rows = [
            row
            for row in load_published()
            if name in row.paper and (row.dataset, row.metric, row.extra_data) == (config.dataset, "vra", "none")
            and row.norm == config.norm and Radius(row.radius) == Radius(config.radius)
        ]  # fmt: skip
        return max(rows, key=lambda row: float(row.value), default=None)


def systems() -> Iterator[System]:
    """The rows, in order."""
    for name, chosen in ROWS:
        found = {
            cell: record
            for cell, record in load_study(_STUDIES / f"{name}.yaml").records().items()
            if all(getattr(cell, key) == value for key, value in chosen.items())
        }
        yield System(name, tuple(found), tuple(record for record in found.values() if record is not None))


def systems_table() -> Markdown:
    """One row a system and data set; VRA as mean and range over the seeds, the estimate's claim, a published number."""
    rows = []
    for system in systems():
        config, runs, row = system.config, system.runs, system.published()
        beside = "none" if row is None else f"{row.value} %, {row.model} ({EVIDENCE[row.evidence]})"
        ours = ("", *["not run"] * 2) if not runs else (
            f"{runs[0].model.parameters / 1e6:.2f} M",
            percent(statistics.fmean(run.clean_accuracy() for run in runs)), _spread(system.shares()),
        )  # fmt: skip
        claim = _spread(system.shares("estimated")) if runs and config.norm == "l2" else ""
        rows.append(
            (
                DATASETS[config.dataset], f"{network_name(config)}, {LOSSES[config.loss]}", ours[0],
                f"{'ℓ₂' if config.norm == 'l2' else 'ℓ∞'} {config.radius}", f"{system.images:,}",
                f"{len(runs)} of {len(system.cells)}", *ours[1:], claim, beside,
            )
        )  # fmt: skip
    head = (
        "data", "network, loss", "parameters", "radius", "images seen", "runs", "clean", "VRA, executed",
        "estimate's claim", "highest published",
    )  # fmt: skip
    return table(head, rows, right=(2, 4, 5, 6, 7, 8))


def _spread(shares: list[float]) -> str:
    if not shares:
        return ""
    text = percent(statistics.fmean(shares))
    return text if len(shares) == 1 else f"{text} ({100 * min(shares):.2f} to {100 * max(shares):.2f})"


def systems_words() -> Markdown:
    """Who certifies more of a data set at equal norm, radius and images; and how far below the published numbers."""
    lines, done = [], [system for system in systems() if system.runs]
    for data in dict.fromkeys(system.config.dataset for system in done):
        same = [
            s for s in done if s.config.dataset == data and s.config.norm == "l2" and s.study != "vra-l3w64-cifar10"
        ]
        if len(same) > 1:
            lines.append(_versus(*sorted(same, key=lambda s: -statistics.fmean(s.shares()))[:2]))
    gaps = [
        (
            f"{network_name(s.config)} on {DATASETS[s.config.dataset]}",
            float(row.value) - 100 * statistics.fmean(s.shares()),
        )
        for s in done
        if (row := s.published()) is not None
    ]
    if gaps:
        ends = sorted(gaps, key=lambda gap: gap[1])
        lines.append(
            "The highest published VRA of each system, of networks as large or larger and trained for longer, is "
            f"{_between(ends[0], ends[-1])} ours."
        )
    missing = [f"`{s.study}`" for s in systems() if len(s.runs) < len(s.cells)]
    lines += [f"Not complete, or **not run**: {', '.join(missing)}."] if missing else []
    return Markdown(" ".join(lines))


def _between(*gaps: tuple[str, float]) -> str:
    """`5.7 points (GloRo 2C2F on MNIST) to 20.8 points (GloRo 6C2F on CIFAR-10) above`, the least first."""
    said = [(f"{abs(gap):.1f} points ({name})", "below" if gap < 0 else "above") for name, gap in dict.fromkeys(gaps)]
    if len({side for _, side in said}) == 1:
        return f"{' to '.join(points for points, _ in said)} {said[0][1]}"
    return " to ".join(f"{points} {side}" for points, side in said)


def _versus(first: System, second: System) -> str:
    a, b = first.shares(), second.shares()
    gap = 100 * (statistics.fmean(a) - statistics.fmean(b))
    if min(len(a), len(b)) < SEEDS:
        verdict = "of fewer than three runs each, so no claim"
    elif min(a) > max(b):
        verdict = "every seed of the one above every seed of the other"
    else:
        verdict = "which these runs do not prove"
    return (
        f"{DATASETS[first.config.dataset]}, ℓ₂ {first.config.radius}: {network_name(first.config)} over "
        f"{network_name(second.config)} by {gap:.1f} points, {verdict}."
    )
