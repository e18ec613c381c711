"""The best items by the model and by what has happened since its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.live.ranker import LISTED, LivePart, LiveRanker, Request
from service.catalogue.ask import Ask
from service.catalogue.ranking import NO_ITEMS, Ranking
from service.catalogue.view import CatalogueView, Flags, Selection


class Search(Protocol):
    """Finds the best items by the model's scores."""

    def top(
        self,
        view: CatalogueView,
        query_BD: Tensor,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None = None,
    ) -> list[Ranking]: ...


class LiveSearch:
    """Ranks the model's best items anew, together with those that the evidence names.

    The scores are those of the mixture: of one answer, a higher one is better.
    """

    def __init__(self, search: Search, ranker: LiveRanker) -> None:
        self._search, self._ranker = search, ranker

    @property
    def knows_something(self) -> bool:
        """Whether anything was counted."""
        return self._ranker.n_events > 0

    def top(
        self,
        view: CatalogueView,
        query_BD: Tensor | None,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None = None,
    ) -> list[Ranking]:
        """As `ExactSearch.top`; query_BD None: the model knows nothing of these users."""
        listed, requests = self._asked(view, query_BD, asks, there)
        found: list[Ranking] = []
        begin = 0
        # Those that may be given the same are ranked together: nearly always all.
        while begin < len(asks):
            selection, end = asks[begin].selection, begin + 1
            while end < len(asks) and asks[end].selection is selection:
                end += 1
            open_rows = _open(view, selection)
            for b, (rows, scores) in enumerate(
                self._ranker.best(requests[begin:end], open_rows), begin
            ):
                own = listed[b]
                indexed = own is not None and own.indexed
                found.append(Ranking(rows, scores, indexed=indexed, live=True))
            begin = end
        return found

    def parts(
        self, view: CatalogueView, query_1D: Tensor | None, ask: Ask, rows: NDArray[np.int64]
    ) -> dict[int, LivePart]:
        """What the evidence does for each of the rows of an answer, as far as can still be said."""
        found: dict[int, LivePart] = {}
        for own in ask.searches():
            _, (request,) = self._asked(view, query_1D, [own], None)
            found = self._ranker.parts(request, _open(view, own.selection), rows) | found
        return found

    def beside(self, item_id: str, ask: Ask, view: CatalogueView) -> Ranking:
        """The items that are had most often near this one; the score is their cosine."""
        open_rows = view.open_live
        if len(ask.hidden):
            open_rows = open_rows.copy()
            open_rows[ask.hidden] = False
        rows, scores = self._ranker.beside(item_id, ask.k, open_rows)
        return Ranking(rows, scores, live=True)

    def _asked(
        self,
        view: CatalogueView,
        query_BD: Tensor | None,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None,
    ) -> tuple[Sequence[Ranking | None], list[Request]]:
        """What the model ranks highest, and what is asked of the ranker."""
        if query_BD is None:
            nothing = [None] * len(asks)
            return nothing, [self._request(ask, None, None) for ask in asks]
        wider = [ask.of_depth(max(ask.k, LISTED)) for ask in asks]
        listed = self._search.top(view, query_BD, wider, there)
        queries = query_BD.float().cpu().numpy()
        asked = zip(asks, queries, listed, strict=True)
        return listed, [self._request(ask, query_D, own) for ask, query_D, own in asked]

    def _request(
        self, ask: Ask, query_D: NDArray[np.float32] | None, listed: Ranking | None
    ) -> Request:
        items = NO_ITEMS.astype(np.int64) if listed is None else listed.items
        scores = np.empty(0, np.float32) if listed is None else listed.scores
        return Request(query_D, items, scores, ask.recent, ask.hidden, ask.k)


def _open(view: CatalogueView, selection: Selection | None) -> Flags:
    return view.open_live if selection is None else selection.of(view.open_live)
