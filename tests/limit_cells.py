"""Cells for the fits of the page on limits, made by hand."""

import math
from collections.abc import Iterable

import numpy as np

from lipcert.report.limits import Cell

PLACES = np.geomspace(1e12, 1e16, 9)  # operations; their geometric mean is 1e14


def cell(vra: float, operations: float, images: int = 1000, parameters: int = 1000) -> Cell:
    return Cell(f"net {operations:g}", "a recipe", parameters, images, operations, (), (vra,), math.nan)


def curve(top: float, exponent: float, size: float, operations: Iterable[float]) -> list[Cell]:
    """Cells exactly on the curve with that ceiling; `size` is what is missing from it at the geometric mean."""
    reference = float(np.exp(np.log(operations).mean()))
    return [cell(100 * (top - size * (x / reference) ** -exponent), x) for x in operations]
