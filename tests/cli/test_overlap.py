"""`tim4rec import-log --overlap`: logs that have a part in common."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from service.bulk.importer import Existing, Importer, UserHistory
from service.store.client import Store
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.cli.test_records import HOUR, _Lossy, contents, history, plain, record
from tests.depth import examples

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

Row = tuple[str, int, str | None]
"""Item, time and kind."""


def days(begin: int, end: int) -> list[tuple[str, str, object]]:
    return [
        (f"u{u}", f"i{day}", BASE_MS + 24 * HOUR * day)
        for u in range(3)
        for day in range(begin, end)
    ]


def test_a_nightly_export_that_overlaps_the_one_before(valkey: ValkeyServer, write: Write) -> None:
    arguments = ("import-log", write(days(0, 7)), "--redis", valkey.url)
    assert tim4rec(*arguments).exit_code == 0
    write(days(1, 8))
    refused = tim4rec(*arguments)
    assert refused.exit_code == 1
    assert "--overlap adds the rows that are not stored yet" in refused.stderr
    assert "--onto-existing" not in refused.stderr
    for there, new in ((18, 3), (21, 0)):
        result = tim4rec(*arguments, "--overlap")
        assert result.exit_code == 0, result.output
        assert f"{new} interactions written, {there} were there" in result.stdout
        for user in ("u0", "u1", "u2"):
            assert contents(valkey.url, user) == plain(days(0, 8), user)
    result = tim4rec(*arguments, "--overlap", "--onto-existing")
    assert result.exit_code == 1
    assert "give one of them" in result.stderr


def test_rows_are_compared_with_what_was_given(valkey: ValkeyServer, write: Write) -> None:
    """A late interaction has the time of a newer one; the shop's file has its own."""
    newest = BASE_MS + 10 * HOUR
    arguments = ("import-log", write([("ann", "i1", newest)]), "--redis", valkey.url, "--overlap")
    assert tim4rec(*arguments).exit_code == 0
    rows = [("ann", "i0", BASE_MS), ("ann", "i1", newest), ("ann", "i1", newest)]
    write(rows)
    result = tim4rec(*arguments)
    assert "2 interactions written (1 with the time of a newer one), 1 were there" in result.stdout
    assert "0 interactions written, 3 were there" in tim4rec(*arguments).stdout
    assert contents(valkey.url, "ann") == [("i1", newest), ("i0", newest), ("i1", newest)]


def test_a_killed_import_goes_on_and_doubles_nothing(valkey: ValkeyServer, write: Write) -> None:
    rows = [row for n in range(20) for row in history(f"u{n:02}", 1000)]
    older = [row for n in range(20) for row in rows_of(rows, f"u{n:02}")[:500:2]]
    narrow = {"TIM4REC_DEDUP_WINDOW": "100"}
    log = write(older)
    assert tim4rec("import-log", log, "--redis", valkey.url, **narrow).exit_code == 0
    write(rows)
    with valkey.client() as client:
        stored = client.hget("tim4rec:u:u00", "n")
        command = [sys.executable, "-m", "cli.main", "import-log", str(log), "--overlap"]
        process = subprocess.Popen(
            [*command, "--redis", valkey.url], env=os.environ | narrow, stderr=subprocess.DEVNULL
        )
        while client.hget("tim4rec:u:u00", "n") == stored and process.poll() is None:
            pass
        process.kill()
        process.wait()
    result = tim4rec("import-log", log, "--redis", valkey.url, "--overlap", **narrow)
    assert result.exit_code == 0, result.output
    for n in range(20):
        user = f"u{n:02}"
        found = Counter((event.item_id, event.given_ms) for event in record(valkey.url, user))
        assert found == Counter(plain(rows, user))


def rows_of(rows: Sequence[tuple[str, str, object]], user: str) -> list[tuple[str, str, object]]:
    return [row for row in rows if row[0] == user]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["i1", "i2"]),
        st.integers(BASE_MS, BASE_MS + 2),
        st.sampled_from([None, "view"]),
    ),
    max_size=25,
)


def _history(rows: Sequence[Row]) -> UserHistory:
    rows = sorted(rows, key=lambda row: row[1])
    kinds = [(kind, None) for *_, kind in rows]
    items, times = [item for item, *_ in rows], [time_ms for _, time_ms, _ in rows]
    return UserHistory("ann", items, times, kinds)


async def _imported(url: str, rows: Sequence[Row], existing: Existing, draw: random.Random) -> None:
    """Runs that fail at any reply until one succeeds."""
    if not rows:
        return
    for _ in range(400):
        async with _Lossy(url, draw) as store:
            log = EventLog(store, page=1, dedup_window=6)
            reader = EventLog(store, page=7, dedup_window=6)
            try:
                result = await Importer(log, reader, existing=existing).run(
                    [_history(rows)], lambda done: None
                )
            except StoreError:
                continue
            assert result.refused == []
            return
    raise AssertionError("no run came through")


@settings(max_examples=examples(25))
@given(posted=ROWS, monday=ROWS, tuesday=ROWS, seed=st.integers(0, 2**32))
def test_overlapping_imports_come_to_the_union(
    valkey: ValkeyServer,
    posted: list[Row],
    monday: list[Row],
    tuesday: list[Row],
    seed: int,
) -> None:
    """Of multisets: of each row as many as the log has that has most of it, whatever is lost."""
    with valkey.client() as client:
        client.flushall()

    async def main() -> None:
        draw = random.Random(seed)
        async with Store(valkey.url) as store:
            log = EventLog(store)
            events = [NewEvent(new_uid(), item, at, None, kind) for item, at, kind in posted]
            await log.exchange([LogRequest("ann", None, events)])
        await _imported(valkey.url, monday, "overlap", draw)
        await _imported(valkey.url, tuesday, "overlap", draw)

    asyncio.run(main())
    found = record(valkey.url, "ann")
    wanted = Counter(posted) | Counter(monday) | Counter(tuesday)
    assert Counter((event.item_id, event.given_ms, event.kind) for event in found) == wanted
