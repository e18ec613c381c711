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
from torch import Tensor

from model.recommender import Recommender
from service.engine.engine import Engine, Overloaded
from service.engine.wave import Recommendation
from service.observe import metrics, stages
from service.store.errors import HistoryChanged
from service.store.events import Event

PIECE = 512
"""Events of one parallel pass."""
CELLS = 8192
"""Histories at once are so many that they have so many events together, at most."""
WAITING = 16
"""More explanations than this are refused until one is done."""


@dataclass(frozen=True)
class Reason:
    """An interaction, and by how much it raised an item's score."""

    event: Event
    contribution: float


def left_out(
    model: Recommender, items_L: Tensor, times_L: Tensor, vectors_KD: Tensor, at_ms: int, most: int
) -> Tensor:
    """By how much each of the newest interactions raised each item's score.

    An interaction's part is the score after the whole history less the score after the history
    without it, both asked for at the same moment: the gaps around what is missing close, as if it
    had never been. A history of one interaction has its whole score from it.

    Args:
        items_L, times_L: the whole history, L at least 1.
        vectors_KD: of the items scored.
        most: interactions that are left out, each in a pass of its own.

    Returns:
        (min(L, most), K), oldest first.
    """
    length, device = len(items_L), items_L.device
    count = min(length, most)
    state, start = model.new_state(1), length - count
    for begin in range(0, start, PIECE):
        piece = slice(begin, min(begin + PIECE, start))
        lengths = torch.tensor([piece.stop - begin], device=device)
        state = model.prefill(items_L[None, piece], times_L[None, piece], lengths, state)
    place = torch.arange(count, device=device)
    # Row 0 keeps all; row i + 1 is without i, and its last place is no part of it.
    kept = place + (place >= place[:, None])
    rows = torch.cat([place[None], kept.clamp(max=count - 1)]) + start
    lengths = torch.full((count + 1,), count - 1, device=device)
    lengths[0] = count
    moments = torch.full((count + 1,), at_ms, device=device)
    found = []
    for part in torch.arange(count + 1, device=device).split(max(1, CELLS // count)):  # type: ignore[no-untyped-call]
        before = state.rows(torch.zeros_like(part))
        after = model.prefill(items_L[rows[part]], times_L[rows[part]], lengths[part], before)
        found.append(model.query(after, moments[part]) @ vectors_KD.T)
    scores = torch.cat(found)
    if length == 1:
        return scores[:1]
    return scores[0] - scores[1:]


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
        self, user_id: str, found: Recommendation, at_ms: int, most: int, *, exclude_seen: bool
    ) -> list[list[Reason]]:
        """For each item of a recommendation of the model, the interactions that changed its score
        most, the largest change first.

        Args:
            at_ms, exclude_seen: of the recommendation.
            most: reasons of one item.

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
            events = await self._history(user_id, found)
            started = time.perf_counter()
            latest, parts = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._contributions, events, found.ranking.items, at_ms, exclude_seen
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

    async def _history(self, user_id: str, found: Recommendation) -> list[Event]:
        """The interactions up to those which the recommendation is of."""
        events: list[Event] = []
        async for page in self.engine.log.events(user_id):
            events += page
            if events[-1].version >= found.mark.version:
                break
        while events and events[-1].version > found.mark.version:
            events.pop()
        if not events or events[-1].mark != found.mark:
            raise HistoryChanged(f"user {user_id!r}: the history changed meanwhile")
        return events

    @torch.inference_mode()
    def _contributions(
        self, events: Sequence[Event], rows: NDArray[np.int64], at_ms: int, exclude_seen: bool
    ) -> tuple[list[Event], NDArray[np.float32]]:
        """The newest interactions that moved the state, and their parts of each score."""
        computer = self.engine.computer
        events = [event for event in events if computer.moves(event)]
        known = np.array(computer.known(events), np.int64)
        items, times = torch.from_numpy(known).to(computer.model.device).T
        vectors = computer.retrieval.vectors(rows)
        found = left_out(computer.model, items, times, vectors, at_ms, self.most_events)
        parts: NDArray[np.float32] = found.float().cpu().numpy()
        if not exclude_seen:  # without its only interaction, an item is none that the user has had
            had, times_had = np.unique(items.cpu().numpy(), return_counts=True)
            once = np.isin(rows, had[times_had == 1])
            latest = items[-len(parts) :].cpu().numpy()
            parts += computer.retrieval.repeat_bias * ((latest[:, None] == rows) & once)
        return events[-len(parts) :], parts
