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

from service.catalogue.turns import Steps

Vector = NDArray[np.float32]

PENALTY = 10.0
MOST_CATEGORIES, MOST_ITEMS = 500, 100_000
"""The regression looks at so many of the most frequent categories, and at so many items."""
_AT_ONCE, _ADDED = 256, 16_384


def fitted(
    table_VD: Vector, categories: Callable[[int], Iterable[str]], penalty: float = PENALTY
) -> Steps[ColdStart]:
    """Args:
    table_VD: the vectors of the trained items, row 1's first.
    categories: those of a trained row.
    penalty: of the regression.
    """
    total = np.zeros(table_VD.shape[1])
    for start in range(0, len(table_VD), _ADDED):
        total += table_VD[start : start + _ADDED].sum(0)
        yield
    average: Vector = (total / len(table_VD)).astype(np.float32)
    rows = range(1, len(table_VD) + 1, -(-len(table_VD) // MOST_ITEMS))
    own: list[set[str]] = []
    count = Counter[str]()
    for row in rows:
        own.append(set(categories(row)))
        count.update(own[-1])
        if row % _AT_ONCE == 1:
            yield
    counted = count.most_common(MOST_CATEGORIES)
    places = {name: place for place, (name, _) in enumerate(counted)}
    share = np.array([number for _, number in counted], np.float32) / np.float32(len(own))
    size, width = len(counted), table_VD.shape[1]
    gram: Vector = np.zeros((size, size), np.float32)
    product: Vector = np.zeros((size, width), np.float32)
    for start in range(0, len(own), _AT_ONCE):
        part = np.stack([_one_hot(places, names) for names in own[start : start + _AT_ONCE]])
        part -= share
        at = np.array(rows[start : start + _AT_ONCE]) - 1
        gram += part.T @ part
        product += part.T @ (table_VD[at] - average)
        yield
    gram[np.diag_indices(size)] += penalty
    weights: Vector = np.linalg.solve(gram, product)
    return ColdStart(table_VD, average, places, share, weights)


class ColdStart:
    """Vectors of new items, as `fitted` found them.

    Args:
        table_VD, average_D: the vectors of the trained items, and their mean.
        places: of the categories that the regression knows.
        share_C, weights_CD: how frequent they are, and what they say.
    """

    def __init__(
        self,
        table_VD: Vector,
        average_D: Vector,
        places: dict[str, int],
        share_C: Vector,
        weights_CD: Vector,
    ) -> None:
        self._table, self._average, self._places = table_VD, average_D, places
        self._share, self._weights = share_C, weights_CD

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
        apart: Vector = _one_hot(self._places, known) - self._share
        found: Vector = self._average + apart @ self._weights
        return found


def _one_hot(places: dict[str, int], categories: Iterable[str]) -> Vector:
    found = np.zeros(len(places), np.float32)
    found[[places[name] for name in categories if name in places]] = 1
    return found
