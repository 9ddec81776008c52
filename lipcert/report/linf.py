"""HEAD"""
# The best published number of interval training for each of the second version's.
_ELSEWHERE = (
    ("linf-v2_radius-0-1_mnist_linf_0-1_vra", "cc-ibp-mtl-ibp-exp-ibp_cc-ibp_mnist_linf_0-1_vra"),
    (
        "linf-v2_radius-0-3_mnist_linf_0-3_vra",
        "verifiably-robust-training_ibp-based-training-lyu-et-al_mnist_linf_0-3_vra",
    ),
    ("linf-v2_radius-2-255_cifar10_linf_2-255_vra", "cc-ibp-mtl-ibp-exp-ibp_cc-ibp_cifar10_linf_2-255_vra"),
    ("linf-v2_radius-8-255_cifar10_linf_8-255_vra", "cc-ibp-mtl-ibp-exp-ibp_mtl-ibp_cifar10_linf_8-255_vra"),
)


def headline() -> Markdown:
    """What came out, in one sentence for the top of the page."""
    said = []
    for (radius, loss), arm in mnist().items():
        if loss != "ibp" and arm.runs:
            said.append(f"MNIST at {radius}: {arm.mean('interval'):.2f} % ({_seeds(arm)})")
    named = [
        f"{WAYS[way][0]} {arm.mean('interval'):.2f} %" for way, arm in cifar().items() if way in WAYS and arm.runs
    ]
    if named:
        said.append(f"CIFAR-10 at 8/255: {', '.join(named)}")
    if not said:
        return Markdown("**Certified accuracy of the networks of this chapter: not run.**")
    return Markdown(f"**Certified accuracy of small networks trained here**, {'; '.join(said)}.")


# --- MNIST -----------------------------------------------------------------------------------------------------------


def mnist_table() -> Markdown:
    """Clean and certified accuracy by radius, the two rules side by side, with what was published."""
    rows = []
    for (radius, loss), arm in mnist().items():
        prefix = None if loss == "ibp" else f"linf-v2_radius-{radius.replace('.', '-')}"
        name = arm.network or ("convolutions, IBP" if loss == "ibp" else "l_inf-distance net")
        rows.append((radius, name, *(_cell(arm, what) for what in _SERIES), _both(prefix, "mnist", radius)))
    head = ("radius", "network", "clean", "by margins", "by intervals", "published: clean, certified")
    return table(head, rows, right=(2, 3, 4))


def mnist_words() -> Markdown:
    """The table in words: what intervals gain, how far the published networks are, and what IBP reaches."""
    said = []
    for (radius, loss), arm in mnist().items():
        if not arm.runs:
            continue
        if loss == "ibp":
            said.append(_beside(radius, arm))
            continue
        gains = [
            run.result(radius, method="interval").certified_correct
            - run.result(radius, method="margin").certified_correct
            for run in arm.runs
        ]
        run = arm.runs[0]
        _, row = _published(f"linf-v2_radius-{radius.replace('.', '-')}", "mnist", radius)
        far = "" if row is None else (
            f" The published network has {row.parameters_millions:g} M parameters and reaches {row.value} %, "
            f"{float(row.value) - arm.mean('interval'):+.2f} points; ours has {run.model.parameters / 1e6:.2f} M and "
            f"{run.config.epochs:g} epochs: **not comparable**."
        )  # fmt: skip
        said.append(
            f"At {radius} intervals certify {_span(gains)} images of {run.test.images:,} more than margins "
            f"({_seeds(arm)}).{far}"
        )
    return Markdown("\n\n".join(said)) if said else NOT_RUN


def _beside(radius: str, arm: Arm) -> str:
    """Interval-trained convolutions beside the distance net at that radius."""
    ours = mnist().get((radius, "linf_mixture"), Arm())
    reached = f"At {radius} convolutions trained and certified by intervals reach {arm.mean('interval'):.2f} %"
    if not ours.runs:
        return f"{reached} ({_seeds(arm)}); the distance net was not run."
    images = _span([run.training.images for run in (*arm.runs, *ours.runs)])
    return (
        f"{reached} ({_seeds(arm)}, {arm.runs[0].model.parameters / 1e6:.2f} M parameters, {images} images seen by "
        f"either): {arm.mean('interval') - ours.mean('interval'):+.2f} points from the distance net."
    )


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def mnist_figure() -> "Figure | Markdown":
    """One line a radius and network, one dot a seed, the published number hollow."""
    lines = []
    for (radius, loss), arm in mnist().items():
        if arm.runs:
            prefix = f"linf-v2_radius-{radius.replace('.', '-')}"
            row = None if loss == "ibp" else _published(prefix, "mnist", radius)[1]
            lines.append((f"{radius}, {'IBP' if loss == 'ibp' else 'distances'}", arm, row))
    return _dots("linf-mnist", lines, "share of MNIST test images, %", mnist_words())


# --- the parts of the loss -------------------------------------------------------------------------------------------


def losses_table() -> Markdown:
    """Every part of the loss on MNIST, beside the published ablation on CIFAR-10."""
    rows = []
    for part, arm in losses().items():
        name, prefix = PARTS[part]
        clean, certified = _published(prefix, "cifar10", "8/255")
        ours = (_cell(arm, "clean"), _cell(arm, "interval"))
        rows.append((name, *ours, *(_number(row, mark=False) for row in (clean, certified))))
    radius = _loss_radius()
    at = f" at {radius}" if radius else ""
    head = ("loss", "MNIST, clean", f"MNIST, certified{at}", "published: CIFAR-10, clean", "certified at 8/255")
    return table(head, rows, right=(1, 2, 3, 4))


def _loss_radius() -> str:
    return next((arm.cells[0].radius for arm in losses().values() if arm.cells), "")


def losses_words() -> Markdown:
    """Our order beside the published one, and which neighbours the seeds do not tell apart."""
    ours = {part: arm for part, arm in losses().items() if arm.runs}
    if not ours:
        return NOT_RUN
    rows = {part: _published(PARTS[part][1], "cifar10", "8/255")[1] for part in ours}
    order = sorted(ours, key=lambda part: -ours[part].mean("interval"))
    theirs = sorted((part for part in ours if rows[part]), key=lambda part: -float(rows[part].value))
    here = ", ".join(f"{PARTS[part][0]} {ours[part].mean('interval'):.2f} %" for part in order)
    there = ", ".join(f"{PARTS[part][0]} {rows[part].value} %" for part in theirs)
    same = "The order is the same." if order == theirs else "**The order is not the same.**"
    missing = f" {len(PARTS) - len(ours)} of {len(PARTS)} losses were not run." if len(ours) < len(PARTS) else ""
    evidence = sorted({EVIDENCE[row.evidence] for row in rows.values() if row})
    return Markdown(
        f"Best first, here: {here}. Published, on another data set and {', '.join(evidence)}: {there}. {same}"
        f"{_overlaps(order, ours)}{missing}"
    )


def _overlaps(order: Sequence[str], found: dict[str, Arm]) -> str:
    """Neighbours whose ranges over the seeds meet."""
    pairs = [
        f"{PARTS[better][0]} and {PARTS[worse][0]}"
        for better, worse in itertools.pairwise(order)
        if min(found[better].shares("interval")) <= max(found[worse].shares("interval"))
    ]
    if not pairs:
        return " No ranges over the seeds meet between neighbours." if len(order) > 1 else ""
    return f" The ranges over the seeds meet for {'; '.join(pairs)}: these are not told apart."


def losses_figure() -> "Figure | Markdown":
    """One line a part of the loss, one dot a seed."""
    lines = [(PARTS[part][0].replace(", ", ",\n"), arm, None) for part, arm in losses().items() if arm.runs]
    return _dots("linf-losses-mnist", lines, "share of MNIST test images, %", losses_words())


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def cifar_table() -> Markdown:
    """Hinge, mixture and interval training at 8/255, with what was published."""
    rows = []
    for way, arm in cifar().items():
        name, prefix = WAYS[way]
        size = f"{arm.runs[0].model.parameters / 1e6:.2f} M" if arm.runs else ""
        shares = (_cell(arm, what) for what in _SERIES)
        rows.append((f"{name}{', ' + size if size else ''}", *shares, _both(prefix, "cifar10", "8/255")))
    head = ("trained with", "clean", "by margins", "by intervals", "published: clean, certified")
    return table(head, rows, right=(1, 2, 3))


def cifar_words() -> Markdown:
    """Who is ahead, at how many images seen, for how much time."""
    found = {way: arm for way, arm in cifar().items() if arm.runs}
    if not found:
        return NOT_RUN
    runs = [run for arm in found.values() for run in arm.runs]
    order = sorted(found, key=lambda way: -found[way].mean("interval"))
    said = ", ".join(f"{WAYS[way][0]} {found[way].mean('interval'):.2f} %" for way in order)
    hours = sum(run.training.seconds for run in runs) / 3600
    missing = f" {len(WAYS) - len(found)} of {len(WAYS)} were not run." if len(found) < len(WAYS) else ""
    few = {len(arm.runs) for arm in found.values()} == {1}
    caution = " Every line is one run, so small differences mean nothing." if few else ""
    return Markdown(
        f"Certified by intervals at 8/255, best first: {said}. Images seen: {_span([r.training.images for r in runs])}; "
        f"training took {hours:.1f} hours in all.{caution}{missing}"
    )


def cifar_figure() -> "Figure | Markdown":
    """One line a way of training."""
    lines = [
        (WAYS[way][0].replace(", ", ",\n"), arm, _published(WAYS[way][1], "cifar10", "8/255")[1])
        for way, arm in cifar().items()
        if arm.runs
    ]
    return _dots("linf-cifar10", lines, "share of CIFAR-10 test images, %", cifar_words())


def elsewhere_words() -> Markdown:
    """The published comparison at full size: the second version against the best interval training in our list."""
    said = []
    for ours, theirs in _ELSEWHERE:
        first, second = _row(ours), _row(theirs)
        if first and second:
            data = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[first.dataset]
            said.append(f"{data} at {first.radius}: {first.value} % against {second.value} % ({second.model})")
    return Markdown(
        f"Published at full size, the second version against the best interval training in our list: {'; '.join(said)}. "
        "The latter are quoted by a third party."
    )
