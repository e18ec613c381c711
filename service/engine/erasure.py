"""Erasing a user, and taking back what the user's interactions had added to what is popular.

What they had added follows from the record, so it is read before it is deleted. The deletion itself
decides who takes it back: it is done once, and only whoever did it has the events. Where that
process dies before it has sent the numbers, or the answer to the deletion is lost, they stay as
they are: that is never sent twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.kinds import KindRules
from service.feedback.popularity import Popularity, Sums
from service.store.event_log import ORIGIN, Event, EventLog
from service.store.store import HistoryChanged, StoreError, StoreUnavailable

ATTEMPTS = 3
"""How often a record may change under our hands before it is deleted without being read."""


async def erase(
    log: EventLog, user_id: str, popularity: Popularity | None, kinds: KindRules
) -> bool:
    """Deletes what the store has of a user, and announces it. True: there was a record.

    Raises:
        StoreUnavailable: it is to be sent again.
    """
    existed = False
    for _ in range(0 if popularity is None else ATTEMPTS):
        assert popularity is not None
        sums, mark = Sums(float), ORIGIN
        try:
            async for page in log.events(user_id):
                _add(popularity, sums, page, kinds)
                mark = page[-1].mark
            if mark == ORIGIN:
                break
            existed = True
            removed = await log.remove(user_id, mark)
        except HistoryChanged:
            continue
        except StoreUnavailable:
            raise
        except StoreError:  # of what can't be read nothing can be taken back
            break
        if removed is None:
            continue
        _add(popularity, sums, removed.after, kinds)
        popularity.take_back(sums)
        if removed.missed is not None:
            raise removed.missed
        await log.forget(user_id)
        return True
    return await log.erase(user_id) or existed


def _add(popularity: Popularity, sums: Sums, events: Iterable[Event], kinds: KindRules) -> None:
    for event in events:
        if kinds.counts(event.kind):
            at = event.time_ms if event.given_ms is None else event.given_ms
            weight = 1.0 if event.weight is None else event.weight
            popularity.add(sums, event.item_id, at, weight)
