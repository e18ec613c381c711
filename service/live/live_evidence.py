"""A process's evidence: the newest checkpoint, and what the feed has had since."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from uuid import uuid4

from model.live.evidence import Evidence, EvidenceError, EvidenceRules, Observed
from service.live.checkpoint import Checkpoints, Pointer
from service.live.entry import Forgotten, Record
from service.live.feed import BEGINNING, Entry, Feed
from service.observe import live_metrics
from service.store.follower import Follower

logger = logging.getLogger(__name__)

FOLLOW_EVERY_S = 0.2
LOOK_EVERY_S = 1.0
SLICE = 128
"""Records counted in one go, about a millisecond, for which requests may have to wait."""
_REMEDY = "`tim4rec live rebuild` makes the evidence anew from the log"


def count(evidence: Evidence, records: Sequence[Record]) -> None:
    """Counts records of the feed in their order."""
    for forget, some in groupby(records, lambda record: isinstance(record, Forgotten)):
        if forget:
            evidence.forget(record.user_key for record in some)
            continue
        events = [record for record in some if isinstance(record, Observed)]
        for start in range(0, len(events), SLICE):
            evidence.observe(events[start : start + SLICE])


class LiveEvidence:
    """Counts what the feed carries, in its order, so that all processes hold the same.

    A process that finds a checkpoint of another lineage than its own takes that over.

    Args:
        checkpoint_s: how often the processes together write a checkpoint, where there are events.

    Attributes:
        evidence: another object once a checkpoint was taken over.
        position: of the feed, up to which it counts.
    """

    def __init__(
        self,
        feed: Feed,
        checkpoints: Checkpoints,
        rules: EvidenceRules,
        *,
        checkpoint_s: float = 300,
    ) -> None:
        self._feed, self._checkpoints, self._rules = feed, checkpoints, rules
        self._checkpoint_s = checkpoint_s
        self.evidence, self.position = Evidence(rules), BEGINNING
        self._lineage = uuid4().hex
        # The newest checkpoint, as far as this process knows, and since when it knows.
        self._pointer: bytes | None = None
        self._saved, self._saved_at = BEGINNING, time.monotonic()
        self._may_write = True
        self._turn = asyncio.Lock()

    # -- following -----------------------------------------------------------------------

    async def start(self) -> None:
        """Takes over what there is.

        Raises:
            StoreError: the store does not answer.
        """
        # What is compiled at its first call is so now, in a thread.
        first = [Observed(0, "a", 0), Observed(0, "b", 0)]
        await asyncio.to_thread(Evidence(self._rules).observe, first)
        await self.look()
        self._may_write = True  # also in place of a checkpoint of other rules, which are outdated
        if self._pointer is None:
            logger.info("no checkpoint of live evidence, which begins with the feed; %s", _REMEDY)
        await self.follow()

    async def follow(self) -> None:
        """Counts what is new in the feed.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._turn:
            while entries := await self._feed.after(self.position):
                for entry in entries:
                    if entry.begin != self.position.records and await self._leaps(entry):
                        break
                    await self._count(entry)
        live_metrics.ITEMS.set(len(self.evidence.item_ids))

    async def _count(self, entry: Entry) -> None:
        # In a thread: where items are many, it takes long to make room for more.
        await asyncio.to_thread(lambda: count(self.evidence, entry.records()))
        self.position = entry.end
        live_metrics.EVENTS.inc(entry.size)
        live_metrics.LAG.set(max(0.0, time.time() - entry.end.ms / 1000))

    async def _leaps(self, entry: Entry) -> bool:
        """Whether a checkpoint leads over what the feed has lost before the entry, all or in part;
        else that is given up."""
        before = self.position
        await self._note(await self._checkpoints.newest(), leap=True)
        if self.position != before:
            return True
        lost = entry.begin - before.records
        logger.warning(
            "the live feed has lost %s before %s, which the evidence lacks; %s",
            f"{lost:,} events" if lost > 0 else "what was",
            entry.end.entry_id,
            _REMEDY,
        )
        live_metrics.GAPS.inc()
        return False

    # -- checkpoints ---------------------------------------------------------------------

    async def look(self) -> None:
        """Takes over the newest checkpoint where it is of another lineage, and writes one where
        that is due.

        Raises:
            StoreError: the store does not answer.
        """
        text = await self._checkpoints.newest()
        if text != self._pointer:
            async with self._turn:
                await self._note(text)
        due = time.monotonic() - self._saved_at >= self._checkpoint_s
        many = self.position.records - self._saved.records >= self._feed.most / 2
        wanted = self._may_write and self.position != self._saved and (due or many)
        if wanted and await self._checkpoints.lock():
            try:
                await self._write()
            finally:
                await self._checkpoints.unlock()

    async def _note(self, text: bytes | None, *, leap: bool = False) -> None:
        """Takes note of the newest checkpoint, and takes it over where it is of another lineage;
        `leap`: also where it is further on."""
        if text != self._pointer:
            self._saved_at = time.monotonic()
        self._pointer, self._saved, self._may_write = text, BEGINNING, True
        if text is None:
            return
        try:
            pointer = Pointer.parse(text)
            self._may_write = pointer.rules == self._rules
            ahead = leap and pointer.position > self.position
            if pointer.lineage != self._lineage or ahead:
                await self._take_over(pointer)
            self._saved = pointer.position
        except EvidenceError as error:
            logger.warning("the checkpoint of live evidence is not used: %s; %s", error, _REMEDY)

    async def _take_over(self, pointer: Pointer) -> None:
        if pointer.rules != self._rules:
            raise EvidenceError("it was made with other live_neighbours or live_users")
        data = await self._checkpoints.read(pointer)
        self.evidence = await asyncio.to_thread(Evidence.from_bytes, data, self._rules)
        self.position, self._lineage = pointer.position, pointer.lineage
        live_metrics.RELOADS.inc()
        logger.info("live evidence of %s events is taken over", f"{self.evidence.n_events:,}")

    async def _write(self) -> None:
        async with self._turn:
            position, lineage, before = self.position, self._lineage, self._pointer
            data = await asyncio.to_thread(self.evidence.to_bytes)
        pointer = await self._checkpoints.write(data, self._rules, lineage, position)
        if await self._checkpoints.point(pointer, before):
            self._pointer, self._saved = pointer.text(), position
            self._saved_at = time.monotonic()

    # -- life ----------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts, and follows meanwhile."""
        await self.start()
        failing, failed = "live evidence is not kept", live_metrics.FAILURES.inc
        async with (
            Follower(self.follow, FOLLOW_EVERY_S, failing, failed),
            Follower(self.look, LOOK_EVERY_S, failing, failed),
        ):
            yield
