"""Scores of one or a few queries on a CPU, compiled by Numba.

A BLAS first packs the catalogue's vectors for itself when there is more than one query, which costs
more than the product of few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.compiled import compiled

COLUMNS = 1024
"""Items whose vectors stay near while all queries meet them."""


def scores(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, V) products of `queries` (B, D) and `vectors` (D, V)."""
    found = np.empty((len(queries), vectors.shape[1]), np.float32)
    _scores(np.ascontiguousarray(queries), vectors, found)
    return found


@compiled
def _scores(queries: Any, vectors: Any, found: Any) -> Any:
    depth, columns = vectors.shape
    for begin in range(0, columns, COLUMNS):
        end = min(columns, begin + COLUMNS)
        for row in range(len(queries)):
            q, sums = queries[row], found[row, begin:end]
            for i in range(end - begin):
                sums[i] = 0
            # Eight at once, else the sums are loaded and stored more often than the vectors.
            for j in range(0, depth - 7, 8):
                v0, v1 = vectors[j, begin:end], vectors[j + 1, begin:end]
                v2, v3 = vectors[j + 2, begin:end], vectors[j + 3, begin:end]
                v4, v5 = vectors[j + 4, begin:end], vectors[j + 5, begin:end]
                v6, v7 = vectors[j + 6, begin:end], vectors[j + 7, begin:end]
                q0, q1, q2, q3 = q[j], q[j + 1], q[j + 2], q[j + 3]
                q4, q5, q6, q7 = q[j + 4], q[j + 5], q[j + 6], q[j + 7]
                for i in range(end - begin):
                    sums[i] += (v0[i] * q0 + v1[i] * q1 + v2[i] * q2 + v3[i] * q3) + (
                        v4[i] * q4 + v5[i] * q5 + v6[i] * q6 + v7[i] * q7
                    )
            for j in range(depth - depth % 8, depth):
                own = vectors[j, begin:end]
                for i in range(end - begin):
                    sums[i] += own[i] * q[j]
