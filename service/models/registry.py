"""Which models the store says are to be served, and which ones every process does serve.

<ns>:active    string  what was set last (JSON); versions only grow
<ns>:serving   hash    process -> what it serves (JSON), written every few seconds
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.store.calls import Calls, raised
from service.store.store import Store

GONE_AFTER_S = 30.0
"""A process that has not said for so long what it serves has ended."""

# A second attempt finds what the first one has set.
_REPLACE = """\
#!lua
local there = redis.call('GET', KEYS[1]) or ''
if there == ARGV[2] then return 1 end
if there ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_SHA = hashlib.sha1(_REPLACE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Variant:
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
    base: Variant | None = None
    trial: Variant | None = None
    share: float = 0.0
    token: str = ""  # no two changes are the same

    def chosen(self, variant: Variant, share: float) -> Active:
        """With this model for everybody (share 1), or on trial for a share of the users."""
        base, trial = (variant, None) if share >= 1 else (self.base, variant)
        return self._next(base, trial, 0.0 if trial is None else share)

    def cleared(self) -> Active:
        """With what each process was started with for everybody."""
        return self._next(None, None, 0.0)

    def _next(self, base: Variant | None, trial: Variant | None, share: float) -> Active:
        return Active(self.version + 1, base, trial, share, secrets.token_hex(8))


class ModelRegistry:
    """The records of one namespace. Methods raise StoreError, as the event log's do."""

    def __init__(self, store: Store, *, namespace: str = "tim4rec", timeout_s: float = 2.0) -> None:
        prefix = quote(namespace, safe="")
        self._key, self._serving = f"{prefix}:active", f"{prefix}:serving"
        self._calls = Calls(store, timeout_s, {_SHA: _REPLACE})
        self.process = f"{socket.gethostname()}:{os.getpid()}"

    async def read(self) -> Active:
        """What is set; what can't be read of it is an error, and nobody follows it.

        Raises:
            ValueError: it is none of this service's.
        """
        stored = raised(*await self._calls([("GET", self._key)]))
        try:
            return Active() if stored is None else _read(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"the record {self._key} can't be read: {error!r}") from None

    async def replace(self, before: Active, after: Active) -> bool:
        """Sets `after` if `before` still is what is set; False: another change came first."""
        there = _written(before) if before.version else b""
        command = ("EVALSHA", _SHA, 1, self._key, there, _written(after))
        return bool(raised(*await self._calls([command])))

    async def report(self, serving: dict[str, Any]) -> None:
        """Says what this process serves."""
        seconds, _ = raised(*await self._calls([("TIME",)]))
        said = json.dumps(serving | {"at": int(seconds)})
        raised(*await self._calls([("HSET", self._serving, self.process, said)]))

    async def leave(self) -> None:
        """Says that this process ends."""
        raised(*await self._calls([("HDEL", self._serving, self.process)]))

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
            raised(*await self._calls([("HDEL", self._serving, *gone)]))
        return dict(sorted(found.items()))

    async def _time_and(self, command: tuple[str, ...]) -> tuple[Any, Any]:
        answers = await self._calls([("TIME",), command])
        raised(*answers)
        return answers[0], answers[1]


def _written(active: Active) -> bytes:
    return json.dumps(dataclasses.asdict(active), sort_keys=True).encode()


def _read(stored: bytes) -> Active:
    found = json.loads(stored)
    variants = {
        name: None if found[name] is None else Variant(**found[name]) for name in ("base", "trial")
    }
    return Active(**found | variants)
