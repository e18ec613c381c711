"""Interactions are acknowledged when replicas have them: `replica_acks`."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.crc import key_slot

from model.artefact import Artefact
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import AcksMissed, StoreUnavailable
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import NewEvent, Verdict, new_uid
from service.store.snapshot_store import SnapshotStore
from tests.service.conftest import ClusterNode, ValkeyCluster, ValkeyServer
from tests.service.processes import free_port, in_process, make_artefact
from tests.waited import LONG_S, until, waited

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Replicated:
    """A primary and its replica."""

    def __init__(self, folder: Path) -> None:
        for name in ("primary", "replica"):
            (folder / name).mkdir()
        options = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
        self.primary = ValkeyServer(folder / "primary", *options)
        self.replica = ValkeyServer(folder / "replica", *options)
        self.primary.start()
        with self.primary.client() as client:
            client.config_set("port", free_port())
            port = client.config_get("port")["port"]
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", int(port))
            deadline = time.monotonic() + LONG_S
            while client.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        self.replica.send(signal.SIGCONT)
        for server in (self.primary, self.replica):
            server.kill()

    def part(self) -> None:
        """The link is gone; what the replica has is all that it will have."""
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")


@pytest.fixture
def replicated(folder: Path) -> Iterator[Replicated]:
    servers = Replicated(folder)
    yield servers
    servers.kill()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("acks") / "model", ["a", "b", "c"])


def one(name: str) -> NewEvent:
    return NewEvent(new_uid(), "a", None, name)


async def missed(client: httpx.AsyncClient) -> float:
    name = "tim4rec_replica_acks_missed_total "
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def append(log: EventLog, *events: NewEvent) -> Any:
    (reply,) = await log.exchange([LogRequest("u", None, events)])
    return reply


@pytest.mark.slow
def test_without_its_replicas_nothing_is_acknowledged(run: Run, replicated: Replicated) -> None:
    """Nor a retry of what is there already, over whichever connection."""

    async def main() -> None:
        events = [one(f"{n}") for n in range(4)]
        async with (
            Store(replicated.primary.url, replica_acks=1, timeout_s=2) as store,
            Store(replicated.primary.url, replica_acks=1, timeout_s=2) as other,
        ):
            log, elsewhere = EventLog(store), EventLog(other)
            assert isinstance(await append(log, events[0]), LogReply)
            replicated.replica.send(signal.SIGSTOP)
            assert isinstance(await append(log, events[1]), AcksMissed)
            async with waited() as waiting:
                for _ in range(3):
                    assert isinstance(await append(log, events[1]), AcksMissed)
            assert waiting.seconds < 1.6, "each as long again"
            assert isinstance(await append(elsewhere, events[1]), AcksMissed)
            assert isinstance(await append(elsewhere, one("1")), AcksMissed)  # a duplicate
            replies = await log.exchange(
                [LogRequest("u"), LogRequest("v", None, [one("x")]), LogRequest("w")]
            )
            assert [type(reply) for reply in replies] == [LogReply, AcksMissed, LogReply]
            with pytest.raises(AcksMissed):
                await Erasures(log).erase("w")
            replicated.replica.send(signal.SIGCONT)
            async with asyncio.timeout(LONG_S):
                while isinstance(reply := await append(log, events[1]), AcksMissed):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert reply.outcomes[0].verdict is Verdict.APPLIED
            reply = await append(log, events[2], one("1"))
            assert [outcome.version for outcome in reply.outcomes] == [3, 2]

    run(main())


@pytest.fixture(scope="module")
def replicated_cluster(folder_of_module: Path) -> Iterator[ValkeyCluster]:
    """Three primaries with a replica each."""
    options = ("--repl-diskless-sync-delay", "0")
    cluster = ValkeyCluster(folder_of_module, *options, replicas=3)
    try:
        cluster.start()
        for primary, replica in zip(cluster.primaries[1:], cluster.replicas[1:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        until(lambda: all(map(_has_replica, cluster.primaries)), "a primary has no replica")
        yield cluster
    finally:
        cluster.kill()


def _has_replica(primary: ClusterNode) -> bool:
    return bool(primary.ask("INFO", "replication")["connected_slaves"] == 1)


@pytest.mark.parametrize("of", ["record", "snapshot", "announcement"])
def test_an_erasure_sent_again_waits_for_the_replicas_of_each_node(
    run: Run, replicated_cluster: ValkeyCluster, of: str
) -> None:
    """The key is gone from its primary then, and what is written on the others has nothing to do
    with that: only a write on its own node has WAIT ask its replica."""
    primaries, replicas = replicated_cluster.primaries, replicated_cluster.replicas

    def on(number: int, pattern: str) -> str:
        names = map(pattern.format, range(1000))
        return next(key for key in names if key_slot(key.encode()) // (16384 // 3) == number)

    announcement = on(2, "n{}:erased")
    name = announcement.removesuffix(":erased")
    record = on(0, f"{name}:u:u{{}}")
    user = record.rpartition(":")[2]
    snapshot = on(1, f"{name}:s:m{{}}:{user}")
    number = ("record", "snapshot", "announcement").index(of)

    async def erase() -> bool:
        async with Store(replicated_cluster.url, replica_acks=1, timeout_s=1) as store:
            return await Erasures(EventLog(store, namespace=name)).erase(user)

    async def main() -> None:
        async with Store(replicated_cluster.url) as store:
            log = EventLog(store, namespace=name)
            (reply,) = await log.exchange([LogRequest(user, None, [one("1")])])
            assert isinstance(reply, LogReply)
            await SnapshotStore(log).write(snapshot.split(":")[2], [(user, b"s")], None)
        assert [node.ask("WAIT", 1, 5000) for node in primaries] == [1, 1, 1]
        replicas[number].send(signal.SIGSTOP)
        for _ in range(2):  # each over connections of its own
            with pytest.raises(StoreUnavailable):  # AcksMissed, but on a busy machine
                await erase()
        assert primaries[0].ask("EXISTS", record) == 0
        replicas[number].send(signal.SIGCONT)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert not await erase()
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        assert replicas[0].ask("CLUSTER", "COUNTKEYSINSLOT", key_slot(record.encode())) == 0

    try:
        run(main())
    finally:
        replicas[number].send(signal.SIGCONT)


@pytest.mark.parametrize("acks", [0, 1])
def test_a_failover_keeps_what_replicas_have(
    run: Run, replicated: Replicated, folder: Path, acks: int
) -> None:
    async def main() -> None:
        acknowledged = []
        async with Store(replicated.primary.url, replica_acks=acks, timeout_s=2) as store:
            log = EventLog(store)
            for n in range(20):
                if n == 10:
                    replicated.part()
                if isinstance(await append(log, one(f"{n}")), LogReply):
                    acknowledged.append(f"{n}")
        assert len(acknowledged) == (10 if acks else 20)
        replicated.primary.kill()
        async with Store(replicated.replica.url) as store:
            found = [e.event_id async for page in EventLog(store).events("u") for e in page]
        lost = [name for name in acknowledged if name not in found]
        assert found == [f"{n}" for n in range(len(found))]
        assert lost == [] if acks else len(lost) == 10

    run(main())


def test_the_service_says_so(run: Run, replicated: Replicated, artefact: Artefact) -> None:
    async def main() -> None:
        settings = {"replica_acks": 1, "store_timeout_s": 2}
        async with in_process(artefact.folder, replicated.primary.url, **settings) as client:
            before = await missed(client)
            body = {"user_id": "u", "item_id": "a", "event_id": "1"}
            assert (await client.post("/interactions", json=body)).json()["status"] == "applied"
            replicated.replica.send(signal.SIGSTOP)
            body["event_id"] = "2"
            answer = await client.post("/interactions", json=body)
            assert answer.status_code == 503
            assert "1 replicas are to have a write, 0 have it" in answer.text
            assert "unknown" in answer.text
            answer = await client.get("/recommend?user_id=u")
            assert answer.json()["stale"] is False
            assert await missed(client) == before + 1
            replicated.replica.send(signal.SIGCONT)
            async with asyncio.timeout(LONG_S):
                again = await client.post("/interactions", json=body)
                while again.status_code != 200:
                    again = await client.post("/interactions", json=body)
                    await asyncio.sleep(0.05)
            assert (again.json()["status"], again.json()["version"]) == ("duplicate", 2)

    run(main())
