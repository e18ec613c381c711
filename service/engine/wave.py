"""A wave: the requests that share one exchange with the log and one pass of arithmetic."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.catalogue.choice import Choice
from service.catalogue.retrieval import Ranking
from service.engine.pool import Row
from service.engine.snapshots import Snapshot
from service.observe.stages import Stages
from service.store.event_log import LogReply
from service.store.events import Event, Mark, NewEvent, Outcome

StoreAway = Literal["refuse", "pool", "popular"]
"""What reads get while the store does not answer: nothing, an answer from the state in the pool if
there is one, or what is popular if there is none."""


@dataclass(eq=False)
class Append:
    """Events of one user to be logged; answered when they are durable."""

    user_id: str
    events: Sequence[NewEvent]
    done: asyncio.Future[list[Outcome]]
    queued: float  # time.perf_counter
    stages: Stages | None = None


@dataclass(eq=False)
class Read:
    """A recommendation asked for; answered when the state has caught up with the log.

    `at_ms` None: now, by the store's clock. `masked`: item indices not to return. `candidates`:
    the only ones to return, all of them. `session`: the whole history of somebody who is no user;
    the log is not asked. `choice`: what the list must be beside good; None: nothing.
    """

    user_id: str
    k: int
    at_ms: int | None
    exclude_seen: bool
    masked: NDArray[np.int32]
    allow_stale: bool
    done: asyncio.Future[Recommendation]
    queued: float  # time.perf_counter
    stages: Stages | None = None
    candidates: NDArray[np.int32] | None = None
    session: Sequence[Event] | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Recommendation:
    """`source`: `model`; when that knows nothing of the user, what is popular: `recent`, or in
    training (`popular`). `truncated`: the state is of the newest events only. `away`: the store did
    not answer."""

    ranking: Ranking
    version: int
    source: Literal["model", "popular", "recent"]
    stale: bool
    truncated: bool = False
    uid: bytes = b""
    away: bool = False

    @property
    def mark(self) -> Mark:
        """What of the user's history the answer is of."""
        return Mark(self.version, self.uid)


@dataclass(frozen=True)
class History:
    """Enough to build a state: the one at `base` (None: of no history), and all events after."""

    base: Snapshot | None
    events: list[Event]


@dataclass(eq=False)
class Entry:
    """One user's part of a wave."""

    user_id: str
    appends: list[Append] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    row: Row | None = None  # pinned from the exchange to the end of the wave
    unread: bool = False  # nobody needs the user's state now
    known: Mark | None = None  # what the row stood for when the log was asked
    reply: LogReply | None = None  # None: the log was not asked, or is away (stale reads only)
    away: bool = False  # the log did not answer: its reads are answered without it
    history: History | None = None
    attempts: int = 0
    ready: float = 0.0  # since when its arithmetic could begin, time.perf_counter

    @property
    def requests(self) -> list[Append | Read]:
        return [*self.appends, *self.reads]

    @property
    def session(self) -> Sequence[Event] | None:
        return self.reads[0].session if self.reads else None

    @property
    def n_events(self) -> int:
        return sum(len(append.events) for append in self.appends)


@dataclass(eq=False)
class Wave:
    entries: dict[str, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(e.appends) + len(e.reads) for e in self.entries.values())


def collect(queue: deque[Append | Read], max_batch: int, max_events: int) -> Wave:
    """Takes up to `max_batch` requests off the queue, keeping each user's order.

    All of a user's events become one append of at most `max_events`; a request that does not
    fit waits, and so do the user's later ones.
    """
    wave, taken = Wave(), 0
    waiting: list[Append | Read] = []
    blocked: set[str] = set()
    while queue and taken < max_batch and len(waiting) < max_batch:
        request = queue.popleft()
        if request.done.done():  # its caller has gone
            continue
        entry = wave.entries.get(request.user_id) or Entry(request.user_id)
        if request.user_id in blocked or (
            isinstance(request, Append)
            and entry.appends
            and entry.n_events + len(request.events) > max_events
        ):
            blocked.add(request.user_id)
            waiting.append(request)
            continue
        wave.entries[request.user_id] = entry
        if isinstance(request, Append):
            entry.appends.append(request)
        else:
            entry.reads.append(request)
        taken += 1
    queue.extendleft(reversed(waiting))
    return wave
