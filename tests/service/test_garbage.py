"""What is left for the garbage collector, which everybody waits for: nothing."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_load import closed_loop, mixed
from model.artefact import Artefact
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact
from tests.waited import LONG_S, PATIENT_S

ITEMS = [f"i{n}" for n in range(20)]
WAITING = 800
"""Requests, of over 60,000 objects with their connections."""
PAUSE_S = 4
REQUESTS: list[tuple[str, list[Any]]] = [
    ("/interactions", [{"body": b'{"user_id": "u", "item_id": "i1"}'}]),
    ("/interactions", [{"body": b"{{"}]),
    ("/interactions", [{"body": b'{"user_id": "u"}'}]),
    ("/interactions", [{"body": b'{"user_id"', "more_body": True}, "http.disconnect"]),
    ("/interactions", [{"body": b" " * 5000}]),
    ("/interactions/batch", [{"body": b"[" * 900}]),
    ("/rank", [{"body": b'{"user_id": "u", "item_ids": 1}'}]),
    ("/session/recommendations", [{"body": b"\xff"}]),
    ("/nowhere", [{"body": b"{}"}]),
]
TELLS = """
import gc
from pathlib import Path
file = Path(__file__).with_name("passes").open("a", buffering=1)
gc.callbacks.append(lambda phase, info: phase == "stop" and file.write(f"{info['generation']}\\n"))
"""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("garbage") / "model", ITEMS)


@pytest.mark.slow
def test_requests_that_wait_are_not_looked_through(
    artefact: Artefact, folder: Path, durable_valkey: ValkeyServer
) -> None:
    """Each on a connection of its own, and none answered while the store stands still."""
    (folder / "sitecustomize.py").write_text(TELLS)
    service = Service(
        artefact.folder, folder / "output", "--redis", durable_valkey.url,
        fresh=True, PYTHONPATH=folder, max_wait_s=LONG_S,
    )  # fmt: skip
    try:
        service.start()
        closed_loop(service.port, islice(mixed(50, ITEMS), 200), 4, LONG_S)  # all is made
        passes = folder / "passes"
        before = passes.read_text()
        assert before, "not told of any"
        durable_valkey.send(signal.SIGSTOP)
        threading.Timer(PAUSE_S, durable_valkey.send, [signal.SIGCONT]).start()
        waited = closed_loop(service.port, islice(mixed(50, ITEMS), WAITING), WAITING, LONG_S)
        assert passes.read_text() == before
        assert len(waited.latencies) == WAITING
        assert max(waited.latencies) > PAUSE_S / 4, "they did not wait"
    finally:
        service.kill()


@pytest.mark.slow
def test_no_request_leaves_an_error_behind(artefact: Artefact, store_url: str) -> None:
    """It would keep the body."""

    async def check() -> None:
        settings = Settings(
            artefact=artefact.folder,
            redis_url=store_url,
            store_timeout_s=PATIENT_S,
            max_body_bytes=4096,
        )
        app = create_app(settings)
        async with app.api.router.lifespan_context(app.api):
            for path, messages in REQUESTS:
                await post(app, path, messages)
                gc.collect()
                gc.disable()
                try:
                    before = errors_alive()
                    for _ in range(10):
                        await post(app, path, messages)
                    assert errors_alive() < before + 10, (path, messages)
                finally:
                    gc.enable()

    asyncio.run(check())


async def post(app: Any, path: str, messages: list[Any]) -> None:
    """As a server calls an application."""
    came: Iterator[dict[str, Any]] = iter(
        {"type": one} if isinstance(one, str) else {"type": "http.request"} | one
        for one in messages
    )
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"100")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return next(came)

    async def send(message: dict[str, Any]) -> None:
        pass

    await app(scope, receive, send)


def errors_alive() -> int:
    return sum(issubclass(type(one), BaseException) for one in gc.get_objects())
