"""Fixed choices: which images are held out, which classes and how many of their images a subset keeps.

All come from one rule: draw one raw 64-bit number of PCG64 per item, sort by it. NumPy promises that the raw stream of
a bit generator never changes (NEP 19), but not what `Generator.choice` or `permutation` make of it: a new release could
change what is held out.

Shape suffixes: N images, M images of a whole part of the source, K classes.
"""

import numpy as np

SPLIT_SEED = 2023


def draw_order(count: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """A permutation of range(count), int64, the same on every platform and NumPy release.

    A tuple of seeds is a seed of its own: (s, 1) draws other numbers than s.
    """
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


def images_of_each(train_images: int, classes: int) -> int:
    """How many of every class, where `train_images` of `classes` classes are kept.

    Raises ValueError unless every class gets as many, and at least one.
    """
    whole = isinstance(train_images, int) and not isinstance(train_images, bool)
    if not whole or train_images < classes or train_images % classes:
        near = max(train_images // classes, 1) * classes if whole else classes
        rule = f"must be a multiple of {classes}, so that every class has as many, such as {near}"
        raise ValueError(f"train_images={train_images!r} with {classes} classes: {rule}")
    return train_images // classes


def choose_images(
    labels_M: np.ndarray,
    index_N: np.ndarray,
    class_ids: tuple[int, ...],
    class_names: tuple[str, ...],
    each: int,
    seed: int,
) -> np.ndarray:
    """Ascending indices of the `each` images of every class in `class_ids` that come first in a seeded order of all M.

    Subsets of one seed are nested: 50 images of a class are among its 100. Which images of a class are kept does not
    depend on the other classes, so that a study of the class count keeps its images too. The order is drawn apart from
    that of `choose_classes` with the same seed.

    index_N: the indices to choose from: those left of range(M) when a validation split was cut off.
    class_names: of all classes of the source.

    Raises ValueError where a class has fewer left.
    """
    left_K = np.bincount(labels_M[index_N], minlength=len(class_names))[list(class_ids)]
    if each > (least := left_K.min()):
        scarce = f"{each} of every class, but {class_names[class_ids[left_K.argmin()]]!r} has {least} to train on"
        raise ValueError(f"train_images={each * len(class_ids)}: {scarce}; must be at most {least * len(class_ids)}")
    order_M = draw_order(len(labels_M), (seed, 1))
    order_N = order_M[np.isin(order_M, index_N)]
    return np.sort(np.concatenate([order_N[labels_M[order_N] == label][:each] for label in class_ids]))
