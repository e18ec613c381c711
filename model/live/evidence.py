"""What all users' events say of items: which follow which, what is popular, what is new.

Counts decay, and so what they rest on is bounded in time; they are kept for at most M neighbours an
item and for the last items of so many users, and so they are bounded in memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.kinds import HEAVIEST
from model.live import counting
from model.live.arrays import packed, unpacked
from model.live.counting import HALF_LIVES_MS, RECENT
from model.live.saved import require_readable
from model.times import EARLIEST_MS, LATEST_MS

FORMAT = 1
_SMALLEST = 64
LIGHTEST = 2.0**-126
"""An event that weighs less does not count: in float32 it would be nothing."""


class EvidenceError(ValueError):
    """Bytes that are not an evidence of these rules."""


@dataclass(frozen=True)
class EvidenceRules:
    """Bounds of memory: some 16 bytes for each of an item's neighbours.

    neighbours: M, the most an item has; users: whose last items are kept, those who have been
    away longest are forgotten; items: the most that are counted, those that come first.
    """

    neighbours: int = 64
    users: int = 200_000
    items: int = 500_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


class Observed(NamedTuple):
    """An accepted event. user_key: as `user_key` has it; time_ms: epoch milliseconds; weight: 1 is
    an ordinary one's."""

    user_key: int
    item_id: str
    time_ms: int
    weight: float = 1.0


def user_key(user_id: str) -> int:
    """64 bits that stand for a user."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class ItemUse(NamedTuple):
    """What has happened with an item.

    total: the weight of its events; first_ms: the time of the first. a_day: (H) events a day, an
    average in which each counts for 2^-(its age / half-life), by half-life.
    """

    total: float
    first_ms: int
    a_day: tuple[float, ...]


class Counts(NamedTuple):
    """The numbers, item i's in row i; rows beyond the last item are free.

    neighbours: (I, M), -1 after the last one; together, after, visit: (I, M), how often the
    neighbour was had near the item, how soon after it, and within one visit, decayed to `touched`
    (I) ms; stats: (I, S) the weight of all events, the time of the first in ms, popularity by each
    half-life: log2 of the sum of weight * 2^(time / half-life) over the events, which only grows
    (forward decay: Cormode and others, 2009), and how often the item's row has changed.
    """

    neighbours: npt.NDArray[np.int32]
    together: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]
    visit: npt.NDArray[np.float32]
    touched: npt.NDArray[np.int64]
    stats: npt.NDArray[np.float64]

    @classmethod
    def new(cls, size: int, neighbours: int) -> Counts:
        wide = (size, neighbours)
        stats = np.zeros((size, counting.N_STATS))
        stats[:, counting.POPULARITY : counting.POPULARITY + len(HALF_LIVES_MS)] = -np.inf
        return cls(
            np.full(wide, -1, np.int32),
            np.zeros(wide, np.float32),
            np.zeros(wide, np.float32),
            np.zeros(wide, np.float32),
            np.zeros(size, np.int64),
            stats,
        )

    def grown(self, size: int) -> Counts:
        """The same with room for more."""
        larger = Counts.new(size, self.neighbours.shape[1])
        _copy(self, larger)
        return larger


class Recent(NamedTuple):
    """The last items of users, a ring each.

    items, times: (U, K), ms; total: (U), how many events the ring has had, the next one's place
    being that modulo K.
    """

    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]

    @classmethod
    def new(cls, users: int) -> Recent:
        shape = (users, RECENT)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int64), np.zeros(users, np.int64))

    def grown(self, users: int) -> Recent:
        """The same with room for more."""
        larger = Recent.new(users)
        _copy(self, larger)
        return larger

    def clear(self, slot: int) -> None:
        """Leaves nothing of a user behind for the next one there."""
        self.items[slot], self.times[slot], self.total[slot] = 0, 0, 0


def _copy(source: Iterable[npt.NDArray[Any]], target: Iterable[npt.NDArray[Any]]) -> None:
    for old, new in zip(source, target, strict=True):
        new[: len(old)] = old


class Evidence:
    """A deterministic function of the events in their order, however they are cut into batches.

    Attributes:
        item_ids: of the items that are counted, in the order of their first event.
        n_events: how many were observed.
        n_uncounted: how many of them were not counted, as there was no room for their item.
        counts: as of the last of them; to be read under `lock`.
        newest_ms: the latest time of those that were counted, 0 before the first.
        popular: (2, P) the items most popular by the shortest and by the longest half-life, most
            first, -1 where there are fewer.
        lock: held while they change.
    """

    def __init__(self, rules: EvidenceRules = EvidenceRules()) -> None:
        self.rules = rules
        self.item_ids: list[str] = []
        self.n_events = self.n_uncounted = self.newest_ms = 0
        self.lock = threading.Lock()
        self.counts = Counts.new(min(rules.items, _SMALLEST), rules.neighbours)
        self.popular = np.full((2, counting.POPULAR), -1, np.int32)
        self._numbers: dict[str, int] = {}
        self._recent = Recent.new(min(rules.users, _SMALLEST))
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._free: list[int] = []

    def number(self, item_id: str) -> int | None:
        """The item's row in the counts."""
        return self._numbers.get(item_id)

    def numbers(self, item_ids: Sequence[str]) -> Iterator[int]:
        """The items' rows in the counts, -1 for one that is not counted."""
        return map(self._numbers.get, item_ids, repeat(-1))

    def use(self, item_id: str, at_ms: int) -> ItemUse | None:
        """What has happened with an item, as of a moment; None: it is not counted."""
        number = self._numbers.get(item_id)
        if number is None:
            return None
        with self.lock:
            stats = self.counts.stats[number].copy()
        sums = stats[counting.POPULARITY : counting.POPULARITY + len(HALF_LIVES_MS)]
        decayed = np.exp2(sums - at_ms / HALF_LIVES_MS)
        a_day = decayed * np.log(2) * counting.DAY_MS / HALF_LIVES_MS
        total, first_ms = float(stats[counting.TOTAL]), int(stats[counting.FIRST_MS])
        return ItemUse(total, first_ms, tuple(a_day.tolist()))

    def observe(self, events: Sequence[Observed]) -> None:
        """Counts events, in this order. A user's own come in the order of their times; one that
        comes late adds less, by as much as the counts have decayed since its time.

        Raises:
            ValueError: a time beyond the years 1 to 9999, or a weight that is not in
                LIGHTEST..HEAVIEST; nothing was counted.
        """
        for event in events:
            if not (
                EARLIEST_MS <= event.time_ms <= LATEST_MS and LIGHTEST <= event.weight <= HEAVIEST
            ):
                raise ValueError(f"{event} has a time or a weight that cannot be counted")
        # Of so few none makes another one's user give way.
        for start in range(0, len(events), self.rules.users):
            some = events[start : start + self.rules.users]
            with self.lock:
                self._count(some)
                self.n_events += len(some)  # last: whoever reads it has no lock

    def _count(self, events: Sequence[Observed]) -> None:
        numbers = [self._number_for(event.item_id) for event in events]
        if None in numbers:
            events = [event for event in events if event.item_id in self._numbers]
            self.n_uncounted += len(numbers) - len(events)
            numbers = [number for number in numbers if number is not None]
        if not events:
            return
        items = np.array(numbers, np.int32)
        slots = np.array([self._slot(event.user_key) for event in events], np.int32)
        times = np.array([event.time_ms for event in events], np.int64)
        weights = np.array([event.weight for event in events], np.float32)
        counting.observe(
            items, slots, times, weights, self.counts, self._recent, self.popular,
            HALF_LIVES_MS, counting.PAIRS_HALF_LIFE_MS, counting.FOLLOWS, counting.VISIT_MS,
        )  # fmt: skip
        self.newest_ms = max(self.newest_ms, int(times.max()))

    def forget(self, user_keys: Iterable[int]) -> None:
        """Drops the last items of users. What they have added to counts stays."""
        with self.lock:
            for key in user_keys:
                slot = self._slots.pop(key, None)
                if slot is not None:
                    self._recent.clear(slot)
                    self._free.append(slot)

    def _number_for(self, item_id: str) -> int | None:
        """The item's number, a new one where it has none; None: there is no room."""
        number = self._numbers.get(item_id)
        if number is not None:
            return number
        number = len(self.item_ids)
        if number == self.rules.items:
            return None
        if number == len(self.counts.stats):
            self.counts = self.counts.grown(min(2 * number, self.rules.items))
        self.item_ids.append(item_id)
        self._numbers[item_id] = number
        return number

    def _slot(self, key: int) -> int:
        """The user's place in `_recent`, that of the one who was away longest where all are
        taken."""
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            return slot
        if self._free:
            slot = self._free.pop()
        elif len(self._slots) < self.rules.users:
            slot = len(self._slots)
            if slot == len(self._recent.total):
                self._recent = self._recent.grown(min(2 * slot, self.rules.users))
        else:
            _, slot = self._slots.popitem(last=False)
            self._recent.clear(slot)
        self._slots[key] = slot
        return slot

    # -- as bytes ------------------------------------------------------------------------

    def to_bytes(self) -> memoryview:
        """All of it; the same of two that have observed the same. Nothing may be observed
        meanwhile; it may be read, which is why it does not take the lock."""
        size = len(self.item_ids)
        ids = [item_id.encode("utf-8", "surrogatepass") for item_id in self.item_ids]
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        parts: dict[str, npt.NDArray[Any]] = {
            "ids": np.frombuffer(b"".join(ids), np.uint8),
            "id_ends": np.cumsum([len(one) for one in ids], dtype=np.int64),
            "users": np.fromiter(self._slots, np.int64, len(self._slots)),
            "popular": self.popular,
            "about": np.array(
                [FORMAT, *astuple(self.rules), self.n_events, self.n_uncounted, self.newest_ms]
            ),
        }
        for name, value in self.counts._asdict().items():
            parts[f"counts.{name}"] = value[:size]
        for name, value in self._recent._asdict().items():
            parts[f"recent.{name}"] = value.take(slots, axis=0)
        return packed(parts)

    @classmethod
    def from_bytes(cls, data: memoryview, rules: EvidenceRules) -> Evidence:
        """What `to_bytes` gave, of whoever's hand: no more memory than some times the bytes, and
        nothing that would lead compiled code astray.

        Raises:
            EvidenceError: damaged, or of other rules.
        """
        try:
            parts = unpacked(data)
            found, *about = parts["about"].tolist()
            if found != FORMAT:
                raise EvidenceError(f"it has format {found}, not {FORMAT}")
            if about[:-3] != list(astuple(rules)):
                raise EvidenceError(f"it was made by other rules: {about[:-3]}, not {rules}")
            require_readable(parts, **asdict(rules))
            return cls._of(parts, rules, *about[-3:])
        except EvidenceError:
            raise
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise EvidenceError(f"it is damaged: {error}") from None

    @classmethod
    def _of(
        cls,
        parts: Mapping[str, npt.NDArray[Any]],
        rules: EvidenceRules,
        n_events: int,
        n_uncounted: int,
        newest_ms: int,
    ) -> Evidence:
        evidence = cls(rules)
        evidence.n_events, evidence.n_uncounted = n_events, n_uncounted
        evidence.newest_ms = newest_ms
        text, begin = parts["ids"].tobytes(), 0
        for number, end in enumerate(parts["id_ends"].tolist()):
            item_id = text[begin:end].decode("utf-8", "surrogatepass")
            evidence.item_ids.append(item_id)
            evidence._numbers[item_id] = number
            begin = end
        evidence._slots.update((key, slot) for slot, key in enumerate(parts["users"].tolist()))
        size, users = len(parts["id_ends"]), len(parts["users"])
        if len(evidence._numbers) < size or len(evidence._slots) < users:
            raise ValueError("an item or a user is there twice")
        counts = Counts(*(parts[f"counts.{name}"] for name in Counts._fields))
        evidence.counts = counts.grown(min(max(_SMALLEST, 2 * size), rules.items))
        recent = Recent(*(parts[f"recent.{name}"] for name in Recent._fields))
        evidence._recent = recent.grown(min(max(_SMALLEST, 2 * users), rules.users))
        evidence.popular = parts["popular"].copy()
        return evidence
