"""Fixed choices: which images are held out, which classes a subset keeps.

Both come from one rule: draw one raw 64-bit number of PCG64 per item, sort by it. NumPy promises that the raw stream of
a bit generator never changes (NEP 19), but not what `Generator.choice` or `permutation` make of it: a new release could
change what is held out.

Shape suffixes: N images, K classes.
"""

import numpy as np

SPLIT_SEED = 2023


def draw_order(count: int, seed: int) -> np.ndarray:
    """A permutation of range(count), int64, the same on every platform and NumPy release."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def stratified_cut(labels_N: np.ndarray, sizes: tuple[int, ...], seed: int = SPLIT_SEED) -> list[np.ndarray]:
    """Cut range(N) into parts of the given sizes and a last part with the rest, every class in proportion.

    Returns `len(sizes) + 1` disjoint ascending int64 index arrays that together hold every index once. Each part but
    the last has exactly its size, and takes from each class, to within one image, the same share of what is left of it.
    """
    labels_N = np.asarray(labels_N)
    counts_K = np.bincount(labels_N)
    position_N = np.empty(len(labels_N), dtype=np.int64)
    order_N = draw_order(len(labels_N), seed)
    for label in range(len(counts_K)):
        members = order_N[labels_N[order_N] == label]
        position_N[members] = np.arange(len(members))
    parts, start_K = [], np.zeros_like(counts_K)
    for size in sizes:
        stop_K = start_K + proportional(counts_K - start_K, size)
        parts.append(np.flatnonzero((position_N >= start_K[labels_N]) & (position_N < stop_K[labels_N])))
        start_K = stop_K
    parts.append(np.flatnonzero(position_N >= start_K[labels_N]))
    return parts


def proportional(counts_K: np.ndarray, size: int) -> np.ndarray:
    """Share `size` seats in proportion to `counts_K`: whole seats, then largest remainders, ties to low classes."""
    whole_K, remainder_K = np.divmod(counts_K * size, counts_K.sum())
    winners = np.argsort(-remainder_K, kind="stable")[: size - whole_K.sum()]
    whole_K[winners] += 1
    return whole_K


def choose_classes(name: str, total: int, classes: int | None, seed: int) -> tuple[int, ...]:
    """Ascending ids of the classes kept: all for None, else the first `classes` of a seeded order.

    Subsets of one seed are nested: the 10 classes of a seed are among its 20, so that a study of the class count adds
    classes instead of exchanging them.

    Raises ValueError unless 2 <= classes <= total.
    """
    if classes is None:
        return tuple(range(total))
    if isinstance(classes, bool) or not isinstance(classes, int) or not 2 <= classes <= total:
        raise ValueError(f"classes={classes!r} with '{name}': must be an integer from 2 to {total}, or None for all")
    return tuple(sorted(draw_order(total, seed)[:classes].tolist()))
