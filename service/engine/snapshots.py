"""A snapshot: a user's state at one point of the log, as bytes that are checked before use."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.state import HEADER_BYTES, State, StateBytesError, StateLayout
from service.engine.pool import Seen
from service.store.events import Mark

_HEAD = struct.Struct("<8sq8sq")  # model, version, uid, known events
# Then int32 each: the seen items, and the hidden ones below zero.


@dataclass(frozen=True)
class Snapshot:
    """The state (B = 1) after the events up to `mark`, `count` of which the model knew."""

    mark: Mark
    count: int
    seen: NDArray[np.int32]
    hidden: NDArray[np.int32]
    state: State


def stamp(identity: str) -> bytes:
    """What a snapshot says of its model: the layout of another one may be the same."""
    return hashlib.blake2b(identity.encode(), digest_size=8).digest()


def describe(model: bytes, mark: Mark, count: int, seen: Seen, hidden: Seen | None = None) -> bytes:
    """What is packed beside a state, under its checksum. `model`: its stamp."""
    items = seen.unique().astype("<i4").tobytes()
    if hidden is not None:
        items += (-hidden.unique()).astype("<i4").tobytes()
    return _HEAD.pack(model, mark.version, mark.uid, count) + items


def mark(data: bytes) -> Mark:
    """What a sound snapshot in these bytes stands for."""
    _, version, uid, _ = _HEAD.unpack_from(data, HEADER_BYTES)
    return Mark(version, uid)


def read(layout: StateLayout, model: bytes, data: bytes | None) -> Snapshot | None:
    """The snapshot in these bytes; None when there is none, or they can't be believed or are
    another model's."""
    if data is None:
        return None
    try:
        state, extra = layout.unpack(data)
        written_by, version, uid, count = _HEAD.unpack_from(extra)
        items = np.frombuffer(extra, "<i4", offset=_HEAD.size).astype(np.int32)
    except (StateBytesError, struct.error, ValueError):
        return None
    if written_by != model:
        return None
    return Snapshot(Mark(version, uid), count, items[items > 0], -items[items < 0], state)
