"""A log walked forward in time: each later event's item is ranked given everything before it.

The log is cut where a share of its interactions lies before; what comes later is divided into
periods of equally many events. An item is ranked among the whole catalogue as a policy knows it,
without what the user has had: a target that the user has had is a miss, and so is one that the
policy does not know. Ties count against the policy.

A user's own history is followed event by event, equal times in the order of the log. What all users
did is counted after each moment (or day): its events are all ranked before any of them is counted.

Names: N events, V items, T events to be ranked, P periods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training.dataset import Int64s, k_core
from training.forward.events import Events
from training.tables import InputError

Bools = npt.NDArray[np.bool_]

DAY_MS = 86_400_000
PAUSE_MS = 30 * 60_000
"""A visit begins after a pause of this length."""

CORE = 5


class Policy(Protocol):
    """What ranks items, and learns from all users' events as they come."""

    def observe(self, rows: Int64s) -> None:
        """Counts events, in order of time: rows of the `Events` that it was made for."""

    def ranks(self, rows: Int64s) -> Int64s:
        """The rank of each event's item, given what was observed and the user's own history."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The events to be ranked.

    order: (N) all rows by time, equal times in the order of the log; borders: (P) ms, where the
    periods begin; rows: (T) those from the first border on, in that order; periods: (T).
    """

    events: Events
    order: Int64s
    borders: Int64s
    rows: Int64s
    periods: Int64s

    @classmethod
    def of(cls, events: Events, cut: float = 0.7, periods: int = 6) -> Walk:
        """Cut where the share `cut` of the events lies before. Raises InputError where a part has
        no event."""
        if not 0 < cut < 1 or periods < 1:
            raise InputError(f"the cut must be in 0..1 and periods at least 1: {cut}, {periods}")
        order = np.argsort(events.times, kind="stable")
        shares = cut + (1 - cut) * np.arange(periods) / periods
        borders = events.times[order][(len(order) * shares + 1e-6).astype(np.int64)]
        rows = order[np.searchsorted(events.times[order], borders[0]) :]
        found = np.searchsorted(borders, events.times[rows], side="right") - 1
        if len(rows) == len(order) or len(np.unique(found)) < periods:
            raise InputError(f"too few moments for a cut at {cut} and {periods} periods")
        return cls(events, order, borders, rows, found)

    def slices(self) -> dict[str, Bools]:
        """Parts of the events to be ranked, by name: (T) each.

        Those of items are disjoint: the items of the `CORE`-core of what lies before the cut, which
        a model trained there knows by default, others that had an event before it, and the rest.
        """
        events, rows = self.events, self.rows
        before = np.sort(self.order[: -len(rows)])
        users, items = events.users[before], events.items[before]
        core = np.isin(events.items[rows], items[k_core(users, items, CORE, CORE)])
        new = ~np.isin(events.items[rows], items)
        has_history = rows > events.firsts[rows]
        pause = events.times[rows] - events.times[np.maximum(rows - 1, 0)]
        return {
            "all events": np.ones(len(rows), dtype=np.bool_),
            f"items of the {CORE}-core at the cut": core,
            "rarer items at the cut": ~core & ~new,
            "items new at the cut": new,
            "users without history": ~has_history,
            "first of a visit": has_history & (pause >= PAUSE_MS),
        }

    def blocks(self, grain_ms: int) -> Iterator[slice]:
        """Slices of `rows` that are ranked together, then counted."""
        times = self.events.times[self.rows] // grain_ms
        ends = [*(np.flatnonzero(np.diff(times)) + 1).tolist(), len(times)]
        begin = 0
        for end in ends:
            yield slice(begin, end)
            begin = end


def walk_forward(
    walk: Walk, policies: Mapping[str, Policy], *, grain_ms: int = 1
) -> dict[str, Int64s]:
    """The ranks (T) by each policy, `training.metrics.MISS` for a miss.

    Args:
        grain_ms: events of one such span of time are ranked before any of them is counted.
    """
    found = {name: np.zeros(len(walk.rows), dtype=np.int64) for name in policies}
    for policy in policies.values():
        policy.observe(walk.order[: -len(walk.rows)])
    for block in walk.blocks(grain_ms):
        rows = walk.rows[block]
        for name, policy in policies.items():
            found[name][block] = policy.ranks(rows)
            policy.observe(rows)
    return found
