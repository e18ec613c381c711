"""What benchmarks measure: servers as processes of their own, on a store with histories in it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import redis
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.history_cost import free_port, wait_until_ready
from service.bulk.importer import Importer, UserHistory
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.event_log import EventLog

HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[1]


@dataclass
class Server:
    """A server in a process of its own. Its store, if it has one, is not counted."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextmanager
def server(*arguments: str, source: Path = ROOT, **settings: str) -> Iterator[Server]:
    """`python -m ARGUMENTS --port PORT`, from when it is ready until the block is left.

    Args:
        source: the checkout whose code runs. settings: of its environment.
    """
    port = free_port()
    command = [sys.executable, "-m", *arguments, "--port", str(port)]
    environment = os.environ | settings | {"PYTHONPATH": str(source)}
    process = subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client, process)
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def service(
    artefact: Path, url: str, *options: str, source: Path = ROOT, **settings: str
) -> AbstractContextManager[Server]:
    """The service with its default settings, but for `options` (flags of `tim4rec serve`)."""
    words = ("serve", str(artefact.resolve()), "--redis", url, "--log-level", "warning", *options)
    return server("cli.main", *words, source=source, **settings)


@contextmanager
def store() -> Iterator[str]:
    """An embedded store of its own, empty; its URL."""
    with (
        tempfile.TemporaryDirectory(prefix="tim4rec-") as folder,
        EmbeddedStore(folder, fsync="everysec") as url,
    ):
        yield url


def set_fsync(url: str, fsync: str) -> None:
    """`always` or `everysec`, from now on."""
    with redis.Redis.from_url(url) as client:
        client.config_set("appendfsync", fsync)


def fill(url: str, items: Sequence[str], users: int, lengths: tuple[int, int]) -> int:
    """Gives user-0 .. user-(n-1) a history each, of so many events at least and at most, an hour
    apart up to now. Returns the number of events."""

    async def write() -> int:
        async with Store(url, timeout_s=60) as opened:
            log = EventLog(opened, page=1)
            done = await Importer(log, log).run(histories(items, users, lengths), lambda _: None)
            assert not done.refused
            return done.written

    return asyncio.run(write())


def histories(items: Sequence[str], users: int, lengths: tuple[int, int]) -> Iterator[UserHistory]:
    """The histories that `fill` writes."""
    draw = random.Random(0)
    now_ms = int(time.time() * 1000) - HOUR_MS
    for number in range(users):
        length = draw.randint(*lengths)
        times = range(now_ms - HOUR_MS * (length - 1), now_ms + 1, HOUR_MS)
        yield UserHistory(f"user-{number}", draw.choices(items, k=length), times)
