"""`tim4rec export-log` on a real store: whole, in shards, killed, from what has changed; and what
the folder is to the commands that read a log."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bulk import exporter
from service.bulk.export_folder import ExportFolder
from service.bulk.exporter import ROWS, Exporter
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import raised
from service.store.event_log import EventLog, LatePolicy, LogRequest
from service.store.events import Event, NewEvent, new_uid
from tests.cli.conftest import BASE_MS, tim4rec
from tests.cli.test_records import HOUR, record
from tests.depth import examples

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

DEDUP_WINDOW = 8


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
    st.sampled_from(USERS),
    st.sampled_from(["clamp", "replay"]),
    st.lists(
        st.tuples(
            st.sampled_from(["i1", "i2", " ", "�"]),
            st.none() | st.integers(1, 40).map(lambda step: BASE_MS + step * HOUR),
            st.none() | st.sampled_from(["a", "b", "c"]),
            st.none() | st.sampled_from(["view", "buy"]),
            st.none() | st.sampled_from([0.0, 2.5]),
        ),
        min_size=1,
        max_size=2,
    ),
)
erasures = st.tuples(st.just("erase"), st.sampled_from(USERS))
exports = st.tuples(st.just("export"), st.booleans())
steps = st.lists(st.one_of(appends, appends, appends, erasures, exports), min_size=1, max_size=25)


@settings(max_examples=examples(40))
@given(
    done=steps,
    history_limit=st.sampled_from([0, 0, DEDUP_WINDOW]),
    rows_a_part=st.integers(1, 30),
    page=st.integers(1, 4),
)
def test_what_has_changed_and_the_rest_are_all_there_is(
    valkey: ValkeyServer,
    done: list[tuple[str, ...]],
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
                    user, policy, events = what
                    new = [NewEvent(new_uid(), *event) for event in events]
                    raised(*await log(policy).exchange([LogRequest(user, None, new)]))
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
