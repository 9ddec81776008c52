"""The ablation: architecture x loss at equal depth, width, data and images seen, and the same networks over depth.

Everything is drawn from the records of the study files in `notebooks/params/study`; a cell without one is "not run".
"""

import functools
import statistics
from collections.abc import Sequence

from lipcert.paths import ROOT
from lipcert.record import Record
from lipcert.report.names import DATASETS, FAMILIES, LOSSES
from lipcert.report.svg import BLUE, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, percent, table
from lipcert.study import Study, load_study

_MARKS = {"emma": (BLUE, "o"), "emma_fixed": (VERMILLION, "s"), "gloro": (GREEN, "D"), "trades_kl": (PURPLE, "^")}
_FAMILY_MARKS = {
    "liresnet": (BLUE, "o", "-"),
    "resnet": (VERMILLION, "s", "--"),
    "resnet, open": (PURPLE, "^", "-."),
    "convnet": (GREEN, "D", ":"),
}
# The conventional ResNet a second time, its branches open at the start: study -> the study file with that arm.
OPEN = {
    "architecture-loss-cifar10": "open-branches-cifar10",
    "architecture-loss-mnist": "open-branches-mnist",
    "depth-cifar10": "open-branches-depth",
}
_ARM = "resnet, open"
_NAMES = FAMILIES | {_ARM: "ResNet, branches open at the start"}
_CLOSED = 0.01  # what a branch must add to its block's constant to count as open
_NOT_RUN = "No cell of this table has been run yet."


@functools.cache
def study(name: str) -> Study:
    """A study file of `notebooks/params/study` by its name."""
    return load_study(ROOT / "notebooks" / "params" / "study" / f"{name}.yaml")


def arms(name: str, other: str) -> dict[tuple[str, object], list[Record]]:
    """Published records of a study and its second arm by architecture and the setting `other`: lists of seeds."""
    found: dict[tuple[str, object], list[Record]] = {}
    for part in (name, OPEN[name]):
        for config, record in study(part).records().items():
            family = _ARM if part != name else config.family
            records = found.setdefault((family, getattr(config, other)), [])
            records += [record] if record else []
    return found


def branch_constants(record: Record) -> list[float]:
    """What the branch of every conventional block adds to its constant of 1, proven upper ends."""
    return [layer.upper - 1 for layer in record.bounds.layers if layer.kind == "Residual"]


def branch_words(name: str) -> Markdown:
    """Whether training opened the branches of the conventional networks of a study."""
    said, cells = [], arms(name, "depth" if "depth" in name else "loss")
    for arm, start in (("resnet", "begin at scale 0, as in the reference"), (_ARM, "begin at scale depth^(-1/2)")):
        records = [r for (family, _), found in cells.items() if family == arm for r in found]
        if not records:
            continue
        sums = [branch_constants(r) for r in records]
        shut = sum(max(branches) < _CLOSED for branches in sums)
        every = sorted(value for branches in sums for value in branches)
        said.append(
            f"Where branches {start}, all of them add less than {_CLOSED:g} to their block's constant in {shut} of "
            f"{len(records)} trained networks (median {every[len(every) // 2]:.1e}, largest {every[-1]:.2g})"
        )
    if not said:
        return Markdown("")
    return Markdown(
        ". ".join(said)
        + ". A network whose branches are shut is stem, neck and head with activations between them: its "
        "row says nothing about residual blocks, only that at this budget certified training preferred to do without."
    )


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
    found, axes = arms(name, "loss"), study(name).axes
    rows = [
        (_NAMES[family], *(_cell(vra(found[family, loss])) for loss in axes["loss"]))
        for family in (*axes["family"], _ARM)
    ]
    return table(("VRA", *(LOSSES[loss] for loss in axes["loss"])), rows, right=range(1, 1 + len(axes["loss"])))


def loss_words(name: str) -> Markdown:
    """What the table shows, whichever way it falls."""
    cells = arms(name, "loss")
    found = {key: vra(records) for key, records in cells.items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    missing = f" {len(cells) - len(found)} of {len(cells)} cells were not run." if len(found) < len(cells) else ""
    config = study(name).cells[0]
    mean = {key: statistics.fmean(values) for key, values in found.items()}
    best = max(mean, key=mean.get)
    families = list(dict.fromkeys(family for family, _ in mean))
    by_family = [max((m, loss) for (f, loss), m in mean.items() if f == family) for family in families]
    leaders = ", ".join(
        f"{_NAMES[family]} with {LOSSES[loss]} ({value:.2f} %)"
        for family, (value, loss) in zip(families, by_family, strict=True)
    )
    gap = _loss_range(mean, families)
    seeds = {len(values) for values in found.values()}
    claim = (
        "Every cell is one run, so small differences mean nothing."
        if seeds == {1}
        else f"Means over {' to '.join(map(str, sorted({min(seeds), max(seeds)})))} seeds; the widest range of a cell "
        f"is {max(max(v) - min(v) for v in found.values()):.2f} points."
    )
    return Markdown(
        f"On {DATASETS[config.dataset]} at radius {config.radius} the best cell is {_NAMES[best[0]]} with "
        f"{LOSSES[best[1]]}, {mean[best]:.2f} %. The best loss of each architecture: {leaders}. {gap} {claim}{missing}"
    )


def _loss_range(mean: dict[tuple[str, str], float], families: Sequence[str]) -> str:
    """How much the loss matters beside how much the architecture does."""
    losses = list(dict.fromkeys(loss for _, loss in mean))
    by_loss = [
        _range(row) for f in families if len(row := [mean[f, x] for x in losses if (f, x) in mean]) == len(losses)
    ]
    by_family = [
        _range(row) for x in losses if len(row := [mean[f, x] for f in families if (f, x) in mean]) == len(families)
    ]
    if not by_loss or not by_family:
        return ""
    return (
        f"For a given architecture the losses lie up to {max(by_loss):.2f} points apart; for a given loss the "
        f"architectures lie up to {max(by_family):.2f} points apart."
    )


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def loss_figure(name: str) -> "Figure | Markdown":
    """One row an architecture, one marker a loss, one dot a seed."""
    found = {key: records for key, records in arms(name, "loss").items() if records}
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
    names = [_NAMES[family].replace(", ", ",\n").replace(" at the", "\nat the") for family in families]
    axes.set_yticks([-n for n in range(len(families))], names)
    axes.set(ylim=(0.5 - len(families), 0.5), xlabel=f"VRA, % of test images, {DATASETS[study(name).cells[0].dataset]}")
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, labelcolor=INK, fontsize=10)
    return finish(f"{name}-vra", figure, loss_words(name), ("family", "loss", "seed", "vra_percent"), rows)


def depth_table(name: str = "depth-cifar10") -> Markdown:
    """VRA and the proven Lipschitz constant of the backbone by depth and architecture."""
    found, axes = arms(name, "depth"), study(name).axes
    families, rows = (*axes["family"], _ARM), []
    for depth in axes["depth"]:
        parts = []
        for family in families:
            records = found[family, depth]
            constants = ", ".join(f"{r.bounds.upper:.3g}" for r in records)
            parts.append(f"{_cell(vra(records))}{f', constant {constants}' if records else ''}")
        rows.append((depth, *parts))
    return table(("depth", *(_NAMES[family] for family in families)), rows)


def depth_figure(name: str = "depth-cifar10") -> "Figure | Markdown":
    """VRA over depth, one line an architecture."""
    found = {key: records for key, records in arms(name, "depth").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    figure, axes = canvas(WIDTH, 3.0)
    rows = []
    for family, (colour, marker, dash) in _FAMILY_MARKS.items():
        points = sorted((depth, statistics.fmean(vra(records))) for (f, depth), records in found.items() if f == family)
        if points:
            axes.plot(*zip(*points, strict=True), dash, marker=marker, color=colour, label=_NAMES[family])
        rows += [(family, depth, f"{value:.4f}") for depth, value in points]
    axes.set(xlabel="depth, blocks", ylabel="VRA, % of test images", xticks=sorted({depth for _, depth in found}))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=3, labelcolor=INK, fontsize=10)
    return finish(name, figure, depth_words(name), ("family", "depth", "vra_percent"), rows)


def depth_words(name: str = "depth-cifar10") -> Markdown:
    """The depth series in words."""
    found = {key: statistics.fmean(vra(records)) for key, records in arms(name, "depth").items() if records}
    if not found:
        return Markdown(_NOT_RUN)
    lines = []
    for family in dict.fromkeys(family for family, _ in found):
        series = sorted((depth, value) for (f, depth), value in found.items() if f == family)
        best = max(series, key=lambda point: point[1])
        values = ", ".join(f"{percent(value / 100)} at depth {depth}" for depth, value in series)
        end = f"best at depth {best[0]}" if len(series) > 1 else "no other depth was run"
        lines.append(f"{_NAMES[family]}: {values}; {end}.")
    return Markdown(" ".join(lines))


def setting_words(name: str) -> Markdown:
    """What all cells of a study share, and what it cost."""
    config = study(name).cells[0]
    found = [record for part in (name, OPEN[name]) for record in study(part).records().values()]
    records = list(filter(None, found))
    hours = sum(r.training.seconds for r in records) / 3600
    return Markdown(
        f"{config.epochs:g} passes over {DATASETS[config.dataset]} in batches of {config.batch}, width {config.width}, "
        f"learning rate {config.lr:g}, training radius from {config.radius_start:g} to {config.radius_end:g} times "
        f"{config.radius}: the same for every cell. {len(records)} of {len(found)} cells were run, {hours:.1f} "
        f"hours of training in all (`lipcert study notebooks/params/study/{name}.yaml`, and `{OPEN[name]}.yaml`)."
    )
