"""Traces, as an OTLP/HTTP receiver gets them from a real service."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.observe.request_context import RequestContext
from service.observe.stages import Stages
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is missing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.observe.tracing import FLUSH_WITHIN_S, Tracing
from tests.waited import LONG_S, waited

ITEMS = [f"i{n}" for n in range(20)]
SPAN_OF_CALLER = "00f067aa0ba902b7"


class Receiver:
    """Keeps the spans that are posted to it."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def plain(attributes: Any) -> dict[str, object]:
    """Attributes of the protocol as a dictionary."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def trace_of(number: int) -> str:
    return f"{number:032x}"


def parent(number: int, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_of(number)}-{SPAN_OF_CALLER}-{flags}"}


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, _shared_valkey: ValkeyServer
) -> Iterator[tuple[Receiver, Service]]:
    """A service that was asked a few things and is stopped; spans wait for its end."""
    folder: Path = tmp_path_factory.mktemp("tracing")
    receiver = Receiver()
    service = Service(
        make_artefact(folder / "model", ITEMS).folder,
        folder / "output",
        redis_url=_shared_valkey.url,
        namespace="traced",
        log_requests="all",
        tracing=True,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_BSP_SCHEDULE_DELAY=600_000,
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
    )
    try:
        service.start()
        with service.client() as client, _shared_valkey.client() as store:
            store.hset("traced:u:damaged", mapping={"n": "1", "e1": "nonsense"})
            body = {"user_id": "ann", "item_id": "i1"}
            query = {"user_id": "ann"}
            answers = [
                client.post("/interactions", json=body, headers=parent(1)),
                client.get("/recommend", params=query, headers=parent(2)),
                client.get("/recommend", params=query, headers=parent(3, flags="00")),
                client.get("/nowhere/ann", headers=parent(4)),
                client.get("/recommend", params={"user_id": "damaged"}, headers=parent(5)),
                client.get("/users/ann", headers={"X-Request-ID": "no.parent"}),
            ]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 503, 200]
        assert receiver.requests == []
        assert service.stop() == 0
        yield receiver, service
    finally:
        service.kill()
        receiver.close()


def request_span(receiver: Receiver, number: int) -> Span:
    """The one of the request whose caller was in this trace."""
    (span,) = [
        span
        for span in receiver.spans()
        if span.trace_id.hex() == trace_of(number) and span.kind == Span.SPAN_KIND_SERVER
    ]
    assert span.parent_span_id.hex() == SPAN_OF_CALLER
    return span


def children(receiver: Receiver, parent: Span) -> list[Span]:
    return [
        span
        for span in receiver.spans()
        if span.trace_id == parent.trace_id and span.parent_span_id == parent.span_id
    ]


def test_a_span_a_request_by_the_conventions(traced: tuple[Receiver, Service]) -> None:
    receiver, _ = traced
    span = request_span(receiver, 2)
    assert span.name == "GET /recommend"
    attributes = plain(span.attributes)
    assert len(attributes.pop("tim4rec.request_id")) == 32  # type: ignore[arg-type]
    assert attributes == {
        "http.request.method": "GET",
        "http.route": "/recommend",
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert abs(span.start_time_unix_nano / 1e9 - time.time()) < 300
    (resource,) = [request.resource_spans[0].resource for request in receiver.requests]
    told = plain(resource.attributes)
    assert (told["service.name"], told["deployment.environment"]) == ("tim4rec", "test")


@pytest.mark.parametrize(
    ("number", "stages"),
    [(1, {"queue", "log"}), (2, {"queue", "log", "retrieve"}), (4, set())],
)
def test_a_child_a_stage_within_its_request(
    traced: tuple[Receiver, Service], number: int, stages: set[str]
) -> None:
    receiver, service = traced
    span = request_span(receiver, number)
    found = children(receiver, span)
    # The recommendation's state may have been brought up to date before it asked.
    assert {child.name for child in found} - {"step"} == stages
    spent = 0
    for child in found:
        assert child.kind == Span.SPAN_KIND_INTERNAL
        assert span.start_time_unix_nano <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= span.end_time_unix_nano
        spent += child.end_time_unix_nano - child.start_time_unix_nano
    (record,) = service.logged(trace_id=trace_of(number), logger="service.http.observer")
    in_stages = record["duration_ms"] - record["stages_ms"]["http"]
    assert spent / 1e6 == pytest.approx(in_stages, abs=0.1)


def test_the_log_names_the_span(traced: tuple[Receiver, Service]) -> None:
    receiver, service = traced
    for number in (1, 2, 4, 5):
        (record,) = service.logged(trace_id=trace_of(number), logger="service.http.observer")
        assert record["span_id"] == request_span(receiver, number).span_id.hex()


def test_who_is_not_sampled_sends_nothing(traced: tuple[Receiver, Service]) -> None:
    receiver, service = traced
    assert trace_of(3) not in {span.trace_id.hex() for span in receiver.spans()}
    assert service.logged(trace_id=trace_of(3), status=200)


def test_errors_of_the_service_and_only_they_are_errors(traced: tuple[Receiver, Service]) -> None:
    receiver, _ = traced
    missing, failed = request_span(receiver, 4), request_span(receiver, 5)
    assert missing.name == "GET"
    assert missing.status.code == Status.STATUS_CODE_UNSET
    assert "http.route" not in plain(missing.attributes)
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert plain(failed.attributes)["error.type"] == "503"
    assert plain(failed.attributes)["http.response.status_code"] == 503


def test_without_a_parent_a_trace_begins(traced: tuple[Receiver, Service]) -> None:
    receiver, service = traced
    (record,) = service.logged(request_id="no.parent")
    (span,) = [span for span in receiver.spans() if span.trace_id.hex() == record["trace_id"]][-1:]
    assert span.parent_span_id == b""
    assert span.name == "GET /users/{user_id}"
    assert not any(b"ann" in request.SerializeToString() for request in receiver.requests)


@pytest.mark.slow
def test_a_receiver_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(FLUSH_WITHIN_S + 10))
    before = set(threading.enumerate())
    tracing = Tracing()
    scope: dict[str, Any] = {
        "method": "GET",
        "scheme": "http",
        "headers": [],
        "tim4rec.stages": Stages(),
    }
    span = tracing.begin(scope, RequestContext("a", None, None))
    span.end(scope, 200, time.perf_counter())

    async def close() -> float:
        async with waited() as waiting:
            await tracing.close()
        return waiting.seconds

    assert asyncio.run(close()) < FLUSH_WITHIN_S + 1
    for thread in set(threading.enumerate()) - before:  # it would go on within another test
        thread.join(LONG_S)
        assert not thread.is_alive()
