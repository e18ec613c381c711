"""What is on disk is its owner's alone: the folder of the embedded store and all that is in it."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from cli.spool import spooled_log
from service.catalogue.item_index import LEAST_ITEMS, open_index
from service.store.embedded import EmbeddedStore
from service.store.errors import EmbeddedStoreError
from service.store.private_folder import FolderError, private_folder
from service.store.shards import ALL
from tests.service.processes import ROOT, Service, make_artefact
from tests.waited import LONG_S, until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SOMEBODY = 54_321


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> dict[str, str]:
    """What anybody but the owner has rights to, the folder included, and its mode."""
    found = {}
    for entry in (folder, *folder.rglob("*")):
        mode = entry.lstat().st_mode
        if stat.S_IMODE(mode) & 0o077 and not stat.S_ISLNK(mode):
            found[str(entry.relative_to(folder))] = oct(stat.S_IMODE(mode))
    return found


def rewritten(client: redis.Redis) -> None:
    """The append-only file is written anew."""
    client.bgrewriteaof()
    until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, "it rewrites on")


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=None)


@pytest.mark.slow
def test_nobody_else_can_read_what_a_service_leaves_on_disk(tmp_path: Path, folder: Path) -> None:
    artefact = make_artefact(tmp_path / "model", [f"i{n}" for n in range(LEAST_ITEMS)])
    state = folder / "deep" / "state"
    service = Service(artefact.folder, folder / "out", "--data-dir", str(state), retrieval="index")
    try:
        for start in range(2):
            service.start()
            with service.client() as http:
                for n in range(20):
                    body = {"user_id": f"u{n}", "item_id": f"i{n}", "event_id": f"{start}"}
                    assert http.post("/interactions", json=body).status_code == 200
            with client(f"unix://{state}/valkey.sock") as store:
                rewritten(store)
            assert open_to_others(state) == {}
            assert service.stop() == 0
            assert open_to_others(state) == {}
    finally:
        service.kill()
    assert state.parent.stat().st_mode & 0o077 == 0, "the folders on the way to it"
    names = {entry.name for entry in state.rglob("*")}
    assert {"appendonlydir", "valkey.log", "users.lock", "index", "build.lock"} <= names


def test_what_others_could_read_is_closed_to_them_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = folder / "state"
    with EmbeddedStore(state) as url, client(url) as store:
        store.set("key", "value")
    for entry in (state, *state.rglob("*")):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING):
        private_folder(state, ("appendonlydir",))
        assert open_to_others(state).keys() == {"start.lock", "users.lock", "server.lock", *(
            entry.name for entry in state.glob("valkey.*")
        )}  # fmt: skip
        with EmbeddedStore(state) as url, client(url) as store:
            assert store.get("key") == b"value"
            assert open_to_others(state) == {}
        caplog.records.clear()
        with EmbeddedStore(state):
            pass
    assert caplog.records == [], "it is said once"


def test_the_line_that_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "state").mkdir(mode=0o755)
    with caplog.at_level(logging.WARNING):
        private_folder(folder / "state")
    (record,) = caplog.records
    assert record.message == (
        f"{folder}/state: other users could read it or files in it (mode 755); it is closed to "
        "them now"
    )


def refused(folder: Path, *parts: str) -> None:
    """Nobody's user's data come into it; why, is one line."""
    with pytest.raises(EmbeddedStoreError) as raised:
        EmbeddedStore(folder).__enter__()
    line = str(raised.value)
    assert line.startswith(f"{folder}: "), line
    assert "\n" not in line
    assert all(part in line for part in parts), line


def test_a_folder_with_other_things_in_it(folder: Path) -> None:
    state = folder / "state"
    state.mkdir(mode=0o755)
    (state / "notes").touch(0o644)
    with EmbeddedStore(state):
        assert open_to_others(state) == {"notes": "0o644"}, "what is not ours is left as it is"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@AS_ROOT
def test_root_does_not_close_what_may_be_the_systems(folder: Path) -> None:
    (folder / "srv").mkdir(mode=0o755)
    (folder / "srv" / "www").mkdir()
    refused(folder / "srv", "not for the store alone", "one below it")
    assert stat.S_IMODE((folder / "srv").stat().st_mode) == 0o755
    with EmbeddedStore(folder / "srv" / "state"):
        pass


def test_a_folder_for_everybody(folder: Path) -> None:
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    refused(folder / "tmp", "open to other users")
    assert stat.S_IMODE((folder / "tmp").stat().st_mode) == 0o1777


@AS_ROOT
def test_what_belongs_to_somebody_else(folder: Path) -> None:
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", SOMEBODY, SOMEBODY)
    refused(folder / "theirs", "the folder belongs to user 54321, not to ", "a folder of its own")
    (folder / "ours").mkdir()
    (folder / "link").symlink_to(folder / "ours")
    os.chown(folder / "link", SOMEBODY, SOMEBODY, follow_symlinks=False)
    refused(folder / "link", "the link belongs to user 54321, not to ")


def test_links(folder: Path) -> None:
    (folder / "disk").mkdir(mode=0o755)
    (folder / "state").symlink_to(folder / "disk")
    with EmbeddedStore(folder / "state") as url, EmbeddedStore(folder / "disk") as same:
        assert url == same
    assert open_to_others(folder / "disk") == {}
    (folder / "gone").symlink_to(folder / "nowhere")
    refused(folder / "gone", "a link to nothing")
    (folder / "round").symlink_to(folder / "round")
    refused(folder / "round", "a link to nothing")


def test_no_folder(folder: Path) -> None:
    (folder / "file").touch()
    refused(folder / "file", "no folder", "local directory")
    refused(folder / "file" / "below", "Not a directory", "local directory")


LOOK = """
import os, sys
from pathlib import Path
from service.store.private_folder import FolderError, private_folder
os.setuid(int(sys.argv[2]))
try:
    private_folder(Path(sys.argv[1]))
except FolderError as error:
    print(error, end="")
"""


def test_no_right_to_write(folder: Path) -> None:
    """Root has it everywhere, so it is another user who asks."""
    user = os.geteuid() or SOMEBODY
    folder.chmod(0o755)
    state, closed = folder / "state", folder / "closed"
    for made in (state, closed):
        made.mkdir(mode=0o500)
        os.chown(made, user, -1)
    for place, why in ((state, "can't be written to"), (closed / "a", "Permission denied")):
        done = subprocess.run(
            [sys.executable, "-c", LOOK, str(place), str(user)],
            cwd=ROOT, capture_output=True, text=True, timeout=LONG_S,
        )  # fmt: skip
        fix = "give a local directory that can be written to"
        assert done.stdout == f"{place}: {why}; {fix}", done.stdout + done.stderr


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
exec "$2" -c "$3" "$1" "$1/../nothing"
"""
COMMANDS = """
import sys
from cli.main import app
folder, nothing = sys.argv[1:]
for words in ("serve", nothing, "--port", "1"), ("import-log", nothing), ("warm", nothing), (
    "import-items", nothing
):
    try:
        app([*words, "--data-dir", folder])
    except SystemExit as ended:
        print("exit", ended.code, file=sys.stderr)
"""


@pytest.mark.slow
@AS_ROOT
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_read_only_file_system_is_one_line_before_anything_is_read(
    folder: Path, mode: int
) -> None:
    (folder / "ro").mkdir(mode=mode)
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", READ_ONLY, "-", folder / "ro", sys.executable, COMMANDS],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no mounts here")
    why = "is on a read-only file system; give a local directory that can be written to"
    assert done.stderr.splitlines() == [f"error: {folder}/ro: {why}", "exit 1"] * 4


def test_the_index_of_items(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = np.random.default_rng(0).normal(size=(LEAST_ITEMS, 16)).astype(np.float32)
    (folder / "index").mkdir(mode=0o777)
    (folder / "index").chmod(0o777)
    open_index(folder / "index", "model", vectors)
    assert open_to_others(folder / "index") == {}
    (folder / "file").touch()
    caplog.clear()
    assert len(open_index(folder / "file", "model", vectors)) == LEAST_ITEMS
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.message.count(str(folder / "file")) == 1
    with pytest.raises(FolderError):
        private_folder(folder / "file")


def test_the_rows_of_an_import_under_way(folder: Path) -> None:
    (folder / "log.csv").write_text("user_id,item_id,timestamp\nann,a,1700000000\n")
    with spooled_log(
        folder / "log.csv", shard=ALL, rows_at_once=1, temp_dir=folder, skip_bad_rows=False
    ):
        (spool,) = folder.glob("tim4rec-import-*")
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
        assert list(spool.iterdir())


def test_an_artefact_is_written_by_nobody_else(tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "model", ["a", "b"])
    for entry in (artefact.folder, *artefact.folder.iterdir()):
        assert entry.stat().st_mode & 0o022 == 0
        assert entry.stat().st_mode & 0o044 == 0o044, "the service may be another user"


def test_a_server_that_lives_is_attached_to(folder: Path) -> None:
    """Whatever of its files an older version has left open."""
    state = folder / "state"
    with EmbeddedStore(state) as url:
        (state / "appendonlydir").chmod(0o755)
        with EmbeddedStore(state) as same:
            assert same == url
            assert open_to_others(state) == {}
