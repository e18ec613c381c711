"""The event log against a real server, and against a plain model of what it promises."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import (
    HistoryChanged,
    InvalidRequest,
    RecordDamaged,
    StoreError,
    StoreUnavailable,
)
from service.store.event_log import EventLog, LatePolicy, LogReply, LogRequest, UserRecord
from service.store.events import ORIGIN, Event, Mark, NewEvent, Outcome, Verdict, new_uid
from service.store.node import Node
from service.store.script import Command
from service.store.snapshot_store import SnapshotStore
from tests.depth import examples
from tests.service.record import Record, read_snapshots
from tests.waited import waited

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyCluster, ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]

MINUTE = 60_000


@pytest.fixture(params=["valkey", "valkey_cluster"])
def either(request: pytest.FixtureRequest) -> ValkeyServer | ValkeyCluster:
    """One server, and a Cluster: both must keep the same promises."""
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def store_url(either: ValkeyServer | ValkeyCluster) -> str:
    return either.url


def new(
    item: str = "item",
    time_ms: int | None = None,
    event_id: str | None = None,
    kind: str | None = None,
    weight: float | None = None,
) -> NewEvent:
    return NewEvent(new_uid(), item, time_ms, event_id, kind, weight)


async def ask(log: EventLog, user: str, *events: NewEvent, known: Mark | None = None) -> LogReply:
    (reply,) = await log.exchange([LogRequest(user, known, events)])
    if isinstance(reply, StoreError):
        raise reply
    return reply


async def history(log: EventLog, user: str, after: Mark | int = 0) -> list[Event]:
    return [event async for page in log.events(user, after) for event in page]


def verdicts(reply: LogReply) -> list[tuple[str, int | None]]:
    return [(outcome.verdict.value, outcome.version) for outcome in reply.outcomes]


# What is appended, and what is answered.


def test_append_and_answer(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            first, second = new("ä/1", 5, "id é"), new("b")
            reply = await ask(log, "u", first, second, known=ORIGIN)
            assert reply.outcomes == [
                Outcome(Verdict.APPLIED, 1, 5),
                Outcome(Verdict.APPLIED, 2, reply.now_ms),
            ]
            assert reply.newest == Mark(2, second.uid)
            assert reply.known_is_current_history
            assert reply.complete
            assert reply.snapshot is None
            assert reply.events == [
                Event(1, first.uid, "ä/1", 5, 5, "id é"),
                Event(2, second.uid, "b", None, reply.now_ms, None),
            ]
            assert reply.events[1].mark == reply.newest

            later = await ask(log, "u", known=reply.newest)
            assert later == reply._replace(outcomes=[], events=[], now_ms=later.now_ms)
            assert await history(log, "u") == reply.events

    run(main())


def test_unknown_user(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            reply = await ask(log, "nobody")
            assert reply == LogReply([], ORIGIN, False, [], True, None, reply.now_ms)
            reply = await ask(log, "nobody", known=ORIGIN)
            assert reply == LogReply([], ORIGIN, True, [], True, None, reply.now_ms)
            assert await history(log, "nobody") == []
            assert await log.describe("nobody") is None
            assert not await Erasures(log).erase("nobody")

    run(main())


def test_the_clock_is_the_store_s(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            before = clock(valkey)
            reply = await ask(EventLog(store), "u", new())
            assert before <= reply.now_ms <= clock(valkey)

    run(main())


def clock(valkey: ValkeyServer) -> int:
    with valkey.client() as client:
        seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def test_late_events(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            clamps, rejects = EventLog(store), EventLog(store, late_policy="reject")
            await ask(clamps, "u", new(time_ms=1000))
            late, on_time = new(time_ms=999), new(time_ms=1000)
            reply = await ask(rejects, "u", late, on_time)
            assert reply.outcomes == [
                Outcome(Verdict.REJECTED, None, None),
                Outcome(Verdict.APPLIED, 2, 1000),
            ]
            reply = await ask(clamps, "u", late)
            assert reply.outcomes == [Outcome(Verdict.LATE, 3, 1000)]
            assert reply.events[-1] == Event(3, late.uid, "item", 999, 1000, None)
            # An earlier attempt's answer, whatever the policy.
            again = await ask(rejects, "u", late, on_time)
            assert verdicts(again) == [("late", 3), ("applied", 2)]

    run(main())


def test_future_events(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            now = (await ask(log, "u")).now_ms
            far, near = now + 6 * MINUTE, now + 4 * MINUTE
            reply = await ask(log, "u", new(time_ms=far), new(time_ms=near), new())
            assert reply.outcomes == [
                Outcome(Verdict.FUTURE, None, None),
                Outcome(Verdict.APPLIED, 1, near),
                Outcome(Verdict.APPLIED, 2, near),  # the store's clock is behind the newest
            ]

    run(main())


@pytest.mark.parametrize("time_ms", [-(2**53), -1, 0, 1, 1_700_000_000_123])
def test_times_are_exact(run: Run, store_url: str, time_ms: int) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            reply = await ask(EventLog(store), "u", new(time_ms=time_ms))
            assert reply.outcomes == [Outcome(Verdict.APPLIED, 1, time_ms)]
            assert (reply.events[0].given_ms, reply.events[0].time_ms) == (time_ms, time_ms)

    run(main())


def test_duplicates_and_conflicts(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            reply = await ask(
                log,
                "u",
                new("a", 10, "x"),
                new("a", 10, "x"),
                new("b", 10, "x"),
                new("a", None, "x"),
                new("b", 10, "y"),
                new("a", 10),
            )
            assert [outcome.verdict for outcome in reply.outcomes] == [
                Verdict.APPLIED,
                Verdict.DUPLICATE,
                Verdict.CONFLICT,
                Verdict.CONFLICT,
                Verdict.APPLIED,
                Verdict.APPLIED,
            ]
            assert [outcome.version for outcome in reply.outcomes] == [1, 1, 1, 1, 2, 3]
            assert [outcome.time_ms for outcome in reply.outcomes] == [10] * 6
            reply = await ask(log, "u", new("b", 10, "y"), new("c", 10, "y"), new("c", 10, "z"))
            assert verdicts(reply) == [("duplicate", 2), ("conflict", 2), ("applied", 4)]
            assert [event.item_id for event in reply.events] == ["a", "b", "a", "c"]

    run(main())


def test_an_event_id_cannot_pose_as_a_uid(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            await ask(log, "u", NewEvent(b"abcdefgh", "a"))
            for event_id in ("abcdefgh", "uabcdefgh", "iuabcdefgh"):
                reply = await ask(log, "u", new("a", event_id=event_id))
                assert reply.outcomes[0].verdict is Verdict.APPLIED
            assert reply.newest.version == 4

    run(main())


def test_dedup_window(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store, dedup_window=4)
            events = [new(event_id=f"e{i}" if i % 2 else None) for i in range(10)]
            for event in events:
                await ask(log, "u", event)
            reply = await ask(log, "u", events[6], events[7])
            assert verdicts(reply) == [("applied", 7), ("applied", 8)]
            reply = await ask(log, "u", new(event_id="e9"), new(event_id="e5"))
            assert verdicts(reply) == [("duplicate", 10), ("applied", 11)]
            with either.client() as client:
                assert client.hlen("tim4rec:u:u") == 1 + 11 + 4

            # The window narrowed, then widened: the index never names the wrong event.
            narrow = EventLog(store, dedup_window=2)
            reply = await ask(narrow, "u", new(event_id="e9"))
            assert verdicts(reply) == [("duplicate", 10)]
            reply = await ask(narrow, "u", new())
            reply = await ask(narrow, "u", new(event_id="e9"))
            assert verdicts(reply) == [("applied", 13)]
            for _ in range(3):
                reply = await ask(EventLog(store, dedup_window=6), "u", new())
            reply = await ask(EventLog(store, dedup_window=6), "u", new(event_id="e9"))
            assert verdicts(reply) == [("duplicate", 13)]

    run(main())


def test_history_limit(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store, dedup_window=4, history_limit=5, page=3)
            events = [new(f"{i}", i, f"e{i}" if i % 2 else None) for i in range(1, 13)]
            for event in events:
                reply = await ask(log, "u", event)
            assert (reply.newest.version, reply.oldest) == (12, 8)
            assert [e.version for e in await history(log, "u")] == [8, 9, 10, 11, 12]
            assert [e.version for e in await history(log, "u", 10)] == [11, 12]
            with either.client() as client:
                fields = {"n", "o", *(f"e{k}" for k in range(8, 13))}
                fields |= {"ice9", "ice11", *(f"iu{events[k - 1].uid!r}" for k in (10, 12))}
                stored = [
                    f"iu{name[2:]!r}" if name.startswith(b"iu") else name.decode()
                    for name in client.hkeys("tim4rec:u:u")
                ]
                assert sorted(stored) == sorted(fields)
            reply = await ask(log, "u", events[8], events[9])
            assert verdicts(reply) == [("applied", 9), ("applied", 10)]
            reply = await ask(log, "u", new("11", 11, "e11"))
            assert (verdicts(reply), reply.oldest) == ([("duplicate", 11)], 8)

            # The caller who knows what this very append drops is told all it lacks.
            known = (await history(log, "u"))[0].mark
            reply = await ask(log, "u", new(), new(), known=known)
            assert (reply.known_is_current_history, reply.oldest) == (True, 10)
            assert [e.version for e in reply.events] == [9, 10, 11]
            assert not (await ask(log, "u", known=known)).known_is_current_history
            reply = await ask(log, "u", known=ORIGIN)
            assert [e.version for e in reply.events] == [10, 11, 12]
            assert (reply.known_is_current_history, reply.complete) == (True, False)
            described = await log.describe("u")
            assert described is not None
            assert (described.version, described.oldest) == (14, 10)

            # Without the limit it grows again; what is gone stays gone.
            await ask(EventLog(store, dedup_window=6), "u", new())
            assert [e.version for e in await history(log, "u")] == list(range(10, 16))

    run(main())


def test_a_long_record_is_shortened_bit_by_bit(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            unlimited = EventLog(store)
            limited = EventLog(store, dedup_window=300, history_limit=1000)
            events = [new() for _ in range(1500)]
            for start in range(0, 1500, 500):
                await ask(unlimited, "u", *events[start : start + 500])
            for oldest in (202, 403, 504, 505):
                reply = await ask(limited, "u", new())
                assert reply.oldest == oldest
                assert len(await history(limited, "u")) == reply.newest.version - oldest + 1
            with valkey.client() as client:
                # Ids: the newest 300, and those of 505 to 1200 that the wider window had kept.
                assert client.hlen("tim4rec:u:u") == 2 + 1000 + 300 + 696
            # No id is left of what is gone, however wide the window becomes.
            wide = EventLog(store, dedup_window=1200, history_limit=1200)
            reply = await ask(wide, "u", events[503], events[504])
            assert verdicts(reply) == [("applied", 1505), ("applied", 505)]

    run(main())


def test_too_many_events_for_one_request(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, dedup_window=10)
            assert log.max_events == 5
            good, bad = await log.exchange(
                [
                    LogRequest("a", None, [new() for _ in range(5)]),
                    LogRequest("b", None, [new() for _ in range(6)]),
                ]
            )
            assert isinstance(good, LogReply)
            assert isinstance(bad, InvalidRequest)
            assert "at most 5" in str(bad)
            assert (await ask(log, "b")).newest == ORIGIN

    run(main())


def test_large_requests_and_pages(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, dedup_window=20_000, page=4096)
            events = [new(f"item {i}", i, f"id {i}" if i % 3 else None) for i in range(10_000)]
            reply = await ask(log, "u", *events, known=ORIGIN)
            assert [o.version for o in reply.outcomes] == list(range(1, 10_001))
            assert len(reply.events) == 4096
            assert not reply.complete
            stored = await history(log, "u")
            assert [(e.uid, e.item_id, e.event_id) for e in stored] == [
                (e.uid, e.item_id, e.event_id) for e in events
            ]
            reply = await ask(log, "u", *events)
            assert [o.version for o in reply.outcomes] == list(range(1, 10_001))
            assert reply.events == stored[-4096:]

    run(main())


def test_versions_keep_all_their_digits(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store, dedup_window=2, page=2)
            large = 10**15
            await ask(log, "u", new(time_ms=1))
            with either.client() as client:
                value = client.hget("tim4rec:u:u", "e1")
                for k in range(large - 3, large + 1):
                    client.hset("tim4rec:u:u", f"e{k}", value)
                client.hset("tim4rec:u:u", "n", str(large))
            event = new(event_id="x")
            reply = await ask(log, "u", event)
            assert reply.newest == Mark(large + 1, event.uid)
            assert [e.version for e in reply.events] == [large, large + 1]
            assert verdicts(await ask(log, "u", event)) == [("applied", large + 1)]
            assert (await history(log, "u", large))[0].uid == event.uid

    run(main())


# What the caller knows.


def test_paging(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, page=3)
            events = [new(f"{i}") for i in range(8)]
            reply = await ask(log, "u", *events, known=ORIGIN)
            assert [e.version for e in reply.events] == [1, 2, 3]
            assert (reply.complete, reply.newest.version) == (False, 8)
            reply = await ask(log, "u", known=reply.events[-1].mark)
            assert [e.version for e in reply.events] == [4, 5, 6]
            assert not reply.complete
            reply = await ask(log, "u", known=reply.events[-1].mark)
            assert [e.version for e in reply.events] == [7, 8]
            assert reply.complete

            for nothing in (
                None,
                Mark(8, new_uid()),
                Mark(8, b""),
                Mark(9, events[7].uid),
                Mark(3, events[3].uid),
                Mark(-1, b""),
            ):
                reply = await ask(log, "u", known=nothing)
                assert not reply.known_is_current_history
                assert [e.version for e in reply.events] == [6, 7, 8]
                assert reply.complete

            pages = [[e.version for e in page] async for page in log.events("u")]
            assert pages == [[1, 2, 3], [4, 5, 6], [7, 8]]
            assert [e.version for e in await history(log, "u", 6)] == [7, 8]
            assert [e.version for e in await history(log, "u", Mark(7, events[6].uid))] == [8]
            assert await history(log, "u", 8) == []
            assert await history(log, "u", 99) == []
            with pytest.raises(HistoryChanged):
                await history(log, "u", Mark(7, events[5].uid))

    run(main())


def test_erased_while_it_is_read(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, page=2)
            await ask(log, "u", *[new() for _ in range(6)])
            pages = log.events("u")
            assert len(await anext(pages)) == 2
            await Erasures(log).erase("u")
            await ask(log, "u", *[new() for _ in range(6)])
            with pytest.raises(HistoryChanged, match="erased or replaced"):
                await anext(pages)

    run(main())


def test_a_record_begun_anew_is_another_history(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            mark = (await ask(log, "u", new(event_id="x"), new())).newest
            assert await Erasures(log).erase("u")
            assert not (await ask(log, "u", known=mark)).known_is_current_history
            reply = await ask(log, "u", new(event_id="x"), new(), known=mark)
            assert verdicts(reply) == [("applied", 1), ("applied", 2)]
            assert not reply.known_is_current_history

    run(main())


# One request's fault is its own.


def test_errors_stay_with_their_request(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store)
            await ask(log, "damaged", new(), new(), new())
            await ask(log, "torn", new(), new())
            with either.client() as client:
                client.set("tim4rec:u:string", "x")
                client.hdel("tim4rec:u:damaged", "e2")
                client.hset("tim4rec:u:torn", "e1", "short")
                damaged = client.hgetall("tim4rec:u:damaged")
            requests = [
                LogRequest("good", None, [new()], snapshot_of="m"),
                LogRequest("string", None, [new()]),
                LogRequest("damaged", None, [new()]),
                LogRequest("torn"),
                LogRequest("\ud800", None, [new()]),
                LogRequest(""),
                LogRequest("uid", None, [NewEvent(b"short", "item")]),
                LogRequest("item", None, [new("\udfff")]),
                LogRequest("no item", None, [new("")]),
                LogRequest("empty id", None, [new(event_id="")]),
                LogRequest("long id", None, [new(event_id="é" * 4096)]),
                LogRequest("time", None, [new(time_ms=2**53 + 1)]),
                LogRequest("good too", ORIGIN, [new("a" * 100_000, event_id="i" * 8191)]),
            ]
            replies = await log.exchange(requests)
            expected = [LogReply, StoreError, RecordDamaged, RecordDamaged]
            expected += [InvalidRequest] * 8 + [LogReply]
            assert [type(reply) for reply in replies] == expected
            errors = [str(reply) for reply in replies if isinstance(reply, StoreError)]
            assert not any("\n" in error for error in errors)
            assert "WRONGTYPE" in errors[0]
            assert errors[1] == "event 2 is missing"
            assert "event 1 cannot be read" in errors[2]
            fields = ["user_id", "user_id", "uid", "item_id", "item_id", "event_id", "event_id"]
            for error, name in zip(errors[3:], [*fields, "time_ms"], strict=True):
                assert error.startswith(name)
            with either.client() as client:
                # A script that fails has written nothing.
                assert client.hgetall("tim4rec:u:damaged") == damaged
            last = replies[-1]
            assert isinstance(last, LogReply)
            assert last.events[0].item_id == "a" * 100_000
            assert last.events[0].event_id == "i" * 8191

    run(main())


def test_one_request_a_user(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            with pytest.raises(ValueError, match="one request a user"):
                await EventLog(store).exchange([LogRequest("u"), LogRequest("u")])
            assert await EventLog(store).exchange([]) == []

    run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"page": 0},
        {"page": 5000},
        {"dedup_window": 0},
        {"late_policy": "drop"},
        {"history_limit": 999},
    ],
    ids=str,
)
def test_wrong_settings(run: Run, store_url: str, wrong: dict[str, Any]) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*; give"):
                EventLog(store, **wrong)

    run(main())


def test_a_full_store_still_answers(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store)
            event = new()
            await ask(log, "u", event)
            with valkey.client() as client:
                client.config_set("maxmemory", 1)
            try:
                with pytest.raises(StoreError, match="maxmemory"):
                    await ask(log, "u", new())
                assert (await ask(log, "u")).newest == Mark(1, event.uid)
            finally:
                with valkey.client() as client:
                    client.config_set("maxmemory", 0)
            assert (await ask(log, "u", new())).newest.version == 2

    run(main())


# Keys.


@settings(max_examples=examples(20))
@given(
    users=st.lists(
        st.text(min_size=1)
        | st.text("{}%:/\x00\n *?[]^é%7B", min_size=1)
        | st.sampled_from(["{a}", "%7Ba%7D", "a", "u:a", "a:b", "A", "{", "}", "é", "é"]),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_any_user_id_has_a_record_of_its_own(
    run: Run, either: ValkeyServer | ValkeyCluster, users: list[str]
) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store, namespace=f"{{n}}:{uuid.uuid4()}")
            events = {user: new(f"item of {user}", event_id=user) for user in users}
            requests = [LogRequest(user, None, [event]) for user, event in events.items()]
            for reply in await log.exchange(requests):
                assert isinstance(reply, LogReply)
                assert verdicts(reply) == [("applied", 1)]
            await SnapshotStore(log).write("{m}:x", [(user, user.encode()) for user in users], 60)
            assert await read_snapshots(log, "{m}:x", users) == [u.encode() for u in users]
            listed = [user async for page in log.users() for user in page]
            assert set(listed) == set(users)
            with either.client() as client:
                keys = list(client.scan_iter(f"{log.keys.namespace}:[us]:*", count=1000))
            assert len(keys) == 2 * len(users)
            assert not any(set(key) & set(b"{} \x00\n/") for key in keys)
            cursor, _ = await Erasures(log).since("$")
            assert await Erasures(log).erase(users[0])
            assert (await Erasures(log).since(cursor))[1] == users[:1]
            for user in users[1:]:
                (event,) = await history(log, user)
                assert (event.uid, event.item_id, event.event_id) == (
                    events[user].uid,
                    f"item of {user}",
                    user,
                )

    run(main())


def test_namespaces_are_apart(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            one, other = EventLog(store, namespace="a"), EventLog(store, namespace="a:u")
            await ask(one, "u:x", new())
            await ask(other, "x", new())
            assert [page async for page in one.users()] == [["u:x"]]
            assert [page async for page in other.users()] == [["x"]]

    run(main())


def test_all_users_are_listed(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            names = {f"user {i}" for i in range(3000)}
            for group in zip(*[iter(names)] * 100, strict=True):
                replies = await log.exchange([LogRequest(name, None, [new()]) for name in group])
                assert all(isinstance(reply, LogReply) for reply in replies)
                await SnapshotStore(log).write("m", [(name, b"s") for name in group], None)
            assert {user async for page in log.users() for user in page} == names

    run(main())


# Snapshots, erasure, size.


def test_snapshots(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store)
            value = bytes(range(256)) * 150
            await SnapshotStore(log).write("m1", [("u", value), ("v", b"v")], 60)
            await SnapshotStore(log).write("m2", [("u", b"other")], None)
            await SnapshotStore(log).write("m3", [], 60)
            assert await read_snapshots(log, "m1", ["v", "nobody", "u"]) == [b"v", None, value]
            assert await read_snapshots(log, "m1", []) == []
            replies = await log.exchange(
                [
                    LogRequest("u", None, [new()], snapshot_of="m1"),
                    LogRequest("v", snapshot_of="m2"),
                    LogRequest("w", ORIGIN),
                    LogRequest("x", ORIGIN, snapshot_of="m1"),
                ]
            )
            assert [r.snapshot if isinstance(r, LogReply) else r for r in replies] == [
                value,
                None,
                None,
                None,
            ]
            with either.client() as client:
                assert 0 < client.ttl("tim4rec:s:m1:u") <= 60
                assert client.ttl("tim4rec:s:m2:u") == -1
                client.delete("tim4rec:s:m1:u")
                client.rpush("tim4rec:s:m1:u", "not a string")
            (reply,) = await log.exchange([LogRequest("u", snapshot_of="m1")])
            assert isinstance(reply, LogReply)
            assert reply.snapshot is None
            assert reply.newest.version == 1

    run(main())


def test_erase(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store)
            cursor, users = await Erasures(log).since("$")
            assert users == []
            for user in ("u", "v"):
                await ask(log, user, new())
                await SnapshotStore(log).write("m1", [(user, b"1")], 60)
                await SnapshotStore(log).write("m2", [(user, b"2")], 60)
            assert await Erasures(log).erase("u")
            assert await read_snapshots(log, "m1", ["u", "v"]) == [None, b"1"]
            await asyncio.sleep(1)
            with either.client() as client:
                left = {key for key in client.scan_iter() if b":models" not in key}
            assert left == {
                b"tim4rec:u:v",
                b"tim4rec:s:m1:v",
                b"tim4rec:s:m2:v",
                b"tim4rec:erased",
            }
            first, users = await Erasures(log).since(cursor)
            assert users == ["u"]
            assert await Erasures(log).erase("v")
            assert not await Erasures(log).erase("é")
            second, users = await Erasures(log).since(first)
            assert users == ["v", "é"]
            assert await Erasures(log).since(second) == (second, [])
            assert await Erasures(log).since("$") == (second, [])
            assert (await Erasures(log).since("0-0"))[1] == ["u", "v", "é"]

    run(main())


def test_a_snapshot_is_not_written_of_another_history(
    run: Run, either: ValkeyServer | ValkeyCluster
) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store)
            marks = [(await ask(log, user, new(), new())).newest for user in "abcd"]
            old = (await ask(log, "a", new(), known=marks[0])).events[0].mark
            await Erasures(log).erase("b")
            await Erasures(log).erase("c")
            again = (await ask(log, "c", new(), new())).newest
            assert again.version == marks[2].version
            await asyncio.sleep(1)  # what erasures bar is open again
            with either.client() as client:
                client.hset("tim4rec:u:d", "n", 3)  # damaged
            every = list(zip("abcd", [b"s"] * 4, strict=True))
            assert await SnapshotStore(log).write("m", every, 60, marks) == 1
            assert await read_snapshots(log, "m", list("abcd")) == [b"s", None, None, None]
            later = [("a", b"t"), ("c", b"t")]
            assert await SnapshotStore(log).write("m", later, 60, [old, again]) == 2
            assert await read_snapshots(log, "m", list("abcd")) == [b"t", None, b"t", None]

    run(main())


@pytest.mark.parametrize("trip", [0, 1, 2])
@pytest.mark.parametrize("recreated", [False, True])
def test_no_snapshot_outlives_an_erasure(
    run: Run, either: ValkeyServer | ValkeyCluster, trip: int, recreated: bool
) -> None:
    """The user is erased before one of the round trips that writing a snapshot takes."""

    async def main() -> None:
        async with ErasingStore(either.url) as store, Store(either.url) as others:
            log, other = EventLog(store), EventLog(others)
            mark = (await ask(log, "u", new())).newest
            # Now the servers know the scripts.
            assert await SnapshotStore(log).write("m", [("u", b"s")], 60, [mark]) == 1

            async def erase() -> None:
                await Erasures(other).erase("u")
                if recreated:
                    await ask(other, "u", new())

            store.before = [None] * trip + [erase]
            assert await SnapshotStore(log).write("m", [("u", b"s")], 60, [mark]) == 0
            assert store.before == []
            assert await read_snapshots(log, "m", ["u"]) == [None]
            await asyncio.sleep(1)
            with either.client() as client:
                assert not list(client.scan_iter("tim4rec:s:*:u"))

    run(main())


def test_a_snapshot_that_comes_late_is_not_written(run: Run, either: Any) -> None:
    """Longer than an erasure bars it, so it must not be: the user may be gone by then."""

    async def main() -> None:
        async with ErasingStore(either.url) as store:
            log = EventLog(store)
            mark = (await ask(log, "u", new())).newest
            assert await SnapshotStore(log).write("m", [("u", b"s")], 60, [mark]) == 1
            store.before = [None, None, lambda: asyncio.sleep(0.6)]
            assert await SnapshotStore(log).write("m", [("u", b"s")], 60, [mark]) == 0
            assert await SnapshotStore(log).write("m", [("u", b"s")], 60, [mark]) == 1

    run(main())


class ErasingStore(Store):
    """Does what it is told `before` its pipelines, one after the other."""

    before: list[Callable[[], Awaitable[object]] | None] = []  # noqa: RUF012

    async def execute(self, *arguments: Any, **options: Any) -> list[Any]:
        first, self.before = (self.before or [None])[0], self.before[1:]
        if first is not None:
            await first()
        return await super().execute(*arguments, **options)


@pytest.mark.slow
def test_erasures_are_announced_for_a_while(
    run: Run, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(kept_s: int) -> None:
        monkeypatch.setattr("service.store.erasures.ERASURES_KEPT_S", kept_s)
        async with Store(valkey.url) as store:
            log = EventLog(store)
            await Erasures(log).erase("a")
            await asyncio.sleep(0.7 * kept_s)
            await Erasures(log).erase("b")
            assert (await Erasures(log).since("0-0"))[1] == ["a", "b"]
            await asyncio.sleep(0.6 * kept_s)
            await Erasures(log).erase("c")
            cursor, users = await Erasures(log).since("0-0")
            assert users == ["b", "c"]
            await asyncio.sleep(1.2 * kept_s)
            assert await store.execute([("EXISTS", "tim4rec:erased")], 10) == [0]
            await Erasures(log).erase("d")
            assert (await Erasures(log).since(cursor))[1] == ["d"]

    try:
        run(main(1))
    except AssertionError:  # the machine was busy, or it is wrong
        with valkey.client() as client:
            client.flushall()
        run(main(10))


def test_a_rewritten_file_holds_nothing_of_an_erased_user(
    run: Run, durable_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.erasures.ERASURES_KEPT_S", 1)

    def times_named() -> int:
        files = (durable_valkey.folder / "appendonlydir").iterdir()
        return sum(file.read_bytes().count(b"somebody") for file in files)

    async def main() -> None:
        async with Store(durable_valkey.url) as store:
            log = EventLog(store)
            await ask(log, "somebody", new("somebody's item"))
            await SnapshotStore(log).write("m", [("somebody", b"somebody's state")], 60)
            await Erasures(log).erase("somebody")
            await asyncio.sleep(1.2)

    run(main())
    assert times_named() > 3
    with durable_valkey.client() as client:
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)
    while times_named():  # the old files are removed behind its back
        time.sleep(0.02)


def test_a_full_store_erases(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store)
            await ask(log, "u", *(new() for _ in range(50)))
            await SnapshotStore(log).write("m", [("u", b"s")], 60)
            with valkey.client() as client:
                client.config_set("maxmemory", 1)
                try:
                    (reply,) = await log.exchange([LogRequest("u", None, [new()])])
                    assert isinstance(reply, StoreError)
                    assert await Erasures(log).erase("u")
                    assert await history(log, "u") == []
                    assert await read_snapshots(log, "m", ["u"]) == [None]
                    assert (await Erasures(log).since("0-0"))[1] == ["u"]
                finally:
                    client.config_set("maxmemory", 0)

    run(main())


def test_describe(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store)
            await ask(log, "u", new(time_ms=7), new(time_ms=5))
            with either.client() as client:
                size = client.memory_usage("tim4rec:u:u")
            assert isinstance(size, int)
            assert await log.describe("u") == UserRecord(2, 7, size)

    run(main())


def test_idle_records_expire_only_if_asked(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(either.url) as store:
            await ask(EventLog(store, idle_ttl_s=100), "u", new())
            with either.client() as client:
                assert 90 < client.ttl("tim4rec:u:u") <= 100
                await ask(EventLog(store), "u", new())
                assert client.ttl("tim4rec:u:u") == -1

    run(main())


# Lost replies, lost servers, impatient callers.


class CuttingProxy:
    """Passes requests to the server, and cuts the connection instead of the next replies."""

    def __init__(self, server: ValkeyServer, path: Path) -> None:
        self.url = f"unix://{path}"
        self.cuts = 0
        self.seen = 0
        self._server, self._path = server, path
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._listener = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        await asyncio.gather(*self._tasks)

    async def _serve(self, caller: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        reader, writer = await asyncio.open_unix_connection(self._server.socket)
        while request := await caller.read(2**20):
            writer.write(request)
            reply = await reader.read(2**20)
            if b"EVAL" in request:
                self.seen += 1
                if self.cuts:
                    self.cuts -= 1
                    break
            back.write(reply)
        for stream in (writer, back):
            stream.close()
            await stream.wait_closed()


def test_a_lost_reply_is_asked_for_again(run: Run, valkey: ValkeyServer, folder: Path) -> None:
    async def main() -> None:
        async with (
            CuttingProxy(valkey, folder / "proxy") as proxy,
            Store(proxy.url) as store,
        ):
            log = EventLog(store)
            await ask(log, "other", new())  # loads the script
            seen = proxy.seen
            proxy.cuts = 3
            events = [new("a", 5), new("b", 3, "x"), new("c")]
            reply = await ask(log, "u", *events)
            assert proxy.seen == seen + 4
            assert verdicts(reply) == [("applied", 1), ("late", 2), ("applied", 3)]
            assert [e.item_id for e in await history(log, "u")] == ["a", "b", "c"]

    run(main())


@pytest.mark.parametrize("events", [0, 2])
def test_the_script_comes_back_after_a_flush(run: Run, valkey: ValkeyServer, events: int) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store)
            for _ in range(3):
                with valkey.client() as client:
                    client.script_flush()
                    client.config_resetstat()
                for _ in range(2):
                    requests = [
                        LogRequest(f"{u}", None, [new() for _ in range(events)]) for u in range(9)
                    ]
                    replies = await log.exchange(requests)
                with valkey.client() as client:
                    calls = client.info("commandstats")
                assert calls["cmdstat_eval"]["calls"] == 9
                assert calls["cmdstat_evalsha"]["calls"] == 18
            for reply in replies:
                assert isinstance(reply, LogReply)
                assert reply.newest.version == 3 * 2 * events

    run(main())


def test_a_silent_server_meets_the_deadline(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url, timeout_s=0.2) as store, Store(valkey.url) as other:
            log, patient = EventLog(store), EventLog(other)
            event = new()
            await ask(log, "u")
            with valkey.client() as client:
                client.client_pause(1000)
            started = asyncio.get_running_loop().time()
            requests = [LogRequest("u", None, [event]), LogRequest("v"), LogRequest("")]
            async with waited() as waiting:
                replies = await log.exchange(requests)
            assert asyncio.get_running_loop().time() - started > 0.15
            assert waiting.seconds < 0.4
            assert [type(reply) for reply in replies] == [
                StoreUnavailable,
                StoreUnavailable,
                InvalidRequest,
            ]
            assert "no answer within" in str(replies[0])
            # The abandoned attempts may still arrive; sent again, the event is there once.
            assert verdicts(await ask(patient, "u", event)) == [("applied", 1)]
            assert (await ask(patient, "u")).newest == Mark(1, event.uid)

    run(main())


def test_a_cancelled_caller_harms_nobody(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url, connections=1) as store:
            log = EventLog(store)
            await ask(log, "u", new("first"))
            for i in range(5):
                with valkey.client() as client:
                    client.client_pause(60_000, all=False)
                impatient = asyncio.create_task(ask(log, f"user {i}", new("abandoned")))
                await asyncio.sleep(0.02)
                impatient.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await impatient
                with valkey.client() as client:
                    client.client_unpause()
                reply = await ask(log, "u")
                assert [e.item_id for e in reply.events] == ["first"]
                assert [e.item_id for e in await history(log, f"user {i}")] == ["abandoned"]

    run(main())


def test_close_waits_for_what_is_under_way(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        store = Store(valkey.url)
        log = EventLog(store)
        await ask(log, "v", new())  # loads the script
        with valkey.client() as client:
            client.client_pause(60)
        task = asyncio.create_task(ask(log, "u", new()))
        await asyncio.sleep(0.02)
        task.cancel()
        await store.close()
        with valkey.client() as client:
            assert client.hget("tim4rec:u:u", "n") == b"1"

    run(main())


def test_more_callers_than_connections(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url, connections=2) as store:
            log = EventLog(store)
            await asyncio.gather(*[ask(log, f"{i % 7}", new()) for i in range(200)])
            versions = [(await ask(log, f"{i}")).newest.version for i in range(7)]
            assert sum(versions) == 200

    run(main())


def test_no_server(run: Run, folder: Path) -> None:
    async def main() -> None:
        async with Store(f"unix://{folder}/nothing", timeout_s=0.1) as store:
            log = EventLog(store)
            with pytest.raises(StoreUnavailable, match=f"{folder}/nothing") as raised:
                await store.ping()
            assert "\n" not in str(raised.value)
            with pytest.raises(StoreUnavailable):
                await SnapshotStore(log).write("m", [("u", b"s")], 1)
            with pytest.raises(StoreUnavailable):
                await Erasures(log).erase("u")

    run(main())


def test_kill_of_the_server_under_load(run: Run, durable_valkey: ValkeyServer) -> None:
    """Every acknowledged event is there once, and so is every other one once sent again."""
    users, events = 6, 120

    async def client(
        log: EventLog, user: str, acknowledged: list[NewEvent], reached: asyncio.Semaphore
    ) -> None:
        for i in range(events):
            event = new(f"{i}", event_id=f"{i}" if i % 2 else None)
            while True:
                try:
                    reply = await ask(log, user, event)
                except StoreUnavailable:
                    continue
                assert reply.outcomes[0].verdict is Verdict.APPLIED
                acknowledged.append(event)
                reached.release()
                break

    async def main() -> None:
        async with Store(durable_valkey.url, timeout_s=2) as store:
            log = EventLog(store)
            acknowledged: dict[str, list[NewEvent]] = {f"{u}": [] for u in range(users)}
            reached = asyncio.Semaphore(0)
            clients = [
                asyncio.create_task(client(log, user, done, reached))
                for user, done in acknowledged.items()
            ]
            for _ in range(3):
                for _ in range(users * events // 4):
                    await reached.acquire()
                durable_valkey.kill()
                before = {user: list(done) for user, done in acknowledged.items()}
                durable_valkey.start()
                for user, done in before.items():
                    stored = [event.uid for event in await history(log, user)]
                    assert stored[: len(done)] == [event.uid for event in done]
            await asyncio.gather(*clients)
            for user, done in acknowledged.items():
                stored = [event.uid for event in await history(log, user)]
                assert stored == [event.uid for event in done]
                assert len(stored) == events

    run(main())


# The server itself.


def test_check(run: Run, valkey: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            await store.check()
            assert [r.message for r in caplog.records if "maxmemory-policy" in r.message] == []
            assert "appendonly is off" in caplog.text
            with valkey.client() as client:
                client.config_set("maxmemory-policy", "allkeys-lru")
            try:
                await store.check()
            finally:
                with valkey.client() as client:
                    client.config_set("maxmemory-policy", "noeviction")
            assert "maxmemory-policy is allkeys-lru" in caplog.text

    with caplog.at_level(logging.WARNING):
        run(main())


def test_check_is_content_with_a_durable_server(
    run: Run, durable_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Store(durable_valkey.url) as store:
            await store.check()

    run(main())
    assert caplog.records == []


def test_check_refuses_an_old_server(run: Run, folder: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(4096):
            info = b"# Server\r\nredis_version:6.2.14\r\n"
            if b"INFO\r\n" in request and b"SETINFO" not in request:
                writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
            else:
                writer.write(b"+OK\r\n" * request.count(b"*"))
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, folder / "old")
        async with Store(f"unix://{folder}/old") as store:
            with pytest.raises(StoreError, match=r"is Redis 6.2.14; 7 or newer"):
                await store.check()
        server.close()
        await asyncio.sleep(0.01)

    run(main())


def test_credentials_are_not_shown(run: Run, durable_valkey: ValkeyServer) -> None:
    async def main() -> None:
        with durable_valkey.client() as client:
            client.config_set("requirepass", "right")
        url = f"unix://{durable_valkey.socket}?password="
        async with Store(url + "wrong") as store:
            good, bad = await EventLog(store).exchange([LogRequest("u"), LogRequest("")])
            assert isinstance(bad, InvalidRequest)
            assert isinstance(good, StoreError)
            assert "check the URL's credentials" in str(good)
            assert "wrong" not in str(good)
        async with Store(f"unix://{durable_valkey.socket}") as store:
            with pytest.raises(StoreError, match="check the URL's credentials"):
                await store.ping()
        async with Store(url + "right") as store:
            assert (await ask(EventLog(store), "u", new())).newest.version == 1

    run(main())
    assert Store("redis://user:secret@host:1/0?socket_timeout=5").url == "redis://host:1/0"


def test_wrong_url() -> None:
    with pytest.raises(StoreError, match=r"the store URL can't be read; give redis://") as raised:
        Store("http://user:secret@host")
    assert "secret" not in str(raised.value)


# The whole against a plain model of it.


class LossyStore(Store):
    """Carries pipelines out and loses the replies of the next few."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.losing = 0
        self.lost: list[list[Any]] = []

    async def execute(
        self, commands: Sequence[Command], timeout_s: float, at: Node | None = None
    ) -> list[Any]:
        replies = await super().execute(commands, timeout_s, at)
        if self.losing:
            self.losing -= 1
            self.lost.append(replies)
            raise StoreUnavailable("lost")
        return replies


USERS = ("a", "{a}", "é/%61")
MODELS = ("m1", "m2")
WINDOW = 7
REPLAY_LIMIT = 3
POLICIES: tuple[LatePolicy, ...] = ("clamp", "reject", "replay")

times = st.none() | st.sampled_from([-5, -1, 0, 1, 4 * MINUTE, 5 * MINUTE, 6 * MINUTE, -(10**12)])
some_events = st.lists(
    st.tuples(
        st.sampled_from(["x", "y"]),
        times,
        st.none() | st.sampled_from(["1", "2", "3", "4"]),
        st.sampled_from([None, None, "buy"]),
        st.sampled_from([None, None, 0.0, 2.5]),
    ),
    max_size=WINDOW // 2,
)


class EventLogMachine(RuleBasedStateMachine):
    """Callers with all policies, honest and forgetful, on one store."""

    url: str
    limit = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = LossyStore(self.url)
        namespace = f"test{uuid.uuid4().hex}"
        self.page = 4
        self.logs = {
            policy: EventLog(
                self.store,
                namespace=namespace,
                page=self.page,
                dedup_window=WINDOW,
                late_policy=policy,
                replay_limit=REPLAY_LIMIT,
                history_limit=self.limit,
            )
            for policy in POLICIES
        }
        self.log = self.logs["clamp"]
        self.records = {user: Record(WINDOW, REPLAY_LIMIT) for user in USERS}
        self.known: dict[str, set[Mark]] = {user: set() for user in USERS}
        self.snapshots: dict[tuple[str, str], bytes] = {}
        self.barred: set[str] = set()  # erased: their snapshots may be refused for a while
        self.sent: list[tuple[NewEvent, ...]] = []
        self.marks: list[Mark] = [ORIGIN, Mark(1, b"nonesuch"), Mark(10**6, b"nonesuch")]
        for events in ([new()], []):  # both scripts, on every node
            warm_up = [LogRequest(f"warm-up {i}", None, events) for i in range(50)]
            self.started = self.run(self.log.exchange(warm_up))[0].now_ms
        self.cursor, _ = self.run(Erasures(self.log).since("$"))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        for user, record in self.records.items():
            assert self.run(history(self.log, user)) == record.kept
        self.run(self.store.close())
        self.runner.close()

    def check_exchange(self, policy: LatePolicy, requests: list[LogRequest], losing: int) -> None:
        self.store.losing, self.store.lost = losing, []
        replies = self.run(self.logs[policy].exchange(requests))
        assert len(self.store.lost) == losing
        for position, (request, reply) in enumerate(zip(requests, replies, strict=True)):
            assert isinstance(reply, LogReply)
            record = self.records[request.user_id]
            attempts = []
            for lost in self.store.lost:
                scripts = [answer for answer in lost if isinstance(answer, list)]
                attempts.append(scripts[position][0])
            first: list[Outcome] | None = None
            for now in [*attempts, reply.now_ms]:
                oldest, earlier = record.oldest, [event.mark for event in record.events]
                outcomes = record.append(request.events, now, policy)
                first = first or outcomes
                if self.limit and len(record.log) > len(earlier):
                    record.oldest = max(oldest, len(record.log) - self.limit + 1)
                # What moves ends a history that never was before.
                moved = {e.mark for e in record.events if e.first_uid} - set(earlier)
                assert not moved & self.known[request.user_id]
                self.known[request.user_id] |= {event.mark for event in record.events}
            for before, after in zip(first or [], outcomes, strict=True):
                if before.verdict in (Verdict.APPLIED, Verdict.LATE):
                    assert before == after
            in_history, events = record.reply(request.known, self.page, oldest)
            snapshot = self.snapshots.get((request.snapshot_of or "", request.user_id))
            assert reply == LogReply(
                outcomes,
                record.newest,
                in_history,
                events,
                not events or events[-1].version == len(record.events),
                snapshot,
                reply.now_ms,
                record.oldest,
            )
            self.marks += [event.mark for event in events]
            if request.events:
                self.sent.append(tuple(request.events))

    @rule(
        data=st.data(),
        users=st.lists(st.sampled_from(USERS), min_size=1, unique=True),
        policy=st.sampled_from(POLICIES),
        losing=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def exchange(
        self, data: st.DataObject, users: list[str], policy: LatePolicy, losing: int
    ) -> None:
        requests = []
        for user in users:
            events = [
                new(item, None if offset is None else self.started + offset, event_id, *what)
                for item, offset, event_id, *what in data.draw(some_events)[
                    : self.logs[policy].max_events
                ]
            ]
            known = data.draw(st.none() | st.sampled_from(self.marks[-20:] + self.marks[:3]))
            model = data.draw(st.none() | st.sampled_from(MODELS))
            requests.append(LogRequest(user, known, events, model))
        self.check_exchange(policy, requests, losing)

    @rule(
        data=st.data(),
        user=st.sampled_from(USERS),
        policy=st.sampled_from(POLICIES),
        losing=st.sampled_from([0, 1]),
    )
    def send_again(self, data: st.DataObject, user: str, policy: LatePolicy, losing: int) -> None:
        """The reply was lost, and others were quicker than the retry."""
        if self.sent:
            events = data.draw(st.sampled_from(self.sent[-6:]))[: self.logs[policy].max_events]
            self.check_exchange(policy, [LogRequest(user, None, events)], losing)

    @rule(user=st.sampled_from(USERS), model=st.sampled_from(MODELS), value=st.binary(min_size=1))
    def write_snapshot(self, user: str, model: str, value: bytes) -> None:
        written = self.run(SnapshotStore(self.log).write(model, [(user, value)], 1000))
        assert written or user in self.barred
        if written:
            self.snapshots[model, user] = value

    @rule(user=st.sampled_from(USERS), losing=st.sampled_from([0, 1]))
    def erase(self, user: str, losing: int) -> None:
        self.store.losing = losing
        assert self.run(Erasures(self.log).erase(user)) == bool(self.records[user].events)
        self.records[user] = Record(WINDOW, REPLAY_LIMIT)
        self.barred.add(user)
        for model in MODELS:
            self.snapshots.pop((model, user), None)
        self.cursor, erased = self.run(Erasures(self.log).since(self.cursor))
        assert set(erased) == {user}

    @rule(user=st.sampled_from(USERS), data=st.data())
    def read(self, user: str, data: st.DataObject) -> None:
        record, events = self.records[user], self.records[user].events
        after = data.draw(st.integers(0, len(events)))
        assert self.run(history(self.log, user, after)) == events[max(after, record.oldest - 1) :]
        if after >= record.oldest:
            assert self.run(history(self.log, user, events[after - 1].mark)) == events[after:]
        elif after:
            with pytest.raises(HistoryChanged):
                self.run(history(self.log, user, events[after - 1].mark))

    @rule(user=st.sampled_from(USERS))
    def describe(self, user: str) -> None:
        record, events = self.run(self.log.describe(user)), self.records[user].events
        if events:
            assert (record.version, record.last_time_ms) == (len(events), events[-1].time_ms)
            assert record.oldest == self.records[user].oldest
        else:
            assert record is None


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, WINDOW, WINDOW + 3])
def test_the_log_is_what_its_rules_say(either: ValkeyServer | ValkeyCluster, limit: int) -> None:
    machine = type("Machine", (EventLogMachine,), {"url": either.url, "limit": limit})
    # The rules are the same on a Cluster.
    number = (10 if limit else 30) if either.url.startswith("unix") else 5
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples(number), stateful_step_count=30),
    )


def test_records_of_the_first_layout(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    """As they were written before events had kinds and could move."""
    first, second = b"\0\0\0\0\0\0\0\x0a", b"\0\0\0\0\0\0\0\x14"
    stored = {
        b"n": b"3",
        b"e1": b"uid-one." + first + first + b"\0\0" + "é1".encode(),
        b"e2": b"uid-two." + second + b"\x80" + 7 * b"\0" + b"\0\x03" + b"id2" + b"two",
        b"e3": b"uid-3..." + second + first + b"\x01\0" + 256 * b"i" + b"three",
        b"iuuid-one.": b"1",
        b"icid2": b"2",
        b"ic" + 256 * b"i": b"3",
    }

    async def main() -> None:
        async with Store(either.url) as store:
            with either.client() as client:
                client.hset("tim4rec:u:u", mapping=stored)
            log = EventLog(store, late_policy="replay")
            events = [
                Event(1, b"uid-one.", "é1", 10, 10, None),
                Event(2, b"uid-two.", "two", None, 20, "id2"),
                Event(3, b"uid-3...", "three", 10, 20, "i" * 256),
            ]
            assert await history(log, "u") == events
            again = [NewEvent(b"uid-one.", "é1", 10)]
            again += [new("two", None, "id2"), new("three", 10, "i" * 256)]
            assert verdicts(await ask(log, "u", *again)) == [
                ("applied", 1), ("duplicate", 2), ("duplicate", 3)
            ]  # fmt: skip
            assert verdicts(await ask(log, "u", new("two", None, "id2", "view"))) == [
                ("conflict", 2)
            ]
            assert verdicts(await ask(log, "u", new("between", 15, kind="view"))) == [("late", 2)]
            moved = await history(log, "u")
            assert [(e.item_id, e.sent_uid, e.kind) for e in moved] == [
                ("é1", b"uid-one.", None), ("between", moved[1].uid, "view"),
                ("two", b"uid-two.", None), ("three", b"uid-3...", None),
            ]  # fmt: skip
            assert verdicts(await ask(log, "u", *again)) == [
                ("applied", 1), ("duplicate", 3), ("duplicate", 4)
            ]  # fmt: skip

    run(main())


def test_kind_and_weight_are_kept(run: Run, store_url: str) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store)
            given = [("view", 1.5), ("é" * 127, None), (None, -1e300), (None, None), ("x", 0.0)]
            events = [new("item é", 5, f"{n}", *what) for n, what in enumerate(given)]
            reply = await ask(log, "u", *events, known=ORIGIN)
            assert [(e.kind, e.weight) for e in reply.events] == given
            assert {(e.item_id, e.time_ms) for e in reply.events} == {("item é", 5)}
            for n, (kind, weight) in enumerate(given):
                others = [(kind, 7.0), ("other", weight), (f"{kind}+", weight)]
                again = [new("item é", 5, f"{n}", *what) for what in [(kind, weight), *others]]
                found = [
                    outcome.verdict.value for outcome in (await ask(log, "u", *again)).outcomes
                ]
                assert found == ["duplicate", "conflict", "conflict", "conflict"]
            for wrong, field in [
                (new(kind=""), "kind is empty"),
                (new(kind="é" * 128), "kind has 256 bytes"),
                (new(weight=float("inf")), "weight inf is not finite"),
                (new(weight=float("nan")), "weight nan is not finite"),
            ]:
                with pytest.raises(InvalidRequest, match=field):
                    await ask(log, "u", wrong)

    run(main())


def test_the_layout_is_the_documented_one(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    """Records outlive the code: what is stored today must be readable tomorrow."""

    async def main() -> None:
        async with Store(either.url) as store:
            log = EventLog(store, namespace="ns")
            await ask(
                log, "é", NewEvent(b"uid-one.", "item é", 258), NewEvent(b"uid-two.", "b", 1, "id"),
                NewEvent(b"uid-3...", "c", 258, "i", "view", 2.0),
                NewEvent(b"uid-4...", "d", 258, kind="view"),
                NewEvent(b"uid-5...", "e", 258, weight=-0.0),
            )  # fmt: skip
        with either.client() as client:
            stored = client.hgetall("ns:u:%C3%A9")
        time, given = b"\0\0\0\0\0\0\x01\x02", b"\0\0\0\0\0\0\0\x01"
        assert stored == {
            b"n": b"5",
            b"e1": b"uid-one." + time + time + b"\0\0" + "item é".encode(),
            b"e2": b"uid-two." + time + given + b"\0\x02" + b"idb",
            b"e3": b"uid-3..." + time + time + b"\x80\x01" + b"i\x04view\x40" + 7 * b"\0" + b"c",
            b"e4": b"uid-4..." + time + time + b"\x80\0" + b"\x04view\x7f\xf8" + 6 * b"\0" + b"d",
            b"e5": b"uid-5..." + time + time + b"\x80\0" + b"\0" + 8 * b"\0" + b"e",
            b"iuuid-one.": b"1",
            b"icid": b"2",
            b"ici": b"3",
            b"iuuid-4...": b"4",
            b"iuuid-5...": b"5",
        }

    run(main())
    assert json.loads(json.dumps([*Verdict])) == [
        "applied",
        "duplicate",
        "late",
        "rejected",
        "conflict",
        "future",
    ]
