"""Interactions as the log has them, and how they are written. Times are int64 epoch ms."""

from __future__ import annotations

import math
import os
import struct
from enum import StrEnum
from typing import NamedTuple

from service.store.errors import InvalidRequest, RecordDamaged
from service.store.record_keys import encoded

_GIVEN = struct.Struct(">qH")  # given time, length of event_id; then event_id and item id
_STORED = struct.Struct(">8sqqH")  # uid, effective time, then as above
NO_TIME = -(2**63)
_EXACT = 2**53  # Lua's numbers are exact up to here
# In the length: the event was put in its place; it has got another uid, its first one comes last;
# between event_id and item id come the kind, after its length, and the weight.
PLACED, MOVED, KIND = 0x2000, 0x4000, 0x8000
_LONGEST_EVENT_ID, _LONGEST_KIND = PLACED - 1, 255
_WEIGHT = struct.Struct(">d")  # not a number: none was given


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


class Outcome(NamedTuple):
    """What became of one new event.

    `version` and `time_ms` (effective) are those of the event in the log after the request: the
    new one, or for a duplicate or conflict the one that was there; None where nothing is
    (rejected, future).
    """

    verdict: Verdict
    version: int | None
    time_ms: int | None


def packed(event: NewEvent) -> bytes:
    """An event as the script takes it. Raises InvalidRequest if it cannot be stored."""
    if len(event.uid) != 8:
        raise InvalidRequest(f"uid has {len(event.uid)} bytes; new_uid() makes 8")
    if event.time_ms is not None and abs(event.time_ms) > _EXACT:
        raise InvalidRequest(f"time_ms {event.time_ms} is no time in milliseconds")
    event_id = b"" if event.event_id is None else encoded("event_id", event.event_id)
    if len(event_id) > _LONGEST_EVENT_ID:
        raise InvalidRequest(f"event_id has {len(event_id)} bytes; at most {_LONGEST_EVENT_ID} fit")
    given = NO_TIME if event.time_ms is None else event.time_ms
    item_id = encoded("item_id", event.item_id)
    if event.kind is None and event.weight is None:
        return event.uid + _GIVEN.pack(given, len(event_id)) + event_id + item_id
    kind = b"" if event.kind is None else encoded("kind", event.kind)
    if len(kind) > _LONGEST_KIND:
        raise InvalidRequest(f"kind has {len(kind)} bytes; at most {_LONGEST_KIND} fit")
    weight = math.nan
    if event.weight is not None:
        weight = event.weight + 0.0  # one zero, not two
        if not math.isfinite(weight):
            raise InvalidRequest(f"weight {weight} is not finite")
    head = _GIVEN.pack(given, len(event_id) | KIND)
    return b"".join(
        (event.uid, head, event_id, bytes([len(kind)]), kind, _WEIGHT.pack(weight), item_id)
    )


def unpacked(version: int, stored: bytes) -> Event:
    """The event that a record has as its `version`th. Raises RecordDamaged if it is none."""
    try:
        uid, effective, given, length = _STORED.unpack_from(stored)
        first_uid = None
        if length & MOVED:
            stored, first_uid = stored[:-8], stored[-8:]
        end = _STORED.size + length % PLACED
        event_id = stored[_STORED.size : end].decode() or None
        kind = weight = None
        if length & KIND:
            begin = end + 1
            end = begin + stored[end]
            kind = stored[begin:end].decode() or None
            (weight,) = _WEIGHT.unpack_from(stored, end)
            end += _WEIGHT.size
        return Event(
            version,
            uid,
            stored[end:].decode(),
            None if given == NO_TIME else given,
            effective,
            event_id,
            kind,
            None if weight is None or math.isnan(weight) else weight,
            first_uid,
        )
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise RecordDamaged(f"event {version} cannot be read: {error}") from None
