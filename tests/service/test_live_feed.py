"""The feed of accepted events, on a real server and a Cluster."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.kinds import KindRules
from model.live.evidence import Evidence, Observed, user_key
from service.live import feed as feeds
from service.live.entry import Forgotten, Record, packed, unpacked
from service.live.feed import BEGINNING, Feed
from service.live.feed_writer import FeedWriter, observed
from service.store.client import Store
from service.store.events import NewEvent, new_uid
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.live import events
from tests.service.processes import BASE_MS

Run = Callable[[Coroutine[Any, Any, Any]], Any]

KEYS = st.integers(-(2**63), 2**63 - 1)
ITEM_IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
OBSERVED = st.builds(Observed, KEYS, ITEM_IDS, KEYS, st.floats(0, 1e9, width=32))


@given(st.lists(st.one_of(OBSERVED, st.builds(Forgotten, KEYS))))
def test_records_come_out_as_they_went_in(records: list[Record]) -> None:
    assert list(unpacked(packed(records))) == records


@pytest.fixture(params=["valkey", "valkey_cluster"])
def either(request: pytest.FixtureRequest) -> ValkeyServer | ValkeyCluster:
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    return server


async def everything(feed: Feed) -> list[Record]:
    position, found = BEGINNING, list[Record]()
    while entries := await feed.after(position):
        for entry in entries:
            assert entry.begin == position.records or not found
            found += entry.records()
            position = entry.end
    assert position == await feed.end()
    return found


def test_all_read_one_order(either: ValkeyServer | ValkeyCluster, run: Run) -> None:
    """Also of more records than fit into an entry."""

    async def go() -> None:
        async with Store(either.url) as one, Store(either.url) as other:
            writers = Feed(one), Feed(other)
            added = list[Record]()
            for n in range(50):
                part = events(3, seed=n)
                await writers[n % 2].add(part)
                added += part
            many = events(2 * feeds.LARGEST + 1)
            await writers[0].add(many)
            for feed in writers:
                assert await everything(feed) == added + many

    run(go())


def test_it_is_bounded_in_records(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            feed, added = Feed(store, most=100), events(400)
            for start in range(0, 400, 7):
                await feed.add(added[start : start + 7])
            kept = await everything(feed)
            assert 100 <= len(kept) < 107
            assert kept == added[-len(kept) :]
            # One with a smaller bound gets there with time.
            for n in range(20):
                await Feed(store, most=5).add(added[n : n + 1])
            assert await everything(feed) == added[15:20]

    run(go())


def test_it_is_bounded_in_time(
    valkey: ValkeyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            feed, (old, new) = Feed(store), events(2)
            await feed.add([old])
            await feed.add([old])
            monkeypatch.setattr(feeds, "KEPT_S", -1)
            await feed.add([new])
            assert await everything(feed) == [new]

    run(go())


def test_what_is_logged_gets_there(valkey: ValkeyServer, run: Run) -> None:
    """By its own time or the log's, as far as its kind counts, and no heavier than allowed."""

    async def go() -> None:
        async with Store(valkey.url) as store:
            feed = Feed(store)
            writer = FeedWriter(feed, heaviest=10, kinds=KindRules.parse("skip:hide,see:count"))

            def log(kind: str | None, weight: float | None, given: int | None = BASE_MS) -> None:
                event = NewEvent(new_uid(), f"of {kind}", given, None, kind, weight)
                writer.logged("ann", event, BASE_MS + 1)

            log(None, None)
            log("see", 2.5, None)
            log("skip", 2.0)
            log("buy", 11.0)
            log("worthless", 0.0)
            writer.erased("ann")
            log("after", None)
            await writer.flush()
            await writer.flush()
            ann = user_key("ann")
            assert await everything(feed) == [
                Observed(ann, "of None", BASE_MS, 1.0),
                Observed(ann, "of see", BASE_MS + 1, 2.5),
                Observed(ann, "of buy", BASE_MS, 10.0),
                Forgotten(ann),
                Observed(ann, "of after", BASE_MS, 1.0),
            ]

    run(go())


def test_what_waits_at_the_end_is_sent(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            feed = Feed(store)
            writer = FeedWriter(feed)
            async with writer.running():
                writer.logged("ann", NewEvent(new_uid(), "a", BASE_MS), BASE_MS)
            assert await everything(feed) == [Observed(user_key("ann"), "a", BASE_MS, 1.0)]

    run(go())


def test_what_weighs_nothing_in_the_feed_is_not_sent() -> None:
    """In float32 it would be 0, which evidence refuses, again and again."""
    for weight in (0.0, 1e-300, 1e-45):
        event = NewEvent(new_uid(), "i", weight=weight)
        assert observed("u", event, BASE_MS, 10.0) is None
    event = NewEvent(new_uid(), "i", weight=1e-30)
    record = observed("u", event, BASE_MS, 10.0)
    assert record is not None
    (found,) = unpacked(packed([record]))
    assert isinstance(found, Observed)
    Evidence().observe([found])
