"""Every request timed, as a whole and by stage."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observe import metrics, stages
from service.observe.request_context import route_of

_HEADER = b"server-timing"  # https://www.w3.org/TR/server-timing/


class TimeRequests:
    """Times requests by their route's template: no label that a caller can invent.

    The time line of a request is `stages.current` while it is answered, and
    `scope["tim4rec.stages"]`, complete once the application returns. What is known of it when the
    answer begins goes with that as `Server-Timing`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        timeline = scope["tim4rec.stages"] = stages.Stages()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if timeline.spans:
                    message["headers"] = [*message.get("headers", ()), (_HEADER, shown())]
            await send(message)

        def shown() -> bytes:
            seconds = time.perf_counter() - started
            parts = timeline.parts(seconds) | {"total": seconds}
            shares = [f"{part};dur={1000 * parts[part]:.3f}" for part in parts]
            return ",".join(shares).encode()

        before = stages.current.set(timeline)
        started = time.perf_counter()
        try:
            await self.app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            stages.current.reset(before)
            metrics.observe_request(
                scope["method"],
                route_of(scope),
                status,
                seconds,
                timeline.parts(seconds),
            )
