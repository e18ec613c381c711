"""The engine: one process's share of the service for one model.

Requests become batches, a batch goes through the log and then the arithmetic. An append is
answered when the log has it: what happens to a state afterwards can cost time, never an event.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from model.artefact import Artefact
from model.kinds import KindRules
from model.state import Precision
from service.catalogue.ask import Ask
from service.catalogue.choice import Choice
from service.catalogue.ranking import NO_ITEMS, Ranking
from service.catalogue.retrieval import Retrieval
from service.engine import erasure
from service.engine.batch_runner import BatchRunner
from service.engine.erasure import ErasureFollower
from service.engine.history import HistoryReader
from service.engine.listener import Listener
from service.engine.log_exchange import LogExchange
from service.engine.one_at_a_time import OneAtATime
from service.engine.pool import StatePool
from service.engine.quality import QualitySampler
from service.engine.request_queue import RequestQueue
from service.engine.requests import Append, Read, Recommendation, StoreAway
from service.engine.scheduler import Scheduler
from service.engine.snapshot_writer import SnapshotWriter
from service.engine.snapshots import Snapshot, SnapshotFormat
from service.engine.tally import Tally
from service.store.event_log import EventLog
from service.store.events import Event, NewEvent, Outcome
from service.store.follower import Follower


class Engine:
    """Logs events and recommends, by states that it keeps up with the log.

    Attributes:
        identity: of the model with all that decides its states.
        edition: the same with what decides scores only.
        vocabulary: the items that the model knows, by their rows.
    """

    def __init__(
        self,
        artefact: Artefact,
        log: EventLog,
        *,
        pool_capacity: int = 16_384,
        max_batch: int = 128,
        max_queue: int = 4096,
        max_wait_s: float = float("inf"),
        snapshot_every: int = 64,
        snapshot_ttl_s: int = 30 * 86_400,
        snapshot_precision: Precision = "float32",
        erasure_poll_s: float = 0.25,
        retrieval: Retrieval | None = None,
        listeners: Sequence[Listener] = (),
        kinds: KindRules | None = None,
        store_away: StoreAway = "refuse",
        quality: QualitySampler | None = None,
    ) -> None:
        kinds = kinds or KindRules()
        model = artefact.model
        suffix = kinds.suffix
        if snapshot_precision != "float32":  # then the interval and precision decide the state
            suffix += f"-{snapshot_precision}-{snapshot_every}"
        self.identity, self.edition = artefact.identity + suffix, artefact.edition + suffix
        self.snapshots = SnapshotFormat(
            model.state_layout, self.identity, snapshot_every, snapshot_precision
        )
        self.log, self.listeners = log, listeners
        self.pool = StatePool(model.state_layout, pool_capacity, model.device)
        self.runner = BatchRunner(artefact, self.pool, self.snapshots, kinds, retrieval, quality)
        self.vocabulary = self.runner.effects.vocabulary
        self.history = HistoryReader(log, self.pool, self.snapshots)
        self.erasures = ErasureFollower(log, self.pool, listeners)
        hear, failing = self.erasures.hear, "erasures are not read"
        self._following = Follower(hear, erasure_poll_s, failing)
        self.writer = SnapshotWriter(
            self.history, ttl_s=snapshot_ttl_s, max_users=max_queue, at_once=max_batch
        )
        self.queue = RequestQueue(
            max_batch=max_batch,
            max_events=log.max_events,
            max_queue=max_queue,
            max_wait_s=max_wait_s,
        )
        self.tally = Tally(self.edition, self.vocabulary, kinds)
        self.exchange = LogExchange(self.history, self.writer, self.tally, listeners, store_away)
        self.scheduler = Scheduler(self.queue, self.exchange, self.writer, self.runner, self.tally)
        self._similar = OneAtATime(max_wait_s)
        self._sessions = itertools.count()

    async def start(self) -> None:
        """Warms the arithmetic up and begins to answer.

        Raises:
            StoreError: the store does not answer.
        """
        self.tally.begin(self.queue.max_queue, self.pool)
        await self.erasures.hear()
        await self.scheduler.aside(self.runner.warm_up, self.queue.max_batch)
        self.scheduler.start(self._following.run())

    async def stop(self) -> None:
        """Finishes what is queued and under way, then ends."""
        self.queue.closed = True
        await self.scheduler.stop()
        self.tally.end()

    # -- requests ------------------------------------------------------------------------

    async def append(self, user_id: str, events: Sequence[NewEvent]) -> list[Outcome]:
        """Logs events of one user, at most `log.max_events`; returns when they are durable.

        Raises:
            Overloaded: nothing was done.
            StoreError: unknown whether they were logged; a retry must carry the same event ids.
        """
        return await self.submit(user_id, events)

    def submit(
        self, user_id: str, events: Sequence[NewEvent], *, begun: bool = False
    ) -> asyncio.Future[list[Outcome]]:
        """`append` for a caller with many users, which needs no task for each.

        Args:
            begun: as for `RequestQueue.put`.

        Raises:
            Overloaded: nothing was done.
        """
        append = Append(user_id, events)
        self.queue.put(append, begun=begun)
        return append.done

    async def recommend(
        self,
        user_id: str,
        k: int,
        *,
        at_ms: int | None = None,
        exclude_seen: bool = True,
        masked: NDArray[np.int32] = NO_ITEMS,
        allow_stale: bool = False,
        choice: Choice | None = None,
        live: bool = True,
    ) -> Recommendation:
        """The best items by the state of everything logged before the call.

        Args:
            at_ms: as of `Read`.
            masked: item indices not to return.
            allow_stale: a state in the pool will do, without asking the log.
            choice: what the list must be beside good; None: nothing.
            live: what has happened since the training counts.
        """
        ask = Ask(k, masked, choice=choice, live=live)
        return await self._read(Read(user_id, ask, exclude_seen, at_ms, allow_stale))

    async def rank(
        self,
        user_id: str,
        candidates: NDArray[np.int32],
        *,
        at_ms: int | None = None,
        exclude_seen: bool = False,
        allow_stale: bool = False,
    ) -> Recommendation:
        """`recommend`, with these item indices and no others."""
        ask = Ask(len(candidates), candidates=candidates)
        return await self._read(Read(user_id, ask, exclude_seen, at_ms, allow_stale))

    async def recommend_session(
        self,
        events: Sequence[Event],
        k: int,
        *,
        at_ms: int | None = None,
        exclude_seen: bool = True,
        masked: NDArray[np.int32] = NO_ITEMS,
        choice: Choice | None = None,
        live: bool = True,
    ) -> Recommendation:
        """`recommend` for somebody with this whole history (versions from 1 on, times not
        falling), of whom nothing is stored or known before."""
        # Half of a surrogate pair: no user that the log takes has this name.
        name = f"\udfff{next(self._sessions)}"
        ask = Ask(k, masked, choice=choice, live=live)
        return await self._read(Read(name, ask, exclude_seen, at_ms, session=events))

    async def _read(self, read: Read) -> Recommendation:
        self.queue.put(read)
        return await read.done

    async def similar(self, row: int, item_id: str, k: int) -> Ranking:
        """The items most like that of a row, without itself; between two batches.

        Raises:
            Overloaded: nothing was done.
        """
        search = partial(self.scheduler.aside, self.runner.retrieval.similar, row, item_id, Ask(k))
        return await self._similar.run(search)

    async def erase(self, user_id: str) -> bool:
        """Forgets a user everywhere; False when nothing was known."""
        existed = await erasure.erase(self.log, user_id, self.listeners)
        self.pool.drop(user_id)
        for listener in self.listeners:
            listener.erased(user_id)
        return existed

    async def resident(self, user_id: str) -> Snapshot | None:
        """A copy of what the pool holds of a user, taken between two batches."""
        return await self.scheduler.aside(self.runner.copy, user_id)

    def is_late(self, ahead: int = 0) -> bool:
        """`RequestQueue.is_late`."""
        return self.queue.is_late(ahead)
