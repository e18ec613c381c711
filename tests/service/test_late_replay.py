"""Late events put in their place: the script against its rules, and against two writers at once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.environment import SettingsError, read_settings
from service.store.client import Store
from service.store.errors import RecordDamaged
from service.store.event_log import EventLog, LogReply
from service.store.events import ORIGIN, Event, NewEvent, new_uid
from tests.depth import examples
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    make_artefact,
    offline_scores,
    pairs,
)
from tests.service.processes import history as logged
from tests.service.record import Record
from tests.service.test_event_log import ask, history, new, verdicts

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]

WINDOW, LIMIT = 14, 6


def replaying(store: Store, **options: Any) -> EventLog:
    return EventLog(store, **{"late_policy": "replay", **options})


def told(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(event.item_id, event.time_ms) for event in events]


def test_a_late_event_comes_after_those_that_are_not_younger(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = replaying(store)
            first = [new("a", 10), new("b", 20, "b"), new("c", 20), new("d", 30, "d")]
            before = (await ask(log, "u", *first, known=ORIGIN)).events
            late = new("late", 20)
            reply = await ask(log, "u", late, known=before[2].mark)
            assert [(o.verdict.value, o.version, o.time_ms) for o in reply.outcomes] == [
                ("late", 4, 20)
            ]
            # Who knew no more than what comes before it is told what follows.
            assert reply.known_is_current_history
            assert told(reply.events) == [("late", 20), ("d", 30)]
            events = await history(log, "u")
            assert events[:3] == before[:3]
            assert events[3].uid == late.uid
            moved = events[4]
            assert moved.uid not in (first[3].uid, late.uid)
            assert (moved.sent_uid, moved.version, moved.event_id) == (first[3].uid, 5, "d")
            assert not (await ask(log, "u", known=before[3].mark)).known_is_current_history

            # Sent again, each finds its event where that is now, whatever has moved.
            again = await ask(log, "u", late, *first)
            places = [("late", 4), ("applied", 1), ("applied", 2), ("applied", 3), ("applied", 5)]
            assert verdicts(again) == places
            reply = await ask(log, "u", new("d", 30, "d"), new("x", 30, "d"), new("earliest", 1))
            assert verdicts(reply) == [("duplicate", 6), ("conflict", 6), ("late", 1)]
            twice_moved = (await history(log, "u"))[5]
            assert twice_moved.sent_uid == first[3].uid
            assert twice_moved.uid not in (moved.uid, first[3].uid)
            assert (await ask(log, "u", late)).outcomes[0].version == 5

    run(main())


def test_what_belongs_too_far_back_is_rejected(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = replaying(store, dedup_window=10, replay_limit=3)
            await ask(log, "u", *[new(f"{i}", i) for i in range(3)])
            await ask(log, "u", *[new(f"{i}", i) for i in range(3, 6)])
            reply = await ask(log, "u", new("far", 1), new("near", 2), new("new", 9))
            assert verdicts(reply) == [("rejected", None), ("late", 4), ("applied", 8)]
            assert [item for item, _ in told(await history(log, "u"))] == [
                "0", "1", "2", "near", "3", "4", "5", "new"
            ]  # fmt: skip

    run(main())


def test_what_belongs_before_the_oldest_kept_is_rejected(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            short = EventLog(store, dedup_window=3, history_limit=3)
            for i in range(6):
                await ask(short, "u", new(f"{i}", 10 * i))
            log = replaying(store)
            reply = await ask(log, "u", new("gone", 29), new("kept", 30))
            assert verdicts(reply) == [("rejected", None), ("late", 5)]
            assert [(e.version, e.item_id) for e in await history(log, "u")] == [
                (4, "3"), (5, "kept"), (6, "4"), (7, "5")
            ]  # fmt: skip

    run(main())


def test_of_two_with_an_event_id_the_younger_is_found_though_both_move(
    run: Run, store_url: str
) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            wide, narrow = replaying(store), EventLog(store, dedup_window=2)
            await ask(wide, "u", new("old", 10, "x"), new("b", 20), new("c", 30))
            assert verdicts(await ask(narrow, "u", new("young", 40, "x"))) == [("applied", 4)]
            assert verdicts(await ask(wide, "u", new("first", 5))) == [("late", 1)]
            reply = await ask(wide, "u", new("second", 6), new("young", 40, "x"))
            assert verdicts(reply) == [("late", 2), ("duplicate", 6)]

    run(main())


def test_a_damaged_record_is_not_touched(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = replaying(store)
            await ask(log, "u", *[new(f"{i}", 10 * i) for i in range(5)])
            with valkey.client() as client:
                client.hdel("tim4rec:u:u", "e2")
                left = client.hgetall("tim4rec:u:u")
                with pytest.raises(RecordDamaged, match="event 2 is missing"):
                    await ask(log, "u", new("new", 50), new("late", 5))
                assert client.hgetall("tim4rec:u:u") == left

    run(main())


def test_a_moved_event_is_stored_with_both_uids(run: Run, valkey: ValkeyServer) -> None:
    """Records outlive the code: what is stored today must be readable tomorrow."""

    async def main() -> None:
        async with Store(valkey.url) as store:
            log = replaying(store)
            await ask(log, "u", NewEvent(b"uid-one.", "item", 258, "id"))
            await ask(log, "u", NewEvent(b"uid-two.", "b", 1))
        with valkey.client() as client:
            stored = client.hgetall("tim4rec:u:u")
        one, two = b"\0\0\0\0\0\0\x01\x02", b"\0\0\0\0\0\0\0\x01"
        assert stored == {
            b"n": b"2",
            b"e1": b"uid-two." + two + two + b"\x20\0" + b"b",
            b"e2": b"iS\x16y\xd6LO\x0c" + one + one + b"\x40\x02" + b"iditem" + b"uid-one.",
            b"iuuid-two.": b"1",
            b"icid": b"2",
        }

    run(main())


async def _posted(service: Service, events: list[dict[str, Any]]) -> None:
    limits = httpx.Limits(max_keepalive_connections=0)  # any worker may get the next request
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:

        async def write(part: list[dict[str, Any]]) -> None:
            for event in part:
                answer = await client.post("/interactions", json=event)
                assert answer.status_code == 200, answer.text
                query = {"user_id": event["user_id"], "k": 1}
                found = (await client.get("/recommend", params=query)).json()
                assert found["version"] >= answer.json()["version"]

        await asyncio.gather(write(events[::2]), write(events[1::2]))


@pytest.mark.slow
def test_workers_answer_as_if_all_had_arrived_in_order(
    run: Run, valkey: ValkeyServer, folder: Path
) -> None:
    items = [f"i{n}" for n in range(30)]
    artefact = make_artefact(folder / "model", items)
    draw = random.Random(1)
    events = [
        {
            "user_id": f"u{n % 3}",
            "item_id": draw.choice([*items, "unknown"]),
            "timestamp": BASE_MS + draw.randrange(40) * 3_600_000,
            "event_id": f"e{n}",
        }
        for n in range(90)
    ]
    at = BASE_MS + 10**9
    service = Service(
        artefact.folder, folder / "output", "--workers", "2", "--redis", valkey.url,
        late_policy="replay", snapshot_every=4,
    )  # fmt: skip
    try:
        service.start()
        run(_posted(service, events))
        with service.client() as client:
            for user in ("u0", "u1", "u2"):
                exported = logged(client, user)
                assert {e["event_id"] for e in exported} == {
                    e["event_id"] for e in events if e["user_id"] == user
                }
                assert all(e["given_timestamp"] == e["timestamp"] for e in exported)
                history = pairs(exported)
                assert [ms for _, ms in history] == sorted(ms for _, ms in history)
                scores = offline_scores(artefact, history, at)
                for _ in range(6):
                    query = {"user_id": user, "k": 30, "at": at, "exclude_seen": False}
                    answer = httpx.get(f"{service.url}/recommend", params=query).json()
                    assert answer["version"] == len(history)
                    check_answer(answer, scores, 30)
    finally:
        service.kill()


@pytest.mark.parametrize("policy", ["replay", "clamp"])
def test_the_limit_fits_the_window(tmp_path: Path, policy: str) -> None:
    given = {"artefact": tmp_path, "late_policy": policy, "replay_limit": 6, "dedup_window": 11}
    if policy == "clamp":
        read_settings(given)
    else:
        with pytest.raises(SettingsError, match=r"replay_limit 6 must be at most half of dedup_"):
            read_settings(given)
        with pytest.raises(ValueError, match=r"^replay_limit is 6; give 1 to half of dedup_"):
            EventLog(Store("unix:///none"), late_policy="replay", replay_limit=6, dedup_window=11)


sent = st.tuples(
    st.sampled_from(["x", "y"]),
    st.none() | st.integers(-6, 3),
    st.none() | st.sampled_from("123456789"),
    st.sampled_from([None, "view"]),
)
requests = st.tuples(
    st.sampled_from(["clamp", "replay", "replay", "replay"]),
    st.lists(sent, min_size=1, max_size=(WINDOW - LIMIT) // 2),
)


@settings(max_examples=examples(20))
@given(work=st.lists(requests, max_size=14), again=st.randoms(use_true_random=False))
def test_the_record_is_what_the_rules_say(
    run: Run, valkey: ValkeyServer, work: list[Any], again: Any
) -> None:
    """Densely: few times and ids, requests that hold both what moves and what looks for it."""

    async def main() -> None:
        async with Store(valkey.url) as store:
            options: dict[str, Any] = {
                "namespace": uuid.uuid4().hex, "dedup_window": WINDOW, "replay_limit": LIMIT
            }  # fmt: skip
            logs = {p: EventLog(store, late_policy=p, **options) for p in ("clamp", "replay")}
            record, earlier = Record(WINDOW, LIMIT), [NewEvent(new_uid(), "x", 0)]
            now = (await ask(logs["clamp"], "u")).now_ms
            for policy, events in work:
                batch = [
                    new(item, off and now + 1000 * off, name, kind)
                    for item, off, name, kind in events
                ]
                if again.random() < 0.3:
                    batch[-1] = again.choice(earlier[-2 * WINDOW :])
                earlier += batch
                known = again.choice([ORIGIN, *(event.mark for event in record.events)])
                reply = await ask(logs[policy], "u", *batch, known=known)
                outcomes = record.append(batch, reply.now_ms, policy)
                in_history, page = record.reply(known, 256, 1)
                assert reply == LogReply(
                    outcomes, record.newest, in_history, page, True, None, reply.now_ms
                )
            assert await history(logs["clamp"], "u") == record.events
            with valkey.client() as client:
                names = [
                    name for name in client.hkeys(f"{options['namespace']}:u:u")
                    if name.startswith((b"iu", b"ic"))
                ]  # fmt: skip
            assert len(names) == len({one.sent.event_id or one.sent.uid
                                      for one in record.log[-WINDOW:]})  # fmt: skip

    run(main())


def test_two_writers_at_once(run: Run, durable_valkey: ValkeyServer) -> None:
    """Each writes late into what the other has just written; nothing is lost, all is in order."""
    each = 60

    async def write(store: Store, who: int) -> None:
        log = replaying(store)
        known = ORIGIN
        for i in range(0, each, 3):
            times = [BASE_MS + (i * 7 + 11 * j) % 50 * 1000 for j in range(3)]
            events = [new(f"{who}-{i + j}", ms, f"{who}-{i + j}") for j, ms in enumerate(times)]
            reply = await ask(log, "u", *events, known=known)
            assert {o.verdict.value for o in reply.outcomes} <= {"applied", "late"}
            known = reply.newest
            found = {event.sent_uid: event for event in await history(log, "u")}
            assert [found[event.uid].time_ms for event in events] == times

    async def main() -> None:
        async with Store(durable_valkey.url) as one, Store(durable_valkey.url) as two:
            await asyncio.gather(write(one, 0), write(two, 1))
            events = await history(replaying(one), "u")
            assert len({event.item_id for event in events}) == len(events) == 2 * each
            assert [e.time_ms for e in events] == sorted(e.time_ms for e in events)
            assert all(event.given_ms == event.time_ms for event in events)
            assert len({event.uid for event in events}) == len(events)

    run(main())
