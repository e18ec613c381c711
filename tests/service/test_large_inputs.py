"""Whatever a caller with a key makes large, nobody else waits for it, and the answer is small.

Every operation of the OpenAPI document of a real service, every parameter and field of its body,
and its head, in turn with a value far larger than any of use; another process asks /livez
meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any
from urllib.parse import quote
from zlib import crc32

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.hostile.target import Target
from benchmarks.hostile.watch import Seen, Watch
from benchmarks.hostile.wire import Answer
from service.app import create_app
from service.settings import Settings
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact

KEY = "the key"
ITEMS = 20_000
LARGEST_ANSWER = 2_000_000
"""Bytes of a 200: what is asked for, 1,000 items with what is said of them, or 10,000 events."""
LARGEST_REFUSAL = 20_000
LONGEST_STALL_S = 0.25
"""Of /livez, what was waited for a processor left out; 0.05 is promised, on a quiet machine."""
TRIES = 3
"""A stall that the request makes is there each time, one that the machine makes is not."""

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/interactions"): {"user_id": "u", "item_id": "i0"},
    ("POST", "/interactions/batch"): {"interactions": [{"user_id": "u", "item_id": "i0"}]},
    ("POST", "/recommend"): {"user_id": "user-0"},
    ("POST", "/recommend/session"): {"events": [{"item_id": "i0"}]},
    ("POST", "/rank"): {"user_id": "user-0", "item_ids": ["i0"]},
    ("POST", "/items/batch"): {"items": [{"item_id": "new"}]},
    ("PUT", "/items/{item_id}"): {"title": "new"},
    ("POST", "/admin/model"): {"model": "none"},
    ("POST", "/admin/recommend"): {"user_id": "user-0", "edition": "none"},
}
"""A good one of each operation that takes one."""
NUMBERED = count(10_000)
QUERIES = {("GET", "/recommend"): {"user_id": "user-0"}}


@cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings(artefact="none")).api.openapi()
    return found


def operations() -> list[tuple[str, str]]:
    return [(m.upper(), path) for path, some in document()["paths"].items() for m in some]


@dataclass(frozen=True)
class Place:
    """What is made large: a part of a URL, of a body or of a head. `types`: of JSON; `inner`: a
    field of the objects in a list."""

    where: str
    name: str
    types: frozenset[str]
    inner: str = ""


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return found


def types(schema: dict[str, Any]) -> frozenset[str]:
    schema = resolved(schema)
    any_of: list[dict[str, Any]] = schema.get("anyOf", [])
    own = [schema["type"]] if "type" in schema else []
    return frozenset(own).union(*(types(one) for one in any_of))


def places(method: str, path: str) -> list[Place]:
    described = document()["paths"][path][method.lower()]
    found = [Place("head", name, frozenset(["string"]))
             for name in ("X-API-Key", "X-Request-ID", "traceparent", "Accept")]  # fmt: skip
    for parameter in described.get("parameters", ()):
        found.append(Place(parameter["in"], parameter["name"], types(parameter["schema"])))
    content = described.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name, schema in resolved(content.get("schema", {})).get("properties", {}).items():
        found.append(Place("body", name, types(schema)))
        inner = resolved(resolved(schema).get("items", {})).get("properties", {})
        found += [Place("body", name, types(one), field) for field, one in inner.items()]
    if content:
        found.append(Place("whole", "body", frozenset(["object"])))
    return found


@dataclass(frozen=True)
class Large:
    """A value that is `count` times as large as anything; a new one each time, where what was found
    for the same one is remembered."""

    kind: str
    unit: str
    count: int

    def value(self) -> Any:
        new = next(NUMBERED)
        match self.kind:
            case "text":
                return self.unit * self.count
            case "filter":
                joined = f" {self.unit} ".join(f'id<"z{new}{n:x}"' for n in range(self.count))
                return joined[:1990].rpartition(f" {self.unit} ")[0] if self.count < 200 else joined
            case "cursor":
                body = new.to_bytes(4, "little") * self.count
                sealed = crc32(body).to_bytes(4, "little") + body
                return base64.urlsafe_b64encode(sealed).decode().rstrip("=")
            case "list":
                return [self.unit] * self.count
            case "different":
                return [f"{self.unit}{n}" for n in range(self.count)]
            case "objects":
                return [{}] * self.count
            case "object":
                return {f"{self.unit}{n}": n for n in range(self.count)}
            case "digits":
                return int(self.unit + "0" * min(self.count, 4000))
        found: Any = "x"
        for _ in range(min(self.count, 500)):
            found = [found]
        return found


COUNTS = st.sampled_from([101, 300, 1001, 5001, 20_000, 60_000, 200_000, 1_000_000])
UNITS = st.sampled_from(["x", "é", "\U0001d11e", "\0", "%", '"', "\\", "i1", " ", "[", "9"])
TEXTS = st.builds(Large, st.sampled_from(["text"]), UNITS, COUNTS)
NUMBERS = st.builds(Large, st.just("digits"), st.sampled_from(["1", "-1"]), COUNTS)
LISTS = st.builds(Large, st.sampled_from(["list", "different", "objects", "nested"]), UNITS, COUNTS)
OBJECTS = st.builds(Large, st.sampled_from(["object", "nested"]), UNITS, COUNTS)
SPECIAL = {
    "filter": st.builds(
        Large, st.just("filter"), st.sampled_from(["or", "and", "or not"]),
        st.sampled_from([150, 199, 5000]),
    ),
    "after": st.builds(Large, st.just("cursor"), st.just(""), COUNTS),
}  # fmt: skip
SPECIAL["promote"] = SPECIAL["filter"]


def values(place: Place) -> st.SearchStrategy[Large]:
    """Mostly of the right type."""
    by_type = {"string": TEXTS, "integer": NUMBERS, "number": NUMBERS, "array": LISTS,
               "object": OBJECTS}  # fmt: skip
    right = [by_type[one] for one in sorted(place.types) if one in by_type]
    if place.name in SPECIAL:
        right = [SPECIAL[place.name], SPECIAL[place.name], *right]
    return st.one_of(*right, *right, TEXTS, LISTS)


def request(target: Target, method: str, path: str, place: Place, value: Any) -> bytes:
    """A good request, but for one place."""
    query: dict[str, Any] = dict(QUERIES.get((method, path), {}))
    body: Any = BODIES.get((method, path))
    fields: tuple[str, ...] = ()
    parts = {"user_id": "user-0", "item_id": "i0", "name": "a-model"}
    if place.where == "whole":
        body = value
    elif place.where == "body":
        inner = {**body[place.name][0], place.inner: value} if place.inner else {}
        body = body | {place.name: [inner] if place.inner else value}
    elif place.where == "query":
        query[place.name] = value
    elif place.where == "path":
        parts[place.name] = _text(value)
    else:
        fields = (f"{place.name}: {quote(_text(value)[:70_000])}",)
    path = path.format(**{name: quote(text, safe="") for name, text in parts.items()})
    pairs = [
        f"{name}={quote(_text(one))}"
        for name, own in query.items()
        for one in (own if isinstance(own, list) else [own])
    ]
    url = path + ("?" + "&".join(pairs) if pairs else "")
    content = None if body is None else json.dumps(body).encode()
    key = "" if place.name == "X-API-Key" else None
    return target.request(method, url[:100_000], content, *fields, key=key)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:100_000]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, store: ValkeyServer) -> Iterator[Service]:
    artefact = make_artefact(
        tmp_path_factory.mktemp("large") / "model", [f"i{n}" for n in range(ITEMS)]
    )
    running = Service(
        artefact.folder, store.folder / "output", redis_url=store.url, api_keys=KEY,
        admin_keys=KEY, exactness_every_s=0,
    )  # fmt: skip
    running.start(wait=False)
    try:
        running.wait_ready()
        with running.client(headers={"X-API-Key": KEY}) as client:
            body = [{"user_id": "user-0", "item_id": f"i{n}"} for n in range(100)]
            answer = client.post("/interactions/batch", json={"interactions": body})
            assert answer.status_code == 200
        yield running
        assert not running.logged(level="ERROR")
        assert "Traceback" not in running.said()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def target(service: Service) -> Target:
    target = Target(service.port, KEY, KEY)
    target.warm()
    return target


@pytest.fixture(scope="module")
def watch(service: Service, target: Target) -> Iterator[Watch]:
    assert service.process is not None
    with Watch(service.port, service.process.pid, 2**62) as watch:
        watch.now()
        yield watch


def send(target: Target, watch: Watch, method: str, asked: bytes) -> tuple[Answer, Seen]:
    began = time.monotonic()
    answer, _ = target.exchange(asked, method)
    seen = watch.since(began)
    assert answer is not None, "no answer"
    return answer, seen


def test_every_body_is_known() -> None:
    taking = {
        (method, path)
        for method, path in operations()
        if "requestBody" in document()["paths"][path][method.lower()]
    }
    assert taking == BODIES.keys()


@pytest.mark.parametrize(("method", "path"), operations(), ids=lambda part: part)
@settings(
    max_examples=examples(3),
    phases=[Phase.explicit, Phase.generate],  # what takes long may not take long again
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_large_values_hold_nobody_up(
    target: Target, watch: Watch, method: str, path: str, data: st.DataObject
) -> None:
    """Each place in turn."""
    own = places(method, path)
    for place, large in zip(own, data.draw(st.tuples(*map(values, own))), strict=True):
        stall = float("inf")
        for _ in range(TRIES):
            asked = request(target, method, path, place, large.value())
            answer, seen = send(target, watch, method, asked)
            busy = answer.status == 503 and "retry-after" in answer.headers
            assert answer.status < 500 or busy, (place, large, answer.body[:200])
            most = LARGEST_ANSWER if answer.status == 200 else LARGEST_REFUSAL
            assert len(answer.body) <= most, (place, large)
            stall = min(stall, seen.stall_s)
            if stall <= LONGEST_STALL_S:
                break
        assert stall <= LONGEST_STALL_S, (place, large, f"/livez stood for {stall:.2f} s")


def test_a_stall_is_seen(service: Service, watch: Watch) -> None:
    """What the tests above look for, they would find: a busy machine may keep the watch from asking
    for a part of the second."""
    assert service.process is not None
    stalls = []
    for _ in range(TRIES):
        began = watch.now()
        os.kill(service.process.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(service.process.pid, signal.SIGCONT)
        stalls.append(watch.since(began).stall_s)
    assert min(stalls) > LONGEST_STALL_S
