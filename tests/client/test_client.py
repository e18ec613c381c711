"""The client against a real service process: all routes, both halves, what is lost on the way."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import re
import shutil
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from model.artefact import Artefact
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, Service, free_port, make_artefact
from tim4rec_client import AsyncClient, Client, Interaction, Refused, Unavailable, answers, calls

ITEMS = [f"i{n}" for n in range(20)]
ADMIN_KEY = "of the admin"
OPENAPI = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text("utf-8"))
Call = Callable[..., Any]


class Running:
    """A service on a store that loses nothing it has answered."""

    def __init__(self, folder: Path) -> None:
        self.artefact: Artefact = make_artefact(folder / "model", ITEMS)
        (folder / "store").mkdir()
        options = ("--appendonly", "yes", "--appendfsync", "always")
        self.store = ValkeyServer(folder / "store", *options)
        self.store.start()
        self.service = Service(
            self.artefact.folder, folder / "output", "--redis", self.store.url, store_timeout_s=0.5,
            admin_keys=ADMIN_KEY,
        )  # fmt: skip
        self.service.start()

    def stop(self) -> None:
        self.service.kill()
        self.store.kill()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    found = Running(folder)
    yield found
    found.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=["sync", "async"])
def half(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Caller:
    """Either client, called the same way."""

    def __init__(self, half: str, url: str, transport: Any = None, **options: Any) -> None:
        self._runner = asyncio.Runner() if half == "async" else None
        kind = AsyncClient if self._runner else Client
        self._client: Any = kind(url, transport=transport, **options)

    def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        found = getattr(self._client, name)(*args, **options)
        return self._runner.run(found) if self._runner else found

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *fault: object) -> None:
        self("close")
        if self._runner:
            self._runner.close()


class Network(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The real one, which loses some answers after the service has given them, and some requests.

    Attributes:
        sent: method and path of all requests.
    """

    def __init__(self, loss: float = 0.0, seed: int = 0) -> None:
        self._loss, self._draw = loss, random.Random(seed)
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()
        self.sent: list[tuple[str, str]] = []
        self.users: set[str | None] = set()
        self.lost = 0

    def _may_lose(self) -> None:
        if self._draw.random() < self._loss:
            self.lost += 1
            raise httpx.ReadTimeout("lost on the way")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.method, request.url.raw_path.decode().partition("?")[0]))
        self.users.add(request.headers.get("X-User-Id"))
        self._may_lose()
        answer = self._sync.handle_request(request)
        answer.read()
        self._may_lose()
        return answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.method, request.url.raw_path.decode().partition("?")[0]))
        self.users.add(request.headers.get("X-User-Id"))
        self._may_lose()
        answer = await self._async.handle_async_request(request)
        await answer.aread()
        self._may_lose()
        return answer

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()


def test_every_route_is_there(running: Running, half: str) -> None:
    """A walk through all of them, by what the service answers."""
    network, user, now = Network(), f"ann/{half} é.", BASE_MS / 1000
    with Caller(half, running.service.url, network, api_key=ADMIN_KEY) as call:
        assert call("ready")["status"] == "ready"
        first = Interaction(user, "i1", datetime.fromtimestamp(now, UTC), kind="view", weight=2)
        assert call("post", first)["status"] == "applied"
        assert call("post", first)["status"] == "duplicate"
        rest = [Interaction(user, f"i{n % 7}", now + n) for n in range(1, 8)]
        results = call("post_all", iter(rest), batch=3)
        assert [result["version"] for result in results] == list(range(2, 9))
        at = datetime.fromtimestamp(now + 60, UTC)
        found = call("recommend", user, 3, at=at, exclude=["i9"], explain=True, reasons=2)
        assert (found["version"], found["source"], len(found["items"])) == (8, "model", 3)
        assert len(found["items"][0]["because"]) == 2
        only = call("recommend", user, 9, include=["i8", "i9"], filter='id != "i9"')
        assert [item["item_id"] for item in only["items"]] == ["i8"]
        page = call("recommend", user, 2, paged=True)
        following = call("recommend", user, 2, after=page["next"])
        shown = [item["item_id"] for item in page["items"] + following["items"]]
        assert len(set(shown)) == 4
        plain = call("recommend", user, k=20, at=at, exclude_seen=False)
        assert plain["at"] == at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert call("recommend", user, k=1, at="unknown")["at"] is None
        assert call("recommend_session", [first], 1, at="unknown")["at"] is None
        assert call("rank", user, ["i3"], at="unknown")["at"] is None
        session = call(
            "recommend_session", [first, *rest], 20, at=at, exclude_seen=False, explain=True
        )
        assert len(session["items"][0]["because"]) == 3
        assert [i["item_id"] for i in session["items"]] == [i["item_id"] for i in plain["items"]]
        assert call("recommend_session", ["i1", ("i2", now), "no"], 2)["unknown_items"] == 1
        ranked = call("rank", user, ["i3", "nothing", "i4"], at=at)
        assert [item["known"] for item in ranked["items"]] == [True, True, False]
        assert call("popular", "all", k=2)["source"] in ("training", "all")
        assert len(call("similar", "i3", k=4)["items"]) == 4
        assert call("user", user)["version"] == 8
        events = call("history", user)
        assert [event["event_id"] for event in events] == [i.event_id for i in (first, *rest)]
        assert (events[0]["kind"], events[0]["weight"]) == ("view", 2)
        assert call("history", user, after=6) == events[6:]
        item = f"new/{half}"
        assert call("put_item", item, {"title": "A", "categories": ["x"]})["title"] == "A"
        records = {item: {"title": "B", "attributes": {"price": 3}}, "i5": {"hidden": True}}
        assert call("put_items", records)["written"] == 2
        assert call("item", item)["title"] == "B"
        assert [i["item_id"] for i in call("items", "b", limit=5)["items"]] == [item]
        (with_fields,) = call("items", "b", fields=["price", "colour"])["items"]
        assert with_fields["attributes"] == {"price": 3}
        fields, told = ["price", "colour"], ["no item has an attribute `colour`"]
        for answer in (
            call("recommend", user, 20, fields=fields, exclude_seen=False),
            call("recommend", user, 20, fields=fields, include=[item]),
            call("recommend_session", ["i1"], 20, fields=fields),
            call("rank", user, [item], fields=fields),
            call("similar", "i3", 20, fields=fields),
        ):
            found = {one["item_id"]: one["attributes"] for one in answer["items"]}
            assert (found[item], answer["warnings"]) == ({"price": 3}, told)
        assert call("popular", fields=fields)["items"][0]["attributes"] == {}
        assert call("delete_item", item)["deleted"]
        assert call("delete_item", "i5")["deleted"]
        listed = call("users", user[:4], limit=1000)["users"]
        assert user in [one["user_id"] for one in listed]
        assert call("erase", user) == {"user_id": user, "erased": True}
    assert network.users == {None, quote(user, safe="")}
    methods: dict[tuple[str, str], bool] = {
        (method.upper(), path): any(
            method.upper() == sent and re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), to)
            for sent, to in network.sent
        )
        for path, operations in OPENAPI["paths"].items()
        if not path.startswith("/admin/")  # for who runs the service
        for method in operations
    }
    assert [route for route, sent in methods.items() if not sent] == [("GET", "/livez")]


def test_a_user_has_a_page_after_another(running: Running, half: str) -> None:
    name = f"long-{half}"
    with Caller(half, running.service.url) as call:
        sent = [Interaction(name, ITEMS[n % 20], BASE_MS + n) for n in range(1200)]
        assert {r["status"] for r in call("post_all", sent)} == {"applied"}
        assert [e["event_id"] for e in call("history", name)] == [i.event_id for i in sent]


# -- what is lost ------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_lost_or_stored_twice_on_a_lossy_network(running: Running, half: str) -> None:
    network = Network(loss=0.2, seed=len(half))
    users = [f"lossy-{half}-{n}" for n in range(4)]
    sent = [Interaction(users[n % 4], ITEMS[n % 20], BASE_MS + n) for n in range(60)]
    with Caller(half, running.service.url, network) as call:
        for one in sent[:12]:
            assert call("post", one)["status"] in ("applied", "duplicate")
        results = call("post_all", sent[12:], batch=7)
        assert {result["status"] for result in results} <= {"applied", "duplicate"}
        for name in users:
            own = [one.event_id for one in sent if one.user_id == name]
            assert [event["event_id"] for event in call("history", name)] == own
    assert network.lost > 5


@pytest.mark.slow
def test_a_store_that_goes_away_and_comes_back(running: Running, half: str) -> None:
    name = f"patient-{half}"
    sent = [Interaction(name, ITEMS[n], BASE_MS + n) for n in range(20)]
    with Caller(half, running.service.url, timeout_s=5.0) as call:
        assert call("post", sent[0])["status"] == "applied"
        running.store.kill()
        back = threading.Timer(1.5, running.store.start)
        back.start()
        try:
            started = time.monotonic()
            assert call("post", sent[1])["version"] == 2
            assert time.monotonic() - started > 1
            results = call("post_all", sent[2:], batch=6)
        finally:
            back.join()
        assert [result["version"] for result in results] == list(range(3, 21))
        assert [e["event_id"] for e in call("history", name)] == [i.event_id for i in sent]


def test_a_store_that_stays_away(running: Running, half: str) -> None:
    """Everything has a result, and posting the same again stores all of it once."""
    name = f"impatient-{half}"
    sent = [Interaction(name, ITEMS[n], BASE_MS + n) for n in range(9)]
    with Caller(half, running.service.url, retry_for_s=0.3) as call:
        running.store.kill()
        try:
            with pytest.raises(Unavailable, match="503") as caught:
                call("post", sent[0])
            assert caught.value.status == 503
            assert caught.value.request_id
            results = call("post_all", sent, batch=4)
        finally:
            running.store.start()
        assert [result["status"] for result in results] == ["failed"] * 9
        assert all("not sent" in str(result["detail"]) for result in results[4:])
    with Caller(half, running.service.url) as call:
        call("ready")
        again = call("post_all", sent, batch=4)
        assert {result["status"] for result in again} <= {"applied", "duplicate"}
        assert [e["event_id"] for e in call("history", name)] == [i.event_id for i in sent]


def test_nobody_listens(half: str) -> None:
    started = time.monotonic()
    with Caller(half, f"http://127.0.0.1:{free_port()}", retry_for_s=0.5) as call:
        with pytest.raises(Unavailable, match="GET /readyz: ") as caught:
            call("ready")
        assert caught.value.status is None
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        (result,) = call("post_all", [Interaction("ann", "i1")])
        assert result["status"] == "failed"
    assert time.monotonic() - started < 25, "it tried for as long as by default"


# -- what is refused ---------------------------------------------------------------------


def test_what_the_service_refuses(running: Running, half: str) -> None:
    network = Network()
    with Caller(half, running.service.url, network) as call:
        for name, arguments, status in (
            ("user", ["nobody at all"], 404),
            ("recommend", ["ann", 0], 422),
            ("post", [Interaction("ann", "")], 422),
            ("post_all", [[Interaction("", "i1")]], 422),
            ("items", ["x" * 300], 422),
        ):
            with pytest.raises(Refused, match=str(status)) as caught:
                call(name, *arguments)
            assert caught.value.status == status
            assert caught.value.request_id
        assert len(network.sent) == 5, "what is refused is not sent again"
        one = Interaction("ann", "i1", BASE_MS)
        call("post", one)
        with pytest.raises(Refused, match="event_id"):
            call("post", Interaction("ann", "i2", BASE_MS, one.event_id))
        call("erase", "ann")
    with pytest.raises(httpx.UnsupportedProtocol), Caller(half, "ftp://there") as call:
        call("ready")
    with pytest.raises(ValueError, match="batch"), Caller(half, running.service.url) as call:
        call("post_all", [], batch=0)


@pytest.mark.parametrize(("status", "text"), [(502, "<html>"), (504, ""), (503, "[]")])
def test_something_in_between_answers(half: str, status: int, text: str) -> None:
    def answered(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["X-API-Key"])
        if len(asked) < 3:
            return httpx.Response(status, text=text)
        return httpx.Response(200, json={"status": "ready"})

    asked: list[str] = []
    transport = httpx.MockTransport(answered)
    with Caller(half, "http://test", transport, api_key="the key") as call:
        assert call("ready") == {"status": "ready"}
    assert asked == ["the key"] * 3


def test_a_pause_is_as_long_as_the_service_asks(half: str) -> None:
    replies = [httpx.Response(503, headers={"Retry-After": "1"}), httpx.Response(200, json={})]
    with Caller(half, "http://test", httpx.MockTransport(lambda _: replies.pop(0))) as call:
        started = time.monotonic()
        assert call("ready") == {}
        assert time.monotonic() - started >= 1


# -- slips -------------------------------------------------------------------------------

NAIVE = datetime(2026, 7, 1, 12)
WRONG: list[tuple[str, list[Any], dict[str, Any], str]] = [
    (
        "post",
        [{"user_id": "ann", "item_id": "i1"}],
        {},
        r"an interaction is of type dict: make an "
        r"Interaction\(user_id, item_id, ...\) of it",
    ),
    ("post_all", [[{"user_id": "ann", "item_id": "i1"}]], {}, "an interaction is of type dict"),
    ("post_all", [{"user_id": "ann"}], {}, "interactions is of type dict: give a list"),
    ("post_all", [Interaction("ann", "i1")], {}, "interactions is of type Interaction"),
    ("post_all", [[]], {"batch": "5"}, "batch is of type str: give an int"),
    ("recommend", [["ann", "ben"]], {}, "user_id is of type list: give a str"),
    ("recommend", [7], {}, "user_id is of type int: give a str"),
    ("recommend", ["ann", "5"], {}, "k is of type str: give an int"),
    ("recommend", ["ann", 5.0], {}, "k is of type float: give an int"),
    ("recommend", ["ann"], {"category": "Shoes"}, "category is of type str: give a list of str"),
    ("recommend", ["ann"], {"fields": "price"}, "fields is of type str: give a list of str"),
    ("recommend", ["ann"], {"exclude": [7]}, r"exclude\[0\] is of type int: give a str"),
    ("recommend", ["ann"], {"at": NAIVE}, r"at 2026-07-01 12:00:00 has no time zone: give at.rep"),
    ("recommend", ["ann"], {"at": NAIVE.date()}, "at is of type date: give a datetime"),
    ("recommend_session", ["i1"], {}, "events is of type str: give a list"),
    ("recommend_session", [[{"item_id": "i1"}]], {}, "an event is of type dict"),
    ("recommend_session", [[("i1",)]], {}, "an event is of type tuple"),
    ("recommend_session", [[("i1", NAIVE)]], {}, "timestamp .* has no time zone"),
    ("rank", ["ann", "i1"], {}, "item_ids is of type str: give a list of str"),
    ("rank", ["ann", ["i1", None]], {}, r"item_ids\[1\] is of type NoneType: give a str"),
    ("similar", ["i1", "3"], {}, "k is of type str"),
    ("items", [], {"category": "Shoes"}, "category is of type str"),
    ("history", [7], {}, "user_id is of type int"),
    ("erase", [["ann"]], {}, "user_id is of type list"),
    ("put_item", ["i1", [("title", "A")]], {}, "record is of type list: give a dict"),
    ("put_items", [[{"item_id": "i1"}]], {}, "records is of type list: give a dict, by item id"),
    ("put_items", [{"i1": "A"}], {}, r"records\['i1'\] is of type str"),
]


@pytest.mark.parametrize(("name", "given", "named", "told"), WRONG)
def test_a_slip_is_told_before_anything_is_sent(
    half: str, name: str, given: list[Any], named: dict[str, Any], told: str
) -> None:
    network = Network()
    with (
        Caller(half, "http://127.0.0.1:1", network, retry_for_s=0) as call,
        pytest.raises((TypeError, ValueError), match=told),
    ):
        call(name, *given, **named)
    assert not network.sent


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"user_id": 7}, "user_id is of type int: give a str"),
        ({"item_id": None}, "item_id is of type NoneType: give a str"),
        ({"timestamp": NAIVE}, "timestamp 2026-07-01 12:00:00 has no time zone"),
        ({"timestamp": NAIVE.date()}, "timestamp is of type date"),
    ],
)
def test_an_interaction_with_a_slip(given: dict[str, Any], told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        Interaction(**({"user_id": "ann", "item_id": "i1"} | given))


# -- its types ---------------------------------------------------------------------------


def test_both_clients_have_all_requests() -> None:
    functions = {
        name: found
        for name, found in vars(calls).items()
        if inspect.isfunction(found) and found.__module__ == calls.__name__
    }
    for name, call in functions.items():
        if name.startswith("_"):
            continue
        for kind in (Client, AsyncClient):
            method = getattr(kind, name)
            assert method.__doc__ == call.__doc__
            own = list(inspect.signature(method).parameters.values())
            assert own[1:] == list(inspect.signature(call).parameters.values())


SCHEMAS = {
    "Stored": "InteractionResult",
    "CatalogueItem": "CatalogueItem",
    **{
        name: name
        for name in (
            "BatchResult", "Reason", "LivePart", "RecommendedItem", "Recommendations", "RankedItem",
            "RankedItems", "SessionRecommendations", "SimilarItem", "SimilarItems", "PopularItem",
            "PopularItems", "User", "ListedUser", "UserPage", "LoggedEvent", "Erased", "ListedItem",
            "ItemPage", "ItemsWritten", "ItemDeleted",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in vars(answers) if name[0].isupper()])
def test_answers_have_the_fields_of_the_service(name: str) -> None:
    kind = getattr(answers, name)
    if not typing.is_typeddict(kind) or name == "Ready":
        return
    schema = OPENAPI["components"]["schemas"][SCHEMAS[name]]
    assert set(typing.get_type_hints(kind)) == set(schema["properties"])
    for field, hint in typing.get_type_hints(kind).items():
        values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        if values is not None:
            assert set(values) == set(schema["properties"][field]["enum"])
