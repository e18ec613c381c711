"""Lists whose items are unlike each other: maximal marginal relevance (Carbonell and Goldstein,
1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POOL = 200
"""The best so many are put in another order; who comes after them keeps their place."""


def spread(
    scores_N: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    diversity: float,
    k: int,
    before_MD: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """The places of k items, in the order in which each has the largest

        (1 - diversity) * its score, scaled to 0..1 - diversity * its cosine to the nearest before

    (a cosine below 0 is 0). Of equal ones the first is taken.

    Args:
        scores_N: best first.
        before_MD: vectors of items that the list goes on from.
    """
    k = min(k, len(scores_N))
    if not k:
        return np.empty(0, np.int64)
    span = max(float(np.ptp(scores_N)), 1e-12)
    relevance = (scores_N - scores_N.min()) / span * (1 - diversity)
    unit = _unit(vectors_ND)
    nearest = np.zeros(len(scores_N), np.float32)
    if before_MD is not None and len(before_MD):
        np.maximum(nearest, (unit @ _unit(before_MD).T).max(1), out=nearest)
    left = np.ones(len(scores_N), np.bool_)
    chosen = np.empty(k, np.int64)
    for place in range(k):
        value = np.where(left, relevance - diversity * nearest, -np.inf)
        best = int(value.argmax())
        chosen[place] = best
        left[best] = False
        np.maximum(nearest, unit @ unit[best], out=nearest)
    return chosen


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12
    )
    return unit
