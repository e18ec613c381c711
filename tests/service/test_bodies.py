"""Bodies are read once, whole, and only as far as they may come."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import APIRouter

from service.http.bodies import ReadBodies
from service.http.schemas import InteractionBatch
from service.settings import Settings

router = APIRouter()


@router.post("/batch")
async def batch(body: InteractionBatch) -> None: ...


class Echo:
    """Answers with what it received, once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message.get("more_body")
        self.bodies.append(message["body"])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def front(app: Any, **settings: Any) -> ReadBodies:
    values: Any = {"artefact": "a", **settings}
    return ReadBodies(app, settings=Settings(**values), routers=[router])


async def ask(
    one: ReadBodies, *parts: bytes | None, method: str = "POST", path: str = "/x",
    headers: tuple[tuple[bytes, bytes], ...] = ((b"transfer-encoding", b"chunked"),),
) -> tuple[int, dict[str, str], Any]:  # fmt: skip
    """The answer to a body in parts; None: the caller leaves, nothing at all: it waits."""
    left = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": place + 1 < len(parts)}
        for place, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await one(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(sent[1]["body"])


def said(length: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-length", str(length).encode()),)


def test_it_is_handed_on_in_one_piece() -> None:
    async def check() -> None:
        echo = Echo()
        one = front(echo)
        assert (await ask(one, b"ab", b"", b"c"))[0] == 200
        assert (await ask(one, b"abc", headers=said(3)))[0] == 200
        assert echo.bodies == [b"abc", b"abc"]
        assert one.buffered == 0

    asyncio.run(check())


def test_what_is_too_large_is_not_read() -> None:
    async def check() -> None:
        one = front(Echo(), max_body_bytes=1024)
        assert (await ask(one, headers=said(1025)))[0] == 413  # nothing of it came
        status, _, problem = await ask(one, b"x" * 1000, b"x" * 25, b"x")
        assert status == 413
        assert "1024 bytes (max_body_bytes)" in problem["detail"]
        assert one.buffered == 0

    asyncio.run(check())


def test_what_all_bodies_may_hold_together() -> None:
    async def check() -> None:
        echo = Echo()
        one = front(echo, max_body_bytes=2**20, max_buffered_bytes=2**20)
        echo.go.clear()
        first = asyncio.create_task(ask(one, b"x" * 2**19))
        waiting = asyncio.create_task(ask(one, b"x" * 2**18, None))
        await asyncio.sleep(0)
        assert (await waiting)[0] == 400
        assert one.buffered == 2**19
        status, headers, problem = await ask(one, b"x" * 2**19, b"x")
        assert status == 503
        assert headers["retry-after"] == "1"
        assert "max_buffered_bytes" in problem["detail"]
        second = asyncio.create_task(ask(one, b"y" * 2**19))
        await asyncio.sleep(0.01)
        echo.go.set()
        assert [(await task)[0] for task in (first, second)] == [200, 200]
        assert one.buffered == 0

    asyncio.run(check())


def test_what_does_not_come_frees_what_has_come() -> None:
    async def check() -> None:
        one = front(Echo(), read_timeout_s=0.05)
        status, headers, _ = await ask(one, headers=said(5))
        assert status == 408
        assert headers["connection"] == "close"
        assert (await ask(one, b"ab", None))[0] == 400
        assert one.buffered == 0

    asyncio.run(check())


@pytest.mark.parametrize("coding", [b"gzip", b"deflate, br", b"x-made-up"])
def test_coded_bodies_are_refused(coding: bytes) -> None:
    async def check() -> None:
        headers = (*said(5), (b"content-encoding", coding))
        status, found, problem = await ask(front(Echo()), headers=headers)
        assert status == 415
        assert "Content-Encoding" in problem["detail"]
        assert found["accept-encoding"] == "identity"
        plain = (*said(2), (b"content-encoding", b"Identity"))
        assert (await ask(front(Echo()), b"{}", headers=plain))[0] == 200

    asyncio.run(check())


def test_lists_are_counted_before_they_are_parsed() -> None:
    async def check() -> None:
        one = front(Echo(), max_batch_events=300)
        for number, status in ((300, 200), (301, 422), (100_000, 422)):
            body = b'{"interactions": [' + b",".join([b"{}"] * number) + b"]}"
            found, _, problem = await ask(one, body, path="/batch")
            assert found == status
            if status == 422:
                assert problem["errors"][0]["field"] == "interactions"
                assert "at most 300 in one request" in problem["detail"]

    asyncio.run(check())


def test_methods_without_a_body_do_not_wait_for_one() -> None:
    async def check() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        for method in ("GET", "DELETE", "OPTIONS"):
            assert (await ask(front(app), method=method, headers=said(10**9)))[0] == 200

    asyncio.run(check())
