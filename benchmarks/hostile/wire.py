"""Raw connections, and what stands on them by the rules of HTTP/1.1 (RFC 9112), strictly read."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import h11

AT_MOST_S = 60.0
"""Nothing is waited for longer."""
_TURN_S = 0.05
_MOST_READ = 65_536
_MUCH = 2**20


class Stopped(Exception):
    """The service has taken more memory than it may: nothing more is sent."""


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection to the service. It reads while it sends, so that an answer that comes before
    the end of its request is not lost; or never, if `deaf`.

    Attributes:
        received: every byte that came.
        sent: how many bytes the other side's system has taken.
        sent_before: `sent` when the first byte came; None: none has come.
        closed: the other side has ended it.
    """

    def __init__(
        self, port: int, stop: threading.Event | None = None, *, deaf: bool = False
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=AT_MOST_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._stop, self._heard = stop, [] if deaf else [self._socket]
        self.received = bytearray()
        self.sent = 0
        self.sent_before: int | None = None
        self.closed = False
        self._quiet = True

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes, within_s: float = AT_MOST_S) -> bool:
        """Whether all was taken: not by who has closed, or has stopped to read for so long."""
        left, until = memoryview(data), time.monotonic() + within_s
        while left and not self.closed and time.monotonic() < until:
            self._turn(bool(left))
            try:
                taken = self._socket.send(left[:1_000_000])
            except BlockingIOError:
                continue
            except OSError:
                self._read()
                self.closed = True
                break
            self.sent += taken
            left = left[taken:]
        return not left

    def wait(self, done: Callable[[], bool], within_s: float = AT_MOST_S) -> bool:
        """Reads until it is so, the other side closes, or the time is over; whether it is so."""
        until = time.monotonic() + within_s
        while not done():
            if self.closed or time.monotonic() >= until:
                return done()
            self._turn(False, until - time.monotonic())
        return True

    def answers(self, *methods: str) -> list[Answer]:
        """What has been answered so far, to requests with these methods."""
        return answers(bytes(self.received), methods)[0]

    def has_answers(self, count: int, *methods: str) -> Callable[[], bool]:
        """For `wait`: whether there are so many. A large answer is looked at when much of it has
        come, or nothing does."""
        looked = 0

        def has() -> bool:
            nonlocal looked
            size = len(self.received)
            if size > _MUCH and size < 1.1 * looked and not self._quiet:
                return False
            looked = size
            return len(self.answers(*methods)) >= count

        return has

    def _turn(self, sending: bool, most_s: float = _TURN_S) -> None:
        if self._stop is not None and self._stop.is_set():
            raise Stopped
        wanting = [self._socket] if sending else []
        most_s = max(0, min(_TURN_S, most_s))
        readable, writable, _ = select.select(self._heard, wanting, [], most_s)
        self._quiet = not (readable or writable)
        if readable:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_MOST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
        elif self.sent_before is None:
            self.sent_before = self.sent
        self.received += data


def answers(data: bytes, methods: Sequence[str] = ()) -> tuple[list[Answer], bytes]:
    """The whole final answers at the beginning of `data`, to requests with these methods (GET,
    where there are no more of them), and what is left.

    Raises:
        h11.RemoteProtocolError: it is no HTTP.
    """
    found: list[Answer] = []
    while data:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        one, data = _first(data, method)
        if one is None:
            break
        found.append(one)
    return found, data


def _first(data: bytes, method: str) -> tuple[Answer | None, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response, body = None, bytearray()
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
            return Answer(response.status_code, headers, bytes(body)), client.trailing_data[0]
        elif event is h11.NEED_DATA or event is h11.PAUSED:
            return None, data


def requests_begun(data: bytes) -> int:
    """How many requests stand in `data`, one that is broken or has no end included."""
    server, begun = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000), 0
    server.receive_data(data)
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return begun + (server.their_state is h11.ERROR and server.our_state is h11.IDLE)
        if isinstance(event, h11.Request):
            begun += 1
        elif isinstance(event, h11.EndOfMessage):
            server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE or server.their_state is not h11.DONE:
                return begun
            server.start_next_cycle()
        elif event is h11.NEED_DATA:
            return begun + bool(server.our_state is h11.IDLE and server.trailing_data[0])
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return begun


def chunked(body: bytes, sizes: Iterable[int] = ()) -> bytes:
    """A body in chunks of these sizes, the rest in a last one."""
    parts, place = [], 0
    for size in [*sizes, len(body)]:
        part = body[place : place + size]
        place += len(part)
        if part:
            parts.append(b"%x\r\n%s\r\n" % (len(part), part))
    return b"".join(parts) + b"0\r\n\r\n"
