"""Requests beyond what a process can do, refused before they cost anything.

A refusal must be much cheaper than an answer, or refusing is what an overloaded process is busy
with. So it is written before a request that came whole is even parsed, else as soon as its head is:
no task, no validation, no body, and one log line and one change of the metrics for many.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from service.http import plain_request, problems
from service.observe import metrics

if TYPE_CHECKING:
    from service.http.dependencies import Services

logger = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
COUNT_EVERY_S = 0.1
_PROBLEM = {
    "type": "about:blank",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "more requests than can be answered in time; nothing was done: retry with the same "
    "event_id",
}
_BODY = json.dumps(_PROBLEM).encode()
ANSWER = (
    f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
    f"content-length: {len(_BODY)}\r\nretry-after: {problems.RETRY_AFTER_S}\r\n\r\n"
).encode() + _BODY


class LoadShedder:
    """Whether requests of the engine's routes are refused, and how many were. Connections find it
    in the lifespan's state."""

    answer = ANSWER

    def __init__(self, app: FastAPI, routers: Iterable[APIRouter]) -> None:
        self._app = app
        self._routes = {
            (method.encode(), route.path.encode()): (method, route.path)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and "{" not in route.path
            for method in route.methods or ()
        }
        self._let_in = 0  # and on its way to the queue
        self._uncounted: Counter[tuple[str, str]] = Counter()
        self._untold, self._told = 0, 0.0

    @property
    def _is_late(self) -> bool:
        services: Services | None = self._app.state.services
        return services is not None and services.engine.is_late(self._let_in)

    def refuses(self, method: bytes, url: bytes) -> bool:
        """Whether such a request is to be refused; it is counted then."""
        path = url.partition(b"?")[0]
        if self._is_late:
            return self._refuses(method, path)
        if (method, path) in self._routes:
            if not self._let_in:
                asyncio.get_running_loop().call_soon(self._turn)
            self._let_in += 1
        return False

    def refuses_whole(self, data: bytes) -> bool:
        """`refuses`, for bytes of a connection on which nothing is under way. False also where they
        have to be parsed first."""
        if not self._is_late:
            return False
        found = plain_request.target(data)
        return found is not None and self._refuses(*found)

    def _turn(self) -> None:
        """What was let in is in the queue before more is read."""
        self._let_in = 0

    def _refuses(self, method: bytes, path: bytes) -> bool:
        route = self._routes.get((method, path))
        if route is None:
            return False
        if not self._uncounted:
            asyncio.get_running_loop().call_later(COUNT_EVERY_S, self._count)
        self._uncounted[route] += 1
        return True

    def _count(self) -> None:
        for (method, route), number in self._uncounted.items():
            metrics.observe_refusals(method, route, number)
            self._untold += number
        self._uncounted.clear()
        now = time.monotonic()
        if now >= self._told + TELL_EVERY_S:
            logger.warning("overloaded: %d requests refused", self._untold)
            self._untold, self._told = 0, now
