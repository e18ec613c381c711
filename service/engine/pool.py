"""The state pool: the states of the users seen last, resident on the device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.state import State, StateLayout
from service.store.events import ORIGIN, Mark


class PoolFull(RuntimeError):
    """No row can be given up: more users are in flight than the pool has rows."""


class Seen:
    """The item indices a user has interacted with; adding one is O(1) at any history length."""

    def __init__(self, items: NDArray[np.int32] | None = None) -> None:
        self._items = np.empty(8, np.int32) if items is None else items.astype(np.int32)
        self._size = 0 if items is None else len(items)

    def add(self, items: Iterable[int]) -> None:
        for item in items:
            if self._size == len(self._items):
                unique = np.unique(self._items)
                self._items = np.empty(max(8, 2 * len(unique)), np.int32)
                self._items[: len(unique)] = unique
                self._size = len(unique)
            self._items[self._size] = item
            self._size += 1

    def array(self) -> NDArray[np.int32]:
        """Indices, some perhaps twice; a view that the next `add` may change."""
        return self._items[: self._size]

    def unique(self) -> NDArray[np.int32]:
        return np.unique(self.array())


@dataclass(eq=False)
class Row:
    """One user's place in the pool: `slot` holds the state of exactly the events up to `mark`;
    `truncated`: of those that were still kept when it was built; `hidden`: items that the user is
    not given any more; `recent`: ids of the items of the newest RECENT events whose kind is a step,
    known to the model or not, newest first; `unknown`: ids of the newest UNKNOWN different items of
    such events that the model does not know, newest first."""

    user_id: str
    slot: int
    mark: Mark = ORIGIN
    count: int = 0  # events the model knew; 0: the state says nothing
    truncated: bool = False
    seen: Seen = field(default_factory=Seen)
    hidden: Seen = field(default_factory=Seen)
    recent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    pins: int = 0
    dropped: bool = False


class StatePool:
    """`capacity` rows, the least recently used given up first, pinned ones never.

    Rows are handed out and dropped under a lock; their contents are touched by the one compute
    thread only.
    """

    def __init__(self, layout: StateLayout, capacity: int, device: torch.device) -> None:
        self.layout, self.capacity, self.device = layout, capacity, device
        if device.type == "cpu":
            # numpy's zeros take memory only when a row is first written.
            kinds = {torch.float32: np.float32, torch.int64: np.int64}
            self.states = State(
                {
                    p.name: torch.from_numpy(np.zeros((capacity, *p.shape), kinds[p.dtype]))
                    for p in layout.parts
                }
            )
        else:
            self.states = layout.new(capacity, device)
        self._blank = layout.new(1, device)
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._free = list(range(capacity - 1, -1, -1))
        self._lock = threading.Lock()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, user_id: str) -> Row | None:
        """The user's row, which becomes the most recently used."""
        with self._lock:
            row = self._rows.get(user_id)
            if row is not None:
                self._rows.move_to_end(user_id)
            return row

    def pin(self, user_id: str) -> Row | None:
        """`get`, and keep the row until `unpin`."""
        with self._lock:
            row = self._rows.get(user_id)
            if row is not None:
                self._rows.move_to_end(user_id)
                row.pins += 1
            return row

    def unpin(self, row: Row | None) -> None:
        if row is not None:
            with self._lock:
                row.pins -= 1
                if row.dropped and row.pins == 0:
                    self._free.append(row.slot)

    def create(self, user_id: str) -> Row:
        """A pinned row at ORIGIN, in place of the user's own or of the least recently used one.

        Raises:
            PoolFull: every row is pinned.
        """
        with self._lock:
            self._drop(user_id)
            if not self._free:
                victim = next((row for row in self._rows.values() if row.pins == 0), None)
                if victim is None:
                    raise PoolFull(f"all {self.capacity} rows of the state pool are in use")
                self._drop(victim.user_id)
                self.evictions += 1
            row = Row(user_id, self._free.pop(), pins=1)
            self._rows[user_id] = row
        return row

    def reset(self, rows: list[Row]) -> None:
        """Sets the slots of `rows` to the state of no history."""
        if rows:
            index = self.index(rows)
            self.states.write(index, self._blank.rows(torch.zeros_like(index)))

    def drop(self, user_id: str) -> None:
        """Forgets the user's row. The slot of a pinned one is free when its last holder lets go."""
        with self._lock:
            self._drop(user_id)

    def users(self) -> list[str]:
        with self._lock:
            return list(self._rows)

    def index(self, rows: list[Row]) -> torch.Tensor:
        return torch.tensor([row.slot for row in rows], device=self.device)

    def _drop(self, user_id: str) -> None:
        row = self._rows.pop(user_id, None)
        if row is not None:
            row.dropped = True
            if row.pins == 0:
                self._free.append(row.slot)
