"""Items whose vectors point where a vector does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalogue.ranking import Ranking
from service.catalogue.view import Flags

Rows = NDArray[np.int64]


def similar(
    vector_D: Tensor,
    k: int,
    flags: Flags,
    around: Callable[[Tensor, int, Flags], Rows],
    vectors_of: Callable[[Rows], Tensor],
) -> Ranking:
    """The items with a flag that are nearest to a vector; the score is the cosine.

    Args:
        around: of a vector of length 1, k and flags: rows with a flag, among which are the k
            nearest.
        vectors_of: (len(rows), D) the vectors of rows.
    """
    query_D = _unit(vector_D[None])[0]
    rows = around(query_D, k, flags)
    scores = (_unit(vectors_of(rows)) @ query_D).numpy()
    order = np.lexsort((rows, -scores))[:k]
    return Ranking(rows[order], scores[order])


def _unit(vectors_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_ND.float().cpu(), dim=1)
