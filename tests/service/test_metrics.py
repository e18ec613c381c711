"""Metrics: true with several workers and after one was killed, and few whatever callers send."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.artefact import Artefact
from service.observe import metrics, values
from service.store.client import Operation, Store
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, Verdict, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, alive, in_process, make_artefact, user_path
from tests.waited import LONG_S, until

ITEMS = [f"i{n}" for n in range(40)]
Run = Callable[[Any], Any]
Key = tuple[str, frozenset[tuple[str, str]]]
Samples = dict[Key, float]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("metrics") / "model", ITEMS)


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, metric: str, **labels: str) -> float:
    """The sum of a metric's series with these labels among theirs."""
    own = [n for (name, of), n in found.items() if name == metric and labels.items() <= set(of)]
    assert own, f"no {metric} with {labels}"
    return sum(own)


def test_labels_are_those_of_the_code() -> None:
    assert set(metrics.EVENTS) == set(Verdict)
    assert set(metrics.STORE_ERRORS) == set(metrics.STORE_DURATION) == set(get_args(Operation))


# -- several workers ---------------------------------------------------------------------

WORKERS = 2
QUEUE = 300


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, artefact: Artefact) -> Iterator[Service]:
    """Two workers whose folder of metrics an earlier run has left full."""
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    store = ValkeyServer(folder, "--maxmemory", "512mb")
    store.start()
    left = folder / "metrics"
    script = (
        "import asyncio, os, signal; from service.observe import metrics, values\n"
        "async def main():\n"
        "    async with values.shared():\n"
        "        metrics.UNKNOWN_ITEMS.inc(1e6); metrics.WORKERS.set(50); values.write()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, values.MULTIPROC_DIR: str(left)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=120)
    assert len(list(left.glob("*.db"))) > 3
    service = Service(
        artefact.folder, folder / "output", "--workers", str(WORKERS), "--redis", store.url,
        PROMETHEUS_MULTIPROC_DIR=left, max_queue=QUEUE,
    )  # fmt: skip
    try:
        service.start(wait=False)
        yield service
    finally:
        service.kill()
        store.kill()
        shutil.rmtree(folder)


def scrape(service: Service) -> Samples:
    return samples(httpx.get(f"{service.url}/metrics", timeout=60).text)


def worker_pids(service: Service) -> list[int]:
    assert service.process is not None
    return [child.pid for child in psutil.Process(service.process.pid).children()]


def ask(service: Service, seed: int) -> dict[str, int]:
    """A known load, a new connection for each request; what it must have counted."""
    draw = random.Random(seed)
    items = [draw.choice([*ITEMS[:10], *["unknown"] * 3]) for _ in range(60)]
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=service.url, timeout=60, limits=limits) as client:
        for item in items:
            user = f"u{draw.randrange(10**6)}"
            body = {"user_id": user, "item_id": item}
            assert client.post("/interactions", json=body).status_code == 200
            assert client.get("/recommend", params={"user_id": user}).status_code == 200
    return {
        "posts": len(items),
        "gets": len(items),
        "events": len(items),
        "unknown": items.count("unknown"),
    }


def counts(found: Samples) -> dict[str, float]:
    requests = "tim4rec_request_duration_seconds_count"
    return {
        "posts": value(found, requests, route="/interactions", status="200"),
        "gets": value(found, requests, route="/recommend", status="200"),
        "events": value(found, "tim4rec_events_total", verdict="applied"),
        "unknown": value(found, "tim4rec_unknown_items_total"),
    }


def grows_only(before: Samples, after: Samples) -> None:
    for (name, labels), number in before.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[name, labels] >= number, (name, labels)


@pytest.mark.slow
def test_counts_hold_over_all_workers_and_their_deaths(pair: Service) -> None:
    until(lambda: started(pair) == WORKERS)
    time.sleep(3 * values.WRITE_EVERY_S)
    first = scrape(pair)
    assert value(first, "tim4rec_workers") == WORKERS, "gauges of an earlier run"
    assert value(first, "tim4rec_unknown_items_total") == 0, "counters of an earlier run"
    assert value(first, "tim4rec_ready") == 1
    assert value(first, "tim4rec_queue_capacity_requests") == WORKERS * QUEUE
    expected = ask(pair, 0)
    until(lambda: counts(scrape(pair)) == expected)
    time.sleep(3 * values.WRITE_EVERY_S)
    before = scrape(pair)
    assert counts(before) == expected

    folder = pair.output.parent / "metrics"
    files = sorted(file.name for file in folder.glob("*.db"))
    victim = worker_pids(pair)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: not alive(victim))
    seen = []
    while not seen or value(seen[-1], "tim4rec_worker_starts_total") == WORKERS:
        try:
            seen.append(scrape(pair))
        except httpx.TransportError:
            continue  # of the connections that the dead one had accepted
        grows_only(before, seen[-1])
        before = seen[-1]
    alone = [found for found in seen if value(found, "tim4rec_workers") == WORKERS - 1]
    # All the time until the new one has loaded its model.
    assert len(alone) > len(seen) / 2, "the dead one's gauges stayed"
    assert {value(found, "tim4rec_queue_capacity_requests") for found in alone} == {QUEUE}
    until(lambda: value(scrape(pair), "tim4rec_ready") == 1)
    for name, number in ask(pair, 1).items():
        expected[name] += number
    until(lambda: counts(scrape(pair)) == expected)
    last = scrape(pair)
    grows_only(before, last)
    assert value(last, "tim4rec_workers") == WORKERS
    assert value(last, "tim4rec_worker_starts_total") == WORKERS + 1
    assert len(pair.logged(message="a worker ended (SIGKILL): starting another")) == 1
    assert value(last, "tim4rec_queue_capacity_requests") == WORKERS * QUEUE
    assert sorted(file.name for file in folder.glob("*.db")) == files, "a file for every restart"


def started(service: Service) -> float:
    try:
        found = scrape(service)
    except httpx.TransportError:
        return 0
    return value(found, "tim4rec_worker_starts_total") * value(found, "tim4rec_ready")


@pytest.mark.slow
def test_the_vitals_of_processes_and_store(pair: Service) -> None:
    until(lambda: started(pair) >= WORKERS)
    until(lambda: value(scrape(pair), "tim4rec_store_memory_bytes") > 0)
    found = scrape(pair)
    resident = sum(psutil.Process(pid).memory_info().rss for pid in worker_pids(pair))
    assert value(found, "tim4rec_resident_memory_bytes") == pytest.approx(resident, rel=0.3)
    used = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in worker_pids(pair))
    assert used / 10 < value(found, "tim4rec_cpu_seconds_total") < used + 60
    assert 10 < value(found, "tim4rec_open_files") < 500
    assert value(found, "tim4rec_store_memory_limit_bytes") == 512 * 2**20
    assert 10**5 < value(found, "tim4rec_store_memory_bytes") < 512 * 2**20
    assert value(found, "tim4rec_device_memory_bytes") == 0
    assert 0 <= value(found, "tim4rec_event_loop_lag_seconds") < 60
    assert value(found, "tim4rec_build_info", device="cpu") == 1
    assert value(found, "tim4rec_store_up") == 1


def test_clearing_spares_the_living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("counter_7.db", "gauge_livesum_7.db", "counter_4242.db", "mine.db"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv(values.MULTIPROC_DIR, str(tmp_path))

    def left() -> set[str]:
        return {file.name for file in tmp_path.glob("*.db")}

    async def check() -> None:
        async with values.shared():
            values.clear(tmp_path)
            assert {"counter_0.db", "histogram_0.db", "gauge_livesum_0.db", "mine.db"} <= left()
            assert not any("7" in name or "42" in name for name in left())
        assert left() == {"counter_0.db", "histogram_0.db", "mine.db"}, "gauges of a past worker"

    asyncio.run(check())
    values.clear(tmp_path)
    assert left() == {"mine.db"}


# -- one process -------------------------------------------------------------------------


def test_callers_cannot_make_series(artefact: Artefact, store_url: str, run: Run) -> None:
    draw = random.Random(0)

    def word() -> str:
        return "".join(draw.choices("abcXYZ019._-%20é/", k=draw.randrange(1, 30)))

    async def odd(client: httpx.AsyncClient) -> None:
        user = user_path(word())
        for method in (word().encode("ascii", "ignore").decode() or "A", "QUERY", "get", "TRACE"):
            for path in (f"/x{word()}", "/recommend", user, f"{user}/history", "/metrics"):
                await client.request(method.replace("/", "x").replace("%", "x"), path)
        await client.get(f"{user}/{word()}")
        await client.get("/recommend", params={"user_id": word(), "k": word()})
        await client.get("/recommend", params={"user_id": word(), "exclude": [word()]})
        await client.get(
            user, headers={"X-API-Key": word().encode(), "X-Request-ID": word().encode()}
        )
        await client.get(f"{user}/history", params={"after": word()})
        await client.post("/interactions", content=word().encode())
        await client.post("/interactions", json={"user_id": word(), "item_id": word()})
        await client.post("/interactions/batch", json={"interactions": [{word(): word()}]})
        await client.get(f"/docs/{word()}")
        await client.get(f"/static-offline-docs/{word()}")
        await client.get("/static-offline-docs/swagger-ui.css")

    async def check() -> None:
        async with in_process(artefact.folder, store_url) as client:
            for _ in range(3):
                await odd(client)
            known = set(samples((await client.get("/metrics")).text))
            known = set(samples((await client.get("/metrics")).text))
            for _ in range(30):
                await odd(client)
            found = samples((await client.get("/metrics")).text)
            assert set(found) == known
            labels = {label for _, of in found for label in of}
            methods = {of for name, of in labels if name == "method"}
            assert methods <= {*metrics.METHODS, "other"}
            schema = (await client.get("/openapi.json")).json()
            routes = {of for name, of in labels if name == "route"}
            undocumented = {"/metrics", "/docs", "/openapi.json", "/", "/page/{name}"}
            assert routes <= {*schema["paths"], *undocumented, "unmatched"}

    run(check())


async def imported(url: str, user: str, items: list[str]) -> None:
    """A history that no process has a state of."""
    async with Store(url) as store:
        events = [NewEvent(new_uid(), item) for item in items]
        await EventLog(store).exchange([LogRequest(user, events=events)])


def test_what_the_engine_counts(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with in_process(artefact.folder, valkey.url, snapshot_every=8) as client:

            async def now() -> Samples:
                return samples((await client.get("/metrics")).text)

            async def get(user: str) -> None:
                assert (await client.get("/recommend", params={"user_id": user})).is_success

            before = await now()
            await imported(valkey.url, "strange", ["nobody knows"])
            await imported(valkey.url, "few", ITEMS[:2])
            await imported(valkey.url, "many", ITEMS[:20])
            for user in ("nobody", "strange", "few", "many", "many"):
                await get(user)
            body = [{"user_id": "new", "item_id": item} for item in ITEMS[:9]]
            await client.post("/interactions/batch", json={"interactions": body})
            written = value(before, "tim4rec_snapshots_total", result="written") + 1
            async with asyncio.timeout(LONG_S):  # they are made behind the answers
                found = before
                while value(found, "tim4rec_snapshots_total", result="written") < written:
                    found = await now()
            await get("new")
            client_app = client._transport.app.api
            client_app.state.services.engine.pool.drop("new")
            await get("new")
            after = await now()

            def grown(metric: str, **labels: str) -> float:
                return value(after, metric, **labels) - value(before, metric, **labels)

            assert grown("tim4rec_fallbacks_total", reason="unknown_user") == 1
            assert grown("tim4rec_fallbacks_total", reason="no_known_item") == 1
            assert grown("tim4rec_recommendations_total", source="popular") == 2
            assert grown("tim4rec_recommendations_total", source="model") == 5
            assert grown("tim4rec_rebuilds_total", source="log") == 3
            assert grown("tim4rec_rebuilds_total", source="snapshot") == 1
            assert grown("tim4rec_applied_events_total", by="step") == 2 + 20 + 9
            assert grown("tim4rec_pool_lookups_total", result="hit") == 2
            assert grown("tim4rec_pool_lookups_total", result="miss") == 6
            assert grown("tim4rec_events_total", verdict="applied") == 9
            assert grown("tim4rec_snapshots_total", result="written") == 1
            with valkey.client() as direct:
                (key,) = direct.keys("tim4rec:s:*")
                assert grown("tim4rec_snapshot_bytes_total") == direct.strlen(key)
            assert grown("tim4rec_wave_requests_sum") == 8
            assert value(after, "tim4rec_pool_users") == 5
            assert value(after, "tim4rec_pool_capacity_users") == 16_384
            states = client_app.state.services.engine.pool.states.parts.values()
            size = sum(part.element_size() * part.nelement() for part in states)
            assert value(after, "tim4rec_pool_bytes") == size
            assert grown("tim4rec_store_duration_seconds_count", operation="snapshot") >= 2
            assert grown("tim4rec_store_duration_seconds_count", operation="exchange") >= 8
            assert grown("tim4rec_store_errors_total") == 0

    run(check())


def test_a_store_that_goes_and_comes(
    artefact: Artefact, durable_valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        settings: dict[str, Any] = {"store_timeout_s": 0.3, "max_queue": 1, "max_batch": 1}
        settings["store_away"] = "refuse"
        async with in_process(artefact.folder, durable_valkey.url, **settings) as client:

            async def now(metric: str, **labels: str) -> float:
                return value(samples((await client.get("/metrics")).text), metric, **labels)

            async def becomes(up: int) -> None:
                async with asyncio.timeout(LONG_S):
                    while await now("tim4rec_store_up") != up:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)

            await becomes(1)
            failed = await now("tim4rec_store_errors_total", operation="exchange")
            refused = await now("tim4rec_refused_requests_total", reason="queue_full")
            durable_valkey.kill()
            await becomes(0)  # nobody asks anything: the poll for erasures tells
            answers = await asyncio.gather(
                *(client.get("/recommend", params={"user_id": f"u{n}"}) for n in range(5))
            )
            assert {answer.status_code for answer in answers} == {503}
            full = sum("queue is full" in answer.text for answer in answers)
            assert full > 0
            assert await now("tim4rec_refused_requests_total", reason="queue_full") == (
                refused + full
            )
            assert await now("tim4rec_store_errors_total", operation="exchange") > failed
            durable_valkey.start()
            await becomes(1)
            with durable_valkey.client() as direct:
                direct.config_set("maxmemory", 1)
            failed = await now("tim4rec_store_errors_total", operation="exchange")
            body = {"user_id": "u", "item_id": "i1"}
            assert (await client.post("/interactions", json=body)).status_code == 503
            assert await now("tim4rec_store_errors_total", operation="exchange") == failed + 1
            assert await now("tim4rec_store_up") == 1

    run(check())
