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

    order: (N) all rows by time, equal times in the order of the log; begin: the place in it from
    which on events are ranked; borders: (P) ms, where the periods begin; rows: (T) those that are
    ranked, in that order, others are only counted; periods: (T).
    """

    events: Events
    order: Int64s
    begin: int
    borders: Int64s
    rows: Int64s
    periods: Int64s

    @classmethod
    def of(cls, events: Events, cut: float = 0.7, periods: int = 6) -> Walk:
        """Cut where the share `cut` of the events lies before, and all later ones ranked.

        Raises InputError where a part has no event.
        """
        if not 0 < cut < 1 or periods < 1:
            raise InputError(f"the cut must be in 0..1 and periods at least 1: {cut}, {periods}")
        order = np.argsort(events.times, kind="stable")
        shares = cut + (1 - cut) * np.arange(periods) / periods
        borders = events.times[order][(len(order) * shares + 1e-6).astype(np.int64)]
        begin = int(np.searchsorted(events.times[order], borders[0]))
        rows = order[begin:]
        found = np.searchsorted(borders, events.times[rows], side="right") - 1
        if len(rows) == len(order) or len(np.unique(found)) < periods:
            raise InputError(f"too few moments for a cut at {cut} and {periods} periods")
        return cls(events, order, begin, borders, rows, found)

    @classmethod
    def since(cls, events: Events, since_ms: int, most: int) -> Walk:
        """What came from a moment on, or `most` events drawn from that, always the same."""
        order = np.argsort(events.times, kind="stable")
        begin = int(np.searchsorted(events.times[order], since_ms))
        rows = order[begin:]
        if len(rows) > most:
            drawn = np.random.default_rng(0).choice(len(rows), most, replace=False)
            rows = rows[np.sort(drawn)]
        return cls(events, order, begin, np.array([since_ms]), rows, np.zeros_like(rows))

    @property
    def before(self) -> Int64s:
        """Rows of what came before the first border, by time."""
        return self.order[: self.begin]

    def slices(self) -> dict[str, Bools]:
        """Parts of the events to be ranked, by name: (T) each.

        Those of items are disjoint: the items of the `CORE`-core of what lies before the cut, which
        a model trained there knows by default, others that had an event before it, and the rest.
        Of the rest, items never seen before had no event before this moment.
        """
        events, rows = self.events, self.rows
        before = np.sort(self.before)
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
            "items never seen before": events.times[rows] == self._first_times[events.items[rows]],
            "users without history": ~has_history,
            "first of a visit": has_history & (pause >= PAUSE_MS),
        }

    @property
    def _first_times(self) -> Int64s:
        """(V) ms, of each item's first event."""
        events = self.events
        found = np.full(len(events.item_ids), np.iinfo(np.int64).max)
        np.minimum.at(found, events.items, events.times)
        return found

    def blocks(self, grain_ms: int) -> Iterator[tuple[Int64s, slice]]:
        """The events from the first border on that are counted together: rows of the log, and which
        of `self.rows` are among them, to be ranked before."""
        later = self.order[self.begin :]
        is_ranked = np.zeros(len(self.order), dtype=np.bool_)
        is_ranked[self.rows] = True
        ranked = np.concatenate([[0], np.cumsum(is_ranked[later])])
        times = self.events.times[later] // grain_ms
        begin = 0
        for end in (*(np.flatnonzero(np.diff(times)) + 1).tolist(), len(times)):
            yield later[begin:end], slice(int(ranked[begin]), int(ranked[end]))
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
        policy.observe(walk.before)
    for rows, ranked in walk.blocks(grain_ms):
        for name, policy in policies.items():
            if ranked.start < ranked.stop:
                found[name][ranked] = policy.ranks(walk.rows[ranked])
            policy.observe(rows)
    return found
