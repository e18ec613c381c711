"""A user's record: the append-only event log in the store, from which every state follows.

Layout of the keys (`<ns>` a namespace, users percent-encoded):

    <ns>:u:<user>          hash    n           version: events accepted so far
                                   e<k>        event k: uid 8 | effective time 8 | what was given
                                   ic<id>      version of the event with this event_id
                                   iu<uid>     version of the event without one
                                   o           version of the oldest event kept, if it is not 1
    <ns>:s:<model>:<user>  string  snapshot of a model's state (opaque here)
    <ns>:models            set     the models that have written snapshots
    <ns>:erased            stream  users erased of late, newest last

Times are int64 epoch milliseconds.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote, unquote_to_bytes

from service.store.calls import Calls, raised
from service.store.store import (
    AcksMissed,
    Command,
    Durable,
    HistoryChanged,
    InvalidRequest,
    RecordDamaged,
    Store,
    StoreError,
)


def _source(name: str) -> str:
    return files("service.store").joinpath(f"{name}.lua").read_text("utf-8")


# The first script twice: without the right to write it also answers on a full store or a replica.
_SCRIPTS = {
    hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(): source
    for source in (
        "#!lua\n" + _source("append"),
        "#!lua flags=no-writes\n" + _source("append"),
        _source("snapshot"),
        _source("erased_record"),
        _source("removed_record"),
        _source("erased_snapshot"),
        _source("erased"),
    )
}
_APPEND, _FETCH, _SNAPSHOT, _ERASE_RECORD, _REMOVE_RECORD, _ERASE_SNAPSHOT, _ANNOUNCE = _SCRIPTS

_GIVEN = struct.Struct(">qH")  # given time, length of event_id; then event_id and item id
_STORED = struct.Struct(">8sqqH")  # uid, effective time, then as above
_NO_TIME = -(2**63)
_EXACT = 2**53  # Lua's numbers are exact up to here
# In the length: the event was put in its place; it has got another uid, its first one comes last;
# between event_id and item id come the kind, after its length, and the weight.
_PLACED, _MOVED, _KIND = 0x2000, 0x4000, 0x8000
_LONGEST_EVENT_ID, _LONGEST_KIND = _PLACED - 1, 255
_WEIGHT = struct.Struct(">d")  # not a number: none was given
_MAX_PAGE = 4096  # Lua's unpack fails on more than about 8 000 values

ERASURES_KEPT_S = 600
"""So long an erasure is announced: who has not asked for half of it may have missed one."""
# A snapshot lands so long after its record was last seen at most. Where one was erased, none can be
# written for longer than that, by what the clocks of a Cluster's nodes may differ.
_LANDS_WITHIN_MS, _BARRED_MS = 500, 900
_SNAPSHOTS_A_CALL = 16

LatePolicy = Literal["clamp", "reject", "replay"]
"""What becomes of an event older than the user's newest: it gets the time of that one, is refused,
or is put in its place, so that the events after it move."""


class Mark(NamedTuple):
    """What a cached state stands for: the events 1..version, the last of which has this uid."""

    version: int
    uid: bytes


ORIGIN = Mark(0, b"")


def new_uid() -> bytes:
    """Eight random bytes for an event, drawn before its first attempt."""
    return os.urandom(8)


class NewEvent(NamedTuple):
    """An interaction to append. `time_ms` None: the store's clock. What its `kind` does, the
    service's `KindRules` say; `weight` (finite) is how much it counts as popular."""

    uid: bytes
    item_id: str
    time_ms: int | None = None
    event_id: str | None = None
    kind: str | None = None
    weight: float | None = None


class Event(NamedTuple):
    """An accepted interaction. `time_ms` never falls from one version to the next.

    `first_uid`: the uid it was sent with, where it has moved since and got others.
    """

    version: int
    uid: bytes
    item_id: str
    given_ms: int | None
    time_ms: int
    event_id: str | None
    kind: str | None = None
    weight: float | None = None
    first_uid: bytes | None = None

    @property
    def mark(self) -> Mark:
        return Mark(self.version, self.uid)

    @property
    def sent_uid(self) -> bytes:
        """The uid it was sent with."""
        return self.first_uid or self.uid


class Verdict(StrEnum):
    APPLIED = "applied"
    DUPLICATE = "duplicate"  # this event_id is there already, with the same body
    LATE = "late"  # applied, its time raised to the newest one or itself put in its place
    REJECTED = "rejected"  # late, and the policy refuses it
    CONFLICT = "conflict"  # this event_id is there already, with another body
    FUTURE = "future"  # further ahead of the store's clock than tolerated


_VERDICTS = tuple(Verdict)  # in the order of the codes in append.lua


class Outcome(NamedTuple):
    """What became of one new event.

    `version` and `time_ms` (effective) are those of the event in the log after the request: the
    new one, or for a duplicate or conflict the one that was there; None where nothing is
    (rejected, future).
    """

    verdict: Verdict
    version: int | None
    time_ms: int | None


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


class Removed(NamedTuple):
    """A record that was deleted: its events after the mark it was known by, and what is to be
    raised where too few replicas are known to have lost it, too."""

    after: list[Event]
    missed: AcksMissed | None


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
    `timeout_s`: deadline of a call, its retries included. Every method raises StoreUnavailable
    when it passes, and StoreError when the store refuses.
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
        timeout_s: float = 2.0,
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
        self.store = store
        self.namespace = quote(namespace, safe="")
        self.page = page
        self.dedup_window = dedup_window
        self._moved = replay_limit if late_policy == "replay" else 0
        # Appends carry uids, everything else may be repeated.
        self._calls = Calls(store, timeout_s, _SCRIPTS)
        self._settings: tuple[str | int, ...] = (
            page,
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

    async def exchange(self, requests: Sequence[LogRequest]) -> list[LogReply | StoreError]:
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
                    commands.append(("GET", self._snapshot(request.snapshot_of, request.user_id)))
                commands.append(script)
                sent.append((position, request))
            except InvalidRequest as error:
                replies[position] = error
        answers = iter(await self._calls(commands, "exchange"))
        for position, request in sent:
            snapshot = next(answers) if request.snapshot_of is not None else None
            try:
                # A snapshot is a cache: one that cannot be read is a miss.
                replies[position] = _reply(
                    raised(next(answers)),
                    (snapshot or None) if isinstance(snapshot, bytes) else None,
                )
            except StoreError as error:
                replies[position] = error
        return [reply for reply in replies if reply is not None]

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
            reply = _reply(raised(*await self._calls([script])), None)
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
        prefix = f"{self.namespace}:u:"
        for node in await self.store.nodes(self._calls.timeout_s):
            cursor = b"0"
            while True:
                scan: Command = ("SCAN", cursor, "MATCH", prefix + "*", "COUNT", 1000)
                cursor, keys = raised(*await self._calls([scan], at=node))
                if keys:
                    yield [_unquoted(key[len(prefix) :]) for key in keys]
                if cursor == b"0":
                    break

    async def write_snapshots(
        self,
        model: str,
        snapshots: Sequence[tuple[str, bytes]],
        ttl_s: int | None,
        marks: Sequence[Mark] | None = None,
    ) -> int:
        """Write (user, snapshot) pairs; how many were. `ttl_s` None or 0: kept.

        `marks`: what each stands for. One whose mark is not in its user's record now is not
        written, and none of a user who is erased meanwhile stays. None: nothing is asked.
        """
        written = 0
        for start in range(0, len(snapshots), _SNAPSHOTS_A_CALL):
            part = slice(start, start + _SNAPSHOTS_A_CALL)
            written += await self._write_snapshots(
                model, snapshots[part], ttl_s, None if marks is None else marks[part]
            )
        return written

    async def _write_snapshots(
        self,
        model: str,
        snapshots: Sequence[tuple[str, bytes]],
        ttl_s: int | None,
        marks: Sequence[Mark] | None,
    ) -> int:
        # By itself: `erase` must know of the model before the record is asked for.
        raised(*await self._calls([("SADD", f"{self.namespace}:models", model)]))
        by = 0
        if marks is not None:
            scripts = [
                self._script(LogRequest(user, mark, page=1))
                for (user, _), mark in zip(snapshots, marks, strict=True)
            ]
            answers = await self._calls(scripts, "snapshot")
            raised(*(a for a in answers if not isinstance(a, RecordDamaged)))
            replies = [None if isinstance(a, StoreError) else _reply(a, None) for a in answers]
            current = [reply is not None and reply.known_is_current_history for reply in replies]
            snapshots = [pair for pair, there in zip(snapshots, current, strict=True) if there]
            by = min((r.now_ms for r in replies if r), default=0) + _LANDS_WITHIN_MS
        commands: list[Command] = [
            ("EVALSHA", _SNAPSHOT, 1, self._snapshot(model, user), value, ttl_s or 0, by)
            for user, value in snapshots
        ]
        written = await self._calls(commands, "snapshot")
        raised(*written)
        return sum(written)

    async def read_snapshots(self, model: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """The users' snapshots, None where there is none."""
        commands: list[Command] = [("GET", self._snapshot(model, user)) for user in user_ids]
        answers = await self._calls(commands, "snapshot")
        raised(*answers)
        return [answer or None for answer in answers]

    async def erase(self, user_id: str) -> bool:
        """Delete a user's record and snapshots and announce it. True: there was a record."""
        record = self._record(user_id)
        (existed,) = await self._calls([("EXISTS", record)])
        raised(existed)
        raised(*await self._calls([Durable(("EVALSHA", _ERASE_RECORD, 1, record))]))
        await self.forget(user_id)
        return bool(existed)

    async def remove(self, user_id: str, known: Mark) -> Removed | None:
        """Delete a user's record, and nothing else, while it has the mark `known`.

        The events after it, which went as well; None: it does not have it, and is as it was, or
        another call has deleted it. Of all calls for a record one gets its events, or none does.
        """
        command = ("EVALSHA", _REMOVE_RECORD, 1, self._record(user_id), known.version, known.uid)
        (answer,) = await self._calls([Durable(command)])
        missed = answer if isinstance(answer, AcksMissed) else None
        stored = raised(answer if missed is None else missed.reply)
        if stored is None:
            return None
        after = [_event(known.version + 1 + i, value) for i, value in enumerate(stored)]
        return Removed(after, missed)

    async def forget(self, user_id: str) -> None:
        """Delete the snapshots of a user whose record is gone, and announce it."""
        models = f"{self.namespace}:models"
        # One after the other: no snapshot of a record that is gone can be begun, the models are
        # those of all that were, and who hears of it must find nothing on another node.
        known = raised(*await self._calls([("SMEMBERS", models)]))
        keys = [self._snapshot(_text(model), user_id) for model in known]
        erasing = [Durable(("EVALSHA", _ERASE_SNAPSHOT, 1, key, _BARRED_MS)) for key in keys]
        raised(*await self._calls(erasing))
        stream, user = f"{self.namespace}:erased", _utf8("user_id", user_id)
        raised(
            *await self._calls(
                [Durable(("EVALSHA", _ANNOUNCE, 1, stream, user, 1000 * ERASURES_KEPT_S))]
            )
        )

    async def erasures(self, cursor: str) -> tuple[str, list[str]]:
        """Users erased since the cursor, oldest first, and the next cursor. A cursor of "$"
        answers nobody and a cursor for what comes from now on; "0-0" begins at the oldest kept."""
        stream = f"{self.namespace}:erased"
        if cursor == "$":
            newest: Command = ("XREVRANGE", stream, "+", "-", "COUNT", 1)
            last = raised(*await self._calls([newest], "erasures"))
            return (last[0][0].decode() if last else "0-0"), []
        since: Command = ("XRANGE", stream, f"({cursor}", "+", "COUNT", 1000)
        entries = raised(*await self._calls([since], "erasures"))
        users = [_text(fields[1]) for _, fields in entries]
        return (entries[-1][0].decode() if entries else cursor), users

    async def describe(self, user_id: str) -> UserRecord | None:
        """Size and last time of a user's record, None if there is none."""
        script = self._script(LogRequest(user_id, page=1))
        answer, size = await self._calls([script, ("MEMORY", "USAGE", self._record(user_id))])
        raised(answer, size)
        reply = _reply(answer, None)
        if not reply.events:
            return None
        newest = reply.events[-1]
        return UserRecord(newest.version, newest.time_ms, size or 0, reply.oldest)

    async def memory(self) -> tuple[int, int]:
        """Bytes the store uses, and may use at most (0: no limit is set), on all primaries."""
        used, limits = 0, []
        for node in await self.store.nodes(self._calls.timeout_s):
            info = _text(raised(*await self._calls([("INFO", "memory")], at=node)))
            found = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
            used += int(found["used_memory"])
            limits.append(int(found.get("maxmemory", 0)))
        return used, sum(limits) if all(limits) else 0

    async def ping(self) -> None:
        raised(*await self._calls([("PING",)], "ping"))

    def _record(self, user_id: str) -> str:
        return f"{self.namespace}:u:{_quoted('user_id', user_id)}"

    def _snapshot(self, model: str, user_id: str) -> str:
        return f"{self.namespace}:s:{_quoted('model', model)}:{_quoted('user_id', user_id)}"

    def _script(self, request: LogRequest, *, unchecked: bool = False) -> Command:
        if len(request.events) > self.max_events:
            raise InvalidRequest(
                f"events: {len(request.events)} for one user in one request; "
                f"at most {self.max_events} fit (by dedup_window), send the rest after them"
            )
        known: tuple[str | int, str | bytes] = ("", "")
        if request.known is not None:
            # A uid is never empty, so an empty one that must be checked matches nothing.
            known = request.known.version, request.known.uid or ("" if unchecked else "none")
        command: tuple[str | bytes | int, ...] = (
            "EVALSHA",
            _APPEND if request.events else _FETCH,
            1,
            self._record(request.user_id),
            *known,
            self.page if request.page is None else request.page,
            *self._settings[1:],
            *map(_packed, request.events),
        )
        return Durable(command) if request.events else command


def _utf8(field: str, value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{field} {value!a} contains half a surrogate pair; send valid Unicode"
        ) from None
    if not encoded:
        raise InvalidRequest(f"{field} is empty")
    return encoded


def _quoted(field: str, value: str) -> str:
    return quote(_utf8(field, value), safe="")


def _unquoted(key: bytes) -> str:
    return unquote_to_bytes(key).decode()


def _text(value: bytes) -> str:
    return value.decode()


def _packed(event: NewEvent) -> bytes:
    if len(event.uid) != 8:
        raise InvalidRequest(f"uid has {len(event.uid)} bytes; new_uid() makes 8")
    if event.time_ms is not None and abs(event.time_ms) > _EXACT:
        raise InvalidRequest(f"time_ms {event.time_ms} is no time in milliseconds")
    event_id = b"" if event.event_id is None else _utf8("event_id", event.event_id)
    if len(event_id) > _LONGEST_EVENT_ID:
        raise InvalidRequest(f"event_id has {len(event_id)} bytes; at most {_LONGEST_EVENT_ID} fit")
    given = _NO_TIME if event.time_ms is None else event.time_ms
    item_id = _utf8("item_id", event.item_id)
    if event.kind is None and event.weight is None:
        return event.uid + _GIVEN.pack(given, len(event_id)) + event_id + item_id
    kind = b"" if event.kind is None else _utf8("kind", event.kind)
    if len(kind) > _LONGEST_KIND:
        raise InvalidRequest(f"kind has {len(kind)} bytes; at most {_LONGEST_KIND} fit")
    weight = math.nan
    if event.weight is not None:
        weight = event.weight + 0.0  # one zero, not two
        if not math.isfinite(weight):
            raise InvalidRequest(f"weight {weight} is not finite")
    head = _GIVEN.pack(given, len(event_id) | _KIND)
    return b"".join(
        (event.uid, head, event_id, bytes([len(kind)]), kind, _WEIGHT.pack(weight), item_id)
    )


def _event(version: int, stored: bytes) -> Event:
    try:
        uid, effective, given, length = _STORED.unpack_from(stored)
        first_uid = None
        if length & _MOVED:
            stored, first_uid = stored[:-8], stored[-8:]
        end = _STORED.size + length % _PLACED
        event_id = stored[_STORED.size : end].decode() or None
        kind = weight = None
        if length & _KIND:
            begin = end + 1
            end = begin + stored[end]
            kind = stored[begin:end].decode() or None
            (weight,) = _WEIGHT.unpack_from(stored, end)
            end += _WEIGHT.size
        return Event(
            version,
            uid,
            stored[end:].decode(),
            None if given == _NO_TIME else given,
            effective,
            event_id,
            kind,
            None if weight is None or math.isnan(weight) else weight,
            first_uid,
        )
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise RecordDamaged(f"event {version} cannot be read: {error}") from None


def _reply(answer: Any, snapshot: bytes | None) -> LogReply:
    now, version, uid, in_history, flat, first, stored, oldest = answer
    events = [_event(first + i, value) for i, value in enumerate(stored)]
    outcomes = [
        Outcome(_VERDICTS[verdict], at or None, time if at else None)
        for verdict, at, time in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
    complete = first + len(stored) > version
    newest = Mark(version, uid)
    return LogReply(outcomes, newest, bool(in_history), events, complete, snapshot, now, oldest)
