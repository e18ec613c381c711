"""Histories written straight into records, in big pipelines; running it again adds nothing twice.

An imported event's uid is a hash of what came before it: of the last event the
record had before the import, and of every imported event up to this one. So one look at a record
tells how far its import came, at any length and whatever `dedup_window` is; and the uid names the
whole history up to it, as a random one would: no cached state of another history passes for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from model.kinds import KindRules
from service.feedback.popularity import Popularity
from service.store.errors import InvalidRequest, RecordDamaged, StoreError, raised
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import ORIGIN, Mark, NewEvent, Verdict

LANES = 4
GROUP_EVENTS = 4000
GROUP_USERS = 500
"""Users are taken in groups of so many events or users; a group is one pipeline a round."""
CHUNK = 500
"""Most events of one user in a round."""
COUNTS = 20_000
"""Counts of items are sent when there are so many of them."""
NAMED = 1000
"""Most users of whom it is said why they were refused."""
Existing = Literal["refuse", "append", "overlap"]
"""What becomes of a user whose record has events that this import has not written: it is left as
it is, everything is appended, or what the record does not have yet."""
_TAKEN = "its event_id is that of another interaction in the record"
_REFUSED = {
    Verdict.DUPLICATE: _TAKEN,
    Verdict.CONFLICT: _TAKEN,
    Verdict.FUTURE: "it is in the future, by the store's clock",
    Verdict.REJECTED: "it is late",
}


@dataclass(frozen=True)
class UserHistory:
    """What is to be imported of one user: oldest first, times in ms and never falling. `kinds`: the
    kind and weight of each; None: none has any. `given_ms`: what was given for the time of each,
    None where it is that itself; it must bring that about. `event_ids`: None: none has any."""

    user_id: str
    item_ids: Sequence[str]
    times_ms: Sequence[int]
    kinds: Sequence[tuple[str | None, float | None]] | None = None
    given_ms: Sequence[int | None] | None = None
    event_ids: Sequence[str | None] | None = None

    def sent(self, place: int) -> tuple[str, int, str | None]:
        """What tells one event of a user from another: its item, given time and kind."""
        given_ms = None if self.given_ms is None else self.given_ms[place]
        time_ms = self.times_ms[place] if given_ms is None else given_ms
        return self.item_ids[place], time_ms, None if self.kinds is None else self.kinds[place][0]

    def only(self, places: Sequence[int]) -> UserHistory:
        """Those of its events."""
        kinds, given_ms, ids = self.kinds, self.given_ms, self.event_ids
        return UserHistory(
            self.user_id,
            [self.item_ids[place] for place in places],
            [self.times_ms[place] for place in places],
            None if kinds is None else [kinds[place] for place in places],
            None if given_ms is None else [given_ms[place] for place in places],
            None if ids is None else [ids[place] for place in places],
        )


@dataclass
class ImportResult:
    """`present`: events that were stored before. `late`: of those written, how many got
    the time of a newer event. `refused_count`: users left out, or left where they were; `refused`
    are the first of them, and why."""

    written: int = 0
    present: int = 0
    late: int = 0
    refused_count: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Import:
    """One user's import under way: `done` events of it are in the record of that `version`.
    `places`: where they were in the history that was given."""

    history: UserHistory
    uids: list[bytes]
    places: Sequence[int]
    done: int = 0
    version: int = 0

    @property
    def left(self) -> int:
        return len(self.uids) - self.done


class Importer:
    """Writes histories through an event log.

    Args:
        log: appends; clamps late events, and its `page` had better be 1.
        reader: the same records, with pages of a good size.
        existing: what becomes of records with events that this import has not written.
        popularity: counts what is written, as far as `kinds` lets it.
    """

    def __init__(
        self,
        log: EventLog,
        reader: EventLog,
        *,
        existing: Existing = "refuse",
        popularity: Popularity | None = None,
        kinds: KindRules | None = None,
    ) -> None:
        self.log, self.reader, self.existing = log, reader, existing
        self.popularity, self.kinds = popularity, kinds or KindRules()
        self.result = ImportResult()

    async def now_ms(self) -> int:
        """The store's clock."""
        reply: LogReply = raised(*await self.log.exchange([LogRequest("clock")]))
        return reply.now_ms

    async def run(
        self, histories: Iterable[UserHistory], progress: Callable[[int], None]
    ) -> ImportResult:
        """Imports them; `progress` is told of every event that is done with.

        Raises:
            StoreError: the store gave up; what is written stays, and running again goes on there.
        """
        groups = _groups(histories)

        async def lane() -> None:
            for group in groups:
                await self._group(group, progress)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(LANES):
                    tasks.create_task(lane())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if self.popularity is not None:
                await self.popularity.flush()
        return self.result

    async def _group(self, group: list[UserHistory], progress: Callable[[int], None]) -> None:
        going = await self._begun(group, progress)
        chunk = min(CHUNK, self.log.max_events)
        while going:
            replies = await self.log.exchange([_request(one, chunk) for one in going])
            still = []
            for one, reply in zip(going, replies, strict=True):
                before = one.left
                fault = self._advance(one, reply)
                if fault is not None:
                    self._refuse(one.history.user_id, fault)
                    progress(before)
                    continue
                progress(before - one.left)
                if one.left:
                    still.append(one)
            going = still
            if self.popularity is not None and self.popularity.waiting >= COUNTS:
                await self.popularity.flush()

    async def _begun(
        self, group: list[UserHistory], progress: Callable[[int], None]
    ) -> list[_Import]:
        """Where each user's import stands, of those that are not done."""
        window = self.log.dedup_window
        sound = [replace(one, event_ids=_event_ids(one, window)) for one in group]
        imports = [_Import(one, _uids(one, b""), range(len(one.item_ids))) for one in sound]
        asked = [
            LogRequest(one.history.user_id, Mark(len(one.uids), one.uids[-1])) for one in imports
        ]
        going = []
        for one, reply in zip(imports, await self.log.exchange(asked), strict=True):
            rows = len(one.uids)
            try:
                fault = await self._place(one, raised(reply))
            except (RecordDamaged, InvalidRequest) as error:
                fault = str(error)
            if fault is not None:
                self._refuse(one.history.user_id, fault)
                progress(rows)
                continue
            self.result.present += rows - one.left
            progress(rows - one.left)
            if one.left:
                going.append(one)
        return going

    async def _place(self, one: _Import, reply: LogReply) -> str | None:
        """Notes how much of it is in the record already; what speaks against going on, or None."""
        newest = reply.newest
        if newest == ORIGIN:
            return None
        if reply.known_is_current_history:
            one.done = len(one.uids)
        elif newest.version < len(one.uids) and one.uids[newest.version - 1] == newest.uid:
            one.done = one.version = newest.version
        elif self.existing == "refuse":
            return (
                f"has {newest.version:,} interactions that are not from this log, or late ones "
                "were put among those that are"
            )
        elif reply.oldest > 1:
            return "has lost its oldest interactions (history_limit): what is there can't be told"
        elif self.existing == "append":
            await self._place_onto(one)
        else:
            await self._leave_out_stored(one)
        return None

    async def _leave_out_stored(self, one: _Import) -> None:
        """As often as the record has an event, it is left out: the earliest of it."""
        stored, last = Counter[tuple[str, int, str | None]](), b""
        async for page in self.reader.events(one.history.user_id):
            for event in page:
                time_ms = event.time_ms if event.given_ms is None else event.given_ms
                stored[event.item_id, time_ms, event.kind] += 1
                last = event.sent_uid
        missing = []
        for place in one.places:
            sent = one.history.sent(place)
            if stored[sent]:
                stored[sent] -= 1
            else:
                missing.append(place)
        one.history, one.places = one.history.only(missing), missing
        one.uids = _uids(one.history, last)

    async def _place_onto(self, one: _Import) -> None:
        there: list[bytes] = []
        async for page in self.reader.events(one.history.user_id):
            there += [event.sent_uid for event in page]
        places = set(there)
        for base in (b"", *there):
            if _uids(one.history, base, 1)[0] in places:
                one.uids = _uids(one.history, base)
                one.done = len(list(takewhile(places.__contains__, one.uids)))
                return
        one.uids = _uids(one.history, there[-1] if there else b"")

    def _advance(self, one: _Import, reply: LogReply | StoreError) -> str | None:
        """Books a round's outcomes; what speaks against going on, or None."""
        try:
            outcomes = raised(reply).outcomes
        except (RecordDamaged, InvalidRequest) as error:
            return str(error)
        for outcome in outcomes:
            if outcome.verdict not in (Verdict.APPLIED, Verdict.LATE):
                return f"row {one.places[one.done] + 1}: {_REFUSED[outcome.verdict]}"
            self._count(one.history, one.done)
            one.done += 1
            one.version += 1
            self.result.written += 1
            self.result.late += outcome.verdict is Verdict.LATE
            if outcome.version != one.version and self.existing == "refuse":
                return (
                    f"row {one.done}: something else is writing to this record as well; "
                    "go on with --overlap once that is over"
                )
        return None

    def _count(self, history: UserHistory, place: int) -> None:
        kind, weight = history.kinds[place] if history.kinds is not None else (None, None)
        if self.popularity is not None and self.kinds.counts(kind):
            item_id, time_ms = history.item_ids[place], history.times_ms[place]
            self.popularity.count(item_id, time_ms, 1.0 if weight is None else weight)

    def _refuse(self, user_id: str, fault: str) -> None:
        self.result.refused_count += 1
        if len(self.result.refused) < NAMED:
            self.result.refused.append((user_id, fault))


def _groups(histories: Iterable[UserHistory]) -> Iterator[list[UserHistory]]:
    group: list[UserHistory] = []
    events = 0
    for history in histories:
        group.append(history)
        events += len(history.item_ids)
        if events >= GROUP_EVENTS or len(group) == GROUP_USERS:
            yield group
            group, events = [], 0
    if group:
        yield group


def _request(one: _Import, chunk: int) -> LogRequest:
    part = slice(one.done, one.done + chunk)
    history = one.history
    uids = one.uids[part]
    kinds = history.kinds[part] if history.kinds is not None else [(None, None)] * len(uids)
    times: Iterable[int] = history.times_ms[part]
    if history.given_ms is not None:
        given = zip(times, history.given_ms[part], strict=True)
        times = [time if given_ms is None else given_ms for time, given_ms in given]
    ids = history.event_ids[part] if history.event_ids is not None else [None] * len(uids)
    sent = zip(uids, history.item_ids[part], times, ids, kinds, strict=True)
    events = [NewEvent(uid, item, at, event_id, *what) for uid, item, at, event_id, what in sent]
    return LogRequest(history.user_id, None, events)


def _event_ids(history: UserHistory, window: int) -> list[str | None] | None:
    """Each event's id, unless one of the `window` events before it has the same: then the store
    would take it for that one."""
    if history.event_ids is None:
        return None
    last, ids = dict[str, int](), list[str | None]()
    for place, event_id in enumerate(history.event_ids):
        if event_id is not None and place - last.get(event_id, -window - 1) <= window:
            event_id = None
        if event_id is not None:
            last[event_id] = place
        ids.append(event_id)
    return ids


def _uids(history: UserHistory, base: bytes, count: int | None = None) -> list[bytes]:
    """The uids of the first `count` events (None: of all) after an event with the uid `base`."""
    uid = hashlib.blake2b(
        base + history.user_id.encode(), digest_size=8, person=b"tim4rec-import"
    ).digest()
    uids = []
    given = zip(history.item_ids[:count], history.times_ms[:count], strict=True)
    for place, (item_id, time_ms) in enumerate(given):
        content = uid + time_ms.to_bytes(8, "big", signed=True) + item_id.encode()
        person = b""
        if history.kinds is not None and history.kinds[place] != (None, None):
            kind, weight = history.kinds[place]
            what = f"{kind or ''}:{'' if weight is None else float(weight)!r}".encode()
            # Not to be taken for the end of an item id.
            content, person = content + what + len(what).to_bytes(2, "big"), b"tim4rec-kinds"
        uid = hashlib.blake2b(content, digest_size=8, person=person).digest()
        uids.append(uid)
    return uids
