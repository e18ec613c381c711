"""An append makes a state only of users who have one in memory; what it makes due is still done."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.engine.engine import Engine
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.events import NewEvent, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import make_artefact
from tests.service.record import read_snapshots

ITEMS = [f"i{n}" for n in range(20)]
EVERY, USERS = 8, [f"u{n}" for n in range(5)]


@pytest.mark.parametrize("at_once", [1, 3, 2 * EVERY])
def test_a_user_whom_nobody_reads(valkey: ValkeyServer, tmp_path: Path, at_once: int) -> None:
    """Appends alone: states are made when snapshots are due, and no replay gets longer."""
    artefact = make_artefact(tmp_path / "model", ITEMS)

    async def run() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store, namespace=f"unread{at_once}")
            engine = Engine(artefact, log, snapshot_every=EVERY)
            await engine.start()
            version = 0
            while version < 4 * EVERY:
                new = range(version + 1, version + at_once + 1)
                events = [[NewEvent(new_uid(), ITEMS[n % 20]) for n in new] for _ in USERS]
                answers = map(engine.append, USERS, events)
                for outcomes in await asyncio.gather(*answers):
                    assert [outcome.version for outcome in outcomes] == list(new)
                version += at_once
                if version < EVERY:
                    assert not engine.pool.users(), "a state that nobody has asked for"
                while not engine.scheduler.is_idle:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                if version < EVERY:
                    continue
                kept = await read_snapshots(log, engine.identity, USERS)
                for data in kept:
                    found = engine.snapshots.read(data)
                    assert found is not None
                    assert version - found.mark.version < EVERY
                for user in engine.pool.users():
                    engine.pool.drop(user)
            await engine.stop()

    asyncio.run(run())


def test_what_is_due_is_done_before_the_end(valkey: ValkeyServer, tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "model", ITEMS)

    async def run() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store, namespace="unread")
            engine = Engine(artefact, log, snapshot_every=2)
            await engine.start()
            for _ in range(2):
                await engine.append("ann", [NewEvent(new_uid(), ITEMS[0])])
            await engine.stop()
            assert await read_snapshots(log, engine.identity, ["ann"]) != [None]

    asyncio.run(run())
