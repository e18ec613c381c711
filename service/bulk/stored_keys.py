"""The keys of a namespace that a backup holds, read and written whole.

Left out is what can be made again (snapshots, live evidence, the key that seals cursors) and what
is about processes that run (announcements, lists just shown).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from service.store.client import Store
from service.store.errors import StoreError, raised
from service.store.record_keys import RecordKeys
from service.store.script import Command

LEFT_OUT = frozenset(
    b"s models live shown erased catalogue serving learner cursors backup restoring".split()
)
"""Keys by the first word of their name."""
KEYS = 256
"""Keys in one exchange."""
GROUP_BYTES = 2**24
"""About as much is read, or written, at once, but for a larger key."""
PAIRS = 10_000
"""Most fields in one command."""
_READS: dict[str, tuple[str | int, ...]] = {
    "hash": ("HGETALL",),
    "zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    "string": ("GET",),
}


@dataclass(frozen=True)
class StoredKey:
    """One key.

    Attributes:
        name: without the namespace.
        type: hash, zset or string, as the store names it.
        expires_ms: epoch; None: it stays.
        pairs: fields and values of a hash, members and scores of a zset, sorted; of a string one,
            with an empty field.
    """

    name: bytes
    type: str
    expires_ms: int | None
    pairs: list[tuple[bytes, bytes]]

    @property
    def is_record(self) -> bool:
        """Whether it is a user's record."""
        return first_word(self.name) == b"u"

    @property
    def events(self) -> dict[int, bytes]:
        """A record's events as they are stored, by their version; of another key there are none."""
        if not self.is_record:
            return {}
        stored = (pair for pair in self.pairs if pair[0][:1] == b"e" and pair[0][1:].isdigit())
        return dict(sorted((int(name[1:]), value) for name, value in stored))


def first_word(name: bytes) -> bytes:
    """What tells keys of one purpose from others: u, items, popular, ..."""
    return name.partition(b":")[0]


def words(keys: Iterable[StoredKey]) -> Iterator[str]:
    """The first word of each name, as text."""
    return (first_word(one.name).decode(errors="replace") for one in keys)


class StoredKeys:
    """Those of one namespace. Methods raise StoreError."""

    def __init__(self, store: Store, keys: RecordKeys) -> None:
        self._store, self._prefix = store, f"{keys.namespace}:"

    async def names(self) -> pl.Series:
        """The names of all that a backup holds, each once, sorted."""
        parts = [pl.Series(dtype=pl.Binary)]
        async for page in self._pages():
            kept = [name for name in page if first_word(name) not in LEFT_OUT]
            parts.append(pl.Series(kept, dtype=pl.Binary))
        return pl.concat(parts).unique().sort()

    async def any_of_users(self) -> bytes | None:
        """The name of a key that a service writes when it is used; None: there is none."""
        async for page in self._pages():
            for name in page:
                if first_word(name) not in LEFT_OUT and name != b"settings":
                    return name
        return None

    async def clear(self) -> None:
        """Deletes every key of the namespace, those that a backup leaves out too, but the mark of a
        restore."""
        async for page in self._pages():
            gone = [("UNLINK", self._key(name)) for name in page if name != b"restoring"]
            raised(*await self._store.pipeline(gone))

    async def read(self, names: Sequence[bytes]) -> AsyncIterator[list[StoredKey]]:
        """The keys of these names in groups of about GROUP_BYTES; those that are gone are left out.

        Each is read in one step, so it is as it was at one moment.
        """
        for start in range(0, len(names), KEYS):
            some = names[start : start + KEYS]
            asked = [
                command
                for key in map(self._key, some)
                for command in (("TYPE", key), ("MEMORY", "USAGE", key))
            ]
            replies = await self._store.pipeline(asked)
            raised(*replies)
            group, size = list[tuple[bytes, str]](), 0
            for name, kind, used in zip(some, replies[::2], replies[1::2], strict=True):
                if kind == b"none":
                    continue
                if group and size + (used or 0) > GROUP_BYTES:
                    yield await self._contents(group)
                    group, size = [], 0
                group.append((name, kind.decode()))
                size += used or 0
            yield await self._contents(group)

    async def now_ms(self) -> int:
        """The store's clock."""
        seconds, micros = await self._store.request(("TIME",))
        return int(seconds) * 1000 + int(micros) // 1000

    async def write(self, keys: Iterable[StoredKey]) -> None:
        """Adds what is in them. It may be done twice."""
        commands = list[Command]()
        for one in keys:
            key = self._key(one.name)
            if one.type == "string":
                commands.append(("SET", key, one.pairs[0][1]))
            for start in range(0, len(one.pairs), PAIRS) if one.type != "string" else ():
                some = one.pairs[start : start + PAIRS]
                if one.type == "hash":
                    words = [word for pair in some for word in pair]
                    commands.append(("HSET", key, *words))
                else:
                    words = [word for member, score in some for word in (score, member)]
                    commands.append(("ZADD", key, *words))
            if one.expires_ms is not None:
                commands.append(("PEXPIREAT", key, one.expires_ms))
        raised(*await self._store.pipeline(commands))

    async def _pages(self) -> AsyncIterator[list[bytes]]:
        async for page in self._store.scan(f"{self._prefix}*"):
            yield [key[len(self._prefix) :] for key in page]

    async def _contents(self, group: Sequence[tuple[bytes, str]]) -> list[StoredKey]:
        asked = list[Command]()
        for name, kind in group:
            if kind not in _READS:
                raise StoreError(f"key {self._key(name)!r} is a {kind}: none of the service's keys")
            command, *rest = _READS[kind]
            asked += [(command, self._key(name), *rest), ("PEXPIRETIME", self._key(name))]
        replies = await self._store.pipeline(asked)
        raised(*replies)
        found = list[StoredKey]()
        for (name, kind), content, expires in zip(group, replies[::2], replies[1::2], strict=True):
            if content:  # not gone meanwhile
                flat = [b"", content] if kind == "string" else content
                pairs = sorted(zip(flat[::2], flat[1::2], strict=True))
                found.append(StoredKey(name, kind, expires if expires >= 0 else None, pairs))
        return found

    def _key(self, name: bytes) -> bytes:
        return self._prefix.encode() + name
