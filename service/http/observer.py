"""Every request with its id and trace; and what metrics, log and span say of how it went."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observe import metrics, request_context, stages
from service.observe.request_context import RequestContext, route_of
from service.observe.stages import Stages

if TYPE_CHECKING:
    from service.observe.tracing import Tracing

logger = logging.getLogger(__name__)

_REQUEST_ID = b"x-request-id"
_SERVER_TIMING = b"server-timing"  # https://www.w3.org/TR/server-timing/
_id = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_traceparent = re.compile(  # https://www.w3.org/TR/trace-context/#traceparent-header
    rb"(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)


PROBES = frozenset(("/livez", "/readyz"))
"""Asked every second or so; what fails there is said by what makes it fail."""


class ObserveRequests:
    """Gives every request its context and time line, sends back its id and what is known of its
    times when the answer begins, and writes its metrics, span and log line.

    Paths and queries hold user ids, which are personal data: what is written of a request is its
    route's template, which is no label of a caller's making either.

    The time line is `stages.current` while it is answered, and `scope["tim4rec.stages"]`.
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
        context = _context(scope)
        span = self.tracing.begin(scope, context) if self.tracing else None
        # Never reset: what the server logs of this task afterwards is about this request, too.
        request_context.current.set(context)
        timeline = scope["tim4rec.stages"] = Stages()
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (_REQUEST_ID, context.request_id.encode())]
                if timeline.spans:
                    headers.append((_SERVER_TIMING, _timing(timeline, time.perf_counter() - began)))
                message["headers"] = headers
            await send(message)

        before = stages.current.set(timeline)
        began = time.perf_counter()
        try:
            await self.app(scope, receive, observed)
        finally:
            ended = time.perf_counter()
            stages.current.reset(before)
            seconds, route = ended - began, route_of(scope)
            parts = timeline.parts(seconds)
            metrics.observe_request(scope["method"], route, status, seconds, parts)
            if span is not None:
                span.end(scope, status, ended)
            if status >= self.logged_from and (not self.logged_from or route not in PROBES):
                _log(scope["method"], route, status, seconds, parts)


def _context(scope: Scope) -> RequestContext:
    given = parent = None
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            given = value
        elif name == b"traceparent":
            parent = _traceparent.fullmatch(value)
    known = given if given is not None and _id.fullmatch(given) else None
    return RequestContext(
        known.decode() if known else f"{random.getrandbits(128):032x}",
        parent[1].decode() if parent else None,
        parent[2].decode() if parent else None,
    )


def _timing(timeline: Stages, seconds: float) -> bytes:
    parts = timeline.parts(seconds) | {"total": seconds}
    return ",".join(f"{part};dur={1000 * parts[part]:.3f}" for part in parts).encode()


def _log(method: str, route: str, status: int, seconds: float, parts: Mapping[str, float]) -> None:
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
