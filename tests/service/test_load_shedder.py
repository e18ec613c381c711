"""More requests than a process can answer: refused at once, and cheaply."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from model.artefact import Artefact
from service.engine.pace import Pace
from service.http.acceptor import Acceptor
from service.http.connection import bounded
from service.http.load_shedder import ANSWER, COUNT_EVERY_S
from tests.faults.http import Client, Reply
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, in_process, make_artefact
from tests.waited import LONG_S


@given(st.lists(st.tuples(st.integers(1, 128), st.floats(0.001, 2)), min_size=1))
def test_the_pace_lies_between_that_of_the_slowest_and_of_the_fastest_wave(
    waves: list[tuple[int, float]],
) -> None:
    pace = Pace(enough=1)
    assert pace.seconds_each == 0
    for requests, seconds in waves:
        pace.add(requests, seconds)
    each = [seconds / requests for requests, seconds in waves]
    assert min(each) * 0.999 <= pace.seconds_each <= max(each) * 1.001


def test_the_pace_follows_and_says_nothing_of_few() -> None:
    pace = Pace(enough=100)
    pace.add(99, 9.9)
    assert pace.seconds_each == 0
    for _ in range(50):
        pace.add(100, 1.0)
    assert pace.seconds_each == pytest.approx(0.01, rel=0.01)


def test_all_who_came_in_a_long_turn_are_accepted_in_a_few() -> None:
    async def main() -> None:
        connected = 0

        class Counting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal connected
                connected += 1
                transport.write(b"hello")  # type: ignore[attr-defined]

        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        acceptor = Acceptor(listener, Counting)
        callers = [socket.create_connection(address) for _ in range(200)]  # the loop waits for it
        turns = 0
        async with asyncio.timeout(LONG_S):
            while connected < 200:
                await asyncio.sleep(0)
                turns += 1
        assert turns < 60, "one in a turn would take 200"
        for caller in callers:
            assert await asyncio.to_thread(caller.recv, 5) == b"hello"
            caller.close()
        acceptor.close()
        acceptor.close()
        await acceptor.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    uvloop.run(main())


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("admission") / "m", ["a", "b"])


@pytest.fixture
def service(
    store: ValkeyServer, artefact: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    output = tmp_path_factory.mktemp("admission") / "output"
    settings = {"max_batch": 4, "max_wait_s": 0.002, "log_format": "json"}
    service = Service(artefact.folder, output, "--redis", store.url, **settings)
    try:
        service.start()
        yield service
    finally:
        service.kill()


def test_what_would_wait_too_long_is_refused(service: Service) -> None:
    """Over connections that are kept: each refusal leaves its connection in order."""

    async def main() -> tuple[list[Reply], str]:
        client = Client(service.port)

        async def caller(number: int) -> list[Reply]:
            event = {"user_id": f"u{number}", "item_id": "a", "event_id": "only one"}
            return [
                await client.ask("POST", "/interactions", event)
                if turn % 2
                else await client.ask("GET", f"/recommend?user_id=u{number}&k=1")
                for turn in range(6)
            ]

        replies = [r for own in await asyncio.gather(*map(caller, range(150))) for r in own]
        client.close()
        client = Client(service.port)  # the service closes what was idle for long
        for _ in range(100):  # the pace is known now; alone, nobody waits
            assert (await client.ask("GET", "/recommend?user_id=u1&k=1")).status == 200
        await asyncio.sleep(3 * COUNT_EVERY_S)  # refusals are counted now and then
        metrics = (await client.ask("GET", "/metrics")).body.decode()
        client.close()
        return replies, metrics

    replies, metrics = asyncio.run(main())
    counted = Counter(reply.status for reply in replies)
    assert counted.keys() == {200, 503}
    early = 0
    for reply in replies:
        if reply.status == 503:
            assert b"retry-after: 1" in reply.head
            assert b"application/problem+json" in reply.head
            assert "nothing was done" in reply.json["detail"]
            early += b"x-request-id" not in reply.head
    assert early > 0.8 * counted[503], "nearly all are refused before they are a task"
    (refused,) = (
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('tim4rec_refused_requests_total{reason="overloaded"}')
    )
    assert refused == counted[503]
    requests = sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("tim4rec_request_duration_seconds_count") and 'status="503"' in line
    )
    assert requests == counted[503]
    assert service.logged(logger="service.http.load_shedder")


class Shut:
    """Refuses everything that came whole."""

    answer = ANSWER

    def refuses_whole(self, data: bytes) -> bool:
        return data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("kept_s", [1, 60])
def test_a_refused_connection_stays_as_long_as_another(kept_s: int) -> None:
    """It is not taken for one whose request does not come, and not kept for ever."""

    async def main() -> None:
        config = Config(
            FastAPI(), http=bounded(0.2, 1000, 100), ws="none", timeout_keep_alive=kept_s,
            log_config=None, lifespan="off",
        )  # fmt: skip
        config.load()
        make: Any = config.http_protocol_class
        loop = asyncio.get_running_loop()
        state = ServerState()
        server = await loop.create_server(
            lambda: make(config, state, {"load_shedder": Shut()}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        async with asyncio.timeout(20):
            for _ in range(1 if kept_s == 1 else 3):
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await reader.readexactly(len(ANSWER)) == ANSWER
                await asyncio.sleep(0.4)  # longer than a head may take
            if kept_s == 1:
                assert await reader.read() == b""
            assert len(state.connections) == (kept_s != 1)
        writer.close()
        server.close()

    uvloop.run(main())


def test_a_batch_is_not_too_late_for_its_own_events(
    artefact: Artefact, store_url: str, run: Any
) -> None:
    async def accepted() -> list[int]:
        slow = {"max_batch": 1, "max_wait_s": 1e-6}
        async with in_process(artefact.folder, store_url, **slow) as client:
            found = []
            for turn in range(3):  # from the second one on the pace is known
                events = [
                    {"user_id": f"u{user}", "item_id": "a", "event_id": f"e{turn}"}
                    for user in range(20)
                ]
                answer = await client.post("/interactions/batch", json={"interactions": events})
                found.append(answer.json()["accepted"])
            return found

    assert run(accepted()) == [20, 20, 20]
