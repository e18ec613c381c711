"""The sampler on real engines and a real server: what it finds equal, different, or leaves out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from model.artefact import Artefact
from service.engine.engine import Engine
from service.engine.exactness import ExactnessSampler
from service.observe import metrics
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import StoreUnavailable
from service.store.event_log import EventLog
from service.store.events import Event, NewEvent, new_uid
from tests.service.processes import BASE_MS, make_artefact
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(30)]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("exactness") / "model", ITEMS)


@asynccontextmanager
async def started(artefact: Artefact, url: str, **options: Any) -> AsyncIterator[Engine]:
    async with Store(url) as store:
        engine = Engine(
            artefact, EventLog(store, page=50), pool_capacity=64, max_batch=16, **options
        )
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def interact(engine: Engine, user: str, n: int, start: int = 0) -> None:
    for i in range(start, start + n):
        item = ITEMS[i * 7 % len(ITEMS)] if i % 9 else "never seen in training"
        await engine.append(user, [NewEvent(new_uid(), item, BASE_MS + i * 100_000, None)])
    await engine.recommend(user, 5)


def sampler(engine: Engine, **options: Any) -> ExactnessSampler:
    return ExactnessSampler(
        engine, **({"every_s": 0.01, "max_events": 1000, "tolerance": 1e-3} | options)
    )


def counted(result: str) -> float:
    value: float = metrics.EXACTNESS_SAMPLES[result]._value.get()
    return value


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_states_stepped_one_by_one_are_equal(
    artefact: Artefact, store_url: str, run: Run, precision: str
) -> None:
    async def go() -> None:
        options = {"snapshot_every": 16, "snapshot_precision": precision}
        async with started(artefact, store_url, **options) as engine:
            await interact(engine, "ann", 150)
            before = counted("equal")
            found = await sampler(engine).check("ann")
            assert found is not None
            assert found.events == 150
            assert 0 <= found.difference < (1e-4 if precision == "float32" else 1e-2)
            assert counted("equal") == before + 1
            assert "ann" in engine.pool.users()

    run(go())


def damage_state(engine: Engine) -> None:
    engine.pool.states["h"][engine.pool.get("ann").slot] += 0.5  # type: ignore[union-attr]


def damage_out(engine: Engine) -> None:
    engine.pool.states["out"][engine.pool.get("ann").slot] *= 1.01  # type: ignore[union-attr]


def damage_to_nan(engine: Engine) -> None:
    engine.pool.states["out"][engine.pool.get("ann").slot] = torch.nan  # type: ignore[union-attr]


def damage_seen(engine: Engine) -> None:
    engine.pool.get("ann").seen.add([5])  # type: ignore[union-attr]


def damage_recent(engine: Engine) -> None:
    engine.pool.get("ann").recent += ("i1",)  # type: ignore[union-attr]


def damage_count(engine: Engine) -> None:
    engine.pool.get("ann").count += 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("damage", "infinite"),
    [
        (damage_out, False),
        (damage_to_nan, True),
        (damage_seen, True),
        (damage_recent, True),
        (damage_count, True),
    ],
)
def test_a_wrong_state_is_found_and_dropped(
    artefact: Artefact,
    store_url: str,
    run: Run,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Engine], None],
    infinite: bool,
) -> None:
    async def go() -> None:
        async with started(artefact, store_url) as engine:
            await interact(engine, "ann", 4)
            watch, before = sampler(engine), counted("different")
            damage(engine)
            found = await watch.check("ann")
            assert found is not None
            assert found.difference > 1e-3
            assert math.isinf(found.difference) is infinite
            assert metrics.EXACTNESS_DIFFERENCE._value.get() == found.difference
            assert counted("different") == before + 1
            assert [r.levelno for r in caplog.records] == [logging.ERROR]
            assert "ann" not in caplog.text
            assert "ann" not in engine.pool.users()
            # The next request builds it from the log again.
            await engine.recommend("ann", 5)
            mended = await watch.check("ann")
            assert mended is not None
            assert mended.difference < 1e-4

    run(go())


def test_a_wrong_hidden_state_shows_after_the_next_step(
    artefact: Artefact, store_url: str, run: Run
) -> None:
    async def go() -> None:
        async with started(artefact, store_url) as engine:
            await interact(engine, "ann", 4)
            damage_state(engine)
            await interact(engine, "ann", 1, start=4)
            found = await sampler(engine).check("ann")
            assert found is not None
            assert found.difference > 1e-3

    run(go())


def test_what_is_left_out(artefact: Artefact, store_url: str, run: Run) -> None:
    async def go() -> None:
        async with started(artefact, store_url) as engine:
            before = counted("skipped")
            assert await sampler(engine).check("nobody") is None
            await interact(engine, "ann", 12)
            assert await sampler(engine, max_events=11).check("ann") is None
            assert await sampler(engine, max_events=12).check("ann") is not None
            unknown = [NewEvent(new_uid(), "never seen in training", BASE_MS, None)]
            await engine.append("bob", unknown)
            await engine.recommend("bob", 5)
            assert await sampler(engine).check("bob") is None
            # Another service erases the user, and a new record begins, longer than the old one.
            await Erasures(engine.log).erase("ann")
            async with started(artefact, store_url) as other:
                await interact(other, "ann", 20, start=100)
            assert await sampler(engine).check("ann") is None
            assert counted("skipped") == before + 4

    run(go())


def test_a_row_may_lag_behind_the_log(artefact: Artefact, store_url: str, run: Run) -> None:
    """The state of an older version is compared with the recomputation of that version."""

    async def go() -> None:
        async with started(artefact, store_url) as engine:
            await interact(engine, "ann", 60)
            async with started(artefact, store_url) as other:
                await interact(other, "ann", 60, start=60)
            found = await sampler(engine).check("ann")
            assert found is not None
            assert found.events == 60
            assert found.difference < 1e-4

    run(go())


def test_it_runs_by_itself_beside_requests(artefact: Artefact, store_url: str, run: Run) -> None:
    async def go() -> None:
        async with started(artefact, store_url) as engine:
            equal, different = counted("equal"), counted("different")
            async with sampler(engine).running(), asyncio.timeout(LONG_S):
                for start in range(0, 40, 4):
                    await asyncio.gather(*(interact(engine, user, 4, start) for user in "abcdef"))
                while counted("equal") < equal + 5:
                    await interact(engine, "ann", 1)
            assert counted("different") == different
            after = counted("equal")
            await asyncio.sleep(0.1)
            assert counted("equal") == after

    run(go())


def test_a_store_that_is_away_stops_nothing(artefact: Artefact, store_url: str, run: Run) -> None:
    async def go() -> None:
        async with started(artefact, store_url) as engine:
            await interact(engine, "ann", 4)
            events, skipped, equal = engine.log.events, counted("skipped"), counted("equal")

            async def away(user_id: str) -> AsyncIterator[list[Event]]:
                raise StoreUnavailable("away")
                yield []

            engine.log.events = away  # type: ignore[method-assign,assignment]
            async with sampler(engine).running(), asyncio.timeout(LONG_S):
                while counted("skipped") < skipped + 3:
                    await engine.recommend("ann", 5)
                engine.log.events = events  # type: ignore[method-assign]
                while counted("equal") == equal:
                    await engine.recommend("ann", 5)

    run(go())
