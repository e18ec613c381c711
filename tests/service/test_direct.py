"""What is answered directly is answered as the framework would."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from model.gaps import UNKNOWN_TIME
from service.http import problems
from service.http.access_control import AccessControl
from service.http.bodies import ReadBodies
from service.http.dependencies import ServicesDep
from service.http.direct import AnswerDirectly
from service.http.problems import ProblemError
from service.http.schemas import Id, Interaction, InteractionBatch
from service.http.times import AssumedTime, RequestTime
from service.keys import Keys
from service.settings import Settings
from service.store.errors import StoreUnavailable
from tests.depth import examples


class Echo(BaseModel):
    said: str
    at: AssumedTime = UNKNOWN_TIME
    nothing: None = None


router = APIRouter()
called: list[str] = []
answering = 0


class Options(BaseModel):
    name: Id
    k: int = Field(10, ge=1)
    several: list[str] | None = None
    flag: bool = True
    at: RequestTime | None = None


@router.get("/things", response_model_exclude_none=True)
async def things(query: Annotated[Options, Query()], services: ServicesDep) -> Echo:
    called.append(query.name)
    at = UNKNOWN_TIME if query.at is None else query.at
    return Echo(said=f"{query!r} {services.settings.max_k}", at=at)


@router.post("/things", status_code=201)
async def add(body: Interaction, services: ServicesDep) -> Echo:
    called.append(body.user_id)
    if body.item_id == "full":
        raise ProblemError(409, "item_id: full", field="item_id")
    if body.item_id == "away":
        raise StoreUnavailable("the store is away")
    return Echo(said=repr(body))


@router.post("/many")
async def many(body: InteractionBatch, services: ServicesDep) -> Echo:
    return Echo(said=repr(body))


@router.get("/users/{name}")
async def by_path(name: str, services: ServicesDep) -> Echo:
    return Echo(said=name)


@cache
def app(direct: bool, *keys: str) -> FastAPI:
    made = FastAPI()
    made.state.services = SimpleNamespace(settings=SimpleNamespace(max_k=9))
    made.include_router(router)
    problems.install(made)
    if direct:
        made.add_middleware(Counting)
        made.add_middleware(AnswerDirectly, owner=made, routers=[router])
    made.add_middleware(ReadBodies, settings=Settings(artefact=Path()), routers=[router])
    made.add_middleware(
        AccessControl, settings=Settings(artefact=Path()), keys=Keys(keys), admin_keys=Keys()
    )
    return made


class Counting:
    """What is left to the framework."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        global answering
        answering += 1
        await self.app(scope, receive, send)


def ask(one: FastAPI, method: str, url: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    async def send() -> tuple[int, dict[str, str], bytes]:
        transport = httpx.ASGITransport(one)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.request(method, url, **options)
        return answer.status_code, dict(answer.headers), answer.content

    return asyncio.run(send())


def same(method: str, url: str, *keys: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    called.clear()
    theirs, once = ask(app(False, *keys), method, url, **options), list(called)
    ours = ask(app(True, *keys), method, url, **options)
    assert ours == theirs
    assert called == 2 * once  # never twice for one request
    return ours


names = st.sampled_from(["name", "k", "several", "flag", "at", "other", ""])
values = st.sampled_from(
    ["u", "", "1", "0", "-3", "+7", " 8 ", "1e3", "12.0", "1_0", "true", "off", "None", "%20",
     "unknown", "a+b", "%ff", "%E2%82%AC", "2026-01-31T12:00:00Z", "1769860800", "nan", "x" * 300,
     "a=b", "a;b"]
)  # fmt: skip


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(names, st.none() | values), max_size=5))
@example([("name", "u"), ("k", "3"), ("several", "a"), ("several", "b"), ("flag", "no")])
@example([("name", "first"), ("name", "last")])
@example([("name", "u"), ("at", "2026-01-31T12:00:00Z")])
@example([("name", "u"), ("at", "unknown")])
def test_any_query(pairs: list[tuple[str, str | None]]) -> None:
    query = "&".join(name if value is None else f"{name}={value}" for name, value in pairs)
    same("GET", f"/things?{query}")


texts = st.text(max_size=4) | st.sampled_from(["full", "away", "\ud800"])
json_values = texts | st.none() | st.integers() | st.floats() | st.booleans() | st.just([])
bodies = st.dictionaries(
    st.sampled_from(["user_id", "item_id", "timestamp", "event_id", "other"]), json_values
)


@settings(max_examples=examples(40))
@given(
    st.fixed_dictionaries({"user_id": texts, "item_id": texts}) | bodies,
    st.sampled_from(["application/json", "Application/JSON; charset=utf-8", "text/plain", None,
                     "application/problem+json", "json"]),
    st.sampled_from(["", "?k=2", "?k=x", "?unknown=1", "?&"]),
)  # fmt: skip
def test_any_body(body: dict[str, Any], content_type: str | None, query: str) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    content = json.dumps(body).encode()
    same("POST", f"/things{query}", headers=headers, content=content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'{"user_id": "a", "item_id": "b"} x', b"\xff", b"\xef\xbb\xbf{}",
     b'{"user_id":"a","item_id":"b","timestamp":NaN}',
     b'{"user_id":"a","user_id":"c","item_id":"b"}',
     '{"user_id":"ä","item_id":"b"}'.encode("utf-16"), b'{"user_id":"a","item_id":"b"}'],
)  # fmt: skip
def test_any_bytes(content: bytes) -> None:
    same("POST", "/things", headers={"Content-Type": "application/json"}, content=content)


@pytest.mark.parametrize(
    ("method", "url"),
    [("DELETE", "/things"), ("HEAD", "/things?name=u"), ("GET", "/users/u"), ("GET", "/nowhere"),
     ("GET", "/things/"), ("OPTIONS", "/things")],
)  # fmt: skip
def test_other_routes_and_methods(method: str, url: str) -> None:
    same(method, url)


def test_a_key_is_asked_for() -> None:
    body = {"user_id": "u", "item_id": "i"}
    for key, status in (("right", 201), ("wrong", 401), ("ö", 401), (None, 401)):
        headers = {} if key is None else {"X-API-Key": key.encode()}
        found, _, _ = same("POST", "/things", "other", "right", json=body, headers=headers)
        assert found == status
    assert same("GET", "/things", "right")[0] == 401  # before what is wrong with its query


def test_well_formed_requests_do_not_reach_the_framework() -> None:
    global answering
    answering = 0
    one = app(True)
    body = {"user_id": "u", "item_id": "i"}
    ask(one, "GET", "/things?name=u&k=3&several=a&flag=false")
    ask(one, "POST", "/things", json=body)
    ask(one, "POST", "/things", json=body | {"item_id": "full"})
    ask(one, "POST", "/many", json={"interactions": [body, body]})
    assert answering == 0
    ask(one, "GET", "/users/u")
    assert answering == 1


@pytest.mark.parametrize("content_type", ["application/json", "application/@ +json; a=b"])
@pytest.mark.parametrize("query", ["", "?&&"])
def test_faults_beyond_number_do_not_reach_the_framework(content_type: str, query: str) -> None:
    global answering
    answering = 0
    content = json.dumps({"interactions": [{}] * 500}).encode()
    headers = {"Content-Type": content_type}
    status, _, answer = ask(app(True), "POST", f"/many{query}", headers=headers, content=content)
    assert status == 422
    assert json.loads(answer)["more_errors"] == 980
    assert answering == 0


def test_a_body_in_pieces_and_one_cut_short() -> None:
    whole = b'{"user_id": "u", "item_id": "i"}'
    for sent, status in (([whole[:9], whole[9:20], whole[20:]], 201), ([whole[:9], None], 400)):
        assert asyncio.run(_answer(app(True), sent)) == status
        assert asyncio.run(_answer(app(False), sent)) == status


async def _answer(one: FastAPI, pieces: list[bytes | None]) -> int:
    messages: list[dict[str, Any]] = [
        {"type": "http.disconnect"}
        if piece is None
        else {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)}
        for place, piece in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/things", "query_string": b"",
             "headers": [(b"content-type", b"application/json"),
                         (b"transfer-encoding", b"chunked")],
             "root_path": ""}  # fmt: skip
    await one(scope, receive, send)
    return int(sent[0]["status"])
