"""Exactness watched in production: now and then a resident state is recomputed from its log."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import torch

from model.state import State
from service.engine.engine import Engine
from service.engine.snapshots import Snapshot
from service.observe import metrics
from service.store.errors import StoreError
from service.store.events import Event

logger = logging.getLogger(__name__)

LATEST = 100
"""The gauge is the largest difference of so many samples: it comes back after a repair."""

ROUNDED = 10
"""Times as much may differ where states are rounded to float16, one near an edge either way."""

PIECE = 512
"""Events of one parallel pass."""


@dataclass(frozen=True)
class Sample:
    """One comparison: the events recomputed, and the largest difference of any item's score
    (infinite where the seen or hidden items or the number of known events differ)."""

    events: int
    difference: float


class ExactnessSampler:
    """Recomputes random resident users of an engine, one about every `every_s` seconds.

    Args:
        max_events: users with more events are left out.
        tolerance: a larger difference of scores is logged as an error, and the row dropped; ten
            times that with float16 snapshots.
        latest: the differences found last, where several samplers keep them together.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        every_s: float,
        max_events: int,
        tolerance: float,
        latest: deque[float] | None = None,
    ) -> None:
        self.engine = engine
        self.every_s, self.max_events = every_s, max_events
        self.tolerance = tolerance * (ROUNDED if engine.computer.rounds_states else 1)
        self._latest: deque[float] = deque(maxlen=LATEST) if latest is None else latest

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Samples meanwhile."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            # Not in step with the other workers.
            await asyncio.sleep(self.every_s * random.uniform(0.5, 1.5))
            users = self.engine.pool.users()
            if not users:
                continue
            try:
                await self.check(random.choice(users))
            except StoreError as error:
                metrics.EXACTNESS_SAMPLES["skipped"].inc()
                logger.debug("exactness not sampled: %s", error)
            except Exception:
                metrics.EXACTNESS_SAMPLES["skipped"].inc()
                logger.exception("exactness not sampled")

    async def check(self, user_id: str) -> Sample | None:
        """Compares a user's resident state with its recomputation; None when there is nothing
        to compare: no row, no known event, too many events, the record has lost its beginning or
        is another by now.

        Raises:
            StoreError: the log can't be read.
        """
        held = await self.engine.resident(user_id)
        if held is None or not held.count or held.mark.version > self.max_events:
            metrics.EXACTNESS_SAMPLES["skipped"].inc()
            return None
        events: list[Event] = []
        async for page in self.engine.log.events(user_id):
            events += page
            if len(events) >= held.mark.version:
                break
        del events[held.mark.version :]
        # Shortened; erased or restored meanwhile.
        if not events or events[0].version != 1 or events[-1].mark != held.mark:
            metrics.EXACTNESS_SAMPLES["skipped"].inc()
            return None
        difference = await asyncio.to_thread(self._difference, held, events)
        self._latest.append(difference)
        metrics.EXACTNESS_DIFFERENCE.set(max(self._latest))
        equal = difference <= self.tolerance
        metrics.EXACTNESS_SAMPLES["equal" if equal else "different"].inc()
        if not equal:
            self.engine.pool.drop(user_id)
            logger.error(
                "a state of %d events differs from its recomputation by %g in a score; "
                "its row is dropped",
                len(events),
                difference,
            )
        return Sample(len(events), difference)

    @torch.inference_mode()
    def _difference(self, held: Snapshot, events: Sequence[Event]) -> float:
        computer = self.engine.computer
        model, items = computer.model, [item for item, _ in computer.known(events)]
        if len(items) != held.count or set(items) != set(held.seen.tolist()):
            return math.inf
        if set(computer.hidden(events)) != set(held.hidden.tolist()):
            return math.inf
        at = torch.tensor([events[-1].time_ms], device=model.device)
        there, here = (
            model.scores(model.query(state, at))[:, 1:]
            for state in (held.state, self._recomputed(events))
        )
        difference = float((there - here).abs().max())
        return difference if math.isfinite(difference) else math.inf

    def _recomputed(self, events: Sequence[Event]) -> State:
        """The state after `events`, the whole history, in parallel passes."""
        computer, layout = self.engine.computer, self.engine.pool.layout
        model = computer.model
        state = model.new_state(1)
        # Reduced snapshots round the state at their versions, on every worker.
        piece = computer.snapshot_every if computer.rounds_states else PIECE
        for start in range(0, len(events), piece):
            part = events[start : start + piece]
            known = computer.known(part)
            if known:
                items, times = torch.from_numpy(np.array(known, np.int64)).to(model.device).T
                lengths = torch.tensor([len(known)], device=model.device)
                state = model.prefill(items[None], times[None], lengths, state)
            at_border = computer.rounds_states and len(part) == piece
            if at_border and bool(layout.fits(state, computer.precision)):
                state = layout.rounded(state, computer.precision)
        return state
