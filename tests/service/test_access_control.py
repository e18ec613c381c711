"""Ports, keys and what a stranger may send before being answered, on a real service."""

from __future__ import annotations

import asyncio
import json
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
from tests.service.processes import Service, free_port, in_process, make_artefact
from tests.waited import LONG_S, until

KEY = "the key"
READ_TIMEOUT_S = 2.0
MAX_BODY, MAX_HEAD = 20_000, 4096


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("access_control") / "model", ["a", "b", "c"])


@pytest.fixture(scope="module")
def service(artefact: Artefact, store: ValkeyServer) -> Iterator[Service]:
    """Two workers on two ports, with keys and tight bounds."""
    running = Service(
        artefact.folder, store.folder / "output", "--workers", "2", redis_url=store.url,
        api_keys=KEY, operations_port=free_port(), read_timeout_s=READ_TIMEOUT_S,
        max_body_bytes=MAX_BODY, max_head_bytes=MAX_HEAD,
    )  # fmt: skip
    running.start(wait=False)
    try:
        running.wait_ready()
        yield running
    finally:
        running.kill()


@pytest.fixture
def operations(service: Service) -> str:
    return f"http://127.0.0.1:{service._environment['TIM4REC_OPERATIONS_PORT']}"


def refused(answer: httpx.Response, status: int, *said: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert all(word in document["detail"] for word in said), document


def test_two_ports(service: Service, operations: str) -> None:
    with httpx.Client(headers={"X-API-Key": KEY}) as client:
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(operations + path).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/recommend?user_id=u", "/users/u", "/x"):
            refused(client.get(operations + path), 404)
        body = {"user_id": "u", "item_id": "a"}
        refused(client.post(f"{operations}/interactions", json=body), 404)
        refused(client.get(f"{service.url}/metrics"), 404)
        refused(client.get(f"{operations}/page-data/metrics"), 404)
        shown = client.get(f"{service.url}/page-data/metrics")
        assert "tim4rec_workers 2.0" in shown.text
        refused(httpx.get(f"{service.url}/page-data/metrics"), 401)
        assert client.get(f"{service.url}/readyz").status_code == 200  # for load balancers
        assert client.post(f"{service.url}/interactions", json=body).status_code == 200
    until(lambda: "tim4rec_workers 2.0" in httpx.get(f"{operations}/metrics").text)


def test_the_documentation_wants_a_key(service: Service) -> None:
    for path in ("/docs", "/openapi.json"):
        refused(httpx.get(service.url + path), 401)
        refused(httpx.get(service.url + path, headers={"X-API-Key": "wrong"}), 401)
        assert httpx.get(service.url + path, headers={"X-API-Key": KEY}).status_code == 200
    assert httpx.get(f"{service.url}/").status_code == 200  # the page asks for the key itself


def test_without_a_port_of_its_own_metrics_want_a_key(
    run: Any, artefact: Artefact, store: ValkeyServer
) -> None:
    async def check() -> None:
        async with in_process(artefact.folder, store.url, api_keys=KEY, public_docs=True) as one:
            refused(await one.get("/metrics"), 401, "X-API-Key")
            assert "WWW-Authenticate" in (await one.get("/metrics")).headers
            assert (await one.get("/metrics", headers={"X-API-Key": KEY})).status_code == 200
            assert (await one.get("/openapi.json")).status_code == 200
        async with in_process(artefact.folder, store.url) as one:
            for path in ("/metrics", "/docs", "/openapi.json"):
                assert (await one.get(path)).status_code == 200

    run(check())


def post(service: Service, **options: Any) -> httpx.Response:
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"} | options.pop("headers", {})
    return httpx.post(f"{service.url}/interactions", headers=headers, timeout=LONG_S, **options)


def in_pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


def test_bodies_that_are_too_large(service: Service) -> None:
    rest = b'{"user_id":"large","item_id":"a"}'
    assert post(service, content=rest.rjust(MAX_BODY)).status_code == 200
    for content in (rest.rjust(MAX_BODY + 1), b" " * 100_000_000, in_pieces(10 * MAX_BODY)):
        refused(post(service, content=content), 413, "body", str(MAX_BODY))
    # One by the framework's general way.
    answer = httpx.put(
        f"{service.url}/items/a", headers={"X-API-Key": KEY}, content=in_pieces(10 * MAX_BODY)
    )
    refused(answer, 413, "body")
    with httpx.Client(headers={"X-API-Key": KEY}) as client:  # the connection goes on
        for _ in range(3):
            answer = client.post(f"{service.url}/interactions", content=b" " * (MAX_BODY + 1))
            refused(answer, 413)


class Slow:
    """A connection on which bytes are sent as slowly as one likes."""

    def __init__(self, service: Service) -> None:
        self.started = time.monotonic()
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=LONG_S)

    def send(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def answer(self) -> tuple[int, dict[str, Any]]:
        """The status and document that came before the connection was closed."""
        received = b""
        try:
            while part := self.socket.recv(65_536):
                received += part
        except ConnectionError:
            pass
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


HEAD = (
    b"POST /interactions HTTP/1.1\r\nHost: x\r\nX-API-Key: the key\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
)


def test_what_does_not_come_is_not_waited_for(service: Service) -> None:
    begun = [b"", b"GET / HT", HEAD[:80], HEAD, HEAD + b'{"user']
    held = [Slow(service) for _ in begun]
    for slow, sent in zip(held, begun, strict=True):
        slow.send(sent)
    for slow in held:
        with slow.socket:
            status, document = slow.answer()
            assert time.monotonic() - slow.started >= READ_TIMEOUT_S
            assert status == document["status"] == 408
            assert "read_timeout_s" in document["detail"]


@pytest.mark.slow
def test_what_comes_byte_by_byte_is_not_waited_for(service: Service) -> None:
    held = [Slow(service) for _ in range(2)]
    for slow, sent in zip(held, (HEAD[:80], HEAD), strict=True):
        slow.send(sent)
    open_ = list(held)
    while open_:
        open_ = [slow for slow in open_ if slow.send(b" ")]
        time.sleep(0.1)
        assert time.monotonic() < held[0].started + LONG_S, "each byte brings it more time"
    for slow in held:
        with slow.socket:
            assert slow.answer()[0] == 408


@pytest.mark.slow
def test_heads_without_an_end(service: Service) -> None:
    for begun in (b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000):
        slow = Slow(service)
        with slow.socket:
            slow.send(begun)
            assert slow.answer()[0] == 431
    for begun in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\0" * 100):
        slow = Slow(service)
        with slow.socket:
            slow.send(begun)
            assert slow.answer()[0] == 400
    # A second request on a connection has no more time than a first.
    slow = Slow(service)
    with slow.socket:
        slow.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        assert slow.socket.recv(65_536).startswith(b"HTTP/1.1 200")
        slow.send(b"GET /livez HTTP/1.1\r\nHo")
        assert slow.answer()[0] == 408


def test_quick_senders_are_served_meanwhile(service: Service) -> None:
    held = [Slow(service) for _ in range(60)]
    for slow in held:
        slow.send(HEAD)
    assert post(service, json={"user_id": "quick", "item_id": "a"}).status_code == 200
    for slow in held:
        slow.socket.close()


def test_a_body_may_pause(service: Service) -> None:
    body = b'{"user_id":"pausing","item_id":"a"}'.ljust(100)
    slow = Slow(service)
    with slow.socket:
        slow.send(HEAD + body[:30])
        time.sleep(READ_TIMEOUT_S / 4)
        slow.send(body[30:])
        assert slow.socket.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_an_answer_that_takes_long_is_not_cut(
    artefact: Artefact, folder: Path, durable_valkey: ValkeyServer
) -> None:
    """The bound is for senders: the service itself may take longer."""
    service = Service(
        artefact.folder, folder / "output", redis_url=durable_valkey.url,
        read_timeout_s=0.5, store_timeout_s=60,
    )  # fmt: skip
    try:
        service.start()
        durable_valkey.send(signal.SIGSTOP)

        async def check() -> None:
            async with httpx.AsyncClient(base_url=service.url, timeout=LONG_S) as client:
                body = {"user_id": "u", "item_id": "a"}
                asked = asyncio.create_task(client.post("/interactions", json=body))
                await asyncio.sleep(7)  # more than the bound and its grace
                assert not asked.done()
                durable_valkey.send(signal.SIGCONT)
                assert (await asked).status_code == 200

        asyncio.run(check())
    finally:
        durable_valkey.send(signal.SIGCONT)
        service.kill()
