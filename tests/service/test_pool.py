"""The state pool against a plain model of it."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.state import Part, StateLayout
from service.engine.pool import PoolFull, Row, Seen, StatePool
from service.store.events import ORIGIN, Mark
from tests.depth import examples

torch.set_num_threads(1)

CAPACITY = 3
LAYOUT = StateLayout((Part("h", (2,), torch.float32), Part("last", (), torch.int64, initial=-7)))
USERS = st.sampled_from("abcdef")


def evict(pool: StatePool, user: str) -> bool:
    """What happens to the least recently used row, to any row that is not pinned."""
    row = pool._rows.get(user)
    if row is None or row.pins:
        return False
    pool.drop(user)
    return True


class Pool(RuleBasedStateMachine):
    """Each holder of a row writes its own number into the slot and must find it there again."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = StatePool(LAYOUT, CAPACITY, torch.device("cpu"))
        self.resident: OrderedDict[str, Row] = OrderedDict()  # the least recently used first
        self.pinned: list[Row] = []
        self.written: dict[Row, int] = {}
        self.evicted = 0

    @rule(user=USERS)
    def create(self, user: str) -> None:
        held = {row.slot for row in self.pinned}
        own = self.resident.get(user)
        free = CAPACITY - len({r.slot for r in self.resident.values()} | held)
        if own is not None and own.slot not in held:
            free += 1
        victims = [u for u, row in self.resident.items() if row.slot not in held and u != user]
        self.resident.pop(user, None)
        if not free and not victims:
            with pytest.raises(PoolFull, match=f"all {CAPACITY} rows"):
                self.pool.create(user)
            return
        if not free:
            self.evicted += 1
            del self.resident[victims[0]]
        row = self.pool.create(user)
        assert row.slot not in held, "a slot that is still in use"
        assert row.slot not in {r.slot for r in self.resident.values()}
        assert (row.mark, row.count, len(row.seen.array())) == (ORIGIN, 0, 0)
        self.pool.reset([row])
        state = self.pool.states.rows(self.pool.index([row]))
        assert state["h"].tolist() == [[0, 0]]
        assert state["last"].tolist() == [-7]
        self.written[row] = len(self.written) + 1
        number = self.written[row]
        state["h"][:], state["last"][:] = number, number
        self.pool.states.write(self.pool.index([row]), state)
        row.mark = Mark(number, b"")
        self.resident[user] = row
        self.pinned.append(row)

    @rule(user=USERS, keep=st.booleans())
    def look_up(self, user: str, keep: bool) -> None:
        row = self.pool.pin(user) if keep else self.pool.get(user)
        assert row is self.resident.get(user)
        if row is not None:
            self.resident.move_to_end(user)
            if keep:
                self.pinned.append(row)

    @precondition(lambda self: self.pinned)
    @rule(which=st.integers(0, 100))
    def unpin(self, which: int) -> None:
        self.pool.unpin(self.pinned.pop(which % len(self.pinned)))

    @rule(user=USERS)
    def drop(self, user: str) -> None:
        self.pool.drop(user)
        self.resident.pop(user, None)

    @rule(user=USERS)
    def evict(self, user: str) -> None:
        row = self.resident.get(user)
        possible = row is not None and row not in self.pinned
        assert evict(self.pool, user) == possible
        if possible:
            del self.resident[user]

    @invariant()
    def every_holder_finds_its_own_state(self) -> None:
        assert self.pool.users() == list(self.resident)
        assert len(self.pool) == len(self.resident)
        assert self.pool.evictions == self.evicted
        for row in {*self.resident.values(), *self.pinned}:
            state = self.pool.states.rows(self.pool.index([row]))
            assert state["h"].tolist() == [[self.written[row]] * 2]
            assert state["last"].tolist() == [self.written[row]]

    def teardown(self) -> None:
        """Once everybody has let go, the whole capacity is there again."""
        while self.pinned:
            self.unpin(0)
        slots = set()
        for place in range(CAPACITY):
            slots.add(self.pool.create(f"new{place}").slot)
        assert slots == set(range(CAPACITY))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=examples(30), stateful_step_count=40)


def test_unpinning_nothing_is_nothing() -> None:
    StatePool(LAYOUT, 1, torch.device("cpu")).unpin(None)


@given(
    st.none() | st.lists(st.integers(1, 50), max_size=20, unique=True),
    st.lists(st.lists(st.integers(1, 50), max_size=30), max_size=20),
)
def test_seen_is_a_set(start: list[int] | None, parts: list[list[int]]) -> None:
    seen = Seen(None if start is None else np.array(start, np.int32))
    expected = set(start or [])
    for part in parts:
        seen.add(part)
        expected |= set(part)
        assert set(seen.array().tolist()) == expected
        assert seen.unique().tolist() == sorted(expected)


def test_seen_of_one_item_again_and_again_stays_small() -> None:
    seen = Seen()
    for _ in range(10_000):
        seen.add([7])
    assert len(seen.array()) <= 8
