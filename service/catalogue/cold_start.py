"""Vectors of items that the model has not been trained on, until it is.

An item that is said to be similar to others gets the mean of their vectors, as long as theirs
are. Else its categories say where it lies: a ridge regression from categories to the vectors of the
trained items (`python -m benchmarks.cold_start` compares it with means). An item without either
gets the mean of all vectors, so that it scores as the average item does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PENALTY = 10.0
MOST_CATEGORIES, MOST_ITEMS = 500, 100_000
"""The regression looks at so many of the most frequent categories, and at so many items."""
_AT_ONCE = 8192


class ColdStart:
    """Args:
    table_VD: the vectors of the trained items, row 1's first.
    categories: those of a trained row.
    penalty: of the regression.
    """

    def __init__(
        self,
        table_VD: Vector,
        categories: Callable[[int], Iterable[str]],
        penalty: float = PENALTY,
    ) -> None:
        self._table = table_VD
        self._average: Vector = table_VD.mean(0)
        rows = range(1, len(table_VD) + 1, -(-len(table_VD) // MOST_ITEMS))
        own = [set(categories(row)) for row in rows]
        counted = Counter(name for names in own for name in names).most_common(MOST_CATEGORIES)
        self._places = {name: place for place, (name, _) in enumerate(counted)}
        self._share = np.array([count for _, count in counted], np.float32) / len(own)
        size, width = len(counted), table_VD.shape[1]
        gram: Vector = np.zeros((size, size), np.float32)
        product: Vector = np.zeros((size, width), np.float32)
        for start in range(0, len(own), _AT_ONCE):
            part = np.stack([self._one_hot(names) for names in own[start : start + _AT_ONCE]])
            part -= self._share
            places = np.array(rows[start : start + _AT_ONCE]) - 1
            gram += part.T @ part
            product += part.T @ (table_VD[places] - self._average)
        gram[np.diag_indices(size)] += penalty
        self._weights = np.linalg.solve(gram, product)

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
        known = [name for name in categories if name in self._places]
        if not known:
            return self._average
        found: Vector = self._average + (self._one_hot(known) - self._share) @ self._weights
        return found

    def _one_hot(self, categories: Iterable[str]) -> Vector:
        found = np.zeros(len(self._places), np.float32)
        found[[self._places[name] for name in categories if name in self._places]] = 1
        return found
