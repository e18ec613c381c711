"""Accepted events of all processes in one order, bounded: what evidence is counted from.

<ns>:live   stream   n: records up to and with this entry's; records: as service.live.entry
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from service.live.entry import Record, packed, unpacked
from service.store.client import Store
from service.store.errors import raised
from service.store.script import Script

KEPT_S = 86_400
"""An older entry goes with the next one that comes."""
LARGEST = 1000
"""Most records of an entry."""
_PAGE = 16
_ADD = Script.read("feed", "service.live")


class Position(NamedTuple):
    """A place in the feed: after the entry with this id, its time in ms first. `records`: how many
    records there were up to it."""

    ms: int = 0
    sequence: int = 0
    records: int = 0

    @property
    def entry_id(self) -> str:
        return f"{self.ms}-{self.sequence}"


BEGINNING = Position()


@dataclass(frozen=True)
class Entry:
    """`size`: how many records it has; `end`: the position after it."""

    end: Position
    size: int
    packed: bytes

    @property
    def begin(self) -> int:
        """How many records there were before it."""
        return self.end.records - self.size

    def records(self) -> list[Record]:
        return list(unpacked(self.packed))


class Feed:
    """That of one namespace. Methods raise StoreError.

    Args:
        most: records kept, about.
    """

    def __init__(self, store: Store, *, namespace: str = "tim4rec", most: int = 200_000) -> None:
        self.most = most
        self._store, self._key = store, f"{quote(namespace, safe='')}:live"

    async def add(self, records: Sequence[Record]) -> None:
        """Adds records, once: where the answer is lost they may be missing."""
        parts = [records[start : start + LARGEST] for start in range(0, len(records), LARGEST)]
        calls = [
            _ADD.call(self._key, len(part), packed(part), self.most, 1000 * KEPT_S)
            for part in parts
        ]
        raised(*await self._store.once(calls, "live"))

    async def after(self, position: Position) -> list[Entry]:
        """The next few entries; none: that was all."""
        since = ("XRANGE", self._key, f"({position.entry_id}", "+", "COUNT", _PAGE)
        entries = await self._store.request(since, "live")
        return [_entry(entry_id, fields) for entry_id, fields in entries]

    async def end(self) -> Position:
        """The position after the newest entry."""
        newest = ("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        entries = await self._store.request(newest, "live")
        return _entry(*entries[0]).end if entries else BEGINNING


def _entry(entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    ms, _, sequence = entry_id.partition(b"-")
    _, count, _, size, _, records = fields
    return Entry(Position(int(ms), int(sequence), int(count)), int(size), records)
