"""What is told of a request by its bytes alone is what a parser says."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.http import plain_request
from tests.depth import examples

HEAD = b"POST /interactions?x=1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "target"),
    [
        (b"GET /recommend?user_id=u&k=1 HTTP/1.1\r\nhost: x\r\n\r\n", (b"GET", b"/recommend")),
        (HEAD + b"Content-Length: 2\r\nAccept: */*\r\n\r\n{}", (b"POST", b"/interactions")),
        (HEAD + b"Connection: keep-alive\r\n\r\n", (b"POST", b"/interactions")),
        (HEAD + b"Content-Length: 3\r\n\r\n{}", None),
        (HEAD + b"Content-Length: 1\r\n\r\n{}", None),
        (HEAD + b"\r\n{}", None),
        (HEAD, None),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", None),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", None),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", None),
        (HEAD + b"Expect: 100-continue\r\n\r\n", None),
        (HEAD + b"Connection: close\r\n\r\n", None),
        (HEAD + b"Connection: keep-alive, close\r\n\r\n", None),
        (HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", None),
        (HEAD + b"X: a\nContent-Length: 2\r\n\r\n", None),
        (HEAD + b"X: a\r\n folded\r\n\r\n", None),
        (HEAD.replace(b"/1.1", b"/1.0") + b"\r\n", None),
    ],
)
def test_plain_requests_are_told(data: bytes, target: tuple[bytes, bytes] | None) -> None:
    assert plain_request.target(data) == target


class Parsed:
    def __init__(self, data: bytes) -> None:
        self.begun = self.complete = 0
        self.url = b""
        self.keeps = True
        parser = httptools.HttpRequestParser(self)
        self._parser: Any = parser
        parser.feed_data(data)
        self.method = parser.get_method()

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_message_complete(self) -> None:
        self.complete += 1
        self.keeps = self._parser.should_keep_alive() and not self._parser.should_upgrade()


PLAIN = st.sampled_from([b"Host: x", b"X: y\t z", b"connection: keep-alive"])
ODD = st.sampled_from(
    [
        b"content-length: 2", b"Content-Length:02", b"content-length : 2", b"Content-Length: 2 ",
        b"content-length: 0", b"Connection: close", b"Transfer-Encoding: chunked", b" folded",
        b"Expect: 100-continue", b"Upgrade: h2c", b"x", b"", b"X: y\nContent-Length: 2",
        b"X: \xff",
    ]
)  # fmt: skip
REQUESTS = st.builds(
    lambda first, lines, end, body: first + end + b"".join(x + end for x in lines) + end + body,
    st.sampled_from([b"GET /a?b=%0a HTTP/1.1", b"post / HTTP/1.1"])
    | st.sampled_from([b"GET /a#b HTTP/1.1", b"GET http://x/a HTTP/1.1", b"GET / HTTP/1.0"]),
    st.tuples(PLAIN) | st.tuples(PLAIN, ODD) | st.tuples(ODD, PLAIN, ODD),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from([b"", b"", b"{}", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]),
)


@settings(max_examples=examples(300))
@given(REQUESTS)
@example(HEAD + b"Content-Length: 2\r\n\r\n{}")
def test_a_parser_says_the_same_of_each(data: bytes) -> None:
    """One request, whole, after which the connection stays open, and nothing behind it."""
    target = plain_request.target(data)
    if target is None:
        return
    try:
        parsed = Parsed(data)
    except httptools.HttpParserError:  # it may be no HTTP: then there is nothing behind it either
        return
    assert (parsed.begun, parsed.complete) == (1, 1)
    assert parsed.keeps
    assert target == (parsed.method, httptools.parse_url(parsed.url).path)
