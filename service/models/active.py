"""Which models the store says are to be served, and which ones every process does serve.

<ns>:active    string  what was set last (JSON); versions only grow
<ns>:serving   hash    process -> what it serves (JSON), written every few seconds
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.store.client import Store
from service.store.errors import raised
from service.store.script import Script

GONE_AFTER_S = 30.0
"""A process that has not said for so long what it serves has ended."""

# A second attempt finds what the first one has set.
_REPLACE = Script("""\
#!lua
local there = redis.call('GET', KEYS[1]) or ''
if there == ARGV[2] then return 1 end
if there ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
""")


@dataclass(frozen=True)
class Arm:
    """An artefact: its folder's name, and its identity, which another one of that name has not."""

    name: str
    identity: str


@dataclass(frozen=True)
class Active:
    """What is set.

    Attributes:
        version: number of the change; 0: nothing was ever set.
        base: answers whom the trial does not; None: what each process was started with.
        trial: answers `share` of the users; None: nobody.
    """

    version: int = 0
    base: Arm | None = None
    trial: Arm | None = None
    share: float = 0.0
    token: str = ""  # no two changes are the same

    def chosen(self, arm: Arm, share: float) -> Active:
        """With this model for everybody (share 1), or on trial for a share of the users."""
        base, trial = (arm, None) if share >= 1 else (self.base, arm)
        return self._next(base, trial, 0.0 if trial is None else share)

    def cleared(self) -> Active:
        """With what each process was started with for everybody."""
        return self._next(None, None, 0.0)

    def _next(self, base: Arm | None, trial: Arm | None, share: float) -> Active:
        return Active(self.version + 1, base, trial, share, secrets.token_hex(8))


class ActiveModels:
    """The records of one namespace. Methods raise StoreError, as the event log's do."""

    def __init__(self, store: Store, *, namespace: str = "tim4rec") -> None:
        prefix = quote(namespace, safe="")
        self._key, self._serving = f"{prefix}:active", f"{prefix}:serving"
        self._store = store
        self.process = f"{socket.gethostname()}:{os.getpid()}"

    async def read(self) -> Active:
        """What is set; what can't be read of it is an error, and nobody follows it.

        Raises:
            ValueError: it is none of this service's.
        """
        stored = await self._store.request(("GET", self._key))
        try:
            return Active() if stored is None else _read(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"the record {self._key} can't be read: {error!r}") from None

    async def replace(self, before: Active, after: Active) -> bool:
        """Sets `after` if `before` still is what is set; False: another change came first."""
        there = _written(before) if before.version else b""
        return bool(await self._store.request(_REPLACE.call(self._key, there, _written(after))))

    async def report(self, serving: dict[str, Any]) -> None:
        """Says what this process serves."""
        seconds, _ = await self._store.request(("TIME",))
        said = json.dumps(serving | {"at": int(seconds)})
        await self._store.request(("HSET", self._serving, self.process, said))

    async def leave(self) -> None:
        """Says that this process ends."""
        await self._store.request(("HDEL", self._serving, self.process))

    async def serving(self) -> dict[str, dict[str, Any]]:
        """What each process serves, by what it last said of itself. Forgets those that ended."""
        (seconds, _), flat = await self._time_and(("HGETALL", self._serving))
        found: dict[str, dict[str, Any]] = {}
        gone: list[str] = []
        for name, said in zip(flat[::2], flat[1::2], strict=True):
            try:
                one = json.loads(said)
                ended = int(seconds) - one["at"] > GONE_AFTER_S
            except (ValueError, TypeError, KeyError):  # none of this service's
                ended = True
            if ended:
                gone.append(name.decode())
            else:
                found[name.decode()] = one
        if gone:
            await self._store.request(("HDEL", self._serving, *gone))
        return dict(sorted(found.items()))

    async def _time_and(self, command: tuple[str, ...]) -> tuple[Any, Any]:
        answers = await self._store.pipeline([("TIME",), command])
        raised(*answers)
        return answers[0], answers[1]


def _written(active: Active) -> bytes:
    return json.dumps(dataclasses.asdict(active), sort_keys=True).encode()


def _read(stored: bytes) -> Active:
    found = json.loads(stored)
    arms = {name: None if found[name] is None else Arm(**found[name]) for name in ("base", "trial")}
    return Active(**found | arms)
