"""Real Valkey servers for the tests of this folder, alone and as a Cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from service.store.client import Store
from service.store.valkey_binary import valkey_binary
from tests.ports import free_port
from tests.reaper import reap
from tests.waited import LONG_S, PATIENT_S

T = TypeVar("T")
BINARY = valkey_binary().resolve()


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Whoever names no time limit has one that a busy machine keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Store.__init__.__kwdefaults__, "timeout_s", PATIENT_S)
        yield


class ValkeyServer:
    """A valkey-server on a unix socket in `folder` that can be killed and started again."""

    binary = BINARY

    def __init__(
        self, folder: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._environment = os.environ | (environment or {})
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder))
        self._process = subprocess.Popen(
            [str(self.binary), *places, "--save", "", *self._options],
            stdout=subprocess.DEVNULL,
            env=self._environment,
        )
        reap(self._process.pid)
        deadline = time.monotonic() + LONG_S
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

    def send(self, signal: int) -> None:
        assert self._process is not None
        self._process.send_signal(signal)

    def wait(self) -> None:
        """Until it has ended by itself."""
        assert self._process is not None
        self._process.wait(LONG_S)

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))


class ClusterNode(ValkeyServer):
    """One server of a Cluster; the Cluster is spoken to over TCP."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.port, self._bus_port = free_port(), free_port()
        ports = ("--port", str(self.port), "--cluster-port", str(self._bus_port))
        # Else a primary's third replica may go to another that has none, by itself.
        stay = ("--cluster-allow-replica-migration", "no")
        super().__init__(folder, *ports, "--cluster-enabled", "yes", *stay, *options)

    @property
    def address(self) -> tuple[str, int, int]:
        return "127.0.0.1", self.port, self._bus_port

    def ask(self, *command: object) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    @property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())

    def info(self) -> dict[str, str]:
        return dict(self.ask("CLUSTER INFO"))


class ValkeyCluster:
    """Three primaries with a third of the slots each, and replicas of the first."""

    def __init__(
        self, folder: Path, *options: str, replicas: int = 0, kind: type[ClusterNode] = ClusterNode
    ) -> None:
        self.nodes = [kind(folder / str(i), *options) for i in range(3 + replicas)]
        self.primaries, self.replicas = self.nodes[:3], self.nodes[3:]
        hosts = [f"127.0.0.1:{node.port}" for node in self.primaries]
        self.url = f"redis://{','.join(hosts)}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for i, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if node is not first:
                first.ask("CLUSTER", "MEET", *node.address)
        for i, node in enumerate(self.primaries):
            start, end = i * 16384 // 3, (i + 1) * 16384 // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", start, end)
        self.wait(lambda node: node.info()["cluster_known_nodes"] == str(len(self.nodes)))
        for replica in self.replicas:
            replica.ask("CLUSTER", "REPLICATE", first.id)
        self.wait(self._formed)

    def _formed(self, node: ClusterNode) -> bool:
        servers = [len(part) - 2 for part in node.ask("CLUSTER", "SLOTS")]
        whole = servers == [1 + len(self.replicas), 1, 1]
        return whole and node.info()["cluster_state"] == "ok"

    def wait(self, holds: Callable[[ClusterNode], bool]) -> None:
        """Until it holds on every node."""
        deadline = time.monotonic() + LONG_S
        for node in self.nodes:
            while not holds(node):
                assert time.monotonic() < deadline, f"the Cluster does not form: {node.info()}"
                time.sleep(0.02)

    def kill(self) -> None:
        for node in self.nodes:
            if node.lives:
                node.kill()

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster("127.0.0.1", self.nodes[0].port)

    def clear(self) -> None:
        for node in self.primaries:
            node.ask("FLUSHALL")
            node.ask("SCRIPT", "FLUSH")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket, which tmp_path's need not be."""
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def folder_of_module() -> Iterator[Path]:
    """`folder`, for the tests of one file."""
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    yield path
    shutil.rmtree(path)


@contextmanager
def _running_valkey() -> Iterator[ValkeyServer]:
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    server = ValkeyServer(path)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def _shared_valkey() -> Iterator[ValkeyServer]:
    with _running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    """A server that the tests of one file share, keys and all."""
    with _running_valkey() as server:
        yield server


@pytest.fixture
def valkey(_shared_valkey: ValkeyServer) -> ValkeyServer:
    """A running server without any key or script."""
    with _shared_valkey.client() as client:
        client.flushall()
        client.script_flush()
    return _shared_valkey


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[ValkeyCluster]:
    path = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    cluster = ValkeyCluster(path)
    cluster.start()
    yield cluster
    cluster.kill()
    shutil.rmtree(path)


@pytest.fixture
def valkey_cluster(_shared_cluster: ValkeyCluster) -> ValkeyCluster:
    """A running Cluster without any key or script."""
    _shared_cluster.clear()
    return _shared_cluster


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
