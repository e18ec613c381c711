"""Evidence made anew from the records, on a real server and a Cluster."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kinds import KindRules
from model.live.counting import TOTAL
from model.live.evidence import Evidence, Observed, user_key
from service.live.checkpoint import Checkpoints
from service.live.feed import Feed
from service.live.feed_writer import FeedWriter
from service.live.rebuild import Rebuild, RebuildError, Rebuilt
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import raised
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from tests.depth import examples
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.live import RULES, evidence_of, follower
from tests.service.processes import BASE_MS

Run = Callable[[Coroutine[Any, Any, Any]], Any]
KINDS = KindRules.parse("skip:hide")


@pytest.fixture(params=["valkey", "valkey_cluster"])
def either(request: pytest.FixtureRequest) -> ValkeyServer | ValkeyCluster:
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    return server


def rebuild(store: Store, *, page: int = 1000, **settings: Any) -> Rebuild:
    given: dict[str, Any] = {"heaviest": 10.0, "kinds": KINDS, "settled_s": 0.0} | settings
    feed, checkpoints = Feed(store), Checkpoints(store)
    return Rebuild(EventLog(store, page=page), feed, checkpoints, RULES, **given)


async def make(store: Store, **settings: Any) -> Rebuilt:
    return await rebuild(store, **settings).run(lambda done: None)


async def append(log: EventLog, user: str, *events: NewEvent, feed: Feed | None = None) -> None:
    """Logs events as a service does; `feed`: and tells of them."""
    (reply,) = await log.exchange([LogRequest(user, None, events)])
    if feed is not None:
        writer = FeedWriter(feed, heaviest=10, kinds=KINDS)
        for event, outcome in zip(events, raised(reply).outcomes, strict=True):
            writer.logged(user, event, outcome.time_ms)
        await writer.flush()


def new(item: str, minute: int, **more: Any) -> NewEvent:
    return NewEvent(new_uid(), item, BASE_MS + 60_000 * minute, **more)


def seen(user: str, item: str, minute: int, weight: float = 1.0) -> Observed:
    return Observed(user_key(user), item, BASE_MS + 60_000 * minute, weight)


def test_it_is_what_the_events_say_in_the_order_of_their_times(
    either: ValkeyServer | ValkeyCluster, run: Run
) -> None:
    """Kinds and weights as the feed has them, late events at their place, and no page too many."""

    async def go() -> None:
        draw, expected = random.Random(0), list[tuple[int, int, int, Observed]]()
        async with Store(either.url) as store:
            log = EventLog(store)
            for n in range(30):
                user, minute = f"u{n}", -1
                for version in range(1, draw.randrange(2, 25)):
                    given = minute + draw.randrange(-2 if version > 1 else 0, 5)
                    minute = max(minute, given)
                    kind = draw.choice([None, "skip", "buy"])
                    weight = draw.choice([None, 0.0, 0.1, 3.0, 11.0])
                    item = f"i{draw.randrange(12)}"
                    await append(log, user, new(item, given, kind=kind, weight=weight))
                    counted = 1.0 if weight is None else min(weight, 10.0)
                    if kind != "skip" and counted:
                        one = seen(user, item, given, float(np.float32(counted)))
                        expected.append((minute, one.user_key, version, one))
            result = await make(store, page=7)
            expected.sort()
            assert result == Rebuilt(len(expected), 12, 0, 0)
            live = follower(store)
            await live.start()
            records = [one for *_, one in expected]
            assert live.evidence.to_bytes() == evidence_of(records)

    run(go())


def test_the_newest_count_of_too_many(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store)
            for n in range(50):
                await append(log, f"u{n % 3}", *(new(f"i{n}", 100 * n + m) for m in range(10)))
            assert await make(store, most=120) == Rebuilt(120, 12, 380, 0)
            live = follower(store)
            await live.start()
            last = [
                seen(f"u{n % 3}", f"i{n}", 100 * n + m) for n in range(38, 50) for m in range(10)
            ]
            assert live.evidence.to_bytes() == evidence_of(last)

    run(go())


def test_records_that_cannot_be_read_are_counted(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store)
            await append(log, "ann", new("a", 0), new("a", 1))
            await append(log, "bob", new("a", 0))
            with valkey.client() as client:
                client.hset(log.keys.record("ann"), "e1", b"damaged")
            assert await make(store) == Rebuilt(1, 1, 0, 1)

    run(go())


def test_an_empty_log_makes_an_empty_one(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            assert await make(store) == Rebuilt(0, 0, 0, 0)
            live = follower(store)
            await live.start()
            assert live.evidence.to_bytes() == Evidence(RULES).to_bytes()

    run(go())


MOMENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["event", "told late", "erase", "checkpoint"])),
    max_size=30,
)


class Meanwhile:
    """What other processes do: moments of these, in order."""

    def __init__(self, store: Store, log: EventLog, moments: list[tuple[int, str]]) -> None:
        self.log, self.moments = log, iter(moments)
        self.writer = FeedWriter(Feed(store), heaviest=10, kinds=KINDS)
        self.running = follower(store)
        self._minutes = count(100)
        self._gone = set[str]()

    async def next(self, number: int) -> None:
        for place, what in islice(self.moments, number):
            user = f"u{place}"
            if what == "checkpoint":
                await self.running.follow()
                self.running._saved_at = -1e9
                await self.running.look()
            elif what == "erase":
                await self.writer.flush()
                await Erasures(self.log).erase(user)
                self._gone.add(user)
                self.writer.erased(user)
                await self.writer.flush()
            elif user not in self._gone:
                event = new("meanwhile", next(self._minutes))
                await append(self.log, user, event)
                self.writer.logged(user, event, BASE_MS)
                if what == "event":
                    await self.writer.flush()


class Watched(Rebuild):
    """Between any two of whose users something happens."""

    meanwhile: Meanwhile

    async def _read(self, users: list[str]) -> None:
        for user in users:
            await self.meanwhile.next(3)
            await super()._read([user])
        await self.meanwhile.next(30)
        await self.meanwhile.writer.flush()  # as it is, once that is waited for


@given(MOMENTS)
@settings(max_examples=examples(20))
def test_nothing_that_comes_meanwhile_is_missing_or_twice(
    valkey: ValkeyServer, run: Run, moments: list[tuple[int, str]]
) -> None:
    """Events are logged, and reach the feed at once or later, while the records are read; users
    are erased, and other processes write checkpoints."""

    async def go() -> None:
        with valkey.client() as client:
            client.flushall()
        async with Store(valkey.url) as store:
            log, feed = EventLog(store, page=4), Feed(store)
            made = Watched(
                log, feed, Checkpoints(store), RULES, heaviest=10, kinds=KINDS, settled_s=0
            )
            made.meanwhile = Meanwhile(store, log, moments)
            running = made.meanwhile.running
            for n in range(12):
                await append(log, f"u{n % 6}", new(f"i{n}", n), new("i", n), feed=feed)
            await running.start()
            await made.run(lambda done: None)
            await append(log, "someone", new("after", 0), feed=feed)
            await running.look()
            await running.follow()
            expected = Counter[str]()
            async for users in log.users():
                for user in users:
                    async for page in log.events(user):
                        expected.update(event.item_id for event in page)
            evidence = running.evidence
            totals = evidence.counts.stats[:, TOTAL].tolist()
            found = zip(evidence.item_ids, totals, strict=False)
            assert dict(found) == expected
            assert evidence.n_events == expected.total()

    run(go())


def test_a_feed_that_is_too_short_is_said(
    valkey: ValkeyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            log, feed = EventLog(store), Feed(store, most=5)
            await append(log, "ann", new("a", 0), feed=feed)
            made = rebuild(store)

            async def read(users: list[str]) -> None:
                for n in range(20):
                    await feed.add([seen("ann", "a", n)])

            monkeypatch.setattr(made, "_read", read)
            with pytest.raises(RebuildError, match="live_feed_events"):
                await made.run(lambda done: None)
            assert await Checkpoints(store).newest() is None

    run(go())
