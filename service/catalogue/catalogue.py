"""The catalogue as one process holds it: what the artefact says, and the records over it.

Rows are given out once: 1 to V are the items of the model's vocabulary, the next ones items that
came later, in the order in which this process heard of them. All of it belongs to the event loop;
the arithmetic's thread sees the shelf only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from model.artefact import Artefact
from service.catalogue.cold_start import ColdStart
from service.catalogue.item import FIELDS, Item, ItemError, Scalar, read_item
from service.catalogue.item_columns import Column
from service.catalogue.item_filter import parse
from service.catalogue.item_listing import Listing
from service.catalogue.item_store import ItemStore
from service.catalogue.retrieval import ExactRetrieval
from service.catalogue.shelf import Flags, Selection, Shelf
from service.http.cursor import Hashes, hash_of
from service.observe import metrics
from service.store.store import StoreError

logger = logging.getLogger(__name__)

_AT_ONCE = 500
"""Records taken over before others get their turn."""
_SELECTIONS_BYTES, _FEWEST_SELECTIONS = 64_000_000, 8
_NEVER = 2**62


class Catalogue:
    """Follows the records of a store, and shows `retrieval` what there is.

    Attributes:
        ids, titles: of row 1 on.
        version: a number that every change makes larger; of this process.
    """

    def __init__(self, artefact: Artefact, store: ItemStore, retrieval: ExactRetrieval) -> None:
        self._artefact, self._store, self._retrieval = artefact, store, retrieval
        base = artefact.items
        self.trained = len(base)
        self.ids = list(base.ids)
        self.titles: list[str | None] = list(base.titles or [None] * self.trained)
        self.version = 0
        self._trained_rows = {item: i + 1 for i, item in enumerate(base.ids)}
        self._newer_rows: dict[str, int] = {}
        self._items: dict[int, Item] = {}  # those with a record
        self._hidden: Flags = np.zeros(self.trained + 1, np.bool_)
        self._opens: NDArray[np.int64] = np.full(self.trained + 1, -_NEVER)
        self._closes: NDArray[np.int64] = np.full(self.trained + 1, _NEVER)
        self._border = _NEVER
        weight = artefact.model.item_embedding.weight
        self._vectors: NDArray[np.float32] = np.empty((0, weight.shape[1]), np.float32)
        self._cold: ColdStart | None = None
        self._without_vector: set[int] = set()
        self._listing: Listing | None = None
        self._unlisted: set[int] = set()
        self._columns: dict[str, Column] = {}
        self._selections: OrderedDict[str, tuple[int, Selection]] = OrderedDict()
        self._hashes: Hashes = np.empty(0, np.uint32)
        self._by_hash: NDArray[np.int64] = np.empty(0, np.int64)
        self._cursor = "0-0"
        self._lock = asyncio.Lock()

    # -- what there is -------------------------------------------------------------------

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def row(self, item_id: str) -> int | None:
        """The item's row; one that was deleted keeps it."""
        return self._trained_rows.get(item_id) or self._newer_rows.get(item_id)

    def rows(self, items: Iterable[str]) -> NDArray[np.int32]:
        """The rows of those items that are on the shelf."""
        found, last = (self.row(item) for item in items), self._retrieval.shelf.size
        return np.array([row for row in found if row is not None and row <= last], np.int32)

    def exists(self, row: int) -> bool:
        return row <= self.trained or row in self._items

    def categories(self, row: int) -> tuple[str, ...]:
        item = self._items.get(row)
        if item is not None and item.categories is not None:
            return item.categories
        return self.of_artefact(row)[1]

    def of_artefact(self, row: int) -> tuple[str | None, tuple[str, ...]]:
        """Title and categories of a row, as the artefact has them."""
        base = self._artefact.items
        if row > self.trained:
            return None, ()
        title = base.titles[row - 1] if base.titles else None
        return title, tuple(base.categories[row - 1]) if base.categories else ()

    def listing(self) -> Listing:
        """All items by title."""
        if self._listing is None:
            rows = filter(self.exists, range(1, len(self) + 1))
            self._listing = Listing((r, self.ids[r - 1], self.titles[r - 1]) for r in rows)
        elif self._unlisted:
            there = [
                (r, self.ids[r - 1], self.titles[r - 1]) for r in self._unlisted if self.exists(r)
            ]
            self._listing.change(there, [r for r in self._unlisted if not self.exists(r)])
        self._unlisted.clear()
        return self._listing

    def is_open(self, row: int) -> bool:
        """Whether the item may be returned now."""
        shelf = self._retrieval.shelf
        return row <= shelf.size and (shelf.blocked is None or not shelf.blocked[row])

    def values(self, row: int, name: str) -> tuple[Scalar, ...]:
        """An item's values of a field or attribute, as filters compare them."""
        if not self.exists(row):
            return ()
        if name == "id":
            return (self.ids[row - 1],)
        if name == "title":
            title = self.titles[row - 1]
            return () if title is None else (title,)
        if name == "category":
            return self.categories(row)
        item = self._items.get(row)
        return () if item is None else item.values.get(name, ())

    # -- what a request may be given -----------------------------------------------------

    def matching(self, expression: str) -> Selection:
        """The items of which an expression holds; remembered until the catalogue changes.

        Raises:
            FilterError: it is no expression.
        """
        known = self._selections.get(expression)
        if known is not None and known[0] == self.version:
            self._selections.move_to_end(expression)
            return known[1]
        flags = parse(expression).flags(self._column, len(self))
        flags[0] = False
        found = Selection(flags)
        self._selections[expression] = self.version, found
        self._selections.move_to_end(expression)
        while len(self._selections) > max(_FEWEST_SELECTIONS, _SELECTIONS_BYTES // len(flags)):
            self._selections.popitem(last=False)
        return found

    def of_categories(self, categories: Iterable[str]) -> Selection:
        """The items that have one of these categories."""
        column, flags = self._column("category"), np.zeros(len(self) + 1, np.bool_)
        for category in categories:
            flags[list(column.having(category))] = True
        return Selection(flags)

    def only(self, items: Iterable[str]) -> Selection:
        """These items."""
        flags = np.zeros(len(self) + 1, np.bool_)
        flags[self.rows(items)] = True
        return Selection(flags)

    def hashes(self, rows: NDArray[np.int64]) -> Hashes:
        """What a cursor keeps of these rows."""
        return np.array([hash_of(self.ids[row - 1]) for row in rows.tolist()], np.uint32)

    def shown(self, hashes: Hashes) -> NDArray[np.int32]:
        """The rows on the shelf that have one of these hashes."""
        if len(self._hashes) < len(self):
            new = np.arange(len(self._hashes) + 1, len(self) + 1)
            self._hashes = np.concatenate([self._hashes, self.hashes(new)])
            self._by_hash = np.argsort(self._hashes, kind="stable")
        ordered = self._hashes[self._by_hash]
        first, last = np.searchsorted(ordered, hashes), np.searchsorted(ordered, hashes, "right")
        places = [self._by_hash[a:b] for a, b in zip(first, last, strict=True)]
        rows = np.concatenate([*places, np.empty(0, np.int64)]).astype(np.int32) + 1
        return rows[rows <= self._retrieval.shelf.size]

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            values: Iterable[tuple[int, tuple[Scalar, ...]]]
            if name in FIELDS:
                values = ((row, self.values(row, name)) for row in range(1, len(self) + 1))
            else:
                own = ((row, item.values.get(name)) for row, item in self._items.items())
                values = ((row, found) for row, found in own if found is not None)
            self._columns[name] = Column(values, len(self))
        return self._columns[name]

    # -- changes -------------------------------------------------------------------------

    async def write(self, records: Mapping[str, bytes | None]) -> dict[str, bool]:
        """Sets records, or removes those that are None; this process knows when it returns.

        Returns:
            for each item whether it had a record before.
        """
        before = await self._store.write(records)
        await self.refresh()
        return before

    async def read(self, item_id: str) -> bytes | None:
        """The item's record in the store."""
        return (await self._store.read([item_id]))[item_id]

    async def load(self) -> None:
        """Takes over all records.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._lock:
            await self._load()

    async def refresh(self) -> None:
        """Takes over what has changed in the store.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._lock:
            while True:
                changes = await self._store.changes(self._cursor)
                if changes is None:
                    logger.warning("too many changes of the catalogue at once: reading all of it")
                    await self._load()
                    return
                cursor, items = changes
                if not items:
                    return
                await self._apply(await self._store.read(items))
                self._cursor = cursor

    @asynccontextmanager
    async def followed(self, poll_s: float) -> AsyncIterator[None]:
        """Loads the catalogue and follows its changes until the context ends."""
        await self.load()
        tasks = [
            asyncio.create_task(self._follow(poll_s)),
            asyncio.create_task(self._keep_time(poll_s)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, poll_s: float) -> None:
        reading = True
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.refresh()
                reading = True
            except StoreError as error:
                if reading:  # said once, not four times a second
                    logger.warning("changes of the catalogue not read: %s", error)
                reading = False
            except Exception:
                logger.exception("changes of the catalogue not taken over")

    async def _keep_time(self, poll_s: float) -> None:
        """By itself: what is over is over while the store is silent, too."""
        while True:
            await asyncio.sleep(poll_s)
            if _now_ms() >= self._border:
                self._show()

    async def _load(self) -> None:
        cursor = await self._store.newest()  # before the records: what changes meanwhile is seen
        gone = {self.ids[row - 1] for row in self._items}
        async for records in self._store.all():
            gone -= records.keys()
            await self._apply(records, show=False)
        await self._apply(dict.fromkeys(gone))
        self._cursor = cursor

    async def _apply(self, records: Mapping[str, bytes | None], show: bool = True) -> None:
        for place, (item_id, stored) in enumerate(records.items()):
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                self._set(item_id, None if stored is None else read_item(stored))
            except ItemError as error:
                logger.warning("item %r is left as it was: %s", item_id, error)
        metrics.CATALOGUE_CHANGES.inc(len(records))
        if show:
            self._show()

    def _set(self, item_id: str, item: Item | None) -> None:
        row = self.row(item_id)
        if row is None:
            if item is None:
                return
            row = self._append(item_id)
        old = self.categories(row)
        if item is None:
            self._items.pop(row, None)
        else:
            self._items[row] = item
        shown = item or Item(hidden=row > self.trained)
        self.titles[row - 1] = self.of_artefact(row)[0] if shown.title is None else shown.title
        self._unlisted.add(row)
        self._hidden[row] = shown.hidden
        self._opens[row] = -_NEVER if shown.available_from is None else shown.available_from
        self._closes[row] = _NEVER if shown.available_until is None else shown.available_until
        for name, column in self._columns.items():
            column.put(row, self.values(row, name))
        if row > self.trained:
            self._without_vector.add(row)
        elif self._cold is not None and self.categories(row) != old:
            self._cold = None
            self._without_vector.update(self._newer_rows.values())

    def _append(self, item_id: str) -> int:
        self.ids.append(item_id)
        self.titles.append(None)
        row = len(self.ids)
        self._newer_rows[item_id] = row
        if row >= len(self._hidden):
            more = row  # twice as many
            self._hidden = np.pad(self._hidden, (0, more))
            self._opens = np.pad(self._opens, (0, more), constant_values=-_NEVER)
            self._closes = np.pad(self._closes, (0, more), constant_values=_NEVER)
        newer = row - self.trained
        if newer > len(self._vectors):
            self._vectors = np.pad(self._vectors, ((0, newer), (0, 0)))
        return row

    def _place(self) -> None:
        """Gives new items their vectors."""
        if self._cold is None:
            weight = self._artefact.model.item_embedding.weight
            table = weight.detach().float().cpu().numpy()[1:]
            self._cold = ColdStart(table, self.categories)
        for row in self._without_vector & self._items.keys():
            item = self._items[row]
            similar = [own for i in item.similar_to if (own := self._trained_rows.get(i))]
            vector = self._cold.vector(similar, item.categories or ())
            self._vectors[row - self.trained - 1] = vector
        self._without_vector.clear()

    def _show(self) -> None:
        """A new shelf, by what is known now."""
        self.version += 1
        now, rows = _now_ms(), len(self) + 1
        opens, closes = self._opens[:rows], self._closes[:rows]
        blocked = self._hidden[:rows] | (now < opens) | (now >= closes)
        later = np.concatenate([opens[opens > now], closes[closes > now]])
        self._border = int(later.min(initial=_NEVER))
        newer = None
        if len(self) > self.trained:
            if self._without_vector:
                self._place()
            own = self._vectors[: len(self) - self.trained].copy()
            weight = self._artefact.model.item_embedding.weight
            newer = torch.from_numpy(own).to(weight.device, weight.dtype)
        unavailable = int(blocked.sum())
        self._retrieval.shelf = Shelf(len(self), blocked if unavailable else None, newer)
        gone = len(self) - self.trained - sum(row > self.trained for row in self._items)
        metrics.CATALOGUE_ITEMS["recorded"].set(len(self._items))
        metrics.CATALOGUE_ITEMS["new"].set(len(self) - self.trained - gone)
        metrics.CATALOGUE_ITEMS["unavailable"].set(unavailable - gone)


def _now_ms() -> int:
    return int(time.time() * 1000)
