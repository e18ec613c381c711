"""Two service processes of two workers each on one store, with the same users everywhere."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from model.artefact import Artefact
from service.observe.values import WRITE_EVERY_S
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
    user_path,
)
from tests.waited import LONG_S, at_last

ITEMS = [f"i{n}" for n in range(40)]
AT_MS = BASE_MS + 10**9
WORKERS = 2
pytestmark = pytest.mark.slow  # four processes

# Small, so that states are evicted, rebuilt and snapshot all the time.
SMALL = {"max_batch": 4, "pool_capacity": 16, "snapshot_every": 8, "dedup_window": 100}


@dataclass
class Pair:
    services: list[Service]
    counted: list[Path]  # where the workers of each keep their metrics
    store: ValkeyServer
    artefact: Artefact


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    artefact = make_artefact(tmp_path_factory.mktemp("workers") / "model", ITEMS)
    store = ValkeyServer(folder)
    store.start()
    services, counted = [], []
    try:
        for number in range(2):
            counted.append(folder / f"metrics{number}")
            counted[-1].mkdir()
            services.append(
                Service(
                    artefact.folder, folder / f"output{number}", "--workers", str(WORKERS),
                    "--redis", store.url, PROMETHEUS_MULTIPROC_DIR=counted[-1], **SMALL,
                )
            )  # fmt: skip
            services[-1].start(wait=False)
        for service in services:
            service.wait_ready()
        yield Pair(services, counted, store, artefact)
    finally:
        for service in services:
            service.kill()
        store.kill()
        shutil.rmtree(folder)


def by_worker(folder: Path, name: str, **labels: str) -> list[float]:
    """Each worker's own value of a sample, from the file it keeps."""
    found = []
    for file in sorted(folder.glob("*_*.db")):
        value = 0.0
        for key, number, _, _ in MmapedDict.read_all_values_from_file(str(file)):
            if f'"{name}"' in key and all(f'"{k}": "{v}"' in key for k, v in labels.items()):
                value += number
        found.append(value)
    return [value for value in found if value]


def scraped(service: Service, name: str, **labels: str) -> float:
    text = httpx.get(f"{service.url}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@asynccontextmanager
async def clients(pair: Pair) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Of each service, a client that opens a connection for every request: any worker may get
    it."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=pair.services[0].url, timeout=LONG_S, limits=limits) as one,
        httpx.AsyncClient(base_url=pair.services[1].url, timeout=LONG_S, limits=limits) as two,
    ):
        yield [one, two]


async def get(client: httpx.AsyncClient, user: str, **query: Any) -> dict[str, Any]:
    answer = await client.get("/recommend", params={"user_id": user, **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def load(pair: Pair, users: list[str], each: int) -> dict[str, list[tuple[int, str]]]:
    """Two writers a user, one at each service, both at once; after every POST a GET at the
    other service must know it. Returns (version, event id) of everything acknowledged."""
    acknowledged: dict[str, list[tuple[int, str]]] = {user: [] for user in users}
    rng = random.Random(0)

    async def write(both: list[httpx.AsyncClient], user: str, at: int) -> None:
        number = 0
        while number < each:
            size = rng.choice([1, 1, 1, 2, 12])
            events = [
                {
                    "user_id": user,
                    "item_id": rng.choice([*ITEMS[:20], "unknown"]),
                    "timestamp": BASE_MS + (number + place) * 3_600_000 + rng.randrange(3_600_000),
                    "event_id": f"{at}-{number + place}",
                }
                for place in range(size)
            ]
            number += size
            if size == 1:
                answer = await both[at].post("/interactions", json=events[0])
                assert answer.status_code == 200, answer.text
                results = [answer.json()]
            else:
                answer = await both[at].post("/interactions/batch", json={"interactions": events})
                assert answer.status_code == 200, answer.text
                results = answer.json()["results"]
            for event, result in zip(events, results, strict=True):
                assert result["status"] in ("applied", "late", "unknown_item"), result
                acknowledged[user].append((result["version"], event["event_id"]))
            seen = await get(both[1 - at], user, k=1)
            assert seen["version"] >= results[-1]["version"], "a GET after the POST misses it"

    async with clients(pair) as both, asyncio.TaskGroup() as tasks:
        for user in users:
            for at in range(2):
                tasks.create_task(write(both, user, at))
    return acknowledged


def test_workers_agree_with_each_other_and_with_the_offline_model(pair: Pair, run: Any) -> None:
    users = [f"user{n}" for n in range(24)]
    acknowledged = run(load(pair, users, 16))
    exported = {}
    with pair.services[0].client() as client:
        for user in users:
            events = history(client, user, limit=7)
            exported[user] = pairs(events)
            found = [(event["version"], event["event_id"]) for event in events]
            assert found == sorted(acknowledged[user]), "each event once, where it was said to be"
            for at in range(2):
                own = [int(name[2:]) for _, name in found if name.startswith(f"{at}-")]
                assert own == list(range(len(own))), "each writer's order is kept"

    async def check() -> None:
        async with clients(pair) as both:
            for user in users:
                scores = offline_scores(pair.artefact, exported[user], AT_MS)
                for client in both:
                    for _ in range(3):
                        answer = await get(client, user, k=40, at=AT_MS, exclude_seen=False)
                        assert answer["version"] == len(exported[user])
                        check_answer(answer, scores, 40)
                unseen = await get(both[0], user, k=40, at=AT_MS)
                check_answer(unseen, scores, 40, [item for item, _ in exported[user]])

    run(check())
    rebuilt = sum(scraped(s, "tim4rec_rebuilds_total") for s in pair.services)
    written = sum(scraped(s, "tim4rec_snapshots_total", result="written") for s in pair.services)
    assert rebuilt > 0, "no state was ever evicted: the pool is too large for this test"
    assert written > 0


def test_metrics_are_of_all_workers(pair: Pair, run: Any) -> None:
    async def ask() -> None:
        async with clients(pair) as both:
            await asyncio.gather(*(get(both[0], f"asker{n}") for n in range(200)))

    labels = {"route": "/recommend", "status": "200"}

    def check() -> None:
        run(ask())
        time.sleep(3 * WRITE_EVERY_S)
        total = scraped(pair.services[0], "tim4rec_request_duration_seconds_count", **labels)
        assert total >= 200
        shares = by_worker(pair.counted[0], "tim4rec_request_duration_seconds_bucket", **labels)
        assert len(shares) == WORKERS, "not every worker was asked"
        assert total == sum(shares)
        name = "tim4rec_recommendations_total"
        popular = by_worker(pair.counted[0], name, source="popular")
        assert len(popular) == WORKERS
        assert scraped(pair.services[0], name, source="popular") == sum(popular)

    at_last(check)
    assert scraped(pair.services[0], "tim4rec_model_info") == 1
    assert 0 < scraped(pair.services[0], "tim4rec_pool_users") <= WORKERS * SMALL["pool_capacity"]


def test_an_erasure_holds_at_every_worker_at_once(pair: Pair, run: Any) -> None:
    user = "to be forgotten"

    async def check() -> None:
        async with clients(pair) as both:
            for n in range(20):
                event = {"user_id": user, "item_id": f"i{n}"}
                assert (await both[0].post("/interactions", json=event)).status_code == 200
            for _ in range(20):  # every worker gets a state of its own
                for client in both:
                    assert (await get(client, user))["version"] == 20
            assert (await both[0].delete(user_path(user))).json()["erased"]
            for client in both:  # who asks the log knows at once
                for _ in range(5):
                    answer = await get(client, user)
                    assert (answer["version"], answer["source"]) == (0, "popular")
            event = {"user_id": user, "item_id": "i39", "timestamp": BASE_MS}
            assert (await both[1].post("/interactions", json=event)).json()["version"] == 1
            scores = offline_scores(pair.artefact, [("i39", BASE_MS)], AT_MS)
            for _ in range(5):
                for client in both:
                    check_answer(await get(client, user, k=40, at=AT_MS), scores, 40, ["i39"])

    run(check())


def test_stale_states_of_an_erased_user_are_gone_within_a_second(pair: Pair, run: Any) -> None:
    """Only `allow_stale` is asked here, so nothing but the announcement can tell a worker."""
    user = "forgotten silently"

    async def check() -> None:
        async with clients(pair) as both:
            event = {"user_id": user, "item_id": "i1", "timestamp": BASE_MS}
            await both[0].post("/interactions", json=event)
            for _ in range(20):
                await get(both[1], user)
            # Not each worker need have had one of them.
            asked = [await get(both[1], user, allow_stale=True) for _ in range(20)]
            assert any(answer["stale"] for answer in asked)
            assert (await both[0].delete(user_path(user))).json()["erased"]
            await asyncio.sleep(1)

    async def check_forgotten() -> None:
        async with clients(pair) as both:
            for _ in range(20):
                answer = await get(both[1], user, allow_stale=True)
                assert (answer["version"], answer["source"]) == (0, "popular")

    run(check())
    at_last(lambda: run(check_forgotten()))


def test_nothing_is_left_of_an_erased_user_a_second_later(pair: Pair, run: Any) -> None:
    """Erased in the middle of what both services do for them, snapshots on their way included."""
    users = [f"gone{n}" for n in range(12)]

    async def busy(client: httpx.AsyncClient, user: str) -> None:
        for n in range(10):
            event = {"user_id": user, "item_id": f"i{n}", "timestamp": BASE_MS + n}
            batch = {"interactions": [event] * 4}
            await client.post("/interactions/batch", json=batch)
            await client.get("/recommend", params={"user_id": user})

    async def check() -> None:
        async with clients(pair) as both:
            writers = []
            for n, user in enumerate(users):
                writers += [asyncio.create_task(busy(client, user)) for client in both]
                await asyncio.sleep(0.05)
                if n % 2:
                    await asyncio.gather(*writers[-4:])
                await both[n % 2].delete(user_path(user))
            await asyncio.gather(*writers)
            for client, user in zip(both * len(users), users, strict=False):
                await client.delete(user_path(user))
            await asyncio.sleep(1)

    async def check_gone() -> None:
        with pair.store.client() as store:
            left = {key for key in store.scan_iter(count=1000) if b"gone" in key}
        assert left == set()
        async with clients(pair) as both:
            for user in users:
                for client in both:
                    for _ in range(4):
                        answer = await get(client, user, allow_stale=True)
                        assert (answer["version"], answer["source"]) == (0, "popular")

    run(check())
    at_last(lambda: run(check_gone()))
    assert scraped(pair.services[0], "tim4rec_snapshots_total", result="written") > 0


def test_another_model_on_the_same_store(
    pair: Pair, run: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A model with another vocabulary, in any order, knows the whole history at once, too."""
    known = [*ITEMS[39:9:-1], "new to the world", "later"]
    other = make_artefact(tmp_path_factory.mktemp("other") / "model", known, seed=1)
    user = "of two models"
    posted: list[tuple[str, int]] = []

    async def post(client: httpx.AsyncClient, item: str, status: str) -> None:
        ms = BASE_MS + len(posted) * 60_000
        event = {"user_id": user, "item_id": item, "timestamp": ms}
        answer = await client.post("/interactions", json=event)
        assert answer.json()["status"] == status, answer.text
        posted.append((item, ms))

    async def check(*asked: httpx.AsyncClient) -> None:
        for client, artefact in zip(asked, (pair.artefact, other), strict=True):
            scores = offline_scores(artefact, posted, AT_MS)
            whole = await get(client, user, k=50, at=AT_MS, exclude_seen=False)
            assert whole["model"] == artefact.identity
            assert whole["version"] == len(posted)
            check_answer(whole, scores, 50)
            unseen = await get(client, user, k=50, at=AT_MS)
            check_answer(unseen, scores, 50, [item for item, _ in posted])

    async def both() -> None:
        async with (
            clients(pair) as (client, _),
            in_process(other.folder, pair.store.url, **SMALL) as second,
        ):
            for n in range(30):
                await post(client, ITEMS[n], "applied")
            await post(client, "new to the world", "unknown_item")
            await check(client, second)
            for n in range(12):
                at, item = (client, ITEMS[n + 20]) if n % 2 else (second, ITEMS[-n - 1])
                await post(at, item, "applied")
                await check(client, second)
            await post(second, "later", "applied")
            await post(second, ITEMS[2], "unknown_item")
            await check(client, second)
            assert (await second.delete(user_path(user))).json()["erased"]
            for one in (client, second):
                assert (await get(one, user))["source"] == "popular"
            posted.clear()
            await post(client, ITEMS[15], "applied")
            await check(client, second)

    run(both())


def test_a_stopped_service_leaves_the_other_alone(pair: Pair) -> None:
    assert pair.services[1].stop() == 0
    try:
        with pair.services[0].client() as client:
            assert client.get("/readyz").is_success
            body = {"user_id": "left behind", "item_id": "i1"}
            assert client.post("/interactions", json=body).json()["version"] == 1
        assert "Traceback" not in pair.services[1].said()
    finally:
        pair.services[1].start()
