"""How an event is counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.compiled import compiled, part

RECENT = 10
"""K: beside so many items before it an event is counted, and by so many a request is answered."""
POPULAR = 30
"""P, how many of the most popular items are kept in order."""
DAY_MS = 86_400_000.0
HALF_LIVES_MS = np.array([1.0, 7.0, 30.0, 180.0]) * DAY_MS
"""(H) of an event's part in the popularity of its item."""
TOTAL, FIRST_MS, POPULARITY, CHANGES, N_STATS = 0, 1, 2, 6, 8
"""Columns of `Counts.stats`, a cache line an item; those of popularity are H."""
PAIRS_HALF_LIFE_MS = 180 * DAY_MS
VISIT_MS = 30 * 60_000
FOLLOWS = 5
"""An item follows those of so many places before it, by the inverse of the distance."""


@part
def _decay(item: int, now: int, half_life: float, counts: Any) -> float:
    """Brings an item's row to `now`; what an event of that time adds to it: less where the row is
    ahead of it."""
    ahead = counts.touched[item] - now
    if ahead > 0:
        return float(2.0 ** (-ahead / half_life))
    if ahead < 0:
        factor = np.float32(2.0 ** (ahead / half_life))
        for m in range(counts.together.shape[1]):
            counts.together[item, m] *= factor
            counts.after[item, m] *= factor
            counts.visit[item, m] *= factor
        counts.touched[item] = now
    return 1.0


@part
def _add(item: int, other: int, together: float, after: float, visit: float, counts: Any) -> None:
    """Adds to a neighbour, in the place of the weakest one where there is no room."""
    weakest, place = np.inf, 0
    for m in range(counts.neighbours.shape[1]):
        neighbour = counts.neighbours[item, m]
        if neighbour == other:
            counts.together[item, m] += together
            counts.after[item, m] += after
            counts.visit[item, m] += visit
            return
        if neighbour < 0:
            place = m
            break
        if counts.together[item, m] < weakest:
            weakest, place = counts.together[item, m], m
    counts.neighbours[item, place] = other
    counts.together[item, place] = together
    counts.after[item, place] = after
    counts.visit[item, place] = visit


@part
def _rank(item: int, stats: Any, column: int, popular: Any) -> None:
    """Moves an item up among the most popular ones: all others only fall against it."""
    size = len(popular)
    place = size
    for p in range(size):
        if popular[p] == item or popular[p] < 0:
            place = p
            break
    if place == size:
        if stats[item, column] <= stats[popular[size - 1], column]:
            return
        place = size - 1
    popular[place] = item
    while place > 0 and stats[popular[place - 1], column] < stats[item, column]:
        popular[place] = popular[place - 1]
        popular[place - 1] = item
        place -= 1


@compiled
def observe(
    items: Any, slots: Any, times: Any, weights: Any, counts: Any, recent: Any, popular: Any,
    half_lives: Any, half_life: float, follows: int, visit_ms: int,
) -> None:  # fmt: skip
    """Counts events, in their order.

    Args:
        items, slots, times, weights: (N) numbers of items, places of users in `recent`, ms.
        counts, recent: `Counts` and `Recent` of model.live.evidence.
        popular: (2, P) items by the first and the last half-life.
        half_lives: (H) ms, of popularity; half_life: of pairs; follows, visit_ms: as above.
    """
    wide = recent.items.shape[1]
    for event in range(len(items)):
        item, slot, now, weight = items[event], slots[event], times[event], weights[event]
        stats = counts.stats[item]
        if stats[TOTAL] == 0 or now < stats[FIRST_MS]:
            stats[FIRST_MS] = now
        stats[TOTAL] += weight
        stats[CHANGES] += 1
        for h in range(len(half_lives)):
            # log2 of a sum: larger + log2(1 + 2^(smaller - larger))
            old, new = stats[POPULARITY + h], np.log2(np.float64(weight)) + now / half_lives[h]
            high, low = max(old, new), min(old, new)
            stats[POPULARITY + h] = high + np.log2(1 + 2.0 ** (low - high))
        _rank(item, counts.stats, POPULARITY, popular[0])
        _rank(item, counts.stats, POPULARITY + len(half_lives) - 1, popular[1])
        part_of_item = weight * _decay(item, now, half_life, counts)
        have = min(recent.total[slot], wide)
        for back in range(have):
            place = (recent.total[slot] - 1 - back) % wide
            other = recent.items[slot, place]
            if other == item:
                continue
            after = 1.0 / (back + 1) if back < follows else 0.0
            visit = 1.0 if abs(now - recent.times[slot, place]) <= visit_ms else 0.0
            own = weight * _decay(other, now, half_life, counts)
            _add(other, item, own, own * after, own * visit, counts)
            counts.stats[other, CHANGES] += 1
            _add(item, other, part_of_item, 0.0, part_of_item * visit, counts)
        place = recent.total[slot] % wide
        recent.items[slot, place] = item
        recent.times[slot, place] = now
        recent.total[slot] += 1
