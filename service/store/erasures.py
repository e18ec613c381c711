"""Deleting what the store has of a user, and hearing of it in every process."""

from __future__ import annotations

from typing import NamedTuple

from service.store.errors import AcksMissed, raised
from service.store.event_log import EventLog
from service.store.events import Event, Mark, unpacked
from service.store.record_keys import encoded
from service.store.script import Script

_ERASE_RECORD = Script.read("erased_record", durable=True)
_REMOVE_RECORD = Script.read("removed_record", durable=True)
_ERASE_SNAPSHOT = Script.read("erased_snapshot", durable=True)
_ANNOUNCE = Script.read("erased", durable=True)

ERASURES_KEPT_S = 600
"""So long an erasure is announced: who has not asked for half of it may have missed one."""
_BARRED_MS = 900
"""Where a snapshot was erased, none can be written for longer than one takes to land, by what the
clocks of a Cluster's nodes may differ."""


class Removed(NamedTuple):
    """A record that was deleted: its events after the mark it was known by, and what is to be
    raised where too few replicas are known to have lost it, too."""

    after: list[Event]
    missed: AcksMissed | None


class Erasures:
    """Those of the users of a log. Methods raise StoreError as the log's do."""

    def __init__(self, log: EventLog) -> None:
        self._store, self._keys = log.store, log.keys

    async def erase(self, user_id: str) -> bool:
        """Delete a user's record and snapshots and announce it. True: there was a record."""
        record = self._keys.record(user_id)
        existed = await self._store.request(("EXISTS", record))
        await self._store.request(_ERASE_RECORD.call(record))
        await self.forget(user_id)
        return bool(existed)

    async def remove(self, user_id: str, known: Mark) -> Removed | None:
        """Delete a user's record, and nothing else, while it has the mark `known`.

        The events after it, which went as well; None: it does not have it, and is as it was, or
        another call has deleted it. Of all calls for a record one gets its events, or none does.
        """
        call = _REMOVE_RECORD.call(self._keys.record(user_id), known.version, known.uid)
        (answer,) = await self._store.pipeline([call])
        missed = answer if isinstance(answer, AcksMissed) else None
        stored = raised(answer if missed is None else missed.reply)
        if stored is None:
            return None
        after = [unpacked(known.version + 1 + i, value) for i, value in enumerate(stored)]
        return Removed(after, missed)

    async def forget(self, user_id: str) -> None:
        """Delete the snapshots of a user whose record is gone, and announce it."""
        # One after the other: no snapshot of a record that is gone can be begun, the models are
        # those of all that were, and who hears of it must find nothing on another node.
        models = await self._store.request(("SMEMBERS", self._keys.models))
        keys = [self._keys.snapshot(model.decode(), user_id) for model in models]
        raised(*await self._store.pipeline([_ERASE_SNAPSHOT.call(key, _BARRED_MS) for key in keys]))
        user = encoded("user_id", user_id)
        await self._store.request(_ANNOUNCE.call(self._keys.erased, user, 1000 * ERASURES_KEPT_S))

    async def since(self, cursor: str) -> tuple[str, list[str]]:
        """Users erased since the cursor, oldest first, and the next cursor. A cursor of "$"
        answers nobody and a cursor for what comes from now on; "0-0" begins at the oldest kept."""
        stream = self._keys.erased
        if cursor == "$":
            newest = ("XREVRANGE", stream, "+", "-", "COUNT", 1)
            last = await self._store.request(newest, "erasures")
            return (last[0][0].decode() if last else "0-0"), []
        after = ("XRANGE", stream, f"({cursor}", "+", "COUNT", 1000)
        entries = await self._store.request(after, "erasures")
        users = [fields[1].decode() for _, fields in entries]
        return (entries[-1][0].decode() if entries else cursor), users
