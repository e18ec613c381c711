"""Where a request's time goes: the stages of every request add up to the whole."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from model.artefact import Artefact
from service.engine.engine import Engine
from service.observe import stages
from service.observe.stages import HTTP, LOG, PREFILL, QUEUE, RETRIEVE, SNAPSHOT, STEP, Stages
from service.store.client import Store
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import in_process, make_artefact, user_path

ITEMS = [f"i{n}" for n in range(40)]
Run = Callable[[Any], Any]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("stages") / "model", ITEMS)


SPANS = st.lists(
    st.tuples(
        st.sampled_from([QUEUE, LOG, STEP, PREFILL]), st.integers(0, 20), st.integers(0, 8)
    ).map(lambda span: (span[0], span[1], span[1] + span[2])),
    max_size=8,
)


@given(SPANS)
def test_each_moment_belongs_to_one_stage(spans: list[tuple[str, int, int]]) -> None:
    timeline = Stages()
    for span in spans:
        timeline.add(*span)
    expected: defaultdict[str, float] = defaultdict(float)
    taken: dict[int, str] = {}
    # By moments of length 1. A span of work goes on where those that began before it have ended.
    for stage, start, end in sorted(spans, key=lambda span: (span[0] == QUEUE, span[1])):
        for moment in range(start, end):
            taken.setdefault(moment, stage)
    for stage in taken.values():
        expected[stage] += 1
    found = timeline.seconds()
    assert {stage: seconds for stage, seconds in found.items() if seconds} == dict(expected)
    assert set(found) <= {stage for stage, _, _ in spans}


async def sums(client: httpx.AsyncClient) -> dict[str, dict[tuple[str, ...], float]]:
    """By sample name, then labels without `le` in the order of their names."""
    text = (await client.get("/metrics")).text
    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "le" not in sample.labels:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found[sample.name][labels] = sample.value
    return found


async def traffic(client: httpx.AsyncClient, seed: int) -> None:
    draw = random.Random(seed)

    async def event(user: str) -> dict[str, Any]:
        return {"user_id": user, "item_id": draw.choice([*ITEMS, "unknown"])}

    async def one(number: int) -> None:
        user = f"u{draw.randrange(30)}"
        kind = number % 10
        if kind < 3:
            await client.post("/interactions", json=await event(user))
        elif kind < 6:
            await client.get("/recommend", params={"user_id": user})
        elif kind == 6:
            users = [f"u{draw.randrange(40)}" for _ in range(100)]
            batch = [await event(user) for user in users]
            answer = await client.post("/interactions/batch", json={"interactions": batch})
            assert answer.json()["accepted"] == 100
        elif kind == 7:
            await client.get(f"{user_path(user)}/history")
            await client.get(user_path(user))
        elif kind == 8:
            assert (await client.get("/nowhere")).status_code == 404
            assert (await client.get("/recommend")).status_code == 422
            assert (await client.post("/interactions", content=b"{")).status_code == 422
            assert (await client.put("/recommend")).status_code == 405
        else:
            await client.delete(user_path(user))
            await client.get("/recommend", params={"user_id": user, "allow_stale": True})

    await asyncio.gather(*(one(number) for number in range(100)))


async def imported(user: str, url: str) -> None:
    """A history that no process has a state or a snapshot of."""
    async with Store(url) as store:
        events = [NewEvent(new_uid(), ITEMS[place % 40]) for place in range(300)]
        await EventLog(store).exchange([LogRequest(user, events=events)])


@pytest.mark.slow
def test_the_stages_of_every_route_add_up(
    artefact: Artefact, durable_valkey: ValkeyServer, run: Run
) -> None:
    """On real traffic: batches, errors, evicted states, and a store that goes away."""
    small = {"max_batch": 8, "pool_capacity": 32, "snapshot_every": 8, "store_timeout_s": 0.5}

    async def check() -> None:
        async with in_process(artefact.folder, durable_valkey.url, **small) as client:
            before = await sums(client)
            await imported("long", durable_valkey.url)
            await client.get("/recommend", params={"user_id": "long"})
            for seed in range(2):
                await traffic(client, seed)
            durable_valkey.kill()
            body = {"user_id": "u", "item_id": "i1"}
            assert (await client.post("/interactions", json=body)).status_code == 503
            for user in ("u", "long", "unknown"):
                answer = (await client.get(f"/recommend?user_id={user}")).json()
                assert answer["stale"]
            assert (await client.get("/users/u")).status_code == 503
            durable_valkey.start()
            after = await sums(client)

        def grown(name: str) -> dict[tuple[str, ...], float]:
            old = before.get(name, {})
            return {labels: n - old.get(labels, 0) for labels, n in after[name].items()}

        whole, parts = defaultdict[str, float](float), defaultdict[str, float](float)
        asked, answered = defaultdict[str, float](float), defaultdict[str, float](float)
        seen = defaultdict[str, set[str]](set)
        statuses = set()
        for (_, route, status), seconds in grown("tim4rec_request_duration_seconds_sum").items():
            whole[route] += seconds
            statuses.add(status)
        for (_, route, _), n in grown("tim4rec_request_duration_seconds_count").items():
            asked[route] += n
        for (route, _), seconds in grown("tim4rec_stage_duration_seconds_sum").items():
            parts[route] += seconds
        for (route, stage), n in grown("tim4rec_stage_duration_seconds_count").items():
            seen[route] |= {stage} if n else set()
            if stage == HTTP:
                answered[route] = n
            assert n <= asked[route]
        assert whole.keys() == parts.keys()
        for route, seconds in whole.items():
            assert parts[route] == pytest.approx(seconds, rel=1e-6), route
        assert asked == answered
        assert {"200", "404", "405", "422", "503"} <= statuses
        every = {QUEUE, LOG, STEP, SNAPSHOT, RETRIEVE, HTTP}
        assert seen["/recommend"] == every
        assert seen["/interactions"] == {QUEUE, LOG, HTTP}
        assert seen["/interactions/batch"] == {QUEUE, LOG, HTTP}
        for route in ("/users/{user_id}", "/users/{user_id}/history"):
            assert seen[route] == {LOG, HTTP}
        assert seen["unmatched"] == {HTTP}

    run(check())


def test_an_answer_says_where_its_time_went(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    def said(answer: httpx.Response) -> dict[str, float]:
        entries = answer.headers["Server-Timing"].split(",")
        parted = (entry.partition(";dur=") for entry in entries)
        found = {stage: float(milliseconds) for stage, _, milliseconds in parted}
        assert 0 < found.pop("total") == pytest.approx(sum(found.values()), abs=0.01)
        return found

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url) as client:
            body = {"user_id": "u", "item_id": "i1"}
            assert set(said(await client.post("/interactions", json=body))) == {QUEUE, LOG, HTTP}
            found = said(await client.get("/recommend?user_id=u"))
            assert {QUEUE, LOG, RETRIEVE, HTTP} <= set(found)
            assert found[RETRIEVE] > 0
            assert "Server-Timing" not in (await client.get("/livez")).headers

    run(check())


@pytest.fixture
def engine(artefact: Artefact, valkey: ValkeyServer, run: Run) -> Iterator[Engine]:
    store = Store(valkey.url, timeout_s=30)
    log = EventLog(store, page=16)
    one = Engine(artefact, log, pool_capacity=8, max_batch=2, snapshot_every=1000)
    run(one.start())
    yield one
    run(one.stop())
    run(store.close())


def spans_of(run: Run, call: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """The spans of one request, oldest first; they follow each other and cover its time."""
    timeline = Stages()

    async def ask() -> tuple[float, float]:
        before = stages.current.set(timeline)
        started = time.perf_counter()
        await call()
        ended = time.perf_counter()
        stages.current.reset(before)
        return started, ended

    started, ended = run(ask())
    spans = timeline.spans
    assert spans
    for (_, _, end), (_, start, _) in pairwise(spans):
        assert 0 <= start - end < 0.5
    for _, start, end in spans:
        assert started <= start <= end <= ended
    return spans


def test_the_time_line_of_a_request(engine: Engine, run: Run) -> None:
    async def settled() -> None:
        while not engine.scheduler.is_idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def post(user: str, n: int) -> list[tuple[str, float, float]]:
        events = [NewEvent(new_uid(), ITEMS[place % 40]) for place in range(n)]
        spans = spans_of(run, lambda: engine.append(user, events))
        run(settled())
        return spans

    def get(user: str) -> list[str]:
        return [stage for stage, _, _ in spans_of(run, lambda: engine.recommend(user, 5))]

    assert [stage for stage, _, _ in post("a", 2)] == [QUEUE, LOG]
    assert get("a") == [QUEUE, LOG, QUEUE, STEP, RETRIEVE]
    assert [stage for stage, _, _ in post("a", 3)] == [QUEUE, LOG]
    assert get("a") == [QUEUE, LOG, QUEUE, RETRIEVE]  # it had a row, which was moved on behind it
    post("a", 60)
    engine.pool.drop("a")
    # The newest page is not enough: the rest is fetched after a first look at the pool.
    found = get("a")
    assert found[:3] == [QUEUE, LOG, QUEUE]
    assert found[3:] == [LOG, QUEUE, STEP, RETRIEVE]
    post("b", 2)
    engine.pool.drop("b")
    assert get("b") == [QUEUE, LOG, QUEUE, STEP, RETRIEVE]
    post("c", 3)
    engine.pool.drop("c")
    assert get("c") == [QUEUE, LOG, QUEUE, STEP, RETRIEVE]
