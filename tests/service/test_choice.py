"""Lists that are filtered, promoted, spread and paged: against the definitions, and as the service
gives them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.artefact import Artefact, save_artefact
from model.items import Items
from service.catalogue.choice import Choice
from service.catalogue.cursor import (
    CursorError,
    Seal,
    read_place,
    read_shown,
    shared_seal,
    write_place,
    write_shown,
)
from service.catalogue.diversity import POOL, spread
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.catalogue.view import Selection
from service.http.schemas import MOST_LISTED
from service.store.client import Store
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact, offline_scores, popular
from tests.service.test_api import problem
from tests.waited import PATIENT_S

torch.set_num_threads(1)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
EVERYTHING = Selection(np.ones(1000, np.bool_))


# -- the definitions ---------------------------------------------------------------------


def ranking(rows: list[int]) -> Ranking:
    scores = -np.arange(len(rows), dtype=np.float32)
    return Ranking(np.array(rows, np.int64), scores)


def retrieval_of(table: np.ndarray) -> Retrieval:
    items = Items([str(n) for n in range(len(table) - 1)], np.zeros(len(table) - 1, np.int64))
    return Retrieval(torch.from_numpy(table.astype(np.float32)), items)


NOTHING = retrieval_of(np.zeros((31, 2)))


@given(
    st.permutations(range(1, 31)),
    st.sets(st.integers(1, 30)),
    st.sampled_from([0.1, 0.2, 0.29, 0.5, 0.7, 1.0]),
    st.integers(1, 12),
)
def test_promoted_items_get_their_share_on_every_page(
    order: list[int], promoted: set[int], share: float, k: int
) -> None:
    own = [row for row in order if row in promoted]
    left, shown, flags = list(order), list[int](), list[bool]()
    while left:
        choice = Choice(promoted=EVERYTHING, share=share, places=len(shown))
        those = [row for row in own if row in left]
        page = choice.arrange(ranking(left[:k]), ranking(those[:k]), k, NOTHING.vectors)
        assert page.promoted is not None
        shown += page.items.tolist()
        flags += page.promoted.tolist()
        left = [row for row in left if row not in shown]
    assert sorted(shown) == sorted(order)
    for place in range(1, len(shown) + 1):
        wanted = min(int(place * share + 1e-9), len(own))
        assert sum(row in promoted for row in shown[:place]) >= wanted
    # Who is not promoted stays in order, and so do the promoted.
    assert [row for row in shown if row not in promoted] == [r for r in order if r not in promoted]
    assert [row for row in shown if row in promoted] == own
    assert {row for row, flag in zip(shown, flags, strict=True) if flag} <= promoted
    if not promoted:
        assert shown == order


def naive(scores: list[float], table: np.ndarray, diversity: float, k: int) -> list[float]:
    """The value of each choice, greedily."""
    relevance = np.array(scores)
    relevance = (relevance - relevance.min()) / max(np.ptp(relevance), 1e-12)
    chosen: list[int] = []
    values = []
    while len(chosen) < min(k, len(scores)):
        value = {}
        for i in range(len(scores)):
            if i not in chosen:
                alike = [
                    float(table[i] @ table[j])
                    / max(1e-12, float(np.linalg.norm(table[i]) * np.linalg.norm(table[j])))
                    for j in chosen
                ]
                value[i] = (1 - diversity) * relevance[i] - diversity * max([0.0, *alike])
        best = max(value, key=lambda i: (round(value[i], 4), -i))
        chosen.append(best)
        values.append(value[best])
    return values


@given(st.integers(1, 12), st.floats(0, 1), st.integers(1, 15), st.integers(0, 1000))
def test_a_spread_list_is_greedy(size: int, diversity: float, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = np.sort(draw.standard_normal(size).astype(np.float32))[::-1].copy()
    table = draw.standard_normal((size, 3)).astype(np.float32)
    order = spread(scores, table, diversity, k).tolist()
    assert len(set(order)) == len(order) == min(k, size)
    assert order[0] == 0
    # Near ties may go either way: the values are what is the same.
    expected = naive(scores.tolist(), table, diversity, k)
    relevance = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for place, item in enumerate(order):
        nearest = max([0.0, *(unit[item] @ unit[before] for before in order[:place])])
        own = (1 - diversity) * relevance[item] - diversity * nearest
        np.testing.assert_allclose(own, expected[place], atol=2e-3)
    if diversity == 0:
        assert order == list(range(min(k, size)))


def test_spread_goes_on_from_what_was_shown() -> None:
    table = np.array([[0, 0], [1, 0], [1, 0.01], [0, 1]], np.float32)
    retrieval, best = retrieval_of(table), ranking([2, 3])
    choice = Choice(diversity=0.9, shown=np.array([1], np.int32), places=1)
    assert choice.arrange(best, None, 2, retrieval.vectors).items.tolist() == [3, 2]
    assert Choice(diversity=0.9).arrange(best, None, 2, retrieval.vectors).items.tolist() == [2, 3]


def test_who_comes_after_the_pool_keeps_the_place() -> None:
    rows = POOL + 50
    table = np.random.default_rng(0).standard_normal((rows + 1, 4))
    choice = Choice(diversity=0.5)
    k = rows
    assert choice.depth(10) == POOL
    found = choice.arrange(ranking(list(range(1, rows + 1))), None, k, retrieval_of(table).vectors)
    assert sorted(found.items.tolist()) == list(range(1, rows + 1))
    assert found.items.tolist()[POOL:] == list(range(POOL + 1, rows + 1))
    assert found.items.tolist()[:POOL] != list(range(1, POOL + 1))


SEAL = Seal(bytes(32))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_a_cursor_reads_as_it_was_written(shown: list[int]) -> None:
    text = write_shown(SEAL, np.array(shown, np.uint32))
    assert read_shown(SEAL, text, 20).tolist() == shown
    other = Seal(b"another").close("shown", b"")
    place = write_place(SEAL, (0, "a title", "i1"))
    for wrong in (text[1:], text + "AAAA", "B" + text, "~", "ü", "\udfff", "", other, place):
        with pytest.raises(CursorError, match="begin anew"):
            read_shown(SEAL, wrong, 20)


@given(st.sampled_from([0, 1]), st.text(), st.text())
def test_a_place_reads_as_it_was_written(section: int, title: str, item_id: str) -> None:
    place = section, title, item_id
    text = write_place(SEAL, place)
    assert read_place(SEAL, text) == place
    for wrong in (text[:-4], text.swapcase(), write_shown(SEAL, np.array([1], np.uint32))):
        with pytest.raises(CursorError):
            read_place(SEAL, wrong)


def test_a_longer_cursor_than_there_is_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = write_shown(SEAL, np.arange(1000, dtype=np.uint32))
    assert len(read_shown(SEAL, most, 1000)) == 1000

    def decoded(*_: Any, **__: Any) -> bytes:
        raise AssertionError

    monkeypatch.setattr("base64.b64decode", decoded)
    for longer in (most + "A" * 4, "A" * 10_000_000):
        with pytest.raises(CursorError):
            read_shown(SEAL, longer, 1000)
    with pytest.raises(CursorError):
        read_place(SEAL, "A" * 100_000)


def test_all_processes_of_a_store_have_one_seal(run: Run, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url, timeout_s=PATIENT_S) as store:
            seals = await asyncio.gather(*(shared_seal(store) for _ in range(5)))
            seals.append(await shared_seal(store))
            texts = {write_place(seal, (0, "a", "b")) for seal in seals}
            assert len(texts) == 1
            another = await shared_seal(store, namespace="another")
            with pytest.raises(CursorError):
                read_place(another, texts.pop())

    run(main())


def test_a_full_store_leaves_each_process_its_own_seal(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ValkeyServer(folder, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    server.start()

    async def main() -> None:
        async with Store(server.url, timeout_s=PATIENT_S) as store:
            seal = await shared_seal(store)
            assert read_place(seal, write_place(seal, (0, "a", "b"))) == (0, "a", "b")

    try:
        run(main())
    finally:
        server.kill()
    assert "cursors are of this process only" in caplog.text


# -- the service -------------------------------------------------------------------------

IDS = [f"i{n}" for n in range(60)]
PRICES = {item: n % 10 for n, item in enumerate(IDS)}
CATEGORIES = [["odd"] if n % 2 else ["even"] for n in range(60)]
EVENTS = [("i1", BASE_MS), ("i2", BASE_MS + 5000)]
AT = BASE_MS + 10**6


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("choice") / "model"
    made = make_artefact(folder, IDS)
    save_artefact(folder, made.model, Items(IDS, made.items.popularity, None, CATEGORIES), {}, "x")
    return made


@asynccontextmanager
async def shop(artefact: Artefact, url: str, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A service whose items have prices, with the user `ann`."""
    async with in_process(artefact.folder, url, exactness_every_s=0, max_k=100, **more) as client:
        batch = [{"item_id": i, "attributes": {"price": p}} for i, p in PRICES.items()]
        (await client.post("/items/batch", json={"items": batch})).raise_for_status()
        for item, ms in EVENTS:
            event = {"user_id": "ann", "item_id": item, "timestamp": ms}
            (await client.post("/interactions", json=event)).raise_for_status()
        yield client


async def asked(client: httpx.AsyncClient, user: str = "ann", **query: Any) -> dict[str, Any]:
    """By GET, by POST and, for ann, as a session: the same answer."""
    query = {"at": AT, "k": 10, "exclude_seen": False} | query
    answer = await client.get("/recommend", params={"user_id": user, **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    body = dict(query)
    for name in ("category", "include", "exclude"):
        if isinstance(body.get(name), str):
            body[name] = [body[name]]
    posted = await client.post("/recommend", json={"user_id": user, **body})
    assert posted.json() == found, posted.text
    if user == "ann" and found["version"] == len(EVENTS):
        events = [{"item_id": item, "timestamp": ms} for item, ms in EVENTS]
        session = await client.post("/recommend/session", json={"events": events, **body})
        assert [i["item_id"] for i in session.json()["items"]] == ids(found), session.text
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_filters_in_every_kind_of_answer(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    scores = offline_scores(artefact, EVENTS, AT)
    orders = {"ann": sorted(IDS, key=lambda i: -scores[i]), "nobody": popular(artefact)}

    def cheap(item: str) -> bool:
        return PRICES[item] < 3

    wanted: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        ({"filter": "price < 3"}, cheap),
        ({"category": "odd"}, lambda item: int(item[1:]) % 2 == 1),
        ({"category": ["odd", "even"], "filter": "price=9"}, lambda item: PRICES[item] == 9),
        ({"include": ["i1", "i7", "none"]}, lambda item: item in ("i1", "i7")),
        ({"include": ["i3", "i7"], "exclude": "i7"}, lambda item: item == "i3"),
        ({"filter": "category = 'odd' and price < 3", "k": 100}, lambda i: PRICES[i] == 1),
        ({"filter": "id in ('i5', 'i6')"}, lambda item: item in ("i5", "i6")),
        ({"filter": "not has(price)"}, lambda item: False),
        ({"include": "none"}, lambda item: False),
    ]

    async def main() -> None:
        async with shop(artefact, valkey.url) as client:
            for query, holds in wanted:
                for user, order in orders.items():
                    answer = await asked(client, user, **query)
                    expected = [item for item in order if holds(item)]
                    assert ids(answer) == expected[: query.get("k", 10)], (user, query)
                    path = "model" if user == "ann" else "popular"
                    assert {item["path"] for item in answer["items"]} <= {path}
                    assert "next" not in answer

            await client.put("/items/i7", json={"attributes": {"price": 99}})
            assert ids(await asked(client, filter="price > 20")) == ["i7"]
            await client.put("/items/i7", json={"attributes": {"price": 99}, "hidden": True})
            assert ids(await asked(client, filter="price > 20")) == []
            assert ids(await asked(client, include=["i7"])) == []
            await client.put("/items/new", json={"attributes": {"price": 99}})
            (new,) = (await asked(client, filter="price > 20"))["items"]
            assert new["item_id"] == "new"
            assert new["path"] == "cold"

    run(main())


def test_promotions_and_diversity(run: Run, artefact: Artefact, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with shop(artefact, valkey.url) as client:
            for user in ("ann", "nobody"):
                plain = ids(await asked(client, user))
                first = ids(await asked(client, user, filter="price = 9"))
                answer = await asked(client, user, promote="price = 9", promote_share=0.3)
                promoted = [i["item_id"] for i in answer["items"] if i["path"] == "promoted"]
                found = ids(answer)
                assert found[3] == next(item for item in first if item not in found[:3])
                assert set(promoted) <= set(first)
                assert sum(PRICES[item] == 9 for item in found) >= 3
                rest = [item for item in found if item not in first]
                assert rest == [item for item in plain if item not in first][: len(rest)]
                only = await asked(client, user, promote="price=9", filter="price=1", k=100)
                assert ids(only) == ids(await asked(client, user, filter="price=1", k=100))

                spread_out = ids(await asked(client, user, diversity=0.7))
                assert spread_out[0] == plain[0]
                assert spread_out != plain
                assert closeness(artefact, spread_out) < closeness(artefact, plain)
                everything = await asked(client, user, diversity=0.7, k=100)
                assert sorted(ids(everything)) == sorted(IDS)

    run(main())


def closeness(artefact: Artefact, items: list[str]) -> float:
    """The mean cosine of two of them."""
    rows = torch.tensor([IDS.index(item) + 1 for item in items])
    unit = torch.nn.functional.normalize(artefact.model.item_embedding.weight.detach()[rows], dim=1)
    return float((unit @ unit.T).sum() - len(items)) / (len(items) * (len(items) - 1))


QUERIES = [{}, {"diversity": 0.5}, {"promote": "price=9"}, {"filter": "price<7"}]


@pytest.mark.parametrize("query", QUERIES)
def test_pages_without_repeats(
    run: Run, artefact: Artefact, valkey: ValkeyServer, query: dict[str, Any]
) -> None:
    async def pages(client: httpx.AsyncClient, user: str, between: Any) -> list[str]:
        shown: list[str] = []
        answer = await asked(client, user, paged=True, k=7, **query)
        while True:
            shown += ids(answer)
            if "next" not in answer:
                return shown
            await between(len(shown))
            answer = await asked(client, user, after=answer["next"], k=7, **query)

    async def main() -> None:
        async with shop(artefact, valkey.url) as client:
            allowed = [item for item in IDS if "filter" not in query or PRICES[item] < 7]

            async def nothing(shown: int) -> None: ...

            async def interacts(shown: int) -> None:
                event = {"user_id": "ann", "item_id": f"i{shown}", "timestamp": AT}
                await client.post("/interactions", json=event)

            for user in ("ann", "nobody"):
                shown = await pages(client, user, nothing)
                assert sorted(shown) == sorted(allowed)
                if not query.get("diversity"):  # then pages are the list itself
                    whole = await asked(client, user, k=100, **query)
                    assert shown == ids(whole)
            # The user goes on interacting: nothing comes twice, and nothing is left out.
            assert sorted(await pages(client, "ann", interacts)) == sorted(allowed)

    run(main())


def test_a_list_ends_where_its_cursor_would_be_too_long(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    async def main() -> None:
        async with shop(artefact, valkey.url, max_paged=20) as client:
            answer = await asked(client, paged=True)
            answer = await asked(client, after=answer["next"])
            assert len(answer["items"]) == 10
            assert "next" not in answer

    run(main())


def test_a_list_goes_on_after_a_restart(run: Run, artefact: Artefact, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with shop(artefact, valkey.url) as client:
            whole = ids(await asked(client, k=20))
            answer = await asked(client, paged=True)
            listed = (await client.get("/items", params={"limit": 10})).json()
        async with in_process(
            artefact.folder, valkey.url, exactness_every_s=0, max_k=100
        ) as client:
            assert ids(answer) + ids(await asked(client, after=answer["next"])) == whole
            query = {"limit": 100, "after": listed["next"]}
            rest = (await client.get("/items", params=query)).json()
            assert sorted(ids(listed) + ids(rest)) == sorted(IDS)

    run(main())


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


BODY = np.zeros(5, "<u4").tobytes()
MADE_UP = [
    "x",
    "",
    "ä",
    "~" * 50,
    encoded("[" * 20_000),
    encoded('[0,"a","b"]'),
    encoded('[1e400,"a",{}]'),
    write_place(SEAL, (0, "a", "b")),
    write_shown(SEAL, np.zeros(5, np.uint32)),
    base64.urlsafe_b64encode(crc32(BODY).to_bytes(4, "little") + BODY).decode().rstrip("="),
]


@pytest.mark.parametrize("after", MADE_UP)
def test_what_no_page_has_given_is_refused(
    run: Run, artefact: Artefact, valkey: ValkeyServer, after: str
) -> None:
    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            said = {"user_id": "ann", "after": after}
            for answer in (
                await client.get("/recommend", params=said),
                await client.post("/recommend", json=said),
                await client.post("/recommend/session", json={"events": [], "after": after}),
                await client.get("/items", params={"after": after}),
            ):
                assert "begin anew" in str(problem(answer, 422, "after"))
            listed = (await client.get("/items", params={"limit": 1})).json()
            page = (await client.get("/recommend", params={"user_id": "ann", "paged": True})).json()
            answer = await client.get("/items", params={"after": page["next"]})
            problem(answer, 422, "after")
            answer = await client.get(
                "/recommend", params={"user_id": "ann", "after": listed["next"]}
            )
            problem(answer, 422, "after")

    run(main())


def test_a_list_of_a_query_is_bounded(run: Run, artefact: Artefact, valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            for name in ("exclude", "include", "category"):
                query = {"user_id": "ann", name: ["i1"] * MOST_LISTED}
                (await client.get("/recommend", params=query)).raise_for_status()
                query = {"user_id": "ann", name: ["i1"] * (MOST_LISTED + 1)}
                answer = await client.get("/recommend", params=query)
                assert "at most 5000" in str(problem(answer, 422))
            query = {"category": ["a"] * (MOST_LISTED + 1)}
            problem(await client.get("/items", params=query), 422)
            record = {"categories": ["a"] * (MOST_LISTED + 1)}
            problem(await client.put("/items/i1", json=record), 422)

    run(main())


def test_what_is_too_much_at_once_is_refused(
    run: Run, artefact: Artefact, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.catalogue.turns.TURN_S", 0)
    monkeypatch.setattr("service.catalogue.turns.Turns.__init__.__defaults__", (3,))

    async def main() -> None:
        async with shop(artefact, valkey.url) as client:
            ask = [
                client.get("/recommend", params={"user_id": "ann", "filter": f"price < {n}"})
                for n in range(12)
            ]
            answers = await asyncio.gather(*ask)
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 503}
            refused = answers[statuses.index(503)]
            assert "nothing was done" in str(problem(refused, 503))
            assert refused.headers["Retry-After"]
            assert (
                'tim4rec_refused_requests_total{reason="catalogue"}'
                in (await client.get("/metrics")).text
            )
            assert ids(await asked(client, filter="price < 3"))

    run(main())


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ({"filter": "price <"}, "filter", "at 8: "),
        ({"filter": ""}, "filter", "at 1: "),
        ({"filter": "a" * 3000}, "filter", "at most 2000 characters, not 3000"),
        ({"promote": "price"}, "promote", "at 6: "),
        ({"promote": "price=1", "promote_share": 0}, "promote_share", "more than 0"),
        ({"promote_share": 1.1}, "promote_share", "at most 1"),
        ({"diversity": 2}, "diversity", "at most 1"),
        ({"diversity": "nan"}, "diversity", ""),
        ({"after": "x"}, "after", "`next` of the page before"),
        ({"k": 101}, "k", "at most 100"),
    ],
)
def test_wrong_options(
    run: Run, artefact: Artefact, valkey: ValkeyServer,
    query: dict[str, Any], field: str, said: str,
) -> None:  # fmt: skip
    async def main() -> None:
        async with in_process(
            artefact.folder, valkey.url, exactness_every_s=0, max_k=100
        ) as client:
            answer = await client.get("/recommend", params={"user_id": "ann", **query})
            assert said in str(problem(answer, 422, field))
            answer = await client.post("/recommend", json={"user_id": "ann", **query})
            assert said in str(problem(answer, 422, field))

    run(main())


def test_filters_with_an_index(
    run: Run, tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer
) -> None:
    many = [f"i{n}" for n in range(1500)]
    folder = tmp_path_factory.mktemp("indexed")
    artefact = make_artefact(folder / "model", many)
    scores = offline_scores(artefact, EVENTS, AT)
    settings = {"exactness_every_s": 0, "retrieval": "index", "data_dir": folder}

    async def main() -> None:
        async with in_process(folder / "model", valkey.url, **settings) as client:
            for start in range(0, 1500, 1000):
                batch = [
                    {"item_id": item, "attributes": {"n": n}}
                    for n, item in enumerate(many)
                    if start <= n < start + 1000
                ]
                (await client.post("/items/batch", json={"items": batch})).raise_for_status()
            await client.put("/items/i3", json={"hidden": True})
            for item, ms in EVENTS:
                event = {"user_id": "ann", "item_id": item, "timestamp": ms}
                (await client.post("/interactions", json=event)).raise_for_status()
            hits = 0
            for least in (1495, 1490, 1400, 500, 0):
                answer = await asked(client, filter=f"n >= {least}")
                left = [item for n, item in enumerate(many) if n >= least and n != 3]
                best = sorted(left, key=lambda item: -scores[item])[:10]
                assert len(set(ids(answer))) == len(best)
                assert set(ids(answer)) <= set(left)
                hits += len(set(ids(answer)) & set(best))
                if len(left) < 300:
                    assert ids(answer) == best
            assert hits >= 43  # of 45

    run(main())
