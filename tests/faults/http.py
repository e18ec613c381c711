"""HTTP in as little CPU as it takes: a load must not be slower than what it loads."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, NamedTuple, cast


class Reply(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.body))


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, idle: deque[_Connection]) -> None:
        self._idle = idle
        self._buffer = b""
        self._waiting: asyncio.Future[Reply] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._buffer) < end + 4 + length:
            return
        body, self._buffer = self._buffer[end + 4 : end + 4 + length], b""
        if b"connection: close" in head:
            self.transport.close()
        else:
            self._idle.append(self)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the connection broke"))


class Client:
    """Keeps its connections, and opens another when none is idle."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: deque[_Connection] = deque()
        self._all: list[_Connection] = []

    async def ask(self, method: str, path: str, body: object = None) -> Reply:
        """Raises OSError: no answer, or not all of one."""
        content = b"" if body is None else json.dumps(body).encode()
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        while self._idle:
            connection = self._idle.popleft()
            if not connection.transport.is_closing():
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: _Connection(self._idle), "127.0.0.1", self.port
            )
            self._all.append(connection)
        return await connection.send(request)

    def close(self) -> None:
        for connection in self._all:
            connection.transport.abort()
