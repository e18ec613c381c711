"""Places of a list for items of which little is known."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.artefact import Artefact, save_artefact
from model.items import Items
from service.catalogue import exploration
from service.catalogue.ask import Ask
from service.catalogue.choice import Choice
from service.catalogue.exploration import WELL_SHOWN, WELL_TRAINED, Exploration, seed_of
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView, Selection
from service.settings import Settings
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]

TRAINED, SIZE = 60, 100
COUNTS = np.where(np.arange(1, TRAINED + 1) % 10 == 0, WELL_TRAINED - 1, WELL_TRAINED)
LITTLE_KNOWN = {row for row in range(1, SIZE + 1) if row > TRAINED or row % 10 == 0}


def ranking(rows: list[int]) -> Ranking:
    return Ranking(np.array(rows, np.int64), np.arange(len(rows), 0, -1, dtype=np.float32))


def flags(rows: set[int]) -> np.ndarray:
    found = np.zeros(SIZE + 1, np.bool_)
    found[list(rows)] = True
    return found


def explored(found: Ranking) -> list[int]:
    return [] if found.explored is None else found.items[found.explored].tolist()


rows_of = st.sets(st.integers(1, SIZE), max_size=40)


@settings(max_examples=examples(200))
@given(
    share=st.floats(0, 0.5),
    best=st.lists(st.integers(1, SIZE), max_size=30, unique=True),
    blocked=rows_of,
    hidden=rows_of,
    seen=rows_of,
    selected=st.none() | rows_of,
    promote_share=st.none() | st.floats(0.05, 1),
    before=st.integers(0, 20),
    well_shown=rows_of,
    seed=st.integers(0, 2**64 - 1),
)
def test_what_always_holds_of_an_answer(
    share: float,
    best: list[int],
    blocked: set[int],
    hidden: set[int],
    seen: set[int],
    selected: set[int] | None,
    promote_share: float | None,
    before: int,
    well_shown: set[int],
    seed: int,
) -> None:
    tried = Exploration(share, COUNTS)
    tried.know([(row, WELL_SHOWN, 1) for row in sorted(well_shown)])
    choice = None
    if selected is not None or promote_share is not None:
        only = None if selected is None else Selection(flags(selected))
        promoted = None if promote_share is None else Selection(flags(set(best)))
        choice = Choice(only, promoted, promote_share or 0.0, places=before)
    ask = Ask(
        len(best),
        hidden=np.array(sorted(hidden), np.int32),
        seen=np.array(sorted(seen), np.int32),
        choice=choice,
    )
    given = ranking(best)
    found = tried.arrange(given, ask, CatalogueView(SIZE, flags(blocked)), seed)
    new, items = explored(found), found.items.tolist()

    assert len(new) <= math.ceil(share * len(best))
    assert len(items) == len(set(items)) == len(best)
    allowed = LITTLE_KNOWN - blocked - hidden - seen - well_shown - set(best)
    assert set(new) <= (allowed if selected is None else allowed & selected)
    score_of = dict(zip(best, given.scores.tolist(), strict=True))
    pairs = list(zip(items, found.scores.tolist(), strict=True))
    assert all(score_of.get(row, score) == score for row, score in pairs)
    promised: set[int] = set()
    if choice is not None and choice.promoted is not None:
        promised = {place for place in range(len(best)) if choice.is_promised(before + place)}
    assert all(items[place] == best[place] for place in promised)
    others = [row for place, row in enumerate(best) if place not in promised]
    kept = [row for place, row in enumerate(items) if place not in promised and row not in new]
    assert kept == others[: len(kept)]  # the last ones have gone
    if not promised:
        assert (np.diff(found.scores) <= 0).all()
    again = tried.arrange(given, ask, CatalogueView(SIZE, flags(blocked)), seed)
    assert again.items.tolist() == items


@pytest.mark.parametrize("k", [1, 3, 10, 24])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.29, 0.5])
def test_the_share_holds_over_many_answers(share: float, k: int) -> None:
    tried, best = Exploration(share, COUNTS), ranking([n for n in range(1, 60) if n % 10][:k])
    many = 500
    seeds = [(2 * n + 1) * 2**64 // (2 * many) for n in range(many)]
    numbers = [
        len(explored(tried.arrange(best, Ask(k), CatalogueView(SIZE), seed))) for seed in seeds
    ]
    assert sum(numbers) / many == pytest.approx(share * k, abs=1 / many)
    assert max(numbers) - min(numbers) <= 1


def test_each_user_version_and_minute_has_a_list_of_its_own() -> None:
    assert seed_of("ann", 3, 60_000) == seed_of("ann", 3, 119_999)
    others = {seed_of(*one) for one in [("ann", 3, 0), ("ann", 3, 60_000), ("ann", 4, 0)]}
    others |= {seed_of("ann\0", 3, 0), seed_of("ben", 3, 0)}
    assert len(others) == 5
    seed_of("\udfff", 0, 0)  # half of a surrogate pair is a user, too


def chosen(tried: Exploration, number: int) -> Counter[int]:
    best = ranking([n for n in range(1, 60) if n % 10][:10])
    view = CatalogueView(SIZE)
    return Counter(
        row
        for n in range(number)
        for row in explored(tried.arrange(best, Ask(10), view, seed_of("ann", n, 0)))
    )


def test_those_that_may_be_best_come_first() -> None:
    tried = Exploration(0.1, COUNTS)
    assert set(chosen(tried, 1500)) == LITTLE_KNOWN  # of none is anything known
    others = sorted(LITTLE_KNOWN - {71})
    tried.know([(row, 100, 0 if row % 2 else 10) for row in others])
    found = chosen(tried, 1500)
    assert found[71] > 30  # never shown: it may be one of the best
    assert not [row for row in found if row % 2 and row != 71]
    tried.know([(row, 100, 5 if row == 70 else 0) for row in sorted(LITTLE_KNOWN)])
    assert chosen(tried, 300)[70] > 200  # taken
    tried.know([(row, WELL_SHOWN, 5) for row in sorted(LITTLE_KNOWN - {72})])
    assert set(chosen(tried, 30)) == {72}  # the others are known
    tried.know([(row, WELL_SHOWN, 5) for row in sorted(LITTLE_KNOWN)])
    assert not chosen(tried, 30)


def test_every_place_is_given() -> None:
    tried, view = Exploration(0.1, COUNTS), CatalogueView(SIZE)
    best = ranking([n for n in range(1, 60) if n % 10][:10])
    places = Counter[int]()
    for n in range(2000):
        found = tried.arrange(best, Ask(10), view, seed_of("ann", n, 0))
        assert found.explored is not None
        places.update(np.flatnonzero(found.explored).tolist())
    assert set(places) == set(range(10))
    assert max(places.values()) < 2 * min(places.values())


def test_the_share_needs_outcomes() -> None:
    with pytest.raises(ValidationError, match=r"explore_share 0.2 .* set outcome_window_s"):
        Settings(artefact="a", explore_share=0.2)
    with pytest.raises(ValidationError, match="explore_share"):
        Settings(artefact="a", explore_share=0.6, outcome_window_s=60)


# -- the service ---------------------------------------------------------------------------

IDS = [f"i{n}" for n in range(40)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("explored") / "model"
    made = make_artefact(folder, IDS)
    save_artefact(folder, made.model, Items(IDS, np.arange(100, 60, -1)), {}, "x")
    return made


async def put(client: httpx.AsyncClient, item: str, **record: Any) -> None:
    (await client.put(f"/items/{item}", json=record)).raise_for_status()


async def write(client: httpx.AsyncClient, user: str, item: str) -> None:
    event = {"user_id": user, "item_id": item, "timestamp": BASE_MS}
    (await client.post("/interactions", json=event)).raise_for_status()


async def lists(client: httpx.AsyncClient, users: int, **query: Any) -> list[list[dict[str, Any]]]:
    """The items of answers to as many users: half of them have done something."""
    found = []
    for n in range(users):
        if n % 2:
            await write(client, f"u{n}", "i1")
        answer = await client.get("/recommend", params={"user_id": f"u{n}", "k": 10, **query})
        found.append(answer.raise_for_status().json()["items"])
    return found


def explored_of(answers: list[list[dict[str, Any]]]) -> Counter[str]:
    for items in answers:
        ids = [item["item_id"] for item in items]
        assert len(ids) == len(set(ids)) == 10
        assert all(item["explored"] for item in items if "explored" in item)
        assert all(("explored" in item) == (item["path"] == "explored") for item in items)
    return Counter(item["item_id"] for items in answers for item in items if "explored" in item)


def test_new_items_are_shown_where_the_service_explores(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    async def go() -> None:
        options = {"outcome_window_s": 60, "exactness_every_s": 0, "quality_sample": 0}
        async with (
            in_process(artefact.folder, valkey.url, **options) as plain,
            in_process(artefact.folder, valkey.url, explore_share=0.2, **options) as client,
        ):
            await put(plain, "new", categories=["a"])
            await put(client, "hidden", hidden=True)
            await put(client, "b only", categories=["b"])
            answers = await lists(plain, 20)
            assert not explored_of(answers)
            assert not any(item["item_id"] == "new" for items in answers for item in items)

            answers = await lists(client, 20)
            found = explored_of(answers)
            assert set(found) == {"new", "b only"}
            assert found.total() == 40
            assert explored_of(await lists(client, 10, filter='not category = "b"')) == {"new": 10}
            for query in ({"explore": False}, {"live": False}):
                assert not explored_of(await lists(client, 4, **query))
            session = {"events": [{"item_id": "i1"}], "k": 10}
            answer = await client.post("/recommend/session", json=session)
            assert not explored_of([answer.raise_for_status().json()["items"]])

            explained = (await lists(client, 2, explain=True))[1]
            assert all(item["because"] for item in explained)
            assert any("explored" in item for item in explained)

            promoted = await lists(client, 4, promote='has(nothing) or id = "i39"', exclude="new")
            assert all("explored" not in items[4] for items in promoted)

            query = {"user_id": "u1", "k": 10, "paged": True}
            page = (await client.get("/recommend", params=query)).json()
            query["after"] = page["next"]
            after = (await client.get("/recommend", params=query)).json()
            both = [item["item_id"] for item in page["items"] + after["items"]]
            assert len(both) == len(set(both)) == 20

    run(go())


def test_an_item_that_was_shown_often_is_known(
    run: Run, artefact: Artefact, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exploration, "WELL_SHOWN", 8)

    async def go() -> None:
        options = {"outcome_window_s": 60, "explore_share": 0.2, "popular_refresh_s": 0.02}
        async with (
            in_process(artefact.folder, valkey.url, **options) as client,
            in_process(artefact.folder, valkey.url, **options) as other,
        ):
            await put(client, "new")
            assert explored_of(await lists(client, 8)) == {"new": 8}
            await write(client, "u0", "new")
            with valkey.client() as store:
                async with asyncio.timeout(LONG_S):
                    while not (keys := store.keys("tim4rec:explored:taken:*")):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert store.hgetall(keys[0]) == {b"new": b"1"}
            async with asyncio.timeout(LONG_S):
                while explored_of(await lists(other, 1, exclude_seen=False)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            (await client.delete("/users/u0")).raise_for_status()
            with valkey.client() as store:
                assert store.hgetall(keys[0]) == {b"new": b"1"}

    run(go())
