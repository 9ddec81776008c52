"""Direct labels for lines and markers, put where they cover nothing."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHARACTER, _LINE = 0.62, 1.25  # width of a character and height of a line, in font sizes
_Box = tuple[float, float, float, float]  # left, low, right, high in points
_GAP = 5.0  # between a label and what it names, points


def place_labels(
    axes: "Axes", series: Sequence[tuple[str, Sequence[tuple[float, float]]]], colour: str, fontsize: float
) -> bool:
    """Write each series' label beside one of its points, where it covers no line, marker or other label.

    Args:
        series: (label, points in data coordinates); call it last, when limits are set.

    Returns:
        Whether there was such a place for every label; if not, nothing is written and a legend is in order.
    """
    axes.figure.draw_without_rendering()
    scale = axes.figure.dpi / 72
    paths = [axes.transData.transform(np.asarray(points)) / scale for _, points in series]
    obstacles = np.concatenate([_dense(path) for path in paths])
    frame = tuple(axes.get_window_extent().extents / scale)
    taken: list[_Box] = []
    places: list[tuple[int, _Box]] = []
    for (label, _), path in zip(series, paths, strict=True):
        width, height = _CHARACTER * fontsize * len(label), _LINE * fontsize
        covered, _, n, box = min(
            (_cost(box, obstacles, taken, frame), k, n, box) for k, n, box in _boxes(path, width, height)
        )
        if covered:
            return False
        taken.append(box)
        places.append((n, box))
    style = {"textcoords": "offset points", "va": "bottom", "color": colour, "fontsize": fontsize}
    for (label, points), path, (n, box) in zip(series, paths, places, strict=True):
        axes.annotate(label, points[n], (box[0] - path[n][0], box[1] - path[n][1]), **style)
    return True


def _dense(path: np.ndarray) -> np.ndarray:
    """A polyline as points a few points apart."""
    return np.concatenate([path, *(np.linspace(a, b, 8) for a, b in itertools.pairwise(path))])


def _boxes(path: np.ndarray, width: float, height: float) -> Iterator[tuple[int, int, _Box]]:
    """Candidates (distance, point, box): to the four corners of every point, near and a little farther."""
    for k, gap in enumerate((_GAP, 3 * _GAP)):
        for n, (x, y) in enumerate(path):
            for left in (x + _GAP, x - _GAP - width):
                for low in (y + gap, y - gap - height):
                    yield k, n, (left, low, left + width, low + height)


def _cost(box: _Box, obstacles: np.ndarray, taken: Sequence[_Box], frame: _Box) -> int:
    """How much a box covers; labels on labels and labels outside the frame are worst."""
    left, low, right, high = box
    x, y = obstacles.T
    covered = (x > left - _GAP) & (x < right + _GAP) & (y > low - _GAP / 2) & (y < high + _GAP / 2)
    clashes = sum(left < b[2] and right > b[0] and low < b[3] and high > b[1] for b in taken)
    outside = left < frame[0] or right > frame[2] or low < frame[1] or high > frame[3]
    return int(covered.sum()) + 100 * clashes + 1000 * outside
