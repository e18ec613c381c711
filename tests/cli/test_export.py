"""`tim4rec export-log` on a real store: whole, in shards, killed, from what has changed; and what
the folder is to the commands that read a log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bulk import exporter
from service.bulk.export_folder import ExportFolder
from service.bulk.exporter import ROWS, Exporter
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import StoreError, raised
from service.store.event_log import EventLog, LatePolicy, LogRequest, StoredEvents
from service.store.events import Event, Mark, NewEvent, new_uid
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.cli.killed import killed
from tests.cli.test_records import HOUR, history, post, record
from tests.depth import examples
from tests.service.conftest import _shared_cluster, valkey_cluster
from training.interactions import read_log
from training.tables import InputError

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyCluster, ValkeyServer

__all__ = ["_shared_cluster", "valkey_cluster"]

DEDUP_WINDOW = 4


def rows_of(folder: Path) -> pl.DataFrame:
    """All rows of an export, after checking it against its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = manifest["parts"]
    assert sorted(part["name"] for part in parts) == sorted(
        file.name for file in folder.glob("*.parquet")
    )
    assert not list(folder.rglob("*.partial"))
    frames = [pl.read_parquet(folder / part["name"]) for part in parts]
    for part, frame in zip(parts, frames, strict=True):
        content = (folder / part["name"]).read_bytes()
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
        assert (part["rows"], part["users"]) == (len(frame), frame["user_id"].n_unique())
        assert dict(frame.schema) == ROWS
        assert frame.equals(frame.sort("user_id", "version"))
    rows = pl.concat(frames).sort("user_id", "version")
    newest = rows["timestamp"].dt.epoch("ms").max()
    found = manifest["users"], manifest["events"], manifest["newest_ms"]
    assert found == (rows["user_id"].n_unique(), len(rows), newest)
    return rows


def exported(url: str, folder: Path, *arguments: object) -> pl.DataFrame:
    result = tim4rec("export-log", folder, "--redis", url, *arguments)
    assert result.exit_code == 0, result.output
    return rows_of(folder)


def same_but_for_uids(events: Sequence[Event]) -> list[Event]:
    """What an import can make again: no event keeps its uid, and one that was given no time was
    given the one it has."""
    return [
        replaced._replace(
            given_ms=replaced.time_ms if replaced.given_ms is None else replaced.given_ms
        )
        for replaced in (
            event._replace(uid=b"", first_uid=None, version=place)
            for place, event in enumerate(events, 1)
        )
    ]


USERS = ["ann", "b{o}b:/%", "ü", "\n", " ", "�"]
appends = st.tuples(
    st.just("append"),
    st.sampled_from([*["ann"] * 6, *USERS]),
    st.sampled_from(["clamp", "replay"]),
    st.tuples(
        st.sampled_from(["i1", "i2", " ", "�"]),
        st.none() | st.integers(1, 40).map(lambda step: BASE_MS + step * HOUR),
        st.none() | st.sampled_from(["a", "b", "c"]),
        st.none() | st.sampled_from(["view", "buy"]),
        st.none() | st.sampled_from([0.0, 2.5]),
    ),
)
erasures = st.tuples(st.just("erase"), st.sampled_from(USERS))
exports = st.tuples(st.just("export"), st.booleans())
steps = st.lists(st.one_of(*[appends] * 6, erasures, exports), min_size=15, max_size=40)


@pytest.mark.slow
@settings(max_examples=examples(15))
@given(
    done=steps,
    history_limit=st.sampled_from([0, DEDUP_WINDOW]),
    rows_a_part=st.integers(1, 30),
    page=st.integers(1, 4),
)
def test_what_has_changed_and_the_rest_are_all_there_is(
    valkey: ValkeyServer,
    done: list[tuple[Any, ...]],
    history_limit: int,
    rows_a_part: int,
    page: int,
) -> None:
    with valkey.client() as client:
        client.flushall()

    async def main(folder: Path) -> tuple[pl.DataFrame, Path]:
        async with Store(valkey.url) as store:

            def log(policy: LatePolicy = "clamp") -> EventLog:
                return EventLog(
                    store, page=page, dedup_window=DEDUP_WINDOW, late_policy=policy,
                    replay_limit=DEDUP_WINDOW // 2, history_limit=history_limit,
                )  # fmt: skip

            async def export(name: str, since: Path | None) -> pl.DataFrame:
                before = None if since is None else ExportFolder(since)
                made = Exporter(log(), ExportFolder(folder / name), since=before)
                await made.begin()
                assert (await made.run(lambda users: None)).complete
                return rows_of(folder / name)

            last: Path | None = None
            for number, (kind, *what) in enumerate([*done, ("export", True)]):
                if kind == "append":
                    user, policy, event = what
                    new = NewEvent(new_uid(), *event)
                    raised(*await log(policy).exchange([LogRequest(user, None, [new])]))
                elif kind == "erase":
                    await Erasures(log()).erase(what[0])
                else:
                    rows = await export(f"{number}", last if what[0] else None)
                    assert rows.equals(await export(f"{number} whole", None))
                    last = folder / f"{number}"
        assert last is not None
        return rows, last

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "ROWS_A_PART", rows_a_part)
        patch.setattr(exporter, "USERS", 2)
        rows, last = asyncio.run(main(Path(folder)))
        for user in USERS:
            there = [
                (e.item_id, e.time_ms, e.given_ms, e.kind, e.weight, e.event_id, e.version)
                for e in record(valkey.url, user)
            ]
            own = rows.filter(pl.col("user_id") == user).drop("user_id")
            assert own.with_columns(pl.col("timestamp").dt.epoch("ms")).rows() == there
        if rows.is_empty():
            return
        result = tim4rec(
            "import-log", last, "--redis", valkey.url, "--namespace", "other", "--no-live",
            TIM4REC_DEDUP_WINDOW=str(DEDUP_WINDOW),
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        for user in USERS:
            there = same_but_for_uids(record(valkey.url, user, "other"))
            assert there == same_but_for_uids(record(valkey.url, user))


def test_an_export_is_a_log_and_says_what_is_in_it(
    valkey: ValkeyServer, write: Write, tmp_path: Path
) -> None:
    rows = [*history("ann", 5), *history("b{o}b:/%", 1100), *history("ü", 1)]
    tim4rec("import-log", write(rows), "--redis", valkey.url)
    folder, report = tmp_path / "out", tmp_path / "report.json"
    before = round(1000 * time.time())
    result = tim4rec("export-log", folder, "--redis", valkey.url, "--json", report)
    assert result.exit_code == 0, result.output
    assert "1,106 interactions of 3 users, 1,106 of them read from the store" in result.stdout
    found = json.loads(report.read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert before - 1000 <= found["began_ms"] == manifest["began_ms"] <= 1000 * time.time()
    del found["began_ms"], found["seconds"]
    assert found == {
        "users": 3, "events": 1106, "read_events": 1106, "newest_ms": manifest["newest_ms"],
        "parts": 1, "damaged": 0, "complete": True,
    }  # fmt: skip
    assert (manifest["namespace"], manifest["since"], manifest["shards"]) == ("tim4rec", None, 1)
    exported = read_log(folder).frame
    assert exported.equals(read_log(write(rows)).frame)
    assert rows_of(folder)["version"].max() == 1100
    # A second time it stays as it is.
    post(valkey.url, "ann", "i1")
    assert tim4rec("export-log", folder, "--redis", valkey.url).exit_code == 0
    assert read_log(folder).frame.equals(exported)


def test_from_an_export_on_only_what_has_changed_is_read(
    valkey: ValkeyServer, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "ROWS_A_PART", 40)
    rows = [row for n in range(20) for row in history(f"u{n:02}", 10)]
    tim4rec("import-log", write(rows), "--redis", valkey.url)
    first, report = tmp_path / "first", tmp_path / "report.json"
    exported(valkey.url, first)
    post(valkey.url, "u03", "i1")
    post(valkey.url, "new", "i1", "i2")
    post(valkey.url, "u05", "late", time_ms=BASE_MS, late_policy="replay")
    with valkey.client() as client:
        client.delete("tim4rec:u:u07")
    second = exported(valkey.url, tmp_path / "second", "--since", first, "--json", report)
    assert json.loads(report.read_text())["read_events"] == 1 + 2 + 11
    assert second.equals(exported(valkey.url, tmp_path / "whole"))
    assert exported(valkey.url, tmp_path / "third", "--since", tmp_path / "second").equals(second)
    for file in (tmp_path / "third").glob("*.parquet"):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest["since"] == str(first)


def test_jobs_side_by_side_write_one_data_set(
    valkey: ValkeyServer, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "ROWS_A_PART", 40)
    rows = [row for n in range(30) for row in history(f"u{n:02}", 10)]
    tim4rec("import-log", write(rows), "--redis", valkey.url)
    folder = tmp_path / "out"
    for part in (2, 0, 1):
        with pytest.raises(InputError, match=r"export is not complete|No such file"):
            read_log(folder)
        result = tim4rec("export-log", folder, "--redis", valkey.url, "--shard", f"{part}/3")
        assert result.exit_code == 0, result.output
        assert ("not complete" in result.stderr) == (part != 1)
    assert read_log(folder).frame.equals(read_log(write(rows)).frame)
    assert rows_of(folder).equals(exported(valkey.url, tmp_path / "whole"))


@pytest.mark.slow
def test_a_cluster_is_exported(
    valkey_cluster: ValkeyCluster, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "ROWS_A_PART", 40)
    rows = [row for n in range(30) for row in history(f"u{n:02}", 10)]
    tim4rec("import-log", write(rows[:200]), "--redis", valkey_cluster.url)
    exported(valkey_cluster.url, tmp_path / "first")
    tim4rec("import-log", write(rows), "--redis", valkey_cluster.url)
    exported(valkey_cluster.url, tmp_path / "out", "--since", tmp_path / "first")
    assert read_log(tmp_path / "out").frame.equals(read_log(write(rows)).frame)


@pytest.mark.slow
def test_a_killed_export_goes_on(valkey: ValkeyServer, write: Write, tmp_path: Path) -> None:
    rows = [row for n in range(60) for row in history(f"u{n:02}", 20)]
    tim4rec("import-log", write(rows), "--redis", valkey.url)
    folder = tmp_path / "out"
    killed(
        tmp_path / "said", "export-log", folder, "--redis", valkey.url,
        constant="service.bulk.exporter.ROWS_A_PART", value=100,
        method="service.bulk.export_folder.ExportFolder.write", call=4,
    )  # fmt: skip
    done = {file: file.stat().st_mtime_ns for file in folder.glob("_export/part-*.json")}
    assert done
    assert not (folder / "manifest.json").exists()
    with pytest.raises(InputError, match="run the same export-log again"):
        read_log(folder)
    (folder / "_export" / "left.partial").write_text("half a part")
    exported(valkey.url, folder)
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert read_log(folder).frame.equals(read_log(write(rows)).frame)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("other",), "other: has other files in it; give a folder of its own"),
        (("out", "--since", "none"), "none: is no complete export of export-log; give one"),
        (("out", "--namespace", "b"), "was begun with namespace 'tim4rec', not 'b'"),
        (("out", "--since", "out"), "out: can't go on from itself; give another folder"),
        (("begun", "--since", "out"), "was begun with since None, not '"),
        (("out", "--shard", "2/2"), "--shard: shard 2/2: give I/N"),
        (("log.csv",), "log.csv: is a file; give a folder"),
    ],
)
def test_a_folder_of_something_else_is_named_in_one_line(
    valkey: ValkeyServer, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    post(valkey.url, "ann", "i1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    (tmp_path / "log.csv").touch()
    for name in ("out", "begun"):
        exported(valkey.url, tmp_path / name)
    places = {"other", "out", "none", "begun", "log.csv"}
    words = [tmp_path / word if word in places else word for word in arguments]
    result = tim4rec("export-log", *words, "--redis", valkey.url)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_export_that_was_tampered_with_is_named(valkey: ValkeyServer, tmp_path: Path) -> None:
    post(valkey.url, "ann", "i1")
    exported(valkey.url, tmp_path / "out")
    post(valkey.url, "ann", "i1")
    arguments = (
        "export-log",
        tmp_path / "next",
        "--redis",
        valkey.url,
        "--since",
        tmp_path / "out",
    )
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"PAR1")
    result = tim4rec(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "part-00000.parquet: not readable as Parquet" in result.stderr
    (tmp_path / "out" / "manifest.json").write_text('{"format": "tim4rec-log-1"}')
    result = tim4rec(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "manifest.json: not as export-log writes it" in result.stderr


def test_damaged_records_are_left_out_and_named(valkey: ValkeyServer, tmp_path: Path) -> None:
    for user in ("ann", "bob", "cy"):
        post(valkey.url, user, "i1", "i2", time_ms=BASE_MS)
    exported(valkey.url, tmp_path / "before")
    with valkey.client() as client:
        client.hdel("tim4rec:u:ann", "e2")
        client.hset("tim4rec:u:bob", "e2", b"too short for an event")
    for since in ((), ("--since", tmp_path / "before")):
        folder = tmp_path / f"out{len(since)}"
        result = tim4rec("export-log", folder, "--redis", valkey.url, *since)
        assert result.exit_code == 0
        assert "2 users are left out, their records can't be read" in result.stderr
        assert "user 'ann'\n  user 'bob'" in result.stderr
        assert set(rows_of(folder)["user_id"]) == {"cy"}


def test_an_empty_store_is_an_export_without_interactions(folder: Path, tmp_path: Path) -> None:
    result = tim4rec("export-log", tmp_path / "out", "--data-dir", folder / "state")
    assert result.exit_code == 0, result.output
    assert "0 interactions of 0 users" in result.stdout
    assert rows_of(tmp_path / "out").is_empty()
    with pytest.raises(InputError, match="no interactions in it"):
        read_log(tmp_path / "out")


def test_a_store_that_is_away_is_one_line(tmp_path: Path) -> None:
    result = tim4rec("export-log", tmp_path / "out", "--redis", f"unix://{tmp_path}/none")
    assert result.exit_code == 1
    assert "running the same command again goes on where this one stopped" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_event_id_that_is_near_twice_is_taken_once(valkey: ValkeyServer, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    ids = ["a", "b", "a", "", "b", "a"]
    lines = [f"ann,i{n},{BASE_MS + n},{event_id}" for n, event_id in enumerate(ids)]
    log.write_text("\n".join(["user_id,item_id,timestamp,event_id", *lines, ""]))
    arguments = ("import-log", log, "--redis", valkey.url)
    for said in ("6 interactions written", "0 interactions written, 6 were there"):
        result = tim4rec(*arguments, TIM4REC_DEDUP_WINDOW="2")
        assert result.exit_code == 0, result.output
        assert said in result.stdout
    # Of events 1 and 3 with the id a, and 2 and 5 with the id b, the first two are too near.
    assert [e.event_id for e in record(valkey.url, "ann")] == ["a", "b", None, None, "b", "a"]


def test_a_given_time_that_does_not_make_the_row_s_own_is_left_out(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    rows = [(5, 3), (5, 4), (7, ""), (9, 8), (9, 9), (9, 1), (9, 10)]
    lines = [f"ann,i,{BASE_MS + at},{BASE_MS + given if given != '' else ''}" for at, given in rows]
    log.write_text("\n".join(["user_id,item_id,timestamp,given_ms", *lines, ""]))
    result = tim4rec("import-log", log, "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    events = record(valkey.url, "ann")
    assert [event.time_ms - BASE_MS for event in events] == [5, 5, 7, 9, 9, 9, 9]
    assert [(event.given_ms or 0) - BASE_MS for event in events] == [5, 4, 7, 9, 9, 1, 9]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("given_ms", "soon", "line 2: given_ms 'soon' is no time in whole milliseconds"),
        ("given_ms", "1.5", "line 2: given_ms '1.5' is no time in whole milliseconds"),
        ("event_id", "x" * 257, "line 2: event_id has more than 256 bytes"),
    ],
)
def test_what_cannot_have_been_given_is_a_bad_row(
    valkey: ValkeyServer, tmp_path: Path, column: str, value: str, said: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"user_id,item_id,timestamp,{column}\nann,i,{BASE_MS},{value}\n")
    result = tim4rec("import-log", log, "--redis", valkey.url)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not record(valkey.url, "ann")


@pytest.mark.parametrize("meanwhile", ["appended", "late", "erased", "begun anew"])
def test_a_record_that_changes_between_two_pages_is_read_as_it_is_in_the_end(
    valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    post(valkey.url, "bob", "i1", time_ms=BASE_MS)
    for n in range(10):
        post(valkey.url, "ann", f"i{n}", time_ms=BASE_MS + n * HOUR)

    async def main() -> None:
        async with Store(valkey.url) as store:
            log = EventLog(store, page=4, late_policy="replay")
            pages, stored = 0, log.stored

            async def changed(known: Mapping[str, Mark]) -> list[StoredEvents | StoreError]:
                nonlocal pages
                pages += 1
                if pages == 2:
                    if meanwhile in ("erased", "begun anew"):
                        await Erasures(log).erase("ann")
                    if meanwhile != "erased":
                        at = {"appended": 20, "late": 2, "begun anew": 1}[meanwhile]
                        new = NewEvent(new_uid(), "new", BASE_MS + at * HOUR)
                        raised(*await log.exchange([LogRequest("ann", None, [new])]))
                return await stored(known)

            monkeypatch.setattr(log, "stored", changed)
            made = Exporter(log, ExportFolder(tmp_path / "out"))
            await made.begin()
            await made.run(lambda users: None)

    asyncio.run(main())
    items = {user: [e.item_id for e in record(valkey.url, user)] for user in ("ann", "bob")}
    for user, own in items.items():
        rows = rows_of(tmp_path / "out").filter(pl.col("user_id") == user)
        assert rows["item_id"].to_list() == own
    assert (
        len(items["ann"]) == {"appended": 11, "late": 11, "erased": 0, "begun anew": 1}[meanwhile]
    )
