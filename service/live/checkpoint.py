"""Evidence in the store, so that a process need not count everything anew.

    <ns>:live:checkpoint              string   the pointer (JSON): which chunks, and what they hold
    <ns>:live:checkpoint:<name>:<n>   string   a chunk, compressed
    <ns>:live:checkpoint:lock         string   a process is writing one

Chunks are written first and then pointed at, so that what a pointer names is whole. Until then they
expire by themselves, and so do those before it once they are not pointed at.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self
from urllib.parse import quote
from uuid import uuid4

from model.live.evidence import EvidenceError, EvidenceRules
from service.live.feed import Position
from service.store.client import Store
from service.store.errors import raised
from service.store.script import Script

CHUNK = 2**20
_UNPOINTED_MS = 600_000
"""So long a writer may take."""
_REPLACED_MS = 180_000
"""So long what is pointed at no more can be read."""
_POINT = Script.read("checkpoint", "service.live")


@dataclass(frozen=True)
class Pointer:
    """Names a checkpoint.

    Attributes:
        lineage: of two with the same one, the later holds what the earlier holds and what the feed
            had between; a rebuild begins another.
        position: of the feed, up to which it counts.
        digest: of all chunks.
    """

    name: str
    rules: EvidenceRules
    lineage: str
    position: Position
    chunks: int
    digest: str

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Raises EvidenceError."""
        with suppress(ValueError, TypeError, KeyError):
            fields = json.loads(text)
            rules, position = EvidenceRules(**fields["rules"]), Position(*fields["position"])
            return cls(**{**fields, "rules": rules, "position": position})
        raise EvidenceError("its pointer is damaged")

    def text(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Checkpoints:
    """Those of one namespace. Methods raise StoreError."""

    def __init__(self, store: Store, *, namespace: str = "tim4rec") -> None:
        self._store, self._key = store, f"{quote(namespace, safe='')}:live:checkpoint"

    async def newest(self) -> bytes | None:
        """The pointer's text."""
        text: bytes | None = await self._store.request(("GET", self._key), "live")
        return text

    async def read(self, pointer: Pointer) -> memoryview:
        """What was written. Raises EvidenceError: it is gone or damaged."""
        digest, data = hashlib.blake2b(digest_size=16), bytearray()
        for key in self._chunks(pointer):
            chunk = await self._store.request(("GET", key), "live")
            if chunk is None:
                raise EvidenceError("a part of it is gone")
            digest.update(chunk)
            try:
                data += await asyncio.to_thread(zlib.decompress, chunk)
            except zlib.error as error:
                raise EvidenceError(f"a part of it is damaged: {error}") from None
        if digest.hexdigest() != pointer.digest:
            raise EvidenceError("its checksum is wrong")
        return memoryview(data)

    async def write(
        self, data: memoryview, rules: EvidenceRules, lineage: str, position: Position
    ) -> Pointer:
        """Writes chunks; `point` makes a checkpoint of them."""
        digest, name, chunks = hashlib.blake2b(digest_size=16), uuid4().hex, 0
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            chunk = await asyncio.to_thread(zlib.compress, part, 1)
            digest.update(chunk)
            key = f"{self._key}:{name}:{chunks}"
            await self._store.request(("SET", key, chunk, "PX", _UNPOINTED_MS), "live")
            chunks += 1
        return Pointer(name, rules, lineage, position, chunks, digest.hexdigest())

    async def point(self, pointer: Pointer, instead_of: bytes | None) -> bool:
        """Makes it the newest checkpoint, unless another one than `instead_of` is."""
        await self._each(pointer, "PERSIST")
        call = _POINT.call(self._key, instead_of or b"", pointer.text())
        pointed = bool(await self._store.request(call, "live"))
        with suppress(EvidenceError):
            unpointed = Pointer.parse(instead_of or b"") if pointed else pointer
            await self._each(unpointed, "PEXPIRE", _REPLACED_MS)
        return pointed

    async def lock(self) -> bool:
        """Whether this process may write one now; `unlock` ends it."""
        taken = ("SET", f"{self._key}:lock", 1, "NX", "PX", _UNPOINTED_MS)
        return (await self._store.request(taken, "live")) is not None

    async def unlock(self) -> None:
        await self._store.request(("UNLINK", f"{self._key}:lock"), "live")

    def _chunks(self, pointer: Pointer) -> list[str]:
        return [f"{self._key}:{pointer.name}:{chunk}" for chunk in range(pointer.chunks)]

    async def _each(self, pointer: Pointer, command: str, *words: int) -> None:
        keys = self._chunks(pointer)
        raised(*await self._store.pipeline([(command, key, *words) for key in keys], "live"))
