"""GET /users: every user of a store once, page by page, for whoever has an admin key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from model.times import iso
from service.bulk.user_listing import NoSuchPlace, UserListing
from service.catalogue.cursor import UsersPlace
from service.store.client import Store
from service.store.event_log import EventLog
from tests.service.conftest import ValkeyCluster, ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact, user_path
from tests.service.test_api import problem

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ADMIN = {"X-API-Key": "of the admin"}
KEYS = {"api_keys": (SecretStr("of a caller"),), "admin_keys": (SecretStr("of the admin"),)}
ODD = ["a/b", "a*", "a[b]", "ü", "ünder {braces}", "new\nline"]
USERS = {user: 1 + n % 3 for n, user in enumerate([*(f"u{n}" for n in range(60)), *ODD])}
"""And how many interactions each has."""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("users") / "model", ["i0", "i1", "i2"]).folder


async def fill(client: httpx.AsyncClient) -> None:
    events = [
        {"user_id": user, "item_id": f"i{n}", "timestamp": BASE_MS + 1000 * n}
        for user, number in USERS.items()
        for n in range(number)
    ]
    answer = await client.post("/interactions/batch", json={"interactions": events})
    assert answer.raise_for_status().json()["accepted"] == len(events)


async def pages(client: httpx.AsyncClient, **query: Any) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    while True:
        answer = await client.get("/users", params=query, headers=ADMIN)
        page = answer.raise_for_status().json()
        found.append(page["users"])
        if page["next"] is None:
            return found
        query["after"] = page["next"]


def listed(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Users and what is said of each, the same where one is said twice."""
    users = {user["user_id"]: user for page in found for user in page}
    assert all(users[user["user_id"]] == user for page in found for user in page)
    return users


async def _all(artefact: Path, url: str) -> None:
    async with in_process(artefact, url, snapshot_every=1, **KEYS) as client:
        client.headers["X-API-Key"] = "of a caller"
        await fill(client)
        for limit in (1, 7, 1000):
            found = await pages(client, limit=limit)
            assert listed(found) == {
                user: {"user_id": user, "version": number,
                       "last_time": iso(BASE_MS + 1000 * (number - 1))}
                for user, number in USERS.items()
            }  # fmt: skip
            assert max(map(len, found)) < limit + 64
        assert len(await pages(client, limit=7)) > 3
        for prefix in ("u", "u1", "a", "a*", "ü", "ünder {", "nobody", "U"):
            found = await pages(client, limit=5, starting_with=prefix)
            assert set(listed(found)) == {user for user in USERS if user.startswith(prefix)}


def test_every_user_is_on_a_page(run: Run, artefact: Path, store_url: str) -> None:
    run(_all(artefact, store_url))


def test_every_user_of_a_cluster(run: Run, artefact: Path, valkey_cluster: ValkeyCluster) -> None:
    run(_all(artefact, valkey_cluster.url))


async def _changing(artefact: Path, url: str) -> None:
    """Who stays is listed, whoever else comes and goes."""
    async with in_process(artefact, url, admin_keys=KEYS["admin_keys"]) as client:
        await fill(client)
        query: dict[str, Any] = {"limit": 5}
        gone, new, seen = list(USERS)[:30], 0, set[str]()
        while True:
            page = (await client.get("/users", params=query, headers=ADMIN)).json()
            seen |= {user["user_id"] for user in page["users"]}
            if page["next"] is None:
                break
            query["after"] = page["next"]
            for user in [gone.pop() for _ in range(min(3, len(gone)))]:
                (await client.delete(user_path(user))).raise_for_status()
            for _ in range(20):  # enough for the store's own table to grow meanwhile
                new += 1
                event = {"user_id": f"new {new}", "item_id": "i0"}
                (await client.post("/interactions", json=event)).raise_for_status()
        assert set(list(USERS)[30:]) <= seen


def test_who_stays_is_listed_while_others_come_and_go(
    run: Run, artefact: Path, store_url: str
) -> None:
    run(_changing(artefact, store_url))


async def _refused(artefact: Path, url: str) -> None:
    async with in_process(artefact, url, **KEYS) as client:
        problem(await client.get("/users"), 401)
        problem(await client.get("/users", headers={"X-API-Key": "of a caller"}), 401)
        client.headers.update(ADMIN)
        for query in ("limit=0", "limit=1001", "starting_with=" + "x" * 257, "after=MTIz",
                      "after=", "afer=x"):  # fmt: skip
            problem(await client.get(f"/users?{query}"), 422, query.partition("=")[0])
        problem(await client.get("/users/ann"), 401)  # an admin key opens nothing else
    async with in_process(artefact, url, api_keys=KEYS["api_keys"]) as client:
        problem(await client.get("/users", headers={"X-API-Key": "of a caller"}), 403)


def test_only_an_admin_key_opens_it(run: Run, artefact: Path, store_url: str) -> None:
    run(_refused(artefact, store_url))


async def _cursors_of_others(artefact: Path, url: str) -> None:
    async with in_process(artefact, url, admin_keys=KEYS["admin_keys"]) as client:
        items = (await client.get("/items", params={"limit": 1})).json()["next"]
        answer = await client.get("/users", params={"after": items}, headers=ADMIN)
        problem(answer, 422, "after")


def test_a_cursor_of_another_list_is_refused(run: Run, artefact: Path, store_url: str) -> None:
    run(_cursors_of_others(artefact, store_url))


async def _gone(url: str) -> None:
    async with Store(url) as store:
        with pytest.raises(NoSuchPlace):
            await UserListing(EventLog(store), 1).page(UsersPlace("gone:1", "7"), 10, "")


def test_a_server_that_is_no_more(run: Run, valkey_cluster: ValkeyCluster) -> None:
    run(_gone(valkey_cluster.url))


async def _damaged(artefact: Path, valkey: ValkeyServer) -> None:
    async with in_process(artefact, valkey.url, admin_keys=KEYS["admin_keys"]) as client:
        await fill(client)
        with valkey.client() as store:
            store.hdel("tim4rec:u:u1", "e2")
        users = listed(await pages(client))
        assert users.keys() == USERS.keys()
        assert users["u1"] == {"user_id": "u1", "version": None, "last_time": None}
        assert users["u0"]["version"] == 1


def test_a_damaged_record_is_listed(run: Run, artefact: Path, valkey: ValkeyServer) -> None:
    run(_damaged(artefact, valkey))
