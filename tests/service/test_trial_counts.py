"""Users of trials, counted in the store."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.feedback import trial_counts
from service.feedback.cohort import Observed
from service.feedback.outcomes import Outcomes
from service.feedback.trial_counts import KEPT_MS, Arm, TrialCounts
from service.store.client import Store
from service.store.events import NewEvent, new_uid
from tests.depth import examples
from tests.service.conftest import ValkeyServer

TRIALS = ["a", "b"]
ARMS = [
    (),
    (Arm("a", "trial"),),
    (Arm("b", "trial"),),
    (Arm("a", "base"), Arm("b", "base")),
]
NAMES = ["ann", "b{o}b:/%", "eve"]
steps = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([*ARMS, "take"]), st.integers(0, 1)),
    max_size=25,
)


@settings(max_examples=examples(15))
@given(steps)
def test_a_user_counts_once_in_the_arm_that_came_first(
    store: ValkeyServer, steps: list[Any]
) -> None:
    """Whichever process it comes to, and however often the arm changes."""

    async def go() -> None:
        run = uuid4().hex
        async with Store(store.url) as connection:
            processes = [
                TrialCounts(connection, namespace=run, observed_s=3600, longest_s=3600)
                for _ in range(2)
            ]
            arms: dict[tuple[str, str], str] = {}
            took: set[tuple[str, str]] = set()
            for user, what, process in steps:
                if what == "take":
                    processes[process].taken(user)
                    took |= {one for one in arms if one[0] == user}
                else:
                    processes[process].shown(user, what)
                    for trial, side in what:
                        arms.setdefault((user, trial), side)
                await processes[process].flush()
            for trial in TRIALS:
                flat = await connection.request(("HGETALL", f"{run}:trial:{trial}"))
                found = {"base": [0, 0], "trial": [0, 0]}
                for field, number in zip(flat[::2], flat[1::2], strict=True):
                    _, side, what = field.decode().split(":")
                    found[side][what == "taken"] += int(number)
                for side in ("base", "trial"):
                    users = [one for one in arms if one[1] == trial and arms[one] == side]
                    assert found[side] == [len(users), len(took & set(users))]

    asyncio.run(go())


def test_cohorts_are_those_observed_to_the_end(
    valkey: ValkeyServer, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_counts, "SETTLED_MS", 0)

    async def go() -> None:
        async with Store(valkey.url) as connection:
            counts = TrialCounts(connection, namespace="n", observed_s=1, longest_s=60)
            base, trial = (Arm("t", "base"),), (Arm("t", "trial"),)
            counts.shown("ann", base)
            counts.shown("bob", trial)
            counts.taken("bob")
            await counts.flush()
            assert await counts.cohorts("t") == []
            await asyncio.sleep(2.2)
            counts.taken("ann")  # too late
            counts.shown("eve", trial)
            await counts.flush()
            found = await counts.cohorts("t")
            assert sum((one.base for one in found), Observed()) == Observed(1, 0)
            assert sum((one.trial for one in found), Observed()) == Observed(1, 1)
            with valkey.client() as client:
                assert 0 < client.pttl("n:tried:ann") <= 61_000
                assert 61_000 < client.pttl("n:trial:t") <= KEPT_MS
            assert await counts.cohorts("of nobody") == []

    run(go())


def test_of_an_erased_user_the_numbers_stay_and_nothing_else(
    valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        async with Store(valkey.url) as connection:
            counts = TrialCounts(connection, namespace="n", observed_s=60, longest_s=60)
            outcomes = Outcomes(connection, namespace="n", trials=counts)
            arms = (Arm("t", "trial"),)
            outcomes.shown("ann", "", ["i1"], arms)
            outcomes.logged("ann", NewEvent(new_uid(), "i1"), 0)
            await outcomes.flush()
            with valkey.client() as client:
                assert client.exists("n:tried:ann")
                numbers = client.hgetall("n:trial:t")
                assert sorted(numbers.values()) == [b"1", b"1"]
                outcomes.shown("ann", "", ["i2"], arms)
                outcomes.erased("ann")
                outcomes.shown("ann", "", ["i3"], arms)
                await outcomes.flush()
                assert client.keys("*ann*") == []
                assert client.hgetall("n:trial:t") == numbers

    run(go())
