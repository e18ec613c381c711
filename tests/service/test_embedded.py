"""The embedded server: real processes, killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.store.embedded import EmbeddedStore
from service.store.errors import EmbeddedStoreError
from tests.service.processes import alive
from tests.waited import LONG_S

ROOT = Path(__file__).parents[2]

USER = """
import sys
from service.store.embedded import EmbeddedStore
with EmbeddedStore(sys.argv[1]) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


FORKS = """
import os, sys
import redis
from service.store.embedded import EmbeddedStore
store = EmbeddedStore(sys.argv[1])
with store as url:
    if os.fork() == 0:
        store.__exit__()
        os._exit(0)
    os.wait()
    redis.Redis.from_url(url, retry=None).ping()
"""


@pytest.fixture
def data_dir(folder: Path) -> Iterator[Path]:
    path = folder / "data dir é"
    yield path
    pid = server_pid(path)
    if pid is not None and alive(pid):
        os.kill(pid, signal.SIGKILL)


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=None)


def server_pid(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "valkey.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def until_dead(pid: int) -> None:
    deadline = time.monotonic() + LONG_S
    while alive(pid):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.01)


def kill_server(data_dir: Path) -> int:
    pid = server_pid(data_dir)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until_dead(pid)
    return pid


class User:
    """Another process that uses the store until told to leave."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate(timeout=LONG_S)
        assert self.process.returncode == 0

    def kill(self) -> None:
        # The whole session, as a closing terminal would: the server must not be in it.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=LONG_S)


def test_starts_keeps_data_and_stops(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as url:
        with client(url) as store:
            store.set("key", "value")
            settings = store.config_get("*")
        pid = server_pid(data_dir)
    assert pid is not None
    until_dead(pid)
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["port"] == "0"
    with EmbeddedStore(data_dir) as url, client(url) as store:
        assert store.get("key") == b"value"


def test_only_the_owner_can_connect(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as url:
        assert Path(url.removeprefix("unix://")).stat().st_mode & 0o077 == 0
        assert data_dir.stat().st_mode & 0o077 == 0


def test_survives_kill_of_the_server(data_dir: Path) -> None:
    store = EmbeddedStore(data_dir)
    with store as url:
        with client(url) as first:
            first.set("key", "value")
        killed = kill_server(data_dir)
        store.ensure_running()
        assert server_pid(data_dir) != killed
        with client(url) as again:
            assert again.get("key") == b"value"
        store.ensure_running()
        with client(url) as still:
            assert still.get("key") == b"value"


def test_two_processes_share_one_server(data_dir: Path) -> None:
    users = [User(data_dir) for _ in range(3)]  # all start at once
    urls = {user.url for user in users}
    assert len(urls) == 1
    pid = server_pid(data_dir)
    assert pid is not None
    with EmbeddedStore(data_dir) as url:
        assert url in urls
        assert server_pid(data_dir) == pid
        for user in users:
            user.leave()
        with client(url) as store:
            store.set("key", "value")  # the starter has left, the server has not
    until_dead(pid)


def test_attaches_after_kill_of_every_user(data_dir: Path) -> None:
    user = User(data_dir)
    with client(user.url) as store:
        store.set("key", "value")
    pid = server_pid(data_dir)
    user.kill()
    assert pid is not None
    assert alive(pid)
    with EmbeddedStore(data_dir) as url, client(url) as store:
        assert server_pid(data_dir) == pid
        assert store.get("key") == b"value"
    until_dead(pid)


def test_no_signal_of_the_terminal_reaches_the_server(data_dir: Path) -> None:
    user = User(data_dir)
    url = user.url
    os.killpg(user.process.pid, signal.SIGINT)
    user.process.communicate(timeout=LONG_S)
    with EmbeddedStore(data_dir) as again:
        assert again == url


def test_finds_a_server_whose_socket_was_removed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.embedded._ANSWERS_WITHIN_S", 0.1)
    with EmbeddedStore(data_dir) as url:
        pid = server_pid(data_dir)
        Path(url.removeprefix("unix://")).unlink()
        # A second server on the same files would ruin them.
        with pytest.raises(EmbeddedStoreError, match=rf"pid {pid}\) does not answer; stop"):
            EmbeddedStore(data_dir).__enter__()
        kill_server(data_dir)


def test_always_strengthens_a_server_started_with_less(data_dir: Path) -> None:
    with EmbeddedStore(data_dir, fsync="everysec") as url, client(url) as store:
        assert store.config_get("appendfsync") == {"appendfsync": "everysec"}
        with EmbeddedStore(data_dir):
            assert store.config_get("appendfsync") == {"appendfsync": "always"}
        with EmbeddedStore(data_dir, fsync="everysec"):
            assert store.config_get("appendfsync") == {"appendfsync": "always"}


def test_long_path(folder: Path) -> None:
    data_dir = folder / ("d" * 120)
    with EmbeddedStore(data_dir) as url, EmbeddedStore(data_dir) as same:
        assert url == same
        with client(url) as store:
            assert store.ping()


def test_not_a_directory(folder: Path) -> None:
    file = folder / "file"
    file.touch()
    with pytest.raises(EmbeddedStoreError) as raised:
        EmbeddedStore(file).__enter__()
    assert str(file) in str(raised.value)
    assert "local directory" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_data(data_dir: Path) -> None:
    with EmbeddedStore(data_dir) as url, client(url) as store:
        store.set("key", "value")
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense")
    with pytest.raises(EmbeddedStoreError, match="stopped while starting") as raised:
        EmbeddedStore(data_dir).__enter__()
    assert "manifest" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_binary_for_this_platform(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    with pytest.raises(EmbeddedStoreError, match="give the URL of a Redis or Valkey server"):
        EmbeddedStore(data_dir).__enter__()


def test_a_forked_child_leaves_the_server_alone(data_dir: Path) -> None:
    # In a process of its own, because forking this one is unsafe if it has threads.
    subprocess.run([sys.executable, "-c", FORKS, str(data_dir)], cwd=ROOT, check=True)


def test_bad_fsync() -> None:
    with pytest.raises(ValueError, match="give 'always' or 'everysec'"):
        EmbeddedStore("x", fsync="no")  # type: ignore[arg-type]
