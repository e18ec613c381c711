"""The service with `history_limit`: what rests on a part of a history is told apart."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.artefact import Artefact
from service.bulk.importer import Importer, UserHistory
from service.bulk.warm import Warmer
from service.engine.engine import Engine
from service.engine.exactness import ExactnessSampler
from service.environment import SettingsError, read_settings
from service.store.client import Store
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from tests.service.processes import (
    BASE_MS,
    check_answer,
    in_process,
    make_artefact,
    offline_scores,
)

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"item {i}" for i in range(40)]
LIMIT, EVERY, EVENTS = 10, 4, 30
SETTINGS = {"history_limit": LIMIT, "dedup_window": 4, "snapshot_every": EVERY}
GIVEN = [(ITEMS[i % 7], BASE_MS + 3_600_000 * i) for i in range(EVENTS)]
AT = GIVEN[-1][1] + 60_000


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("model"), ITEMS)


async def post(client: Any, events: list[tuple[str, int]]) -> None:
    for item, ms in events:
        body = {"user_id": "u", "item_id": item, "timestamp": ms}
        answer = await client.post("/interactions", json=body)
        assert answer.status_code == 200, answer.text


async def recommend(client: Any) -> dict[str, Any]:
    query = {"user_id": "u", "k": 40, "exclude_seen": False, "at": AT}
    answer = await client.get("/recommend", params=query)
    found: dict[str, Any] = answer.json()
    return found


def snapshots(valkey: ValkeyServer) -> list[bytes]:
    with valkey.client() as client:
        return list(client.scan_iter("tim4rec:s:*"))


def test_exact_as_long_as_a_state_of_the_whole_is_left(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    whole = offline_scores(artefact, GIVEN, AT)
    part = offline_scores(artefact, GIVEN[-LIMIT:], AT)
    assert max(abs(whole[item] - part[item]) for item in ITEMS) > 1e-3

    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, **SETTINGS) as client:
            await post(client, GIVEN[:LIMIT])
            assert not (await client.get("/users/u")).json()["history_truncated"]
            assert not (await client.get("/users/u/history")).json()["history_truncated"]
            await post(client, GIVEN[LIMIT:])
            answer = await recommend(client)  # from a row that has seen everything
            assert (answer["version"], answer["history_truncated"]) == (EVENTS, False)
            check_answer(answer, whole, 40)
            user = (await client.get("/users/u")).json()
            assert (user["version"], user["history_truncated"]) == (EVENTS, True)
            page = (await client.get("/users/u/history")).json()
            assert page["history_truncated"]
            versions = [event["version"] for event in page["events"]]
            assert versions == list(range(EVENTS - LIMIT + 1, EVENTS + 1))
        async with in_process(artefact.folder, valkey.url, **SETTINGS) as client:
            answer = await recommend(client)  # from a snapshot of the whole, and what follows it
            assert (answer["version"], answer["history_truncated"]) == (EVENTS, False)
            check_answer(answer, whole, 40)
        with valkey.client() as store:
            store.delete(*snapshots(valkey))
        async with in_process(artefact.folder, valkey.url, **SETTINGS) as client:
            answer = await recommend(client)
            assert (answer["version"], answer["history_truncated"]) == (EVENTS, True)
            check_answer(answer, part, 40)
            # It goes on from there, and never passes for a state of the whole.
            more = [(ITEMS[8], AT - 1)] * 2 * EVERY
            await post(client, more)
            answer = await recommend(client)
            assert (answer["version"], answer["history_truncated"]) == (EVENTS + len(more), True)
            check_answer(answer, offline_scores(artefact, GIVEN[-LIMIT:] + more, AT), 40)
        assert snapshots(valkey) == []

    run(main())


def test_a_history_of_several_pages(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    async def main() -> None:
        limited = {"history_limit": 300, "dedup_window": 300}  # a page has 256
        given = [(ITEMS[i % 7], BASE_MS + 1000 * i) for i in range(400)]
        body = [{"user_id": "u", "item_id": item, "timestamp": ms} for item, ms in given]
        async with in_process(artefact.folder, valkey.url, **limited) as client:
            answer = await client.post("/interactions/batch", json={"interactions": body})
            assert answer.json()["accepted"] == 400
            page = (await client.get("/users/u/history", params={"limit": 200})).json()
            assert [event["version"] for event in page["events"]] == list(range(101, 301))
            assert page["next"] == 300
        with valkey.client() as store:
            store.delete(*snapshots(valkey))
        async with in_process(artefact.folder, valkey.url, **limited) as client:
            answer = await recommend(client)
            assert (answer["version"], answer["history_truncated"]) == (400, True)
            check_answer(answer, offline_scores(artefact, given[-300:], AT), 40)

    run(main())


def test_what_cannot_be_recomputed_is_left_out(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store, history_limit=LIMIT, dedup_window=LIMIT)
            engine = Engine(artefact, log)
            await engine.start()
            try:
                sampler = ExactnessSampler(engine, every_s=1000, max_events=1000, tolerance=1e-3)
                for item, ms in GIVEN[:LIMIT]:
                    await engine.append("u", [NewEvent(new_uid(), item, ms)])
                await engine.recommend("u", 1)
                assert await sampler.check("u") is not None
                await engine.append("u", [NewEvent(new_uid(), *GIVEN[LIMIT])])
                await engine.recommend("u", 1)
                assert await sampler.check("u") is None
            finally:
                await engine.stop()

            warmer = Warmer(artefact, log)
            await log.exchange([LogRequest("v", None, [NewEvent(new_uid(), "item 1")])])
            result = await warmer.run(lambda done: None)
            assert (result.truncated, result.written, result.users) == (1, 1, 2)
            assert len(snapshots(valkey)) == 1

            given = UserHistory("u", *zip(*GIVEN, strict=True))
            importer = Importer(log, log, existing="append")
            ((user, why),) = (await importer.run([given], lambda done: None)).refused
            assert user == "u"
            assert "history_limit" in why

    run(main())


def test_an_import_goes_on_though_its_beginning_is_gone(valkey: ValkeyServer, run: Run) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store, history_limit=LIMIT, dedup_window=LIMIT)
            for events in (20, EVENTS, EVENTS):
                items, times = zip(*GIVEN[:events], strict=True)
                importer = Importer(log, log)
                result = await importer.run([UserHistory("u", items, times)], lambda done: None)
                assert result.refused == []
            found = [event async for page in log.events("u") for event in page]
            assert [(e.item_id, e.time_ms) for e in found] == GIVEN[-LIMIT:]
            assert found[-1].version == EVENTS

    run(main())


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [({"history_limit": 200}, True), ({"history_limit": 1000}, False), ({}, False)],
)
def test_the_settings_fit_together(tmp_path: Path, settings: dict[str, int], wrong: bool) -> None:
    if wrong:
        with pytest.raises(SettingsError, match="history_limit 200 must be 0 or at least dedup_"):
            read_settings({"artefact": tmp_path, **settings})
    else:
        read_settings({"artefact": tmp_path, **settings})
