"""What is popular: of late, if that is known, then in the training part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView


class Popular:
    """Scores are numbers of interactions, the recent ones if those are known. Items that came after
    the training have none there, the newest of them first.

    Args:
        counts: (V,) interactions in the training part.
    """

    def __init__(self, counts: Sequence[int] | NDArray[Any]) -> None:
        self._counts = np.asarray(counts).astype(np.float32)
        self._order = np.argsort(-np.asarray(counts), kind="stable") + 1
        self.show_recent([])

    def show_recent(self, numbers: Sequence[tuple[int, float]]) -> None:
        """What is popular of late: rows and their numbers, most first; none: not known."""
        rows, counted = zip(*numbers, strict=True) if numbers else ((), ())
        self._recent = np.array(rows, np.int64), np.array(counted, np.float32)

    def top(self, view: CatalogueView, ask: Ask, *, in_training: bool = False) -> Ranking:
        """The most popular items; `in_training`: whatever is so of late."""
        order, selection, (recent, numbers) = self._order, ask.selection, self._recent
        if in_training:
            recent, numbers = recent[:0], numbers[:0]
        in_view = recent <= view.size  # what has become popular just now may be too new for it
        recent, numbers = recent[in_view], numbers[in_view]
        by_recent = len(recent) > 0
        if not view.plain or selection is not None:
            order = np.concatenate([order, np.arange(view.size, len(order), -1)])
            flags = view.open if selection is None else selection.on(view)
            order, left = order[flags[order]], flags[recent]
            recent, numbers = recent[left], numbers[left]
        head = order[: ask.k + len(ask.hidden) + len(recent)]
        scores = self._in_training(head)
        if by_recent:
            head = np.concatenate([recent, head[~np.isin(head, recent)]])
            scores = np.zeros(len(head), np.float32)
            scores[: len(numbers)] = numbers
        left = ~np.isin(head, ask.hidden)
        return Ranking(head[left][: ask.k], scores[left][: ask.k], recent=by_recent)

    def rank(self, rows: NDArray[np.int64], k: int) -> Ranking:
        """The k most popular of these rows; equal ones in their order."""
        ever = self._in_training(rows)
        recent = dict(zip(*(one.tolist() for one in self._recent), strict=True))
        scores = np.array([recent.get(row, 0) for row in rows.tolist()], np.float32)
        order = np.lexsort((rows, -ever, -scores))[:k]
        return Ranking(rows[order], (scores if recent else ever)[order], recent=bool(recent))

    def _in_training(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        trained = rows <= len(self._counts)
        return np.where(trained, self._counts[np.where(trained, rows, 1) - 1], np.float32(0))
