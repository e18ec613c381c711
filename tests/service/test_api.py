"""The API of one real service process on a real store."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from model.artefact import Artefact
from model.gaps import UNKNOWN_TIME
from model.times import iso, parse_time
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    history,
    in_process,
    make_artefact,
    offline_scores,
    pairs,
    popular,
    user_path,
)
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(40)]
HOUR_MS = 3_600_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("api") / "model", ITEMS)


@pytest.fixture(scope="module")
def service(artefact: Artefact) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    store = ValkeyServer(folder)
    store.start()
    running = Service(artefact.folder, folder / "output", "--redis", store.url, max_k=50)
    try:
        running.start()
        yield running
    finally:
        running.kill()
        store.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def user() -> str:
    """A user nobody has heard of."""
    return f"user{next(_numbers)}"


def post(client: httpx.Client, user_id: str, item_id: str, **rest: Any) -> dict[str, Any]:
    answer = client.post("/interactions", json={"user_id": user_id, "item_id": item_id, **rest})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def batch(client: httpx.Client, events: list[dict[str, Any]]) -> dict[str, Any]:
    answer = client.post("/interactions/batch", json={"interactions": events})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def recommend(client: httpx.Client, user_id: str, **query: Any) -> dict[str, Any]:
    answer = client.get("/recommend", params={"user_id": user_id, **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def problem(answer: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
    """The problem document that an answer is, naming the field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    assert document["detail"]
    if field is not None:
        assert field in document["detail"]
        assert any(field in error["field"] for error in document["errors"])
        for error in document["errors"]:
            assert error["message"]
            assert not error["message"].startswith(f"{error['field']}:"), "it is said twice"
    return document


# -- interactions ------------------------------------------------------------------------


def test_every_status_of_an_interaction(client: httpx.Client, user: str) -> None:
    first = post(client, user, "i1", timestamp=BASE_MS, event_id="one")
    assert first == {
        "user_id": user,
        "item_id": "i1",
        "version": 1,
        "status": "applied",
        "timestamp": iso(BASE_MS),
    }
    again = post(client, user, "i1", timestamp=BASE_MS, event_id="one")
    assert again == first | {"status": "duplicate"}
    late = post(client, user, "i2", timestamp=iso(BASE_MS - HOUR_MS))
    assert (late["status"], late["version"], late["timestamp"]) == ("late", 2, iso(BASE_MS))
    strange = post(client, user, "nobody's", timestamp=BASE_MS + 1, event_id="two")
    assert (strange["status"], strange["version"]) == ("unknown_item", 3)
    # Unknown comes before late, a duplicate before both.
    both = post(client, user, "nobody's", timestamp=BASE_MS - 1)
    assert (both["status"], both["timestamp"]) == ("unknown_item", iso(BASE_MS + 1))
    twin = post(client, user, "nobody's", timestamp=BASE_MS + 1, event_id="two")
    assert (twin["status"], twin["version"]) == ("duplicate", 3)
    for other in ({"item_id": "i3"}, {"timestamp": BASE_MS + 5}, {"item_id": "unheard of"}):
        body = {"user_id": user, "item_id": "i1", "timestamp": BASE_MS, "event_id": "one"}
        problem(client.post("/interactions", json=body | other), 409, "event_id")
    ahead = {"user_id": user, "item_id": "i1", "timestamp": time.time() + 600}
    problem(client.post("/interactions", json=ahead), 422, "timestamp")
    before = time.time() * 1000
    now = post(client, user, "i4")
    assert before - 1000 <= parse_time(now["timestamp"]) <= time.time() * 1000 + 1000
    assert client.get(user_path(user)).json()["version"] == now["version"] == 5


def test_event_ids_are_a_users_own(client: httpx.Client, user: str) -> None:
    assert post(client, user, "i1", event_id="e")["status"] == "applied"
    assert post(client, f"{user}-other", "i1", event_id="e")["status"] == "applied"


def test_a_batch_keeps_each_users_order_and_answers_for_each(
    client: httpx.Client, user: str
) -> None:
    users = [f"{user}-{n}" for n in range(4)]
    events = [
        {
            "user_id": users[n % 3],
            "item_id": f"i{n % 40}",
            "timestamp": BASE_MS + n * 1000,
            "event_id": f"e{n}",
        }
        for n in range(600)
    ]
    post(client, users[0], "i9", event_id="e300", timestamp=BASE_MS)
    special = [
        events[7],  # once more in the same request
        {"user_id": users[3], "item_id": "strange", "timestamp": BASE_MS},
        {"user_id": users[3], "item_id": "i1", "timestamp": BASE_MS - 1},
        {"user_id": users[3], "item_id": "i2", "timestamp": time.time() + 9999},
    ]
    answer = batch(client, events + special)
    results = answer["results"]
    assert len(results) == 604
    assert [r["status"] for r in results[600:]] == ["duplicate", "unknown_item", "late", "future"]
    assert "timestamp" in results[603]["detail"]
    assert results[603]["version"] is None
    assert results[300]["status"] == "conflict"  # of the one that was there
    assert "event_id" in results[300]["detail"]
    assert {r["status"] for n, r in enumerate(results[:600]) if n != 300} == {"applied"}
    assert answer["accepted"] == 602
    for which in range(3):
        own = [e["event_id"] for n, e in enumerate(events) if n % 3 == which and n != 300]
        kept = [e["event_id"] for e in history(client, users[which])]
        assert kept == (["e300", *own] if which == 0 else own)


def test_a_batch_longer_than_one_append_of_a_user(
    client: httpx.Client, artefact: Artefact, user: str
) -> None:
    events = [
        {"user_id": user, "item_id": f"i{n % 40}", "timestamp": BASE_MS + n, "event_id": f"e{n}"}
        for n in range(1000)
    ]
    assert [r["version"] for r in batch(client, events)["results"]] == list(range(1, 1001))
    again = batch(client, events[500:])  # the window in which event ids are known
    assert [r["status"] for r in again["results"]] == ["duplicate"] * 500
    scores = offline_scores(artefact, pairs(history(client, user)), BASE_MS + HOUR_MS)
    answer = recommend(client, user, k=40, at=BASE_MS + HOUR_MS, exclude_seen=False)
    assert answer["version"] == 1000
    check_answer(answer, scores, 40)


def test_a_batch_that_is_too_long_does_nothing(client: httpx.Client, user: str) -> None:
    events = [{"user_id": user, "item_id": "i1"}] * 1001
    answer = client.post("/interactions/batch", json={"interactions": events})
    assert "1000" in problem(answer, 422, "interactions")["detail"]
    answer = client.post("/interactions/batch", json={"interactions": []})
    problem(answer, 422, "interactions")
    assert client.get(user_path(user)).status_code == 404


def test_one_bad_event_of_a_batch_is_named_and_nothing_is_logged(
    client: httpx.Client, user: str
) -> None:
    events = [{"user_id": user, "item_id": "i1"}, {"user_id": user, "item_id": ""}]
    answer = client.post("/interactions/batch", json={"interactions": events})
    problem(answer, 422, "interactions.1.item_id")
    assert client.get(user_path(user)).status_code == 404


# -- recommendations ---------------------------------------------------------------------


def test_recommendations_are_the_offline_models(
    client: httpx.Client, artefact: Artefact, user: str
) -> None:
    events = [(f"i{n * n % 23}", BASE_MS + n * n * HOUR_MS) for n in range(14)]
    posted: list[tuple[str, int]] = []
    for item, ms in events:
        post(client, user, item, timestamp=ms)
        posted.append((item, ms))
        at = ms + 2 * HOUR_MS
        scores = offline_scores(artefact, posted, at)
        answer = recommend(client, user, k=7, at=at)
        assert answer["version"] == len(posted)
        assert not answer["stale"]
        check_answer(answer, scores, 7, without=[item for item, _ in posted])
        check_answer(recommend(client, user, at=iso(at), exclude_seen=False), scores, 10)
    titles = dict(zip(artefact.items.ids, artefact.items.titles or [], strict=True))
    for found in answer["items"]:
        assert found.get("title") == titles[found["item_id"]]
    assert client.get("/readyz").json()["model"] == answer["model"] == artefact.identity


def test_the_moment_recommended_for_changes_the_answer(
    client: httpx.Client, artefact: Artefact, user: str
) -> None:
    post(client, user, "i3", timestamp=BASE_MS)
    answers = []
    for gap in (0, 1000, HOUR_MS, 1000 * HOUR_MS, -HOUR_MS):
        answer = recommend(client, user, k=40, at=BASE_MS + gap, exclude_seen=False)
        check_answer(answer, offline_scores(artefact, [("i3", BASE_MS)], BASE_MS + gap), 40)
        answers.append([item["score"] for item in answer["items"]])
    assert answers[-1] == answers[0], "a moment before the last interaction counts as that of it"
    assert len({tuple(scores) for scores in answers[:4]}) == 4
    # Without a moment it is now, by the store's clock.
    before = offline_scores(artefact, [("i3", BASE_MS)], round(time.time() * 1000) - 1000)
    check_answer(recommend(client, user, k=40, exclude_seen=False), before, 40)


def test_the_moment_may_be_unknown_and_is_in_the_answer(
    client: httpx.Client, artefact: Artefact, user: str
) -> None:
    post(client, user, "i3", timestamp=BASE_MS)
    asked = {"k": 40, "exclude_seen": False}
    scores = offline_scores(artefact, [("i3", BASE_MS)], UNKNOWN_TIME)
    session = {"events": [{"item_id": "i3", "timestamp": BASE_MS}], **asked}
    ranked = {"user_id": user, "item_ids": list(scores)}

    def answers(at: dict[str, object]) -> list[dict[str, Any]]:
        posted = client.post("/recommend", json={"user_id": user, **asked, **at})
        of_session = client.post("/recommend/session", json=session | at)
        rank = client.post("/rank", json=ranked | at)
        others = [answer.json() for answer in (posted, of_session, rank)]
        return [recommend(client, user, **asked, **at), *others]

    for answer in answers({"at": "unknown"}):
        assert answer["at"] is None
        check_answer(answer, scores, 40)
    now = offline_scores(artefact, [("i3", BASE_MS)], BASE_MS)
    assert max(abs(scores[item] - now[item]) for item in scores) > 1e-3
    for answer in answers({"at": iso(BASE_MS)}):
        assert answer["at"] == iso(BASE_MS)
        check_answer(answer, now, 40)
    began = time.time() * 1000
    for answer in [*answers({}), recommend(client, "nobody", k=1)]:
        assert began - 1000 <= parse_time(answer["at"]) <= time.time() * 1000 + 1000
    for at in ("soon", "Unknown", "nan", "99999-01-01"):
        wrong = client.get("/recommend", params={"user_id": user, "at": at})
        problem(wrong, 422, "at")
        assert "or unknown" in wrong.json()["detail"]


def test_k_and_exclude(client: httpx.Client, artefact: Artefact, user: str) -> None:
    post(client, user, "i3", timestamp=BASE_MS)
    scores = offline_scores(artefact, [("i3", BASE_MS)], BASE_MS)
    asked = {"at": BASE_MS, "exclude": ["i4", "i5", "nobody's", "i4", ""]}
    check_answer(recommend(client, user, k=1, at=BASE_MS), scores, 1, ["i3"])
    check_answer(recommend(client, user, k=50, **asked), scores, 50, ["i3", "i4", "i5"])
    kept = recommend(client, user, k=50, exclude_seen=False, **asked)
    check_answer(kept, scores, 50, ["i4", "i5"])
    nothing = recommend(client, user, exclude=ITEMS)
    assert nothing["items"] == []


def test_seen_means_the_whole_history(client: httpx.Client, artefact: Artefact, user: str) -> None:
    items = [f"i{n}" for n in range(30)] + [f"i{30 + n % 3}" for n in range(600)]
    events = [
        {"user_id": user, "item_id": item, "timestamp": BASE_MS + n * 1000}
        for n, item in enumerate(items)
    ]
    batch(client, events)
    answer = recommend(client, user, k=50)
    assert {item["item_id"] for item in answer["items"]} == {f"i{n}" for n in range(33, 40)}
    assert len(recommend(client, user, k=50, exclude_seen=False)["items"]) == 40


def test_popular_items_for_whom_the_model_knows_nothing_of(
    client: httpx.Client, artefact: Artefact, user: str
) -> None:
    ranked = popular(artefact)
    counts = dict(zip(artefact.items.ids, artefact.items.popularity.tolist(), strict=True))
    for version in range(2):
        answer = recommend(client, user, k=5, exclude=[ranked[1], "nobody's"])
        assert answer["source"] == "popular"
        assert answer["version"] == version
        expected = [item for item in ranked if item != ranked[1]][:5]
        assert [item["item_id"] for item in answer["items"]] == expected
        assert [item["score"] for item in answer["items"]] == [counts[i] for i in expected]
        post(client, user, "nobody's")
    post(client, user, "i3")
    assert recommend(client, user)["source"] == "model"
    assert client.get(user_path(f"{user}-unheard-of")).status_code == 404, "a GET makes no user"


def test_a_stale_state_will_do_where_it_may(client: httpx.Client, user: str) -> None:
    post(client, user, "i3", timestamp=BASE_MS)
    recommend(client, user)
    answer = recommend(client, user, allow_stale=True, at=BASE_MS)
    assert (answer["stale"], answer["version"]) == (True, 1)
    assert answer["items"] == recommend(client, user, at=BASE_MS)["items"]
    unknown = recommend(client, f"{user}-x", allow_stale=True)
    assert (unknown["stale"], unknown["source"], unknown["version"]) == (False, "popular", 0)


# -- users -------------------------------------------------------------------------------


def test_a_user_and_the_history(client: httpx.Client, artefact: Artefact, user: str) -> None:
    events = [
        {"user_id": user, "item_id": f"i{n % 40}", "timestamp": BASE_MS + n, "event_id": f"e{n}"}
        for n in range(25)
    ]
    del events[24]["event_id"]
    events[10]["timestamp"] = BASE_MS - 5
    batch(client, events)
    before = time.time() * 1000
    post(client, user, "unknown to the model")
    found = client.get(user_path(user)).json()
    assert found["user_id"] == user
    assert found["version"] == 26
    assert found["model"] == artefact.identity
    assert found["bytes"] > 26 * 20
    assert found["state_bytes"] == artefact.model.state_layout.nbytes()
    assert parse_time(found["last_time"]) >= before - 1000

    whole = history(client, user)
    assert [event["version"] for event in whole] == list(range(1, 27))
    for n, (event, posted) in enumerate(zip(whole, events, strict=False)):
        assert event["item_id"] == posted["item_id"]
        assert event["event_id"] == posted.get("event_id")
        assert parse_time(event["given_timestamp"]) == posted["timestamp"]
        late = n == 10
        assert parse_time(event["timestamp"]) == (BASE_MS + 9 if late else posted["timestamp"])
    assert whole[25]["given_timestamp"] is None
    assert whole[25]["item_id"] == "unknown to the model"
    for limit in (1, 7, 25, 26, 27):
        assert history(client, user, limit) == whole
    page = client.get(f"{user_path(user)}/history", params={"after": 20, "limit": 3}).json()
    assert page["events"] == whole[20:23]
    assert page["next"] == 23
    for after in (26, 1000):
        page = client.get(f"{user_path(user)}/history", params={"after": after}).json()
        nothing = {"user_id": user, "events": [], "history_truncated": False, "next": None}
        assert page == nothing
    problem(client.get(f"{user_path(user)}-x/history"), 404, "user_id")
    problem(client.get(f"{user_path(user)}-x"), 404, "user_id")


def test_a_forgotten_user_starts_anew(client: httpx.Client, user: str) -> None:
    for n in range(70):  # past a snapshot
        post(client, user, f"i{n % 30}", event_id=f"e{n}")
    assert recommend(client, user)["version"] == 70
    assert client.delete(user_path(user)).json() == {"user_id": user, "erased": True}
    answer = recommend(client, user, k=40)
    assert (answer["source"], answer["version"], len(answer["items"])) == ("popular", 0, 40)
    assert client.get(user_path(user)).status_code == 404
    assert client.delete(user_path(user)).json() == {"user_id": user, "erased": False}
    again = post(client, user, "i1", event_id="e1")
    assert (again["status"], again["version"]) == ("applied", 1)


@pytest.mark.parametrize(
    "name",
    [
        "b{o}b", "a/b", "/", "a/history", "history", "100%", "a%2Fb", "a?b#c&d=e", "nul\0x", " ",
        "line\nbreak", "\n", "x/history\r", ".", "..", "a/../b",
        "naïve 🎉", "c:\\d", "+1", "x" * 256, "é" * 128, "'\"`$(id)", "*[a]?", ":",
    ],
)  # fmt: skip
def test_an_id_may_hold_anything(client: httpx.Client, name: str) -> None:
    result = post(client, name, name, timestamp=BASE_MS, event_id=name)
    assert result["status"] == "unknown_item"
    post(client, name, "i1", timestamp=BASE_MS)
    assert recommend(client, name, exclude=name)["version"] == 2
    assert client.get(user_path(name)).json()["user_id"] == name
    whole = history(client, name)
    assert [(e["item_id"], e["event_id"]) for e in whole] == [(name, name), ("i1", None)]
    assert client.delete(user_path(name)).json() == {"user_id": name, "erased": True}
    assert client.get(user_path(name)).status_code == 404


# -- what is refused ---------------------------------------------------------------------

SOUND = {"user_id": "nobody", "item_id": "i1"}
LONG = "é" * 128 + "x"  # 257 bytes, 129 characters


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "user_id"),
        ('{"user_id": "nobody"}', "item_id"),
        (json.dumps(SOUND | {"user_id": ""}), "user_id"),
        (json.dumps(SOUND | {"user_id": LONG}), "user_id"),
        (json.dumps(SOUND | {"user_id": 7}), "user_id"),
        (json.dumps(SOUND | {"user_id": "\ud800"}), "user_id"),
        (json.dumps(SOUND | {"item_id": ""}), "item_id"),
        (json.dumps(SOUND | {"item_id": "x" * 257}), "item_id"),
        (json.dumps(SOUND | {"item_id": None}), "item_id"),
        (json.dumps(SOUND | {"item_id": "\udfff!"}), "item_id"),
        (json.dumps(SOUND | {"event_id": ""}), "event_id"),
        (json.dumps(SOUND | {"event_id": LONG}), "event_id"),
        (json.dumps(SOUND | {"event_id": ["a"]}), "event_id"),
        (json.dumps(SOUND | {"time": 1}), "time"),
        *(
            (f'{{"user_id": "nobody", "item_id": "i1", "timestamp": {value}}}', "timestamp")
            for value in (
                "NaN", "Infinity", "-1e400", "1e400", "1" + "0" * 400, "true", "[]", "{}", '""',
                '"yesterday"', '"2026-02-30"', '"nan"', '"0001-01-01T00:00:00+01:00"', "-1e14",
            )
        ),
        ("[]", "body"),
        ("null", "body"),
        ('"text"', "body"),
        ("", "body"),
        ("{", "body"),
        ('{"user_id": "nobody", "item_id": "i1"', "body"),
        ('{"user_id": "nobody", "item_id": i1}', "body"),
    ],
)  # fmt: skip
def test_a_bad_interaction_is_refused(client: httpx.Client, body: str, field: str) -> None:
    answer = client.post(
        "/interactions", content=body, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, field)
    assert client.get(user_path("nobody")).status_code == 404


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"user_id": "nobody", "item_id": "\xff"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"user_id": "nobody", "item_id": "i1", "timestamp": ' + b"9" * 5000 + b"}",
         "application/json"),
        (json.dumps(SOUND).encode(), "text/plain"),
        (b"user_id=nobody&item_id=i1", "application/x-www-form-urlencoded"),
        (json.dumps(SOUND).encode("utf-16"), "application/json; charset=ascii"),
    ],
)  # fmt: skip
def test_a_body_that_can_not_be_read_is_refused(
    client: httpx.Client, content: bytes, kind: str
) -> None:
    answer = client.post("/interactions", content=content, headers={"Content-Type": kind})
    if answer.status_code != 200:
        assert answer.status_code in (400, 422)
        problem(answer, answer.status_code)
        assert client.get(user_path("nobody")).status_code == 404
    else:  # the charset is ignored: JSON says itself how it is encoded
        assert kind.endswith("ascii")
        client.delete(user_path("nobody"))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/recommend", "user_id"),
        ("/recommend?user_id=", "user_id"),
        (f"/recommend?user_id={LONG}", "user_id"),
        ("/recommend?user_id=a&k=0", "k"),
        ("/recommend?user_id=a&k=-1", "k"),
        ("/recommend?user_id=a&k=51", "k"),
        ("/recommend?user_id=a&k=ten", "k"),
        ("/recommend?user_id=a&k=1.5", "k"),
        ("/recommend?user_id=a&k=" + "9" * 5000, "k"),
        ("/recommend?user_id=a&at=tomorrow", "at"),
        ("/recommend?user_id=a&at=nan", "at"),
        ("/recommend?user_id=a&at=1e400", "at"),
        ("/recommend?user_id=a&at=", "at"),
        ("/recommend?user_id=a&exclude_seen=perhaps", "exclude_seen"),
        ("/recommend?user_id=a&allow_stale=2", "allow_stale"),
        (f"{user_path(LONG)}", "user_id"),
        (f"{user_path(LONG)}/history", "user_id"),
        ("/users/%FF%FE", "user_id"),
        ("/recommend?user_id=%FF%FE", "query"),
        ("/recommend?user_id=a&exclude=%C0%AF", "query"),
        ("/items?q=%ED%A0%80", "query"),
        ("/popular?window=%FF", "query"),
        ("/items/i0/similar?k=%FF", "query"),
        ("/users/a/history?limit=%FF", "query"),
        ("/users/a/history?limit=0", "limit"),
        ("/users/a/history?limit=10001", "limit"),
        ("/users/a/history?after=-1", "after"),
        ("/users/a/history?after=x", "after"),
    ],
)
def test_a_bad_question_is_refused(client: httpx.Client, path: str, field: str) -> None:
    problem(client.get(path), 422, field)


def test_errors_of_routing_are_problems_too(client: httpx.Client) -> None:
    problem(client.get("/nowhere"), 404)
    problem(client.get("/users/a/b"), 404)
    answer = client.put("/interactions", json={})
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"


# -- operation ---------------------------------------------------------------------------


def test_health(client: httpx.Client, artefact: Artefact) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "model": artefact.identity}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_openapi_document(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for reference in references(document):
        place: Any = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]  # a KeyError is a reference to nothing
    schemas = document["components"]["schemas"]
    assert set(schemas["Problem"]["required"]) == {"title", "status", "detail"}
    assert "HTTPValidationError" not in json.dumps(document)
    expected = {
        ("post", "/interactions"): {"401", "409", "422", "503"},
        ("post", "/interactions/batch"): {"401", "422", "503"},
        ("get", "/recommend"): {"401", "422", "503"},
        ("post", "/recommend"): {"401", "422", "503"},
        ("post", "/recommend/session"): {"401", "422", "503"},
        ("post", "/rank"): {"401", "422", "503"},
        ("get", "/popular"): {"401", "422", "503"},
        ("get", "/items/{item_id}/similar"): {"401", "404", "422", "503"},
        ("get", "/items"): {"401", "422", "503"},
        ("post", "/items/batch"): {"401", "422", "503"},
        ("put", "/items/{item_id}"): {"401", "422", "503"},
        ("get", "/items/{item_id}"): {"401", "404", "422", "503"},
        ("delete", "/items/{item_id}"): {"401", "422", "503"},
        ("get", "/users"): {"401", "403", "422", "503"},
        ("get", "/users/{user_id}"): {"401", "404", "422", "503"},
        ("delete", "/users/{user_id}"): {"401", "422", "503"},
        ("get", "/users/{user_id}/history"): {"401", "404", "422", "503"},
        ("get", "/admin/journal"): {"401", "403", "409", "422", "503"},
        ("get", "/admin/model"): {"401", "403", "409", "503"},
        ("post", "/admin/model"): {"401", "403", "409", "422", "503"},
        ("delete", "/admin/model"): {"401", "403", "409", "503"},
        ("delete", "/admin/model/trials/{name}"): {"401", "403", "404", "409", "422", "503"},
        ("post", "/admin/recommend"): {"401", "403", "422", "503"},
        ("get", "/livez"): set(),
        ("get", "/readyz"): {"503"},
    }
    found = {
        (method, path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found.keys() == expected.keys()
    for route, operation in found.items():
        assert operation["description"], route
        responses = dict(operation["responses"])
        assert responses.pop("200")["content"]["application/json"]["schema"]
        sent = {"408", "413", "415", "421", "431", "503"} if operation.get("security") else set()
        assert responses.keys() == expected[route] | sent, route
        for response in responses.values():
            schema = response["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
            assert list(response["content"]) == ["application/problem+json"]
        guarded = operation.get("security") == [{"APIKeyHeader": []}]
        assert guarded == (not route[1].endswith("z")), route
    assert len({operation["operationId"] for operation in found.values()}) == len(found)


def metrics(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(client: httpx.Client, artefact: Artefact) -> None:
    before = metrics(client)
    user = "a-user-that-is-nobodys-business"
    post(client, user, "i1", timestamp=BASE_MS, event_id="an-event-of-ones-own")
    post(client, user, "i1", timestamp=BASE_MS, event_id="an-event-of-ones-own")
    post(client, user, "an-item-of-ones-own", timestamp=BASE_MS - 1)
    recommend(client, user)
    recommend(client, user + "2")
    history(client, user)
    client.get(f"/{user}")
    after = metrics(client)

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before.get(key, 0)

    assert grown("tim4rec_events_total", verdict="applied") == 1
    assert grown("tim4rec_events_total", verdict="duplicate") == 1
    assert grown("tim4rec_events_total", verdict="late") == 1
    assert grown("tim4rec_unknown_items_total") == 1
    assert grown("tim4rec_applied_events_total", by="step") == 1
    assert grown("tim4rec_recommendations_total", source="model") == 1
    assert grown("tim4rec_recommendations_total", source="popular") == 1
    request = "tim4rec_request_duration_seconds_count"
    assert grown(request, method="POST", route="/interactions", status="200") == 3
    assert grown(request, method="GET", route="/recommend", status="200") == 2
    assert grown(request, method="GET", route="/users/{user_id}/history", status="200") == 1
    assert grown(request, method="GET", route="unmatched", status="404") == 1
    assert grown("tim4rec_pool_lookups_total", result="miss") >= 2
    stage = "tim4rec_stage_duration_seconds_count"
    for name in ("queue", "log", "retrieve", "http"):
        assert grown(stage, route="/recommend", stage=name) > 0
    assert after["tim4rec_queue_requests", frozenset()] == 0
    info = {"identity": artefact.identity, "time_path": "causal", "items": "40"}
    info |= {"precision": "float32", "name": artefact.folder.name, "edition": artefact.edition}
    assert after["tim4rec_model_info", frozenset(info.items())] == 1
    text = client.get("/metrics").text
    assert "nobodys-business" not in text
    assert "ones-own" not in text


async def _with_keys(artefact: Artefact, url: str) -> None:
    keys = "first key,sécond"
    async with in_process(artefact.folder, url, api_keys=keys) as client:
        body = {"user_id": "u", "item_id": "i1"}

        async def ask(method: str, path: str, key: str | bytes | None) -> httpx.Response:
            headers = {} if key is None else {"X-API-Key": key}
            json_ = body if method == "POST" else None
            answer: httpx.Response = await client.request(method, path, json=json_, headers=headers)
            return answer

        guarded = [
            ("POST", "/interactions"),
            ("POST", "/interactions/batch"),
            ("GET", "/recommend?user_id=u"),
            ("GET", "/users/u"),
            ("GET", "/users/u/history"),
            ("DELETE", "/users/u"),
        ]
        for method, path in guarded:
            for key in (None, "", "first", "first key,", "FIRST KEY", b"\xff"):
                document = problem(await ask(method, path, key), 401)
                assert "X-API-Key" in document["detail"]
                assert "first key" not in document["detail"]
        for good in ("first key", "sécond".encode()):
            assert (await ask("POST", "/interactions", good)).status_code == 200
            assert (await ask("GET", "/recommend?user_id=u", good)).status_code == 200
        for path in ("/livez", "/readyz"):
            assert (await ask("GET", path, None)).status_code == 200
        # A stranger learns nothing, not even whether the body was right.
        problem(await client.post("/interactions", json={}), 401)


def test_keys(run: Any, artefact: Artefact, store_url: str) -> None:
    run(_with_keys(artefact, store_url))


async def _rejecting_late(artefact: Artefact, url: str) -> None:
    async with in_process(artefact.folder, url, late_policy="reject") as client:
        events = [
            {"user_id": "u", "item_id": "i1", "timestamp": BASE_MS},
            {"user_id": "u", "item_id": "i2", "timestamp": BASE_MS - 1},
        ]
        assert (await client.post("/interactions", json=events[0])).status_code == 200
        problem(await client.post("/interactions", json=events[1]), 409, "timestamp")
        answer = (await client.post("/interactions/batch", json={"interactions": events})).json()
        assert [result["status"] for result in answer["results"]] == ["applied", "rejected"]
        assert "timestamp" in answer["results"][1]["detail"]
        assert answer["accepted"] == 1
        assert (await client.get("/users/u")).json()["version"] == 2


async def _replaying_late(artefact: Artefact, url: str) -> None:
    options = {"late_policy": "replay", "replay_limit": 2}
    async with in_process(artefact.folder, url, **options) as client:
        events = [
            {"user_id": "u", "item_id": f"i{n}", "timestamp": BASE_MS + 1000 * n}
            for n in (1, 2, 4, 3)
        ]
        for version, event in zip((1, 2, 3, 3), events, strict=True):
            answer = (await client.post("/interactions", json=event)).json()
            assert answer["version"] == version
        assert answer["status"] == "late"
        assert parse_time(answer["timestamp"]) == BASE_MS + 3000
        page = (await client.get("/users/u/history")).json()["events"]
        assert [event["item_id"] for event in page] == ["i1", "i2", "i3", "i4"]
        early = events[0] | {"timestamp": BASE_MS}
        problem(await client.post("/interactions", json=early), 409, "timestamp")


def test_late_events_may_be_put_in_their_place(
    run: Any, artefact: Artefact, store_url: str
) -> None:
    run(_replaying_late(artefact, store_url))


def test_late_events_may_be_refused(run: Any, artefact: Artefact, store_url: str) -> None:
    run(_rejecting_late(artefact, store_url))


async def _without_store(artefact: Artefact, store: ValkeyServer) -> None:
    settings = {"store_timeout_s": 0.3, "store_away": "refuse"}
    async with in_process(artefact.folder, store.url, **settings) as client:
        event = {"user_id": "u", "item_id": "i1", "timestamp": BASE_MS, "event_id": "e"}
        assert (await client.post("/interactions", json=event)).status_code == 200
        assert (await client.get("/recommend?user_id=u")).status_code == 200  # a state in memory
        store.kill()
        for answer in (
            await client.post("/interactions", json=event),
            await client.get("/recommend?user_id=u"),
            await client.get("/users/u"),
            await client.get("/users/u/history"),
            await client.delete("/users/u"),
        ):
            detail, method = problem(answer, 503)["detail"], answer.request.method
            assert ("unknown" in detail) == (method != "GET"), detail
            assert ("event_id" in detail) == (method == "POST"), detail
            assert detail.endswith("try again" + " with the same event_id" * (method == "POST"))
            assert int(answer.headers["retry-after"]) >= 1
        problem(await client.get("/readyz"), 503)
        assert (await client.get("/livez")).status_code == 200
        stale = (await client.get("/recommend?user_id=u&allow_stale=true")).json()
        assert (stale["stale"], stale["version"]) == (True, 1)
        answer = (await client.post("/interactions/batch", json={"interactions": [event]})).json()
        assert [result["status"] for result in answer["results"]] == ["failed"]
        assert answer["accepted"] == 0
        store.start()
        deadline = time.monotonic() + LONG_S
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        answer = await client.post("/interactions", json=event)
        assert answer.json()["status"] == "duplicate"


def test_a_store_that_does_not_answer(
    run: Any, artefact: Artefact, durable_valkey: ValkeyServer
) -> None:
    run(_without_store(artefact, durable_valkey))


async def _full(artefact: Artefact, store: ValkeyServer) -> None:
    async with in_process(artefact.folder, store.url) as client:
        event = {"user_id": "u", "item_id": "i1"}
        with store.client() as direct:
            direct.config_set("maxmemory", 1)
            try:
                answer = await client.post("/interactions", json=event)
                detail = problem(answer, 503)["detail"]
                assert detail.endswith("nothing was stored: try again later")
                assert "maxmemory" in detail
                assert (await client.get("/recommend?user_id=u")).status_code == 200
                assert (await client.get("/users/u")).status_code == 404
            finally:
                direct.config_set("maxmemory", 0)
        assert (await client.post("/interactions", json=event)).json()["version"] == 1


def test_a_full_store_refuses_for_certain(run: Any, artefact: Artefact, valkey: Any) -> None:
    run(_full(artefact, valkey))


async def _with_a_damaged_record(artefact: Artefact, valkey: ValkeyServer) -> None:
    async with in_process(artefact.folder, valkey.url) as client:
        event = {"user_id": "u", "item_id": "i1", "timestamp": BASE_MS}
        assert (await client.post("/interactions", json=event)).status_code == 200
        with valkey.client() as store:
            store.hdel("tim4rec:u:u", "e1")
        for answer in (
            await client.get("/users/u/history"),
            await client.post("/interactions", json=event),
        ):
            assert "does not help" in problem(answer, 500)["detail"]
        assert (await client.delete("/users/u")).json()["erased"]
        assert (await client.post("/interactions", json=event)).json()["version"] == 1


def test_a_damaged_record_is_no_reason_to_try_again(
    run: Any, artefact: Artefact, valkey: ValkeyServer
) -> None:
    run(_with_a_damaged_record(artefact, valkey))


async def _overloaded(artefact: Artefact, url: str) -> None:
    limits = {"max_queue": 4, "max_batch": 2, "pool_capacity": 8}
    async with in_process(artefact.folder, url, **limits) as client:
        answers = await asyncio.gather(
            *(client.post("/interactions", json={"user_id": f"u{n}", "item_id": "i1"})
              for n in range(60))
        )  # fmt: skip
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 503}
        for n, answer in enumerate(answers):
            found = await client.get(f"/users/u{n}")
            if answer.status_code == 503:
                document = problem(answer, 503)
                assert "nothing was done" in document["detail"]
                assert answer.headers["retry-after"]
                assert found.status_code == 404
            else:
                assert found.json()["version"] == 1
        answer = await client.post(
            "/interactions/batch",
            json={"interactions": [{"user_id": f"v{n}", "item_id": "i1"} for n in range(20)]},
        )
        results = [result["status"] for result in answer.json()["results"]]
        assert set(results) == {"applied", "failed"}
        for n, status in enumerate(results):
            found = await client.get(f"/users/v{n}")
            assert found.status_code == (200 if status == "applied" else 404)


def test_a_full_queue_refuses_and_says_that_nothing_was_done(
    run: Any, artefact: Artefact, store_url: str
) -> None:
    run(_overloaded(artefact, store_url))


def test_no_library_computes_on_more_threads_than_set(
    artefact: Artefact, store_url: str, run: Any
) -> None:
    with threadpool_limits(2):

        async def pools() -> list[int]:
            async with in_process(artefact.folder, store_url, threads=1):
                return [pool["num_threads"] for pool in threadpool_info()]

        assert set(run(pools())) == {1}
