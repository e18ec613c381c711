"""How a process and its store are, looked at every few seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from service.observe import metrics, values
from service.store.backup_marks import BackupMarks
from service.store.errors import StoreError
from service.store.event_log import EventLog
from service.store.server_info import Condition

logger = logging.getLogger(__name__)

EVERY_S = 5.0


@asynccontextmanager
async def reported(log: EventLog, device: str, folder: Path | None) -> AsyncIterator[None]:
    """Counts this process among the service's, and keeps its vitals up to date meanwhile.

    Args:
        device: where the model is, as torch names it.
        folder: of an embedded store.

    Raises:
        OSError: the workers' folder of metrics can't be written to.
    """
    async with values.shared():
        metrics.WORKERS.set(1)
        metrics.WORKER_STARTS.inc()
        metrics.BUILD.labels(version("tim4rec"), torch.__version__, device).set(1)
        watching = asyncio.create_task(_watch(log, torch.device(device), folder))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            metrics.READY.set(0)
            metrics.WORKERS.set(0)


async def _watch(log: EventLog, device: torch.device, folder: Path | None) -> None:
    loop = asyncio.get_running_loop()
    process, counted, marks = psutil.Process(), 0.0, BackupMarks(log.store, log.keys)
    while True:
        try:
            with process.oneshot():
                times = process.cpu_times()
                metrics.CPU.inc(max(0.0, times.user + times.system - counted))
                counted = times.user + times.system
                metrics.RESIDENT_MEMORY.set(process.memory_info().rss)
                metrics.OPEN_FILES.set(process.num_fds())
            if device.type == "cuda":
                metrics.DEVICE_MEMORY.set(torch.cuda.memory_reserved(device))
            _show_disk(folder)
            _show(await log.store.condition())
            metrics.BACKUP.set((await marks.newest_ms() or 0) / 1000)
        except StoreError as error:  # tim4rec_store_up says so
            logger.debug("the store's condition is not known: %s", error)
        except Exception:
            logger.exception("vitals not read")
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.EVENT_LOOP_LAG.set(max(0.0, loop.time() - due))


def _show_disk(folder: Path | None) -> None:
    size = free = 0
    if folder is not None:
        disk = psutil.disk_usage(str(folder))
        size, free = disk.used + disk.free, disk.free
    metrics.STORE_DISK.set(size)
    metrics.STORE_DISK_FREE.set(free)


def _show(store: Condition) -> None:
    metrics.STORE_MEMORY.set(store.memory_bytes)
    metrics.STORE_MEMORY_LIMIT.set(store.memory_limit_bytes)
    for part, gauge in metrics.STORE_PERSISTENCE_FAILED.items():
        gauge.set(float(part in store.failed))
    metrics.STORE_REPLICAS.set(store.replicas)
    metrics.STORE_REPLICA_LAG.set(store.replica_lag_bytes)
