"""What the service counts and times, in Prometheus' conventions.

Every label has few values, known beforehand: none of them is of a user, an item or a caller's
making. Counters are exported from the start, so that the first thing they count is seen to grow.
Only the thread of the event loop may change a metric.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from service.observe import values
from service.observe.values import MULTIPROC_DIR

disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OPERATIONS = (
    "exchange",
    "snapshot",
    "erasures",
    "catalogue",
    "popularity",
    "live",
    "ping",
    "other",
)

_ours = CollectorRegistry()


def _counter(name: str, meaning: str) -> Counter:
    return Counter(name, meaning, registry=_ours)


def _counters(name: str, meaning: str, label: str, known: tuple[str, ...]) -> dict[str, Counter]:
    """A counter for each value of the label."""
    counter = Counter(name, meaning, [label], registry=_ours)
    return {value: counter.labels(value) for value in known}


def _counters_of(name: str, meaning: str, *labels: str) -> Callable[..., Counter]:
    """Makes the counter of values of the labels. Kept, because the library's `labels` takes longer
    than what it is called for."""
    return cache(Counter(name, meaning, labels, registry=_ours).labels)


def _histograms_of(name: str, meaning: str, *labels: str) -> Callable[..., Histogram]:
    """The same of histograms of seconds."""
    return cache(Histogram(name, meaning, labels, buckets=SECONDS, registry=_ours).labels)


def _gauge(
    over: Literal["livesum", "livemin", "livemax", "livemostrecent"],
) -> Callable[..., Gauge]:
    """Makes gauges. `over`: what is exported of the values of all living workers."""

    def gauge(name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, multiprocess_mode=over, registry=_ours)

    return gauge


_sum, _least, _most = _gauge("livesum"), _gauge("livemin"), _gauge("livemax")
_latest = _gauge("livemostrecent")


class Part:
    """What one of several in this process adds to a gauge."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._value = gauge, 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._gauge.inc(value - self._value)
            self._value = value


def count(*numbers: tuple[Counter, float]) -> None:
    """Adds to counters. Most of a wave's numbers are 0, and the library's call is the slow part."""
    for counter, number in numbers:
        if number:
            counter.inc(number)


# -- requests ----------------------------------------------------------------------------

_request_duration = _histograms_of(
    "tim4rec_request_duration_seconds",
    "Time from a request's arrival to the end of its answer",
    "method",
    "route",
    "status",
)
_stage_duration = _histograms_of(
    "tim4rec_stage_duration_seconds",
    "Time of a request in one stage; all stages add up to its whole time",
    "route",
    "stage",
)
REFUSED = _counters(
    "tim4rec_refused_requests",
    "Requests refused before anything was done",
    "reason",
    ("queue_full", "overloaded", "stopping", "explanations", "catalogue"),
)

# -- batches and the state pool ----------------------------------------------------------

WAVE_REQUESTS = Histogram(
    "tim4rec_wave_requests", "Requests in one batch", buckets=SIZES, registry=_ours
)
QUEUE = _sum("tim4rec_queue_requests", "Requests waiting when a batch was last taken")
QUEUE_CAPACITY = _sum("tim4rec_queue_capacity_requests", "Most requests that may wait")
POOL_LOOKUPS = _counters(
    "tim4rec_pool_lookups", "Users looked up in the state pool", "result", ("hit", "miss")
)
POOL_USERS = _sum("tim4rec_pool_users", "States in the pool")
POOL_CAPACITY = _sum("tim4rec_pool_capacity_users", "Most states the pool holds")
POOL_BYTES = _sum(
    "tim4rec_pool_bytes", "Size of all rows of the pool; on a CPU, unused ones take no memory"
)

# -- the store ---------------------------------------------------------------------------

_store_duration = _histograms_of(
    "tim4rec_store_duration_seconds", "Time of one round trip to the store", "operation"
)
STORE_DURATION = {operation: _store_duration(operation) for operation in OPERATIONS}
STORE_ERRORS = _counters(
    "tim4rec_store_errors",
    "Round trips that failed, or in which the store refused a command",
    "operation",
    OPERATIONS,
)
ACKS_MISSED = _counter(
    "tim4rec_replica_acks_missed",
    "Writes that too few replicas had in time (replica_acks): refused, though they may be there",
)
STORE_UP = _least("tim4rec_store_up", "1: every node of the store answers every worker")
STORE_MEMORY = _latest("tim4rec_store_memory_bytes", "Memory the store uses")
STORE_MEMORY_LIMIT = _latest(
    "tim4rec_store_memory_limit_bytes", "Memory the store may use; 0: no limit is set"
)

# -- interactions, states, recommendations -----------------------------------------------

EVENTS = _counters(
    "tim4rec_events",
    "Interactions received, by what became of them",
    "verdict",
    ("applied", "duplicate", "late", "rejected", "conflict", "future"),
)
kinds = _counters_of(
    "tim4rec_kinds", "Interactions logged, by kind: one that has a rule, other, or none", "kind"
)
UNKNOWN_ITEMS = _counter(
    "tim4rec_unknown_items", "Logged interactions with an item that the model does not know"
)
_catalogue_items = _latest(
    "tim4rec_catalogue_items",
    "Items with a record; those the model does not know; those that may not be returned now",
    "kind",
)
CATALOGUE_ITEMS = {
    kind: _catalogue_items.labels(kind) for kind in ("recorded", "new", "unavailable")
}
CATALOGUE_CHANGES = _counter(
    "tim4rec_catalogue_changes", "Changed records of items that a process has read"
)
REBUILDS = _counters(
    "tim4rec_rebuilds",
    "States of known users that were not in the pool, by what they were made from",
    "source",
    ("snapshot", "log"),
)
APPLIED = _counters(
    "tim4rec_applied_events", "Interactions applied to states", "by", ("step", "prefill")
)
RECOMMENDATIONS = _counters(
    "tim4rec_recommendations",
    "Recommendations answered, by where they came from; popular: recently, or in training",
    "source",
    ("model", "popular"),
)
RETRIEVALS = _counters(
    "tim4rec_retrievals",
    "Recommendations of the model, by how their items were found",
    "by",
    ("exact", "index"),
)
FALLBACKS = _counters(
    "tim4rec_fallbacks",
    "Recommendations of popular items, by why",
    "reason",
    ("unknown_user", "no_known_item", "store_away"),
)
AWAY = _counters(
    "tim4rec_answers_without_store",
    "Reads answered while the store did not, by what they were answered from",
    "source",
    ("pool", "popular"),
)
POPULARITY_FAILURES = _counter(
    "tim4rec_popularity_failures", "Times that counts of items were not sent, or not read"
)
LIVE_EVENTS = _counter("tim4rec_live_events", "Records of the live feed that a process has counted")
LIVE_LAG = _most(
    "tim4rec_live_lag_seconds",
    "How old the newest counted entry of the live feed was when it was counted",
)
LIVE_ITEMS = _latest("tim4rec_live_items", "Items that live evidence knows")
LIVE_RELOADS = _counter("tim4rec_live_reloads", "Checkpoints of live evidence that were taken over")
LIVE_GAPS = _counter(
    "tim4rec_live_gaps",
    "Times that the live feed had lost events which neither a process nor a checkpoint had counted",
)
LIVE_FAILURES = _counter(
    "tim4rec_live_failures", "Times that the live feed or a checkpoint was not written, or not read"
)
SNAPSHOTS = _counters(
    "tim4rec_snapshots",
    "Snapshots, by what became of them; unfit: a value overflows the reduced precision; unsound: "
    "not readable; outdated: not of the record any more when it was to be written",
    "result",
    ("written", "failed", "unfit", "unsound", "outdated"),
)
SNAPSHOT_BYTES = _counter("tim4rec_snapshot_bytes", "Size of the snapshots written")
EXACTNESS_DIFFERENCE = _most(
    "tim4rec_exactness_difference",
    "Largest recent difference of a score between states in the pool and their recomputation",
)
EXACTNESS_SAMPLES = _counters(
    "tim4rec_exactness_samples",
    "States compared with their recomputation; skipped: nothing to compare, or too many events",
    "result",
    ("equal", "different", "skipped"),
)

# -- models ------------------------------------------------------------------------------

MODEL = _most(
    "tim4rec_model_info",
    "1: the model is served; 0: not any more",
    "identity",
    "name",
    "time_path",
    "items",
    "precision",
)
MODEL_BEHIND = _most(
    "tim4rec_model_behind",
    "1: a worker can't serve the models that are set, and serves those before",
)
MODEL_CHANGES = _counters(
    "tim4rec_model_changes",
    "Times that a worker deployed the models that were set, or could not",
    "result",
    ("taken", "failed"),
)
_model_users = _sum("tim4rec_model_users", "States in the pool, by the model they are of", "model")
_model_recommendations = _counters_of(
    "tim4rec_model_recommendations",
    "Recommendations answered, popular items included, by the user's model",
    "model",
)
_model_rebuilds = _counters_of(
    "tim4rec_model_rebuilds",
    "States made from a snapshot or the log, by the model they are of",
    "model",
)
_shown_items = _counters_of(
    "tim4rec_shown_items", "Items recommended to users by a model, by model", "model"
)
outcomes = _counters_of(
    "tim4rec_outcomes",
    "Interactions with an item that was recommended to the user within the outcome window, by the "
    "model that recommended it and by kind",
    "model",
    "kind",
)
OUTCOME_FAILURES = _counter(
    "tim4rec_outcome_failures", "Times that recommended items or outcomes were not sent"
)
_quality_events = _counters_of(
    "tim4rec_quality_events",
    "Interactions judged (quality_sample), by the user's model and whether it knows the item",
    "model",
    "item",
)
_quality_hits, _quality_ndcg, _quality_reciprocal_ranks = (
    _counters_of(f"tim4rec_quality_{name}", meaning, "model", "item", "by")
    for name, meaning in (
        (
            "hits",
            "Interactions judged whose item was among the 10 that the user would have been given "
            "just before (served), or among the 10 most popular (popularity)",
        ),
        ("ndcg", "Sum over these of 1 / log2(rank + 1); a judged interaction: NDCG@10"),
        ("reciprocal_ranks", "Sum over these of 1 / rank; a judged interaction: MRR@10"),
    )
)
QUALITY_FAILURES = _counter(
    "tim4rec_quality_failures", "Interactions of the quality sample that could not be judged"
)
_moved_users = _sum(
    "tim4rec_moved_users",
    "Users in the pool whose model the last change changed, by whether they have its state",
    "state",
)
MOVED_USERS = {state: _moved_users.labels(state) for state in ("moved", "waiting")}

# -- processes ---------------------------------------------------------------------------

BUILD = _most(
    "tim4rec_build_info", "The software that serves; always 1", "version", "torch", "device"
)
READY = _least("tim4rec_ready", "1: every worker is warm; 0: one is starting or draining")
WORKERS = _sum("tim4rec_workers", "Worker processes")
WORKER_STARTS = _counter("tim4rec_worker_starts", "Starts of worker processes")
RESIDENT_MEMORY = _sum("tim4rec_resident_memory_bytes", "Memory of the processes")
DEVICE_MEMORY = _sum("tim4rec_device_memory_bytes", "Memory the processes hold on the GPU")
OPEN_FILES = _sum("tim4rec_open_files", "Files and connections the processes hold open")
CPU = _counter("tim4rec_cpu_seconds", "CPU time of the processes")
EVENT_LOOP_LAG = _most(
    "tim4rec_event_loop_lag_seconds",
    "How late the last timer of an event loop was; of the latest worker",
)


class OfModel:
    """What is counted by model. To be made in the thread of the event loop.

    Args:
        model: its identity.
    """

    def __init__(self, model: str) -> None:
        self.users = Part(_model_users.labels(model))
        self.recommendations = _model_recommendations(model)
        self.rebuilds = _model_rebuilds(model)
        self.shown = _shown_items(model)


of_model = cache(OfModel)


class Quality:
    """What is counted of the interactions judged, by model and item: `known` to it, or `new`. To be
    made in the thread of the event loop."""

    def __init__(self, model: str, item: Literal["known", "new"]) -> None:
        self._events = _quality_events(model, item)
        counters = _quality_hits, _quality_ndcg, _quality_reciprocal_ranks
        self._served = [of(model, item, "served") for of in counters]
        self._popularity = [of(model, item, "popularity") for of in counters]

    def count(self, served: int | None, popular: int | None) -> None:
        """An interaction, by the rank of its item, from 1; None: not among the best."""
        self._events.inc()
        for rank, counters in ((served, self._served), (popular, self._popularity)):
            if rank is not None:
                gains = 1, 1 / math.log2(rank + 1), 1 / rank
                count(*zip(counters, gains, strict=True))


quality = cache(Quality)


def observe_request(
    method: str, route: str, status: int, seconds: float, by_stage: Mapping[str, float]
) -> None:
    """Counts a request answered, and the time of each of its stages.

    Args:
        route: the route's template, not the path.
    """
    if method not in METHODS:
        method = "other"
    _request_duration(method, route, str(status)).observe(seconds)
    for stage, part in by_stage.items():
        _stage_duration(route, stage).observe(part)


def observe_refusals(method: str, route: str, number: int) -> None:
    """Counts requests that were refused in no time, as `overloaded`."""
    REFUSED["overloaded"].inc(number)
    values.observe_in_no_time(_request_duration(method, route, "503"), number)


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers as text, and its content type. Safe in any thread."""
    registry = _ours
    folder = os.environ.get(MULTIPROC_DIR)
    if folder:
        values.forget_the_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
