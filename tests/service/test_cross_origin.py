"""Pages of other origins ask a real service as a browser lets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact

KEY = "of a caller"
SHOP = "https://shop.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type, x-api-key",
}
PATHS = ["/recommend?user_id=u", "/interactions", "/users/u", "/items/i0", "/admin/model", "/none"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("pages") / "model", ["i0", "i1"]).folder


def running(artefact: Path, store: ValkeyServer, **settings: str) -> Iterator[Service]:
    service = Service(artefact, store.folder / "output", redis_url=store.url, **settings)
    try:
        service.start()
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="module")
def service(artefact: Path, store: ValkeyServer) -> Iterator[Service]:
    named = f"http://localhost:3000, {SHOP}"
    yield from running(artefact, store, api_keys=KEY, cors_origins=named)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def allowed(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


@pytest.mark.parametrize("path", PATHS)
def test_a_browser_may_ask_whether_it_may_ask(client: httpx.Client, path: str) -> None:
    """Without a key, which it does not send then; nothing is looked up."""
    answer = client.options(path, headers=PREFLIGHT | {"Origin": SHOP})
    assert answer.status_code == 200
    assert allowed(answer) == SHOP
    assert "X-API-Key" in answer.headers["access-control-allow-headers"]
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert "server-timing" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("origin", ["https://evil.example", f"{SHOP}.evil.example", "null", ""])
def test_others_may_not(client: httpx.Client, origin: str) -> None:
    answer = client.options("/interactions", headers=PREFLIGHT | {"Origin": origin})
    assert allowed(answer) is None
    for key in (KEY, "wrong"):
        answer = client.get("/popular", headers={"X-API-Key": key, "Origin": origin})
        assert answer.status_code == (200 if key == KEY else 401)
        assert allowed(answer) is None


def test_a_page_reads_answers_and_errors(client: httpx.Client) -> None:
    key = {"X-API-Key": KEY}
    event = {"user_id": "u", "item_id": "i0"}
    answers = [
        (client.get("/recommend?user_id=u", headers=key | {"Origin": SHOP}), 200),
        (client.post("/interactions", json=event, headers=key | {"Origin": SHOP}), 200),
        (client.get("/users/nobody", headers=key | {"Origin": SHOP}), 404),
        (client.get("/recommend", headers=key | {"Origin": SHOP}), 422),
        (client.get("/recommend?user_id=u", headers={"Origin": SHOP}), 401),
    ]
    for answer, status in answers:
        assert answer.status_code == status
        assert allowed(answer) == SHOP
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    assert allowed(client.get("/popular", headers=key)) is None


def test_without_the_setting_no_page_may(artefact: Path, store: ValkeyServer) -> None:
    for service in running(artefact, store, api_keys=KEY):
        with service.client() as client:
            answer = client.options("/interactions", headers=PREFLIGHT | {"Origin": SHOP})
            assert (answer.status_code, allowed(answer)) == (401, None)
            answer = client.get("/popular", headers={"X-API-Key": KEY, "Origin": SHOP})
            assert (answer.status_code, allowed(answer)) == (200, None)


def test_any_page_may_where_there_are_no_keys(artefact: Path, store: ValkeyServer) -> None:
    for service in running(artefact, store, cors_origins="*"):
        with service.client() as client:
            answer = client.get("/popular", headers={"Origin": "https://any.example"})
            assert (answer.status_code, allowed(answer)) == (200, "*")
