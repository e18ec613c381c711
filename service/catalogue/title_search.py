"""Items by title or id, as the catalogue lists and searches them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from service.catalogue.item_listing import ITSELF, Listing, Place
from service.catalogue.item_table import Change, ItemTable
from service.catalogue.turns import Shared, Steps

_AT_ONCE = 256


class TitleSearch:
    """Makes a listing when it is first asked for, and keeps it as the table is.

    Args:
        is_open: whether a row may be returned now.
    """

    def __init__(self, table: ItemTable, is_open: Callable[[int], bool]) -> None:
        self._table, self._is_open = table, is_open
        self._listing: tuple[Listing, Shared[None]] | None = None
        self._unlisted: set[int] = set()
        table.watchers.append(self._change)

    def find(
        self,
        text: str,
        limit: int,
        after: Place | None,
        categories: frozenset[str],
        unavailable: bool,
    ) -> Steps[tuple[list[int], Place | None]]:
        """As `Catalogue.listed`."""
        listing = yield from self._current()
        rows: list[int] = []
        last = None
        itself = self._named(text)
        first = [(itself, (ITSELF, "", ""))] if itself is not None and after is None else []
        for found in chain([first], listing.find(text, after)):
            for row, place in found:
                if row == itself and place[0] != ITSELF:
                    continue
                if categories and categories.isdisjoint(self._table.categories(row)):
                    continue
                if not unavailable and not self._is_open(row):
                    continue
                if len(rows) == limit:
                    return rows, last
                rows.append(row)
                last = place
            yield
        return rows, None

    def _named(self, item_id: str) -> int | None:
        """The row of the item with this id."""
        row = self._table.row(item_id.strip())
        return row if row is not None and self._table.exists(row) else None

    def _current(self) -> Steps[Listing]:
        table = self._table
        if self._listing is None:
            self._unlisted.clear()
            new = Listing()
            rows = filter(table.exists, range(1, len(table) + 1))
            entries = ((row, table.ids[row - 1], table.titles[row - 1]) for row in rows)
            self._listing = new, Shared(new.fill(entries))
        listing, filling = self._listing
        yield from filling.result()
        while self._unlisted:
            for row in [self._unlisted.pop() for _ in range(min(len(self._unlisted), _AT_ONCE))]:
                if table.exists(row):
                    listing.put(row, table.ids[row - 1], table.titles[row - 1])
                else:
                    listing.remove(row)
            yield
        return listing

    def _change(self, change: Change) -> None:
        self._unlisted.add(change.row)
