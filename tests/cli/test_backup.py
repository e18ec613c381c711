"""`tim4rec backup` and `tim4rec restore` on real stores: whole, under load, cut off, damaged."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bulk import backup_folder, stored_keys
from service.bulk.backup import back_up
from service.bulk.backup import restore as restored
from service.bulk.backup_folder import BackupFolder, new_backup
from service.bulk.stored_keys import StoredKeys
from service.store.backup_marks import BackupMarks
from service.store.client import Store
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid
from service.store.record_keys import RecordKeys
from tests.cli.conftest import BASE_MS, Service, Write, serving, tim4rec
from tests.cli.killed import killed
from tests.cli.test_records import history, post, record
from tests.depth import examples
from tests.forked import Forked
from tests.service.conftest import ValkeyServer, _shared_cluster, valkey_cluster
from tests.service.test_store_access import PASSWORD, REDIS, guarded
from tests.service.test_store_access import url as login
from tests.waited import LONG_S, until

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyCluster

__all__ = ["_shared_cluster", "guarded", "valkey_cluster"]

Client = redis.Redis | redis.RedisCluster
READS: Mapping[bytes, Callable[[Client, bytes], Any]] = {
    b"hash": lambda client, key: client.hgetall(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"string": lambda client, key: client.get(key),
}


def kept(client: Client, namespace: str = "tim4rec") -> dict[bytes, tuple[Any, Any]]:
    """What a backup is to hold, by the rest of its name: the content, and until when."""
    prefix, found = f"{namespace}:".encode(), {}
    for key in client.scan_iter(match=prefix + b"*"):
        name = key.removeprefix(prefix)
        if name.partition(b":")[0] not in stored_keys.LEFT_OUT:
            content = READS[client.type(key)](client, key)
            found[name] = content, client.execute_command("PEXPIRETIME", key)
    return found


def filled(url: str, client: Client, write: Write) -> None:
    """A store with something of everything."""
    rows = [row for n in range(60) for row in history(f"u{n}", 1 + 7 * n)]
    result = tim4rec("import-log", write(rows), "--redis", url)
    assert result.exit_code == 0, result.output
    post(url, "u9", "late", time_ms=BASE_MS + 1, late_policy="replay")
    post(url, "b{o}b:/% ü\n", "i1", "i2", time_ms=BASE_MS)
    client.expire("tim4rec:u:u3", 5000)
    client.hset("tim4rec:items:7", "i1", '{"title": "One"}')
    client.hset("tim4rec:trial:abc", mapping={"1:base:users": 4, "1:base:taken": 1})
    client.hset("tim4rec:tried:u3", "abc", "base")
    client.pexpire("tim4rec:tried:u3", 3_600_000)
    client.hset("tim4rec:explored:shown:12", "i1", 3)
    client.set("tim4rec:active", '{"version": 1}')
    client.set("other:u:u1", "of another namespace")
    client.set("tim4rec:learner", "at work", ex=600)
    client.set("tim4rec:s:model:u1", b"snapshot")


def backed_up(url: str, folder: Path, *arguments: object) -> str:
    result = tim4rec("backup", folder, "--redis", url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_comes_back_as_it_was(valkey: ValkeyServer, tmp_path: Path, write: Write) -> None:
    out = tmp_path / "backups" / "monday"
    with valkey.client() as client:
        filled(valkey.url, client, write)
        before = kept(client)
        said = backed_up(valkey.url, out)
        assert "of 61 users" in said
        assert "61 users are as in the store, 0 have changed since" in said
        assert [path.name for path in out.parent.iterdir()] == ["monday"]
        assert out.stat().st_mode & 0o777 == 0o700
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["keys"]["u"] == 61
        assert manifest["keys"]["items"] == 1
        assert int(client.get("tim4rec:backup") or 0) == manifest["began_ms"]

        arguments = ("restore", out, "--redis", valkey.url, "--namespace", "a-copy")
        result = tim4rec(*arguments)
        assert result.exit_code == 0, result.output
        assert "of 61 users restored" in result.stdout
        assert "live evidence made of" in result.stdout
        assert kept(client, "a-copy") == before
        assert kept(client) == before
        assert record(valkey.url, "u9", "a-copy") == record(valkey.url, "u9")

        for refused in (arguments, ("restore", out, "--redis", valkey.url)):
            result = tim4rec(*refused)
            assert result.exit_code == 1
            assert "is not empty" in result.stderr
            assert "--replace" in result.stderr
        post(valkey.url, "u1", "i1", time_ms=BASE_MS)
        post(valkey.url, "nobody", "i1", time_ms=BASE_MS)
        assert kept(client) != before
        result = tim4rec("restore", out, "--redis", valkey.url, "--replace")
        assert result.exit_code == 0, result.output
        assert kept(client) == before
        assert client.get("tim4rec:s:model:u1") is None
        assert client.get("other:u:u1")
    result = tim4rec("backup", out, "--redis", valkey.url)
    assert result.exit_code == 1
    assert "is there already" in result.stderr


def test_an_embedded_store(tmp_path: Path, write: Write) -> None:
    log = write(history("ann", 30))
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    assert tim4rec("import-log", log, "--data-dir", first).exit_code == 0
    assert tim4rec("backup", out, "--data-dir", first).exit_code == 0
    result = tim4rec("restore", out, "--data-dir", second)
    assert result.exit_code == 0, result.output
    result = tim4rec("import-log", log, "--data-dir", second)
    assert "0 interactions written, 30 were there" in result.stdout


def test_from_a_cluster_to_a_server_and_back(
    valkey_cluster: ValkeyCluster, valkey: ValkeyServer, tmp_path: Path, write: Write
) -> None:
    with valkey_cluster.client() as cluster, valkey.client() as client:
        filled(valkey_cluster.url, cluster, write)
        before = kept(cluster)
        backed_up(valkey_cluster.url, tmp_path / "one")
        result = tim4rec("restore", tmp_path / "one", "--redis", valkey.url)
        assert result.exit_code == 0, result.output
        assert kept(client) == before
        backed_up(valkey.url, tmp_path / "two")
        result = tim4rec("restore", tmp_path / "two", "--redis", valkey_cluster.url, "--replace")
        assert result.exit_code == 0, result.output
        assert kept(cluster) == before


class RedisServer(ValkeyServer):
    binary = Path(REDIS or "")


@pytest.mark.skipif(REDIS is None, reason="needs redis-server (Debian package of this name)")
def test_from_valkey_to_redis_and_back(
    valkey: ValkeyServer, folder: Path, tmp_path: Path, write: Write
) -> None:
    other = RedisServer(folder)
    other.start()
    try:
        with valkey.client() as client, other.client() as of_other:
            filled(valkey.url, client, write)
            before = kept(client)
            backed_up(valkey.url, tmp_path / "one")
            result = tim4rec("restore", tmp_path / "one", "--redis", other.url)
            assert result.exit_code == 0, result.output
            assert kept(of_other) == before
            backed_up(other.url, tmp_path / "two")
            result = tim4rec("restore", tmp_path / "two", "--redis", valkey.url, "--replace")
            assert result.exit_code == 0, result.output
            assert kept(client) == before
    finally:
        other.kill()


def test_the_rights_of_the_service_suffice(guarded: str, tmp_path: Path, write: Write) -> None:
    url, out = login(guarded, "svc", PASSWORD), tmp_path / "out"
    assert tim4rec("import-log", write(history("ann", 5)), "--redis", url).exit_code == 0
    backed_up(url, out)
    result = tim4rec("restore", out, "--redis", url, "--replace")
    assert result.exit_code == 0, result.output


words = st.binary(min_size=1, max_size=12)
contents = st.one_of(
    words,
    st.dictionaries(words, st.binary(max_size=12), min_size=1, max_size=40),
    st.dictionaries(words, st.floats(allow_nan=False), min_size=1, max_size=40),
)


@settings(max_examples=examples(25))
@given(
    there=st.dictionaries(words.filter(lambda name: name[:1] not in b"use"), contents, max_size=12),
    group=st.integers(1, 2000),
    part=st.integers(1, 400),
)
def test_any_content_comes_back(
    valkey: ValkeyServer, there: dict[bytes, Any], group: int, part: int
) -> None:
    async def main(folder: Path) -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            keys = StoredKeys(store, RecordKeys("one"))
            with new_backup(folder) as new:
                names = await keys.names()
                await back_up(keys, names, new, lambda done: None)
                new.finish("one", 1)
            copy = RecordKeys("two")
            marks = BackupMarks(store, copy)
            await restored(StoredKeys(store, copy), BackupFolder(folder), marks, lambda done: None)

    with (
        valkey.client() as client,
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory() as folder,
    ):
        patch.setattr(stored_keys, "GROUP_BYTES", group)
        patch.setattr(stored_keys, "KEYS", 3)
        patch.setattr(stored_keys, "PAIRS", 7)
        patch.setattr(backup_folder, "PART_BYTES", part)
        client.flushall()
        for name, content in there.items():
            key = b"one:" + name
            if isinstance(content, bytes):
                client.set(key, content)
            elif isinstance(next(iter(content.values())), bytes):
                client.hset(key, mapping=content)
            else:
                client.zadd(key, content)
        asyncio.run(main(Path(folder) / "out"))
        assert kept(client, "two") == kept(client, "one")


def test_every_record_is_whole_while_it_grows(
    valkey: ValkeyServer, tmp_path: Path, write: Write
) -> None:
    """What was accepted before the backup is in it; each record as it was at one moment."""
    users = [f"u{n}" for n in range(40)]
    write_log = write([row for user in users for row in history(user, 50)])
    assert tim4rec("import-log", write_log, "--redis", valkey.url).exit_code == 0
    ended, posted = threading.Event(), 0

    async def writing() -> int:
        count = 0
        async with Store(valkey.url, timeout_s=30) as store:
            log = EventLog(store)
            while not ended.is_set():
                events = [NewEvent(new_uid(), "i1"), NewEvent(new_uid(), "i2")]
                await log.exchange([LogRequest(user, None, events) for user in users])
                count += 1
        return count

    def run() -> None:
        nonlocal posted
        posted = asyncio.run(writing())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        before = {user: len(record(valkey.url, user)) for user in users}
        said = backed_up(valkey.url, tmp_path / "out")
    finally:
        ended.set()
        thread.join()
    assert "40 users are as in the store, 0 have changed since" in said
    assert posted > 0
    found = {
        one.name.decode(): one.events
        for part in BackupFolder(tmp_path / "out").parts()
        for one in part
        if one.is_record
    }
    for user in users:
        events, now = found[f"u:{user}"], record(valkey.url, user)
        assert len(events) >= before[user]
        assert len(events) % 2 == 0  # no request's half
        assert [value[:8] for value in events.values()] == [e.uid for e in now[: len(events)]]


def test_a_killed_backup_is_none_and_the_next_one_is_whole(
    valkey: ValkeyServer, tmp_path: Path, write: Write
) -> None:
    rows = [row for n in range(60) for row in history(f"u{n}", 20)]
    assert tim4rec("import-log", write(rows), "--redis", valkey.url).exit_code == 0
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    killed(
        tmp_path / "said", "backup", out, "--redis", valkey.url,
        constant="service.bulk.backup.KEYS", value=20,
        method="service.bulk.backup_folder.NewBackup.add", call=2,
    )  # fmt: skip
    assert partial.exists()
    assert not out.exists()
    with valkey.client() as client:
        assert client.get("tim4rec:backup") is None
        for folder in (out, partial):
            result = tim4rec("restore", folder, "--redis", valkey.url, "--replace")
            assert result.exit_code == 1
            assert "is no whole backup" in result.stderr
        assert client.exists("tim4rec:u:u0")
    said = backed_up(valkey.url, out)
    assert "1,200 interactions of 60 users" in said
    assert not partial.exists()


def test_a_restore_that_was_cut_off_lets_nobody_start(
    valkey: ValkeyServer, tmp_path: Path, write: Write, model_folder: Path
) -> None:
    rows = [row for n in range(60) for row in history(f"u{n}", 20)]
    log = write(rows)
    assert tim4rec("import-log", log, "--redis", valkey.url).exit_code == 0
    out = tmp_path / "out"
    backed_up(valkey.url, out)
    with valkey.client() as client:
        before = kept(client)
        killed(
            tmp_path / "said", "restore", out, "--redis", valkey.url, "--replace",
            constant="service.bulk.backup.KEYS", value=20,
            method="service.bulk.stored_keys.StoredKeys.write", call=2,
        )  # fmt: skip
        assert 0 < len(kept(client)) < len(before)
        for command in (("serve", model_folder), ("import-log", log), ("backup", tmp_path / "b")):
            result = tim4rec(*command, "--redis", valkey.url)
            assert result.exit_code == (1 if command[0] == "backup" else 3)
            assert "run `tim4rec restore OUT --replace` to the end" in result.stderr
        result = tim4rec("restore", out, "--redis", valkey.url, "--replace")
        assert result.exit_code == 0, result.output
        assert kept(client) == before
        assert not client.exists("tim4rec:restoring")


def test_a_damaged_backup_changes_nothing(
    valkey: ValkeyServer, tmp_path: Path, write: Write
) -> None:
    assert tim4rec("import-log", write(history("ann", 9)), "--redis", valkey.url).exit_code == 0
    out = tmp_path / "out"
    backed_up(valkey.url, out)
    (part,) = out.glob("part-*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with valkey.client() as client:
        before = kept(client)
        for damage in (lambda: None, part.unlink):
            damage()
            for command in (("restore", out, "--replace"), ("backup", out, "--verify")):
                result = tim4rec(*command, "--redis", valkey.url)
                assert result.exit_code == 1
                assert part.name in result.stderr
                assert len(result.stderr.strip().splitlines()) == 1
        assert kept(client) == before
    part.write_bytes(whole)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"events": 8}))
    result = tim4rec("backup", out, "--verify", "--redis", valkey.url)
    assert result.exit_code == 1
    assert "do not hold what its manifest says" in result.stderr


def test_a_full_disk_is_one_line(valkey: ValkeyServer, tmp_path: Path, write: Write) -> None:
    rows = [row for n in range(50) for row in history(f"u{n}", 50)]
    assert tim4rec("import-log", write(rows), "--redis", valkey.url).exit_code == 0
    out = tmp_path / "out"
    said = tmp_path / "said"
    prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    process = Forked(["backup", str(out), "--redis", valkey.url], os.environ, said, prepare)
    assert process.wait(LONG_S) == 1
    (line,) = (one for one in said.read_text().splitlines() if not one.startswith("store "))
    assert line.startswith(f"error: {out}: ")
    assert "no backup was made" in line
    assert not list(tmp_path.glob("out*"))


def test_states_are_computed_from_it(
    valkey: ValkeyServer, tmp_path: Path, write: Write, model_folder: Path
) -> None:
    rows = [row for n in range(5) for row in history(f"u{n}", 80)]
    assert tim4rec("import-log", write(rows), "--redis", valkey.url).exit_code == 0
    assert tim4rec("warm", model_folder, "--redis", valkey.url).exit_code == 0
    out = tmp_path / "out"
    said = backed_up(valkey.url, out, "--artefact", model_folder)
    assert "5 states computed from it" in said
    said = backed_up(valkey.url, out, "--verify", "--artefact", model_folder)
    assert "5 states computed from it" in said
    # One that follows from other events than the record's.
    with valkey.client() as client:
        stored = client.hget("tim4rec:u:u1", "e80")
        assert isinstance(stored, bytes)
        place = stored.rindex(b"i")
        other = b"i7" if stored[place:] != b"i7" else b"i8"
        client.hset("tim4rec:u:u1", "e80", stored[:place] + other)
    result = tim4rec(
        "backup", tmp_path / "two", "--redis", valkey.url, "--artefact", model_folder
    )  # fmt: skip
    assert result.exit_code == 1
    assert "differ from the store's snapshots" in result.stderr


def _answers(service: Service, users: list[str]) -> list[tuple[int, list[str], list[float]]]:
    found = []
    for user in users:
        answer = httpx.get(f"{service.url}/recommend", params={"user_id": user, "k": 5}).json()
        items = answer["items"]
        ids, scores = [one["item_id"] for one in items], [one["score"] for one in items]
        found.append((answer["version"], ids, scores))
    return found


def test_a_service_answers_as_before(
    valkey: ValkeyServer, tmp_path: Path, write: Write, model_folder: Path
) -> None:
    users, out = [f"u{n}" for n in range(6)], tmp_path / "out"
    rows = [row for user in users for row in history(user, 100)]
    assert tim4rec("import-log", write(rows), "--redis", valkey.url).exit_code == 0
    metric = "tim4rec_backup_timestamp_seconds"
    models = str(model_folder.parent)
    with serving(model_folder, valkey.url, live="false", models_dir=models) as service:
        event = {"user_id": "u1", "item_id": "i4", "event_id": "e"}
        httpx.post(f"{service.url}/interactions", json=event).raise_for_status()
        before = _answers(service, users)
        backed_up(valkey.url, out)
        began = json.loads((out / "manifest.json").read_text())["began_ms"] / 1000

        def shown() -> bool:
            lines = httpx.get(f"{service.url}/metrics").text.splitlines()
            (line,) = (one for one in lines if one.startswith(metric))
            return float(line.split()[-1]) == pytest.approx(began, abs=1)

        until(shown)
        result = tim4rec("restore", out, "--redis", valkey.url, "--replace")
        assert result.exit_code == 1
        assert "1 processes serve from it" in result.stderr
    with valkey.client() as client:
        client.flushall()
    result = tim4rec("restore", out, "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    with serving(model_folder, valkey.url, live="false") as service:
        for (version, ids, scores), was in zip(_answers(service, users), before, strict=True):
            assert (version, ids) == was[:2]
            assert scores == pytest.approx(was[2], abs=1e-4)
        answer = httpx.post(f"{service.url}/interactions", json=event).json()
        assert answer["status"] == "duplicate"
