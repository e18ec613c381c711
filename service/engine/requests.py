"""What is asked of an engine, and what it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.observe import stages
from service.observe.stages import Stages
from service.store.events import Event, Mark, NewEvent, Outcome

T = TypeVar("T")

Source = Literal["model", "live", "recent", "popular"]
StoreAway = Literal["refuse", "pool", "popular"]
"""What reads get while the store does not answer: nothing, an answer from the state in the pool if
there is one, or what is popular if there is none."""


class Overloaded(Exception):
    """More waits than can be answered in time: nothing was done."""


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, eq=False)
class Append:
    """Events of one user to be logged; answered when they are durable."""

    user_id: str
    events: Sequence[NewEvent]
    done: asyncio.Future[list[Outcome]] = field(default_factory=_future)
    queued: float = field(default_factory=time.perf_counter)
    stages: Stages | None = field(default_factory=stages.current.get)


@dataclass(frozen=True, eq=False)
class Read:
    """A recommendation asked for; answered when the state has caught up with the log.

    Attributes:
        at_ms: the time recommended for, UNKNOWN_TIME where not known; None: now, by the store's
            clock.
        allow_stale: a state in the pool will do, without asking the log.
        session: the whole history of somebody who is no user; the log is not asked.
    """

    user_id: str
    ask: Ask
    exclude_seen: bool = True
    at_ms: int | None = None
    allow_stale: bool = False
    session: Sequence[Event] | None = None
    done: asyncio.Future[Recommendation] = field(default_factory=_future)
    queued: float = field(default_factory=time.perf_counter)
    stages: Stages | None = field(default_factory=stages.current.get)


@dataclass(frozen=True)
class Recommendation:
    """Attributes:
    ask: what was asked for the user.
    source: `model`; where that knows nothing of the user, what has happened since the training
        (`live`), or what is popular: `recent`, or in training (`popular`).
    truncated: the state is of the newest events only.
    away: the store did not answer.
    """

    ranking: Ranking
    mark: Mark
    ask: Ask
    source: Source
    stale: bool
    truncated: bool
    away: bool

    @property
    def version(self) -> int:
        return self.mark.version

    @property
    def at_ms(self) -> int:
        """The time recommended for, UNKNOWN_TIME where not known."""
        return self.ask.at_ms


def resolve(future: asyncio.Future[T], value: T) -> None:
    """Answers whoever still waits."""
    if not future.done():
        future.set_result(value)


def reject(requests: Iterable[Append | Read], error: Exception) -> None:
    for request in requests:
        if not request.done.done():
            request.done.set_exception(error)
