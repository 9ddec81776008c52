"""The ablation: architecture x loss at equal depth, width, data and images seen, and the same networks over depth.

Everything is drawn from the records of the study files in `notebooks/params/study`; a cell without one is "not run".
"""

import statistics
from collections.abc import Sequence

from lipcert.paths import ROOT
from lipcert.records import Record
from lipcert.report.names import DATASETS, FAMILIES, LOSSES
from lipcert.report.svg import BLUE, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, percent, table
from lipcert.study import Study, load_study

_MARKS = {"emma": (BLUE, "o"), "emma_fixed": (VERMILLION, "s"), "gloro": (GREEN, "D"), "trades_kl": (PURPLE, "^")}
_FAMILY_MARKS = {"liresnet": (BLUE, "o", "-"), "resnet": (VERMILLION, "s", "--"), "convnet": (GREEN, "D", ":")}
_NOT_RUN = "No cell of this table has been run yet."


def study(name: str) -> Study:
    """A study file of `notebooks/params/study` by its name."""
    return load_study(ROOT / "notebooks" / "params" / "study" / f"{name}.yaml")


def cells(name: str, *keys: str) -> dict[tuple, list[Record]]:
    """Published records of a study, one list of seeds for every combination of the settings `keys`."""
    found: dict[tuple, list[Record]] = {}
    for config, record in study(name).records().items():
        found.setdefault(tuple(getattr(config, key) for key in keys), []).extend([record] if record else [])
    return found


def vra(records: Sequence[Record]) -> list[float]:
    """VRA at each run's own radius, per cent."""
    return [100 * record.vra(record.config.radius) for record in records]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f} %{spread}"


def loss_table(name: str) -> Markdown:
    """VRA by architecture (rows) and loss (columns); over several seeds the mean and the range."""
    found, axes = cells(name, "family", "loss"), study(name).axes
    rows = [
        (FAMILIES[family], *(_cell(vra(found[family, loss])) for loss in axes["loss"])) for family in axes["family"]
    ]
    return table(("VRA", *(LOSSES[loss] for loss in axes["loss"])), rows, right=range(1, 1 + len(axes["loss"])))


def loss_words(name: str) -> Markdown:
    """What the table shows, whichever way it falls."""
    found = {key: vra(records) for key, records in cells(name, "family", "loss").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    config = study(name).cells[0]
    mean = {key: statistics.fmean(values) for key, values in found.items()}
    best = max(mean, key=mean.get)
    families = list(dict.fromkeys(family for family, _ in mean))
    by_family = [max((m, loss) for (f, loss), m in mean.items() if f == family) for family in families]
    leaders = ", ".join(
        f"{FAMILIES[family]} with {LOSSES[loss]} ({value:.2f} %)"
        for family, (value, loss) in zip(families, by_family, strict=True)
    )
    gap = _loss_range(mean, families)
    seeds = {len(values) for values in found.values()}
    claim = (
        "Every cell is one run, so small differences mean nothing."
        if seeds == {1}
        else f"Means over {min(seeds)} to {max(seeds)} seeds; the widest range of a cell is "
        f"{max(max(v) - min(v) for v in found.values()):.2f} points."
    )
    return Markdown(
        f"On {DATASETS[config.dataset]} at radius {config.radius} the best cell is {FAMILIES[best[0]]} with "
        f"{LOSSES[best[1]]}, {mean[best]:.2f} %. The best loss of each architecture: {leaders}. {gap} {claim}"
    )


def _loss_range(mean: dict[tuple[str, str], float], families: Sequence[str]) -> str:
    """How much the loss matters beside how much the architecture does."""
    losses = list(dict.fromkeys(loss for _, loss in mean))
    by_loss = [_range([mean[f, loss] for loss in losses if (f, loss) in mean]) for f in families]
    by_family = [_range([mean[f, loss] for f in families if (f, loss) in mean]) for loss in losses]
    return (
        f"For a given architecture the losses lie up to {max(by_loss):.2f} points apart; for a given loss the "
        f"architectures lie up to {max(by_family):.2f} points apart."
    )


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def loss_figure(name: str) -> "Figure | Markdown":
    """One row an architecture, one marker a loss, one dot a seed."""
    found = {key: records for key, records in cells(name, "family", "loss").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    families = list(dict.fromkeys(family for family, _ in found))
    figure, axes = canvas(WIDTH, 0.9 + 0.6 * len(families))
    rows = []
    for (family, loss), records in found.items():
        colour, marker = _MARKS[loss]
        y = -families.index(family) + 0.12 * (1.5 - list(_MARKS).index(loss))
        values = vra(records)
        axes.plot(values, [y] * len(values), marker, color=colour, markersize=7, label=LOSSES[loss])
        rows += [(family, loss, r.config.seed, f"{v:.4f}") for r, v in zip(records, values, strict=True)]
    axes.set_yticks([-n for n in range(len(families))], [FAMILIES[f] for f in families])
    axes.set(ylim=(0.5 - len(families), 0.5), xlabel=f"VRA, % of test images, {DATASETS[study(name).cells[0].dataset]}")
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, labelcolor=INK, fontsize=10)
    return finish(f"{name}-vra", figure, loss_words(name), ("family", "loss", "seed", "vra_percent"), rows)


def depth_table(name: str = "depth-cifar10") -> Markdown:
    """VRA and the proven Lipschitz constant of the backbone by depth and architecture."""
    found, axes = cells(name, "depth", "family"), study(name).axes
    rows = []
    for depth in axes["depth"]:
        parts = []
        for family in axes["family"]:
            records = found[depth, family]
            constants = ", ".join(f"{r.bounds.upper:.3g}" for r in records)
            parts.append(f"{_cell(vra(records))}{f', constant {constants}' if records else ''}")
        rows.append((depth, *parts))
    return table(("depth", *(FAMILIES[f] for f in axes["family"])), rows)


def depth_figure(name: str = "depth-cifar10") -> "Figure | Markdown":
    """VRA over depth, one line an architecture."""
    found = {key: records for key, records in cells(name, "depth", "family").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    figure, axes = canvas(WIDTH, 3.0)
    rows = []
    for family, (colour, marker, dash) in _FAMILY_MARKS.items():
        points = sorted((depth, statistics.fmean(vra(records))) for (depth, f), records in found.items() if f == family)
        axes.plot(
            *zip(*points, strict=True), dash, marker=marker, color=colour, label=FAMILIES[family]
        ) if points else None
        rows += [(family, depth, f"{value:.4f}") for depth, value in points]
    axes.set(xlabel="depth, blocks", ylabel="VRA, % of test images", xticks=sorted({depth for depth, _ in found}))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, labelcolor=INK, fontsize=10)
    return finish(name, figure, depth_words(name), ("family", "depth", "vra_percent"), rows)


def depth_words(name: str = "depth-cifar10") -> Markdown:
    """The depth series in words."""
    found = {key: statistics.fmean(vra(records)) for key, records in cells(name, "depth", "family").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    lines = []
    for family in dict.fromkeys(family for _, family in found):
        series = sorted((depth, value) for (depth, f), value in found.items() if f == family)
        best = max(series, key=lambda point: point[1])
        values = ", ".join(f"{percent(value / 100)} at depth {depth}" for depth, value in series)
        lines.append(f"{FAMILIES[family]}: {values}; best at depth {best[0]}.")
    return Markdown(" ".join(lines))


def setting_words(name: str) -> Markdown:
    """What all cells of a study share, and what it cost."""
    plan, config = study(name), study(name).cells[0]
    records = [r for r in plan.records().values() if r]
    hours = sum(r.training.seconds for r in records) / 3600
    return Markdown(
        f"{config.epochs:g} passes over {DATASETS[config.dataset]} in batches of {config.batch}, width {config.width}, "
        f"learning rate {config.lr:g}, training radius from {config.radius_start:g} to {config.radius_end:g} times "
        f"{config.radius}: the same for every cell. {len(records)} of {len(plan.cells)} cells were run, {hours:.1f} "
        f"hours of training in all (`lipcert study notebooks/params/study/{name}.yaml`)."
    )
