"""What a process adds to the feed, off the way of any request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from model.kinds import HEAVIEST, KindRules
from model.live.evidence import LIGHTEST, Observed, user_key
from service.live.entry import Forgotten
from service.live.feed import Feed
from service.observe import live_metrics
from service.store.errors import StoreError
from service.store.events import Event, NewEvent
from service.store.follower import Follower

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.25


def observed(
    user_id: str, event: NewEvent | Event, time_ms: int, heaviest: float
) -> Observed | None:
    """An event of that time as evidence; None: it weighs nothing, or too little to be counted."""
    weight = 1.0 if event.weight is None else min(event.weight, heaviest)
    if weight < LIGHTEST:
        return None
    return Observed(user_key(user_id), event.item_id, time_ms, weight)


class FeedWriter:
    """An engine's listener. Events wait in memory and are sent together, once: what the store does
    not take is missing in the evidence, until that is made anew from the log.

    Every process says of an erased user that they are forgotten: after its own events of theirs.

    Args:
        heaviest: an event that weighs more counts for so much.
        kinds: which events are evidence.
    """

    def __init__(
        self, feed: Feed, *, heaviest: float = HEAVIEST, kinds: KindRules | None = None
    ) -> None:
        self._feed, self._heaviest, self._kinds = feed, heaviest, kinds or KindRules()
        self._waiting: list[tuple[str, NewEvent | None, int]] = []

    def logged(self, user_id: str, event: NewEvent, time_ms: int) -> None:
        if self._kinds.counts(event.kind):
            at = time_ms if event.time_ms is None else event.time_ms
            self._waiting.append((user_id, event, at))

    def erased(self, user_id: str) -> None:
        self._waiting.append((user_id, None, 0))

    def removed(self, events: Sequence[Event]) -> None:
        pass  # what they have added to counts stays

    async def flush(self) -> None:
        """Sends what waits.

        Raises:
            StoreError: it is lost, all or in part.
        """
        waiting, self._waiting = self._waiting, []
        records = [
            Forgotten(user_key(user))
            if event is None
            else observed(user, event, at, self._heaviest)
            for user, event, at in waiting
        ]
        if found := [record for record in records if record is not None]:
            await self._feed.add(found)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flushes meanwhile, and at the end."""
        failing, failed = "events are not added to the live feed", live_metrics.FAILURES.inc
        try:
            async with Follower(self.flush, FLUSH_EVERY_S, failing, failed):
                yield
        finally:
            try:
                await self.flush()
            except StoreError as error:
                logger.warning("the last events are not added to the live feed: %s", error)
