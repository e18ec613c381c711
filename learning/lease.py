"""Which learner may change what is served: one of a namespace.

<ns>:learner   string   the holder (JSON); expires unless its holder renews it

A lease that ran out while nobody took it is its holder's again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from urllib.parse import quote

from service.store.client import Store
from service.store.errors import StoreError, StoreUnavailable
from service.store.script import Script

logger = logging.getLogger(__name__)

LASTS_S = 60.0

_HOLD = Script("""\
#!lua
local there = redis.call('GET', KEYS[1])
if there and there ~= ARGV[1] then return there end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""")
_LEAVE = Script("""\
#!lua
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")


class LeaseHeld(Exception):
    """Another learner holds the lease; the message says which one."""


@dataclass(frozen=True)
class Holder:
    """A learner. `token`: no two have the same; one that begins again keeps it."""

    host: str
    pid: int
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process(token: str | None = None) -> Holder:
    return Holder(socket.gethostname(), os.getpid(), token or secrets.token_hex(8))


def read_holder(stored: bytes) -> Holder:
    """Raises ValueError: it is none."""
    try:
        return Holder(**json.loads(stored))
    except TypeError as error:
        raise ValueError(str(error)) from None


class Lease:
    """Args:
    me: as the store has it.
    lasts_s: after so long without renewal another one may take it.
    """

    def __init__(
        self, store: Store, me: Holder, *, namespace: str, lasts_s: float = LASTS_S
    ) -> None:
        self._store, self._lasts_s = store, lasts_s
        self._key = f"{quote(namespace, safe='')}:learner"
        self._me = json.dumps(asdict(me), sort_keys=True).encode()

    async def hold(self) -> None:
        """Takes or renews it. To be called before what can't be undone.

        Raises:
            LeaseHeld: another one has it.
            StoreError: it isn't known who has it.
        """
        call = _HOLD.call(self._key, self._me, round(1000 * self._lasts_s))
        there = await self._store.request(call)
        if there != self._me:
            raise LeaseHeld(f"another learner is at work: {_shown(there)}")

    async def holder(self) -> Holder | None:
        """Who has it now.

        Raises:
            StoreError
            ValueError: the record is none of a learner's.
        """
        stored = await self._store.request(("GET", self._key))
        return None if stored is None else read_holder(stored)

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
                await self._store.request(_LEAVE.call(self._key, self._me))

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


def _shown(stored: bytes) -> str:
    try:
        return str(read_holder(stored))
    except ValueError:
        return repr(stored[:100])
