"""What a request asks of its list beside the best items: which only, which promoted, how unlike
each other, and what was shown before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.catalogue.diversity import POOL, spread
from service.catalogue.ranking import NO_ITEMS, Ranking
from service.catalogue.view import Selection


@dataclass(frozen=True, eq=False)
class Choice:
    """Attributes:
    selection: what only may be returned; None: everything.
    promoted: what is promoted, all of it in the selection; None: nothing.
    share: of the places, those in which promoted items come first.
    diversity: 0 (the best) to 1 (the most unlike).
    shown: rows on the pages before, which are masked as well.
    places: the number of places on the pages before.
    """

    selection: Selection | None = None
    promoted: Selection | None = None
    share: float = 0.0
    diversity: float = 0.0
    shown: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)
    places: int = 0

    def depth(self, k: int) -> int:
        """How many of the best are needed."""
        return max(k, POOL) if self.diversity else k

    def arrange(
        self,
        best: Ranking,
        promoted: Ranking | None,
        k: int,
        vectors_of: Callable[[NDArray[np.int64]], Tensor],
    ) -> Ranking:
        """k items of `depth(k)` best ones and of k promoted ones.

        Args:
            vectors_of: (len(rows), D) the vectors of rows.
        """
        if self.diversity:
            pool = best.items[:POOL]
            before = vectors_of(self.shown.astype(np.int64)).float().cpu().numpy()
            vectors = vectors_of(pool).float().cpu().numpy()
            order = spread(best.scores[:POOL], vectors, self.diversity, k, before)
            order = np.concatenate([order, np.arange(len(pool), len(best.items))])
            best = replace(best, items=best.items[order], scores=best.scores[order])
        if promoted is not None:
            return self._with(promoted, best, k)
        return replace(best, items=best.items[:k], scores=best.scores[:k])

    def is_promised(self, place: int) -> bool:
        """Whether promoted items come first in this place, counted from 0 on the first page."""
        return int((place + 1) * self.share + 1e-9) > int(place * self.share + 1e-9)

    def _with(self, promoted: Ranking, best: Ranking, k: int) -> Ranking:
        own, other = _pairs(best), _pairs(promoted)
        items: dict[int, float] = {}
        moved: list[bool] = []
        while len(items) < k:
            for pairs in (own, other):
                while pairs and pairs[0][0] in items:
                    pairs.popleft()
            raised = bool(other) and self.is_promised(self.places + len(items))
            if not raised and not own:
                break
            row, score = other[0] if raised else own[0]
            items[row] = score
            moved.append(raised and (not own or own[0][0] != row))
        return replace(
            best,
            items=np.array(list(items), np.int64),
            scores=np.array(list(items.values()), np.float32),
            promoted=np.array(moved, np.bool_),
        )


def _pairs(ranking: Ranking) -> deque[tuple[int, float]]:
    return deque(zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True))
