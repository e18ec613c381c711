"""Requests of every shape on one connection, cut anywhere: no request hides in another.

What a real service answers is held against httptools' parser, fed with the same bytes at once. No
`Upgrade` is offered, so it is ignored, as RFC 9110 (7.8) lets a server: for the parser the word is
changed into one that means nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.hostile.target import Target
from benchmarks.hostile.wire import Answer, answers, chunked
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact

KEY = "k"
ANSWERED_WITHIN_S = 20.0
QUIET_S, LONG_QUIET_S = 0.05, 5.0
"""After the last answer that is due: one that is not due would come; on a busy machine, late."""
PAUSE_S = 0.001
INNER = b"DELETE /users/victim HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nX-Request-ID: hidden\r\n\r\n"
EVENT = b'{"user_id":"u","item_id":"a"}'


@dataclass(frozen=True)
class Shape:
    """A request. `framing`, `fields`: how its body is told of, and what else its head says."""

    line: bytes
    body: bytes = b""
    framing: str = "none"
    fields: tuple[bytes, ...] = ()
    version: bytes = b"1.1"

    @property
    def valid(self) -> bool:
        return (
            self.framing in ("none", "length", "chunked", "trailers", "extension")
            and not set(self.fields) & set(ODD)
        )  # fmt: skip

    def bytes(self, number: int) -> bytes:
        method, target = self.line.split(b" ")
        length = b"Content-Length: %d" % len(self.body)
        chunks = b"Transfer-Encoding: chunked"
        told: dict[str, tuple[list[bytes], bytes]] = {
            "none": ([], b""),
            "length": ([length], self.body),
            "chunked": ([chunks], chunked(self.body, (1, 7))),
            "trailers": ([chunks, b"Trailer: X-T"], chunked(self.body)[:-2] + b"X-T: a\r\n\r\n"),
            "extension": ([chunks], chunked(self.body).replace(b"\r\n", b';a="b"\r\n', 1)),
            "no length": ([], self.body),
            "too short": ([b"Content-Length: %d" % (len(self.body) // 2)], self.body),
            "too long": ([b"Content-Length: %d" % (len(self.body) + 9)], self.body),
            "both": ([length, chunks], chunked(self.body)),
            "two lengths": ([length, b"Content-Length: 0"], self.body),
            "identity": ([length, b"Transfer-Encoding: identity"], self.body),
            "chunked, x": ([b"Transfer-Encoding: chunked, x"], chunked(self.body)),
            "space": ([b"Content-Length : %d" % len(self.body)], self.body),
        }
        fields, body = told[self.framing]
        if self.body and self.framing != "none":
            fields = [*fields, b"Content-Type: application/json"]
        own = [b"Host: x", b"X-API-Key: k", b"X-Request-ID: r%d" % number]
        head = [b"%s %s HTTP/%s" % (method, target, self.version), *own, *fields, *self.fields]
        return b"\r\n".join([*head, b"", b""]) + body


FRAMINGS = ["length", "chunked", "trailers", "extension"]
ODD_FRAMINGS = [
    "no length", "too short", "too long", "both", "two lengths", "identity", "chunked, x", "space"
]  # fmt: skip
FIELDS = [
    b"Upgrade: foo\r\nConnection: Upgrade",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk",
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBs",
    b"Upgrade: foo",
    b"Connection: Upgrade",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Expect: 100-continue",
    b"X-Some:",
    b"x-SOME: \t a b \t",
]
ODD = [b"X: a\r\n folded", b"X: a\nY: b", b"X : a", b"X", b"X: a\x00b", b"X: \xff", b": a"]
LINES = [
    (b"GET /livez", b""), (b"GET /recommend?user_id=u&k=1", b""), (b"HEAD /livez", b""),
    (b"GET /nowhere", b""), (b"DELETE /users/nobody", b""), (b"OPTIONS /interactions", b""),
    (b"POST /interactions", EVENT), (b"POST /interactions", b"{"), (b"POST /interactions", INNER),
    (b"POST /interactions/batch", b'{"interactions":[' + EVENT + b"]}"), (b"POST /livez", INNER),
    (b"PUT /items/a", b'{"title":"a"}'), (b"POST /nowhere", INNER), (b"GET /livez", INNER),
    (b"HEAD /livez", INNER),
]  # fmt: skip


def shaped(framings: Sequence[str], fields: Sequence[bytes]) -> st.SearchStrategy[Shape]:
    return st.builds(
        lambda line, framing, fields, version: Shape(
            line[0],
            line[1],
            framing if line[1] else "none",
            tuple(fields),
            version if framing in ("none", "length") or not line[1] else b"1.1",
        ),
        st.sampled_from(LINES),
        st.sampled_from(framings),
        st.lists(st.sampled_from(fields), max_size=2, unique=True),
        st.sampled_from([b"1.1"] * 7 + [b"1.0"]),
    )


GOOD = shaped(FRAMINGS, FIELDS)
ANY = GOOD | shaped(FRAMINGS + ODD_FRAMINGS, FIELDS + ODD)


@dataclass
class Parsed:
    """What the parser sees in some bytes, up to what it does not understand.

    begun: the requests' ids, None for one without, or with one that is none. closing: the place of
    the first request after which the connection is to be closed.
    """

    data: bytes
    begun: list[str | None] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    complete: int = 0
    closing: int | None = None
    broken: bool = False

    def __post_init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(re.sub(rb"(?i)upgrade", b"xpgrade", self.data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.broken = True

    def on_message_begin(self) -> None:
        self.begun.append(None)
        self.methods.append("GET")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            text = value.decode("latin-1")
            self.begun[-1] = text if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text) else None

    def on_headers_complete(self) -> None:
        self.methods[-1] = self._parser.get_method().decode()

    def on_message_complete(self) -> None:
        kept = self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
        if self.closing is None and not kept:
            self.closing = self.complete
        self.complete += 1

    @property
    def due(self) -> int:
        """How many answers are."""
        return self.complete if self.closing is None else self.closing + 1


@dataclass(frozen=True)
class Heard:
    """What came back. `rest`: what is no whole answer."""

    answers: list[Answer]
    rest: bytes
    closed: bool

    @property
    def told(self) -> list[tuple[int, str | None]]:
        """Statuses and the requests' own ids: None where the service made one."""
        ids = [one.headers.get("x-request-id", "") for one in self.answers]
        own = [one if one and not re.fullmatch(r"[0-9a-f]{32}", one) else None for one in ids]
        return [(one.status, own[place]) for place, one in enumerate(self.answers)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, store: ValkeyServer) -> Iterator[Target]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    artefact = make_artefact(folder / "model", ["a", "b", "c"])
    service = Service(
        artefact.folder, folder / "output", redis_url=store.url, api_keys=KEY, exactness_every_s=0
    )
    service.start(wait=False)
    try:
        service.wait_ready()
        yield Target(service.port, KEY, None)
        assert not service.logged(level="ERROR")
        assert "Traceback" not in service.said()
    finally:
        service.kill()


def hear(
    target: Target, pieces: Sequence[bytes], parsed: Parsed, quiet_s: float = QUIET_S
) -> Heard:
    """Sends the pieces, and hears until there is nothing more to come."""
    with target.connect() as connection:
        for piece in pieces:
            if not connection.send(piece, ANSWERED_WITHIN_S):
                break
            if piece is not pieces[-1]:
                time.sleep(PAUSE_S)
        connection.wait(connection.has_answers(parsed.due, *parsed.methods), ANSWERED_WITHIN_S)
        connection.wait(lambda: False, quiet_s)
        found, rest = answers(bytes(connection.received), parsed.methods)
        return Heard(found, rest, connection.closed)


def check(heard: Heard, parsed: Parsed) -> None:
    """Well-formed, in order, and no more than were asked for."""
    told, last = heard.told, heard.answers[-1] if heard.answers else None
    assert b"HTTP/" not in heard.rest, f"half an answer: {heard.rest!r}"
    refused = (
        last is not None
        and 400 <= last.status < 500
        and last.headers.get("connection", "").lower() == "close"
    )
    assert len(told) <= len(parsed.begun) + refused, told
    for (_, answered), own in zip(told, parsed.begun, strict=False):
        assert answered in (None, own), told
    assert heard.closed or len(told) >= parsed.due, f"{told}: {parsed.due} were due"


def cut(data: bytes, shares: Sequence[float]) -> list[bytes]:
    places = sorted({round(share * len(data)) for share in shares} - {0, len(data)})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def changed(data: bytes, changes: Sequence[tuple[float, int]]) -> bytes:
    found = bytearray(data)
    for share, byte in changes:
        found[min(len(found) - 1, round(share * len(found)))] = byte
    return bytes(found)


SHARES = st.floats(0, 1, allow_nan=False)
CUTS = st.lists(SHARES, max_size=6)
BYTES = st.sampled_from(list(b"\r\n\0 \t:;,0129afGx\xff"))


def joined(shapes: Sequence[Shape]) -> bytes:
    return b"".join(shape.bytes(number) for number, shape in enumerate(shapes))


@pytest.mark.slow
@settings(max_examples=examples(50))
@given(st.lists(GOOD, min_size=1, max_size=5), CUTS)
@example([Shape(b"POST /interactions", INNER, "length", (FIELDS[0],))], [0.5])
@example([Shape(b"POST /interactions", INNER, "chunked", (FIELDS[1],))], [])
@example([Shape(b"POST /interactions", INNER, "length", (FIELDS[2],)), Shape(b"GET /livez")], [])
def test_valid_requests_are_answered_in_order(
    target: Target, shapes: list[Shape], cuts: list[float]
) -> None:
    """Each of them, up to the one after which the connection is to be closed."""
    data = joined(shapes)
    parsed = Parsed(data)
    assert not parsed.broken or parsed.closing is not None
    whole = hear(target, [data], parsed)
    check(whole, parsed)
    assert [answered for _, answered in whole.told] == parsed.begun[: parsed.due]
    assert hear(target, cut(data, cuts), parsed).told == whole.told


@pytest.mark.slow
@settings(max_examples=examples(50))
@given(
    st.lists(ANY, min_size=1, max_size=4),
    CUTS,
    st.lists(st.tuples(SHARES, BYTES), max_size=3),
    st.just(1.0) | SHARES,
)
def test_what_is_odd_is_no_second_request(
    target: Target, shapes: list[Shape], cuts: list[float], changes: list[tuple[float, int]],
    kept: float,
) -> None:  # fmt: skip
    """Broken, cut off, changed in a few bytes."""
    data = changed(joined(shapes), changes)
    data = data[: max(1, round(kept * len(data)))]
    parsed = Parsed(data)
    whole = hear(target, [data], parsed)
    check(whole, parsed)
    split = hear(target, cut(data, cuts), parsed)
    check(split, parsed)
    if split.told != whole.told:  # on a busy machine a refusal may take longer
        whole = hear(target, [data], parsed, LONG_QUIET_S)
        split = hear(target, cut(data, cuts), parsed, LONG_QUIET_S)
    assert split.told == whole.told
