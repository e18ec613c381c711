"""Transitions: what came soon after the user's last item, counted as events come."""

from __future__ import annotations

import numpy as np

from training.dataset import Int64s
from training.forward.counting import Evidence, Pairs
from training.forward.events import Events
from training.forward.popularity import Popularity

LAST = 5
TIE = 1e-6
"""The most that popularity adds to a score: it decides where the counts say the same."""


class Transitions:
    """An item that came k places after another adds 1 / k to their count, up to `LAST` places."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._popularity = Popularity(events)
        self._pairs = Pairs.of(events, LAST)
        self._counts = self._pairs.new_counts()
        self._n = np.zeros(len(events.item_ids))

    def observe(self, rows: Int64s) -> None:
        self._popularity.observe(rows)
        np.add.at(self._n, self._events.items[rows], 1)
        entries = self._pairs.entries[rows]
        weights = np.broadcast_to(1 / np.arange(1, LAST + 1), entries.shape)
        np.add.at(self._counts, entries.ravel(), weights.ravel())

    def ranks(self, rows: Int64s) -> Int64s:
        popularity = self._popularity
        evidence = Evidence(
            popularity.known,
            TIE * popularity.shares,
            np.ones(1),
            self._pairs,
            self._counts,
            1 / (self._n + 1),
            np.ones(len(self._n)),
        )
        return evidence.ranks(self._events, rows)
