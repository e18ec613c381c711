"""Small waves are computed between two turns of the event loop, others in their thread, never both
at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.engine.batch_runner import SMALL_EVENTS
from service.engine.engine import Engine
from service.engine.history import Fetched
from service.engine.work import Work
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.events import NewEvent, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import make_artefact
from tests.service.test_pool import evict
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(20)]


def test_where_waves_are_computed(valkey: ValkeyServer, tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "model", ITEMS)
    where: list[tuple[str, int]] = []
    inside: list[str] = []

    async def run() -> None:
        async with Store(valkey.url) as store:
            engine = Engine(artefact, EventLog(store, namespace="inline"))
            original = engine.runner.run

            def watched(batch: Sequence[Fetched]) -> Work:
                assert not inside, "two at once"
                inside.append(threading.current_thread().name)
                try:
                    return original(batch)
                finally:
                    lacking = sum(len(f.reply.events) for f in batch if f.reply)
                    where.append((inside.pop(), lacking))

            engine.runner.run = watched  # type: ignore[method-assign]
            await engine.start()

            async def post(user: str, events: int = 1) -> None:
                news = [NewEvent(new_uid(), ITEMS[n % 20]) for n in range(events)]
                await engine.append(user, news)

            async def ask(user: str, version: int = 2) -> None:
                found = await engine.recommend(user, 3)
                assert found.version == version

            main = threading.current_thread().name
            await post("ann")
            await engine.recommend("ann", 3)
            await post("ann")
            await ask("ann")
            assert where[0][0] != main, "a user who is not in the pool"
            assert {name for name, _ in where[1:]} == {main}, "a step, and none"

            users = [f"u{n}" for n in range(SMALL_EVENTS + 1)]
            await asyncio.gather(*(post(user, 2) for user in users))
            await asyncio.gather(*(ask(user) for user in users))
            where.clear()
            await asyncio.gather(*(post(user) for user in users))
            await asyncio.gather(*(ask(user, 3) for user in users))
            assert sum(lacking for _, lacking in where) >= len(users)
            assert all((name == main) == (lacking <= SMALL_EVENTS) for name, lacking in where)

            def busy() -> None:
                inside.append("something else")
                assert goes_on.wait(LONG_S)
                inside.pop()

            where.clear()
            goes_on = threading.Event()
            copying = asyncio.create_task(engine.scheduler.aside(busy))
            asking = asyncio.create_task(ask("ann"))
            async with asyncio.timeout(LONG_S):
                while engine.scheduler._in_thread < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            goes_on.set()
            await asyncio.gather(asking, copying)
            assert where == [("compute_0", 0)], "it waits for its turn"
            await engine.stop()

    asyncio.run(run())


@pytest.mark.parametrize("place", ["show_appends", "show"])
def test_a_fault_of_ours_ends_one_wave_only(
    valkey: ValkeyServer, tmp_path: Path, place: str
) -> None:
    """In the exchange, or after the arithmetic: everybody else waits for the same loop."""
    artefact = make_artefact(tmp_path / "model", ITEMS)

    async def run() -> None:
        async with Store(valkey.url) as store:
            engine = Engine(artefact, EventLog(store, namespace=f"fault-{place}"))
            await engine.start()
            await engine.append("ann", [NewEvent(new_uid(), ITEMS[0])])
            await engine.recommend("ann", 3)
            sound = getattr(engine.tally, place)

            def broken(*arguments: Any) -> None:
                setattr(engine.tally, place, sound)
                raise KeyError("broken")

            setattr(engine.tally, place, broken)
            waiting = [engine.recommend(user, 3) for user in ("ann", "bea")]
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            failed = [isinstance(answer, KeyError) for answer in answers]
            assert any(failed) or place == "show", "it comes after the answers"
            await engine.append("ann", [NewEvent(new_uid(), ITEMS[1])])
            assert (await engine.recommend("ann", 3)).version == 2
            assert evict(engine.pool, "ann"), "its row is still held"
            await engine.stop()

    asyncio.run(asyncio.wait_for(run(), LONG_S))
