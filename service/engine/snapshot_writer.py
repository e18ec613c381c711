"""The snapshots that appends make due, behind the batches."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

from service.engine import snapshots
from service.engine.history import Fetched, HistoryReader
from service.observe import metrics
from service.store.errors import StoreError, severity
from service.store.event_log import LogReply, LogRequest
from service.store.events import Outcome
from service.store.snapshot_store import SnapshotStore

logger = logging.getLogger(__name__)


class SnapshotWriter:
    """Remembers users who have no row when a snapshot falls due, and writes what was packed.

    Args:
        max_users: beyond so many, nobody is remembered.
        at_once: users that are looked up together.
    """

    def __init__(self, history: HistoryReader, *, ttl_s: int, max_users: int, at_once: int) -> None:
        self._history, self._store, self._ttl_s = history, SnapshotStore(history.log), ttl_s
        self._max_users, self._at_once = max_users, at_once
        self._due: dict[str, Sequence[Outcome]] = {}
        self.some_due = asyncio.Event()

    @property
    def n_due(self) -> int:
        return len(self._due)

    def remember(self, user_id: str, outcomes: Sequence[Outcome]) -> None:
        """These outcomes of the user's append made a snapshot due."""
        if len(self._due) < self._max_users:
            self._due[user_id] = outcomes
            self.some_due.set()

    async def look_up(self) -> list[Fetched]:
        """Some who are due, with what the log and their snapshots say of them now."""
        users = list(itertools.islice(self._due, self._at_once))
        outcomes = [self._due.pop(user_id) for user_id in users]
        identity = self._history.snapshots.identity
        replies = await self._history.ask([LogRequest(user, None, (), identity) for user in users])
        found = [
            Fetched(user_id, reply=reply._replace(outcomes=list(own)))
            for user_id, own, reply in zip(users, outcomes, replies, strict=True)
            if isinstance(reply, LogReply)
        ]
        metrics.SNAPSHOTS["failed"].inc(len(users) - len(found))
        return found

    async def write(self, packed: Sequence[tuple[str, bytes]]) -> None:
        """Writes users' snapshots, of several of one the last. A snapshot is a cache: one that
        can't be written costs a longer replay, nothing else."""
        newest = list(dict(packed).items())
        marks = [snapshots.mark(data) for _, data in newest]
        try:
            written = await self._store.write(
                self._history.snapshots.identity, newest, self._ttl_s, marks
            )
        except StoreError as error:
            metrics.SNAPSHOTS["failed"].inc(len(packed))
            logger.log(severity(error), "%d snapshots not written: %s", len(packed), error)
            return
        metrics.SNAPSHOTS["written"].inc(written)
        metrics.SNAPSHOTS["outdated"].inc(len(packed) - written)
        metrics.SNAPSHOT_BYTES.inc(sum(len(snapshot) for _, snapshot in packed))
