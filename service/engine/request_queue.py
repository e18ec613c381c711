"""The requests that wait: who may, and who goes on together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.pace import Pace
from service.engine.requests import Append, Overloaded, Read
from service.observe import metrics
from service.store.events import Event


@dataclass(frozen=True, eq=False)
class Asked:
    """What one user wants in a batch."""

    user_id: str
    appends: list[Append] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    @property
    def requests(self) -> list[Append | Read]:
        return [*self.appends, *self.reads]

    @property
    def session(self) -> Sequence[Event] | None:
        return self.reads[0].session if self.reads else None

    @property
    def takes_stale(self) -> bool:
        return not self.appends and all(read.allow_stale for read in self.reads)

    @property
    def n_events(self) -> int:
        return sum(len(append.events) for append in self.appends)


class RequestQueue:
    """Requests in the order they came. There is no timer: a batch is everything that waits.

    Args:
        max_batch: most requests in a batch.
        max_events: most events of a user in one.
        max_queue: more requests are refused.
        max_wait_s: and those that would wait longer.
    """

    def __init__(
        self, *, max_batch: int, max_events: int, max_queue: int, max_wait_s: float
    ) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self._max_events, self._max_wait_s = max_events, max_wait_s
        self.waiting: deque[Append | Read] = deque()
        self.arrived = asyncio.Event()
        self.pace = Pace(max_batch)
        self.closed = False

    def __len__(self) -> int:
        return len(self.waiting)

    def is_late(self, ahead: int = 0) -> bool:
        """Whether a request that came now would wait too long for its turn, with `ahead` others
        that are not in the queue yet."""
        return (len(self.waiting) + ahead) * self.pace.seconds_each > self._max_wait_s

    def put(self, request: Append | Read, *, begun: bool = False) -> None:
        """Lets a request wait.

        Args:
            begun: it is part of a request that was not too late when it came, and whose own
                other parts are no reason to refuse this one.

        Raises:
            Overloaded: nothing was done.
        """
        if self.closed or len(self.waiting) >= self.max_queue:
            metrics.REFUSED["stopping" if self.closed else "queue_full"].inc()
            raise Overloaded("stopping" if self.closed else "the queue is full")
        if self.is_late() and not begun:
            metrics.REFUSED["overloaded"].inc()
            raise Overloaded("more requests than can be answered in time")
        self.waiting.append(request)
        self.arrived.set()

    def take(self) -> list[Asked]:
        """The next batch: up to `max_batch` requests, each user's in their order.

        All of a user's events become one append of at most `max_events`; a request that does not
        fit waits, and so do the user's later ones.
        """
        batch: dict[str, Asked] = {}
        left: list[Append | Read] = []
        blocked: set[str] = set()
        taken = 0
        while self.waiting and taken < self.max_batch and len(left) < self.max_batch:
            request = self.waiting.popleft()
            if request.done.done():  # its caller has gone
                continue
            asked = batch.get(request.user_id) or Asked(request.user_id)
            if request.user_id in blocked or (
                isinstance(request, Append)
                and asked.appends
                and asked.n_events + len(request.events) > self._max_events
            ):
                blocked.add(request.user_id)
                left.append(request)
                continue
            batch[request.user_id] = asked
            if isinstance(request, Append):
                asked.appends.append(request)
            else:
                asked.reads.append(request)
            taken += 1
        self.waiting.extendleft(reversed(left))
        if batch:
            metrics.WAVE_REQUESTS.observe(taken)
        return list(batch.values())
