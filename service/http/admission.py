"""Requests beyond what a process can do, refused before they cost anything.

A refusal must be much cheaper than an answer, or refusing is what an overloaded process is busy
with. So it is written as soon as a request's head is parsed: no task, no validation, no body, and
one log line for many.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from service.http import problems
from service.observe import metrics

if TYPE_CHECKING:
    from service.http.dependencies import Services

logger = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
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


class Gate:
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
        self._untold, self._told = 0, 0.0

    def refuses(self, method: bytes, url: bytes) -> bool:
        """Whether such a request is to be refused; it is counted then."""
        services: Services | None = self._app.state.services
        if services is None or not services.engine.is_late:
            return False
        route = self._routes.get((method, url.partition(b"?")[0]))
        if route is None:
            return False
        metrics.REFUSED["overloaded"].inc()
        metrics.observe_request(*route, 503, 0.0, {})
        self._untold += 1
        now = time.monotonic()
        if now >= self._told + TELL_EVERY_S:
            logger.warning("overloaded: %d requests refused", self._untold)
            self._untold, self._told = 0, now
        return True
