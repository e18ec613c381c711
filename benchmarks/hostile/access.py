"""Callers without a key: 401, whatever else they send, and before a byte of it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.hostile.attack import Attack
from benchmarks.hostile.target import NO_KEY, Found, Target

MB = 2**20
OPEN = frozenset(("/livez", "/readyz"))
EARLY = 12 * MB
"""The systems of both sides take as much of a body before anybody reads it."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def empty_objects(size: float) -> bytes:
    """A batch of interactions without fields, of so many bytes."""
    return b'{"interactions":[' + b",".join([b"{}"] * round(size / 3)) + b"]}"


def _large_batch(size: float, target: Target, found: Found) -> None:
    request = target.request("POST", "/interactions/batch", empty_objects(size), key=NO_KEY)
    began = time.monotonic()
    with target.connect() as connection:
        connection.send(request)
        connection.wait(connection.has_answers(1, "POST"))
        answered = connection.answers("POST")
        found.took(answered[0] if answered else None, time.monotonic() - began)
        found.expect(connection.sent_before is not None, "no answer")
        early = (connection.sent_before or 0) <= EARLY
        found.expect(early, f"it was answered after {connection.sent_before} bytes")
    found.expect(set(found.statuses) == {"401"}, "not a 401")


def _slow_body(target: Target, found: Found) -> None:
    head = target.head("POST", "/interactions", "Content-Length: 1000", key=NO_KEY)
    _unasked(target, found, head, b" ")


def _endless_chunks(target: Target, found: Found) -> None:
    head = target.head("POST", "/interactions/batch", "Transfer-Encoding: chunked", key=NO_KEY)
    began = time.monotonic()
    with target.connect() as connection:
        connection.send(head)
        block, has_answer = b"10000\r\n" + b" " * 65_536 + b"\r\n", connection.has_answers(1)
        while connection.sent < 200 * MB and not has_answer() and connection.send(block, 5):
            pass
        connection.wait(has_answer, 5)
        answered = connection.answers()
        found.took(answered[0] if answered else None, time.monotonic() - began)
        early = connection.sent_before or 0
        found.expect(early <= EARLY, f"it was answered after {early / MB:.0f} MB")
    found.expect(set(found.statuses) == {"401"}, "not a 401")


def _expecting(target: Target, found: Found) -> None:
    fields = "Content-Length: 1000", "Expect: 100-continue", "Content-Type: application/json"
    head = target.head("POST", "/interactions", *fields, key=NO_KEY)
    received = _unasked(target, found, head, b"")
    found.expect(b" 100 " not in received[:20], "it was told to continue")


def _unasked(target: Target, found: Found, head: bytes, drop: bytes) -> bytes:
    """The answer must come while the body is still outstanding."""
    began = time.monotonic()
    with target.connect() as connection:
        connection.send(head)
        for _ in range(20):
            if connection.wait(connection.has_answers(1), 0.1):
                break
            connection.send(drop, 1)
        answered = connection.answers()
        found.took(answered[0] if answered else None, time.monotonic() - began)
        found.expect(answered and answered[0].status == 401, "not a 401 before the body")
        return bytes(connection.received)


def routes(target: Target) -> Iterator[tuple[str, str]]:
    """Method and path of each operation that wants a key."""
    for template, operations in target.document()["paths"].items():
        if template not in OPEN:
            path = template.replace("{user_id}", "user-0").replace("{item_id}", "i0")
            yield from ((method.upper(), path) for method in operations)


def _every_route(target: Target, found: Found) -> None:
    """Whatever is wrong with a request beside its key."""
    bodies = (b"", b"{", b"[" * 2000, b"\xff\xfe", json.dumps({"x": 1}).encode(), b"null")
    kinds = ("application/json", "text/plain", "multipart/form-data", "application/xml;;=")
    cases: list[tuple[str, str, str, bytes | None, str]] = []
    for method, path in routes(target):
        cases += [(method, path, key, None, "") for key in (NO_KEY, "wrong", target.key or "")]
        cases.append((method, path + "?no_such=1&no_such=2&k=x", "wrong", None, ""))
        cases.append((method, path + "?user_id=%ff%fe", "wrong", None, ""))
        cases += [(method, path, "wrong", body, kinds[0]) for body in bodies]
        cases += [(method, path, "wrong", bodies[4], kind) for kind in kinds[1:]]
        cases += [(other, path, "wrong", None, "") for other in METHODS]
    for method, path, key, body, kind in cases:
        admin = path == "/users" or path.startswith("/admin")
        if key and key == target.key and not admin:
            continue
        answer, seconds = target.ask(method, path, body, key=key, content_type=kind)
        found.took(answer, seconds)
        status = "no answer" if answer is None else answer.status
        found.expect(status == 401, f"{method} {path} {body!r:.20} {kind}: {status}")


def _shown(prefix: str, size: float) -> str:
    return f"{prefix}, {size / MB:g} MB"


PROMISE = "401 before the body is read"
ATTACKS: list[Attack] = [
    *(
        Attack(_shown("no key: batch of empty objects", size * MB), PROMISE,
               partial(_large_batch, size * MB))
        for size in (0.5, 1, 4, 31.9)
    ),
    Attack("no key: slow body", PROMISE, _slow_body),
    Attack("no key: chunks without end", PROMISE, _endless_chunks),
    Attack("no key: Expect: 100-continue", "401, and no 100", _expecting),
    Attack("wrong key: every route, method, body, type", "401 always", _every_route),
]  # fmt: skip
