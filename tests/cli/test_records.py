"""`tim4rec import-log` and `tim4rec warm` on a real store."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artefact import Artefact, load_artefact
from model.state import State
from service.bulk.importer import Importer, UserHistory
from service.bulk.warm import Warmer
from service.engine.engine import Engine
from service.engine.snapshots import SnapshotFormat
from service.observe import metrics
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.erasures import Erasures
from service.store.errors import StoreError
from service.store.event_log import EventLog, LatePolicy, LogRequest
from service.store.events import Event, Mark, NewEvent, new_uid
from tests.cli.conftest import BASE_MS, ITEMS, Write, tim4rec
from tests.depth import examples

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HOUR = 3_600_000


def history(user: str, length: int, seed: int = 0) -> list[tuple[str, str, object]]:
    """Rows in time order, gaps of 0 to 2 hours."""
    draw = random.Random(f"{user}{seed}")
    time_ms = BASE_MS
    rows: list[tuple[str, str, object]] = []
    for _ in range(length):
        time_ms += draw.choice([0, 1, HOUR, 2 * HOUR])
        rows.append((user, draw.choice(ITEMS), time_ms))
    return rows


def plain(rows: Sequence[tuple[str, str, object]], user: str) -> list[tuple[str, object]]:
    return [(item, time_ms) for owner, item, time_ms in rows if owner == user]


def record(url: str, user: str, namespace: str = "tim4rec") -> list[Event]:
    async def read() -> list[Event]:
        async with Store(url, timeout_s=30) as store:
            log = EventLog(store, namespace=namespace, page=1000)
            return [event async for page in log.events(user) for event in page]

    return asyncio.run(read())


def contents(url: str, user: str, namespace: str = "tim4rec") -> list[tuple[str, object]]:
    return [(event.item_id, event.time_ms) for event in record(url, user, namespace)]


def applied() -> float:
    return sum(counter._value.get() for counter in metrics.APPLIED.values())


def post(
    url: str,
    user: str,
    *items: str,
    time_ms: int | None = None,
    late_policy: LatePolicy = "clamp",
) -> None:
    """Interactions as a service would log them."""

    async def append() -> None:
        async with Store(url, timeout_s=30) as store:
            log = EventLog(store, late_policy=late_policy)
            events = [NewEvent(new_uid(), item, time_ms) for item in items]
            (reply,) = await log.exchange([LogRequest(user, None, events)])
            assert not isinstance(reply, StoreError)

    asyncio.run(append())


# -- import-log ------------------------------------------------------------------------------


def test_a_log_becomes_records_in_time_order(valkey: ValkeyServer, write: Write) -> None:
    rows = [*history("ann", 5), *history("b{o}b:/%", 1100), *history("ü", 1)]
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    # Equal times keep the order of the file.
    shuffled.sort(key=lambda row: rows.index(row) if row[0] == "ann" else 0)
    result = tim4rec("import-log", write(shuffled), "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "1,106 interactions written" in result.stdout
    assert "events/s" in result.stdout
    assert contents(valkey.url, "ann") == plain(rows, "ann")
    assert contents(valkey.url, "ü") == plain(rows, "ü")
    bob = contents(valkey.url, "b{o}b:/%")
    assert sorted(bob) == sorted(plain(rows, "b{o}b:/%"))
    assert [time_ms for _, time_ms in bob] == sorted(time_ms for _, time_ms in bob)  # type: ignore[type-var]
    assert all(event.given_ms == event.time_ms for event in record(valkey.url, "b{o}b:/%"))


def test_running_again_adds_nothing_beyond_the_dedup_window(
    valkey: ValkeyServer, write: Write
) -> None:
    rows = [*history("ann", 60), *history("bob", 3)]
    log = write(rows)
    narrow = {"TIM4REC_DEDUP_WINDOW": "10"}
    assert tim4rec("import-log", log, "--redis", valkey.url, **narrow).exit_code == 0
    before = {user: record(valkey.url, user) for user in ("ann", "bob")}
    result = tim4rec("import-log", log, "--redis", valkey.url, **narrow)
    assert result.exit_code == 0, result.output
    assert "0 interactions written, 63 were there" in result.stdout
    assert {user: record(valkey.url, user) for user in ("ann", "bob")} == before
    assert contents(valkey.url, "ann") == plain(rows, "ann")


def test_rows_appended_to_the_log_are_added(valkey: ValkeyServer, write: Write) -> None:
    rows = history("ann", 40)
    narrow = {"TIM4REC_DEDUP_WINDOW": "10"}
    tim4rec("import-log", write(rows[:17]), "--redis", valkey.url, **narrow)
    result = tim4rec("import-log", write(rows), "--redis", valkey.url, **narrow)
    assert "23 interactions written, 17 were there" in result.stdout
    assert contents(valkey.url, "ann") == plain(rows, "ann")


@pytest.mark.slow
def test_a_killed_import_goes_on_exactly(valkey: ValkeyServer, write: Write) -> None:
    rows = [row for n in range(20) for row in history(f"u{n:02}", 1000)]
    log = write(rows)

    def written(client: redis.Redis) -> list[int]:
        return [int(client.hget(f"tim4rec:u:u{n:02}", "n") or 0) for n in range(20)]

    def killed_within_a_user(client: redis.Redis) -> bool:
        client.flushall()
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "import-log", str(log), "--redis", valkey.url],
            env=os.environ | {"TIM4REC_DEDUP_WINDOW": "100"},
            stderr=subprocess.DEVNULL,
        )
        while not any(written(client)) and process.poll() is None:
            pass
        process.kill()
        process.wait()
        return any(0 < n < 1000 for n in written(client))

    with valkey.client() as client:
        assert any(killed_within_a_user(client) for _ in range(5)), "always too late"
        assert 0 < sum(written(client)) < len(rows)
    result = tim4rec("import-log", log, "--redis", valkey.url, TIM4REC_DEDUP_WINDOW="100")
    assert result.exit_code == 0, result.output
    for n in range(20):
        assert contents(valkey.url, f"u{n:02}") == plain(rows, f"u{n:02}")


def test_users_with_other_interactions_are_left_alone_and_named(
    valkey: ValkeyServer, write: Write
) -> None:
    post(valkey.url, "bob", "i1", "i2", time_ms=BASE_MS)
    rows = [*history("ann", 5), *history("bob", 5), *history("cy", 5)]
    result = tim4rec("import-log", write(rows), "--redis", valkey.url)
    assert result.exit_code == 1
    assert "10 interactions written" in result.stdout
    assert "user 'bob': has 2 interactions that are not from this log" in result.stderr
    assert "ann" not in result.stderr
    assert contents(valkey.url, "bob") == [("i1", BASE_MS), ("i2", BASE_MS)]
    assert contents(valkey.url, "cy") == plain(rows, "cy")


def test_onto_existing_appends_once(valkey: ValkeyServer, write: Write) -> None:
    newest = BASE_MS + 4 * HOUR
    post(valkey.url, "bob", "i1", "i2", time_ms=newest)
    rows = [("bob", f"i{n}", BASE_MS + n * HOUR) for n in range(10)]
    expected = [("i1", newest), ("i2", newest)]
    expected += [(f"i{n}", max(newest, BASE_MS + n * HOUR)) for n in range(10)]
    arguments = ("import-log", write(rows[:6]), "--redis", valkey.url, "--onto-existing")
    narrow = {"TIM4REC_DEDUP_WINDOW": "4"}
    result = tim4rec(*arguments, **narrow)
    assert result.exit_code == 0, result.output
    assert "6 interactions written (4 with the time of a newer one)" in result.stdout
    write(rows)
    assert "4 interactions written, 6 were there" in tim4rec(*arguments, **narrow).stdout
    assert contents(valkey.url, "bob") == expected
    post(valkey.url, "bob", "i3", time_ms=newest + 100 * HOUR)
    for again in (arguments, arguments[:-1]):
        result = tim4rec(*again, **narrow)
        assert "0 interactions written" in result.stdout
        assert contents(valkey.url, "bob") == [*expected, ("i3", newest + 100 * HOUR)]
    assert result.exit_code == 1  # without --onto-existing, for its first two


def test_what_a_late_interaction_has_moved_is_not_written_again(
    valkey: ValkeyServer, write: Write
) -> None:
    rows = [("ann", f"i{n}", BASE_MS + n * HOUR) for n in range(30)]
    arguments = ("import-log", write(rows[:17]), "--redis", valkey.url)
    narrow = {"TIM4REC_DEDUP_WINDOW": "10"}
    assert tim4rec(*arguments, **narrow).exit_code == 0
    post(valkey.url, "ann", "late", time_ms=BASE_MS + 10 * HOUR + 1, late_policy="replay")
    write(rows)
    result = tim4rec(*arguments, **narrow)
    assert result.exit_code == 1
    assert "user 'ann': has 18 interactions that are not from this log, or late" in result.stderr
    moved = [*plain(rows[:11], "ann"), ("late", BASE_MS + 10 * HOUR + 1), *plain(rows[11:], "ann")]
    assert contents(valkey.url, "ann") == moved[:18]
    result = tim4rec(*arguments, "--onto-existing", **narrow)
    assert "13 interactions written, 17 were there" in result.stdout
    assert contents(valkey.url, "ann") == moved
    # What the import followed has moved as well.
    post(valkey.url, "bob", "first", time_ms=BASE_MS - HOUR)
    onto = [("bob", item, time_ms) for _, item, time_ms in rows]
    tim4rec("import-log", write(onto[:20]), "--redis", valkey.url, "--onto-existing", **narrow)
    post(valkey.url, "bob", "zeroth", time_ms=BASE_MS - 2 * HOUR, late_policy="replay")
    result = tim4rec(
        "import-log", write(onto), "--redis", valkey.url, "--onto-existing", **narrow
    )  # fmt: skip
    assert "10 interactions written, 20 were there" in result.stdout
    assert [item for item, _ in contents(valkey.url, "bob")][:3] == ["zeroth", "first", "i0"]
    assert len(contents(valkey.url, "bob")) == 32


def test_kinds_are_imported(valkey: ValkeyServer, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    some = [("", 2.5), ("view", ""), ("buy", ""), ("", 0)]
    rows = [
        (
            "ann" if n % 2 else "bob",
            f"i{n}",
            BASE_MS + n * HOUR,
            *(some[n % 4] if n < 20 else ("", "")),
        )
        for n in range(60)
    ]

    def written(rows: Sequence[Sequence[object]]) -> Path:
        lines = [",".join(map(str, row)) for row in rows]
        log.write_text("\n".join(["user_id,item_id,timestamp,kind,weight", *lines, ""]))
        return log

    arguments = ("import-log", log, "--redis", valkey.url, "--rows-at-once", "20")
    for part in (24, 60):
        written(rows[:part])
        result = tim4rec(*arguments)
        assert result.exit_code == 0, result.output
    assert "36 interactions written, 24 were there" in result.stdout
    for user in ("ann", "bob"):
        assert [(e.item_id, e.kind, e.weight) for e in record(valkey.url, user)] == [
            (item, kind or None, None if weight == "" else weight)
            for owner, item, _, kind, weight in rows
            if owner == user
        ]
    # Another kind or weight is another history.
    for column in (3, 4):
        changed = [list(row) for row in rows]
        changed[2][column] = "7"
        written(changed)
        result = tim4rec(*arguments)
        assert result.exit_code == 1
        assert "0 interactions written, 30 were there" in result.stdout
        assert "user 'bob': has 30 interactions that are not from this log" in result.stderr
    changed[2][3] = "no kind"
    written(changed)
    result = tim4rec(*arguments)
    assert result.exit_code == 1
    assert "kind 'no kind' is not 1 to 32 of" in result.stderr


def test_a_row_weighs_no_more_than_an_interaction_may(valkey: ValkeyServer, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    weights = ["", "10", "10.5", "2", "1e9"]
    lines = [f"ann,i{n},{BASE_MS + n},{weight}" for n, weight in enumerate(weights)]
    log.write_text("\n".join(["user_id,item_id,timestamp,weight", *lines, ""]))
    arguments = ("import-log", log, "--redis", valkey.url)
    result = tim4rec(*arguments)
    assert result.exit_code == 1
    for line, weight in ((4, "10.5"), (6, "1e9")):
        said = f"line {line}: weight '{weight}' is not a number from 0 to 10 (max_weight)"
        assert said in result.stderr
    assert "2 rows" in result.stderr
    assert not record(valkey.url, "ann")
    result = tim4rec(*arguments, "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert "2 rows left out" in result.stderr
    assert [event.weight for event in record(valkey.url, "ann")] == [None, 10, 2]
    result = tim4rec(*arguments, TIM4REC_MAX_WEIGHT="1e9", TIM4REC_NAMESPACE="heavier")
    assert result.exit_code == 0, result.output
    assert len(record(valkey.url, "ann", "heavier")) == 5
    with valkey.client() as client:
        assert client.zscore("tim4rec:popular:all", "i1") == 10
        assert client.zscore("tim4rec:popular:all", "i4") is None
        assert client.zscore("heavier:popular:all", "i4") == 1e9


def test_interactions_after_an_import_do_not_speak_against_it(
    valkey: ValkeyServer, write: Write
) -> None:
    log = write(history("ann", 30))
    tim4rec("import-log", log, "--redis", valkey.url)
    post(valkey.url, "ann", "i1")
    result = tim4rec("import-log", log, "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "30 were there" in result.stdout
    assert len(record(valkey.url, "ann")) == 31


def test_a_row_without_a_time_gets_the_last_known_one(valkey: ValkeyServer, write: Write) -> None:
    rows = [
        ("ann", "i0", ""), ("ann", "i1", BASE_MS), ("ann", "i2", ""), ("ann", "i3", BASE_MS + 5),
        ("ann", "i4", ""), ("bob", "i5", ""), ("bob", "i6", ""),
    ]  # fmt: skip
    result = tim4rec("import-log", write(rows), "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "5 rows of 2 users have no time" in result.stderr
    times = [BASE_MS, BASE_MS, BASE_MS, BASE_MS + 5, BASE_MS + 5]
    assert contents(valkey.url, "ann") == [(f"i{n}", time_ms) for n, time_ms in enumerate(times)]
    assert contents(valkey.url, "bob") == [("i5", 0), ("i6", 0)]


def test_rows_in_the_future_stop_the_import_before_it_begins(
    valkey: ValkeyServer, write: Write
) -> None:
    ahead = int(time.time() * 1000) + HOUR
    log = write([*history("ann", 3), *history("bob", 3), ("bob", "i7", ahead)])
    result = tim4rec("import-log", log, "--redis", valkey.url)
    assert result.exit_code == 1
    assert "1 rows lie in the future" in result.stderr
    assert "user 'bob', row 4 in the user's order: item 'i7' at 20" in result.stderr
    assert record(valkey.url, "ann") == []
    tolerant = tim4rec(
        "import-log", log, "--redis", valkey.url, TIM4REC_FUTURE_TOLERANCE_S="7200"
    )  # fmt: skip
    assert tolerant.exit_code == 0, tolerant.output
    assert len(record(valkey.url, "bob")) == 4


def test_ids_that_the_service_would_refuse_are_named(valkey: ValkeyServer, write: Write) -> None:
    log = write([*history("ann", 2), ("ann", "ü" * 129, BASE_MS + 99 * HOUR)])
    result = tim4rec("import-log", log, "--redis", valkey.url)
    assert result.exit_code == 1
    assert "1 rows with an id of more than 256 bytes" in result.stderr
    assert "user 'ann', row 3" in result.stderr
    assert record(valkey.url, "ann") == []
    result = tim4rec("import-log", log, "--redis", valkey.url, "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert len(record(valkey.url, "ann")) == 2


def test_a_log_is_imported_in_shards_that_know_nothing_of_each_other(
    valkey: ValkeyServer, write: Write, model_folder: Path
) -> None:
    rows = [row for n in range(40) for row in history(f"u{n:02}", 1 + n)]
    shuffled = random.Random(1).sample(rows, len(rows))
    shuffled.sort(key=lambda row: row[2])  # type: ignore[arg-type, return-value]
    log = write(shuffled)
    few = ("--rows-at-once", 50, "--redis", valkey.url)
    artefact = load_artefact(model_folder)
    there: set[bytes] = set()
    with valkey.client() as client:
        for n in range(3):
            shard = ("--shard", f"{n}/3")
            assert tim4rec("import-log", log, *few, *shard).exit_code == 0
            now = set(client.keys("tim4rec:u:*"))
            assert there < now
            there = now
            again = tim4rec("import-log", log, *few, *shard)
            assert "0 interactions written" in again.stdout
        for n in range(40):
            user = f"u{n:02}"
            assert sorted(contents(valkey.url, user), key=str) == sorted(plain(rows, user), key=str)
        warmed = 0
        for n in range(3):
            result = tim4rec("warm", model_folder, "--redis", valkey.url, "--shard", f"{n}/3")
            assert result.exit_code == 0, result.output
            assert ", 0 were up to date" in result.stdout
            before, warmed = warmed, len(client.keys(f"tim4rec:s:{artefact.identity}:*"))
            assert before < warmed
        assert warmed == 40
    assert "0 snapshots written, 40 were" in tim4rec(
        "warm", model_folder, "--redis", valkey.url
    ).stdout  # fmt: skip


@pytest.mark.parametrize("command", ["import-log", "warm"])
def test_a_shard_that_is_none_is_said_in_one_line(command: str, folder: Path) -> None:
    result = tim4rec(command, folder, "--data-dir", folder, "--shard", "3/3")
    assert result.exit_code == 1
    assert "--shard: shard 3/3: give I/N with I from 0 to N-1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_embedded_store_and_a_namespace(folder: Path, write: Write) -> None:
    rows = history("ann", 4)
    arguments = ("--data-dir", folder / "state", "--namespace", "shop")
    result = tim4rec("import-log", write(rows), *arguments)
    assert result.exit_code == 0, result.output
    with EmbeddedStore(folder / "state") as url:
        assert contents(url, "ann", "shop") == plain(rows, "ann")
        assert contents(url, "ann") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--redis", "redis://127.0.0.1:1"], "store redis://127.0.0.1:1"),
        (["--redis", "ftp://x"], "--redis: the store URL can't be read"),
        (["--redis", "redis://127.0.0.1:1", "--data-dir", "state"], "give one"),
        (["--namespace", "a b"], "namespace"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_in_one_line(
    arguments: list[str], said: str, write: Write
) -> None:
    result = tim4rec("import-log", write(history("ann", 1)), *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.rpartition("error: ")[2].count("\n") == 1


def test_a_uid_names_the_whole_history_up_to_it(valkey: ValkeyServer, write: Write) -> None:
    """So no cached state of an erased record passes for one of the record imported after it."""
    rows = history("ann", 6)
    uids = []
    for first in (rows[0], ("ann", "i19", BASE_MS), ("ann", rows[0][1], BASE_MS - 1), rows[0]):
        tim4rec("import-log", write([first, *rows[1:]]), "--redis", valkey.url)
        uids.append([event.uid for event in record(valkey.url, "ann")])
        with valkey.client() as client:
            client.delete("tim4rec:u:ann")
    assert uids[0] == uids[3]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not set(uids[a]) & set(uids[b])


def test_a_uid_names_what_was_there_before_the_import_too(
    valkey: ValkeyServer, write: Write
) -> None:
    log, uids = write(history("ann", 6)), []
    for _ in range(2):
        post(valkey.url, "ann", "i1", time_ms=BASE_MS)
        tim4rec("import-log", log, "--redis", valkey.url, "--onto-existing")
        uids.append([event.uid for event in record(valkey.url, "ann")])
        with valkey.client() as client:
            client.delete("tim4rec:u:ann")
    assert len(uids[0]) == len(uids[1]) == 7
    assert not set(uids[0]) & set(uids[1])


class _Lossy(Store):
    """Carries some calls out without a word and never gets others; no call is tried again."""

    def __init__(self, url: str, draw: random.Random) -> None:
        super().__init__(url)
        self.draw, self.lost = draw, 0

    async def execute(self, commands: Any, timeout_s: float, at: Any = None) -> list[Any]:
        fate = self.draw.random()
        if fate < 0.05:
            self.lost += 1
            raise StoreError("lost on the way there")
        replies = await super().execute(commands, 30)
        if fate < 0.1:
            self.lost += 1
            raise StoreError("lost on the way back")
        return replies


@settings(max_examples=examples(10))
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    existing=st.lists(st.booleans(), min_size=5, max_size=5),
    posts=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_lost_every_row_is_there_once_and_in_order(
    valkey: ValkeyServer, lengths: list[int], existing: list[bool], posts: list[int], seed: int
) -> None:
    """Runs that fail at any reply, with others posting in between, until one succeeds."""
    with valkey.client() as client:
        client.flushall()
    draw = random.Random(seed)
    wanted = {
        f"u{n}": plain(history(f"u{n}", length, seed), f"u{n}") for n, length in enumerate(lengths)
    }
    histories = [
        UserHistory(user, [item for item, _ in rows], [int(str(time)) for _, time in rows])
        for user, rows in wanted.items()
    ]
    others = dict.fromkeys(wanted, 0)

    def other(user: str) -> None:
        post(valkey.url, user, f"other{others[user]}", time_ms=BASE_MS)
        others[user] += 1

    for user, has in zip(wanted, existing, strict=False):
        if has:
            other(user)

    async def once() -> None:
        async with _Lossy(valkey.url, draw) as store:
            log = EventLog(store, page=1, dedup_window=6)
            reader = EventLog(store, page=7, dedup_window=6)
            await Importer(log, reader, existing="append").run(histories, lambda done: None)

    for _ in range(400):
        try:
            asyncio.run(once())
            break
        except StoreError:
            if posts:
                other(list(wanted)[posts.pop() % len(wanted)])
    else:
        raise AssertionError("no run came through")
    for user, rows in wanted.items():
        items = [item for item, _ in contents(valkey.url, user)]
        assert [item for item in items if not item.startswith("other")] == [i for i, _ in rows]
        assert [item for item in items if item.startswith("other")] == [
            f"other{n}" for n in range(others[user])
        ]


# -- warm ------------------------------------------------------------------------------------

LENGTHS = {"one": 1, "few": 9, "page": 256, "long": 700, "prefills": 1300}


@pytest.fixture
def imported(valkey: ValkeyServer, write: Write) -> list[tuple[str, str, object]]:
    """Records of all lengths, of items some of which the model does not know."""
    rows = [row for user, length in LENGTHS.items() for row in history(user, length)]
    rows = [(u, i if n % 7 else "unknown", t) for n, (u, i, t) in enumerate(rows, 1)]
    assert tim4rec("import-log", write(rows), "--redis", valkey.url).exit_code == 0
    return rows


def offline(artefact: Artefact, events: Sequence[Event], every: int = 0) -> State:
    """The state by one pass, or rounded to float16 after each `every` events."""
    index = {item: n for n, item in enumerate(artefact.items.ids, 1)}
    state = artefact.model.new_state(1)
    for start in range(0, len(events), every or len(events)):
        part = events[start : start + (every or len(events))]
        known = [(index[e.item_id], e.time_ms) for e in part if e.item_id in index]
        with torch.inference_mode():
            if known:
                items, times = torch.tensor(known).T[:, None]
                state = artefact.model.prefill(items, times, torch.tensor([len(known)]), state)
        if every and len(part) == every:
            state = artefact.model.state_layout.rounded(state, "float16")
    return state


def close(found: State, expected: State, tolerance: float) -> None:
    for name, values in expected.parts.items():
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=tolerance)


def snapshot(client: redis.Redis, artefact: Artefact, model: str, user: str) -> Any:
    data = client.get(f"tim4rec:s:{model}:{user}")
    return SnapshotFormat(artefact.model.state_layout, model).read(data)  # type: ignore[arg-type]


def test_a_service_starts_from_the_snapshots_without_the_log(
    valkey: ValkeyServer,
    model_folder: Path,
    imported: list[tuple[str, str, object]],
    run: Run,
) -> None:
    result = tim4rec("warm", model_folder, "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "5 snapshots written, 0 were up to date" in result.stdout
    artefact = load_artefact(model_folder)
    with valkey.client() as client:
        assert 0 < client.ttl(f"tim4rec:s:{artefact.identity}:long") <= 30 * 86_400

    async def serve() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            log = EventLog(store)
            engine = Engine(artefact, log, pool_capacity=512)
            await engine.start()
            try:
                from_log = metrics.REBUILDS["log"]._value.get()
                steps = applied()
                for user, length in LENGTHS.items():
                    answer = await engine.recommend(user, 5)
                    assert answer.version == length
                    row = engine.pool.get(user)
                    assert row is not None
                    events = [e async for page in log.events(user) for e in page]
                    state = engine.pool.states.rows(engine.pool.index([row]))
                    close(state, offline(artefact, events), 1e-4)
                    known = {ITEMS.index(e.item_id) + 1 for e in events if e.item_id in ITEMS}
                    assert set(row.seen.array().tolist()) == known
                    assert row.count == sum(e.item_id in ITEMS for e in events)
                    assert row.mark == Mark(length, events[-1].uid)
                assert metrics.REBUILDS["log"]._value.get() == from_log
                assert applied() == steps
            finally:
                await engine.stop()

    run(serve())


def test_warming_again_writes_only_what_has_moved_on(
    valkey: ValkeyServer, model_folder: Path, imported: list[tuple[str, str, object]]
) -> None:
    tim4rec("warm", model_folder, "--redis", valkey.url)
    result = tim4rec("warm", model_folder, "--redis", valkey.url)
    assert "0 snapshots written, 5 were up to date" in result.stdout
    newest = record(valkey.url, "long")[-1].time_ms
    post(valkey.url, "long", "i3", "i4", time_ms=newest + HOUR)
    post(valkey.url, "new", "i5")
    artefact = load_artefact(model_folder)
    with valkey.client() as client:
        client.set(f"tim4rec:s:{artefact.identity}:few", b"damaged")
        result = tim4rec("warm", model_folder, "--redis", valkey.url)
        assert "3 snapshots written, 3 were up to date" in result.stdout
        for user in ("long", "new", "few"):
            events = record(valkey.url, user)
            found = snapshot(client, artefact, artefact.identity, user)
            assert found.mark == events[-1].mark
            close(found.state, offline(artefact, events), 1e-4)


def test_a_snapshot_of_a_history_that_is_no_more_is_not_built_on(
    valkey: ValkeyServer, model_folder: Path, write: Write
) -> None:
    artefact = load_artefact(model_folder)
    with valkey.client() as client:
        for length in (300, 600):
            tim4rec("import-log", write(history("ann", length, length)), "--redis", valkey.url)
            assert tim4rec("warm", model_folder, "--redis", valkey.url).exit_code == 0
            events = record(valkey.url, "ann")
            found = snapshot(client, artefact, artefact.identity, "ann")
            assert found.mark == events[-1].mark
            close(found.state, offline(artefact, events), 1e-4)
            client.delete("tim4rec:u:ann")  # lost, its snapshot not


def test_reduced_snapshots_are_where_every_worker_rounds(
    valkey: ValkeyServer,
    model_folder: Path,
    imported: list[tuple[str, str, object]],
    run: Run,
) -> None:
    arguments = (
        "warm", model_folder, "--redis", valkey.url, "--snapshot-precision", "float16",
        "--snapshot-every", "50",
    )  # fmt: skip
    result = tim4rec(*arguments)
    assert result.exit_code == 0, result.output
    assert "3 snapshots written, 0 were up to date, 2 users have fewer" in result.stdout
    assert "0 snapshots written, 3 were up to date" in tim4rec(*arguments).stdout
    artefact = load_artefact(model_folder)
    with valkey.client() as client:
        for user, version in {"page": 250, "long": 700, "prefills": 1300}.items():
            found = snapshot(client, artefact, f"{artefact.identity}-float16-50", user)
            events = record(valkey.url, user)
            assert found.mark == events[version - 1].mark
            # Values on the edge between two float16 may go either way.
            close(found.state, offline(artefact, events[:version], 50), 4e-3)

    async def serve() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            log = EventLog(store)
            engine = Engine(
                artefact, log, pool_capacity=512, snapshot_every=50, snapshot_precision="float16"
            )
            await engine.start()
            try:
                steps = applied()
                assert (await engine.recommend("prefills", 5)).version == 1300
                assert applied() == steps
                assert (await engine.recommend("page", 5)).version == 256
                assert applied() - steps <= 6
            finally:
                await engine.stop()

    run(serve())


def test_nothing_is_written_of_a_user_erased_meanwhile(
    valkey: ValkeyServer,
    model_folder: Path,
    imported: list[tuple[str, str, object]],
    run: Run,
) -> None:
    artefact = load_artefact(model_folder)

    async def warm() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            log = EventLog(store)
            warmer = Warmer(artefact, log)
            compute, loop = warmer.engine.runner.run, asyncio.get_running_loop()

            def erased_while_it_computes(batch: Any) -> Any:
                if any(fetched.user_id == "few" for fetched in batch):
                    asyncio.run_coroutine_threadsafe(Erasures(log).erase("few"), loop).result()
                return compute(batch)

            warmer.engine.runner.run = erased_while_it_computes  # type: ignore[method-assign]
            done: list[int] = []
            result = await warmer.run(done.append)
            assert (result.written, result.gone) == (4, 1)
            assert sum(done) == result.users == await warmer.count() + 1

    run(warm())
    with valkey.client() as client:
        assert sorted(client.keys("tim4rec:s:*")) == sorted(
            f"tim4rec:s:{artefact.identity}:{user}".encode() for user in LENGTHS if user != "few"
        )


def test_a_damaged_record_is_named_and_the_rest_warmed(
    valkey: ValkeyServer, model_folder: Path, imported: list[tuple[str, str, object]]
) -> None:
    with valkey.client() as client:
        client.hdel("tim4rec:u:few", "e5")
        client.hdel("tim4rec:u:long", "e5")
    result = tim4rec("warm", model_folder, "--redis", valkey.url)
    assert result.exit_code == 1
    assert "3 snapshots written" in result.stdout
    assert "2 records can't be read" in result.stderr
    assert "user 'few': event 5 is missing" in result.stderr
    assert "user 'long': event 5 is missing" in result.stderr


def test_warm_works_on_the_embedded_store_and_needs_a_model(
    folder: Path, model_folder: Path, write: Write
) -> None:
    where = ("--data-dir", folder / "state")
    tim4rec("import-log", write(history("ann", 4)), *where)
    result = tim4rec("warm", model_folder, *where)
    assert result.exit_code == 0, result.output
    assert "1 snapshots written" in result.stdout
    result = tim4rec("warm", folder / "none", *where)
    assert result.exit_code == 1
    assert "no such folder" in result.stderr
    assert result.stderr.count("\n") == 1
