"""Recent popularity, counted as events come."""

from __future__ import annotations

import numpy as np

from training.bootstrap import Float64s
from training.dataset import Int64s
from training.forward.counting import NO_PAIRS, Evidence
from training.forward.events import Events
from training.forward.walk import DAY_MS, Bools


class Popularity:
    """How often each item was had, an event's weight halved every `half_life_days`."""

    def __init__(self, events: Events, half_life_days: float = 30) -> None:
        self._events = events
        # All weights decay alike, so newer ones grow instead: from the log's beginning on.
        ages = (events.times - events.times.min()) / (half_life_days * DAY_MS)
        self._weights = np.exp2(ages)
        self._mass = np.zeros(len(events.item_ids))

    @property
    def known(self) -> Bools:
        """Items that had an event: (V)."""
        return self._mass > 0

    @property
    def shares(self) -> Float64s:
        """Popularity (V), 1 that of the most popular item."""
        shares: Float64s = self._mass / max(self._mass.max(), 1.0)
        return shares

    def observe(self, rows: Int64s) -> None:
        np.add.at(self._mass, self._events.items[rows], self._weights[rows])

    @property
    def evidence(self) -> Evidence:
        """What has been counted."""
        none = np.zeros(0)
        return Evidence(self.known, self.shares, none, NO_PAIRS, none, none, none)

    def ranks(self, rows: Int64s) -> Int64s:
        return self.evidence.ranks(self._events, rows)
