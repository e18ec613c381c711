"""Quality watched in production: an event's item is looked for in what its user would have been
given just before it (prequential evaluation)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.engine.effects import EventEffects
from service.engine.pool import Row
from service.store.event_log import LogReply
from service.store.events import Event, Verdict

logger = logging.getLogger(__name__)

K = 10
"""As many items are looked at as a request gets that names no number."""
NO_ROW = 0
LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class Judged:
    """An event's item.

    Attributes:
        known: whether the model was trained to score it.
        served, popular: its rank, from 1, in what the user would have been given, and in what is
            popular; None: not among the K best.
    """

    known: bool
    served: int | None
    popular: int | None


class QualitySampler:
    """Draws the events that are judged, and judges them.

    Args:
        share: of all events, 0 to 1.
        row_of: an item's row in the catalogue, in any thread.
    """

    def __init__(self, share: float, row_of: Callable[[str], int | None]) -> None:
        self._bound, self._row_of = round(share * 2**32), row_of
        self._silent_until = float("-inf")

    def draws(self, uid: bytes) -> bool:
        """Whether an event with this uid is in the sample: uids are drawn at random."""
        return int.from_bytes(uid[:4]) < self._bound

    def place(self, reply: LogReply, events: Sequence[Event], effects: EventEffects) -> int | None:
        """Where the first event of the sample stands among those that a row lacks: one that steps,
        and that the append which the reply answers has added as the user's newest."""
        applied = {o.version for o in reply.outcomes if o.verdict is Verdict.APPLIED}
        if not applied:
            return None
        for place, event in enumerate(events):
            if event.version in applied and self.draws(event.sent_uid) and effects.steps(event):
                return place
        return None

    def judged(
        self,
        chosen: Sequence[tuple[Row, Event]],
        effects: EventEffects,
        retrieval: Retrieval,
        rankings: Callable[[Sequence[tuple[Row, Ask]]], list[Ranking]],
    ) -> list[Judged]:
        """What is found of these events' items, without those that their users can't be given any
        more.

        Args:
            chosen: each with its user's row as of just before it.
            rankings: what users are given.
        """
        asked: list[tuple[Row, Ask]] = []
        sought: list[tuple[bool, int]] = []
        for row, event in chosen:
            had = retrieval.had(row.seen.array(), row.unknown)
            ask = Ask(K).of_user(
                had, row.hidden.array(), row.recent, event.time_ms, exclude_seen=True
            )
            item = self._row_of(event.item_id) or NO_ROW
            if item not in ask.hidden and event.item_id not in row.unknown:
                asked.append((row, ask))
                sought.append((NO_ROW < item <= retrieval.trained, item))
        return [
            Judged(known, _rank(given, item), _rank(retrieval.popular(ask), item))
            for (known, item), (_, ask), given in zip(sought, asked, rankings(asked), strict=True)
        ]

    def log_failure(self) -> None:
        """Logs the error that is being handled, once in a while."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + LOG_EVERY_S
            logger.exception("events of the quality sample are not judged")


def _rank(ranking: Ranking, item: int) -> int | None:
    items = ranking.items.tolist()
    return items.index(item) + 1 if item in items else None
