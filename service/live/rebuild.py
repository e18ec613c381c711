"""Evidence made anew from the records of all users, exactly as far as the feed goes.

Events that come meanwhile are in the feed, and perhaps also in what was read of the records. So the
feed is followed from before the first record is read until all that was read must have got into it,
and of the feed's events those count that were not read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from model.kinds import KindRules
from model.live.evidence import Evidence, EvidenceRules, Observed
from service.live.checkpoint import Checkpoints
from service.live.entry import Forgotten, Record
from service.live.feed import Feed, Position
from service.live.feed_writer import observed
from service.store.errors import RecordDamaged, raised
from service.store.event_log import EventLog, LogRequest
from service.store.events import ORIGIN, Event, Mark

USERS = 256
"""Users read in one exchange."""
SETTLED_S = 1.0
"""So long after an event was logged it is in the feed, or lost."""
_SLACK = 1.25
_BATCH = 10_000
_EVENT = np.dtype(
    [
        ("effective", "i8"),
        ("user", "i8"),
        ("version", "i4"),
        ("item", "i4"),
        ("time", "i8"),
        ("weight", "f4"),
    ]
)
_ORDER = ["effective", "user", "version"]
Rows = npt.NDArray[np.void]


class RebuildError(Exception):
    """The evidence can't be made now. One line, with the fix."""


@dataclass(frozen=True)
class Rebuilt:
    """`left_out`: events older than the newest that count; `damaged`: users whose record can't be
    read."""

    events: int
    items: int
    left_out: int
    damaged: int


class _Table:
    """The newest events that were read, 36 bytes each.

    Attributes:
        left_out: how many older ones are gone.
    """

    def __init__(self, most: int) -> None:
        self.left_out = 0
        self._most = most
        self._item_ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._parts: list[Rows] = []
        self._held = 0

    def add(self, events: Iterable[tuple[int, int, Observed]]) -> None:
        """Adds events, each with its effective time and its version."""
        rows = [
            (effective, one.user_key, version, self._number(one.item_id), one.time_ms, one.weight)
            for effective, version, one in events
        ]
        self._parts.append(np.array(rows, _EVENT))
        self._held += len(rows)
        if self._held > _SLACK * self._most:
            self._trim()

    def without(self, user_keys: set[int]) -> None:
        """Takes out what is of these users."""
        keys = np.fromiter(user_keys, np.int64, len(user_keys))
        self._parts = [part[~np.isin(part["user"], keys)] for part in self._parts]

    def among(self, user_keys: set[int]) -> Counter[Observed]:
        """How often each event of these users is there."""
        keys = np.fromiter(user_keys, np.int64, len(user_keys))
        found = Counter[Observed]()
        for part in self._parts:
            found.update(self._observed(part[np.isin(part["user"], keys)]))
        return found

    def sort(self) -> None:
        """By effective time, then user and version; what was read twice is there once."""
        self._trim()
        (rows,) = self._parts
        key = rows[_ORDER]
        self._parts = [rows[np.concatenate([[True], key[1:] != key[:-1]])] if len(rows) else rows]

    def batches(self) -> Iterator[list[Observed]]:
        for part in self._parts:
            for start in range(0, len(part), _BATCH):
                yield list(self._observed(part[start : start + _BATCH]))

    def _observed(self, rows: Rows) -> Iterator[Observed]:
        for _, user, _, item, time_ms, weight in rows.tolist():
            yield Observed(user, self._item_ids[item], time_ms, weight)

    def _trim(self) -> None:
        rows = np.concatenate([np.zeros(0, _EVENT), *self._parts])
        rows.sort(order=_ORDER)
        self.left_out += max(0, len(rows) - self._most)
        rows = rows[-self._most :].copy()
        self._parts, self._held = [rows], len(rows)

    def _number(self, item_id: str) -> int:
        number = self._numbers.setdefault(item_id, len(self._item_ids))
        if number == len(self._item_ids):
            self._item_ids.append(item_id)
        return number


class Rebuild:
    """Reads the records and writes a checkpoint, which running services take over.

    Args:
        heaviest, kinds: as of what writes the feed.
        most: of more events the newest count.
    """

    def __init__(
        self,
        log: EventLog,
        feed: Feed,
        checkpoints: Checkpoints,
        rules: EvidenceRules,
        *,
        heaviest: float,
        kinds: KindRules,
        most: int = 20_000_000,
        settled_s: float = SETTLED_S,
    ) -> None:
        self._log, self._feed, self._checkpoints, self._rules = log, feed, checkpoints, rules
        self._heaviest, self._kinds, self._settled_s = heaviest, kinds, settled_s
        self._table = _Table(most)
        self._damaged = 0

    async def run(self, progress: Callable[[int], None]) -> Rebuilt:
        """Makes it; `progress` is told of users that are read.

        Raises:
            RebuildError: the feed does not hold long enough what comes meanwhile.
            StoreError: the store gave up; nothing is changed.
        """
        position, meanwhile = await self._feed.end(), list[Record]()
        async for page in self._log.users():
            users = list(dict.fromkeys(page))
            for start in range(0, len(users), USERS):
                await self._read(users[start : start + USERS])
                position = await self._followed(position, meanwhile)
            progress(len(page))
        await asyncio.sleep(self._settled_s)
        position = await self._followed(position, meanwhile)
        evidence = await asyncio.to_thread(self._counted, meanwhile)
        data = await asyncio.to_thread(evidence.to_bytes)
        lineage = uuid4().hex
        pointer = await self._checkpoints.write(data, self._rules, lineage, position)
        while not await self._checkpoints.point(pointer, await self._checkpoints.newest()):
            pass  # a service has just written one
        return Rebuilt(
            evidence.n_events, len(evidence.item_ids), self._table.left_out, self._damaged
        )

    async def _read(self, users: list[str]) -> None:
        marks = dict.fromkeys(users, ORIGIN)
        while marks:
            asked = [LogRequest(user, mark) for user, mark in marks.items()]
            going = dict[str, Mark]()
            for request, reply in zip(asked, await self._log.exchange(asked), strict=True):
                if isinstance(reply, RecordDamaged):
                    self._damaged += 1
                    continue
                found = raised(reply)
                if found.known_is_current_history:  # else it was erased since the page before
                    self._table.add(self._evidence(request.user_id, found.events))
                    if not found.complete:
                        going[request.user_id] = found.events[-1].mark
            marks = going

    def _evidence(self, user_id: str, events: list[Event]) -> Iterator[tuple[int, int, Observed]]:
        for event in events:
            if self._kinds.counts(event.kind):
                at = event.time_ms if event.given_ms is None else event.given_ms
                one = observed(user_id, event, at, self._heaviest)
                if one is not None:
                    yield event.time_ms, event.version, one

    async def _followed(self, position: Position, meanwhile: list[Record]) -> Position:
        while entries := await self._feed.after(position):
            for entry in entries:
                if entry.begin != position.records:
                    raise RebuildError(
                        "more events came than the live feed holds: run it again, or with a larger "
                        "live_feed_events"
                    )
                meanwhile += entry.records()
                position = entry.end
        return position

    def _counted(self, meanwhile: list[Record]) -> Evidence:
        """The evidence of what was read, and then of what else came meanwhile."""
        forgotten, came = set[int](), list[Observed]()
        for record in reversed(meanwhile):
            if isinstance(record, Forgotten):
                forgotten.add(record.user_key)
            elif record.user_key not in forgotten:
                came.append(record)
        self._table.without(forgotten)
        read = self._table.among({record.user_key for record in came})
        left = list[Observed]()
        for record in reversed(came):
            if read[record]:
                read[record] -= 1
            else:
                left.append(record)
        self._table.sort()
        evidence = Evidence(self._rules)
        for batch in self._table.batches():
            evidence.observe(batch)
        evidence.observe(left)
        return evidence
