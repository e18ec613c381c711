"""The reads beside GET /recommend, of one real service process on a real store."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artefact import Artefact
from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    in_process,
    make_artefact,
    offline_scores,
    popular,
    user_path,
)
from tests.service.test_api import problem
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(40)]
HOUR_MS = 3_600_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("reads") / "model", ITEMS)


@pytest.fixture(scope="module")
def client(artefact: Artefact) -> Iterator[httpx.Client]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    store = ValkeyServer(folder)
    store.start()
    limits = {"max_k": 50, "max_candidates": 60, "max_session_events": 30}
    running = Service(artefact.folder, folder / "output", "--redis", store.url, **limits)
    try:
        running.start()
        with running.client() as client:
            yield client
    finally:
        running.kill()
        store.kill()
        shutil.rmtree(folder)


def user() -> str:
    """A user nobody has heard of."""
    return f"user{next(_numbers)}"


def ask(client: httpx.Client, method: str, path: str, **query: Any) -> dict[str, Any]:
    body = {"json": query} if method == "POST" else {"params": query}
    answer = client.request(method, path, **body)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def interact(client: httpx.Client, user_id: str, events: list[dict[str, Any]]) -> None:
    if events:
        posted = [{"user_id": user_id, **event} for event in events]
        answer = ask(client, "POST", "/interactions/batch", interactions=posted)
        assert answer["accepted"] == len(events)


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def scores(answer: dict[str, Any]) -> list[float]:
    return [item["score"] for item in answer["items"]]


# -- rank --------------------------------------------------------------------------------


def test_candidates_are_ordered_by_the_users_state(
    client: httpx.Client, artefact: Artefact
) -> None:
    name = user()
    history = [(f"i{n * 3 % 11}", BASE_MS + n * n * HOUR_MS) for n in range(12)]
    interact(client, name, [{"item_id": i, "timestamp": ms} for i, ms in history])
    at = history[-1][1] + 5 * HOUR_MS
    expected = offline_scores(artefact, history, at)
    given_ = ["i39", "strange", "i0", "i7", "i7", "i21", "stranger", "i3"]
    answer = ask(client, "POST", "/rank", user_id=name, item_ids=given_, at=at)
    assert answer["version"] == 12
    assert [item["known"] for item in answer["items"]] == [True] * 5 + [False] * 2
    assert ids(answer)[5:] == ["strange", "stranger"]
    assert all("score" not in item for item in answer["items"][5:])
    answer["items"] = answer["items"][:5]
    only = {item: score for item, score in expected.items() if item in given_}
    check_answer(answer, only, 5)
    unseen = ask(client, "POST", "/rank", user_id=name, item_ids=given_, at=at, exclude_seen=True)
    assert set(ids(unseen)) == set(given_) - {item for item, _ in history}
    whole = ask(client, "POST", "/rank", user_id=name, item_ids=ITEMS, at=at)
    best = ask(client, "GET", "/recommend", user_id=name, k=40, at=at, exclude_seen=False)
    assert ids(whole) == ids(best)
    np.testing.assert_allclose(scores(whole), scores(best), atol=1e-5)
    titles = dict(zip(artefact.items.ids, artefact.items.titles or [], strict=True))
    assert all(item.get("title") == titles[item["item_id"]] for item in whole["items"])


def test_an_unknown_users_candidates_are_ordered_by_popularity(
    client: httpx.Client, artefact: Artefact
) -> None:
    answer = ask(client, "POST", "/rank", user_id=user(), item_ids=["no", *ITEMS[10:20]])
    assert (answer["source"], answer["version"]) == ("popular", 0)
    assert ids(answer) == [item for item in popular(artefact) if item in ITEMS[10:20]] + ["no"]
    nothing = ask(client, "POST", "/rank", user_id=user(), item_ids=["no"])
    assert ids(nothing) == ["no"]


# -- sessions ----------------------------------------------------------------------------

EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "item_id": st.sampled_from([*ITEMS[:12], "strange"]),
            "timestamp": st.integers(0, 1000).map(lambda minutes: BASE_MS + minutes * 60_000),
        }
    ),
    max_size=30,
)


@given(events=EVENTS, exclude_seen=st.booleans(), gap=st.integers(-1000, 1_000_000))
@settings(max_examples=examples(12))
def test_a_session_is_answered_as_a_user_with_that_history(
    client: httpx.Client, events: list[dict[str, Any]], exclude_seen: bool, gap: int
) -> None:
    name = user()
    interact(client, name, events)
    asked = {"k": 7, "at": BASE_MS + gap * 1000, "exclude": ["i30", "no"]}
    asked["exclude_seen"] = exclude_seen
    of_user = ask(client, "GET", "/recommend", user_id=name, **asked)
    of_session = ask(client, "POST", "/recommend/session", events=events, **asked)
    assert of_session["source"] == of_user["source"]
    assert of_session["model"] == of_user["model"]
    assert of_session["unknown_items"] == sum(e["item_id"] == "strange" for e in events)
    np.testing.assert_allclose(scores(of_session), scores(of_user), atol=1e-4)
    for one, other in zip(of_session["items"], of_user["items"], strict=True):
        assert one["item_id"] == other["item_id"] or abs(one["score"] - other["score"]) < 1e-4


def test_an_event_of_a_session_without_a_time_is_of_now(
    client: httpx.Client, artefact: Artefact
) -> None:
    now = round(time.time() * 1000)
    asked = {"events": [{"item_id": "i3"}], "k": 40, "at": now + HOUR_MS}
    answer = ask(client, "POST", "/recommend/session", **asked)
    check_answer(answer, offline_scores(artefact, [("i3", now)], now + HOUR_MS), 40, ["i3"])


def test_a_session_leaves_nothing_behind(
    artefact: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    """Many at once, more than the pool has rows; the store then has nothing and is not needed."""

    async def go() -> None:
        limits = {"pool_capacity": 16, "max_batch": 4, "exactness_every_s": 0}
        async with in_process(artefact.folder, valkey.url, **limits) as client:
            events = [{"item_id": "i1", "timestamp": BASE_MS}]
            kept = {"user_id": "ann", "item_id": "i2", "timestamp": BASE_MS}
            await client.post("/interactions", json=kept)
            before = (await client.get(f"/recommend?user_id=ann&at={BASE_MS}")).json()
            with valkey.client() as store:
                keys = set(store.keys("tim4rec:[us]:*"))
            valkey.send(19)  # SIGSTOP: a question to the store would wait
            try:
                answers = await asyncio.gather(
                    *(
                        client.post(
                            "/recommend/session",
                            json={"events": [*events, {"item_id": f"i{n}"}], "k": 3},
                        )
                        for n in range(60)
                    )
                )
            finally:
                valkey.send(18)
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.json()["source"] for answer in answers} == {"model"}
            with valkey.client() as store:
                assert set(store.keys("tim4rec:[us]:*")) == keys
            pool = client._transport.app.api.state.services.engine.pool
            assert set(pool.users()) <= {"ann"}
            assert len(pool._free) + len(pool.users()) == 16
            after = (await client.get(f"/recommend?user_id=ann&at={BASE_MS}")).json()
            assert after == before

    run(go())


@pytest.mark.parametrize("late_policy", ["clamp", "reject", "replay"])
def test_a_session_is_kept_as_the_log_would(
    artefact: Artefact, store_url: str, run: Any, late_policy: str
) -> None:
    """Rounded at the same versions, and with the same place for what comes late."""

    async def go() -> None:
        options = {"snapshot_precision": "float16", "snapshot_every": 4, "replay_limit": 10}
        async with in_process(
            artefact.folder, store_url, late_policy=late_policy, **options
        ) as client:
            events = [{"item_id": f"i{n % 9}", "timestamp": BASE_MS + n * 7000} for n in range(23)]
            late = {"item_id": "i9", "timestamp": BASE_MS + 15 * 7000}
            for event in [*events, late]:
                await client.post("/interactions", json={"user_id": "ann", **event})
            asked = {"k": 40, "at": BASE_MS + HOUR_MS, "exclude_seen": False}
            of_user = (await client.get("/recommend", params={"user_id": "ann", **asked})).json()
            assert of_user["version"] == (23 if late_policy == "reject" else 24)
            answer = await client.post("/recommend/session", json=asked | {"events": events})
            if late_policy != "reject":
                asked["events"] = [*events, late]
                not_late = scores(answer.json())
                answer = await client.post("/recommend/session", json=asked)
                assert np.abs(np.subtract(scores(answer.json()), not_late)).max() > 1e-3
            np.testing.assert_allclose(scores(answer.json()), scores(of_user), atol=1e-5)
            asked["events"] = [*events, late | {"timestamp": BASE_MS}]
            answer = await client.post("/recommend/session", json=asked)
            if late_policy == "clamp":
                assert answer.status_code == 200
            else:  # too many would have to be moved
                problem(answer, 422, "events.23.timestamp")

    run(go())


# -- similar items -----------------------------------------------------------------------


def test_similar_items_point_the_same_way(client: httpx.Client, artefact: Artefact) -> None:
    vectors = artefact.model.item_embedding.weight.detach().double().numpy()[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = dict(zip(ITEMS, (unit @ unit[4]).tolist(), strict=True))
    del cosines["i4"]
    answer = ask(client, "GET", "/items/i4/similar", k=7)
    assert (answer["item_id"], answer["model"]) == ("i4", artefact.identity)
    assert ids(answer) == sorted(cosines, key=lambda item: -cosines[item])[:7]
    np.testing.assert_allclose(scores(answer), [cosines[i] for i in ids(answer)], atol=1e-5)
    titles = dict(zip(artefact.items.ids, artefact.items.titles or [], strict=True))
    assert all(item.get("title") == titles[item["item_id"]] for item in answer["items"])
    assert len(ids(ask(client, "GET", "/items/i%34/similar", k=50))) == 39
    problem(client.get("/items/no%2Fsuch/similar"), 404, "item_id")
    problem(client.get("/items/i4/similar?k=51"), 422, "k")
    problem(client.get("/items/%FF/similar"), 422, "item_id")


def test_searches_for_similar_items_wait_for_each_other(
    artefact: Artefact, store_url: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch waits for one of them at most; those that would wait for too long are refused."""
    took_s, most = 0.05, 3
    goes_on = threading.Event()
    goes_on.set()

    async def go() -> None:
        async with in_process(artefact.folder, store_url, max_wait_s=most * took_s) as client:
            engine = client._transport.app.api.state.services.engine
            retrieval, scheduler = engine.runner.retrieval, engine.scheduler
            search = retrieval.similar

            def slow(row: int, item_id: str, asked: Ask) -> Ranking:
                assert goes_on.wait(LONG_S)
                time.sleep(took_s)
                return search(row, item_id, asked)

            monkeypatch.setattr(retrieval, "similar", slow)
            assert (await client.get("/items/i4/similar")).status_code == 200
            goes_on.clear()
            searches = [asyncio.create_task(client.get("/items/i4/similar")) for _ in range(12)]
            try:
                async with asyncio.timeout(LONG_S):
                    while sum(task.done() for task in searches) < 12 - most:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    assert scheduler._in_thread == 1
                    asked = asyncio.create_task(client.get("/recommend?user_id=ann"))
                    while scheduler._in_thread < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            finally:
                goes_on.set()
            assert (await asked).status_code == 200
            answers = await asyncio.gather(*searches)
            refused = [answer for answer in answers if answer.status_code == 503]
            assert 1 <= len(answers) - len(refused) <= most
            assert all("nothing was done" in problem(one, 503)["detail"] for one in refused)
            assert (await client.get("/items/i4/similar")).status_code == 200

    run(go())


def test_what_the_catalogue_says_holds(artefact: Artefact, store_url: str, run: Any) -> None:
    """Hidden items are in no answer, and new ones are like what they are said to be like."""

    async def go() -> None:
        async with in_process(artefact.folder, store_url) as client:

            async def put(item: str, **record: Any) -> None:
                assert (await client.put(f"/items/{item}", json=record)).status_code == 200

            await put("i7", hidden=True)
            await put("new", title="A new one", similar_to=["i3"])
            candidates = ["i7", "nobody's", "i3", "new", "i5"]
            body = {"user_id": "ann", "item_ids": candidates, "at": BASE_MS}
            unknown = (await client.post("/rank", json=body)).json()
            assert set(ids(unknown)) == {"i3", "i5", "new", "nobody's"}
            for item in ("i1", "i7"):
                event = {"user_id": "ann", "item_id": item, "timestamp": BASE_MS}
                assert (await client.post("/interactions", json=event)).status_code == 200
            answer = (await client.post("/rank", json=body)).json()
            assert set(ids(answer)[:3]) == {"i3", "i5", "new"}
            assert [item["known"] for item in answer["items"]] == [True] * 3 + [False]
            by_id = {item["item_id"]: item for item in answer["items"]}
            assert by_id["new"]["score"] == pytest.approx(by_id["i3"]["score"], rel=1e-4)
            assert by_id["new"]["title"] == "A new one"
            for item in ("i3", "i7", "new"):
                path = f"/items/{item}/similar?k=50"
                found = ids((await client.get(path)).json())
                assert set(found) == {*ITEMS, "new"} - {item, "i7"}
                if item == "i3":
                    assert found[0] == "new"
            explained = (
                await client.get(f"/recommend?user_id=ann&k=20&explain=1&at={BASE_MS}")
            ).json()
            assert "i7" in {reason["item_id"] for reason in explained["items"][0]["because"]}
            session = {"events": [{"item_id": "i1"}], "k": 50}
            assert "i7" not in ids((await client.post("/recommend/session", json=session)).json())
            assert (await client.delete("/items/new")).status_code == 200
            problem(await client.get("/items/new/similar"), 404, "item_id")

    run(go())


# -- what is refused ---------------------------------------------------------------------

EVENT, LATER = {"item_id": "i1"}, {"timestamp": "2999-01-01"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rank", {"item_ids": ["i1"]}, "user_id"),
        ("/rank", {"user_id": "u", "item_ids": []}, "item_ids"),
        ("/rank", {"user_id": "u", "item_ids": [""]}, "item_ids.0"),
        ("/rank", {"user_id": "u", "item_ids": ["i1"] * 61}, "item_ids"),
        ("/rank", {"user_id": "u", "item_ids": ["i1"], "at": "soon"}, "at"),
        ("/rank", {"user_id": "u", "item_ids": ["i1"], "k": 3}, "k"),
        ("/recommend/session", {}, "events"),
        ("/recommend/session", {"events": [EVENT] * 31}, "events"),
        ("/recommend/session", {"events": [EVENT], "k": 0}, "k"),
        ("/recommend/session", {"events": [EVENT], "k": 51}, "k"),
        ("/recommend/session", {"events": [EVENT, {"item_id": 3}]}, "events.1.item_id"),
        ("/recommend/session", {"events": [EVENT, EVENT | {"user_id": "u"}]}, "events.1.user_id"),
        ("/recommend/session", {"events": [EVENT | LATER]}, "events.0.timestamp"),
    ],
)
def test_a_bad_read_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    problem(client.post(path, json=body), 422, field)
    assert client.get(user_path("u")).status_code == 404
