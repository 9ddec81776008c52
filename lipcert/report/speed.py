"""The chapter on speed: what the speed run reaches beside the papers' recipe, what was gained, and what an image costs.

Drawn from the runs in `lipcert.report.speed_runs`. `speed_curve` has the way there, `speed_step` the time of a step,
`speed_lag` the estimate while it trains, `speed_search` what each idea brought.
"""

from lipcert.records import load_records
from lipcert.report.names import network_name
from lipcert.report.published import EVIDENCE
from lipcert.report.speed_runs import (
    OURS,
    Reached,
    Recipe,
    fixed_share,
    images_ratio,
    long_run,
    operations_ratio,
    ours,
    papers,
    progress,
    reached,
    step_ratio,
    target,
    target_row,
    time_ratio,
)
from lipcert.report.tables import Markdown, duration, machine, percent, table

GOAL, LONG_GOAL = 56.0, 61.0  # VRA in per cent within one and within ten million images: what was aimed at
IMAGES, LONG_IMAGES = 1_000_000, 10_000_000  # of these goals; the first is the rules' budget
_NONE = "not run"


def spread(recipe: Recipe, digits: int = 2) -> str:
    """Mean, smallest and largest VRA: `56.12 % (55.90 to 56.31)`."""
    if not (values := recipe.shares()):
        return _NONE
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{recipe.mean():.{digits}f} %{ends}"


def headline() -> Markdown:
    """What came out, for the top of the page."""
    mine, theirs = ours(), papers()
    if not mine.runs:
        return Markdown("VRA of the speed run within a million images: **not run**.")
    run = mine.runs[0]
    minutes = duration(max(r.training.seconds for r in mine.runs))
    text = (
        f"**{mine.mean():.2f} % VRA** at {run.config.radius} on CIFAR-10 after {run.training.images:,} images, without "
        f"extra data, {run.model.parameters / 1e6:.2f} M parameters: {_ends(mine)}, proven on the full test set as "
        f"executed in float64. On {machine(run)} a run took at most {minutes}."
    )
    if theirs.runs:
        gap = mine.mean() - theirs.mean()
        text += f" The papers' recipe on the same network and as many images: {spread(theirs)}, {-gap:+.2f} points."
    if ratio := time_ratio():
        text += f" To {target():g} % the papers' way takes **{times(ratio)} as long**."
    return Markdown(text)


def _ends(recipe: Recipe) -> str:
    values = recipe.shares()
    return f"{recipe.seeds}, {min(values):.2f} to {max(values):.2f} %" if len(values) > 1 else recipe.seeds


def times(ratio: tuple[float, bool]) -> str:
    """`3.1 times`, or `more than 3.1 times` where the slower one never arrived."""
    value, known = ratio
    return f"{'' if known else 'more than '}{value:.1f} times"


def gains_table() -> Markdown:
    """The page in six lines: the papers' way, the speed run, and what was gained."""
    mine, theirs = ours(), papers()
    goal = f"to {target():g} % VRA"
    arrivals = [reached(r.mean_curve(), target()) for r in (theirs, mine)]
    gap = f"{mine.mean() - theirs.mean():+.2f} points" if mine.runs and theirs.runs else _NONE
    flops = [
        f"{_at_least(a)}{a.images * r.operations() / 1e15:.2f}" if a else _NONE
        for a, r in zip(arrivals, (theirs, mine), strict=True)
    ]
    step = step_ratio()
    rows = [
        ("VRA, proven", spread(theirs), spread(mine), gap),
        (f"images {goal}", *map(_images, arrivals), _gain(images_ratio())),
        (f"counted operations {goal}, 10¹⁵", *flops, _gain(operations_ratio())),
        ("time of a step", "1", f"1 / {step[0]:.2f}" if step else _NONE, _gain(step and (step[0], True))),
        (f"time {goal}", "1", _share(time_ratio()), _gain(time_ratio())),
    ]
    return table(("", "papers' way", "here", "gained"), rows, right=(1, 2, 3))


def _at_least(arrival: Reached) -> str:
    return "" if arrival.passed else "> "


def _images(arrival: Reached | None) -> str:
    if arrival is None:
        return _NONE
    return f"{arrival.images:,.0f}" if arrival.passed else f"not within {arrival.images:,.0f}"


def _gain(ratio: tuple[float, bool] | None) -> str:
    return f"**{'' if ratio[1] else '> '}{ratio[0]:.1f} ×**" if ratio else _NONE


def _share(ratio: tuple[float, bool] | None) -> str:
    return f"{'' if ratio[1] else '< '}1 / {ratio[0]:.1f}" if ratio else _NONE


def gains_words() -> Markdown:
    """Where the factors come from, and what the target is."""
    row, step, mine = target_row(), step_ratio(), ours()
    text = (
        f"{target():g} % is a mark on the road: the VRA of {row.model}, {row.parameters_millions:g} M parameters, by "
        f"{row.paper}, {EVIDENCE[row.evidence]} (another network, so not comparable). Images are read off the mean "
        "curves below, on straight lines between looks. Time is the ratio of images times the ratio of a step's time, "
        "the two codes taking turns in one process: seconds of separate runs compare nothing."
    )
    if step is None or not mine.cells:
        return Markdown(f"{text} The ratio of the steps: **not run**.")
    config = mine.cells[0]
    text += f" The step timed is *{step[1]}* of the [table below](#speed-step)"
    if step[1].startswith("speed run"):
        return Markdown(f"{text}: its own batches of {config.batch}, two of them for one of the papers' code.")
    own = f"batches of {config.batch} with {config.optimizer.capitalize()}"
    return Markdown(f"{text}, a batch of 256 with AdamW; the speed run's own {own} are not in that ratio.")


def verdict() -> Markdown:
    """The goals, and whether they were met."""
    mine, long = ours(), long_run()
    share, images = (mine.mean(), mine.runs[0].training.images) if mine.runs else (None, 0)
    said = [_against(f"{GOAL:g} % within one million images", share, GOAL, images, IMAGES)]
    share, images = (100 * long.vra(long.config.radius), long.training.images) if long else (None, 0)
    said.append(_against(f"{LONG_GOAL:g} % within ten million", share, LONG_GOAL, images, LONG_IMAGES))
    return Markdown(f"Aimed at: {'; '.join(said)}.")


def _against(what: str, share: float | None, goal: float, images: int, limit: int) -> str:
    """`limit`: the images of the goal. A run that ends long before them and below the goal decides nothing."""
    if share is None:
        return f"{what}, **not run**"
    if share < goal and images < 0.9 * limit:
        return f"{what}, **not decided**: {share:.2f} % after {images:,} images, where the run ends"
    return f"{what}, **{'met' if share >= goal else 'fell short'}** with {share:.2f} %"


def price_table() -> Markdown:
    """What an image costs: counted operations, the share that does not depend on the batch, images a second."""
    rows = []
    for recipe in (ours(), papers()):
        if not recipe.cells:
            rows.append((recipe.title, *[_NONE] * 4))
            continue
        config = recipe.cells[0]
        pace = f"{recipe.images_per_second():,.0f}" if recipe.runs else _NONE
        whole = f"{recipe.operations() * recipe.runs[0].training.images / 1e15:.2f}" if recipe.runs else _NONE
        count = f"{recipe.operations() / 1e9:.2f}"
        rows.append((recipe.title, config.batch, count, f"{100 * fixed_share(config):.0f} %", whole, pace))
    head = ("recipe", "batch", "GFLOP an image", "whatever the batch", "a run, 10¹⁵", "images/s")
    return table(head, rows, right=(1, 2, 3, 4, 5))


def price_words() -> Markdown:
    """What is counted, and what the seconds are worth."""
    runs = [*ours().runs, *papers().runs]
    text = (
        "Counted are convolutions and products as plain ones, forward and backward, and what a step takes whatever its "
        "batch: orthogonalisation, norm estimates, optimiser."
    )
    if not runs:
        return Markdown(f"{text} Seconds: **not run**.")
    places = " and ".join(sorted({machine(run) for run in runs}))
    return Markdown(
        f"{text} Both recipes ran on the code of this study, on {places}, beside other programs: seconds and images a "
        "second are for orientation, and no ratio here is made of them."
    )


def long_words() -> Markdown:
    """The same recipe on a wider network and more images."""
    run = long_run()
    if run is None:
        return Markdown("The same recipe on a wider network and more images (`speedrun-cpu-long.yaml`): **not run**.")
    config = run.config
    return Markdown(
        "The same recipe on a wider network and more images: "
        f"L{config.depth} W{config.width}, {run.model.parameters / 1e6:.2f} M parameters, "
        f"{run.training.images:,} images, {percent(run.vra(config.radius))} VRA at {config.radius}, clean "
        f"{percent(run.clean_accuracy())}; one run, {duration(run.training.seconds)} on {machine(run)}. It is no entry "
        f"by the [rules](#speed-rules), whose budget is {IMAGES:,} images, and nothing was tuned for it."
    )


def differences() -> Markdown:
    """The settings in which the two recipes differ."""
    mine, theirs = ours(), papers()
    if not (mine.cells and theirs.cells):
        return Markdown("A file of settings is missing: **not run**.")
    pair = [recipe.cells[0] for recipe in (mine, theirs)]
    names = [name for name in type(pair[0]).model_fields if getattr(pair[0], name) != getattr(pair[1], name)]
    rows = [(f"`{name}`", *("automatic" if (v := getattr(c, name)) is None else v for c in pair)) for name in names]
    return table(("setting", mine.title, theirs.title), rows)


def choices_table() -> Markdown:
    """What runs that left settings open measured, and took."""
    rows = []
    for run in (run for run in load_records() if run.training.choices.measured):
        choices = run.training.choices
        taken = [choices.precision, choices.layout, choices.kernels or "torch", *["compiled"] * choices.compiled]
        times = sorted(choices.measured.items(), key=lambda item: item[1])
        steps = "; ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in times)
        rows.append((network_name(run), machine(run), steps, ", ".join(taken)))
    if not rows:
        return Markdown("No published run left these settings open: **not run**.")
    return table(("network", "machine", "measured, a step", "taken"), rows)


def study_list() -> Markdown:
    """The files of which runs are missing."""
    lines = [
        f"- `lipcert {'train' if planned == 1 else 'study'} notebooks/params/study/{name}.yaml`: {done} of {planned} "
        "runs published"
        for name, done, planned in progress()
        if done < planned
    ]
    return Markdown("\n".join(["Not run, or in part:", "", *lines]) if lines else "")


def readme_line() -> str:
    """The speed run in a sentence, for the README."""
    mine = ours()
    start = f"**Speed run**: `lipcert study notebooks/params/study/{OURS}.yaml` trains a CIFAR-10 network"
    if not mine.runs:
        return f"{start} on a million images, three times, and certifies it: not run yet."
    took = duration(sum(r.training.seconds + r.test.seconds for r in mine.runs))
    return (
        f"{start} on {mine.runs[0].training.images:,} images and certifies it, {mine.seeds}: {took} on "
        f"{machine(mine.runs[0])}. Expect a VRA of {spread(mine)} at {mine.runs[0].config.radius}."
    )
