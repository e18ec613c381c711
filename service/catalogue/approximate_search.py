"""The best items for a query, found by an index of their vectors.

The index proposes candidates. What may not be returned is taken out of them, what is left gets its
exact score, and who is left with too few asks for more, in the end of the whole catalogue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from service.catalogue.ask import Ask
from service.catalogue.exact_search import ExactSearch
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView, Flags

if TYPE_CHECKING:
    from service.catalogue.item_index import ItemIndex

LEAST_CANDIDATES, MOST_CANDIDATES = 64, 4096
SURE_PART = 3
"""What is returned must be in the best third of the candidates: further down, items that an
index took for worse than they are may be missing."""


class ApproximateSearch:
    """Args:
    exact: answers the few that the index can't serve.
    embedding: that of `exact`, on the CPU.
    index: of rows 1 to V.
    """

    def __init__(self, exact: ExactSearch, embedding: Tensor, index: ItemIndex) -> None:
        self._exact, self._embedding, self._index = exact, embedding, index
        self._first_newer = len(embedding)
        self._most = min(MOST_CANDIDATES, len(embedding) // 4)
        self._is_hidden = np.zeros(len(embedding), np.bool_)

    def top(
        self,
        view: CatalogueView,
        query_BD: Tensor,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None = None,
    ) -> list[Ranking]:
        """As `ExactSearch.top`."""
        everybodys = None if view.blocked is None else view.open
        flags = [everybodys if (own := ask.selection) is None else own.on(view) for ask in asks]
        found: dict[int, Ranking] = {}
        waiting: dict[int, list[int]] = defaultdict(list)  # by the number of candidates
        for place, ask in enumerate(asks):
            own_flags = flags[place]
            if own_flags is not None and ask.selection is not None:
                few = np.flatnonzero(own_flags)
                if len(few) <= self._most:
                    found[place] = self._exact.best(view, query_BD[place], few, ask)
                    continue
            waiting[_power_of_two(max(LEAST_CANDIDATES, SURE_PART * ask.k))].append(place)
        while waiting:
            count = min(waiting)
            places = waiting.pop(count)
            if count > self._most:
                places = sorted(sum(waiting.values(), places))
                exact = self._exact.top(view, query_BD[places], [asks[place] for place in places])
                found.update(zip(places, exact, strict=True))
                break
            rankings = self._by_index(
                query_BD[places], [asks[p] for p in places], [flags[p] for p in places], count
            )
            for place, ranking in zip(places, rankings, strict=True):
                if ranking is None:
                    waiting[4 * count].append(place)
                    continue
                others = self._unindexed(view, asks[place], flags[place])
                if len(others):
                    best = self._exact.best(view, query_BD[place], others, asks[place])
                    ranking = _merged(ranking, best, asks[place].k)
                found[place] = ranking
        return [found[place] for place in range(len(asks))]

    def around(self, query_D: Tensor, k: int, flags: Flags) -> NDArray[np.int64]:
        """As `ExactSearch.around`, nearly."""
        # By product, not by cosine: the more are looked at, for their lengths differ.
        count = _power_of_two(max(16 * LEAST_CANDIDATES, 4 * SURE_PART * k))
        if count <= self._most:
            wide_D = pad(query_D, (0, self._embedding.shape[1] - len(query_D)))  # without biases
            found = self._index.search(wide_D[None].numpy(), count)[0] + 1
            found = found[flags[found]]
            if len(found) >= SURE_PART * k:
                newer = np.arange(self._first_newer, len(flags))
                return np.concatenate([found, newer[flags[newer]]])
        return self._exact.around(query_D, k, flags)

    def _by_index(
        self, query_BD: Tensor, asks: Sequence[Ask], flags: Sequence[Flags | None], count: int
    ) -> list[Ranking | None]:
        """The best of those items whose score the index knows; None: too few are left."""
        query_BD = self._exact.wide(query_BD).float().cpu()
        items = self._index.search(query_BD.numpy(), count) + 1
        vectors = self._embedding[torch.from_numpy(items)]
        scores: NDArray[np.float32] = torch.bmm(vectors, query_BD[:, :, None])[:, :, 0].numpy()
        scores[items == 0] = -np.inf
        order = np.lexsort((items, -scores), axis=1)
        rankings: list[Ranking | None] = []
        for ask, own_flags, own, own_scores in zip(
            asks,
            flags,
            np.take_along_axis(items, order, 1),
            np.take_along_axis(scores, order, 1),
            strict=True,
        ):
            hidden = np.append(ask.hidden, ask.seen) if self._exact.repeat_bias else ask.hidden
            hidden = hidden[hidden < self._first_newer]  # the index has no newer ones
            self._is_hidden[hidden] = True
            allowed = (own > 0) & ~self._is_hidden[own]
            self._is_hidden[hidden] = False
            if own_flags is not None:
                allowed &= own_flags[own]
            best = np.flatnonzero(allowed)[: ask.k]
            sure = np.count_nonzero(allowed[: count // SURE_PART]) >= ask.k
            rankings.append(Ranking(own[best], own_scores[best], indexed=True) if sure else None)
        return rankings

    def _unindexed(self, view: CatalogueView, ask: Ask, flags: Flags | None) -> NDArray[np.int64]:
        """Rows that came after the training, and those that a bias puts where no index knows."""
        rows = np.arange(self._first_newer, view.size + 1)
        if self._exact.repeat_bias:
            rows = np.union1d(rows, ask.seen)
        return rows if flags is None else rows[flags[rows]]


def _merged(one: Ranking, other: Ranking, k: int) -> Ranking:
    items = np.concatenate([one.items, other.items])
    scores = np.concatenate([one.scores, other.scores])
    order = np.lexsort((items, -scores))[:k]
    return Ranking(items[order], scores[order], one.indexed)


def _power_of_two(least: int) -> int:
    """The next one, so that a wave has few different numbers of candidates."""
    return 1 << (least - 1).bit_length()
