"""Snapshots of models' states beside the users' records. What is in one is opaque here."""

from __future__ import annotations

from collections.abc import Sequence

from service.store.errors import RecordDamaged, raised
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import Mark
from service.store.script import Script

_WRITE = Script.read("snapshot")
_LANDS_WITHIN_MS = 500
"""A snapshot lands so long after its record was last seen at most."""
_AT_ONCE = 16


class SnapshotStore:
    """Those of the users of a log. Methods raise StoreError as the log's do."""

    def __init__(self, log: EventLog) -> None:
        self._log, self._store, self._keys = log, log.store, log.keys

    async def write(
        self,
        model: str,
        snapshots: Sequence[tuple[str, bytes]],
        ttl_s: int | None,
        marks: Sequence[Mark] | None = None,
    ) -> int:
        """Write (user, snapshot) pairs; how many were. `ttl_s` None or 0: kept.

        `marks`: what each stands for. One whose mark is not in its user's record now is not
        written, and none of a user who is erased meanwhile stays. None: nothing is asked.
        """
        written = 0
        for start in range(0, len(snapshots), _AT_ONCE):
            some, by = snapshots[start : start + _AT_ONCE], 0
            # By itself: an erasure must know of the model before the record is asked for.
            await self._store.request(("SADD", self._keys.models, model))
            if marks is not None:
                some, by = await self._current(some, marks[start : start + _AT_ONCE])
            scripts = [
                _WRITE.call(self._keys.snapshot(model, user), value, ttl_s or 0, by)
                for user, value in some
            ]
            answers = await self._store.pipeline(scripts, "snapshot")
            raised(*answers)
            written += sum(answers)
        return written

    async def _current(
        self, snapshots: Sequence[tuple[str, bytes]], marks: Sequence[Mark]
    ) -> tuple[list[tuple[str, bytes]], int]:
        """Those whose mark is in its record now, and when they must have landed, ms."""
        requests = [
            LogRequest(user, mark, page=1) for (user, _), mark in zip(snapshots, marks, strict=True)
        ]
        replies = await self._log.exchange(requests, "snapshot")
        raised(*(reply for reply in replies if not isinstance(reply, RecordDamaged)))
        sound = [
            (pair, reply)
            for pair, reply in zip(snapshots, replies, strict=True)
            if isinstance(reply, LogReply)
        ]
        by = min((reply.now_ms for _, reply in sound), default=0) + _LANDS_WITHIN_MS
        return [pair for pair, reply in sound if reply.known_is_current_history], by
