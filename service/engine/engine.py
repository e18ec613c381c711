"""The engine: requests become waves, a wave goes through the log and then the arithmetic.

A wave is everything that is waiting; there is no timer, so a lone request never waits for company.
While one computes on a GPU, the next is on the wire. An append is answered when the log has it:
what happens to a state afterwards can cost time, never an event.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model.artefact import Artefact
from model.device_stepper import DeviceStepper
from model.kinds import KindRules
from model.state import Precision
from service.catalogue.choice import Choice
from service.catalogue.retrieval import NO_ITEMS, ExactRetrieval, Ranking
from service.catalogue.view import Selection
from service.engine import erasure, snapshots
from service.engine.batch_runner import BatchRunner, Work, missing
from service.engine.pace import Pace
from service.engine.pool import StatePool
from service.engine.snapshots import Snapshot
from service.engine.tally import Tally
from service.engine.wave import (
    Append,
    Entry,
    History,
    Read,
    Recommendation,
    StoreAway,
    Wave,
    collect,
)
from service.feedback.outcomes import Outcomes
from service.feedback.popularity import Popularity
from service.observe import metrics, stages
from service.observe.stages import Stages
from service.store.event_log import (
    ERASURES_KEPT_S,
    ORIGIN,
    Event,
    EventLog,
    LogReply,
    LogRequest,
    NewEvent,
    Outcome,
    Verdict,
)
from service.store.store import (
    AcksMissed,
    HistoryChanged,
    InvalidRequest,
    RecordDamaged,
    StoreError,
    StoreUnavailable,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ATTEMPTS = 5
"""How often a user's history may change under our hands before a request is given up."""

ANSWERED_AT_ONCE = 16
"""Most reads that are answered in one turn of the event loop: what comes meanwhile waits for its
end, be it only to be refused."""

_LOGGED = (Verdict.APPLIED, Verdict.LATE)

DROP_AGAIN_S = 10.0
"""So long the states of an erased user are dropped again: a wave that had read the record before
may still put one into the pool."""


class Overloaded(Exception):
    """The queue is full: nothing was done."""


class Engine:
    """One process's share of the service for one model."""

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
        retrieval: ExactRetrieval | None = None,
        popularity: Popularity | None = None,
        outcomes: Outcomes | None = None,
        kinds: KindRules | None = None,
        store_away: StoreAway = "refuse",
    ) -> None:
        self.log, self.popularity, self.outcomes = log, popularity, outcomes
        self.store_away = store_away
        self.pool = StatePool(artefact.model.state_layout, pool_capacity, artefact.model.device)
        self.computer = BatchRunner(
            artefact,
            self.pool,
            snapshot_every=snapshot_every,
            snapshot_precision=snapshot_precision,
            retrieval=retrieval,
            kinds=kinds,
        )
        self.kinds = self.computer.kinds
        self.identity = artefact.identity + self.kinds.suffix
        if self.computer.rounds_states:  # then the interval and precision decide the state
            self.identity += f"-{snapshot_precision}-{snapshot_every}"
        self.max_batch, self.max_queue, self.max_wait_s = max_batch, max_queue, max_wait_s
        self.computer.stamp = snapshots.stamp(self.identity)
        self.tally = Tally(self.identity)
        self.snapshot_ttl_s = snapshot_ttl_s
        self.erasure_poll_s = erasure_poll_s
        self._queue: deque[Append | Read] = deque()
        self._arrived = asyncio.Event()
        self._on_device = isinstance(self.computer.stepper, DeviceStepper)
        self._computing: asyncio.Queue[Wave] = asyncio.Queue(maxsize=1)
        self._due: dict[str, Entry] = {}
        self._some_due = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._in_thread = 0  # calls that wait for the thread, or are in it
        self._loops: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._sessions = itertools.count()
        self._busy = 0  # waves between leaving the queue and the end of their arithmetic
        self.pace = Pace(max_batch)
        self._erased = "$"
        self._forgotten: deque[tuple[float, str]] = deque()
        self._waiting, self._users = metrics.Part(metrics.QUEUE), metrics.Part(metrics.POOL_USERS)
        self._sizes = {
            metrics.Part(metrics.QUEUE_CAPACITY): max_queue,
            metrics.Part(metrics.POOL_CAPACITY): pool_capacity,
            metrics.Part(metrics.POOL_BYTES): pool_capacity * self.pool.layout.nbytes(),
        }

    # -- life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Warms the arithmetic up and starts the loops.

        Raises:
            StoreError: the store does not answer.
        """
        for part, size in self._sizes.items():
            part.set(size)
        self.tally.begin(self.kinds.labels)
        self._erased, _ = await self.log.erasures("$")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)
        self._loops = [
            asyncio.create_task(self._log_loop()),
            asyncio.create_task(self._compute_loop()),
            asyncio.create_task(self._due_loop()),
            asyncio.create_task(self._erasure_loop()),
        ]

    @torch.inference_mode()
    def _warm_up(self) -> None:
        model = self.computer.model
        stepper = self.computer.stepper
        if isinstance(stepper, DeviceStepper):
            stepper.prepare(self.max_batch)
        elif stepper is not None:
            stepper.prepare()
        for batch in (1, self.max_batch):
            items = torch.ones(batch, 2, dtype=torch.long, device=model.device)
            lengths = torch.full((batch,), 2, device=model.device)
            state = model.prefill(items, items * 1000, lengths, model.new_state(batch))
            state = model.step(items[:, 0], items[:, 0] * 3000, state)
            query = model.query(state, items[:, 0] * 4000)
            self.computer.retrieval.top(query, [NO_ITEMS] * batch, [10] * batch)

    async def stop(self) -> None:
        """Finishes the waves under way and what is queued, then ends."""
        self._stopping = True
        # Three conditions, once in a life: an event for each would be more than it saves.
        while self._loops and (self._queue or self._due or self._background or self._busy):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()  # where they were cancelled, they keep all of this alive
        self._thread.shutdown()
        for part in (*self._sizes, self._waiting, self._users, self.tally.of_model.users):
            part.set(0)

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
            begun: it is part of a request that was not too late when it came, and whose own
                other parts are no reason to refuse this one.

        Raises:
            Overloaded: nothing was done.
        """
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        timeline = stages.current.get()
        self._enqueue(Append(user_id, events, done, time.perf_counter(), timeline), begun=begun)
        return done

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
    ) -> Recommendation:
        """The best items by the state of everything logged before the call.

        Args:
            at_ms: the time recommended for; None: the store's clock now.
            masked: item indices not to return.
            allow_stale: a state in the pool will do, without asking the log.
            choice: what the list must be beside good; None: nothing.
        """
        done: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        queued, timeline = time.perf_counter(), stages.current.get()
        self._enqueue(
            Read(
                user_id, k, at_ms, exclude_seen, masked, allow_stale, done, queued, timeline,
                choice=choice,
            )
        )  # fmt: skip
        return await done

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
        done: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        read = Read(
            user_id, len(candidates), at_ms, exclude_seen, NO_ITEMS, allow_stale, done,
            time.perf_counter(), stages.current.get(), candidates=candidates,
        )  # fmt: skip
        self._enqueue(read)
        return await done

    async def recommend_session(
        self,
        events: Sequence[Event],
        k: int,
        *,
        at_ms: int | None = None,
        exclude_seen: bool = True,
        masked: NDArray[np.int32] = NO_ITEMS,
        choice: Choice | None = None,
    ) -> Recommendation:
        """`recommend` for somebody with this whole history (versions from 1 on, times not
        falling), of whom nothing is stored or known before."""
        done: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        # Half of a surrogate pair: no user that the log takes has this name.
        name = f"\udfff{next(self._sessions)}"
        read = Read(
            name, k, at_ms, exclude_seen, masked, False, done,
            time.perf_counter(), stages.current.get(), session=events, choice=choice,
        )  # fmt: skip
        self._enqueue(read)
        return await done

    async def similar(
        self,
        row: int,
        k: int,
        masked: NDArray[np.int32] = NO_ITEMS,
        selection: Selection | None = None,
    ) -> Ranking:
        """The items most like that of a row, without itself; between two waves."""
        return await self._aside(self.computer.similar, row, k, masked, selection)

    async def erase(self, user_id: str) -> bool:
        """Forgets a user everywhere; False when nothing was known."""
        existed = await erasure.erase(self.log, user_id, self.popularity, self.kinds)
        self.pool.drop(user_id)
        if self.outcomes is not None:
            self.outcomes.forget(user_id)
        return existed

    async def resident(self, user_id: str) -> Snapshot | None:
        """A copy of what the pool holds of a user, taken between two waves."""
        return await self._aside(self.computer.copy, user_id)

    async def _aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """In the thread of the arithmetic."""
        self._in_thread += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, work, *arguments)
        finally:
            self._in_thread -= 1

    def is_late(self, ahead: int = 0) -> bool:
        """Whether a request that came now would wait too long for its turn, with `ahead` others
        that are not in the queue yet."""
        return (len(self._queue) + ahead) * self.pace.seconds_each > self.max_wait_s

    def _enqueue(self, request: Append | Read, *, begun: bool = False) -> None:
        if self._stopping or len(self._queue) >= self.max_queue:
            metrics.REFUSED["stopping" if self._stopping else "queue_full"].inc()
            raise Overloaded("stopping" if self._stopping else "the queue is full")
        if self.is_late() and not begun:
            metrics.REFUSED["overloaded"].inc()
            raise Overloaded("more requests than can be answered in time")
        self._queue.append(request)
        self._arrived.set()

    # -- waves ---------------------------------------------------------------------------

    async def _log_loop(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            began = time.perf_counter()
            while self._queue:
                wave = self.collect()
                size = len(wave)
                if not wave.entries:
                    continue
                self._busy += 1
                try:
                    await self.exchange(wave)
                except Exception as error:
                    self._busy -= 1
                    self._give_up(wave, error)
                    continue
                if self._on_device or len(self._queue) >= self.max_batch:
                    await self._computing.put(wave)
                else:
                    # On a CPU both want the same one, and a wave that begins later is a larger
                    # one, which costs less a request; unless it would be full now.
                    await self._computing.join()
                    await self._compute(wave)
                ended = time.perf_counter()
                self.pace.add(size, ended - began)
                began = ended
            self._waiting.set(0)

    async def _compute_loop(self) -> None:
        while True:
            wave = await self._computing.get()
            try:
                await self._compute(wave)
            finally:
                self._computing.task_done()

    async def _compute(self, wave: Wave) -> None:
        try:
            await self._finish(list(wave.entries.values()))
        except Exception as error:
            self._give_up(wave, error)
        finally:
            self._busy -= 1

    def _give_up(self, wave: Wave, error: Exception) -> None:
        """A fault of ours ends one wave, not the loop that all later ones wait for."""
        logger.error("a wave of %d requests is given up", len(wave), exc_info=error)
        for entry in wave.entries.values():
            _reject(entry.requests, error)
            self.pool.unpin(entry.row)
            entry.row = None

    async def _due_loop(self) -> None:
        while True:
            await self._some_due.wait()
            self._some_due.clear()
            while self._due:
                self._busy += 1
                try:
                    await self._finish(await self.look_up_due())
                finally:
                    self._busy -= 1

    async def look_up_due(self) -> list[Entry]:
        """Some of those whose append made a snapshot due while they had no row, with what the log
        and their snapshot say of them now."""
        users = list(itertools.islice(self._due, self.max_batch))
        entries = [self._due.pop(user_id) for user_id in users]
        replies = await self._exchange(
            [LogRequest(user_id, None, (), self.identity) for user_id in users]
        )
        found = []
        for entry, reply in zip(entries, replies, strict=True):
            if isinstance(reply, LogReply) and entry.reply is not None:
                entry.reply = reply._replace(outcomes=entry.reply.outcomes)
                found.append(entry)
        metrics.SNAPSHOTS["failed"].inc(len(entries) - len(found))
        return found

    def collect(self) -> Wave:
        """The next wave off the queue."""
        if self._loops:  # one that does not run takes no part in what the process shows
            self._waiting.set(len(self._queue))
        wave = collect(self._queue, self.max_batch, self.log.max_events)
        if wave.entries:
            metrics.WAVE_REQUESTS.observe(len(wave))
        return wave

    async def exchange(self, wave: Wave) -> None:
        """Asks the log for all of a wave in one call, and answers its appends. Users of whom no
        state is needed leave the wave."""
        asked, requests, hits = [], [], 0
        users = [entry for entry in wave.entries.values() if entry.session is None]
        for entry in users:
            entry.row = self.pool.pin(entry.user_id)
            hits += entry.row is not None
            stale = not entry.appends and all(read.allow_stale for read in entry.reads)
            if stale and entry.row is not None:
                continue
            entry.known = entry.row.mark if entry.row else None
            entry.unread = self._is_unread(entry)
            asked.append(entry)
            requests.append(
                LogRequest(
                    entry.user_id,
                    entry.known,
                    [event for append in entry.appends for event in append.events],
                    None if entry.row or entry.unread else self.identity,
                    0 if entry.unread else None,
                )
            )
        self.tally.show_lookups(len(users), hits)
        started = time.perf_counter()
        for timeline, queued in _timelines(wave.entries.values()).items():
            timeline.add(stages.QUEUE, queued, started)
        for entry in wave.entries.values():
            entry.ready = started
        if not asked:
            return
        replies = await self._exchange(requests)
        ended = time.perf_counter()
        for timeline in _timelines(asked):
            timeline.add(stages.LOG, started, ended)
        for entry, reply in zip(asked, replies, strict=True):
            if isinstance(reply, Exception):
                entry.ready = ended
                if entry.appends and entry.reads and _refuses_writes(reply):
                    _reject(entry.appends, reply)
                    self.pool.unpin(entry.row)
                    entry.row, entry.appends = None, []
                    self._spawn(self._resolve_entry(entry))
                    del wave.entries[entry.user_id]
                elif not self._does_without(entry, reply):
                    del wave.entries[entry.user_id]
            else:
                entry.reply, entry.ready = reply, ended
                self._answer_appends(entry, reply.outcomes)
                if entry.unread:
                    del wave.entries[entry.user_id]
                    if self.computer.snapshot_due(entry) and len(self._due) < self.max_queue:
                        self._due[entry.user_id] = entry
        self.tally.show_appends()
        if self._due:
            self._some_due.set()

    def _is_unread(self, entry: Entry) -> bool:
        """Whether nobody needs the user's state now: no row is to be kept up with the log, nothing
        is read, and a snapshot that is due can wait for others."""
        if entry.row is not None or entry.reads:
            return False
        return entry.n_events < self.computer.snapshot_every

    async def _exchange(self, requests: Sequence[LogRequest]) -> Sequence[LogReply | Exception]:
        try:
            return await self.log.exchange(requests)
        except Exception as error:  # whatever it is, the loop goes on and the callers hear of it
            if not isinstance(error, StoreError):
                logger.exception("an exchange of %d users failed", len(requests))
            return [error] * len(requests)

    def _answer_appends(self, entry: Entry, outcomes: list[Outcome]) -> None:
        place = 0
        for append in entry.appends:
            own = outcomes[place : place + len(append.events)]
            place += len(append.events)
            for event, outcome in zip(append.events, own, strict=True):
                self.tally.verdicts[outcome.verdict] += 1
                if outcome.verdict not in _LOGGED or outcome.time_ms is None:
                    continue
                self.tally.unknown_items += event.item_id not in self.computer.vocabulary
                kind = self.kinds.label(event.kind)
                self.tally.kinds[kind] += 1
                if self.outcomes is not None:
                    self.outcomes.interacted(entry.user_id, event.item_id, kind)
                if self.popularity is not None and self.kinds.counts(event.kind):
                    at = outcome.time_ms if event.time_ms is None else event.time_ms
                    weight = 1.0 if event.weight is None else event.weight
                    self.popularity.count(event.item_id, at, weight)
            _resolve(append.done, own)

    def _does_without(self, entry: Entry, error: Exception) -> bool:
        """Fails the entry, or only its appends where its reads are answered without the store."""
        known = entry.row is not None or self.store_away == "popular"
        entry.away = (
            isinstance(error, StoreUnavailable)
            and self.store_away != "refuse"
            and bool(entry.reads)
            and known
        )
        _reject(entry.appends if entry.away else entry.requests, error)
        if entry.away:
            entry.reply = entry.history = None
        else:
            self.pool.unpin(entry.row)
            entry.row = None
        return entry.away

    async def _finish(self, entries: list[Entry]) -> None:
        """Computes; entries that need more of their history get it in a task of their own, so
        that one long history does not hold the others up."""
        if not entries:
            return
        try:
            # The thread would take longer to get its turn than a small wave takes.
            if not self._in_thread and self.computer.is_small(entries):
                work = self.computer.run(entries)
            else:
                work = await self._aside(self.computer.run, entries)
        except Exception as error:
            logger.exception("a wave of %d users failed; their states are dropped", len(entries))
            for entry in entries:
                for read in entry.reads:
                    if not read.done.done():
                        read.done.set_exception(error)
            return
        for entry in entries:
            for read in entry.reads:
                if read.stages is not None:
                    read.stages.add(stages.QUEUE, entry.ready, work.started)
                    read.stages.spans += work.spans
        self._conclude(work)
        if work.snapshots:
            self._spawn(self._write_snapshots(work.snapshots))
        for entry in work.unresolved:
            self._spawn(self._resolve_entry(entry))

    def _conclude(self, work: Work) -> None:
        at_once, others = work.answers[:ANSWERED_AT_ONCE], work.answers[ANSWERED_AT_ONCE:]
        for read, recommendation in at_once:
            _resolve(read.done, recommendation)
        if others:
            self._spawn(_answer(others))
        self.tally.show(work)
        if self._loops:
            self.tally.of_model.users.set(len(self.pool))
            self._users.set(len(self.pool))

    async def _resolve_entry(self, entry: Entry) -> None:
        started = time.perf_counter()
        try:
            entry.attempts += 1
            if entry.attempts > MAX_ATTEMPTS:
                raise HistoryChanged("the user's history kept changing: try again")
            await self.resolve(entry)
        except StoreError as error:
            entry.row = self.pool.pin(entry.user_id)
            if not self._does_without(entry, error):
                return
        finally:
            entry.ready = time.perf_counter()
            for read in entry.reads:
                if read.stages is not None:
                    read.stages.add(stages.LOG, started, entry.ready)
        await self._finish([entry])

    async def resolve(self, entry: Entry) -> None:
        """Gets an entry all the history it needs: from its row, its snapshot or the start."""
        outcomes = entry.reply.outcomes if entry.reply else []
        row = self.pool.get(entry.user_id)
        mark = row.mark if row else None
        reply = await self._ask(LogRequest(entry.user_id, mark, (), self.identity))
        entry.known, entry.history = mark, None
        if mark is None or missing(mark, mark, reply) is None:
            base = snapshots.read(self.pool.layout, self.computer.stamp, reply.snapshot)
            start = base.mark if base else ORIGIN
            at, events = start, list[Event]()
            while True:
                reply = await self._ask(LogRequest(entry.user_id, at))
                if not reply.known_is_current_history:
                    if base is not None and at == base.mark:  # of a history that is no more
                        base = None
                    entry.attempts += 1
                    if entry.attempts > MAX_ATTEMPTS:
                        raise HistoryChanged("the user's history kept changing: try again")
                    at, events = base.mark if base else ORIGIN, []
                    continue
                events += reply.events
                if reply.complete:
                    break
                at = reply.events[-1].mark
            entry.known, entry.history = None, History(base, events)
            reply = reply._replace(known_is_current_history=False, events=events[-1:])
        entry.reply = reply._replace(outcomes=outcomes)

    async def _ask(self, request: LogRequest) -> LogReply:
        (reply,) = await self.log.exchange([request])
        if isinstance(reply, StoreError):
            raise reply
        return reply

    async def _write_snapshots(self, packed: list[tuple[str, bytes]]) -> None:
        # A snapshot is a cache: one that can't be written costs a longer replay, nothing else.
        try:
            newest = list(dict(packed).items())
            marks = [snapshots.mark(data) for _, data in newest]
            written = await self.log.write_snapshots(
                self.identity, newest, self.snapshot_ttl_s, marks
            )
            metrics.SNAPSHOTS["written"].inc(written)
            metrics.SNAPSHOTS["outdated"].inc(len(packed) - written)
            metrics.SNAPSHOT_BYTES.inc(sum(len(snapshot) for _, snapshot in packed))
        except StoreError as error:
            metrics.SNAPSHOTS["failed"].inc(len(packed))
            logger.warning("%d snapshots not written: %s", len(packed), error)

    async def _erasure_loop(self) -> None:
        reading, read_at = True, time.monotonic()
        while True:
            await asyncio.sleep(self.erasure_poll_s)
            try:
                await self.hear_of_erasures()
            except StoreError as error:
                if reading:  # said once, not four times a second
                    logger.warning("erasures not read: %s", error)
                reading = False
                continue
            if time.monotonic() - read_at > ERASURES_KEPT_S / 2:
                logger.warning("erasures not read for too long: all states are dropped")
                for user_id in self.pool.users():
                    self.pool.drop(user_id)
            reading, read_at = True, time.monotonic()

    async def hear_of_erasures(self) -> None:
        """Drops the states of users who were erased, here or elsewhere.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            self._erased, users = await self.log.erasures(self._erased)
            until = time.monotonic() + DROP_AGAIN_S
            self._forgotten.extend((until, user_id) for user_id in users)
            if self.outcomes is not None:
                for user_id in users:
                    self.outcomes.forget(user_id)
            if not users:
                break
        while self._forgotten and self._forgotten[0][0] < time.monotonic():
            self._forgotten.popleft()
        for _, user_id in self._forgotten:
            self.pool.drop(user_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _timelines(entries: Iterable[Entry]) -> dict[Stages, float]:
    """The time lines of the requests in `entries`, each with when the first of it was queued."""
    found: dict[Stages, float] = {}
    for entry in entries:
        for request in entry.requests:
            if request.stages is not None:
                queued = found.get(request.stages, request.queued)
                found[request.stages] = min(queued, request.queued)
    return found


def _refuses_writes(error: Exception) -> bool:
    """Whether the store answers, and reads may well succeed: it is full, or replicas are away."""
    if isinstance(error, AcksMissed):
        return True
    unavailing = StoreUnavailable | RecordDamaged | InvalidRequest
    return isinstance(error, StoreError) and not isinstance(error, unavailing)


def _reject(requests: Iterable[Append | Read], error: Exception) -> None:
    for request in requests:
        if not request.done.done():
            request.done.set_exception(error)


async def _answer(answers: Sequence[tuple[Read, Recommendation]]) -> None:
    for place, (read, recommendation) in enumerate(answers):
        if place % ANSWERED_AT_ONCE == 0:
            await asyncio.sleep(0)
        _resolve(read.done, recommendation)


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
