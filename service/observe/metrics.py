"""What the service counts and times.

Every label has few values, known beforehand: none of them is of a user, an item or a caller's
making.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from prometheus_client import Histogram

from service.observe import values
from service.observe.registry import (
    REGISTRY,
    Part,
    counter,
    counters,
    counters_of,
    histograms_of,
    latest,
    least,
    most,
    summed,
)

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

# -- requests ----------------------------------------------------------------------------

_request_duration = histograms_of(
    "tim4rec_request_duration_seconds",
    "Time from a request's arrival to the end of its answer",
    "method",
    "route",
    "status",
)
_stage_duration = histograms_of(
    "tim4rec_stage_duration_seconds",
    "Time of a request in one stage; all stages add up to its whole time",
    "route",
    "stage",
)
REFUSED = counters(
    "tim4rec_refused_requests",
    "Requests refused before anything was done",
    "reason",
    ("queue_full", "overloaded", "stopping", "explanations", "catalogue"),
)

# -- batches and the state pool ----------------------------------------------------------

WAVE_REQUESTS = Histogram(
    "tim4rec_wave_requests", "Requests in one batch", buckets=SIZES, registry=REGISTRY
)
QUEUE = summed("tim4rec_queue_requests", "Requests waiting when a batch was last taken")
QUEUE_CAPACITY = summed("tim4rec_queue_capacity_requests", "Most requests that may wait")
POOL_LOOKUPS = counters(
    "tim4rec_pool_lookups", "Users looked up in the state pool", "result", ("hit", "miss")
)
POOL_USERS = summed("tim4rec_pool_users", "States in the pool")
POOL_CAPACITY = summed("tim4rec_pool_capacity_users", "Most states the pool holds")
POOL_BYTES = summed(
    "tim4rec_pool_bytes", "Size of all rows of the pool; on a CPU, unused ones take no memory"
)

# -- the store ---------------------------------------------------------------------------

_store_duration = histograms_of(
    "tim4rec_store_duration_seconds", "Time of one round trip to the store", "operation"
)
STORE_DURATION = {operation: _store_duration(operation) for operation in OPERATIONS}
STORE_ERRORS = counters(
    "tim4rec_store_errors",
    "Round trips that failed, or in which the store refused a command",
    "operation",
    OPERATIONS,
)
ACKS_MISSED = counter(
    "tim4rec_replica_acks_missed",
    "Writes that too few replicas had in time (replica_acks): refused, though they may be there",
)
STORE_UP = least("tim4rec_store_up", "1: every node of the store answers every worker")
STORE_MEMORY = latest("tim4rec_store_memory_bytes", "Memory the store uses")
STORE_MEMORY_LIMIT = latest(
    "tim4rec_store_memory_limit_bytes", "Memory the store may use; 0: no limit is set"
)
BACKUP = latest(
    "tim4rec_backup_timestamp_seconds",
    "When the last whole backup by `tim4rec backup` was begun, 0: there is none",
)
_store_persistence_failed = latest(
    "tim4rec_store_persistence_failed",
    "1: the store's last attempt failed to write its append-only file (append), to rewrite it "
    "(rewrite), or to save all it has (save)",
    "part",
)
STORE_PERSISTENCE_FAILED = {
    part: _store_persistence_failed.labels(part) for part in ("append", "rewrite", "save")
}
STORE_REPLICAS = latest("tim4rec_store_replicas", "Replicas connected to the store's primaries")
STORE_REPLICA_LAG = latest(
    "tim4rec_store_replica_lag_bytes", "What the store's replica furthest behind has not got yet"
)
STORE_DISK = latest(
    "tim4rec_store_disk_bytes",
    "Size of the disk that an embedded store is on; 0: the store is not embedded",
)
STORE_DISK_FREE = latest("tim4rec_store_disk_free_bytes", "Room left on that disk")

# -- interactions, states, recommendations -----------------------------------------------

EVENTS = counters(
    "tim4rec_events",
    "Interactions received, by what became of them",
    "verdict",
    ("applied", "duplicate", "late", "rejected", "conflict", "future"),
)
kinds = counters_of(
    "tim4rec_kinds",
    "Interactions logged, by kind, or none; other: kinds without a rule beyond the first 20",
    "kind",
)
UNKNOWN_ITEMS = counter(
    "tim4rec_unknown_items", "Logged interactions with an item that the model does not know"
)
_catalogue_items = latest(
    "tim4rec_catalogue_items",
    "Items with a record; those the model does not know; those that may not be returned now",
    "kind",
)
CATALOGUE_ITEMS = {
    kind: _catalogue_items.labels(kind) for kind in ("recorded", "new", "unavailable")
}
CATALOGUE_CHANGES = counter(
    "tim4rec_catalogue_changes", "Changed records of items that a process has read"
)
REBUILDS = counters(
    "tim4rec_rebuilds",
    "States of known users that were not in the pool, by what they were made from",
    "source",
    ("snapshot", "log"),
)
APPLIED = counters(
    "tim4rec_applied_events", "Interactions applied to states", "by", ("step", "prefill")
)
RECOMMENDATIONS = counters(
    "tim4rec_recommendations",
    "Recommendations answered, by where they came from; live: what has happened since training; "
    "popular: recently, or in training",
    "source",
    ("model", "live", "popular"),
)
RETRIEVALS = counters(
    "tim4rec_retrievals",
    "Recommendations of the model, by how their items were found",
    "by",
    ("exact", "index"),
)
FALLBACKS = counters(
    "tim4rec_fallbacks",
    "Recommendations without the model, by why",
    "reason",
    ("unknown_user", "no_known_item", "store_away"),
)
AWAY = counters(
    "tim4rec_answers_without_store",
    "Reads answered while the store did not, by what they were answered from",
    "source",
    ("pool", "popular"),
)
POPULARITY_FAILURES = counter(
    "tim4rec_popularity_failures", "Times that counts of items were not sent, or not read"
)
SNAPSHOTS = counters(
    "tim4rec_snapshots",
    "Snapshots, by what became of them; unfit: a value overflows the reduced precision; unsound: "
    "not readable; outdated: not of the record any more when it was to be written",
    "result",
    ("written", "failed", "unfit", "unsound", "outdated"),
)
SNAPSHOT_BYTES = counter("tim4rec_snapshot_bytes", "Size of the snapshots written")
EXACTNESS_DIFFERENCE = most(
    "tim4rec_exactness_difference",
    "Largest recent difference of a score between states in the pool and their recomputation",
)
EXACTNESS_SAMPLES = counters(
    "tim4rec_exactness_samples",
    "States compared with their recomputation; skipped: nothing to compare, or too many events",
    "result",
    ("equal", "different", "skipped"),
)

# -- models ------------------------------------------------------------------------------

MODEL = most(
    "tim4rec_model_info",
    "1: the model is served; 0: not any more",
    "identity",
    "edition",
    "name",
    "time_path",
    "items",
    "precision",
)
MODEL_UNTIL = most(
    "tim4rec_model_until_timestamp_seconds",
    "Newest interaction that a model was trained on, as its artefact says",
    "edition",
)
MODEL_BEHIND = most(
    "tim4rec_model_behind",
    "1: a worker can't serve the models that are set, and serves those before",
)
MODEL_CHANGES = counters(
    "tim4rec_model_changes",
    "Times that a worker deployed the models that were set, or could not",
    "result",
    ("taken", "failed"),
)
_model_users = summed(
    "tim4rec_model_users", "States in the pool, by the model they are of", "model"
)
_model_recommendations = counters_of(
    "tim4rec_model_recommendations",
    "Recommendations answered, popular items included, by the user's model",
    "model",
)
_model_rebuilds = counters_of(
    "tim4rec_model_rebuilds",
    "States made from a snapshot or the log, by the model they are of",
    "model",
)
_shown_items = counters_of(
    "tim4rec_shown_items", "Items recommended to users by a model, by model", "model"
)
outcomes = counters_of(
    "tim4rec_outcomes",
    "Interactions with an item that was recommended to the user within the outcome window, by the "
    "model that recommended it and by kind",
    "model",
    "kind",
)
EXPLORED_ITEMS = counter(
    "tim4rec_explored_items",
    "Items recommended so that they are known better (explore_share), beside those of a model",
)
EXPLORED_OUTCOMES = counter(
    "tim4rec_explored_outcomes",
    "Interactions with such an item within the outcome window, beside those of a model",
)
TRIAL_DECISIONS = counters(
    "tim4rec_trial_decisions",
    "Trials that ended by what their users did, by what became of them",
    "decision",
    ("promoted", "taken_back"),
)
OUTCOME_FAILURES = counter(
    "tim4rec_outcome_failures", "Times that recommended items or outcomes were not sent"
)
_moved_users = summed(
    "tim4rec_moved_users",
    "Users in the pool whose model the last change changed, by whether they have its state",
    "state",
)
MOVED_USERS = {state: _moved_users.labels(state) for state in ("moved", "waiting")}

# -- processes ---------------------------------------------------------------------------

BUILD = most(
    "tim4rec_build_info", "The software that serves; always 1", "version", "torch", "device"
)
READY = least("tim4rec_ready", "1: every worker is warm; 0: one is starting or draining")
WORKERS = summed("tim4rec_workers", "Worker processes")
WORKER_STARTS = counter("tim4rec_worker_starts", "Starts of worker processes")
RESIDENT_MEMORY = summed("tim4rec_resident_memory_bytes", "Memory of the processes")
DEVICE_MEMORY = summed("tim4rec_device_memory_bytes", "Memory the processes hold on the GPU")
OPEN_FILES = summed("tim4rec_open_files", "Files and connections the processes hold open")
CPU = counter("tim4rec_cpu_seconds", "CPU time of the processes")
EVENT_LOOP_LAG = most(
    "tim4rec_event_loop_lag_seconds",
    "How late the last timer of an event loop was; of the latest worker",
)


class OfModel:
    """What is counted by model. To be made in the thread of the event loop.

    Args:
        model: its edition.
    """

    def __init__(self, model: str) -> None:
        self.users = Part(_model_users.labels(model))
        self.recommendations = _model_recommendations(model)
        self.rebuilds = _model_rebuilds(model)
        self.shown = _shown_items(model)


of_model = cache(OfModel)


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
