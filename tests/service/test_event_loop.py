"""What a caller asks for holds the event loop for no longer than a moment, be it the first or the
longest of its kind. The catalogue: test_turns.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from model.artefact import Artefact
from service.feedback.popularity import Popularity
from service.store.client import Store
from service.store.events import Event, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.held import HELD_S, watched, without_garbage
from tests.service.processes import in_process, make_artefact

EVENTS = 10_000
ITEMS = [f"i{n}" for n in range(1000)]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("loop") / "model", ITEMS)


@pytest.mark.slow
def test_the_longest_page_of_a_history(artefact: Artefact, store_url: str, run: Run) -> None:
    async def go() -> None:
        async with in_process(artefact.folder, store_url) as client:
            for _ in range(EVENTS // 1000):
                some = [{"user_id": "ann", "item_id": item} for item in ITEMS]
                answer = await client.post("/interactions/batch", json={"interactions": some})
                assert answer.json()["accepted"] == 1000
            with without_garbage():
                async with watched() as held:
                    answer = await client.get(f"/users/ann/history?limit={EVENTS}")
            assert len(answer.json()["events"]) == EVENTS
            assert held.longest < HELD_S / 2 < held.total

    run(go())


@pytest.mark.slow
def test_a_long_history_is_taken_back(valkey: ValkeyServer, run: Run) -> None:
    """Of what its user was erased from: what is popular."""
    now = round(time.time() * 1000)
    events = [Event(n + 1, new_uid(), f"i{n}", now, now, None) for n in range(60_000)]

    async def go() -> None:
        async with Store(valkey.url) as store:
            popularity = Popularity(store)
            for event in events[::100]:
                popularity.count(event.item_id, event.time_ms)
            await popularity.flush()
            await popularity.refresh()
            assert len(popularity.counts.all) == 600
            with without_garbage():
                async with watched() as held:
                    popularity.removed(events)
                    await popularity.flush(settled=True)
            assert held.longest < HELD_S < held.total
            await popularity.refresh()
            assert not popularity.counts.all

    run(go())


def test_the_first_who_asks(artefact: Artefact, store_url: str, run: Run) -> None:
    """For a page, the documentation, an answer: what is made once is there."""

    async def go() -> None:
        async with in_process(artefact.folder, store_url) as client:
            with without_garbage():
                for path in ("/openapi.json", "/docs", "/", "/recommend?user_id=ann", "/items"):
                    async with watched() as held:
                        assert (await client.get(path)).status_code == 200
                    assert held.longest < HELD_S, path

    run(go())
