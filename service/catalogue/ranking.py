"""The items of one answer, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_ITEMS: NDArray[np.int32] = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Attributes:
    items, scores: rows of the catalogue, and their scores.
    indexed: an index found them.
    recent: they are what is popular of late, by their numbers.
    live: what has happened since the training counted.
    promoted: which have their places by a promotion; None: none.
    explored: which are there to be known better; None: none.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    indexed: bool = False
    recent: bool = False
    live: bool = False
    promoted: NDArray[np.bool_] | None = None
    explored: NDArray[np.bool_] | None = None
