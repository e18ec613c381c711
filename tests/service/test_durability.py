"""kill -9 of the service and of the store during load; SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.artefact import Artefact
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    alive,
    check_answer,
    history,
    make_artefact,
    offline_scores,
    pairs,
)
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(40)]
USERS = [f"user{n}" for n in range(16)]
AT_MS = BASE_MS + 10**10
SETTINGS = {"snapshot_every": 8, "store_timeout_s": 2}


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("durability") / "model", ITEMS)


class Load:
    """One writer a user, each sending its events in order and only after the one before was
    acknowledged. What was sent last may or may not be in the log; all before it must be."""

    def __init__(self) -> None:
        self.sent: dict[str, list[dict[str, Any]]] = {user: [] for user in USERS}
        self.acknowledged = dict.fromkeys(USERS, 0)
        self.rng = random.Random(7)

    def event(self, user: str) -> dict[str, Any]:
        number = len(self.sent[user])
        return {
            "user_id": user,
            "item_id": self.rng.choice(ITEMS),
            "timestamp": BASE_MS + number * 60_000,
            "event_id": f"event {number}",
        }

    async def run(self, url: str, stop: asyncio.Event) -> None:
        """Writes until `stop`; each writer until its first failure."""
        async with (
            httpx.AsyncClient(base_url=url, timeout=LONG_S) as client,
            asyncio.TaskGroup() as tg,
        ):
            for user in USERS:
                tg.create_task(self._write(client, user, stop))

    async def _write(self, client: httpx.AsyncClient, user: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            events = [self.event(user)]
            self.sent[user] += events
            if self.rng.random() < 0.2:
                events.append(self.event(user))
                self.sent[user].append(events[-1])
            try:
                if len(events) == 1:
                    answer = await client.post("/interactions", json=events[0])
                    statuses = [answer.json().get("status")]
                else:
                    body = {"interactions": events}
                    answer = await client.post("/interactions/batch", json=body)
                    statuses = [result["status"] for result in answer.json()["results"]]
            except (httpx.TransportError, ValueError):
                return
            if answer.status_code != 200 or "failed" in statuses:
                assert answer.status_code in (200, 503), answer.text
                return
            assert statuses == ["applied"] * len(events)
            self.acknowledged[user] = len(self.sent[user])

    def check_nothing_is_lost(self, client: httpx.Client) -> None:
        """Before anything is sent again."""
        for user in USERS:
            found = [event["event_id"] for event in history(client, user)]
            names = [event["event_id"] for event in self.sent[user]]
            assert found == names[: len(found)], "out of order, twice, or never sent"
            assert len(found) >= self.acknowledged[user], "an acknowledged event is lost"

    def replay(self, client: httpx.Client) -> None:
        """Everything again, with the same event ids: what is missing is added, nothing else."""
        for user in USERS:
            before = len(history(client, user))
            events = self.sent[user]
            for start in range(0, len(events), 300):
                part = {"interactions": events[start : start + 300]}
                answer = client.post("/interactions/batch", json=part)
                assert answer.status_code == 200, answer.text
                for place, result in enumerate(answer.json()["results"], start):
                    expected = "duplicate" if place < before else "applied"
                    assert (result["status"], result["version"]) == (expected, place + 1)
            self.acknowledged[user] = len(events)

    def check_whole(self, client: httpx.Client, artefact: Artefact) -> None:
        for user in USERS:
            events = history(client, user)
            assert [event["version"] for event in events] == list(range(1, len(events) + 1))
            found = [(event["event_id"], event["item_id"]) for event in events]
            assert found == [(e["event_id"], e["item_id"]) for e in self.sent[user]]
            scores = offline_scores(artefact, pairs(events), AT_MS)
            query = {"user_id": user, "k": 40, "at": AT_MS, "exclude_seen": False}
            answer = client.get("/recommend", params=query).json()
            assert answer["version"] == len(events)
            check_answer(answer, scores, 40)


def load_until(load: Load, service: Service, kill: Any) -> None:
    """Load; in the middle of it `kill` is called."""

    async def both() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(service.url, stop))
        before = sum(load.acknowledged.values())
        until = time.monotonic() + LONG_S
        while sum(load.acknowledged.values()) < before + 200:
            assert time.monotonic() < until, "the load makes no progress"
            assert not running.done(), "the load ended by itself"
            await asyncio.sleep(0.01)
        kill()
        await asyncio.sleep(0.2)
        stop.set()  # a store that is back within its timeout is no failure to a writer
        await running

    asyncio.run(both())


def answers_again(service: Service) -> float:
    """Seconds until a POST is applied again."""
    started = time.monotonic()
    with service.client() as client:
        while True:
            try:
                body = {"user_id": "probe", "item_id": "i1"}
                if client.post("/interactions", json=body).status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass
            assert time.monotonic() < started + 90, service.said()
            time.sleep(0.02)


def until_dead(pid: int) -> None:
    deadline = time.monotonic() + LONG_S
    while alive(pid):
        assert time.monotonic() < deadline, "the store lives on"
        time.sleep(0.02)


def store_pid(data_dir: Path) -> int:
    return int((data_dir / "valkey.pid").read_text())


def check(load: Load, service: Service, artefact: Artefact) -> None:
    with service.client() as client:
        load.check_nothing_is_lost(client)
        load.replay(client)
        load.check_whole(client, artefact)


@pytest.mark.slow
def test_killed_during_load(
    artefact: Artefact,
    folder: Path,
    durable_valkey: ValkeyServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A store of its own, `appendfsync always`: the service is killed, then the store."""
    service = Service(artefact.folder, folder / "out", "--redis", durable_valkey.url, **SETTINGS)
    load, took = Load(), {}
    try:
        service.start()
        load_until(load, service, service.kill)
        service.start(wait=False)
        took["service"] = answers_again(service)
        check(load, service, artefact)

        load_until(load, service, durable_valkey.kill)
        durable_valkey.start()
        took["store"] = answers_again(service)
        check(load, service, artefact)

        assert service.stop() == 0
    finally:
        service.kill()
    with capsys.disabled():
        print(
            "\nanswers again after kill -9:", ", ".join(f"{k} {v:.1f} s" for k, v in took.items())
        )


@pytest.fixture
def data_dir(folder: Path) -> Iterator[Path]:
    path = folder / "state"
    yield path
    if (path / "valkey.pid").exists() and alive(store_pid(path)):
        os.kill(store_pid(path), signal.SIGKILL)
        until_dead(store_pid(path))


@pytest.mark.slow
def test_the_embedded_store_killed_during_load(
    artefact: Artefact, folder: Path, data_dir: Path
) -> None:
    """The store outlives a kill -9 of the service, a kill -9 of both loses nothing, and a store
    that dies under a living service is started again by it."""
    service = Service(
        artefact.folder, folder / "out", "--data-dir", str(data_dir), fsync="always", **SETTINGS
    )
    load = Load()
    try:
        service.start()
        first = store_pid(data_dir)
        load_until(load, service, service.kill)
        assert alive(first), "the store must live on"
        service.start()
        assert store_pid(data_dir) == first, "the restarted service attaches"
        check(load, service, artefact)

        load_until(load, service, lambda: os.kill(first, signal.SIGKILL))
        until_dead(first)
        answers_again(service)
        second = store_pid(data_dir)
        assert second != first
        check(load, service, artefact)

        def kill_both() -> None:
            os.kill(second, signal.SIGKILL)
            service.kill()

        load_until(load, service, kill_both)
        until_dead(second)
        service.start()
        third = store_pid(data_dir)
        assert third not in (first, second)
        check(load, service, artefact)
        assert service.stop() == 0
        until_dead(third)
    finally:
        service.kill()


def begin_post(service: Service, body: bytes) -> socket.socket:
    """A request whose body the server has asked for but not got: it is in flight for certain."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    head = (
        "POST /interactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.sendall(head.encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 100")
    return connection


@pytest.mark.slow
def test_sigterm_answers_what_is_in_flight_and_the_last_one_stops_the_store(
    artefact: Artefact, folder: Path, data_dir: Path
) -> None:
    services = [
        Service(artefact.folder, folder / f"out{n}", "--data-dir", str(data_dir), *workers)
        for n, workers in enumerate([(), ("--workers", "2")])
    ]
    try:
        for service in services:  # both at once: one starts the store, the others attach
            service.start(wait=False)
        for service in services:
            service.wait_ready()
        store = store_pid(data_dir)
        for number, service in enumerate(services):
            user = f"in flight {number}"
            bodies = [json.dumps({"user_id": user, "item_id": f"i{n}"}).encode() for n in range(6)]
            open_ = [(begin_post(service, body), body) for body in bodies]
            assert service.process is not None
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert service.process.poll() is None, "it left requests unanswered"
            for connection, body in open_:
                with connection:
                    connection.sendall(body)
                    answer = connection.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 200"), answer
                assert b'"applied"' in answer
            assert service.process.wait(timeout=LONG_S) == 0
            assert "Traceback" not in service.said()
            if number == 0:
                assert alive(store), "the other service still uses it"
                with services[1].client() as client:
                    assert len(history(client, user)) == 6
        until_dead(store)
    finally:
        for service in services:
            service.kill()
