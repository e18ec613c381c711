"""What an erased user's interactions had added to what is popular is taken back: once, or not at
all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artefact import Artefact
from model.kinds import KindRules
from service.engine import erasure
from service.engine.engine import Engine
from service.feedback.popularity import EPOCH, Popularity
from service.store.client import Store
from service.store.errors import AcksMissed, StoreError
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import NewEvent, new_uid
from tests.depth import examples
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.lossy_store import LossyStore
from tests.service.processes import in_process, make_artefact
from tests.waited import LONG_S, PATIENT_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HALF_LIFE_S = 3600
HOUR = 3_600_000
HEAVIEST = 10.0
RULES = KindRules.parse("skip:hide,ping:count,view:log")
USERS, ITEMS = ["ann", "ben", "é:{}", "dan"], [f"i{n}" for n in range(6)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("erasure") / "model", ITEMS)


class Clock:
    """Ahead of the store's, which is what keys expire by: an event without a time is no later."""

    def __init__(self) -> None:
        self.ms = round(time.time() * 1000) + HOUR

    def __call__(self) -> int:
        return self.ms


def popularity(store: Store, clock: Clock | None = None, **options: Any) -> Popularity:
    if clock is not None:
        options |= {"clock_ms": clock}
    return Popularity(
        store,
        half_life_s=HALF_LIFE_S,
        heaviest=HEAVIEST,
        kinds=RULES,
        settled_s=PATIENT_S * 1000,
        **options,
    )


def event_log(store: Store, **options: Any) -> EventLog:
    options = {"page": 3, "late_policy": "replay", "replay_limit": 50} | options
    return EventLog(store, future_tolerance_ms=10**13, **options)


class Counted(NamedTuple):
    """What an interaction counts for, at a time."""

    item: str
    time_ms: int
    weight: float


@dataclass
class World:
    """What would be counted if nobody had been erased who was, and how much those had had."""

    clock: Clock
    users: dict[str, list[Counted]] = field(default_factory=dict)
    erased: list[Counted] = field(default_factory=list)

    def add(self, user: str, event: NewEvent, effective: int) -> None:
        if RULES.counts(event.kind):
            at = effective if event.time_ms is None else event.time_ms
            weight = 1.0 if event.weight is None else min(event.weight, HEAVIEST)
            self.users.setdefault(user, []).append(Counted(event.item_id, at, weight))

    def erase(self, user: str) -> None:
        self.erased += self.users.pop(user, [])

    def sums(self, counted: Sequence[Counted], *, recent: bool) -> dict[str, float]:
        epoch_ms = EPOCH * HALF_LIFE_S * 1000
        found: dict[str, float] = {}
        for item, at, weight in counted:
            if recent and at // epoch_ms < self.clock.ms // epoch_ms - 1:
                continue
            aged = 2.0 ** (-(self.clock.ms - at) / 1000 / HALF_LIFE_S) if recent else 1.0
            found[item] = found.get(item, 0.0) + weight * aged
        return found

    async def check(self, workers: Sequence[Popularity]) -> None:
        """Every worker's counts, once all have arrived."""
        for each in workers:
            await each.flush()
        for each in workers:
            await each.flush(settled=True)
        left = [one for of_user in self.users.values() for one in of_user]
        gone = self.sums(self.erased, recent=True)
        for each in workers:
            await each.refresh()
            ever = self.sums(left, recent=False)
            kept = {item for item, number in ever.items() if number}
            counts = dict(each.counts.all)
            assert {item for item, number in counts.items() if number} == kept
            assert all(counts[item] == pytest.approx(ever[item], rel=1e-9) for item in kept)
            of_late, recent = dict(each.counts.recent), self.sums(left, recent=True)
            for item in {*of_late, *recent}:
                most = 1e-5 * gone.get(item, 0.0)
                found = pytest.approx(recent.get(item, 0.0), rel=1e-9, abs=1e-12 + most)
                assert of_late.get(item, 0.0) == found
            numbers = [number for _, number in each.counts.all + each.counts.recent]
            assert all(number >= 0 for number in numbers)


# An interaction so many hours ago (None: when the store has it), hours going by, an erasure.
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(USERS),
            st.sampled_from(ITEMS),
            st.none() | st.floats(0, 40),
            st.sampled_from([None, None, "skip", "ping", "view", "other"]),
            st.sampled_from([None, None, 0.0, 0.5, 3.0, 10.0, 1e9]),
        ),
        st.floats(0, 30),
        st.sampled_from(USERS),
        st.just(None),
    ),
    max_size=40,
)


@asynccontextmanager
async def engines(
    artefact: Artefact, stores: Sequence[Store], counting: Sequence[Popularity]
) -> AsyncIterator[list[Engine]]:
    running = [
        Engine(artefact, event_log(store), listeners=[each], kinds=RULES)
        for store, each in zip(stores, counting, strict=True)
    ]
    for engine in running:
        await engine.start()
    try:
        yield running
    finally:
        for engine in running:
            await engine.stop()


@given(STEPS)
@settings(max_examples=examples(15))
def test_counts_are_those_of_a_world_without_the_erased(
    valkey: ValkeyServer, artefact: Artefact, run: Run, steps: list[Any]
) -> None:
    """Two workers count, and erase; epochs end and begin meanwhile."""

    async def go() -> None:
        with valkey.client() as client:
            client.flushall()
        clock = Clock()
        world = World(clock)
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(Store(valkey.url)) for _ in range(2)]
            counting = [popularity(store, clock) for store in stores]
            workers = await stack.enter_async_context(engines(artefact, stores, counting))
            for n, step in enumerate(steps):
                engine = workers[n % 2]
                if isinstance(step, tuple):
                    user, item, hours, kind, weight = step
                    at = None if hours is None else clock.ms - round(hours * HOUR)
                    event = NewEvent(new_uid(), item, at, None, kind, weight)
                    (outcome,) = await engine.append(user, [event])
                    assert outcome.time_ms is not None
                    world.add(user, event, outcome.time_ms)
                elif isinstance(step, float):
                    clock.ms += round(step * HOUR)
                elif step is None:
                    await world.check(counting)
                else:
                    world.erase(step)
                    await engine.erase(step)
                    assert not await workers[(n + 1) % 2].erase(step)
            await world.check(counting)

    run(go())


async def fill(
    log: EventLog, counting: Popularity, world: World, user: str, events: Sequence[NewEvent]
) -> None:
    """Logs and counts events of a user, each with a time of its own."""
    for start in range(0, len(events), log.max_events):
        part = events[start : start + log.max_events]
        (reply,) = await log.exchange([LogRequest(user, None, part)])
        assert isinstance(reply, LogReply), reply
        for event in part:
            assert event.time_ms is not None
            counting.count(event.item_id, event.time_ms)
            world.add(user, event, event.time_ms)
    await counting.flush()


def some(count: int, clock: Clock, first: int = 0) -> list[NewEvent]:
    return [
        NewEvent(new_uid(), ITEMS[(first + n) % len(ITEMS)], clock.ms - (count - n) * 60_000)
        for n in range(count)
    ]


@pytest.mark.parametrize("cluster", [False, True])
def test_who_erases_at_the_same_time_takes_back_once(
    valkey: ValkeyServer, valkey_cluster: ValkeyCluster, run: Run, cluster: bool
) -> None:
    """Several workers, while more of the user's interactions arrive."""
    url = valkey_cluster.url if cluster else valkey.url

    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with Store(url) as one, Store(url) as other:
            workers = [popularity(store, clock) for store in (one, other)]
            logs = [event_log(store) for store in (one, other)]
            for round_ in range(6):
                user = f"u{round_}"
                await fill(logs[0], workers[0], world, user, some(40, clock))
                await fill(logs[0], workers[0], world, "stays", some(7, clock, round_))
                world.erase(user)
                existed = await asyncio.gather(
                    *(
                        erasure.erase(log, user, [each])
                        for log, each in zip(logs * 3, workers * 3, strict=True)
                    )
                )
                assert any(existed)
                assert not await erasure.erase(logs[1], user, [workers[1]])
            await world.check(workers)

    run(go())


@pytest.mark.parametrize("late", [False, True])
def test_what_arrives_while_a_record_is_read_is_taken_back_too(
    valkey: ValkeyServer, run: Run, late: bool
) -> None:
    """Where it changes what was read, all of it is read again."""

    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with LossyStore(valkey.url) as store, Store(valkey.url) as other:
            counting, log = popularity(store, clock), event_log(store)
            meanwhile = event_log(other)
            await fill(log, counting, world, "stays", some(9, clock))
            await fill(log, counting, world, "first", some(1, clock))
            assert await erasure.erase(log, "first", [counting])  # the server has the scripts
            world.erase("first")
            for trip in range(5):  # four pages, and the deletion
                user = f"u{trip}"
                await fill(log, counting, world, user, some(10, clock))
                one = NewEvent(new_uid(), "i1", clock.ms - (HOUR if late else 0))

                async def append(user: str = user, event: NewEvent = one) -> None:
                    await fill(meanwhile, counting, world, user, [event])

                store.plan = ["answered"] * trip + [append]
                assert await erasure.erase(log, user, [counting])
                assert not store.plan
                world.erase(user)
            await world.check([counting])

    run(go())


@pytest.mark.parametrize("fate", ["sent", "unsent"])
@pytest.mark.parametrize("trips", range(8))
def test_a_lost_answer_takes_nothing_back_twice(
    valkey: ValkeyServer, run: Run, fate: str, trips: int
) -> None:
    """At the worst it is not taken back at all."""

    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with LossyStore(valkey.url) as store:
            counting, log = popularity(store, clock), event_log(store, page=5)
            await fill(log, counting, world, "first", some(1, clock))
            assert await erasure.erase(log, "first", [counting])  # the server has the scripts
            world.erase("first")
            for user in ("stays", "goes"):
                await fill(log, counting, world, user, some(12, clock))
            with_both = World(clock, {user: list(of) for user, of in world.users.items()})
            world.erase("goes")
            store.plan = ["answered"] * trips + [fate]
            await erasure.erase(log, "goes", [counting])
            for _ in range(2):
                assert not await erasure.erase(log, "goes", [counting])
            store.plan = []
            deletion = 3  # after three pages
            lost = fate == "sent" and trips == deletion
            await (with_both if lost else world).check([counting])
            assert await store.execute([("EXISTS", "tim4rec:u:goes")], 10) == [0]

    run(go())


def test_numbers_without_an_answer_are_not_sent_again(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with LossyStore(valkey.url) as store:
            counting, log = popularity(store, clock), event_log(store)
            for user in ("stays", "goes"):
                await fill(log, counting, world, user, some(12, clock))
            await erasure.erase(log, "goes", [counting])
            world.erase("goes")
            store.plan = ["sent"]
            with pytest.raises(StoreError):
                await counting.flush(settled=True)
            await world.check([counting])

    run(go())


def test_missing_replicas_do_not_keep_it_from_being_taken_back(
    valkey: ValkeyServer, run: Run
) -> None:
    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with (
            Store(valkey.url) as alone,
            Store(valkey.url, replica_acks=1, timeout_s=1.0) as waiting,
        ):
            counting = popularity(alone, clock)
            for user in ("stays", "goes"):
                await fill(event_log(alone), counting, world, user, some(12, clock))
            log = event_log(waiting)
            for _ in range(2):
                with pytest.raises(AcksMissed):
                    await erasure.erase(log, "goes", [counting])
            world.erase("goes")
            await world.check([counting])

    run(go())


def test_a_record_that_can_t_be_read_is_erased_all_the_same(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with Store(valkey.url) as store:
            counting, log = popularity(store, clock), event_log(store)
            for user in ("hole", "string"):
                await fill(log, counting, world, user, some(8, clock))
            with valkey.client() as client:
                client.hdel("tim4rec:u:hole", "e4")
                client.set("tim4rec:u:string", "no record")
            for user in ("hole", "string"):
                assert await erasure.erase(log, user, [counting])
                assert not await erasure.erase(log, user, [counting])
            with valkey.client() as client:
                assert not client.keys("tim4rec:u:*")
            await world.check([counting])  # nothing is taken back of what is not known

    run(go())


def test_a_full_store_takes_back(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with Store(valkey.url) as store:
            counting, log = popularity(store, clock), event_log(store)
            for user in ("stays", "goes"):
                await fill(log, counting, world, user, some(12, clock))
            with valkey.client() as client:
                client.config_set("maxmemory", 1)
                try:
                    assert await erasure.erase(log, "goes", [counting])
                    world.erase("goes")
                    await world.check([counting])
                finally:
                    client.config_set("maxmemory", 0)

    run(go())


def test_of_a_shortened_record_what_is_left_is_taken_back(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        clock = Clock()
        world = World(clock)
        async with Store(valkey.url) as store:
            counting = popularity(store, clock)
            log = event_log(
                store, history_limit=100, dedup_window=100, late_policy="clamp", replay_limit=1
            )
            await fill(log, counting, world, "goes", some(250, clock))
            world.users["stays"] = world.users["goes"][:-100]
            world.users["goes"] = world.users["goes"][-100:]
            assert await erasure.erase(log, "goes", [counting])
            world.erase("goes")
            await world.check([counting])

    run(go())


# -- through the service -----------------------------------------------------------------


@pytest.mark.slow
def test_one_interaction_owns_nothing(artefact: Artefact, store_url: str, run: Run) -> None:
    async def go() -> None:
        served = {"popular_refresh_s": 0.05, "popular_least": 1, "max_weight": 5}
        async with in_process(artefact.folder, store_url, **served) as client:

            async def post(user: str, item: str, weight: float | None = None) -> Any:
                body = {"user_id": user, "item_id": item}
                body |= {} if weight is None else {"weight": weight}  # type: ignore[dict-item]
                return await client.post("/interactions", json=body)

            async def counts(window: str) -> dict[str, float]:
                answer = await client.get("/popular", params={"window": window})
                assert answer.status_code == 200
                if answer.json()["source"] == "training":
                    return {}
                return {item["item_id"]: item["count"] for item in answer.json()["items"]}

            async def until(expected: dict[str, float]) -> None:
                async with asyncio.timeout(LONG_S):
                    for window in ("all", "recent"):
                        close = pytest.approx(expected, rel=1e-3)
                        while await counts(window) != close:  # noqa: ASYNC110
                            await asyncio.sleep(0.02)

            for weight in (5.1, 10, 1e9, 1e300):
                answer = await post("heavy", "i3", weight)
                assert answer.status_code == 422
                detail = answer.json()["detail"]
                assert "weight: " in detail
                assert "at most 5 (max_weight)" in detail
            assert (await client.get("/users/heavy")).status_code == 404
            batch = [
                {"user_id": "heavy", "item_id": "i3", "weight": weight}
                for weight in (5, 5.5, None, 1e300, 0)
            ]
            answer = await client.post("/interactions/batch", json={"interactions": batch})
            found = answer.json()
            assert [one["status"] for one in found["results"]] == [
                "applied", "rejected", "applied", "rejected", "applied"
            ]  # fmt: skip
            assert [one["version"] for one in found["results"]] == [1, None, 2, None, 3]
            assert found["accepted"] == 3
            assert found["results"][3]["detail"].startswith("weight: 1e+300 is more than")
            assert "(max_weight)" in found["results"][3]["detail"]
            for n in range(3):
                await post(f"u{n}", "i1")
            await post("u1", "i3")
            await until({"i3": 7, "i1": 3})
            for erased in (True, False):
                answer = await client.delete("/users/heavy")
                assert answer.json()["erased"] is erased
            await until({"i1": 3, "i3": 1})
            assert (await client.delete("/users/u1")).json()["erased"]
            await until({"i1": 2})

    run(go())
