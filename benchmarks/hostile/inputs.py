"""Callers with a key: inputs that are larger, deeper or stranger than anything of use."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from benchmarks.hostile.access import MB, empty_objects, routes
from benchmarks.hostile.attack import Attack
from benchmarks.hostile.target import Found, Target
from benchmarks.hostile.wire import Answer

LARGEST_REFUSAL = 20_000
MOST_FAULTS = 20
LARGEST_ANSWER = 2_000_000
REFUSED_WITHIN_S = 2.0
"""Reading 32 MB of JSON takes its time, and so does a busy machine."""


def refused(found: Found, answer: Answer | None, seconds: float, what: str, *fields: str) -> None:
    """Expects a 4xx that is small, says little, and names one of these fields."""
    found.took(answer, seconds)
    if answer is None:
        found.expect(False, f"{what}: no answer")
        return
    found.expect(400 <= answer.status < 500, f"{what}: {answer.status}")
    size = len(answer.body)
    found.expect(size < LARGEST_REFUSAL, f"{what}: an answer of {size} bytes")
    found.expect(seconds < REFUSED_WITHIN_S, f"{what}: refused after {seconds:.1f} s")
    if answer.status == 422 and size < 10 * LARGEST_REFUSAL:
        said = json.loads(answer.body)
        faults = said.get("errors") or []
        found.expect(len(faults) <= MOST_FAULTS, f"{what}: {len(faults)} faults named")
        named = {word for fault in faults for word in re.split(r"[.\s]", fault["field"])}
        named |= set(re.findall(r"\w+", said["detail"]))
        found.expect(not fields or named & set(fields), f"{what}: {said['detail']:.80}")


def _empty_objects(size: float, target: Target, found: Found) -> None:
    answer, seconds = target.ask("POST", "/interactions/batch", empty_objects(size))
    refused(found, answer, seconds, "empty objects", "interactions")


def _many_faults(target: Target, found: Found) -> None:
    """No more than a batch may have, each with faults: a few are named, the rest counted."""
    answer, seconds = target.post("/interactions/batch", {"interactions": [{"x": 1}] * 1000})
    refused(found, answer, seconds, "1,000 wrong objects", "interactions")
    if answer is not None and answer.status == 422:
        counted = re.search(r"\d+ (more|others)|(other|more)\D*\d+", answer.body.decode())
        found.expect(counted, "the faults that are not named are not counted")


BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "POST /interactions/batch": (
        "POST", "/interactions/batch", {"interactions": [{"user_id": "u", "item_id": "i0"}]}
    ),
    "POST /recommend": (
        "POST", "/recommend",
        {"user_id": "u", "exclude": ["i0"], "include": ["i0"], "category": ["c"]},
    ),
    "POST /recommend/session": (
        "POST", "/recommend/session",
        {"events": [{"item_id": "i0"}], "exclude": ["i0"], "include": ["i0"], "category": ["c"]},
    ),
    "POST /rank": ("POST", "/rank", {"user_id": "u", "item_ids": ["i0"]}),
    "POST /items/batch": ("POST", "/items/batch", {"items": [{"item_id": "new"}]}),
    "PUT /items/{item_id}": (
        "PUT", "/items/new", {"categories": ["c"], "similar_to": ["i0"]}
    ),
}  # fmt: skip
"""A good body of each route that takes lists."""


def _long_lists(size: int, target: Target, found: Found) -> None:
    """A million bytes and more of each list, in an otherwise good body."""
    for method, path, body in BODIES.values():
        for name, value in body.items():
            if not isinstance(value, list):
                continue
            (one,) = value
            count = size // (len(json.dumps(one)) + 1)
            content = json.dumps(body | {name: [one] * count}, separators=(",", ":")).encode()
            answer, seconds = target.ask(method, path, content)
            refused(found, answer, seconds, f"{path} {name} of {count:,}", name)
    nested = {"items": [{"item_id": "new", "similar_to": ["i0"] * (size // 5)}]}
    answer, seconds = target.post("/items/batch", nested)
    refused(found, answer, seconds, "items.similar_to", "similar_to", "items")
    nested = {"items": [{"item_id": "new", "categories": ["c"] * (size // 5)}]}
    answer, seconds = target.post("/items/batch", nested)
    refused(found, answer, seconds, "items.categories", "categories", "items")


def _long_lists_in_queries(target: Target, found: Found) -> None:
    for path, name in (("/recommend?user_id=u", "exclude"), ("/recommend?user_id=u", "include"),
                       ("/recommend?user_id=u", "category"), ("/items?q=", "category"),
                       ("/items?q=", "item_id")):  # fmt: skip
        query = f"&{name}=x" * (60_000 // (len(name) + 3))
        answered(found, *target.ask("GET", path + query), name)


def answered(found: Found, answer: Answer | None, seconds: float, what: str) -> None:
    """Expects any answer but a 5xx, of a bounded size."""
    found.took(answer, seconds)
    if answer is None:
        found.expect(False, f"{what}: no answer")
        return
    found.expect(
        answer.status < 500 or (answer.status == 503 and "retry-after" in answer.headers),
        f"{what}: {answer.status}",
    )
    most = LARGEST_ANSWER if answer.status == 200 else LARGEST_REFUSAL
    found.expect(len(answer.body) < most, f"{what}: an answer of {len(answer.body)} bytes")


def strange_json() -> dict[str, bytes]:
    """Bodies that no client means."""
    return {
        "deep lists": b"[" * 1_000_000 + b"]" * 1_000_000,
        "deep objects": b'{"attributes":' * 100_000 + b"1" + b"}" * 100_000,
        "deep attributes": b'{"attributes":{"a":' + b"[" * 150 + b"]" * 150 + b"}}",
        "a number of a million digits": b'{"user_id":"u","item_id":"i0","weight":'
        + b"9" * 1_000_000 + b"}",
        "a large exponent": b'{"user_id":"u","item_id":"i0","timestamp":1e999999999}',
        "a text of 8 MB": b'{"user_id":"' + b"u" * (8 * MB) + b'","item_id":"i0"}',
        "a name of 8 MB": b'{"' + b"u" * (8 * MB) + b'":1}',
        "100,000 unknown names": b"{" + b",".join(b'"a%d":1' % n for n in range(100_000)) + b"}",
        "a name 100,000 times": b"{" + b",".join([b'"user_id":"u"'] * 100_000) + b"}",
        "no UTF-8": b'{"user_id":"\xff\xfe","item_id":"i0"}',
        "half a surrogate pair": b'{"user_id":"\\ud800","item_id":"i0"}',
        "NaN": b'{"user_id":"u","item_id":"i0","weight":NaN}',
        "a zero byte": b'{"user_id":"u\x00","item_id":"i0"}',
    }  # fmt: skip


def _strange_json(target: Target, found: Found) -> None:
    for name, content in strange_json().items():
        for method, path in (("POST", "/interactions"), ("PUT", "/items/new"), ("POST", "/rank"),
                             ("POST", "/items/batch"), ("POST", "/recommend")):  # fmt: skip
            answer, seconds = target.ask(method, path, content)
            refused(found, answer, seconds, f"{path}: {name}")


def _strange_urls(target: Target, found: Found) -> None:
    """Paths and queries that are no UTF-8 or larger than an id."""
    for text in ("%ff%fe", "%ed%a0%80", "%c0%af", "x" * 60_000, "%00" * 20_000, "%"):
        for method, path in (("GET", "/users/{}"), ("GET", "/users/{}/history"),
                             ("DELETE", "/users/{}"), ("GET", "/items/{}"), ("DELETE", "/items/{}"),
                             ("GET", "/items/{}/similar"), ("GET", "/recommend?user_id={}"),
                             ("GET", "/recommend?user_id=u&exclude={}"),
                             ("GET", "/recommend?user_id=u&filter={}"),
                             ("GET", "/items?q={}"), ("GET", "/items?after={}"),
                             ("GET", "/popular?window={}"), ("GET", "/popular?k={}")):  # fmt: skip
            what = f"{method} {path.format(text[:12])}"
            answer, seconds = target.ask(method, path.format(text))
            answered(found, answer, seconds, what)
            if "exclude" not in path and "%f" in text and "?" in path:
                status = None if answer is None else answer.status
                found.expect(status == 422, f"{what}: {status}, not 422")
    for number in ("9" * 5000, "-1", "1e400", "0x10", "1_0", "１"):
        for path in ("/recommend?user_id=u&k={}", "/popular?k={}", "/items?limit={}",
                     "/users/user-0/history?limit={}", "/users/user-0/history?after={}",
                     "/recommend?user_id=u&explain=true&reasons={}",
                     "/recommend?user_id=u&at={}"):  # fmt: skip
            path = path.format(quote(number))
            answered(found, *target.ask("GET", path), path[:60])


def _bomb(target: Target, found: Found) -> None:
    bomb = gzip.compress(b" " * (30 * MB) + b"{}")
    for encoding in ("gzip", "deflate", "br", "zstd", "GZIP, identity"):
        answer, seconds = target.ask("POST", "/interactions", bomb, f"Content-Encoding: {encoding}")
        found.took(answer, seconds)
        status = None if answer is None else answer.status
        found.expect(status == 415, f"Content-Encoding: {encoding}: {status}")


def _heads(target: Target, found: Found) -> None:
    for method, path in [*routes(target), ("GET", "/livez"), ("GET", "/readyz"), ("GET", "/")]:
        if method != "GET" or path == "/users" or path.startswith("/admin"):
            continue
        if path == "/recommend":
            path += "?user_id=user-0"
        asked, seconds = target.ask("GET", path)
        answer, seconds = target.ask("HEAD", path)
        found.took(answer, seconds)
        status = (asked and asked.status, answer and answer.status)
        found.expect(answer is not None and status[0] == status[1], f"HEAD {path}: {status}")
        found.expect(answer is None or not answer.body, f"HEAD {path}: it has a body")


def _attempt(
    cases: Callable[[], list[tuple[str, str, bytes]]], target: Target, found: Found
) -> None:
    for method, path, body in cases():
        answered(found, *target.ask(method, path, body), f"{path} {body[:60]!r}")


REFUSED = "4xx at once, small, at most 20 faults named"
ATTACKS: list[Attack] = [
    *(
        Attack(f"batch of empty objects, {size:g} MB", f"{REFUSED}, the field among them",
               partial(_empty_objects, size * MB), growth_mb=48 + 4 * size)
        for size in (0.1, 1, 4)
    ),
    Attack("batch of 1,000 wrong objects", f"{REFUSED}, the others counted", _many_faults),
    Attack("lists that are too long, 1 MB", f"{REFUSED}, the list among them",
           partial(_long_lists, MB)),
    Attack("lists that are too long, 30 MB", f"{REFUSED}, the list among them",
           partial(_long_lists, 30 * MB), growth_mb=160),
    Attack("long lists in queries", "answered or 422", _long_lists_in_queries),
    Attack("nested, large, repeated, no UTF-8", REFUSED, _strange_json, growth_mb=96),
    Attack("paths and queries: no UTF-8, large numbers", "no 5xx, bounded", _strange_urls),
    Attack("compressed bodies", "415", _bomb),
    Attack("HEAD of every GET route", "as GET, without a body", _heads),
]  # fmt: skip
