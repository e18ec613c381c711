"""The catalogue's records in the store.

    <ns>:items:<shard>   hash    item id -> record (JSON); the shard is the id's CRC-32 modulo 64
    <ns>:catalogue       stream  ids of the items whose records have changed, newest last

A change is written, then announced: who hears of it reads a record at least as new. Both may be
done twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from urllib.parse import quote
from zlib import crc32

from service.store.client import Store
from service.store.errors import raised
from service.store.script import Command

SHARDS = 64
_ANNOUNCEMENTS_KEPT = 10_000
_PAGE = 20  # announcements read at once, each of up to a batch's items


class ItemStore:
    """Records of items in one namespace of a store. Methods raise StoreError."""

    def __init__(self, store: Store, *, namespace: str = "tim4rec") -> None:
        self._namespace = quote(namespace, safe="")
        self._stream = f"{self._namespace}:catalogue"
        self._store = store

    async def write(self, records: Mapping[str, bytes | None]) -> dict[str, bool]:
        """Sets records, or removes those that are None, and announces it.

        Returns:
            for each item whether it had a record before.
        """
        commands: list[Command] = []
        for key, own in self._by_key(records).items():
            commands.append(("HMGET", key, *own))
            new: list[str | bytes] = []
            for item in own:
                record = records[item]
                new += () if record is None else (item, record)
            gone = [item for item in own if records[item] is None]
            commands += [("HSET", key, *new)] if new else []
            commands += [("HDEL", key, *gone)] if gone else []
        before: dict[str, bool] = {}
        replies = await self._store.pipeline(commands, "catalogue")
        raised(*replies)
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "HMGET":
                names = map(str, command[2:])
                before |= zip(names, (old is not None for old in reply), strict=True)
        # By itself: who hears of it must not find the old record on another node.
        fields: list[str] = [part for item in records for part in ("item", item)]
        kept = ("MAXLEN", "~", _ANNOUNCEMENTS_KEPT)
        announcement: Command = ("XADD", self._stream, *kept, "*", *fields)
        await self._store.request(announcement, "catalogue")
        return before

    async def read(self, items: Iterable[str]) -> dict[str, bytes | None]:
        """Records of items, None where there is none."""
        by_key = self._by_key(items)
        commands: list[Command] = [("HMGET", key, *own) for key, own in by_key.items()]
        replies = await self._store.pipeline(commands, "catalogue")
        raised(*replies)
        found: dict[str, bytes | None] = {}
        for own, reply in zip(by_key.values(), replies, strict=True):
            found |= zip(own, reply, strict=True)
        return found

    async def all(self) -> AsyncIterator[dict[str, bytes]]:
        """All records, shard by shard."""
        for shard in range(SHARDS):
            flat = await self._store.request(("HGETALL", self._key(shard)), "catalogue")
            pairs = zip(flat[::2], flat[1::2], strict=True)
            yield {item.decode(): record for item, record in pairs}

    async def newest(self) -> str:
        """A cursor for the changes from now on."""
        last = await self._store.request(("XREVRANGE", self._stream, "+", "-", "COUNT", 1))
        return str(last[0][0].decode()) if last else "0-0"

    async def changes(self, cursor: str) -> tuple[str, set[str]] | None:
        """The items that have changed since the cursor, and the next cursor; None: not all
        announcements since are kept, everything has to be read again."""
        since: Command = ("XRANGE", self._stream, cursor, "+", "COUNT", _PAGE + 1)
        entries = await self._store.request(since, "catalogue")
        if cursor != "0-0":
            # The cursor's own announcement is there, unless others have pushed it out.
            if not entries or entries[0][0].decode() != cursor:
                return None
            entries = entries[1:]
        elif len(entries) > _PAGE:
            return None
        items = {item.decode() for _, fields in entries for item in fields[1::2]}
        return (entries[-1][0].decode() if entries else cursor), items

    def _key(self, shard: int) -> str:
        return f"{self._namespace}:items:{shard}"

    def _by_key(self, items: Iterable[str]) -> dict[str, Sequence[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for item in dict.fromkeys(items):
            found[self._key(crc32(item.encode()) % SHARDS)].append(item)
        return dict(found)
