"""A user's record: the append-only event log in the store, from which every state follows.

Layout of the keys (`<ns>` a namespace, users percent-encoded):

    <ns>:u:<user>          hash    n           version: events accepted so far
                                   e<k>        event k: uid 8 | effective time 8 | what was given
                                   ic<id>      version of the event with this event_id
                                   iu<uid>     version of the event without one
    <ns>:s:<model>:<user>  string  snapshot of a model's state (opaque here)
    <ns>:models            set     the models that have written snapshots
    <ns>:erased            stream  users erased, newest last

Times are int64 epoch milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from service.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class Mark:
    """What a cached state stands for: the events 1..version, the last of which has this uid."""

    version: int
    uid: bytes


ORIGIN = Mark(0, b"")


def new_uid() -> bytes:
    """Eight random bytes for an event, drawn before its first attempt."""
    return os.urandom(8)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An interaction to append. `time_ms` None: the store's clock."""

    uid: bytes
    item_id: str
    time_ms: int | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An accepted interaction. `time_ms` never falls from one version to the next."""

    version: int
    uid: bytes
    item_id: str
    given_ms: int | None
    time_ms: int
    event_id: str | None

    @property
    def mark(self) -> Mark:
        return Mark(self.version, self.uid)


class Verdict(StrEnum):
    APPLIED = "applied"
    DUPLICATE = "duplicate"  # this event_id is there already, with the same body
    LATE = "late"  # applied, its time raised to the newest one
    REJECTED = "rejected"  # late, and the policy refuses late events
    CONFLICT = "conflict"  # this event_id is there already, with another body
    FUTURE = "future"  # further ahead of the store's clock than tolerated


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one new event.

    `version` and `time_ms` (effective) are those of the event in the log: the new one, or for a
    duplicate or conflict the one that was there; None where nothing is (rejected, future).
    """

    verdict: Verdict
    version: int | None
    time_ms: int | None


@dataclass(frozen=True, slots=True)
class LogRequest:
    """One user's part of an exchange: events to append (at most `EventLog.max_events`), and what
    the caller knows already. `snapshot_of`: the model whose snapshot is wanted as well."""

    user_id: str
    known: Mark | None = None
    events: Sequence[NewEvent] = ()
    snapshot_of: str | None = None


@dataclass(frozen=True, slots=True)
class LogReply:
    """The record after the request's events.

    `known_is_current_history`: `known` was given and is a point of this record's history (ORIGIN
    always is). Then `events` are those after it, oldest first, at most a page; if they do not
    reach `newest`, `complete` is False and the caller goes on from the last one's mark.
    Otherwise `events` are the newest page, oldest first, and always reach `newest`.
    """

    outcomes: list[Outcome]
    newest: Mark
    known_is_current_history: bool
    events: list[Event]
    complete: bool
    snapshot: bytes | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class UserRecord:
    """Size of a user's record. `bytes` is the store's own estimate."""

    version: int
    last_time_ms: int
    bytes: int


class EventLog:
    """The records of all users in one namespace of a store."""

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        page: int = 256,
        dedup_window: int = 1000,
        late_policy: Literal["clamp", "reject"] = "clamp",
        future_tolerance_ms: int = 300_000,
        idle_ttl_s: int = 0,
        timeout_s: float = 2.0,
    ) -> None:
        raise NotImplementedError

    @property
    def max_events(self) -> int:
        """Most events one request may append (half the dedup window: a retry stays exact while
        others append as many in between)."""
        raise NotImplementedError

    async def exchange(self, requests: Sequence[LogRequest]) -> list[LogReply | StoreError]:
        """Append and read for many users in one pipelined call; at most one request a user."""
        raise NotImplementedError

    def events(self, user_id: str, after: Mark | int = 0) -> AsyncIterator[list[Event]]:
        """Pages of the events after a version (unchecked) or mark (HistoryChanged if not there)."""
        raise NotImplementedError

    def users(self) -> AsyncIterator[list[str]]:
        """Pages of the users with a record; a user may come twice while records change."""
        raise NotImplementedError

    async def write_snapshots(
        self, model: str, snapshots: Sequence[tuple[str, bytes]], ttl_s: int | None
    ) -> None:
        raise NotImplementedError

    async def read_snapshots(self, model: str, user_ids: Sequence[str]) -> list[bytes | None]:
        raise NotImplementedError

    async def erase(self, user_id: str) -> bool:
        """Delete record and snapshots, announce it. True: there was a record."""
        raise NotImplementedError

    async def erasures(self, cursor: str) -> tuple[str, list[str]]:
        """Users erased since the cursor, and the next cursor. "$": from now on (answers none)."""
        raise NotImplementedError

    async def describe(self, user_id: str) -> UserRecord | None:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError
