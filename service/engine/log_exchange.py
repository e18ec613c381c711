"""A batch's exchange with the log: its events are logged, and the newest of its users is read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from service.engine.history import Fetched, History, HistoryReader
from service.engine.listener import Listener
from service.engine.pool import Row
from service.engine.request_queue import Asked
from service.engine.requests import StoreAway, reject, resolve
from service.engine.snapshot_writer import SnapshotWriter
from service.engine.snapshots import LOGGED
from service.engine.tally import Tally
from service.observe import stages
from service.observe.stages import Stages
from service.store.errors import (
    AcksMissed,
    InvalidRequest,
    RecordDamaged,
    StoreError,
    StoreUnavailable,
)
from service.store.event_log import LogRequest
from service.store.events import Outcome


class LogExchange:
    """Asks the log for all of a batch in one call, and answers its appends."""

    def __init__(
        self,
        history: HistoryReader,
        writer: SnapshotWriter,
        tally: Tally,
        listeners: Sequence[Listener],
        store_away: StoreAway,
    ) -> None:
        self.history, self._writer, self._tally = history, writer, tally
        self._pool, self._snapshots = history.pool, history.snapshots
        self._listeners, self._store_away = listeners, store_away

    async def run(self, batch: Sequence[Asked]) -> list[Fetched]:
        """Logs and reads; the users whose states are needed, the others are done with."""
        rows = {a.user_id: self._pool.pin(a.user_id) for a in batch if a.session is None}
        found: list[Fetched] = []
        try:
            await self._run(batch, rows, found)
        except BaseException:
            found.clear()
            raise
        finally:
            kept = {fetched.user_id for fetched in found if fetched.row is not None}
            for user_id, row in rows.items():
                if user_id not in kept:
                    self._pool.unpin(row)
        return found

    async def _run(
        self, batch: Sequence[Asked], rows: dict[str, Row | None], found: list[Fetched]
    ) -> None:
        self._tally.show_lookups(len(rows), sum(row is not None for row in rows.values()))
        started = time.perf_counter()
        for timeline, queued in _timelines(batch).items():
            timeline.add(stages.QUEUE, queued, started)
        asked: list[tuple[Asked, LogRequest]] = []
        for one in batch:
            row = rows.get(one.user_id)
            if one.session is not None:
                history = History(None, list(one.session))
                found.append(Fetched(one.user_id, one.reads, history=history))
            elif row is not None and one.takes_stale:
                found.append(Fetched(one.user_id, one.reads, row))
            else:
                asked.append((one, self._request(one, row)))
        if not asked:
            return
        replies = await self.history.ask([request for _, request in asked])
        ended = time.perf_counter()
        for timeline in _timelines([one for one, _ in asked]):
            timeline.add(stages.LOG, started, ended)
        for (one, request), reply in zip(asked, replies, strict=True):
            row = rows[one.user_id]
            if isinstance(reply, Exception):
                if (left := self.without_store(one, row, reply)) is not None:
                    found.append(left)
                continue
            self._answer(one, reply.outcomes)
            if not self._is_unread(one, row):
                fetched = Fetched(one.user_id, one.reads, row, request.known, reply)
                found.append(fetched)
            elif self._snapshots.is_due(reply.outcomes):
                self._writer.remember(one.user_id, reply.outcomes)
        self._tally.show_appends()

    def _request(self, asked: Asked, row: Row | None) -> LogRequest:
        unread = self._is_unread(asked, row)
        return LogRequest(
            asked.user_id,
            row.mark if row else None,
            [event for append in asked.appends for event in append.events],
            None if row or unread else self._snapshots.identity,
            0 if unread else None,
        )

    def _is_unread(self, asked: Asked, row: Row | None) -> bool:
        """Whether nobody needs the user's state now: no row is to be kept up with the log, nothing
        is read, and a snapshot that is due can wait for others."""
        return row is None and not asked.reads and asked.n_events < self._snapshots.every

    def _answer(self, asked: Asked, outcomes: Sequence[Outcome]) -> None:
        place = 0
        for append in asked.appends:
            own = list(outcomes[place : place + len(append.events)])
            place += len(append.events)
            for event, outcome in zip(append.events, own, strict=True):
                self._tally.count(event, outcome.verdict)
                if outcome.verdict in LOGGED and outcome.time_ms is not None:
                    for listener in self._listeners:
                        listener.logged(asked.user_id, event, outcome.time_ms)
            resolve(append.done, own)

    def without_store(self, asked: Asked, row: Row | None, error: Exception) -> Fetched | None:
        """The reads that go on although the log did not answer, with the user's pinned row; what
        does not go on fails."""
        known = self._store_away == "popular" or (self._store_away == "pool" and row is not None)
        left = None
        if asked.reads and asked.appends and _refuses_writes(error):
            left = Fetched(asked.user_id, asked.reads)  # to be looked up by themselves
        elif asked.reads and known and isinstance(error, StoreUnavailable):
            left = Fetched(asked.user_id, asked.reads, row, away=True)
        refused = asked.requests if left is None else asked.appends
        if isinstance(error, StoreUnavailable) and not _refuses_writes(error):
            self.history.log.store.outage.refused += len(refused)
        reject(refused, error)
        return left


def _timelines(batch: Iterable[Asked]) -> dict[Stages, float]:
    """The time lines of the requests, each with when the first of it was queued."""
    found: dict[Stages, float] = {}
    for asked in batch:
        for request in asked.requests:
            if request.stages is not None:
                queued = found.get(request.stages, request.queued)
                found[request.stages] = min(queued, request.queued)
    return found


def _refuses_writes(error: Exception) -> bool:
    """Whether the store answers, and reads may well succeed: it is full, or replicas are away."""
    if isinstance(error, AcksMissed):
        return True
    unavailing = StoreUnavailable | RecordDamaged | InvalidRequest
    return isinstance(error, StoreError) and not isinstance(error, unavailing)
