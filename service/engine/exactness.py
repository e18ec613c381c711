"""Exactness watched in production: now and then a resident state is recomputed from its log."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.state import State
from service.engine.engine import Engine
from service.engine.snapshots import Snapshot
from service.observe import metrics
from service.store.events import Event
from service.store.follower import Follower

logger = logging.getLogger(__name__)

LATEST = 100
"""The gauge is the largest difference of so many samples: it comes back after a repair."""

ROUNDED = 10
"""Times as much may differ where states are rounded to float16, one near an edge either way."""


@dataclass(frozen=True)
class Sample:
    """One comparison: the events recomputed, and the largest difference of any item's score
    (infinite where the seen, hidden or recent items or the number of known events differ)."""

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
        self.tolerance = tolerance * (ROUNDED if engine.snapshots.rounds else 1)
        self._latest: deque[float] = deque(maxlen=LATEST) if latest is None else latest

    def running(self) -> Follower:
        """Samples while its context is open, not in step with the other workers."""
        every_s = self.every_s * random.uniform(0.5, 1.5)
        failed = metrics.EXACTNESS_SAMPLES["skipped"].inc
        return Follower(self._sample, every_s, "exactness is not sampled", failed)

    async def _sample(self) -> None:
        users = self.engine.pool.users()
        if users:
            await self.check(random.choice(users))

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
        events = await self.engine.history.up_to(user_id, held.mark)
        # Shortened; erased or restored meanwhile.
        if not events or events[0].version != 1:
            metrics.EXACTNESS_SAMPLES["skipped"].inc()
            return None
        largest = await asyncio.to_thread(difference, self.engine, held, events)
        self._latest.append(largest)
        metrics.EXACTNESS_DIFFERENCE.set(max(self._latest))
        equal = largest <= self.tolerance
        metrics.EXACTNESS_SAMPLES["equal" if equal else "different"].inc()
        if not equal:
            self.engine.pool.drop(user_id)
            logger.error(
                "a state of %d events differs from its recomputation by %g in a score; "
                "its row is dropped",
                len(events),
                largest,
            )
        return Sample(len(events), largest)


@torch.inference_mode()
def difference(engine: Engine, held: Snapshot, events: Sequence[Event]) -> float:
    """The largest difference of any item's score between a state and its recomputation from the
    whole history up to it; infinite as in `Sample`."""
    runner = engine.runner
    model, effects = runner.model, runner.effects
    items = [item for item, _ in effects.known(events)]
    if len(items) != held.count or set(items) != set(held.seen.tolist()):
        return math.inf
    if set(effects.hidden(events)) != set(held.hidden.tolist()):
        return math.inf
    if effects.recent((), events) != held.recent:
        return math.inf
    if effects.unknown((), events) != held.unknown:
        return math.inf
    at = torch.tensor([events[-1].time_ms], device=model.device)
    there, here = (
        model.scores(model.query(state, at))[:, 1:]
        for state in (held.state, _recomputed(engine, events))
    )
    largest = float((there - here).abs().max())
    return largest if math.isfinite(largest) else math.inf


def _recomputed(engine: Engine, events: Sequence[Event]) -> State:
    """The state after `events`, the whole history, in parallel passes."""
    runner, kept = engine.runner, engine.snapshots
    state = runner.model.new_state(1)
    # Reduced snapshots round the state at their versions, on every worker.
    width = kept.every if kept.rounds else len(events)
    for start in range(0, len(events), width):
        part = events[start : start + width]
        state = runner.model.chunked_prefill([runner.effects.known(part)], state)
        at_border = kept.rounds and len(part) == width
        if at_border and bool(kept.layout.fits(state, kept.precision)):
            state = kept.layout.rounded(state, kept.precision)
    return state
