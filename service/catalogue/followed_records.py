"""The records of the store, followed: what retrieval may return is what they say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice

from torch import Tensor

from service.catalogue.item import ItemError, read_item
from service.catalogue.item_store import ItemStore
from service.catalogue.item_table import NEVER, ItemTable
from service.catalogue.new_item_vectors import NewItemVectors
from service.catalogue.retrieval import Retrieval
from service.catalogue.turns import Steps, in_turns
from service.catalogue.view import CatalogueView
from service.observe import metrics
from service.store.errors import StoreError
from service.store.follower import Follower

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Records read from the store in one call."""


class FollowedRecords:
    """Takes over records into the table, and shows `retrieval` what there is."""

    def __init__(
        self, store: ItemStore, table: ItemTable, vectors: NewItemVectors, retrieval: Retrieval
    ) -> None:
        self._store, self._table = store, table
        self._vectors, self._retrieval = vectors, retrieval
        self._border_ms = NEVER
        self._cursor: str | None = None
        self._lock = asyncio.Lock()

    async def write(self, records: Mapping[str, bytes | None]) -> dict[str, bool]:
        """Sets records, or removes those that are None; this process knows when it returns.

        Returns:
            for each item whether it had a record before.
        """
        before = await self._store.write(records)
        await self.refresh()
        return before

    async def note(self, item_ids: Sequence[str]) -> None:
        """Gives items a row that have none yet, though they have no record: in this process."""
        new = [item_id for item_id in item_ids if self._table.row(item_id) is None]
        if new:
            async with self._lock:
                await in_turns(self._noted(new))
                await self._show()

    def _noted(self, item_ids: Sequence[str]) -> Steps[None]:
        for item_id in item_ids:
            self._table.note(item_id)
            yield

    async def read(self, item_id: str) -> bytes | None:
        """The item's record in the store."""
        return (await self._store.read([item_id]))[item_id]

    async def refresh(self) -> None:
        """Takes over what has changed in the store, at first all of it.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._lock:
            while True:
                if self._cursor is None:
                    await self._load()
                    return
                changes = await self._store.changes(self._cursor)
                if changes is None:
                    logger.warning("too many changes of the catalogue at once: reading all of it")
                    self._cursor = None
                    continue
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
        """Loads the records and follows their changes until the context ends."""
        await self.refresh()
        async with (
            Follower(self.refresh, poll_s, "changes of the catalogue are not read"),
            # By itself: what is over is over while the store is silent, too.
            Follower(self._keep_time, poll_s, "what is over stays in the catalogue"),
        ):
            yield

    async def _keep_time(self) -> None:
        if _now_ms() >= self._border_ms:
            view = self._retrieval.view
            self._put_up(view.size, view.vectors)

    async def _load(self) -> None:
        cursor = await self._store.newest()  # before the records: what changes meanwhile is seen
        table = self._table
        gone = set(table.items)
        async for records in self._store.all():
            gone.difference_update(map(table.row, records))
            await self._apply(records)
        await self._apply({table.ids[row - 1]: None for row in gone})
        await self._show()
        self._cursor = cursor

    async def _apply(self, records: Mapping[str, bytes | None]) -> None:
        await in_turns(self._taken_over(records))
        metrics.CATALOGUE_CHANGES.inc(len(records))

    def _taken_over(self, records: Mapping[str, bytes | None]) -> Steps[None]:
        for item_id, stored in records.items():
            try:
                self._table.set(item_id, None if stored is None else read_item(stored))
            except ItemError as error:
                logger.warning("item %r is left as it was: %s", item_id, error)
            yield

    async def _show(self) -> None:
        """A new view, by what is known now."""
        view, size = self._retrieval.view, len(self._table)
        newer = view.vectors
        if self._vectors.outdated:
            self._put_up(view.size, newer)  # what is hidden has not to wait for the vectors
            newer = await self._vectors.refreshed()
        self._table.version += 1
        self._put_up(size, newer)

    def _put_up(self, size: int, newer: Tensor | None) -> None:
        """The view of so many rows, by the clock."""
        table = self._table
        blocked, self._border_ms = table.blocked(size, _now_ms())
        unavailable = int(blocked.sum())
        self._retrieval.view = CatalogueView(
            size, blocked if unavailable else None, newer, table.noted(size)
        )
        gone = len(table) - table.trained - table.newer_recorded
        metrics.CATALOGUE_ITEMS["recorded"].set(len(table.items))
        metrics.CATALOGUE_ITEMS["new"].set(table.newer_recorded)
        metrics.CATALOGUE_ITEMS["unavailable"].set(unavailable - gone)


def _now_ms() -> int:
    return int(time.time() * 1000)
