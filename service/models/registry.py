"""Which models the store says are to be served, and which ones every process does serve.

<ns>:active    string  what was set last (JSON); versions only grow
<ns>:serving   hash    process -> what it serves (JSON), written every few seconds
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from typing import Any
from urllib.parse import quote

from service.feedback.cohort import Observed
from service.models.decision import Decision
from service.models.sequential_test import Comparison
from service.models.traffic_split import SEGMENTS, TrafficSplit, Trial, Variant, drawn
from service.store.client import Store
from service.store.errors import raised
from service.store.script import Script

GONE_AFTER_S = 30.0
"""A process that has not said for so long what it serves has ended."""

# A second attempt finds what the first one has set.
_REPLACE = Script("""\
#!lua
-- KEYS[1] what is set    ARGV  token of what is to be there | token of what is to be set | that
local there = redis.call('GET', KEYS[1])
local token = there and cjson.decode(there).token or ''
if token == ARGV[2] then return 1 end
if token ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
return 1
""")


class ModelRegistry:
    """The records of one namespace. Methods raise StoreError, as the event log's do."""

    def __init__(self, store: Store, *, namespace: str) -> None:
        prefix = quote(namespace, safe="")
        self._key, self._serving = f"{prefix}:active", f"{prefix}:serving"
        self._store = store
        self.process = f"{socket.gethostname()}:{os.getpid()}"

    async def read(self) -> TrafficSplit:
        """What is set; what can't be read of it is an error, and nobody follows it.

        Raises:
            ValueError: it is none of this service's.
        """
        stored = await self._store.request(("GET", self._key))
        try:
            return TrafficSplit() if stored is None else _read(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"the record {self._key} can't be read: {error!r}") from None

    async def replace(self, before: TrafficSplit, after: TrafficSplit) -> bool:
        """Sets `after` if `before` still is what is set; False: another change came first."""
        call = _REPLACE.call(self._key, before.token, after.token, _written(after))
        return bool(await self._store.request(call))

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
        answers = await self._store.pipeline([("TIME",), ("HGETALL", self._serving)])
        raised(*answers)
        (seconds, _), flat = answers
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


def _written(split: TrafficSplit) -> bytes:
    return json.dumps(dataclasses.asdict(split), sort_keys=True).encode()


def _read(stored: bytes) -> TrafficSplit:
    found = json.loads(stored)
    base, token = _variant(found["base"]), found["token"]
    if "trials" not in found:  # as it was while there was one at most
        trial = _variant(found["trial"])
        trials = () if trial is None else (_only_trial(trial, found["share"], token),)
        return TrafficSplit(found["version"], base, trials, token=token)
    return TrafficSplit(
        found["version"],
        base,
        tuple(
            Trial(**one | {"variant": Variant(**one["variant"]), "segments": (*one["segments"],)})
            for one in found["trials"]
        ),
        tuple(_decision(one) for one in found["decisions"]),
        token,
    )


def _variant(found: dict[str, Any] | None) -> Variant | None:
    return None if found is None else Variant(**found)


def _only_trial(variant: Variant, share: float, token: str) -> Trial:
    return Trial(variant, drawn(variant, round(share * SEGMENTS)), False, 0, token)


def _decision(found: dict[str, Any]) -> Decision:
    figures = found["figures"]
    base, trial = Observed(**figures["base"]), Observed(**figures["trial"])
    return Decision(**found | {"figures": Comparison(**figures | {"base": base, "trial": trial})})
