"""What callers get while the store does not answer, and how soon."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from model.artefact import Artefact
from service.store.client import Store
from service.store.errors import NodeDown
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import NewEvent, new_uid
from tests.faults.relay import Relay
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    in_process,
    make_artefact,
    offline_scores,
    popular,
)
from tests.waited import LONG_S, until, waited

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"i{n}" for n in range(20)]
AT_MS = BASE_MS + 10**9
TIMEOUT_S = 1.0
GRACE_S = 0.8
"""For all but waiting for the store; less than another timeout."""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("away") / "model", ITEMS)


@pytest.fixture
def frozen(durable_valkey: ValkeyServer) -> Iterator[Callable[[bool], None]]:
    yield lambda freeze: durable_valkey.send(signal.SIGSTOP if freeze else signal.SIGCONT)
    durable_valkey.send(signal.SIGCONT)


async def post(client: httpx.AsyncClient, user: str, item: str, number: int = 0) -> httpx.Response:
    event = {
        "user_id": user,
        "item_id": item,
        "timestamp": BASE_MS + number * 60_000,
        "event_id": f"{number}",
    }
    return await client.post("/interactions", json=event)


async def recommend(client: httpx.AsyncClient, user: str, **query: Any) -> httpx.Response:
    return await client.get("/recommend", params={"user_id": user, "k": 5, "at": AT_MS, **query})


async def counted(client: httpx.AsyncClient, source: str) -> float:
    name = f'tim4rec_answers_without_store_total{{source="{source}"}} '
    text = (await client.get("/metrics")).text
    (value,) = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)


@pytest.mark.parametrize("away", ["refuse", "pool", "popular"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_reads_while_the_store_is_away(
    run: Run,
    artefact: Artefact,
    durable_valkey: ValkeyServer,
    frozen: Callable[[bool], None],
    away: str,
    how: str,
) -> None:
    known = [("i3", 0), ("i7", 60_000)]
    scores = offline_scores(artefact, [(item, BASE_MS + ms) for item, ms in known], AT_MS)

    async def main() -> None:
        settings = {"store_away": away, "store_timeout_s": TIMEOUT_S}
        async with in_process(artefact.folder, durable_valkey.url, **settings) as client:
            for number, (item, _) in enumerate(known):
                assert (await post(client, "known", item, number)).status_code == 200
            assert (await recommend(client, "known")).json()["stale"] is False
            before = [await counted(client, source) for source in ("pool", "popular")]
            durable_valkey.kill() if how == "killed" else frozen(True)

            asked = {"user_id": "stranger", "item_ids": ["i1", "x", "i2"]}
            async with waited() as waiting:
                answers = await asyncio.gather(
                    recommend(client, "known"),
                    recommend(client, "stranger", exclude=["i1"]),
                    client.post("/rank", json=asked),
                    post(client, "known", "i9", 2),
                    recommend(client, "known", category="none"),
                )
            assert waiting.seconds < TIMEOUT_S + GRACE_S
            of_known, of_stranger, ranked, posted, none = answers
            assert posted.status_code == 503
            assert int(posted.headers["retry-after"]) >= 1
            expected = {"refuse": (503, 503), "pool": (200, 503), "popular": (200, 200)}[away]
            assert (of_known.status_code, of_stranger.status_code) == expected
            assert (none.status_code, ranked.status_code) == expected
            if away != "refuse":
                answer = of_known.json()
                assert (answer["stale"], answer["version"]) == (True, 2)
                check_answer(answer, scores, 5, without=["i3", "i7"])
                assert none.json()["items"] == []
            if away == "popular":
                answer = of_stranger.json()
                assert (answer["stale"], answer["version"]) == (True, 0)
                assert answer["source"] == "popular"
                best = [item for item in popular(artefact) if item != "i1"]
                assert [item["item_id"] for item in answer["items"]] == best[:5]
                order = [item["item_id"] for item in ranked.json()["items"]]
                assert order == [*(i for i in popular(artefact) if i in ("i1", "i2")), "x"]
            gained = [await counted(client, source) for source in ("pool", "popular")]
            assert [now - then for now, then in zip(gained, before, strict=True)] == [
                2 * (away != "refuse"), 2 * (away == "popular")
            ]  # fmt: skip
            ready = await client.get("/readyz")
            assert ready.status_code == (503 if away == "refuse" else 200)
            if away != "refuse":
                assert ready.json()["store"] == "away"

            durable_valkey.start() if how == "killed" else frozen(False)
            async with asyncio.timeout(LONG_S), waited() as waiting:
                while (await post(client, "known", "i9", 2)).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert waiting.seconds < 2 + GRACE_S
            answer = (await recommend(client, "known")).json()
            assert (answer["stale"], answer["version"]) == (False, 3)

    run(main())


def test_nobody_waits_for_a_store_that_is_known_to_be_away(
    run: Run, artefact: Artefact, durable_valkey: ValkeyServer, frozen: Callable[[bool], None]
) -> None:
    """Waves go one after the other, so each would wait behind all before it."""

    async def main() -> None:
        settings = {"store_timeout_s": 1.2, "max_batch": 4}
        async with in_process(artefact.folder, durable_valkey.url, **settings) as client:
            await post(client, "u0", "i1")
            frozen(True)
            for bound_s in (1.2 + GRACE_S, GRACE_S):
                async with waited() as waiting:
                    asked = (post(client, f"u{n}", "i1") for n in range(40))
                    answers = await asyncio.gather(*asked)
                assert {answer.status_code for answer in answers} == {503}
                assert waiting.seconds < bound_s
            frozen(False)
            async with asyncio.timeout(LONG_S):
                while (await post(client, "u0", "i1")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            for n in range(40):
                assert (await post(client, f"u{n}", "i1")).json()["version"] == 1

    run(main())


def test_who_waits_already_goes_on_until_its_deadline(
    run: Run, durable_valkey: ValkeyServer
) -> None:
    """A restart within the timeout costs time and no 503, however soon the breaker opens."""

    async def main() -> None:
        async with Store(durable_valkey.url, timeout_s=60) as store:
            log = EventLog(store)
            request = LogRequest("u", None, [NewEvent(new_uid(), "i1")])
            await log.exchange([request])
            durable_valkey.kill()
            waiting = asyncio.create_task(log.exchange([request]))
            await asyncio.sleep(1.6)
            async with waited() as refusing:
                with pytest.raises(NodeDown):
                    await store.execute([("PING",)], 5)
                (refused,) = await EventLog(store).exchange([request])
            assert isinstance(refused, NodeDown)
            assert refusing.seconds < GRACE_S
            await asyncio.to_thread(durable_valkey.start)
            (reply,) = await waiting
            assert isinstance(reply, LogReply)
            assert reply.newest.version == 1
            assert not store.failing

    run(main())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_was_reset(
    folder: Path, durable_valkey: ValkeyServer, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Idle, or within a wave; event loops tell it in ways of their own."""
    relay = Relay(durable_valkey.socket)

    async def main() -> None:
        async with Store(relay.url, timeout_s=5) as store:
            log = EventLog(store)
            versions = []
            for number in range(8):
                if number % 4 == 3:
                    relay.aim(durable_valkey.socket)  # resets all connections
                elif number:
                    relay.break_next("request" if number % 2 else "reply", 1)
                request = LogRequest("u", None, [NewEvent(new_uid(), f"i{number}")])
                (reply,) = await log.exchange([request])
                assert isinstance(reply, LogReply), reply
                versions.append(reply.newest.version)
            assert versions == list(range(1, 9))
            assert relay.broken == 5
            await asyncio.sleep(0.1)
            relay.aim(durable_valkey.socket)
            await asyncio.sleep(0.1)
            # Whoever comes later does not get to know of it.
            assert await store.execute([("PING",)], 10) == [b"PONG"]

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
    finally:
        relay.close()


def test_a_read_beside_a_write_that_is_refused(
    run: Run, artefact: Artefact, durable_valkey: ValkeyServer
) -> None:
    """A full store refuses the one and answers the other, though they share a wave and a user."""

    async def main() -> None:
        async with in_process(artefact.folder, durable_valkey.url) as client:
            assert (await post(client, "u", "i3")).status_code == 200
            with durable_valkey.client() as direct:
                direct.config_set("maxmemory", 1)
            for number in range(1, 6):
                asked = (post(client, "u", "i7", number), recommend(client, "u"))
                posted, answer = await asyncio.gather(*asked)
                assert posted.status_code == 503
                assert answer.status_code == 200, answer.text
                assert (answer.json()["stale"], answer.json()["version"]) == (False, 1)

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_an_outage_is_two_lines_of_the_log(
    artefact: Artefact,
    folder: Path,
    durable_valkey: ValkeyServer,
    frozen: Callable[[bool], None],
    how: str,
) -> None:
    service = Service(
        artefact.folder,
        folder / "output",
        redis_url=durable_valkey.url,
        store_timeout_s=TIMEOUT_S,
        snapshot_every=2,
        outcome_window_s=60,
        exactness_every_s=0.1,
    )

    def warned() -> list[str]:
        return [
            record["message"]
            for level in ("WARNING", "ERROR", "CRITICAL")
            for record in service.logged(level=level)
            if record["logger"] != "service.http.observer"  # each request, by log_requests
        ]

    def statuses(number: int) -> list[int]:
        events = [{"user_id": f"u{n}", "item_id": "i3"} for n in range(number)]
        return [client.post("/interactions", json=event).status_code for event in events]

    try:
        service.start()
        with service.client() as client:
            assert statuses(5) == [200] * 5
            before = len(warned())
            durable_valkey.kill() if how == "killed" else frozen(True)
            refused = statuses(20).count(503)
            until(lambda: len(warned()) == before + 1)
            durable_valkey.start() if how == "killed" else frozen(False)
            until(lambda: len(warned()) == before + 2)
            until(lambda: statuses(1) == [200])
            lost, back = warned()[before:]
    finally:
        service.kill()
    gone = "Connection refused|No such file|" if how == "killed" else ""
    fault = rf"{gone}no answer within \d"
    where = re.escape(str(durable_valkey.socket))
    assert re.match(rf"store lost: .*{where}: .*({fault})", lost)
    found = re.fullmatch(rf"store back after (.+) s, (\d+) requests refused: .*{where}", back)
    assert found
    assert float(found[1]) >= 1
    assert int(found[2]) == refused > 0
