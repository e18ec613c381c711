"""Bytes that two readers of HTTP could read differently: no request hides in another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread

from benchmarks.hostile.attack import Attack
from benchmarks.hostile.target import Found, Target
from benchmarks.hostile.wire import chunked, requests_begun

VICTIM = "victim"
PAUSE_S = 0.05


def plant(target: Target) -> None:
    target.post("/interactions", {"user_id": VICTIM, "item_id": "i0"})


def lives(target: Target) -> bool:
    answer, _ = target.ask("GET", f"/users/{VICTIM}")
    return answer is not None and answer.status == 200


def deletion(target: Target) -> bytes:
    return target.head("DELETE", f"/users/{VICTIM}")


def upgrades(target: Target) -> Iterator[tuple[str, list[bytes]]]:
    """Requests that ask for another protocol, whose body is another request."""
    inner = deletion(target)
    h2c = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARA")
    websocket = (
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    for fields in (("Upgrade: foo", "Connection: Upgrade"), h2c, websocket):
        for path in ("/interactions", "/no-such-route", "/livez"):
            by_length = f"Content-Length: {len(inner)}", "Content-Type: application/json", *fields
            name = f"POST {path} {fields[0]}"
            yield f"{name}, by length", [target.head("POST", path, *by_length), inner]
            by_chunks = "Transfer-Encoding: chunked", "Content-Type: application/json", *fields
            yield (
                f"{name}, in chunks",
                [target.head("POST", path, *by_chunks), chunked(inner)],
            )


def ambiguous(target: Target) -> Iterator[tuple[str, list[bytes]]]:
    """Requests whose end is in doubt."""
    inner = deletion(target)
    n = len(inner)
    plain = target.head("POST", "/interactions", "Content-Type: application/json")[:-2]
    te, cl = b"Transfer-Encoding: chunked\r\n", b"Content-Length: %d\r\n" % n
    for name, fields, body in (
        ("CL+TE", cl + te, b"0\r\n\r\n" + inner),
        ("TE+CL", te + b"Content-Length: 5\r\n", b"0\r\n\r\n" + inner),
        ("two lengths", b"Content-Length: 0\r\n" + cl, inner),
        ("two lengths, other order", cl + b"Content-Length: 0\r\n", inner),
        ("a list of lengths", b"Content-Length: 0, %d\r\n" % n, inner),
        ("a length with a sign", b"Content-Length: +%d\r\n" % n, inner),
        ("a negative length", b"Content-Length: -1\r\n", inner),
        ("a hexadecimal length", b"Content-Length: 0x%x\r\n" % n, inner),
        ("an endless length", b"Content-Length: 99999999999999999999999\r\n", inner),
        ("TE: identity", cl + b"Transfer-Encoding: identity\r\n", inner),
        ("TE: chunked, x", b"Transfer-Encoding: chunked, x\r\n", b"0\r\n\r\n" + inner),
        ("TE: x, chunked", b"Transfer-Encoding: x, chunked\r\n", b"0\r\n\r\n" + inner),
        ("TE: xchunked", cl + b"Transfer-Encoding: xchunked\r\n", inner),
        ("TE: twice", te + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + inner),
        ("TE with a vertical tab", cl + b"Transfer-Encoding:\x0bchunked\r\n", inner),
        ("a space before the colon", b"Content-Length : %d\r\n" % n, inner),
        ("TE, a space before the colon", cl + b"Transfer-Encoding : chunked\r\n", inner),
        ("a folded length", b"X: a\r\n Content-Length: %d\r\n" % n, inner),
        ("a folded TE", b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + inner),
        ("bare LF after a field", b"X: a\nContent-Length: %d\n" % n, inner),
        ("bare CR in a field", b"X: a\rContent-Length: %d\r\n" % n, inner),
        ("a zero byte in a field", b"X: a\x00b\r\n" + cl, inner),
        ("bare LF in chunks", te, b"0\n\n" + inner),
        ("a chunk longer than it says", te, b"1\r\nxx\r\n0\r\n\r\n" + inner),
        ("a chunk of a huge size", te, b"ffffffffffffffffff\r\n" + inner),
        ("a chunk of a negative size", te, b"-1\r\n\r\n0\r\n\r\n" + inner),
        ("a chunk size in an extension", te, b"1;\n\r\nx\r\n0\r\n\r\n" + inner),
    ):
        yield name, [plain + fields + b"\r\n", body]


def _smuggled(kind: str, target: Target, found: Found) -> None:
    """At most one answer, in whatever pieces it comes."""
    cases = upgrades(target) if kind == "upgrades" else ambiguous(target)
    plant(target)
    for name, parts in cases:
        whole = b"".join(parts)
        for pieces in ([whole], parts, [whole[:-1], whole[-1:]]):
            _send(target, found, name, pieces, 1 if kind == "upgrades" else 0)


def _send(target: Target, found: Found, name: str, pieces: list[bytes], most: int) -> None:
    """`most` 0: one, which may be only a refusal."""
    with target.connect() as connection:
        for piece in pieces:
            if not connection.send(piece, 5):
                break
            connection.wait(lambda: False, PAUSE_S)
        connection.wait(lambda: False, PAUSE_S)
        answered = connection.answers("POST")
    found.took(answered[0] if answered else None)
    found.expect(len(answered) <= 1, f"{name}: {[answer.status for answer in answered]}")
    refusal = [answer.status for answer in answered if not 400 <= answer.status < 500]
    found.expect(most or not refusal, f"{name}: {refusal}, not refused")
    if not lives(target):
        found.expect(False, f"{name}: the victim is gone")
        plant(target)


def _pipelined(target: Target, found: Found) -> None:
    """Three requests at once, split at every byte: three answers in their order."""
    body = json.dumps({"user_id": "pipelined", "item_id": "i0"}).encode()
    asked = [
        target.request("GET", "/recommend?user_id=user-0&k=1", None, "X-Request-ID: first"),
        target.request("POST", "/interactions", body, "X-Request-ID: second"),
        target.request("GET", "/livez", None, "X-Request-ID: third"),
    ]
    whole = b"".join(asked)
    for place in range(1, len(whole)):
        with target.connect() as connection:
            connection.send(whole[:place])
            if place % 8 == 0:
                time.sleep(0.002)
            connection.send(whole[place:])
            connection.wait(connection.has_answers(3))
            answered = connection.answers()
        ids = [answer.headers.get("x-request-id") for answer in answered]
        for answer in answered:
            found.took(answer)
        found.expect(ids == ["first", "second", "third"], f"split at {place}: {ids}")


def _half_a_head(target: Target, found: Found) -> None:
    """The second request is a part of the first one's field."""
    plant(target)
    half = target.head("GET", "/recommend?user_id=user-0&k=1")[:-2] + b"X-Rest: "
    for whole in (target.head("GET", "/recommend?user_id=user-1"), deletion(target)):
        with target.connect() as connection:
            connection.send(half)
            connection.wait(lambda: False, PAUSE_S)
            connection.send(whole)
            connection.wait(lambda: False, 0.3)
            answered = connection.answers()
        for answer in answered:
            found.took(answer)
        most = requests_begun(half + whole)
        statuses = [answer.status for answer in answered]
        found.expect(len(answered) <= most, f"{statuses} to {most} requests")
        found.expect(lives(target), "the victim is gone")


@contextmanager
def _overload(target: Target) -> Iterator[None]:
    """More requests than it takes, from 40 connections, while it lasts."""
    request, over = target.request("GET", "/recommend?user_id=user-0&k=10"), Event()

    def load() -> None:
        with target.connect() as connection:
            while not over.is_set() and not connection.closed:
                connection.received.clear()
                connection.send(request)
                connection.wait(lambda: b"\r\n\r\n" in connection.received, 5)

    callers = [Thread(target=load, daemon=True) for _ in range(40)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()


def _overloaded(target: Target, found: Found) -> None:
    plant(target)
    with _overload(target):
        for _ in range(10):
            _half_a_head(target, found)
        for name, parts in upgrades(target):
            _send(target, found, name, parts, 1)
            _send(target, found, name, [b"".join(parts)], 1)


def _unread(target: Target, found: Found) -> None:
    """Requests one after another by somebody who reads none of the answers."""
    for path in ("/livez", "/recommend?user_id=user-0&k=1", "/no-such-route"):
        block = target.head("GET", path) * 500
        began, most = time.monotonic(), 40_000_000
        with target.connect(deaf=True) as connection:
            while connection.sent < most and time.monotonic() < began + 10:
                if not connection.send(block, 2):
                    break
        megabytes = connection.sent / 1e6
        found.expect(connection.sent < most, f"{path}: {megabytes:.0f} MB of requests were taken")


def _unread_overloaded(target: Target, found: Found) -> None:
    with _overload(target):
        _unread(target, found)


ONE = "one answer at most, the victim lives"
ATTACKS: list[Attack] = [
    Attack("Upgrade, a request as body", ONE, partial(_smuggled, "upgrades")),
    Attack("ends in doubt (CL, TE, folds, LF)", f"refused, {ONE}", partial(_smuggled, "ends")),
    Attack("pipelined, split at every byte", "three answers in order", _pipelined),
    Attack("half a head, then a request", ONE, _half_a_head),
    Attack("answers that nobody reads", "no more is read meanwhile", _unread),
    Attack("answers that nobody reads, overloaded", "no more is read meanwhile",
           _unread_overloaded, on="late"),
    Attack("half a head, Upgrade, overloaded", ONE, _overloaded, on="late"),
]  # fmt: skip
