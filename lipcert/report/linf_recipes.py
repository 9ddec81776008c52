"""How l_inf-distance nets are trained, for their chapter: the losses drawn, the published recipes from their presets.

Shape letters: B batch, K classes.
"""

import re
from fractions import Fraction

import torch

from lipcert.losses import training_loss
from lipcert.radius import Radius
from lipcert.report.linf_pictures import full_net
from lipcert.report.names import DATASETS
from lipcert.report.published import Preset, Row, load_published, preset_parameters, presets, published_millions
from lipcert.report.svg import BLUE, FAINT, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table


def _fading_weight() -> tuple[float, float]:
    """Weight of the cross-entropy at the start and at the end of the published CIFAR-10 recipe."""
    first, last = _sections(full_net().plain_weight)
    return first[1], last[1]


def _sections(text: str) -> list[tuple[float, float]]:
    """(epoch, value) of the sections of a schedule."""
    return [(float(time), float(value)) for time, value in re.findall(r"\[([\d.]+):([\d.e-]+)\]", text)]


def loss_figure() -> Figure:
    """The losses of two classes against the margin, in units of the margin asked for."""
    figure, axes = canvas(WIDTH, 3.1)
    margins = [k / 20 for k in range(-20, 41)]
    weight, _ = _fading_weight()
    lines = (
        ("hinge", "linf_hinge", 0.0, PURPLE, ":"),
        ("clipped hinge", "linf_mixture", 0.0, BLUE, "-"),
        (f"clipped hinge + {weight:g} cross-entropy", "linf_mixture", weight, VERMILLION, "--"),
    )
    rows = []
    for label, name, share, colour, dash in lines:
        y = [_two_class_loss(name, margin, share) for margin in margins]
        axes.plot(margins, y, dash, color=colour, linewidth=2, label=label)
        rows += [(label, f"{m:g}", f"{v:.6g}") for m, v in zip(margins, y, strict=True)]
    axes.axvspan(0, 1, color=FAINT, alpha=0.15, linewidth=0)
    axes.set(xlabel="margin / θ", ylabel="loss", xlim=(-1, 2), ylim=(0, 2))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, labelcolor=INK, frameon=False)
    alt = (
        "Losses against the margin. The hinge falls with slope 1 until the margin is θ. The clipped one is flat at 1 "
        f"for wrong answers, falls from 1 to 0 between margins of 0 and θ, and is 0 beyond. With {weight:g} times "
        "cross-entropy it slopes a little everywhere."
    )
    return finish("linf-losses", figure, alt, ("loss", "margin_over_theta", "value"), rows)


def _two_class_loss(name: str, margin: float, weight: float) -> float:
    """At a margin in units of theta = 2 * training radius."""
    logits_BK, labels_B = torch.tensor([[margin, 0.0]], dtype=torch.float64), torch.tensor([0])
    twice_KK = 2 * (1 - torch.eye(2, dtype=torch.float64))
    return float(training_loss(name)(logits_BK, labels_B, twice_KK, 0.5, weight))


def recipe_table() -> Markdown:
    """The published recipes of the second version, from their presets."""
    published = {row.id: row for row in load_published()}
    chosen = [preset for preset in presets() if preset.path.stem.startswith("linf-v2")]
    chosen.sort(key=lambda preset: (preset.config.dataset != "mnist", Radius(preset.config.radius).exact))
    head = ("data, ε", "θ", "weight of cross-entropy", "epochs: p = 8, p → ∞, all", "layers", "parameters (published)")
    return table(head, [_recipe(preset, published) for preset in chosen])


def _recipe(preset: Preset, published: dict[str, Row]) -> tuple[str, ...]:
    config, size = preset.config, published_millions(preset, published)
    (_, first), (_, last) = _sections(config.plain_weight)
    (begin, _), (end, _) = _sections(config.exponent)
    # theta, the margin asked for, is twice the training radius.
    times = 2 * Fraction(config.radius_end)
    return (
        f"{DATASETS[config.dataset]}, {config.radius}",
        f"{float(times * Radius(config.radius).exact):.3f} = {float(times):g} ε",
        f"{first:g} to {last:g}",
        f"{begin:g}, {end:g}, {config.epochs:g}",
        f"{config.depth} × {config.width:,}",
        f"{preset_parameters(preset):,} ({'not stated' if size is None else f'{size:g} M'})",
    )
