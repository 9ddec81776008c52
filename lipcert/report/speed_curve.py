"""The way of the speed run: proven VRA over images seen, operations and seconds, in a figure, in words, in a table."""

from lipcert.report.speed_runs import Recipe, ours, papers, reached, target
from lipcert.report.svg import BLUE, FAINT, INK, VERMILLION, WIDTH, Figure, canvas, finish
from lipcert.report.tables import Markdown, duration, table

_NOT_RUN = Markdown("No speed run has been published yet: **not run**.")
_LINES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"))


def curve_figure() -> "Figure | Markdown":
    """Proven VRA over images seen: mean of the seeds, their range shaded, every look a marker."""
    shown = [(r, style) for r, style in zip((ours(), papers()), _LINES, strict=True) if r.runs]
    if not shown:
        return Markdown("")
    figure, axes = canvas(WIDTH, 3.6)
    rows = []
    for recipe, (colour, marker, dash) in shown:
        points = recipe.mean_curve()
        x = [point.images / 1e3 for point in points]
        line = {"marker": marker, "markersize": 5, "color": colour, "linewidth": 1.8, "label": recipe.title}
        axes.plot(x, [p.vra for p in points], dash, **line)
        by_images = [{p.images: p.vra for p in points} for points in recipe.curves()]
        ends = [[f(one[p.images] for one in by_images) for p in points] for f in (min, max)]
        axes.fill_between(x, *ends, color=colour, alpha=0.2, linewidth=0)
        for run, seen in zip(recipe.runs, recipe.curves(), strict=True):
            rows += [
                (recipe.title, run.config.seed, p.images, f"{p.seconds:.1f}", f"{p.clean:.4f}", f"{p.vra:.4f}")
                for p in seen
            ]
    axes.axhline(target(), color=FAINT, linestyle=":", linewidth=1.2)
    axes.annotate(f"{target():g} %", (0, target()), (3, 3), textcoords="offset points", color=INK, fontsize=9.5)
    axes.set(xlabel="images seen, thousands", ylabel="proven VRA, % of test images")
    axes.set_xlim(left=0)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2, labelcolor=INK, fontsize=9.5, frameon=False)
    alt = f"Proven VRA over the images seen in training. {curve_words()}".replace("*", "").replace("\n\n", " ")
    return finish("speed-curve", figure, alt, ("recipe", "seed", "images", "seconds", "clean", "vra"), rows)


def curve_words() -> Markdown:
    """The figure in words: who leads when, and where the curves end."""
    mine, theirs = ours(), papers()
    said = [_climb(recipe) for recipe in (mine, theirs) if recipe.runs]
    if not said:
        return _NOT_RUN
    if mine.runs and theirs.runs:
        said.append(_lead(mine, theirs))
    missing = [recipe.title for recipe in (mine, theirs) if not recipe.runs]
    said += [f"The {title}: **not run**." for title in missing]
    return Markdown(" ".join(said))


def _climb(recipe: Recipe) -> str:
    points = recipe.mean_curve()
    if len(points) == 1:
        return f"The {recipe.title} ends at {points[0].vra:.2f} % (no looks on the way)."
    first, last = points[0], points[-1]
    arrival = reached(points, target())
    passes = f"passes {target():g} % after {arrival.images:,.0f}" if arrival.passed else f"never reaches {target():g} %"
    return (
        f"The {recipe.title} ({recipe.seeds}) stands at {first.vra:.1f} % after {first.images:,} images, {passes} and "
        f"ends at {last.vra:.2f} %."
    )


def _lead(mine: Recipe, theirs: Recipe) -> str:
    """Who is ahead at the looks that both have, and by how many points."""
    other = {point.images: point.vra for point in theirs.mean_curve()}
    gaps = [(point.images, point.vra - other[point.images]) for point in mine.mean_curve() if point.images in other]
    if not gaps:
        return ""
    points = [gap for _, gap in gaps]
    behind = next((i for i, gap in enumerate(points) if gap > 0), len(points))  # looks before it leads
    if behind == len(points):
        return f"The speed run is behind at every look, by {-max(points):.1f} to {-min(points):.1f} points."
    if min(points[behind:]) <= 0:
        ahead = sum(gap > 0 for gap in points)
        return (
            f"The lead changes: the speed run is ahead at {ahead} of {len(points)} looks, "
            f"at the end by {points[-1]:+.1f} points."
        )
    if behind == 0:
        return f"The speed run is ahead at every look, by {min(points):.1f} to {max(points):.1f} points."
    return (
        f"The speed run begins behind ({points[0]:+.1f} points at {gaps[0][0]:,} images), leads from "
        f"{gaps[behind][0]:,} images on and ends {points[-1]:.1f} points ahead."
    )


def looks_table() -> Markdown:
    """The curve over images, counted operations and seconds: means over the seeds."""
    recipes = [recipe for recipe in (ours(), papers()) if recipe.runs]
    if not recipes:
        return Markdown("")
    rows = [
        (recipe.title, f"{p.images:,}", f"{p.images * recipe.operations() / 1e15:.2f}", duration(p.seconds),
         f"{p.clean:.2f} %", f"{p.vra:.2f} %")
        for recipe in recipes for p in recipe.mean_curve()
    ]  # fmt: skip
    head = ("recipe", "images seen", "operations, 10¹⁵", "training time", "clean", "VRA, proven")
    return table(head, rows, right=(1, 2, 3, 4, 5))
