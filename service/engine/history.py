"""What a state lacks, by the user's log: here it is decided, and here the log is paged."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.pool import Row, StatePool
from service.engine.requests import Read
from service.engine.snapshots import Snapshot, SnapshotFormat
from service.store.errors import HistoryChanged, StoreError
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import ORIGIN, Event, Mark

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""How often a user's history may change under our hands before a request is given up."""


@dataclass(frozen=True)
class History:
    """Enough to build a state: the one at `base` (None: of no history), and all events after."""

    base: Snapshot | None
    events: list[Event]


@dataclass(frozen=True, eq=False)
class Fetched:
    """What the log said of a user, and who waits for the user's state.

    Attributes:
        row: the user's, pinned until the batch is computed; None: there was none.
        known: what the log was told that the row stands for.
        reply: None: the log was not asked, or is away; the row as it is will do.
        history: where the reply is not enough.
        away: the log did not answer: the reads are answered without it.
        since: since when its arithmetic could begin, time.perf_counter.
    """

    user_id: str
    reads: list[Read] = field(default_factory=list)
    row: Row | None = None
    known: Mark | None = None
    reply: LogReply | None = None
    history: History | None = None
    away: bool = False
    since: float = field(default_factory=time.perf_counter)

    @property
    def is_session(self) -> bool:
        return bool(self.reads) and self.reads[0].session is not None


def lacking(mark: Mark, known: Mark | None, reply: LogReply) -> list[Event] | None:
    """The events a state at `mark` lacks; None when the reply does not show that the state
    belongs to this history, or not all that it lacks.

    Args:
        known: the mark that was sent with the request, if one was.
    """
    if not reply.complete:
        return None
    if mark == reply.newest:
        return []
    if reply.known_is_current_history and mark == known:
        return reply.events
    if not reply.events:
        return None
    if mark == ORIGIN:
        return reply.events if reply.events[0].version <= reply.oldest else None
    place = mark.version - reply.events[0].version
    if 0 <= place < len(reply.events) and reply.events[place].uid == mark.uid:
        return reply.events[place + 1 :]
    return None


def whole(base: Snapshot | None, reply: LogReply) -> History | None:
    """A whole history, from its snapshot or the start; None: the reply does not hold it."""
    for start in (base, None) if base else (None,):
        events = lacking(start.mark if start else ORIGIN, None, reply)
        if events is not None:
            return History(start, events)
    return None


class HistoryReader:
    """Reads what the states of one model lack."""

    def __init__(self, log: EventLog, pool: StatePool, snapshots: SnapshotFormat) -> None:
        self.log, self.pool, self.snapshots = log, pool, snapshots

    async def ask(self, requests: Sequence[LogRequest]) -> Sequence[LogReply | Exception]:
        """`EventLog.exchange`, which fails for its users alone, whatever the fault is."""
        try:
            return await self.log.exchange(requests)
        except Exception as error:
            if not isinstance(error, StoreError):
                logger.exception("an exchange of %d users failed", len(requests))
            return [error] * len(requests)

    async def resolve(self, fetched: Fetched) -> Fetched:
        """The same with all the history that is needed: after the user's row, the snapshot or
        from the start.

        Raises:
            HistoryChanged: again and again, while it was read.
            StoreError: the log can't be read.
        """
        user_id, row = fetched.user_id, self.pool.get(fetched.user_id)
        known = row.mark if row else None
        request = LogRequest(user_id, known, (), self.snapshots.identity)
        (reply,) = await self.log.exchange([request])
        if isinstance(reply, StoreError):
            raise reply
        if fetched.reply is not None:
            reply = reply._replace(outcomes=fetched.reply.outcomes)
        history = None
        if known is None or lacking(known, known, reply) is None:
            history = await self._from(user_id, self.snapshots.read(reply.snapshot))
            base, events = history.base, history.events
            reply = reply._replace(
                newest=events[-1].mark if events else base.mark if base else ORIGIN,
                known_is_current_history=False,
                events=events[-1:],
                complete=True,
            )
        return Fetched(user_id, fetched.reads, None, known, reply, history)

    async def _from(self, user_id: str, base: Snapshot | None) -> History:
        for _ in range(MAX_ATTEMPTS):
            events: list[Event] = []
            try:
                async for page in self.log.events(user_id, base.mark if base else ORIGIN):
                    events += page
            except HistoryChanged:
                if not events:  # the snapshot is of a history that is no more
                    base = None
                continue
            return History(base, events)
        raise HistoryChanged("the user's history kept changing: try again")

    async def up_to(self, user_id: str, mark: Mark) -> list[Event]:
        """The user's events up to a mark, all that are kept; none where it is not there.

        Raises:
            StoreError: the log can't be read.
        """
        events: list[Event] = []
        async for page in self.log.events(user_id):
            events += [event for event in page if event.version <= mark.version]
            if page[-1].version >= mark.version:
                break
        return events if events and events[-1].mark == mark else []
