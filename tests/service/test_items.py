"""The catalogue of real service processes on real stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from model.artefact import Artefact, save_artefact
from model.items import Items
from model.times import iso
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.processes import BASE_MS, Service, in_process, make_artefact
from tests.service.test_api import problem
from tests.waited import LONG_S, at_last

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"i{n}" for n in range(12)]
CATEGORIES = [["odd"] if n % 2 else ["even", "small"] if n < 6 else ["even"] for n in range(12)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("items") / "model"
    made = make_artefact(folder, ITEMS)
    items = Items(ITEMS, made.items.popularity, [f"Film {n}" for n in range(12)], CATEGORIES)
    save_artefact(folder, made.model, items, {}, "a test")
    return made


@pytest.fixture(scope="module")
def service(artefact: Artefact, store: ValkeyServer) -> Iterator[Service]:
    running = Service(
        artefact.folder, store.folder / "output", "--workers", "2", redis_url=store.url,
        exactness_every_s=0, max_batch_items=50, max_item_bytes=1000,
    )  # fmt: skip
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Each request on a connection of its own, so that both workers get some."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with service.client(limits=limits) as client:
        before = listing(client)
        yield client
        at_last(lambda: forget_all(client, before))


def listing(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.get("/items", params={"limit": 1000, "unavailable": True})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return found


def forget_all(client: httpx.Client, before: list[dict[str, Any]]) -> None:
    """Takes back all records; fails until both workers know."""
    seen = [listing(client) for _ in range(8)]
    for item_id in {item["item_id"] for found in seen for item in found}:
        client.delete(f"/items/{quote(item_id, safe='')}").raise_for_status()
    assert all(found == before for found in seen)


def put(client: httpx.Client, item_id: str, **record: Any) -> dict[str, Any]:
    answer = client.put(f"/items/{item_id}", json=record)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_record_lies_over_what_the_artefact_says(client: httpx.Client) -> None:
    assert client.get("/items/i1").json() == {
        "item_id": "i1",
        "title": "Film 1",
        "categories": ["odd"],
        "available": True,
        "known": True,
        "recorded": False,
        "attributes": {},
        "hidden": False,
        "available_from": None,
        "available_until": None,
        "similar_to": [],
    }
    said = {"title": "Another", "attributes": {"price": 3, "tags": ["a", "b"], "size": {"w": 1}}}
    answer = put(client, "i1", **said, available_from=BASE_MS, available_until=BASE_MS + 1000)
    assert answer == client.get("/items/i1").json()
    expected = said | {
        "categories": ["odd"],
        "available": False,
        "recorded": True,
        "available_from": iso(BASE_MS),
        "available_until": iso(BASE_MS + 1000),
    }
    assert {name: answer[name] for name in expected} == expected
    # In place of all that was said before.
    assert put(client, "i1", categories=[])["title"] == "Film 1"
    assert client.get("/items/i1").json()["categories"] == []
    assert client.delete("/items/i1").json() == {"item_id": "i1", "deleted": True}
    assert client.delete("/items/i1").json() == {"item_id": "i1", "deleted": False}
    assert client.get("/items/i1").json()["title"] == "Film 1"


def test_ids_may_hold_anything(client: httpx.Client) -> None:
    for item in ("a/b", "new\nline", "ü {x}", "batch"):
        path = f"/items/{item}".replace("a/b", "a%2Fb").replace("\n", "%0A").replace("{", "%7B")
        assert client.put(path, json={"title": "T"}).json()["item_id"] == item
        assert client.get(path).json()["title"] == "T"
        assert client.get(path).json()["known"] is False
        assert client.delete(path).json() == {"item_id": item, "deleted": True}
        problem(client.get(path), 404, "item_id")


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"price": 3}, "price"),
        ({"hidden": "perhaps"}, "hidden"),
        ({"attributes": {"category": 1}}, "category"),
        ({"attributes": {"a`b": 1}}, "a`b"),
        ({"attributes": {"n": 10**400}}, "n"),
        ({"attributes": {"a": [[[[[[[[[1]]]]]]]]]}}, "nested"),
        ({"available_from": 2_000_000, "available_until": 1_000_000}, "available_until"),
        ({"title": "x" * 2000}, "2012 bytes, at most 1000"),
        ({"attributes": {"n": [10**9] * 4000}}, "44022 bytes, at most 1000"),
        ({"attributes": {"n": [1] * 100_000}}, "n: at most 5000"),
        ({"attributes": {"n": {"m": "x" * 100_000}}}, "far too large, at most 1000"),
        ({"similar_to": [""]}, "similar_to"),
    ],
)
def test_a_wrong_record_is_refused(
    client: httpx.Client, record: dict[str, Any], named: str
) -> None:
    document = problem(client.put("/items/i1", json=record), 422)
    assert named in str(document)
    assert client.get("/items/i1").json()["recorded"] is False


def test_many_at_once(client: httpx.Client) -> None:
    batch = [{"item_id": f"n{n}", "title": f"New {n}"} for n in range(50)]
    answer = client.post("/items/batch", json={"items": [*batch[:-1], {"item_id": "n0"}]})
    assert answer.json() == {"written": 49}
    assert client.get("/items/n0").json()["title"] is None
    assert client.get("/items/n48").json()["title"] == "New 48"
    problem(client.post("/items/batch", json={"items": [*batch, batch[0]]}), 422, "items")
    problem(client.post("/items/batch", json={"items": [{"title": "x"}]}), 422, "item_id")


def test_words_in_any_order_without_accents_or_the_id(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    titles = {"x-1": "Kännchen grün", "x-2": "Grünes Kännchen", "x-3": "Crème brûlée x-1"}
    batch = [{"item_id": item, "title": title} for item, title in titles.items()]

    async def found(client: httpx.AsyncClient, text: str, limit: int) -> list[str]:
        items: list[str] = []
        query: dict[str, Any] = {"q": text, "limit": limit, "unavailable": True}
        while True:
            page = (await client.get("/items", params=query)).raise_for_status().json()
            items += [item["item_id"] for item in page["items"]]
            if page["next"] is None:
                return items
            query["after"] = page["next"]

    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            (await client.post("/items/batch", json={"items": batch})).raise_for_status()
            for limit in (1, 20):
                assert await found(client, "kannchen grun", limit) == ["x-1", "x-2"]
                assert await found(client, "GRÜN  Kännchen", limit) == ["x-2", "x-1"]
                assert await found(client, "brulee creme", limit) == ["x-3"]
                assert await found(client, "x-1", limit) == ["x-1", "x-3"]
                assert await found(client, "kannchen creme", limit) == []

    run(main())


def test_every_worker_goes_on_with_a_list(client: httpx.Client) -> None:
    """Each request is on a connection of its own, and so at either worker."""
    for _ in range(4):
        listed: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = client.get("/items", params={"limit": 2, **after}).raise_for_status().json()
            listed += [item["item_id"] for item in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert sorted(listed) == sorted(ITEMS)
        shown: list[str] = []
        query: dict[str, Any] = {"user_id": "nobody", "k": 3, "paged": True}
        while True:
            answer = client.get("/recommend", params=query).raise_for_status().json()
            shown += [item["item_id"] for item in answer["items"]]
            if "next" not in answer:
                break
            query["after"] = answer["next"]
        assert sorted(shown) == sorted(ITEMS)


def answers(client: httpx.Client) -> Iterator[tuple[str, list[str]]]:
    """Items of all ways to be given some, each asked often enough to meet both workers."""
    for user in ("known", "nobody"):
        for _ in range(8):
            query = {"user_id": user, "k": 50, "exclude_seen": False}
            answer = client.get("/recommend", params=query).raise_for_status().json()
            assert answer["source"] == ("model" if user == "known" else "popular")
            yield user, [item["item_id"] for item in answer["items"]]
    session = {"events": [{"item_id": "i3"}], "k": 50, "exclude_seen": False}
    for _ in range(8):
        answer = client.post("/recommend/session", json=session).raise_for_status().json()
        yield "session", [item["item_id"] for item in answer["items"]]
    for _ in range(8):
        listed = client.get("/items", params={"limit": 1000}).raise_for_status().json()["items"]
        yield "listing", [item["item_id"] for item in listed]


@pytest.mark.slow
def test_what_is_hidden_or_over_is_in_no_answer_of_any_worker(client: httpx.Client) -> None:
    client.post("/interactions", json={"user_id": "known", "item_id": "i2"}).raise_for_status()
    for _, items in answers(client):
        assert sorted(items) == sorted(ITEMS)

    def without(*left_out: str) -> None:
        for way, items in answers(client):
            assert sorted(items) == sorted({*ITEMS} - {*left_out}), way

    now = round(time.time() * 1000)
    put(client, "i0", hidden=True)
    put(client, "i1", available_until=now - 1)
    put(client, "i2", available_from=now + 10**9)
    put(client, "i3", available_from=now - 10**9, available_until=now + 10**9)
    for soon_ms in (2000, 8000, 32_000):  # all is to be asked before then
        turn = round(time.time() * 1000) + soon_ms
        put(client, "i4", available_until=turn)
        put(client, "i5", available_from=turn)
        time.sleep(0.9)
        try:
            without("i0", "i1", "i2", "i5")
            break
        except AssertionError:
            if time.time() * 1000 < turn:
                raise
    else:
        pytest.fail("no answer came in time")
    time.sleep(max(0.0, turn / 1000 + 0.9 - time.time()))
    at_last(lambda: without("i0", "i1", "i2", "i4"))
    client.delete("/items/i0").raise_for_status()
    time.sleep(0.9)
    at_last(lambda: without("i1", "i2", "i4"))


def test_the_worker_that_was_told_knows_at_once(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    async def main() -> None:
        slow = {"catalogue_poll_s": 3600, "exactness_every_s": 0}
        async with in_process(artefact.folder, valkey.url, **slow) as client:
            for hidden in (True, False, True):
                await client.put("/items/i7", json={"hidden": hidden})
                answer = await client.get("/recommend", params={"user_id": "nobody", "k": 50})
                found = [item["item_id"] for item in answer.json()["items"]]
                assert ("i7" in found) is not hidden

    run(main())


def test_a_restart_keeps_the_catalogue(run: Run, artefact: Artefact, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            await client.put("/items/i7", json={"hidden": True, "title": "Seven"})
            await client.put("/items/new", json={"categories": ["odd"]})
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            answer = await client.get("/recommend", params={"user_id": "nobody", "k": 50})
            found = [item["item_id"] for item in answer.json()["items"]]
            assert "i7" not in found
            assert found[-1] == "new"
            assert (await client.get("/items/i7")).json()["title"] == "Seven"
            said = (await client.get("/metrics")).text
            assert 'tim4rec_catalogue_items{kind="recorded"} 2.0' in said
            assert 'tim4rec_catalogue_items{kind="new"} 1.0' in said
            assert 'tim4rec_catalogue_items{kind="unavailable"} 1.0' in said

    run(main())


def test_on_a_cluster(run: Run, artefact: Artefact, valkey_cluster: ValkeyCluster) -> None:
    async def main() -> None:
        settings = {"exactness_every_s": 0, "catalogue_poll_s": 0.05}
        async with (
            in_process(artefact.folder, valkey_cluster.url, **settings) as one,
            in_process(artefact.folder, valkey_cluster.url, **settings) as other,
        ):
            batch = [{"item_id": f"n{n}"} for n in range(100)]
            await one.post("/items/batch", json={"items": batch})
            await one.put("/items/i7", json={"hidden": True})
            expected = {*ITEMS, *(f"n{n}" for n in range(100))} - {"i7"}
            async with asyncio.timeout(LONG_S):
                for client in (one, other):
                    found = set()
                    while found != expected:
                        query = {"user_id": "nobody", "k": 200}
                        answer = await client.get("/recommend", params=query)
                        found = {item["item_id"] for item in answer.json()["items"]}
        keys = [len(node.ask("KEYS", "tim4rec:items:*")) for node in valkey_cluster.primaries]
        assert min(keys) > 5
        assert sum(keys) <= 64

    run(main())
