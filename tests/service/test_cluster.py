"""The event log on a Cluster whose nodes fall silent, die and hand slots to each other.

What holds on one server holds on a Cluster too: `test_event_log.py` runs on both.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import NodeDown, StoreError, StoreUnavailable
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import ORIGIN, NewEvent, Verdict, new_uid
from service.store.snapshot_store import SnapshotStore
from tests.ports import free_port
from tests.service.conftest import ClusterNode, ValkeyCluster, ValkeyServer
from tests.service.processes import ROOT, in_process, make_artefact
from tests.waited import LONG_S, waited

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def slot(user: str) -> int:
    return key_slot(f"tim4rec:u:{user}".encode())


def users_of(slots: range) -> Iterator[str]:
    return (user for user in map("u{}".format, itertools.count()) if slot(user) in slots)


def one_event(user: str) -> LogRequest:
    return LogRequest(user, None, [NewEvent(new_uid(), "item")])


async def stored(log: EventLog, user: str) -> list[bytes]:
    return [event.uid async for page in log.events(user) for event in page]


def calls(node: ClusterNode, command: str) -> int:
    with node.client() as client:
        found = client.info("commandstats").get(f"cmdstat_{command}")
    return int(found["calls"]) if isinstance(found, dict) else 0


@asynccontextmanager
async def writers(
    log: EventLog, users: list[str], acknowledged: dict[str, list[bytes]]
) -> AsyncIterator[None]:
    """One caller a user, who appends events and sends one again until it is acknowledged."""
    ended = asyncio.Event()

    async def write(user: str) -> None:
        while not ended.is_set():
            request = one_event(user)
            while True:
                (reply,) = await log.exchange([request])
                if isinstance(reply, LogReply):
                    break
                assert isinstance(reply, StoreUnavailable), reply
                await asyncio.sleep(0.02)
            assert reply.outcomes[0].verdict is Verdict.APPLIED
            acknowledged[user].append(request.events[0].uid)
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(write(user)) for user in users]
    try:
        yield
    finally:
        ended.set()
        await asyncio.gather(*tasks)


async def progress(acknowledged: dict[str, list[bytes]], events: int) -> None:
    """Returns when every user has so many acknowledged events more."""
    before = {user: len(done) for user, done in acknowledged.items()}
    while any(len(done) < before[user] + events for user, done in acknowledged.items()):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


# A wave.


def test_the_nodes_are_asked_at_once(run: Run, valkey_cluster: ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(valkey_cluster.url, timeout_s=20) as store:
            log = EventLog(store)
            requests = [one_event(f"{i}") for i in range(60)]
            await log.exchange(requests)
            for slow in valkey_cluster.primaries:
                others = [node for node in valkey_cluster.primaries if node is not slow]
                for node in valkey_cluster.primaries:
                    node.ask("CONFIG", "RESETSTAT")
                slow.send(signal.SIGSTOP)
                try:
                    asking = asyncio.create_task(log.exchange(requests))
                    async with asyncio.timeout(LONG_S):
                        while not all(calls(node, "evalsha") for node in others):  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                    assert not asking.done()
                finally:
                    slow.send(signal.SIGCONT)
                assert all(isinstance(reply, LogReply) for reply in await asking)
                each = [calls(node, "evalsha") for node in valkey_cluster.primaries]
                assert sum(each) == 60  # none has asked where a key is
                assert min(each) > 5

    run(main())


def test_every_node_learns_the_scripts(run: Run, valkey_cluster: ValkeyCluster) -> None:
    async def main() -> None:
        async with Store(valkey_cluster.url) as store:
            log = EventLog(store)
            for rounds in (1, 2):
                for node in valkey_cluster.primaries:
                    node.ask("SCRIPT", "FLUSH")
                    node.ask("CONFIG", "RESETSTAT")
                for _ in range(2):
                    replies = await log.exchange([one_event(f"{i}") for i in range(30)])
                for reply in replies:
                    assert isinstance(reply, LogReply)
                    assert reply.newest.version == 2 * rounds
                assert sum(calls(node, "eval") for node in valkey_cluster.primaries) == 30
                assert sum(calls(node, "evalsha") for node in valkey_cluster.primaries) == 60

    run(main())


def test_a_silent_node_concerns_its_own_users_only(run: Run, valkey_cluster: ValkeyCluster) -> None:
    async def main() -> None:
        silent = valkey_cluster.primaries[0]
        async with Store(valkey_cluster.url, timeout_s=1.0) as store:
            log = EventLog(store)
            requests = [one_event(f"{i}") for i in range(60)]
            concerned = {r.user_id for r in requests if slot(r.user_id) < 16384 // 3}
            await log.exchange([LogRequest(request.user_id) for request in requests])
            silent.send(signal.SIGSTOP)
            try:
                async with waited() as waiting:
                    replies = await log.exchange(requests)
                assert waiting.seconds < 1.8, "not as long again"
                failed = {
                    r.user_id
                    for r, reply in zip(requests, replies, strict=True)
                    if isinstance(reply, StoreUnavailable)
                }
                assert failed == concerned
                others = [reply for reply in replies if isinstance(reply, LogReply)]
                assert len(others) + len(failed) == 60
                assert {reply.newest.version for reply in others} == {1}
                assert store.failing

                # Known to be down, it holds nobody up; nor does it as the node of a snapshot.
                asked = [LogRequest(r.user_id, snapshot_of="m") for r in requests]
                async with waited() as waiting:
                    replies = await log.exchange(asked)
                for request, reply in zip(asked, replies, strict=True):
                    wrong = NodeDown if request.user_id in concerned else LogReply
                    assert isinstance(reply, wrong)
                assert waiting.seconds < 0.8
                await store.ping()
            finally:
                silent.send(signal.SIGCONT)
            while store.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            for reply in await log.exchange(requests):
                assert isinstance(reply, LogReply)
                assert reply.newest.version == 1
                assert reply.outcomes[0].verdict is Verdict.APPLIED

    run(main())


# Slots that move.


def hand_over_key_by_key(
    cluster: ValkeyCluster, moved: int, of: ClusterNode, to: ClusterNode
) -> None:
    to.ask("CLUSTER", "SETSLOT", moved, "IMPORTING", of.id)
    of.ask("CLUSTER", "SETSLOT", moved, "MIGRATING", to.id)
    while keys := of.ask("CLUSTER", "GETKEYSINSLOT", moved, 1):
        of.ask("MIGRATE", "127.0.0.1", to.port, keys[0], 0, 5000)
        time.sleep(0.05)
    for node in (to, of, *cluster.primaries):
        node.ask("CLUSTER", "SETSLOT", moved, "NODE", to.id)


def hand_over_at_once(cluster: ValkeyCluster, moved: int, of: ClusterNode, to: ClusterNode) -> None:
    of.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", moved, moved, "NODE", to.id)
    deadline = time.monotonic() + LONG_S
    while not any(moved in range(first, last + 1) for first, last in own_slots(to)):
        assert time.monotonic() < deadline, of.ask("CLUSTER", "GETSLOTMIGRATIONS")
        time.sleep(0.02)


def own_slots(node: ClusterNode) -> list[tuple[int, int]]:
    layout = node.ask("CLUSTER", "SLOTS")
    return [(first, last) for first, last, (_, port, *_), *_ in layout if port == node.port]


@pytest.mark.parametrize("hand_over", [hand_over_key_by_key, hand_over_at_once])
def test_a_slot_moves_under_load(
    run: Run, valkey_cluster: ValkeyCluster, hand_over: Callable[..., None]
) -> None:
    of, to = valkey_cluster.primaries[:2]
    moved = 100
    users = list(itertools.islice(users_of(range(moved, moved + 1)), 6))
    acknowledged: dict[str, list[bytes]] = {user: [] for user in users[:5]}

    async def main() -> None:
        async with Store(valkey_cluster.url) as store:
            log = EventLog(store)
            async with writers(log, users[:5], acknowledged):
                await progress(acknowledged, 10)
                moving = asyncio.to_thread(hand_over, valkey_cluster, moved, of, to)
                newcomer = asyncio.create_task(_arrives(log, users[5]))
                await moving
                await progress(acknowledged, 10)
                (first,) = await newcomer
                for node in (of, to):
                    node.ask("CONFIG", "RESETSTAT")
                await progress(acknowledged, 10)
                # The new place is known by now.
                assert calls(of, "evalsha") == 0
                assert calls(to, "evalsha") > 0
                await asyncio.to_thread(hand_over, valkey_cluster, moved, to, of)
                await progress(acknowledged, 10)
            for user, done in acknowledged.items():
                assert await stored(log, user) == done
            assert await stored(log, users[5]) == [first]

    run(main())


async def _arrives(log: EventLog, user: str) -> list[bytes]:
    """A user without a record while the slot is half moved."""
    await asyncio.sleep(0.1)
    request = one_event(user)
    (reply,) = await log.exchange([request])
    assert isinstance(reply, LogReply), reply
    return [request.events[0].uid]


def test_a_key_that_is_asked_for_elsewhere(run: Run, valkey_cluster: ValkeyCluster) -> None:
    """A slot half moved: its new users are on the other node, without the map saying so."""
    of, to = valkey_cluster.primaries[:2]
    (user,) = itertools.islice(users_of(range(100, 101)), 1)

    async def main() -> None:
        async with Store(valkey_cluster.url) as store:
            log = EventLog(store)
            to.ask("CLUSTER", "SETSLOT", 100, "IMPORTING", of.id)
            of.ask("CLUSTER", "SETSLOT", 100, "MIGRATING", to.id)
            to.ask("CONFIG", "RESETSTAT")
            try:
                for version in (1, 2):
                    (reply,) = await log.exchange([one_event(user)])
                    assert isinstance(reply, LogReply), reply
                    assert reply.newest.version == version
                assert calls(to, "asking") >= 2
                assert to.ask("CLUSTER", "COUNTKEYSINSLOT", 100) == 1
            finally:
                for node in (to, of):
                    node.ask("CLUSTER", "SETSLOT", 100, "STABLE")

    run(main())


# A node that dies.


@pytest.mark.slow
def test_a_replica_takes_over(run: Run, folder: Path) -> None:
    """kill -9 of a primary: what was acknowledged and replicated is there once, and the same store
    goes on with the replica."""
    cluster = ValkeyCluster(
        folder, "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0", replicas=1
    )
    cluster.start()
    primary, (replica,) = cluster.primaries[0], cluster.replicas
    users = list(itertools.islice(users_of(range(5461)), 8))
    acknowledged: dict[str, list[bytes]] = {user: [] for user in users}

    async def main() -> None:
        async with Store(cluster.url, timeout_s=0.5) as store:
            log = EventLog(store)
            async with writers(log, users, acknowledged):
                await progress(acknowledged, 10)
            assert primary.ask("WAIT", 1, 5000) == 1
            before = {user: list(done) for user, done in acknowledged.items()}
            primary.kill()
            cluster.nodes.remove(primary)
            async with writers(log, users, acknowledged):
                await asyncio.wait_for(progress(acknowledged, 10), LONG_S)
                took_over = replica.ask("ROLE")[0]
            assert took_over == b"master"
            for user, done in acknowledged.items():
                assert done[: len(before[user])] == before[user]
                assert await stored(log, user) == done
            assert not store.failing

    try:
        run(main())
    finally:
        cluster.kill()


# The whole.


def test_check_asks_every_node(
    run: Run, valkey_cluster: ValkeyCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Store(valkey_cluster.url) as store:
            await store.check()
            found = await store.condition()
        each = [node.ask("INFO", "memory")["used_memory"] for node in valkey_cluster.primaries]
        assert found.memory_bytes == pytest.approx(sum(each), rel=0.2)
        assert found.memory_limit_bytes == 0

    with caplog.at_level(logging.WARNING):
        run(main())
    lines = [r.message for r in caplog.records if "appendonly is off" in r.message]
    assert len(lines) == 3
    for node in valkey_cluster.primaries:
        assert any(f"127.0.0.1:{node.port}:" in line for line in lines)


def test_several_hosts(run: Run, valkey_cluster: ValkeyCluster, folder: Path) -> None:
    unused = free_port()
    port = valkey_cluster.primaries[1].port

    async def main() -> None:
        async with Store(f"redis://127.0.0.1:{unused},127.0.0.1:{port}") as store:
            (reply,) = await EventLog(store).exchange([LogRequest("u", ORIGIN)])
            assert isinstance(reply, LogReply)
        hosts = f"127.0.0.1:{unused},127.0.0.1:{unused}"
        async with Store(f"redis://:secret@{hosts}", timeout_s=0.2) as store:
            with pytest.raises(StoreUnavailable) as raised:
                await store.ping()
            assert "secret" not in str(raised.value)
        alone = free_port()
        server = ValkeyServer(folder, "--port", str(alone))
        server.start()
        try:
            async with Store(f"redis://127.0.0.1:{unused},127.0.0.1:{alone}") as store:
                with pytest.raises(StoreError, match=f"several hosts, and .*{alone} is no Cluster"):
                    await store.ping()
        finally:
            server.kill()

    run(main())


def test_the_service_on_a_cluster(run: Run, valkey_cluster: ValkeyCluster, tmp_path: Path) -> None:
    items = [f"item {i}" for i in range(20)]
    artefact = make_artefact(tmp_path / "model", items)
    users = [f"user {i}" for i in range(12)]

    async def main() -> None:
        for _ in range(2):  # the second process finds what the first has left
            async with in_process(artefact.folder, valkey_cluster.url, snapshot_every=2) as client:
                assert (await client.get("/readyz")).status_code == 200
                body = [{"user_id": user, "item_id": item} for user in users for item in items[:3]]
                answer = await client.post("/interactions/batch", json={"interactions": body})
                assert answer.json()["accepted"] == 36
                versions = set()
                for user in users:
                    answer = await client.get("/recommend", params={"user_id": user})
                    assert answer.json()["source"] == "model"
                    versions.add(answer.json()["version"])
        assert versions == {6}
        async with in_process(artefact.folder, valkey_cluster.url) as client:
            for user in users:
                assert (await client.delete(f"/users/{user}")).json()["erased"]
        await asyncio.sleep(1)  # so long an empty value stands for an erased snapshot
        left = [key for node in valkey_cluster.primaries for key in node.ask("KEYS", "*")]
        assert not [key for key in left if key.startswith((b"tim4rec:u:", b"tim4rec:s:"))]

    run(main())


def test_the_service_while_a_node_is_silent(
    run: Run, valkey_cluster: ValkeyCluster, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / "model", ["a", "b", "c"])
    silent = valkey_cluster.primaries[0]
    here = list(itertools.islice(users_of(range(5461)), 5))
    elsewhere = list(itertools.islice(users_of(range(5461, 16384)), 20))

    async def main() -> None:
        settings = {"store_timeout_s": 2}
        async with in_process(artefact.folder, valkey_cluster.url, **settings) as client:

            async def post(user: str) -> int:
                body = {"user_id": user, "item_id": "a", "event_id": "1"}
                return int((await client.post("/interactions", json=body)).status_code)

            silent.send(signal.SIGSTOP)
            try:
                answers = await asyncio.gather(*map(post, [*here, *elsewhere]))
                assert answers == [503] * 5 + [200] * 20
                async with waited() as waiting:
                    answers = await asyncio.gather(*map(post, [*elsewhere, *here]))
                assert answers == [200] * 20 + [503] * 5
                assert waiting.seconds < 1
                assert (await client.get("/readyz")).status_code == 200
                assert "tim4rec_store_up 0.0" in (await client.get("/metrics")).text
            finally:
                silent.send(signal.SIGCONT)
            async with asyncio.timeout(LONG_S):
                while await post(here[0]) != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert await asyncio.gather(*map(post, here)) == [200] * 5
            for user in (*here, *elsewhere):
                assert (await client.get(f"/users/{user}")).json()["version"] == 1
            assert "tim4rec_store_up 1.0" in (await client.get("/metrics")).text

    run(main())


def test_the_rights_that_are_enough(run: Run, valkey_cluster: ValkeyCluster) -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    (rule,) = re.findall(r"ACL (SETUSER svc .*)", page)
    (more,) = re.findall(r"On every node of a Cluster, also `(.*)`", page)
    url = valkey_cluster.url.replace("redis://", "redis://svc:PASSWORD@")

    async def everything() -> None:
        async with Store(url) as store:
            await store.check()
            log = EventLog(store)
            users = [f"{i}" for i in range(20)]
            for reply in await log.exchange([one_event(user) for user in users]):
                assert isinstance(reply, LogReply), reply
            await SnapshotStore(log).write("m", [(user, b"s") for user in users], 60)
            assert {user async for page in log.users() for user in page} == set(users)
            assert await Erasures(log).erase("1")
            assert (await Erasures(log).since("0-0"))[1] == ["1"]
            assert await log.describe("2") is not None
            assert (await store.condition()).memory_bytes > 0

    async def refused() -> None:
        async with Store(url.partition(",")[0]) as store:
            (reply, *_) = await EventLog(store).exchange([one_event(f"{i}") for i in range(9)])
            assert "grant its user +cluster|slots" in str(reply)

    try:
        for node in valkey_cluster.primaries:
            node.ask("ACL", *rule.split(), *more.split())
        run(everything())
        for node in valkey_cluster.primaries:
            node.ask("ACL", "SETUSER", "svc", "-cluster|slots")
        run(refused())
    finally:
        for node in valkey_cluster.primaries:
            node.ask("ACL", "DELUSER", "svc")
