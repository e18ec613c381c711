"""The items that a user had last: in rows, in snapshots, and in what the catalogue is asked."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from model import UNKNOWN_TIME
from model.artefact import Artefact
from model.kinds import KindRules
from service.catalogue.ask import RECENT
from service.engine.engine import Engine
from service.engine.pool import Row
from service.engine.snapshots import SnapshotFormat, describe
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.events import ORIGIN, Event, NewEvent, new_uid
from tests.service.processes import BASE_MS, make_artefact
from tests.service.record import read_snapshots
from tests.service.test_engine_stateful import RecordedRetrieval

Run = Callable[[Coroutine[Any, Any, None]], None]

ITEMS = [f"i{n}" for n in range(5)]
KINDS = KindRules.parse("view:step,buy:step+hide,skip:hide,*:log")
GIVEN = [
    (item, kind)
    for n in range(12)
    for item, kind in (
        (ITEMS[n % 5], None), ("unknown €", "view"), ("i1", "skip"), ("i1", "buy"), ("i2", "ping"),
    )
]  # fmt: skip
STEPPED = [item for item, kind in GIVEN if kind in (None, "view", "buy")]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("recent") / "model", ITEMS)


@asynccontextmanager
async def started(artefact: Artefact, log: EventLog, **options: Any) -> AsyncIterator[Engine]:
    engine = Engine(artefact, log, pool_capacity=32, max_batch=8, kinds=KINDS, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def post(engine: Engine, given: Sequence[tuple[str, str | None]]) -> None:
    for n, (item, kind) in enumerate(given):
        await engine.append("u", [NewEvent(new_uid(), item, BASE_MS + n, None, kind)])


async def recent(engine: Engine) -> tuple[str, ...]:
    await engine.recommend("u", 1)
    row = engine.pool.get("u")
    assert row is not None
    return row.recent


@pytest.mark.parametrize("every", [7, 1000])  # from a snapshot and later events, and from the log
def test_a_row_has_the_newest_whatever_it_was_made_of(
    artefact: Artefact, store_url: str, run: Run, every: int
) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, page=9)
            async with started(artefact, log, snapshot_every=every) as engine:
                for end in (1, 17, len(GIVEN)):
                    count = (await engine.recommend("u", 1)).version
                    await post(engine, GIVEN[count:end])
                    stepped = [i for i, kind in GIVEN[:end] if kind in (None, "view", "buy")]
                    assert await recent(engine) == tuple(stepped[::-1][:RECENT])
                kept = await read_snapshots(log, engine.identity, ["u"])
                assert (kept == [None]) is (every == 1000)
            async with started(artefact, log, snapshot_every=every) as other:
                assert await recent(other) == tuple(STEPPED[::-1][:RECENT])

    run(main())


def test_a_shortened_record_has_those_that_are_left(
    artefact: Artefact, store_url: str, run: Run
) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log = EventLog(store, history_limit=10, dedup_window=10)
            async with started(artefact, log) as engine:
                await post(engine, GIVEN)
                assert await recent(engine) == tuple(STEPPED[-6:][::-1])

    run(main())


def test_every_read_hands_them_on_with_its_time(
    artefact: Artefact, store_url: str, run: Run
) -> None:
    async def main() -> None:
        retrieval, began = RecordedRetrieval(artefact), round(time.time() * 1000)
        async with (
            Store(store_url) as store,
            started(artefact, EventLog(store), retrieval=retrieval) as engine,
        ):
            session = [Event(1, new_uid(), "i4", None, BASE_MS, None)]
            await engine.append("u", [NewEvent(new_uid(), item) for item in ("i0", "new")])
            await engine.append("v", [NewEvent(new_uid(), "new")])  # nothing that the model knows
            for at_ms in (None, BASE_MS, UNKNOWN_TIME):
                retrieval.asked()
                await engine.recommend("u", 1, at_ms=at_ms)
                await engine.recommend("u", 1, at_ms=at_ms, allow_stale=True)
                await engine.rank("u", np.array([1], np.int32), at_ms=at_ms)
                await engine.recommend_session(session, 1, at_ms=at_ms)
                await engine.recommend("v", 1, at_ms=at_ms)
                await engine.recommend("nobody", 1, at_ms=at_ms)
                asked = retrieval.asked()
                of_user = ("new", "i0")
                assert [ask.recent for ask in asked] == [
                    of_user, of_user, of_user, ("i4",), ("new",), ()
                ]  # fmt: skip
                for ask in asked:
                    if at_ms is None:
                        assert began - 1 <= ask.at_ms <= time.time() * 1000 + 1
                    else:
                        assert ask.at_ms == at_ms

    run(main())


@pytest.mark.parametrize(
    "ids", [(), ("i1",), ('",\\[]\n\0', "é€😀", "\u2028", "x" * 256, "i1", "i1")]
)
def test_a_snapshot_has_the_ids_as_they_are(artefact: Artefact, ids: tuple[str, ...]) -> None:
    snapshots = SnapshotFormat(artefact.model.state_layout, "m")
    row = Row("u", 0, count=3, recent=ids, unknown=ids[1:])
    row.seen.add([3, 1])
    row.hidden.add([2])
    (data,) = snapshots.layout.pack(snapshots.layout.new(1), [describe(snapshots.stamp, row)])
    found = snapshots.read(data)
    assert found is not None
    assert (found.mark, found.count, found.recent) == ((0, b"\0" * 8), 3, ids)
    assert found.unknown == ids[1:]
    assert (found.seen.tolist(), found.hidden.tolist()) == ([1, 3], [2])


@pytest.mark.parametrize("items", [[], [3, 1, -2], [3] * 40])
def test_a_snapshot_of_the_format_before_is_a_miss(artefact: Artefact, items: list[int]) -> None:
    snapshots = SnapshotFormat(artefact.model.state_layout, "m")
    stamp = hashlib.blake2b(b"m", digest_size=8).digest()
    head = struct.pack("<8sq8sq", stamp, ORIGIN.version, ORIGIN.uid, 3)
    extra = head + struct.pack(f"<{len(items)}i", *items)
    (data,) = snapshots.layout.pack(snapshots.layout.new(1), [extra])
    assert snapshots.layout.unpack(data)[1] == extra
    assert snapshots.read(data) is None
