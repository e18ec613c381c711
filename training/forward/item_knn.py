"""Item-kNN: what is often had together with the user's last items, counted as events come."""

from __future__ import annotations

import numpy as np

from training.bootstrap import Float64s
from training.dataset import Int64s
from training.forward.counting import Evidence, Pairs
from training.forward.events import Events
from training.forward.popularity import Popularity
from training.forward.transitions import TIE

LAST = 20
DECAY = 0.8
"""The weight of an item of the history against that of the next newer one."""

SHRINKAGE = 3


class ItemKNN:
    """Cosine similarity of items, shrunk, from pairs at most `LAST` places apart in a history."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._popularity = Popularity(events)
        self._pairs = Pairs.of(events, LAST, both_ways=True)
        self._counts = self._pairs.new_counts()
        self._n = np.zeros(len(events.item_ids))

    def observe(self, rows: Int64s) -> None:
        self._popularity.observe(rows)
        np.add.at(self._n, self._events.items[rows], 1)
        np.add.at(self._counts, self._pairs.entries[rows].ravel(), 1)

    @property
    def evidence(self) -> Evidence:
        """What has been counted."""
        popularity = self._popularity
        norm: Float64s = 1 / np.sqrt(self._n + SHRINKAGE)
        return Evidence(
            popularity.known,
            TIE * popularity.shares,
            DECAY ** np.arange(LAST, dtype=np.float64),
            self._pairs,
            self._counts,
            norm,
            norm,
        )

    def ranks(self, rows: Int64s) -> Int64s:
        return self.evidence.ranks(self._events, rows)
