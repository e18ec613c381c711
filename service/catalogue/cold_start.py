"""Vectors of items that the model has not been trained on, until it is; where it has no content.

An item that is said to be similar to others gets the mean of their vectors, as long as theirs
are. Else its categories say where it lies: a ridge regression from categories to the vectors of the
trained items (`python -m benchmarks.cold_start` compares it with means). An item without either
gets the mean of all vectors, so that it scores as the average item does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.catalogue.turns import Steps

Vector = NDArray[np.float32]

PENALTY = 10.0
MOST_CATEGORIES, MOST_ITEMS = 500, 100_000
"""The regression looks at so many of the most frequent categories, and at so many items."""
_AT_ONCE, _ADDED = 64, 16_384


def summed(
    table_VD: Vector, categories: Callable[[int], Iterable[str]], penalty: float = PENALTY
) -> Steps[Callable[[], ColdStart]]:
    """What the regression needs of all items.

    Args:
        table_VD: the vectors of the trained items, row 1's first.
        categories: those of a trained row.
        penalty: of the regression.

    Returns:
        the rest: to be called once, and in another thread.
    """
    total = np.zeros(table_VD.shape[1])
    for start in range(0, len(table_VD), _ADDED):
        total += table_VD[start : start + _ADDED].sum(0)
        yield
    average: Vector = (total / len(table_VD)).astype(np.float32)
    rows = range(1, len(table_VD) + 1, -(-len(table_VD) // MOST_ITEMS))
    count = Counter[str]()
    for place, row in enumerate(rows):
        count.update(set(categories(row)))
        if place % _AT_ONCE == 0:
            yield
    counted = count.most_common(MOST_CATEGORIES)
    places = {name: place for place, (name, _) in enumerate(counted)}
    share = np.array([number for _, number in counted], np.float64) / len(rows)
    # Sums over the items less what the means are in them: most items have few categories.
    gram = np.zeros((len(counted), len(counted)))
    product = np.zeros((len(counted), table_VD.shape[1]))
    total = np.zeros(table_VD.shape[1])
    for place, row in enumerate(rows):
        apart = table_VD[row - 1] - average
        total += apart
        own = _known(places, categories(row))
        if own:
            gram[np.ix_(own, own)] += 1
            product[own] += apart
        if place % _AT_ONCE == 0:
            yield
    gram -= len(rows) * np.outer(share, share)
    product -= np.outer(share, total)
    gram[np.diag_indices_from(gram)] += penalty
    return partial(ColdStart, table_VD, average, places, share, gram, product)


class ColdStart:
    """Vectors of new items.

    Args:
        table_VD, average_D: the vectors of the trained items, and their mean.
        places: of the categories that the regression knows.
        share_C: how frequent they are.
        gram_CC, product_CD: the regression's equations.
    """

    def __init__(
        self,
        table_VD: Vector,
        average_D: Vector,
        places: dict[str, int],
        share_C: NDArray[np.float64],
        gram_CC: NDArray[np.float64],
        product_CD: NDArray[np.float64],
    ) -> None:
        self._table, self._average, self._places = table_VD, average_D, places
        self._share: Vector = share_C.astype(np.float32)
        self._weights: Vector = np.linalg.solve(gram_CC, product_CD).astype(np.float32)

    def vector(self, similar: Iterable[int], categories: Iterable[str]) -> Vector:
        """(D,) for an item that is like these trained rows, and has these categories."""
        rows = list(similar)
        if rows:
            return like(self._table, rows)
        known = _known(self._places, categories)
        if not known:
            return self._average
        apart = -self._share
        apart[known] += 1
        found: Vector = self._average + apart @ self._weights
        return found


def like(table_VD: Vector, rows: Sequence[int]) -> Vector:
    """(D,) The mean of these trained rows' vectors, as long as they are."""
    own = table_VD[np.array(rows) - 1]
    mean: Vector = own.mean(0)
    length = float(np.linalg.norm(mean))
    if length > 0:
        mean *= np.linalg.norm(own, axis=1).mean() / length
    return mean


def _known(places: dict[str, int], categories: Iterable[str]) -> list[int]:
    """The places of those that the regression knows, each once."""
    return list({places[name] for name in categories if name in places})
