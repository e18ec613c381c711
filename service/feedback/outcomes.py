"""What models have shown, and what became of it: whether the user took to an item soon after.

    <ns>:shown:<user>   list   what was shown to the user of late, newest first; lives for a window

What is shown and done waits in memory and goes to the store together, off the way of any request.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote
from zlib import crc32

from model.kinds import KindRules
from service.feedback.item_counts import ItemCounts
from service.feedback.trial_counts import Arm, TrialCounts
from service.observe import metrics
from service.store.client import Store
from service.store.errors import StoreError, raised
from service.store.events import Event, NewEvent
from service.store.follower import Follower
from service.store.script import Command, Script

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.25
LISTS = 16
"""Lists of a user that are kept."""
ITEMS = 100
"""Items of a list that count as shown."""
WAITING = 20_000
"""More than this is not counted."""
_AT_ONCE = 1000
_BARRED_S = 10.0
"""So long nothing is kept of an erased user: a request that had begun before may still end."""

_EXPLORED = "explored"
"""Stands for the model of what was shown to be known better; no edition reads so."""
_SHOWN = Script.read("shown", "service.feedback")
_OUTCOME = Script.read("outcome", "service.feedback")


@dataclass(frozen=True)
class _Waiting:
    """`event`: an interaction; None: it is none."""

    user_id: str
    command: Command
    event: NewEvent | None = None


class Outcomes:
    """Counts by model what was shown, and the interactions that followed within a window.

    An item counts once for all the times that it was shown within the window, and for the model
    that showed it last. What the store does not take is lost, and nothing is counted twice.

    Args:
        window_s: how soon after.
        kinds: which of them an interaction's is counted as.
        trials: counts for trials, too; None: there are none.
        item_counts: counts for items of which little is known, too; None: nothing is explored.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        window_s: int = 3600,
        kinds: KindRules | None = None,
        trials: TrialCounts | None = None,
        item_counts: ItemCounts | None = None,
    ) -> None:
        self.trials, self._item_counts = trials, item_counts
        self._prefix = f"{quote(namespace, safe='')}:shown:"
        self._window_ms = 1000 * window_s
        self._kinds = kinds or KindRules()
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._barred: dict[str, float] = {}

    def shown(
        self, user_id: str, model: str, items: Iterable[str], arms: tuple[Arm, ...] = ()
    ) -> None:
        """A user was given these items by a model.

        Args:
            model: its edition; empty: popular items stood in for its own, which count in trials.
        """
        if not model and not arms:
            return
        hashes = [_hash(item) for item in items][:ITEMS]
        if not hashes or self._is_barred(user_id):
            return
        if model:
            metrics.of_model(model).shown.inc(len(hashes))
        if self.trials is not None:
            self.trials.shown(user_id, arms)
        key, packed = self._key(user_id), b"".join(hashes)
        self._add(user_id, _SHOWN.call(key, model, packed, self._window_ms, LISTS))

    def explored(self, user_id: str, items: Sequence[str], little_known: Iterable[str]) -> None:
        """A user was given `items` so that they are known better: they count for no model.

        Args:
            little_known: all of the list of which little is known, these included.
        """
        if self._item_counts is None or self._is_barred(user_id):
            return
        self._item_counts.shown(little_known)
        metrics.EXPLORED_ITEMS.inc(len(items))
        packed = b"".join(map(_hash, items))
        if packed:
            key = self._key(user_id)
            self._add(user_id, _SHOWN.call(key, _EXPLORED, packed, self._window_ms, LISTS))

    # -- as an engine's listener ---------------------------------------------------------

    def logged(self, user_id: str, event: NewEvent, time_ms: int) -> None:
        key, item = self._key(user_id), _hash(event.item_id)
        self._add(user_id, _OUTCOME.call(key, item, self._window_ms), event)

    def removed(self, events: Sequence[Event]) -> None:
        pass  # outcomes stay counted

    def erased(self, user_id: str) -> None:
        now = time.monotonic()
        self._barred = {user: until for user, until in self._barred.items() if until > now}
        self._barred[user_id] = now + _BARRED_S
        self._waiting = deque(one for one in self._waiting if one.user_id != user_id)
        self._add(user_id, ("UNLINK", self._key(user_id)))
        if self.trials is not None:
            self.trials.erased(user_id)

    # -- sending -------------------------------------------------------------------------

    async def flush(self) -> None:
        """Sends what waits.

        Raises:
            StoreError: a part of it is lost.
        """
        if self.trials is not None:  # who is shown something is enrolled before taking it
            await self.trials.flush()
        while self._waiting:
            part = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            answers = await self._store.pipeline([one.command for one in part])
            for one, answer in zip(part, answers, strict=True):
                if one.event is not None and isinstance(answer, bytes):
                    self._count(one.user_id, one.event, answer.decode())
            raised(*answers)
        if self.trials is not None:
            await self.trials.flush()
        if self._item_counts is not None:
            await self._item_counts.flush()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flushes meanwhile, and at the end."""
        follower = Follower(
            self.flush, FLUSH_EVERY_S, "outcomes are not counted", metrics.OUTCOME_FAILURES.inc
        )
        try:
            async with follower:
                yield
        finally:
            try:
                await self.flush()
            except StoreError as error:
                logger.warning("the last outcomes are not counted: %s", error)

    def _count(self, user_id: str, event: NewEvent, model: str) -> None:
        """An interaction with what a model had shown, or what was explored."""
        counts = self._kinds.counts(event.kind)
        if self._item_counts is not None and counts:
            self._item_counts.taken(event.item_id)
        if model == _EXPLORED:
            metrics.EXPLORED_OUTCOMES.inc()
            return
        if model:
            metrics.outcomes(model, self._kinds.label(event.kind)).inc()
        if self.trials is not None and counts:
            self.trials.taken(user_id)

    def _add(self, user_id: str, command: Command, event: NewEvent | None = None) -> None:
        if len(self._waiting) >= WAITING:
            metrics.OUTCOME_FAILURES.inc()
            return
        self._waiting.append(_Waiting(user_id, command, event))

    def _is_barred(self, user_id: str) -> bool:
        return bool(self._barred) and self._barred.get(user_id, 0.0) > time.monotonic()

    def _key(self, user_id: str) -> str:
        return self._prefix + quote(user_id, safe="")


def _hash(item_id: str) -> bytes:
    return crc32(item_id.encode()).to_bytes(4, "big")
