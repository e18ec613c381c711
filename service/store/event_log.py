"""A user's record: the append-only event log in the store, from which every state follows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from service.store.client import Operation, Store
from service.store.errors import HistoryChanged, InvalidRequest, StoreError, raised
from service.store.events import Event, Mark, NewEvent, Outcome, Verdict, packed, unpacked
from service.store.record_keys import RecordKeys
from service.store.script import Command, Script, ScriptCall

# Twice: without the right to write it also answers on a full store or a replica.
_APPEND = Script.read("append", shebang="#!lua\n", durable=True)
_FETCH = Script.read("append", shebang="#!lua flags=no-writes\n")
_VERDICTS = tuple(Verdict)  # in the order of the codes in append.lua
_MAX_PAGE = 4096  # Lua's unpack fails on more than about 8 000 values

LatePolicy = Literal["clamp", "reject", "replay"]
"""What becomes of an event older than the user's newest: it gets the time of that one, is refused,
or is put in its place, so that the events after it move."""


class LogRequest(NamedTuple):
    """One user's part of an exchange: events to append (at most `EventLog.max_events`), and what
    the caller knows already. `snapshot_of`: the model whose snapshot is wanted as well. `page`:
    most events wanted in the reply; None: the log's."""

    user_id: str
    known: Mark | None = None
    events: Sequence[NewEvent] = ()
    snapshot_of: str | None = None
    page: int | None = None


class LogReply(NamedTuple):
    """The record after the request's events.

    `known_is_current_history`: `known` was given and is a point of this record's history (ORIGIN
    always is). Then `events` are those after it, oldest first, at most a page; if they do not
    reach `newest`, `complete` is False and the caller goes on from the last one's mark.
    Otherwise `events` are the newest page, oldest first, and always reach `newest`.
    `oldest`: version of the oldest event that is kept. After ORIGIN, events begin there.
    """

    outcomes: list[Outcome]
    newest: Mark
    known_is_current_history: bool
    events: list[Event]
    complete: bool
    snapshot: bytes | None
    now_ms: int
    oldest: int = 1


class StoredEvents(NamedTuple):
    """The events of a record after a mark, oldest first, at most a page, as the record has them:
    `values` from the version `first` on. The rest is as in `LogReply`."""

    newest: Mark
    known_is_current_history: bool
    first: int
    values: list[bytes]
    complete: bool
    oldest: int


@dataclass(frozen=True, slots=True)
class UserRecord:
    """Size of a user's record. `bytes` is the store's own estimate, `oldest` the version of the
    oldest event that is kept."""

    version: int
    last_time_ms: int
    bytes: int
    oldest: int = 1


class EventLog:
    """The records of all users in one namespace of a store.

    `page`: most events in one reply. `dedup_window`: newest events of a user whose `event_id` is
    remembered. `idle_ttl_s`: a record vanishes that long after its last event; 0 keeps it.
    `replay_limit`: with the policy `replay`, most events that one late event may move, at most half
    of `dedup_window`; an older one is rejected, and so is one that belongs before the oldest kept.
    `history_limit`: newest events kept of a user, at least `dedup_window`; 0 keeps all. A record
    that is longer when it begins to be limited loses 200 with each append until it is not.
    Every method raises StoreUnavailable when the store's deadline passes, and StoreError when the
    store refuses.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        page: int = 256,
        dedup_window: int = 1000,
        late_policy: LatePolicy = "clamp",
        replay_limit: int = 200,
        future_tolerance_ms: int = 300_000,
        idle_ttl_s: int = 0,
        history_limit: int = 0,
    ) -> None:
        if not 1 <= page <= _MAX_PAGE:
            raise ValueError(f"page is {page}; give 1 to {_MAX_PAGE}")
        if dedup_window < 1:
            raise ValueError(f"dedup_window is {dedup_window}; give 1 or more")
        if history_limit and history_limit < dedup_window:
            raise ValueError(
                f"history_limit is {history_limit}; give 0 or at least dedup_window {dedup_window}"
            )
        if late_policy not in get_args(LatePolicy):
            raise ValueError(f"late_policy is {late_policy!r}; give 'clamp', 'reject' or 'replay'")
        if late_policy == "replay" and not 1 <= replay_limit <= dedup_window // 2:
            raise ValueError(
                f"replay_limit is {replay_limit}; give 1 to half of dedup_window {dedup_window}"
            )
        self.store, self.keys = store, RecordKeys(namespace)
        self.page = page
        self.dedup_window = dedup_window
        self._moved = replay_limit if late_policy == "replay" else 0
        self._settings = (
            dedup_window,
            late_policy,
            future_tolerance_ms,
            idle_ttl_s,
            history_limit,
            replay_limit,
        )

    @property
    def max_events(self) -> int:
        """Most events one request may append: half the dedup window, less what a late one may
        have after it, so that a retry stays exact while others append as many to the same record
        in between."""
        return max(1, (self.dedup_window - self._moved) // 2)

    async def exchange(
        self, requests: Sequence[LogRequest], operation: Operation = "exchange"
    ) -> list[LogReply | StoreError]:
        """Append and read for many users in one pipelined call; at most one request a user.

        A reply or an error for each request, in order: InvalidRequest (nothing was sent for
        it), StoreUnavailable (unknown whether its events were appended; send the same uids
        again), RecordDamaged, or StoreError (the store refused it).
        """
        if len({request.user_id for request in requests}) < len(requests):
            raise ValueError("an exchange takes at most one request a user")
        replies: list[LogReply | StoreError | None] = [None] * len(requests)
        commands: list[Command] = []
        sent: list[tuple[int, LogRequest]] = []
        for position, request in enumerate(requests):
            try:
                script = self._script(request)
                if request.snapshot_of is not None:
                    # Before the script: the record read after it covers the snapshot.
                    key = self.keys.snapshot(request.snapshot_of, request.user_id)
                    commands.append(("GET", key))
                commands.append(script)
                sent.append((position, request))
            except InvalidRequest as error:
                replies[position] = error
        answers = iter(await self.store.pipeline(commands, operation))
        for position, request in sent:
            snapshot = next(answers) if request.snapshot_of is not None else None
            try:
                # A snapshot is a cache: one that cannot be read is a miss.
                found = (snapshot or None) if isinstance(snapshot, bytes) else None
                replies[position] = _reply(raised(next(answers)), found)
            except StoreError as error:
                replies[position] = error
        return [reply for reply in replies if reply is not None]

    async def stored(self, known: Mapping[str, Mark]) -> list[StoredEvents | StoreError]:
        """What many users' records have after these marks, in one pipelined call: a reply or an
        error each, as `exchange` gives it."""
        scripts = [self._script(LogRequest(user, mark)) for user, mark in known.items()]
        answers = await self.store.pipeline(scripts, "exchange")
        return [one if isinstance(one, StoreError) else _stored(one) for one in answers]

    async def events(self, user_id: str, after: Mark | int = 0) -> AsyncIterator[list[Event]]:
        """Pages of the events after a mark, or after a version whose uid is not known. They
        begin with the oldest event kept where the ones before it are gone.

        Raises HistoryChanged when the mark, or later the page just read, is no longer in the
        user's history.
        """
        known = after if isinstance(after, Mark) else Mark(after, b"")
        unchecked = isinstance(after, int)
        while True:
            script = self._script(LogRequest(user_id, known), unchecked=unchecked)
            reply = _reply(await self.store.request(script))
            if not reply.known_is_current_history:
                if unchecked and known.version > reply.newest.version:
                    return
                raise HistoryChanged(f"user {user_id!r}: the record was erased or replaced")
            if reply.events:
                yield reply.events
            if reply.complete:
                return
            known, unchecked = reply.events[-1].mark, False

    async def users(self) -> AsyncIterator[list[str]]:
        """Pages of the users with a record; one may come twice while records change, and one
        whose slot moves to another node of a Cluster meanwhile may be left out."""
        async for keys in self.store.scan(self.keys.records + "*"):
            yield [self.keys.user_of(key) for key in keys]

    async def describe(self, user_id: str) -> UserRecord | None:
        """Size and last time of a user's record, None if there is none."""
        script = self._script(LogRequest(user_id, page=1))
        usage = ("MEMORY", "USAGE", self.keys.record(user_id))
        answer, size = await self.store.pipeline([script, usage])
        raised(answer, size)
        reply = _reply(answer)
        if not reply.events:
            return None
        newest = reply.events[-1]
        return UserRecord(newest.version, newest.time_ms, size or 0, reply.oldest)

    def _script(self, request: LogRequest, *, unchecked: bool = False) -> ScriptCall:
        if len(request.events) > self.max_events:
            raise InvalidRequest(
                f"events: {len(request.events)} for one user in one request; "
                f"at most {self.max_events} fit (by dedup_window), send the rest after them"
            )
        known: tuple[str | int, str | bytes] = ("", "")
        if request.known is not None:
            # A uid is never empty, so an empty one that must be checked matches nothing.
            known = request.known.version, request.known.uid or ("" if unchecked else "none")
        return (_APPEND if request.events else _FETCH).call(
            self.keys.record(request.user_id),
            *known,
            self.page if request.page is None else request.page,
            *self._settings,
            *map(packed, request.events),
        )


def _reply(answer: Any, snapshot: bytes | None = None) -> LogReply:
    now, version, uid, in_history, flat, first, stored, oldest = answer
    events = [unpacked(first + i, value) for i, value in enumerate(stored)]
    outcomes = [
        Outcome(_VERDICTS[verdict], at or None, time if at else None)
        for verdict, at, time in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
    complete = first + len(stored) > version
    newest = Mark(version, uid)
    return LogReply(outcomes, newest, bool(in_history), events, complete, snapshot, now, oldest)


def _stored(answer: Any) -> StoredEvents:
    _, version, uid, in_history, _, first, values, oldest = answer
    complete = first + len(values) > version
    return StoredEvents(Mark(version, uid), bool(in_history), first, values, complete, oldest)
