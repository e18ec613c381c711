"""Senders that never come to an end, and those that hold what they have sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import repeat

from benchmarks.hostile.access import MB
from benchmarks.hostile.attack import Attack
from benchmarks.hostile.target import MAX_BODY, Found, Target

TAKEN_MOST = 16 * MB
"""What systems keep of a connection that is not read, and more than any bound of a head."""
SENT_MOST = 60 * MB
BUFFERED = 256 * MB
"""The default of `max_buffered_bytes`."""


def _endless(
    target: Target, found: Found, start: bytes, more: Iterator[bytes], within_s: float = 15
) -> None:
    """Sends without an end; the service has to refuse, and to take no more."""
    began, taken = time.monotonic(), 0
    with target.connect() as connection:
        connection.send(start)
        for block in more:
            if taken > SENT_MOST or time.monotonic() > began + within_s:
                break
            if not connection.send(block, 2):
                break
            taken += len(block)
        ended = connection.closed
        connection.wait(connection.has_answers(1), 1)
        answered = connection.answers()
    found.took(answered[0] if answered else None, time.monotonic() - began)
    found.expect(taken <= TAKEN_MOST, f"{taken / MB:.0f} MB were taken")
    found.expect(answered or ended, "neither answered nor closed")
    for answer in answered:
        found.expect(400 <= answer.status < 500, f"{answer.status}")


def _endless_trailers(line: bytes, target: Target, found: Found) -> None:
    for chunks in (b"0\r\n", b"1\r\n{\r\n0\r\n"):
        start = target.head(
            "POST", "/interactions", "Content-Type: application/json", "Transfer-Encoding: chunked"
        )
        more = repeat(line * max(1, 65_536 // len(line)))
        first = b"a:" if line == b"b" else b""
        _endless(target, found, start + chunks + first, more)


def _endless_extension(target: Target, found: Found) -> None:
    start = target.head(
        "POST", "/interactions", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    _endless(target, found, start + b"1;a=", repeat(b"b" * 65_536))
    # One chunk after the other, of a byte each, under extensions of 4 kB.
    _endless(target, found, start, repeat((b"1;" + b"a" * 4000 + b"\r\n \r\n") * 16))


def _endless_line(target: Target, found: Found) -> None:
    for start in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"):
        _endless(target, found, start, repeat(b"a" * 65_536))


def _large_head(target: Target, found: Found) -> None:
    """One byte more than `max_head_bytes`, at once and in two parts."""
    head = target.head("GET", "/livez")[:-2]
    padded = head + b"X: " + b"a" * (65_536 + 1 - len(head) - 7) + b"\r\n\r\n"
    assert len(padded) == 65_536 + 1
    for pieces in ([padded], [padded[:30_000], padded[30_000:]], [padded[:-1], padded[-1:]]):
        with target.connect() as connection:
            for piece in pieces:
                connection.send(piece, 5)
                time.sleep(0.02)
            connection.wait(connection.has_answers(1), 5)
            answered = connection.answers()
        found.took(answered[0] if answered else None)
        sizes = [len(piece) for piece in pieces]
        status = answered[0].status if answered else None
        found.expect(status == 431, f"in pieces of {sizes}: {status}")


def _byte_by_byte(target: Target, found: Found) -> None:
    """A head without an end, a byte at a time: refused as soon as it is too long."""
    with target.connect() as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nX: ")
        sent, began = 0, time.monotonic()
        while sent < 70_000 and time.monotonic() < began + 30 and connection.send(b"a"):
            sent += 1
        connection.wait(connection.has_answers(1), 2)
        answered = connection.answers()
    found.took(answered[0] if answered else None)
    status = answered[0].status if answered else None
    found.expect(status in (431, 408), f"after {sent} bytes: {status}")


def _many_fields(target: Target, found: Found) -> None:
    for count in (101, 1000, 12_000):
        fields = [f"A{n}: b" for n in range(count)] if count < 5000 else ["a:b"] * count
        for method, path in (("GET", "/livez"), ("GET", "/recommend?user_id=user-0")):
            answer, seconds = target.ask(method, path, None, *fields)
            found.took(answer, seconds)
            status = None if answer is None else answer.status
            found.expect(status == 431, f"{count} fields: {status}")


def _held_bodies(target: Target, found: Found) -> None:
    """60 callers and more, who keep the last byte to themselves."""
    size, callers = MAX_BODY, max(60, round(1.5 * BUFFERED / MAX_BODY))
    fields = "Content-Type: application/json", f"Content-Length: {size}"
    start = target.head("POST", "/interactions/batch", *fields)
    body = b'{"interactions":["'.ljust(size - 1, b"x")
    with ExitStack() as stack:
        for _ in range(callers):
            connection = stack.enter_context(target.connect())
            connection.send(start)
            connection.send(body, 1)
        honest = b'{"user_id":"honest","item_id":"i0"}'
        for _ in range(5):
            answer, seconds = target.ask("POST", "/interactions", honest)
            found.took(answer, seconds)
            status = None if answer is None else answer.status
            waits = answer is not None and status == 503 and "retry-after" in answer.headers
            found.expect(status == 200 or waits, f"a small request: {status}")
            found.expect(seconds < 2, f"a small request: {seconds:.1f} s")


TAKEN = "refused, and no more is taken"
ATTACKS: list[Attack] = [
    Attack("trailers without end, small ones", TAKEN, partial(_endless_trailers, b"a:b\r\n")),
    Attack("a trailer without end", TAKEN, partial(_endless_trailers, b"b")),
    Attack("chunk extensions without end", TAKEN, _endless_extension),
    Attack("lines without end", TAKEN, _endless_line),
    Attack("a head of max_head_bytes + 1", "431", _large_head),
    Attack("a head, byte by byte", "431", _byte_by_byte),
    Attack("more than max_header_fields", "431", _many_fields),
    Attack("held bodies of max_body_bytes, 60 and more", "max_buffered_bytes kept at most",
           _held_bodies, growth_mb=BUFFERED / MB + 96),
]  # fmt: skip
