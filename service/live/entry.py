"""What the feed carries, as bytes: accepted events, and users whose last items are forgotten.

Packed: user key 8 | time, ms 8 | weight, float32 4 | length of the item id 4 | item id; one without
an item id forgets the user.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from model.live.evidence import Observed

_HEAD = struct.Struct("<qqfI")


class Forgotten(NamedTuple):
    """A user who was erased."""

    user_key: int


Record = Observed | Forgotten


def packed(records: Iterable[Record]) -> bytes:
    parts: list[bytes] = []
    for record in records:
        if isinstance(record, Forgotten):
            parts.append(_HEAD.pack(record.user_key, 0, 0.0, 0))
        else:
            item = record.item_id.encode()
            parts += _HEAD.pack(record.user_key, record.time_ms, record.weight, len(item)), item
    return b"".join(parts)


def unpacked(data: bytes) -> Iterator[Record]:
    place = 0
    while place < len(data):
        key, time_ms, weight, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size + length
        if length:
            yield Observed(key, data[place - length : place].decode(), time_ms, weight)
        else:
            yield Forgotten(key)
