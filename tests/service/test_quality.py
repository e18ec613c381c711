"""Events judged by what their users would have been given just before."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr

from model.artefact import Artefact
from model.kinds import KindRules
from service.engine.engine import Engine
from service.engine.pool import Row
from service.engine.quality import Judged, K, QualitySampler
from service.observe import quality_metrics
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.events import Event, NewEvent, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact, popular
from tests.service.test_metrics import Samples, samples, value
from tests.waited import LONG_S
from training.forward.events import Events
from training.forward.models import AT, Served, model_ranks, with_fallback
from training.forward.walk import Walk
from training.interactions import Log
from training.metrics import MISS, ranking_metrics

Run = Callable[[Coroutine[Any, Any, None]], None]

ITEMS = [f"i{n}" for n in range(30)]
NAMES = {"HR@10": "hits", "NDCG@10": "ndcg", "MRR@10": "reciprocal_ranks"}


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("quality") / "model", ITEMS, seed=7)


@dataclass(frozen=True)
class Sums:
    """What was counted of a model's events, by item and by what ranked it."""

    events: dict[str, float]
    gains: dict[tuple[str, str, str], float]

    @classmethod
    def of(cls, found: Samples, model: str) -> Sums:
        def number(metric: str, **labels: str) -> float:
            return value(found, f"tim4rec_quality_{metric}_total", model=model, **labels)

        return cls(
            {item: number("events", item=item) for item in ("known", "new")},
            {
                (name, item, by): number(name, item=item, by=by)
                for name in NAMES.values()
                for item in ("known", "new")
                for by in ("served", "popularity")
            },
        )

    def since(self, before: Sums) -> Sums:
        return Sums(
            {item: number - before.events[item] for item, number in self.events.items()},
            {of: number - before.gains[of] for of, number in self.gains.items()},
        )


class Counted:
    """What the service counts from now on."""

    def __init__(self, client: httpx.AsyncClient, *models: str) -> None:
        self.client, self.models = client, models
        self.before: dict[str, Sums] = {}

    async def now(self) -> dict[str, Sums]:
        found = samples((await self.client.get("/metrics")).text)
        return {model: Sums.of(found, model) for model in self.models}

    async def begin(self) -> Counted:
        self.before = await self.now()
        return self

    async def grown(self, events: int) -> dict[str, Sums]:
        """As soon as so many events are counted, and no more: they are behind the answers."""
        async with asyncio.timeout(LONG_S):
            while True:
                now = await self.now()
                found = {model: now[model].since(self.before[model]) for model in self.models}
                if sum(sum(one.events.values()) for one in found.values()) >= events:
                    break
                await asyncio.sleep(0.01)
        assert sum(sum(one.events.values()) for one in found.values()) == events
        return found


async def post(client: httpx.AsyncClient, user: str, item: str, **more: Any) -> None:
    body = {"user_id": user, "item_id": item, **more}
    assert (await client.post("/interactions", json=body)).status_code == 200


def drawn_log(users: int, length: int) -> list[tuple[str, str, int]]:
    """Users and items at random, some of them unknown to the model, each event at its own time."""
    draw = np.random.default_rng(5)
    items = [*ITEMS, "new 1", "new 2", "new 3"]
    turns = draw.permutation(np.repeat(np.arange(users), length))
    times = BASE_MS + np.cumsum(draw.integers(1, 10**7, len(turns)))
    return [
        (f"u{user}", items[draw.integers(len(items))], int(time))
        for user, time in zip(turns, times, strict=True)
    ]


def had_before(events: Events, row: int) -> bool:
    return events.items[row] in events.items[events.firsts[row] : row]


def popularity_rank(events: Events, row: int, order: Sequence[str]) -> int:
    had = {events.item_ids[item] for item in events.items[events.firsts[row] : row]}
    left, item = [one for one in order if one not in had], events.item_ids[events.items[row]]
    return left.index(item) + 1 if item in left else MISS


def test_what_is_counted_is_what_a_walk_offline_says(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    log = drawn_log(users=12, length=14)
    schema = {"user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64}
    frame = pl.DataFrame(log, schema=schema, orient="row")
    events = Events.of(Log(frame.sort("user_id", "time_ms", maintain_order=True)))
    rows = np.arange(len(events.times))
    periods = np.zeros_like(rows)
    walk = Walk(events, np.argsort(events.times), 0, np.array([BASE_MS]), rows, periods)
    judged = np.array([not had_before(events, row) for row in rows])
    known = np.array([events.item_ids[item] in ITEMS for item in events.items])
    ranks = {}

    async def check() -> None:
        draw = np.random.default_rng(6)
        async with in_process(artefact.folder, valkey.url, quality_sample=0) as client:
            for n in range(60):  # what is popular of late
                await post(client, f"other {n}", ITEMS[int(draw.integers(10) * draw.random())])
        # Read once, at the start.
        options: dict[str, Any] = {"popular_least": 0, "popular_refresh_s": 3600}
        async with in_process(artefact.folder, valkey.url, quality_sample=1, **options) as client:
            counted = await Counted(client, artefact.identity).begin()
            answer = (await client.get("/popular", params={"k": 100})).json()
            assert answer["source"] == "recent"
            recent = [item["item_id"] for item in answer["items"]]
            order = [*recent, *(item for item in popular(artefact) if item not in recent)]
            ranks["popularity"] = np.array([popularity_rank(events, row, order) for row in rows])
            by_model = model_ranks(walk, [Served(artefact.model, artefact.items.ids)])
            ranks["served"] = with_fallback(by_model, ranks["popularity"])[AT]
            for user in {user for user, _, _ in log}:
                assert (await client.get("/recommend", params={"user_id": user})).is_success
            for user, item, time_ms in log:
                await post(client, user, item, timestamp=time_ms)
            (found,) = (await counted.grown(int(judged.sum()))).values()
        for item, own in (("known", judged & known), ("new", judged & ~known)):
            assert found.events[item] == own.sum() > 0
            for by, all_ranks in ranks.items():
                expected = ranking_metrics(all_ranks[own], [10])
                for name, metric in NAMES.items():
                    total = found.gains[metric, item, by]
                    assert total == pytest.approx(expected[name] * own.sum(), abs=1e-6)
        assert found.gains["ndcg", "known", "served"] != found.gains["ndcg", "known", "popularity"]

    run(check())


def test_each_user_is_judged_by_the_model_that_serves_them(
    tmp_path: Path, valkey: ValkeyServer, run: Run
) -> None:
    """With what `GET /recommend` says just before: also of items that came after the training."""
    variants = [make_artefact(tmp_path / name, ITEMS, seed) for seed, name in enumerate("cd")]
    options: dict[str, Any] = {"models_dir": tmp_path, "model_poll_s": 0.02}
    options |= {"admin_keys": (SecretStr("admin"),), "kinds": "skip:hide,ping:log"}

    async def check() -> None:
        async with in_process(
            variants[0].folder, valkey.url, quality_sample=1, **options
        ) as client:
            await client.post(
                "/admin/model", json={"model": "d", "share": 0.5}, headers={"X-API-Key": "admin"}
            )
            services = client._transport.app.api.state
            async with asyncio.timeout(LONG_S):
                while len(services.services.deployment.models) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            models = services.services.deployment.models
            counted = await Counted(client, *(model.identity for model in models)).begin()
            for n in range(3):
                record = {"similar_to": [f"i{n}"]}
                assert (await client.put(f"/items/new {n}", json=record)).is_success
            draw = np.random.default_rng(1)
            events, hits = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
            had: dict[str, set[str]] = defaultdict(set)
            for step in range(160):
                user, at = f"u{step % 8}", BASE_MS + 1000 * step
                query = {"user_id": user, "at": at}
                answer = (await client.get("/recommend", params=query)).json()
                given = [item["item_id"] for item in answer["items"]]
                item = str(draw.choice([*given[:3], f"new {draw.integers(5)}", "i5", "i6"]))
                kind = draw.choice([None, None, "skip", "ping"])
                await post(client, user, item, timestamp=at, **({"kind": kind} if kind else {}))
                if kind is None and item not in had[user]:
                    of = answer["model"], "known" if item in ITEMS else "new"
                    events[of] += 1
                    hits[of] += item in given
                if kind is None or (kind == "skip" and item in ITEMS):
                    had[user].add(item)
            found = await counted.grown(events.total())
            for model in models:
                for item in ("known", "new"):
                    own = model.identity, item
                    assert found[model.identity].events[item] == events[own] > 0
                    assert found[model.identity].gains["hits", item, "served"] == hits[own] > 0

    run(check())


# -- which events ------------------------------------------------------------------------


class Recorded(QualitySampler):
    """With the items of what was judged, and in which threads."""

    def __init__(self, artefact: Artefact, share: float = 1) -> None:
        super().__init__(share, {item: row for row, item in enumerate(artefact.items.ids, 1)}.get)
        self.items: list[str] = []
        self.threads: list[str] = []
        self.found: list[Judged] = []

    def judged(self, chosen: Sequence[tuple[Row, Event]], *others: Any) -> list[Judged]:
        self.threads.append(threading.current_thread().name)
        found = super().judged(chosen, *others)
        self.items += [event.item_id for _, event in chosen]
        self.found += found
        return found


@asynccontextmanager
async def started(
    artefact: Artefact, url: str, quality: QualitySampler, **options: Any
) -> AsyncIterator[Engine]:
    async with Store(url) as store:
        log = EventLog(store, namespace=uuid4().hex)
        engine = Engine(artefact, log, quality=quality, **options)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def append(engine: Engine, user: str, *events: NewEvent) -> None:
    await engine.append(user, events)
    async with asyncio.timeout(LONG_S):
        while not engine.scheduler.is_idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def event(item: str, at_s: float | None = None, **more: Any) -> NewEvent:
    at_ms = None if at_s is None else BASE_MS + round(1000 * at_s)
    return NewEvent(new_uid(), item, at_ms, **more)


def test_which_events_are_judged(artefact: Artefact, store_url: str, run: Run) -> None:
    kinds = KindRules.parse("view:step,skip:hide,ping:log,read:count")

    async def check() -> None:
        quality = Recorded(artefact)
        async with started(artefact, store_url, quality, kinds=kinds) as engine:
            await append(engine, "u", event("i0", 0))
            assert not quality.items, "of a user whom nobody has read"
            await engine.recommend("u", 1)
            await append(engine, "u", event("i1", 1), event("i2", 2), event("i3", 3))
            assert quality.items == ["i1"], "one of an append"
            await append(engine, "u", event("i4", 4, event_id="e"))
            await append(engine, "u", event("i4", 4, event_id="e"))
            assert quality.items == ["i1", "i4"], "a duplicate"
            await append(engine, "u", event("i5", 3.5))
            assert quality.items == ["i1", "i4"], "a late one"
            for kind in ("skip", "ping", "read"):
                await append(engine, "u", event("i6", 5, kind=kind))
            assert quality.items == ["i1", "i4"], "kinds that do not step"
            await append(engine, "u", event("i7", 6, kind="ping"), event("i7", 6, kind="view"))
            await append(engine, "u", event("new", 7))
            assert quality.items == ["i1", "i4", "i7", "new"]
            assert [one.known for one in quality.found] == [True, True, True, False]
            for item in ("i7", "i6", "new"):  # had, hidden, had and not known to the model
                await append(engine, "u", event(item, 8))
            assert len(quality.found) == 4, "what the user can't be given any more"

    run(check())


def test_a_user_of_whom_nothing_is_known(artefact: Artefact, store_url: str, run: Run) -> None:
    best = popular(artefact)

    async def check() -> None:
        quality = Recorded(artefact)
        async with started(artefact, store_url, quality) as engine:
            for user, item in (("a", best[0]), ("b", best[2]), ("c", best[K]), ("d", "new")):
                await engine.recommend(user, 1)
                await append(engine, user, event(item))
            assert quality.found == [
                Judged(True, 1, 1), Judged(True, 3, 3), Judged(True, None, None),
                Judged(False, None, None),
            ]  # fmt: skip
            for user in "cd":  # who has had the best of them is not given it again
                await append(engine, user, event(best[0]), event("other"))
                await append(engine, user, event(best[1]))
            assert [one.popular for one in quality.found[-4:]] == [1, 1, 1, 1]

    run(check())


def test_a_failure_is_counted_and_changes_nothing(
    artefact: Artefact,
    store_url: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> None:
        quality = Recorded(artefact)
        async with started(artefact, store_url, quality) as engine:

            def fail(*_: object) -> None:
                raise RuntimeError("tried")

            await engine.recommend("u", 1)
            before = quality_metrics.FAILURES._value.get()
            monkeypatch.setattr(engine.runner.retrieval, "popular", fail)
            for n in range(5):
                await append(engine, "u", event(f"i{n}", n))
            assert quality_metrics.FAILURES._value.get() == before + 5
            found = await engine.recommend("u", 3, at_ms=BASE_MS + 10**6)
            engine.pool.drop("u")
            again = await engine.recommend("u", 3, at_ms=BASE_MS + 10**6)
            assert found.version == again.version == 5
            np.testing.assert_allclose(found.ranking.scores, again.ranking.scores, atol=1e-4)
            monkeypatch.undo()
            await append(engine, "u", event("i9", 9))
            assert len(quality.found) == 1

    with caplog.at_level(logging.ERROR):
        run(check())
    said = [record for record in caplog.records if record.name == "service.engine.quality"]
    assert len(said) == 1, "once in a while"


def test_as_many_are_drawn_as_are_to_be(artefact: Artefact) -> None:
    uids = [new_uid() for _ in range(20_000)]
    for share in (0, 0.05, 0.5, 1):
        quality = QualitySampler(share, {}.get)
        drawn = [uid for uid in uids if quality.draws(uid)]
        assert len(drawn) / len(uids) == pytest.approx(share, abs=0.02 * (0 < share < 1))
        assert [uid for uid in drawn if quality.draws(uid)] == drawn


def test_what_takes_long_is_judged_in_the_thread(
    artefact: Artefact, store_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        quality = Recorded(artefact)
        async with started(artefact, store_url, quality) as engine:
            await engine.recommend("u", 1)
            await append(engine, "u", event("i0"))
            monkeypatch.setattr("service.engine.batch_runner.SMALL_SCORES", len(ITEMS) - 1)
            await append(engine, "u", event("i1"))
            here, aside = quality.threads
            assert here == threading.main_thread().name
            assert aside.startswith("compute")

    run(check())
