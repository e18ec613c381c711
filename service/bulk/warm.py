"""Snapshots of every record for one model, ahead of the service that will want them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from model.artefact import Artefact
from model.kinds import KindRules
from model.state import Precision
from service.engine import snapshots
from service.engine.engine import Engine
from service.engine.history import Fetched, whole
from service.store.errors import RecordDamaged, StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import ORIGIN
from service.store.shards import ALL, Shard
from service.store.snapshot_store import SnapshotStore

BATCH = 256
"""Users in one exchange and one pass of arithmetic."""
LONG_BATCH = 8
"""The same of users whose history takes several pages."""
AT_ONCE = 2
"""Batches under way: while one computes, the next is on the wire."""


@dataclass
class WarmResult:
    """Users by what became of their snapshot.

    Attributes:
        current: it was there already.
        short: with reduced snapshots, which exist at multiples of `snapshot_every` only: the
            history does not reach the first.
        unfit: the state does not fit the precision.
        truncated: the beginning of the history is gone, and no snapshot of it is left.
        gone: erased meanwhile, or replaced.
        damaged: the record can't be read, and why.
        events: interactions the states were moved on by.
    """

    written: int = 0
    current: int = 0
    short: int = 0
    unfit: int = 0
    truncated: int = 0
    gone: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    events: int = 0

    @property
    def users(self) -> int:
        counted = self.written + self.current + self.short + self.unfit + self.truncated
        return counted + self.gone + len(self.damaged)


class Warmer:
    """Writes the snapshots that a service with these settings would read, of a shard's users.

    The arithmetic is an engine's whose loops do not run.
    """

    def __init__(
        self,
        artefact: Artefact,
        log: EventLog,
        *,
        snapshot_every: int = 64,
        snapshot_ttl_s: int = 30 * 86_400,
        snapshot_precision: Precision = "float32",
        shard: Shard = ALL,
        kinds: KindRules | None = None,
    ) -> None:
        self.log, self.shard = log, shard
        self.snapshot_ttl_s = snapshot_ttl_s
        reduced = snapshot_precision != "float32"
        # An engine snapshots what it rebuilt from at least `snapshot_every` events. The interval
        # is a part of the state only where states are rounded at it.
        self.engine = Engine(
            artefact,
            log,
            pool_capacity=AT_ONCE * BATCH,
            snapshot_every=snapshot_every if reduced else 1,
            snapshot_precision=snapshot_precision,
            kinds=kinds,
        )
        self.result = WarmResult()

    async def count(self) -> int:
        """The users with a record, about."""
        return sum([len(page) async for page in self._users()])

    async def _users(self) -> AsyncIterator[list[str]]:
        async for page in self.log.users():
            yield [user for user in page if self.shard.holds(user)]

    async def run(self, progress: Callable[[int], None]) -> WarmResult:
        """Brings every user's snapshot to the newest version; tells `progress` of users done.

        Raises:
            StoreError: the store gave up; what is written stays.
        """
        slots = asyncio.Semaphore(AT_ONCE)
        with ThreadPoolExecutor(1, thread_name_prefix="warm") as thread:

            async def batch(users: list[str]) -> None:
                try:
                    await self._batch(users, thread)
                    progress(len(users))
                finally:
                    slots.release()

            try:
                async with asyncio.TaskGroup() as tasks:
                    async for page in self._users():
                        unique = list(dict.fromkeys(page))
                        for start in range(0, len(unique), BATCH):
                            await slots.acquire()
                            tasks.create_task(batch(unique[start : start + BATCH]))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return self.result

    async def _batch(self, users: list[str], thread: ThreadPoolExecutor) -> None:
        identity = self.engine.identity
        replies = await self.log.exchange([LogRequest(user, None, (), identity) for user in users])
        ready: list[Fetched] = []
        long: list[Fetched] = []
        for user, reply in zip(users, replies, strict=True):
            if isinstance(reply, RecordDamaged):
                self.result.damaged.append((user, str(reply)))
            elif isinstance(reply, StoreError):
                raise reply
            elif reply.newest == ORIGIN:
                self.result.gone += 1
            else:
                history = whole(self.engine.snapshots.read(reply.snapshot), reply)
                (long if history is None else ready).append(
                    Fetched(user, reply=reply, history=history)
                )
        await self._compute(ready, thread)
        for start in range(0, len(long), LONG_BATCH):
            part = long[start : start + LONG_BATCH]
            sound = await asyncio.gather(*(self._resolve(fetched) for fetched in part))
            await self._compute([fetched for fetched in sound if fetched is not None], thread)

    async def _resolve(self, fetched: Fetched) -> Fetched | None:
        try:
            return await self.engine.history.resolve(fetched)
        except RecordDamaged as error:
            self.result.damaged.append((fetched.user_id, str(error)))
            return None

    async def _compute(self, batch: Sequence[Fetched], thread: ThreadPoolExecutor) -> None:
        lacking = []
        for fetched in batch:
            history = fetched.history
            assert history is not None
            begins = history.events[0].version if history.events else 1
            if history.base is None and begins > 1:
                self.result.truncated += 1
            elif len(history.events) >= self.engine.snapshots.every:
                lacking.append(fetched)
            elif history.base is not None:
                self.result.current += 1
            else:
                self.result.short += 1
        if not lacking:
            return
        loop = asyncio.get_running_loop()
        try:
            work = await loop.run_in_executor(thread, self.engine.runner.run, lacking)
        finally:
            for fetched in lacking:
                self.engine.pool.drop(fetched.user_id)
        self.result.events += work.stepped + work.prefilled
        packed = dict(work.snapshots)  # of several of a user, the newest
        self.result.unfit += len(lacking) - len(packed)
        marks = [snapshots.mark(data) for data in packed.values()]
        written = await SnapshotStore(self.log).write(
            self.engine.identity, list(packed.items()), self.snapshot_ttl_s, marks
        )
        self.result.written += written
        self.result.gone += len(packed) - written
