"""The estimate while it trains, for the chapter on speed: the check `estimate-lag` in a figure, words and tables."""

import re
import statistics
from collections.abc import Iterable

from lipcert.report.checks import find_check
from lipcert.report.speed_search import HELD_OUT, standard_error, told_apart
from lipcert.report.svg import BLUE, FAINT, GREEN, INK, PURPLE, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, table

LAG = "estimate-lag"
_NOT_RUN = Markdown("Not run: `python -m benchmarks.estimate_lag` measures it.")
# The methods drawn: how the check names them -> colour, dash, marker.
_LINES = {
    "powers, 1": (PURPLE, ":", "v"),
    "powers, 3": (VERMILLION, "--", "s"),
    "powers, 10": (GREEN, "-.", "D"),
    "Krylov, 3": (BLUE, "--", "^"),
    "Krylov, 5": (BLUE, "-", "o"),
}


def said(method: str) -> str:
    """A method for readers: `power method, 3 rounds`, `Lanczos, 5 products`."""
    name, _, count = method.partition(", ")
    if name == "powers" and count.isdigit():
        return f"power method, {count} round{'s' if count != '1' else ''}"
    if name == "Krylov":
        return f"Lanczos, {count} product{'s' if count != '1' else ''}"
    return f"power method, {count}" if name == "powers" else method


def ratios(method: str) -> list[tuple[int, float]]:
    """(step, estimate over the converged product) of a method on the shared trajectory, in order."""
    check = find_check(LAG)
    found = {} if check is None else _steps(check.numbers.items(), f"{method}; step ")
    return sorted(found.items())


def _steps(numbers: Iterable[tuple[str, object]], beginning: str) -> dict[int, float]:
    return {int(key.removeprefix(beginning)): float(v) for key, v in numbers if key.startswith(beginning)}


def lag_figure() -> "Figure | Markdown":
    """Estimate over converged product during training, one line a method; 1 is the truth."""
    drawn = {method: points for method in _LINES if (points := ratios(method))}
    if not drawn:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.4)
    rows = []
    for method, points in drawn.items():
        colour, dash, marker = _LINES[method]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, dash, marker=marker, markersize=4, color=colour, linewidth=1.5, label=said(method))
        rows += [(said(method), step, f"{value:.4f}") for step, value in points]
    axes.axhline(1, color=FAINT, linewidth=1)
    axes.set(xlabel="training steps", ylabel="estimate / converged product")
    axes.set_xlim(left=0)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = f"Estimates of the backbone's constant during training over the converged one. {lag_words()}".replace("*", "")
    return finish("speed-lag", figure, alt, ("method", "step", "ratio"), rows)


def lag_words() -> Markdown:
    """The lowest ratio of each method drawn after a tenth of the run, and the last."""
    if (check := find_check(LAG)) is None:
        return _NOT_RUN
    last = int(check.numbers["steps"])
    parts = []
    for method in _LINES:
        if points := ratios(method):
            low = min(value for step, value in points if step >= last / 10)
            share = check.numbers.get(f"{method}; share")
            price = "" if share is None else f", {100 * share:.1f} % of a step"
            parts.append(f"{said(method)}: {low:.3f} ({points[-1][1]:.3f} at the end{price})")
    return Markdown(
        f"Lowest ratio after the first tenth of {last:,} steps, all methods on the same weights: {'; '.join(parts)}."
    )


def lag_table() -> Markdown:
    """Every method measured, those drawn and the others."""
    if (check := find_check(LAG)) is None or not check.rows:
        return _NOT_RUN
    head, *rows = check.rows
    rows = [(said(row[0]), *(cell.replace("%", " %") for cell in row[1:])) for row in rows]
    return table(("method, a step", *head[1:]), rows, right=range(1, len(head)))


def own_runs() -> dict[str, dict[str, list[float]]]:
    """Method -> "vra", "clean" and "low" of the runs trained on its own estimate, one number a seed, as fractions."""
    check = find_check(LAG)
    found: dict[str, dict[str, list[float]]] = {}
    for key, value in check.numbers.items() if check else ():
        if match := re.fullmatch(r"own; (.+); (vra|clean); seed (\d+)", key):
            method, what, seed = match.groups()
            arm = found.setdefault(method, {"vra": [], "clean": [], "low": []})
            arm[what].append(float(value))
            steps = _steps(check.numbers.items(), f"own; {method}; seed {seed}; step ")
            if what == "vra" and steps:
                arm["low"].append(min(v for step, v in steps.items() if step >= max(steps) / 10))
    return found


def own_table() -> Markdown:
    """Nets trained on their own estimate: how low it fell, and what came out."""
    if not (found := own_runs()):
        return Markdown("")
    rows = [
        (
            said(method), len(arm["vra"]), f"{min(arm['low']):.3f}" if arm["low"] else "", _mean(arm["clean"]),
            _mean(arm["vra"]), _range(arm["vra"]),
        )
        for method, arm in found.items()
    ]  # fmt: skip
    head = ("trained on", "runs", "lowest ratio", "clean", "VRA, converged", "over seeds")
    return table(head, rows, right=(1, 2, 3, 4, 5))


def _mean(shares: list[float]) -> str:
    return f"{100 * statistics.fmean(shares):.2f} %" if shares else ""


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.2f} to {100 * max(shares):.2f} %" if len(shares) > 1 else "one run"


def own_words() -> Markdown:
    """Whether the lag matters for what is certified in the end."""
    if len(found := own_runs()) < 2:
        return Markdown("Nets trained on their own estimates, two methods or more side by side: **not run**.")
    means = {method: statistics.fmean(arm["vra"]) for method, arm in found.items()}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    gap = 100 * (means[best] - means[worst])
    text = (
        f"Trained on its own estimate each, {'means lie' if _repeated(found) else 'VRA lies'} between "
        f"{100 * means[worst]:.2f} % ({said(worst)}) and {100 * means[best]:.2f} % ({said(best)}): {gap:.2f} points, "
    )
    if _repeated(found):
        within = 100 * max(max(arm["vra"]) - min(arm["vra"]) for arm in found.values())
        text += f"{'more' if gap > within else 'no more'} than the {within:.2f} by which seeds of one method differ."
    else:
        limit = told_apart(standard_error(100 * means[best]))
        apart = "which is told apart" if gap > limit else "which is not told apart"
        text += f"{apart}; with one run each, on {HELD_OUT:,} images, nothing below about {limit:.0f} points is."
    return Markdown(
        f"{text} VRA on held-out training images by converged constants, an estimate: these runs compare methods and "
        "certify nothing."
    )


def _repeated(found: dict[str, dict]) -> bool:
    return all(len(arm["vra"]) > 1 for arm in found.values())
