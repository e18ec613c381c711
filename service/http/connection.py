"""One connection's HTTP, with bounds on what a caller may send before being answered.

The server has none of its own: a head without an end would be kept for ever, and grow.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from service.http.admission import Gate

GRACE_S = 5.0
"""After the time for a body, for the answer that says so, and for what is still sent of it."""

_REASONS = {
    400: (b"400 Bad Request", "what was sent is no HTTP request"),
    408: (b"408 Request Timeout", "the request's head took longer than read_timeout_s"),
    431: (b"431 Request Header Fields Too Large", "the request's head is over max_head_bytes"),
}


def bounded(read_timeout_s: float, max_head_bytes: int) -> type[asyncio.Protocol]:
    """The protocol of a server's connections.

    Args:
        read_timeout_s: within which a head must be there, from its first byte or the connection's
            beginning on; and then its body, which an application gives up before this does.
        max_head_bytes: most bytes of a head.
    """

    class Bounded(_Connection):
        timeout_s, max_head = read_timeout_s, max_head_bytes

    return Bounded


class _Refused:
    """In place of the cycle of a request and its answer: both are over, whatever of it comes."""

    response_complete = True
    disconnected = False

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class _Connection(HttpToolsProtocol):
    timeout_s: float
    max_head: int

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._waiting: asyncio.TimerHandle | None = None
        self._head: int | None = None
        """Bytes of a head without an end; None: there is none."""
        self._gate: Gate | None = self.app_state.get("gate")
        self._refused_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        idle = self._waiting is None and (self.cycle is None or self.cycle.response_complete)
        if (idle or self._head == 0) and self._gate is not None and self._gate.refuses_whole(data):
            self.transport.write(self._gate.answer)
            self._stay()
            return
        if idle:
            self._begin()
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > self.max_head:
            self._refuse(431)

    def on_headers_complete(self) -> None:
        self._end()
        self._waiting = self.loop.call_later(self.timeout_s + GRACE_S, self.transport.abort)
        idle = self.cycle is None or self.cycle.response_complete
        plain = idle and not self.expect_100_continue and self.parser.should_keep_alive()
        gate, method = self._gate, self.parser.get_method()
        if gate is not None and plain and gate.refuses(method, self.url):
            refused: Any = _Refused()
            self.cycle = refused
            self.transport.write(gate.answer)
            self.on_response_complete()
        else:
            super().on_headers_complete()  # it raises, for one thing, where a URL is too long
        self._head = None

    def on_message_complete(self) -> None:
        self._end()
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            later = self.loop.call_later(left, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = later
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(431 if (self._head or 0) > self.max_head else 400)

    def _stay(self) -> None:
        """Kept for as long after a refusal as after an answer, without a timer for each."""
        if self._waiting is not None:  # it has just been opened
            self._end()
            self._head = None
        self._refused_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()

    def _begin(self) -> None:
        self._head = 0
        self._waiting = self.loop.call_later(self.timeout_s, self._refuse, 408)

    def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, status: int) -> None:
        """Answers what never became a request, and closes."""
        self._end()
        self._head = None
        if self.transport.is_closing():
            return
        line, detail = _REASONS[status]
        title = line.decode().partition(" ")[2]
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        content = json.dumps(problem).encode()
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (line, len(content), content)
        )
        self.transport.close()
