"""The processes of the service: how they begin, how they end, and what becomes of requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from model.artefact import Artefact
from tests.service.processes import (
    ROOT,
    Service,
    alive,
    free_port,
    in_process,
    make_artefact,
)
from tests.service.test_durability import begin_post
from tests.waited import LONG_S, until

ITEMS = [f"i{n}" for n in range(20)]
WRITERS = 12
DRAIN_S = 3


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("server") / "model", ITEMS)


@pytest.fixture
def start(artefact: Artefact, folder: Path) -> Iterator[Callable[..., Service]]:
    """Starts services that do not outlive the test."""
    started: list[Service] = []

    def begin(*arguments: str, wait: bool = True, **settings: object) -> Service:
        output = folder / f"output{len(started)}"
        started.append(Service(artefact.folder, output, *arguments, **settings))
        started[-1].start(wait=wait)
        return started[-1]

    yield begin
    for service in started:
        service.kill()


def workers_of(service: Service) -> list[int]:
    """The processes that say they serve a model."""
    found = [record["pid"] for record in service.logged(logger="service.app")]
    return [pid for pid in found if alive(pid)]


def ready(service: Service) -> int:
    """The status of /readyz over a connection of its own; 0: none is to be had; -1: it was
    closed, as happens in the moment in which the port is."""
    try:
        return httpx.get(f"{service.url}/readyz", timeout=LONG_S).status_code
    except httpx.ConnectError:
        return 0
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return -1


class Load:
    """Writers that behave as behind a load balancer: none begins anything once the service has
    said that it is not ready. Half of them keep their connections."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.acknowledged: dict[str, list[str]] = {}
        self.faults: list[str] = []
        self.busy, self.draining = asyncio.Event(), asyncio.Event()

    async def run(self, when_busy: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(self._write(f"writer{number}", keep=number % 2 == 0))
            tasks.create_task(self._watch())
            await self.busy.wait()
            when_busy()

    async def _write(self, user: str, keep: bool) -> None:
        acknowledged = self.acknowledged[user] = []
        limits = httpx.Limits(max_keepalive_connections=1 if keep else 0)
        async with httpx.AsyncClient(
            base_url=self.service.url, timeout=LONG_S, limits=limits
        ) as client:
            while not self.draining.is_set():
                event = f"event{len(acknowledged)}"
                body = {"user_id": user, "item_id": "i1", "event_id": event}
                try:
                    answer = await client.post("/interactions", json=body)
                except httpx.TransportError as error:
                    self.faults.append(repr(error))
                    return
                if answer.status_code != 200:
                    self.faults.append(answer.text)
                acknowledged.append(event)
                if len(acknowledged) == 20:
                    self.busy.set()

    async def _watch(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.service.url, timeout=LONG_S, limits=limits
        ) as client:
            # A probe comes round only now and then.
            while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.3)
        self.draining.set()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_drain_breaks_nothing(
    start: Callable[..., Service],
    artefact: Artefact,
    store_url: str,
    workers: int,
) -> None:
    service = start("--workers", str(workers), "--drain-s", str(DRAIN_S), "--redis", store_url)
    process = service.process
    assert process is not None
    load = Load(service)
    told = 0.0

    def stop() -> None:
        nonlocal told
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)

    async def check() -> None:
        await load.run(stop)
        assert process.poll() is None, "it did not serve on"
        async with httpx.AsyncClient(base_url=service.url) as client:
            while "\ntim4rec_ready 0.0\n" not in (answer := await client.get("/metrics")).text:
                assert time.monotonic() < told + DRAIN_S
        assert answer.headers["Connection"] == "close", "kept connections are not told to go"
        assert await asyncio.to_thread(process.wait, LONG_S) == 0
        async with in_process(artefact.folder, store_url) as client:
            for user, acknowledged in load.acknowledged.items():
                answer = await client.get(f"/users/{user}/history")
                found = [event["event_id"] for event in answer.json()["events"]]
                assert found == acknowledged

    asyncio.run(check())
    assert load.faults == []
    assert time.monotonic() - told >= DRAIN_S
    assert ready(service) == 0
    assert len(service.logged(message=f"draining: serving for another {DRAIN_S} s")) == workers
    assert service.logged(level="ERROR") == []
    assert service.printed()[:1] == [f"Ready on {service.url}. Paste any of these:"]


def health(service: Service) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "health"],
        env=os.environ | {"TIM4REC_PORT": str(service.port), "http_proxy": "http://127.0.0.1:1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_stops_at_once(
    start: Callable[..., Service], store_url: str, workers: int
) -> None:
    service = start("--workers", str(workers), redis_url=store_url, drain_s=60)
    process = service.process
    assert process is not None
    if workers == 1:
        told = health(service)
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout == f"{service.url}/readyz: 200 ready\n"
    # Held by one who never sends the rest; no reason to stay.
    with begin_post(service, b"x" * 100):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.send_signal(signal.SIGINT)  # the echo of the first
        until(lambda: ready(service) == 503, "it is still ready")
        time.sleep(0.7)
        assert process.poll() is None, "it took an echo for a second signal"
        assert httpx.get(f"{service.url}/users/nobody").status_code == 404, "it does not serve on"
        if workers == 1:
            told = health(service)
            assert (told.returncode, told.stdout) == (1, "")
            assert told.stderr == f"error: {service.url}/readyz: 503 draining\n"
        pids = workers_of(service)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=50) == 1
    assert not any(alive(pid) for pid in pids)
    assert service.printed()[5:] == []
    assert [r for r in service.logged(level="ERROR") if r["logger"] != "uvicorn.error"] == []
    assert health(service).stderr.startswith(f"error: {service.url}/readyz: ")


@pytest.mark.slow
def test_a_request_without_an_end_is_given_up(
    start: Callable[..., Service], store_url: str
) -> None:
    service = start("--shutdown-s", "6", "--workers", "2", redis_url=store_url)
    process = service.process
    assert process is not None
    with begin_post(service, b"x" * 100):
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        # Refused, and not kept waiting by a port that nobody answers at any more.
        until(lambda: ready(service) == 0, "the port is open", 6)
        assert process.poll() is None, "it did not wait"
        assert process.wait(timeout=LONG_S) == 0
        assert time.monotonic() - started >= 6


@pytest.mark.slow
def test_how_long_an_idle_connection_is_kept(start: Callable[..., Service], store_url: str) -> None:
    service = start("--keep-alive-s", "2", redis_url=store_url)
    with socket.create_connection(("127.0.0.1", service.port), timeout=LONG_S) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.recv(4096)
        while not answer.endswith(b"}"):  # head and body may come apart
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        answered = time.monotonic()
        assert connection.recv(4096) == b""
        assert time.monotonic() - answered > 1.9


@pytest.mark.slow
def test_workers_do_not_outlive_the_supervisor(
    start: Callable[..., Service], artefact: Artefact, store_url: str
) -> None:
    service = start("--workers", "2", redis_url=store_url, drain_s=60)
    process = service.process
    assert process is not None
    until(lambda: len(workers_of(service)) == 2, "only one worker came up")
    workers = workers_of(service)
    body = b'{"user_id": "left", "item_id": "i1", "timestamp": 1700000000}'
    open_ = [begin_post(service, body) for _ in range(4)]
    process.kill()
    process.wait()
    until(lambda: ready(service) == 0, "orphans keep the port", 50)
    for connection in open_:
        with connection:
            connection.sendall(body)
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200")
    until(lambda: not any(map(alive, workers)), "orphans live on", 50)

    async def check() -> None:
        async with in_process(artefact.folder, store_url) as client:
            answer = await client.get("/users/left/history")
            assert [event["version"] for event in answer.json()["events"]] == [1, 2, 3, 4]

    asyncio.run(check())


def test_a_start_that_fails_is_not_tried_for_ever(
    start: Callable[..., Service], folder: Path
) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "appendonlydir").write_text("no folder")
    service = start("--workers", "2", wait=False, data_dir=folder / "state")
    assert service.process is not None
    assert service.process.wait(timeout=LONG_S) == 3
    assert any("valkey-server" in record["message"] for record in service.logged(level="ERROR"))
    assert service.printed() == []


def test_a_start_that_is_broken_off_leaves_no_store(
    start: Callable[..., Service], folder: Path
) -> None:
    service = start(wait=False, data_dir=folder / "state")
    file = folder / "state" / "valkey.pid"
    until(lambda: file.exists() and file.read_text().strip() != "", "no store is started")
    pid = int(file.read_text())
    assert service.stop() in (0, 143)
    until(lambda: not alive(pid), "the store lives on")


def test_the_probe_is_light() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.main import app\n"
        f"url = 'http://127.0.0.1:{free_port()}/readyz'\n"
        "assert CliRunner().invoke(app, ['health', '--url', url]).exit_code == 1\n"
        "print([name for name in ('torch', 'fastapi', 'service') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
