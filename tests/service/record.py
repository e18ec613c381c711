"""A user's record as the log's rules say it, to compare the real one with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.store.event_log import EventLog
from service.store.events import ORIGIN, Event, Mark, NewEvent, Outcome, Verdict

TOLERATED_MS = 300_000


@dataclass(eq=False)
class Logged:
    """An event in the model's record. `stored`: it was there before the request that is on."""

    sent: NewEvent
    uid: bytes
    time_ms: int
    placed: bool = False
    stored: bool = False


@dataclass
class Record:
    """What a user's record must be, by the rules and without cleverness."""

    window: int
    replay_limit: int
    log: list[Logged] = field(default_factory=list)
    oldest: int = 1

    @property
    def events(self) -> list[Event]:
        return [
            Event(
                version,
                one.uid,
                one.sent.item_id,
                one.sent.time_ms,
                one.time_ms,
                one.sent.event_id,
                one.sent.kind,
                one.sent.weight,
                None if one.uid == one.sent.uid else one.sent.uid,
            )
            for version, one in enumerate(self.log, 1)
        ]

    @property
    def kept(self) -> list[Event]:
        return self.events[self.oldest - 1 :]

    def append(self, events: Sequence[NewEvent], now: int, policy: str) -> list[Outcome]:
        for one in self.log:
            one.stored = True
        found = [self.append_one(event, now, policy) for event in events]
        inserted_before = b""
        for one in self.log:
            if not one.stored:
                inserted_before = hashlib.sha1(inserted_before + one.uid).hexdigest().encode()
            elif inserted_before:
                one.uid = hashlib.sha1(inserted_before + one.uid).digest()[:8]
        return [
            Outcome(verdict, self.log.index(one) + 1 if one else None, one.time_ms if one else None)
            for verdict, one in found
        ]

    def append_one(self, event: NewEvent, now: int, policy: str) -> tuple[Verdict, Logged | None]:
        for there in reversed(self.log[-self.window :]):
            if event.event_id is None:
                if there.sent.event_id is not None or there.sent.uid != event.uid:
                    continue
            elif there.sent.event_id != event.event_id:
                continue
            if there.sent.uid == event.uid:
                given_ms = there.sent.time_ms
                late = there.placed or (given_ms is not None and given_ms < there.time_ms)
                return Verdict.LATE if late else Verdict.APPLIED, there
            same = there.sent._replace(uid=event.uid) == event
            return Verdict.DUPLICATE if same else Verdict.CONFLICT, there
        if event.time_ms is not None and event.time_ms > now + TOLERATED_MS:
            return Verdict.FUTURE, None
        time = now if event.time_ms is None else event.time_ms
        late = event.time_ms is not None and any(time < one.time_ms for one in self.log)
        new, place = Logged(event, event.uid, time), len(self.log)
        if late and policy == "reject":
            return Verdict.REJECTED, None
        if late and policy == "replay":
            new.placed = True
            place = sum(one.time_ms <= time for one in self.log)
            lost = place < self.oldest and self.oldest > 1
            if len(self.log) - place > self.replay_limit or lost:
                return Verdict.REJECTED, None
        elif self.log:
            new.time_ms = max(time, self.log[-1].time_ms)
        self.log.insert(place, new)
        return Verdict.LATE if late else Verdict.APPLIED, new

    @property
    def newest(self) -> Mark:
        return self.events[-1].mark if self.log else ORIGIN

    def reply(self, known: Mark | None, page: int, oldest: int) -> tuple[bool, list[Event]]:
        """`oldest`: that before the request, whose own appends hide nothing from it."""
        marks = [ORIGIN, *(event.mark for event in self.events[oldest - 1 :])]
        if known in marks:
            return True, self.events[max(known.version, oldest - 1) :][:page]
        return False, self.events[oldest - 1 :][-page:]


async def read_snapshots(log: EventLog, model: str, user_ids: Sequence[str]) -> list[bytes | None]:
    """The users' snapshots, None where there is none."""
    commands = [("GET", log.keys.snapshot(model, user)) for user in user_ids]
    return [found or None for found in await log.store.pipeline(commands)]
