"""How requests are made, and made again, without anything being sent: a dialogue with whoever
sends them, the same for both clients."""

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
_AGAIN = frozenset((502, 503, 504))


@dataclass(frozen=True)
class Request:
    """To be sent; answered with the response, or what kept it away. `user`: whom it is about."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    user: str | None = None

    def sent(self) -> dict[str, Any]:
        """As httpx takes it. What balances load can keep a user's requests together by a header."""
        headers = {} if self.user is None else {"X-User-Id": quote(self.user, safe="")}
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "json": self.json,
            "headers": headers,
        }


@dataclass(frozen=True)
class Pause:
    """To be waited for."""

    seconds: float


Reply = httpx.Response | httpx.TransportError | None
Dialogue = Generator[Request | Pause, Reply, T]
Plan = Callable[["Patience"], Dialogue[T]]
"""Begins a dialogue that comes to a T."""


class Patience:
    """How long it may be tried to get one thing done.

    Args:
        retry_for_s: seconds from now until the last attempt may begin.
    """

    def __init__(self, retry_for_s: float) -> None:
        self._retry_for_s = retry_for_s
        self._until = time.monotonic() + retry_for_s
        self._pause = FIRST_PAUSE_S

    def anew(self) -> Patience:
        """The same for the next thing."""
        return Patience(self._retry_for_s)

    def after(self, failure: Unavailable, at_least_s: float = 0.0) -> Pause:
        """How long to wait before the next attempt.

        Raises:
            Unavailable: the failure, as there is no time for another.
        """
        seconds = max(at_least_s, self._pause * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        if time.monotonic() + seconds > self._until:
            raise failure
        return Pause(seconds)


def answered(request: Request, patience: Patience) -> Dialogue[Any]:
    """The answer's JSON.

    Raises:
        Refused: the service won't do it.
        Unavailable: there was no time for another attempt.
    """
    while True:
        reply = yield request
        assert reply is not None
        at_least_s = 0.0
        if isinstance(reply, httpx.Response):
            if reply.is_success:
                return reply.json()
            detail, request_id = _said(reply)
            if reply.status_code not in _AGAIN:
                raise Refused(detail, reply.status_code, request_id)
            failure = Unavailable(detail, reply.status_code, request_id)
            at_least_s = _seconds(reply.headers.get("Retry-After"))
        else:
            failure = Unavailable(f"{request.method} {request.path}: {_one_line(reply)}")
            failure.__cause__ = reply
        yield patience.after(failure, at_least_s)


def _said(reply: httpx.Response) -> tuple[str, str | None]:
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
