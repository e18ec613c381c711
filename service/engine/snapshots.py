"""A snapshot: a user's state at one point of the log, as bytes that are checked before use."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.state import HEADER_BYTES, Precision, State, StateBytesError, StateLayout
from service.engine.pool import Row
from service.store.events import Mark, Outcome, Verdict

LOGGED = (Verdict.APPLIED, Verdict.LATE)
"""What is said of an event that is a new one in the log."""

_FORMAT = b"3"
"""Of what follows; with another one, a snapshot has another stamp."""
_HEAD = struct.Struct("<8sq8sqI")  # model, version, uid, known events, length of the ids
# Then these, a JSON list of the recent and the unknown ones; then int32 each: the seen items, and
# the hidden ones below zero.


@dataclass(frozen=True)
class Snapshot:
    """The state (B = 1) after the events up to `mark`, and what else a `Row` has of them."""

    mark: Mark
    count: int
    seen: NDArray[np.int32]
    hidden: NDArray[np.int32]
    recent: tuple[str, ...]
    unknown: tuple[str, ...]
    state: State


def stamp(identity: str) -> bytes:
    """What a snapshot says of its format and its model: the layout of another may be the same."""
    return hashlib.blake2b(identity.encode(), digest_size=8, person=_FORMAT).digest()


def describe(model: bytes, row: Row) -> bytes:
    """What is packed beside a row's state, under its checksum. `model`: its stamp."""
    both = row.recent, row.unknown
    ids = json.dumps(both, ensure_ascii=False, separators=(",", ":")).encode()
    items = np.concatenate([row.seen.unique(), -row.hidden.unique()]).astype("<i4")
    head = _HEAD.pack(model, *row.mark, row.count, len(ids))
    return head + ids + items.tobytes()


def mark(data: bytes) -> Mark:
    """What a sound snapshot in these bytes stands for."""
    _, version, uid, *_ = _HEAD.unpack_from(data, HEADER_BYTES)
    return Mark(version, uid)


@dataclass(frozen=True)
class SnapshotFormat:
    """How the states of one model are kept, and when.

    Attributes:
        identity: of the model with all that decides its states.
        every: a snapshot is due at multiples of this version.
    """

    layout: StateLayout
    identity: str
    every: int = 64
    precision: Precision = "float32"

    @cached_property
    def stamp(self) -> bytes:
        return stamp(self.identity)

    @property
    def rounds(self) -> bool:
        """With reduced snapshots, every worker rounds a state at every snapshot's version."""
        return self.precision != "float32"

    def until_rounded(self, version: int) -> int | None:
        """Events from a version to the next at which states are rounded; None: they never are."""
        return self.every - version % self.every if self.rounds else None

    def is_due(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether an append crossed a multiple of `every`."""
        own = own_versions(outcomes)
        return bool(own) and (min(own) - 1) // self.every < max(own) // self.every

    def read(self, data: bytes | None) -> Snapshot | None:
        """The snapshot in these bytes; None when there is none, or they can't be believed or are
        another model's."""
        if data is None:
            return None
        try:
            state, extra = self.layout.unpack(data)
            written_by, version, uid, count, size = _HEAD.unpack_from(extra)
            if written_by != self.stamp:
                return None
            rest = extra[_HEAD.size :]
            recent, unknown = map(tuple, json.loads(rest[:size]))
            items = np.frombuffer(rest[size:], "<i4")
        except (StateBytesError, struct.error, ValueError):
            return None
        seen, hidden = (part.astype(np.int32) for part in (items[items > 0], -items[items < 0]))
        return Snapshot(Mark(version, uid), count, seen, hidden, recent, unknown, state)


def own_versions(outcomes: Sequence[Outcome]) -> list[int]:
    """The versions that the events of an append have become."""
    return [one.version for one in outcomes if one.verdict in LOGGED and one.version]
