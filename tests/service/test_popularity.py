"""What is popular, counted on a real server or Cluster, against sums over all events."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artefact import Artefact
from model.kinds import KindRules
from service.bulk.importer import Importer, UserHistory
from service.feedback.popularity import EPOCH, Popularity
from service.store.client import Store
from service.store.errors import StoreError
from service.store.event_log import EventLog
from tests.depth import examples
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact, popular
from tests.waited import LONG_S

HALF_LIFE_S = 3600
ITEMS = [f"i{n}" for n in range(30)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("popularity") / "model", ITEMS)


class Clock:
    """Begins now, because the store's own clock is what keys expire by."""

    def __init__(self) -> None:
        self.ms = round(time.time() * 1000)

    def __call__(self) -> int:
        return self.ms


def brute_force(events: list[tuple[str, int]], now: int) -> tuple[dict[str, float], float]:
    """Each item's sum over all events, and how much an item's can lack in what is kept."""
    sums: dict[str, float] = {}
    for item, ms in events:
        sums[item] = sums.get(item, 0.0) + 2.0 ** (-max(0, now - ms) / 1000 / HALF_LIFE_S)
    return sums, len(events) * 2.0**-EPOCH


# An event so many hours before the clock (or a little after it), or hours going by.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abcdef"), st.floats(-0.05, 40)),
        st.floats(0, 30),
        st.just("flush"),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=examples(20))
def test_the_sums_are_those_of_all_events(valkey: ValkeyServer, run: Any, steps: list[Any]) -> None:
    """Two processes count and read; epochs end and begin meanwhile."""

    async def go() -> None:
        with valkey.client() as client:
            client.flushall()
        clock, events = Clock(), list[tuple[str, int]]()
        async with Store(valkey.url) as one, Store(valkey.url) as other:
            both = [
                Popularity(store, half_life_s=HALF_LIFE_S, clock_ms=clock) for store in (one, other)
            ]
            for n, step in enumerate(steps):
                if isinstance(step, tuple):
                    at = clock.ms - round(step[1] * 3_600_000)
                    both[n % 2].count(step[0], at)
                    # One that is ahead of the clock counts as of now.
                    events.append((step[0], min(at, clock.ms)))
                elif isinstance(step, float):
                    clock.ms += round(step * 3_600_000)
                else:
                    await both[n % 2].flush()
            for each in both:
                await each.flush()
            for each in both:
                await each.refresh()
                counts = each.counts
                ever: dict[str, int] = {}
                for item, _ in events:
                    ever[item] = ever.get(item, 0) + 1
                assert dict(counts.all) == ever
                expected, lacking = brute_force(events, clock.ms)
                found = dict(counts.recent)
                for item, number in expected.items():
                    assert number - lacking - 1e-9 <= found.get(item, 0) <= number * (1 + 1e-9)
                for kept in (counts.all, counts.recent):
                    numbers = [number for _, number in kept]
                    assert numbers == sorted(numbers, reverse=True)

    run(go())


def test_on_a_cluster_as_on_one_server(valkey_cluster: ValkeyCluster, run: Any) -> None:
    async def go() -> None:
        async with Store(valkey_cluster.url) as store:
            popularity = Popularity(store, half_life_s=HALF_LIFE_S)
            now = popularity._clock_ms()
            for n in range(60):
                popularity.count(ITEMS[n % 7], now - n * 60_000)
            await popularity.flush()
            await popularity.refresh()
            assert dict(popularity.counts.all) == {ITEMS[n]: 9 if n < 4 else 8 for n in range(7)}
            assert 30 < popularity.counts.decayed < 60

    run(go())


def test_keys_of_past_epochs_expire(valkey: ValkeyServer, run: Any) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            popularity = Popularity(store, half_life_s=HALF_LIFE_S)
            popularity.count("a", popularity._clock_ms())
            await popularity.flush()
        with valkey.client() as client:
            (key,) = client.keys("*:popular:3600:*")
            left = client.pttl(key)
            assert EPOCH * HALF_LIFE_S * 1000 < left <= 2 * EPOCH * HALF_LIFE_S * 1000
            assert client.pttl("tim4rec:popular:all") == -1

    run(go())


def test_the_rarest_are_forgotten_of_too_many(valkey: ValkeyServer, run: Any) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            popularity = Popularity(store, most_items=100)
            for n in range(40):
                for item in range(10):
                    popularity.count(f"often{item}", BASE_MS)
                    popularity.count(f"once{n}-{item}", BASE_MS)
                await popularity.flush()
                with valkey.client() as client:
                    assert client.zcard("tim4rec:popular:all") <= 125 + 20
            await popularity.refresh()
            kept = dict(popularity.counts.all)
            assert [kept[f"often{item}"] for item in range(10)] == [40] * 10

    run(go())


def test_counts_without_an_answer_are_never_sent_twice(valkey: ValkeyServer, run: Any) -> None:
    async def go() -> None:
        async with Store(valkey.url, timeout_s=1) as store:
            popularity = Popularity(store)
            popularity.count("a", BASE_MS)
            await popularity.flush()
            popularity.count("a", BASE_MS)
            valkey.send(19)
            try:
                with pytest.raises(StoreError):
                    await popularity.flush()
            finally:
                valkey.send(18)
            await asyncio.sleep(0.1)  # it carries out what has reached it
            await popularity.flush()
            popularity.count("a", BASE_MS)
            await popularity.flush()
            await popularity.refresh()
            assert dict(popularity.counts.all) == {"a": 3}

    run(go())


def test_an_import_is_counted_once(valkey: ValkeyServer, run: Any) -> None:
    """Also where it stops in the middle and is run again; as far as kinds count."""

    async def go() -> None:
        async with Store(valkey.url) as store:
            popularity = Popularity(store)
            log = EventLog(store, page=1)

            def importer() -> Importer:
                rules = KindRules.parse("view:log")
                return Importer(log, log, popularity=popularity, kinds=rules)

            items, times = ["a", "b"] * 30, list(range(BASE_MS, BASE_MS + 60))
            kinds: list[tuple[str | None, float | None]]
            kinds = [("view", None) if n % 4 == 1 else (None, 2.0) for n in range(60)]
            plain = [UserHistory(f"u{n}", items, times) for n in range(5)]
            weighed = UserHistory("v", items, times, kinds)
            await importer().run(plain[:3], lambda done: None)
            result = await importer().run([*plain, weighed], lambda done: None)
            assert (result.written, result.present) == (180, 180)
            await importer().run([*plain, weighed], lambda done: None)
            await popularity.refresh()
            assert dict(popularity.counts.all) == {"a": 5 * 30 + 60, "b": 5 * 30 + 30}

    run(go())


# -- through the service -----------------------------------------------------------------


async def _cold_start(artefact: Artefact, url: str) -> None:
    options = {"popular_refresh_s": 0.05, "popular_least": 5}
    async with in_process(artefact.folder, url, **options) as client:

        async def get(path: str, **query: Any) -> dict[str, Any]:
            answer = await client.get(path, params=query)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        async def until(counted: float, path: str, source: str, **query: Any) -> dict[str, Any]:
            async with asyncio.timeout(LONG_S):
                while True:
                    found = await get(path, **query)
                    total = sum(item.get("count", item.get("score")) for item in found["items"])
                    if found["source"] == source and total > counted - 0.1:
                        return found
                    await asyncio.sleep(0.02)

        def ids(answer: dict[str, Any]) -> list[str]:
            return [item["item_id"] for item in answer["items"]]

        ranked = popular(artefact)
        for window in ("all", "recent"):
            answer = await get("/popular", window=window, k=7)
            assert (answer["source"], ids(answer)) == ("training", ranked[:7])
        assert (await get("/recommend", user_id="new"))["source"] == "popular"

        async def post(user: str, item: str, **rest: Any) -> None:
            body = {"user_id": user, "item_id": item, **rest}
            assert (await client.post("/interactions", json=body)).status_code in (200, 409)

        old = {"timestamp": BASE_MS}  # years ago: of all time, but not of late
        for n in range(9):
            await post(f"u{n}", "i5", **old)
        answer = await until(9, "/popular", "all", window="all")
        assert answer["items"][0]["item_id"] == "i5"
        assert answer["items"][0]["count"] == 9
        assert (await get("/popular", window="recent"))["source"] == "training"
        for n in range(4):
            await post(f"u{n}", "i6", event_id="once")
            await post(f"u{n}", "i6", event_id="once")
            await post(f"u{n}", "i7", event_id="once")  # a conflict
        for n in range(2):
            await post(f"u{n}", "not in the vocabulary")
        answer = await until(6, "/popular", "recent", window="recent")
        assert ids(answer) == ["i6", "not in the vocabulary"]
        assert [item["count"] for item in answer["items"]] == pytest.approx([4, 2], rel=1e-3)
        assert answer["items"][0].get("title") == artefact.items.titles[6]  # type: ignore[index]
        answer = await until(4, "/recommend", "recent", user_id="new", k=5, exclude=ranked[0])
        assert answer["version"] == 0
        rest = [item for item in ranked[1:] if item != "i6"]
        assert ids(answer) == ["i6", *rest][:5]
        assert [item["score"] for item in answer["items"][1:]] == [0] * 4
        body = {"user_id": "new", "item_ids": [*ranked[:3], "i6"]}
        ranking = (await client.post("/rank", json=body)).json()
        assert ranking["source"] == "recent"
        assert ids(ranking) == ["i6", *(item for item in ranked[:3] if item != "i6")]
        session = (await client.post("/recommend/session", json={"events": [], "k": 3})).json()
        assert (session["source"], ids(session)[0]) == ("recent", "i6")
        assert (await get("/recommend", user_id="u1"))["source"] == "model"


def test_who_is_not_known_gets_what_is_popular(
    run: Any, artefact: Artefact, store_url: str
) -> None:
    run(_cold_start(artefact, store_url))


def test_counts_are_those_of_all_services_and_outlive_them(
    artefact: Artefact, store_url: str, run: Any
) -> None:
    async def go() -> None:
        async with (
            in_process(artefact.folder, store_url) as one,
            in_process(artefact.folder, store_url) as other,
        ):
            for n in range(40):
                body = {"user_id": f"u{n}", "item_id": f"i{n % 3 % 2}"}
                answer = await (one if n % 5 else other).post("/interactions", json=body)
                assert answer.status_code == 200
        # The last ones were sent when they ended.
        async with in_process(artefact.folder, store_url) as client:
            async with asyncio.timeout(LONG_S):
                while True:
                    answer = (await client.get("/popular", params={"window": "all"})).json()
                    if answer["source"] == "all":
                        break
                    await asyncio.sleep(0.05)
        counts = [(item["item_id"], item["count"]) for item in answer["items"]]
        assert counts == [("i0", 27), ("i1", 13)]

    run(go())
