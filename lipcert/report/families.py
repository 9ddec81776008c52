"""The families of networks side by side: size, cost of a training step, tightness of the bound."""

from lipcert.report.checks import find_check
from lipcert.report.tables import Markdown, table

_NOT_MEASURED = "Not run: `python -m benchmarks.cost` measures it."
# Row of the cost record -> family, where the bound comes from.
_ROWS = {
    "ConvNet": ("`convnet`", "product over its convolutions"),
    "LiResNet": ("`liresnet`", "product, a block counts ‖I + V‖"),
    "LiResNet, third generation": ("`liresnet`", "the same; orthogonal dense tail"),
    "ResNet, conventional": ("`resnet`", "product, a block counts 1 + ‖branch‖"),
    "GloRo 6C2F": ("`gloro`", "product over its layers"),
}


def family_table() -> Markdown:
    """One row a family: parameters, time and memory of a training step with EMMA as ratios to a plain network."""
    if (check := find_check("cost")) is None:
        return Markdown(_NOT_MEASURED)
    rows = [
        (
            name,
            family,
            f"{check.numbers[f'{name}, parameters']:,}",
            *(f"{check.numbers[f'{name}, {what}']:.2f}" for what in ("time", "memory")),
            bound,
        )
        for name, (family, bound) in _ROWS.items()
    ]
    return table(("network", "`family`", "parameters", "time", "memory", "its bound"), rows, right=(2, 3, 4))


def cost_table() -> Markdown:
    """Every family with every loss."""
    if (check := find_check("cost")) is None:
        return Markdown(_NOT_MEASURED)
    head, *rows = check.rows
    return table(head, rows, right=(2, 3, 4, 5))


def cost_words() -> Markdown:
    """The costs in words, with the hardware they were measured on."""
    if (check := find_check("cost")) is None:
        return Markdown(_NOT_MEASURED)
    n, threads = check.numbers, check.hardware.get("threads")
    epochs = {c: [n[f"{loss}, {c} classes, seconds an epoch"] for loss in ("gloro", "emma")] for c in (10, 100)}
    said = "; ".join(f"at {c} classes {g:.0f} s with GloRo and {e:.0f} s with EMMA" for c, (g, e) in epochs.items())
    return Markdown(
        f"{check.measured[0].upper()}{check.measured[1:]}. An epoch of 50,000 images of 32x32 pixels with the LiResNet "
        f"of the table takes {said} ({check.hardware.get('processor', 'a processor')}, {threads} thread(s))."
    )
