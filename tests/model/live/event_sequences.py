"""Event sequences, and what they come to, counted in plain Python."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from model.live.evidence import EvidenceRules, Observed

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
HALF_LIFE_MS = 180 * DAY_MS
POPULARITY_HALF_LIVES_MS = [days * DAY_MS for days in (1, 7, 30, 180)]

STEPS_MS = [0, 60_000, 29 * 60_000, 31 * 60_000, DAY_MS, 30 * DAY_MS, -DAY_MS, -31 * 60_000]


@st.composite
def event_sequences(
    draw: st.DrawFn, *, users: int = 4, items: int = 6, longest: int = 60
) -> list[Observed]:
    """Times go on, stand still and go back; users come back to items."""
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(0, users - 1),
                st.integers(0, items - 1),
                st.sampled_from(STEPS_MS),
                st.sampled_from([1.0, 1.0, 0.25, 3.0]),
            ),
            max_size=longest,
        )
    )
    now, events = START_MS, []
    for user, item, step, weight in steps:
        now += step
        events.append(Observed(user, f"i{item}", now, weight))
    return events


def random_events(rng: np.random.Generator, n: int, users: int, items: int) -> list[Observed]:
    """n events, some users and items more often than others."""
    numbers = (items * rng.random(n) ** 2).astype(int)
    own = (users * rng.random(n) ** 1.5).astype(int)
    times = START_MS + np.cumsum(rng.choice([0, 1000, 60_000, DAY_MS // 3], n))
    columns = zip(own.tolist(), numbers.tolist(), times.tolist(), strict=True)
    return [Observed(user, f"i{item}", time) for user, item, time in columns]


@dataclass
class Neighbour:
    """How often it was had beside an item, with the last decay and addition in float32."""

    item: str
    together: np.float32
    after: np.float32
    visit: np.float32

    def decay(self, factor: np.float32) -> None:
        self.together *= factor
        self.after *= factor
        self.visit *= factor


@dataclass
class Item:
    total: float = 0.0
    first_ms: int | None = None
    events: list[tuple[int, float]] = field(default_factory=list)
    touched_ms: int = 0
    neighbours: list[Neighbour] = field(default_factory=list)

    def popularity(self, half_life_ms: float) -> float:
        newest = max(time for time, _ in self.events)
        total = sum(weight * 2 ** ((time - newest) / half_life_ms) for time, weight in self.events)
        return float(newest / half_life_ms + np.log2(total))


class PlainEvidence:
    """The counts of events, one after the other."""

    def __init__(self, rules: EvidenceRules) -> None:
        self.rules = rules
        self.items: dict[str, Item] = {}
        self.users: OrderedDict[int, list[tuple[str, int]]] = OrderedDict()
        self.n_uncounted = 0

    def observe(self, event: Observed) -> None:
        if event.item_id not in self.items:
            if len(self.items) == self.rules.items:
                self.n_uncounted += 1
                return
            self.items[event.item_id] = Item()
        if event.user_key not in self.users and len(self.users) == self.rules.users:
            self.users.popitem(last=False)
        history = self.users.setdefault(event.user_key, [])
        self.users.move_to_end(event.user_key)
        item = self.items[event.item_id]
        item.total += event.weight
        item.events.append((event.time_ms, event.weight))
        item.first_ms = min(event.time_ms, *(time for time, _ in item.events))
        for back, (other, time) in enumerate(reversed(history[-10:]), 1):
            if other == event.item_id:
                continue
            visit = float(abs(event.time_ms - time) <= 30 * 60_000)
            after = 1 / back if back <= 5 else 0.0
            self._add(other, event.item_id, event, after, visit)
            self._add(event.item_id, other, event, 0.0, visit)
        self._decayed(item, event.time_ms)
        history.append((event.item_id, event.time_ms))

    def _decayed(self, item: Item, now_ms: int) -> float:
        """Brings the counts to that time; what an event of that time adds."""
        if now_ms <= item.touched_ms:
            return float(2.0 ** ((now_ms - item.touched_ms) / HALF_LIFE_MS))
        factor = np.float32(2.0 ** ((item.touched_ms - now_ms) / HALF_LIFE_MS))
        for neighbour in item.neighbours:
            neighbour.decay(factor)
        item.touched_ms = now_ms
        return 1.0

    def _add(self, of: str, other: str, event: Observed, after: float, visit: float) -> None:
        item = self.items[of]
        weight = event.weight * self._decayed(item, event.time_ms)
        added = [np.float32(weight * part) for part in (1.0, after, visit)]
        for neighbour in item.neighbours:
            if neighbour.item == other:
                neighbour.together += added[0]
                neighbour.after += added[1]
                neighbour.visit += added[2]
                return
        if len(item.neighbours) < self.rules.neighbours:
            item.neighbours.append(Neighbour(other, *added))
            return
        weakest = min(range(len(item.neighbours)), key=lambda n: item.neighbours[n].together)
        item.neighbours[weakest] = Neighbour(other, *added)

    def forget(self, user_key: int) -> None:
        self.users.pop(user_key, None)
