"""Requests and their retries, with nothing sent here: generators that both clients run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from .errors import Refused, Unavailable

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
_RETRIED = frozenset((502, 503, 504))


@dataclass(frozen=True)
class Request:
    """To be sent. `user`: whom it is about."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    user: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Of httpx's `request`; the header lets a balancer keep a user's requests together."""
        headers = {} if self.user is None else {"X-User-Id": quote(self.user, safe="")}
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "json": self.json,
            "headers": headers,
        }


@dataclass(frozen=True)
class Sleep:
    """To be waited for."""

    seconds: float


Reply = httpx.Response | httpx.TransportError | None
"""To a request: the response, or what kept it away. To a sleep: None."""
Steps = Generator[Request | Sleep, Reply, T]
Call = Callable[["Backoff"], Steps[T]]


class Backoff:
    """Growing, random pauses between attempts, and a deadline.

    Args:
        retry_for_s: seconds from now until the last attempt may begin.
    """

    def __init__(self, retry_for_s: float) -> None:
        self._retry_for_s = retry_for_s
        self._deadline = time.monotonic() + retry_for_s
        self._pause_s = FIRST_PAUSE_S

    def restarted(self) -> Backoff:
        """The same for another request."""
        return Backoff(self._retry_for_s)

    def after(self, failure: Unavailable, at_least_s: float = 0.0) -> Sleep:
        """How long to wait before the next attempt.

        Raises:
            Unavailable: the failure, as there is no time for another.
        """
        seconds = max(at_least_s, self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if time.monotonic() + seconds > self._deadline:
            raise failure
        return Sleep(seconds)


def with_retries(request: Request, backoff: Backoff) -> Steps[Any]:
    """The answer's JSON.

    Raises:
        Refused: the service won't do it.
        Unavailable: there was no time for another attempt.
        httpx.UnsupportedProtocol: the service's URL is not of HTTP.
    """
    while True:
        reply = yield request
        assert reply is not None
        if isinstance(reply, httpx.UnsupportedProtocol):
            raise reply
        if isinstance(reply, httpx.TransportError):
            failure = Unavailable(f"{request.method} {request.path}: {_one_line(reply)}")
            failure.__cause__ = reply
            yield backoff.after(failure)
            continue
        if reply.is_success:
            return reply.json()
        detail, request_id = _detail(reply)
        if reply.status_code not in _RETRIED:
            raise Refused(detail, reply.status_code, request_id)
        failure = Unavailable(detail, reply.status_code, request_id)
        yield backoff.after(failure, _seconds(reply.headers.get("Retry-After")))


def _detail(reply: httpx.Response) -> tuple[str, str | None]:
    about = f"{reply.status_code} {reply.reason_phrase}"
    try:
        problem = reply.json()
        return f"{about}: {problem['detail']}", problem.get("request_id")
    except (ValueError, TypeError, KeyError, AttributeError):  # something in between answered
        return about, None


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:  # a date: our own pauses will do
        return 0.0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
