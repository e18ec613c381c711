"""Items whose vectors point where another's does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView, Flags

Rows = NDArray[np.int64]


def similar(
    row: int,
    ask: Ask,
    view: CatalogueView,
    around: Callable[[Tensor, int, Flags], Rows],
    vectors_of: Callable[[Rows], Tensor],
) -> Ranking:
    """The items nearest to this row's, without itself; the score is the cosine.

    Args:
        around: of a vector of length 1, k and flags: rows with a flag, among which are the k
            nearest.
        vectors_of: (len(rows), D) the vectors of rows.
    """
    flags = view.open.copy()
    flags[ask.hidden] = flags[row] = False
    query_D = _unit(vectors_of(np.array([row])))[0]
    rows = around(query_D, ask.k, flags)
    scores = (_unit(vectors_of(rows)) @ query_D).numpy()
    order = np.lexsort((rows, -scores))[: ask.k]
    return Ranking(rows[order], scores[order])


def _unit(vectors_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_ND.float().cpu(), dim=1)
