"""Why an item was recommended: what its score would be without one of the user's interactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.attribution import left_out
from service.engine.engine import Engine
from service.engine.requests import Overloaded, Recommendation
from service.observe import metrics, stages
from service.store.errors import HistoryChanged
from service.store.events import Event

WAITING = 16
"""More explanations than this are refused until one is done."""


@dataclass(frozen=True)
class Reason:
    """An interaction, and by how much it raised an item's score."""

    event: Event
    contribution: float


class Explainer:
    """Explains an engine's recommendations, one at a time in a thread of its own.

    Args:
        most_events: newest interactions of a user that are considered.
    """

    def __init__(self, engine: Engine, *, most_events: int) -> None:
        self.engine, self.most_events = engine, most_events
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._waiting = 0

    def close(self) -> None:
        self._thread.shutdown()

    async def explain(
        self, user_id: str, found: Recommendation, most: int, *, exclude_seen: bool
    ) -> list[list[Reason]]:
        """For each item of a recommendation of the model, the interactions that changed its score
        most, the largest change first.

        Args:
            most: reasons of one item.
            exclude_seen: of the recommendation.

        Raises:
            HistoryChanged: the history is no longer the one that the recommendation is of.
            Overloaded: too many wait already.
            StoreError: the log can't be read.
        """
        if self._waiting >= WAITING:
            metrics.REFUSED["explanations"].inc()
            raise Overloaded("too many explanations wait")
        self._waiting += 1
        try:
            events = await self.engine.history.up_to(user_id, found.mark)
            if not events:
                raise HistoryChanged(f"user {user_id!r}: the history changed meanwhile")
            started = time.perf_counter()
            latest, parts = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._contributions, events, found, exclude_seen
            )
            timeline = stages.current.get()
            if timeline is not None:
                timeline.add(stages.EXPLAIN, started, time.perf_counter())
        finally:
            self._waiting -= 1
        order = np.argsort(-np.abs(parts), axis=0, kind="stable")[:most]
        return [
            [Reason(latest[i], float(parts[i, place])) for i in order[:, place]]
            for place in range(parts.shape[1])
        ]

    @torch.inference_mode()
    def _contributions(
        self, events: Sequence[Event], answer: Recommendation, exclude_seen: bool
    ) -> tuple[list[Event], NDArray[np.float32]]:
        """The newest interactions that moved the state, and their parts of each score."""
        runner, rows = self.engine.runner, answer.ranking.items
        events = [event for event in events if runner.effects.moves(event)]
        known = np.array(runner.effects.known(events), np.int64)
        items, times = torch.from_numpy(known).to(runner.model.device).T
        vectors = runner.retrieval.vectors(rows)
        found = left_out(runner.model, items, times, vectors, answer.at_ms, self.most_events)
        parts: NDArray[np.float32] = found.float().cpu().numpy()
        if not exclude_seen:  # without its only interaction, an item is none that the user has had
            had, times_had = np.unique(items.cpu().numpy(), return_counts=True)
            once = np.isin(rows, had[times_had == 1])
            latest = items[-len(parts) :].cpu().numpy()
            parts += runner.retrieval.repeat_bias * ((latest[:, None] == rows) & once)
        return events[-len(parts) :], parts
