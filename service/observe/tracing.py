"""OpenTelemetry traces: a span a request, with one child a stage. Needs the extra `otel`.

Where spans are sent, how many, and what they are of, the standard OTEL_* variables say; over
OTLP/HTTP. https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import asyncio
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from service.observe.metrics import METHODS
from service.observe.request_context import RequestContext, route_of

FLUSH_WITHIN_S = 3.0

_propagator = TraceContextTextMapPropagator()
_carried = (b"traceparent", b"tracestate")


class Tracing:
    """Makes and sends the spans of one process."""

    def __init__(self) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "tim4rec"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tim4rec")

    def begin(self, scope: Scope, context: RequestContext) -> RequestSpan:
        """The span of a request; `context` gets its ids."""
        known = scope["method"] in METHODS
        name = scope["method"] if known else "HTTP"
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _carried
        }
        # The convention asks for the path, too. It can hold a user id: left out.
        span = self._tracer.start_span(
            name,
            _propagator.extract(carrier),
            SpanKind.SERVER,
            {
                "http.request.method": name if known else "_OTHER",
                "url.scheme": scope["scheme"],
                "tim4rec.request_id": context.request_id,
            },
        )
        ids = span.get_span_context()
        context.trace_id, context.span_id = (
            format_trace_id(ids.trace_id),
            format_span_id(ids.span_id),
        )
        return RequestSpan(self._tracer, span, name)

    async def close(self) -> None:
        """Sends what is left, for `FLUSH_WITHIN_S` at most."""
        # By itself it would wait 30 s for a receiver that is not there.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_WITHIN_S)


class RequestSpan:
    """A request's span from its beginning to its end."""

    def __init__(self, tracer: Tracer, span: Span, name: str) -> None:
        self._tracer, self._span, self._name = tracer, span, name
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def end(self, scope: Scope, status: int, ended: float) -> None:
        """Ends it, with the stages of `scope`; times in seconds of `time.perf_counter`."""
        span = self._span
        if not span.is_recording():
            return
        route = route_of(scope)
        if route != "unmatched":
            span.update_name(f"{self._name} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        within = set_span_in_context(span)
        for stage, start, end in scope["tim4rec.stages"].spans:
            child = self._tracer.start_span(stage, within, start_time=self._ns(start))
            child.end(self._ns(end))
        span.end(self._ns(ended))

    def _ns(self, moment: float) -> int:
        """Nanoseconds since 1970."""
        return self._epoch_ns + round(moment * 1e9)
