"""The way of a batch: from the queue over the log to the arithmetic."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from service.engine.batch_runner import BatchRunner
from service.engine.history import MAX_ATTEMPTS, Fetched
from service.engine.log_exchange import LogExchange
from service.engine.request_queue import Asked, RequestQueue
from service.engine.requests import Append, Read, Recommendation, reject, resolve
from service.engine.snapshot_writer import SnapshotWriter
from service.engine.tally import Tally
from service.engine.work import Work
from service.observe import stages
from service.store.errors import HistoryChanged, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWERED_AT_ONCE = 16
"""Most reads that are answered in one turn of the event loop: what comes meanwhile waits for its
end, be it only to be refused."""


class Scheduler:
    """Runs batches one after the other, and behind them what they leave to be done."""

    def __init__(
        self,
        queue: RequestQueue,
        exchange: LogExchange,
        writer: SnapshotWriter,
        runner: BatchRunner,
        tally: Tally,
    ) -> None:
        self._queue, self._exchange, self._writer = queue, exchange, writer
        self._runner, self._tally = runner, tally
        self._on_device = runner.model.kernels is not None
        self._computing: asyncio.Queue[list[Fetched]] = asyncio.Queue(maxsize=1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._in_thread = 0  # calls that wait for the thread, or are in it
        self._busy = 0  # batches between leaving the queue and the end of their arithmetic
        self._loops: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self._queue or self._writer.n_due or self._background or self._busy)

    def start(self, beside: Coroutine[Any, Any, None]) -> None:
        """Begins, and runs something beside until the end."""
        loops = (self._log_loop(), self._compute_loop(), self._due_loop(), beside)
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Finishes what waits and what is under way."""
        # Several conditions, once in a life: an event for each would be more than it saves.
        while self._loops and not self.is_idle:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()  # where they were cancelled, they keep all of this alive
        self._thread.shutdown()

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """In the thread of the arithmetic, between two batches."""
        self._in_thread += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, work, *arguments)
        finally:
            self._in_thread -= 1

    # -- batches -------------------------------------------------------------------------

    async def _log_loop(self) -> None:
        while True:
            await self._queue.arrived.wait()
            self._queue.arrived.clear()
            began = time.perf_counter()
            while self._queue:
                self._tally.show_waiting(len(self._queue))
                batch = self._queue.take()
                if not batch:
                    continue
                self._busy += 1
                try:
                    fetched = await self._exchange.run(batch)
                except Exception as error:
                    self._busy -= 1
                    _give_up([request for asked in batch for request in asked.requests], error)
                    continue
                if self._on_device or len(self._queue) >= self._queue.max_batch:
                    await self._computing.put(fetched)
                else:
                    # On a CPU both want the same one, and a batch that begins later is a larger
                    # one, which costs less a request; unless it would be full now.
                    await self._computing.join()
                    await self._compute(fetched)
                ended = time.perf_counter()
                self._queue.pace.add(
                    sum(len(a.appends) + len(a.reads) for a in batch), ended - began
                )
                began = ended
            self._tally.show_waiting(0)

    async def _compute_loop(self) -> None:
        while True:
            fetched = await self._computing.get()
            try:
                await self._compute(fetched)
            finally:
                self._computing.task_done()

    async def _due_loop(self) -> None:
        while True:
            await self._writer.some_due.wait()
            self._writer.some_due.clear()
            while self._writer.n_due:
                self._busy += 1
                await self._compute(await self._writer.look_up())

    async def _compute(self, batch: list[Fetched]) -> None:
        """Ends a batch. Who needs more of a history gets it in a task of its own, so that one long
        history does not hold the others up."""
        try:
            for unresolved in await self._run(batch):
                self._spawn(self._resolve(unresolved))
        except Exception as error:  # a fault of ours ends one batch, not the loop
            _give_up([read for fetched in batch for read in fetched.reads], error)
        finally:
            self._busy -= 1

    async def _run(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Computes and answers; those whose history is needed."""
        if not batch:
            return []
        try:
            # The thread would take longer to get its turn than a small batch takes.
            if not self._in_thread and self._runner.is_small(batch):
                work = self._runner.run(batch)
            else:
                work = await self.aside(self._runner.run, batch)
        except Exception as error:
            logger.exception("a batch of %d users failed; their states are dropped", len(batch))
            reject([read for fetched in batch for read in fetched.reads], error)
            return []
        for fetched in batch:
            for read in fetched.reads:
                if read.stages is not None:
                    read.stages.add(stages.QUEUE, fetched.since, work.started)
                    read.stages.spans += work.spans
        self.conclude(work)
        if work.snapshots:
            self._spawn(self._writer.write(work.snapshots))
        self._tally.show_users(len(self._runner.pool))
        return work.unresolved

    def conclude(self, work: Work) -> None:
        """Answers."""
        at_once, others = work.answers[:ANSWERED_AT_ONCE], work.answers[ANSWERED_AT_ONCE:]
        for read, recommendation in at_once:
            resolve(read.done, recommendation)
        if others:
            self._spawn(_answer(others))
        self._tally.show(work)

    async def _resolve(self, fetched: Fetched) -> None:
        """Reads the history and computes again, as long as it changes meanwhile."""
        for _ in range(MAX_ATTEMPTS):
            started = time.perf_counter()
            try:
                resolved: Fetched | None = await self._exchange.history.resolve(fetched)
            except StoreError as error:
                resolved = self._without_store(fetched, error)
            ended = time.perf_counter()
            for read in fetched.reads:
                if read.stages is not None:
                    read.stages.add(stages.LOG, started, ended)
            if resolved is None:
                return
            if not await self._run([replace(resolved, since=ended)]):
                return
        reject(fetched.reads, HistoryChanged("the user's history kept changing: try again"))

    def _without_store(self, fetched: Fetched, error: StoreError) -> Fetched | None:
        asked, pool = Asked(fetched.user_id, reads=fetched.reads), self._runner.pool
        row = pool.pin(fetched.user_id)
        away = self._exchange.without_store(asked, row, error)
        if away is None:
            pool.unpin(row)
        return away

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _give_up(requests: Sequence[Append | Read], error: Exception) -> None:
    logger.error("a batch of %d requests is given up", len(requests), exc_info=error)
    reject(requests, error)


async def _answer(answers: Iterable[tuple[Read, Recommendation]]) -> None:
    for place, (read, recommendation) in enumerate(answers):
        if place % ANSWERED_AT_ONCE == 0:
            await asyncio.sleep(0)
        resolve(read.done, recommendation)
