"""One connection's HTTP, with bounds on what a caller may send before being answered.

The server has none of its own. A head without an end would be kept for ever, and grow; so would the
fields behind a chunked body. And what follows a head that offers an upgrade would be taken for
another request, a body included.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import httptools
from uvicorn.config import Config

from service.http.paced_protocol import PacedProtocol

if TYPE_CHECKING:
    from service.http.load_shedder import LoadShedder

GRACE_S = 5.0
"""After the time for a body, for the answer that says so, and for what is still sent of it."""
LINGER_S = 1.0
"""For what is still sent after a refusal."""
FRAMING = 8
"""Bytes for each of a body's own that its chunks may be framed by, beside max_head_bytes."""

WHOLE = "tim4rec.whole"
"""In a request's scope, once its body has been received."""

Refusal = Literal[400, 408, 431]
_DETAILS: dict[Refusal, str] = {
    400: "what was sent is no HTTP request, or has a Transfer-Encoding other than chunked",
    408: "the request's head took longer than read_timeout_s",
    431: "the request's head, or the fields behind its body, are over max_head_bytes or "
    "max_header_fields",
}


def bounded(
    read_timeout_s: float, max_head_bytes: int, max_header_fields: int
) -> type[asyncio.Protocol]:
    """The protocol of a server's connections.

    Args:
        read_timeout_s: within which a head must be there, from its first byte or the connection's
            beginning on; and then its body, which an application gives up before this does.
        max_head_bytes: most bytes of a head, and of the fields behind a chunked body.
        max_header_fields: most fields of either.
    """

    class Bounded(_Connection):
        timeout_s, max_head, max_fields = read_timeout_s, max_head_bytes, max_header_fields

    return Bounded


# Where in the bytes of a connection its parser stands; nothing more is read of a refused one.
_BETWEEN, _HEAD, _BODY, _REFUSED = range(4)


class _Refused:
    """In place of the cycle of a request and its answer: both are over, whatever of it comes."""

    response_complete = True
    disconnected = False

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class _Connection(PacedProtocol):
    timeout_s: float
    max_head: int
    max_fields: int

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._place = _BETWEEN
        self._waiting: asyncio.TimerHandle | None = None
        self._read = self._begun = 0
        """Bytes of what is being parsed, and messages begun in it."""
        self._unread = 0
        """Bytes received since the head began, or since the last of the body."""
        self._is_counted = True
        """Whether a head has no more bytes than that."""
        self._trailers = self._trailer_bytes = 0
        """Fields behind the body, and their bytes."""
        self._framing = self._body = self._body_read = 0
        """Bytes of a body's framing and of itself, as far as counted, and in what is parsed."""
        self._upgrading = self._is_coded = False
        self._refusal: Refusal | None = None
        self._load_shedder: LoadShedder | None = self.app_state.get("load_shedder")
        self._refused_at = 0.0

    # -- bytes ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def take(self, data: bytes) -> None:
        before = self._place
        if before == _REFUSED:
            return
        if before == _BETWEEN:
            idle = self.cycle is None or self.cycle.response_complete
            quick = idle and not self.flow.write_paused  # else nobody reads what is answered
            if quick and self._load_shedder is not None and self._load_shedder.refuses_whole(data):
                self.transport.write(self._load_shedder.answer)
                self._stay()
                return
            self._unread, self._is_counted = 0, True
        self._unset_keepalive_if_required()
        self._read, self._begun, self._body_read = len(data), 0, 0
        self._unread += self._read
        try:
            self._parse(data)
        except httptools.HttpParserError:
            over = self._place == _HEAD and self._unread > self.max_head
            self._refuse(431 if over else 400)
            return
        if self._place != _BETWEEN or not self._begun:
            self._look_at_rest(before)

    def _look_at_rest(self, before: int) -> None:
        """At what has not ended, or not begun: so much of it there may be, and so long it may take.

        Args:
            before: where the parser stood before what it has just read.
        """
        if self._place == _HEAD and self._begun and not (before == _BETWEEN and self._begun == 1):
            self._unread, self._is_counted = 0, False  # it began somewhere behind other requests
        if before == self._place == _BODY and not self._begun:
            self._body += self._body_read
            self._framing += self._read - self._body_read
        if self._place in (_HEAD, _BODY) and (
            self._unread > self.max_head or self._framing > self.max_head + FRAMING * self._body
        ):
            self._refuse(431)
        if self._waiting is not None or self._place == _REFUSED:
            return
        if self._place == _BODY:
            self._waiting = self.loop.call_later(self.timeout_s + GRACE_S, self.transport.abort)
        elif self._place == before or self._place == _HEAD:
            self._wait_for_head()

    def _parse(self, data: bytes) -> None:
        """Raises httptools.HttpParserError."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._upgrading:
                    return
                data = data[upgrade.args[0] :]
                self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Gives a new parser the head that was just read, without the offer of another protocol:
        the one that took note of it does not read a body any more."""
        self._upgrading = False
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the server's own
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # -- what the parser finds -----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._place == _REFUSED:
            return
        self._place = _HEAD
        self._begun += 1
        self._trailers = self._trailer_bytes = self._framing = self._body = 0
        self._is_coded = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._place != _BODY:  # as the server's own does, without a call for each
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            elif name == b"transfer-encoding":
                self._is_coded = self._is_coded or value.lower() != b"chunked"
            self.headers.append((name, value))
            return
        # Behind a body: nobody asks for these, and they must not be taken for the head's.
        self._trailers += 1
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailers > self.max_fields or self._trailer_bytes > self.max_head:
            self._refuse(431)

    def on_headers_complete(self) -> None:
        if self._place == _REFUSED:
            return
        small = self._is_counted and max(self._unread, self._read) <= self.max_head
        if len(self.headers) > self.max_fields or not (
            small or _head_bytes(self.parser.get_method(), self.url, self.headers) <= self.max_head
        ):
            self._refuse(431)
            return
        if self._is_coded:
            self._refuse(400)
            return
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refuse(400)
            else:
                self._upgrading = True
            return
        self._end_waiting()
        idle = self.cycle is None or self.cycle.response_complete
        plain = idle and not self.expect_100_continue and self.parser.should_keep_alive()
        plain = plain and not self.flow.write_paused
        load_shedder, method = self._load_shedder, self.parser.get_method()
        if load_shedder is not None and plain and load_shedder.refuses(method, self.url):
            refused: Any = _Refused()
            self.cycle = refused
            self.transport.write(load_shedder.answer)
            self.on_response_complete()
        else:
            super().on_headers_complete()  # it raises, for one thing, where a URL is too long
        self._place, self._unread = _BODY, 0

    def on_chunk_header(self) -> None:
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        if self._place == _BODY:
            self._unread = 0
            self._body_read += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading or self._place == _REFUSED:
            return
        self._place, self._unread = _BETWEEN, 0
        self._end_waiting()
        scope: Any = self.scope
        scope[WHOLE] = True
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # It was answered before its end; what came of it since has ended the wait for another.
            self._stay()

    # -- answers -------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusal is not None:
            self._answer(self._refusal)

    def timeout_keep_alive_handler(self) -> None:
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            later = self.loop.call_later(left, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = later
        else:
            super().timeout_keep_alive_handler()

    def _stay(self) -> None:
        """Kept for as long after a refusal as after an answer, without a timer for each."""
        self._end_waiting()  # it may have just been opened
        self._refused_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(self.timeout_s, self._refuse, 408)

    def _end_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, status: Refusal) -> None:
        """Answers what is no request, or none that is read to its end, after all that came before
        it, and closes."""
        place, self._place = self._place, _REFUSED
        if place == _REFUSED:
            return
        self.held = b""
        self._end_waiting()
        cycle = self.cycle
        if place == _BODY and cycle is not None:  # of which the application may have begun
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
            elif cycle.response_complete or cycle.response_started:
                self.transport.close()
                return
            else:
                self._answer(status)
                return
            self._refusal = status
        elif cycle is None or cycle.response_complete:
            self._answer(status)
        else:
            self._refusal = status

    def _answer(self, status: Refusal) -> None:
        self._refusal = None
        if self.transport.is_closing():
            return
        title = http.HTTPStatus(status).phrase
        problem = {"type": "about:blank", "title": title, "status": status}
        content = json.dumps(problem | {"detail": _DETAILS[status]}).encode()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, title.encode(), len(content), content)
        )
        # Closed while more of it comes, a connection is reset, and the answer may be lost.
        self.transport.write_eof()
        self._waiting = self.loop.call_later(LINGER_S, self.transport.close)


def _head_bytes(method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> int:
    fields = sum(len(name) + len(value) + 4 for name, value in headers)
    return len(method) + len(url) + len(b"  HTTP/1.1\r\n") + fields + len(b"\r\n")
