"""The catalogue as one process holds it: what the artefact says, and the records over it.

Rows are given out once: 1 to V are the items of the model's vocabulary, the next ones items that
came later, in the order in which this process heard of them. All of it belongs to the event loop,
which none of it holds for more than some milliseconds at a stretch (`service.catalogue.turns`);
the arithmetic's thread sees the shelf only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from model.artefact import Artefact
from service.catalogue.cold_start import ColdStart, summed
from service.catalogue.cursor import Hashes, hash_of
from service.catalogue.hash_index import HashIndex
from service.catalogue.item import FIELDS, Item, ItemError, Scalar, read_item
from service.catalogue.item_columns import Column
from service.catalogue.item_filter import Expression, parse
from service.catalogue.item_listing import Listing, Place
from service.catalogue.item_store import ItemStore
from service.catalogue.retrieval import ExactRetrieval
from service.catalogue.turns import Shared, Steps, Turns, at_once, in_turns
from service.catalogue.view import CatalogueView, Flags, Selection
from service.observe import metrics
from service.store.store import StoreError

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Records read from the store in one call."""
_SOME = 256
"""Values or titles looked at between two places to pause."""
_CORRECTED = 50
_SHORT = 200
"""Characters of a filter that take no more than a millisecond to parse."""
SELECTIONS_BYTES, _FEWEST_SELECTIONS = 64_000_000, 8
_CHARACTER_BYTES, _ENTRY_BYTES = 4, 500
COLUMNS_BYTES, COLUMNS_BYTES_A_ROW = 100_000_000, 1000
"""What the columns that filters made may take, the larger of the two."""
_BLOCK, _LARGE_BYTES, _ALIKE = 8192, 2_000_000, 10_000
_NEVER = 2**62


class Catalogue:
    """Follows the records of a store, and shows `retrieval` what there is.

    Attributes:
        ids, titles: of row 1 on.
        version: a number that every change makes larger; of this process.
        turns: in which all that requests ask of it is done.
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
        self._newer_recorded = 0
        self._vectors: list[NDArray[np.float32]] = []  # of the newer rows, a block each
        self._cold: ColdStart | None = None
        self._without_vector: set[int] = set()
        self._listing: tuple[Listing, Shared[None]] | None = None
        self._unlisted: set[int] = set()
        self._names = Counter[str]()  # how many items have each attribute
        self._columns: OrderedDict[str, tuple[Column, Shared[None]]] = OrderedDict()
        self._selections: OrderedDict[str, tuple[int, Selection]] = OrderedDict()
        self._selected_bytes = 0
        self._changed: dict[object, set[int]] = {}  # rows, since something began
        self._hashes = HashIndex()
        self.turns = Turns()
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

    async def listed(
        self,
        text: str,
        *,
        limit: int,
        after: Place | None = None,
        categories: frozenset[str] = frozenset(),
        unavailable: bool = False,
    ) -> tuple[list[int], Place | None]:
        """Rows by title, or whose titles hold `text`, those that begin with it first.

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
        return await self.turns.run(("listed", self.version, asked), lambda: self._listed(*asked))

    def _listed(
        self,
        text: str,
        limit: int,
        after: Place | None,
        categories: frozenset[str],
        unavailable: bool,
    ) -> Steps[tuple[list[int], Place | None]]:
        listing = yield from self.listing()
        rows: list[int] = []
        last = None
        for found in listing.find(text, after):
            for row, place in found:
                if categories and categories.isdisjoint(self.categories(row)):
                    continue
                if not unavailable and not self.is_open(row):
                    continue
                if len(rows) == limit:
                    return rows, last
                rows.append(row)
                last = place
            yield
        return rows, None

    def listing(self) -> Steps[Listing]:
        """All items by title."""
        if self._listing is None:
            self._unlisted.clear()
            new = Listing()
            rows = filter(self.exists, range(1, len(self) + 1))
            entries = ((row, self.ids[row - 1], self.titles[row - 1]) for row in rows)
            self._listing = new, Shared(new.fill(entries))
        listing, filling = self._listing
        yield from filling.result()
        while self._unlisted:
            for row in [self._unlisted.pop() for _ in range(min(len(self._unlisted), _SOME))]:
                if self.exists(row):
                    listing.put(row, self.ids[row - 1], self.titles[row - 1])
                else:
                    listing.remove(row)
            yield
        return listing

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

    async def matching(self, expression: str) -> Selection:
        """The items of which an expression holds; remembered until the catalogue changes.

        Raises:
            FilterError: it is no expression.
            TooManyWait
        """
        known = self._selections.get(expression)
        if known is not None and known[0] == self.version:
            self._selections.move_to_end(expression)
            return known[1]
        return await self.turns.run(
            ("matching", expression),
            lambda: self._matching(expression),
            may_be_short=len(expression) <= _SHORT,
        )

    def _matching(self, text: str) -> Steps[Selection]:
        expression = parse(text)
        with self._changes() as changed:
            flags = yield from expression.flags(self._column, len(self))
            # What has changed meanwhile was seen partly as it was, partly as it is.
            while changed:
                if len(flags) <= len(self):
                    flags = np.pad(flags, (0, len(self) + 1 - len(flags)))
                rows = [changed.pop() for _ in range(min(len(changed), _CORRECTED))]
                flags[rows] = self._alone(expression, rows)
                yield
        flags[0] = False
        found = Selection(flags)
        self._remember(text, found)
        return found

    def _remember(self, text: str, found: Selection) -> None:
        """Keeps the answer to a filter, and those before it as far as there is room."""
        if text in self._selections:
            self._selected_bytes -= _nbytes(text, self._selections.pop(text)[1])
        self._selections[text] = self.version, found
        self._selected_bytes += _nbytes(text, found)
        while (
            self._selected_bytes > SELECTIONS_BYTES and len(self._selections) > _FEWEST_SELECTIONS
        ):
            old, (_, forgotten) = self._selections.popitem(last=False)
            self._selected_bytes -= _nbytes(old, forgotten)

    def _alone(self, expression: Expression, rows: list[int]) -> Flags:
        """Of which of these rows an expression holds now."""

        def column(name: str) -> Steps[Column]:
            yield from ()
            return Column((place, self.values(row, name)) for place, row in enumerate(rows, 1))

        return at_once(expression.flags(column, len(rows)))[1:]

    @contextmanager
    def _changes(self) -> Iterator[set[int]]:
        """The rows that change meanwhile."""
        changed, mine = set[int](), object()
        self._changed[mine] = changed
        try:
            yield changed
        finally:
            del self._changed[mine]

    async def of_categories(self, categories: Iterable[str]) -> Selection:
        """The items that have one of these categories.

        Raises:
            TooManyWait
        """
        wanted = frozenset(categories)
        return await self.turns.run(
            ("categories", self.version, wanted), lambda: self._of_categories(wanted)
        )

    def _of_categories(self, categories: frozenset[str]) -> Steps[Selection]:
        column = yield from self._column("category")
        return Selection(column.among(categories, len(self)))

    def only(self, items: Iterable[str]) -> Selection:
        """These items."""
        flags = np.zeros(len(self) + 1, np.bool_)
        flags[self.rows(items)] = True
        return Selection(flags)

    def hashes(self, rows: NDArray[np.int64]) -> Hashes:
        """What a cursor keeps of these rows."""
        return np.array([hash_of(self.ids[row - 1]) for row in rows.tolist()], np.uint32)

    async def shown(self, hashes: Hashes) -> NDArray[np.int32]:
        """The rows on the shelf that have one of these hashes.

        Raises:
            TooManyWait
        """
        await self.turns.run(("hashes", len(self)), lambda: self._hashes.extend(self.ids))
        rows = self._hashes.find(hashes).astype(np.int32)
        return rows[rows <= self._retrieval.shelf.size]

    def _column(self, name: str) -> Steps[Column]:
        if name not in FIELDS and name not in self._names:
            return _NO_COLUMN
        if name not in self._columns:
            new = Column()
            self._columns[name] = new, Shared(self._fill(new, name))
        self._columns.move_to_end(name)
        column, filling = self._columns[name]
        yield from filling.result()
        return column

    def _fill(self, column: Column, name: str) -> Steps[None]:
        """Puts all items' values into a column; what changes meanwhile is put there, too."""
        rows = iter(range(1, len(self) + 1) if name in FIELDS else list(self._items))
        while some := list(islice(rows, _SOME)):
            for row in some:
                if values := self.values(row, name):
                    column.put(row, values)
            yield
        self._forget_columns()

    def _forget_columns(self) -> None:
        """Those used longest ago, until the others are within the bound."""
        most = max(COLUMNS_BYTES, COLUMNS_BYTES_A_ROW * len(self))
        left = sum(column.nbytes for column, _ in self._columns.values())
        while left > most and len(self._columns) > 1:
            _, (column, _) = self._columns.popitem(last=False)
            left -= column.nbytes

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
                left = iter(items)
                try:
                    while some := list(islice(left, _AT_ONCE)):
                        await self._apply(await self._store.read(some))
                except StoreError:
                    await self._show()  # what was read
                    raise
                await self._show()
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
            self.turns.close()
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
                shelf = self._retrieval.shelf
                self._put_up(shelf.size, shelf.vectors)

    async def _load(self) -> None:
        cursor = await self._store.newest()  # before the records: what changes meanwhile is seen
        gone = set(self._items)
        async for records in self._store.all():
            gone.difference_update(map(self.row, records))
            await self._apply(records)
        await self._apply({self.ids[row - 1]: None for row in gone})
        await self._show()
        self._cursor = cursor

    async def _apply(self, records: Mapping[str, bytes | None]) -> None:
        await in_turns(self._taken_over(records))
        metrics.CATALOGUE_CHANGES.inc(len(records))

    def _taken_over(self, records: Mapping[str, bytes | None]) -> Steps[None]:
        for item_id, stored in records.items():
            try:
                self._set(item_id, None if stored is None else read_item(stored))
            except ItemError as error:
                logger.warning("item %r is left as it was: %s", item_id, error)
            yield

    def _set(self, item_id: str, item: Item | None) -> None:
        row = self.row(item_id)
        if row is None:
            if item is None:
                return
            row = self._append(item_id)
        before = self._items.get(row)
        fields = [self.values(row, name) for name in FIELDS]
        old = self.categories(row)
        if item is None:
            self._items.pop(row, None)
        else:
            self._items[row] = item
        if row > self.trained:
            self._newer_recorded += (item is not None) - (before is not None)
        shown = item or Item(hidden=row > self.trained)
        self.titles[row - 1] = self.of_artefact(row)[0] if shown.title is None else shown.title
        self._unlisted.add(row)
        self._hidden[row] = shown.hidden
        self._opens[row] = -_NEVER if shown.available_from is None else shown.available_from
        self._closes[row] = _NEVER if shown.available_until is None else shown.available_until
        self._change_columns(row, before, item, fields)
        for changed in self._changed.values():
            changed.add(row)
        if row > self.trained:
            self._without_vector.add(row)
        elif self.categories(row) != old:
            self._cold = None  # and all vectors are to be found anew

    def _change_columns(
        self,
        row: int,
        before: Item | None,
        item: Item | None,
        fields: list[tuple[Scalar, ...]],
    ) -> None:
        """Puts what of an item has changed into the columns that there are of it; `fields`: what
        the values of FIELDS were."""
        old, new = (one.values if one is not None else {} for one in (before, item))
        self._names.update(new.keys() - old.keys())
        for name in old.keys() - new.keys():
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]
                self._columns.pop(name, None)
        changed = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        changed += [
            name
            for name, values in zip(FIELDS, fields, strict=True)
            if self.values(row, name) != values
        ]
        for name in changed:
            if name in self._columns:
                column, _ = self._columns[name]
                column.put(row, self.values(row, name))
                if column.worn:
                    del self._columns[name]

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
        if (row - self.trained - 1) % _BLOCK == 0:
            width = self._artefact.model.item_embedding.weight.shape[1]
            self._vectors.append(np.zeros((_BLOCK, width), np.float32))
        return row

    async def _show(self) -> None:
        """A new shelf, by what is known now."""
        shelf, size = self._retrieval.shelf, len(self)
        newer = shelf.vectors
        if self._without_vector or (self._cold is None and size > self.trained):
            self._put_up(shelf.size, newer)  # what is hidden has not to wait for the vectors
            rows: Iterable[int] = list(self._without_vector)
            if self._cold is None:
                rows = range(self.trained + 1, size + 1)
                weight = self._artefact.model.item_embedding.weight
                table = weight.detach().float().cpu().numpy()[1:]
                solved = await in_turns(summed(table, self.categories))
                self._cold = await asyncio.to_thread(solved)
            await in_turns(self._place(rows, self._cold))
            newer = await self._shown_vectors(size - self.trained)
        self.version += 1
        self._put_up(size, newer)

    def _place(self, rows: Iterable[int], cold: ColdStart) -> Steps[None]:
        """Gives new items their vectors."""
        alike: dict[tuple[str, ...], NDArray[np.float32]] = {}
        for row in rows:
            item = self._items.get(row)
            if item is None:
                continue
            similar = [own for i in item.similar_to if (own := self._trained_rows.get(i))]
            categories = item.categories or ()
            vector = None if similar else alike.get(categories)
            if vector is None:
                vector = cold.vector(similar, categories)
                if not similar and len(alike) < _ALIKE:
                    alike[categories] = vector
            block, place = divmod(row - self.trained - 1, _BLOCK)
            self._vectors[block][place] = vector
            yield
        self._without_vector.clear()

    async def _shown_vectors(self, count: int) -> torch.Tensor:
        """A copy of the newer rows' vectors."""
        weight, blocks = self._artefact.model.item_embedding.weight, list(self._vectors)

        def copied() -> torch.Tensor:
            own = np.concatenate(blocks)[:count]
            return torch.from_numpy(own).to(weight.device, weight.dtype)

        if sum(block.nbytes for block in blocks) < _LARGE_BYTES:
            return copied()
        return await asyncio.to_thread(copied)

    def _put_up(self, size: int, newer: torch.Tensor | None) -> None:
        """The shelf of so many rows, by the clock."""
        now, rows = _now_ms(), size + 1
        opens, closes = self._opens[:rows], self._closes[:rows]
        blocked = self._hidden[:rows] | (now < opens) | (now >= closes)
        later = np.concatenate([opens[opens > now], closes[closes > now]])
        self._border = int(later.min(initial=_NEVER))
        unavailable = int(blocked.sum())
        self._retrieval.shelf = CatalogueView(size, blocked if unavailable else None, newer)
        gone = len(self) - self.trained - self._newer_recorded
        metrics.CATALOGUE_ITEMS["recorded"].set(len(self._items))
        metrics.CATALOGUE_ITEMS["new"].set(self._newer_recorded)
        metrics.CATALOGUE_ITEMS["unavailable"].set(unavailable - gone)


_NO_COLUMN = Column()


def _nbytes(text: str, found: Selection) -> int:
    return _ENTRY_BYTES + _CHARACTER_BYTES * len(text) + found.allowed.nbytes


def _now_ms() -> int:
    return int(time.time() * 1000)
