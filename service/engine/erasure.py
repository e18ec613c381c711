"""Erasing a user, telling listeners what the record held, and hearing who was erased elsewhere.

What a user's events had added elsewhere follows from the record, so it is read before it is
deleted. The deletion itself decides who tells: it is done once, and only whoever did it has the
events. Where that process dies, or the answer to the deletion is lost, nobody is told.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

from service.engine.listener import Listener
from service.engine.pool import StatePool
from service.store.erasures import ERASURES_KEPT_S, Erasures
from service.store.errors import HistoryChanged, StoreError, StoreUnavailable
from service.store.event_log import EventLog

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a record may change under our hands before it is deleted without being read."""

DROP_AGAIN_S = 10.0
"""So long the states of an erased user are dropped again: a batch that had read the record before
may still put one into the pool."""


async def erase(log: EventLog, user_id: str, listeners: Sequence[Listener]) -> bool:
    """Deletes what the store has of a user, and announces it. True: there was a record.

    Raises:
        StoreUnavailable: it is to be sent again.
    """
    erasures, existed = Erasures(log), False
    for _ in range(ATTEMPTS if listeners else 0):
        try:
            events = [event async for page in log.events(user_id) for event in page]
            if not events:
                break
            existed = True
            removed = await erasures.remove(user_id, events[-1].mark)
        except HistoryChanged:
            continue
        except StoreUnavailable:
            raise
        except StoreError:  # what can't be read can't be told
            break
        if removed is None:
            continue
        for listener in listeners:
            listener.removed([*events, *removed.after])
        if removed.missed is not None:
            raise removed.missed
        await erasures.forget(user_id)
        return True
    return await erasures.erase(user_id) or existed


class ErasureFollower:
    """Hears of erasures, by this process or others."""

    def __init__(self, log: EventLog, pool: StatePool, listeners: Sequence[Listener]) -> None:
        self._erasures, self._pool, self._listeners = Erasures(log), pool, listeners
        self._cursor, self._heard_at = "$", time.monotonic()
        self._erased: deque[tuple[float, str]] = deque()

    async def hear(self) -> None:
        """Drops the states of users erased since the last time; the first time, none.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            self._cursor, users = await self._erasures.since(self._cursor)
            until = time.monotonic() + DROP_AGAIN_S
            self._erased.extend((until, user_id) for user_id in users)
            for user_id in users:
                for listener in self._listeners:
                    listener.erased(user_id)
            if not users:
                break
        now = time.monotonic()
        while self._erased and self._erased[0][0] < now:
            self._erased.popleft()
        dropped = [user_id for _, user_id in self._erased]
        if now - self._heard_at > ERASURES_KEPT_S / 2:
            logger.warning("erasures not read for too long: all states are dropped")
            dropped = self._pool.users()
        for user_id in dropped:
            self._pool.drop(user_id)
        self._heard_at = now
