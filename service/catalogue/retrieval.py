"""The items that requests are answered with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artefact import Artefact
from model.items import Items
from model.live.ranker import LivePart, LiveRanker
from model.live.ranking import LEAST_POPULARITY
from service.catalogue.approximate_search import ApproximateSearch
from service.catalogue.ask import Ask
from service.catalogue.exact_search import ExactSearch
from service.catalogue.live_search import LiveSearch
from service.catalogue.popular import Popular
from service.catalogue.ranking import Ranking
from service.catalogue.similar import similar
from service.catalogue.view import CatalogueView

if TYPE_CHECKING:
    from service.catalogue.item_index import ItemIndex

logger = logging.getLogger(__name__)

How = Literal["auto", "exact", "index"]

INDEX_FROM = 100_000
"""Catalogues of so many items have an index by default; `python -m benchmarks.catalogue` is why."""


class Retrieval:
    """Answers what is asked, by vectors or by popularity.

    Args:
        embedding: (V + 1, D), row 0 the padding's.
        repeat_bias: added to the scores of items that the user has had.
        index: of rows 1 to V of `table`; None: every search looks at everything.
        item_bias: (V + 1) added to the items' scores; None: nothing is.

    Attributes:
        table: the embedding, with the biases as a column more where there are some.
        trained: V.
        row_of: an item's row in the catalogue, once there is one.
        content_of: what an item's features add up to, where its vector is of them alone (D).
        view: what there is besides the vocabulary, and what may not be returned. Each call takes
            the one that is there when it begins.
    """

    def __init__(
        self,
        embedding: Tensor,
        items: Items,
        repeat_bias: float = 0.0,
        index: ItemIndex | None = None,
        item_bias: Tensor | None = None,
    ) -> None:
        self.repeat_bias, self._width = repeat_bias, embedding.shape[1]
        self.table = with_bias(embedding.detach(), item_bias)
        self._popular = Popular(items.popularity)
        # A search that seldom looks at everything is not worth a copy of a large catalogue.
        self._exact = ExactSearch(self.table, repeat_bias, transposed=index is None)
        self._search: ExactSearch | ApproximateSearch = self._exact
        if index is not None:
            self._search = ApproximateSearch(self._exact, self.table.cpu(), index)
        self.trained = len(items)
        self.row_of: Callable[[str], int | None] = lambda item_id: None
        self.content_of: Callable[[int], NDArray[np.float32] | None] = lambda row: None
        self.view = CatalogueView(len(items))
        self.live: LiveSearch | None = None

    @classmethod
    def of(cls, artefact: Artefact, index: ItemIndex | None = None) -> Retrieval:
        """Of what an artefact scores."""
        model, bias = artefact.model, artefact.model.item_bias
        return cls(model.scoring_vectors, artefact.scored_items, model.repeat_bias, index, bias)

    def follow(self, ranker: LiveRanker) -> None:
        """Answers by what has happened since the training as well."""
        self.live = LiveSearch(self._search, ranker)

    def answer(
        self,
        query_BD: Tensor | None,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None = None,
    ) -> list[Ranking]:
        """What each ask is for.

        Args:
            query_BD: None: nothing is known of these users, who get what is popular.
            there: `places(asks)`, where they are on the device already.
        """
        view = self.view
        lists = [(place, own) for place, ask in enumerate(asks) for own in ask.searches()]
        searches = [own for _, own in lists]
        queries = query_BD
        if query_BD is not None:
            rows = [place for place, _ in lists]
            queries = query_BD if rows == list(range(len(asks))) else query_BD[rows]
        found = iter(self._found(view, queries, searches, there) if searches else [])
        rankings = []
        for place, ask in enumerate(asks):
            if ask.candidates is None:
                rankings.append(self._arranged(ask, found))
            elif query_BD is None:
                left = np.setdiff1d(ask.candidates, ask.hidden)
                rankings.append(self._popular.rank(left.astype(np.int64), ask.k))
            else:
                candidates = ask.candidates.astype(np.int64)
                rankings.append(self._exact.best(view, query_BD[place], candidates, ask))
        return rankings

    def _found(
        self,
        view: CatalogueView,
        query_BD: Tensor | None,
        searches: Sequence[Ask],
        there: Sequence[Tensor] | None,
    ) -> list[Ranking]:
        """The list of each search."""
        live = self.live
        if live is None or not live.knows_something:
            return self._without_live(view, query_BD, searches, there)
        if all(search.live for search in searches):
            return self._with_live(view, query_BD, searches, there)
        if not any(search.live for search in searches):
            return self._without_live(view, query_BD, searches, there)
        return [  # a trial with and without: a few of each
            one
            for b, search in enumerate(searches)
            for one in (self._with_live if search.live else self._without_live)(
                view, None if query_BD is None else query_BD[b : b + 1], [search], None
            )
        ]

    def _with_live(
        self,
        view: CatalogueView,
        query_BD: Tensor | None,
        searches: Sequence[Ask],
        there: Sequence[Tensor] | None,
    ) -> list[Ranking]:
        assert self.live is not None
        found = self.live.top(view, query_BD, searches, there)
        if query_BD is None:  # then there may be more than what the evidence names
            found = [
                self._filled(view, search, own) for search, own in zip(searches, found, strict=True)
            ]
        return found

    def _filled(self, view: CatalogueView, ask: Ask, found: Ranking) -> Ranking:
        """As many as asked for: what is popular comes after what was found, scored as its last."""
        if len(found.items) >= ask.k:
            return found
        assert self.live is not None
        hidden = np.concatenate([ask.hidden, found.items.astype(np.int32)])
        more = self._popular.top(view, replace(ask, hidden=hidden)).items[
            : ask.k - len(found.items)
        ]
        last = found.scores[-1] if len(found.scores) else LEAST_POPULARITY
        return replace(
            found,
            items=np.concatenate([found.items, more]),
            scores=np.append(found.scores, np.full(len(more), last, np.float32)),
        )

    def _without_live(
        self,
        view: CatalogueView,
        query_BD: Tensor | None,
        searches: Sequence[Ask],
        there: Sequence[Tensor] | None,
    ) -> list[Ranking]:
        if query_BD is None:
            return [self._popular.top(view, search) for search in searches]
        return self._search.top(view, query_BD, searches, there)

    def _arranged(self, ask: Ask, found: Iterator[Ranking]) -> Ranking:
        """The answer made of the next of the lists found."""
        best, choice = next(found), ask.choice
        if choice is None:
            return best
        promoted = None if choice.promoted is None else next(found)
        return choice.arrange(best, promoted, ask.k, self.vectors)

    def places(self, asks: Sequence[Ask]) -> list[NDArray[np.int64]]:
        """(2, n) places of hidden and of seen items among the scores that `answer` looks at."""
        return self._exact.places([own for ask in asks for own in ask.searches()])

    def had(self, seen: NDArray[np.int32], unknown: Sequence[str]) -> NDArray[np.int32]:
        """The rows of what a user has had: `seen`, and those of the items that move no state."""
        if not unknown:
            return seen
        rows = [row for row in map(self.row_of, unknown) if row and row <= self.view.size]
        return np.concatenate([seen, np.array(rows, np.int32)])

    def similar(self, row: int, item_id: str, ask: Ask) -> Ranking:
        """The items whose vectors point most nearly where this one's does; for one that the model
        was not trained on, those that are had near it, if any are."""
        if self.live is not None and row > self.trained:
            noted = self.view.noted
            found = self.live.beside(item_id, ask, self.view)
            if len(found.items) or (noted is not None and noted[row]):
                return found
        flags = self.view.open.copy()
        flags[ask.hidden] = flags[row] = False
        content = self.content_of(row)
        if content is None:
            vector = self.vectors(np.array([row]))[0]
        else:
            # By their whole vectors new items are near each other: all have the same shift.
            vector, flags[self.trained + 1 :] = torch.from_numpy(content), False
        return similar(vector, ask.k, flags, self._search.around, self.vectors)

    def live_parts(
        self, query_1D: Tensor | None, ask: Ask, rows: NDArray[np.int64]
    ) -> dict[int, LivePart]:
        """What has happened since the training did for each of the rows of an answer."""
        return {} if self.live is None else self.live.parts(self.view, query_1D, ask, rows)

    def popular(self, ask: Ask) -> Ranking:
        """What is popular, whoever asks."""
        return self._popular.top(self.view, ask)

    def popular_in_training(self, ask: Ask) -> Ranking:
        """Whatever is popular of late."""
        return self._popular.top(self.view, ask, in_training=True)

    def show_recent(self, numbers: Sequence[tuple[int, float]]) -> None:
        """What is popular of late: rows and their numbers, most first; none: not known."""
        self._popular.show_recent(numbers)

    def vectors(self, rows: NDArray[np.int64]) -> Tensor:
        """(len(rows), D) the rows' vectors, on the model's device."""
        return self._exact.vectors(self.view, rows)[:, : self._width]


def open_retrieval(artefact: Artefact, how: How, folder: Path) -> Retrieval:
    """The way chosen to search an artefact's items.

    Args:
        how: `auto` is an index for INDEX_FROM items or more on a CPU, if its library is installed.
        folder: where indexes are kept.
    """
    model, size = artefact.model, len(artefact.scored_items)
    if how == "auto" and size >= INDEX_FROM and model.device.type == "cpu":
        if find_spec("faiss") is not None:
            how = "index"
        else:
            logger.warning(
                "every request is compared with all of %d items: the extra `index` is faster "
                "(pip install 'tim4rec[index]')",
                size,
            )
    index = None
    if how == "index":
        from service.catalogue import item_index  # of an extra

        if size >= item_index.LEAST_ITEMS:
            table = with_bias(model.scoring_vectors.detach(), model.item_bias)
            name = artefact.identity if model.scoring is None else artefact.edition
            index = item_index.open_index(folder, name, table.float().cpu().numpy()[1:])
        else:
            logger.info("%d items are too few for an index: retrieval is exact", size)
    return Retrieval.of(artefact, index)


def with_bias(embedding_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """(V, D + 1), or the embedding where there is no bias: a product with (query, 1) adds it."""
    return embedding_VD if bias_V is None else torch.cat([embedding_VD, bias_V[:, None]], 1)
