"""What all users' events say of items: which follow which, what is popular, what is new.

Counts decay, and so what they rest on is bounded in time; they are kept for at most M neighbours an
item and for the last items of so many users, and so they are bounded in memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.live import counting
from model.live.counting import HALF_LIVES_MS, RECENT

FORMAT = 1
_SMALLEST = 64


class EvidenceError(ValueError):
    """Bytes that are not an evidence of these rules."""


@dataclass(frozen=True)
class EvidenceRules:
    """neighbours: M, the most an item has; users: whose last items are kept, those who have been
    away longest are forgotten."""

    neighbours: int = 64
    users: int = 200_000

    def __post_init__(self) -> None:
        for name in ("neighbours", "users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


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


class Counts(NamedTuple):
    """The numbers, item i's in row i; rows beyond the last item are free.

    neighbours: (I, M) int32, -1 where there is none; together, after, visit: (I, M) float32, how
    often the neighbour was had near the item, how soon after it, and within one visit, decayed to
    `touched` (I) ms; stats: (I, S) the number of events, the time of the first in ms, and
    popularity by each half-life: log2 of the sum of 2^(time / half-life) over the events, which
    only grows (forward decay: Cormode and others, 2009).
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
        stats = np.full((size, counting.N_STATS), -np.inf)
        stats[:, : counting.POPULARITY] = 0
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
        for old, new in zip(self, larger, strict=True):
            new[: len(old)] = old
        return larger


class Recent(NamedTuple):
    """The last items of users, a ring each: items (U, K) int32, times (U, K) ms, and how many
    events the ring has ever had: total (U)."""

    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]

    @classmethod
    def new(cls, users: int) -> Recent:
        shape = (users, RECENT)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.int64), np.zeros(users, np.int64))


class Evidence:
    """A function of the events in their order.

    Attributes:
        item_ids: of the items that had an event, in the order of their first.
        n_events: how many were observed.
        counts: as of the last of them; to be read under `lock`.
        newest_ms: the latest time of them.
        popular: (2, P) the items most popular by the shortest and by the longest half-life, most
            first, -1 where there are fewer.
        lock: held while they change.
    """

    def __init__(self, rules: EvidenceRules = EvidenceRules()) -> None:
        self.rules = rules
        self.item_ids: list[str] = []
        self.n_events, self.newest_ms = 0, 0
        self.lock = threading.Lock()
        self.counts = Counts.new(_SMALLEST, rules.neighbours)
        self.popular = np.full((2, counting.POPULAR), -1, np.int32)
        self._numbers: dict[str, int] = {}
        self._recent = Recent.new(min(rules.users, _SMALLEST))
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._free: list[int] = []

    def number(self, item_id: str) -> int | None:
        """The item's row in the counts."""
        return self._numbers.get(item_id)

    def observe(self, events: Sequence[Observed]) -> None:
        """Counts events, in this order; a user's own are in the order of their times."""
        if not events:
            return
        with self.lock:
            items = np.array([self._item(event.item_id) for event in events], np.int32)
            slots = np.array([self._slot(event.user_key) for event in events], np.int32)
            times = np.array([event.time_ms for event in events], np.int64)
            weights = np.array([event.weight for event in events], np.float32)
            counting.observe(
                items, slots, times, weights, self.counts, self._recent, self.popular,
                HALF_LIVES_MS, counting.PAIRS_HALF_LIFE_MS, counting.FOLLOWS, counting.VISIT_MS,
            )  # fmt: skip
            self.newest_ms = max(self.newest_ms, int(times.max()))
            self.n_events += len(events)

    def forget(self, user_keys: Iterable[int]) -> None:
        """Drops the last items of users. What they have added to counts stays."""
        with self.lock:
            for key in user_keys:
                slot = self._slots.pop(key, None)
                if slot is not None:
                    self._recent.total[slot] = 0
                    self._free.append(slot)

    def _item(self, item_id: str) -> int:
        number = self._numbers.get(item_id)
        if number is None:
            number = self._numbers[item_id] = len(self.item_ids)
            self.item_ids.append(item_id)
            if number == len(self.counts.stats):
                self.counts = self.counts.grown(2 * number)
        return number

    def _slot(self, key: int) -> int:
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            return slot
        if self._free:
            slot = self._free.pop()
        elif len(self._slots) < self.rules.users:
            slot = len(self._slots)
            if slot == len(self._recent.total):
                more = Recent.new(min(self.rules.users, 2 * slot))
                for old, new in zip(self._recent, more, strict=True):
                    new[: len(old)] = old
                self._recent = more
        else:
            _, slot = self._slots.popitem(last=False)
            self._recent.total[slot] = 0
        self._slots[key] = slot
        return slot

    # -- as bytes ------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """All of it; the same of two that have observed the same."""
        with self.lock:
            size = len(self.item_ids)
            ids = [item_id.encode("utf-8", "surrogatepass") for item_id in self.item_ids]
            slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
            parts = {
                "ids": np.frombuffer(b"".join(ids), np.uint8),
                "id_ends": np.cumsum([len(one) for one in ids], dtype=np.int64),
                "users": np.fromiter(self._slots, np.int64, len(self._slots)),
                "popular": self.popular,
                "about": np.array([FORMAT, self.n_events, self.newest_ms]),
            }
            for name, value in self.counts._asdict().items():
                parts[f"counts.{name}"] = value[:size]
            for name, value in self._recent._asdict().items():
                parts[f"recent.{name}"] = value[slots]
            return save(parts)

    @classmethod
    def from_bytes(cls, data: bytes, rules: EvidenceRules) -> Evidence:
        """What `to_bytes` gave. Raises EvidenceError: damaged, or of other rules."""
        evidence = cls(rules)
        try:
            parts = load(data)
            about = parts["about"].tolist()
            if about[0] != FORMAT:
                raise EvidenceError(f"it has format {about[0]}, not {FORMAT}")
            _, evidence.n_events, evidence.newest_ms = about
            size, users = len(parts["id_ends"]), len(parts["users"])
            if parts["counts.neighbours"].shape != (size, rules.neighbours) or users > rules.users:
                raise EvidenceError("it was made by other rules (live_neighbours, live_users)")
            text, begin = parts["ids"].tobytes(), 0
            for end in parts["id_ends"].tolist():
                evidence.item_ids.append(text[begin:end].decode("utf-8", "surrogatepass"))
                begin = end
            evidence.counts = Counts(
                *(parts[f"counts.{name}"].copy() for name in Counts._fields)
            ).grown(max(_SMALLEST, 2 * size))
            evidence._recent = Recent(
                *(
                    np.concatenate([parts[f"recent.{name}"], getattr(Recent.new(1), name)])
                    for name in Recent._fields
                )
            )
            if users == rules.users:
                evidence._recent = Recent(*(part[:users] for part in evidence._recent))
            evidence._slots = OrderedDict((key, n) for n, key in enumerate(parts["users"].tolist()))
            evidence.popular = parts["popular"].copy()
        except (SafetensorError, KeyError, ValueError, UnicodeDecodeError) as error:
            if isinstance(error, EvidenceError):
                raise
            raise EvidenceError(f"it is damaged: {error}") from None
        evidence._numbers = {item_id: n for n, item_id in enumerate(evidence.item_ids)}
        return evidence
