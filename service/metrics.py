"""What the service counts and times, in Prometheus' conventions.

With several workers, PROMETHEUS_MULTIPROC_DIR must be set before this module is imported; the
values of all workers are then added up at every scrape.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REQUESTS = Histogram(
    "tim4rec_request_seconds",
    "Time from a request's arrival to its answer",
    ["method", "route", "status"],
    buckets=SECONDS,
)
STAGES = Histogram(
    "tim4rec_stage_seconds",
    "Time in one stage: queue (a request waiting for its wave), log, compute, retrieve, snapshot "
    "(a wave each)",
    ["stage"],
    buckets=SECONDS,
)
WAVE_SIZE = Histogram("tim4rec_wave_requests", "Requests in one wave", buckets=SIZES)
QUEUE = Gauge("tim4rec_queue_requests", "Requests waiting for a wave", multiprocess_mode="livesum")
POOL_LOOKUPS = Counter("tim4rec_pool_lookups", "Users looked up in the state pool", ["result"])
POOL_USERS = Gauge(
    "tim4rec_pool_users", "States resident on the device", multiprocess_mode="livesum"
)
EVENTS = Counter("tim4rec_events", "Interactions received, by what became of them", ["verdict"])
UNKNOWN_ITEMS = Counter(
    "tim4rec_unknown_items", "Logged interactions with an item that the model does not know"
)
REBUILDS = Counter("tim4rec_rebuilds", "States rebuilt from a snapshot or from the log")
STEPS = Counter("tim4rec_steps", "Interactions applied to states")
RECOMMENDATIONS = Counter(
    "tim4rec_recommendations", "Recommendations answered, by where they came from", ["source"]
)
SNAPSHOTS = Counter("tim4rec_snapshots", "Snapshots, by what became of them", ["result"])
STORE_ERRORS = Counter("tim4rec_store_errors", "Exchanges with the store that failed")
REFUSED = Counter("tim4rec_refused", "Requests refused", ["reason"])
EXACTNESS_DIFFERENCE = Gauge(
    "tim4rec_exactness_difference",
    "Largest difference of a score between resident states and their recomputation, of late",
    multiprocess_mode="livemax",
)
EXACTNESS_SAMPLES = Counter(
    "tim4rec_exactness_samples", "States compared with their recomputation", ["result"]
)
MODEL = Gauge(
    "tim4rec_model_info",
    "The model that is served; always 1",
    ["identity", "time_path", "items"],
    multiprocess_mode="livemax",
)


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers as text, and its content type."""
    registry: CollectorRegistry = REGISTRY
    if os.environ.get(MULTIPROC_DIR):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_dead_workers() -> None:
    """Drops the gauges of processes that are no more (those killed could not do it)."""
    folder = os.environ.get(MULTIPROC_DIR)
    if not folder:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not _lives(int(pid)):
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
