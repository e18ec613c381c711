"""Sorting so much that one call would take too long: in many small ones."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypeVar

from service.catalogue.turns import Steps

T = TypeVar("T", bound=Any)

PART = 500
"""Values that are sorted in one call, about."""
_AT_ONCE, _DRAWN = 1000, 8


def sorted_parts(values: Sequence[T]) -> Steps[list[list[T]]]:
    """The values in order, in parts of about PART of them (a sample sort: Frazer and McKellar,
    1970)."""
    count = max(1, len(values) // PART)
    sample = sorted(random.sample(values, min(len(values), _DRAWN * count)))
    borders = sample[_DRAWN::_DRAWN]
    parts: list[list[T]] = [[] for _ in range(len(borders) + 1)]
    for start in range(0, len(values), _AT_ONCE):
        for value in values[start : start + _AT_ONCE]:
            parts[bisect_right(borders, value)].append(value)
        yield
    for part in parts:
        part.sort()
        yield
    return [part for part in parts if part]
