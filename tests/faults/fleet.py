"""Real workers on a real store with a relay between them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType

import psutil

from model.artefact import Artefact
from tests.faults.relay import Relay
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, alive

AOF = ("--appendonly", "yes")


class Fleet:
    """One service of `workers` processes; `store` is what it works on, behind `relay`."""

    def __init__(
        self,
        artefact: Artefact,
        folder: Path,
        *options: str,
        workers: int = 2,
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.artefact, self.n_workers = artefact, workers
        (folder / "store").mkdir(exist_ok=True)
        fsync = ("--appendfsync", "always")
        self.store = ValkeyServer(folder / "store", *AOF, *fsync, *options, environment=environment)
        self.store.start()
        self.relay = Relay(self.store.socket)
        self.service = Service(
            artefact.folder, folder / "output", "--workers", str(workers),
            "--redis", self.relay.url, **{"snapshot_every": 8, "store_timeout_s": 1} | settings,
        )  # fmt: skip

    def __enter__(self) -> Fleet:
        try:
            self.service.start()
            deadline = time.monotonic() + 60
            while len(self.workers) < self.n_workers:
                assert time.monotonic() < deadline, self.service.said()
                time.sleep(0.05)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.service.kill()
        self.relay.close()
        self.store.kill()

    @property
    def workers(self) -> list[int]:
        """The processes that serve the model."""
        found = [record["pid"] for record in self.service.logged(logger="service.app")]
        return sorted(pid for pid in found if alive(pid))

    def kill_worker(self) -> None:
        os.kill(self.workers[0], signal.SIGKILL)

    def open_files(self) -> int:
        return sum(psutil.Process(pid).num_fds() for pid in self.workers)

    def resident_bytes(self) -> int:
        return sum(psutil.Process(pid).memory_info().rss for pid in self.workers)

    def connections(self) -> int:
        """Of the service to its store."""
        with self.store.client() as client:
            return len(client.client_list()) - 1
