"""Erasing a user, and telling listeners what the record held.

What a user's events had added elsewhere follows from the record, so it is read before it is
deleted. The deletion itself decides who tells: it is done once, and only whoever did it has the
events. Where that process dies, or the answer to the deletion is lost, nobody is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.listener import Listener
from service.store.event_log import EventLog
from service.store.store import HistoryChanged, StoreError, StoreUnavailable

ATTEMPTS = 3
"""How often a record may change under our hands before it is deleted without being read."""


async def erase(log: EventLog, user_id: str, listeners: Sequence[Listener]) -> bool:
    """Deletes what the store has of a user, and announces it. True: there was a record.

    Raises:
        StoreUnavailable: it is to be sent again.
    """
    existed = False
    for _ in range(ATTEMPTS if listeners else 0):
        try:
            events = [event async for page in log.events(user_id) for event in page]
            if not events:
                break
            existed = True
            removed = await log.remove(user_id, events[-1].mark)
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
        await log.forget(user_id)
        return True
    return await log.erase(user_id) or existed
