"""A candidate beside the model that is served: both walk forward over the same newest events.

Neither may have been trained on them. Each event's item is ranked given all that came before, as a
service would have answered a second after the user's last interaction: without what the user has
had, by the model's own mixture and the live layer, which counts every event; without a mixture by
the model alone, and by recent popularity for users of whom it knows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.artefact import Artefact
from model.live.mixture import Mixture
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.item_knn import ItemKNN
from training.forward.live_walk import LiveWalk, ModelLists
from training.forward.models import AFTER, Served, ranks_at, request_times, with_fallback
from training.forward.popularity import Popularity
from training.forward.walk import Policy, Walk, walk_forward
from training.interactions import Log
from training.mixture import user_ids
from training.verdict import CANDIDATE, INCUMBENT, MARGIN, Judgement, decide, too_few

MOST_EVENTS = 50_000
"""Of more events so many are ranked, drawn at random; all are counted."""
POPULARITY, ITEM_KNN = "popularity", "item-knn"


@dataclass(frozen=True, slots=True)
class Contender:
    """What is served. mixture: None without the live layer."""

    served: Served
    mixture: Mixture | None

    @classmethod
    def of(cls, artefact: Artefact) -> Contender:
        return cls(Served(artefact.model, artefact.scored_items.ids), artefact.mixture)


def judge(
    log: Log, incumbent: Contender, candidate: Contender, after_ms: int, *, margin: float = MARGIN
) -> Judgement:
    """Ranks what came after that moment, which neither was trained on.

    Raises InputError where a time is not known, or a model is of the time path `sequence`.
    """
    events = Events.of(log)
    walk = Walk.since(events, after_ms + 1, MOST_EVENTS)
    users = events.users[walk.rows]
    if too_few(users):
        return decide(users, {}, margin)
    contenders = {INCUMBENT: incumbent, CANDIDATE: candidate}
    policies: dict[str, Policy] = {
        name: _Live(walk, user_ids(log), own.served, own.mixture)
        for name, own in contenders.items()
        if own.mixture is not None
    }
    counted: dict[str, Policy] = {POPULARITY: Popularity(events), ITEM_KNN: ItemKNN(events)}
    ranks = walk_forward(walk, policies | counted)
    times = request_times(events, walk.rows)[AFTER]
    for name, own in contenders.items():
        if own.mixture is None:
            alone = {name: ranks_at(events, walk.rows, own.served, times)}
            ranks |= with_fallback(alone, ranks[POPULARITY])
    return decide(users, ranks, margin)


class _Live:
    """A policy: a model, the live layer and a mixture."""

    def __init__(self, walk: Walk, user_ids: list[str], served: Served, mixture: Mixture) -> None:
        events, rows = walk.events, walk.rows
        times = request_times(events, rows)[AFTER]
        self._live = LiveWalk(events, user_ids, served.model, served.item_ids, mixture)
        self._lists = ModelLists.of(events, rows, served.model, served.item_ids, times)
        self._places = np.zeros(len(events.items), np.int64)
        self._places[rows] = np.arange(len(rows))

    def observe(self, rows: Int64s) -> None:
        self._live.observe(rows)

    def ranks(self, rows: Int64s) -> Int64s:
        begin = int(self._places[rows[0]])  # they follow one another in the walk
        return self._live.ranks(rows, self._lists.part(slice(begin, begin + len(rows))))
