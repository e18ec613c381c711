"""Why an item was recommended: what its score would be without one of the user's interactions, and
without what has happened since the training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attribution import left_out
from model.live.ranker import LivePart
from service.engine.engine import Engine
from service.engine.requests import Overloaded, Recommendation
from service.observe import metrics, stages
from service.store.errors import HistoryChanged
from service.store.events import Event

WAITING = 16
"""More explanations than this are refused until one is done."""


@dataclass(frozen=True)
class Reason:
    """An interaction, and by how much it raised the model's score of an item."""

    event: Event
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Of one item. live: None: what has happened since the training did not count, or it can't be
    said any more."""

    reasons: list[Reason]
    live: LivePart | None


@dataclass(frozen=True, eq=False)
class _Contributions:
    """The newest interactions that moved the state (L), their parts of each item's score (L, K),
    and the query (1, D) after all of them."""

    events: list[Event]
    parts: NDArray[np.float32]
    query: Tensor


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
        self,
        whose: str | Sequence[Event],
        found: Recommendation,
        most: int,
        *,
        exclude_seen: bool,
    ) -> list[Explanation]:
        """Of each item of a recommendation that is more than what is popular: the interactions that
        changed the model's score most, the largest change first; none where the model knows nothing
        of the user.

        Args:
            whose: the user's id, or the events of a session.
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
            return await self._explained(whose, found, most, exclude_seen)
        finally:
            self._waiting -= 1

    async def _explained(
        self, whose: str | Sequence[Event], found: Recommendation, most: int, exclude_seen: bool
    ) -> list[Explanation]:
        rows, contributed = found.ranking.items, None
        events: Sequence[Event] = []
        if found.source == "model":
            events = await self._history(whose, found)
        started = time.perf_counter()
        if events:
            contributed = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._contributions, events, found, exclude_seen
            )
        live: dict[int, LivePart] = {}
        if found.ranking.live:
            query = None if contributed is None else contributed.query
            parts_of = self.engine.runner.retrieval.live_parts
            live = await self.engine.scheduler.aside(parts_of, query, found.ask, rows)
        timeline = stages.current.get()
        if timeline is not None:
            timeline.add(stages.EXPLAIN, started, time.perf_counter())
        return [
            Explanation(
                [] if contributed is None else _largest(contributed, k, most), live.get(row)
            )
            for k, row in enumerate(rows.tolist())
        ]

    async def _history(
        self, whose: str | Sequence[Event], found: Recommendation
    ) -> Sequence[Event]:
        if not isinstance(whose, str):
            return whose
        events = await self.engine.history.up_to(whose, found.mark)
        if not events:
            raise HistoryChanged(f"user {whose!r}: the history changed meanwhile")
        return events

    @torch.inference_mode()
    def _contributions(
        self, events: Sequence[Event], answer: Recommendation, exclude_seen: bool
    ) -> _Contributions:
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
        history = list(zip(*known.T.tolist(), strict=True))
        state = runner.model.chunked_prefill([history], runner.model.new_state(1))
        moment = torch.tensor([answer.at_ms], device=runner.model.device)
        return _Contributions(events[-len(parts) :], parts, runner.model.query(state, moment))


def _largest(contributed: _Contributions, item: int, most: int) -> list[Reason]:
    """Of an item, by its place, the reasons that changed its score most."""
    parts = contributed.parts[:, item]
    order = np.argsort(-np.abs(parts), kind="stable")[:most]
    return [Reason(contributed.events[i], float(parts[i])) for i in order]
