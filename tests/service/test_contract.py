"""The OpenAPI document kept: whatever it allows or forbids is sent, and answered as it says.

CASES examples of each operation and way of making them; `make contract` takes many more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact

CASES = int(os.environ.get("CONTRACT_CASES", "4"))
KEY = "the key"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
sent: dict[str, int] = {}

schema = schemathesis.openapi.from_dict(create_app(Settings(artefact="none")).api.openapi())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, store: ValkeyServer) -> Iterator[Service]:
    artefact = make_artefact(
        tmp_path_factory.mktemp("contract") / "model", [f"i{n}" for n in range(20)]
    )
    running = Service(
        artefact.folder, store.folder / "output", redis_url=store.url, api_keys=KEY,
        admin_keys=KEY, exactness_every_s=0,
    )  # fmt: skip
    try:
        running.start()
        yield running
        assert not running.logged(level="ERROR")
        assert "Traceback" not in running.said()
    finally:
        running.kill()


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_every_answer_is_as_documented(case: Any, service: Service) -> None:
    sent[case.operation.label] = sent.get(case.operation.label, 0) + 1
    answer = case.call(base_url=service.url, headers={"X-API-Key": KEY}, timeout=30)
    if answer.status_code == 431:  # more than max_head_bytes of parameters, right or wrong
        assert answer.headers["content-type"] == ["application/problem+json"]
        return
    # In a URL everything is text: what was made wrong there may be right again.
    body = [negative_data_rejection] if case.method in ("POST", "PUT") else []
    case.validate_response(answer, checks=CHECKS + body)


def test_every_operation_is_asked() -> None:
    document = schema.raw_schema["paths"]
    operations = {f"{m.upper()} {path}" for path, ms in document.items() for m in ms}
    print(f"{sum(sent.values())} cases of {len(sent)} operations")
    assert {found.ok().label for found in schema.get_all_operations()} == operations
