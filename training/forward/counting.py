"""What the counted policies share: pairs of items within histories, and the ranking by counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.compiled import compiled
from training.bootstrap import Float64s
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.walk import Bools
from training.metrics import MISS


@dataclass(frozen=True, slots=True)
class Pairs:
    """Where the count of a pair of items is kept, for all pairs that a log has: rows of a sparse
    matrix, whose values are counted as the events come.

    Row a is [starts[a], starts[a + 1]), the other items are in `columns`. entries: (N, K), or
    (N, 2 K) where both ways round count, the pairs of each event's item with the K items before
    it, newest first; -1 where the history is shorter.
    """

    starts: Int64s
    columns: Int64s
    entries: Int64s

    @classmethod
    def of(cls, events: Events, last: int, *, both_ways: bool = False) -> Pairs:
        wide, place = len(events.item_ids), np.arange(len(events.items))
        keys = []
        for distance in range(1, last + 1):
            later = events.items
            earlier = events.items[np.maximum(place - distance, 0)]
            inside = place - distance >= events.firsts
            keys.append(np.where(inside, earlier * wide + later, -1))
            if both_ways:
                keys.append(np.where(inside, later * wide + earlier, -1))
        distinct, entries = np.unique(np.stack(keys, axis=1), return_inverse=True)
        none = int(distinct[0] == -1)
        distinct = distinct[none:]
        starts = np.searchsorted(distinct, np.arange(wide + 1) * wide)
        entries = entries.reshape(len(place), len(keys)) - none
        return cls(starts.astype(np.int64), distinct % wide, entries.astype(np.int64))

    def new_counts(self) -> Float64s:
        """Zeros (E + 1); the last is for entry -1 and belongs to no pair."""
        return np.zeros(len(self.columns) + 1)


NO_PAIRS = Pairs(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.int64))


@dataclass(frozen=True, slots=True)
class Evidence:
    """The score of item j: base[j] + wanted[j] * sum over k of weights[k] * given[s_k] *
    counts[s_k, j], where s_1, s_2, ... are the user's last items, newest first.

    base, given, wanted: (V); known: (V), the items that can be recommended.
    """

    known: Bools
    base: Float64s
    weights: Float64s
    pairs: Pairs
    counts: Float64s
    given: Float64s
    wanted: Float64s

    def ranks(self, events: Events, rows: Int64s) -> Int64s:
        found: Int64s = _ranks(
            rows, events.items, events.firsts, self.known, self.base, self.weights,
            self.pairs.starts, self.pairs.columns, self.counts, self.given, self.wanted, MISS,
        )  # fmt: skip
        return found


@compiled
def _ranks(
    rows: Any, items: Any, firsts: Any, known: Any, base: Any, weights: Any, starts: Any,
    columns: Any, counts: Any, given: Any, wanted: Any, miss: int,
) -> Any:  # fmt: skip
    found = np.full(len(rows), miss, dtype=np.int64)
    score = np.empty_like(base)
    for i in range(len(rows)):
        row = rows[i]
        target, first = items[row], firsts[row]
        if not known[target]:
            continue
        score[:] = base
        for k in range(min(len(weights), row - first)):
            source = items[row - 1 - k]
            weight = weights[k] * given[source]
            for entry in range(starts[source], starts[source + 1]):
                other = columns[entry]
                score[other] += weight * counts[entry] * wanted[other]
        for seen in range(first, row):
            score[items[seen]] = -np.inf
        own = score[target]
        if own == -np.inf:
            continue
        rank = 0
        for other in range(len(score)):
            if known[other] and score[other] >= own:
                rank += 1
        found[i] = rank
    return found
