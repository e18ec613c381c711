"""Who a request says it is: what logs and traces say of it while it is answered."""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import Scope


class RequestContext:
    """One request's ids.

    request_id: the caller's X-Request-ID, or a new one.
    trace_id, span_id: hexadecimal, of the caller's `traceparent`; with tracing, of the request's
        own span. None: no trace.
    """

    __slots__ = ("request_id", "span_id", "trace_id")

    def __init__(self, request_id: str, trace_id: str | None, span_id: str | None) -> None:
        self.request_id, self.trace_id, self.span_id = request_id, trace_id, span_id


current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)
"""Of the request that this task answers; None outside of one."""


def route_of(scope: Scope) -> str:
    """The template of the route that answers, or `unmatched`."""
    return getattr(scope.get("route"), "path", "unmatched")
