"""Gives every request its id and trace, and writes its log line and span."""

from __future__ import annotations

import logging
import random
import re
import time
from typing import TYPE_CHECKING, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observe.request_context import RequestContext, current, route_of
from service.observe.stages import Stages

if TYPE_CHECKING:
    from service.observe.tracing import Tracing

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"

_header = HEADER.lower().encode()
_id = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_traceparent = re.compile(  # https://www.w3.org/TR/trace-context/#traceparent-header
    rb"(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)


PROBES = frozenset(("/livez", "/readyz"))
"""Asked every second or so; what fails there is said by what makes it fail."""


class IdentifyRequests:
    """Gives every request its context, sends its id back, and writes its log line and span.

    Paths and queries hold user ids, which are personal data: what is written of a request is its
    route's template.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        log_requests: Literal["errors", "all", "none"],
        tracing: Tracing | None = None,
    ) -> None:
        self.app, self.tracing = app, tracing
        self.logged_from = {"all": 0, "errors": 500, "none": 1000}[log_requests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = _context(scope)
        span = self.tracing.begin(scope, context) if self.tracing else None
        # Never reset: what the server logs of this task afterwards is about this request, too.
        current.set(context)
        header = (_header, context.request_id.encode())
        status = 500

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        started = time.perf_counter()
        try:
            await self.app(scope, receive, identified)
        finally:
            ended = time.perf_counter()
            if span is not None:
                span.end(scope, status, ended)
            if status >= self.logged_from and (
                not self.logged_from or route_of(scope) not in PROBES
            ):
                _log(scope, status, ended - started)


def _context(scope: Scope) -> RequestContext:
    given = parent = None
    for name, value in scope["headers"]:
        if name == _header:
            given = value
        elif name == b"traceparent":
            parent = _traceparent.fullmatch(value)
    known = given if given is not None and _id.fullmatch(given) else None
    return RequestContext(
        known.decode() if known else f"{random.getrandbits(128):032x}",
        parent[1].decode() if parent else None,
        parent[2].decode() if parent else None,
    )


def _log(scope: Scope, status: int, seconds: float) -> None:
    method, route = scope["method"], route_of(scope)
    timeline: Stages = scope.get("tim4rec.stages") or Stages()
    parts = timeline.parts(seconds)
    stages_ms = {stage: round(1000 * part, 3) for stage, part in parts.items()}
    logger.log(
        logging.WARNING if status >= 500 else logging.INFO,
        "%s %s %d in %.1f ms (%s)",
        method,
        route,
        status,
        1000 * seconds,
        ", ".join(f"{stage} {part:.1f}" for stage, part in stages_ms.items()),
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(1000 * seconds, 3),
            "stages_ms": stages_ms,
        },
    )
