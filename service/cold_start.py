"""Vectors of items that the model has not been trained on, until it is.

An item that is said to be similar to others gets the mean of their vectors, as long as theirs are.
Else it gets the mean of the means of its categories: it then scores as the average item of them
does. An item without either scores as the average item of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class ColdStart:
    """Args:
    table_VD: the vectors of the trained items, row 1's first.
    members: the rows of the trained items of a category.
    """

    def __init__(self, table_VD: Vector, members: Callable[[str], Iterable[int]]) -> None:
        self._table, self._members = table_VD, members
        self._everything: Vector = table_VD.mean(0)
        self._means: dict[str, Vector | None] = {}

    def vector(self, similar: Iterable[int], categories: Iterable[str]) -> Vector:
        """(D,) for an item that is like these trained rows, and has these categories."""
        rows = np.fromiter(similar, np.int64) - 1
        if len(rows):
            like = self._table[rows]
            mean: Vector = like.mean(0)
            length = float(np.linalg.norm(mean))
            if length > 0:
                mean *= np.linalg.norm(like, axis=1).mean() / length
            return mean
        means = [mean for mean in map(self._mean, categories) if mean is not None]
        return np.mean(means, axis=0) if means else self._everything

    def _mean(self, category: str) -> Vector | None:
        if category not in self._means:
            rows = np.fromiter(self._members(category), np.int64) - 1
            self._means[category] = self._table[rows].mean(0) if len(rows) else None
        return self._means[category]
