"""What is exported of all metrics."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

# All of them are exported from the start.
from service.observe import live_metrics, metrics, quality_metrics, values  # noqa: F401
from service.observe.registry import REGISTRY
from service.observe.values import MULTIPROC_DIR

_BEGUN_S = 1.0


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers as text, and its content type. Safe in any thread."""
    until = time.monotonic() + _BEGUN_S
    while True:
        try:
            return _exposition()
        except (struct.error, FileNotFoundError):
            # A worker has just made a file, which has no size yet, or has just ended.
            if time.monotonic() > until:
                raise
            time.sleep(0.005)


def _exposition() -> tuple[bytes, str]:
    registry = REGISTRY
    folder = os.environ.get(MULTIPROC_DIR)
    if folder:
        values.forget_the_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
