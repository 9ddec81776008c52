"""Affinity sets: groups of classes that may be mistaken for each other, read from text, lists or a 0/1 matrix.

Shape letters: S sets, K classes.
"""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from lipcert.chain import NotCertifiable

Affinity = tuple[tuple[int, ...], ...]
_TEXT = re.compile(r"\s*(\[[^\[\]]*\]\s*)+")


def affinity_sets(given: Any, classes: int, class_names: Sequence[str] | None = None) -> Affinity:
    """Sets of class numbers, each ascending, in the order given.

    Args:
        given: text such as `"[3, 5][cat, dog]"`; a sequence of sequences, or a mapping with them as values, of class
            numbers and names; or an (S, K) tensor or array of 0 and 1. Text inside brackets is a class's name if there
            is such a class, else its number.
        classes: K. class_names: K names, if names are used.

    Raises:
        NotCertifiable: what is none of these, an unknown class, an empty set, a class twice in one set, or a set of
            all classes: it would forbid nothing.
    """
    names = [] if class_names is None else [str(name) for name in class_names]
    if names and len(names) != classes:
        raise NotCertifiable(f"{len(names)} class names for {classes} classes: need one each")
    sets = tuple(_numbers(members, classes, names) for members in _listed(given, classes))
    if not sets:
        raise NotCertifiable(f"affinity={given!r}: need at least one set, such as '[0,1][2,3]'")
    return sets


def _listed(given: Any, classes: int) -> list[list[Any]]:
    """The sets as lists, classes not looked at yet."""
    if isinstance(given, str):
        if not _TEXT.fullmatch(given):
            raise NotCertifiable(f"affinity={given!r}: sets are written '[0,1][2,3]', with numbers or names of classes")
        groups = re.findall(r"\[([^\[\]]*)\]", given)
        return [[part.strip() for part in group.split(",")] if group.strip() else [] for group in groups]
    if isinstance(given, (torch.Tensor, np.ndarray)):
        matrix_SK = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
        if matrix_SK.ndim != 2 or matrix_SK.shape[1] != classes or not np.isin(matrix_SK, (0, 1)).all():
            raise NotCertifiable(f"affinity of shape {matrix_SK.shape}: a matrix must be (sets, {classes}) of 0 and 1")
        return [np.flatnonzero(row_K).tolist() for row_K in matrix_SK]
    listed = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(listed, Sequence) or not all(isinstance(s, (list, tuple, set, frozenset)) for s in listed):
        raise NotCertifiable(f"affinity={given!r}: must be sets of classes, such as [[0, 1], [2, 3]]")
    return [list(members) for members in listed]


def _numbers(members: list[Any], classes: int, names: list[str]) -> tuple[int, ...]:
    numbers = sorted(_number(member, classes, names) for member in members)
    if not numbers:
        raise NotCertifiable("an affinity set is empty: leave it out")
    if len(set(numbers)) != len(numbers):
        raise NotCertifiable(f"affinity set {members}: names a class twice")
    if len(numbers) == classes:
        raise NotCertifiable(f"affinity set {members}: holds all {classes} classes, so it forbids nothing")
    return tuple(numbers)


def _number(member: Any, classes: int, names: list[str]) -> int:
    if isinstance(member, str) and member in names:
        return names.index(member)
    number = int(member) if isinstance(member, str) and member.isdecimal() else member
    if isinstance(number, Integral) and not isinstance(number, bool) and 0 <= number < classes:
        return int(number)
    known = f", or one of {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else ""
    raise NotCertifiable(f"class {member!r} in an affinity set: must be 0 to {classes - 1}{known}")
