"""Without a key: 401 to whatever it is, before a byte of a body is asked for.

By the application alone, where a body that is asked for is a failure, the way for well-formed
requests and the framework's own; and by a real service, of which only heads are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.hostile.target import Target
from service.app import Application, create_app
from service.settings import Settings
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact
from tests.waited import PATIENT_S

KEY, ADMIN_KEY = "the key", "the admin key"
OPEN = ("/livez", "/readyz")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
SOON_S = 10.0


@cache
def operations() -> list[tuple[str, str]]:
    """Method and path of each operation that wants a key, by the OpenAPI document; and others."""
    document = create_app(Settings(artefact="none")).api.openapi()["paths"]
    found = [
        (method.upper(), path.replace("{user_id}", "u").replace("{item_id}", "a"))
        for path, described in document.items()
        if path not in OPEN
        for method in described
    ]
    return [*found, ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs")]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("access") / "model", ["a", "b", "c"]).folder


class Running:
    """The application in this process, and its event loop."""

    def __init__(self, artefact: Path, store_url: str) -> None:
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self.app: Application = create_app(
            Settings(
                artefact=artefact, redis_url=store_url, store_timeout_s=PATIENT_S,
                api_keys=KEY, admin_keys=ADMIN_KEY,
            )  # type: ignore[arg-type]
        )  # fmt: skip
        api = self.app.api
        self._runner.run(self._stack.enter_async_context(api.router.lifespan_context(api)))

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def status(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], way: str
    ) -> tuple[int, bool]:
        """What is answered, and whether the body was asked for."""
        asked, sent = False, list[Any]()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query,
            "root_path": "" if way == "direct" else "/elsewhere", "headers": headers,
            "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        self._runner.run(self.app(scope, receive, send))
        return int(sent[0]["status"]), asked


@pytest.fixture(scope="module")
def running(artefact: Path, store: ValkeyServer) -> Iterator[Running]:
    running = Running(artefact, store.url)
    yield running
    running.close()


KEYS = st.sampled_from([None, b"", b"wrong", b"\xff\xfe", KEY.encode()[:-1], KEY.encode() + b" x"])
QUERIES = st.sampled_from(
    [b"", b"k=0", b"k=x&no_such=1", b"user_id=%ff", b"user_id=u&filter=(((", b"&&&=&%", b"\xff"]
) | st.binary(max_size=60)  # fmt: skip
TYPES = st.sampled_from(
    [None, b"application/json", b"text/plain", b"multipart/form-data", b"application/json;;=\xff"]
)
LENGTHS = st.sampled_from(
    [[], [(b"content-length", b"2")], [(b"content-length", b"33554433")],
     [(b"content-length", b"99999999999999999999")], [(b"transfer-encoding", b"chunked")]]
)  # fmt: skip
ENCODINGS = st.sampled_from(
    [[], [], [(b"content-encoding", b"gzip")], [(b"host", b"evil.example")]]
)


def headers(key: bytes | None, content_type: bytes | None, *more: Any) -> list[tuple[bytes, bytes]]:
    found = [] if key is None else [(b"x-api-key", key)]
    found += [] if content_type is None else [(b"content-type", content_type)]
    return found + [one for some in more for one in some]


@pytest.mark.parametrize("way", ["direct", "general"])
@given(
    operation=st.sampled_from(operations()),
    own=st.booleans(),
    other=st.sampled_from(METHODS),
    query=QUERIES,
    key=KEYS,
    content_type=TYPES,
    length=LENGTHS,
    encoding=ENCODINGS,
)
def test_a_wrong_key_is_all_that_is_wrong(
    running: Running, way: str, operation: tuple[str, str], own: bool, other: str, query: bytes,
    key: bytes | None, content_type: bytes | None, length: Any, encoding: Any,
) -> None:  # fmt: skip
    method, path = operation
    method = method if own else other
    shown = headers(key, content_type, length, encoding)
    assert running.status(method, path, query, shown, way) == (401, False)


@pytest.mark.parametrize("way", ["direct", "general"])
def test_each_operation_wants_its_own_key(running: Running, way: str) -> None:
    for method, path in operations():
        admin = path == "/users" or path.startswith("/admin")
        for key in (None, b"wrong", (KEY if admin else "not " + KEY).encode()):
            shown = headers(key, b"application/json", [(b"content-length", b"9")])
            assert running.status(method, path, b"", shown, way) == (401, False), (method, path)
        right = headers((ADMIN_KEY if admin else KEY).encode(), None)
        assert running.status(method, path, b"", right, way)[0] != 401, (method, path)


@pytest.fixture(scope="module")
def target(artefact: Path, store: ValkeyServer) -> Iterator[Target]:
    service = Service(
        artefact, store.folder / "output", redis_url=store.url, api_keys=KEY, admin_keys=ADMIN_KEY
    )
    service.start(wait=False)
    try:
        service.wait_ready()
        yield Target(service.port, KEY, ADMIN_KEY)
    finally:
        service.kill()


BODIES = [
    ("Content-Length: 1000",),
    ("Content-Length: 33554432",),
    ("Content-Length: 99999999999",),
    ("Transfer-Encoding: chunked",),
    ("Content-Length: 1000", "Expect: 100-continue"),
    ("Transfer-Encoding: chunked", "Expect: 100-continue"),
]


@pytest.mark.parametrize("body", BODIES, ids=", ".join)
@pytest.mark.parametrize("key", ["", "wrong"])
def test_only_the_head_is_needed(target: Target, body: tuple[str, ...], key: str) -> None:
    """The first that comes is the 401: no `100 Continue` before it."""
    for method, path in operations():
        if method not in ("POST", "PUT"):
            continue
        for kind in ("application/json", "text/plain"):
            asked = target.head(method, path, f"Content-Type: {kind}", *body, key=key)
            with target.connect() as connection:
                connection.send(asked)
                connection.wait(connection.has_answers(1, method), SOON_S)
                received = bytes(connection.received)
            assert received.startswith(b"HTTP/1.1 401 "), f"{method} {path} {kind}: {received!r}"
