"""Which learner may change what is served: one of a namespace.

<ns>:learner   string   the holder, "TOKEN HOST:PID"; expires unless its holder renews it

A lease that ran out while nobody took it is its holder's again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote

from service.store.client import Store
from service.store.errors import StoreError, StoreUnavailable
from service.store.script import Script

logger = logging.getLogger(__name__)

LASTS_S = 60.0

_HOLD = Script("""\
#!lua
local there = redis.call('GET', KEYS[1])
if there and string.match(there, '^%S+') ~= ARGV[1] then return there end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return ''
""")
_LEAVE = Script("""\
#!lua
local there = redis.call('GET', KEYS[1])
if there and string.match(there, '^%S+') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")


class LeaseHeld(Exception):
    """Another learner holds the lease; the message says which one."""


@dataclass(frozen=True)
class Holder:
    """A learner. `token`: no two have the same; one that begins again keeps it."""

    token: str
    place: str

    @classmethod
    def of(cls, stored: bytes) -> Holder:
        token, _, place = stored.decode("utf-8", "replace").partition(" ")
        return cls(token, place)

    def __str__(self) -> str:
        return f"the one at {self.place}"


def this_process(token: str) -> Holder:
    return Holder(token, f"{socket.gethostname()}:{os.getpid()}")


class Lease:
    """Args:
    lasts_s: after so long without renewal another one may take it.
    """

    def __init__(
        self, store: Store, me: Holder, *, namespace: str, lasts_s: float = LASTS_S
    ) -> None:
        self._store, self._lasts_s = store, lasts_s
        self._key = _key(namespace)
        self._me = me

    async def hold(self) -> None:
        """Takes or renews it. To be called before what can't be undone.

        Raises:
            LeaseHeld: another one has it.
            StoreError: it isn't known who has it.
        """
        me, lasts_ms = self._me, round(1000 * self._lasts_s)
        there = await self._store.request(_HOLD.call(self._key, me.token, me.place, lasts_ms))
        if there:
            raise LeaseHeld(f"another learner is at work: {Holder.of(there)}")

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Holds it meanwhile. Raises as `hold` does; nothing where it is lost later."""
        await self.hold()
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            with suppress(StoreError):
                await self._store.request(_LEAVE.call(self._key, self._me.token))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lasts_s / 3)
            try:
                await self.hold()
            except StoreUnavailable as error:
                logger.warning("the lease was not renewed: %s", error)
            except LeaseHeld as error:
                logger.error("the lease is lost, nothing will be changed any more: %s", error)
                return


async def holder(store: Store, namespace: str) -> Holder | None:
    """Who has the lease now. Raises StoreError."""
    stored = await store.request(("GET", _key(namespace)))
    return None if stored is None else Holder.of(stored)


def _key(namespace: str) -> str:
    return f"{quote(namespace, safe='')}:learner"
