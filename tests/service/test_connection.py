"""What a connection makes of bytes: where requests begin, and how much of them it takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.http import plain_request
from service.http.connection import bounded
from service.http.load_shedder import ANSWER
from tests.depth import examples
from tests.waited import LONG_S

MAX_HEAD, MAX_FIELDS, READ_S = 2000, 20, 5.0


class App:
    """Answers with what it was asked; what it got of each request is kept."""

    def __init__(self, read: bool = True) -> None:
        self.read = read
        self.asked: list[tuple[str, str, bytes | None]] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body: bytes | None = b""
        more = self.read
        while more:
            message = await receive()
            if message["type"] != "http.request":
                body = None
                break
            body = (body or b"") + message["body"]
            more = message["more_body"]
        await self.hold.wait()
        self.asked.append((scope["method"], scope["path"], body))
        self.headers.append(scope["headers"])
        text = json.dumps([scope["method"], scope["path"], (body or b"").decode("latin-1")])
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


class Late:
    """The load shedder of a process that has too much to do."""

    answer = ANSWER

    def __init__(self) -> None:
        self.refused: list[bytes] = []

    def refuses(self, method: bytes, url: bytes) -> bool:
        self.refused.append(url)
        return True

    def refuses_whole(self, data: bytes) -> bool:
        found = plain_request.target(data)
        return found is not None and self.refuses(*found)


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *parts: bytes, pause_s: float = 0.002) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(pause_s)

    async def statuses(self, number: int) -> list[int]:
        """Of so many answers."""
        found = []
        for _ in range(number):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: ?(\d+)", head, re.IGNORECASE)
            await self.reader.readexactly(int(length[1]) if length else 0)
            found.append(int(head.split()[1]))
        return found

    async def rest(self) -> list[int]:
        """Of all answers until it is closed."""
        data = await self.reader.read()
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", data)]


Connect = Callable[[], Coroutine[Any, Any, Connection]]


def served(
    check: Callable[[App, Connect], Coroutine[Any, Any, None]],
    *,
    load_shedder: Late | None = None,
    read: bool = True,
    kept_s: int = 60,
    connections: list[Any] | None = None,
) -> None:
    """Runs `check` with an application and what opens connections to it."""

    async def main() -> None:
        app, state = App(read), ServerState()
        config = Config(
            app, http=bounded(READ_S, MAX_HEAD, MAX_FIELDS), ws="none", lifespan="off",
            log_config=None, timeout_keep_alive=kept_s, access_log=False, proxy_headers=False,
        )  # fmt: skip
        config.load()
        make: Any = config.http_protocol_class

        def protocol() -> Any:
            made = make(config, state, {"load_shedder": load_shedder} if load_shedder else {})
            if connections is not None:
                connections.append(made)
            return made

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        opened: list[Connection] = []

        async def connect() -> Connection:
            opened.append(
                Connection(*await asyncio.open_connection(*server.sockets[0].getsockname()[:2]))
            )
            return opened[-1]

        try:
            async with asyncio.timeout(LONG_S):
                await check(app, connect)
        finally:
            for connection in opened:
                connection.writer.transport.abort()
            server.close()
            await asyncio.sleep(0.02)  # it hears of that
            await asyncio.gather(*state.tasks, return_exceptions=True)

    uvloop.run(main())


INNER = b"DELETE /users/victim HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade\r\nUpgrade: foo\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Key: x\r\n",
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("split", ["none", "head", "bytes"])
def test_a_body_is_a_body_whatever_is_offered(offer: bytes, chunked: bool, split: str) -> None:
    async def check(app: App, connect: Any) -> None:
        body, length = INNER, b"Content-Length: %d\r\n" % len(INNER)
        if chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)
            length = b"Transfer-Encoding: chunked\r\n"
        head = b"POST /interactions HTTP/1.1\r\nHost: x\r\n" + offer + length + b"\r\n"
        after = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
        whole = head + body + after
        parts = {"none": [whole], "head": [head, body, after],
                 "bytes": [whole[i : i + 1] for i in range(len(whole))]}[split]  # fmt: skip
        one = await connect()
        await one.send(*parts, pause_s=0)
        assert await one.statuses(2) == [200, 200]
        assert app.asked == [("POST", "/interactions", INNER), ("GET", "/next", b"")]
        assert all(name != b"upgrade" for headers in app.headers for name, _ in headers)

    served(check)


def test_no_tunnel() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + INNER)
        assert await one.rest() == [400]
        assert app.asked == []

    served(check)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("before", [b"", b"GET /first HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        b"X: " + b"a" * MAX_HEAD + b"\r\n",
        b"".join(b"X%d: a\r\n" % i for i in range(MAX_FIELDS + 1)),
        b"X: a\r\n" * (MAX_FIELDS + 1),
        b"".join(b"X%d: %s\r\n" % (i, b"a" * 200) for i in range(12)),
    ],
)
def test_heads_are_bounded(lines: bytes, before: bytes, at_once: bool) -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"
        cut = len(head) // 2
        await one.send(*([before + head] if at_once else [before + head[:cut], head[cut:]]))
        assert await one.rest() == [200, 431] if before else [431]
        assert [path for _, path, _ in app.asked] == ["/first"] * bool(before)

    served(check)


def test_heads_within_the_bounds_may_come_together() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        fields = b"".join(b"X%d: %s\r\n" % (i, b"a" * 90) for i in range(MAX_FIELDS - 2))
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"
        assert MAX_HEAD - 300 < len(head) < MAX_HEAD
        await one.send(head * 5 + head[:500], head[500:])
        assert await one.statuses(6) == [200] * 6

    served(check)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize(
    "flood", [b"0\r\n" + b"a:b\r\n" * 2000, b"0\r\na:" + b"b" * 9000, b"0;" + b"x" * 9000]
)
@pytest.mark.parametrize("pieces", [2, 9])
def test_what_stands_behind_a_body_is_bounded(flood: bytes, pieces: int) -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        size = -(-len(flood) // pieces)
        parts = [flood[i : i + size] for i in range(0, len(flood), size)]
        await one.send(CHUNKED, *parts)
        assert await one.rest() == [431]
        await asyncio.sleep(0.01)
        assert app.asked == [("POST", "/", None)]  # it has heard that the caller is gone

    served(check)


def test_many_extensions_of_chunks_are_bounded() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        small = b"".join(b"1\r\n%c\r\n" % i for i in b"abc" * 1000)  # five bytes for each
        await one.send(CHUNKED, small, b"0\r\n\r\n")
        assert await one.statuses(1) == [200]
        two = await connect()
        await two.send(CHUNKED, *[b"1;%s\r\n \r\n" % (b"a" * 400)] * 9)
        assert await two.rest() == [431]

    served(check)


@pytest.mark.parametrize(
    "coding", [b"x, chunked", b"gzip, chunked", b"chunked\r\nTransfer-Encoding: x"]
)
def test_other_codings_are_not_read(coding: bytes) -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: %s\r\n\r\n0\r\n\r\n" % coding + INNER
        )
        assert await one.rest() == [400]
        assert app.asked == []

    served(check)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_who_reads_no_answers_is_not_read(late: bool) -> None:
    """Neither answers nor requests pile up."""

    async def check(app: App, connect: Any) -> None:
        one = await connect()
        asked = b"GET /a HTTP/1.1\r\n\r\n" * 10_000
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                for _ in range(200):
                    one.writer.write(asked)
                    await one.writer.drain()
                    sent += len(asked)
        assert sent < 60_000_000
        (connection,) = connections
        assert len(connection.pipeline) < 2000
        assert len(connection.held) < 600_000
        assert connection.transport.get_write_buffer_size() < 2_000_000

    connections: list[Any] = []
    served(check, load_shedder=Late() if late else None, connections=connections)


def test_few_fields_behind_a_body_are_passed_over() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(CHUNKED + b"0\r\nX-API-Key: secret\r\n\r\n" + b"GET /b HTTP/1.1\r\n\r\n")
        assert await one.statuses(2) == [200, 200]
        assert app.asked[0] == ("POST", "/", b"{}")
        assert all(name != b"x-api-key" for headers in app.headers for name, _ in headers)

    served(check)


def test_what_is_refused_waits_for_the_answers_before_it() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        app.hold.clear()
        await one.send(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", b"no HTTP at all\r\n\r\n")
        await asyncio.sleep(0.05)
        app.hold.set()
        assert await one.rest() == [200, 200, 400]
        # So does a body that breaks off while another request is answered.
        two = await connect()
        app.hold.clear()
        await two.send(b"GET /a HTTP/1.1\r\n\r\n" + CHUNKED, b"no length\r\n")
        await asyncio.sleep(0.05)
        app.hold.set()
        assert await two.rest() == [200, 400]
        assert [path for _, path, _ in app.asked[:3]] == ["/a", "/b", "/a"]
        assert app.asked[3:] in ([], [("POST", "/", None)])

    served(check)


def test_a_broken_body_is_answered_once() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(CHUNKED, b"no length\r\n")
        assert await one.rest() == [400]
        assert app.asked == [("POST", "/", None)]

    served(check)


def test_a_connection_answered_before_its_body_is_kept_no_longer_than_others() -> None:
    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        assert await one.statuses(1) == [200]
        await one.send(b"{}", b"  ")
        assert await one.rest() == []  # it is closed

    served(check, read=False, kept_s=1)


def test_half_a_head_and_a_whole_request_are_no_two_requests() -> None:
    """Also where the half came behind a whole one that was refused."""
    load_shedder = Late()
    whole = b"GET /recommend HTTP/1.1\r\nhost: x\r\n\r\n"

    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(whole + whole[:20], whole)
        assert await one.statuses(1) == [503]
        assert await one.rest() == [400]
        assert len(load_shedder.refused) == 1
        two = await connect()
        await two.send(whole[:20], whole[20:], whole)
        assert await two.statuses(2) == [503, 503]

    served(check, load_shedder=load_shedder)


requests = st.sampled_from(
    [
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n" + INNER[:40],
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
        b"POST /d HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 42\r\n\r\n" + INNER,
        b"GET /e HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"\r\nGET /f HTTP/1.1\r\n\r\n",
    ]
)  # fmt: skip


@settings(max_examples=examples(60))
@given(
    st.lists(requests, min_size=1, max_size=5),
    st.lists(st.integers(1, 400), max_size=6),
    st.booleans(),
)
@example([b"GET /a HTTP/1.1\r\n\r\n"] * 3, [10, 30, 45], True)
def test_as_many_answers_as_requests_however_they_come(
    sent: list[bytes], cuts: list[int], late: bool
) -> None:
    whole = b"".join(sent)
    ends = sorted({cut for cut in cuts if cut < len(whole)} | {len(whole)})
    parts = [whole[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    async def check(app: App, connect: Any) -> None:
        one = await connect()
        await one.send(*parts)
        await one.send(b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n")
        found = await one.rest()
        assert len(found) == len(sent) + 1
        assert set(found) <= ({200, 503} if late else {200})
        if not late:
            asked = [path for _, path, _ in app.asked]
            assert asked == [re.search(rb"/\w", one)[0].decode() for one in sent] + ["/last"]  # type: ignore[index]

    served(check, load_shedder=Late() if late else None)
