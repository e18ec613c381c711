"""The page's files as the service answers them."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import tomllib
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from model.artefact import Artefact, save_artefact
from model.items import Items
from service.observe.exposition import exposition
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, ROOT, in_process, make_artefact
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]
FOLDER = ROOT / "service" / "http" / "page"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("page") / "model", ["a", "b", "c"])


def test_its_files(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    """Open without a key, checked by browsers with an ETag, and closed to all but themselves."""

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url, api_keys="secret") as client:
            assert (await client.get("/recommend?user_id=u")).status_code == 401
            paths = {"/": FOLDER / "index.html"}
            paths |= {f"/page/{file.name}": file for file in FOLDER.iterdir()}
            etags = set()
            for path, file in paths.items():
                answer = await client.get(path)
                assert answer.status_code == 200, path
                assert answer.content == file.read_bytes()
                kind = TYPES[file.suffix[1:]]
                assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
                assert answer.headers["Cache-Control"] == "no-cache"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                rules = answer.headers["Content-Security-Policy"].split("; ")
                assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(rules)
                assert {"frame-ancestors 'none'", "require-trusted-types-for 'script'"} <= set(
                    rules
                )
                assert "img-src 'self' https:" in rules  # pictures that items name, no more
                others = [rule for rule in rules if not rule.startswith("img-src")]
                assert not re.search("unsafe|http|data:", " ".join(others))
                etag = answer.headers["ETag"]
                etags.add(etag)
                for known in (etag, f'W/{etag}, "other"', f'"other", {etag}'):
                    again = await client.get(path, headers={"If-None-Match": known})
                    assert (again.status_code, again.content) == (304, b"")
                    assert again.headers["ETag"] == etag
                other = await client.get(path, headers={"If-None-Match": '"other"'})
                assert other.content == answer.content
                head = await client.head(path)
                assert head.status_code == 200
                assert head.headers["Content-Length"] == str(file.stat().st_size)
            assert len(etags) == len(paths) - 1  # index.html has two
            for nothing in (
                "/page/",
                "/page/nothing.js",
                "/page/..%2Fapp.py",
                "/page/%2Fetc%2Fpasswd",
            ):
                assert (await client.get(nothing)).status_code == 404, nothing

    run(check())


def test_its_metrics_are_made_once_a_second(
    artefact: Artefact, valkey: ValkeyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages ask, at once or one after the other; and never without a key."""

    async def check() -> None:
        made: list[float] = []

        def counted() -> tuple[bytes, str]:
            made.append(time.monotonic())
            return exposition()

        monkeypatch.setattr("service.http.routes.page.exposition", counted)
        async with in_process(artefact.folder, valkey.url, api_keys="secret") as client:
            assert (await client.get("/page-data/metrics")).status_code == 401
            key = {"X-API-Key": "secret"}
            asked = [client.get("/page-data/metrics", headers=key) for _ in range(20)]
            answers = await asyncio.gather(*asked)
            assert all("tim4rec_store_up 1.0" in answer.text for answer in answers)
            assert answers[0].headers["Cache-Control"] == "no-store"
            while len(made) < 3:
                assert (await client.get("/page-data/metrics", headers=key)).status_code == 200
                await asyncio.sleep(0.02)
        assert all(after - before > 0.9 for before, after in itertools.pairwise(made))

    run(check())


def test_it_can_be_switched_off(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with in_process(artefact.folder, valkey.url, page=False) as client:
            for path in ("/", "/page/main.js", "/page-data/people"):
                assert (await client.get(path)).status_code == 404
            assert (await client.get("/recommend?user_id=u")).status_code == 200

    run(check())


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 150_000


PEOPLE = {
    "hiker": ["boot", "boot", "boot", "tent"],
    "reader": ["novel", "novel", "poem"],
    "cook": ["pan", "pan", "pan", "pan", "knife"],
    "another hiker": ["boot", "boot", "boot"],
    "guest-visitor": ["lamp", "lamp", "lamp", "lamp"],
    "hardly known": ["novel"],
}
"""And the items they took."""
CATEGORIES = {"boot": ["Outdoor"], "tent": ["Outdoor"], "novel": ["Books"], "poem": ["Books"],
              "pan": ["Kitchen"], "knife": ["Kitchen"], "lamp": ["Light"]}  # fmt: skip


def test_people_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer, run: Run
) -> None:
    """Three unlike each other, with their histories as the log has them, but not who they are; for
    whoever has a key."""
    made = make_artefact(tmp_path_factory.mktemp("people") / "model", list(CATEGORIES))
    times = itertools.count(BASE_MS, 1000)
    events = [
        {"user_id": user, "item_id": item, "timestamp": next(times)}
        for user, items in PEOPLE.items()
        for item in items
    ]
    records = [{"item_id": item, "categories": names} for item, names in CATEGORIES.items()]
    key = {"X-API-Key": "secret"}

    async def check() -> None:
        async with in_process(made.folder, valkey.url, api_keys="secret") as client:
            answer = await client.get("/page-data/people")
            assert answer.status_code == 401
            client.headers.update(key)
            assert (await client.get("/page-data/people")).json() == {"people": []}
            await client.post("/items/batch", json={"items": records})
            await client.post("/interactions/batch", json={"interactions": events})
        async with in_process(made.folder, valkey.url, api_keys="secret") as client:
            client.headers.update(key)
            answer = await client.get("/page-data/people")
            people = answer.raise_for_status().json()["people"]
            assert {tuple(one["likes"]) for one in people} == {
                ("Outdoor",), ("Books",), ("Kitchen",),
            }  # fmt: skip
            for one in people:
                items = [event["item_id"] for event in one["events"]]
                assert items in PEOPLE.values()
            assert not any(user in answer.text for user in PEOPLE)
            # Looked at is not touched.
            session = {"events": people[0]["events"], "k": 3}
            assert (await client.post("/recommend/session", json=session)).is_success
            assert (await client.get("/page-data/people")).json()["people"] == people

    run(check())


def test_people_where_there_are_no_categories(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    events = [{"user_id": "u", "item_id": item} for item in "abca"]

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url) as client:
            await client.post("/interactions/batch", json={"interactions": events})
            (person,) = (await client.get("/page-data/people")).json()["people"]
            assert person["likes"][0] == "a"
            assert len(person["events"]) == 4

    run(check())


def test_how_an_item_is_used(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    """As the live layer counts it, and as it was shown while little was known of it; for whoever
    has a key. What is not counted is said to be so."""
    path, key = "/page-data/items/a", {"X-API-Key": "secret"}
    none = {"interactions": None, "since": None, "a_day": [], "shown": None, "taken": None}

    async def until(client: httpx.AsyncClient, **holds: float) -> dict[str, Any]:
        async with asyncio.timeout(LONG_S):
            while True:
                found: dict[str, Any] = (await client.get(path, headers=key)).json()
                if holds.items() <= found.items():
                    return found
                await asyncio.sleep(0.05)

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url, live=False, api_keys="secret") as client:
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=key)).json() == none
        exploring = {"explore_share": 0.5, "outcome_window_s": 60, "popular_refresh_s": 0.05}
        async with in_process(
            artefact.folder, valkey.url, api_keys="secret", **exploring
        ) as client:
            assert (await client.get(path, headers=key)).json() == none | {
                "interactions": 0, "shown": 0, "taken": 0,
            }  # fmt: skip
            client.headers.update(key)
            await client.post("/interactions", json={"user_id": "u", "item_id": "b"})
            await client.get("/recommend", params={"user_id": "u", "k": 2, "explore": False})
            await until(client, shown=1)
            await client.post("/interactions", json={"user_id": "u", "item_id": "a"})
            found = await until(client, interactions=1, taken=1)
            day = 0.6931  # ln 2 of one interaction, of a moment ago
            assert found["a_day"] == pytest.approx([day, day / 7, day / 30, day / 180], rel=1e-2)

    run(check())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """Of 200,000 items."""
    ids = [f"i{n}" for n in range(200_000)]
    made = make_artefact(tmp_path_factory.mktemp("large") / "model", ids)
    words = ["red", "blue", "old", "new", "garden", "summer"]
    titles = [f"{words[n % 6]} thing {n}" for n in range(len(ids))]
    categories = [[f"kind {n % 40}"] for n in range(len(ids))]
    items = Items(ids, made.items.popularity, titles, categories)
    save_artefact(made.folder, made.model, items, {}, "a test")
    return made


@pytest.mark.slow
def test_a_large_catalogue(large: Artefact, valkey: ValkeyServer, run: Run) -> None:
    """What the page asks for is answered before it asks again, and is small; nobody else waits."""
    page_waits_s = 15
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/items", {"limit": 30, "unavailable": True}),
        ("/items", {"limit": 1000}),
        *(("/items", {"limit": 30, "q": q}) for q in ("r", "garden", "thing 19", "zzz", "i199999")),
        ("/items", {"item_id": [f"i{n}" for n in range(100)]}),
        ("/items/i5", {}),
        ("/items/i5/similar", {"k": 20}),
        ("/page-data/items/i5", {}),
        ("/page-data/people", {}),
        ("/popular", {"k": 20}),
        ("/recommend", {"user_id": "u", "category": "kind 3", "explain": True, "reasons": 20}),
    ]
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - begun)
            await asyncio.sleep(0.002)

    async def check() -> None:
        async with in_process(large.folder, valkey.url) as client:
            for item in ("i3", "i9", "i12"):
                body = {"user_id": "u", "item_id": item}
                assert (await client.post("/interactions", json=body)).is_success
            watching = asyncio.create_task(watch())
            for path, query in asked:
                begun = time.monotonic()
                answer = await client.get(path, params=query)
                assert answer.status_code == 200, (path, query)
                assert time.monotonic() - begun < page_waits_s, (path, query)
                assert len(answer.content) < 200_000, (path, query)
            watching.cancel()
            query = {"limit": 30, "q": "garden"}
            page = (await client.get("/items", params=query)).json()
            more = (await client.get("/items", params=query | {"after": page["next"]})).json()
            assert len({one["item_id"] for one in page["items"] + more["items"]}) == 60
        assert longest < 1

    run(check())


def test_it_needs_nothing_from_elsewhere() -> None:
    """No address of another host, no script or style within the markup, no markup made of text."""
    files = {file.name: file.read_text("utf-8") for file in FOLDER.iterdir()}
    assert "index.html" in files
    for name, text in files.items():
        named = set(
            re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"^\s*//.*$", "", text, flags=re.M))
        )
        assert named <= {"http://www.w3.org"}, name  # the namespace of SVG
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text
        ), name
        for module in re.findall(r"from \"\./(\w+\.js)\"", text):
            assert module in files, name
    page = files["index.html"]
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]* src=)", page)
    for file in re.findall(r'(?:src|href)="page/([^"]+)"', page):
        assert file in files


def test_the_package_holds_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    for file in FOLDER.iterdir():
        assert any(file.relative_to(ROOT / "service").match(pattern) for pattern in patterns), file
