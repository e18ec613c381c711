"""Processes that hold the same evidence, on a real server and a Cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from model.live.evidence import EvidenceRules, Observed
from service.live.checkpoint import Checkpoints
from service.live.entry import Forgotten, Record
from service.live.feed import Feed
from service.live.live_evidence import LiveEvidence
from service.observe import live_metrics
from service.store.client import Store
from service.store.errors import StoreError
from tests.depth import examples
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.live import events, evidence_of, follower, value
from tests.service.processes import BASE_MS, in_process, make_artefact
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]
KEY = "tim4rec:live:checkpoint"


@pytest.fixture(params=["valkey", "valkey_cluster"])
def either(request: pytest.FixtureRequest) -> ValkeyServer | ValkeyCluster:
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    return server


async def at_last(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def checkpointed(live: LiveEvidence) -> None:
    """Writes one now."""
    live._saved_at = -1e9
    await live.look()
    assert live._saved == live.position


RECORDS = st.lists(
    st.one_of(
        st.builds(
            Observed,
            st.integers(0, 7),
            st.sampled_from("abcdef"),
            st.integers(BASE_MS, BASE_MS + 3_600_000),
            st.floats(0.5, 4, width=32),
        ),
        st.builds(Forgotten, st.integers(0, 7)),
    ),
    max_size=6,
)
STEPS = st.lists(st.one_of(RECORDS, st.sampled_from(["follow", "checkpoint", "start"])))


@given(STEPS)
@settings(max_examples=examples(25))
def test_all_hold_what_the_feed_says(valkey: ValkeyServer, run: Run, steps: list[Any]) -> None:
    """Two processes write, follow, checkpoint and start anew, in any order; in the end each holds
    what one holds that was there all the time."""

    async def go() -> None:
        with valkey.client() as client:
            client.flushall()
        async with Store(valkey.url) as one, Store(valkey.url) as other:
            stores, added = (one, other), list[Record]()
            lives = [follower(store) for store in stores]
            for live in lives:
                await live.start()
            for n, step in enumerate(steps):
                own = n % 2
                if step == "follow":
                    await lives[own].follow()
                elif step == "start":
                    lives[own] = follower(stores[own])
                    await lives[own].start()
                elif step == "checkpoint":
                    lives[own]._saved_at = -1e9
                    await lives[own].look()
                elif step:
                    await Feed(stores[own]).add(step)
                    added += step
            lives.append(follower(one))
            await lives[-1].start()
            for live in lives:
                await live.look()
                await live.follow()
                assert live.evidence.to_bytes() == evidence_of(added)

    run(go())


def test_a_checkpoint_is_as_good_as_all_of_the_feed(
    either: ValkeyServer | ValkeyCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.live.checkpoint.CHUNK", 100)  # many

    async def go() -> None:
        async with Store(either.url) as store:
            added = events(300)
            feed, live = Feed(store), follower(store)
            await live.start()
            for start in range(0, 200, 50):
                await feed.add(added[start : start + 50])
                await live.follow()
                await checkpointed(live)
            await store.request(("UNLINK", "tim4rec:live"))  # it is not needed
            started = follower(store)
            await started.start()
            assert started.position == live.position
            assert started.evidence.to_bytes() == evidence_of(added[:200])
            await feed.add(added[200:])
            before = value(live_metrics.GAPS)
            for one in (live, started):
                await one.follow()
                assert one.evidence.to_bytes() == evidence_of(added)
            # The feed was taken away, which both have noticed.
            assert value(live_metrics.GAPS) == before + 2

    run(go())


def test_one_of_them_writes_checkpoints(valkey: ValkeyServer, run: Run) -> None:
    """When the time has come, or when half of what the feed holds has come; nothing is written
    where nothing has happened. The chunks of those before are gone after a while."""

    async def go() -> None:
        async with Store(valkey.url) as one, Store(valkey.url) as other:
            lives = [follower(store, most=1000, checkpoint_s=1e9) for store in (one, other)]
            for live in lives:
                await live.start()
            feed, pointers = Feed(one), list[bytes | None]()
            reloads = value(live_metrics.RELOADS)
            for number in (0, 10, 500, 10):
                await feed.add(events(number)) if number else None
                for live in lives:
                    await live.follow()
                for live in lives:
                    await live.look()
                pointers.append(await Checkpoints(one).newest())
            assert pointers[0] is None
            assert pointers[1] is None
            assert pointers[2] is not None
            assert pointers[3] == pointers[2]
            await checkpointed(lives[0])
            await checkpointed(lives[1])  # takes note of it, for there is nothing new
            # Only the first was of another lineage for the other process.
            assert value(live_metrics.RELOADS) == reloads + 1
            with valkey.client() as client:
                newest = json.loads(client.get(KEY))["name"]
                for key in client.scan_iter(f"{KEY}:*"):
                    assert (client.ttl(key) == -1) == (newest in key.decode()), key
                assert client.exists(f"{KEY}:lock") == 0

    run(go())


def test_two_that_write_at_once_leave_a_whole_one(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as one, Store(valkey.url) as other:
            lives = [follower(store) for store in (one, other)]
            for live in lives:
                await live.start()
            for n in range(10):
                await Feed(one).add(events(20, seed=n))
                for live in lives:
                    await live.follow()
                await asyncio.gather(*(live._write() for live in lives))
                for live in lives:
                    await live.look()
                started = follower(one)
                await started.start()
                expected = [record for k in range(n + 1) for record in events(20, seed=k)]
                for live in (*lives, started):
                    assert live.evidence.to_bytes() == evidence_of(expected)

    run(go())


def damage(client: redis.Redis, how: str) -> None:
    pointer = json.loads(client.get(KEY))
    chunk = f"{KEY}:{pointer['name']}:0"
    stored = client.get(chunk)
    assert stored is not None
    match how:
        case "no chunk":
            client.delete(chunk)
        case "a cut chunk":
            client.set(chunk, stored[:-5])
        case "a changed digest":
            client.set(KEY, json.dumps(pointer | {"digest": "0"}))
        case "no pointer":
            client.set(KEY, b"\xffnone")
        case "a pointer without fields":
            client.set(KEY, b"{}")
        case "other rules":
            client.set(KEY, json.dumps(pointer | {"rules": {"neighbours": 9, "users": 9}}))


HOWS = [
    "no chunk", "a cut chunk", "a changed digest", "no pointer", "a pointer without fields",
    "other rules",
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_one_that_cannot_be_used_is_replaced(
    valkey: ValkeyServer, run: Run, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The service starts with what the feed holds."""

    async def go() -> None:
        async with Store(valkey.url) as store:
            feed, live = Feed(store), follower(store)
            await live.start()
            await feed.add(events(50))
            await live.follow()
            await checkpointed(live)
            with valkey.client() as client:
                damage(client, how)
            started = follower(store)
            await started.start()
            (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
            assert "is not used: " in warning
            assert "tim4rec live rebuild" in warning
            assert started.evidence.to_bytes() == evidence_of(events(50))
            await checkpointed(started)
            again = follower(store)
            await again.start()
            assert again._lineage == started._lineage

    run(go())


def test_processes_with_old_settings_leave_new_ones_alone(
    valkey: ValkeyServer, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """While services are started anew, one after the other, with another live_neighbours."""

    async def go() -> None:
        async with Store(valkey.url) as store:
            old, new = follower(store), follower(store, EvidenceRules(3, 5))
            await old.start()
            await Feed(store).add(events(50))
            await old.follow()
            await checkpointed(old)
            await new.start()
            await checkpointed(new)
            pointer = await Checkpoints(store).newest()
            await Feed(store).add(events(5))
            for _ in range(3):
                await old.follow()
                old._saved_at = -1e9
                await old.look()
            assert await Checkpoints(store).newest() == pointer
            assert old.evidence.n_events == 55
            told = [r for r in caplog.records if "other live_neighbours" in r.getMessage()]
            assert len(told) == 2  # by each of them, once

    run(go())


def test_who_was_away_too_long_goes_on_from_a_checkpoint(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(valkey.url) as one, Store(valkey.url) as other:
            away, there = follower(one, most=100), follower(other, most=100)
            feed, added = Feed(one, most=100), events(1000)
            await away.start()
            await there.start()
            before = value(live_metrics.GAPS)
            for start in range(0, 1000, 20):
                await feed.add(added[start : start + 20])
                await there.follow()
                await there.look()
            await away.follow()
            assert away.evidence.to_bytes() == there.evidence.to_bytes() == evidence_of(added)
            assert value(live_metrics.GAPS) == before

    run(go())


def test_what_the_feed_has_lost_is_said(
    valkey: ValkeyServer, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with Store(valkey.url) as store:
            live, feed, added = follower(store, most=100), Feed(store, most=100), events(500)
            await live.start()
            await feed.add(added[:20])
            await live.follow()
            await checkpointed(live)
            before = value(live_metrics.GAPS)
            for start in range(20, 500, 20):
                await feed.add(added[start : start + 20])
            await live.follow()
            await live.follow()
            assert value(live_metrics.GAPS) == before + 1
            assert live.evidence.to_bytes() == evidence_of(added[:20] + added[400:])
            told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
            assert len(told) == 1
            assert "has lost 380 events" in told[0]

    run(go())


def test_it_goes_on_when_the_store_is_back(durable_valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        async with Store(durable_valkey.url, timeout_s=1) as store:
            live, feed, added = follower(store), Feed(store), events(90)
            async with live.running():
                await feed.add(added[:50])
                durable_valkey.kill()
                with pytest.raises(StoreError):
                    await feed.add(added[50:])
                failures = value(live_metrics.FAILURES)
                await at_last(lambda: value(live_metrics.FAILURES) > failures)
                durable_valkey.start()
                async with asyncio.timeout(LONG_S):
                    while True:
                        try:
                            await feed.add(added[50:])
                            break
                        except StoreError:
                            await asyncio.sleep(0.05)
                await at_last(lambda: live.evidence.n_events >= 90)
            assert live.evidence.to_bytes() == evidence_of(added)

    run(go())


@pytest.fixture(scope="module")
def artefact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("live") / "model", ["a", "b", "c"]).folder


def test_services_count_what_is_posted_to_any(
    valkey: ValkeyServer, run: Run, artefact_folder: Path
) -> None:
    """And forget an erased user's last items."""

    async def go() -> None:
        async with (
            in_process(artefact_folder, valkey.url) as one,
            in_process(artefact_folder, valkey.url) as other,
        ):
            lives = [live_of(client) for client in (one, other)]

            async def post(client: Any, user: str, item: str, **more: Any) -> None:
                body = {"user_id": user, "item_id": item, **more}
                (await client.post("/interactions", json=body)).raise_for_status()

            async def counted(number: int) -> None:
                await at_last(lambda: all(live.evidence.n_events >= number for live in lives))

            await post(one, "ann", "a")
            await post(other, "ann", "b")
            await counted(2)
            await post(one, "ann", "a", event_id="e")
            await post(one, "ann", "a", event_id="e")
            await post(other, "bob", "not in the model")
            await counted(4)
            assert lives[0].evidence.to_bytes() == lives[1].evidence.to_bytes()
            assert lives[0].evidence.n_events == 4
            (await one.delete("/users/ann")).raise_for_status()
            await at_last(lambda: all(len(live.evidence._slots) == 1 for live in lives))

    run(go())


def live_of(client: Any) -> LiveEvidence:
    live: LiveEvidence | None = client._transport.app.api.state.services.context.live
    assert live is not None
    return live


def test_off_it_leaves_nothing(valkey: ValkeyServer, run: Run, artefact_folder: Path) -> None:
    async def go() -> None:
        async with in_process(artefact_folder, valkey.url, live=False) as client:
            body = {"user_id": "ann", "item_id": "a"}
            (await client.post("/interactions", json=body)).raise_for_status()
            assert client._transport.app.api.state.services.context.live is None
        with valkey.client() as keys:
            assert keys.keys("*:live*") == []

    run(go())
