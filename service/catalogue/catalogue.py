"""The catalogue as one process holds it: what the artefact says, and the records over it.

All of it belongs to the event loop, which none of it holds for more than some milliseconds at a
stretch (`service.catalogue.turns`); the arithmetic's thread sees a CatalogueView only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artefact import Artefact
from service.catalogue.cursor import Hashes, hash_of
from service.catalogue.followed_records import FollowedRecords
from service.catalogue.item_listing import Place
from service.catalogue.item_selector import ItemSelector
from service.catalogue.item_store import ItemStore
from service.catalogue.item_table import ItemTable
from service.catalogue.new_item_vectors import NewItemVectors
from service.catalogue.retrieval import Retrieval
from service.catalogue.title_search import TitleSearch
from service.catalogue.turns import Turns
from service.catalogue.view import Selection


class Catalogue:
    """What requests ask of the items.

    Attributes:
        ids, titles: of row 1 on.
        trained: the number of rows that the model was trained to score, which come first.
        records: the items' records.
        turns: in which all that requests ask of it is done.
    """

    def __init__(self, artefact: Artefact, store: ItemStore, retrieval: Retrieval) -> None:
        table = self._table = ItemTable(artefact.scored_items)
        self.ids, self.titles, self.trained = table.ids, table.titles, table.trained
        retrieval.row_of = table.row
        vectors = NewItemVectors(table, retrieval.table, artefact.model.content)
        retrieval.content_of = vectors.content_of
        self.records = FollowedRecords(store, table, vectors, retrieval)
        self.turns = Turns()
        self._retrieval = retrieval
        self._selector = ItemSelector(table, self.turns)
        self._titles = TitleSearch(table, self.is_open)

    @asynccontextmanager
    async def followed(self, poll_s: float) -> AsyncIterator[None]:
        """Loads the catalogue and follows its changes until the context ends."""
        async with self.records.followed(poll_s):
            try:
                yield
            finally:
                self.turns.close()

    def row(self, item_id: str) -> int | None:
        """The item's row; one that was deleted keeps it. Any thread may ask."""
        return self._table.row(item_id)

    def rows(self, items: Iterable[str]) -> NDArray[np.int32]:
        """The rows of those items that are in the view."""
        found, last = map(self.row, items), self._retrieval.view.size
        return np.array([row for row in found if row is not None and row <= last], np.int32)

    def exists(self, row: int) -> bool:
        return self._table.exists(row)

    def is_noted(self, row: int) -> bool:
        """Whether nothing is known of the item but that it has had events."""
        return self._table.is_noted(row)

    def is_open(self, row: int) -> bool:
        """Whether the item may be returned now."""
        view = self._retrieval.view
        return row <= view.size and (view.blocked is None or not view.blocked[row])

    def categories(self, row: int) -> tuple[str, ...]:
        return self._table.categories(row)

    def attributes(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Of a row those of these names that it has, as answers give them."""
        return self._table.attributes(row, names)

    def of_artefact(self, row: int) -> tuple[str | None, tuple[str, ...]]:
        """Title and categories of a row, as the artefact has them."""
        return self._table.of_artefact(row)

    async def listed(
        self,
        text: str,
        *,
        limit: int,
        after: Place | None = None,
        categories: frozenset[str] = frozenset(),
        unavailable: bool = False,
    ) -> tuple[list[int], Place | None]:
        """Rows by title, or whose titles hold all words of `text`: first the item of this very id,
        then those that begin with it.

        Args:
            after: the place after which to begin.
            categories: only of one of these; none: of any.
            unavailable: also those that nobody may be given now.

        Returns:
            at most `limit`, and the last one's place; None: there are no more.

        Raises:
            TooManyWait
        """
        asked = text, limit, after, categories, unavailable
        what = "listed", self._table.version, asked
        return await self.turns.run(what, lambda: self._titles.find(*asked))

    async def matching(self, expression: str) -> Selection:
        """The items of which an expression holds.

        Raises:
            FilterError: it is no expression.
            MisspeltError
            TooManyWait
        """
        return await self._selector.matching(expression)

    def missing_fields(self, names: Iterable[str]) -> list[str]:
        """Sentences about names that no item has.

        Raises:
            MisspeltError
        """
        return self._selector.missing_fields(names)

    async def of_categories(self, categories: Iterable[str]) -> Selection:
        """The items that have one of these categories.

        Raises:
            TooManyWait
        """
        return await self._selector.of_categories(categories)

    def only(self, items: Iterable[str]) -> Selection:
        """These items."""
        flags = np.zeros(len(self.ids) + 1, np.bool_)
        flags[self.rows(items)] = True
        return Selection(flags)

    def hashes(self, rows: NDArray[np.int64]) -> Hashes:
        """What a cursor keeps of these rows."""
        return np.array([hash_of(self.ids[row - 1]) for row in rows.tolist()], np.uint32)

    def shown(self, hashes: Hashes) -> NDArray[np.int32]:
        """The rows in the view that have one of these hashes."""
        rows = self._table.hashes.find(hashes)
        return rows[rows <= self._retrieval.view.size]
